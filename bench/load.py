"""The load generator (``load.c``) as a process of its own, pinned to its core."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench import native
from bench.machine import Cores, pinned
from bench.process import RunError, ServerProcess

Sample = dict[str, Any]
LIMIT = 60  # seconds until a run that does not end counts as failed


@dataclass(frozen=True, slots=True)
class Load:
    """What the load does; see the head of ``load.c``."""

    task: str = "loop"
    connections: int = 64
    size: int = 128
    depth: int = 1
    idle: int = 0
    shape: str = "echo"
    seconds: float = 1.0
    warmup: float = 0.3

    def command(self, server: ServerProcess, cores: Cores) -> list[str]:
        options = {
            "--port": server.port,
            "--server-pid": server.pid,
            "--server-core": cores.server,
            "--connections": self.connections,
            "--size": self.size,
            "--depth": self.depth,
            "--idle": self.idle,
            "--shape": self.shape,
            "--seconds": self.seconds,
            "--warmup": self.warmup,
            "--limit": LIMIT,
        }
        words = [word for name, value in options.items() for word in (name, str(value))]
        return [str(native.build("load")), self.task, *words]

    def run(self, server: ServerProcess, cores: Cores) -> Sample:
        """Let it run to its end.

        :raises RunError: a byte was wrong, a connection was lost, or it took too long.
        """
        with pinned(cores.load):
            done = subprocess.run(
                self.command(server, cores), capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            raise RunError(done.stderr.strip().rpartition("\n")[2] or f"load: {done.returncode}")
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    @contextmanager
    def held(self, server: ServerProcess, cores: Cores) -> Iterator[Sample]:
        """Keep the connections of a ``hold`` open while inside."""
        with pinned(cores.load):
            process = subprocess.Popen(
                self.command(server, cores),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            if not line:
                raise RunError(process.stderr.read().strip())
            yield json.loads(line)
            process.communicate()  # closes its standard input: it ends
