"""Push lines to 10,000 subscribers at once, and never wait for a slow one.

Who connects is a subscriber, and gets the time each second. A line "PUB text" of anybody goes to
all, "STAT" is answered with the counters. Who has not taken the last message misses this one, and
is dropped once a message has waited for --patience seconds: a slow subscriber costs one pending
write, and nobody's time.
"""

import argparse
import asyncio
import contextlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from aiogaio import Connection, DeadlineExceededError, Operation, OpType, Watcher

LONGEST = 65536  # bytes of a line
SLICE = 256  # writes in one go: a millisecond or two, then the loop is for others
ANSWER = "answer"  # what a write is, if no broadcast
KERNEL = 65536  # bytes that the system may hold for one subscriber; by itself it takes megabytes


class Feed:
    """The subscribers, and what was sent to them."""

    def __init__(self, watcher: Watcher, patience: float) -> None:
        self.watcher = watcher
        self.patience = patience
        # Each with the write of the last message. Only the broadcast looks at it.
        self.subscribers: dict[Connection, Operation | None] = {}
        self.queue: asyncio.Queue[tuple[bytes, Connection | None]] = asyncio.Queue()
        self.messages = self.sent = self.missed = self.dropped = 0

    def status(self) -> str:
        """What STAT answers."""
        return (
            f"subscribers={len(self.subscribers)} messages={self.messages} sent={self.sent} "
            f"missed={self.missed} dropped={self.dropped}"
        )

    async def serve(self, listener: socket.socket) -> None:
        """Collect all results."""
        self.watcher.accept(listener, multishot=True)  # delegates the listener
        async for results in self.watcher:
            if self.watcher.closed:  # what has still come cannot be answered any more
                break
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        self.subscribers[op.accepted] = None
                        self.read(op.accepted)
                elif op.error is not None:  # it hung up, or a write ran out of patience
                    self.leave(op.conn, op.error)
                elif op.type is OpType.READ:
                    self.obey(op.conn, op.data.rstrip(b"\r\n"))
                elif op.context is ANSWER:  # the answer is taken: now the next question
                    self.read(op.conn)
                else:
                    self.sent += 1

    def read(self, conn: Connection) -> None:
        """Ask for its next line."""
        self.watcher.read_until(conn, b"\n", limit=LONGEST)

    def obey(self, conn: Connection, line: bytes) -> None:
        """Do what a line says; its sender is read again once that is done."""
        if line.startswith(b"PUB "):
            self.queue.put_nowait((line[4:] + b"\n", conn))
            return
        answer = self.status() if line == b"STAT" else "? PUB text, or STAT"
        self.watcher.write(conn, answer.encode() + b"\n", timeout=self.patience, context=ANSWER)

    def leave(self, conn: Connection, error: Exception) -> None:
        """Let go of a subscriber."""
        if conn in self.subscribers:
            del self.subscribers[conn]
            self.dropped += isinstance(error, DeadlineExceededError)
            self.watcher.free(conn)

    async def broadcast(self) -> None:
        """Send what is queued, a message after the other, to whoever has taken the last one."""
        while True:
            message, publisher = await self.queue.get()
            self.messages += 1
            for number, conn in enumerate(list(self.subscribers), 1):
                if conn in self.subscribers:  # it may have left since
                    self.send(conn, message)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
            if publisher in self.subscribers:
                self.read(publisher)

    def send(self, conn: Connection, message: bytes) -> None:
        """Send to one, unless it has still the last message to take."""
        last = self.subscribers[conn]
        if last is not None and not last.completed:
            self.missed += 1
            return
        # Not silent: that would copy, for each slow one, what its socket does not take.
        self.subscribers[conn] = self.watcher.write(conn, message, timeout=self.patience)

    async def tick(self, interval: float) -> None:
        """Queue the time, again and again."""
        while interval:
            await asyncio.sleep(interval)
            self.queue.put_nowait((time.strftime("%Y-%m-%d %H:%M:%S\n").encode(), None))

    async def report(self, interval: float) -> None:
        """Print the status, again and again."""
        while interval:
            await asyncio.sleep(interval)
            say(self.status())


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(text, flush=True)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(listener: socket.socket, arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    say(f"pushing on {printable(listener.getsockname())}")
    async with Watcher() as watcher, asyncio.TaskGroup() as tasks:
        feed = Feed(watcher, arguments.patience)
        tasks.create_task(feed.serve(listener))  # ends when the watcher is closed
        others = [
            tasks.create_task(feed.broadcast()),
            tasks.create_task(feed.tick(arguments.interval)),
            tasks.create_task(feed.report(arguments.report)),
        ]
        await stop.wait()
        say(feed.status())
        for task in others:
            task.cancel()
        await watcher.aclose(grace=1)


def listen(host: str, port: int) -> socket.socket:
    """A listener whose connections, which inherit its options, are kept small and looked after."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # whose machine has gone
    return listener


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def parse() -> argparse.Namespace:
    port, seconds = within(int, 0, 65535), within(float, 0, 86400)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=port, default=9001, help="default: 9001; 0: any")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    for name, default, text in (
        ("--interval", 1, "seconds from one time to the next; 0: no time"),
        ("--patience", 10, "seconds that a subscriber may take for a message"),
        ("--report", 10, "seconds from one status line to the next; 0: none"),
    ):
        parser.add_argument(name, type=seconds, default=default, help=f"{text}; default: {default}")
    options = parser.parse_args()
    for name, value in (("--interval", options.interval), ("--report", options.report)):
        if 0 < value < 0.001:
            parser.error(f"argument {name}: must be 0, or 0.001-86400, not {value:g}")
    return options


if __name__ == "__main__":
    options = parse()
    run = asyncio.run
    if options.loop == "uvloop":
        try:
            from uvloop import run
        except ImportError:
            sys.exit("uvloop is not installed: pip install uvloop")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each subscriber
    run(main(listen(options.host, options.port), options))
