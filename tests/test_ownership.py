"""Whose descriptor it is, from delegation to the end: rules O1, O2, O3 and O5."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OpType,
    UnsupportedConnectionError,
    Watcher,
)
from tests.probes import (
    LONG,
    LOOP_FACTORIES,
    LoopCalls,
    bounded,
    collecting_by_hand,
    drained,
    fill,
    is_epoll,
    is_open,
    no_loop_errors,
    open_descriptors,
    receive,
    recorded_warnings,
    resource_warnings,
    small_pair,
    unread,
    until,
)
from tests.support import collect, one, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")


def registered(fd: int) -> bool:
    """Whether any epoll of this process, a watcher's or a loop's, reports this number."""
    for number in open_descriptors():
        if is_epoll(number):
            with open(f"/proc/self/fdinfo/{number}") as info:
                for line in info:
                    if line.startswith("tfd:") and int(line.split()[1]) == fd:
                        return True
    return False


# --- O1: delegation -------------------------------------------------------------------------------


async def test_O1_the_descriptor_is_taken_over_and_not_copied(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        await settle()
        fd, before = ours.fileno(), open_descriptors()
        conn = watcher.delegate(ours)
        assert conn.fileno() == fd
        watcher.read(conn)
        await settle()
        assert open_descriptors() == before
        watcher.free(conn)
        assert not is_open(fd)


@pytest.mark.parametrize("on_the_spot", [False, True], ids=["delegate", "request"])
async def test_O1_the_socket_is_spent(watcher: Watcher, on_the_spot: bool) -> None:
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.read(ours).conn if on_the_spot else watcher.delegate(ours)
        peer.sendall(b"for the watcher")
        uses: list[Callable[[], object]] = [
            lambda: ours.recv(1),
            lambda: ours.recv_into(bytearray(1)),
            lambda: ours.send(b"x"),
            lambda: ours.sendall(b"x"),
            ours.getsockname,
            lambda: ours.shutdown(socket.SHUT_RDWR),
        ]
        for use in uses:
            with pytest.raises(OSError):
                use()
        assert ours.fileno() == -1
        if not on_the_spot:
            watcher.read(conn)
        assert (await one(watcher)).data == b"for the watcher"


async def test_O1_closing_or_dropping_the_spent_socket_closes_nothing(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with collecting_by_hand(), peer, recorded_warnings() as caught:
        conn = watcher.delegate(ours)
        ours.close()
        with ours:
            pass
        del ours
        gc.collect()
        assert not conn.closed
        watcher.write(conn, b"still open")
        assert (await one(watcher)).error is None
        assert await receive(peer, 10) == b"still open"
        watcher.free(conn)
    assert not resource_warnings(caught)


async def test_O1_a_socket_stands_for_its_connection_in_later_requests(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        first = watcher.read(ours)
        conn = first.conn
        assert isinstance(conn, Connection)
        conn.context = "the connection's"
        second = watcher.write(ours, b"written")
        third = watcher.read_full(ours, bytearray(4))
        assert second is not None
        assert second.conn is third.conn is conn
        assert second.context == third.context == "the connection's"
        peer.sendall(b"one")
        await until(lambda: first.completed)
        peer.sendall(b"four")
        results = await collect(watcher, 3)
        assert {op.conn for op in results} == {conn}
        assert await receive(peer, 7) == b"written"
        assert watcher.statistics().connections == 1
        assert watcher.free(ours) is True
        assert conn.closed
        assert watcher.free(ours) is False


async def test_O1_a_listener_can_be_passed_as_a_socket(watcher: Watcher) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    first = watcher.accept(listener)
    second = watcher.accept(listener)
    assert first.conn is second.conn
    with socket.create_connection(address), socket.create_connection(address):
        results = await collect(watcher, 2)
        assert results == [first, second]
        assert all(isinstance(op.accepted, Connection) for op in results)


async def test_O1_a_socket_alone_in_hand_keeps_its_connection(watcher: Watcher) -> None:
    """A program that holds the spent socket and nothing else can go on with it."""
    ours, peer = tcp_pair()
    with collecting_by_hand(), peer:
        for number in range(3):
            watcher.read(ours)
            peer.sendall(b"%d" % number)
            assert (await one(watcher)).data == b"%d" % number
            gc.collect()
        watcher.write(ours, b"still there", silent=True)
        gc.collect()
        assert await receive(peer, 11) == b"still there"
        assert watcher.free(ours) is True


async def test_O1_spent_sockets_do_not_pile_up(watcher: Watcher) -> None:
    spent: list[weakref.ref[socket.socket]] = []
    with collecting_by_hand():
        for _ in range(50):
            ours, peer = unix_pair()
            spent.append(weakref.ref(ours))
            watcher.free(watcher.read(ours).conn)
            peer.close()
        ours = peer
        await settle()
        watcher.poll_io()
        gc.collect()
        assert all(ref() is None for ref in spent)


async def test_O1_a_new_socket_does_not_stand_for_an_old_connection(watcher: Watcher) -> None:
    """Neither the address of the object nor the number of the descriptor is mistaken for it."""
    conns: set[int] = set()
    kept: list[Connection] = []
    for number in range(50):
        ours, peer = unix_pair()
        op = watcher.read(ours)
        assert id(op.conn) not in conns
        kept.append(op.conn)
        conns.add(id(op.conn))
        peer.sendall(b"%d" % number)
        assert await one(watcher) is op
        assert (op.error, op.data) == (None, b"%d" % number)
        watcher.free(op.conn)
        peer.close()
        del ours, peer, op


async def test_O1_options_set_before_stay(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        options = [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
            (socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000),
            (socket.SOL_SOCKET, socket.SO_PRIORITY, 3),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12_345),
        ]
        for option in options:
            ours.setsockopt(*option)
        before = [ours.getsockopt(level, name) for level, name, _ in options]
        names = ours.getsockname(), ours.getpeername(), ours.family
        conn = watcher.delegate(ours)
        assert [conn.getsockopt(level, name) for level, name, _ in options] == before
        assert (conn.sockname, conn.peername, conn.family) == names
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
async def test_O1_any_blocking_mode_before_will_do(watcher: Watcher, timeout: float | None) -> None:
    ours, peer = tcp_pair()
    with peer:
        ours.settimeout(timeout)
        conn = watcher.delegate(ours)
        assert not os.get_blocking(conn.fileno())
        op = watcher.read(conn)
        assert not op.completed
        peer.sendall(b"data")
        assert await one(watcher) is op
        assert op.data == b"data"


async def test_O1_the_program_delegates_after_a_handshake_of_its_own(watcher: Watcher) -> None:
    """What it has sent and received itself is over; what has come since is the watcher's."""
    ours, peer = tcp_pair()
    with peer:
        ours.settimeout(10)
        ours.sendall(b"hello")
        assert peer.recv(5) == b"hello"
        peer.sendall(b"OKfirst message")
        assert ours.recv(2) == b"OK"
        conn = watcher.delegate(ours)
        watcher.read_full(conn, bytearray(13))
        op = await one(watcher)
        assert (op.error, bytes(op.data)) == (None, b"first message")


