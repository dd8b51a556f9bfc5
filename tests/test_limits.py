"""``max_pending`` and ``max_queued_bytes``, and ``pending(conn)``, which says how much it is."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiogaio import (
    AioGaioError,
    Connection,
    Operation,
    QueueFullError,
    UnsupportedConnectionError,
    Watcher,
)
from aiogaio.limits import MAX_PENDING, MAX_QUEUED_BYTES
from tests.probes import Pairs, delegating, hung_up, receive, small_pair, unread, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]

LONG = 100_000  # more than a small pair takes


@pytest.fixture
def pair() -> Iterator[Pairs]:
    with delegating() as make:
        yield make


@asynccontextmanager
async def limited(poller: str, **limits: Any) -> AsyncIterator[Watcher]:
    async with Watcher(poller=poller, **limits) as watcher:  # type: ignore[arg-type]
        yield watcher


def under_way(watcher: Watcher, conn: Connection | socket.socket) -> tuple[int, int]:
    pending = watcher.pending(conn)
    return pending.requests, pending.queued_bytes


def assert_nothing_left(watcher: Watcher, *connections: Connection) -> None:
    statistics = watcher.statistics()
    assert (statistics.pending, statistics.submitted) == (0, statistics.completed)
    for conn in connections:
        assert under_way(watcher, conn) == (0, 0)
    assert watcher._queued_bytes == 0


# --- What the limits may be ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_pending", "max_queued_bytes"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        ((0, 1), ValueError),
        ((1, 0), ValueError),
        ((None, -5), ValueError),
        (True, TypeError),
        (1.5, TypeError),
        ("1", TypeError),
        ((), TypeError),
        ((1,), TypeError),
        ((1, 2, 3), TypeError),
        ([1, 2], TypeError),
        ((1, "2"), TypeError),
        ((False, None), TypeError),
    ],
    ids=str,
)
async def test_limits_that_are_none_raise(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        Watcher(**{name: value})


def test_queue_full_is_an_error_of_the_package() -> None:
    assert issubclass(QueueFullError, AioGaioError)


@pytest.mark.parametrize("nothing", [None, (None, None)])
async def test_without_limits_nothing_is_refused(poller: str, pair: Pairs, nothing: Any) -> None:
    async with limited(poller, max_pending=nothing, max_queued_bytes=nothing) as watcher:
        conn, _ = pair(watcher)
        for _ in range(200):
            watcher.read(conn)
            watcher.write(conn, bytes(1000))
        assert watcher.pending(conn).requests > 200


# --- max_pending ---------------------------------------------------------------------------------

Request = Callable[[Watcher, Connection], Any]

REQUESTS: dict[str, Request] = {
    "read": lambda watcher, conn: watcher.read(conn),
    "read-into": lambda watcher, conn: watcher.read(conn, bytearray(9)),
    "read-timeout": lambda watcher, conn: watcher.read(conn, timeout=60),
    "read-multishot": lambda watcher, conn: watcher.read(conn, multishot=True),
    "read_full": lambda watcher, conn: watcher.read_full(conn, bytearray(9)),
    "read_until": lambda watcher, conn: watcher.read_until(conn, b"\n"),
    "write": lambda watcher, conn: watcher.write(conn, bytes(LONG)),
    "write-silent": lambda watcher, conn: watcher.write(conn, bytes(LONG), silent=True),
    "writev": lambda watcher, conn: watcher.writev(conn, [bytes(LONG), b"x"]),
    "sendmsg": lambda watcher, conn: watcher.sendmsg(conn, [bytes(LONG)]),
    "recvmsg": lambda watcher, conn: watcher.recvmsg(conn),
    "notify_hangup": lambda watcher, conn: watcher.notify_hangup(conn),
    "shutdown": lambda watcher, conn: watcher.shutdown(conn),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_max_pending_refuses_every_kind_of_request(
    poller: str, pair: Pairs, name: str
) -> None:
    async with limited(poller, max_pending=3) as watcher:
        conn, peer = pair(watcher)
        full = [watcher.read(conn), watcher.write(conn, bytes(LONG)), watcher.read(conn)]
        before = watcher.statistics()
        with pytest.raises(QueueFullError, match="max_pending"):
            REQUESTS[name](watcher, conn)
        assert watcher.statistics() == before
        assert watcher.pending(conn).requests == 3
        await receive(peer, LONG)
        assert await one(watcher) is full[1]
        assert full[1].error is None
        accepted = REQUESTS[name](watcher, conn)  # it recovers
        assert watcher.pending(conn).requests == (2 if accepted.completed else 3)


async def test_max_pending_refuses_accepts_files_and_messages(poller: str) -> None:
    async with limited(poller, max_pending=1) as watcher:
        with tempfile.TemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listener:
            accept = watcher.accept(listener)
            for options in ({}, {"multishot": True}):
                with pytest.raises(QueueFullError):
                    watcher.accept(listener, **options)
            datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            datagram.bind(("127.0.0.1", 0))
            recvfrom = watcher.recvfrom(datagram)
            with pytest.raises(QueueFullError):
                watcher.recvfrom(datagram)
            with pytest.raises(QueueFullError):
                watcher.sendto(datagram, b"x", ("127.0.0.1", 9))
            ours, peer = unix_pair()
            with peer:
                conn = watcher.delegate(ours)
                watcher.read(conn)
                file.write(b"data")
                with pytest.raises(QueueFullError):
                    watcher.sendfile(conn, file)
            assert not accept.completed
            assert not recvfrom.completed


async def test_max_pending_counts_each_connection_for_itself(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=2) as watcher:
        pairs = [pair(watcher) for _ in range(3)]
        for conn, _ in pairs:
            watcher.read(conn)
            watcher.read(conn)
        for conn, peer in pairs:
            with pytest.raises(QueueFullError):
                watcher.read(conn)
            peer.sendall(b"x")
            assert (await one(watcher)).conn is conn
            watcher.read(conn)
            with pytest.raises(QueueFullError):
                watcher.read(conn)


async def test_max_pending_in_all(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=(None, 5)) as watcher:
        (first, peer), (second, _) = pair(watcher), pair(watcher)
        for conn in (first, first, first, second, second):
            watcher.read(conn)
        for conn in (first, second):
            with pytest.raises(QueueFullError, match="in all"):
                watcher.read(conn)
        peer.sendall(b"x")
        await one(watcher)
        watcher.read(second)
        with pytest.raises(QueueFullError):
            watcher.read(second)
        assert watcher.statistics().pending == 5


async def test_max_pending_of_both_kinds(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=(2, 3)) as watcher:
        (first, _), (second, _) = pair(watcher), pair(watcher)
        watcher.read(first)
        watcher.read(first)
        with pytest.raises(QueueFullError, match="on this connection"):
            watcher.read(first)
        watcher.read(second)
        with pytest.raises(QueueFullError, match="in all"):
            watcher.read(second)


async def test_max_pending_does_not_count_what_is_done_but_not_collected(
    poller: str, pair: Pairs
) -> None:
    async with limited(poller, max_pending=(1, 1)) as watcher:
        conn, peer = pair(watcher)
        writes = [watcher.write(conn, b"%d" % number) for number in range(9)]
        assert await receive(peer, 9) == b"012345678"
        assert await collect(watcher, 9) == writes


async def test_max_pending_in_all_counts_right_after_silence_shots_and_failures(
    poller: str, pair: Pairs
) -> None:
    async with limited(poller, max_pending=(None, 2)) as watcher:
        conn, peer = pair(watcher)
        for _ in range(5):  # silent at once, and silent later
            assert watcher.write(conn, b"x", silent=True) is None
            if watcher.write(conn, bytes(LONG), silent=True) is not None:
                await receive(peer, LONG + 1)
        await until(lambda: watcher.statistics().pending == 0)
        armed = watcher.read(conn, multishot=True)
        for _ in range(5):
            peer.sendall(b"x")
            assert (await one(watcher)).more
        reading = watcher.read(conn)
        with pytest.raises(QueueFullError):
            watcher.read(conn)
        watcher.cancel(armed)
        watcher.cancel(reading)
        await collect(watcher, 2)
        for _ in range(2):
            watcher.read(conn)
        with pytest.raises(QueueFullError):
            watcher.read(conn)
        watcher.free(conn)
        await collect(watcher, 2)
        other, _ = pair(watcher)
        watcher.read(other)
        watcher.read(other)


async def test_max_pending_counts_a_relay_once(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=(2, 3)) as watcher:
        (first, near), (second, _) = pair(watcher), pair(watcher)
        watcher.relay(first, second)
        assert (watcher.pending(first).requests, watcher.pending(second).requests) == (1, 1)
        watcher.read(first)
        with pytest.raises(QueueFullError):
            watcher.read(first)
        watcher.read(second)
        with pytest.raises(QueueFullError):
            watcher.relay(second, first)
        assert watcher.statistics().pending == 3
        near.close()


async def test_max_pending_refuses_a_relay_whichever_side_is_full(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=1) as watcher:
        (first, _), (second, _) = pair(watcher), pair(watcher)
        watcher.read(second)
        for two in ((first, second), (second, first)):
            with pytest.raises(QueueFullError):
                watcher.relay(*two)
        assert under_way(watcher, first) == (0, 0)
        assert watcher.statistics().pending == 1


async def test_max_pending_counts_a_connect_once(poller: str) -> None:
    async with limited(poller, max_pending=2) as watcher:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.socket()
            connect = watcher.connect(sock, listener.getsockname())
            if not connect.completed:
                assert watcher.pending(sock).requests == 1
            watcher.read(sock)
            await until(lambda: connect.completed)
            watcher.read(sock)
            with pytest.raises(QueueFullError):
                watcher.read(sock)


async def test_max_pending_does_not_count_who_drains(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=2) as watcher:
        conn, peer = pair(watcher)
        watcher.write(conn, bytes(LONG))
        draining = [asyncio.create_task(watcher.drain(conn)) for _ in range(3)]
        await settle()
        assert watcher.pending(conn).requests == 1
        watcher.read(conn)
        with pytest.raises(QueueFullError):
            watcher.read(conn)
        await receive(peer, LONG)
        async with asyncio.timeout(10):
            await asyncio.gather(*draining)


async def test_max_pending_is_not_slower_for_a_long_queue(poller: str, pair: Pairs) -> None:
    """Sixteen times as many take sixteen times as long, about, and not 256 times."""
    async with limited(poller, max_pending=(None, 1 << 20)) as watcher:

        def seconds(count: int) -> float:
            conn, _ = pair(watcher)
            begin = time.process_time()
            for _ in range(count):
                watcher.read(conn)
            return time.process_time() - begin

        seconds(250)
        assert min(seconds(4000) for _ in range(2)) < 60 * min(seconds(250) for _ in range(3))


async def test_S2_a_refused_request_does_not_delegate_the_socket(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=(None, 1)) as watcher:
        conn, _ = pair(watcher)
        watcher.read(conn)
        sock, peer = unix_pair()
        with sock, peer:
            for name in ("read", "notify_hangup", "recvfrom", "shutdown"):
                with pytest.raises(QueueFullError):
                    getattr(watcher, name)(sock)
            with pytest.raises(QueueFullError):
                watcher.write(sock, b"x")
            with pytest.raises(QueueFullError):
                watcher.relay(sock, conn)
            assert watcher.statistics().connections == 1
            peer.sendall(b"mine")
            assert sock.recv(4) == b"mine"


async def test_S2_misuse_is_told_before_the_queue_is_looked_at(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=1) as watcher:
        conn, _ = pair(watcher)
        watcher.read(conn)
        with pytest.raises(ValueError, match="timeout"):
            watcher.read(conn, timeout=-1)
        with pytest.raises(TypeError):
            watcher.write(conn, "text")  # type: ignore[call-overload]


# --- max_queued_bytes ----------------------------------------------------------------------------

SENDS: dict[str, Callable[[Watcher, Connection, int], Any]] = {
    "write": lambda watcher, conn, size: watcher.write(conn, bytes(size)),
    "silent": lambda watcher, conn, size: watcher.write(conn, bytearray(size), silent=True),
    "writev": lambda watcher, conn, size: watcher.writev(conn, [b"", b"x", bytes(size - 1)]),
    "writev-silent": lambda watcher, conn, size: watcher.writev(
        conn, [bytes(size // 2), bytes(size - size // 2)], silent=True
    ),
    "sendmsg": lambda watcher, conn, size: watcher.sendmsg(conn, [bytes(size)]),
    "deadline": lambda watcher, conn, size: watcher.write(conn, bytes(size), timeout=60),
}


@pytest.mark.parametrize("name", SENDS)
async def test_max_queued_bytes_refuses_every_kind_of_write(
    poller: str, pair: Pairs, name: str
) -> None:
    async with limited(poller, max_queued_bytes=2 * LONG) as watcher:
        conn, peer = pair(watcher)
        request = SENDS[name]
        request(watcher, conn, LONG)
        queued = watcher.pending(conn).queued_bytes
        assert 0 < queued < LONG
        room = 2 * LONG - queued
        before = watcher.statistics()
        with pytest.raises(QueueFullError, match="max_queued_bytes"):
            request(watcher, conn, room + 1)
        assert watcher.statistics() == before
        assert under_way(watcher, conn) == (1, queued)
        request(watcher, conn, room)  # to the byte
        assert under_way(watcher, conn) == (2, 2 * LONG)
        with pytest.raises(QueueFullError):
            request(watcher, conn, 2)
        watcher.read(conn)  # no bytes
        watcher.shutdown(conn)
        received = await receive(peer, LONG + room)
        assert len(received) == LONG + room
        await until(lambda: under_way(watcher, conn) == (1, 0))
        assert watcher._queued_bytes == 0


async def test_max_queued_bytes_lets_the_first_write_be_longer(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_queued_bytes=(10, 10)) as watcher:
        conn, peer = pair(watcher)
        for _ in range(3):
            write = watcher.write(conn, bytes(LONG))
            assert not write.completed
            with pytest.raises(QueueFullError):
                watcher.write(conn, b"x")
            await receive(peer, LONG)
            assert await one(watcher) is write
            assert write.error is None


async def test_max_queued_bytes_in_all(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_queued_bytes=(None, 2 * LONG)) as watcher:
        (first, peer), (second, other) = pair(watcher), pair(watcher)
        watcher.write(first, bytes(LONG))
        queued = watcher.pending(first).queued_bytes
        for conn in (first, second):
            with pytest.raises(QueueFullError, match="in all"):
                watcher.write(conn, bytes(2 * LONG - queued + 1))
        watcher.write(second, bytes(2 * LONG - queued))
        both = queued + watcher.pending(second).queued_bytes
        assert both <= 2 * LONG
        with pytest.raises(QueueFullError):
            watcher.write(first, bytes(2 * LONG - both + 1))
        await receive(peer, LONG)
        await one(watcher)
        watcher.write(first, bytes(queued))  # what was given back
        await receive(other, 2 * LONG - queued)


async def test_max_queued_bytes_of_both_kinds(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_queued_bytes=(LONG, 2 * LONG - 1)) as watcher:
        (first, _), (second, _) = pair(watcher), pair(watcher)
        watcher.write(first, bytes(LONG))
        with pytest.raises(QueueFullError, match="on this connection"):
            watcher.write(first, bytes(LONG))
        watcher.write(second, bytes(LONG))
        watcher.write(second, bytes(LONG - watcher.pending(second).queued_bytes))
        with pytest.raises(QueueFullError, match="in all"):
            watcher.write(first, bytes(LONG - watcher.pending(first).queued_bytes))


# --- Requests from other threads -----------------------------------------------------------------


def elsewhere(work: Callable[[], Any]) -> Any:
    """What the call gives in another thread, while the loop's stands still."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    (result,) = outcome
    return result


