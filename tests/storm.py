"""A storm: a seeded random sequence of everything that can happen, and the ledger of it.

On a dozen connections a program submits, cancels and frees while the peers send, receive, end and
reset. The ledger knows what may come of each request: each is delivered exactly once, in order
per connection and direction, with an error only if something brought it about; and what one side
sent is what the other got.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
from collections.abc import Awaitable, Callable

from aiogaio import (
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
    WatcherClosedError,
)
from tests.support import reset, settle, tcp_pair, unix_pair


async def outcome(waiter: Awaitable[list[Operation]]) -> list[Operation]:
    """What a waiter that may have been cancelled brought; nothing if it was."""
    try:
        return await waiter
    except (asyncio.CancelledError, TimeoutError):
        return []


def send(peer: socket.socket, data: bytes) -> int:
    """How much of the data could be sent at once."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        return peer.send(data)
    return 0


def drain(peer: socket.socket, most: int = 1 << 30) -> bytes:
    """What can be received at once."""
    data = bytearray()
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while chunk := peer.recv(min(65536, most - len(data))):
            data += chunk
    return bytes(data)


async def with_wait_for(watcher: Watcher, delay: float) -> list[Operation]:
    return await asyncio.wait_for(watcher.wait_io(), delay)


async def with_timeout(watcher: Watcher, delay: float) -> list[Operation]:
    async with asyncio.timeout(delay):
        return await watcher.wait_io()


async def with_task_cancel(watcher: Watcher, delay: float) -> list[Operation]:
    waiter = asyncio.create_task(watcher.wait_io())
    asyncio.get_running_loop().call_later(delay, waiter.cancel)
    return await waiter


