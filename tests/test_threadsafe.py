"""The ``threadsafe`` view: requests, cancels and frees from any thread.

The loop's thread stays the only one that touches sockets; the view hands it the calls. Some tests
keep that thread busy on purpose: it joins another thread, so what was submitted there can not
have been looked at when the call returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import arrived
from tests.support import collect, one, settle, tcp_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]


def elsewhere(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call returns or raises in another thread; the loop stands still meanwhile."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call(*arguments, **options))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the call waits for the loop"
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def receive(sock: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = sock.recv(min(1 << 18, count - len(received)))
        assert chunk, f"the stream ended after {len(received)} of {count} bytes"
        received += chunk
    return bytes(received)


async def drain(watcher: Watcher) -> list[Operation]:
    async with asyncio.timeout(10):
        return [operation async for results in watcher for operation in results]


# Each call


async def test_read_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        context = object()
        operation = elsewhere(watcher.threadsafe.read, conn, context=context)
        client.sendall(b"data")
        assert await one(watcher) is operation
        assert (operation.data, operation.error, operation.more) == (b"data", None, False)
        assert operation.type is OpType.READ
        assert operation.conn is conn
        assert operation.context is context


async def test_read_into_a_buffer_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(8)
        operation = elsewhere(watcher.threadsafe.read, conn, buffer)
        client.sendall(b"data")
        assert await one(watcher) is operation
        assert operation.buffer is buffer
        assert buffer[:4] == operation.data == b"data"


async def test_read_full_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(8)
        operation = elsewhere(watcher.threadsafe.read_full, conn, buffer)
        client.sendall(b"1234")
        await settle()
        client.sendall(b"5678")
        assert await one(watcher) is operation
        assert buffer == b"12345678"


async def test_write_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = elsewhere(watcher.threadsafe.write, conn, b"data")
        assert await one(watcher) is operation
        assert (operation.size, operation.error) == (4, None)
        assert receive(client, 4) == b"data"


async def test_silent_write_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        elsewhere(watcher.threadsafe.write, conn, b"data", silent=True)
        marker = elsewhere(watcher.threadsafe.write, conn, b"!")
        assert await one(watcher) is marker
        assert receive(client, 5) == b"data!"
        await settle()
        assert watcher.poll_io() == []


async def test_accept_from_a_thread(watcher: Watcher) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    operation = elsewhere(watcher.threadsafe.accept, listener)
    with socket.create_connection(listener.sockname) as client:
        assert await one(watcher) is operation
        assert isinstance(operation.accepted, Connection)
        assert operation.address == client.getsockname()


async def test_multishot_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        armed = elsewhere(watcher.threadsafe.read, conn, multishot=True)
        for message in (b"one", b"two"):
            client.sendall(message)
            got = await one(watcher)
            assert (got.data, got.more) == (message, True)
        assert elsewhere(watcher.threadsafe.cancel, armed) is None
        assert await one(watcher) is armed
        assert isinstance(armed.error, OperationCancelledError)


async def test_cancel_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = watcher.read(watcher.delegate(server))
        assert elsewhere(watcher.threadsafe.cancel, operation) is None
        assert await one(watcher) is operation
        assert isinstance(operation.error, OperationCancelledError)
        assert elsewhere(watcher.threadsafe.cancel, operation) is None  # too late: no matter
        await settle()
        assert watcher.poll_io() == []


async def test_free_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn)
        assert elsewhere(watcher.threadsafe.free, conn) is None
        assert await one(watcher) is operation
        assert isinstance(operation.error, ConnectionFreedError)
        assert conn.closed
        assert client.recv(1) == b""
        assert elsewhere(watcher.threadsafe.free, conn) is None
        await settle()
        assert watcher.poll_io() == []


async def test_socket_delegated_on_the_spot_from_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = elsewhere(watcher.threadsafe.write, server, b"data")
        assert await one(watcher) is operation
        assert isinstance(operation.conn, Connection)
        assert operation.conn is watcher.delegate(server)
        assert receive(client, 4) == b"data"
        with pytest.raises(OSError, match=r"Bad file descriptor"):
            server.send(b"spent")


async def test_view_has_the_six_calls_and_no_delivery(watcher: Watcher) -> None:
    view = watcher.threadsafe
    for name in ("read", "read_full", "write", "accept", "cancel", "free"):
        assert callable(getattr(view, name))
    for name in ("wait_io", "poll_io", "close", "__aiter__"):
        assert not hasattr(view, name)


# The loop


async def test_sleeping_loop_is_woken(watcher: Watcher) -> None:
    """Nothing else would wake it up: no timer is near, no socket is ready."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for _ in range(5):
            asleep = threading.Event()

            def submit(asleep: threading.Event = asleep) -> None:
                asleep.wait(10)
                time.sleep(0.002)
                watcher.threadsafe.write(conn, b"wake up")

            thread = threading.Thread(target=submit)
            thread.start()
            asyncio.get_running_loop().call_soon(asleep.set)
            began = time.monotonic()
            await watcher.wait_io()
            took = time.monotonic() - began
            thread.join()
            assert took < 5, "what woke the loop up was something else"


