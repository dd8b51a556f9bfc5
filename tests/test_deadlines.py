"""Deadlines as a program sees them: rules T1 to T4.

The clock of a noisy machine bounds from one side only: nothing may expire early, and late is
whatever the machine makes of it, so no test depends on something being in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import socket
import time
import weakref
from typing import Any

import pytest

from aiogaio import (
    AioGaioError,
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    Operation,
    OperationCancelledError,
    Watcher,
)
from tests.probes import (
    LONG,
    LoopTimers,
    bounded,
    collecting_by_hand,
    drained,
    fill,
    no_loop_errors,
    ready,
    receive,
    small_pair,
    traced,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

FRACTIONS = [0.0014, 0.0101, 0.0104, 0.0149, 0.0204, 0.0333]
"""A loop that rounds to milliseconds would be early with some of these."""


class Context:
    """Something that can be watched as it goes; an operation holds it while it lives."""


# --- T1: when ------------------------------------------------------------------------------------


async def test_T1_a_timeout_is_never_early(watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    pairs = [unix_pair() for _ in FRACTIONS]
    due: dict[float, tuple[float, float]] = {}
    for timeout, (ours, _) in zip(FRACTIONS, pairs, strict=True):
        due[timeout] = loop.time() + timeout, time.monotonic() + timeout
        watcher.read(ours, context=timeout, timeout=timeout)
    expired: set[float] = set()
    while len(expired) < len(FRACTIONS):
        results = await bounded(watcher.wait_io())
        now, monotonic = loop.time(), time.monotonic()
        for op in results:
            assert isinstance(op.error, DeadlineExceededError)
            assert now >= due[op.context][0]
            assert monotonic >= due[op.context][1]
            expired.add(op.context)
    for _, peer in pairs:
        peer.close()


async def test_T1_a_deadline_is_never_early(watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    pairs = [unix_pair() for _ in FRACTIONS]
    base = loop.time()
    for fraction, (ours, _) in zip(FRACTIONS, pairs, strict=True):
        watcher.read(ours, context=base + fraction, deadline=base + fraction)
    expired: set[float] = set()
    while len(expired) < len(FRACTIONS):
        results = await bounded(watcher.wait_io())
        now = loop.time()
        for op in results:
            assert isinstance(op.error, DeadlineExceededError)
            assert now >= op.context
            assert time.monotonic() >= op.context
            expired.add(op.context)
    for _, peer in pairs:
        peer.close()


async def test_T1_a_timeout_counts_from_the_call(watcher: Watcher) -> None:
    """A loop's clock may stand still during a callback; the timeout still runs from the call."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn, timeout=10)
        await settle(3)
        time.sleep(0.05)  # a busy callback, not a wait
        called = time.monotonic()
        op = watcher.write(conn, bytes(LONG * 8), timeout=0.06)
        assert await one(watcher) is op
        assert time.monotonic() >= called + 0.06
        assert op is not None
        assert isinstance(op.error, DeadlineExceededError)