async def test_O1_a_socket_spent_here_is_of_no_use_elsewhere(poller: str) -> None:
    ours, peer = tcp_pair()
    with peer:
        async with Watcher(poller=poller) as watcher, Watcher(poller=poller) as other:
            conn = watcher.delegate(ours)
            with pytest.raises(UnsupportedConnectionError):
                other.delegate(ours)
            with pytest.raises(UnsupportedConnectionError):
                other.read(ours)
            with pytest.raises(UnsupportedConnectionError):
                other.read(conn)
            assert other.statistics().connections == 0
            watcher.read(conn)
            peer.sendall(b"unharmed")
            assert (await one(watcher)).data == b"unharmed"


# --- O2: free -------------------------------------------------------------------------------------


async def test_O2_free_completes_what_is_pending_reads_first(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        write = watcher.write(conn, bytes(LONG), context=3)
        queued = watcher.write(conn, b"queued", context=4, timeout=100)
        silent = watcher.write(conn, b"silent", context=5, silent=True)
        read = watcher.read_full(conn, bytearray(10), context=1)
        peer.sendall(b"abc")
        await until(lambda: unread(conn) == 0)
        behind = watcher.read(conn, context=2, timeout=100)
        await settle(3)
        sent = unread(peer)
        assert watcher.free(conn) is True
        results = watcher.poll_io()
        assert results == [read, behind, write, queued, silent]
        assert all(type(op.error) is ConnectionFreedError for op in results)
        assert [op.size for op in results] == [3, 0, sent, 0, 0]
        assert bytes(read.data) == b"abc"
        assert len(await drained(peer)) == sent
        await settle()
        assert watcher.poll_io() == []


@pytest.mark.parametrize("how", ["free", "close"])
async def test_O2_free_closes_at_once(watcher: Watcher, how: str) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn)
        await settle(3)
        fd = conn.fileno()
        if how == "free":
            assert watcher.free(conn) is True
        else:
            conn.close()
        assert not is_open(fd)
        assert peer.recv(1) == b""  # no turn of the loop in between
        assert conn.closed
        assert conn.fileno() == -1
        assert watcher.statistics().connections == 0
        assert type((await one(watcher)).error) is ConnectionFreedError