async def test_socket_is_touched_by_the_thread_of_the_loop_only(watcher: Watcher) -> None:
    """While that one stands still, nothing is sent, received or completed."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"data")
        submitted = [
            elsewhere(watcher.threadsafe.read, conn),
            elsewhere(watcher.threadsafe.write, conn, b"x"),
        ]
        assert not any(operation.completed for operation in submitted)
        assert watcher.poll_io() == []
        results = await collect(watcher, 2)
        assert set(results) == set(submitted)


async def test_calls_of_one_thread_keep_their_order(watcher: Watcher) -> None:
    server, client = tcp_pair()
    numbers = list(range(200))
    with client:
        conn = watcher.delegate(server)

        def submit() -> None:
            for number in numbers:
                watcher.threadsafe.write(conn, b"%4d" % number, context=number)

        elsewhere(submit)
        results = await collect(watcher, len(numbers))
        assert [operation.context for operation in results] == numbers
        assert receive(client, 800) == b"".join(b"%4d" % number for number in numbers)


async def test_request_and_its_cancel_keep_their_order(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)

        def submit() -> list[Operation]:
            first = watcher.threadsafe.read(conn)
            watcher.threadsafe.cancel(first)
            second = watcher.threadsafe.read(conn)
            watcher.threadsafe.free(conn)
            third = watcher.threadsafe.read(conn)
            return [first, second, third]

        operations = elsewhere(submit)
        assert await collect(watcher, 3) == operations
        assert [type(operation.error) for operation in operations] == [
            OperationCancelledError,
            ConnectionFreedError,
            ConnectionFreedError,
        ]


async def test_D1_cancel_that_overtakes_its_request_delivers_it_once(watcher: Watcher) -> None:
    """The loop's own thread cancels what it has not come to look at yet."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for submit in (
            lambda: watcher.threadsafe.read(conn),
            lambda: watcher.threadsafe.write(conn, b"x"),
            lambda: watcher.threadsafe.read(conn, multishot=True),
        ):
            operation = elsewhere(submit)
            cancelled = watcher.cancel(operation)
            assert watcher.cancel(operation) is False
            assert await one(watcher) is operation
            assert isinstance(operation.error, OperationCancelledError) == cancelled
            await settle()
            assert watcher.poll_io() == []
        statistics = watcher.statistics()
        assert (statistics.submitted, statistics.completed) == (3, 3)


async def test_D3_many_requests_from_a_thread_leave_turns_to_others() -> None:
    """What has piled up is not worked off in one go. In processor time, as in test_delivery."""
    many = 100_000
    stretches = []
    for _ in range(4):
        stretches.append(await longest_stretch(many))
        if stretches[-1] <= 0.020:
            return
    pytest.fail(f"other tasks waited for {[f'{s * 1000:.0f} ms' for s in stretches]}")


