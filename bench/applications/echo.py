"""`echo_server.py` beside the same on asyncio's streams; `python -m bench` measures much more."""

from __future__ import annotations

import sys

from bench.applications.model import COMPILER, LOOPS, Application, Load, Server, needed
from bench.applications.tools import load_c, per_second
from bench.process import ROOT

PROGRAM = str(ROOT / "examples" / "echo_server.py")
# The example has no --loop, so asyncio.run() is made to run on uvloop.
ON_UVLOOP = """
import asyncio, runpy, sys, uvloop
del sys.argv[0]
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    asyncio.run = runner.run
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
STARTS = {"asyncio": [PROGRAM], "uvloop": ["-c", ON_UVLOOP, PROGRAM]}


def ours(loop: str) -> Server:
    return Server(
        f"echo_server-{loop}",
        lambda place: [sys.executable, *STARTS[loop], str(place.port)],
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
