"""Any loop, either poller, every kind of socket: rules P1 and P2."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from aiogaio import (
    Connection,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedLoopError,
    Watcher,
    WatcherClosedError,
)
from aiogaio.connection import Record
from tests.probes import (
    LONG,
    LOOP_FACTORIES,
    LoopCalls,
    bounded,
    collecting_by_hand,
    drained,
    has_urgent_data,
    hung_up,
    is_epoll,
    no_loop_errors,
    open_descriptors,
    ready,
    receive,
    recorded_warnings,
    resource_warnings,
    small_pair,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

CLOSED_LOOPS = pytest.mark.parametrize(
    ("loop", "name"), [(loop, name) for loop in LOOP_FACTORIES for name in ("epoll", "loop")]
)


async def echo(watcher: Watcher, conn: Connection, peer: socket.socket) -> None:
    """The connection works in both directions."""
    peer.setblocking(False)
    sent = os.urandom(64)
    op = watcher.read_full(conn, bytearray(64))
    await settle(3)
    peer.send(sent)
    assert await one(watcher) is op
    assert bytes(op.data) == sent
    watcher.write(conn, bytes(op.data))
    assert (await one(watcher)).error is None
    assert await receive(peer, 64) == sent


# --- P2: which poller -----------------------------------------------------------------------------


async def test_P2_the_poller_is_the_one_asked_for(watcher: Watcher, poller: str) -> None:
    assert watcher.statistics().poller == poller


async def test_P2_auto_takes_epoll_where_it_works() -> None:
    async with Watcher() as default, Watcher(poller="auto") as auto:
        assert default.statistics().poller == auto.statistics().poller == "epoll"


async def test_P2_auto_takes_the_loop_where_there_is_no_epoll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(select, "epoll")
    ours, peer = tcp_pair()
    with peer:
        async with Watcher(poller="auto") as watcher:
            assert watcher.statistics().poller == "loop"
            conn = watcher.delegate(ours)
            await echo(watcher, conn, peer)


def refuse_epolls(error: type[Exception]) -> None:
    """From here on the running loop takes no descriptor of an epoll."""
    loop = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def refuse(fd: Any, *args: Any) -> None:
        if is_epoll(fd):
            raise error("not this descriptor")
        add_reader(fd, *args)

    loop.add_reader = refuse  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [PermissionError, ValueError, NotImplementedError])
async def test_P2_auto_takes_the_loop_where_an_epoll_is_not_accepted(
    error: type[Exception],
) -> None:
    refuse_epolls(error)
    ours, peer = tcp_pair()
    with peer:
        before = open_descriptors()
        async with Watcher() as watcher:
            assert watcher.statistics().poller == "loop"
            assert open_descriptors() == before, "the refused epoll was left open"
            conn = watcher.delegate(ours)
            await echo(watcher, conn, peer)


async def test_P2_a_poller_asked_for_by_name_is_not_replaced() -> None:
    refuse_epolls(PermissionError)
    before = open_descriptors()
    with pytest.raises(PermissionError):
        Watcher(poller="epoll")
    assert open_descriptors() <= before


# --- P1: loops that will not do -------------------------------------------------------------------


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """What Windows' default loop is to us: it has the methods, and they are not implemented."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_writer(self, fd: Any) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize("name", ["auto", "epoll", "loop"])
def test_P1_a_loop_without_add_reader_is_told_what_to_do(name: Any) -> None:
    async def main() -> None:
        with pytest.raises(UnsupportedLoopError) as raised:
            Watcher(poller=name)
        assert isinstance(raised.value, RuntimeError)
        assert "SelectorEventLoop" in str(raised.value)
        assert "uvloop" in str(raised.value)

    before = open_descriptors()
    with collecting_by_hand(), recorded_warnings() as caught:
        with asyncio.Runner(loop_factory=LoopWithoutReaders) as runner:
            runner.run(main())
        gc.collect()
    assert not caught
    assert open_descriptors() == before


def test_P1_without_a_running_loop_it_says_so() -> None:
    with collecting_by_hand(), recorded_warnings() as caught:
        with pytest.raises(UnsupportedLoopError, match="loop"):
            Watcher()
        gc.collect()
    assert not caught


# --- P1: whole programs ---------------------------------------------------------------------------


@CLOSED_LOOPS
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_P1_the_server_of_one_screen(loop: str, name: Any, debug: bool) -> None:
    """As in the documentation, with asyncio's own streams as clients in the same loop."""

    async def serve(listener: socket.socket) -> None:
        async with Watcher(poller=name) as watcher:
            watcher.accept(listener, multishot=True)
            async for results in watcher:
                for op in results:
                    if op.type is OpType.ACCEPT:
                        if op.error is None:
                            watcher.read(op.accepted)
                    elif op.error is not None:
                        watcher.free(op.conn)
                    elif op.type is OpType.READ:
                        watcher.write(op.conn, op.data)
                    else:
                        watcher.read(op.conn)

    async def client(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        for size in (1, 100, 100_000):
            sent = os.urandom(size)
            writer.write(sent)
            assert await reader.readexactly(size) == sent
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        server = asyncio.create_task(serve(listener))
        async with asyncio.timeout(30):
            await asyncio.gather(*(client(address) for _ in range(5)))
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server

    with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop], debug=debug) as runner:
        runner.run(main())


