"""The ends of a stream: shutdown() ends the own side, notify_hangup() tells of the peer's."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import (
    LONG,
    LoopCalls,
    arrived,
    drained,
    events,
    fill,
    half_closed,
    hung_up,
    ready,
    receive,
    small_pair,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair
from tests.test_connect import (
    BAD_TIMES,
    Ending,
    assert_balanced,
    assert_nothing_more,
    every_ending,
    single_endings,
)

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

CLOSING = (ConnectionFreedError, WatcherClosedError)
Pair = tuple[Connection, socket.socket]


@pytest.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, watcher: Watcher) -> Iterator[Pair]:
    """A connection, and its peer."""
    ours, peer = request.param()
    with peer:
        yield watcher.delegate(ours), peer


@pytest.fixture
def tcp(watcher: Watcher) -> Iterator[Pair]:
    ours, peer = tcp_pair()
    with peer:
        yield watcher.delegate(ours), peer


@pytest.fixture
def stuck(watcher: Watcher) -> Iterator[tuple[Connection, socket.socket, Operation]]:
    """A connection, its peer, and a write that waits until the peer receives."""
    ours, peer = small_pair()
    conn = watcher.delegate(ours)
    with peer:
        write = watcher.write(conn, bytes(LONG))
        assert write is not None
        yield conn, peer, write


async def read(watcher: Watcher, conn: Connection, *args: Any) -> Operation:
    """The next read of a connection on which nothing else is under way."""
    op = watcher.read(conn, *args)
    assert await one(watcher) is op
    return op


async def came(conn: Connection, peer: socket.socket, data: bytes) -> None:
    """Send, and wait until it is there, and the loop has been told."""
    before = unread(conn)
    peer.sendall(data)
    arrived(conn, before + len(data))  # before the loop runs: a read would take it
    await settle(5)


# --- shutdown() -----------------------------------------------------------------------------------


async def test_shutdown(watcher: Watcher, pair: Pair) -> None:
    """The peer sees the end, and its data can still be read."""
    conn, peer = pair
    context = object()
    op = watcher.shutdown(conn, context=context)
    assert watcher.poll_io() == [op]
    assert (op.type, op.error, op.size, op.data, op.more) == (OpType.SHUTDOWN, None, 0, b"", False)
    assert op.context is context
    assert op.conn is conn
    ready(peer)
    assert peer.recv(1) == b""
    peer.sendall(b"still")
    assert (await read(watcher, conn)).data == b"still"
    peer.close()
    assert type((await read(watcher, conn)).error) is EndOfStreamError
    assert_balanced(watcher)


async def test_shutdown_leaves_a_pending_read_alone(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    pending = watcher.read(conn)
    await settle(2)
    op = watcher.shutdown(conn)
    assert await one(watcher) is op
    ready(peer)
    assert peer.recv(1) == b""
    peer.sendall(b"data")
    assert await one(watcher) is pending
    assert pending.data == b"data"


async def test_shutdown_delegates_a_socket(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        op = watcher.shutdown(ours)
        assert watcher.poll_io() == [op]
        ready(peer)
        assert peer.recv(1) == b""


async def test_S3_shutdown_stands_behind_the_queued_writes(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, peer, write = stuck
    ops = [write, watcher.writev(conn, [b"a", b"b"]), watcher.shutdown(conn)]
    await settle(3)
    assert watcher.poll_io() == []
    assert watcher.pending(conn).requests == 3
    assert (await receive(peer, LONG + 2)).endswith(b"\0ab")
    assert await collect(watcher, 3) == ops
    ready(peer)
    assert peer.recv(1) == b""
    assert not any(op.error for op in ops)
    await assert_nothing_more(watcher)


async def test_S3_writes_behind_a_shutdown_fail(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, peer, write = stuck
    ops = [write, watcher.shutdown(conn), watcher.write(conn, b"x"), watcher.shutdown(conn)]
    ops.append(watcher.write(conn, b"y", silent=True))
    await receive(peer, LONG)
    assert await collect(watcher, 5) == ops
    assert [type(op.error) for op in ops[::2]] == [type(None), BrokenPipeError, BrokenPipeError]
    assert (ops[1].error, ops[3].error) == (None, None)
    peer.sendall(b"data")  # the other direction, and its orderly end, are as they were
    assert (await read(watcher, conn)).data == b"data"
    peer.close()
    assert type((await read(watcher, conn)).error) is EndOfStreamError


async def test_shutdown_drain_waits_for_it(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, peer, write = stuck
    shutdown = watcher.shutdown(conn)
    draining = asyncio.ensure_future(watcher.drain(conn))
    await settle(3)
    assert not draining.done()
    await receive(peer, LONG)
    async with asyncio.timeout(10):
        await draining
    assert shutdown.completed
    assert await collect(watcher, 2) == [write, shutdown]


@every_ending
async def test_D1_queued_shutdown_ends_once(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation], ending: Ending
) -> None:
    conn, peer, write = stuck
    op = watcher.shutdown(conn, **ending.times())
    ending.act(watcher, op)
    results = await collect(watcher, 2 if ending.error in CLOSING else 1)
    assert results[-1] is op
    assert {type(result.error) for result in results} == {ending.error}
    assert watcher.cancel(op) is False
    if ending.error not in CLOSING:  # and then it is not carried out
        await receive(peer, LONG)
        assert await one(watcher) is write
        assert watcher.write(conn, b"more").error is None
        assert await receive(peer, 4) == b"more"
        await one(watcher)
    await assert_nothing_more(watcher)


@single_endings
async def test_S3_shutdown_in_the_middle_ends_alone(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation], ending: Ending
) -> None:
    conn, peer, write = stuck
    ops = [watcher.shutdown(conn, **ending.times()), watcher.write(conn, b"x")]
    ops.append(watcher.shutdown(conn))
    ending.act(watcher, ops[0])
    assert await one(watcher) is ops[0]
    assert (await receive(peer, LONG + 1))[-1:] == b"x"
    assert await collect(watcher, 3) == [write, *ops[1:]]
    ready(peer)
    assert peer.recv(1) == b""
    await assert_nothing_more(watcher)


@single_endings
async def test_T3_shutdown_behind_a_torn_write(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation], ending: Ending
) -> None:
    """A torn message must not look whole by an end in order."""
    conn, peer, first = stuck
    await receive(peer, LONG)
    assert await one(watcher) is first
    write = watcher.write(conn, bytes(LONG), **ending.times())
    behind = watcher.shutdown(conn)
    ending.act(watcher, write)
    await until(lambda: write.completed)
    between = watcher.shutdown(conn)
    assert await collect(watcher, 3) == [write, behind, between]
    assert type(write.error) is ending.error
    assert write.size > 0
    for op in (behind, between):
        assert type(op.error) is OperationCancelledError
        assert op.error.__cause__ is not None
    await receive(peer, write.size)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    op = watcher.shutdown(conn)  # now the program knows
    assert watcher.poll_io() == [op]
    ready(peer)
    assert peer.recv(1) == b""
    await assert_nothing_more(watcher)


@single_endings
async def test_shutdown_goes_on_when_the_write_before_it_is_gone(
    watcher: Watcher, ending: Ending
) -> None:
    """It need not wait until there is room to write, and nothing of that write was sent."""
    ours, peer = small_pair()
    filled = fill(ours)
    conn = watcher.delegate(ours)
    with peer:
        write = watcher.write(conn, b"data", **ending.times())
        ops = [write, *(watcher.shutdown(conn) for _ in range(20))]
        assert not any(op.completed for op in ops)
        ending.act(watcher, write)
        assert await collect(watcher, 21) == ops
        assert type(write.error) is ending.error
        assert not any(op.error for op in ops[1:])
        assert await drained(peer) == bytes(filled)
    await assert_nothing_more(watcher)


async def test_shutdown_goes_on_when_the_write_before_it_fails(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    """The peer is gone: both end, each once."""
    conn, peer, write = stuck
    shutdown = watcher.shutdown(conn)
    peer.close()
    assert await collect(watcher, 2) == [write, shutdown]
    assert isinstance(write.error, OSError)
    assert shutdown.error is not None
    await assert_nothing_more(watcher)


async def test_T1_shutdown_that_is_overdue(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation], tcp: Pair
) -> None:
    """It is done if nothing is before it."""
    behind = watcher.shutdown(stuck[0], timeout=0)
    alone = watcher.shutdown(tcp[0], deadline=asyncio.get_running_loop().time())
    assert watcher.poll_io() == [behind, alone]
    assert type(behind.error) is DeadlineExceededError
    assert alone.error is None
    ready(tcp[1])
    assert tcp[1].recv(1) == b""


async def test_D1_shutdown_survives_a_cancelled_wait_io(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, peer, write = stuck
    shutdown = watcher.shutdown(conn)
    waiting = asyncio.ensure_future(watcher.wait_io())
    await settle(2)
    waiting.cancel()
    await asyncio.wait([waiting])
    await receive(peer, LONG)
    assert await collect(watcher, 2) == [write, shutdown]
    await assert_nothing_more(watcher)


async def test_shutdown_of_what_is_not_connected(watcher: Watcher, tcp: Pair) -> None:
    """The state of a connection arrives as a result."""
    conn, peer = tcp
    reset(peer)
    await until(lambda: hung_up(conn))
    for socket_ in (conn, socket.socket(), socket.socket(type=socket.SOCK_DGRAM)):
        op = watcher.shutdown(socket_)
        assert watcher.poll_io() == [op]
        assert type(op.error) is OSError
        assert op.error.errno == errno.ENOTCONN
    watcher.free(conn)
    op = watcher.shutdown(conn)
    assert watcher.poll_io() == [op]
    assert type(op.error) is ConnectionFreedError
    assert_balanced(watcher)


async def test_shutdown_twice(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    ops = [watcher.shutdown(conn), watcher.shutdown(conn)]
    assert watcher.poll_io() == ops
    assert [op.error for op in ops] == [None, None]
    ready(peer)
    assert peer.recv(1) == b""


async def test_S3_shutdown_behind_a_request_of_another_thread(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    await asyncio.to_thread(watcher.threadsafe.write, conn, b"data")
    watcher.shutdown(conn)
    assert [op.type for op in await collect(watcher, 2)] == [OpType.WRITE, OpType.SHUTDOWN]
    assert peer.recv(10) == b"data"
    assert peer.recv(10) == b""


async def test_shutdown_behind_more_than_one_turn_writes(watcher: Watcher) -> None:
    """What was put off comes in its turn, and the shutdown behind it."""
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    ops = [watcher.write(conn, bytes(LONG)) for _ in range(20)]
    ops.append(watcher.shutdown(conn))
    with peer:
        await receive(peer, 20 * LONG)
        assert await collect(watcher, 21) == ops
        ready(peer)
        assert peer.recv(1) == b""


# --- notify_hangup() ------------------------------------------------------------------------------


def shut(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def close(peer: socket.socket) -> None:
    peer.close()


@pytest.fixture(params=[shut, close, reset])
def hang_up(request: pytest.FixtureRequest) -> Callable[[socket.socket], None]:
    """The ways of a peer to go. A reset of a Unix socket is a close."""
    way: Callable[[socket.socket], None] = request.param
    return way


async def test_hangup(
    watcher: Watcher, pair: Pair, hang_up: Callable[[socket.socket], None]
) -> None:
    """No read is pending."""
    conn, peer = pair
    context = object()
    op = watcher.notify_hangup(conn, context=context)
    await settle(5)
    assert watcher.poll_io() == []
    assert watcher.pending(conn).requests == 1
    hang_up(peer)
    assert await one(watcher) is op
    assert (op.type, op.error, op.size, op.data, op.more) == (OpType.HANGUP, None, 0, b"", False)
    assert op.context is context
    assert op.conn is conn
    assert watcher.pending(conn).requests == 0
    await assert_nothing_more(watcher)


async def test_hangup_that_has_happened_already(
    watcher: Watcher, pair: Pair, hang_up: Callable[[socket.socket], None]
) -> None:
    """As often as it is asked; also when the end has been read."""
    conn, peer = pair
    hang_up(peer)
    await until(lambda: half_closed(conn))
    for _ in range(2):
        op = watcher.notify_hangup(conn)
        assert watcher.poll_io() == [op]
        assert op.error is None
    assert (await read(watcher, conn)).error is not None
    op = watcher.notify_hangup(conn)
    assert await one(watcher) is op
    await assert_nothing_more(watcher)


async def test_hangup_is_not_told_of_errors_that_nobody_reads(watcher: Watcher, tcp: Pair) -> None:
    """The queue of them shows an error in every event, and the connection is well (socket(7))."""
    conn, peer = tcp
    sent = 1 << 1 | 1 << 4 | 1 << 11  # SOF_TIMESTAMPING_*, linux/net_tstamp.h
    conn.setsockopt(socket.SOL_SOCKET, 37, sent)  # SO_TIMESTAMPING
    watcher.write(conn, b"x")
    assert (await one(watcher)).error is None
    assert peer.recv(9) == b"x"
    await until(lambda: bool(events(conn) & select.POLLERR))
    op = watcher.notify_hangup(conn)
    peer.sendall(b"data")
    watcher.read(conn)
    assert (await one(watcher)).data == b"data"
    end = watcher.read(conn)
    await settle()
    assert not op.completed
    peer.close()
    assert set(await collect(watcher, 2)) == {op, end}
    assert op.error is None
    assert type(end.error) is EndOfStreamError


async def test_O4_hangup_takes_nothing(
    watcher: Watcher, pair: Pair, hang_up: Callable[[socket.socket], None]
) -> None:
    """The end is still told to the read that comes, and a reset is not an end."""
    conn, peer = pair
    is_reset = hang_up is reset and conn.family is socket.AF_INET
    watcher.notify_hangup(conn)
    hang_up(peer)
    assert (await one(watcher)).type is OpType.HANGUP
    await settle(5)
    expected = ConnectionResetError if is_reset else EndOfStreamError
    for _ in range(2):
        assert type((await read(watcher, conn)).error) is expected


@pytest.mark.parametrize("order", ["asked first", "data first"])
async def test_hangup_with_data_unread(watcher: Watcher, pair: Pair, order: str) -> None:
    """The data is not lost. With the loop poller it has to be read first, or else asked again."""
    conn, peer = pair
    if order == "data first":
        await came(conn, peer, b"data")
    op = watcher.notify_hangup(conn)
    if order == "asked first":
        await came(conn, peer, b"data")
    assert not op.completed
    shut(peer)
    await until(lambda: half_closed(conn))
    results: list[Operation] = []
    if watcher.statistics().poller == "epoll":
        results = await collect(watcher, 1)
    data = watcher.read(conn)
    results += await collect(watcher, 2 - len(results))
    assert set(results) == {op, data}
    assert (op.error, data.data) == (None, b"data")
    assert type((await read(watcher, conn)).error) is EndOfStreamError
    await assert_nothing_more(watcher)


async def test_hangup_once_all_of_the_data_has_been_read(watcher: Watcher, pair: Pair) -> None:
    """In several reads, the socket not empty after the first; data comes in between."""
    conn, peer = pair
    op = watcher.notify_hangup(conn)
    await came(conn, peer, b"123456")
    assert bytes((await read(watcher, conn, bytearray(2))).data) == b"12"
    await settle(5)
    await came(conn, peer, b"78")
    assert bytes((await read(watcher, conn, bytearray(3))).data) == b"345"
    await settle(5)
    assert (await read(watcher, conn)).data == b"678"
    await settle(5)
    assert not op.completed
    shut(peer)
    assert await one(watcher) is op
    await assert_nothing_more(watcher)


async def test_hangup_an_armed_read_takes_the_data(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    armed, hangup = watcher.read(conn, multishot=True), watcher.notify_hangup(conn)
    for number in range(5):
        peer.sendall(b"%d" % number)
        assert (await one(watcher)).data == b"%d" % number
    assert not hangup.completed
    close(peer)
    assert set(await collect(watcher, 2)) == {armed, hangup}
    assert type(armed.error) is EndOfStreamError
    assert hangup.error is None
    await assert_nothing_more(watcher)


async def test_hangup_after_an_armed_read_was_cancelled(watcher: Watcher, pair: Pair) -> None:
    """Whatever the poller watches for the read, it does for the hang-up."""
    conn, peer = pair
    armed, hangup = watcher.read(conn, multishot=True), watcher.notify_hangup(conn)
    await came(conn, peer, b"data")
    watcher.cancel(armed)
    assert [op.data for op in await collect(watcher, 2)] == [b"data", b""]
    await settle(5)
    close(peer)
    assert await one(watcher) is hangup
    await assert_nothing_more(watcher)


async def test_hangup_with_reads_of_every_kind_queued(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    reads = [watcher.read(conn), watcher.read_full(conn, bytearray(4))]
    hangup = watcher.notify_hangup(conn)
    reads += [watcher.read_until(conn, b"\n"), watcher.read(conn)]
    await came(conn, peer, b"a")
    await came(conn, peer, b"1234line\n")
    assert await collect(watcher, 3) == reads[:3]
    assert not hangup.completed
    close(peer)
    assert set(await collect(watcher, 2)) == {hangup, reads[3]}
    assert type(reads[3].error) is EndOfStreamError
    await assert_nothing_more(watcher)


async def test_hangup_with_bytes_kept_from_a_frame(watcher: Watcher, pair: Pair) -> None:
    """They are read, and no event tells of them; the one of the end may not be lost meanwhile."""
    conn, peer = pair
    hangup, line = watcher.notify_hangup(conn), watcher.read_until(conn, b"\n")
    await came(conn, peer, b"line\nrest")
    assert await one(watcher) is line
    close(peer)
    assert await one(watcher) is hangup
    assert (await read(watcher, conn)).data == b"rest"
    assert type((await read(watcher, conn)).error) is EndOfStreamError


async def test_hangup_while_a_write_waits(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, peer, write = stuck
    hangup = watcher.notify_hangup(conn)
    await settle(3)
    close(peer)
    assert set(await collect(watcher, 2)) == {hangup, write}
    assert hangup.error is None
    assert isinstance(write.error, BrokenPipeError | ConnectionResetError)
    await assert_nothing_more(watcher)


async def test_hangup_does_not_come_by_an_own_shutdown(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    hangup = watcher.notify_hangup(conn)
    shutdown = watcher.shutdown(conn)
    assert await one(watcher) is shutdown
    peer.sendall(b"data")
    assert (await read(watcher, conn)).data == b"data"
    assert not hangup.completed
    shut(peer)
    assert await one(watcher) is hangup


async def test_S3_hangups_complete_in_order(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    ops = [watcher.notify_hangup(conn, context=number) for number in range(5)]
    assert watcher.pending(conn).requests == 5
    assert watcher.cancel(ops.pop(2))
    assert type((await one(watcher)).error) is OperationCancelledError
    close(peer)
    assert await collect(watcher, 4) == ops
    await assert_nothing_more(watcher)


@pytest.mark.parametrize("data", [b"", b"data"], ids=["", "unread"])
async def test_S3_hangups_complete_in_order_also_if_it_has_happened_already(
    watcher: Watcher, pair: Pair, data: bytes
) -> None:
    conn, peer = pair
    first = watcher.notify_hangup(conn)
    await came(conn, peer, data)
    close(peer)
    await until(lambda: half_closed(conn))
    second = watcher.notify_hangup(conn)
    assert await collect(watcher, 2) == [first, second]


@every_ending
async def test_D1_hangup_ends_once(watcher: Watcher, pair: Pair, ending: Ending) -> None:
    conn, peer = pair
    others = [watcher.notify_hangup(conn)]
    op = watcher.notify_hangup(conn, **ending.times())
    others.append(watcher.notify_hangup(conn))
    await settle(2)
    ending.act(watcher, op)
    if ending.error in CLOSING:
        assert await collect(watcher, 3) == [others[0], op, others[1]]
        assert {type(one.error) for one in (op, *others)} == {ending.error}
    else:
        assert await one(watcher) is op
        assert type(op.error) is ending.error
        assert not any(other.completed for other in others)
        close(peer)
        assert await collect(watcher, 2) == others
    assert watcher.cancel(op) is False
    await assert_nothing_more(watcher)


async def test_O2_free_completes_reads_first(
    watcher: Watcher, stuck: tuple[Connection, socket.socket, Operation]
) -> None:
    conn, _, write = stuck
    hangup, pending = watcher.notify_hangup(conn), watcher.read(conn)
    watcher.free(conn)
    results = await collect(watcher, 3)
    assert set(results[:2]) == {hangup, pending}
    assert results[2] is write
    assert {type(op.error) for op in results} == {ConnectionFreedError}
    await assert_nothing_more(watcher)


async def test_T1_hangup_that_is_overdue(watcher: Watcher, pair: Pair) -> None:
    """It looks once."""
    conn, peer = pair
    for times in ({"timeout": 0}, {"deadline": asyncio.get_running_loop().time()}):
        op = watcher.notify_hangup(conn, **times)
        assert watcher.poll_io() == [op]
        assert type(op.error) is DeadlineExceededError
    close(peer)
    await until(lambda: half_closed(conn))
    op = watcher.notify_hangup(conn, timeout=0)
    assert watcher.poll_io() == [op]
    assert op.error is None
    await assert_nothing_more(watcher)


async def test_D1_hangup_survives_a_cancelled_wait_io(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    op = watcher.notify_hangup(conn)
    waiting = asyncio.ensure_future(watcher.wait_io())
    await settle(2)
    close(peer)
    await until(lambda: op.completed)
    waiting.cancel()
    await asyncio.wait([waiting])
    results = [] if waiting.cancelled() else waiting.result()
    assert results + watcher.poll_io() == [op]
    await assert_nothing_more(watcher)


async def test_O3_hangup_keeps_its_connection(watcher: Watcher) -> None:
    """Nobody else holds it."""
    ours, peer = unix_pair()
    watcher.notify_hangup(ours)
    del ours
    gc.collect()
    await settle(3)
    assert watcher.statistics().connections == 1
    close(peer)
    assert (await one(watcher)).type is OpType.HANGUP


async def test_hangup_after_one_that_was_given_up(watcher: Watcher, pair: Pair) -> None:
    """Reads go their usual way in between, and their edges tell no hang-up."""
    conn, peer = pair
    watcher.cancel(watcher.notify_hangup(conn))
    await one(watcher)
    pending = watcher.read(conn)
    peer.sendall(b"data")
    assert await one(watcher) is pending
    op = watcher.notify_hangup(conn)
    await settle(5)
    assert not op.completed
    close(peer)
    assert await one(watcher) is op


async def test_S3_hangup_requested_behind_another_thread(watcher: Watcher, pair: Pair) -> None:
    conn, peer = pair
    await asyncio.to_thread(watcher.threadsafe.read, conn)
    op = watcher.notify_hangup(conn)
    assert not op.completed
    close(peer)
    assert op in await collect(watcher, 2)
    watcher.threadsafe.read(conn)
    late = watcher.notify_hangup(conn)
    watcher.close()
    results = await collect(watcher, 2)
    assert late in results
    assert {type(result.error) for result in results} == {WatcherClosedError}
    assert_balanced(watcher)


async def test_hangup_of_pipes(watcher: Watcher) -> None:
    """Both ends: the writer is gone, or the reader."""
    for ours, peer in (os.pipe(), os.pipe()[::-1]):
        conn = watcher.delegate(ours)
        op = watcher.notify_hangup(conn)
        await settle(5)
        assert not op.completed
        os.close(peer)
        assert await one(watcher) is op
        watcher.free(conn)
        os.close(ours)


async def test_hangup_of_a_freed_connection(watcher: Watcher, pair: Pair) -> None:
    conn, _ = pair
    watcher.free(conn)
    op = watcher.notify_hangup(conn)
    assert watcher.poll_io() == [op]
    assert type(op.error) is ConnectionFreedError
    assert_balanced(watcher)


async def test_hangup_unread_data_does_not_keep_the_loop_busy() -> None:
    """Level-triggered: the descriptor is not watched while data waits that nobody reads."""
    calls = LoopCalls(asyncio.get_running_loop())
    async with Watcher(poller="loop") as watcher:
        ours, peer = unix_pair()
        conn = watcher.delegate(ours)
        watcher.notify_hangup(conn)
        assert conn.fileno() in calls.armed("reader")
        await came(conn, peer, b"data")
        assert conn.fileno() not in calls.armed("reader")
        await read(watcher, conn)
        assert conn.fileno() in calls.armed("reader")
        peer.close()
        await one(watcher)
        await settle(5)
        assert conn.fileno() not in calls.armed("reader")
        watcher.free(conn)


async def test_D1_hangup_that_the_loop_cannot_watch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with Watcher(poller="loop") as watcher:
        ours, peer = unix_pair()
        conn = watcher.delegate(ours)
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", fail)
        op = watcher.notify_hangup(conn)
        assert await one(watcher, within=1) is op
        assert isinstance(op.error, OSError)
        assert op.error.errno == errno.ENOSPC
        watcher.free(conn)
        peer.close()


# --- Misuse of both -------------------------------------------------------------------------------

both = pytest.mark.parametrize("name", ["shutdown", "notify_hangup"])


@both
@pytest.mark.parametrize(("times", "error"), BAD_TIMES)
async def test_S2_with_a_bad_time(name: str, times: dict[str, Any], error: type[Exception]) -> None:
    ours, peer = unix_pair()
    with ours, peer:
        async with Watcher() as watcher:
            with pytest.raises(error):
                getattr(watcher, name)(ours, **times)
            assert (watcher.statistics().submitted, watcher.statistics().connections) == (0, 0)
        assert ours.fileno() >= 0
        assert not events(peer) & 1


@both
async def test_S2_of_what_cannot(name: str) -> None:
    ours, peer = unix_pair()
    async with Watcher() as watcher, Watcher() as other:
        conn = other.delegate(ours)
        with socket.create_server(("127.0.0.1", 0)) as listener, peer:
            for wrong in (conn, listener, object(), None, 5):
                with pytest.raises(UnsupportedConnectionError):
                    getattr(watcher, name)(wrong)
            assert listener.fileno() >= 0
            assert watcher.statistics().submitted == other.statistics().submitted == 0
            assert not half_closed(peer)
            watcher.close()
            with pytest.raises(WatcherClosedError):
                getattr(watcher, name)(peer)
            assert peer.fileno() >= 0
        other.free(conn)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_S2_hangup_of_what_is_no_stream(kind: int) -> None:
    ours, peer = unix_pair(kind)
    with ours, peer:
        async with Watcher() as watcher:
            with pytest.raises(UnsupportedConnectionError, match="no stream"):
                watcher.notify_hangup(ours)
            assert watcher.statistics().connections == 0
        assert ours.fileno() >= 0
