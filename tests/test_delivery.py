"""Delivery: every request comes back exactly once, in batches, and the loop stays alive meanwhile.

Rules D1 to D4.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    Operation,
    OperationCancelledError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import ready
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.001)


async def nothing_more(watcher: Watcher) -> None:
    await settle()
    assert watcher.poll_io() == []
    assert watcher.statistics().pending == 0


def complete_one(watcher: Watcher, conn: Connection, context: object = None) -> Operation:
    """A request that is completed when the call returns: the peer's socket has room."""
    operation = watcher.write(conn, b".", context=context)
    assert operation.completed
    return operation


# D1: every accepted request is delivered exactly once


Ending = Callable[[Watcher, Connection, socket.socket, Operation], object]


def end_of_stream(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have been closed or reset before
        peer.shutdown(socket.SHUT_WR)


ENDINGS: dict[str, Ending] = {
    "end": lambda watcher, conn, peer, operation: end_of_stream(peer),
    "reset": lambda watcher, conn, peer, operation: reset(peer) if peer.fileno() >= 0 else None,
    "cancel": lambda watcher, conn, peer, operation: watcher.cancel(operation),
    "free": lambda watcher, conn, peer, operation: watcher.free(conn),
    "conn.close": lambda watcher, conn, peer, operation: conn.close(),
    "close": lambda watcher, conn, peer, operation: watcher.close(),
}


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", [name for name in ENDINGS if name != "free"])
async def test_D1_two_ends_in_one_tick_deliver_once(
    watcher: Watcher, first: str, second: str
) -> None:
    """Whichever end comes to be seen: each request is delivered, and none of them twice."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        submitted = [watcher.read_full(conn, bytearray(8), timeout=60) for _ in range(3)]
        client.sendall(b"abcd")
        ready(conn)
        for how in (first, second):
            ENDINGS[how](watcher, conn, client, submitted[0])
        client.close()  # the latest end, for those that nothing else has ended
        assert await collect(watcher, 3) == submitted
        assert all(o.completed and o.error is not None for o in submitted)
        await nothing_more(watcher)


@pytest.mark.parametrize("how", ENDINGS)
async def test_D1_completed_but_uncollected_is_delivered_as_it_is(
    watcher: Watcher, how: str
) -> None:
    """What ends the connection afterwards changes no result, and brings it no second time."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"in time")
        ready(conn)
        operation = watcher.read(conn)
        written = complete_one(watcher, conn)
        ENDINGS[how](watcher, conn, client, operation)
        assert await collect(watcher, 2) == [operation, written]
        assert (operation.data, operation.error) == (b"in time", None)
        assert written.error is None
        await nothing_more(watcher)


async def test_D1_cancel_of_a_completed_operation_does_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = complete_one(watcher, conn)
        assert watcher.cancel(operation) is False  # completed, not yet collected
        assert await one(watcher) is operation
        assert watcher.cancel(operation) is False
        assert operation.error is None
        await nothing_more(watcher)


async def test_D1_cancel_beats_data_that_has_just_arrived(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn)
        client.sendall(b"data")
        ready(conn)
        cancelled = watcher.cancel(operation)
        assert watcher.cancel(operation) is False
        assert await one(watcher) is operation
        if cancelled:
            assert isinstance(operation.error, OperationCancelledError)
            assert operation.size == 0
            operation = watcher.read(conn)
            assert await one(watcher) is operation
        assert operation.data == b"data"
        await nothing_more(watcher)


async def test_D1_deadline_and_data_in_one_tick_deliver_once(watcher: Watcher) -> None:
    server, client = tcp_pair()
    loop = asyncio.get_running_loop()
    with client:
        conn = watcher.delegate(server)
        for number in range(10):
            operation = watcher.read(conn, bytearray(1), timeout=0.005)
            give_up = loop.time() + 0.005
            client.sendall(b"%d" % number)
            ready(conn)
            while loop.time() <= give_up:
                pass  # the loop finds both of them when it runs again
            assert await one(watcher) is operation
            if operation.error is not None:
                assert isinstance(operation.error, DeadlineExceededError)
                assert operation.size == 0
                operation = watcher.read(conn, bytearray(1))
                assert await one(watcher) is operation
            assert bytes(operation.data) == b"%d" % number
        await nothing_more(watcher)


SUBMIT: dict[str, Callable[[Watcher, Connection, float], Operation]] = {
    "read": lambda watcher, conn, deadline: watcher.read(conn, deadline=deadline),
    "read into": lambda watcher, conn, deadline: watcher.read(
        conn, bytearray(8), deadline=deadline
    ),
    "read_full": lambda watcher, conn, deadline: watcher.read_full(
        conn, bytearray(4), deadline=deadline
    ),
    "write": lambda watcher, conn, deadline: watcher.write(conn, bytes(1 << 20), deadline=deadline),
}


PATIENCES = 0.05, 0.2, 1, 4  # seconds: a machine that pauses until they are over gets more


@pytest.mark.parametrize("kind", SUBMIT)
async def test_D1_deadline_that_passes_after_the_completion_is_no_second_end(
    watcher: Watcher, kind: str
) -> None:
    for seconds in PATIENCES:
        server, client = unix_pair()
        idle, idle_client = unix_pair()
        with client, idle_client:
            client.setblocking(False)
            deadline = asyncio.get_running_loop().time() + seconds
            operation = SUBMIT[kind](watcher, watcher.delegate(server), deadline)
            alarm = watcher.read(watcher.delegate(idle), deadline=deadline + 0.001)
            client.sendall(b"data")
            while not operation.completed:
                with contextlib.suppress(BlockingIOError):
                    client.recv(1 << 18)
                await asyncio.sleep(0)
            assert set(await collect(watcher, 2)) == {operation, alarm}
            await nothing_more(watcher)
            if operation.error is None:
                return
    pytest.fail("the machine paused in every attempt")


async def test_D1_deadline_that_passes_after_an_accept_is_no_second_end(watcher: Watcher) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    for seconds in PATIENCES:
        idle, idle_client = unix_pair()
        with idle_client:
            deadline = asyncio.get_running_loop().time() + seconds
            operation = watcher.accept(listener, deadline=deadline)
            alarm = watcher.read(watcher.delegate(idle), deadline=deadline + 0.001)
            with socket.create_connection(listener.sockname):
                assert set(await collect(watcher, 2)) == {operation, alarm}
            await nothing_more(watcher)
            if operation.error is None:
                return
            watcher.accept(listener)  # the client of this attempt
            await one(watcher)
    pytest.fail("the machine paused in every attempt")


async def test_D1_every_pending_request_comes_back_from_a_free(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        submitted = [
            watcher.read_full(conn, bytearray(4)),
            watcher.read(conn, timeout=60),
            watcher.read(conn, multishot=True),
            watcher.write(conn, bytes(4 << 20)),
            watcher.write(conn, b"x", timeout=60),
            watcher.write(conn, b"silent", silent=True),
        ]
        watcher.free(conn)
        assert await collect(watcher, 6) == submitted
        assert all(isinstance(o.error, ConnectionFreedError) for o in submitted)
        await nothing_more(watcher)


async def test_D1_requests_to_a_freed_connection_come_back_too(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client, socket.create_server(("127.0.0.1", 0)) as listener:
        conn = watcher.delegate(server)
        listening = watcher.delegate(listener)
        watcher.free(conn)
        watcher.free(listening)
        submitted = [
            watcher.read(conn),
            watcher.read(conn, multishot=True),
            watcher.read_full(conn, bytearray(4)),
            watcher.write(conn, b"x"),
            watcher.write(conn, b"x", silent=True),
            watcher.accept(listening),
            watcher.accept(listening, multishot=True),
        ]
        assert await collect(watcher, 7) == submitted
        assert all(isinstance(o.error, ConnectionFreedError) for o in submitted if o)
        await nothing_more(watcher)


# D2: wait_io returns at least one operation, in order of completion; a cancelled one loses nothing


async def test_D2_operations_come_in_order_of_completion(watcher: Watcher) -> None:
    """Submitted in one order, completed in another, over several connections."""
    pairs = [tcp_pair() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]
        pending = [watcher.read(conn) for conn in conns]
        expected: list[Operation] = []
        for number in (3, 0, 4, 2, 1):
            expected.append(complete_one(watcher, conns[number]))
            pairs[number][1].sendall(b"x")
            await until(lambda number=number: pending[number].completed)
            expected.append(pending[number])
        cancelled = watcher.read(conns[2])
        watcher.cancel(cancelled)
        expected += [cancelled, complete_one(watcher, conns[2])]
        assert await watcher.wait_io() == expected


async def test_D2_wait_io_waits_until_there_is_something(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn)
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        assert not waiter.done()
        client.sendall(b"x")
        assert await asyncio.wait_for(waiter, 10) == [operation]


async def test_D2_wait_io_is_never_empty_handed(watcher: Watcher) -> None:
    """Somebody takes what woke the waiter up, before it runs: it goes on waiting."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        waiter = asyncio.create_task(watcher.wait_io())
        for _ in range(3):
            await settle()
            taken = complete_one(watcher, conn)
            assert watcher.poll_io() == [taken]
            await settle()
            assert not waiter.done()
        last = complete_one(watcher, conn)
        assert await asyncio.wait_for(waiter, 10) == [last]


async def test_D2_poll_io_never_waits(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        assert watcher.poll_io() == []
        watcher.read(watcher.delegate(server))
        assert watcher.poll_io() == []


async def test_D2_iteration_yields_batches_that_are_not_empty(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.read(conn, bytearray(1))
        seen = 0
        async with asyncio.timeout(10):
            client.sendall(b"x" * 10)
            async for results in watcher:
                assert results
                seen += len(results)
                if seen == 10:
                    break
                watcher.read(conn, bytearray(1))
        assert seen == 10


async def test_D2_second_waiter_is_refused_and_the_first_undisturbed(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        for _ in range(2):
            with pytest.raises(RuntimeError) as refused:
                await watcher.wait_io()
            assert not isinstance(refused.value, WatcherClosedError)
        with pytest.raises(RuntimeError):
            async for _ in watcher:
                pass
        assert not waiter.done()
        operation = complete_one(watcher, conn)
        assert await asyncio.wait_for(waiter, 10) == [operation]


async def test_D2_cancelled_waiter_makes_room_for_the_next(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for _ in range(3):
            waiter = asyncio.create_task(watcher.wait_io())
            await settle()
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        operation = complete_one(watcher, conn)
        assert await one(watcher) is operation


async def test_D2_waiter_that_is_closed_makes_room_for_the_next(watcher: Watcher) -> None:
    """A coroutine that is driven by hand and thrown away: as when its loop is torn down."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        coroutine = watcher.wait_io()
        coroutine.send(None)
        coroutine.close()
        watcher.wait_io().close()  # never started
        operation = complete_one(watcher, conn)
        assert await one(watcher) is operation


async def test_D2_cancellation_reaches_the_task_that_is_cancelled(watcher: Watcher) -> None:
    """Were it swallowed in favour of a result, ``timeout()`` and ``TaskGroup`` would not work."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for result_first in (True, False):
            waiter = asyncio.create_task(watcher.wait_io())
            await settle()
            if result_first:
                operation = complete_one(watcher, conn)
                waiter.cancel()
            else:
                waiter.cancel()
                operation = complete_one(watcher, conn)
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert watcher.poll_io() == [operation]


async def test_D2_waiter_cancelled_before_it_runs_loses_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = complete_one(watcher, watcher.delegate(server))
        waiter = asyncio.create_task(watcher.wait_io())
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await one(watcher) is operation


TRIES = 40
Race = Callable[[Watcher, Callable[[], object], list[Operation]], Awaitable[None]]


async def cancel_then_result(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    task = asyncio.create_task(take(watcher, received))
    await settle(3)
    task.cancel()
    complete()
    await asyncio.gather(task, return_exceptions=True)


async def result_then_cancel(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    task = asyncio.create_task(take(watcher, received))
    await settle(3)
    complete()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def around_wait_for(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    asyncio.get_running_loop().call_later(0.002, complete)
    with contextlib.suppress(TimeoutError):
        received += await asyncio.wait_for(watcher.wait_io(), 0.002)


async def around_timeout(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    loop = asyncio.get_running_loop()
    when = loop.time() + 0.002
    loop.call_at(when, complete)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(when):
            received += await watcher.wait_io()


async def timeout_of_nothing(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    complete()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            received += await watcher.wait_io()
            await asyncio.sleep(0)


async def sibling_fails(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    async def fail() -> None:
        await settle(3)
        complete()
        raise LookupError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(take(watcher, received))
            group.create_task(fail())


async def outer_cancelled_in_wait_for(
    watcher: Watcher, complete: Callable[[], object], received: list[Operation]
) -> None:
    async def outer() -> None:
        received.extend(await asyncio.wait_for(watcher.wait_io(), 10))

    task = asyncio.create_task(outer())
    await settle(4)
    complete()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def take(watcher: Watcher, received: list[Operation]) -> None:
    received.extend(await watcher.wait_io())


@pytest.mark.parametrize(
    "race",
    [
        cancel_then_result,
        result_then_cancel,
        around_wait_for,
        around_timeout,
        timeout_of_nothing,
        sibling_fails,
        outer_cancelled_in_wait_for,
    ],
    ids=lambda race: race.__name__,
)
async def test_D2_result_and_cancellation_in_one_tick_lose_nothing(
    watcher: Watcher, race: Race
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        completed: list[Operation] = []
        received: list[Operation] = []
        for number in range(TRIES):

            def complete(number: int = number) -> None:
                completed.append(complete_one(watcher, conn, context=number))

            await race(watcher, complete, received)
            await until(lambda number=number: len(completed) > number)
        received += watcher.poll_io()
        assert [o.context for o in received] == list(range(TRIES))
        assert received == completed


@pytest.mark.parametrize("turns", range(7))
async def test_D2_cancellation_at_any_turn_after_the_data_loses_nothing(
    watcher: Watcher, turns: int
) -> None:
    """The readiness, the result and the waiter's waking are iterations of the loop apart."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        received: list[Operation] = []
        for _ in range(10):
            operation = watcher.read(conn)
            task = asyncio.create_task(take(watcher, received))
            await settle(3)
            client.sendall(b"x")
            ready(conn)
            await settle(turns)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not received:
                received += await collect(watcher, 1)
            assert received == [operation]
            received.clear()
        await nothing_more(watcher)


async def test_D2_iteration_cancelled_and_taken_up_again_loses_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        received: list[object] = []

        async def consume() -> None:
            async for results in watcher:
                received.extend(operation.context for operation in results)

        for number in range(50):
            task = asyncio.create_task(consume())
            await settle(number % 4)
            complete_one(watcher, conn, context=number)
            await settle(number % 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        received += [operation.context for operation in watcher.poll_io()]
        assert received == list(range(50))


# D3: a busy consumer cannot starve the loop, nor a busy connection the others
#
# Measured in the processor time of this thread: what else runs on the machine does not count.
# The rule says 10 ms of the watcher's own work; what the consumer does between two turns of the
# loop comes on top. The garbage collector rests meanwhile: its pauses are nobody's work. Caches
# and clock rates still make a stretch longer now and then, hence the tries.

LONGEST_STRETCH = 0.020
BUSY_FOR = 0.12
TRIES_TO_MEASURE = 4


class Ticker:
    """Another task, which sleeps 1 ms at a time; notes the longest stretch between its turns."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = 0.0

    def begin(self) -> None:
        """Count from now on: what was before were preparations."""
        self.longest = 0.0
        self._last = time.thread_time()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            self.longest = max(self.longest, now - self._last)
            self._last = now

    async def __aenter__(self) -> Ticker:
        gc.collect()
        gc.disable()
        self.begin()
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0.003)
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.003)  # a stretch that is still under way is counted, too
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        gc.enable()


def filled(size: int = 1 << 20) -> tuple[socket.socket, socket.socket]:
    """A TCP pair; the server's end has ``size`` bytes to read, or what the system takes."""
    server, client = tcp_pair()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while size > 0:
            size -= client.send(bytes(min(size, 1 << 16)))
    client.settimeout(10)
    return server, client


async def loop_stays_alive(busy: Callable[[Ticker], Awaitable[object]]) -> None:
    stretches = []
    for _ in range(TRIES_TO_MEASURE):
        async with Ticker() as ticker:
            results = await busy(ticker)
        del results  # taking 100,000 of them down is a stretch of its own
        stretches.append(ticker.longest)
        if ticker.longest <= max(LONGEST_STRETCH, 2 * work_of_ten_milliseconds()):
            return
    pytest.fail(f"other tasks waited for {[f'{s * 1000:.0f} ms' for s in stretches]}")


def work_of_ten_milliseconds() -> float:
    """Seconds of this thread for what commonly takes that long: a slow machine takes longer."""
    began = time.thread_time()
    assert len([object() for _ in range(200_000)]) == 200_000
    return time.thread_time() - began


async def test_D3_consumer_of_what_completes_at_once_leaves_turns_to_others(
    watcher: Watcher,
) -> None:
    """There is always a result at hand: ``wait_io`` never has a reason to wait."""
    server, client = filled()
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(1)

        async def busy(ticker: Ticker) -> None:
            end = time.thread_time() + BUSY_FOR
            watcher.read(conn, buffer)
            while time.thread_time() < end:
                for operation in await watcher.wait_io():
                    assert operation.error is None
                    watcher.read(conn, buffer)
            await one(watcher)

        await loop_stays_alive(busy)


async def test_D3_iteration_over_what_completes_at_once_leaves_turns_to_others(
    watcher: Watcher,
) -> None:
    server, client = filled()
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(1)

        async def busy(ticker: Ticker) -> None:
            end = time.thread_time() + BUSY_FOR
            watcher.read(conn, buffer)
            async for _ in watcher:
                if time.thread_time() >= end:
                    return
                watcher.read(conn, buffer)

        await loop_stays_alive(busy)


async def test_D3_firehose_between_two_connections_leaves_turns_to_others(
    watcher: Watcher,
) -> None:
    left, right = unix_pair()
    source, sink = watcher.delegate(left), watcher.delegate(right)
    data = bytes(1 << 16)
    armed = watcher.read(sink, multishot=True)

    async def busy(ticker: Ticker) -> None:
        end = time.thread_time() + BUSY_FOR
        writing = watcher.write(source, data)
        while time.thread_time() < end or not writing.completed:
            for operation in await watcher.wait_io():
                if operation is writing and time.thread_time() < end:
                    writing = watcher.write(source, data)

    await loop_stays_alive(busy)
    watcher.cancel(armed)


@contextlib.contextmanager
def in_a_thread(work: Callable[[], object]) -> Iterator[None]:
    def run() -> None:
        with contextlib.suppress(OSError):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()


async def test_D3_one_long_read_full_leaves_turns_to_others(watcher: Watcher) -> None:
    """The peer sends as fast as it is read: the socket never is empty for long."""
    size = 96 << 20
    server, client = tcp_pair()
    buffer = bytearray(size)
    chunk = bytes(1 << 20)
    with client:
        conn = watcher.delegate(server)

        def send() -> None:
            for _ in range(size // len(chunk)):
                client.sendall(chunk)

        async def busy(ticker: Ticker) -> None:
            with in_a_thread(send):
                watcher.read_full(conn, buffer)
                assert (await one(watcher, within=20)).error is None

        await loop_stays_alive(busy)


async def test_D3_one_long_write_leaves_turns_to_others(watcher: Watcher) -> None:
    size = 96 << 20
    server, client = tcp_pair()
    data = bytes(size)
    into = bytearray(1 << 20)
    with client:
        conn = watcher.delegate(server)

        def receive() -> None:
            left = size
            while left:
                left -= client.recv_into(into)

        async def busy(ticker: Ticker) -> None:
            with in_a_thread(receive):
                watcher.write(conn, data)
                assert (await one(watcher, within=20)).error is None

        await loop_stays_alive(busy)


MANY = 50_000


async def test_D3_many_large_messages_at_one_time_leave_turns_to_others(
    watcher: Watcher,
) -> None:
    """Few events, many bytes: the copying counts as well."""
    size = 2 << 20
    buffers = [bytearray(size) for _ in range(48)]
    pairs = [tcp_pair() for _ in buffers]
    message = memoryview(bytes(size))

    def send_all(unsent: list[tuple[socket.socket, memoryview]]) -> None:
        for client, rest in unsent:  # nothing, unless loopback is slow
            client.settimeout(10)
            client.sendall(rest)

    with contextlib.ExitStack() as stack:
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]

        async def busy(ticker: Ticker) -> list[Operation]:
            for conn, buffer in zip(conns, buffers, strict=True):
                watcher.read_full(conn, buffer)
            for _, client in pairs:
                client.setblocking(False)
            unsent = [(client, message[client.send(message) :]) for _, client in pairs]
            ticker.begin()
            rest = asyncio.create_task(asyncio.to_thread(send_all, unsent))
            results = await collect(watcher, len(conns))
            await rest
            return results

        await loop_stays_alive(busy)


async def test_D3_queue_of_many_reads_leaves_turns_to_others(watcher: Watcher) -> None:
    """One event serves tens of thousands of requests: more than one turn's worth of work."""
    server, client = tcp_pair()
    buffer = bytearray(1)
    with client:
        conn = watcher.delegate(server)

        async def busy(ticker: Ticker) -> list[Operation]:
            for _ in range(MANY):
                watcher.read(conn, buffer)
            await asyncio.sleep(0.002)
            client.sendall(bytes(MANY))
            ticker.begin()
            return await collect(watcher, MANY)

        await loop_stays_alive(busy)


async def test_D3_many_deadlines_at_one_time_leave_turns_to_others(unlimited: Watcher) -> None:
    server, client = tcp_pair()
    buffer = bytearray(1)
    with client:
        conn = unlimited.delegate(server)

        async def busy(ticker: Ticker) -> list[Operation]:
            deadline = asyncio.get_running_loop().time() + 0.25
            for _ in range(2 * MANY):
                unlimited.read(conn, buffer, deadline=deadline)
            ticker.begin()
            return await collect(unlimited, 2 * MANY)

        await loop_stays_alive(busy)


async def test_D3_end_with_many_reads_pending_leaves_turns_to_others(watcher: Watcher) -> None:
    async def busy(ticker: Ticker) -> list[Operation]:
        server, client = tcp_pair()
        with client:
            conn = watcher.delegate(server)
            for _ in range(MANY):
                watcher.read(conn)
            await asyncio.sleep(0.002)
            ticker.begin()
        return await collect(watcher, MANY)

    await loop_stays_alive(busy)


async def test_D3_torn_write_with_many_behind_leaves_turns_to_others(unlimited: Watcher) -> None:
    """All that stand behind it fall; not all of them in one go."""

    async def busy(ticker: Ticker) -> list[Operation]:
        server, client = unix_pair()
        with client:
            conn = unlimited.delegate(server)
            unlimited.write(conn, bytes(4 << 20))
            for _ in range(2 * MANY):
                unlimited.write(conn, b"x")
            await asyncio.sleep(0.002)
            ticker.begin()
            client.close()
            return await collect(unlimited, 2 * MANY + 1)

    await loop_stays_alive(busy)


async def test_D3_write_after_a_torn_one_is_not_held_up_by_those_that_fell(
    watcher: Watcher,
) -> None:
    """However many fell: once the torn one's result is known, new writes are sent again."""
    server, client = unix_pair()
    client.setblocking(False)
    with client:
        conn = watcher.delegate(server)
        torn = watcher.write(conn, bytes(4 << 20))
        fallen = [watcher.write(conn, b"x") for _ in range(3_000)]
        watcher.cancel(torn)
        results: list[Operation] = []
        while torn not in results:
            results += await watcher.wait_io()
        later = watcher.write(conn, b"later")
        received = bytearray()
        async with asyncio.timeout(10):
            while not later.completed or len(results) < 3_002:
                with contextlib.suppress(BlockingIOError):
                    received += client.recv(1 << 18)
                await asyncio.sleep(0)
                results += watcher.poll_io()
        with contextlib.suppress(BlockingIOError):
            while True:
                received += client.recv(1 << 18)
        assert results == [torn, *fallen, later]
        assert received == bytes(torn.size) + b"later"
        assert all(isinstance(o.error, OperationCancelledError) and not o.size for o in fallen)
        assert later.error is None


async def test_D3_readiness_is_looked_at_while_the_consumer_is_busy(watcher: Watcher) -> None:
    """A result at hand is no reason not to look whether there are others."""
    server, client = filled()
    quiet, peer = tcp_pair()
    with client, peer:
        conn = watcher.delegate(server)
        other = watcher.delegate(quiet)
        buffer = bytearray(1)
        delays = []
        for _ in range(TRIES_TO_MEASURE):
            gc.collect()
            waiting = watcher.read(other)
            watcher.read(conn, buffer)
            sent = time.thread_time()
            peer.sendall(b"x")
            ready(other)
            while not waiting.completed and time.thread_time() < sent + BUSY_FOR:
                for operation in await watcher.wait_io():
                    if operation is not waiting:
                        watcher.read(conn, buffer)
            delays.append(time.thread_time() - sent)
            while not waiting.completed or watcher.statistics().pending:
                await watcher.wait_io()
            watcher.poll_io()
            if delays[-1] <= LONGEST_STRETCH:
                return
        pytest.fail(f"the other connection waited for {delays}")


async def test_D3_deadlines_are_kept_while_the_consumer_is_busy(watcher: Watcher) -> None:
    server, client = filled()
    quiet, peer = tcp_pair()
    with client, peer:
        conn = watcher.delegate(server)
        other = watcher.delegate(quiet)
        buffer = bytearray(1)
        delays = []
        for _ in range(TRIES_TO_MEASURE):
            gc.collect()
            watcher.read(conn, buffer)
            expiring = watcher.read(other, timeout=0.001)
            began = time.thread_time()
            while not expiring.completed and time.thread_time() < began + BUSY_FOR:
                for operation in await watcher.wait_io():
                    if operation is not expiring:
                        watcher.read(conn, buffer)
            delays.append(time.thread_time() - began)
            while watcher.statistics().pending:
                await watcher.wait_io()
            watcher.poll_io()
            if delays[-1] <= LONGEST_STRETCH:
                return
        pytest.fail(f"the deadline was kept after {delays}")


async def test_D3_queue_of_one_connection_does_not_starve_another(watcher: Watcher) -> None:
    """Both are ready at the same time; one has tens of thousands of requests to be served."""
    server, client = tcp_pair()
    quiet, peer = tcp_pair()
    with client, peer:
        conn = watcher.delegate(server)
        other = watcher.delegate(quiet)
        for _ in range(MANY):
            watcher.read(conn, bytearray(1))
        waiting = watcher.read(other)
        client.sendall(bytes(MANY))
        ready(conn)
        peer.sendall(b"x")
        ready(other)
        results = await collect(watcher, MANY + 1)
        place = results.index(waiting)
        assert place < MANY * 3 // 4, f"served as number {place} of {MANY}"


@pytest.mark.parametrize("direction", ["reads", "writes"])
async def test_D3_long_queues_of_two_connections_take_turns(
    watcher: Watcher, direction: str
) -> None:
    each = 3_000
    pairs = [unix_pair() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        conns = []
        for server, client in pairs:
            stack.enter_context(client).setblocking(False)
            if direction == "writes":  # nothing can be sent until the peer has read all this
                server.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        server.send(bytes(1 << 16))
            conns.append(watcher.delegate(server))
        for conn in conns:
            for _ in range(each):
                if direction == "reads":
                    watcher.read(conn, bytearray(1))
                else:
                    watcher.write(conn, b"x")
        for _, client in pairs:
            if direction == "reads":
                client.sendall(bytes(each))
            else:
                with contextlib.suppress(BlockingIOError):
                    while client.recv(1 << 18):
                        pass
        served: list[Connection] = []
        async with asyncio.timeout(10):
            while len(served) < each * len(conns) // 2:
                served += [operation.conn for operation in await watcher.wait_io()]
                for _, client in pairs:
                    if direction == "writes":
                        with contextlib.suppress(BlockingIOError):
                            client.recv(1 << 18)
        served = served[: each * len(conns) // 2]
        counts = [served.count(conn) for conn in conns]
        assert min(counts) > each // 10, counts


@pytest.mark.parametrize("busy", ["reading", "accepting"])
async def test_D3_multishot_of_one_connection_does_not_starve_another(
    poller: str, busy: str
) -> None:
    """Room in the batch comes by and by; whoever waits for it gets its share."""
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(
            contextlib.closing(Watcher(poller=poller, batch_size=4, buffer_size=16))
        )
        if busy == "reading":
            server, client = filled(20_000)
            stack.enter_context(client)
            conn = watcher.delegate(server)
        else:
            conn = watcher.delegate(socket.create_server(("127.0.0.1", 0), backlog=300))
            for _ in range(200):
                stack.enter_context(socket.create_connection(conn.sockname))
        ready(conn)
        others = []
        for _ in range(8):
            server, client = tcp_pair()
            stack.enter_context(client)
            client.sendall(b"x")
            others.append(watcher.delegate(server))
            ready(others[-1])
        if busy == "reading":
            watcher.read(conn, multishot=True)
        else:
            watcher.accept(conn, multishot=True)
        for other in others:
            watcher.read(other, multishot=True)
        seen: list[Operation] = []
        while not {o.conn for o in seen}.issuperset(others):
            seen += await asyncio.wait_for(watcher.wait_io(), 10)
            assert len(seen) <= 60, "the busy one takes all the room"
        assert conn in {o.conn for o in seen}


async def test_D3_busy_multishots_share_the_room(poller: str) -> None:
    pairs = [filled(20_000) for _ in range(8)]
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(
            contextlib.closing(Watcher(poller=poller, batch_size=2, buffer_size=16))
        )
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]
        for conn in conns:
            ready(conn)
            watcher.read(conn, multishot=True)
        count = dict.fromkeys(conns, 0)
        while sum(count.values()) < 400:
            for operation in await asyncio.wait_for(watcher.wait_io(), 10):
                count[operation.conn] += 1
        assert min(count.values()) >= 10, sorted(count.values())


# D4: close completes what is pending, closes every connection, and lets itself be drained


async def test_D4_close_completes_all_that_is_pending(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        client.sendall(b"ab")
        ready(conn)
        part = watcher.read_full(conn, bytearray(4))
        submitted = [
            part,
            watcher.read(conn, timeout=60),
            watcher.read(conn, multishot=True),
            watcher.write(conn, bytes(4 << 20)),
            watcher.write(conn, b"x", timeout=60),
            watcher.write(conn, b"silent", silent=True),
            watcher.accept(listener),
            watcher.accept(listener, multishot=True),
        ]
        watcher.close()
        results = watcher.poll_io()
        assert sorted(map(id, results)) == sorted(map(id, submitted))
        for operation in results:
            assert isinstance(operation.error, WatcherClosedError)
            assert operation.completed
            assert not operation.more
        assert (part.size, bytes(part.data)) == (2, b"ab")
        assert 0 < submitted[3].size < 4 << 20
        assert (submitted[4].size, submitted[5].size) == (0, 0)
        await nothing_more(watcher)


async def test_D4_close_closes_every_connection(watcher: Watcher) -> None:
    """Idle ones, busy ones, listeners, and those that were accepted but not yet collected."""
    idle, idle_peer = tcp_pair()
    busy, busy_peer = tcp_pair()
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    address = listener.sockname
    with idle_peer, busy_peer, socket.create_connection(address) as client:
        client.settimeout(10)
        conns = [watcher.delegate(idle), watcher.delegate(busy), listener]
        watcher.read(conns[1])
        ready(listener)
        accepting = watcher.accept(listener)
        assert accepting.completed
        assert accepting.error is None
        watcher.close()
        assert all(conn.closed for conn in [*conns, accepting.accepted])
        for peer in (idle_peer, busy_peer, client):
            assert peer.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
        assert watcher.statistics().connections == 0
        assert watcher.poll_io()[0] is accepting


async def test_D4_undelivered_results_stay_as_they_are_and_come_first(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        done = [complete_one(watcher, conn) for _ in range(300)]  # more than one batch
        pending = watcher.read(conn)
        watcher.close()
        assert await collect(watcher, 301) == [*done, pending]
        assert all(o.error is None for o in done)


async def drained_by_wait_io(watcher: Watcher) -> list[Operation]:
    results: list[Operation] = []
    with contextlib.suppress(WatcherClosedError):
        while True:
            results += await watcher.wait_io()
    return results


async def drained_by_poll_io(watcher: Watcher) -> list[Operation]:
    results: list[Operation] = []
    while batch := watcher.poll_io():
        results += batch
    return results


async def drained_by_iteration(watcher: Watcher) -> list[Operation]:
    return [operation async for results in watcher for operation in results]


@pytest.mark.parametrize(
    "drain",
    [drained_by_wait_io, drained_by_poll_io, drained_by_iteration],
    ids=lambda drain: drain.__name__,
)
async def test_D4_after_the_undelivered_there_is_nothing(
    watcher: Watcher, drain: Callable[[Watcher], Awaitable[list[Operation]]]
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        expected = [complete_one(watcher, conn), watcher.read(conn)]
        watcher.close()
        async with asyncio.timeout(10):
            assert await drain(watcher) == expected
            for _ in range(2):
                assert watcher.poll_io() == []
                with pytest.raises(WatcherClosedError):
                    await watcher.wait_io()
                assert await drained_by_iteration(watcher) == []


@pytest.mark.parametrize("pending", [True, False], ids=["pending", "nothing pending"])
async def test_D4_close_wakes_the_waiter(watcher: Watcher, pending: bool) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn) if pending else None
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        watcher.close()
        if operation is not None:
            assert await asyncio.wait_for(waiter, 10) == [operation]
        else:
            with pytest.raises(WatcherClosedError):
                await asyncio.wait_for(waiter, 10)


async def test_D4_close_ends_an_iteration_that_waits(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = watcher.read(watcher.delegate(server))
        consumer = asyncio.create_task(drained_by_iteration(watcher))
        await settle()
        watcher.close()
        assert await asyncio.wait_for(consumer, 10) == [operation]


async def test_D4_close_within_an_iteration_lets_the_rest_be_seen(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        pending = watcher.read(conn)
        expected = [complete_one(watcher, conn), pending]
        seen: list[Operation] = []
        async with asyncio.timeout(10):
            async for results in watcher:
                seen += results
                watcher.close()
        assert seen == expected


async def test_D4_closed_and_cancelled_in_one_tick_loses_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = watcher.read(watcher.delegate(server))
        waiter = asyncio.create_task(watcher.wait_io())
        await settle()
        watcher.close()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await drained_by_iteration(watcher) == [operation]


async def test_D4_close_again_changes_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.read(conn)
        for _ in range(3):
            watcher.close()
        assert watcher.poll_io() == [operation]
        watcher.close()
        assert watcher.poll_io() == []
        conn.close()
        async with watcher:
            pass


async def test_D4_context_manager_closes(poller: str) -> None:
    server, client = tcp_pair()
    with client:
        async with Watcher(poller=poller) as watcher:
            conn = watcher.delegate(server)
            operation = watcher.read(conn)
        assert conn.closed
        assert watcher.poll_io() == [operation]
        assert isinstance(operation.error, WatcherClosedError)


async def test_D4_context_manager_closes_after_an_exception_and_lets_it_pass(poller: str) -> None:
    server, client = tcp_pair()
    with client:
        with pytest.raises(LookupError):
            async with Watcher(poller=poller) as watcher:
                conn = watcher.delegate(server)
                raise LookupError
        assert conn.closed
        with pytest.raises(WatcherClosedError):
            await watcher.wait_io()


async def test_D4_closed_while_the_multishot_accept_has_clients(watcher: Watcher) -> None:
    """No accepted descriptor gets lost between the accepting and the collecting."""
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    with contextlib.ExitStack() as stack:
        armed = watcher.accept(listener, multishot=True)
        for _ in range(20):
            stack.enter_context(socket.create_connection(listener.sockname))
        await settle(3)
        watcher.close()
        *accepted, end = watcher.poll_io()
        assert end is armed
        assert all(o.accepted.closed for o in accepted)
        assert watcher.statistics().connections == 0


async def test_P2_large_messages_come_in_small_batches_and_small_ones_in_large() -> None:
    """What a turn receives has to be in the processor's cache when the program sends it on."""
    with contextlib.ExitStack() as stack:
        async with Watcher(poller="epoll") as watcher:
            clients = []
            for _ in range(64):
                server, client = unix_pair()
                clients.append(stack.enter_context(client))
                watcher.read(watcher.delegate(server), multishot=True)

            def sizes_of_batches(message: bytes) -> list[int]:
                for client in clients:
                    client.sendall(message)
                sizes: list[int] = []
                while sum(sizes) < len(clients):
                    batch = watcher.poll_io()
                    assert batch, sizes
                    assert all(operation.data == message for operation in batch)
                    sizes.append(len(batch))
                return sizes

            assert sizes_of_batches(b"small") == [64]
            for _ in range(4):
                large = sizes_of_batches(bytes(16384))
            assert max(large) <= 16, large
            for _ in range(3):
                small = sizes_of_batches(b"small")
            assert small == [64]
