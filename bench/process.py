"""A server as a process of its own, pinned to its core."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.machine import Cores, pinned

ROOT = Path(__file__).parent.parent
PATIENCE = 15.0  # seconds for a server to start, or to end


class RunError(RuntimeError):
    """A run that gives no figure: the server or the load failed, and how."""


@dataclass(slots=True)
class ServerProcess:
    port: int
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_bytes(self) -> int:
        """Memory that is this process's own and resident now."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise RunError("the system does not say how much memory the server uses")

    def ticker_report(self) -> dict[str, Any]:
        """Ends the server; what its 1 ms ticker saw."""
        self.process.terminate()
        out, _ = self.process.communicate(timeout=PATIENCE)
        return json.loads(out)  # type: ignore[no-any-return]


@contextmanager
def serving(name: str, cores: Cores, *arguments: str) -> Iterator[ServerProcess]:
    """Start ``python -m bench.servers NAME ...`` and end it on leaving."""
    command = [sys.executable, "-m", "bench.servers", name, *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        with pinned(cores.server):
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            yield ServerProcess(_read_port(process, errors), process)
            if process.poll() not in (None, 0):
                raise RunError(f"the server ended: {last_line(errors)}")
        finally:
            end(process)


def _read_port(process: subprocess.Popen[str], errors: IO[str]) -> int:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    line = process.stdout.readline() if ready else ""
    if not line.strip().isdigit():
        raise RunError(f"the server did not start: {last_line(errors)}")
    return int(line)


def last_line(file: IO[str]) -> str:
    """The last that a process has said."""
    file.seek(0)
    lines = [line for line in file.read().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def end(process: subprocess.Popen[Any]) -> None:
    """Have it stop, and wait until it has."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
