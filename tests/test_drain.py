"""``drain()``, which waits for what is queued, and ``aclose()``, which ends in order."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import (
    Pairs,
    delegating,
    drained,
    is_open,
    open_descriptors,
    receive,
    small_pair,
    until,
)
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


async def begun(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that has had the time to go as far as it can."""
    task = asyncio.create_task(work)
    await settle()
    return task


async def ends(task: asyncio.Task[None], *, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        await task


async def at_once(work: Coroutine[Any, Any, None]) -> None:
    """It need not wait for anything."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert task.done()
    await task


def assert_balanced(watcher: Watcher) -> None:
    statistics = watcher.statistics()
    assert statistics.submitted == statistics.completed
    assert statistics.pending == 0


# --- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all", "conn"])
async def test_drain_waits_until_the_queued_writes_have_completed(
    watcher: Watcher, pair: Pairs, all_of_them: bool
) -> None:
    conn, peer = pair(watcher)
    writes = [watcher.write(conn, bytes(LONG)) for _ in range(3)]
    task = await begun(watcher.drain() if all_of_them else watcher.drain(conn))
    await receive(peer, 2 * LONG)
    await settle()
    assert not writes[2].completed
    assert not task.done()
    await receive(peer, LONG)
    await ends(task)
    assert all(write.completed for write in writes)
    assert await collect(watcher, 3) == writes  # results come through the batch, as always
    assert watcher.pending(conn).requests == 0
    assert_balanced(watcher)


async def test_drain_while_another_task_collects(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    write = watcher.write(conn, bytes(LONG))
    collecting = asyncio.create_task(one(watcher))
    task = await begun(watcher.drain())
    await receive(peer, LONG)
    await ends(task)
    assert await collecting is write


async def test_drain_though_nobody_collects(watcher: Watcher, pair: Pairs) -> None:
    """More results wait than a batch holds, and nobody takes them."""
    conn, peer = pair(watcher)
    writes = [watcher.write(conn, bytes(500)) for _ in range(1000)]
    task = await begun(watcher.drain())
    await receive(peer, 500_000)
    await ends(task)
    assert await collect(watcher, 1000) == writes


SENDS: dict[str, Callable[[Watcher, Connection], Any]] = {
    "write": lambda watcher, conn: watcher.write(conn, bytes(LONG)),
    "silent": lambda watcher, conn: watcher.write(conn, bytes(LONG), silent=True),
    "writev": lambda watcher, conn: watcher.writev(conn, [bytes(LONG // 4)] * 4),
    "sendmsg": lambda watcher, conn: watcher.sendmsg(conn, [bytes(LONG)]),
    "small": lambda watcher, conn: [watcher.write(conn, bytes(100)) for _ in range(LONG // 100)],
    "threadsafe": lambda watcher, conn: watcher.threadsafe.write(conn, bytes(LONG)),
}


@pytest.mark.parametrize("name", SENDS)
async def test_drain_waits_for_every_kind_of_write(
    watcher: Watcher, pair: Pairs, name: str
) -> None:
    conn, peer = pair(watcher)
    SENDS[name](watcher, conn)
    SENDS[name](watcher, conn)
    task = await begun(watcher.drain(conn))
    await receive(peer, LONG)
    assert not task.done()
    await receive(peer, LONG)
    await ends(task)
    assert watcher.pending(conn).requests == 0


async def test_drain_waits_for_files_ends_and_connections(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    with tempfile.TemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listener:
        file.write(bytes(LONG))
        file.flush()
        sending = watcher.sendfile(conn, file, 0, LONG)
        ending = watcher.shutdown(conn)
        connecting = watcher.connect(socket.socket(), listener.getsockname())
        written = watcher.write(connecting.conn, b"hello")
        task = await begun(watcher.drain())
        assert not task.done()
        assert await drained(peer) == bytes(LONG)
        await ends(task)
        assert sending.completed
        assert ending.completed
        assert connecting.completed
        assert written.completed


async def test_drain_waits_for_a_relay(watcher: Watcher, pair: Pairs) -> None:
    (first, near), (second, far) = pair(watcher), pair(watcher)
    relay = watcher.relay(first, second)
    tasks = [await begun(watcher.drain(conn)) for conn in (first, second)]
    near.sendall(b"x")
    assert await receive(far, 1) == b"x"
    assert not any(task.done() for task in tasks)
    near.shutdown(socket.SHUT_WR)
    far.shutdown(socket.SHUT_WR)
    for task in tasks:
        await ends(task)
    assert await one(watcher) is relay


async def test_drain_with_nothing_queued_returns_at_once(watcher: Watcher, pair: Pairs) -> None:
    await at_once(watcher.drain())
    conn, peer = pair(watcher)
    await at_once(watcher.drain(conn))
    watcher.write(conn, b"sent at the call")
    await at_once(watcher.drain(conn))
    await at_once(watcher.drain())
    assert await receive(peer, 16) == b"sent at the call"


async def test_drain_does_not_wait_for_reads_accepts_and_hangups(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, _ = pair(watcher)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watcher.accept(listener, multishot=True)
        armed = watcher.read(conn, multishot=True)
        watcher.read_full(conn, bytearray(5))
        watcher.notify_hangup(conn)
        await at_once(watcher.drain())
        await at_once(watcher.drain(conn))
        await at_once(watcher.drain(listener))
        assert not armed.completed
        assert watcher.statistics().pending == 4


async def test_drain_of_one_connection_does_not_wait_for_another(
    watcher: Watcher, pair: Pairs
) -> None:
    (first, peer), (second, _) = pair(watcher), pair(watcher)
    watcher.write(first, bytes(LONG))
    watcher.write(second, bytes(LONG))
    task = await begun(watcher.drain(first))
    await at_once(watcher.drain(pair(watcher)[0]))
    await receive(peer, LONG)
    await ends(task)
    assert watcher.pending(second).requests == 1


async def test_drain_does_not_wait_for_writes_that_come_later(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    task = await begun(watcher.drain())
    later = watcher.write(conn, bytes(LONG))
    await receive(peer, LONG)
    await ends(task)
    assert not later.completed
    assert watcher.pending(conn).requests == 1
    again = await begun(watcher.drain(conn))
    await receive(peer, LONG)
    await ends(again)
    assert later.completed


async def test_drain_of_many_connections_at_different_times(watcher: Watcher, pair: Pairs) -> None:
    pairs = [pair(watcher) for _ in range(10)]
    for conn, _ in pairs:
        watcher.write(conn, bytes(LONG))
    task = await begun(watcher.drain())
    for _, peer in pairs:
        assert not task.done()
        await receive(peer, LONG)
    await ends(task)
    await collect(watcher, 10)


async def test_many_drain_at_once(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    tasks = [await begun(watcher.drain(conn if number % 2 else None)) for number in range(20)]
    second = watcher.write(conn, bytes(LONG))
    tasks_of_both = [await begun(watcher.drain()) for _ in range(20)]
    await receive(peer, LONG)
    for task in tasks:
        await ends(task)
    assert not any(task.done() for task in tasks_of_both)
    assert not second.completed
    await receive(peer, LONG)
    for task in tasks_of_both:
        await ends(task)
    await collect(watcher, 2)
    assert_balanced(watcher)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 64, 65, 130])
async def test_drain_behind_any_number_of_writes(watcher: Watcher, pair: Pairs, count: int) -> None:
    """A turn makes only so many attempts, and takes so many small writes together."""
    conn, peer = pair(watcher)
    first = watcher.write(conn, bytes(LONG))
    for number in range(count):
        if number % 2:
            watcher.writev(conn, [bytes(10)])
        else:
            watcher.write(conn, bytes(10))
    task = await begun(watcher.drain(conn))
    assert not first.completed
    await receive(peer, LONG + 10 * count)
    await ends(task, within=2)
    behind = watcher.write(conn, b"behind")
    assert await receive(peer, 6) == b"behind"
    assert (await collect(watcher, count + 2))[-1] is behind


async def test_S3_drain_does_not_change_the_order_of_what_is_written(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    data, tasks, writes = bytearray(), [], []
    for number in range(200):
        part = b"%d," % number * (1 + number % 50)
        writes.append(watcher.write(conn, part))
        data += part
        if number % 3 == 0:
            tasks.append(asyncio.create_task(watcher.drain(conn)))
            await asyncio.sleep(0)
    assert await receive(peer, len(data)) == data
    for task in tasks:
        await ends(task)
    assert await collect(watcher, 200) == writes


async def test_drain_behind_a_torn_write(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    torn = watcher.write(conn, bytes(LONG))
    behind = [watcher.write(conn, bytes(10)) for _ in range(3000)]
    task = await begun(watcher.drain(conn))
    later = watcher.write(conn, bytes(10))
    watcher.cancel(torn)
    await ends(task)
    await until(lambda: later.completed)
    assert all(type(op.error) is OperationCancelledError for op in behind)
    assert len(await collect(watcher, 3002)) == 3002
    assert_balanced(watcher)
    await at_once(watcher.drain())


async def test_drain_between_a_torn_write_and_its_result(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    torn = watcher.write(conn, bytes(LONG))
    watcher.cancel(torn)
    watcher.write(conn, b"taken with it")
    await at_once(watcher.drain(conn))
    await collect(watcher, 2)
    watcher.write(conn, bytes(LONG))
    task = await begun(watcher.drain(conn))
    assert not task.done()
    await receive(peer, torn.size + LONG)
    await ends(task)


OUTCOMES: dict[str, tuple[Callable[[Watcher, Operation], Any], type[Exception]]] = {
    "cancel": (lambda watcher, op: watcher.cancel(op), OperationCancelledError),
    "free": (lambda watcher, op: watcher.free(op.conn), ConnectionFreedError),
    "close": (lambda watcher, op: watcher.close(), WatcherClosedError),
}


@pytest.mark.parametrize("name", OUTCOMES)
async def test_drain_returns_whatever_becomes_of_the_write(
    watcher: Watcher, pair: Pairs, name: str
) -> None:
    act, error = OUTCOMES[name]
    conn, _ = pair(watcher)
    write = watcher.write(conn, bytes(LONG))
    tasks = [await begun(watcher.drain(conn)), await begun(watcher.drain())]
    act(watcher, write)
    for task in tasks:
        await ends(task)
    assert (await collect(watcher, 1)) == [write]
    assert type(write.error) is error
    assert_balanced(watcher)


async def test_drain_returns_when_the_write_s_time_is_over(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    write = watcher.write(conn, bytes(LONG), timeout=0.01)
    await ends(await begun(watcher.drain()))
    assert await one(watcher) is write
    assert type(write.error) is DeadlineExceededError


async def test_drain_returns_when_the_peer_resets(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher, tcp_pair)
    writes = [watcher.write(conn, bytes(16 << 20)) for _ in range(2)]
    task = await begun(watcher.drain(conn))
    reset(peer)
    await ends(task)
    assert await collect(watcher, 2) == writes
    assert all(write.error is not None for write in writes)


async def test_drain_when_the_last_write_is_cancelled_and_others_stay(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    first, last = watcher.write(conn, bytes(LONG)), watcher.write(conn, bytes(10))
    task = await begun(watcher.drain(conn))
    watcher.cancel(last)
    await settle()
    assert not task.done()
    await receive(peer, LONG)
    await ends(task)
    assert await collect(watcher, 2) == [last, first]


async def test_drain_that_is_cancelled_changes_nothing(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    write = watcher.write(conn, bytes(LONG))
    cancelled, stays = await begun(watcher.drain()), await begun(watcher.drain(conn))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert watcher.pending(conn).requests == 1
    behind = watcher.write(conn, b"behind")
    await receive(peer, LONG)
    await ends(stays)
    assert await receive(peer, 6) == b"behind"
    assert await collect(watcher, 2) == [write, behind]
    assert_balanced(watcher)


async def test_drain_in_a_timeout(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await watcher.drain()
    assert watcher.pending(conn).requests == 1


async def test_drain_counts_as_no_request(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    before = watcher.statistics(), watcher.pending(conn)
    for _ in range(3):
        await begun(watcher.drain())
    assert (watcher.statistics(), watcher.pending(conn)) == before
    watcher.close()
    await settle()
    assert len(watcher.poll_io()) == 1


async def test_drain_after_close_returns_at_once(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    watcher.close()
    await at_once(watcher.drain())
    await at_once(watcher.drain(conn))


async def test_drain_of_a_freed_connection_returns_at_once(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    watcher.free(conn)
    await at_once(watcher.drain(conn))


async def test_drain_takes_the_socket_that_was_delegated(watcher: Watcher) -> None:
    sock, peer = small_pair()
    with peer:
        watcher.write(sock, bytes(LONG))
        task = await begun(watcher.drain(sock))
        assert not task.done()
        await receive(peer, LONG)
        await ends(task)


async def test_S2_drain_of_a_stranger_raises(watcher: Watcher, pair: Pairs, poller: Any) -> None:
    sock, peer = unix_pair()
    async with Watcher(poller=poller) as other:
        foreign, _ = pair(other)
        with sock, peer:
            for stranger in (sock, foreign, 3, "conn"):
                with pytest.raises(UnsupportedConnectionError):
                    await watcher.drain(stranger)  # type: ignore[arg-type]
            assert sock.fileno() >= 0


async def behind_a_thread(
    watcher: Watcher, conn: Connection, then: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Another thread asks for a write, and the loop has not come for it yet."""
    thread = threading.Thread(target=lambda: watcher.threadsafe.write(conn, bytes(LONG)))
    thread.start()
    thread.join(10)
    await then()


async def test_drain_waits_for_what_other_threads_have_asked_for(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    task = await begun(behind_a_thread(watcher, conn, watcher.drain))
    assert not task.done()
    await receive(peer, LONG)
    await ends(task)
    assert (await one(watcher)).size == LONG


# --- aclose --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [None, 10.0, 10, float("inf")])
async def test_aclose_lets_the_queued_writes_complete(
    watcher: Watcher, pair: Pairs, grace: float | None
) -> None:
    pairs = [pair(watcher) for _ in range(3)]
    writes = [watcher.write(conn, bytes(LONG)) for conn, _ in pairs for _ in range(2)]
    armed = [watcher.read(conn, multishot=True) for conn, _ in pairs]
    task = await begun(watcher.aclose(grace))
    assert not watcher.closed
    for _, peer in pairs:
        assert not task.done()
        await receive(peer, 2 * LONG)
    await ends(task)
    assert watcher.closed
    results = await collect(watcher, 9)
    assert all(write.error is None for write in writes)
    assert {id(op) for op in results} == {id(op) for op in writes + armed}
    assert all(type(op.error) is WatcherClosedError for op in armed)
    assert_balanced(watcher)
    with pytest.raises(WatcherClosedError):
        await watcher.wait_io()


async def test_aclose_sends_all_before_the_end_of_the_stream(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    for number in range(100):
        watcher.write(conn, b"%05d" % number * 1000)
    task = await begun(watcher.aclose())
    assert await drained(peer) == b"".join(b"%05d" % number * 1000 for number in range(100))
    await ends(task)


async def test_aclose_while_a_task_iterates(watcher: Watcher, pair: Pairs) -> None:
    """The iteration gets all results, and ends."""

    async def iterate() -> list[Operation]:
        return [op async for results in watcher for op in results]

    conn, peer = pair(watcher)
    iterating = asyncio.create_task(iterate())
    writes = [watcher.write(conn, bytes(LONG)) for _ in range(2)]
    read = watcher.read(conn)
    task = await begun(watcher.aclose())
    await receive(peer, 2 * LONG)
    await ends(task)
    async with asyncio.timeout(10):
        assert await iterating == [*writes, read]


@pytest.mark.parametrize("grace", [0, 0.0, 0.01])
async def test_aclose_whose_grace_runs_out_closes_all_the_same(
    watcher: Watcher, pair: Pairs, grace: float
) -> None:
    loop = asyncio.get_running_loop()
    conn, peer = pair(watcher)
    writes = [watcher.write(conn, bytes(LONG)), watcher.write(conn, bytes(10))]
    begin = loop.time()
    await watcher.aclose(grace)
    assert grace - 0.002 <= loop.time() - begin < 5
    assert watcher.closed
    assert conn.closed
    assert await collect(watcher, 2) == writes
    assert all(type(write.error) is WatcherClosedError for write in writes)
    assert await drained(peer) == bytes(writes[0].size)
    assert_balanced(watcher)


@pytest.mark.parametrize("grace", [None, 0, 5])
async def test_aclose_with_nothing_queued_closes_at_once(
    watcher: Watcher, pair: Pairs, grace: float | None
) -> None:
    conn, _ = pair(watcher)
    read = watcher.read(conn)
    await at_once(watcher.aclose(grace))
    assert watcher.closed
    assert watcher.poll_io() == [read]


async def test_aclose_stops_the_listeners_at_once(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [listener.getsockname() for listener in listeners]
    conns = [watcher.delegate(listener) for listener in listeners]
    accepts = [
        watcher.accept(conns[0]),
        watcher.accept(conns[0]),
        watcher.accept(conns[1], multishot=True),
    ]
    numbers = [conn.fileno() for conn in conns]
    task = await begun(watcher.aclose())
    assert not task.done()
    assert not watcher.closed
    assert all(conn.closed for conn in conns)
    assert not any(is_open(number) for number in numbers)
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    assert await collect(watcher, 3) == accepts
    assert all(type(op.error) is WatcherClosedError for op in accepts)
    assert not any(op.more for op in accepts)
    late = watcher.write(conn, b"late")  # connections go on meanwhile
    assert not conn.closed
    await receive(peer, LONG)
    await ends(task)
    assert late in await collect(watcher, 2)


async def test_aclose_serves_reads_until_it_closes(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    watcher.read(conn, multishot=True)
    task = await begun(watcher.aclose())
    peer.sendall(b"still heard")
    assert (await one(watcher)).data == b"still heard"
    await receive(peer, LONG)
    await ends(task)


@pytest.mark.parametrize("bad", [-1, -0.001, float("nan")])
async def test_S2_aclose_with_a_wrong_grace_raises_and_closes_nothing(
    watcher: Watcher, pair: Pairs, bad: float
) -> None:
    conn, peer = pair(watcher)
    with pytest.raises(ValueError, match="grace"):
        await watcher.aclose(bad)
    with pytest.raises(TypeError):
        await watcher.aclose("1")  # type: ignore[arg-type]
    assert not watcher.closed
    watcher.write(conn, b"still there")
    assert await receive(peer, 11) == b"still there"


async def test_aclose_that_is_cancelled_closes_now(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    write = watcher.write(conn, bytes(LONG))
    task = await begun(watcher.aclose(None))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watcher.closed
    assert watcher.poll_io() == [write]
    assert type(write.error) is WatcherClosedError


async def test_aclose_in_a_timeout_of_the_caller(watcher: Watcher, pair: Pairs) -> None:
    """Whose TimeoutError is not taken for the grace's."""
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await watcher.aclose(None)
    assert watcher.closed


async def test_aclose_twice_and_after_close(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    watcher.write(conn, bytes(LONG))
    watcher.close()
    await at_once(watcher.aclose())
    await at_once(watcher.aclose(None))
    assert len(watcher.poll_io()) == 1


async def test_aclose_by_two_tasks(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    tasks = [await begun(watcher.aclose()) for _ in range(2)]
    await receive(peer, LONG)
    for task in tasks:
        await ends(task)
    assert watcher.closed


async def test_close_while_aclose_waits(watcher: Watcher, pair: Pairs) -> None:
    conn, _ = pair(watcher)
    write = watcher.write(conn, bytes(LONG))
    task = await begun(watcher.aclose(None))
    watcher.close()
    await ends(task)
    assert watcher.poll_io() == [write]


async def test_aclose_gives_up_a_relay_when_the_grace_runs_out(
    watcher: Watcher, pair: Pairs
) -> None:
    (first, near), (second, far) = pair(watcher), pair(watcher)
    relay = watcher.relay(first, second)
    near.sendall(b"x")
    assert await receive(far, 1) == b"x"
    await watcher.aclose(0.02)
    assert watcher.poll_io() == [relay]
    assert type(relay.error) is WatcherClosedError
    assert relay.sizes == (1, 0)


async def test_aclose_lets_a_shutdown_go_out(watcher: Watcher, pair: Pairs) -> None:
    conn, peer = pair(watcher)
    watcher.write(conn, bytes(LONG))
    ending = watcher.shutdown(conn)
    task = await begun(watcher.aclose())
    assert await drained(peer) == bytes(LONG)
    await ends(task)
    assert ending.error is None
    assert ending.type is OpType.SHUTDOWN


async def test_aclose_takes_along_what_other_threads_have_asked_for(
    watcher: Watcher, pair: Pairs
) -> None:
    conn, peer = pair(watcher)
    task = await begun(behind_a_thread(watcher, conn, watcher.aclose))
    await receive(peer, LONG)
    await ends(task)
    (write,) = watcher.poll_io()
    assert (write.size, write.error) == (LONG, None)


async def test_aclose_in_an_async_with_block(poller: Any, pair: Pairs) -> None:
    before = open_descriptors()
    async with Watcher(poller=poller) as watcher:
        ours, peer = small_pair()
        with peer:
            write = watcher.write(ours, bytes(LONG))
            listener = socket.create_server(("127.0.0.1", 0))
            watcher.accept(listener, multishot=True)
            task = await begun(watcher.aclose())
            await receive(peer, LONG)
            await ends(task)
            assert write.error is None
    assert watcher.closed
    assert open_descriptors() == before
