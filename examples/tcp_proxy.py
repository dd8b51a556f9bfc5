"""A TCP proxy: who connects to it talks to --to. SIGINT (Ctrl-C) or SIGTERM ends it.

Nothing is read that the other side does not take, so a slow receiver slows its sender and memory
stays flat. The end of one side is passed on as an end, and anything else that ends a connection as
a reset: nobody takes half of an answer for the whole.
"""

import argparse
import asyncio
import contextlib
import importlib
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from aiogaio import Connection, Operation, OpType, Watcher

Target = tuple[int, Any]  # the family, and an address of it
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a RST


class Proxy:
    """Who connects is connected on, and then the two are one relay."""

    def __init__(self, watcher: Watcher, targets: list[Target], patience: float, idle: float):
        self.watcher, self.targets, self.patience, self.idle = watcher, targets, patience, idle
        self.relayed = self.sent = self.received = self.failed = 0

    async def serve(self, listener: socket.socket) -> None:
        """Until it is cancelled."""
        self.watcher.accept(listener, multishot=True)
        async for results in self.watcher:
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        self.connect(op.accepted, 0)
                    else:  # no descriptor is left; it goes on when there are some
                        complain("cannot accept", op.error)
                elif op.type is OpType.CONNECT:
                    self.connected(op)
                else:
                    self.ended(op)

    def connect(self, client: Connection, tried: int) -> None:
        """To one of the addresses that the name has; to the next one if that fails."""
        family, address = self.targets[tried]
        try:
            upstream = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor is left
            self.give_up(client, error)
        else:
            self.watcher.connect(upstream, address, context=(client, tried), timeout=self.patience)

    def connected(self, op: Operation) -> None:
        """Or not."""
        client, tried = op.context
        if op.error is None:
            both = client, op.conn
            self.watcher.relay(*both, timeout=self.idle, context=both)
            return
        op.conn.close()
        if tried + 1 < len(self.targets):
            self.connect(client, tried + 1)
        else:
            self.give_up(client, op.error)

    def give_up(self, client: Connection, error: Exception) -> None:
        """Nobody is there to talk to."""
        complain("cannot connect", error)
        self.failed += 1
        close(client, error)

    def ended(self, op: Operation) -> None:
        """Both sides have ended, or one has failed, or neither has said a word for too long."""
        self.relayed += 1
        self.sent += op.sizes[0]
        self.received += op.sizes[1]
        for conn in op.context:
            close(conn, op.error)


def close(conn: Connection, error: Exception | None) -> None:
    if error is not None:
        with contextlib.suppress(OSError):  # it is broken already
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    conn.close()


def complain(what: str, error: Exception) -> None:
    print(f"{what}: {error}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(text, flush=True)


def printable(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def main(
    listener: socket.socket, targets: list[Target], patience: float, idle: float
) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    async with Watcher() as watcher:
        proxy = Proxy(watcher, targets, patience, idle)
        say(f"proxy on {printable(listener.getsockname())}")
        with contextlib.suppress(asyncio.CancelledError):
            await proxy.serve(listener)
    say(
        f"closed: {proxy.relayed} connections relayed, {proxy.sent} bytes there and "
        f"{proxy.received} back; {proxy.failed} not connected"
    )


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def host_and_port(text: str) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not colon or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, or [IPV6]:PORT, not {text!r}")
    return host, within(int, 0, 65535)(number)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        return None if name == "asyncio" else importlib.import_module(name).new_event_loop
    except ImportError:
        sys.exit(f"{name} is not installed: pip install {name}")


def look_up(host: str, number: int) -> list[Target]:
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        sys.exit(f"cannot look up {host}: {error}")
    return [(family, address) for family, *_, address in found]


def listen(host: str, number: int) -> socket.socket:
    family, address = look_up(host, number)[0]
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        sys.exit(f"cannot listen: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, seconds = parser.add_argument, within(float, 0.01, 86400)
    add(
        "--to",
        type=host_and_port,
        required=True,
        metavar="HOST:PORT",
        help="a name is looked up once",
    )
    add("--host", default="127.0.0.1", help="default: 127.0.0.1")
    add("--port", type=within(int, 0, 65535), default=9005, help="default: 9005; 0: any")
    add("--connect-timeout", type=seconds, default=5, help="seconds for an address; default: 5")
    add("--idle", type=seconds, default=300, help="seconds without a byte; default: 300")
    add("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    targets = look_up(*options.to)
    server = listen(options.host, options.port)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each client, and pipes
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        runner.run(main(server, targets, options.connect_timeout, options.idle))
