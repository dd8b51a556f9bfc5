"""``writev()``, and small writes that are sent together when they stand in a queue."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from aiogaio.attempts import vectors
from aiogaio.checks import new_vector, new_write, parts_of
from aiogaio.connection import Record
from aiogaio.operation import Write, WriteV
from aiogaio.statistics import Pending
from tests.probes import drained, fill, hung_up, receive, small_pair, unread, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]

#: Far more than fits between the two ends.
LONG = 1 << 20
IOV_MAX = 1024


def narrow_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that take little while nobody receives."""
    peer = socket.socket()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer.settimeout(10)
        # Before it is connected: the window is agreed on then.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return ours, peer


@dataclass
class Way:
    """A connection that takes little, and its peer."""

    watcher: Watcher
    conn: Connection
    peer: socket.socket
    filling: int = 0  # bytes that the peer has to receive before anything is sent

    def write(self, data: Any, **options: Any) -> Any:
        return self.watcher.write(self.conn, data, **options)

    def writev(self, buffers: Any, **options: Any) -> Any:
        return self.watcher.writev(self.conn, buffers, **options)

    async def open(self) -> None:
        """Let go on what is stopped by the filling."""
        filling, self.filling = self.filling, 0
        await receive(self.peer, filling)

    async def taken_until(self, condition: Callable[[], bool], *, within: float = 10) -> bytes:
        """All that the peer receives until this holds."""
        taken = bytearray()
        self.peer.setblocking(False)
        async with asyncio.timeout(within):
            while not condition():
                with suppress(BlockingIOError):
                    taken += self.peer.recv(4096)
                await asyncio.sleep(0)
        return bytes(taken)

    async def arrives(self, content: bytes) -> None:
        """The peer receives this and nothing else."""
        await self.open()
        assert await receive(self.peer, len(content)) == content
        await settle(3)
        assert not unread(self.peer)

    async def arrives_and_ends(self, content: bytes) -> None:
        """The same, and the connection is closed at this end: nothing came behind it."""
        self.watcher.free(self.conn)
        await self.open()
        assert await drained(self.peer) == content


async def open_way(
    watcher: Watcher, ours: socket.socket, peer: socket.socket, filling: int
) -> AsyncIterator[Way]:
    with peer:
        way = Way(watcher, watcher.delegate(ours), peer, filling)
        yield way
        watcher.free(way.conn)
        assert not [op for op in watcher.poll_io() if op.error is None]
        assert watcher.statistics().pending == 0
        assert watcher.pending(way.conn) == Pending(0, 0)


@pytest_asyncio.fixture
async def way(watcher: Watcher) -> AsyncIterator[Way]:
    """TCP with the loop's debug mode off, Unix with it on."""
    pair = small_pair if asyncio.get_running_loop().get_debug() else narrow_tcp_pair
    async for opened in open_way(watcher, *pair(), 0):
        yield opened


@pytest_asyncio.fixture
async def stopped(watcher: Watcher) -> AsyncIterator[Way]:
    """It takes nothing until ``open()``: all writes stand in the queue."""
    ours, peer = small_pair()
    async for opened in open_way(watcher, ours, peer, fill(ours)):
        yield opened


