"""``read_until()``: all bytes through a separator, and what becomes of the bytes behind it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    LimitExceededError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from aiogaio.statistics import Pending
from tests.probes import drained, hung_up, open_descriptors, receive, unread, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]


@dataclass
class Line:
    """A connection and its peer: TCP with the loop's debug mode off, Unix with it on."""

    watcher: Watcher
    conn: Connection
    peer: socket.socket

    def until(self, separator: bytes = b"\n", **options: Any) -> Operation:
        return self.watcher.read_until(self.conn, separator, **options)

    async def take(self, operation: Operation | None = None) -> Any:
        """The data of the next result; of a plain read, unless there is a request already."""
        operation = operation or self.watcher.read(self.conn)
        assert await one(self.watcher) is operation
        assert operation.error is None
        assert operation.size == len(operation.data)
        return operation.data

    async def arrive(self, data: bytes) -> None:
        """Send, and wait until it is there, with no read pending."""
        before = unread(self.conn)
        self.peer.sendall(data)
        await until(lambda: unread(self.conn) == before + len(data))

    async def arrive_and_go(self, data: bytes) -> None:
        """Send, and wait until the watcher has received it."""
        self.peer.sendall(data)
        # What is sent is there at once on the loopback; what was taken is not any more.
        await until(lambda: unread(self.conn) == 0 and self.kept.endswith(data))

    @property
    def kept(self) -> bytes:
        return bytes(self.conn._record.rest or b"")


async def open_line(watcher: Watcher, pair: Callable[[], Any]) -> AsyncIterator[Line]:
    ours, peer = pair()
    with peer:
        line = Line(watcher, watcher.delegate(ours), peer)
        yield line
        watcher.free(line.conn)
        assert not [op for op in watcher.poll_io() if op.completed and op.error is None]
        assert watcher.statistics().pending == 0
        assert watcher.pending(line.conn) == Pending(0, 0)


@pytest_asyncio.fixture
async def line(watcher: Watcher) -> AsyncIterator[Line]:
    pair = unix_pair if asyncio.get_running_loop().get_debug() else tcp_pair
    async for opened in open_line(watcher, pair):
        yield opened


@pytest_asyncio.fixture
async def tcp_line(watcher: Watcher) -> AsyncIterator[Line]:
    async for opened in open_line(watcher, tcp_pair):
        yield opened


# --- The plain case -------------------------------------------------------------------------------


async def test_read_until_completes_when_the_line_comes(line: Line) -> None:
    op = line.until(context="mine")
    await settle()
    assert not op.completed
    line.peer.sendall(b"one line\n")
    assert await one(line.watcher) is op
    assert (op.type, op.conn, op.context) == (OpType.READ, line.conn, "mine")
    assert type(op.data) is bytes
    assert (op.data, op.size, op.buffer, op.error, op.more) == (b"one line\n", 9, None, None, False)


async def test_S1_read_until_of_a_line_that_is_there_completes_at_the_call(line: Line) -> None:
    await line.arrive(b"here\nbehind")
    op = line.until()
    assert op.completed
    assert await line.take(op) == b"here\n"
    assert await line.take() == b"behind"


async def test_read_until_context_is_the_connections_unless_passed(line: Line) -> None:
    line.conn.context = context = object()
    line.peer.sendall(b"a\n")
    assert (await one_of(line, line.until())).context is context


async def one_of(line: Line, operation: Operation) -> Operation:
    assert await one(line.watcher) is operation
    return operation


async def test_read_until_lines_of_one_arrival_go_to_the_requests_in_order(line: Line) -> None:
    requests = [line.until(context=number) for number in range(4)]
    line.peer.sendall(b"a\n\nccc\ndddd\nbehind")
    results = await collect(line.watcher, 4)
    assert results == requests
    assert [op.data for op in results] == [b"a\n", b"\n", b"ccc\n", b"dddd\n"]
    assert await line.take() == b"behind"


async def test_read_until_separator_that_comes_byte_by_byte(line: Line) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\r\n\n\r\r\n\r\n"
    op = line.until(b"\r\n\r\n")
    for number in range(len(head) - 1):
        await line.arrive_and_go(head[number : number + 1])
        assert not op.completed
    line.peer.sendall(head[-1:] + b"body")
    assert await line.take(op) == head
    assert await line.take() == b"body"