def refused(calls: list[Callable[[], Any]]) -> int:
    """How many of these are, made one after the other in one thread."""
    count = 0
    for call in calls:
        try:
            call()
        except QueueFullError:
            count += 1
    return count


@pytest.mark.parametrize("limit", [2, (None, 2), (2, 2)], ids=str)
async def test_max_pending_of_requests_from_other_threads(
    poller: str, pair: Pairs, limit: Any
) -> None:
    async with limited(poller, max_pending=limit) as watcher:
        conn, peer = pair(watcher)
        view = watcher.threadsafe
        calls: list[Callable[[], Any]] = [
            lambda: view.read(conn),
            lambda: view.read_full(conn, bytearray(1)),
            lambda: view.read(conn),
            lambda: view.write(conn, bytes(LONG)),
            lambda: view.read(conn, multishot=True),
        ]
        assert elsewhere(lambda: refused(calls)) == 3
        with pytest.raises(QueueFullError):
            watcher.read(conn)
        await settle()
        assert watcher.pending(conn).requests == 2
        assert elsewhere(lambda: refused(calls)) == 5
        peer.sendall(b"xy")
        peer.shutdown(socket.SHUT_WR)
        await collect(watcher, 2)
        assert elsewhere(lambda: refused(calls[:1])) == 0
        await one(watcher)
        assert_nothing_left(watcher, conn)


