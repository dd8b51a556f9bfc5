"""Code that closes the watcher's descriptors behind its back, and what must not come of it.

The system gives the lowest free number to the next descriptor: whatever the program opens next, a
socket, a file, a pipe, stands where the connection stood. Nothing of ours may close that stranger,
and a new connection of that number has to work.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aiogaio import Connection, ConnectionFreedError, Operation, Watcher
from tests.probes import (
    LONG,
    bounded,
    collecting_by_hand,
    drained,
    identity,
    in_a_child,
    is_open,
    no_loop_errors,
    receive,
    recorded_warnings,
    small_pair,
    until,
)
from tests.support import collect, one, settle, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")


async def victim(watcher: Watcher, pending: str) -> tuple[Connection, socket.socket]:
    """A connection that the loop knows, with requests under way or without."""
    ours, peer = small_pair()
    conn = watcher.delegate(ours)
    if pending in ("read", "both"):
        watcher.read(conn, context="victim", timeout=1000)
    if pending == "armed":
        watcher.read(conn, context="victim", multishot=True)
    if pending in ("write", "both"):
        watcher.write(conn, bytes(LONG), context="victim")
    # uvloop aborts the process if a descriptor goes before it has looked at it once, whoever
    # registered it; that much peace the watcher cannot do without.
    await settle(3)
    return conn, peer


PENDING = pytest.mark.parametrize("pending", ["nothing", "read", "armed", "write", "both"])


@contextlib.contextmanager
def stranger(number: int, kind: str) -> Iterator[int]:
    """Something of somebody else's on this number, which is free or is taken away."""
    if kind == "dup2":  # in one step, there is no gap in which the number is free
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), number)
        opened: list[Any] = []
    else:
        with contextlib.suppress(OSError):
            os.close(number)
        if kind == "file":
            opened = [tempfile.TemporaryFile()]  # noqa: SIM115 - closed by number below
            found = opened[0].fileno()
        elif kind == "pipe":
            opened = list(os.pipe())
            found = opened[0]
        else:
            opened = list(unix_pair())
            found = opened[0].fileno()
        assert found == number, "the number was not reused"
    before = identity(number)
    try:
        yield number
        assert is_open(number), "the stranger was closed"
        assert identity(number) == before, "the stranger was replaced"
        if kind == "socket":
            opened[0].settimeout(10)
            opened[1].sendall(b"to the stranger")
            assert opened[0].recv(100) == b"to the stranger"
    finally:
        for one_of_them in opened:
            if isinstance(one_of_them, int):
                os.close(one_of_them)
            else:
                with contextlib.suppress(OSError):
                    one_of_them.close()
        if kind == "dup2":
            os.close(number)


STRANGERS = pytest.mark.parametrize("kind", ["file", "pipe", "socket", "dup2"])


async def assert_usable(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn, context="usable")
        await settle(3)
        peer.sendall(b"usable")
        results = await collect(watcher, 1)
        assert [op.context for op in results] == ["usable"]
        assert results[0].data == b"usable"
        watcher.free(conn)


# --- The stranger stays open ----------------------------------------------------------------------


@PENDING
@STRANGERS
async def test_O5_free_does_not_close_a_stranger(watcher: Watcher, pending: str, kind: str) -> None:
    async with no_loop_errors():
        conn, peer = await victim(watcher, pending)
        with peer, stranger(conn.fileno(), kind):
            assert watcher.free(conn) is True
            await settle(5)
            assert conn.closed
            results = watcher.poll_io()
            assert len(results) == {"nothing": 0, "both": 2}.get(pending, 1)
            assert all(type(op.error) is ConnectionFreedError for op in results)
            assert watcher.free(conn) is False
            await assert_usable(watcher)


@PENDING
@STRANGERS
async def test_O5_a_closing_watcher_does_not_close_a_stranger(
    poller: str, pending: str, kind: str
) -> None:
    async with no_loop_errors():
        watcher = Watcher(poller=poller)
        conn, peer = await victim(watcher, pending)
        with peer, stranger(conn.fileno(), kind):
            watcher.close()
            await settle(5)
            assert conn.closed
            assert len(watcher.poll_io()) == {"nothing": 0, "both": 2}.get(pending, 1)


@STRANGERS
@pytest.mark.parametrize("thread", [False, True], ids=["here", "thread"])
async def test_O5_a_finalizer_does_not_close_a_stranger(
    watcher: Watcher, kind: str, thread: bool
) -> None:
    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings():
            conn, peer = await victim(watcher, "nothing")
            holder = [conn]
            with peer, stranger(conn.fileno(), kind):
                del conn

                def drop() -> None:
                    holder.clear()
                    gc.collect()

                if thread:
                    dropping = threading.Thread(target=drop)
                    dropping.start()
                    await until(lambda: not dropping.is_alive())
                    dropping.join()
                else:
                    drop()
                await until(lambda: watcher.statistics().connections == 0)
                await settle(3)
        await assert_usable(watcher)