@pytest.mark.parametrize("split", range(1, 9))
async def test_read_until_separator_across_two_arrivals(line: Line, split: int) -> None:
    """Also one that begins like itself: what was searched before has to be looked at again."""
    data = b"aaabaaaac"
    op = line.until(b"aaaac")
    await line.arrive_and_go(data[:split])
    line.peer.sendall(data[split:] + b"behind")
    assert await line.take(op) == data
    assert await line.take() == b"behind"


async def test_read_until_other_separator_finds_what_the_first_had_searched(line: Line) -> None:
    first = line.until(b"\r\n")
    await line.arrive_and_go(b"a;b;\r")
    second, third = line.until(b";"), line.until(b";")
    line.watcher.cancel(first)
    assert await collect(line.watcher, 3) == [first, second, third]
    assert [second.data, third.data] == [b"a;", b"b;"]
    line.peer.sendall(b"\n")
    assert await line.take(line.until(b"\r\n")) == b"\r\n"


async def test_read_until_line_longer_than_the_buffer_size(poller: str) -> None:
    async with Watcher(poller=poller, buffer_size=8) as watcher:  # type: ignore[arg-type]
        async for line in open_line(watcher, tcp_pair):
            content = bytes(range(32, 127)) * 3
            line.peer.sendall(content + b"\nbehind it")
            assert await line.take(line.until()) == content + b"\n"
            behind = watcher.read_full(line.conn, bytearray(9))
            assert bytes(await line.take(behind)) == b"behind it"


async def test_read_until_of_many_requests_and_many_lines(line: Line) -> None:
    lines = [b"%d\n" % number for number in range(3000)]
    requests = [line.until(context=number) for number in range(3000)]
    for begin in range(0, 3000, 500):
        line.peer.sendall(b"".join(lines[begin : begin + 500]))
        await settle(1)
    results = await collect(line.watcher, 3000)
    assert results == requests
    assert [op.data for op in results] == lines
    assert line.watcher.statistics().bytes_read == sum(map(len, lines))
    assert line.conn._record.plain, "the short way is open again"


async def test_read_until_of_any_descriptor(watcher: Watcher) -> None:
    source, sink = os.pipe()
    conn = watcher.delegate(source)
    requests = [watcher.read_until(conn, b"\n"), watcher.read(conn)]
    os.write(sink, b"of a pi")
    await settle()
    os.write(sink, b"pe\nbehind")
    assert await collect(watcher, 2) == requests
    assert [op.data for op in requests] == [b"of a pipe\n", b"behind"]
    os.close(sink)
    os.close(source)
    watcher.read_until(conn, b"\n")
    assert isinstance((await one(watcher)).error, EndOfStreamError)


# --- Bytes behind the separator -------------------------------------------------------------------


def into(line: Line, size: int) -> Operation:
    return line.watcher.read(line.conn, bytearray(size))