@pytest.fixture
def sendmsg(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the buffers of each sendmsg(2) that has sent something."""
    calls: list[list[int]] = []
    original = Record.sendmsg

    def counted(record: Record, buffers: Any, *more: Any) -> int:
        lengths = [len(part) for part in buffers]
        sent = original(record, buffers, *more)
        calls.append(lengths)
        return sent

    monkeypatch.setattr(Record, "sendmsg", counted)
    return calls


def assert_torn(op: Operation, cause: Exception | None) -> None:
    """It stood behind a torn write, and nothing of it was sent."""
    assert op.size == 0
    assert type(op.error) is OperationCancelledError
    assert op.error.__cause__ is cause


MIXED: list[Any] = [
    b"bytes",
    b"",
    bytearray(b"bytearray"),
    memoryview(b"xviewx")[1:-1],
    array.array("H", [1, 2, 3]),
    memoryview(bytearray()),
    b"last",
]
JOINED = b"".join(bytes(memoryview(part)) for part in MIXED)


# --- writev: the plain case -----------------------------------------------------------------------


async def test_writev_sends_all_buffers(way: Way, sendmsg: list[list[int]]) -> None:
    op = way.writev(MIXED, context="mine")
    assert op.completed
    assert await one(way.watcher) is op
    assert (op.type, op.conn, op.context) == (OpType.WRITE, way.conn, "mine")
    assert (op.size, op.error, op.more, op.data) == (len(JOINED), None, False, b"")
    assert list(op.buffer) == MIXED
    await way.arrives(JOINED)
    assert len(sendmsg) == 1
    assert way.watcher.statistics().bytes_written == len(JOINED)


@pytest.mark.parametrize("options", [{}, {"timeout": 10}, {"silent": True}])
async def test_writev_of_bytes_goes_in_one_call(
    way: Way, sendmsg: list[list[int]], options: dict[str, Any]
) -> None:
    op = way.writev([b"head", b"", b"body"], **options)
    if "silent" in options:
        assert op is None
    else:
        assert await one(way.watcher) is op
        assert op.size == 8
    await way.arrives(b"headbody")
    assert sendmsg == [[4, 0, 4]]
    assert way.watcher.statistics().pending == 0


async def test_writev_takes_any_iterable_once(way: Way) -> None:
    op = way.writev(bytes([number]) for number in range(5))
    assert (await one(way.watcher)).size == 5
    assert list(op.buffer) == [b"\0", b"\1", b"\2", b"\3", b"\4"]
    await way.arrives(b"\0\1\2\3\4")


async def test_writev_list_may_be_changed_after_the_call(stopped: Way) -> None:
    buffers = [b"as", b"it", b"was"]
    op = stopped.writev(buffers)
    buffers.clear()
    await stopped.arrives(b"asitwas")
    assert (await one(stopped.watcher)) is op


async def test_S3_writev_keeps_its_place_among_other_writes(stopped: Way) -> None:
    contents = [b"%d;" % number * 500 for number in range(12)]
    requests = []
    for number, content in enumerate(contents):
        if number % 3:
            requests.append(stopped.write(content, context=number))
        else:
            requests.append(stopped.writev([content[:7], b"", content[7:]], context=number))
    read = stopped.watcher.read(stopped.conn)
    stopped.peer.sendall(b"the other direction")
    assert await one(stopped.watcher) is read
    await stopped.arrives(b"".join(contents))
    results = await collect(stopped.watcher, 12)
    assert results == requests
    assert [op.size for op in results] == list(map(len, contents))


async def test_writev_of_any_descriptor(watcher: Watcher) -> None:
    source, sink = os.pipe()
    conn = watcher.delegate(sink)
    watcher.writev(conn, [*MIXED, *[b"x"] * 3000])
    op = await one(watcher)
    assert (op.error, op.size) == (None, len(JOINED) + 3000)
    assert os.read(source, 100_000) == JOINED + b"x" * 3000
    watcher.free(conn)
    os.close(source)
    os.close(sink)


# --- writev: partial sends ------------------------------------------------------------------------


class FakeRecord:
    """Takes ``room`` bytes of each attempt."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    writable = True

    def __init__(self, room: int) -> None:
        self.room, self.sent, self.calls = room, b"", 0

    def sendmsg(self, parts: Any) -> int:
        assert len(parts) <= vectors.IOV_MAX
        taken = b"".join(parts)[: self.room]
        self.sent += taken
        self.calls += 1
        return len(taken)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set the buffers of one call, and the bytes that one attempt moves."""

    def set_limits(buffers: int, chunk: int) -> None:
        monkeypatch.setattr(vectors, "IOV_MAX", buffers)
        monkeypatch.setattr(vectors, "CHUNK", chunk)

    return set_limits


@pytest.mark.parametrize("buffers", [1, 2, 3, 1024])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
async def test_writev_is_resumed_at_the_right_byte(
    limits: Callable[[int, int], None], buffers: int, chunk: int
) -> None:
    """Wherever the system stops."""
    limits(buffers, chunk)
    async with Watcher() as watcher:
        ours, peer = unix_pair()
        with peer:
            conn = watcher.delegate(ours)
            for parts in (MIXED, [b"", b"", b"a", b"", b"bc", b"", b""], [b"abc", b"", b"de"]):
                content = b"".join(bytes(memoryview(part)) for part in parts)
                for room in range(1, len(content) + 1):
                    record = FakeRecord(room)
                    op = new_vector(WriteV(), conn, *parts_of(parts), None, False)
                    while not vectors.send_parts(record, op):  # type: ignore[arg-type]
                        assert op.size == len(record.sent) < len(content)
                        assert record.calls < 100
                    assert record.sent == content
                    assert op.size == len(content)
                    assert op.error is None
            watcher.free(conn)


async def test_writev_arrives_whole_at_a_peer_with_a_small_buffer(way: Way) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview]
    parts = [
        rng.choice(kinds)(
            rng.randbytes(rng.choice([0, 1, rng.randrange(100), rng.randrange(9000)]))
        )
        for _ in range(300)
    ]
    content = b"".join(parts)
    op = way.writev(parts)
    received = b""
    while len(received) < len(content):
        received += await receive(
            way.peer, min(rng.randrange(1, 20_000), len(content) - len(received))
        )
    assert await one(way.watcher) is op
    assert received == content
    assert op.size == len(content)
    assert way.watcher.statistics().bytes_written == len(content)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("silent", [False, True])
async def test_writev_of_more_buffers_than_the_system_takes(
    way: Way, sendmsg: list[list[int]], kind: Callable[[bytes], Any], silent: bool
) -> None:
    parts = [kind(b"%d," % number) if number % 3 else kind(b"") for number in range(5000)]
    content = b"".join(parts)
    op = way.writev(parts, silent=silent)
    for part in parts:
        if silent and isinstance(part, bytearray):
            part[:] = b"?" * len(part)
    await way.arrives(content)
    assert max(map(len, sendmsg)) <= IOV_MAX
    assert len(sendmsg) >= 5
    if not silent:
        assert await one(way.watcher) is op
        assert op.size == len(content)
    assert not way.watcher.poll_io()
    assert way.watcher.statistics().pending == 0


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_writev_of_many_empty_buffers_around_one_byte(
    way: Way, kind: Callable[[bytes], Any]
) -> None:
    op = way.writev([kind(b"")] * 3000 + [kind(b"x")] + [kind(b"")] * 3000)
    assert await one(way.watcher) is op
    assert (op.size, op.error) == (1, None)
    await way.arrives(b"x")


async def test_writev_of_large_buffers(way: Way) -> None:
    parts = [bytes([number]) * 400_000 for number in range(3)]
    parts.insert(1, bytearray(b"small"))  # type: ignore[arg-type]
    op = way.writev(parts)
    assert await receive(way.peer, 1_200_005) == b"".join(parts)
    assert (await one(way.watcher)) is op


async def test_D3_writev_of_large_buffers_leaves_others_their_turn(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        conn = watcher.delegate(ours)
        most = 0
        original = Record.sendmsg

        def measured(record: Record, buffers: Any) -> int:
            nonlocal most
            most = max(most, sum(map(len, buffers)))
            return original(record, buffers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Record, "sendmsg", measured)
            watcher.writev(conn, [bytes(100_000)] * 30)
            assert await receive(peer, 3_000_000) == bytes(3_000_000)
        assert 0 < most <= 256 * 1024 + 100_000
        await one(watcher)
        watcher.free(conn)


# --- writev: whose buffers ------------------------------------------------------------------------


async def test_B2_writev_holds_no_view_between_attempts(way: Way) -> None:
    buffers = [bytearray(50_000) for _ in range(10)]
    op = way.writev(buffers)
    await until(lambda: op.size > 0)
    for buffer in buffers:
        buffer.append(0)  # raises BufferError if somebody holds a view
        buffer.pop()
    await way.arrives(bytes(500_000))
    assert (await one(way.watcher)).error is None
    for buffer in buffers:
        buffer.append(0)


async def test_B2_writev_with_a_resized_buffer_fails_alone(stopped: Way) -> None:
    buffer = bytearray(b"second")
    before, bad, behind = (
        stopped.write(b"before"),
        stopped.writev([b"first", buffer]),
        stopped.write(b"behind"),
    )
    buffer.append(0)
    await stopped.arrives(b"beforebehind")
    assert await collect(stopped.watcher, 3) == [before, bad, behind]
    assert type(bad.error) is BufferError
    assert (bad.size, before.error, behind.error) == (0, None, None)
    buffer.append(0)


async def test_T3_writev_with_a_buffer_resized_in_the_middle_takes_those_behind_with_it(
    way: Way,
) -> None:
    late = bytearray(b"late")
    torn, behind = way.writev([b"x" * LONG, late]), way.write(b"behind")
    await until(lambda: torn.size > 0)
    late.clear()
    received = await way.taken_until(lambda: torn.completed)
    assert await collect(way.watcher, 2) == [torn, behind]
    assert type(torn.error) is BufferError
    assert_torn(behind, torn.error)
    await way.arrives_and_ends(b"x" * (torn.size - len(received)))


async def test_B2_writev_with_a_released_view_fails_alone(stopped: Way) -> None:
    view = memoryview(bytearray(b"view"))
    bad, behind = stopped.writev([b"", view]), stopped.writev([b"behind"])
    view.release()
    await stopped.arrives(b"behind")
    assert await collect(stopped.watcher, 2) == [bad, behind]
    assert type(bad.error) is ValueError
    assert bad.size == 0


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_S5_silent_writev_may_reuse_its_data_at_once(
    way: Way, kind: Callable[[bytes], Any]
) -> None:
    parts = [kind(bytes([number % 256]) * (number % 700)) for number in range(1500)]
    content = b"".join(parts)
    op = way.writev(parts, silent=True)
    assert op is not None
    assert not op.completed
    for part in parts:
        if isinstance(part, bytearray):
            part[:] = b"?" * (len(part) + 1)  # resized, too
    parts.clear()
    behind = way.write(b"behind")
    await way.arrives(content + b"behind")
    assert await one(way.watcher) is behind, "a silent one that succeeds delivers nothing"
    statistics = way.watcher.statistics()
    assert (statistics.submitted, statistics.completed) == (2, 2)


async def test_S5_silent_writev_that_waits_may_reuse_its_data_at_once(stopped: Way) -> None:
    parts = [bytearray(b"one"), bytearray(), bytearray(b"two")]
    for _ in range(3):
        assert stopped.writev(parts, silent=True) is not None
    parts[0][:] = b"???"
    await stopped.arrives(b"onetwo" * 3)
    assert not stopped.watcher.poll_io()
    assert stopped.watcher.statistics().pending == 0


async def test_S5_silent_writev_that_fails_delivers_its_error_and_size(way: Way) -> None:
    op = way.writev([b"x" * LONG, b"y"], silent=True, context="silent")
    await until(lambda: op.size > 0)
    await receive(way.peer, 20_000)
    assert way.watcher.cancel(op)
    assert await one(way.watcher) is op
    assert type(op.error) is OperationCancelledError
    assert 20_000 <= op.size < LONG
    await way.arrives_and_ends(b"x" * (op.size - 20_000))


# --- writev: what ends it -------------------------------------------------------------------------


def by_cancel(way: Way, op: Operation) -> None:
    assert way.watcher.cancel(op)
    assert not way.watcher.cancel(op)


def by_waiting(way: Way, op: Operation) -> None:
    """By its timeout, which all these requests have."""


CUTS: dict[str, tuple[Callable[[Way, Operation], None], float, type[Exception]]] = {
    "cancel": (by_cancel, 10, OperationCancelledError),
    "deadline": (by_waiting, 0.02, DeadlineExceededError),
}


@pytest.mark.parametrize("how", CUTS)
async def test_T3_writev_cut_after_a_part_takes_those_behind_with_it(way: Way, how: str) -> None:
    cut, timeout, error = CUTS[how]
    torn = way.writev([b"a", b"b" * LONG, b"c"], timeout=timeout)
    behind = [way.write(b"behind"), way.writev([b"be", b"hind"]), way.write(b"x", silent=True)]
    cut(way, torn)
    await until(lambda: torn.completed)
    behind.append(way.writev([b"before the program", b"knows"]))
    behind.append(way.writev([b"silent", b"too"], silent=True))
    results = await collect(way.watcher, 6)
    assert results == [torn, *behind]
    assert type(torn.error) is error
    assert 0 < torn.size < LONG
    for op in behind:
        assert_torn(op, torn.error)
    after = way.writev([b"af", b"ter"])
    await way.arrives((b"a" + b"b" * LONG)[: torn.size] + b"after")
    assert await one(way.watcher) is after


@pytest.mark.parametrize("how", CUTS)
async def test_S3_writev_cut_before_its_turn_leaves_the_others_alone(
    stopped: Way, how: str
) -> None:
    cut, timeout, error = CUTS[how]
    before = stopped.writev([b"be", b"fore"])
    op = stopped.writev([b"never", b"sent"], timeout=timeout)
    behind = stopped.writev([b"be", b"hind"])
    cut(stopped, op)
    assert await one(stopped.watcher) is op
    assert type(op.error) is error
    assert op.size == 0
    await stopped.arrives(b"beforebehind")
    assert await collect(stopped.watcher, 2) == [before, behind]


async def test_T1_writev_whose_deadline_is_past_is_attempted_once(way: Way) -> None:
    assert way.writev([b"goes", b"out"], timeout=0).completed
    assert (await one(way.watcher)).error is None
    op = way.writev([b"x" * LONG, b"y"], deadline=asyncio.get_running_loop().time())
    assert await one(way.watcher) is op
    assert type(op.error) is DeadlineExceededError
    assert 0 < op.size < LONG
    await way.arrives_and_ends((b"goesout" + b"x" * LONG)[: 7 + op.size])


async def test_T1_writev_past_its_deadline_behind_another_is_not_sent(stopped: Way) -> None:
    first, past = stopped.write(b"first"), stopped.writev([b"past"], timeout=0)
    assert await one(stopped.watcher) is past
    assert type(past.error) is DeadlineExceededError
    await stopped.arrives(b"first")
    assert await one(stopped.watcher) is first


@pytest.mark.parametrize("whole", [False, True])
async def test_O2_D4_writev_completes_when_its_connection_is_closed(way: Way, whole: bool) -> None:
    requests = [
        way.writev([b"x" * LONG, b"y"]),
        way.writev([b"behind"], timeout=10),
        way.writev([b"silent"], silent=True),
    ]
    await until(lambda: requests[0].size > 0)
    if whole:
        way.watcher.close()
    else:
        way.watcher.free(way.conn)
    assert await collect(way.watcher, 3) == requests
    error = WatcherClosedError if whole else ConnectionFreedError
    assert [type(op.error) for op in requests] == [error] * 3
    assert 0 < requests[0].size < LONG
    assert [op.size for op in requests[1:]] == [0, 0]
    assert await drained(way.peer) == b"x" * requests[0].size


async def test_D1_writev_and_a_cancelled_wait_io(stopped: Way) -> None:
    op = stopped.writev([b"one", b"two"])
    waiting = asyncio.ensure_future(stopped.watcher.wait_io())
    await settle(2)
    await stopped.open()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert await one(stopped.watcher) is op
    await stopped.arrives(b"onetwo")


@pytest.mark.parametrize("silent", [False, True])
async def test_writev_to_a_peer_that_has_reset(watcher: Watcher, silent: bool) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    first = watcher.writev(conn, [b"one", b"two"], silent=silent)
    second = watcher.writev(conn, [bytearray(b"three")], silent=silent)
    assert await collect(watcher, 2) == [first, second]
    assert type(first.error) is ConnectionResetError
    assert type(second.error) is BrokenPipeError
    assert (first.size, second.size) == (0, 0)
    watcher.read(conn)
    assert type((await one(watcher)).error) is ConnectionResetError
    assert watcher.pending(conn).queued_bytes == 0
    watcher.free(conn)


async def test_T3_writev_torn_by_a_reset(watcher: Watcher) -> None:
    ours, peer = narrow_tcp_pair()
    conn = watcher.delegate(ours)
    torn, behind = watcher.writev(conn, [b"x" * LONG, b"y"]), watcher.writev(conn, [b"behind"])
    await until(lambda: torn.size > 0)
    reset(peer)
    assert await collect(watcher, 2) == [torn, behind]
    assert type(torn.error) is ConnectionResetError
    assert 0 < torn.size < LONG
    assert_torn(behind, torn.error)
    watcher.free(conn)


async def test_writev_on_a_freed_connection_is_a_result(way: Way) -> None:
    way.watcher.free(way.conn)
    for silent in (False, True):
        op = way.writev([b"x"], silent=silent)
        assert await one(way.watcher) is op
        assert type(op.error) is ConnectionFreedError


async def test_writev_counts_its_bytes_in_the_queue(way: Way) -> None:
    op = way.writev([b"x" * 300_000, bytearray(300_000)])
    way.writev([b"", b"silent"], silent=True)
    pending = way.watcher.pending(way.conn)
    assert (pending.requests, pending.queued_bytes) == (2, 600_000 - op.size + 6)
    await receive(way.peer, 600_006)
    assert await one(way.watcher) is op
    pending = way.watcher.pending(way.conn)
    assert (pending.requests, pending.queued_bytes) == (0, 0)
    assert way.watcher.statistics().bytes_written == 600_006


# --- writev: misuse -------------------------------------------------------------------------------

BAD_BUFFERS: dict[str, tuple[Any, type[Exception]]] = {
    "none": ([], EmptyBufferError),
    "empty ones": ([b"", bytearray(), memoryview(b"")], EmptyBufferError),
    "text": (["text"], TypeError),
    "bytes": (b"bytes", TypeError),
    "bytearray": (bytearray(b"bytes"), TypeError),
    "view": (memoryview(b"bytes"), TypeError),
    "string": ("text", TypeError),
    "numbers": ([1, 2], TypeError),
    "a number": (5, TypeError),
    "nothing": (None, TypeError),
    "one is none": ([b"x", None], TypeError),
    "not contiguous": ([b"x", memoryview(b"abcdef")[::2]], TypeError),
}


@pytest.mark.parametrize("case", BAD_BUFFERS)
async def test_S2_writev_of_what_are_no_buffers_raises_and_changes_nothing(
    way: Way, case: str
) -> None:
    buffers, error = BAD_BUFFERS[case]
    sock, other = tcp_pair()
    before = way.watcher.statistics()
    with sock, other:
        for conn in (way.conn, sock):
            for silent in (False, True):
                with pytest.raises(error):
                    way.watcher.writev(conn, buffers, silent=silent)
        assert way.watcher.statistics() == before
        sock.sendall(b"still its owner's")
    way.writev([b"works"])
    await one(way.watcher)
    await way.arrives(b"works")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 1, "deadline": 1}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"deadline": float("nan")}, ValueError),
        ({"timeout": "soon"}, TypeError),
    ],
)
async def test_S2_writev_with_bad_times_raises_and_changes_nothing(
    way: Way, options: dict[str, Any], error: type[Exception]
) -> None:
    before = way.watcher.statistics()
    with pytest.raises(error):
        way.writev([b"x"], **options)
    assert way.watcher.statistics() == before


async def test_S2_writev_on_what_takes_no_writes_raises(way: Way, poller: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    before = way.watcher.statistics()
    with listener, open(os.devnull, "wb") as file:
        for target in (listener, file, 3.5):
            with pytest.raises(UnsupportedConnectionError):
                way.watcher.writev(target, [b"x"])  # type: ignore[arg-type]
    assert way.watcher.statistics() == before
    other = Watcher(poller=poller)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedConnectionError, match="another watcher"):
        other.writev(way.conn, [b"x"])
    other.close()
    with pytest.raises(WatcherClosedError):
        other.writev(way.conn, [b"x"])


async def test_O1_writev_delegates_a_socket_on_the_spot(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        op = watcher.writev(ours, [b"a", b"b"])
        assert await one(watcher) is op
        assert peer.recv(2, socket.MSG_WAITALL) == b"ab"
        assert ours.fileno() == -1
        watcher.free(ours)


async def test_writev_is_one_datagram(watcher: Watcher) -> None:
    ours, peer = unix_pair(socket.SOCK_DGRAM)
    with peer:
        conn = watcher.delegate(ours)
        for parts in ([b"a", b"", bytearray(b"bc")], [b"x"] * 3000):
            watcher.writev(conn, parts)
            assert (await one(watcher)).size == sum(map(len, parts))
            assert peer.recv(10_000) == b"".join(parts)
        watcher.free(conn)


# --- Small writes in a queue ----------------------------------------------------------------------

SMALL = [b"%04d:" % number + bytes([number % 256]) * (number % 60) for number in range(200)]


async def test_queued_small_writes_go_in_one_call(stopped: Way, sendmsg: list[list[int]]) -> None:
    requests = [stopped.write(data, context=number) for number, data in enumerate(SMALL[:16])]
    assert not any(op.completed for op in requests)
    await stopped.arrives(b"".join(SMALL[:16]))
    results = await collect(stopped.watcher, 16)
    assert results == requests
    assert [op.context for op in results] == list(range(16))
    assert [op.size for op in results] == list(map(len, SMALL[:16]))
    assert [op.buffer for op in results] == SMALL[:16]
    assert all(op.error is None and op.completed and not op.more for op in results)
    assert sendmsg == [list(map(len, SMALL[:16]))]
    assert stopped.watcher.pending(stopped.conn).queued_bytes == 0
    assert stopped.watcher.statistics().bytes_written == sum(map(len, SMALL[:16]))


async def test_queued_small_writes_of_a_long_queue_take_few_calls(
    stopped: Way, sendmsg: list[list[int]]
) -> None:
    requests = [stopped.write(b"x" * 10) for _ in range(500)]
    await stopped.arrives(b"x" * 5000)
    assert await collect(stopped.watcher, 500) == requests
    assert len(sendmsg) <= 20
    assert {op.size for op in requests} == {10}


def chained(conn: Connection, parts: list[Any]) -> list[Write]:
    """Writes that stand one behind the other."""
    writes = [new_write(conn, part, len(part), None, False) for part in parts]
    for first, second in pairwise(writes):
        first._next = second
    return writes


async def test_queued_small_write_whose_buffer_is_its_old_self_again_is_sent(
    watcher: Watcher,
) -> None:
    """When its turn comes it counts, and not before."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(b"cd")
        writes = chained(conn, [b"a", b"b", buffer, b"e"])
        buffer.append(0)
        record = FakeRecord(100)
        assert vectors.send_queued(record, writes[0]) == (2, writes[:2])  # type: ignore[arg-type]
        assert writes[2].error is None
        del buffer[-1:]
        assert vectors.send_queued(record, writes[2]) == (3, writes[2:])  # type: ignore[arg-type]
        assert record.sent == b"abcde"
        watcher.free(conn)


@pytest.mark.parametrize("room", range(1, 26))
async def test_queued_small_writes_complete_as_far_as_the_system_takes_them(room: int) -> None:
    """Wherever the system stops: each has the size that is its own."""
    parts = [b"abc", bytearray(b"d"), b"efghi", memoryview(b"jk"), b"lmnopqrstuvwxyz"[:-1]]
    async with Watcher() as watcher:
        ours, peer = unix_pair()
        with peer:
            conn = watcher.delegate(ours)
            record = FakeRecord(room)
            writes = chained(conn, parts)
            waiting = list(writes)
            while len(waiting) > 1:
                answer = vectors.send_queued(record, waiting[0])  # type: ignore[arg-type]
                assert answer is not None
                sent, finished = answer
                assert finished == waiting[: len(finished)]
                del waiting[: len(finished)]
                assert all(op.size == op.length for op in finished)
                assert all(op.size < op.length for op in waiting)
                assert all(op.size == 0 for op in waiting[1:])
                assert sent <= room
                assert sum(op.size for op in writes) == len(record.sent)
                assert record.writable is (not waiting)
                record.writable = True
            content = b"".join(parts)
            assert record.sent + content[len(record.sent) :] == content
            watcher.free(conn)


async def test_queued_small_writes_arrive_whole_at_a_peer_with_a_small_buffer(way: Way) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview]
    contents = [rng.randbytes(rng.choice([1, 50, 700, 3000])) for _ in range(600)]
    loud = []
    for content in contents:
        silent = rng.random() < 0.4
        data = rng.choice(kinds)(content)
        op = way.write(data, silent=silent)
        if silent and isinstance(data, bytearray):
            data.clear()  # may be reused at once
        if not silent:
            loud.append((op, len(content)))
    expected, received = b"".join(contents), b""
    while len(received) < len(expected):
        received += await receive(
            way.peer, min(rng.randrange(1, 5000), len(expected) - len(received))
        )
    assert received == expected
    results = await collect(way.watcher, len(loud))
    assert [(op, op.size) for op in results] == loud
    assert all(op.error is None for op in results)
    statistics = way.watcher.statistics()
    assert (statistics.submitted, statistics.pending) == (600, 0)
    assert statistics.bytes_written == len(expected)
    assert way.watcher.pending(way.conn).queued_bytes == 0