async def test_P1_opened_and_closed_in_one_tick(poller: str) -> None:
    """A loop that looks at a descriptor only later must not find a closed one."""
    async with no_loop_errors():
        for _ in range(10):
            ours, peer = unix_pair()
            with peer:
                watcher = Watcher(poller=poller)
                conn = watcher.delegate(ours)
                watcher.read(conn)
                watcher.write(conn, bytes(LONG))
                watcher.close()
                assert conn.closed
                assert watcher.poll_io()
        await settle()
        async with Watcher(poller=poller) as watcher:
            for _ in range(10):
                ours, peer = unix_pair()
                with peer:
                    conn = watcher.delegate(ours)
                    watcher.read(conn)
                    watcher.write(conn, bytes(LONG))
                    watcher.free(conn)
            await settle()
            ours, peer = unix_pair()
            with peer:
                watcher.poll_io()
                conn = watcher.delegate(ours)
                await echo(watcher, conn, peer)


async def test_P1_beside_transports_of_the_same_loop(watcher: Watcher) -> None:
    """Numbers go back and forth between asyncio's transports and the watcher."""
    async with no_loop_errors():
        for _ in range(10):
            theirs, their_peer = unix_pair()
            with their_peer:
                _, writer = await asyncio.open_connection(sock=theirs)
                writer.write(b"by the transport")
                assert await receive(their_peer, 16) == b"by the transport"
                writer.close()
                await writer.wait_closed()
            ours, peer = unix_pair()
            with peer:
                conn = watcher.delegate(ours)
                await echo(watcher, conn, peer)
                watcher.free(conn)


# --- P2: several watchers -------------------------------------------------------------------------


async def test_P2_several_watchers_share_a_loop(poller: str) -> None:
    """Each gets its own results only, and one that closes takes nothing from the others."""
    other_poller = "loop" if poller == "epoll" else "epoll"
    async with (
        Watcher(poller=poller) as first,
        Watcher(poller=poller) as second,
        Watcher(poller=other_poller) as third,
    ):
        watchers = [first, second, third]
        pairs = [[tcp_pair() for _ in range(3)] for _ in watchers]
        conns = [
            [watcher.delegate(ours) for ours, _ in mine]
            for watcher, mine in zip(watchers, pairs, strict=True)
        ]
        for mine in conns:
            for conn in mine:
                conn.watcher.read(conn)
        waiters = [asyncio.ensure_future(collect(watcher, 3)) for watcher in watchers]
        await settle(3)
        for number, mine in enumerate(pairs):
            for _, peer in mine:
                peer.sendall(b"%d" % number)
        for number, waiter in enumerate(waiters):
            results = await waiter
            assert {op.conn for op in results} == set(conns[number])
            assert all(op.data == b"%d" % number for op in results)
        for index in (0, 2):
            watchers[index].close()
            for mine, watcher, mine_conns in zip(pairs, watchers, conns, strict=True):
                for (_, peer), conn in zip(mine, mine_conns, strict=True):
                    if watcher is second:
                        await echo(second, conn, peer)
                    elif watcher is watchers[index]:
                        assert conn.closed
        assert second.statistics().connections == 3
    for mine in pairs:
        for _, peer in mine:
            peer.close()


async def test_P2_a_relay_between_two_watchers(poller: str) -> None:
    (left, left_peer), (right, right_peer) = tcp_pair(), tcp_pair()
    with left_peer, right_peer:
        async with Watcher(poller=poller) as first, Watcher(poller=poller) as second:
            source, target = first.delegate(left), second.delegate(right)
            first.read(source, multishot=True)

            async def relay() -> None:
                async for results in first:
                    for op in results:
                        if op.error is None:
                            second.write(target, op.data, silent=True)

            relaying = asyncio.ensure_future(relay())
            sent = os.urandom(200_000)
            left_peer.setblocking(False)
            sending = asyncio.ensure_future(
                asyncio.get_running_loop().sock_sendall(left_peer, sent)
            )
            assert await receive(right_peer, len(sent)) == sent
            await sending
            first.close()
            await bounded(relaying)


# --- P2: the loop is closed first -----------------------------------------------------------------


@CLOSED_LOOPS
def test_P2_the_loop_is_closed_first(loop: str, name: Any) -> None:
    """close() afterwards closes all there is, and what was pending can be collected."""
    ours, peer = unix_pair()
    listener = socket.create_server(("127.0.0.1", 0))
    blocked, blocked_peer = small_pair()
    before = open_descriptors() - {ours.fileno(), listener.fileno(), blocked.fileno()}

    async def main() -> tuple[Watcher, list[Operation], Connection]:
        watcher = Watcher(poller=name)
        conn = watcher.delegate(ours)
        ops = [
            watcher.read(conn),
            watcher.read(conn, timeout=1000),
            watcher.write(blocked, bytes(LONG)),
            watcher.accept(listener, multishot=True),
        ]
        await settle(5)
        return watcher, ops, conn

    with peer, blocked_peer, asyncio.Runner(loop_factory=LOOP_FACTORIES[loop]) as runner:
        watcher, ops, conn = runner.run(main())
        runner.close()
        assert not any(op.completed for op in ops)
        watcher.close()
        watcher.close()
        assert conn.closed
        assert peer.recv(1) == b""
        results = watcher.poll_io()
        assert set(results) == set(ops)
        assert all(type(op.error) is WatcherClosedError for op in results)
        assert watcher.poll_io() == []
        assert watcher.free(conn) is False
        conn.close()
        watcher.statistics()
        assert open_descriptors() == before