KINDS: dict[str, Callable[[Line], Operation]] = {
    "read": lambda line: line.watcher.read(line.conn),
    "timeout": lambda line: line.watcher.read(line.conn, timeout=10),
    "into": lambda line: into(line, 100),
    "into_exactly": lambda line: into(line, 4),
    "read_full": lambda line: line.watcher.read_full(line.conn, bytearray(4)),
    "read_until": lambda line: line.until(b"t"),
    "recvfrom": lambda line: line.watcher.recvfrom(line.conn),
    "recvmsg": lambda line: line.watcher.recvmsg(line.conn, socket.CMSG_SPACE(4)),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_read_until_bytes_behind_come_first_in_the_next_read(line: Line, kind: str) -> None:
    await line.arrive(b"line\nkept")
    assert await line.take(line.until()) == b"line\n"
    await line.arrive(b"more")
    op = KINDS[kind](line)
    assert op.completed, "it need not wait for an event"
    assert bytes(await line.take(op)) == b"kept"
    assert await line.take() == b"more"


@pytest.mark.parametrize("kind", KINDS)
async def test_read_until_bytes_behind_come_first_in_the_read_queued_behind(
    line: Line, kind: str
) -> None:
    first, second = line.until(), KINDS[kind](line)
    last = line.watcher.read(line.conn)
    line.peer.sendall(b"line\nkept")
    assert await collect(line.watcher, 2) == [first, second]
    assert bytes(second.data) == b"kept"
    line.peer.sendall(b"more")
    assert await line.take(last) == b"more"


@pytest.mark.parametrize("request_shots", ["read", "recvfrom", "recvmsg"])
async def test_read_until_bytes_behind_come_first_in_a_multishot(
    line: Line, request_shots: str
) -> None:
    await line.arrive(b"line\nkept")
    assert await line.take(line.until()) == b"line\n"
    armed = getattr(line.watcher, request_shots)(line.conn, multishot=True, context="armed")
    shot = await one(line.watcher)
    assert (shot.data, shot.more, shot.context, shot.error) == (b"kept", True, "armed", None)
    assert (shot.type, shot.conn, shot.ancillary) == (OpType.READ, line.conn, ())
    line.peer.sendall(b"more")
    assert (await one(line.watcher)).data == b"more"
    line.peer.shutdown(socket.SHUT_WR)
    end = await one_of(line, armed)
    assert isinstance(end.error, EndOfStreamError)
    assert not end.more


async def test_S6_bytes_behind_wait_while_results_await_collection(poller: str) -> None:
    async with Watcher(poller=poller, batch_size=2, buffer_size=4) as watcher:  # type: ignore[arg-type]
        async for line in open_line(watcher, unix_pair):
            content = bytes(range(65, 91))
            line.until(limit=len(content))
            line.peer.sendall(content)
            assert type((await one(watcher)).error) is LimitExceededError
            armed = watcher.read(line.conn, multishot=True)
            shots: list[Operation] = []
            await settle()
            async with asyncio.timeout(10):
                while sum(op.size for op in shots) < len(content):
                    batch = await watcher.wait_io()
                    assert len(batch) <= 2
                    shots += batch
            assert [op.data for op in shots] == [
                content[begin : begin + 4] for begin in range(0, len(content), 4)
            ]
            cancelled(line, armed)
            await one_of(line, armed)


async def test_read_until_bytes_behind_that_a_small_buffer_leaves_stay(line: Line) -> None:
    line.peer.sendall(b"\nabcdefghij")
    assert await line.take(line.until()) == b"\n"
    assert bytes(await line.take(into(line, 3))) == b"abc"
    full = line.watcher.read_full(line.conn, bytearray(2))
    assert bytes(await line.take(full)) == b"de"
    assert await line.take(line.until(b"h")) == b"fgh"
    assert await line.take() == b"ij"


async def test_read_until_bytes_behind_go_into_a_read_full_with_what_comes(line: Line) -> None:
    line.peer.sendall(b"\nkept")
    assert await line.take(line.until()) == b"\n"
    op = line.watcher.read_full(line.conn, bytearray(8))
    await until(lambda: op.size == 4)
    line.peer.sendall(b"more and more")
    assert bytes(await line.take(op)) == b"keptmore"
    assert await line.take() == b" and more"


async def test_B1_bytes_behind_are_handed_out_up_to_buffer_size(poller: str) -> None:
    async with Watcher(poller=poller, buffer_size=4) as watcher:  # type: ignore[arg-type]
        async for line in open_line(watcher, unix_pair):
            op = line.until(limit=11)
            line.peer.sendall(b"abcdefghijkl")
            await one_of(line, op)
            assert type(op.error) is LimitExceededError
            assert [await line.take() for _ in range(3)] == [b"abcd", b"efgh", b"ijkl"]


async def test_B2_buffer_that_was_resized_meanwhile_loses_no_byte_behind(line: Line) -> None:
    buffer = bytearray(4)
    line.until()
    op = line.watcher.read(line.conn, buffer)
    buffer.append(0)
    line.peer.sendall(b"\nkept")
    assert (await collect(line.watcher, 2))[1] is op
    assert isinstance(op.error, BufferError)
    assert op.size == 0
    assert await line.take() == b"kept"
    buffer.append(0)  # nobody holds a view


async def test_B2_buffer_that_bytes_behind_go_into_is_not_held(line: Line) -> None:
    buffer = bytearray(8)
    line.peer.sendall(b"\nkept")
    assert await line.take(line.until()) == b"\n"
    op = line.watcher.read_full(line.conn, buffer)
    await until(lambda: op.size == 4)
    buffer.append(0)  # raises BufferError if somebody holds a view
    del buffer[-1:]
    line.peer.sendall(b"more")
    assert bytes(await line.take(op)) == b"keptmore"


async def test_read_until_bytes_behind_are_relayed_first(line: Line) -> None:
    line.peer.sendall(b"CONNECT\n\nkept")
    assert await line.take(line.until(b"\n\n")) == b"CONNECT\n\n"
    other, far = tcp_pair()
    with far:
        relay = line.watcher.relay(line.conn, other)
        line.peer.sendall(b"more")
        assert await receive(far, 8) == b"keptmore"
        far.shutdown(socket.SHUT_WR)
        line.peer.shutdown(socket.SHUT_WR)
        await one_of(line, relay)
        assert relay.error is None
        assert relay.sizes == (8, 0)
        line.watcher.free(relay.conn)


async def test_O2_freed_connection_forgets_the_bytes_behind(line: Line) -> None:
    line.peer.sendall(b"\nkept")
    assert await line.take(line.until()) == b"\n"
    pending = line.until(b"!")
    line.watcher.free(line.conn)
    behind = line.watcher.read(line.conn)
    assert await collect(line.watcher, 2) == [pending, behind]
    for op in (pending, behind):
        assert isinstance(op.error, ConnectionFreedError)
        assert op.size == 0
    assert line.kept == b""
    assert await drained(line.peer) == b""


async def test_notify_hangup_takes_nothing_of_the_bytes_behind(line: Line) -> None:
    line.peer.sendall(b"\nkept")
    assert await line.take(line.until()) == b"\n"
    hangup = line.watcher.notify_hangup(line.conn)
    line.peer.shutdown(socket.SHUT_WR)
    await one_of(line, hangup)
    assert await line.take() == b"kept"
    line.until()
    assert isinstance((await one(line.watcher)).error, EndOfStreamError)


# --- The limit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"--end--"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_read_until_limit_that_is_met_exactly(
    line: Line, separator: bytes, at_once: bool
) -> None:
    data = b"twelve bytes" + separator
    op = line.until(separator, limit=len(data))
    for begin in range(0, len(data), len(data) if at_once else 1):
        piece = data if at_once else data[begin : begin + 1]
        line.peer.sendall(piece)
        await settle(2)
    assert await line.take(op) == data


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"--end--"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_read_until_limit_that_is_exceeded_loses_nothing(
    line: Line, separator: bytes, at_once: bool
) -> None:
    data = b"twelve bytes" + separator
    op = line.until(separator, limit=len(data) - 1)
    for begin in range(0, len(data), len(data) if at_once else 1):
        piece = data if at_once else data[begin : begin + 1]
        line.peer.sendall(piece)
        await settle(2)
    await one_of(line, op)
    assert type(op.error) is LimitExceededError
    assert (op.size, op.data) == (0, b"")
    assert await line.take(line.until(separator, limit=len(data))) == data


