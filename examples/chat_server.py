"""A chat in a browser: rooms over WebSocket (RFC 6455), and the page to talk in them.

GET / is the page, /ws/ROOM a room, GET /stat the counters. Each text message of a member that is
not empty goes to all of its room. Rooms live in this process; with --bus redis://host:port those of
all processes that have the same bus are one, and while it is away each process has its own.

One message is work for the whole room, so at most 16 frames of a member are handled at one go. The
rest of what has come waits until others had their turn, and until then the member is not read.
"""

import argparse
import asyncio
import json
import re
import resource
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiogaio import (
    Connection,
    DeadlineExceededError,
    LimitExceededError,
    Operation,
    OpType,
    QueueFullError,
    Watcher,
)

try:
    import h11
    import wsproto.events as ev
    from wsproto import ConnectionType, WSConnection
    from wsproto.frame_protocol import CloseReason, FrameProtocol
    from wsproto.utilities import RemoteProtocolError
except ImportError:
    sys.exit("wsproto is not installed: pip install wsproto")
try:
    from chat_bus import Bus
except ImportError:  # redis is not installed; for --bus alone
    Bus = None  # type: ignore[assignment, misc]

LONGEST_HEAD = 16384  # bytes of an HTTP request
AT_ONCE = 16  # frames of one member that are handled before others have their turn
QUEUE = 1 << 20  # bytes that may wait for one member
KERNEL = 65536  # bytes that the system may hold for it besides; by itself it takes megabytes
LINGER = 2.0  # seconds for the peer to end its side, after we have ended ours
PAGE = Path(__file__).with_name("chat.html").read_bytes()
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
SPEAKER = FrameProtocol(client=False, extensions=[])  # a server's frames are the same for everyone


class Client:
    """What the server knows of a connection; its ``context``."""

    def __init__(self) -> None:
        self.ws: WSConnection | None = None  # none yet: it has still to send its request
        self.room = ""
        self.events: Iterator[ev.Event] | None = None  # what has come and is not handled yet
        self.parts: list[str] = []  # of a message that comes in several
        self.size = 0  # of those, in bytes
        self.asked = False  # it was silent, and a ping is on its way
        self.until: float | None = None  # our side has ended; it has so long to end its own