@dataclasses.dataclass(eq=False)
class Request:
    """One request of the storm; it is also the context of its operation."""

    line: Line
    number: int
    data: bytes = b""
    deadline: float | None = None
    silent: bool = False
    multishot: bool = False
    op: Operation | None = None
    cancelled: bool = False
    delivered: bool = False
    swept: int = 0  # a torn write: how many writes there were when it was handed over

    @property
    def pending(self) -> bool:
        return self.op is not None and not self.op.completed

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come of it: a silent write that succeeds delivers nothing."""
        if self.op is None or self.delivered:
            return True
        return self.silent and self.op.completed and self.op.error is None

    @property
    def torn(self) -> bool:
        return self.op is not None and self.op.error is not None and self.op.size > 0


class Line:
    """One connection of the storm: what was asked of it, and the bytes of both directions."""

    def __init__(self, watcher: Watcher, sock: socket.socket, peer: socket.socket) -> None:
        peer.setblocking(False)
        self.watcher = watcher
        self.peer = peer
        self.conn = watcher.delegate(sock)
        self.reads: list[Request] = []
        self.writes: list[Request] = []
        self.sent = bytearray()  # by the peer
        self.got = bytearray()  # by the reads, in the order of their delivery
        self.received = bytearray()  # by the peer
        self.ended = False  # the peer has sent its FIN
        self.broken = False  # the peer has sent a RST
        self.freed = False
        self.last = {OpType.READ: -1, OpType.WRITE: -1}

    @property
    def alive(self) -> bool:
        return not (self.broken or self.freed)

    # What the program asks for

    def read(self, buffer: bytearray | None, deadline: float | None, *, full: bool = False) -> None:
        request = Request(self, len(self.reads), deadline=deadline)
        self.reads.append(request)
        if full:
            assert buffer is not None
            request.op = self.watcher.read_full(
                self.conn, buffer, deadline=deadline, context=request
            )
        else:
            request.op = self.watcher.read(self.conn, buffer, deadline=deadline, context=request)

    def read_many(self) -> None:
        request = Request(self, len(self.reads), multishot=True)
        self.reads.append(request)
        request.op = self.watcher.read(self.conn, multishot=True, context=request)

    def write(self, data: bytes, deadline: float | None, *, silent: bool = False) -> None:
        request = Request(self, len(self.writes), data, deadline, silent)
        self.writes.append(request)
        buffer = bytearray(data)
        request.op = self.watcher.write(
            self.conn, buffer, deadline=deadline, silent=silent, context=request
        )
        if silent:
            buffer[:] = bytes(len(buffer))  # the program may reuse it at once (S5)

    def cancel(self, request: Request) -> None:
        assert request.op is not None
        pending = request.pending
        assert self.watcher.cancel(request.op) == pending
        request.cancelled = request.cancelled or pending

    def free(self) -> None:
        self.freed = True
        assert self.watcher.free(self.conn)
        assert not any(request.pending for request in self.reads + self.writes)

    # What the peer does

    def peer_sends(self, data: bytes) -> None:
        if not self.ended:
            self.sent += data[: send(self.peer, data)]

    def peer_receives(self, most: int = 1 << 30) -> None:
        self.received += drain(self.peer, most)

    def peer_ends(self) -> None:
        if not self.ended:
            self.ended = True
            self.peer.shutdown(socket.SHUT_WR)

    def peer_resets(self) -> None:
        if self.peer.family == socket.AF_INET:
            self.broken = True
            reset(self.peer)

    # What the watcher delivers

    def deliver(self, op: Operation, now: float) -> None:
        request: Request = op.context
        assert op.completed
        assert op.conn is self.conn
        assert not request.delivered
        if op.more:
            assert request.multishot
            assert op is not request.op
            assert op.error is None
        else:
            assert op is request.op
            request.delivered = True
            self._check_error(request, op.error, now)
        self._check_order(request, op)
        if op.type is OpType.WRITE:
            self._check_write(request, op)
        elif op.size:
            assert len(op.data) == op.size
            self.got += op.data

    def _check_error(self, request: Request, error: BaseException | None, now: float) -> None:
        if request.cancelled:
            assert isinstance(error, OperationCancelledError)
        match error:
            case OperationCancelledError(__cause__=cause) if not request.cancelled:
                self._check_swept(request, cause)
            case OperationCancelledError():
                pass
            case DeadlineExceededError():
                assert request.deadline is not None
                assert now >= request.deadline
            case ConnectionFreedError():
                assert self.freed
            case EndOfStreamError():
                assert self.ended
            case ConnectionError():
                assert self.broken
            case WatcherClosedError():
                assert not self.freed
            case _:
                assert error is None

    def _check_order(self, request: Request, op: Operation) -> None:
        """Only a cancel or a deadline takes an operation out of the middle (S3)."""
        if not isinstance(op.error, OperationCancelledError | DeadlineExceededError):
            assert request.number >= self.last[op.type]
            self.last[op.type] = request.number

    def _check_write(self, request: Request, op: Operation) -> None:
        assert request.data
        assert (op.size == len(request.data)) == (op.error is None)
        assert op.error is not None or not request.silent
        if request.torn:  # it has taken all that were behind it with it (T3)
            request.swept = len(self.writes)
            for behind in self.writes[request.number + 1 :]:
                assert behind.op is not None
                assert behind.op.error is not None
                assert behind.op.size == 0

    def _check_swept(self, request: Request, cause: BaseException | None) -> None:
        """It stood behind a torn write, before that was handed over (T3)."""
        torn = [write for write in self.writes if write.op is not None and write.op.error is cause]
        assert len(torn) == 1
        assert torn[0].torn
        assert torn[0].number < request.number < torn[0].swept

    def check_bytes(self, *, all_of_them: bool) -> None:
        """What one side sent is what the other got; after a hard end, a beginning of it."""
        written = b"".join(
            request.data if request.op is None else request.data[: request.op.size]
            for request in self.writes
        )
        if all_of_them and self.alive:
            assert self.got == self.sent
            assert self.received == written
        else:
            assert self.sent.startswith(self.got)
            assert written.startswith(self.received)


class Storm:
    """A seeded random sequence of requests, cancels, frees and peers' doings, on a dozen lines."""

    def __init__(self, watcher: Watcher, seed: int) -> None:
        self.watcher = watcher
        self.chance = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.lines: list[Line] = []  # in use
        self.all: list[Line] = []
        for _ in range(12):
            self._open()

    def _open(self) -> None:
        line = Line(self.watcher, *self.chance.choice([tcp_pair, unix_pair])())
        self.lines.append(line)
        self.all.append(line)

    def _size(self) -> int:
        """Mostly small; now and then more than the socket's buffers hold."""
        return self.chance.randrange(1, 1_000_000 if self.chance.random() < 0.05 else 2000)

    def _deadline(self) -> float | None:
        if self.chance.random() < 0.75:
            return None
        return self.loop.time() + self.chance.uniform(0, 0.003)

    async def blow(self, steps: int) -> None:
        for _ in range(steps):
            line = self.chance.choice(self.lines)
            for step, weight in STEPS.items():
                if self.chance.random() < weight:
                    step(self, line)
            if not line.alive:
                self.lines.remove(line)
                self._open()
            if self.chance.random() < 0.1:
                await self.collect()

    async def collect(self) -> None:
        wait = self.chance.choice([with_wait_for, with_timeout, with_task_cancel])
        match self.chance.randrange(4):
            case 0:
                await asyncio.sleep(0)
            case 1:
                self._deliver(self.watcher.poll_io())
            case 2:
                self._deliver(await outcome(wait(self.watcher, self.chance.uniform(0, 0.001))))
            case 3:
                waiter = asyncio.create_task(self.watcher.wait_io())
                await settle(self.chance.randrange(3))
                waiter.cancel()
                self._deliver(await outcome(waiter))

    def _deliver(self, results: list[Operation]) -> None:
        now = self.loop.time()
        for op in results:
            op.context.line.deliver(op, now)

    async def subside(self) -> None:
        """The peers end and take all that comes; whatever is pending can complete."""
        for line in self.lines:
            line.peer_ends()
            line.read_many()
        async with asyncio.timeout(20):
            while not self.settled:
                for line in self.lines:
                    line.peer_receives()
                self._deliver(await outcome(with_timeout(self.watcher, 0.005)))
        for line in self.lines:
            line.peer_receives()

    def break_off(self) -> None:
        """The watcher is closed in the middle of it all."""
        self.watcher.close()
        self._deliver(self.watcher.poll_io())
        for line in self.all:
            if not line.broken:
                line.peer_receives()

    @property
    def submitted(self) -> int:
        return sum(len(line.reads) + len(line.writes) for line in self.all)

    @property
    def settled(self) -> bool:
        return all(request.settled for line in self.all for request in (*line.reads, *line.writes))

    def close(self) -> None:
        for line in self.all:
            line.peer.close()