@CLOSED_LOOPS
def test_P2_a_connection_is_freed_after_the_loop_was_closed(loop: str, name: Any) -> None:
    ours, peer = unix_pair()

    async def main() -> tuple[Watcher, Connection, Operation]:
        watcher = Watcher(poller=name)
        conn = watcher.delegate(ours)
        op = watcher.read(conn)
        watcher.write(conn, b"x" * LONG)
        await settle(5)
        return watcher, conn, op

    with peer, asyncio.Runner(loop_factory=LOOP_FACTORIES[loop]) as runner:
        watcher, conn, op = runner.run(main())
        runner.close()
        assert watcher.cancel(op) is True
        assert watcher.free(conn) is True
        while peer.recv(LONG):
            pass
        assert len(watcher.poll_io()) == 2
        with pytest.raises((WatcherClosedError, RuntimeError)):
            watcher.threadsafe.read(conn)
        watcher.close()


# --- P2: idle means idle --------------------------------------------------------------------------


async def test_P2_an_idle_watcher_does_not_spin_the_loop(poller: str) -> None:
    """Whatever is readable, writable, ended or broken: nobody asks for it, so nothing runs."""
    opened: list[socket.socket] = []

    def pair(make: Callable[[], tuple[socket.socket, socket.socket]]) -> socket.socket:
        ours, peer = make()
        opened.append(peer)
        return ours

    async with Watcher(poller=poller, batch_size=4, buffer_size=100) as watcher:
        conns = []
        # Unread data, without a read, after one, and after one that was cancelled.
        for kind in ("none", "read", "cancelled"):
            conn = watcher.delegate(pair(tcp_pair))
            conns.append(conn)
            if kind != "none":
                op = watcher.read(conn)
                await settle(3)
                if kind == "cancelled":
                    watcher.cancel(op)
                else:
                    opened[-1].sendall(b"read")
                await one(watcher)
            opened[-1].sendall(b"unread")
        # Ends: unheard, heard, half-closed with a write blocked, with a read after it.
        for kind in ("unheard", "heard", "blocked"):
            conn = watcher.delegate(pair(small_pair))
            conns.append(conn)
            if kind == "blocked":
                watcher.write(conn, bytes(LONG))
            opened[-1].shutdown(socket.SHUT_WR)
            if kind == "heard":
                watcher.read(conn)
                assert isinstance((await one(watcher)).error, EndOfStreamError)
        # Resets, with and without somebody who has heard of them.
        for kind in ("unheard", "heard"):
            ours, peer = tcp_pair()
            conn = watcher.delegate(ours)
            conns.append(conn)
            reset(peer)
            await until(lambda conn=conn: hung_up(conn))
            if kind == "heard":
                watcher.read(conn)
                assert (await one(watcher)).error is not None
        # Urgent data that nobody asked for, and with a read pending.
        for kind in ("none", "read"):
            conn = watcher.delegate(pair(tcp_pair))
            conns.append(conn)
            if kind == "read":
                watcher.read(conn)
            opened[-1].send(b"!", socket.MSG_OOB)
        # A client that waits to be accepted, and a listener for whom nobody waits.
        listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        opened.append(socket.create_connection(listener.sockname))
        conns.append(listener)
        watcher.accept(socket.create_server(("127.0.0.1", 0)), multishot=True)
        # Datagrams that nobody reads, and an error that nobody asks for.
        conn = watcher.delegate(pair(lambda: unix_pair(socket.SOCK_DGRAM)))
        conns.append(conn)
        opened[-1].send(b"unread")
        refused = refused_udp(opened)
        conns.append(watcher.delegate(refused))
        # A reader and a writer that wait.
        conn = watcher.delegate(pair(small_pair))
        conns.append(conn)
        watcher.read(conn)
        watcher.write(conn, bytes(LONG))
        # A torn write that nobody has collected, and armed reads that wait for the consumer.
        watcher.cancel(watcher.write(pair(small_pair), bytes(LONG)))
        watcher.read(pair(tcp_pair), multishot=True)
        opened[-1].sendall(bytes(2000))
        watcher.read(pair(tcp_pair), multishot=True)
        opened[-1].sendall(bytes(2000))
        await settle(30)
        used = time.thread_time()
        await asyncio.sleep(0.15)
        used = time.thread_time() - used
        assert used < 0.04, f"{used:.3f} s of computing in 0.15 s of idleness"
        assert len(watcher.poll_io()) >= 4
    for sock in opened:
        sock.close()


def refused_udp(opened: list[socket.socket]) -> socket.socket:
    """A connected UDP socket that has an ECONNREFUSED waiting."""
    ours, peer, stranger = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(3))
    for sock in (ours, peer, stranger):
        sock.bind(("127.0.0.1", 0))
    ours.connect(peer.getsockname())
    peer.connect(stranger.getsockname())
    ours.send(b"refused")
    opened += [peer, stranger]
    return ours


async def test_P2_a_paused_multishot_goes_on_when_it_is_collected(poller: str) -> None:
    """The readiness that was there during the pause is not forgotten."""
    ours, peer = tcp_pair()
    with peer:
        async with Watcher(poller=poller, batch_size=4, buffer_size=10) as watcher:
            watcher.read(ours, multishot=True)
            await settle(3)
            sent = os.urandom(500)
            peer.sendall(sent)
            await settle(30)
            received = b""
            while len(received) < 500:
                results = await bounded(watcher.wait_io())
                assert all(op.more for op in results)
                received += b"".join(op.data for op in results)
                await settle(3)
            assert received == sent


