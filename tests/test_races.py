"""Races: two things in one tick of the loop, in every order; and storms of everything at once.

Whoever wins, every operation is delivered exactly once (D1), and no byte is lost or invented.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
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
    Watcher,
    WatcherClosedError,
)
from tests.storm import (
    Storm,
    drain,
    outcome,
    send,
    with_task_cancel,
    with_timeout,
    with_wait_for,
)
from tests.support import collect, one, settle, unix_pair

TRIES = 200

Wait = Callable[[Watcher, float], Awaitable[list[Operation]]]


@contextlib.contextmanager
def connected(watcher: Watcher) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection: one end delegated, the other the test's own, non-blocking."""
    sock, peer = unix_pair()
    peer.setblocking(False)
    with peer, contextlib.closing(watcher.delegate(sock)) as conn:
        yield conn, peer


async def until(condition: Callable[..., bool], *arguments: object) -> None:
    async with asyncio.timeout(10):
        while not condition(*arguments):
            await asyncio.sleep(0)


def same(delivered: list[Operation], submitted: list[Operation]) -> bool:
    """Whether the very operations submitted were delivered, each once, in any order."""
    return sorted(map(id, delivered)) == sorted(map(id, submitted))


# A result and a cancellation in the same tick --------------------------------------------------


@pytest.mark.parametrize("result_first", [True, False], ids=["result-first", "cancel-first"])
async def test_D2_result_and_task_cancel_in_one_tick(watcher: Watcher, result_first: bool) -> None:
    """The result is there at once: the same tick, without doubt."""
    with connected(watcher) as (conn, _):
        for _ in range(TRIES):
            waiter = asyncio.create_task(watcher.wait_io())
            await asyncio.sleep(0)
            if result_first:
                op = watcher.write(conn, b"x")
                waiter.cancel()
            else:
                waiter.cancel()
                op = watcher.write(conn, b"x")
            delivered = await outcome(waiter)
            assert waiter.cancelled() or delivered
            delivered += watcher.poll_io()
            assert delivered == [op]


