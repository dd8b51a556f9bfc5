"""The machine a benchmark ran on: its facts, and which cores the two sides may have."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import native
from bench.servers import SERVERS

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server and another for the load; the same one if there is no other."""

    server: int
    load: int

    @property
    def shared(self) -> bool:
        return self.server == self.load


def choose_cores() -> Cores:
    """The first and the last usable core that are not threads of the same physical core."""
    usable = sorted(os.sched_getaffinity(0))
    load = usable[0]
    others = [core for core in usable if core not in _siblings(load)]
    return Cores(server=others[-1] if others else usable[-1], load=load)


def _siblings(core: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        parts = path.read_text().strip().split(",")
    except OSError:
        return {core}
    siblings: set[int] = set()
    for part in parts:
        first, _, last = part.partition("-")
        siblings.update(range(int(first), int(last or first) + 1))
    return siblings


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started inside run on this core for good, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def facts(cores: Cores) -> dict[str, object]:
    """What a reader needs to judge the figures. Nothing here names the host or its user."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": _first_line([native.compiler(), "--version"]),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "commit": _commit(),
        "versions": _versions(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""


def _commit() -> str:
    """The commit, with a plus where the measured code differs from it."""
    commit = _first_line(["git", "rev-parse", "--short", "HEAD"])
    changed = _first_line(["git", "status", "--porcelain", "--", "../aiogaio", "../bench"])
    return f"{commit or 'unknown'}{'+' if changed else ''}"


def _versions() -> dict[str, str]:
    sys.path.insert(0, str(HERE.parent))
    try:
        import aiogaio

        versions = {"aiogaio": aiogaio.__version__}
    except (ImportError, AttributeError):
        versions = {}
    finally:
        sys.path.pop(0)
    for server in SERVERS.values():
        if server.missing() is None:
            versions |= server.versions()
    return versions