# --- P2: what is registered -----------------------------------------------------------------------


async def busy_round(watcher: Watcher, conns: list[Connection], peers: list[socket.socket]) -> None:
    for conn, peer in zip(conns, peers, strict=True):
        watcher.read(conn, timeout=100)
        watcher.write(conn, b"x" * LONG)
        peer.setblocking(False)
    await settle(3)
    for peer in peers:
        peer.send(b"data")
        assert len(await receive(peer, LONG)) == LONG
    await collect(watcher, 2 * len(conns))


async def test_P2_epoll_registers_its_own_descriptor_alone() -> None:
    loop = asyncio.get_running_loop()
    calls = LoopCalls(loop)
    pairs = [small_pair() for _ in range(5)]
    peers = [peer for _, peer in pairs]
    async with Watcher(poller="epoll") as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        for _ in range(3):
            await busy_round(watcher, conns, peers)
        (fd,) = calls.armed("reader")
        assert is_epoll(fd)
        assert calls.count("add_reader") == 1
        assert calls.count("remove_reader", fd) == 0
        assert calls.count("add_writer") == 0
    assert calls.armed("reader") == set()
    assert calls.on_closed_descriptor == []
    for peer in peers:
        peer.close()


async def test_P2_loop_readers_stay_armed_until_an_event_finds_no_read_pending() -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    ours, peer = tcp_pair()
    with peer:
        async with Watcher(poller="loop") as watcher:
            conn = watcher.delegate(ours)
            fd = conn.fileno()
            looked = calls.count("remove_reader", fd)  # delegation may look for a transport so
            for number in range(20):
                op = watcher.read(conn)
                await settle(2)
                peer.sendall(b"%d" % number)
                assert await one(watcher) is op
                await settle(2)
            assert calls.count("add_reader", fd) == 1
            assert calls.count("remove_reader", fd) == looked
            assert fd in calls.armed("reader")

            peer.sendall(b"nobody asked for it")
            await until(lambda: fd not in calls.armed("reader"))
            await settle(5)
            assert calls.count("remove_reader", fd) == looked + 1
            watcher.read(conn)
            assert (await one(watcher)).data == b"nobody asked for it"

            watcher.read(conn)
            await settle(2)
            assert fd in calls.armed("reader")
            peer.sendall(b"and on")
            assert (await one(watcher)).data == b"and on"
            assert calls.count("add_reader", fd) == 2
        assert fd not in calls.armed("reader")
        assert calls.on_closed_descriptor == []


async def test_P2_loop_writers_are_armed_only_while_a_write_is_queued() -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    ours, peer = small_pair()
    with peer:
        async with Watcher(poller="loop") as watcher:
            conn = watcher.delegate(ours)
            fd = conn.fileno()
            for number in range(5):
                watcher.write(conn, b"%d" % number)
                watcher.write(conn, b"x", silent=True)
                await one(watcher)
            assert await receive(peer, 10) == b"0x1x2x3x4x"
            assert calls.count("add_writer", fd) == 0, "these were taken at once"

            for _ in range(3):
                watcher.write(conn, b"y" * LONG)
                watcher.write(conn, b"z" * LONG)
                assert fd in calls.armed("writer")
                await receive(peer, 2 * LONG)
                await collect(watcher, 2)
                await until(lambda: fd not in calls.armed("writer"))
            assert calls.count("add_writer", fd) == 3
            await settle(5)
            assert fd not in calls.armed("writer")

            op = watcher.write(conn, b"z" * LONG)
            await settle(3)
            assert fd in calls.armed("writer")
            watcher.cancel(op)
            await receive(peer, unread(peer))
            await until(lambda: fd not in calls.armed("writer"))
            watcher.poll_io()

            watcher.write(conn, b"z" * LONG)
            await settle(3)
        assert fd not in calls.armed("writer")
        assert calls.on_closed_descriptor == []


async def test_P2_loop_registers_nothing_for_an_idle_connection() -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    pairs = [tcp_pair() for _ in range(3)]
    async with Watcher(poller="loop") as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        await settle(3)
        for conn in conns:
            assert conn.fileno() not in calls.armed("writer")
            watcher.free(conn)
        await settle(3)
        assert calls.armed("reader") == calls.armed("writer") == set()
    for _, peer in pairs:
        peer.close()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
async def test_P2_any_batch_size_serves_everybody(poller: str, batch_size: int) -> None:
    pairs = [tcp_pair() for _ in range(20)]
    async with Watcher(poller=poller, batch_size=batch_size) as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        for conn in conns:
            watcher.read(conn)
        await settle(3)
        for _ in range(3):
            for _, peer in pairs:
                peer.sendall(b"data")
            results = await collect(watcher, 20)
            assert {op.conn for op in results} == set(conns)
            for conn in conns:
                watcher.read(conn)
    for _, peer in pairs:
        peer.close()


# --- P1: wake-ups ---------------------------------------------------------------------------------


