"""A UDP echo: each datagram goes back to its sender. SIGINT (Ctrl-C) or SIGTERM ends it.

A sender's address can be a lie, and who it names gets the answer: keep it off the open Internet.
"""

import argparse
import asyncio
import contextlib
import importlib
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from aiogaio import OpType, QueueFullError, Watcher

QUEUE = 1 << 20  # bytes that may wait until the system takes them


class Echo:
    """What came, and what has become of it."""

    def __init__(self) -> None:
        self.received = self.truncated = self.dropped = self.failed = 0

    async def serve(self, watcher: Watcher, sock: socket.socket) -> None:
        """Until it is cancelled."""
        watcher.recvfrom(sock, multishot=True)
        async for results in watcher:
            for op in results:
                if op.type is OpType.WRITE:  # silent, so it has failed: nobody can be reached there
                    self.failed += 1
                elif op.error is not None:  # an error of the network; it ends the request
                    watcher.recvfrom(op.conn, multishot=True)
                else:
                    self.received += 1
                    if op.truncated:  # a part is no echo
                        self.truncated += 1
                        continue
                    try:
                        watcher.sendto(op.conn, op.data, op.address, silent=True)
                    except QueueFullError:  # as a network does it
                        self.dropped += 1

    def __str__(self) -> str:
        return (
            f"{self.received} datagrams received: {self.truncated} were too long, "
            f"{self.dropped} dropped, {self.failed} not sendable"
        )


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(text, flush=True)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(sock: socket.socket, size: int) -> None:
    task, loop, echo = asyncio.current_task(), asyncio.get_running_loop(), Echo()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    async with Watcher(buffer_size=size, max_queued_bytes=QUEUE) as watcher:
        say(f"UDP echo on {printable(sock.getsockname())}")
        with contextlib.suppress(asyncio.CancelledError):
            await echo.serve(watcher, sock)
    say(str(echo))


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        return None if name == "asyncio" else importlib.import_module(name).new_event_loop
    except ImportError:
        sys.exit(f"{name} is not installed: pip install {name}")


def bind(host: str, port: int) -> socket.socket:
    with contextlib.ExitStack() as stack:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind(address)
        except (OSError, UnicodeError) as error:
            sys.exit(f"cannot listen: {error}")
        stack.pop_all()
    return sock


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, size = parser.add_argument, within(int, 1, 65535)
    add("--host", default="127.0.0.1", help="default: 127.0.0.1")
    add("--port", type=within(int, 0, 65535), default=9003, help="default: 9003; 0: any")
    add(
        "--size", type=size, default=65535, help="longer ones are counted, not sent; default: 65535"
    )
    add("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    server = bind(options.host, options.port)
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        runner.run(main(server, options.size))