@STRANGERS
async def test_O5_a_watchers_finalizer_does_not_close_a_stranger(poller: str, kind: str) -> None:
    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings() as caught:
            holder: list[Any] = [Watcher(poller=poller)]
            conn, peer = await victim(holder[0], "nothing")
            with peer, stranger(conn.fileno(), kind):
                del conn
                holder.clear()
                gc.collect()
                await settle(3)
                assert caught


@STRANGERS
async def test_O5_a_fork_does_not_close_a_stranger_in_the_child(
    watcher: Watcher, kind: str
) -> None:
    conn, peer = await victim(watcher, "read")
    with peer, stranger(conn.fileno(), kind) as number:
        before = identity(number)

        def look() -> None:
            assert is_open(number), "closed by the fork"
            assert identity(number) == before
            watcher.close()
            conn.close()
            assert is_open(number), "closed in the child"

        in_a_child(look)
        watcher.free(conn)


@PENDING
async def test_O5_a_descriptor_that_is_simply_gone(watcher: Watcher, pending: str) -> None:
    """Nobody has the number yet: free and close cope, and everything pending comes back."""
    async with no_loop_errors():
        conn, peer = await victim(watcher, pending)
        with peer:
            os.close(conn.fileno())
            await settle(3)
            assert watcher.free(conn) is True
            assert len(watcher.poll_io()) == {"nothing": 0, "both": 2}.get(pending, 1)
            await drained(peer)
            await assert_usable(watcher)
            await assert_usable(watcher)


async def test_O5_requests_on_a_descriptor_that_is_gone_complete(watcher: Watcher) -> None:
    """Each of them, by an error or by free, and none hangs on after it."""
    async with no_loop_errors():
        conn, peer = await victim(watcher, "nothing")
        with peer:
            watcher.read(conn, timeout=0)
            await one(watcher)
            os.close(conn.fileno())
            ops = [
                watcher.read(conn, context=1),
                watcher.write(conn, b"x", context=2),
                watcher.write(conn, b"x", context=3, silent=True),
                watcher.read_full(conn, bytearray(4), context=4),
            ]
            await settle(5)
            watcher.free(conn)
            results = await collect(watcher, 4)
            assert sorted(op.context for op in results) == [1, 2, 3, 4]
            assert set(results) == set(ops)
            assert all(op.error is not None and op.size == 0 for op in results)
        await assert_usable(watcher)


# --- A new connection of that number --------------------------------------------------------------


async def assert_works_alone(
    watcher: Watcher, old: Connection, new: Connection, peer: socket.socket
) -> None:
    """The new connection receives what is its own, and nothing of it goes to the old one."""
    read = watcher.read(new, context="new")
    await settle(3)
    assert not read.completed
    peer.sendall(b"for the new one")
    results: list[Operation] = []
    async with asyncio.timeout(10):
        while read not in results:
            results += await watcher.wait_io()
    assert (read.error, read.data) == (None, b"for the new one")
    for op in results:
        if op is not read:
            assert op.conn is old
            assert op.error is not None
    write = watcher.write(new, b"y" * LONG, context="new")
    assert await receive(peer, LONG) == b"y" * LONG
    assert await one(watcher) is write
    assert write.error is None


@PENDING
@pytest.mark.parametrize("when", ["before", "after"])
async def test_O5_a_new_connection_of_a_stolen_number_works(
    watcher: Watcher, pending: str, when: str
) -> None:
    """Whether the old one is freed before the new one works or after, or let go of."""
    async with no_loop_errors():
        old, old_peer = await victim(watcher, pending)
        fd = old.fileno()
        os.close(fd)
        ours, peer = small_pair()
        with old_peer, peer:
            assert ours.fileno() == fd, "the number was not reused"
            new = watcher.delegate(ours)
            assert new is not old
            assert new.fileno() == fd
            if when == "before":
                watcher.free(old)
            await assert_works_alone(watcher, old, new, peer)
            watcher.free(old)
            old.close()
            assert not new.closed
            await settle(3)
            watcher.poll_io()
            await assert_works_alone(watcher, old, new, peer)
            del old
            await assert_works_alone(watcher, new, new, peer)
            assert watcher.free(new) is True
            assert await drained(peer) == b""
            assert watcher.statistics().connections == 0
            assert watcher.statistics().pending == 0


