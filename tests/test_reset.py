"""How a stream ends: rule O4.

The system tells of a reset once, to whichever call asks first; from then on it shows a clean end.
An end in order, on the other hand, makes later sends fail, and stays an end all the same.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest

from aiogaio import Connection, EndOfStreamError, Operation, Watcher
from aiogaio.connection import Record
from tests.probes import (
    LONG,
    events,
    half_closed,
    hung_up,
    receive,
    small_pair,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

TRIES = 1_000
WAVE = 50


async def read(watcher: Watcher, conn: Connection) -> Operation:
    """The next read of a connection on which nothing else is under way."""
    op = watcher.read(conn)
    assert await one(watcher) is op
    return op


async def assert_reset(watcher: Watcher, conn: Connection) -> None:
    """Now and for good."""
    for _ in range(2):
        op = await read(watcher, conn)
        assert type(op.error) is ConnectionResetError
        assert op.error.errno == errno.ECONNRESET
        assert op.size == 0
    watcher.read_full(conn, bytearray(4))
    assert type((await one(watcher)).error) is ConnectionResetError


async def assert_ended(watcher: Watcher, conn: Connection) -> None:
    for _ in range(2):
        op = await read(watcher, conn)
        assert type(op.error) is EndOfStreamError
        assert op.size == 0
    watcher.read_full(conn, bytearray(4))
    assert type((await one(watcher)).error) is EndOfStreamError


# --- Data and FIN in one edge ---------------------------------------------------------------------


def shut(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def close(peer: socket.socket) -> None:
    peer.close()


def stream_pair(number: int) -> tuple[socket.socket, socket.socket]:
    return tcp_pair() if number % 4 else unix_pair()


async def test_O4_data_and_fin_in_one_edge_read(watcher: Watcher) -> None:
    """A read takes the data; the next one finds the end, though no further edge tells of it."""
    for wave in range(TRIES // WAVE):
        pairs = [stream_pair(number) for number in range(WAVE)]
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        for conn in conns:
            watcher.read(conn)
        await settle(2)
        for conn, (_, peer) in zip(conns, pairs, strict=True):
            if wave % 2:
                watcher.read(conn)  # it stands in the queue when both arrive
            peer.sendall(b"data")
            (shut if wave % 4 < 2 else close)(peer)
        results = []
        if not wave % 2:
            results = await collect(watcher, WAVE)
            assert [op.data for op in results] == [b"data"] * WAVE
            for conn in conns:
                watcher.read(conn)
        results += await collect(watcher, 2 * WAVE - len(results))
        for conn in conns:
            data, end = (op for op in results if op.conn is conn)
            assert (data.data, data.error) == (b"data", None)
            assert type(end.error) is EndOfStreamError
            watcher.free(conn)
        for _, peer in pairs:
            peer.close()


async def test_O4_data_and_fin_in_one_edge_read_full(watcher: Watcher) -> None:
    """It has to ask again after a short receive, or it waits for ever."""
    for wave in range(TRIES // WAVE):
        pairs = [stream_pair(number) for number in range(WAVE)]
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        for conn in conns:
            watcher.read_full(conn, bytearray(16))
        await settle(2)
        for _, peer in pairs:
            peer.sendall(b"data")
            (shut if wave % 2 else close)(peer)
        for op in await collect(watcher, WAVE):
            assert type(op.error) is EndOfStreamError
            assert (op.size, bytes(op.data)) == (4, b"data")
            watcher.free(op.conn)
        for _, peer in pairs:
            peer.close()


async def test_O4_data_and_fin_in_one_edge_multishot(watcher: Watcher) -> None:
    pairs = [stream_pair(number) for number in range(WAVE)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    for conn in conns:
        watcher.read(conn, multishot=True)
    await settle(2)
    for number, (_, peer) in enumerate(pairs):
        peer.sendall(b"data")
        (shut if number % 2 else close)(peer)
    results = await collect(watcher, 2 * WAVE)
    for conn in conns:
        data, end = (op for op in results if op.conn is conn)
        assert (data.data, data.more) == (b"data", True)
        assert (type(end.error), end.more) == (EndOfStreamError, False)
    for _, peer in pairs:
        peer.close()


async def test_O4_data_and_fin_and_exactly_as_much_as_asked_for(watcher: Watcher) -> None:
    """A receive that fills its room proves nothing of what is behind it."""
    pairs = [stream_pair(number) for number in range(WAVE)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    for conn in conns:
        watcher.read_full(conn, bytearray(4))
    await settle(2)
    for _, peer in pairs:
        peer.sendall(b"data")
        peer.close()
    assert all(op.error is None for op in await collect(watcher, WAVE))
    await settle(3)
    for conn in conns:
        watcher.read(conn)
    assert all(type(op.error) is EndOfStreamError for op in await collect(watcher, WAVE))


async def test_O4_data_and_fin_before_delegation(watcher: Watcher) -> None:
    for number in range(WAVE):
        ours, peer = stream_pair(number)
        peer.sendall(b"data")
        peer.close()
        await until(lambda ours=ours: half_closed(ours))
        conn = watcher.delegate(ours)
        assert (await read(watcher, conn)).data == b"data"
        assert type((await read(watcher, conn)).error) is EndOfStreamError
        watcher.free(conn)


async def test_O4_data_and_fin_while_no_read_is_pending(watcher: Watcher) -> None:
    """The event comes and goes; the reads that follow still find both."""
    pairs = [stream_pair(number) for number in range(WAVE)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    for conn in conns:
        watcher.cancel(watcher.read(conn))
    await collect(watcher, WAVE)
    await settle(3)
    for _, peer in pairs:
        peer.sendall(b"data")
    await settle(3)
    for _, peer in pairs:
        peer.close()
    await settle(5)
    for conn in conns:
        assert (await read(watcher, conn)).data == b"data"
        await assert_ended(watcher, conn)


# --- A reset, and who hears of it first -----------------------------------------------------------


def by_read(watcher: Watcher, conn: Connection) -> None:
    watcher.read(conn, context="first")


def by_read_into(watcher: Watcher, conn: Connection) -> None:
    watcher.read(conn, bytearray(10), context="first")


def by_read_full(watcher: Watcher, conn: Connection) -> None:
    watcher.read_full(conn, bytearray(10), context="first")


def by_multishot(watcher: Watcher, conn: Connection) -> None:
    watcher.read(conn, context="first", multishot=True)


def by_write(watcher: Watcher, conn: Connection) -> None:
    watcher.write(conn, b"x", context="first")


def by_writable_buffer(watcher: Watcher, conn: Connection) -> None:
    watcher.write(conn, bytearray(b"x"), context="first", timeout=100)


def by_silent_write(watcher: Watcher, conn: Connection) -> None:
    assert watcher.write(conn, b"x", context="first", silent=True) is not None


FIRST = [
    by_read,
    by_read_into,
    by_read_full,
    by_multishot,
    by_write,
    by_writable_buffer,
    by_silent_write,
]


@pytest.mark.parametrize("first", FIRST)
async def test_O4_a_reset_before_the_first_request(
    watcher: Watcher, first: Callable[[Watcher, Connection], None]
) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    first(watcher, conn)
    op = await one(watcher)
    assert op.context == "first"
    assert type(op.error) is ConnectionResetError
    assert not op.more
    await assert_reset(watcher, conn)
    watcher.write(conn, b"x")
    assert isinstance((await one(watcher)).error, ConnectionError)
    await assert_reset(watcher, conn)


@pytest.mark.parametrize("first", [by_read, by_write, by_silent_write])
async def test_O4_a_reset_before_delegation(
    watcher: Watcher, first: Callable[[Watcher, Connection], None]
) -> None:
    ours, peer = tcp_pair()
    reset(peer)
    await until(lambda: hung_up(ours))
    conn = watcher.delegate(ours)
    first(watcher, conn)
    assert type((await one(watcher)).error) is ConnectionResetError
    await assert_reset(watcher, conn)


@pytest.mark.parametrize("armed", [by_read, by_read_into, by_read_full, by_multishot])
async def test_O4_a_reset_while_a_read_is_pending(
    watcher: Watcher, armed: Callable[[Watcher, Connection], None]
) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    armed(watcher, conn)
    behind = watcher.read(conn)
    await settle(3)
    reset(peer)
    first, second = await collect(watcher, 2)
    assert first.context == "first"
    assert type(first.error) is ConnectionResetError
    assert second is behind
    assert type(second.error) is ConnectionResetError
    await assert_reset(watcher, conn)


@pytest.mark.parametrize("length", [0, 4])
async def test_O4_a_reset_that_a_look_at_SO_ERROR_has_consumed(
    watcher: Watcher, length: int
) -> None:
    """Also the look that asks for the bytes of the option."""
    arguments = (length,) if length else ()
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    seen: Any = conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, *arguments)
    if length:
        seen = int.from_bytes(seen, "little")
    assert seen == errno.ECONNRESET
    for _ in range(2):
        conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, *arguments)
    await assert_reset(watcher, conn)
    watcher.write(conn, b"x")
    assert isinstance((await one(watcher)).error, ConnectionError)
    await assert_reset(watcher, conn)


async def test_O4_a_look_at_SO_ERROR_while_a_read_is_pending(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    op = watcher.read(conn)
    await settle(3)
    reset(peer)
    await until_hung_up_without_a_turn(conn)
    assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert await one(watcher) is op
    assert type(op.error) is ConnectionResetError
    await assert_reset(watcher, conn)


async def until_hung_up_without_a_turn(conn: Connection) -> None:
    """The loop does not run, so the watcher cannot have heard of it."""
    poll = select.poll()
    poll.register(conn.fileno(), 0)  # POLLERR and POLLHUP are always reported
    assert poll.poll(10_000)


async def test_O4_a_look_at_SO_ERROR_without_an_error_changes_nothing(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    peer.sendall(b"data")
    assert (await read(watcher, conn)).data == b"data"
    assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    peer.close()
    await assert_ended(watcher, conn)


async def test_O4_writes_in_a_row_do_not_hide_a_reset(watcher: Watcher) -> None:
    """The first gets ECONNRESET, the others EPIPE, which alone would mean nothing to a reader."""
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    for _ in range(3):
        watcher.write(conn, b"x", silent=True)
    errors = [op.error for op in await collect(watcher, 3)]
    assert all(isinstance(error, ConnectionError) for error in errors)
    await assert_reset(watcher, conn)


async def test_O4_a_reset_during_a_write(watcher: Watcher) -> None:
    for number in range(12):
        ours, peer = tcp_pair()
        conn = watcher.delegate(ours)
        if number % 2:
            watcher.read(conn, context="read")
        op = watcher.write(conn, bytes(8 * LONG), context="write")
        await until(lambda peer=peer: unread(peer) > 0)
        await settle(number % 3)
        reset(peer)
        results = await collect(watcher, 1 + number % 2)
        assert op in results
        assert 0 < op.size < 8 * LONG
        assert isinstance(op.error, ConnectionError)
        for result in results:
            if result.context == "read":
                assert type(result.error) is ConnectionResetError
        await assert_reset(watcher, conn)
        watcher.free(conn)


async def test_O4_a_reset_after_a_write(watcher: Watcher) -> None:
    """The peer closes without having read: that is a reset as well (RFC 2525, 2.17)."""
    for number in range(20):
        ours, peer = tcp_pair()
        conn = watcher.delegate(ours)
        if number % 2:
            watcher.read(conn, context="read")
        watcher.write(conn, b"never read", silent=True)
        await until(lambda peer=peer: unread(peer) > 0)
        peer.close()
        if number % 2:
            assert type((await one(watcher)).error) is ConnectionResetError
        await assert_reset(watcher, conn)
        watcher.free(conn)


async def test_O4_a_reset_with_both_directions_pending(watcher: Watcher) -> None:
    """One event, one error, two directions: neither takes it from the other."""
    for _ in range(15):
        ours, peer = tcp_pair()
        conn = watcher.delegate(ours)
        watcher.write(conn, bytes(8 * LONG), context="write")
        watcher.read(conn, context="read")
        watcher.read_full(conn, bytearray(4), context="full")
        await settle(2)
        reset(peer)
        results = {op.context: op for op in await collect(watcher, 3)}
        assert isinstance(results["write"].error, ConnectionError)
        assert type(results["read"].error) is ConnectionResetError
        assert type(results["full"].error) is ConnectionResetError
        watcher.free(conn)


async def test_O4_each_result_has_an_error_of_its_own(watcher: Watcher) -> None:
    """A latched error is told again and again: two programs' tracebacks must not mix in one."""
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    watcher.write(conn, b"x")
    first = await one(watcher)
    second, third = await read(watcher, conn), await read(watcher, conn)
    assert second.error is not third.error
    assert first.error is not second.error


