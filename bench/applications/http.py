"""`http_server.py` beside uvicorn with a bare ASGI application that answers the same bytes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.applications.runner import Application, Load, Server, Target, example
from bench.process import RunError

PIPELINE = Path(__file__).with_name("pipeline.lua")


def uvicorn(loop: str) -> Server:
    modules = ("uvicorn", "httptools", *(("uvloop",) if loop == "uvloop" else ()))
    return Server(
        f"uvicorn-{loop}",
        lambda port: [
            sys.executable, "-m", "uvicorn", "bench.applications.asgi:application",
            "--port", str(port), "--loop", loop, "--http", "httptools", "--no-access-log",
            "--log-level", "warning", "--lifespan", "off", "--backlog", "1024",
        ],
        modules,
    )  # fmt: skip


def ours(loop: str) -> Server:
    modules = ("httptools", *(("uvloop",) if loop == "uvloop" else ()))
    return Server(f"http_server-{loop}", example("http_server.py", "--loop", loop), modules)


def wrk(path: str, *more: str) -> Callable[[int, float], list[str]]:
    return lambda port, seconds: [
        "wrk", "--threads", "1", "--connections", "64", "--duration", f"{max(1, round(seconds))}s",
        *more, f"http://127.0.0.1:{port}{path}",
    ]  # fmt: skip


def rate(output: str) -> float:
    for complaint in ("Non-2xx or 3xx responses", "Socket errors"):
        if complaint in output:
            raise RunError(next(line for line in output.splitlines() if complaint in line).strip())
    found = re.search(r"Requests/sec: +([\d.]+)", output)
    if found is None:
        raise RunError("wrk gave no rate")
    return float(found[1])


APPLICATION = Application(
    "http",
    [ours("asyncio"), ours("uvloop"), uvicorn("asyncio"), uvicorn("uvloop")],
    [
        Load("http, plain text", "requests/s", wrk("/"), rate, ("wrk",)),
        Load("http, JSON", "requests/s", wrk("/json"), rate, ("wrk",)),
        Load(
            "http, plain text, 16 pipelined", "requests/s",
            wrk("/", "--script", str(PIPELINE)), rate, ("wrk",),
        ),
    ],
    [
        Target("http, plain text", "http_server-asyncio", "uvicorn-uvloop", 2),
        Target("http, plain text", "http_server-uvloop", "uvicorn-uvloop", 2),
    ],
)  # fmt: skip