async def test_read_until_limit_counts_one_line_alone(line: Line) -> None:
    """Not what stands behind it, however much that is."""
    requests = [line.until(limit=4) for _ in range(3)]
    line.peer.sendall(b"123\n" * 2 + b"1234\n" + b"x" * 1000)
    assert await collect(line.watcher, 3) == requests
    assert [op.data for op in requests] == [b"123\n", b"123\n", b""]
    assert type(requests[2].error) is LimitExceededError
    assert await line.take(line.until(limit=5)) == b"1234\n"


async def test_read_until_limit_bounds_what_a_connection_keeps(poller: str) -> None:
    async with Watcher(poller=poller, buffer_size=64) as watcher:  # type: ignore[arg-type]
        async for line in open_line(watcher, tcp_pair):
            line.peer.sendall(b"x" * 100_000)
            for _ in range(3):
                await one_of(line, line.until(limit=1000))
            assert 1000 <= len(line.kept) < 1000 + 64
            line.peer.shutdown(socket.SHUT_WR)
            buffer = bytearray(100_000)
            watcher.read_full(line.conn, buffer)
            assert bytes((await one(watcher)).data) == b"x" * 100_000


async def test_read_until_behind_one_that_is_over_the_limit_is_served(line: Line) -> None:
    tight, wide = line.until(limit=3), line.until()
    line.peer.sendall(b"wider\n")
    assert await collect(line.watcher, 2) == [tight, wide]
    assert type(tight.error) is LimitExceededError
    assert wide.data == b"wider\n"