def wake_by_cancel(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.cancel(read)
    return OperationCancelledError


def wake_by_free(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.free(read.conn)
    return Exception


def wake_by_write(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.write(other, b"x")
    return type(None)


def wake_by_buffered_write(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.write(other, bytearray(b"x"), timeout=10)
    return type(None)


def wake_by_read(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.read(other)
    return type(None)


def wake_by_past_deadline(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.read(read.conn, timeout=0)
    return DeadlineExceededError


def wake_by_freed_request(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.free(other)
    watcher.write(other, b"x", silent=True)
    return Exception


def wake_by_close(watcher: Watcher, read: Operation, other: Connection) -> Any:
    watcher.close()
    return WatcherClosedError


def wake_by_threadsafe(watcher: Watcher, read: Operation, other: Connection) -> Any:
    thread = threading.Thread(target=watcher.threadsafe.write, args=(other, b"x"))
    thread.start()
    thread.join()
    return type(None)


def wake_by_foreign_cancel(watcher: Watcher, read: Operation, other: Connection) -> Any:
    thread = threading.Thread(target=watcher.threadsafe.cancel, args=(read,))
    thread.start()
    thread.join()
    return OperationCancelledError


WAKE_UPS = [
    wake_by_cancel,
    wake_by_free,
    wake_by_write,
    wake_by_buffered_write,
    wake_by_read,
    wake_by_past_deadline,
    wake_by_freed_request,
    wake_by_close,
    wake_by_threadsafe,
    wake_by_foreign_cancel,
]


@pytest.mark.parametrize("wake", WAKE_UPS)
async def test_P1_whatever_completes_wakes_the_waiter(
    watcher: Watcher, wake: Callable[[Watcher, Operation, Connection], Any]
) -> None:
    """The waiter sleeps in the loop, which has nothing else to do."""
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with peer, other_peer:
        other_peer.sendall(b"data")
        conn, other = watcher.delegate(ours), watcher.delegate(others)
        read = watcher.read(conn)
        waiter = asyncio.ensure_future(watcher.wait_io())
        await settle(10)
        assert not waiter.done()
        expected = wake(watcher, read, other)
        results = await bounded(waiter)
        assert isinstance(results[0].error, expected)


async def test_P1_a_close_wakes_a_waiter_for_whom_there_is_nothing(watcher: Watcher) -> None:
    waiter = asyncio.ensure_future(watcher.wait_io())
    await settle(5)
    watcher.close()
    with pytest.raises(WatcherClosedError):
        await bounded(waiter)


async def test_P1_a_deadline_wakes_the_waiter(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        watcher.read(ours, timeout=0.01)
        (op,) = await bounded(watcher.wait_io())
        assert isinstance(op.error, DeadlineExceededError)


async def test_P1_a_thread_wakes_an_idle_loop(watcher: Watcher) -> None:
    """Not one that happens to run: the thread acts while the loop sleeps in the system."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        timer = threading.Timer(0.02, watcher.threadsafe.write, (conn, b"x"))
        timer.start()
        (op,) = await bounded(watcher.wait_io())
        assert (op.type, op.error) == (OpType.WRITE, None)
        timer.join()


# --- Datagrams ------------------------------------------------------------------------------------


def udp_pair() -> tuple[socket.socket, socket.socket]:
    ours, peer = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
    ours.bind(("127.0.0.1", 0))
    peer.bind(("127.0.0.1", 0))
    ours.connect(peer.getsockname())
    peer.connect(ours.getsockname())
    peer.settimeout(10)
    return ours, peer


def unix_datagram_pair() -> tuple[socket.socket, socket.socket]:
    return unix_pair(socket.SOCK_DGRAM)


DATAGRAMS = pytest.mark.parametrize("make", [udp_pair, unix_datagram_pair])


@DATAGRAMS
async def test_P1_each_datagram_is_one_read(watcher: Watcher, make: Any) -> None:
    """All of them, though a short receive is followed by no further edge."""
    ours, peer = make()
    with peer:
        conn = watcher.delegate(ours)
        sent = [b"a", b"", b"bc" * 500, b"", b"", b"d"]
        watcher.read(conn, context=0)
        await settle(3)
        for datagram in sent:
            peer.send(datagram)
        results = await collect(watcher, 1)
        for number in range(1, len(sent)):
            watcher.read(conn, context=number)
            results.append(await one(watcher))
        assert [op.data for op in results] == sent
        assert all(op.error is None for op in results)
        assert [op.size for op in results] == [len(datagram) for datagram in sent]


@DATAGRAMS
async def test_P1_datagrams_in_one_go(watcher: Watcher, make: Any) -> None:
    ours, peer = make()
    with peer:
        conn = watcher.delegate(ours)
        last = watcher.read(conn, multishot=True)
        await settle(3)
        sent = [b"%d" % number for number in range(10)]
        sent[3] = sent[9] = b""
        for datagram in sent:
            peer.send(datagram)
        results = await collect(watcher, 10)
        assert [op.data for op in results] == sent
        assert all(op.more for op in results)
        peer.send(b"later")
        assert (await one(watcher)).data == b"later"
        assert not last.completed


@DATAGRAMS
async def test_P1_an_empty_datagram_into_a_buffer_is_no_end(watcher: Watcher, make: Any) -> None:
    ours, peer = make()
    with peer:
        conn = watcher.delegate(ours)
        for datagram in (b"", b"12345678", b""):
            op = watcher.read(conn, bytearray(4))
            await settle(2)
            peer.send(datagram)
            assert await one(watcher) is op
            assert op.error is None
            assert bytes(op.data) == datagram[:4]  # what does not fit is lost, as in recv(2)
        watcher.read(conn)
        peer.send(b"usable")
        assert (await one(watcher)).data == b"usable"


@DATAGRAMS
async def test_P1_each_write_is_one_datagram(watcher: Watcher, make: Any) -> None:
    ours, peer = make()
    with peer:
        conn = watcher.delegate(ours)
        for size in (1, 100, 9000):
            watcher.write(conn, b"x" * size)
            watcher.write(conn, bytearray(b"y" * size), silent=True)
            assert (await one(watcher)).size == size
        assert [len(peer.recv(10_000)) for _ in range(6)] == [1, 1, 100, 100, 9000, 9000]


@DATAGRAMS
async def test_P1_a_datagram_too_long_fails_alone(watcher: Watcher, make: Any) -> None:
    ours, peer = make()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        conn = watcher.delegate(ours)
        too_long = watcher.write(conn, bytes(4 * LONG), context="too long")
        fine = watcher.write(conn, b"fine", context="fine")
        assert await collect(watcher, 2) == [too_long, fine]
        assert isinstance(too_long.error, OSError)
        assert too_long.size == 0
        assert fine.error is None
        assert peer.recv(10) == b"fine"


async def test_P1_a_long_datagram_stays_one(watcher: Watcher) -> None:
    """However streams are cut into attempts, a datagram is not."""
    ours, peer = unix_datagram_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        conn = watcher.delegate(ours)
        sent = os.urandom(300_000)
        for data in (sent, bytearray(sent)):
            op = watcher.write(conn, data)
            received = peer.recv(400_000)
            assert len(received) == len(sent)
            assert await one(watcher) is op
            assert (op.error, op.size) == (None, len(sent))
        peer.send(sent)
        watcher.read(conn, bytearray(400_000))
        op = await one(watcher)
        assert op.size == len(sent)
        assert bytes(op.data) == sent


async def test_P1_a_full_datagram_queue_makes_writes_wait(watcher: Watcher) -> None:
    """Order and boundaries stay, and the writer is woken as the other end reads."""
    ours, peer = unix_datagram_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        conn = watcher.delegate(ours)
        for number in range(200):
            watcher.write(conn, b"%03d" % number * 10)
        await settle(3)
        assert watcher.statistics().pending > 0, "the queue was not full"
        peer.setblocking(False)
        received: list[bytes] = []
        async with asyncio.timeout(10):
            while len(received) < 200:
                try:
                    received.append(peer.recv(100))
                except BlockingIOError:
                    await asyncio.sleep(0)
        assert received == [b"%03d" % number * 10 for number in range(200)]
        assert all(op.error is None for op in await collect(watcher, 200))


async def test_P1_connected_udp_survives_being_refused(watcher: Watcher) -> None:
    """EPOLLERR makes uvloop stop watching a descriptor; the watcher has to notice."""
    ours, peer, stranger = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(3))
    with peer, stranger:
        for sock in (ours, peer, stranger):
            sock.bind(("127.0.0.1", 0))
        name = ours.getsockname()
        ours.connect(peer.getsockname())
        conn = watcher.delegate(ours)
        for number in range(8):
            peer.connect(stranger.getsockname())  # from here on it refuses ours
            read = watcher.read(conn, context="refused")
            if number % 2:
                await settle(3)
            watcher.write(conn, b"refused", silent=True)
            assert await one(watcher) is read
            assert isinstance(read.error, ConnectionRefusedError)
            await settle(number)

            peer.connect(name)
            read = watcher.read(conn, context="answered")
            await settle(3)
            watcher.write(conn, b"question")
            assert (await one(watcher)).error is None
            assert peer.recv(10) == b"question"
            await settle(3)
            peer.send(b"answer")
            assert await one(watcher) is read
            assert (read.error, read.data) == (None, b"answer")


async def test_P1_connected_udp_refused_while_nobody_reads(watcher: Watcher) -> None:
    """The error waits for the next call, whichever it is, and then it is over."""
    ours, peer, stranger = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(3))
    with peer, stranger:
        for sock in (ours, peer, stranger):
            sock.bind(("127.0.0.1", 0))
        name = ours.getsockname()
        ours.connect(peer.getsockname())
        conn = watcher.delegate(ours)
        for _ in range(4):
            peer.connect(stranger.getsockname())
            watcher.write(conn, b"refused", silent=True)
            ready(conn, select.POLLERR)
            await settle(5)
            write = watcher.write(conn, b"told")
            assert await one(watcher) is write
            assert isinstance(write.error, ConnectionRefusedError)
            peer.connect(name)
            watcher.write(conn, b"fine")
            assert (await one(watcher)).error is None
            assert peer.recv(10) == b"fine"
            read = watcher.read(conn)
            await settle(3)
            peer.send(b"answer")
            assert await one(watcher) is read
            assert read.data == b"answer"


async def test_P1_udp_over_ipv6(watcher: Watcher) -> None:
    try:
        ours = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        ours.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.bind(("::1", 0))
        peer.connect(ours.getsockname())
        ours.connect(peer.getsockname())
        conn = watcher.delegate(ours)
        await echo(watcher, conn, peer)


# --- Streams with marks in them -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read", "read_full", "multishot"])
async def test_P1_passed_descriptors_do_not_stop_a_unix_stream(watcher: Watcher, how: str) -> None:
    """A receive stops at them, short, with more behind it and no further edge."""
    ours, peer = unix_pair()
    read_end, write_end = os.pipe()
    with peer:
        conn = watcher.delegate(ours)
        if how == "multishot":
            watcher.read(conn, multishot=True)
        elif how == "read_full":
            watcher.read_full(conn, bytearray(45))
        else:
            watcher.read(conn)
        await settle(3)
        for number in range(5):
            peer.sendall(b"abc")
            socket.send_fds(peer, [b"def"], [write_end] * (1 + number % 2))
            peer.sendall(b"ghi")
        os.close(write_end)
        received = b""
        while len(received) < 45:
            for op in await bounded(watcher.wait_io()):
                assert op.error is None
                received += bytes(op.data)
            if how == "read" and len(received) < 45:
                watcher.read(conn)
        assert received == b"abcdefghi" * 5
        os.set_blocking(read_end, False)
        assert os.read(read_end, 1) == b"", "a passed descriptor was left open"
    os.close(read_end)


async def across_marks(
    watcher: Watcher, how: str, conn: Connection, peer: socket.socket, expected: bytes
) -> None:
    """What is sent before and behind five urgent bytes arrives, each as soon as it can."""
    for number in range(5):
        if how == "multishot":
            if number == 0:
                watcher.read(conn, multishot=True)
        elif how == "read_full":
            watcher.read_full(conn, bytearray(len(expected)))
        elif how == "read_until":
            watcher.read_until(conn, expected[-1:])
        elif how == "recvmsg":
            watcher.recvmsg(conn)
        else:
            watcher.read(conn)
        await settle(3)
        peer.sendall(b"ab")
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"cd")
        received = b""
        while len(received) < len(expected):
            for op in await bounded(watcher.wait_io()):
                assert op.error is None
                received += bytes(op.data)
            if how in ("read", "recvmsg") and len(received) < len(expected):
                (watcher.read if how == "read" else watcher.recvmsg)(conn)
        assert received == expected
        assert watcher.poll_io() == []


across_marks_by_each = pytest.mark.parametrize(
    "how", ["read", "read_full", "multishot", "read_until", "recvmsg"]
)
inline_or_not = pytest.mark.parametrize("inline", [False, True], ids=["out-of-line", "inline"])


@across_marks_by_each
@inline_or_not
@pytest.mark.parametrize("pair", [tcp_pair, unix_pair], ids=["tcp", "unix"])
async def test_P1_urgent_data_does_not_stop_a_stream(
    watcher: Watcher, how: str, inline: bool, pair: Callable[[], Any]
) -> None:
    """A receive stops at the mark, short, with more behind it and no further edge (tcp(7))."""
    ours, peer = pair()
    with peer:
        if not has_urgent_data(pair):
            ours.close()
            pytest.skip("no urgent data of such sockets on this machine")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        conn = watcher.delegate(ours)
        await across_marks(watcher, how, conn, peer, b"ab!cd" if inline else b"abcd")


def at_mark(sock: socket.socket) -> bool:
    answer = fcntl.ioctl(sock.fileno(), 0x8905, b"\0\0\0\0")  # SIOCATMARK, linux/sockios.h
    return answer != b"\0\0\0\0"


def refuse_at_marks(monkeypatch: pytest.MonkeyPatch, refusals: list[int]) -> None:
    """Fail twice with EAGAIN at each mark; count, in all and in a row."""

    def signalled(name: str) -> None:
        receive = getattr(socket.socket, name)

        def attempt(self: Any, *args: Any) -> Any:
            if refusals[1] < 2 and at_mark(self):
                refusals[:] = refusals[0] + 1, refusals[1] + 1
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            refusals[1] = 0
            return receive(self, *args)

        monkeypatch.setattr(Record, name, attempt, raising=False)

    for name in ("recv", "recv_into", "recvmsg"):
        signalled(name)


@across_marks_by_each
@inline_or_not
async def test_P1_EAGAIN_at_the_mark_does_not_stop_a_stream(
    watcher: Watcher, how: str, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a receive says EAGAIN if a signal is pending, whatever has come (tcp_recvmsg)."""
    refuse_at_marks(monkeypatch, refusals := [0, 0])
    ours, peer = tcp_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        conn = watcher.delegate(ours)
        await across_marks(watcher, how, conn, peer, b"ab!cd" if inline else b"abcd")
        assert refusals[0] >= 5, "a mark was not met"


async def test_P1_urgent_data_does_not_stop_a_stream_while_signals_come(watcher: Watcher) -> None:
    """The same by the system itself: without care one in a hundred of these connections hangs."""

    def ignore(*_: Any) -> None:
        pass

    before = signal.signal(signal.SIGALRM, ignore)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for _ in range(300):
            ours, peer = tcp_pair()
            with peer:
                conn = watcher.delegate(ours)
                await across_marks(watcher, "read_full", conn, peer, b"abcd")
                watcher.free(conn)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def test_P1_a_mark_whose_byte_was_taken_before_does_not_stop_a_stream(
    watcher: Watcher,
) -> None:
    """A receive stops there all the same, and no event tells of it (tcp(7))."""
    ours, peer = tcp_pair()
    with peer:
        peer.sendall(b"ab")
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"cd")
        await until(lambda: bool(select.select([], [], [ours], 0)[2]))
        assert ours.recv(1, socket.MSG_OOB) == b"!"
        assert ours.recv(9, socket.MSG_PEEK) == b"ab"
        conn = watcher.delegate(ours)
        watcher.write(conn, b"x")
        assert (await one(watcher)).error is None
        assert peer.recv(1) == b"x"
        await settle()  # the first edge has been told
        received = b""
        while len(received) < 4:
            watcher.read(conn)
            received += (await one(watcher)).data
        assert received == b"abcd"
        await echo(watcher, conn, peer)


@pytest.mark.parametrize("early", [False, True], ids=["read-late", "read-early"])
async def test_P1_EAGAIN_at_a_mark_whose_byte_was_taken_before_does_not_stop_a_stream(
    watcher: Watcher, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands behind it yet when the socket is delegated."""
    ours, peer = tcp_pair()
    with peer:
        peer.send(b"!", socket.MSG_OOB)
        await until(lambda: bool(select.select([], [], [ours], 0)[2]))
        assert ours.recv(1, socket.MSG_OOB) == b"!"
        conn = watcher.delegate(ours)
        refuse_at_marks(monkeypatch, refusals := [0, 0])
        for _ in range(2):
            op = watcher.read(conn) if early else None
            await settle()
            peer.sendall(b"data")
            await settle()  # the edge has been told, and nobody reads
            op = op or watcher.read(conn)
            assert await one(watcher) is op
            assert op.data == b"data"
        assert refusals[0], "the mark was not met"


async def test_P1_behind_the_mark_a_short_receive_proves_again_that_nothing_is_left(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Urgent data that came once does not cost a system call for each message ever after."""
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        await across_marks(watcher, "read", conn, peer, b"abcd")
        await echo(watcher, conn, peer)
        attempts: list[int] = []

        def counted(self: Any, *args: Any) -> int:
            attempts.append(1)
            return socket.socket.recv_into(self, *args)

        monkeypatch.setattr(Record, "recv_into", counted, raising=False)
        for _ in range(3):
            del attempts[:]
            op = watcher.read(conn, bytearray(9))
            await settle()
            peer.send(b"message")
            assert await one(watcher) is op
            await settle()
        assert len(attempts) == 1


async def test_P1_empty_messages_of_a_seqpacket_socket_are_not_its_end(watcher: Watcher) -> None:
    ours, peer = unix_pair(socket.SOCK_SEQPACKET)
    sent = [b"a", b"", b"", b"b", b"", b"c"]
    for message in sent:
        peer.send(message)
    peer.close()
    conn = watcher.delegate(ours)
    received = []
    while (op := await one_read(watcher, conn)).error is None:
        received.append(op.data)
    assert received == sent
    assert isinstance(op.error, EndOfStreamError)


async def one_read(watcher: Watcher, conn: Connection) -> Operation:
    watcher.read(conn)
    return await one(watcher)


@pytest.mark.parametrize("how", ["read", "read_full", "multishot"])
async def test_P1_urgent_data_and_the_end_in_one_edge(watcher: Watcher, how: str) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    if how == "read_full":
        watcher.read_full(conn, bytearray(10))
    else:
        watcher.read(conn, multishot=how == "multishot")
    await settle(3)
    peer.sendall(b"ab")
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(b"cd")
    peer.close()
    received, error = b"", None
    while error is None:
        for op in await bounded(watcher.wait_io()):
            received += bytes(op.data)
            error = op.error
        if error is None and how == "read":
            watcher.read(conn)
    assert received == b"abcd"
    assert isinstance(error, EndOfStreamError)


async def test_P1_an_urgent_byte_alone_completes_nothing(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.read(conn)
        await settle(3)
        peer.send(b"!", socket.MSG_OOB)
        await settle(10)
        assert not op.completed
        peer.sendall(b"data")
        assert await one(watcher) is op
        assert op.data == b"data"
        await echo(watcher, conn, peer)


# --- Everything else ------------------------------------------------------------------------------


async def test_P1_unix_listeners_and_ipv6_listeners(
    watcher: Watcher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    targets: list[tuple[socket.socket, Any]] = [(unix, path)]
    if socket.has_ipv6:
        six = socket.create_server(("::1", 0), family=socket.AF_INET6)
        targets.append((six, six.getsockname()))
    for listener, address in targets:
        family = listener.family
        watcher.accept(listener, multishot=True)
        for _ in range(3):
            with socket.socket(family) as client:
                client.connect(address)
                op = await one(watcher)
                assert op.accepted.family == family
                await echo(watcher, op.accepted, client)
                watcher.free(op.accepted)


async def test_P1_a_socket_that_is_not_connected_yet(watcher: Watcher) -> None:
    """Its state is a result, not an exception; connect first, then delegate."""
    for sock in (socket.socket(), socket.socket(socket.AF_UNIX)):
        conn = watcher.delegate(sock)
        watcher.read(conn)
        assert isinstance((await one(watcher)).error, OSError)
        watcher.write(conn, b"x")
        assert isinstance((await one(watcher)).error, OSError)
        watcher.free(conn)


async def test_P1_errors_in_callbacks_reach_nobody(poller: str) -> None:
    """Peers that misbehave in every way leave the loop's exception handler alone."""
    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings() as caught:
            async with Watcher(poller=poller) as watcher:
                conns = []
                for number in range(20):
                    ours, peer = tcp_pair()
                    conn = watcher.delegate(ours)
                    conns.append(conn)
                    watcher.read(conn, multishot=bool(number % 2))
                    if number % 4 > 1:
                        watcher.write(conn, bytes(LONG), timeout=0.001 * number)
                    await settle(1)
                    (reset if number % 3 else socket.socket.close)(peer)
                await settle(20)
                watcher.poll_io()
                assert all(conn.closed is False for conn in conns)
            watcher.poll_io()
            conns.clear()
            del conn, ours, peer
            gc.collect()
        assert not resource_warnings(caught)
        await settle()


async def test_P1_closing_while_the_peer_still_sends(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn, multishot=True)
        peer.sendall(b"data")
        await settle(3)
        watcher.close()
        results = []
        async for batch in watcher:
            results += batch
        assert results[-1].error is not None
        assert await drained(peer) == b""
