"""`embedded.py`: what its Watcher's work costs the web application on the same loop.

Ours are the web application beside a Watcher that answers lines, the rivals the same alone. The
questions that are timed come at a steady rate, far below what the server can do. The load of lines
has the load's core, where it makes way for the load that measures.
"""

from __future__ import annotations

from bench.applications.http import read_wrk, wrk
from bench.applications.model import (
    LOOPS,
    Application,
    Load,
    Place,
    Sample,
    Server,
    Target,
    example,
    needed,
)
from bench.applications.tools import own, read_json
from bench.process import RunError

WEB, LINES = 400, 3000  # questions a second
AS_LONG_AS_IT_TAKES = 600  # seconds
P99, REQUESTS = "embedded, GET / at a steady rate", "embedded, GET /"
FACTOR = 2.0  # times as long as alone, at most, may the slowest hundredth take


def lines(place: Place) -> list[str]:
    """The load of lines: until it is ended, and what it measures nobody reads."""
    alike = own("questions", "lines", "--connections", "64", "--rate", str(LINES), "--background")
    return alike(place._replace(port=place.second), AS_LONG_AS_IT_TAKES)


def server(name: str, loop: str, *, alone: bool) -> Server:
    def command(place: Place) -> list[str]:
        return example("embedded.py", "--loop", loop, "--lines", str(place.second))(place)

    return Server(f"{name}-{loop}", command, needed(loop, "uvicorn"), alone=alone)


def p99(output: str) -> Sample:
    """Of the answers, in milliseconds."""
    found = read_json(output)
    if not found.get("p99"):
        raise RunError("the load timed nothing")
    return Sample(found["p99"] * 1e3)


BESIDE = Server("lines", lines, protocol="")
APPLICATION = Application(
    "embedded",
    [server("embedded", loop, alone=False) for loop in LOOPS],
    [server("alone", loop, alone=True) for loop in LOOPS],
    [
        Load(
            P99, "p99 in ms", own("questions", "web", "--connections", "8", "--rate", str(WEB)),
            p99, beside=BESIDE, lower_is_better=True,
        ),
        Load(REQUESTS, "requests/s", wrk("/"), read_wrk, ("wrk",), beside=BESIDE),
    ],
    [Target(P99, f"embedded-{loop}", f"alone-{loop}", FACTOR) for loop in LOOPS],
    loop_by_loop=True,
)  # fmt: skip