# --- What ends it: nothing is lost ----------------------------------------------------------------


def cancelled(line: Line, op: Operation) -> None:
    assert line.watcher.cancel(op)
    assert not line.watcher.cancel(op)


def ended(line: Line, op: Operation) -> None:
    line.peer.shutdown(socket.SHUT_WR)


def expired(line: Line, op: Operation) -> None:
    """By its timeout, which all these requests have."""


ENDS: dict[str, tuple[Callable[[Line, Operation], None], type[Exception]]] = {
    "cancelled": (cancelled, OperationCancelledError),
    "ended": (ended, EndOfStreamError),
    "expired": (expired, DeadlineExceededError),
}


@pytest.mark.parametrize("how", ENDS)
async def test_read_until_that_ends_early_leaves_all_to_the_next_read(line: Line, how: str) -> None:
    end, error = ENDS[how]
    op = line.until(timeout=2 if how == "expired" else 10)
    line.peer.sendall(b"par")
    await until(lambda: line.kept == b"par")
    line.peer.sendall(b"tial")
    await until(lambda: line.kept == b"partial")
    end(line, op)
    await one_of(line, op)
    assert type(op.error) is error
    assert (op.size, op.data) == (0, b"")
    assert line.watcher.statistics().bytes_read == 0
    assert await line.take() == b"partial"
    assert line.watcher.statistics().bytes_read == 7


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_D1_read_behind_a_read_until_that_ends_early_gets_all(
    line: Line, how: str, kind: str
) -> None:
    """Though no further byte comes, and so no event."""
    end, error = ENDS[how]
    op = line.until(timeout=0.01 if how == "expired" else 10)
    behind = KINDS[kind](line)
    line.peer.sendall(b"part")
    await until(lambda: line.kept == b"part" or op.completed)
    end(line, op)
    assert await collect(line.watcher, 2) == [op, behind]
    assert type(op.error) is error
    assert bytes(behind.data) == b"part"


async def test_O4_end_comes_once_the_partial_line_was_read(line: Line) -> None:
    requests = [line.until(), line.until(), line.watcher.read(line.conn), line.until()]
    line.peer.sendall(b"whole\npartial")
    line.peer.shutdown(socket.SHUT_WR)
    assert await collect(line.watcher, 4) == requests
    assert [op.data for op in requests] == [b"whole\n", b"", b"partial", b""]
    assert [type(op.error) for op in requests] == [
        type(None),
        EndOfStreamError,
        type(None),
        EndOfStreamError,
    ]


async def test_O4_reset_comes_once_the_bytes_kept_were_read(tcp_line: Line) -> None:
    line = tcp_line
    first = line.until()
    await line.arrive_and_go(b"partial")
    reset(line.peer)
    await one_of(line, first)
    assert type(first.error) is ConnectionResetError
    assert first.size == 0
    assert await line.take() == b"partial"
    for _ in range(2):
        op = await one_of(line, line.until())
        assert type(op.error) is ConnectionResetError
    line.watcher.read(line.conn)
    assert type((await one(line.watcher)).error) is ConnectionResetError


async def test_O4_reset_while_bytes_are_kept_and_nothing_is_pending(tcp_line: Line) -> None:
    line = tcp_line
    line.peer.sendall(b"\na\nb")
    assert await line.take(line.until()) == b"\n"
    reset(line.peer)
    await until(lambda: hung_up(line.conn))
    assert await line.take(line.until()) == b"a\n"
    assert type((await one_of(line, line.until())).error) is ConnectionResetError
    assert await line.take() == b"b"
    assert type((await one_of(line, line.until())).error) is ConnectionResetError


async def test_T1_read_until_whose_deadline_is_past_is_attempted_once(line: Line) -> None:
    await line.arrive(b"here\npartial")
    past = asyncio.get_running_loop().time() - 1
    assert await line.take(line.until(deadline=past)) == b"here\n"
    op = line.until(timeout=0)
    assert op.completed
    assert type((await one_of(line, op)).error) is DeadlineExceededError
    assert op.size == 0
    assert await line.take() == b"partial"