async def test_S5_queued_small_writes_that_are_silent_deliver_nothing(
    stopped: Way, sendmsg: list[list[int]]
) -> None:
    scratch = bytearray(4)
    loud = []
    for number in range(20):
        scratch[:] = b"%04d" % number
        op = stopped.write(scratch if number % 2 else b"%04d" % number, silent=bool(number % 2))
        if not number % 2:
            loud.append(op)
    scratch.clear()
    await stopped.arrives(b"".join(b"%04d" % number for number in range(20)))
    assert await collect(stopped.watcher, 10) == loud
    assert len(sendmsg) == 1
    assert stopped.watcher.statistics().pending == 0


@pytest.mark.parametrize("how", CUTS)
async def test_S3_queued_small_write_cut_in_the_middle_leaves_the_others_alone(
    stopped: Way, how: str
) -> None:
    cut, timeout, error = CUTS[how]
    requests = []
    for number, data in enumerate(SMALL[:9]):
        requests.append(stopped.write(data, timeout=timeout if number in (0, 4, 8) else None))
    for number in (0, 4, 8):
        cut(stopped, requests[number])
    ended = await collect(stopped.watcher, 3)
    assert {id(op) for op in ended} == {id(requests[number]) for number in (0, 4, 8)}
    assert all(type(op.error) is error and op.size == 0 for op in ended)
    others = [number for number in range(9) if number % 4]
    await stopped.arrives(b"".join(SMALL[number] for number in others))
    assert await collect(stopped.watcher, 6) == [requests[number] for number in others]


