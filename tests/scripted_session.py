"""A session that makes every kind of request, against puppets that do what it tells them.

Whatever fails, it goes on to its end: a scene that meets an error is broken off, its connections
are looked at once more and freed, and the next scene begins. It keeps a ledger meanwhile.

The puppets live in the same loop, or in the process that has started this one as a program, which
then makes no system call on a socket but those of the watcher.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import io
import json
import os
import random
import socket
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
    WatcherClosedError,
)
from tests.support import reset

HOST = "127.0.0.1"
NONE = type(None)
ROOM = 32 * 1024
"""Bytes that a socket is to hold, so that little is much."""
MUCH = 96 * 1024
"""Bytes that need several attempts, and with which a relay begins to splice."""
TOO_MUCH = 1 << 20
"""Bytes that a socket does not take as long as nobody reads."""
SUPPLY = random.Random(8).randbytes(2 * TOO_MUCH)
"""What is sent, at one place or another of it."""
MOST_SETBACKS = 40
"""A session with more of them goes round in circles."""

STREAM_ERRORS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.ETIMEDOUT}
"""What ends a stream for good, and must never be shown as an end in order."""

# --- The peers ----------------------------------------------------------------------------------

Tell = Callable[..., None]
"""``tell(command, key, data=b"")``: what a puppet is to do. Nothing comes back."""


class Puppets:
    """Plain sockets, one for each connection of the session, known by the port they share."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((HOST, 0))
        for sock in (self._listener, self._datagrams):
            sock.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._sockets = [self._listener, self._datagrams]
        self.address: tuple[str, int] = self._listener.getsockname()
        self.datagram_address: tuple[str, int] = self._datagrams.getsockname()
        self._loop = asyncio.get_running_loop()
        self._orders: dict[str, asyncio.Queue[tuple[str, bytes]]] = {}
        self._heard: dict[str, bytearray] = {}
        self._expected: dict[str, tuple[str, bytes]] = {}
        self._changed = asyncio.Event()
        self._tasks = {self._loop.create_task(self._welcome())}

    def tell(self, command: str, key: str, data: bytes = b"") -> None:
        if command == "come":
            self._start(self._come(int(key)))
        elif command == "datagram":
            self._datagrams.sendto(data, (HOST, int(key)))
        elif command == "all":
            self._expected[key] = command, data
        elif command == "some":
            self._expected.setdefault(key, (command, data))
        else:
            self._queue(key).put_nowait((command, data))

    async def finish(self) -> list[str]:
        """End them all; what they have heard and should not, or the reverse."""
        with suppress(TimeoutError):  # bytes may be on their way, and be sent once more
            async with asyncio.timeout(10):
                while any("less" in fault for fault in self._faults()):
                    self._changed.clear()
                    await self._changed.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        return self._faults()

    def _faults(self) -> list[str]:
        faults = []
        for key, (how, data) in self._expected.items():
            heard = bytes(self._heard.get(key, b""))
            if not data.startswith(heard):
                faults.append(f"{key} heard what was not said ({len(heard)} bytes)")
            elif how == "all" and heard != data:
                faults.append(f"{key} heard less than was said: {len(heard)} of {len(data)} bytes")
        return faults

    def _queue(self, key: str) -> asyncio.Queue[tuple[str, bytes]]:
        return self._orders.setdefault(key, asyncio.Queue())

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _welcome(self) -> None:
        while True:
            sock, (_, port) = await self._loop.sock_accept(self._listener)
            self._sockets.append(sock)
            self._start(self._play(sock, f"server:{port}"))

    async def _come(self, port: int) -> None:
        sock = socket.socket()
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        try:
            await self._loop.sock_connect(sock, (HOST, port))
        except OSError:
            return
        await self._play(sock, f"client:{sock.getsockname()[1]}")

    async def _play(self, sock: socket.socket, key: str) -> None:
        sock.setblocking(False)
        hearing = asyncio.Event()
        hearing.set()
        ears = self._loop.create_task(self._hear(sock, key, hearing))
        close = socket.socket.close
        try:
            while True:
                command, data = await self._queue(key).get()
                if command == "say":
                    await self._loop.sock_sendall(sock, data)
                elif command == "end":
                    sock.shutdown(socket.SHUT_WR)
                elif command == "deaf":
                    hearing.clear()
                elif command == "reset":
                    close = reset
                    return
                else:
                    raise ValueError(command)
        except OSError:  # the session is gone
            pass
        finally:
            ears.cancel()
            await asyncio.gather(ears, return_exceptions=True)
            close(sock)  # not before the loop has forgotten its number

    async def _hear(self, sock: socket.socket, key: str, hearing: asyncio.Event) -> None:
        heard = self._heard.setdefault(key, bytearray())
        try:
            while True:
                if not hearing.is_set():
                    await hearing.wait()
                data = await self._loop.sock_recv(sock, 1 << 18)
                if not data:
                    break
                heard += data
                self._changed.set()
            self._queue(key).put_nowait(("end", b""))  # behind what it was told by now
        except OSError:
            pass