async def longest_stretch(many: int) -> float:
    """Between two turns of another task, while the loop takes so many requests of a thread."""
    server, client = tcp_pair()
    turns: list[float] = []
    with client:
        async with Watcher() as watcher:
            conn = watcher.delegate(server)

            async def tick() -> None:
                while True:
                    turns.append(time.thread_time())
                    await asyncio.sleep(0)

            def submit() -> None:
                for _ in range(many):
                    watcher.threadsafe.read(conn)

            ticker = asyncio.create_task(tick())
            await settle()
            gc.collect()
            gc.disable()
            try:
                elsewhere(submit)
                turns[:] = [time.thread_time()]
                while watcher.statistics().pending < many:
                    await asyncio.sleep(0)
                await settle(2)
            finally:
                gc.enable()
            ticker.cancel()
            watcher.close()
            await drain(watcher)
    return max(b - a for a, b in itertools.pairwise(turns))


async def test_many_threads_at_once_lose_nothing_and_mix_nothing_up(watcher: Watcher) -> None:
    threads, rounds = 4, 50
    pairs = [tcp_pair() for _ in range(threads)]
    with contextlib.ExitStack() as stack:
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]
        submitted: list[list[Operation]] = [[] for _ in conns]

        def hammer(index: int) -> None:
            rng = random.Random(index)
            for number in range(rounds):
                conn = conns[index]
                submitted[index].append(watcher.threadsafe.write(conn, b"%8d" % number))
                reading = watcher.threadsafe.read(conn)
                submitted[index].append(reading)
                if rng.random() < 0.5:
                    time.sleep(0)
                watcher.threadsafe.cancel(reading)

        jobs = [asyncio.create_task(asyncio.to_thread(hammer, i)) for i in range(threads)]
        results = await collect(watcher, threads * rounds * 2)
        await asyncio.gather(*jobs)
        assert len(set(results)) == len(results)
        assert set(results) == {operation for part in submitted for operation in part}
        for part, (_, client) in zip(submitted, pairs, strict=True):
            writes = [o for o in results if o in part and o.type is OpType.WRITE]
            assert writes == [o for o in part if o.type is OpType.WRITE]
            assert receive(client, 8 * rounds) == b"".join(b"%8d" % n for n in range(rounds))
            reads = [o for o in part if o.type is OpType.READ]
            assert all(isinstance(o.error, OperationCancelledError) for o in reads)
        statistics = watcher.statistics()
        assert (statistics.submitted, statistics.pending) == (len(results), 0)