class Chat:
    """The rooms, and the conversation with each connection."""

    def __init__(self, watcher: Watcher, options: argparse.Namespace, bus: "Bus | None") -> None:
        self.watcher = watcher
        self.options = options
        self.bus = bus
        self.rooms: defaultdict[str, set[Connection]] = defaultdict(set)
        self.behind: asyncio.Queue[Connection] = asyncio.Queue()  # members with frames left
        self.messages = self.slow = self.silent = 0

    def stat(self) -> dict[str, int | bool]:
        """The counters. Who was slow, or silent, was dropped."""
        return {
            "rooms": len(self.rooms),
            "members": sum(map(len, self.rooms.values())),
            "messages": self.messages,
            "slow": self.slow,
            "silent": self.silent,
            "bus": self.bus is not None and self.bus.up,
        }

    async def serve(self, listener: socket.socket) -> None:
        """Collect all results."""
        self.watcher.accept(listener, multishot=True)  # delegates the listener
        async for results in self.watcher:
            if self.watcher.closed:  # what has still come cannot be answered any more
                break
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        op.accepted.context = Client()
                        self.read(op.accepted)
                elif op.error is not None:
                    self.failed(op, op.error)
                elif op.type is OpType.READ:
                    self.received(op.conn, op.conn.context, op.data)

    async def catch_up(self) -> None:
        """Handle what members have left: a share of one of them in each turn of the loop."""
        while True:
            conn = await self.behind.get()
            if not conn.closed:
                self.frames(conn, conn.context, conn.context.ws, conn.context.events)
                self.go_on(conn)
            await asyncio.sleep(0)

    def go_on(self, conn: Connection) -> None:
        """Read on, unless the connection has ended, or the bus does so later."""
        if not conn.closed and not (self.bus is not None and self.bus.holds(conn)):
            self.read(conn)

    def read(self, conn: Connection) -> None:
        """Take what comes next: the request, frames that are left or new, or the end."""
        if conn.context.until is not None:
            self.watcher.read(conn, deadline=conn.context.until)
        elif conn.context.ws is None:
            patience = self.options.patience
            self.watcher.read_until(conn, b"\r\n\r\n", limit=LONGEST_HEAD, timeout=patience)
        elif conn.context.events is not None:
            self.behind.put_nowait(conn)
        else:
            self.watcher.read(conn, timeout=self.options.idle)

    def received(self, conn: Connection, client: Client, data: bytes) -> None:
        """Hand it to who understands it, and read on."""
        if client.until is not None:
            pass  # said too late
        elif client.ws is None:
            self.request(conn, client, data)
        else:
            client.asked = False
            client.ws.receive_data(data)
            client.events = client.ws.events()
            self.frames(conn, client, client.ws, client.events)
        self.go_on(conn)

    def failed(self, op: Operation, error: Exception) -> None:
        """Ask who is silent for a sign of life; let go of all others."""
        conn, client = op.conn, op.conn.context
        late = isinstance(error, DeadlineExceededError) and client.until is None
        if late and op.type is OpType.READ and client.ws and not client.asked and not conn.closed:
            client.asked = True
            self.send(conn, client.ws.send(ev.Ping()))
            self.read(conn)
        elif isinstance(error, LimitExceededError):
            self.end(conn, answer(431, b"The request is too long.\n"))
            self.read(conn)
        else:
            if late and not conn.closed:
                self.slow += op.type is OpType.WRITE
                self.silent += op.type is OpType.READ
            self.free(conn)

    # --- HTTP ----------------------------------------------------------------------------------

    def request(self, conn: Connection, client: Client, head: bytes) -> None:
        """Answer a request, or make a member of who made it."""
        http = h11.Connection(h11.SERVER)
        try:
            http.receive_data(head)
            request = http.next_event()
            assert isinstance(request, h11.Request)
        except h11.RemoteProtocolError as error:
            self.end(conn, answer(400, f"{error}\n".encode()))
            return
        path = request.target.partition(b"?")[0]
        if room := re.fullmatch(rb"/ws/([\w-]{1,64})", path):
            self.upgrade(conn, client, head, room[1].decode())
        elif path not in {b"/", b"/stat"}:
            self.end(conn, answer(404, b"Here are /, /stat, and /ws/ROOM.\n"))
        elif request.method != b"GET":
            self.end(conn, answer(405, b"GET is all.\n", ("Allow", "GET")))
        elif path == b"/stat":
            body = json.dumps(self.stat()).encode() + b"\n"
            self.end(conn, answer(200, body, kind="application/json"))
        else:
            header = "Content-Security-Policy", POLICY
            self.end(conn, answer(200, PAGE, header, kind="text/html"))

    def upgrade(self, conn: Connection, client: Client, head: bytes, room: str) -> None:
        """The handshake of the WebSocket."""
        ws = WSConnection(ConnectionType.SERVER)
        try:
            ws.receive_data(head)
            # No extension, so no compression: a frame that unpacks to gigabytes does not exist.
            accepted = ws.send(ev.AcceptConnection())
        except (RemoteProtocolError, UnicodeError) as error:
            hint = getattr(error, "event_hint", None)
            status = hint.status_code if isinstance(hint, ev.RejectConnection) else 400
            text = f"{error}\n".encode()
            self.end(conn, answer(status, text, ("Sec-WebSocket-Version", "13")))
            return
        client.ws, client.room = ws, room
        self.rooms[room].add(conn)
        self.send(conn, accepted)

    # --- WebSocket -----------------------------------------------------------------------------

    def frames(
        self, conn: Connection, client: Client, ws: WSConnection, events: Iterator[ev.Event]
    ) -> None:
        """Do what the next frames ask for."""
        for _ in range(AT_ONCE):
            event = next(events, None)
            if event is None:
                client.events = None  # it is not behind
                break
            if isinstance(event, ev.TextMessage):
                self.text(conn, client, event)
            elif isinstance(event, ev.Ping):
                self.send(conn, ws.send(event.response()))
            elif isinstance(event, ev.CloseConnection):  # or an error: of the protocol, of UTF-8
                self.end(conn, ws.send(event.response()))
            elif isinstance(event, ev.BytesMessage):
                self.hang_up(conn, CloseReason.UNSUPPORTED_DATA, "text only")
            if conn.closed or client.until is not None:
                break

    def text(self, conn: Connection, client: Client, event: ev.TextMessage) -> None:
        """Take a part of a message, and say it once it is whole."""
        client.size += len(event.data.encode())
        if client.size > self.options.longest:
            limit = f"a message has at most {self.options.longest} bytes"
            self.hang_up(conn, CloseReason.MESSAGE_TOO_BIG, limit)
            return
        if event.data:  # a flood of empty ones fills nothing
            client.parts.append(event.data)
        if event.message_finished:
            text = "".join(client.parts)
            client.parts, client.size = [], 0
            if text and not (self.bus is not None and self.bus.take(client.room, text)):
                self.deliver(client.room, text)

    def deliver(self, room: str, text: str) -> None:
        """To all members that are here."""
        self.messages += 1
        frame = bytes(SPEAKER.send_data(text, fin=True))
        for conn in list(self.rooms.get(room, ())):
            self.send(conn, frame)

    def send(self, conn: Connection, data: bytes) -> None:
        """Without waiting: who takes nothing for too long, or too little, is dropped."""
        try:
            self.watcher.write(conn, data, timeout=self.options.patience, silent=True)
        except QueueFullError:
            self.slow += 1
            self.free(conn)

    # --- Ends ----------------------------------------------------------------------------------

    def hang_up(self, conn: Connection, code: CloseReason, reason: str) -> None:
        """Say why, and end."""
        self.end(conn, conn.context.ws.send(ev.CloseConnection(code, reason)))

    def end(self, conn: Connection, last: bytes) -> None:
        """Send the last, end our side, and wait for the peer's: a close at once could lose it."""
        self.leave(conn)
        self.send(conn, last)
        conn.context.until = asyncio.get_running_loop().time() + LINGER
        self.watcher.shutdown(conn, deadline=conn.context.until)

    def free(self, conn: Connection) -> None:
        """Let go of a connection."""
        self.leave(conn)
        self.watcher.free(conn)

    def leave(self, conn: Connection) -> None:
        """Leave the room; the last one removes it."""
        members = self.rooms.get(conn.context.room, set())
        members.discard(conn)
        if not members:
            self.rooms.pop(conn.context.room, None)

    def close(self) -> None:
        """Tell all members that the server goes away."""
        for conn in [conn for members in self.rooms.values() for conn in members]:
            self.hang_up(conn, CloseReason.GOING_AWAY, "the server ends")


