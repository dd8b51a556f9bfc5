"""A fork's child has a copy of everything and can disturb nothing: rule O5.

Descriptors are shared in a fork, and so is what the system keeps about them: a child that
unregisters from the parent's epoll, or receives from its socket, does it for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from aiogaio import Connection, ConnectionFreedError, DeadlineExceededError, Operation, Watcher
from tests.probes import (
    LONG,
    LOOP_FACTORIES,
    drained,
    in_a_child,
    no_loop_errors,
    receive,
    small_pair,
    unread,
    until,
)
from tests.support import collect, one, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")


class Parent:
    """A watcher with something of everything under way, held here and nowhere else."""

    def __init__(self, poller: str) -> None:
        self.watcher = Watcher(poller=poller)
        pairs = [tcp_pair(), unix_pair(), small_pair(), tcp_pair(), unix_pair()]
        self.peers = [peer for _, peer in pairs]
        reading, armed, writing, idle, timed = [self.watcher.delegate(ours) for ours, _ in pairs]
        self.reading, self.armed, self.writing, self.idle, self.timed = (
            reading,
            armed,
            writing,
            idle,
            timed,
        )
        self.read = self.watcher.read(reading)
        self.shots = self.watcher.read(armed, multishot=True)
        self.write = self.watcher.write(writing, b"x" * LONG)
        self.behind = self.watcher.write(writing, b"behind", silent=True)
        self.expiring = self.watcher.read(timed, timeout=0.05)
        self.listener = self.watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        self.accepting = self.watcher.accept(self.listener, multishot=True)

    async def goes_on(self) -> None:
        """Everything that was under way comes to its end, and what is new works as well."""
        watcher, peers = self.watcher, self.peers
        peers[0].sendall(b"read")
        peers[1].sendall(b"shot")
        client = socket.create_connection(self.listener.sockname, timeout=10)
        assert await receive(peers[2], LONG + 6) == b"x" * LONG + b"behind"
        results = {op.context or op.conn: op for op in await collect(watcher, 5)}
        assert results[self.reading] is self.read
        assert self.read.data == b"read"
        assert results[self.armed].data == b"shot"
        assert results[self.writing] is self.write
        assert self.write.error is None
        assert results[self.timed] is self.expiring
        assert isinstance(self.expiring.error, DeadlineExceededError)
        accepted = results[self.listener].accepted
        with client:
            watcher.read(accepted)
            client.sendall(b"accepted")
            assert (await one(watcher)).data == b"accepted"
            watcher.free(accepted)
        watcher.write(self.idle, b"idle", silent=True)
        assert await receive(peers[3], 4) == b"idle"
        ours, peer = unix_pair()
        with peer:
            new = watcher.delegate(ours)
            watcher.read(new)
            await settle(3)
            peer.sendall(b"new")
            assert (await one(watcher)).data == b"new"
            assert watcher.free(new) is True
        assert not any(unread(peer) for peer in peers), "the child has sent something"
        assert watcher.free(self.idle) is True
        assert await drained(peers[3]) == b""

    def close(self) -> None:
        self.watcher.close()
        for peer in self.peers:
            peer.close()


def nothing(holder: list[Parent]) -> None:
    """It just exits."""


def close_watcher(holder: list[Parent]) -> None:
    holder[0].watcher.close()
    holder[0].watcher.close()


def close_connections(holder: list[Parent]) -> None:
    parent = holder[0]
    for conn in (parent.reading, parent.armed, parent.writing, parent.idle, parent.listener):
        conn.close()
        parent.watcher.free(conn)
        assert conn.closed


def let_go(holder: list[Parent]) -> None:
    """The finalizers of the connections and of the watcher run in the child."""
    for peer in holder[0].peers:
        peer.close()
    holder.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def make_requests(holder: list[Parent]) -> None:
    """They may raise or not; nothing of the parent's is received or sent by them."""
    parent = holder[0]
    watcher = parent.watcher
    requests: list[Callable[[], Any]] = [
        lambda: watcher.read(parent.idle),
        lambda: watcher.read(parent.idle, timeout=0),
        lambda: watcher.read_full(parent.idle, bytearray(4)),
        lambda: watcher.write(parent.idle, b"from the child"),
        lambda: watcher.write(parent.idle, b"from the child", silent=True),
        lambda: watcher.write(parent.idle, bytearray(b"from the child"), timeout=0),
        lambda: watcher.accept(parent.listener, timeout=0),
        lambda: watcher.cancel(parent.read),
        lambda: watcher.cancel(parent.write),
        lambda: watcher.cancel(parent.shots),
        watcher.poll_io,
        watcher.statistics,
        lambda: watcher.threadsafe.write(parent.idle, b"from the child"),
        lambda: watcher.threadsafe.cancel(parent.read),
        lambda: watcher.threadsafe.free(parent.idle),
        lambda: repr(watcher) + repr(parent.idle),
        lambda: parent.idle.peername,
    ]
    for request in requests:
        with contextlib.suppress(Exception):
            request()


def delegate_there(holder: list[Parent]) -> None:
    """A socket given to the parent's watcher is the child's own affair."""
    ours, peer = unix_pair()
    with contextlib.suppress(Exception):
        holder[0].watcher.read(holder[0].watcher.delegate(ours))
    peer.close()
    ours.close()


