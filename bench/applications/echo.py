"""`echo_server.py` beside the same on asyncio's streams; `python -m bench` measures much more."""

from __future__ import annotations

import sys

from bench.applications.model import COMPILER, LOOPS, Application, Load, Server, needed
from bench.applications.tools import load_c, per_second
from bench.process import ROOT

PROGRAM = str(ROOT / "examples" / "echo_server.py")


def ours(loop: str) -> Server:
    return Server(
        f"echo_server-{loop}",
        lambda place: [sys.executable, PROGRAM, "--port", str(place.port), "--loop", loop],
        needed(loop),
    )


def streams(loop: str) -> Server:
    return Server(
        f"streams-{loop}",
        lambda place: [
            sys.executable, "-m", "bench.servers", f"{loop}-streams", "--port", str(place.port),
        ],
        needed(loop),
    )  # fmt: skip


APPLICATION = Application(
    "echo",
    [ours(loop) for loop in LOOPS],
    [streams(loop) for loop in LOOPS],
    [Load("echo, 64 x 128 B", "round trips/s", load_c(64, 128), per_second, (COMPILER,))],
)