# --- Data first -----------------------------------------------------------------------------------


def nobody(watcher: Watcher, conn: Connection) -> None:
    """No call hears of the reset before the read does."""


def look(watcher: Watcher, conn: Connection) -> None:
    conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


CONSUMERS = [nobody, by_write, by_silent_write, look]


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_O4_data_that_arrived_before_a_reset_comes_first(
    watcher: Watcher, consumer: Callable[[Watcher, Connection], None], full: bool
) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    peer.sendall(b"the last words")
    reset(peer)
    await until(lambda: hung_up(conn))
    consumer(watcher, conn)
    await settle(3)
    watcher.poll_io()
    if full:
        watcher.read_full(conn, bytearray(20))
        op = await one(watcher)
        assert (op.size, bytes(op.data)) == (14, b"the last words")
        assert type(op.error) is ConnectionResetError
    else:
        op = await read(watcher, conn)
        assert (op.data, op.error) == (b"the last words", None)
    await assert_reset(watcher, conn)


@pytest.mark.parametrize("armed", [by_read, by_read_full, by_multishot])
async def test_O4_data_and_reset_in_one_edge(
    watcher: Watcher, armed: Callable[[Watcher, Connection], None]
) -> None:
    pairs = [tcp_pair() for _ in range(WAVE)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    for conn in conns:
        armed(watcher, conn)
    await settle(2)
    for _, peer in pairs:
        peer.sendall(b"data")
        reset(peer)
    if armed is by_read_full:
        for op in await collect(watcher, WAVE):
            assert bytes(op.data) == b"data"
            assert type(op.error) is ConnectionResetError
    else:
        if armed is by_read:
            results = await collect(watcher, WAVE)
            for conn in conns:
                watcher.read(conn)
            results += await collect(watcher, WAVE)
        else:
            results = await collect(watcher, 2 * WAVE)
        for conn in conns:
            data, end = (op for op in results if op.conn is conn)
            assert (data.data, data.error) == (b"data", None)
            assert type(end.error) is ConnectionResetError
            assert not end.more
    for conn in conns:
        assert type((await read(watcher, conn)).error) is ConnectionResetError


async def test_O4_much_data_before_a_reset(poller: str) -> None:
    """More than one receive takes."""
    ours, peer = tcp_pair()
    async with Watcher(poller=poller, buffer_size=1000) as watcher:
        conn = watcher.delegate(ours)
        watcher.read(conn, multishot=True)
        await settle(2)
        peer.sendall(b"x" * 10_500)
        reset(peer)
        *parts, last = await collect(watcher, 12)
        assert b"".join(op.data for op in parts) == b"x" * 10_500
        assert type(last.error) is ConnectionResetError
        await assert_reset(watcher, conn)


# --- An end in order ------------------------------------------------------------------------------


async def test_O4_a_half_closed_stream_still_takes_writes(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.read(conn)
        await settle(2)
        peer.shutdown(socket.SHUT_WR)
        assert await one(watcher) is op
        assert type(op.error) is EndOfStreamError
        watcher.write(conn, b"x" * LONG)
        assert await receive(peer, LONG) == b"x" * LONG
        assert (await one(watcher)).error is None
        await assert_ended(watcher, conn)
        watcher.write(conn, b"and more")
        assert (await one(watcher)).error is None
        assert await receive(peer, 8) == b"and more"


async def test_O4_reads_in_the_queue_all_see_the_end(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    ops = [watcher.read(conn), watcher.read_full(conn, bytearray(4)), watcher.read(conn)]
    await settle(2)
    peer.sendall(b"xyz")
    peer.close()
    assert await collect(watcher, 3) == ops
    assert ops[0].data == b"xyz"
    assert type(ops[1].error) is type(ops[2].error) is EndOfStreamError


async def broken_pipe(watcher: Watcher, conn: Connection) -> None:
    """Write until the system says EPIPE: the peer has closed and answers with a RST."""
    for _ in range(1_000):
        watcher.write(conn, b"x")
        op = await one(watcher)
        if op.error is not None:
            assert type(op.error) is BrokenPipeError
            return
    raise AssertionError("every write was taken")


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
async def test_O4_an_end_stays_an_end_after_EPIPE(watcher: Watcher, heard: bool) -> None:
    """Whether a read had seen the end before the sends failed or not."""
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    peer.close()
    await until(lambda: half_closed(conn))
    if heard:
        await assert_ended(watcher, conn)
    await broken_pipe(watcher, conn)
    await assert_ended(watcher, conn)
    await broken_pipe(watcher, conn)
    await assert_ended(watcher, conn)


async def test_O4_data_before_an_end_comes_first_after_EPIPE(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    peer.sendall(b"the last words")
    peer.close()
    await until(lambda: half_closed(conn))
    await broken_pipe(watcher, conn)
    op = await read(watcher, conn)
    assert (op.data, op.error) == (b"the last words", None)
    await assert_ended(watcher, conn)


async def test_O4_an_end_stays_an_end_after_a_look_at_EPIPE(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    peer.close()
    await until(lambda: half_closed(conn))
    assert watcher.write(conn, b"x", silent=True) is None
    await until(lambda: hung_up(conn))
    assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
    await assert_ended(watcher, conn)
    await broken_pipe(watcher, conn)
    await assert_ended(watcher, conn)


async def test_O4_EPIPE_while_a_read_is_pending_in_the_same_tick(watcher: Watcher) -> None:
    """FIN and the answer to a write come before the loop looks: the read still sees the end."""
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    op = watcher.read(conn)
    await settle(2)
    peer.close()
    assert watcher.write(conn, b"x", silent=True) is None
    await until_hung_up_without_a_turn(conn)
    write = watcher.write(conn, b"x")
    results = await collect(watcher, 2)
    assert set(results) == {op, write}
    assert type(op.error) is EndOfStreamError
    assert type(write.error) is BrokenPipeError


# --- Unix streams ---------------------------------------------------------------------------------


@pytest.mark.parametrize("consumer", CONSUMERS)
async def test_O4_a_unix_peer_that_closed_without_reading_is_a_reset(
    watcher: Watcher, consumer: Callable[[Watcher, Connection], None]
) -> None:
    """unix(7) tells of it with ECONNRESET, once; its own last words come first."""
    ours, peer = unix_pair()
    conn = watcher.delegate(ours)
    assert watcher.write(conn, b"never read", silent=True) is None
    peer.sendall(b"the last words")
    peer.close()
    consumer(watcher, conn)
    await settle(3)
    watcher.poll_io()
    op = await read(watcher, conn)
    assert (op.data, op.error) == (b"the last words", None)
    await assert_reset(watcher, conn)


@pytest.mark.parametrize("consumer", CONSUMERS)
async def test_O4_a_unix_peer_that_closed_in_order_is_an_end(
    watcher: Watcher, consumer: Callable[[Watcher, Connection], None]
) -> None:
    ours, peer = unix_pair()
    conn = watcher.delegate(ours)
    peer.sendall(b"the last words")
    peer.close()
    consumer(watcher, conn)
    await settle(3)
    watcher.poll_io()
    op = await read(watcher, conn)
    assert (op.data, op.error) == (b"the last words", None)
    await assert_ended(watcher, conn)


async def test_O4_a_unix_peer_that_closes_during_a_write(watcher: Watcher) -> None:
    ours, peer = small_pair()
    conn = watcher.delegate(ours)
    op = watcher.write(conn, bytes(LONG))
    await until(lambda: unread(peer) > 0)
    peer.close()
    assert await one(watcher) is op
    assert isinstance(op.error, ConnectionError)
    assert 0 < op.size < LONG
    await assert_reset(watcher, conn)


# --- What is no stream ----------------------------------------------------------------------------


async def test_O4_a_datagram_sockets_error_is_told_once(watcher: Watcher) -> None:
    """Nothing ends there: what was consumed by a look at SO_ERROR is gone, and life goes on."""
    ours = socket.socket(type=socket.SOCK_DGRAM)
    peer = socket.socket(type=socket.SOCK_DGRAM)
    stranger = socket.socket(type=socket.SOCK_DGRAM)
    with peer, stranger:
        for sock in (ours, peer, stranger):
            sock.bind(("127.0.0.1", 0))
        ours.connect(peer.getsockname())
        name = ours.getsockname()
        peer.connect(stranger.getsockname())  # it takes from nobody else: ours is refused
        conn = watcher.delegate(ours)
        watcher.write(conn, b"refused", silent=True)
        await until(lambda: bool(events(conn) & select.POLLERR))
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        peer.connect(name)
        op = watcher.read(conn)
        await settle(3)
        assert not op.completed
        peer.send(b"")
        assert await one(watcher) is op
        assert (op.error, op.data) == (None, b"")
        peer.send(b"data")
        assert (await read(watcher, conn)).data == b"data"


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ECONNREFUSED])
async def test_O4_an_error_that_the_stream_survives_is_not_its_end(
    watcher: Watcher, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ICMP "unreachable" is told once, if the socket wants that (IP_RECVERR, ip(7))."""
    told: list[int] = []

    def receive_or_tell(self: Any, *args: int) -> bytes:
        if not told:
            told.append(number)
            raise OSError(number, os.strerror(number))
        return socket.socket.recv(self, *args)

    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        with monkeypatch.context() as patch:
            patch.setattr(Record, "recv", receive_or_tell, raising=False)
            op = await read(watcher, conn)
            assert isinstance(op.error, OSError) and op.error.errno == number
        peer.sendall(b"alive")
        op = await read(watcher, conn)
        assert (op.error, op.data) == (None, b"alive")
    await assert_ended(watcher, conn)