async def test_T1_an_earlier_deadline_submitted_later_is_kept(watcher: Watcher) -> None:
    pairs = [unix_pair() for _ in range(4)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    base = asyncio.get_running_loop().time()
    for conn, later in zip(conns, (3600, 0.03, 1800, 0.02), strict=True):
        watcher.read(conn, context=later, deadline=base + later)
    assert {op.context for op in await collect(watcher, 2)} == {0.02, 0.03}
    watcher.read(conns[1], context=0.01, timeout=0.01)
    assert (await one(watcher)).context == 0.01
    assert watcher.statistics().pending == 2
    for _, peer in pairs:
        peer.close()
    assert sorted(op.context for op in await collect(watcher, 2)) == [1800, 3600]


async def test_T1_deadlines_expire_in_their_order(watcher: Watcher) -> None:
    """Also those that the loop finds together, after it was kept busy."""
    pairs = [unix_pair() for _ in range(5)]
    base = asyncio.get_running_loop().time() + 0.05
    later = [0.003, 0.001, 0.005, 0.002, 0.004]
    for (ours, _), seconds in zip(pairs, later, strict=True):
        watcher.read(ours, context=seconds, deadline=base + seconds)
    now = time.monotonic()
    if asyncio.get_running_loop().time() < base and now < base:
        time.sleep(base + 0.01 - now)
        assert [op.context for op in await collect(watcher, 5)] == sorted(later)
    for _, peer in pairs:
        peer.close()


async def test_T1_the_earlier_deadline_goes_and_the_later_one_is_kept(watcher: Watcher) -> None:
    """The timer that stood for the earlier one must not take the later one with it."""
    (ours, peer), (ours2, peer2) = unix_pair(), unix_pair()
    with peer, peer2:
        first = watcher.read(ours, timeout=0.02)
        second = watcher.read(ours2, timeout=0.04)
        watcher.cancel(first)
        assert await collect(watcher, 2) == [first, second]
        assert isinstance(second.error, DeadlineExceededError)


async def test_T1_a_completed_operation_does_not_expire_later(watcher: Watcher) -> None:
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with peer, other_peer:
        conn = watcher.delegate(ours)
        for timeout in (0.03, 0.3, 3):
            quick = watcher.read(conn, timeout=timeout)
            cancelled = watcher.read(conn, timeout=timeout)
            watcher.cancel(cancelled)
            peer.sendall(b"x")
            results = await collect(watcher, 2)
            assert set(results) == {quick, cancelled}
            if quick.error is not None or isinstance(cancelled.error, DeadlineExceededError):
                watcher.read(conn)  # a machine as slow as that gets more time
                await one(watcher)
                continue
            clock = watcher.read(others, timeout=timeout + 0.01)
            assert await collect(watcher, 1) == [clock], "an operation came twice"
            assert (quick.error, quick.size) == (None, 1)
            assert isinstance(cancelled.error, OperationCancelledError)
            break
        else:
            raise AssertionError("no operation was quicker than its deadline")


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**12])
async def test_T1_an_endless_timeout_does_not_expire(watcher: Watcher, timeout: float) -> None:
    (ours, peer), (ours2, peer2) = unix_pair(), unix_pair()
    with peer, peer2:
        async with no_loop_errors():
            endless = watcher.read(ours, timeout=timeout)
            watcher.read(ours2, timeout=0.01)
            assert isinstance((await one(watcher)).error, DeadlineExceededError)
            assert not endless.completed
            peer.sendall(b"x")
            assert await one(watcher) is endless
            assert endless.data == b"x"
            endless = watcher.read(ours, deadline=timeout)
            await settle()
            assert not endless.completed
            watcher.cancel(endless)
            assert await one(watcher) is endless


# --- T1: deadlines already past -------------------------------------------------------------------


def already_past() -> list[dict[str, float]]:
    now = asyncio.get_running_loop().time()
    return [{"timeout": 0}, {"timeout": 0.0}, {"deadline": now}, {"deadline": now - 100}]