async def test_T1_read_until_past_its_deadline_behind_another_fails(line: Line) -> None:
    first = line.until()
    past = line.until(timeout=0)
    assert type((await one_of(line, past)).error) is DeadlineExceededError
    line.peer.sendall(b"for the first\n")
    assert await line.take(first) == b"for the first\n"


async def test_T1_read_until_is_never_early(line: Line) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    line.until(timeout=0.03)
    line.peer.sendall(b"something comes")  # it is no timeout of silence
    await settle(3)
    op = await one(line.watcher)
    assert loop.time() - begin >= 0.0295
    assert type(op.error) is DeadlineExceededError
    assert await line.take() == b"something comes"


async def test_S3_read_until_cancelled_in_the_middle_of_the_queue(line: Line) -> None:
    requests = [line.until(context=number) for number in range(5)]
    cancelled(line, requests[2])
    line.peer.sendall(b"0\n1\n3\n4\nbehind")
    results = await collect(line.watcher, 5)
    assert [op.context for op in results] == [2, 0, 1, 3, 4]
    assert [op.data for op in results] == [b"", b"0\n", b"1\n", b"3\n", b"4\n"]
    assert await line.take() == b"behind"


async def test_S3_read_until_among_reads_of_all_kinds(line: Line) -> None:
    watcher, conn = line.watcher, line.conn
    requests = [
        watcher.read_full(conn, bytearray(3)),
        line.until(b";"),
        watcher.read(conn, bytearray(2)),
        line.until(b"!"),
        watcher.read(conn),
    ]
    write = watcher.write(conn, b"the other direction")
    assert await one(watcher) is write
    line.peer.sendall(b"abc" + b"def;" + b"gh" + b"ijk!" + b"lm")
    assert await collect(watcher, 5) == requests
    assert [bytes(op.data) for op in requests] == [b"abc", b"def;", b"gh", b"ijk!", b"lm"]
    assert await receive(line.peer, 19) == b"the other direction"


@pytest.mark.parametrize("whole", [False, True])
async def test_O2_D4_read_until_completes_when_its_connection_is_closed(
    line: Line, whole: bool
) -> None:
    requests = [line.until(), line.until(timeout=10), line.watcher.read(line.conn)]
    await line.arrive_and_go(b"part")
    assert line.watcher.pending(line.conn).requests == 3
    if whole:
        line.watcher.close()
    else:
        line.conn.close()
    assert await collect(line.watcher, 3) == requests
    error = WatcherClosedError if whole else ConnectionFreedError
    assert [type(op.error) for op in requests] == [error] * 3
    assert [op.size for op in requests] == [0] * 3
    assert await drained(line.peer) == b""


async def test_D1_read_until_and_a_cancelled_wait_io(line: Line) -> None:
    op = line.until()
    waiting = asyncio.ensure_future(line.watcher.wait_io())
    await settle(2)
    line.peer.sendall(b"line\nkept")
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert await line.take(op) == b"line\n"
    assert await line.take() == b"kept"


async def test_D1_line_and_cancel_in_the_same_turn(line: Line) -> None:
    op = line.until()
    await settle()
    line.peer.sendall(b"line\n")
    line.watcher.cancel(op)
    await one_of(line, op)
    rest = op.data
    if op.error is not None:
        assert type(op.error) is OperationCancelledError
        rest = await line.take()
    assert rest == b"line\n"


async def test_statistics_count_read_until_and_its_bytes_once(line: Line) -> None:
    before = line.watcher.statistics()
    requests = [line.until() for _ in range(3)]
    line.peer.sendall(b"a\nb\nc")
    assert await collect(line.watcher, 2) == requests[:2]
    now = line.watcher.statistics()
    assert (now.submitted, now.completed, now.pending) == (before.submitted + 3, 2, 1)
    assert line.watcher.pending(line.conn).requests == 1
    cancelled(line, requests[2])
    await one_of(line, requests[2])
    assert await line.take() == b"c"
    assert line.watcher.statistics().bytes_read == 5