# --- The session's side -------------------------------------------------------------------------


class SetbackError(Exception):
    """A request has ended in a way that its scene does not know."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(f"{operation.type.name}: {operation.error!r}")
        self.operation = operation


class Wire:
    """A connection of the session's: what its puppet has said, and what it was told."""

    def __init__(self, conn: Connection, key: str, tell: Tell) -> None:
        self.conn = conn
        self.key = key
        self.relayed = False  # what it says is for another to hear
        self._tell = tell
        self._said = bytearray()
        self._taken = 0
        self._writes: list[tuple[bytes, Operation | None]] = []
        conn.context = self

    def say(self, data: bytes) -> None:
        self._said += data
        self._tell("say", self.key, data)

    def order(self, command: str) -> None:
        self._tell(command, self.key)

    def take(self, data: bytes) -> bool:
        """Whether this is what comes next."""
        begin, self._taken = self._taken, self._taken + len(data)
        return self.relayed or self._said[begin : self._taken] == data

    def wrote(self, data: bytes, operation: Operation | None) -> None:
        self._writes.append((data, operation))

    def expect(self, how: str) -> None:
        """Have the puppet compare: it heard ``all`` that was sent, or ``some`` of it."""
        sent = [data if op is None else data[: op.size] for data, op in self._writes]
        self._tell(how, self.key, b"".join(sent))