async def test_queued_small_writes_that_are_sent_have_no_deadline_left(stopped: Way) -> None:
    requests = [stopped.write(data, timeout=10) for data in SMALL[:8]]
    await stopped.arrives(b"".join(SMALL[:8]))
    assert await collect(stopped.watcher, 8) == requests
    assert all(op.error is None for op in requests)
    assert stopped.watcher._deadlines.earliest() is None


@pytest.mark.parametrize("position", [0, 1, 4, 8])
@pytest.mark.parametrize("how", ["resized", "released"])
async def test_B2_queued_small_write_whose_buffer_is_gone_fails_alone(
    stopped: Way, position: int, how: str
) -> None:
    buffers = [bytearray(data) for data in SMALL[:9]]
    view = memoryview(bytearray(b"view"))
    contents: list[Any] = list(buffers)
    if how == "released":
        contents[position] = view
    requests = [stopped.write(data) for data in contents]
    if how == "resized":
        buffers[position].append(0)
    view.release()
    others = [number for number in range(9) if number != position]
    await stopped.arrives(b"".join(SMALL[number] for number in others))
    assert await collect(stopped.watcher, 9) == requests
    bad = requests[position]
    assert type(bad.error) is (BufferError if how == "resized" else ValueError)
    assert bad.size == 0
    assert all(requests[number].error is None for number in others)
    for buffer in buffers:
        buffer.append(0)  # raises BufferError if somebody holds a view