@pytest.mark.parametrize("whole", [False, True], ids=["free", "close"])
async def test_O2_free_does_not_wait_for_what_is_unsent(watcher: Watcher, whole: bool) -> None:
    """With a time in SO_LINGER close(2) does, of a non-blocking socket too (socket(7))."""
    ours, peer = tcp_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        conn = watcher.delegate(ours)
        watcher.write(conn, bytes(32 << 20))
        await settle()
        sent = watcher.statistics().bytes_written
        assert unread(peer) < sent
        begin = time.monotonic()
        (watcher if whole else conn).close()
        assert time.monotonic() - begin < 10
        assert len(await drained(peer)) == sent, "what the system had taken did not arrive"


async def test_O2_free_of_what_was_never_delegated_does_not_wait_either(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        ours.setblocking(False)
        sent = fill(ours)
        begin = time.monotonic()
        watcher.free(ours)
        assert time.monotonic() - begin < 10
        assert len(await drained(peer)) == sent


@pytest.mark.parametrize("listening", [False, True], ids=["duplicate", "listener"])
async def test_O1_free_leaves_alone_what_others_share(watcher: Watcher, listening: bool) -> None:
    """SO_LINGER is the socket's, whoever has a descriptor of it, and accepted ones inherit it."""
    linger = struct.pack("ii", 1, 60)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = listener.dup() if listening else socket.create_connection(listener.getsockname())
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            watcher.free(watcher.delegate(ours.dup() if listening else ours.fileno()))
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))


