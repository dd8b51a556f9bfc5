"""The load tools that several applications use, and how to read what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from bench import native
from bench.applications.model import COMPILER, Place, Sample, Server
from bench.process import RunError

Command = Callable[[Place, float], list[str]]


def load_c(connections: int, size: int) -> Command:
    """Round trips in a closed loop by the benchmark's own load, ``bench/load.c``."""
    return lambda place, seconds: [
        str(native.build("load")), "loop", "--port", str(place.port),
        "--server-pid", str(place.pid), "--connections", str(connections), "--size", str(size),
        "--seconds", str(seconds), "--warmup", "0.1",
    ]  # fmt: skip


def datagrams(window: int) -> Command:
    """Datagrams of 64 bytes to an echo, by ``datagrams.c``."""

    def command(place: Place, seconds: float) -> list[str]:
        (native.BUILD / "applications").mkdir(parents=True, exist_ok=True)
        return [
            str(native.build("applications/datagrams")), "--port", str(place.port),
            "--server-pid", str(place.pid), "--window", str(window), "--seconds", str(seconds),
        ]  # fmt: skip

    return command


def own(name: str, *options: str, backend: bool = False) -> Command:
    """One of ``loads/``."""
    return lambda place, seconds: [
        sys.executable, "-m", f"bench.applications.loads.{name}", *options,
        "--port", str(place.port), "--server-pid", str(place.pid), "--seconds", str(seconds),
        *(["--to", str(place.second)] if backend else []),
    ]  # fmt: skip


def read_json(output: str) -> dict[str, float]:
    try:
        found = json.loads(output)
    except ValueError:
        raise RunError(f"the load printed {output.strip()[-80:]!r}") from None
    if not isinstance(found, dict):
        raise RunError(f"the load printed {output.strip()[-80:]!r}")
    return found


def per_second(output: str) -> Sample:
    """What both C programs and all of ``loads/`` print: a rate, and how busy it kept the server."""
    found = read_json(output)
    if not found.get("per_second"):
        raise RunError("the load made no round trip")
    return Sample(found["per_second"], found["server_busy"])


# The least that an echo can cost, in C.
ECHO = Server(
    "echo",
    lambda place: [sys.executable, "-m", "bench.servers", "floor", "--port", str(place.second)],
    programs=(COMPILER,),
)