async def test_T1_past_deadline_with_data_there_reads_it(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        for past in already_past():
            peer.sendall(b"data")
            op = watcher.read(conn, **past)
            assert op.completed
            assert watcher.poll_io() == [op]
            assert (op.error, op.data) == (None, b"data")

            peer.sendall(b"full")
            op = watcher.read_full(conn, bytearray(4), **past)
            assert watcher.poll_io() == [op]
            assert (op.error, bytes(op.data)) == (None, b"full")


async def test_T1_past_deadline_is_attempted_though_the_poller_has_not_spoken(
    watcher: Watcher,
) -> None:
    """The socket was empty when last looked at; what has come since is there to be had."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn)
        await settle(3)
        peer.sendall(b"short")
        assert (await one(watcher)).data == b"short"
        await settle(3)
        peer.sendall(b"more")
        op = watcher.read(conn, timeout=0)
        assert op.completed, "the call has not attempted it"
        assert watcher.poll_io() == [op]
        assert (op.error, op.data) == (None, b"more")


async def test_T1_past_deadline_without_data_fails_at_once(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        for past in already_past():
            op = watcher.read(conn, **past)
            assert op.completed
            assert watcher.poll_io() == [op]
            assert isinstance(op.error, DeadlineExceededError)
            assert op.size == 0

            peer.sendall(b"abc")
            op = watcher.read_full(conn, bytearray(8), **past)
            assert watcher.poll_io() == [op]
            assert isinstance(op.error, DeadlineExceededError)
            assert (op.size, bytes(op.data)) == (3, b"abc")
        watcher.read(conn)
        peer.sendall(b"usable")
        assert (await one(watcher)).data == b"usable"


async def test_T1_past_deadline_writes_what_the_socket_takes(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        for past in already_past():
            op = watcher.write(conn, b"small", **past)
            assert watcher.poll_io() == [op]
            assert (op.error, op.size) == (None, 5)
            assert await receive(peer, 5) == b"small"

            op = watcher.write(conn, b"x" * LONG, **past)
            assert op.completed
            assert watcher.poll_io() == [op]
            assert isinstance(op.error, DeadlineExceededError)
            assert 0 < op.size < LONG
            assert await receive(peer, op.size) == b"x" * op.size


async def test_T1_past_deadline_write_to_a_full_socket_sends_nothing(watcher: Watcher) -> None:
    ours, peer = small_pair()
    filled = fill(ours)
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.write(conn, b"late", timeout=0)
        assert watcher.poll_io() == [op]
        assert (type(op.error), op.size) == (DeadlineExceededError, 0)
        watcher.write(conn, b"next")  # not torn: nothing was sent
        assert await receive(peer, filled + 4) == bytes(filled) + b"next"
        assert (await one(watcher)).error is None


async def test_T1_past_deadline_silent_write(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        assert watcher.write(conn, b"small", silent=True, timeout=0) is None
        assert watcher.poll_io() == []
        op = watcher.write(conn, bytes(LONG), silent=True, timeout=0)
        assert op is not None
        assert watcher.poll_io() == [op]
        assert isinstance(op.error, DeadlineExceededError)
        assert 0 < op.size < LONG


async def test_T1_past_deadline_accepts_who_has_knocked(watcher: Watcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        listener = watcher.delegate(sock)
    op = watcher.accept(listener, timeout=0)
    assert watcher.poll_io() == [op]
    assert isinstance(op.error, DeadlineExceededError)
    assert op.accepted is None
    with socket.create_connection(address) as client:
        ready(listener)
        op = watcher.accept(listener, timeout=0)
        assert watcher.poll_io() == [op]
        assert op.error is None
        assert op.address == client.getsockname()
        assert isinstance(op.accepted, Connection)
    op = watcher.accept(listener)
    await settle(3)
    with socket.create_connection(address):
        assert await one(watcher) is op
        assert op.error is None


async def test_T1_past_deadline_behind_another_read_is_not_attempted(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        first = watcher.read(conn)
        await settle(3)
        peer.sendall(b"for the first")
        hasty = []
        for past in already_past():
            op = watcher.read(conn, **past)
            assert op.completed
            assert (type(op.error), op.size) == (DeadlineExceededError, 0)
            hasty.append(op)
        assert not first.completed
        assert await collect(watcher, 5) == [*hasty, first]
        assert first.data == b"for the first"


async def test_T1_past_deadline_behind_another_write_sends_nothing(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        first = watcher.write(conn, b"1" * LONG)
        for past in already_past():
            op = watcher.write(conn, b"2", **past)
            assert watcher.poll_io() == [op]
            assert (type(op.error), op.size) == (DeadlineExceededError, 0)
        third = watcher.write(conn, b"3")
        assert await receive(peer, LONG + 1) == b"1" * LONG + b"3"
        assert await collect(watcher, 2) == [first, third]


async def test_T1_past_deadline_multishot_takes_what_is_there_and_ends(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        peer.sendall(b"there")
        last = watcher.read(conn, multishot=True, deadline=asyncio.get_running_loop().time() - 1)
        ops = await collect(watcher, 2)
        assert (ops[0].data, ops[0].more, ops[0].error) == (b"there", True, None)
        assert ops[1] is last
        assert isinstance(last.error, DeadlineExceededError)
        assert not last.more


# --- T2: what is left of it ----------------------------------------------------------------------


async def test_T2_the_error_is_a_timeout_error_of_ours(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        watcher.read(ours, timeout=0.001)
        op = await one(watcher)
        assert type(op.error) is DeadlineExceededError
        assert isinstance(op.error, TimeoutError)
        assert isinstance(op.error, AioGaioError)


async def test_T2_an_expired_read_full_hands_over_its_part(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(10)
        peer.sendall(b"abc")
        op = watcher.read_full(conn, buffer, timeout=0.02)
        assert await one(watcher) is op
        assert isinstance(op.error, DeadlineExceededError)
        assert (op.size, bytes(op.data)) == (3, b"abc")
        peer.sendall(b"defg")
        watcher.read_full(conn, bytearray(4))
        op = await one(watcher)
        assert (op.error, bytes(op.data)) == (None, b"defg")


async def test_T2_an_expired_write_counts_what_was_sent(watcher: Watcher) -> None:
    """Exactly: the next message follows the last counted byte."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.write(conn, b"x" * LONG, timeout=0.02)
        assert await one(watcher) is op
        assert op is not None
        assert isinstance(op.error, DeadlineExceededError)
        assert 0 < op.size < LONG
        assert unread(peer) == op.size
        watcher.write(conn, b"the next")
        assert await receive(peer, op.size + 8) == b"x" * op.size + b"the next"
        assert (await one(watcher)).error is None


async def test_T2_an_expired_accept_leaves_the_listener_usable(watcher: Watcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        listener = watcher.delegate(sock)
    watcher.accept(listener, timeout=0.01)
    assert isinstance((await one(watcher)).error, DeadlineExceededError)
    watcher.accept(listener)
    with socket.create_connection(address):
        op = await one(watcher)
        assert op.error is None
        assert op.accepted is not None


async def test_T2_only_the_expired_one_leaves_the_queue(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read_full(conn, bytearray(2), context="first")
        watcher.read_full(conn, bytearray(2), context="hasty", timeout=0.01)
        watcher.read_full(conn, bytearray(2), context="third")
        assert (await one(watcher)).context == "hasty"
        peer.sendall(b"1133")
        first, third = await collect(watcher, 2)
        assert (first.context, bytes(first.data)) == ("first", b"11")
        assert (third.context, bytes(third.data)) == ("third", b"33")


async def test_T2_the_next_in_the_queue_goes_on_after_an_expired_head(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        peer.sendall(b"abc")
        watcher.read_full(conn, bytearray(10), context="head", timeout=0.02)
        watcher.read(conn, context="next")
        head = await one(watcher)
        assert (head.context, head.size) == ("head", 3)
        peer.sendall(b"def")
        behind = await one(watcher)
        assert (behind.context, behind.data) == ("next", b"def")


async def test_T2_data_and_deadline_in_one_tick_lose_nothing(watcher: Watcher) -> None:
    """Whichever wins: one result, and every byte is still there to be read."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        received = b""
        for number in range(20):
            op = watcher.read(conn, timeout=0.001)
            await settle(2)
            peer.sendall(b"%04d" % number)
            time.sleep(0.002)  # the loop finds both at once
            assert await one(watcher) is op
            if op.error is None:
                received += op.data
            else:
                assert isinstance(op.error, DeadlineExceededError)
                assert op.size == 0
        while len(received) < 80:
            watcher.read(conn)
            received += (await one(watcher)).data
        assert received == b"".join(b"%04d" % number for number in range(20))


async def test_T2_both_directions_expire_independently(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        read = watcher.read(conn, timeout=0.03)
        write = watcher.write(conn, bytes(LONG), timeout=0.01)
        assert set(await collect(watcher, 2)) == {write, read}
        assert write is not None
        await receive(peer, write.size)
        peer.sendall(b"ping")
        watcher.read(conn)
        assert (await one(watcher)).data == b"ping"
        watcher.write(conn, b"pong")
        assert (await one(watcher)).error is None
        assert await receive(peer, 4) == b"pong"


async def test_T2_many_connections_expire_and_stay_usable(watcher: Watcher) -> None:
    pairs = [unix_pair() for _ in range(100)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    deadline = asyncio.get_running_loop().time() + 0.02
    for conn in conns:
        watcher.read(conn, deadline=deadline)
    ops = await collect(watcher, 100)
    assert {op.conn for op in ops} == set(conns)
    assert all(isinstance(op.error, DeadlineExceededError) for op in ops)
    for conn, (_, peer) in zip(conns, pairs, strict=True):
        watcher.read(conn)
        peer.sendall(b"x")
    assert all(op.data == b"x" for op in await collect(watcher, 100))
    for _, peer in pairs:
        peer.close()


# --- T3: torn writes -----------------------------------------------------------------------------


class ByCancel:
    """A write that is torn by a cancel."""

    def start(self, watcher: Watcher, conn: Connection, *, silent: bool = False) -> Operation:
        op = watcher.write(conn, b"t" * LONG, context="torn", silent=silent)
        assert op is not None
        return op

    async def tear(self, watcher: Watcher, op: Operation, peer: socket.socket) -> bytes:
        """Returns what the other end has received meanwhile."""
        assert watcher.cancel(op)
        return b""


class ByDeadline(ByCancel):
    def start(self, watcher: Watcher, conn: Connection, *, silent: bool = False) -> Operation:
        op = watcher.write(conn, b"t" * LONG, context="torn", silent=silent, timeout=0.01)
        assert op is not None
        return op

    async def tear(self, watcher: Watcher, op: Operation, peer: socket.socket) -> bytes:
        await until(lambda: op.completed)
        return b""


class ByError(ByCancel):
    """Its data is closed under it, which fails the operation and leaves the connection sound."""

    def start(self, watcher: Watcher, conn: Connection, *, silent: bool = False) -> Operation:
        self.data = mmap.mmap(-1, LONG)
        self.data[:] = b"t" * LONG
        op = watcher.write(conn, self.data, context="torn")
        assert op is not None
        return op

    async def tear(self, watcher: Watcher, op: Operation, peer: socket.socket) -> bytes:
        self.data.close()
        received = await receive(peer, unread(peer))  # makes room: the next attempt finds out
        await until(lambda: op.completed)
        return received


TORN = pytest.mark.parametrize(
    "torn", [ByCancel(), ByDeadline(), ByError()], ids=lambda t: type(t).__name__
)
TORN_SILENTLY = pytest.mark.parametrize(
    "torn", [ByCancel(), ByDeadline()], ids=lambda t: type(t).__name__
)


def assert_torn(op: Operation) -> None:
    assert op.context == "torn"
    assert op.error is not None
    assert 0 < op.size < LONG


def assert_taken_along(followers: list[Operation], torn: Operation) -> None:
    for op in followers:
        assert op.completed
        assert op.size == 0
        assert type(op.error) is OperationCancelledError
        assert op.error.__cause__ is torn.error
        assert op.error is not torn.error


async def assert_next_follows(
    watcher: Watcher, torn: Operation, peer: socket.socket, received: bytes
) -> None:
    """The connection is usable, and not a byte of the failed ones stands in between."""
    watcher.write(torn.conn, b"the next")
    received += await receive(peer, torn.size + 8 - len(received))
    op = await one(watcher)
    assert (op.error, op.size) == (None, 8)
    assert received == b"t" * torn.size + b"the next"
    await settle(3)
    assert unread(peer) == 0


@TORN
async def test_T3_a_torn_write_takes_the_queued_ones_along(watcher: Watcher, torn: Any) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = torn.start(watcher, conn)
        followers = [
            watcher.write(conn, b"loud", context=1),
            watcher.write(conn, b"silent", context=2, silent=True),
            watcher.write(conn, b"timed", context=3, timeout=3600),
            watcher.write(conn, b"long" * LONG, context=4),
            watcher.write(conn, b"silent too" * LONG, context=5, silent=True),
        ]
        received = await torn.tear(watcher, op, peer)
        results = await collect(watcher, 6)
        assert results == [op, *followers]
        assert_torn(op)
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)
        await settle()
        assert watcher.poll_io() == []


@TORN
async def test_T3_a_torn_write_takes_those_submitted_in_between_along(
    watcher: Watcher, torn: Any
) -> None:
    """The socket has room again and the queue is empty; still the result is not handed over."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = torn.start(watcher, conn)
        received = await torn.tear(watcher, op, peer)
        received += await receive(peer, unread(peer))
        await settle(5)
        between = [
            watcher.write(conn, b"loud"),
            watcher.write(conn, b"silent", silent=True),
            watcher.write(conn, b"hasty", timeout=0),
        ]
        await settle(5)
        between.append(watcher.write(conn, b"long" * LONG))
        between.append(watcher.write(conn, b"silent too" * LONG, silent=True))
        assert None not in between, "a silent write was sent behind a torn one"
        await settle(5)
        assert unread(peer) == 0
        results = watcher.poll_io()
        assert results == [op, *between]
        assert_torn(op)
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)


@TORN_SILENTLY
async def test_T3_a_torn_silent_write_delivers_its_error_and_takes_the_others_along(
    watcher: Watcher, torn: Any
) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = torn.start(watcher, conn, silent=True)
        before = watcher.write(conn, b"before")
        before_silent = watcher.write(conn, b"before", silent=True)
        await torn.tear(watcher, op, peer)
        received = await receive(peer, unread(peer))
        between = watcher.write(conn, b"between")
        between_silent = watcher.write(conn, b"between", silent=True)
        results = await collect(watcher, 5)
        assert results == [op, before, before_silent, between, between_silent]
        assert_torn(op)
        assert_taken_along(results[1:], op)
        watcher.write(conn, b"!", silent=True)
        received += await receive(peer, op.size + 1 - len(received))
        assert received == b"t" * op.size + b"!"
        assert watcher.poll_io() == []


async def test_T3_a_write_torn_at_the_call(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.write(conn, b"t" * LONG, context="torn", timeout=0)
        assert op is not None
        assert op.completed
        received = await receive(peer, unread(peer))
        between = watcher.write(conn, b"between")
        between_silent = watcher.write(conn, b"between", silent=True)
        results = watcher.poll_io()
        assert results == [op, between, between_silent]
        assert_torn(op)
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)


async def test_T3_a_woken_waiter_has_not_been_handed_anything_yet(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = ByCancel().start(watcher, conn)
        waiter = asyncio.ensure_future(watcher.wait_io())
        await settle(3)
        watcher.cancel(op)
        received = peer.recv(unread(peer))  # without a turn of the loop
        between = watcher.write(conn, b"between", silent=True)
        assert between is not None
        results = await bounded(waiter)
        if between not in results:
            results += await bounded(watcher.wait_io())
        assert results == [op, between]
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)


async def test_T3_a_cancelled_waiter_has_not_been_handed_anything(watcher: Watcher) -> None:
    """Woken and cancelled in the same tick: the torn result is still the watcher's."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = ByCancel().start(watcher, conn)
        waiter = asyncio.ensure_future(watcher.wait_io())
        await settle(3)
        watcher.cancel(op)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        received = await receive(peer, unread(peer))
        await settle(5)
        between = watcher.write(conn, b"between")
        between_silent = watcher.write(conn, b"between", silent=True)
        results = watcher.poll_io()
        assert results == [op, between, between_silent]
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)


async def test_T3_a_torn_result_far_back_in_the_queue(watcher: Watcher) -> None:
    """Handed over is what the consumer has got: a batch that came without it changes nothing."""
    (ours, peer), (others, other_peer) = small_pair(), unix_pair()
    with peer, other_peer:
        conn, other = watcher.delegate(ours), watcher.delegate(others)
        for _ in range(2_000):
            other_peer.send(b"x")
            watcher.read(other)
        op = ByCancel().start(watcher, conn)
        watcher.cancel(op)
        received = await receive(peer, unread(peer))
        results: list[Operation] = []
        between = []
        while op not in results:
            between.append(watcher.write(conn, b"between", silent=True))
            results += await bounded(watcher.wait_io())
        while between[-1] not in results:
            results += await bounded(watcher.wait_io())
        assert len(results) == 2_001 + len(between)
        assert_torn(op)
        assert_taken_along([r for r in results if r.conn is conn and r is not op], op)
        await assert_next_follows(watcher, op, peer, received)


async def test_T3_writes_from_another_thread_in_between_are_taken_along(
    watcher: Watcher,
) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = ByCancel().start(watcher, conn)
        watcher.cancel(op)
        received = await receive(peer, unread(peer))
        submitted = watcher.statistics().submitted
        watcher.threadsafe.write(conn, b"loud", context="loud")
        watcher.threadsafe.write(conn, b"silent", context="silent", silent=True)
        await until(lambda: watcher.statistics().submitted == submitted + 2)
        results = watcher.poll_io()
        assert [result.context for result in results] == ["torn", "loud", "silent"]
        assert_taken_along(results[1:], op)
        await assert_next_follows(watcher, op, peer, received)


async def test_T3_a_write_on_its_way_when_the_result_is_handed_over_is_taken_along(
    watcher: Watcher,
) -> None:
    """It was submitted before the program knew, and waits behind a request of another thread."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        torn = watcher.write(conn, bytes(LONG))
        assert watcher.cancel(torn) and torn.size
        read = watcher.threadsafe.read(conn)
        behind = watcher.write(conn, b"behind")
        results = watcher.poll_io()
        assert results[0] is torn and behind.completed
        results += watcher.poll_io()
        assert results == [torn, behind]
        assert isinstance(behind.error, OperationCancelledError)
        assert behind.error.__cause__ is torn.error
        assert not read.completed


async def test_T3_a_write_torn_by_a_reset(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    op = watcher.write(conn, b"t" * (8 * LONG), context="torn")
    followers = [watcher.write(conn, b"loud"), watcher.write(conn, b"silent", silent=True)]
    assert op is not None
    await until(lambda: unread(peer) > 0)
    reset(peer)
    await until(lambda: op.completed)
    between = [watcher.write(conn, b"loud"), watcher.write(conn, b"silent", silent=True)]
    results = await collect(watcher, 5)
    assert results == [op, *followers, *between]
    assert isinstance(op.error, ConnectionError)
    assert 0 < op.size < 8 * LONG
    assert_taken_along(results[1:], op)
    watcher.write(conn, b"later", context="later")
    later = await one(watcher)
    assert isinstance(later.error, ConnectionError)  # the connection's own state again


@TORN
async def test_T3_reads_and_other_connections_do_not_notice(watcher: Watcher, torn: Any) -> None:
    (ours, peer), (others, other_peer) = small_pair(), unix_pair()
    with peer, other_peer:
        conn, other = watcher.delegate(ours), watcher.delegate(others)
        read = watcher.read(conn)
        op = torn.start(watcher, conn)
        await torn.tear(watcher, op, peer)
        assert watcher.write(other, b"other", silent=True) is None
        assert other_peer.recv(10) == b"other"
        peer.sendall(b"to be read")
        await until(lambda: read.completed)
        assert watcher.poll_io() == [op, read]
        assert read.data == b"to be read"


async def test_T3_a_write_that_has_sent_nothing_takes_nobody_along(watcher: Watcher) -> None:
    ours, peer = small_pair()
    filled = fill(ours)
    with peer:
        conn = watcher.delegate(ours)
        head = watcher.write(conn, b"head", context="head")
        hasty = watcher.write(conn, b"hasty", context="hasty", timeout=0.005)
        middle = watcher.write(conn, b"middle", context="middle")
        last = watcher.write(conn, b"last", context="last")
        assert head is not None
        assert middle is not None
        assert watcher.cancel(head)
        assert watcher.cancel(middle)
        results = await collect(watcher, 3)
        assert set(results) == {head, middle, hasty}
        assert [op.size for op in results] == [0, 0, 0]
        assert all(op.error is not None and op.error.__cause__ is None for op in results)
        assert await receive(peer, filled + 4) == bytes(filled) + b"last"
        assert await one(watcher) is last


async def test_T3_a_follower_that_goes_first_tears_nothing(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        head = watcher.write(conn, b"h" * LONG)
        cancelled = watcher.write(conn, b"c")
        expired = watcher.write(conn, b"e", timeout=0.005)
        last = watcher.write(conn, b"l")
        assert cancelled is not None
        assert watcher.cancel(cancelled)
        assert set(await collect(watcher, 2)) == {cancelled, expired}
        assert await receive(peer, LONG + 1) == b"h" * LONG + b"l"
        assert await collect(watcher, 2) == [head, last]


async def test_T3_torn_again_and_again(watcher: Watcher) -> None:
    """Each tear is its own: the cause is the tear that took a write along, not an older one."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        expected = b""
        received = b""
        for _ in range(10):
            op = ByCancel().start(watcher, conn)
            await until(lambda: unread(peer) > 0)
            follower = watcher.write(conn, b"follower", silent=True)
            watcher.cancel(op)
            between = watcher.write(conn, b"between")
            results = watcher.poll_io()
            assert results == [op, follower, between]
            assert_torn(op)
            assert_taken_along(results[1:], op)
            expected += b"t" * op.size
            received += await receive(peer, len(expected) - len(received))
        assert received == expected
        assert unread(peer) == 0


async def test_T3_freed_after_a_tear(watcher: Watcher) -> None:
    """The state of the connection is the stronger news, and everything comes exactly once."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = ByCancel().start(watcher, conn)
        follower = watcher.write(conn, b"follower")
        watcher.cancel(op)
        watcher.free(conn)
        after = watcher.write(conn, b"after")
        assert await collect(watcher, 3) == [op, follower, after]
        assert after is not None
        assert isinstance(after.error, ConnectionFreedError)
        assert set(await drained(peer)) == {ord("t")}


# --- T4: what they cost --------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ascending", "descending", "mixed"])
async def test_T4_many_deadlines_are_one_timer(poller: str, order: str) -> None:
    timers = LoopTimers(asyncio.get_running_loop())
    pairs = [unix_pair() for _ in range(20)]
    async with Watcher(poller=poller) as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        await settle(3)
        before = timers.live
        timeouts = [1000.0 + number for number in range(50)]
        if order == "descending":
            timeouts.reverse()
        elif order == "mixed":
            timeouts = timeouts[::2] + timeouts[1::2][::-1]
        ops = []
        for timeout in timeouts:
            for conn in conns:
                ops.append(watcher.read(conn, timeout=timeout))
            assert timers.live - before <= 1
        await settle(3)
        assert timers.live - before == 1
        for op in ops[::2]:
            watcher.cancel(op)
        assert timers.live - before <= 1
        watcher.poll_io()
        watcher.close()
        assert len(watcher.poll_io()) == len(ops) // 2
    for _, peer in pairs:
        peer.close()


async def test_T4_expired_and_removed_deadlines_leave_at_most_one_timer(poller: str) -> None:
    timers = LoopTimers(asyncio.get_running_loop())
    ours, peer = unix_pair()
    with peer:
        async with Watcher(poller=poller) as watcher:
            conn = watcher.delegate(ours)
            await settle(3)
            before = timers.live
            for _ in range(10):
                watcher.read(conn, timeout=0.001)
                watcher.read(conn, timeout=0.002)
                watcher.cancel(watcher.read(conn, timeout=0.0005))
                assert timers.live - before <= 1
                await collect(watcher, 3)
            assert timers.live - before <= 1
            watcher.read(conn, timeout=1000)
        await settle(3)
        assert timers.live == before, "a closed watcher leaves no timer behind"


@pytest.mark.parametrize("head", [False, True], ids=["alone", "behind-an-earlier-one"])
async def test_T4_cancelled_deadlines_do_not_pile_up(watcher: Watcher, head: bool) -> None:
    """Neither at the top of whatever keeps them, nor behind one that stays."""
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with collecting_by_hand(), peer, other_peer:
        conn = watcher.delegate(ours)
        watcher.read(others, timeout=1000 if head else None)
        kept: list[weakref.ref[Context]] = []
        for _ in range(5_000):
            context = Context()
            kept.append(weakref.ref(context))
            assert watcher.cancel(watcher.read(conn, context=context, timeout=3600))
            watcher.poll_io()
        await settle(3)
        gc.collect()
        assert sum(ref() is not None for ref in kept) < 1_000


@pytest.mark.parametrize("head", [False, True], ids=["alone", "behind-an-earlier-one"])
async def test_T4_removed_deadlines_cost_no_memory(watcher: Watcher, head: bool) -> None:
    """Nor does what is left of them, once the operations themselves are gone."""
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with peer, other_peer:
        conn = watcher.delegate(ours)
        watcher.read(others, timeout=1000 if head else None)
        with traced() as grown:
            for _ in range(4_000):
                watcher.cancel(watcher.read(conn, timeout=3600))
                watcher.poll_io()
            assert grown() < 150_000, "about 130 bytes of each are left"


async def test_T4_deadlines_that_were_met_do_not_pile_up(watcher: Watcher) -> None:
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with collecting_by_hand(), peer, other_peer:
        conn = watcher.delegate(ours)
        watcher.read(others, timeout=1000)
        kept: list[weakref.ref[Context]] = []
        burst = 25
        for _ in range(60):
            for _ in range(burst):
                context = Context()
                kept.append(weakref.ref(context))
                watcher.read_full(conn, bytearray(1), context=context, timeout=3600)
            peer.sendall(bytes(burst))
            await collect(watcher, burst)
        del context
        gc.collect()
        assert sum(ref() is not None for ref in kept) < 750


async def test_T4_freed_connections_take_their_deadlines_along(watcher: Watcher) -> None:
    others, other_peer = unix_pair()
    with collecting_by_hand(), other_peer:
        watcher.read(others, timeout=1000)
        kept: list[weakref.ref[Context]] = []
        for _ in range(40):
            ours, peer = unix_pair()
            conn = watcher.delegate(ours)
            for _ in range(50):
                context = Context()
                kept.append(weakref.ref(context))
                watcher.read(conn, context=context, timeout=3600)
            watcher.free(conn)
            assert len(watcher.poll_io()) == 50
            peer.close()
        del context, conn
        gc.collect()
        assert sum(ref() is not None for ref in kept) < 1_000


async def test_T4_a_timeout_that_multishot_restarts_does_not_pile_up(poller: str) -> None:
    """Restarting the longest silence a thousand times is still one timer and one entry."""
    timers = LoopTimers(asyncio.get_running_loop())
    ours, peer = unix_pair()
    with collecting_by_hand(), peer:
        async with Watcher(poller=poller, buffer_size=1) as watcher:
            context = Context()
            op = watcher.read(ours, multishot=True, timeout=3600, context=context)
            await settle(3)
            before = timers.live
            for _ in range(100):
                peer.sendall(b"12345")
                for result in await collect(watcher, 5):
                    assert result.more
                assert timers.live - before <= 1
            assert not op.completed
            watcher.cancel(op)
            assert await one(watcher) is op
            reference = weakref.ref(context)
            del op, result, context
            gc.collect()
            assert reference() is None


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["epoll", "loop"])
async def test_T4_a_million_deadlines_are_one_timer(name: str) -> None:
    timers = LoopTimers(asyncio.get_running_loop())
    pairs = [unix_pair() for _ in range(1_000)]
    async with Watcher(poller=name) as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        await settle(3)
        before = timers.live
        for number in range(1_000):
            for conn in conns:
                watcher.read(conn, timeout=3600 + number % 7)
        assert watcher.statistics().pending == 1_000_000
        assert timers.live - before == 1
        for conn in conns:
            watcher.free(conn)
        ops = watcher.poll_io()
        while len(ops) < 1_000_000:
            ops += await bounded(watcher.wait_io())
        assert len(ops) == 1_000_000
        assert timers.live - before <= 1
    for _, peer in pairs:
        peer.close()


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["epoll", "loop"])
@pytest.mark.parametrize("connections", [1, 500])
async def test_T4_many_deadlines_in_one_moment(name: str, connections: int) -> None:
    """They all come, and others have their turns meanwhile."""
    loop = asyncio.get_running_loop()
    pairs = [unix_pair() for _ in range(connections)]
    gc.collect()
    gc.disable()  # it takes 0.1 s to look through so many operations, and is not what is measured
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(gc.enable)
        for _, peer in pairs:
            stack.enter_context(peer)
        watcher = await stack.enter_async_context(Watcher(poller=name, max_pending=None))
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        deadline = loop.time() + 6
        for _ in range(300_000 // connections):
            for conn in conns:
                watcher.read(conn, deadline=deadline)
        assert time.monotonic() < deadline, "too slow a machine for this test"
        count = 0
        longest = 0.0

        async def others() -> None:
            # In time of this thread's own computing: what other processes take does not count.
            nonlocal longest
            last = time.thread_time()
            while count < 300_000:
                await asyncio.sleep(0)
                now = time.thread_time()
                longest, last = max(longest, now - last), now

        task = asyncio.ensure_future(others())
        while count < 300_000:
            results = await bounded(watcher.wait_io(), 120)
            assert loop.time() >= deadline
            assert all(isinstance(op.error, DeadlineExceededError) for op in results)
            count += len(results)
        await task
        assert longest < 0.04, f"others had no turn for {longest:.3f} s"
