"""A Watcher beside an ordinary asyncio web application (uvicorn, ASGI), both on one loop.

The Watcher serves lines over TCP: each comes back in capitals. The web application answers GET /
with the counters, and GET /ask/WORD with what a service of lines says to the word: a handler that
awaits one single operation. It asks this very process, or the service given by --ask.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from aiogaio import AioGaioError, Operation, OpType, Watcher

try:
    import uvicorn
except ImportError:
    sys.exit("uvicorn is not installed: pip install uvicorn")

PATIENCE = 5.0  # seconds that a connection, an answer, or a slow reader may take
LONGEST = 4096  # bytes of a line


class Lines:
    """The service of lines, and calls to such services, all through one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.lines = 0

    async def serve(self, listener: socket.socket) -> None:
        """The one task that collects. It hands over what somebody awaits, and serves the rest."""
        self.watcher.accept(listener, multishot=True)  # delegates the listener
        async for results in self.watcher:
            for op in results:
                if isinstance(op.context, asyncio.Future):
                    if not op.context.done():  # who has awaited it may have gone
                        op.context.set_result(op)
                elif self.watcher.closed:
                    pass  # what has still come cannot be answered any more
                elif op.type is OpType.ACCEPT:
                    if op.error is None:
                        self.watcher.read_until(op.accepted, b"\n", limit=LONGEST)
                elif op.error is not None:
                    self.watcher.free(op.conn)
                elif op.type is OpType.READ:
                    self.lines += 1
                    self.watcher.write(op.conn, op.data.upper(), timeout=PATIENCE)
                elif op.type is OpType.WRITE:
                    self.watcher.read_until(op.conn, b"\n", limit=LONGEST)

    async def one(self, request: Callable[..., Operation], *args: Any, **options: Any) -> Operation:
        """Await one single operation: a future is its context, and serve() resolves it."""
        future: asyncio.Future[Operation] = asyncio.get_running_loop().create_future()
        operation = request(*args, context=future, **options)
        try:
            result = await future
        except asyncio.CancelledError:
            self.watcher.cancel(operation)
            raise
        if result.error is not None:
            raise result.error
        return result

    async def ask(self, address: tuple[str, int], line: bytes) -> bytes:
        """What the service there answers to a line."""
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            self.watcher.connect(sock, address, timeout=PATIENCE)
            self.watcher.write(sock, line + b"\n", silent=True)  # waits for the connection,
            # as does this, which fails with its error if there is none:
            answer = await self.one(self.watcher.read_until, sock, b"\n", timeout=PATIENCE)
            return bytes(answer.data)
        finally:
            self.watcher.free(sock)


class Application:
    """A bare ASGI application; any framework's would do."""

    def __init__(self, lines: Lines, upstream: tuple[str, int]) -> None:
        self.lines = lines
        self.upstream = upstream
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        self.requests += 1
        status, answer = await self.answer(scope["path"])
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode() + b"\n"})

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and content for a path."""
        if path == "/":
            connections = self.lines.watcher.statistics().connections - 1  # without the listener
            counters = {"requests": self.requests, "lines": self.lines.lines}
            return 200, counters | {"connections": connections}
        word = path.removeprefix("/ask/")
        if word == path or not word.isprintable() or not 0 < len(word.encode()) < LONGEST:
            return 404, {"error": "here are / and /ask/WORD"}
        try:
            answer = await self.lines.ask(self.upstream, word.encode())
        except (AioGaioError, OSError) as error:
            return 502, {"error": str(error) or type(error).__name__}
        return 200, {"answer": answer.decode(errors="replace").rstrip("\r\n")}


class Server(uvicorn.Server):
    """uvicorn on a loop that is not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to main(), which ends both servers."""
        yield


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(text, flush=True)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(web: socket.socket, listener: socket.socket, options: argparse.Namespace) -> None:
    here = listener.getsockname()[:2]
    async with Watcher() as watcher, asyncio.TaskGroup() as tasks:
        lines = Lines(watcher)
        config = uvicorn.Config(
            Application(lines, options.ask or here),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        server = Server(config)

        def stop() -> None:
            server.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        say(f"web on http://{printable(web.getsockname())}/")
        say(f"lines on {printable(here)}")
        tasks.create_task(lines.serve(listener))  # ends when the watcher is closed
        await server.serve(sockets=[web])
        await watcher.aclose(grace=1)


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")
    # Connections inherit it. asyncio sets it only where the socket names its protocol, which those
    # of create_server() do not: an answer in two parts would wait 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def address(text: str) -> tuple[str, int]:
    """Where a service is, with its name looked up: a watcher takes numeric addresses."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, not {text!r}")
    try:
        found = socket.getaddrinfo(host, within(int, 1, 65535)(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from None
    return found[0][4][:2]


def parse() -> argparse.Namespace:
    port = within(int, 0, 65535)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=port, default=9006, help="of the web; default: 9006; 0: any")
    parser.add_argument("--lines", type=port, default=9007, help="its port; default: 9007; 0: any")
    parser.add_argument("--ask", type=address, metavar="HOST:PORT", help="default: this process")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    run = asyncio.run
    if arguments.loop == "uvloop":
        try:
            from uvloop import run
        except ImportError:
            sys.exit("uvloop is not installed: pip install uvloop")
    both = listen(arguments.host, arguments.port), listen(arguments.host, arguments.lines)
    run(main(*both, arguments))