def reuse_numbers(holder: list[Parent]) -> None:
    """The watcher is closed there, numbers are given anew, and it is closed and freed again."""
    parent = holder[0]
    parent.watcher.close()
    pipes = [os.pipe() for _ in range(10)]
    parent.watcher.close()
    for conn in (parent.reading, parent.armed, parent.writing, parent.idle):
        conn.close()
    for read_end, write_end in pipes:
        os.write(write_end, b"x")
        assert os.read(read_end, 1) == b"x"


def another_watcher(holder: list[Parent]) -> None:
    """A loop and a watcher of the child's own, as a server that forks its workers has."""

    async def main() -> None:
        async with Watcher() as watcher:
            ours, peer = unix_pair()
            conn = watcher.delegate(ours)
            read = watcher.read(conn)
            await settle(3)
            peer.sendall(b"in the child")
            assert await one(watcher) is read
            assert read.data == b"in the child"
            expiring = watcher.read(conn, timeout=0.01)
            assert await one(watcher) is expiring
            peer.close()

    with asyncio.Runner(loop_factory=LOOP_FACTORIES["asyncio"]) as runner:
        runner.run(main())


def threads(holder: list[Parent]) -> None:
    thread = threading.Thread(target=close_watcher, args=(holder,))
    thread.start()
    thread.join()


DEEDS = [
    nothing,
    close_watcher,
    close_connections,
    let_go,
    make_requests,
    delegate_there,
    reuse_numbers,
    another_watcher,
    threads,
]


@pytest.mark.parametrize("deed", DEEDS)
async def test_O5_a_child_cannot_disturb_the_parent(
    poller: str, deed: Callable[[list[Parent]], None]
) -> None:
    async with no_loop_errors():
        holder = [Parent(poller)]
        try:
            await settle(5)
            in_a_child(lambda: deed(holder))
            await holder[0].goes_on()
        finally:
            holder[0].close()


async def test_O5_a_child_does_not_take_the_parents_data(watcher: Watcher) -> None:
    """It was there before the fork, and no read of the parent's is pending yet."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.read(conn)
        await settle(3)
        peer.sendall(b"for the parent")

        def steal() -> None:
            with contextlib.suppress(Exception):
                watcher.poll_io()
            with contextlib.suppress(Exception):
                watcher.read(conn, timeout=0)
            with contextlib.suppress(Exception):
                watcher.read(conn, bytearray(100))
            with contextlib.suppress(Exception):
                watcher.poll_io()

        in_a_child(steal)
        assert await one(watcher) is op
        assert op.data == b"for the parent"


async def test_O5_results_that_waited_at_the_fork_are_still_the_parents(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        peer.sendall(b"data")
        read = watcher.read(ours)
        write = watcher.write(read.conn, b"x")

        def take_all() -> None:
            watcher.poll_io()
            watcher.close()

        in_a_child(take_all)
        assert await collect(watcher, 2) == [read, write]
        assert read.data == b"data"
        pending = watcher.read(read.conn)
        watcher.free(read.conn)
        assert await one(watcher) is pending
        assert isinstance(pending.error, ConnectionFreedError)


async def test_O5_a_closed_peer_is_seen_though_a_child_lives(watcher: Watcher) -> None:
    """The child's copies do not keep the parent's connections open: free reaches the peer."""
    ours, peer = tcp_pair()
    read_end, write_end = os.pipe()
    with peer:
        conn = watcher.delegate(ours)
        watcher.read(conn)
        await settle(3)
        closed_in_the_child, done = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                os.write(done, b"1")
                os.close(write_end)
                select.select([read_end], [], [], 20)  # until the parent has finished
            finally:
                os._exit(0)
        try:
            assert os.read(closed_in_the_child, 1) == b"1"
            watcher.free(conn)
            assert await drained(peer) == b""
        finally:
            os.close(write_end)
            os.waitpid(pid, 0)
            for fd in (read_end, closed_in_the_child, done):
                os.close(fd)
        assert isinstance((await one(watcher)).error, ConnectionFreedError)


async def test_O5_a_fork_while_somebody_waits(watcher: Watcher) -> None:
    (ours, peer), (others, other_peer) = unix_pair(), unix_pair()
    with peer, other_peer:
        conn = watcher.delegate(ours)
        other = watcher.delegate(others)
        watcher.read(conn)
        waiter = asyncio.ensure_future(watcher.wait_io())
        await settle(5)

        def disturb() -> None:
            with contextlib.suppress(Exception):
                watcher.free(conn)
            with contextlib.suppress(Exception):
                watcher.write(other, b"x")
            watcher.close()

        in_a_child(disturb)
        await settle(5)
        assert not waiter.done()
        peer.sendall(b"data")
        (op,) = await asyncio.wait_for(waiter, 10)
        assert op.data == b"data"


async def test_O5_a_child_of_a_thread(watcher: Watcher) -> None:
    """The fork happens in a thread while the loop's own thread is at work."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        failures: list[BaseException] = []

        def fork() -> None:
            try:
                in_a_child(watcher.close)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=fork)
        thread.start()
        rounds = 0
        ops: list[Operation] = []
        while thread.is_alive() or rounds < 10:
            rounds += 1
            ops.append(watcher.read(conn))
            await settle(2)
            peer.sendall(b"data")
            assert (await one(watcher)).data == b"data"
        await until(lambda: not thread.is_alive())
        thread.join()
        assert not failures
        assert isinstance(ops[0].conn, Connection)