def answer(status: int, body: bytes, *headers: tuple[str, str], kind: str = "text/plain") -> bytes:
    """A whole HTTP response."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    for name, value in (
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *headers,
    ):
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(listener: socket.socket, options: argparse.Namespace, bus: "Bus | None") -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"chat on http://{printable(listener.getsockname())}/", flush=True)
    async with Watcher(max_queued_bytes=QUEUE) as watcher, asyncio.TaskGroup() as tasks:
        chat = Chat(watcher, options, bus)
        tasks.create_task(chat.serve(listener))  # ends when the watcher is closed
        endless = [tasks.create_task(chat.catch_up())]
        if bus is not None:
            endless.append(tasks.create_task(bus.run(chat)))
        await stop.wait()
        chat.close()
        for task in endless:
            task.cancel()
        await watcher.aclose(grace=LINGER)
    if bus is not None:
        await bus.aclose()


def listen(host: str, port: int) -> socket.socket:
    """A listener whose connections, which inherit its options, are kept small."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
    return listener


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def parse() -> argparse.Namespace:
    port, seconds, size = (
        within(int, 0, 65535), within(float, 0.01, 86400), within(int, 1, 2**30),
    )  # fmt: skip
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=port, default=9002, help="default: 9002; 0: any")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--bus", metavar="URL", help="redis://host:port; default: none")
    for name, kind, default, text in (
        ("--idle", seconds, 30, "seconds of silence until a ping, and from that to the end"),
        ("--patience", seconds, 10, "seconds that a message may wait for a slow reader"),
        ("--longest", size, 65536, "bytes of a message"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{text}; default: {default}")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    run = asyncio.run
    if arguments.loop == "uvloop":
        try:
            from uvloop import run
        except ImportError:
            sys.exit("uvloop is not installed: pip install uvloop")
    if arguments.bus and Bus is None:
        sys.exit("redis is not installed: pip install redis")
    try:
        the_bus = Bus(arguments.bus) if arguments.bus else None
    except ValueError as error:
        sys.exit(f"--bus {arguments.bus}: {error}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each member
    run(main(listen(arguments.host, arguments.port), arguments, the_bus))