# --- Misuse ---------------------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = {
    "empty": ((b"",), {}, ValueError),
    "text": (("\n",), {}, TypeError),
    "number": ((10,), {}, TypeError),
    "none": ((None,), {}, TypeError),
    "longer than the limit": ((b"\r\n",), {"limit": 1}, ValueError),
    "no limit": ((b"\n",), {"limit": 0}, ValueError),
    "negative limit": ((b"\n",), {"limit": -5}, ValueError),
    "huge limit": ((b"\n",), {"limit": 1 << 40}, ValueError),
    "limit of none": ((b"\n",), {"limit": None}, TypeError),
    "limit of truth": ((b"\n",), {"limit": True}, TypeError),
    "limit with a fraction": ((b"\n",), {"limit": 10.0}, TypeError),
    "both times": ((b"\n",), {"timeout": 1, "deadline": 1}, ValueError),
    "negative time": ((b"\n",), {"timeout": -1}, ValueError),
    "no number": ((b"\n",), {"timeout": float("nan")}, ValueError),
    "time as text": ((b"\n",), {"deadline": "soon"}, TypeError),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
async def test_S2_read_until_misused_raises_and_changes_nothing(line: Line, case: str) -> None:
    arguments, options, error = BAD_ARGUMENTS[case]
    sock, other = tcp_pair()
    before = line.watcher.statistics()
    with sock, other:
        for conn in (line.conn, sock):
            with pytest.raises(error):
                line.watcher.read_until(conn, *arguments, **options)
        assert line.watcher.statistics() == before
        other.sendall(b"still its owner's")
        assert sock.recv(100) == b"still its owner's"
    line.peer.sendall(b"works\n")
    assert await line.take(line.until()) == b"works\n"


async def test_S2_read_until_of_what_is_no_stream_raises_and_delegates_nothing(
    watcher: Watcher,
) -> None:
    ours, peer = unix_pair(socket.SOCK_DGRAM)
    listener = socket.create_server(("127.0.0.1", 0))
    before = watcher.statistics()
    with ours, peer, listener, open(os.devnull, "rb") as file:
        for source in (ours, listener, file, 3.5, "path"):
            with pytest.raises(UnsupportedConnectionError):
                watcher.read_until(source, b"\n")  # type: ignore[arg-type]
        assert watcher.statistics() == before
        peer.send(b"still its owner's")
        assert ours.recv(100) == b"still its owner's"


async def test_S2_read_until_on_another_watchers_connection_or_a_closed_watcher(
    line: Line, poller: str
) -> None:
    other = Watcher(poller=poller)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedConnectionError, match="another watcher"):
        other.read_until(line.conn, b"\n")
    other.close()
    with pytest.raises(WatcherClosedError):
        other.read_until(line.conn, b"\n")
    assert other.statistics().submitted == 0