@pytest.mark.parametrize("limit", [LONG, (None, LONG), (LONG, LONG)], ids=str)
async def test_max_queued_bytes_of_requests_from_other_threads(
    poller: str, pair: Pairs, limit: Any
) -> None:
    async with limited(poller, max_queued_bytes=limit) as watcher:
        conn, peer = pair(watcher)
        view = watcher.threadsafe
        calls: list[Callable[[], Any]] = [lambda: view.write(conn, bytes(LONG // 2))] * 5
        assert elsewhere(lambda: refused(calls)) == 3
        with pytest.raises(QueueFullError):
            watcher.write(conn, bytes(LONG // 2))
        assert len(await receive(peer, 2 * (LONG // 2))) == LONG
        await collect(watcher, 2)
        silent: list[Callable[[], Any]] = [
            lambda: view.write(conn, bytes(LONG // 2), silent=True)
        ] * 3
        assert elsewhere(lambda: refused(silent)) == 1
        await receive(peer, LONG)
        await until(lambda: watcher.statistics().pending == 0)
        assert_nothing_left(watcher, conn)


async def test_max_pending_of_requests_behind_the_inbox(poller: str, pair: Pairs) -> None:
    """While something from another thread waits, what the loop's own thread asks for waits, too."""
    async with limited(poller, max_pending=3, max_queued_bytes=2 * LONG) as watcher:
        conn, peer = pair(watcher)
        elsewhere(lambda: watcher.threadsafe.read(conn))
        calls: list[Callable[[], Any]] = [lambda: watcher.read(conn)] * 4
        assert refused(calls) == 2
        await settle()
        assert watcher.pending(conn).requests == 3
        peer.sendall(b"x")
        peer.shutdown(socket.SHUT_WR)
        await collect(watcher, 3)
        elsewhere(lambda: watcher.threadsafe.read(conn))
        writes: list[Callable[[], Any]] = [lambda: watcher.write(conn, bytes(LONG))] * 4
        assert refused(writes) == 2
        await receive(peer, 2 * LONG)
        await collect(watcher, 3)
        assert_nothing_left(watcher, conn)


async def test_max_pending_of_many_threads_at_once(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=(20, 50)) as watcher:
        pairs = [pair(watcher) for _ in range(4)]
        refusals: list[int] = []
        barrier = threading.Barrier(4)

        def work() -> None:
            barrier.wait(10)
            calls: list[Callable[[], Any]] = []
            for number in range(40):
                conn = pairs[number % 4][0]
                calls.append(lambda conn=conn: watcher.threadsafe.read(conn))
            refusals.append(refused(calls))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))
        await settle()
        assert sum(refusals) == 160 - 50
        assert watcher.statistics().pending == 50
        assert all(watcher.pending(conn).requests <= 20 for conn, _ in pairs)
        for _, peer in pairs:
            peer.close()
        await collect(watcher, 50)
        assert_nothing_left(watcher, *(conn for conn, _ in pairs))


async def test_refused_requests_of_other_threads_leave_no_trace(poller: str, pair: Pairs) -> None:
    async with limited(poller, max_pending=1, max_queued_bytes=10) as watcher:
        conn, peer = pair(watcher)
        watcher.write(conn, bytes(LONG))
        for _ in range(5):
            result = elsewhere(lambda: watcher.threadsafe.write(conn, bytes(50)))
            assert type(result) is QueueFullError
        await receive(peer, LONG)
        await one(watcher)
        assert type(elsewhere(lambda: watcher.threadsafe.write(conn, b"after"))) is not (
            QueueFullError
        )
        assert (await one(watcher)).error is None
        assert_nothing_left(watcher, conn)


async def test_close_overtakes_requests_of_other_threads_that_are_counted(
    poller: str, pair: Pairs
) -> None:
    async with limited(poller, max_pending=5, max_queued_bytes=LONG) as watcher:
        conn, _ = pair(watcher)
        elsewhere(lambda: watcher.threadsafe.write(conn, bytes(LONG)))
        elsewhere(lambda: watcher.threadsafe.read(conn))
        watcher.close()
        assert len(watcher.poll_io()) == 2
        assert_nothing_left(watcher, conn)


# --- pending(conn) -------------------------------------------------------------------------------


async def test_pending_is_a_frozen_record(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    pending = watcher.pending(conn)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pending.requests = 1  # type: ignore[misc]
    assert (pending.requests, pending.queued_bytes) == (0, 0)


async def test_pending_takes_the_socket_that_was_delegated(watcher: Watcher) -> None:
    sock, peer = unix_pair()
    with peer:
        watcher.read(sock)
        assert under_way(watcher, sock) == (1, 0)


async def test_S2_pending_of_a_stranger_raises(watcher: Watcher, pair: Pairs) -> None:
    sock, peer = unix_pair()
    async with Watcher() as other:
        foreign, _ = pair(other)
        with sock, peer:
            for stranger in (sock, foreign, None, 3):
                with pytest.raises(UnsupportedConnectionError):
                    watcher.pending(stranger)  # type: ignore[arg-type]
            assert sock.fileno() >= 0


async def test_pending_counts_reads_writes_and_hangups(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.read(conn)
    watcher.read(conn, multishot=True)
    watcher.notify_hangup(conn)
    watcher.notify_hangup(conn)
    assert under_way(watcher, conn) == (4, 0)
    write = watcher.write(conn, bytes(LONG))
    assert under_way(watcher, conn) == (5, LONG - write.size)
    watcher.write(conn, bytes(7))
    watcher.shutdown(conn)
    assert under_way(watcher, conn) == (7, LONG - write.size + 7)
    watcher.free(conn)
    assert under_way(watcher, conn) == (0, 0)
    await collect(watcher, 7)
    assert_nothing_left(watcher, conn)


async def test_pending_says_how_much_is_queued_after_each_receive_of_the_peer(
    watcher: Watcher, pair: Pairs
) -> None:
    """Plain, silent, gathered and coalesced writes, each partly sent at some time."""
    conn, peer = pair(watcher)
    total = 0
    for _ in range(3):
        watcher.write(conn, bytes(LONG), silent=True)
        watcher.writev(conn, [bytes(1000)] * 50)
        for _ in range(30):
            watcher.write(conn, bytes(100))
        watcher.writev(conn, [bytes(10), bytes(LONG)], silent=True)
        watcher.sendmsg(conn, [bytes(500), bytes(500)])
        total += LONG + 50_000 + 3_000 + 10 + LONG + 1_000
    peer.setblocking(False)
    received = 0
    async with asyncio.timeout(20):
        while received < total:
            # The count is of bytes that the socket has not taken.
            assert watcher.pending(conn).queued_bytes == total - received - in_flight(peer)
            try:
                received += len(peer.recv(9973))
            except BlockingIOError:
                pass
            await asyncio.sleep(0)
    await collect(watcher, 3 * 32)
    await until(lambda: watcher.statistics().pending == 0)
    assert_nothing_left(watcher, conn)


def in_flight(peer: socket.socket) -> int:
    """Bytes that have been sent to a Unix socket, and not received."""
    return unread(peer)


async def test_pending_after_a_torn_write_and_what_it_takes_with_it(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, _ = pair(watcher)
    torn = watcher.write(conn, bytes(LONG))
    behind = [watcher.write(conn, bytes(100)) for _ in range(2000)]
    silent = watcher.write(conn, bytearray(100), silent=True)
    vector = watcher.writev(conn, [bytes(100)] * 3)
    assert under_way(watcher, conn) == (2003, LONG - torn.size + 200_400)
    watcher.cancel(torn)
    later = watcher.write(conn, bytes(50))
    results = await collect(watcher, 2004)
    assert {id(op) for op in results} == {id(op) for op in (torn, *behind, silent, vector, later)}
    assert_nothing_left(watcher, conn)


async def test_pending_after_a_write_in_the_middle_is_cancelled(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    first = watcher.write(conn, bytes(LONG))
    second, third = watcher.write(conn, bytes(10_000)), watcher.writev(conn, [bytes(5_000)] * 2)
    left = LONG - first.size
    assert under_way(watcher, conn) == (3, left + 20_000)
    watcher.cancel(second)
    assert under_way(watcher, conn) == (2, left + 10_000)
    watcher.cancel(third)
    assert under_way(watcher, conn) == (1, left)
    await receive(peer, LONG)
    await collect(watcher, 3)
    assert_nothing_left(watcher, conn)


async def test_pending_after_a_deadline(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    first = watcher.write(conn, bytes(LONG))
    watcher.write(conn, bytes(10_000), timeout=0.01)
    watcher.write(conn, bytes(10_000), timeout=0)
    assert under_way(watcher, conn) == (2, LONG - first.size + 10_000)
    await collect(watcher, 2)
    assert under_way(watcher, conn) == (1, LONG - first.size)
    await receive(peer, LONG)
    assert await one(watcher) is first
    assert_nothing_left(watcher, conn)


async def test_pending_after_an_overdue_write_was_sent_in_part(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, _ = pair(watcher)
    write = watcher.write(conn, bytes(LONG), timeout=0)
    assert await one(watcher) is write
    assert 0 < write.size < LONG
    assert_nothing_left(watcher, conn)


async def test_pending_after_free_and_close(watcher: Watcher, pair: Pairs) -> None:
    (first, _), (second, _) = pair(watcher), pair(watcher)
    for conn in (first, second):
        watcher.write(conn, bytes(LONG))
        watcher.write(conn, bytes(10), silent=True)
        watcher.read(conn)
    watcher.free(first)
    assert under_way(watcher, first) == (0, 0)
    assert watcher._queued_bytes == watcher.pending(second).queued_bytes > 0
    watcher.close()
    assert_nothing_left(watcher, first, second)
    assert len(watcher.poll_io()) == 6


@pytest.mark.parametrize("options", [{}, {"silent": True}, {"timeout": 60}], ids=str)
@pytest.mark.parametrize("queued", [0, 1, 5])
async def test_pending_after_a_write_failed(
    watcher: Watcher, pair: Pairs, options: dict[str, Any], queued: int
) -> None:
    """At the call, or later with others behind it."""
    conn, peer = pair(watcher, tcp_pair)
    await settle()
    for _ in range(queued):
        watcher.write(conn, bytes(8 << 20), **options)
    assert watcher.pending(conn).requests == queued
    reset(peer)
    await until(lambda: hung_up(conn))
    watcher.write(conn, bytes(100), **options)
    results = await collect(watcher, queued + 1)
    assert all(op.error is not None for op in results)
    assert_nothing_left(watcher, conn)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("silent", [True, False])
async def test_pending_while_a_write_waits_for_the_system_s_memory(
    watcher: Watcher, pair: Pairs, monkeypatch: pytest.MonkeyPatch, number: int, silent: bool
) -> None:
    conn, peer = pair(watcher, tcp_pair)
    send, short = type(conn._record).send, [True]

    def shortage(self: Any, data: Any) -> int:
        if short:
            raise OSError(number, os.strerror(number))
        return send(self, data)

    monkeypatch.setattr(type(conn._record), "send", shortage, raising=False)
    watcher.write(conn, bytes(100), silent=silent)
    assert under_way(watcher, conn) == (1, 100)
    watcher.write(conn, bytes(10))
    assert under_way(watcher, conn) == (2, 110)
    short.clear()
    assert await receive(peer, 110) == bytes(110)
    await collect(watcher, 1 if silent else 2)
    assert_nothing_left(watcher, conn)


async def test_pending_after_a_buffer_was_resized(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    first, mine = watcher.write(conn, bytes(LONG)), bytearray(1000)
    broken, parts = watcher.write(conn, mine), [bytearray(500), bytearray(500)]
    also = watcher.writev(conn, parts)
    assert watcher.pending(conn).queued_bytes == LONG - first.size + 2000
    del mine[10:], parts[1][10:]
    await receive(peer, LONG)
    await collect(watcher, 3)
    assert type(broken.error) is type(also.error) is BufferError
    assert_nothing_left(watcher, conn)


async def test_pending_of_a_file_counts_requests_only(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(LONG))
        file.flush()
        send = watcher.sendfile(conn, file, 0, LONG)
        assert under_way(watcher, conn) == (1, 0)
        watcher.write(conn, b"behind")
        assert under_way(watcher, conn) == (2, 6)
        await receive(peer, LONG + 6)
        assert (await collect(watcher, 2))[0] is send
    assert_nothing_left(watcher, conn)


async def test_pending_of_datagrams(watcher: Watcher) -> None:
    receiver, sender = unix_pair(socket.SOCK_DGRAM)
    with receiver:
        conn = watcher.delegate(sender)
        count = 0
        async with asyncio.timeout(10):
            while watcher.pending(conn).requests < 3:
                watcher.write(conn, bytes(100))
                count += 1
        assert under_way(watcher, conn) == (3, 300)
        receiver.settimeout(10)
        for _ in range(count):
            await settle(3)
            assert len(receiver.recv(200)) == 100
        await collect(watcher, count)
        assert_nothing_left(watcher, conn)


async def test_pending_with_a_connect_that_fails(watcher: Watcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    sock = socket.socket()
    operations = [
        watcher.connect(sock, address),
        watcher.write(sock, bytes(1000)),
        watcher.writev(sock, [bytes(500)] * 2),
        watcher.write(sock, bytes(10), silent=True),
        watcher.read(sock),
    ]
    await collect(watcher, 5)
    assert all(isinstance(op.error, OSError) for op in operations if op is not None)
    conn = operations[0].conn  # type: ignore[union-attr]
    assert_nothing_left(watcher, conn)


# --- A storm -------------------------------------------------------------------------------------


def any_request(watcher: Watcher, conn: Connection, rng: random.Random) -> Operation | None:
    size, silent = rng.choice([1, 64, 1000, 20_000, 70_000]), rng.random() < 0.3
    match rng.randrange(10):
        case 0 | 1:
            return watcher.write(conn, bytearray(size), silent=silent)
        case 2:
            return watcher.write(conn, bytes(size), silent=silent)
        case 3:
            return watcher.writev(conn, [bytes(size - size // 3), bytes(size // 3)], silent=silent)
        case 4:
            return watcher.write(conn, bytes(size), timeout=rng.choice([0, 0.001, 60]))
        case 5:
            return watcher.read(conn, timeout=rng.choice([None, 0.001]))
        case 6:
            return watcher.read_full(conn, bytearray(50))
        case 7:
            return watcher.read(conn, multishot=True, timeout=0.002)
        case 8:
            return watcher.threadsafe.write(conn, bytes(size), silent=silent)
        case _:
            return watcher.threadsafe.read(conn)


def stir(peer: socket.socket, rng: random.Random) -> None:
    try:
        peer.recv(rng.choice([100, 100_000]))
        peer.send(bytes(rng.randrange(1, 60)))
    except (BlockingIOError, ConnectionError):
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_limits_in_a_storm(poller: str, pair: Pairs, seed: int) -> None:
    """Nothing is lost, the limits hold at every moment, and nothing is counted in the end."""
    rng = random.Random(seed)
    async with limited(poller, max_pending=(12, 40), max_queued_bytes=(60_000, 150_000)) as watcher:
        pairs = [pair(watcher, rng.choice([small_pair, tcp_pair])) for _ in range(5)]
        for _, peer in pairs:
            peer.setblocking(False)
        alive, accepted, results, refusals = list(pairs), [], [], 0
        for _ in range(600):
            conn, peer = rng.choice(alive)
            try:
                operation = any_request(watcher, conn, rng)
                if operation is not None:
                    accepted.append(operation)
            except QueueFullError:
                refusals += 1
            if rng.random() < 0.1:
                watcher.cancel(rng.choice(accepted)) if accepted else None
            if rng.random() < 0.003 and len(alive) > 1:
                alive.remove((conn, peer))
                watcher.free(conn) if rng.random() < 0.5 else reset(peer)
            if rng.random() < 0.5:
                for _, one_peer in alive:
                    stir(one_peer, rng)
            if rng.random() < 0.3:
                results += watcher.poll_io()
                await asyncio.sleep(0)
            pending = [watcher.pending(conn) for conn, _ in pairs]
            queued = [one.queued_bytes for one in pending]
            assert watcher.statistics().pending <= 40
            assert max(one.requests for one in pending) <= 12
            assert sum(queued) == watcher._queued_bytes <= 150_000
            assert min(queued) >= 0
            assert max(queued) <= 70_000  # the first may be longer
        assert refusals
        for conn, _ in pairs:
            watcher.free(conn)
        await settle()
        results += watcher.poll_io()
        ends = {id(op) for op in results if not op.more}
        assert len(ends) == sum(not op.more for op in results)
        assert ends <= {id(op) for op in accepted}
        for op in accepted:
            assert op.completed
            assert id(op) in ends or (getattr(op, "silent", False) and op.error is None)
        assert_nothing_left(watcher, *(conn for conn, _ in pairs))


# --- By default ----------------------------------------------------------------------------------

Writes = Callable[[Watcher, Connection], Any]


@pytest.mark.parametrize(
    ("write", "counted"),
    [
        (lambda watcher, conn: watcher.write(conn, b"x", silent=True), "requests"),
        (lambda watcher, conn: watcher.read(conn, bytearray(1)), "requests"),
        (lambda watcher, conn: watcher.threadsafe.write(conn, b"x"), "requests"),
        (lambda watcher, conn: watcher.write(conn, bytes(1 << 20), silent=True), "queued_bytes"),
        (lambda watcher, conn: watcher.sendmsg(conn, [bytes(1 << 20)]), "queued_bytes"),
    ],
    ids=["silent", "read", "threadsafe", "silent-bytes", "sendmsg"],
)
async def test_S15_by_default_a_peer_that_takes_nothing_costs_a_bounded_amount(
    poller: str, pair: Pairs, write: Writes, counted: str
) -> None:
    limit = {"requests": MAX_PENDING, "queued_bytes": MAX_QUEUED_BYTES}[counted]
    in_between = 1000
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        conn, _ = pair(watcher, small_pair)
        watcher.write(conn, bytes(LONG))
        with pytest.raises(QueueFullError):
            for number in range(MAX_PENDING + 2 * in_between):
                write(watcher, conn)
                if not number % in_between:  # what a thread has asked for comes to its queue
                    await settle()
        await settle()
        assert limit / 2 < getattr(watcher.pending(conn), counted) <= limit + in_between
        before = watcher.pending(conn)
        with pytest.raises(QueueFullError):
            write(watcher, conn)
        assert watcher.pending(conn) == before
        other, _ = pair(watcher, small_pair)
        write(watcher, other)  # the others are served as ever


@pytest.mark.parametrize("silent", [False, True])
async def test_S15_by_default_what_threads_write_while_the_loop_is_busy_is_bounded(
    poller: str, pair: Pairs, silent: bool
) -> None:
    size = 1 << 20
    most = MAX_QUEUED_BYTES // size
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        conn, _ = pair(watcher, small_pair)
        view, data = watcher.threadsafe, bytes(size)
        calls: list[Callable[[], Any]] = [lambda: view.write(conn, data, silent=silent)] * most
        assert elsewhere(lambda: refused(calls)) == 0
        assert elsewhere(lambda: refused(calls)) == most  # the loop has not come for the others yet
        await settle()
        assert MAX_QUEUED_BYTES - size < watcher.pending(conn).queued_bytes <= MAX_QUEUED_BYTES
        watcher.free(conn)
        assert elsewhere(lambda: refused(calls)) == 0
        await settle()
        assert not watcher._posted


async def test_the_limits_of_the_default_leave_messages_the_short_way(poller: str) -> None:
    """As do bytes for each connection, which concern only what is queued."""
    for options in ({}, {"max_pending": None}, {"max_queued_bytes": None}, {"max_queued_bytes": 5}):
        async with Watcher(poller=poller, **options) as watcher:  # type: ignore[arg-type]
            assert watcher._fast
    for options in ({"max_pending": 5}, {"max_pending": (None, 5)}, {"max_queued_bytes": (5, 9)}):
        async with Watcher(poller=poller, **options) as watcher:  # type: ignore[arg-type]
            assert not watcher._fast
