"""An HTTP/1.1 server with httptools: `/` is plain text, `/json` is JSON. Ctrl-C ends it.

Keep-alive and pipelining; the answers to all requests of one received chunk go out in one write.
A client that does not read its answers is read no further, so memory stays flat. Who completes no
request for `--idle` seconds, by silence or by sending slowly, has to leave. Headers are not
looked at: no `Host` is missed, no `Expect` answered.
"""

import argparse
import asyncio
import contextlib
import importlib
import resource
import signal
import socket
import sys
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from aiogaio import (
    Connection,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
)

try:
    import httptools
except ImportError:
    sys.exit("httptools is not installed: pip install httptools")

PAGES = {
    b"/": ("200 OK", "text/plain; charset=utf-8", b"Hello, world!"),
    b"/json": ("200 OK", "application/json", b'{"message": "Hello, world!"}'),
}
CHUNK = 4096  # bytes received at once: bounds the answers for which others have to wait
LIMIT = 16384  # a request of so many bytes is always taken, one of 2 * CHUNK more never
LINGER = 2  # seconds for a client to see our end and to send its own


def answer(method: bytes, url: bytes, *, keep: bool) -> bytes:
    with contextlib.suppress(httptools.HttpParserInvalidURLError):
        url = httptools.parse_url(url).path or b"/"  # without a query, or an authority
    if method not in {b"GET", b"HEAD"}:
        return render("405 Method Not Allowed", keep=keep, more="Allow: GET, HEAD\r\n")
    status, kind, body = PAGES.get(url, ("404 Not Found", "text/plain", b"Not found\n"))
    return render(status, kind, body, keep=keep, head=method == b"HEAD")


def render(
    status: str,
    kind: str = "text/plain",
    body: bytes = b"",
    *,
    keep: bool = False,
    head: bool = False,
    more: str = "",
) -> bytes:
    lines = (
        f"HTTP/1.1 {status}\r\nDate: {formatdate(usegmt=True)}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n"
    )
    return f"{lines}{more}\r\n".encode() + (b"" if head else body)


class Server:
    """What the connections share."""

    def __init__(self, watcher: Watcher, tasks: asyncio.TaskGroup, idle: int) -> None:
        self.watcher, self.tasks, self.idle = watcher, tasks, idle
        self.sessions: set[Session] = set()
        self.answers: dict[bytes, bytes] = {}  # ready to be sent, for nearly all requests
        self.second = 0

    async def tick(self) -> None:
        """Each second: renew the date of the answers, and send away whose time is over."""
        while True:
            self.answers |= {url: answer(b"GET", url, keep=True) for url in PAGES}
            for session in [one for one in self.sessions if one.due < self.second]:
                session.expire()
            await asyncio.sleep(1)
            self.second += 1