async def test_view_works_in_the_thread_of_the_loop_too(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.threadsafe.write(conn, b"x")
        assert await one(watcher) is operation


# What belongs to the call is settled at the call


async def test_silent_data_is_copied_at_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        data = bytearray(b"original")
        elsewhere(watcher.threadsafe.write, conn, data, silent=True)
        data[:] = b"modified"
        del data[4:]  # a BufferError, had the call left a view behind
        assert await asyncio.to_thread(receive, client, 8) == b"original"


async def test_context_of_the_connection_is_taken_at_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        conn.context = before = object()
        operation = elsewhere(watcher.threadsafe.write, conn, b"x")
        conn.context = object()
        assert await one(watcher) is operation
        assert operation.context is before


async def test_timeout_counts_from_the_call(watcher: Watcher) -> None:
    """The loop comes to it late: the time that has passed is not given once more."""
    timeout = 0.5
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        delays = []
        for _ in range(4):
            called = time.monotonic()
            operation = elsewhere(watcher.threadsafe.read, conn, timeout=timeout)
            time.sleep(timeout * 0.8)
            resumed = time.monotonic()
            assert await one(watcher) is operation
            assert isinstance(operation.error, DeadlineExceededError)
            assert time.monotonic() - called >= timeout
            delays.append(time.monotonic() - resumed)
            if delays[-1] < timeout * 0.9:
                return
        pytest.fail(f"expired {delays} after the loop went on")


async def test_timeout_that_passed_before_the_loop_came_to_it_is_attempted_once(
    watcher: Watcher,
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"data")
        arrived(conn, 4)
        operation = elsewhere(watcher.threadsafe.read, conn, timeout=0)
        time.sleep(0.001)
        assert await one(watcher) is operation
        assert (operation.data, operation.error) == (b"data", None)


# Misuse raises at the call, in the thread that calls


Bad = Callable[[Watcher, Connection, Connection, Operation], Any]

BAD: dict[str, tuple[Bad, type[Exception]]] = {
    "read empty": (
        lambda w, c, f, o: w.threadsafe.read(c, bytearray()),
        EmptyBufferError,
    ),
    "read bytes": (lambda w, c, f, o: w.threadsafe.read(c, b"1234"), TypeError),
    "read negative": (lambda w, c, f, o: w.threadsafe.read(c, timeout=-1), ValueError),
    "read NaN": (lambda w, c, f, o: w.threadsafe.read(c, timeout=float("nan")), ValueError),
    "read both": (lambda w, c, f, o: w.threadsafe.read(c, timeout=1, deadline=1), ValueError),
    "read multishot": (
        lambda w, c, f, o: w.threadsafe.read(c, bytearray(1), multishot=True),
        ValueError,
    ),
    "read_full None": (lambda w, c, f, o: w.threadsafe.read_full(c, None), TypeError),
    "read_full strided": (
        lambda w, c, f, o: w.threadsafe.read_full(c, memoryview(bytearray(8))[::2]),
        TypeError,
    ),
    "write empty": (lambda w, c, f, o: w.threadsafe.write(c, b""), EmptyBufferError),
    "write str": (lambda w, c, f, o: w.threadsafe.write(c, "text"), TypeError),
    "silent empty": (
        lambda w, c, f, o: w.threadsafe.write(c, b"", silent=True),
        EmptyBufferError,
    ),
    "silent str": (lambda w, c, f, o: w.threadsafe.write(c, "text", silent=True), TypeError),
    "silent number": (lambda w, c, f, o: w.threadsafe.write(c, 8, silent=True), TypeError),
    "silent list": (lambda w, c, f, o: w.threadsafe.write(c, [1, 2], silent=True), TypeError),
    "accept stream": (lambda w, c, f, o: w.threadsafe.accept(c), UnsupportedConnectionError),
    "read foreign": (lambda w, c, f, o: w.threadsafe.read(f), UnsupportedConnectionError),
    "write foreign": (lambda w, c, f, o: w.threadsafe.write(f, b"x"), UnsupportedConnectionError),
    "free foreign": (lambda w, c, f, o: w.threadsafe.free(f), UnsupportedConnectionError),
    "cancel foreign": (lambda w, c, f, o: w.threadsafe.cancel(o), UnsupportedConnectionError),
    "read None": (lambda w, c, f, o: w.threadsafe.read(None), UnsupportedConnectionError),
    "free None": (lambda w, c, f, o: w.threadsafe.free(None), UnsupportedConnectionError),
    "cancel None": (lambda w, c, f, o: w.threadsafe.cancel(None), TypeError),
}


@pytest.mark.parametrize("name", BAD)
async def test_S2_misuse_raises_in_the_thread_that_calls(poller: str, name: str) -> None:
    call, error = BAD[name]
    server, client = tcp_pair()
    foreign, foreign_client = tcp_pair()
    async with Watcher(poller=poller) as watcher, Watcher(poller=poller) as other:
        with client, foreign_client:
            conn, theirs = watcher.delegate(server), other.delegate(foreign)
            pending = other.read(theirs)
            before = watcher.statistics(), other.statistics()
            with pytest.raises(error):
                elsewhere(call, watcher, conn, theirs, pending)
            await settle()
            assert (watcher.statistics(), other.statistics()) == before
            assert watcher.poll_io() == other.poll_io() == []
            assert not theirs.closed
            assert not pending.completed


async def test_S2_listener_given_to_a_read_raises_in_the_thread_that_calls(
    watcher: Watcher,
) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(UnsupportedConnectionError):
        elsewhere(watcher.threadsafe.read, listener)
    with pytest.raises(UnsupportedConnectionError):
        elsewhere(watcher.threadsafe.read_full, listener, bytearray(8))


CLOSED: dict[str, Callable[[Watcher, Any], Any]] = {
    "read": lambda watcher, conn: watcher.threadsafe.read(conn),
    "read_full": lambda watcher, conn: watcher.threadsafe.read_full(conn, bytearray(8)),
    "write": lambda watcher, conn: watcher.threadsafe.write(conn, b"x"),
    "silent write": lambda watcher, conn: watcher.threadsafe.write(conn, b"x", silent=True),
    "accept": lambda watcher, conn: watcher.threadsafe.accept(conn),
}


@pytest.mark.parametrize("name", CLOSED)
async def test_S2_closed_watcher_raises_in_the_thread_that_calls(
    watcher: Watcher, name: str
) -> None:
    server, client = tcp_pair()
    fresh, fresh_client = tcp_pair()
    with client, fresh, fresh_client:
        conn = watcher.delegate(server)
        watcher.close()
        with pytest.raises(WatcherClosedError):
            elsewhere(CLOSED[name], watcher, conn)
        with pytest.raises(WatcherClosedError):
            elsewhere(CLOSED[name], watcher, fresh)
        fresh.sendall(b"still mine")
        assert receive(fresh_client, 10) == b"still mine"


# A close that overtakes


async def test_D1_requests_that_a_close_overtakes_are_delivered(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))

        def submit() -> list[Operation]:
            view = watcher.threadsafe
            return [
                view.read(conn),
                view.read(conn, multishot=True),
                view.read_full(conn, bytearray(8), timeout=60),
                view.write(conn, b"never sent"),
                view.accept(listener),
                view.accept(listener, multishot=True),
            ]

        submitted = elsewhere(submit)
        elsewhere(watcher.threadsafe.write, conn, b"silent", silent=True, context="silent")
        watcher.close()
        results = await drain(watcher)
        assert len(results) == 7
        assert set(submitted) < set(results)
        assert [o.context for o in results].count("silent") == 1
        for operation in results:
            assert isinstance(operation.error, WatcherClosedError)
            assert operation.completed
            assert not operation.more
            assert operation.size == 0
        assert client.recv(100) == b""
        statistics = watcher.statistics()
        assert (statistics.submitted, statistics.completed, statistics.pending) == (7, 7, 0)