async def test_O2_freeing_again_returns_false_and_closes_nothing(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        number = conn.fileno()
        assert watcher.free(conn) is True
        strangers = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        assert number in strangers, "the number was not reused"
        for _ in range(3):
            assert watcher.free(conn) is False
            conn.close()
        assert all(is_open(fd) for fd in strangers)
        for fd in strangers:
            os.close(fd)
        assert watcher.poll_io() == []


async def test_O2_a_socket_that_was_never_delegated_is_just_closed(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        assert watcher.free(ours) is True
        assert ours.fileno() == -1
        assert peer.recv(1) == b""
        assert watcher.free(ours) is False
        listener = socket.create_server(("127.0.0.1", 0))
        assert watcher.free(listener) is True
        assert listener.fileno() == -1
        assert watcher.poll_io() == []
        assert watcher.statistics().submitted == 0


async def test_O2_requests_on_a_freed_connection_complete_as_such(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with peer:
        conn = watcher.delegate(ours)
        watcher.free(conn)
        watcher.free(listener)
        ops = [
            watcher.read(conn),
            watcher.read(conn, bytearray(1)),
            watcher.read(conn, timeout=0),
            watcher.read(conn, multishot=True),
            watcher.read_full(conn, bytearray(1)),
            watcher.write(conn, b"x"),
            watcher.write(conn, bytearray(b"x"), timeout=5),
            watcher.write(conn, b"x", silent=True),
            watcher.accept(listener),
            watcher.accept(listener, multishot=True),
        ]
        assert None not in ops
        results = await collect(watcher, len(ops))
        assert results == ops
        for op in results:
            assert type(op.error) is ConnectionFreedError
            assert (op.size, op.more) == (0, False)
            assert watcher.cancel(op) is False


async def test_O2_what_had_completed_before_is_still_delivered_as_it_was(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        peer.sendall(b"data")
        read = watcher.read(conn)
        write = watcher.write(conn, b"x")
        pending = watcher.read(conn)
        assert read.completed
        watcher.free(conn)
        assert await collect(watcher, 3) == [read, write, pending]
        assert (read.error, read.data) == (None, b"data")
        assert write is not None
        assert write.error is None
        assert type(pending.error) is ConnectionFreedError
        assert peer.recv(10) == b"x"


async def test_O2_free_ends_multishot_requests(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with peer:
        conn = watcher.delegate(ours)
        read = watcher.read(conn, multishot=True)
        accept = watcher.accept(listener, multishot=True)
        peer.sendall(b"data")
        assert (await one(watcher)).more
        watcher.free(conn)
        watcher.free(listener)
        assert await collect(watcher, 2) == [read, accept]
        for op in (read, accept):
            assert type(op.error) is ConnectionFreedError
            assert not op.more


async def test_O2_free_from_within_a_batch_and_during_a_wait(watcher: Watcher) -> None:
    """A waiter hears of it, and a freed connection's readiness is nobody's any more."""
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with peer, other_peer:
        conn, other = watcher.delegate(ours), watcher.delegate(others)
        op = watcher.read(conn)
        watcher.read(other)
        waiter = asyncio.ensure_future(watcher.wait_io())
        await settle(3)
        peer.sendall(b"too late")
        watcher.free(conn)
        assert await bounded(waiter) == [op]
        assert type(op.error) is ConnectionFreedError
        other_peer.sendall(b"in time")
        assert (await one(watcher)).data == b"in time"


async def test_O2_free_releases_all_that_belongs_to_the_connection(watcher: Watcher) -> None:
    class Context:
        pass

    ours, peer = small_pair()
    with collecting_by_hand(), peer:
        conn = watcher.delegate(ours)
        kept: list[weakref.ref[Context]] = []
        conn.context = Context()
        kept.append(weakref.ref(conn.context))
        contexts = [Context() for _ in range(3)]
        kept += [weakref.ref(context) for context in contexts]
        watcher.read(conn, context=contexts[0], timeout=1000)
        watcher.write(conn, bytes(LONG), context=contexts[1], timeout=1000)
        watcher.write(conn, bytes(LONG), context=contexts[2], silent=True)
        watcher.free(conn)
        assert len(watcher.poll_io()) == 3
        del ours, conn, contexts
        await settle()
        gc.collect()
        assert [ref() for ref in kept] == [None] * 4


# --- O3: what nobody holds ------------------------------------------------------------------------


async def in_a_thread(action: Callable[[], object]) -> None:
    """Run ``action`` in another thread, with the loop running meanwhile."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await until(lambda: not thread.is_alive())
    thread.join()
    assert not failures


async def drop_here(holder: list[Any]) -> None:
    holder.clear()
    gc.collect()


async def drop_in_a_thread(holder: list[Any]) -> None:
    def drop() -> None:
        holder.clear()
        gc.collect()

    await in_a_thread(drop)


DROPS = pytest.mark.parametrize("drop", [drop_here, drop_in_a_thread])


@DROPS
async def test_O3_a_dropped_connection_is_closed_with_a_warning(
    watcher: Watcher, drop: Callable[[list[Any]], Awaitable[None]]
) -> None:
    async with no_loop_errors():
        ours, peer = unix_pair()
        with peer, recorded_warnings() as caught, collecting_by_hand():
            holder = [watcher.delegate(ours)]
            del ours
            await settle(3)
            await drop(holder)
            assert await drained(peer) == b""
            assert len(resource_warnings(caught)) == 1
            assert watcher.statistics().connections == 0
            assert watcher.poll_io() == []
        # The number is free for another one, which works.
        again, peer = unix_pair()
        with peer:
            conn = watcher.delegate(again)
            watcher.read(conn)
            await settle(3)
            peer.sendall(b"another")
            assert (await one(watcher)).data == b"another"


@DROPS
async def test_O3_a_connection_dropped_after_its_work_is_closed_with_a_warning(
    watcher: Watcher, drop: Callable[[list[Any]], Awaitable[None]]
) -> None:
    """Past requests, their results and their deadlines do not keep it."""
    ours, peer = unix_pair()
    with peer, recorded_warnings() as caught, collecting_by_hand():
        holder = [watcher.delegate(ours)]
        del ours
        watcher.read(holder[0], timeout=1000)
        await settle(3)
        peer.sendall(b"ping")
        assert (await one(watcher)).data == b"ping"
        watcher.write(holder[0], b"pong", timeout=1000)
        await one(watcher)
        watcher.cancel(watcher.read(holder[0], timeout=1000))
        await one(watcher)
        watcher.read(holder[0], timeout=0)
        await one(watcher)
        watcher.write(holder[0], b"!", silent=True)
        assert not resource_warnings(caught)
        await drop(holder)
        assert await drained(peer) == b"pong!"
        assert len(resource_warnings(caught)) == 1


async def test_O3_a_dropped_listener_and_a_dropped_accepted_connection(watcher: Watcher) -> None:
    with collecting_by_hand(), recorded_warnings() as caught:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        watcher.accept(listener)
        with socket.create_connection(address) as client:
            holder = await collect(watcher, 1)
            assert holder[0].accepted is not None
            del listener
            await drop_here(holder)
            assert await drained(client) == b""
            await until(lambda: watcher.statistics().connections == 0)
            assert len(resource_warnings(caught)) == 2
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


async def test_O3_freed_connections_and_closed_watchers_raise_no_warning(poller: str) -> None:
    peers: list[socket.socket] = []
    with collecting_by_hand(), recorded_warnings() as caught:
        async with Watcher(poller=poller) as watcher:
            conns = [watcher.delegate(unix_pair_into(peers)) for _ in range(4)]
            watcher.read(conns[0])
            watcher.free(conns[1])
            conns[2].close()
        del watcher
        conns.clear()
        gc.collect()
        await settle()
        for peer in peers:
            assert await drained(peer) == b""
            peer.close()
        assert not resource_warnings(caught)


def unix_pair_into(peers: list[socket.socket]) -> socket.socket:
    ours, peer = unix_pair()
    peers.append(peer)
    return ours


def pending_read(watcher: Watcher, ours: socket.socket) -> Operation | None:
    return watcher.read(ours)


def pending_read_full(watcher: Watcher, ours: socket.socket) -> Operation | None:
    return watcher.read_full(watcher.delegate(ours), bytearray(4))


def pending_timed_read(watcher: Watcher, ours: socket.socket) -> Operation | None:
    return watcher.read(watcher.delegate(ours), timeout=1000)


def pending_multishot(watcher: Watcher, ours: socket.socket) -> Operation | None:
    return watcher.read(watcher.delegate(ours), multishot=True)


@pytest.mark.parametrize(
    "submit", [pending_read, pending_read_full, pending_timed_read, pending_multishot]
)
async def test_O3_a_connection_with_a_read_pending_is_not_collected(
    watcher: Watcher, submit: Callable[[Watcher, socket.socket], Operation | None]
) -> None:
    """Nobody holds it, its socket or its operation; the result brings all of it back."""
    ours, peer = unix_pair()
    with collecting_by_hand(), peer, recorded_warnings() as caught:
        submit(watcher, ours)
        del ours
        for _ in range(3):
            await settle(3)
            gc.collect()
        assert not resource_warnings(caught)
        peer.sendall(b"data")
        op = await one(watcher)
        assert op.error is None
        assert bytes(op.data) == b"data"
        assert not op.conn.closed
        gc.collect()
        watcher.write(op.conn, b"answer", silent=True)
        assert await receive(peer, 6) == b"answer"
        assert not resource_warnings(caught)


@pytest.mark.parametrize("silent", [False, True])
async def test_O3_a_connection_with_a_write_pending_is_not_collected(
    watcher: Watcher, silent: bool
) -> None:
    ours, peer = small_pair()
    with collecting_by_hand(), peer, recorded_warnings() as caught:
        watcher.write(ours, b"x" * LONG, silent=silent)
        del ours
        gc.collect()
        await settle(3)
        gc.collect()
        assert not resource_warnings(caught)
        assert await receive(peer, LONG) == b"x" * LONG
        if not silent:
            op = await one(watcher)
            assert op.error is None
            del op
        gc.collect()
        assert await drained(peer) == b""  # now that nothing is pending, it is closed
        assert len(resource_warnings(caught)) == 1


async def test_O3_a_listener_with_an_accept_pending_is_not_collected(watcher: Watcher) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    with collecting_by_hand(), recorded_warnings() as caught:
        watcher.accept(listener, multishot=True)
        del listener
        gc.collect()
        await settle(3)
        gc.collect()
        for _ in range(3):
            with socket.create_connection(address):
                op = await one(watcher)
                assert op.error is None
                watcher.free(op.accepted)
                del op
                gc.collect()
        assert not resource_warnings(caught)


async def test_O3_a_result_that_waits_to_be_collected_keeps_its_connection(
    watcher: Watcher,
) -> None:
    ours, peer = unix_pair()
    with collecting_by_hand(), peer, recorded_warnings() as caught:
        peer.sendall(b"data")
        assert watcher.read(ours).completed
        del ours
        gc.collect()
        await settle()
        gc.collect()
        op = await one(watcher)
        assert op.data == b"data"
        assert not op.conn.closed
        assert not resource_warnings(caught)
        watcher.write(op.conn, b"answer", silent=True)
        assert await receive(peer, 6) == b"answer"


async def test_O3_an_accepted_connection_that_waits_to_be_collected_is_kept(
    watcher: Watcher,
) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with (
        collecting_by_hand(),
        recorded_warnings() as caught,
        socket.create_connection(listener.sockname) as client,
    ):
        op = watcher.accept(listener)
        await until(lambda: op.completed)
        del op
        gc.collect()
        await settle()
        (op,) = watcher.poll_io()
        assert not op.accepted.closed
        watcher.write(op.accepted, b"hello", silent=True)
        assert await receive(client, 5) == b"hello"
        assert not resource_warnings(caught)
        watcher.close()
        assert await drained(client) == b""


async def test_O3_a_connection_that_was_dropped_unread_is_no_ones_business(
    watcher: Watcher,
) -> None:
    """An event that is under way when it goes disturbs nobody."""
    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings() as caught:
            for _ in range(20):
                ours, peer = unix_pair()
                conn = watcher.delegate(ours)
                op = watcher.read(conn)
                await settle(2)
                peer.sendall(b"data")
                watcher.cancel(op)
                await one(watcher)
                del ours, conn, op
                gc.collect()
                assert await drained(peer) == b""
                peer.close()
            assert len(resource_warnings(caught)) == 20


# --- O3: watchers ---------------------------------------------------------------------------------


def busy_watcher(poller: str, peers: list[socket.socket]) -> Watcher:
    """One with something of everything: idle, pending, timed, torn, uncollected, a listener."""
    watcher = Watcher(poller=poller)
    idle = watcher.delegate(unix_pair_into(peers))
    idle.context = watcher
    watcher.read(unix_pair_into(peers))
    watcher.read(unix_pair_into(peers), timeout=1000)
    watcher.read(unix_pair_into(peers), multishot=True, timeout=1000)
    watcher.write(unix_pair_into(peers), bytes(8 * LONG))
    watcher.cancel(watcher.write(unix_pair_into(peers), bytes(8 * LONG)))
    watcher.write(unix_pair_into(peers), b"uncollected")
    listener = socket.create_server(("127.0.0.1", 0))
    watcher.accept(listener, multishot=True)
    return watcher


@DROPS
async def test_O3_a_dropped_watcher_is_closed_with_a_warning(
    poller: str, drop: Callable[[list[Any]], Awaitable[None]]
) -> None:
    await settle()
    gc.collect()
    before = open_descriptors()
    peers: list[socket.socket] = []
    async with no_loop_errors():
        with recorded_warnings() as caught, collecting_by_hand():
            holder = [busy_watcher(poller, peers)]
            await settle(5)
            await drop(holder)
            for peer in peers:
                await drained(peer)
                peer.close()
            assert any("Watcher" in message for message in resource_warnings(caught))
            await until(lambda: open_descriptors() <= before)


@DROPS
async def test_O3_an_idle_dropped_watcher_is_closed_with_one_warning(
    poller: str, drop: Callable[[list[Any]], Awaitable[None]]
) -> None:
    """Also one that has waited before: neither a past nor a cancelled waiter keeps it."""
    await settle()
    gc.collect()
    before = open_descriptors()
    async with no_loop_errors():
        with recorded_warnings() as caught, collecting_by_hand():
            holder: list[Any] = [Watcher(poller=poller)]
            ours, peer = unix_pair()
            with peer:
                peer.sendall(b"data")
                watcher = holder[0]
                watcher.read(ours)
                assert (await one(watcher)).data == b"data"
                watcher.free(ours)
                waiter = asyncio.ensure_future(watcher.wait_io())
                await settle(3)
                waiter.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiter
                del waiter, watcher
            await settle(3)
            await drop(holder)
            await until(lambda: open_descriptors() <= before)
            assert len(resource_warnings(caught)) == 1


async def test_O3_a_finalizer_in_a_foreign_thread_does_not_touch_the_loop(poller: str) -> None:
    """Neither loop says that another thread may call ``remove_reader``, and uvloop may not."""
    calls = LoopCalls(asyncio.get_running_loop())
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with collecting_by_hand(), recorded_warnings() as caught, peer, other_peer:
        holder: list[Any] = [Watcher(poller=poller)]
        for sock, end in ((ours, peer), (others, other_peer)):
            conn = holder[0].delegate(sock)
            holder.append(conn)
            holder[0].read(conn)
            await settle(3)
            end.sendall(b"read, and the loop poller's reader stays armed")
            assert (await one(holder[0])).error is None
        del ours, others, sock, end, conn
        one_connection = [holder.pop()]
        await drop_in_a_thread(one_connection)
        assert await drained(other_peer) == b""
        await drop_in_a_thread(holder)
        assert await drained(peer) == b""
        await until(lambda: not calls.armed("reader"))
        assert len(resource_warnings(caught)) >= 2
        assert calls.threads == {threading.get_ident()}


async def test_O3_a_held_connection_or_result_holds_the_watcher(poller: str) -> None:
    ours, peer = unix_pair()
    with collecting_by_hand(), peer, recorded_warnings() as caught:
        conn = Watcher(poller=poller).delegate(ours)
        gc.collect()
        await settle()
        assert not conn.closed
        op = conn.watcher.read(conn)
        del conn
        gc.collect()
        peer.sendall(b"data")
        assert await one(op.conn.watcher) is op
        assert op.data == b"data"
        assert not resource_warnings(caught)
        op.conn.watcher.close()


def serve_one(poller: str, done: asyncio.Future[bytes]) -> socket.socket:
    """Starts a task that nobody holds; returns the other end of its one connection."""
    ours, peer = unix_pair()

    async def serve(ours: socket.socket) -> None:
        watcher = Watcher(poller=poller)
        watcher.read(ours)
        (op,) = await watcher.wait_io()
        watcher.close()
        done.set_result(op.data)

    asyncio.ensure_future(serve(ours))  # noqa: RUF006 - that nobody holds it is the point
    return peer


async def test_O3_a_waiting_task_that_nobody_holds_is_not_collected(poller: str) -> None:
    done = asyncio.get_running_loop().create_future()
    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings() as caught:
            peer = serve_one(poller, done)
            for _ in range(4):
                await settle(3)
                gc.collect()
            peer.sendall(b"data")
            assert await bounded(done) == b"data"
            peer.close()
            await settle(3)
            gc.collect()
            assert not resource_warnings(caught)


async def test_O3_a_task_that_nobody_holds_waits_for_a_deadline(poller: str) -> None:
    done = asyncio.get_running_loop().create_future()
    peers: list[socket.socket] = []

    async def serve() -> None:
        async with Watcher(poller=poller) as watcher:
            watcher.read(unix_pair_into(peers), timeout=0.05)
            async for results in watcher:
                done.set_result(results[0].error)
                return

    async with no_loop_errors():
        with collecting_by_hand():
            asyncio.ensure_future(serve())  # noqa: RUF006 - that nobody holds it is the point
            for _ in range(4):
                await settle(3)
                gc.collect()
            assert isinstance(await bounded(done), DeadlineExceededError)
            await settle(3)
    for peer in peers:
        peer.close()


# --- O3: the loop is closed first -----------------------------------------------------------------

CLOSED_LOOPS = pytest.mark.parametrize(
    ("loop", "name"), [(loop, name) for loop in LOOP_FACTORIES for name in ("epoll", "loop")]
)


def run_and_close_the_loop(loop: str, main: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        result = await main()
        await settle(3)
        return result

    with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop]) as runner:
        return runner.run(run())


@CLOSED_LOOPS
@pytest.mark.parametrize("thread", [False, True], ids=["here", "thread"])
def test_O3_dropped_after_the_loop_was_closed(loop: str, name: str, thread: bool) -> None:
    run_and_close_the_loop(loop, settle)  # the first loop of uvloop leaves a descriptor of libuv's
    gc.collect()
    before = open_descriptors()
    peers: list[socket.socket] = []

    async def main() -> list[Any]:
        watcher = busy_watcher(name, peers)
        held = watcher.delegate(unix_pair_into(peers))
        await settle(5)
        return [watcher, held]

    with recorded_warnings() as caught, collecting_by_hand():
        holder = run_and_close_the_loop(loop, main)

        def drop() -> None:
            holder.clear()
            gc.collect()

        if thread:
            dropping = threading.Thread(target=drop)
            dropping.start()
            dropping.join()
        else:
            drop()
        for peer in peers:
            while peer.recv(LONG):
                pass
            peer.close()
        assert any("Watcher" in message for message in resource_warnings(caught))
        assert open_descriptors() <= before


@CLOSED_LOOPS
def test_O3_a_connection_dropped_after_the_loop_was_closed(loop: str, name: str) -> None:
    """The watcher is held, the connection is not."""
    peers: list[socket.socket] = []

    async def main() -> list[Any]:
        watcher = Watcher(poller=name)
        conn = watcher.delegate(unix_pair_into(peers))
        watcher.cancel(watcher.read(conn))
        watcher.poll_io()
        return [watcher, conn]

    with collecting_by_hand(), recorded_warnings() as caught:
        watcher, *holder = run_and_close_the_loop(loop, main)
        holder.clear()
        gc.collect()
        assert peers[0].recv(1) == b""
        peers[0].close()
        assert len(resource_warnings(caught)) == 1
        watcher.close()
        assert watcher.poll_io() == []


# --- O5: numbers ----------------------------------------------------------------------------------


async def test_O5_descriptors_are_unregistered_before_they_are_closed(watcher: Watcher) -> None:
    """A copy keeps the socket alive: closing alone would leave it registered, and its events come
    under a number that is somebody else's."""
    calls = LoopCalls(asyncio.get_running_loop())
    for pending in ("nothing", "read", "write", "both"):
        ours, peer = small_pair()
        with peer:
            conn = watcher.delegate(ours)
            if pending in ("read", "both"):
                watcher.read(conn)
            if pending in ("write", "both"):
                watcher.write(conn, bytes(LONG))
            await settle(5)
            fd = conn.fileno()
            copy = os.dup(fd)
            watcher.free(conn)
            assert not is_open(fd)
            assert not registered(fd)
            os.close(copy)
            watcher.poll_io()
    assert calls.on_closed_descriptor == []


async def test_O5_a_closing_watcher_unregisters_before_it_closes(poller: str) -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    pairs = [small_pair() for _ in range(3)]
    watcher = Watcher(poller=poller)
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    for conn in conns:
        watcher.read(conn)
        watcher.write(conn, bytes(LONG))
    await settle(5)
    numbers = [conn.fileno() for conn in conns]
    copies = [os.dup(fd) for fd in numbers]
    watcher.close()
    assert not any(registered(fd) for fd in numbers)
    assert calls.on_closed_descriptor == []
    assert calls.armed("reader") == calls.armed("writer") == set()
    for fd in copies:
        os.close(fd)
    for _, peer in pairs:
        peer.close()


async def test_O5_an_event_under_way_does_not_reach_the_next_owner_of_the_number(
    watcher: Watcher,
) -> None:
    for number in range(50):
        ours, peer = unix_pair()
        conn = watcher.delegate(ours)
        watcher.read(conn)
        watcher.write(conn, b"x", silent=True)
        await settle(3)
        fd = conn.fileno()
        if number % 2:
            peer.sendall(b"for the old one")
        else:
            peer.close()  # a hang-up is under way
        watcher.free(conn)
        again, next_peer = unix_pair()
        assert again.fileno() == fd, "the number was not reused"
        new = watcher.delegate(again)
        op = watcher.read(new)
        await settle(3)
        assert not op.completed
        assert type((await one(watcher)).error) is ConnectionFreedError
        next_peer.sendall(b"for the new one")
        assert await one(watcher) is op
        assert (op.error, op.data) == (None, b"for the new one")
        watcher.free(new)
        peer.close()
        next_peer.close()


async def test_O5_a_storm_of_reused_numbers(poller: str) -> None:
    """Freed in the middle of a batch, with data and hang-ups under way, replaced at once."""
    rng = random.Random(5)
    live: dict[Connection, tuple[socket.socket, bytes]] = {}
    told: set[bytes] = set()
    ended: set[bytes] = set()
    numbers: list[int] = []
    async with Watcher(poller=poller, batch_size=4) as watcher:

        def begin() -> None:
            ours, peer = unix_pair()
            token = rng.randbytes(8)
            conn = watcher.delegate(ours)
            numbers.append(conn.fileno())
            live[conn] = peer, token
            watcher.read_full(conn, bytearray(8), context=token)

        def end(conn: Connection) -> None:
            peer, _ = live.pop(conn)
            watcher.free(conn)
            peer.close()
            begin()

        for _ in range(30):
            begin()
        served = 0
        while served < 400:
            for peer, token in live.values():
                if token in told or token in ended or rng.random() < 0.4:
                    continue
                if rng.random() < 0.8:
                    told.add(token)
                    peer.sendall(token)
                else:
                    ended.add(token)
                    peer.close()
            for conn in rng.sample(list(live), 4):
                end(conn)
            for op in await bounded(watcher.wait_io()):
                if isinstance(op.error, ConnectionFreedError):
                    continue
                served += 1
                if isinstance(op.error, EndOfStreamError):
                    assert op.context in ended
                else:
                    assert op.error is None
                    assert op.context in told
                    assert bytes(op.data) == op.context
                if op.conn in live:
                    end(op.conn)
        assert len(numbers) > 3 * len(set(numbers)), "the numbers were not reused"
        for peer, _ in live.values():
            peer.close()
        live.clear()


async def test_O_an_accepted_connection_is_owned_as_a_delegated_one(watcher: Watcher) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    op = watcher.accept(listener)
    with socket.create_connection(listener.sockname) as client:
        assert await one(watcher) is op
        assert op.type is OpType.ACCEPT
        conn = op.accepted
        assert conn.watcher is watcher
        assert conn.peername == client.getsockname() == op.address
        fd = conn.fileno()
        watcher.read(conn)
        client.sendall(b"data")
        assert (await one(watcher)).data == b"data"
        assert watcher.free(conn) is True
        assert not is_open(fd)
        assert await drained(client) == b""