@pytest.mark.parametrize("turns", range(5))
async def test_D2_readiness_and_task_cancel_some_ticks_apart(watcher: Watcher, turns: int) -> None:
    """Data arrives, and the waiter is cancelled some turns of the loop later."""
    with connected(watcher) as (conn, peer):
        for number in range(TRIES // 2):
            waiter = asyncio.create_task(watcher.wait_io())
            op = watcher.read(conn)
            await asyncio.sleep(0)
            peer.send(bytes([number]))
            await settle(turns)
            waiter.cancel()
            delivered = await outcome(waiter)
            if not delivered:
                delivered = [await one(watcher)]
            assert delivered == [op]
            assert op.data == bytes([number])
            assert watcher.poll_io() == []


async def test_D2_task_group_that_fails_in_the_tick_of_a_result(watcher: Watcher) -> None:
    delivered: list[Operation] = []

    async def wait() -> None:
        delivered.extend(await watcher.wait_io())

    async def fail() -> None:
        await asyncio.sleep(0)
        submitted.append(watcher.write(conn, b"x"))
        raise ZeroDivisionError

    with connected(watcher) as (conn, _):
        for _ in range(TRIES):
            submitted: list[Operation] = []
            delivered.clear()
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(wait())
                    tasks.create_task(fail())
            delivered += watcher.poll_io()
            assert delivered == submitted


@pytest.mark.parametrize("wait", [with_wait_for, with_timeout, with_task_cancel])
async def test_D2_results_around_the_instant_of_a_timeout(watcher: Watcher, wait: Wait) -> None:
    """Results are timed to come just when the waiter gives up: at once, or over the socket."""
    chance = random.Random(7)
    loop = asyncio.get_running_loop()
    submitted: list[Operation] = []
    delivered: list[Operation] = []
    with connected(watcher) as (conn, peer):
        for _ in range(TRIES):
            delay = 0.001 + chance.uniform(-0.0003, 0.0003)
            if chance.random() < 0.5:
                loop.call_later(0.001, lambda: submitted.append(watcher.write(conn, b"x")))
            else:
                submitted.append(watcher.read(conn, bytearray(1)))
                loop.call_later(0.001, peer.send, b"x")
            delivered += await outcome(wait(watcher, delay))
        while len(delivered) < TRIES:
            delivered += await asyncio.wait_for(watcher.wait_io(), 10)
    assert same(delivered, submitted)
    assert all(op.error is None for op in delivered)


# What another task or thread does while the consumer waits ---------------------------------------


Action = Callable[[Watcher, Operation], object]
ACTIONS: dict[str, Action] = {
    "cancel": lambda watcher, op: watcher.cancel(op),
    "free": lambda watcher, op: watcher.free(op.conn),
    "connection-close": lambda watcher, op: op.conn.close(),
    "close": lambda watcher, op: watcher.close(),
    "write": lambda watcher, op: watcher.write(op.conn, b"x"),
    "write-bytearray": lambda watcher, op: watcher.write(op.conn, bytearray(b"x")),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
async def test_D2_a_waiting_consumer_hears_of_what_another_task_does(
    watcher: Watcher, action: Action
) -> None:
    with connected(watcher) as (conn, _):
        op = watcher.read(conn)
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        action(watcher, op)
        (delivered,) = await asyncio.wait_for(waiter, 10)
        assert delivered is op or delivered.type is OpType.WRITE


@pytest.mark.parametrize("action", ["cancel", "free"])
async def test_D2_a_waiting_consumer_hears_of_what_a_thread_does(
    watcher: Watcher, action: str
) -> None:
    with connected(watcher) as (conn, _):
        op = watcher.read(conn)
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        act: Callable[[object], None] = getattr(watcher.threadsafe, action)
        await asyncio.to_thread(act, op if action == "cancel" else conn)
        assert await asyncio.wait_for(waiter, 10) == [op]


# Free ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4))
async def test_O2_free_and_readiness_in_one_tick(watcher: Watcher, turns: int) -> None:
    """Data or ConnectionFreedError; and who gets the number next gets none of it (O5)."""
    for _ in range(TRIES // 4):
        next_sock, next_peer = unix_pair()
        with next_peer, connected(watcher) as (conn, peer):
            number = conn.fileno()
            op = watcher.read(conn)
            await asyncio.sleep(0)
            peer.send(b"old")
            await settle(turns)
            assert watcher.free(conn)

            heir = socket.socket(fileno=renumber(next_sock, number))
            assert heir.fileno() == number, "free closes at once"
            next_op = watcher.read(heir)
            assert await one(watcher) is op
            if op.error is None:
                assert op.data == b"old"
            else:
                assert isinstance(op.error, ConnectionFreedError)
                assert op.size == 0
            await settle(2)
            assert not next_op.completed
            next_peer.send(b"new")
            assert await one(watcher) is next_op
            assert next_op.data == b"new"
            watcher.free(next_op.conn)


def renumber(sock: socket.socket, number: int) -> int:
    """Move a socket to a descriptor number that has just become free."""
    fd = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, number)
    sock.close()
    return fd


async def test_O2_the_first_of_many_ready_connections_frees_the_others(watcher: Watcher) -> None:
    """All are ready in one poll: what was collected holds data, what was not was freed."""
    for _ in range(TRIES // 10):
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(connected(watcher)) for _ in range(12)]
            submitted = [watcher.read(conn) for conn, _ in pairs]
            await asyncio.sleep(0)
            for _, peer in pairs:
                peer.send(b"data")
            delivered = await watcher.wait_io()
            for op in submitted:
                assert watcher.free(op.conn)
            delivered += watcher.poll_io()
            assert same(delivered, submitted)
            for op in delivered:
                if op.error is None:
                    assert op.data == b"data"
                else:
                    assert isinstance(op.error, ConnectionFreedError)


async def test_O2_free_and_cancel_and_deadline_in_one_tick(watcher: Watcher) -> None:
    """Whichever comes first completes the operation; the others find nothing to do."""
    loop = asyncio.get_running_loop()
    chance = random.Random(3)
    for _ in range(TRIES // 4):
        with connected(watcher) as (conn, peer):
            due = loop.time() + 0.0005
            submitted = [watcher.read(conn, deadline=due) for _ in range(3)]
            actions: list[tuple[Callable[..., object], Any]] = [
                (watcher.free, conn),
                (functools.partial(send, peer), b"x"),
                *((watcher.cancel, op) for op in submitted),
            ]
            for action, argument in chance.sample(actions, len(actions)):
                loop.call_at(due, action, argument)
            assert same(await collect(watcher, 3), submitted)
            await until(getattr, conn, "closed")
            assert watcher.poll_io() == []


# Close -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4))
async def test_D4_close_with_results_undelivered(poller: str, turns: int) -> None:
    with contextlib.ExitStack() as stack:
        watcher = Watcher(poller=poller)
        pairs = [stack.enter_context(connected(watcher)) for _ in range(12)]
        conns = [conn for conn, _ in pairs]
        reads = [watcher.read(conn) for conn in conns]
        writes = [watcher.write(conn, b"out") for conn in conns[::2]]
        await asyncio.sleep(0)
        for _, peer in pairs[::3]:
            peer.send(b"in")
        await settle(turns)
        watcher.close()

        assert all(conn.closed for conn in conns)
        delivered = [op async for results in watcher for op in results]
        assert same(delivered, reads + writes)
        assert all(op.error is None for op in writes)
        for op in reads:
            assert op.data == b"in" if op.error is None else is_closed(op)
        with pytest.raises(WatcherClosedError):
            await watcher.wait_io()
        assert watcher.poll_io() == []


def is_closed(op: Operation) -> bool:
    return isinstance(op.error, WatcherClosedError) and op.size == 0


@pytest.mark.parametrize("cancel", [False, True], ids=["", "and-cancel"])
async def test_D4_close_while_a_waiter_waits(poller: str, cancel: bool) -> None:
    """The waiter gets what is pending; cancelled in the same tick, it leaves it to the next."""
    for _ in range(TRIES // 10):
        watcher = Watcher(poller=poller)
        with connected(watcher) as (conn, _):
            submitted = [watcher.read(conn)]
            waiter = asyncio.create_task(watcher.wait_io())
            await asyncio.sleep(0)
            submitted.append(watcher.write(conn, b"x"))
            watcher.close()
            if cancel:
                waiter.cancel()
            delivered = await outcome(waiter) + watcher.poll_io()
            assert delivered == submitted[::-1]
            assert is_closed(submitted[0])


async def test_D4_close_ends_a_wait_for_which_nothing_is_pending(poller: str) -> None:
    watcher = Watcher(poller=poller)
    waiter = asyncio.create_task(watcher.wait_io())
    await settle()
    watcher.close()
    with pytest.raises(WatcherClosedError):
        await asyncio.wait_for(waiter, 10)


async def test_D4_close_from_within_the_batch(poller: str) -> None:
    """What the same batch still holds stays valid; the rest is drained by the same loop."""
    with contextlib.ExitStack() as stack:
        watcher = Watcher(poller=poller)
        pairs = [stack.enter_context(connected(watcher)) for _ in range(12)]
        submitted = [watcher.read(conn) for conn, _ in pairs]
        submitted += [watcher.read(op.conn) for op in submitted]
        await asyncio.sleep(0)
        for _, peer in pairs:
            peer.send(b"data")
        delivered = []
        async for results in watcher:
            delivered += results
            watcher.close()
        assert same(delivered, submitted)


# Cancel ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4))
async def test_D1_cancel_racing_with_the_completion_of_a_read(watcher: Watcher, turns: int) -> None:
    """Cancelled or read, never both; what a cancelled read did not take is for the next."""
    with connected(watcher) as (conn, peer):
        for number in range(TRIES // 2):
            op = watcher.read(conn)
            await asyncio.sleep(0)
            peer.send(bytes([number]))
            await settle(turns)
            cancelled = watcher.cancel(op)
            assert await one(watcher) is op
            if cancelled:
                assert isinstance(op.error, OperationCancelledError)
                assert op.size == 0
                again = watcher.read(conn)
                assert await one(watcher) is again
                assert again.data == bytes([number])
            else:
                assert op.data == bytes([number])
            assert not watcher.cancel(op)


@pytest.mark.parametrize("turns", range(4))
async def test_S4_cancel_racing_with_the_progress_of_a_write(watcher: Watcher, turns: int) -> None:
    """The size that a cancelled write reports is what the peer gets, and nothing after it (T3)."""
    data = random.Random(1).randbytes(1024 * 1024)
    for _ in range(TRIES // 10):
        with connected(watcher) as (conn, peer):
            op = watcher.write(conn, data)
            behind = watcher.write(conn, b"behind")
            assert not op.completed
            read = drain(peer, 100_000)
            await settle(turns)
            read += drain(peer, 100_000)
            assert watcher.cancel(op)
            between = watcher.write(conn, b"between")
            assert await collect(watcher, 3) == [op, behind, between]
            assert isinstance(op.error, OperationCancelledError)
            for torn in (behind, between):
                assert isinstance(torn.error, OperationCancelledError)
                assert torn.error.__cause__ is op.error
                assert torn.size == 0
            watcher.free(conn)
            read += drain(peer)
            assert read == data[: op.size]


async def test_D1_cancel_from_a_thread_racing_with_completion(watcher: Watcher) -> None:
    with connected(watcher) as (conn, peer):

        def cancel_and_send(op: Operation) -> None:
            watcher.threadsafe.cancel(op)
            peer.send(b"x")

        def send_and_cancel(op: Operation) -> None:
            peer.send(b"x")
            watcher.threadsafe.cancel(op)

        sent = 0
        got = b""
        for number in range(TRIES):
            op = watcher.read(conn)
            await asyncio.to_thread([cancel_and_send, send_and_cancel][number % 2], op)
            assert await one(watcher) is op
            sent += 1
            got += op.data if op.error is None else b""
            assert op.error is None or isinstance(op.error, OperationCancelledError)
        peer.shutdown(socket.SHUT_WR)
        while True:
            op = watcher.read(conn)
            assert await one(watcher) is op
            if op.error is not None:
                break
            got += op.data
        assert isinstance(op.error, EndOfStreamError)
        assert got == b"x" * sent


# Deadlines -------------------------------------------------------------------------------------


def send_next(peer: socket.socket, pieces: Iterator[bytes]) -> None:
    peer.send(next(pieces))


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_T2_deadlines_racing_with_data(watcher: Watcher, full: bool) -> None:
    """Data or the deadline, whichever is first; never early, and not a byte is lost."""
    loop = asyncio.get_running_loop()
    chance = random.Random(5)
    message = b"0123456789"
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            peers: dict[Connection, socket.socket] = {}
            got: dict[Connection, bytes] = {}
            start = loop.time()
            for _ in range(TRIES // 4):
                conn, peer = stack.enter_context(connected(watcher))
                peers[conn] = peer
                got[conn] = b""
                due = start + 0.01 + chance.uniform(0, 0.005)
                halves = iter((message[:5], message[5:]))
                for _ in range(2):
                    loop.call_at(start + 0.01 + chance.uniform(0, 0.005), send_next, peer, halves)
                if full:
                    watcher.read_full(conn, bytearray(10), deadline=due, context=due)
                else:
                    watcher.read(conn, deadline=due, context=due)
            for op in await collect(watcher, len(peers)):
                got[op.conn] += op.data or b""
                if op.error is not None:
                    assert isinstance(op.error, DeadlineExceededError)
                    assert loop.time() >= op.context
                    assert op.size < 10
                    assert full or op.size == 0
                else:
                    assert op.size == 10 or not full
            await asyncio.sleep(max(0.0, start + 0.02 - loop.time()))
            rest = [conn for conn in peers if len(got[conn]) < 10]
            for conn in rest:
                watcher.read_full(conn, bytearray(10 - len(got[conn])))
            for op in await collect(watcher, len(rest)):
                got[op.conn] += op.data
            assert set(got.values()) == {message}


# Accept ----------------------------------------------------------------------------------------


def knock(address: Any, count: int) -> list[socket.socket]:
    return [socket.create_connection(address, 10) for _ in range(count)]


def all_ended(clients: Iterable[socket.socket]) -> bool:
    return all(map(is_ended, clients))


def is_ended(client: socket.socket) -> bool:
    """Whether the other side is closed, by a FIN or by a RST."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("multishot", [False, True], ids=["single", "multishot"])
@pytest.mark.parametrize("turns", range(3))
async def test_D4_accept_racing_with_close(poller: str, turns: int, multishot: bool) -> None:
    """Accepted and undelivered, or still in the backlog: the close ends every connection."""
    for _ in range(TRIES // 20):
        with contextlib.ExitStack() as stack:
            watcher = Watcher(poller=poller)
            request = watcher.accept(socket.create_server(("127.0.0.1", 0)), multishot=multishot)
            await asyncio.sleep(0)
            clients = knock(request.conn.sockname, 8)
            for client in clients:
                client.setblocking(False)
                stack.enter_context(client)
            await settle(turns)
            watcher.close()

            delivered = [op async for results in watcher for op in results]
            assert delivered[-1] is request
            assert not request.more
            assert [op.more for op in delivered[:-1]] == [True] * (len(delivered) - 1)
            assert multishot or len(delivered) == 1
            for op in delivered:
                if op.error is None:
                    assert op.accepted is not None
                    assert op.accepted.closed
                else:
                    assert op is request
                    assert isinstance(op.error, WatcherClosedError)
            await until(all_ended, clients)


@pytest.mark.parametrize("turns", range(3))
async def test_O2_accept_racing_with_free_of_the_listener(watcher: Watcher, turns: int) -> None:
    """Those accepted before are connections of their own and live on; the others are refused."""
    for _ in range(TRIES // 20):
        with contextlib.ExitStack() as stack:
            request = watcher.accept(socket.create_server(("127.0.0.1", 0)), multishot=True)
            await asyncio.sleep(0)
            clients = {}
            for client in knock(request.conn.sockname, 8):
                stack.enter_context(client)
                client.setblocking(False)
                clients[client.getsockname()] = client
            await settle(turns)
            watcher.free(request.conn)

            *accepted, last = watcher.poll_io()
            assert last is request
            assert isinstance(last.error, ConnectionFreedError)
            for op in accepted:
                assert op.accepted is not None
                client = clients.pop(op.address)
                client.send(b"alive")
                read = watcher.read(op.accepted)
                assert await one(watcher) is read
                assert read.data == b"alive"
                watcher.free(op.accepted)
            await until(all_ended, clients.values())


# Storms ----------------------------------------------------------------------------------------


async def run_storm(poller: str, seed: int, steps: int, *, close: bool) -> None:
    async with Watcher(poller=poller, batch_size=8, buffer_size=1024) as watcher:
        storm = Storm(watcher, seed)
        with contextlib.closing(storm):
            await storm.blow(steps)
            if close:
                storm.break_off()
            else:
                await storm.subside()
            assert storm.settled
            assert watcher.poll_io() == []
            statistics = watcher.statistics()
            assert statistics.submitted == statistics.completed == storm.submitted
            for line in storm.all:
                line.check_bytes(all_of_them=not close)


@pytest.mark.parametrize("close", [False, True], ids=["drain", "close"])
@pytest.mark.parametrize("seed", range(2))
async def test_D1_storm(poller: str, seed: int, close: bool) -> None:
    await run_storm(poller, seed, 1000, close=close)


@pytest.mark.heavy
@pytest.mark.parametrize("close", [False, True], ids=["drain", "close"])
@pytest.mark.parametrize("seed", range(2, 7))
async def test_D1_long_storm(poller: str, seed: int, close: bool) -> None:
    await run_storm(poller, seed, 5000, close=close)