@pytest.mark.parametrize("how", CUTS)
async def test_T3_small_write_torn_in_a_queue_takes_those_behind_with_it(
    stopped: Way, how: str
) -> None:
    """The first of those that were sent together and got only a part of its bytes out."""
    cut, _, error = CUTS[how]
    timeout = 0.5 if how == "deadline" else 10
    parts = [bytes([number]) * 2999 for number in range(100)]
    requests = [stopped.write(part, timeout=timeout) for part in parts]
    await stopped.open()
    content = b""
    await settle(3)
    while not any(0 < op.size < 2999 for op in requests):
        content += await receive(stopped.peer, 1000)
        await settle(3)
    cut(stopped, next(op for op in requests if 0 < op.size < 2999))
    assert await collect(stopped.watcher, 100) == requests
    torn = next(op for op in requests if op.error is not None)
    position = requests.index(torn)
    assert all(op.size == 2999 for op in requests[:position])
    assert type(torn.error) is error
    assert 0 < torn.size < 2999
    for op in requests[position + 1 :]:
        assert_torn(op, torn.error)
    await stopped.arrives_and_ends(b"".join(parts)[len(content) : position * 2999 + torn.size])


async def test_queued_small_writes_to_a_peer_that_is_gone(stopped: Way) -> None:
    """Each has an error of its own, which the program may raise."""
    requests = [stopped.write(data) for data in SMALL[:10]]
    stopped.peer.close()
    assert await collect(stopped.watcher, 10) == requests
    assert all(type(op.error) is BrokenPipeError and op.size == 0 for op in requests)
    assert len({id(op.error) for op in requests}) == 10
    assert stopped.watcher.pending(stopped.conn).queued_bytes == 0


