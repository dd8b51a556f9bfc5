"""echo: a server that stays up until SIGINT or SIGTERM, and then closes in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from dataclasses import dataclass

from aiogaio import Watcher
from aiogaio.cli import limits, loops
from aiogaio.cli.failure import Failure, reason
from aiogaio.cli.server import BACKLOG, EchoServer


@dataclass(frozen=True, slots=True)
class EchoOptions:
    host: str = "127.0.0.1"
    port: int = 9000
    loop: loops.Loop = "asyncio"
    poller: loops.Poller = "auto"


def run(options: EchoOptions) -> int:
    limits.raise_open_files()
    loops.run(options.loop, _serve(options))
    return 0


async def _serve(options: EchoOptions) -> None:
    with _listen(options.host, options.port) as listener:
        where = _printable(listener.getsockname())
        async with Watcher(poller=options.poller) as watcher:
            server = EchoServer(watcher, listener)
            serving = _until_signalled(server)
            poller = watcher.statistics().poller
            greeting = f"echo on {where} (loop {options.loop}, poller {poller}), Ctrl-C ends it"
            began = time.monotonic()
            try:
                print(greeting, flush=True)
                await asyncio.wait([serving])
            finally:
                serving.cancel()
            server.stop_accepting()
            farewell = _farewell(server, watcher, time.monotonic() - began)
    print(farewell, flush=True)
    if not serving.cancelled():
        serving.result()  # it ended by itself: that is an error


def _until_signalled(server: EchoServer) -> asyncio.Task[None]:
    """The server running, until SIGINT or SIGTERM."""
    serving = asyncio.create_task(server.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    return serving


def _farewell(server: EchoServer, watcher: Watcher, seconds: float) -> str:
    statistics = watcher.statistics()
    return (
        f"closed after {seconds:.1f} s: {server.served:,} connections served "
        f"({statistics.connections:,} of them still open), "
        f"{statistics.bytes_written:,} bytes sent back"
    )


def _listen(host: str, port: int) -> socket.socket:
    """
    :raises Failure: the name does not resolve, or the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        where = _printable((host, port))
        raise Failure(f"cannot listen on {where}: {reason(error)}") from None


def _printable(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