@PENDING
async def test_O5_the_old_connection_reaches_nothing_of_the_new_one(
    watcher: Watcher, pending: str
) -> None:
    """It neither receives nor sends nor listens on a number that is another connection's now."""
    async with no_loop_errors():
        old, old_peer = await victim(watcher, pending)
        fd = old.fileno()
        os.close(fd)
        ours, peer = unix_pair()
        with old_peer, peer:
            assert ours.fileno() == fd, "the number was not reused"
            new = watcher.delegate(ours)
            peer.sendall(b"for the new one")
            watcher.write(old, b"evil", context="old")
            watcher.write(old, b"evil", context="old", silent=True)
            watcher.read(old, context="old")
            watcher.read(old, context="old", timeout=0)
            watcher.read_full(old, bytearray(4), context="old")
            await settle(5)
            watcher.free(old)
            results = watcher.poll_io()
            assert len(results) == 5 + {"nothing": 0, "both": 2}.get(pending, 1)
            assert all(op.error is not None and op.conn is old for op in results)
            assert sum(op.context == "old" for op in results) == 5
            await settle(3)
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            watcher.read(new)
            assert (await one(watcher)).data == b"for the new one"


@PENDING
async def test_O5_an_accepted_connection_of_a_stolen_number_works(
    watcher: Watcher, pending: str
) -> None:
    async with no_loop_errors():
        listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        old, old_peer = await victim(watcher, pending)
        fd = old.fileno()
        with old_peer, socket.socket() as client:
            os.close(fd)
            # Whatever else is opened now would take the number: the client has been made before.
            client.connect(listener.sockname)
            client.settimeout(10)
            accept = watcher.accept(listener, context="accept")
            results: list[Operation] = []
            async with asyncio.timeout(10):
                while accept not in results:
                    results += await watcher.wait_io()
            new = accept.accepted
            assert new.fileno() == fd, "the number was not reused"
            for op in results:
                if op is not accept:
                    assert op.conn is old
                    assert op.error is not None
            await assert_works_alone(watcher, old, new, client)
            watcher.free(old)
            await settle(3)
            watcher.poll_io()
            assert not new.closed
            await assert_works_alone(watcher, old, new, client)


@PENDING
async def test_O5_a_new_connection_of_another_watcher_works(poller: str, pending: str) -> None:
    """The thief gives the number to a second watcher on the same loop."""
    async with (
        no_loop_errors(),
        Watcher(poller=poller) as first,
        Watcher(poller=poller) as second,
    ):
        old, old_peer = await victim(first, pending)
        fd = old.fileno()
        os.close(fd)
        ours, peer = small_pair()
        with old_peer, peer:
            assert ours.fileno() == fd, "the number was not reused"
            new = second.delegate(ours)
            await assert_works_alone(second, old, new, peer)
            first.free(old)
            await settle(3)
            await assert_works_alone(second, old, new, peer)
            first.close()
            await settle(3)
            assert not new.closed
            await assert_works_alone(second, old, new, peer)


@pytest.mark.parametrize("pending", ["nothing", "read"])
async def test_O5_a_transport_of_the_loop_on_a_stolen_number_goes_on(
    poller: str, pending: str
) -> None:
    """free() of the stale connection must not take the loop's reader from it."""
    if poller == "loop" and pending == "read":
        pytest.skip("the loop itself still has the stolen descriptor's reader")
    async with no_loop_errors(), Watcher(poller=poller) as watcher:
        old, old_peer = await victim(watcher, pending)
        fd = old.fileno()
        os.close(fd)
        ours, peer = unix_pair()
        with old_peer, peer:
            assert ours.fileno() == fd, "the number was not reused"
            reader, writer = await asyncio.open_connection(sock=ours)
            await settle(3)
            assert watcher.free(old) is True
            watcher.close()
            await settle(3)
            peer.sendall(b"to the transport")
            assert await bounded(reader.readexactly(16)) == b"to the transport"
            writer.write(b"from the transport")
            assert await receive(peer, 18) == b"from the transport"
            writer.close()
            await writer.wait_closed()


async def test_O5_a_stolen_number_again_and_again(watcher: Watcher) -> None:
    async with no_loop_errors():
        conns: list[Connection] = []
        peers: list[socket.socket] = []
        for number in range(30):
            ours, peer = unix_pair()
            peers.append(peer)
            conn = watcher.delegate(ours)
            if conns:
                assert conn.fileno() not in {old.fileno() for old in conns if not old.closed}
            op = watcher.read(conn, context=number)
            await settle(3)
            peer.sendall(b"%d" % number)
            results = await collect(watcher, 1)
            assert results == [op]
            assert op.data == b"%d" % number
            conns.append(conn)
            if number % 2:
                watcher.free(conn)
            else:
                os.close(conn.fileno())
        for conn in conns:
            watcher.free(conn)
        assert watcher.statistics().connections == 0
        await assert_usable(watcher)
        for peer in peers:
            peer.close()