@pytest.mark.parametrize("whole", [False, True])
async def test_O2_D4_queued_small_writes_complete_when_their_connection_is_closed(
    stopped: Way, whole: bool
) -> None:
    requests = [stopped.write(data, timeout=10) for data in SMALL[:10]]
    if whole:
        stopped.watcher.close()
    else:
        stopped.watcher.free(stopped.conn)
    assert await collect(stopped.watcher, 10) == requests
    error = WatcherClosedError if whole else ConnectionFreedError
    assert all(type(op.error) is error and op.size == 0 for op in requests)
    assert len({id(op.error) for op in requests}) == 10


async def test_S3_queued_small_writes_among_others_keep_their_order(
    stopped: Way, tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"<file>")
    with path.open("rb") as file:
        requests = [
            stopped.write(b"1"),
            stopped.write(b"2"),
            stopped.writev([b"3", b"4"]),
            stopped.write(b"5"),
            stopped.write(b"6" * 300_000),
            stopped.write(b"7"),
            stopped.write(b"8"),
            stopped.watcher.sendfile(stopped.conn, file),
            stopped.write(b"9"),
            stopped.watcher.sendmsg(stopped.conn, [b"a", b"b"]),
            stopped.write(b"c"),
            stopped.write(b"d"),
            stopped.watcher.shutdown(stopped.conn),
        ]
        await stopped.open()
        assert await drained(stopped.peer) == b"12345" + b"6" * 300_000 + b"78<file>9abcd"
        assert await collect(stopped.watcher, 13) == requests
        assert all(op.error is None for op in requests)
        late = stopped.write(b"behind the end")
        assert await one(stopped.watcher) is late
        assert type(late.error) is BrokenPipeError