async def test_O1_read_until_delegates_a_socket_on_the_spot(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        watcher.read_until(ours, bytearray(b"\n"))
        watcher.read_until(ours, memoryview(b"\n"))
        peer.sendall(b"a\nb\n")
        results = await collect(watcher, 2)
        assert [op.data for op in results] == [b"a\n", b"b\n"]
        assert ours.fileno() == -1
        watcher.free(ours)


async def test_read_until_separator_may_be_changed_after_the_call(line: Line) -> None:
    separator = bytearray(b"\n")
    op = line.until(separator)  # type: ignore[arg-type]
    separator[:] = b"xx"
    line.peer.sendall(b"as it was\n")
    assert await line.take(op) == b"as it was\n"


async def test_read_until_on_a_freed_connection_is_a_result(line: Line) -> None:
    line.watcher.free(line.conn)
    op = await one_of(line, line.until())
    assert type(op.error) is ConnectionFreedError


async def test_read_until_leaves_no_descriptor(poller: str) -> None:
    before = open_descriptors()
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        ours, peer = tcp_pair()
        with peer:
            peer.sendall(b"a\nkept")
            watcher.read_until(ours, b"\n")
            await one(watcher)
            watcher.read_until(ours, b"\n")
    assert open_descriptors() == before


# --- Against a model ------------------------------------------------------------------------------


@dataclass
class Request:
    """What was asked for, to be compared with what came of it."""

    kind: str
    number: int = 0
    separator: bytes = b""


class Model:
    """Any requests in any order against any arrivals: the stream is dealt out without a gap."""

    def __init__(self, watcher: Watcher, conn: Connection, rng: random.Random, size: int) -> None:
        self.watcher, self.conn, self.rng, self.buffer_size = watcher, conn, rng, size
        self.stream = bytes(rng.choices(b"ab\n", k=rng.randrange(200, 800)))
        self.position = 0  # of the stream, before which all has been dealt out
        self.sent = 0
        self.pending: list[Operation] = []
        self.ends = 0

    def submit(self) -> None:
        rng, watcher = self.rng, self.watcher
        kind = rng.choice(["read", "into", "full", "until", "until", "until", "message", "armed"])
        request = Request(kind, rng.randrange(1, 20))
        options: dict[str, Any] = {"context": request}
        if rng.random() < 0.1:
            options["timeout"] = rng.choice([0, 0.001])
        if kind == "read":
            op = watcher.read(self.conn, **options)
        elif kind == "into":
            op = watcher.read(self.conn, bytearray(request.number), **options)
        elif kind == "full":
            op = watcher.read_full(self.conn, bytearray(request.number), **options)
        elif kind == "message":
            op = watcher.recvfrom(self.conn, **options)
        elif kind == "armed":
            op = watcher.read(self.conn, multishot=True, **options)
        else:
            request.separator = rng.choice([b"\n", b"ab", b"aa", b"\n\n", b"abab", b"bbb"])
            request.number = rng.choice([4, 10, 50, 1000])
            op = watcher.read_until(self.conn, request.separator, limit=request.number, **options)
        self.pending.append(op)

    def check(self, op: Operation) -> None:
        request: Request = op.context
        data, begin = bytes(op.data), self.position
        assert op.size == len(data)
        assert self.stream[begin : begin + len(data)] == data, (request, op)
        self.position += len(data)
        assert self.position <= self.sent
        if not op.more:
            self.pending.remove(op)
        if request.kind == "until":
            self.check_until(op, request, begin)
        elif request.kind == "full":
            assert len(data) == request.number or op.error is not None
        elif op.error is None:
            room = request.number if request.kind == "into" else self.buffer_size
            assert 1 <= len(data) <= room
            assert op.more is (request.kind == "armed")
        else:
            assert not data
        if isinstance(op.error, EndOfStreamError):
            assert self.sent == len(self.stream)
            if request.kind != "until":
                assert self.position == self.sent
                self.ends += 1

    def check_until(self, op: Operation, request: Request, begin: int) -> None:
        found = self.stream.find(request.separator, begin, begin + request.number)
        if op.error is None:
            assert found >= 0
            assert self.position == found + len(request.separator)
            return
        assert op.size == 0
        if isinstance(op.error, LimitExceededError):
            assert found < 0
            assert self.sent >= begin + request.number
        elif isinstance(op.error, EndOfStreamError):
            assert found < 0
            assert len(self.stream) < begin + request.number
        else:
            assert isinstance(op.error, OperationCancelledError | DeadlineExceededError)

    async def run(self, peer: socket.socket) -> None:
        rng = self.rng
        while self.sent < len(self.stream):
            what = rng.random()
            if what < 0.4:
                self.send(peer, rng.choice([1, 1, 2, 5, 30]))
            elif what < 0.75 and len(self.pending) < 6:
                self.submit()
            elif what < 0.85 and self.pending:
                self.watcher.cancel(rng.choice(self.pending))
            else:
                await settle(rng.choice([1, 1, 3]))
            self.collect(self.watcher.poll_io())
        peer.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(10):
            while self.pending or not self.ends:
                if not self.pending:
                    self.submit()
                self.collect(await self.watcher.wait_io())
        assert self.position == len(self.stream)

    def send(self, peer: socket.socket, count: int) -> None:
        count = min(count, len(self.stream) - self.sent)
        peer.sendall(self.stream[self.sent : self.sent + count])
        self.sent += count

    def collect(self, results: list[Operation]) -> None:
        for op in results:
            self.check(op)


async def test_read_until_and_other_reads_deal_out_the_stream_without_a_gap(poller: str) -> None:
    for pair in (tcp_pair, unix_pair):
        for size in (5, 64, 65536):
            seed = random.SystemRandom().getrandbits(32)
            print(f"seed {seed}, {pair.__name__}, buffer_size {size}")
            async with Watcher(poller=poller, buffer_size=size) as watcher:  # type: ignore[arg-type]
                ours, peer = pair()
                with peer:
                    conn = watcher.delegate(ours)
                    await Model(watcher, conn, random.Random(seed), size).run(peer)
                    assert watcher.statistics().pending == 0
                    watcher.free(conn)