class Session:
    """One connection. The parser calls what begins with `on_`."""

    def __init__(self, server: Server, conn: Connection) -> None:
        self.server, self.watcher, self.conn = server, server.watcher, conn
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.answers: list[bytes] = []
        self.unfinished = 0  # bytes since a request was completed
        self.has_body = False  # the one that is not
        self.open = True  # takes requests; else it is paused or leaving
        self.held: list[bytes] | None = None  # while it is paused: what had come already
        self.last = False  # what follows is not answered any more
        self.received_end = self.sent_end = False
        self.due = server.second + server.idle
        conn.context = self  # and so of all requests on it
        server.sessions.add(self)
        self.reading = self.watcher.read(conn, multishot=True)

    def receive(self, data: bytes) -> None:
        """Answer the requests that this chunk completes."""
        if not self.open:
            if self.held is not None:
                self.held.append(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # we speak nothing else: it was answered, as the last
        except httptools.HttpParserError:
            self.refuse("400 Bad Request")
        if self.answers:
            self.unfinished, self.due = 0, self.server.second + self.server.idle
        else:
            self.unfinished += len(data)
            if self.unfinished > LIMIT and self.has_body:
                self.refuse("413 Content Too Large")
            elif self.unfinished > LIMIT:
                self.refuse("431 Request Header Fields Too Large")
        self.flush()

    def on_url(self, part: bytes) -> None:
        """A part of it, where a chunk ends inside."""
        self.url += part

    def on_body(self, _: bytes) -> None:
        """Nothing here wants one."""
        self.has_body = True

    def on_message_complete(self) -> None:
        """Answer a request."""
        if self.last:
            return
        parser, url = self.parser, self.url
        self.url, self.has_body = b"", False
        method = parser.get_method()
        keep = parser.should_keep_alive() and not parser.should_upgrade()
        if method == b"GET" and keep and url in self.server.answers:
            self.answers.append(self.server.answers[url])
        else:
            self.last = not keep
            self.answers.append(answer(method, url, keep=keep))

    def refuse(self, status: str) -> None:
        """Answer so, and nothing after it."""
        if not self.last:
            self.last = True
            self.answers.append(render(status))

    def flush(self) -> None:
        """Send the answers that there are; if the client does not take them, pause."""
        if self.answers:
            data = b"".join(self.answers)  # of a single one: itself
            self.answers.clear()
            taken = self.watcher.write(self.conn, data, silent=True) is None
            if not taken and not self.last:
                self.open, self.held = False, []
                self.watcher.cancel(self.reading)
                self.server.tasks.create_task(self.resume())
        if self.last:
            self.finish()

    async def resume(self) -> None:
        """Go on once the client has taken its answers."""
        await self.watcher.drain(self.conn)
        if self.conn.closed:
            return
        held, self.held, self.open = self.held or (), None, True
        for data in held:
            self.receive(data)
        if self.held is None and not self.received_end:
            self.reading = self.watcher.read(self.conn, multishot=True)
        elif self.open:
            self.finish()

    def finish(self) -> None:
        """Send our end behind the answers. To close with data unread would destroy them."""
        self.open, self.due = False, self.server.second + self.server.idle
        self.watcher.shutdown(self.conn)

    def failed(self, op: Operation) -> None:
        """An operation has ended with an error, be it the end of the stream."""
        if op.type is OpType.READ and isinstance(op.error, OperationCancelledError):
            return  # paused
        if op.type is not OpType.READ or not isinstance(op.error, EndOfStreamError):
            self.free()
            return
        self.received_end = True
        if self.open:
            self.finish()
        elif self.sent_end:
            self.free()

    def shut(self) -> None:
        """All answers and our end are sent."""
        self.sent_end, self.due = True, self.server.second + LINGER
        if self.received_end:
            self.free()

    def expire(self) -> None:
        """Its time is over."""
        if self.open and self.unfinished:
            self.refuse("408 Request Timeout")
            self.flush()
        else:
            self.free()

    def free(self) -> None:
        """Close it now."""
        self.open, self.held = False, None
        self.server.sessions.discard(self)
        self.watcher.free(self.conn)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(listener: socket.socket, idle: int) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    print(f"http on {printable(listener.getsockname())}", flush=True)
    async with Watcher(buffer_size=CHUNK) as watcher, asyncio.TaskGroup() as tasks:
        server = Server(watcher, tasks, idle)
        tasks.create_task(server.tick())
        watcher.accept(listener, multishot=True)
        async for results in watcher:
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        Session(server, op.accepted)
                elif op.error is not None:
                    op.context.failed(op)
                elif op.type is OpType.READ:
                    op.context.receive(op.data)
                else:
                    op.context.shut()


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        return None if name == "asyncio" else importlib.import_module(name).new_event_loop
    except ImportError:
        sys.exit(f"{name} is not installed: pip install {name}")


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")


if __name__ == "__main__":
    port, seconds = within(int, 0, 65535), within(int, 1, 86400)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=port, default=8080, help="default: %(default)s; 0: any")
    parser.add_argument("--idle", type=seconds, default=30, help="seconds; default: %(default)s")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    server = listen(options.host, options.port)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each client
    runner = asyncio.Runner(loop_factory=loop_factory(options.loop))
    with contextlib.suppress(asyncio.CancelledError), runner:
        runner.run(main(server, options.idle))
