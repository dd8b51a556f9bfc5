"""`http_server.py` beside uvicorn with a bare ASGI application that answers the same bytes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.applications.model import (
    LOOPS,
    Application,
    Load,
    Place,
    Sample,
    Server,
    Target,
    needed,
    ours,
)
from bench.process import RunError

PIPELINE = Path(__file__).with_name("pipeline.lua")


def uvicorn(loop: str) -> Server:
    return Server(
        f"uvicorn-{loop}",
        lambda place: [
            sys.executable, "-m", "uvicorn", "bench.applications.asgi:application",
            "--port", str(place.port), "--loop", loop, "--http", "httptools", "--no-access-log",
            "--log-level", "warning", "--lifespan", "off", "--backlog", "1024",
        ],
        needed(loop, "uvicorn", "httptools"),
    )  # fmt: skip


def wrk(path: str, *more: str) -> Callable[[Place, float], list[str]]:
    return lambda place, seconds: [
        "wrk", "--threads", "1", "--connections", "64", "--duration", f"{max(1, round(seconds))}s",
        *more, f"http://127.0.0.1:{place.port}{path}",
    ]  # fmt: skip


def read_wrk(output: str) -> Sample:
    for complaint in ("Non-2xx or 3xx responses", "Socket errors"):
        if complaint in output:
            raise RunError(next(line for line in output.splitlines() if complaint in line).strip())
    found = re.search(r"Requests/sec: +([\d.]+)", output)
    if found is None:
        raise RunError("wrk gave no rate")
    return Sample(float(found[1]))


APPLICATION = Application(
    "http",
    ours("http_server", "httptools"),
    [uvicorn(loop) for loop in LOOPS],
    [
        Load("http, plain text", "requests/s", wrk("/"), read_wrk, ("wrk",)),
        Load("http, JSON", "requests/s", wrk("/json"), read_wrk, ("wrk",)),
        Load(
            "http, plain text, 16 pipelined", "requests/s",
            wrk("/", "--script", str(PIPELINE)), read_wrk, ("wrk",),
        ),
    ],
    [
        Target("http, plain text", "http_server-asyncio", "uvicorn-uvloop", 2),
        Target("http, plain text", "http_server-uvloop", "uvicorn-uvloop", 2),
    ],
)  # fmt: skip
