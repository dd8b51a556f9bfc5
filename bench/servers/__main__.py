"""Run one server: ``python -m bench.servers NAME [--port 0] [--role echo] [--ticker]``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Callable

from bench import native
from bench.servers import BACKLOG, SERVERS, ticker

Program = Callable[..., Awaitable[None]]


def _run_asyncio(program: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(program())  # type: ignore[arg-type]


def _run_uvloop(program: Callable[[], Awaitable[None]]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program())  # type: ignore[arg-type]


def _run_rloop(program: Callable[[], Awaitable[None]]) -> None:
    import rloop  # type: ignore[import-untyped]

    with asyncio.Runner(loop_factory=rloop.new_event_loop) as runner:
        runner.run(program())  # type: ignore[arg-type]


def _run_trio(program: Callable[[], Awaitable[None]]) -> None:
    import trio

    trio.run(program)


RUNNERS = {
    "asyncio": _run_asyncio,
    "uvloop": _run_uvloop,
    "rloop": _run_rloop,
    "trio": _run_trio,
}


def _load(path: str) -> Program:
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(f"bench.servers.{module}"), function)  # type: ignore[no-any-return]


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(port: int) -> socket.socket:
    # The protocol is named because asyncio sets TCP_NODELAY only where the socket says it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.servers", description=__doc__)
    parser.add_argument("name", choices=sorted(SERVERS), metavar="NAME")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--role", choices=("echo", "relay", "push"), default="echo")
    parser.add_argument("--ticker", action="store_true", help="report the lag of a 1 ms ticker")
    options = parser.parse_args()
    server = SERVERS[options.name]
    if reason := server.missing():
        sys.exit(f"{server.name}: {reason}")
    if options.role not in server.roles:
        sys.exit(f"{server.name}: has no {options.role}")
    if server.loop == "native":
        floor = native.build("floor")
        os.execv(floor, [str(floor), str(options.port), options.role])

    _raise_file_limit()
    program = _load(server.program)
    listener = _listen(options.port)

    async def run() -> None:
        if options.ticker:
            ticker.start()
        print(listener.getsockname()[1], flush=True)
        await (program(listener) if options.role == "echo" else program(listener, options.role))

    RUNNERS[server.loop](run)


if __name__ == "__main__":
    main()