async def test_drain_waits_behind_queued_small_writes(stopped: Way) -> None:
    requests = [stopped.write(data) for data in SMALL[:4]]
    draining = asyncio.ensure_future(stopped.watcher.drain(stopped.conn))
    await settle(2)
    requests += [stopped.write(data) for data in SMALL[4:8]]
    assert not draining.done()
    await stopped.arrives(b"".join(SMALL[:8]))
    await asyncio.wait_for(draining, 10)
    assert await collect(stopped.watcher, 8) == requests


async def test_S4_queued_small_writes_wait_while_the_system_is_short_of_memory(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = Record.sendmsg, 0

    def short(*arguments: Any) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return original(*arguments)

    def short_send(*_: Any) -> int:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(Record, "sendmsg", short)
    monkeypatch.setattr(Record, "send", short_send)
    scratch = bytearray(b"silent")
    requests = [way.write(b"first"), way.write(b"second")]
    way.write(scratch, silent=True)
    scratch.clear()
    requests.append(way.write(b"last"))
    await way.arrives(b"firstsecondsilentlast")
    assert await collect(way.watcher, 3) == requests
    assert tries == 3
    assert way.watcher.pending(way.conn).queued_bytes == 0


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_queued_datagrams_stay_apart(
    watcher: Watcher, sendmsg: list[list[int]], kind: int
) -> None:
    ours, peer = unix_pair(kind)
    with peer:
        ours.setblocking(False)
        filling = 0
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x")
                filling += 1
        conn = watcher.delegate(ours)
        requests = [watcher.write(conn, data) for data in SMALL[:10]]
        assert not any(op.completed for op in requests)
        received = []
        async with asyncio.timeout(10):
            peer.setblocking(False)
            while len(received) < filling + 10:
                try:
                    received.append(peer.recv(1000))
                except BlockingIOError:
                    await asyncio.sleep(0)
        assert received == [b"x"] * filling + SMALL[:10]
        assert await collect(watcher, 10) == requests
        assert not sendmsg
        watcher.free(conn)


@pytest.fixture
def packets() -> Iterator[tuple[int, int]]:
    """A pipe in which each write(2) is a packet (O_DIRECT, pipe(2))."""
    pipe = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    yield pipe
    for fd in pipe:
        os.close(fd)


async def test_queued_writes_to_a_descriptor_of_packets_stay_apart(
    watcher: Watcher, packets: tuple[int, int]
) -> None:
    """As they do on a tun device."""
    source, sink = packets
    filling = 0
    with suppress(BlockingIOError):
        while True:
            os.write(sink, b"x")
            filling += 1
    conn = watcher.delegate(sink)
    requests = [watcher.write(conn, data) for data in SMALL[:5]]
    received = [os.read(source, 1000) for _ in range(filling)]
    async with asyncio.timeout(10):
        while sum(map(len, received)) < filling + sum(map(len, SMALL[:5])):
            try:
                received.append(os.read(source, 1000))
            except BlockingIOError:
                await asyncio.sleep(0)
    assert received == [b"x"] * filling + SMALL[:5]
    assert await collect(watcher, 5) == requests
    watcher.free(conn)