@dataclass
class Report:
    """What became of the session."""

    setbacks: list[Operation] = field(default_factory=list)
    raised: list[OSError] = field(default_factory=list)
    # What failed on a stream, and how it ended when its puppet ended it in order.
    autopsies: list[tuple[Operation, Exception]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    completed: int = 0


class Session:
    """What the scenes work with."""

    def __init__(
        self,
        watcher: Watcher,
        tell: Tell,
        address: tuple[str, int],
        datagram_address: tuple[str, int],
    ) -> None:
        self.watcher = watcher
        self.tell = tell
        self.address, self.datagram_address = address, datagram_address
        self.report = Report()
        self._random = random.Random(7)
        self._submitted: dict[int, Operation] = {}
        self._silent: list[Operation] = []
        self._ended: set[int] = set()
        self._shots: dict[Connection, deque[Operation]] = {}
        self._arrivals: deque[Wire] = deque()
        self._wires: list[Wire] = []
        self._sockets: list[socket.socket] = []
        self._listener: Connection | None = None
        self._accepting: Operation | None = None
        self.port = 0

    # Requests and results

    def data(self, size: int) -> bytes:
        """So many bytes, other ones each time."""
        begin = self._random.randrange(len(SUPPLY) - size)
        return SUPPLY[begin : begin + size]

    def ask(self, request: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Submit, and enter it into the ledger."""
        operation = request(*args, **options)
        if options.get("silent"):
            if operation is not None:
                self._silent.append(operation)
        else:
            self._submitted[id(operation)] = operation
        return operation

    def write(self, wire: Wire, data: bytes, **options: Any) -> Any:
        operation = self.ask(self.watcher.write, wire.conn, data, **options)
        wire.wrote(bytes(data), operation)
        return operation

    def writev(self, wire: Wire, parts: list[bytes], **options: Any) -> Any:
        operation = self.ask(self.watcher.writev, wire.conn, parts, **options)
        wire.wrote(b"".join(parts), operation)
        return operation

    async def ended(self, operation: Operation) -> Operation:
        while id(operation) not in self._ended:
            await self.collect()
        return operation

    async def got(self, operation: Any, error: Any = NONE) -> Any:
        """The operation once it has ended, without an error or with this kind of it."""
        await self.ended(operation)
        if not isinstance(operation.error, error):
            raise SetbackError(operation)
        return operation

    async def all_got(self, *operations: Operation) -> None:
        """All of them, without an error; the first that has one is told at once."""
        while True:
            ended = [one for one in operations if id(one) in self._ended]
            for operation in ended:
                await self.got(operation)
            if len(ended) == len(operations):
                return
            await self.collect()

    def waits(self, operation: Operation) -> Operation:
        """It is pending still; if it has failed at the call, there is nothing to wait for."""
        if operation.completed:
            raise SetbackError(operation)
        return operation

    async def shot(self, armed: Operation) -> Operation:
        shots = self._shots.setdefault(armed.conn, deque())
        while not shots:
            if id(armed) in self._ended:
                raise SetbackError(armed)
            await self.collect()
        return shots.popleft()

    async def take(self, wire: Wire, size: int) -> None:
        """Read so many bytes, in parts as they come."""
        while size:
            size -= (await self.got(self.ask(self.watcher.read, wire.conn))).size

    async def collect(self) -> None:
        try:
            results = await self.watcher.wait_io()
        except OSError as error:  # of the poller itself; nothing is lost
            self.raised(error)
            return
        for operation in results:
            self._note(operation)

    def _note(self, operation: Operation) -> None:
        report = self.report
        report.completed += 1
        wire = operation.conn.context
        if operation.error is not None:
            report.errors.append(operation.error)
        if not operation.completed:
            report.faults.append(f"delivered before it is complete: {operation!r}")
        if not operation.more:
            self._finish(operation)
        elif operation.type is not OpType.ACCEPT:
            self._shots.setdefault(operation.conn, deque()).append(operation)
        if operation.type is OpType.ACCEPT:
            self._note_accept(operation)
        elif operation.type is OpType.READ and operation.size and isinstance(wire, Wire):
            right = wire.take(bytes(operation.data))
            if not right:
                report.faults.append(f"not what comes next: {operation!r}")

    def _finish(self, operation: Operation) -> None:
        if any(operation is one for one in self._silent):
            if operation.error is None:
                self.report.faults.append(f"a silent write that speaks: {operation!r}")
        elif id(operation) not in self._submitted:
            self.report.faults.append(f"nobody asked for it: {operation!r}")
        if id(operation) in self._ended:
            self.report.faults.append(f"delivered twice: {operation!r}")
        self._ended.add(id(operation))

    def _note_accept(self, operation: Operation) -> None:
        if operation.error is None:
            conn = operation.accepted
            self._arrivals.append(Wire(conn, f"client:{operation.address[1]}", self.tell))
        elif not operation.conn.closed:
            self._setback(operation)
            self.tell("come", str(self.port))
            if not operation.more:
                self._arm()

    def _setback(self, operation: Operation) -> None:
        self.report.setbacks.append(operation)
        if len(self.report.setbacks) > MOST_SETBACKS:
            raise AssertionError("the session goes round in circles")

    # Connections

    def listen(self) -> None:
        sock = socket.create_server((HOST, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)  # those accepted inherit it
        self._listener = self.delegate(sock)
        self.port = self._listener.sockname[1]
        self._arm()

    def _arm(self) -> None:
        self._accepting = self.ask(self.watcher.accept, self._listener, multishot=True)

    def delegate(self, sock: socket.socket) -> Connection:
        """Again and again: the first failure is the fault's, and leaves the socket as it was."""
        self._sockets.append(sock)
        while True:
            try:
                return self.watcher.delegate(sock)
            except OSError as error:
                self.raised(error)

    def raised(self, error: OSError) -> None:
        self.report.raised.append(error)
        if len(self.report.raised) > MOST_SETBACKS:
            raise error

    async def accepted(self) -> Wire:
        """A connection that a puppet has made."""
        self.tell("come", str(self.port))
        while not self._arrivals:
            await self.collect()
        wire = self._arrivals.popleft()
        self._wires.append(wire)
        return wire

    def connecting(self, address: tuple[str, int]) -> tuple[Wire, Operation]:
        """A connection that is made now to a puppet."""
        sock = socket.socket()
        sock.bind((HOST, 0))
        port = sock.getsockname()[1]
        wire = Wire(self.delegate(sock), f"server:{port}", self.tell)
        self._wires.append(wire)
        return wire, self.ask(self.watcher.connect, wire.conn, address)

    async def see_end(self, wire: Wire) -> None:
        """End our side; the puppet hears all, and ends its own."""
        hangup = self.ask(self.watcher.notify_hangup, wire.conn)
        await self.got(self.ask(self.watcher.shutdown, wire.conn))
        await self.got(self.ask(self.watcher.read, wire.conn), EndOfStreamError)
        await self.got(hangup)
        self._wires.remove(wire)
        wire.expect("all")
        self.watcher.free(wire.conn)

    # Scenes

    async def play(self, scene: Callable[[Session], Awaitable[None]]) -> None:
        try:
            await scene(self)
        except SetbackError as setback:
            self._setback(setback.operation)
            await self._look_into(setback.operation)
        for wire in self._wires:
            self.watcher.free(wire.conn)
        with suppress(WatcherClosedError):  # what is lost by then is told at the end
            while self._under_way():
                await self.collect()
        for wire in self._wires:
            wire.expect("some")
        self._wires.clear()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _under_way(self) -> list[Operation]:
        asked = self._submitted.values()
        return [one for one in asked if one is not self._accepting and id(one) not in self._ended]

    def missing(self) -> str:
        """What has not been delivered."""
        return f"{self._under_way()} pending, {self.watcher.statistics()}"

    def abandon(self) -> None:
        """Whatever state it is in, close everything, so that the next one begins afresh."""
        self.watcher.close()
        self.watcher.poll_io()
        for sock in self._sockets:
            sock.close()

    async def _look_into(self, operation: Operation) -> None:
        """Something failed on a stream: how does it end, when the peer ends it in order?"""
        conn, wire = operation.conn, operation.conn.context
        if conn.closed or not isinstance(wire, Wire) or conn.peername is None:
            return
        wire.order("end")
        for _ in range(MOST_SETBACKS):
            read = await self.ended(self.ask(self.watcher.read, conn))
            # What is only short of something now is short of nothing later.
            if (
                isinstance(read.error, EndOfStreamError)
                or getattr(read.error, "errno", None) in STREAM_ERRORS
            ):
                self.report.autopsies.append((operation, read.error))
                return
        self.report.faults.append(f"no end after {operation.error!r}")

    async def close(self) -> None:
        """Close with requests pending; nothing is lost even so."""
        self.watcher.close()
        with suppress(WatcherClosedError):
            while True:
                await self.collect()
        for operation in self._submitted.values():
            if id(operation) not in self._ended:
                self.report.faults.append(f"lost: {operation!r}")
        for operation in self._silent:
            if not operation.completed:
                self.report.faults.append(f"lost: {operation!r}")
            elif (operation.error is not None) != (id(operation) in self._ended):
                self.report.faults.append(f"a silent failure: {operation!r}")
        for wire in (*self._wires, *self._arrivals):
            wire.expect("some")
        figures = self.watcher.statistics()
        if (figures.pending, figures.connections) != (0, 0):
            self.report.faults.append(f"not all done: {figures}")


# --- The scenes ---------------------------------------------------------------------------------


async def reading(session: Session) -> None:
    ask, watcher = session.ask, session.watcher
    wire = await session.accepted()
    conn = wire.conn
    pending = ask(watcher.read, conn)
    wire.say(session.data(100))
    await session.got(pending)
    await session.take(wire, 100 - pending.size)

    into = ask(watcher.read, conn, bytearray(50))
    full = ask(watcher.read_full, conn, bytearray(MUCH))
    wire.say(session.data(50))
    await session.got(into)
    wire.say(session.data(1000))
    wire.say(session.data(MUCH + into.size - 1050))
    await session.got(full)

    line = ask(watcher.read_until, conn, b"\r\n")
    other = ask(watcher.read_until, conn, b"\r\n", timeout=60)
    wire.say(b"a line\r\nand a p")
    await session.got(line)
    wire.say(b"art\r\nbehind")
    await session.got(other)
    await session.take(wire, 6)

    message = ask(watcher.recvmsg, conn, 64)
    wire.say(b"message")
    await session.got(message)
    await session.take(wire, 7 - message.size)
    await session.see_end(wire)


async def shooting(session: Session) -> None:
    wire = await session.accepted()
    armed = session.ask(session.watcher.read, wire.conn, multishot=True, timeout=60)
    for size in (10, 2000, MUCH):
        wire.say(session.data(size))
        left = size
        while left:
            left -= (await session.shot(armed)).size
    session.watcher.cancel(armed)
    await session.got(armed, OperationCancelledError)
    messages = session.ask(session.watcher.recvfrom, wire.conn, multishot=True)
    wire.say(b"by recvmsg")
    left = 10
    while left:
        left -= (await session.shot(messages)).size
    wire.order("end")
    await session.got(messages, EndOfStreamError)


async def writing(session: Session) -> None:
    wire = await session.accepted()
    await session.got(session.write(wire, session.data(100)))
    session.write(wire, session.data(100), silent=True)
    session.writev(wire, [session.data(10), session.data(20)], silent=True)
    await session.got(session.writev(wire, [session.data(10), session.data(20)]))
    await session.got(session.write(wire, bytearray(session.data(30)), timeout=60))
    await session.see_end(wire)


async def writing_much(session: Session) -> None:
    """More than the socket takes at once, and more behind it in the queue."""
    wire = await session.accepted()
    session.write(wire, session.data(8 * MUCH), silent=True)
    writes = [session.write(wire, session.data(8 * MUCH), timeout=60)]
    writes += [session.write(wire, session.data(500)) for _ in range(5)]
    session.write(wire, session.data(500), silent=True)
    writes.append(session.writev(wire, [session.data(MUCH), bytearray(session.data(MUCH)), b"."]))
    await session.watcher.drain(wire.conn)
    for write in writes:
        await session.got(write)
    await session.see_end(wire)


async def connecting(session: Session) -> None:
    wire, connect = session.connecting(session.address)
    session.waits(connect)
    read = session.ask(session.watcher.read, wire.conn)
    write = session.write(wire, session.data(100))
    await session.got(connect)
    await session.got(write)
    wire.say(session.data(100))
    await session.take(wire, 100 - (await session.got(read)).size)
    await session.see_end(wire)


async def refused(session: Session) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        wire, connect = session.connecting(nobody.getsockname())
        session.waits(connect)
        write = session.write(wire, b"never sent")
        await session.got(connect, ConnectionRefusedError)
        await session.got(write, ConnectionRefusedError)


async def datagrams(session: Session) -> None:
    ask, watcher = session.ask, session.watcher
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    conn = session.delegate(sock)
    port = str(conn.sockname[1])
    try:
        await session.got(ask(watcher.sendto, conn, b"to", session.datagram_address))
        ask(watcher.sendto, conn, b"to", session.datagram_address, silent=True)
        one, into = ask(watcher.recvfrom, conn), ask(watcher.read, conn, bytearray(100))
        armed = ask(watcher.recvfrom, conn, multishot=True)
        for request in (one, into):
            session.tell("datagram", port, b"a datagram")
            await session.got(request)
        for _ in range(3):
            session.tell("datagram", port, b"a datagram")
            await session.shot(armed)
    finally:
        watcher.free(conn)


async def relaying(session: Session) -> None:
    here, there = await session.accepted(), await session.accepted()
    relay = session.ask(session.watcher.relay, here.conn, there.conn, timeout=60)
    little, much = session.data(100), session.data(4 * MUCH)
    for source, target, data in ((there, here, little), (here, there, little + much)):
        source.relayed = True
        source.say(data)
        target.wrote(data, None)
    for wire in (here, there):  # no sooner: a puppet that hears the end says nothing more
        wire.order("end")
    await session.got(relay)
    for wire in (here, there):
        wire.expect("all")


async def sending_files(session: Session) -> None:
    wire = await session.accepted()
    data = session.data(2 * MUCH)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for source in (file, io.BytesIO(data)):
            sent = session.ask(session.watcher.sendfile, wire.conn, source, 0, len(data))
            wire.wrote(data, sent)
            await session.got(sent)
    await session.see_end(wire)


async def waiting(session: Session) -> None:
    """Deadlines, of a read and of a write that is cut, and what stands behind that."""
    wire = await session.accepted()
    late = session.ask(session.watcher.read, wire.conn, timeout=0.002)
    await session.got(late, DeadlineExceededError)
    wire.say(session.data(100))
    await session.take(wire, 100)
    wire.order("deaf")
    wire.say(b"d")
    await session.take(wire, 1)
    torn = session.write(wire, session.data(TOO_MUCH), timeout=0.002)
    behind = session.write(wire, b"behind")
    await session.got(torn, DeadlineExceededError)
    await session.got(behind, OperationCancelledError if torn.size else NONE)


async def cancelling(session: Session) -> None:
    wire = await session.accepted()
    wire.order("deaf")
    wire.say(b"d")
    await session.take(wire, 1)
    read = session.ask(session.watcher.read, wire.conn)
    long = session.waits(session.write(wire, session.data(TOO_MUCH)))
    first, second = (session.write(wire, b"another") for _ in range(2))
    for operation in (first, read, long):
        session.watcher.cancel(operation)
    for operation in (first, read, long):
        await session.got(operation, OperationCancelledError)
    await session.got(second, OperationCancelledError if long.size else NONE)


async def freeing(session: Session) -> None:
    wire = await session.accepted()
    wire.order("deaf")
    wire.say(b"d")
    await session.take(wire, 1)
    pending = [session.ask(session.watcher.read_full, wire.conn, bytearray(10))]
    pending.append(session.ask(session.watcher.notify_hangup, wire.conn))
    pending.append(session.write(wire, session.data(TOO_MUCH)))
    session.write(wire, session.data(10), silent=True)
    session.watcher.free(wire.conn)
    for operation in pending:
        await session.got(operation, ConnectionFreedError)


async def resetting(session: Session) -> None:
    wire = await session.accepted()
    wire.order("reset")
    await session.got(session.ask(session.watcher.read, wire.conn), ConnectionResetError)
    await session.ended(session.write(wire, b"never sent"))
    await session.got(session.ask(session.watcher.read, wire.conn), ConnectionResetError)


async def piping(session: Session) -> None:
    """Descriptors that are no sockets."""
    watcher, ends, numbers = session.watcher, [], os.pipe()
    try:
        for number in numbers:
            while len(ends) == numbers.index(number):
                try:
                    ends.append(watcher.delegate(number))
                except OSError as error:
                    session.raised(error)
        data = session.data(2 * MUCH)
        full = session.ask(watcher.read_full, ends[0], bytearray(len(data)))
        write = session.ask(watcher.write, ends[1], data[:100])
        more = session.ask(watcher.writev, ends[1], [data[100:], b"more"])
        await session.all_got(write, more, full)
        assert bytes(full.data) == data
        await session.got(session.ask(watcher.read, ends[0]))
    finally:
        for conn in ends:
            watcher.free(conn)
        for number in numbers:
            os.close(number)


async def leaving_much_behind(session: Session) -> None:
    """Everything is pending when the watcher closes."""
    wire = await session.accepted()
    wire.order("deaf")
    wire.say(b"d")
    await session.take(wire, 1)
    left = [session.ask(session.watcher.read, wire.conn, multishot=True)]
    left.append(session.write(wire, session.data(TOO_MUCH)))
    session.write(wire, b"behind", silent=True)
    other, again = await session.accepted(), await session.accepted()
    left.append(session.ask(session.watcher.relay, other.conn, again.conn))
    session.watcher.close()
    for operation in left:
        await session.got(operation, WatcherClosedError)


SCENES = (
    reading,
    shooting,
    writing,
    writing_much,
    connecting,
    refused,
    datagrams,
    relaying,
    sending_files,
    waiting,
    cancelling,
    freeing,
    resetting,
    piping,
    leaving_much_behind,
)


Scene = Callable[[Session], Awaitable[None]]


async def run(session: Session, scenes: Sequence[Scene] = SCENES) -> Report:
    """The whole of it, or a part."""
    session.listen()
    for scene in scenes:
        await session.play(scene)
    await session.close()
    return session.report


# --- As a program -------------------------------------------------------------------------------


def tell_parent(command: str, key: str = "", data: bytes = b"") -> None:
    """The puppets are in the process that reads our standard output."""
    line = f"{command} {key} {data.hex()}\n".encode()
    while line:
        line = line[os.write(1, line) :]


async def main(poller: str, port: int, datagram_port: int) -> None:
    watcher = Watcher(poller=poller)  # type: ignore[arg-type]
    session = Session(watcher, tell_parent, (HOST, port), (HOST, datagram_port))
    descriptors = len(os.listdir("/proc/self/fd"))
    tell_parent("begin")
    report = await run(session)
    tell_parent("over")
    left = len(os.listdir("/proc/self/fd")) - descriptors
    if left > (-1 if poller == "epoll" else 0):  # its own is closed
        report.faults.append(f"{left} descriptors left")
    summary = {
        "faults": report.faults,
        "errors": [getattr(error, "errno", None) for error in (*report.errors, *report.raised)],
        "setbacks": [(op.type.name, repr(op.error)) for op in report.setbacks],
        "ends": [
            (op.type.name, getattr(op.error, "errno", None), getattr(end, "errno", None))
            for op, end in report.autopsies
        ],
    }
    tell_parent("report", "", json.dumps(summary).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("poller")
    parser.add_argument("port", type=int)
    parser.add_argument("datagram_port", type=int)
    asyncio.run(main(**vars(parser.parse_args())))