def _buffer(storm: Storm) -> bytearray | None:
    return bytearray(storm._size()) if storm.chance.random() < 0.5 else None


def _cancel_one(storm: Storm, line: Line) -> None:
    if requests := [request for request in line.reads + line.writes if request.op is not None]:
        line.cancel(storm.chance.choice(requests[-6:]))


# How likely each is to happen in a step.
STEPS: dict[Callable[[Storm, Line], None], float] = {
    lambda storm, line: line.read(_buffer(storm), storm._deadline()): 0.2,
    lambda storm, line: line.read(bytearray(storm._size()), storm._deadline(), full=True): 0.1,
    lambda storm, line: line.read_many(): 0.02,
    lambda storm, line: line.write(storm.chance.randbytes(storm._size()), storm._deadline()): 0.2,
    lambda storm, line: line.write(
        storm.chance.randbytes(storm._size()), storm._deadline(), silent=True
    ): 0.2,
    _cancel_one: 0.2,
    lambda storm, line: line.peer_sends(storm.chance.randbytes(storm._size())): 0.4,
    lambda storm, line: line.peer_receives(storm._size()): 0.4,
    lambda storm, line: line.peer_ends(): 0.01,
    lambda storm, line: line.free(): 0.01,
    lambda storm, line: line.peer_resets() if line.alive else None: 0.01,
}