async def test_O5_a_copy_of_a_stolen_socket_says_nothing_to_the_new_one(watcher: Watcher) -> None:
    """The old socket lives on elsewhere, and its events with it, under the same number."""
    async with no_loop_errors():
        old, old_peer = await victim(watcher, "read")
        fd = old.fileno()
        copy = os.dup(fd)
        os.close(fd)
        ours, peer = unix_pair()
        with old_peer, peer:
            assert ours.fileno() == fd, "the number was not reused"
            new = watcher.delegate(ours)
            read = watcher.read(new)
            await settle(3)
            old_peer.sendall(b"for the old one")
            await settle(5)
            old_peer.shutdown(socket.SHUT_WR)
            await settle(5)
            assert not read.completed
            watcher.free(old)
            await settle(3)
            watcher.poll_io()
            peer.sendall(b"for the new one")
            results = await collect(watcher, 1)
            assert results == [read]
            assert read.data == b"for the new one"
        os.close(copy)


# --- Finalizers in foreign threads ----------------------------------------------------------------


async def test_O3_connections_let_go_of_in_many_threads(poller: str) -> None:
    """While the loop serves others, whose numbers come and go under it."""
    rng = random.Random(3)
    stop = threading.Event()
    bins: list[list[Connection]] = [[] for _ in range(3)]
    failures: list[BaseException] = []

    def sweep(mine: list[Connection]) -> None:
        try:
            while not stop.is_set():
                while mine:
                    mine.pop()
                stop.wait(0.0005)
        except BaseException as error:
            failures.append(error)

    async with no_loop_errors():
        with recorded_warnings() as caught:
            async with Watcher(poller=poller) as watcher:
                threads = [threading.Thread(target=sweep, args=(mine,)) for mine in bins]
                for thread in threads:
                    thread.start()
                peers: list[socket.socket] = []
                try:
                    for number in range(150):
                        ours, peer = unix_pair()
                        peers.append(peer)
                        conn = watcher.delegate(ours)
                        read = watcher.read(conn, context=number)
                        await settle(2)
                        peer.sendall(b"%d" % number)
                        results = await collect(watcher, 1)
                        assert results == [read]
                        assert read.data == b"%d" % number
                        del results, read, ours
                        bins[rng.randrange(3)].append(conn)
                        del conn
                    await until(lambda: watcher.statistics().connections == 0)
                finally:
                    stop.set()
                    for thread in threads:
                        thread.join()
                assert not failures
                assert len(caught) == 150
                for peer in peers:
                    assert await drained(peer) == b""
                    peer.close()
                await assert_usable(watcher)


async def test_O3_watchers_let_go_of_in_many_threads(poller: str) -> None:
    failures: list[BaseException] = []

    def drop(holder: list[Any]) -> None:
        try:
            holder.clear()
            gc.collect()
        except BaseException as error:
            failures.append(error)

    async with no_loop_errors():
        with collecting_by_hand(), recorded_warnings():
            ends: list[socket.socket] = []
            threads: list[threading.Thread] = []
            for _ in range(10):
                watcher = Watcher(poller=poller)
                ours, peer = unix_pair()
                ends.append(peer)
                conn = watcher.delegate(ours)
                del ours
                thread = threading.Thread(target=drop, args=([watcher, conn],))
                del watcher, conn
                threads.append(thread)
            await settle(3)
            for thread in threads:
                thread.start()
            del thread
            await until(lambda: not any(thread.is_alive() for thread in threads))
            for finished in threads:
                finished.join()
            threads.clear()
            gc.collect()
            for peer in ends:
                assert await drained(peer) == b""
                peer.close()
            assert not failures


async def test_O3_a_finalizer_that_runs_inside_a_request(watcher: Watcher) -> None:
    """A collection can begin anywhere, in the middle of the watcher's own work, too."""
    thresholds = gc.get_threshold()
    peers: list[socket.socket] = []
    ours, peer = unix_pair()
    with recorded_warnings() as caught, peer:
        conn = watcher.delegate(ours)
        gc.set_threshold(1, 2, 2)  # nearly every allocation begins one
        try:
            for number in range(30):
                others, other_peer = unix_pair()
                peers.append(other_peer)
                cycle: list[Any] = [watcher.delegate(others)]
                cycle.append(cycle)
                del cycle, others
                op = watcher.read(conn, timeout=1000)
                watcher.write(conn, b"x" * 10, silent=True)
                peer.sendall(b"%d" % number)
                results = await collect(watcher, 1)
                assert results == [op]
                del op, results
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        await until(lambda: watcher.statistics().connections == 1)
        assert len(caught) == 30
        for other_peer in peers:
            assert await drained(other_peer) == b""
            other_peer.close()
