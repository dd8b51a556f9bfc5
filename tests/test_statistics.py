"""``statistics()``, a frozen snapshot of what a watcher has done, and ``set_affinity()``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from aiogaio import Operation, Statistics, Watcher
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.001)


def requests(watcher: Watcher) -> tuple[int, int, int]:
    statistics = watcher.statistics()
    return statistics.submitted, statistics.completed, statistics.pending


def transferred(watcher: Watcher) -> tuple[int, int]:
    statistics = watcher.statistics()
    return statistics.bytes_read, statistics.bytes_written


async def test_statistics_of_a_new_watcher_are_zero(watcher: Watcher) -> None:
    statistics = watcher.statistics()
    assert isinstance(statistics, Statistics)
    assert (statistics.submitted, statistics.completed, statistics.pending) == (0, 0, 0)
    assert (statistics.bytes_read, statistics.bytes_written) == (0, 0)
    assert (statistics.connections, statistics.batches) == (0, 0)


async def test_statistics_are_a_frozen_snapshot(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        before = watcher.statistics()
        for field in ("submitted", "completed", "pending", "connections", "poller"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(before, field, 1)
        operation = watcher.write(server, b"x")
        await one(watcher)
        assert operation.completed
        assert before.submitted == before.completed == before.connections == 0
        assert watcher.statistics() != before


async def test_statistics_name_the_poller(watcher: Watcher, poller: str) -> None:
    assert watcher.statistics().poller == poller


async def test_statistics_name_the_poller_that_was_found() -> None:
    async with Watcher() as watcher:
        assert watcher.statistics().poller in ("epoll", "loop")


async def test_requests_are_counted_when_accepted_and_when_they_end(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        assert requests(watcher) == (0, 0, 0)
        first = watcher.read_full(conn, bytearray(4))
        watcher.read(conn)
        assert requests(watcher) == (2, 0, 2)
        client.sendall(b"abcd")
        await until(lambda: first.completed)
        assert requests(watcher) == (2, 1, 1)  # it has ended, though nobody has collected it
        watcher.poll_io()
        assert requests(watcher) == (2, 1, 1)
        watcher.write(conn, b"x")
        assert requests(watcher) == (3, 2, 1)


async def test_silent_writes_count_as_any_request(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.write(conn, b"x", silent=True)
        assert requests(watcher) == (1, 1, 0)
        client.recv(1)
        size = 1 << 20
        operation = watcher.write(conn, bytes(size), silent=True)
        assert requests(watcher) == (2, 1, 1)

        def receive() -> None:
            left = size
            while left:
                left -= len(client.recv(left))

        await asyncio.to_thread(receive)
        await until(lambda: operation is not None and operation.completed)
        assert requests(watcher) == (2, 2, 0)
        assert transferred(watcher) == (0, size + 1)


@pytest.mark.parametrize("how", ["cancel", "deadline", "end", "reset", "free", "close"])
async def test_failed_requests_have_come_to_their_end(watcher: Watcher, how: str) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn, timeout=0.001 if how == "deadline" else None)
        match how:
            case "cancel":
                watcher.cancel(operation)
            case "end":
                client.close()
            case "reset":
                reset(client)
            case "free":
                watcher.free(conn)
            case "close":
                watcher.close()
        await one(watcher)
        assert requests(watcher) == (1, 1, 0)


async def test_requests_to_a_freed_connection_count(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.free(conn)
        watcher.read(conn)
        watcher.write(conn, b"x", silent=True)
        await collect(watcher, 2)
        assert requests(watcher) == (2, 2, 0)


async def test_refused_calls_do_not_count(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for data in (b"", "text", None):
            with pytest.raises((TypeError, ValueError)):
                watcher.write(conn, data)  # type: ignore[arg-type]
        assert requests(watcher) == (0, 0, 0)


async def test_multishot_counts_once_and_its_deliveries_do_not(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        armed = watcher.read(conn, multishot=True)
        for _ in range(5):
            client.sendall(b"xyz")
            await one(watcher)
            assert requests(watcher) == (1, 0, 1)
        watcher.cancel(armed)
        assert requests(watcher) == (1, 1, 0)
        assert transferred(watcher) == (15, 0)


async def test_multishot_accept_counts_once(watcher: Watcher) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with contextlib.ExitStack() as stack:
        armed = watcher.accept(listener, multishot=True)
        for _ in range(5):
            stack.enter_context(socket.create_connection(listener.sockname))
        accepted = await collect(watcher, 5)
        assert requests(watcher) == (1, 0, 1)
        assert watcher.statistics().connections == 6
        watcher.free(listener)
        assert await one(watcher) is armed
        assert requests(watcher) == (1, 1, 0)
        for operation in accepted:
            operation.accepted.close()
        assert watcher.statistics().connections == 0


async def test_requests_from_threads_count(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        await asyncio.to_thread(watcher.threadsafe.write, conn, b"x")
        await one(watcher)
        assert requests(watcher) == (1, 1, 0)


async def test_bytes_are_those_that_went_over_the_socket(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.write(conn, b"12345")
        watcher.write(conn, b"678", silent=True)
        await one(watcher)
        assert transferred(watcher) == (0, 8)
        client.sendall(b"abcdefghij")
        watcher.read_full(conn, bytearray(4))
        watcher.read(conn, bytearray(3))
        watcher.read(conn)
        await collect(watcher, 3)
        assert transferred(watcher) == (10, 8)


async def test_bytes_of_failed_requests_count(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"abc")
        reading = watcher.read_full(conn, bytearray(8), timeout=0.01)
        assert await one(watcher) is reading
        writing = watcher.write(conn, bytes(4 << 20))
        watcher.cancel(writing)
        assert await one(watcher) is writing
        assert (reading.size, 0 < writing.size < 4 << 20) == (3, True)
        assert transferred(watcher) == (3, writing.size)


async def test_connections_are_those_not_yet_closed(watcher: Watcher) -> None:
    pairs = [tcp_pair() for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]
        assert watcher.statistics().connections == 4
        watcher.delegate(pairs[0][0])  # it is delegated already
        assert watcher.statistics().connections == 4
        watcher.free(conns[0])
        watcher.free(conns[0])
        conns[1].close()
        assert watcher.statistics().connections == 2
        on_the_spot = watcher.write(unix_pair_into(stack), b"x")
        assert watcher.statistics().connections == 3
        assert on_the_spot.completed
        watcher.close()
        assert watcher.statistics().connections == 0


def unix_pair_into(stack: contextlib.ExitStack) -> socket.socket:
    server, client = unix_pair()
    stack.enter_context(client)
    return server


async def test_connections_that_nobody_holds_no_longer_count(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        assert watcher.statistics().connections == 1
        del conn, server  # the socket object stands for its connection
        gc.collect()
        await until(lambda: watcher.statistics().connections == 0)


async def test_batches_are_the_lists_handed_over(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        assert watcher.poll_io() == []
        assert watcher.statistics().batches == 0  # nothing was handed over
        for _ in range(5):
            watcher.write(conn, b"x")
        assert len(await watcher.wait_io()) == 5
        assert watcher.statistics().batches == 1
        watcher.write(conn, b"x")
        assert len(watcher.poll_io()) == 1
        assert watcher.statistics().batches == 2
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert watcher.statistics().batches == 2


async def test_statistics_can_be_asked_after_the_close(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.write(conn, b"abc")
        watcher.read(conn)
        watcher.close()
        statistics = watcher.statistics()
        assert (statistics.submitted, statistics.completed, statistics.pending) == (2, 2, 0)
        assert (statistics.connections, statistics.bytes_written) == (0, 3)
        watcher.poll_io()
        assert watcher.statistics().batches == 1


async def test_each_watcher_counts_for_itself(poller: str) -> None:
    server, client = tcp_pair()
    async with Watcher(poller=poller) as one_watcher, Watcher(poller=poller) as another:
        with client:
            operation: Operation | None = one_watcher.write(server, b"x")
            assert operation is not None
            assert requests(one_watcher) == (1, 1, 0)
            assert requests(another) == (0, 0, 0)


# set_affinity


linux_only = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no thread can be pinned here"
)


@pytest.fixture
def cores() -> Iterator[set[int]]:
    """The cores this thread may use, now and after the test."""
    allowed = os.sched_getaffinity(0)
    yield allowed
    os.sched_setaffinity(0, allowed)


@linux_only
async def test_set_affinity_pins_the_thread_of_the_loop(watcher: Watcher, cores: set[int]) -> None:
    for core in sorted(cores)[:2]:
        os.sched_setaffinity(0, cores)
        assert watcher.set_affinity(core) is None
        assert os.sched_getaffinity(0) == {core}


@linux_only
async def test_set_affinity_leaves_other_threads_alone(watcher: Watcher, cores: set[int]) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait, args=(20,))
    other.start()
    try:
        watcher.set_affinity(min(cores))
        assert other.native_id is not None
        assert os.sched_getaffinity(other.native_id) == cores
    finally:
        done.set()
        other.join()


@linux_only
@pytest.mark.parametrize("core", [-1, 1023, 1 << 20, 1 << 31, 1 << 70, -(1 << 70)])
async def test_set_affinity_to_a_core_that_does_not_exist_is_refused(
    watcher: Watcher, cores: set[int], core: int
) -> None:
    if core in range(os.cpu_count() or 1):
        pytest.skip("it does exist here")
    with pytest.raises(ValueError, match=rf"{core}|core|cpu") as refused:
        watcher.set_affinity(core)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    assert os.sched_getaffinity(0) == cores


@linux_only
@pytest.mark.parametrize("core", ["0", None, 0.5, {0}], ids=repr)
async def test_set_affinity_to_what_is_no_core_is_refused(
    watcher: Watcher, cores: set[int], core: object
) -> None:
    with pytest.raises((TypeError, ValueError)):
        watcher.set_affinity(core)  # type: ignore[arg-type]
    assert os.sched_getaffinity(0) == cores


@linux_only
async def test_set_affinity_to_a_core_not_granted_is_refused(
    watcher: Watcher, cores: set[int]
) -> None:
    """A core number just past the last one: what a typing error looks like."""
    with pytest.raises(ValueError):
        watcher.set_affinity(os.cpu_count() or sys.maxsize)
    assert os.sched_getaffinity(0) == cores