async def test_D4_overtaken_requests_come_before_the_end(watcher: Watcher) -> None:
    """Whichever way the closed watcher is drained, it is not drained until they are out."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = elsewhere(watcher.threadsafe.read, conn)
        watcher.close()
        assert await asyncio.wait_for(watcher.wait_io(), 10) == [operation]
        with pytest.raises(WatcherClosedError):
            await watcher.wait_io()


async def test_D4_socket_that_a_close_overtakes_is_closed_or_left_with_its_owner(
    watcher: Watcher,
) -> None:
    server, client = tcp_pair()
    with client, server:
        operation = elsewhere(watcher.threadsafe.read, server)
        watcher.close()
        assert await drain(watcher) == [operation]
        assert isinstance(operation.error, WatcherClosedError)
        await settle()
        assert watcher.statistics().connections == 0


async def test_cancel_and_free_that_a_close_overtakes_do_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn)
        elsewhere(watcher.threadsafe.cancel, operation)
        elsewhere(watcher.threadsafe.free, conn)
        watcher.close()
        assert await drain(watcher) == [operation]
        assert isinstance(operation.error, WatcherClosedError)
        await settle()
        assert watcher.poll_io() == []


async def test_requests_that_a_free_overtakes_are_delivered(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        submitted = [
            elsewhere(watcher.threadsafe.read, conn),
            elsewhere(watcher.threadsafe.write, conn, b"x"),
        ]
        watcher.free(conn)
        results = await collect(watcher, 2)
        assert set(results) == set(submitted)
        assert all(isinstance(o.error, ConnectionFreedError) for o in results)


async def test_close_while_threads_submit_delivers_each_once_or_refuses(poller: str) -> None:
    server, client = tcp_pair()
    with client:
        async with Watcher(poller=poller) as watcher:
            conn = watcher.delegate(server)
            accepted: list[list[Operation]] = [[], [], []]

            def submit(mine: list[Operation]) -> None:
                with contextlib.suppress(WatcherClosedError):
                    while True:
                        mine.append(watcher.threadsafe.read(conn))

            jobs = [asyncio.create_task(asyncio.to_thread(submit, part)) for part in accepted]
            while not all(accepted):
                await asyncio.sleep(0.001)
        results = await drain(watcher)
        await asyncio.gather(*jobs)
        await settle()
        results += watcher.poll_io()
        expected = [operation for part in accepted for operation in part]
        assert sorted(map(id, results)) == sorted(map(id, expected))
        assert all(isinstance(o.error, WatcherClosedError) for o in results)
