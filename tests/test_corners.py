"""Corners in which a rule was broken once: each test is of a defect that was found and mended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import socket
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
)
from aiogaio.connection import Record
from aiogaio.deadlines import Deadlines
from aiogaio.inbox import Inbox
from aiogaio.pollers.epoll import EpollPoller
from tests.conftest import LOOPS
from tests.probes import (
    collecting_by_hand,
    half_closed,
    no_loop_errors,
    open_descriptors,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair


async def test_D1_end_that_came_before_a_thread_delegates_is_told(watcher: Watcher) -> None:
    """The event of a descriptor may come before the call that registers it has returned."""
    for _ in range(50):
        server, client = tcp_pair()
        client.sendall(b"x")
        client.close()
        thread = threading.Thread(target=watcher.threadsafe.read, args=(server,))
        thread.start()
        first = await one(watcher)
        thread.join()
        assert first.data == b"x"
        watcher.read(first.conn)
        assert isinstance((await one(watcher)).error, EndOfStreamError)
        watcher.free(first.conn)


async def test_threadsafe_requests_of_a_long_time_call_the_loop_once_at_a_time(
    watcher: Watcher,
) -> None:
    """What is left over in the inbox and what comes in meanwhile share one callback."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        loop = asyncio.get_running_loop()
        inbox = watcher._inbox
        calls = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *arguments: object) -> object:
            nonlocal calls
            calls += 1
            return call_soon_threadsafe(callback, *arguments)

        class CountingLoop:
            call_soon_threadsafe = staticmethod(counted)
            is_closed = staticmethod(loop.is_closed)

        inbox._loop = CountingLoop()  # type: ignore[assignment]
        for _ in range(20_000):
            watcher.threadsafe.read(conn)
        assert calls == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = inbox.waiting
        watcher.threadsafe.read(conn)
        assert calls == (1 if left else 2)
        watcher.free(conn)
        results = await collect(watcher, 20_001)
        assert all(isinstance(op.error, ConnectionFreedError) for op in results)


async def test_O1_refused_twin_of_a_delegated_descriptor_changes_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        twin = socket.socket(fileno=conn.fileno())
        twin.settimeout(None)
        os.set_blocking(conn.fileno(), False)
        with pytest.raises(UnsupportedConnectionError, match="delegated already"):
            watcher.delegate(twin)
        assert not os.get_blocking(conn.fileno())
        assert twin.detach() == conn.fileno()
        watcher.read(conn)
        client.sendall(b"here")
        assert (await one(watcher)).data == b"here"
        watcher.free(conn)


async def test_O3_error_that_was_raised_does_not_keep_its_connection(watcher: Watcher) -> None:
    async def handle() -> None:
        server, client = tcp_pair()
        watcher.read(server)
        del server
        reset(client)
        operation = await one(watcher)
        assert operation.error is not None
        conn = operation.conn  # in the frame that the raised error remembers
        assert not conn.closed
        with pytest.raises(ConnectionResetError):
            raise operation.error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await handle()
        gc.collect()
        assert watcher.statistics().connections == 0


class _Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_short))


@pytest.mark.parametrize(
    "make",
    [ctypes.c_int * 4, lambda: ctypes.create_string_buffer(16), _Pair],
    ids=["array", "string_buffer", "structure"],
)
async def test_B2_buffers_of_ctypes_are_buffers(
    watcher: Watcher, make: Callable[[], ctypes.Array[ctypes.c_int]]
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        buffer = make()
        size = ctypes.sizeof(buffer)
        content = bytes(range(1, size + 1))
        watcher.read_full(conn, buffer)
        client.sendall(content[:3])
        await asyncio.sleep(0)
        client.sendall(content[3:])
        operation = await one(watcher)
        assert operation.error is None
        assert operation.data == content
        assert bytes(buffer) == content
        for silent in (False, True):
            watcher.write(conn, buffer, silent=silent)
            assert client.recv(size, socket.MSG_WAITALL) == content
        await one(watcher)
        watcher.free(conn)


async def test_S2_listener_of_packets_is_a_listener(watcher: Watcher) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the system chooses an abstract name (unix(7), autobind)
        listener.listen()
        with pytest.raises(UnsupportedConnectionError, match="accept"):
            watcher.read(listener)
        watcher.accept(listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            conn = watcher.delegate(listener)
            client.connect(conn.sockname)
            operation = await one(watcher)
            watcher.write(operation.accepted, b"packet")
            assert client.recv(100) == b"packet"
            watcher.free(operation.accepted)
        watcher.free(conn)


@pytest.mark.parametrize("multishot", [False, True])
async def test_D1_finalizer_that_closes_the_connection_at_any_time_doubles_nothing(
    poller: str, multishot: bool
) -> None:
    """The collector may run at any point of the watcher's own calls, and call the program."""
    point, fired = 0, True
    while fired:  # close the connection in the first run of the collector, in the second, ...
        point, fired, runs = point + 1, False, 0
        with contextlib.closing(Watcher(poller=poller)) as watcher:  # type: ignore[arg-type]
            server, client = tcp_pair()
            with client:
                conn = watcher.delegate(server)

                def close(
                    phase: str,
                    info: dict[str, int],
                    conn: Connection = conn,
                    point: int = point,
                ) -> None:
                    nonlocal fired, runs
                    runs += phase == "stop"
                    if runs == point and not fired:
                        fired = True
                        conn.close()

                client.sendall(b"x")
                thresholds = gc.get_threshold()
                gc.callbacks.append(close)
                gc.set_threshold(1, 1000, 1000)
                try:
                    requests = [watcher.read(conn, multishot=multishot), watcher.read(conn)]
                    results = watcher.poll_io()
                    with contextlib.suppress(OSError):  # it is closed already
                        client.sendall(b"y")
                    for _ in range(3):
                        await asyncio.sleep(0)
                        results += watcher.poll_io()
                finally:
                    gc.set_threshold(*thresholds)
                    gc.callbacks.remove(close)
                conn.close()
                await settle(3)
                results += watcher.poll_io()
                last = [op for op in results if not op.more]
                assert last == requests, f"closed in run {point} of the collector"
                assert not any(op.more for op in results[results.index(requests[0]) :])
    assert point > 3, "the collector never ran"


async def test_S3_request_of_the_loop_stands_behind_those_of_a_thread(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        for number in range(1000):
            watcher.threadsafe.write(conn, b"%d," % number, silent=True)
        watcher.write(conn, b"last")
        await one(watcher)
        got = b""
        while not got.endswith(b"last"):
            got += client.recv(65536)
        assert got == b"".join(b"%d," % number for number in range(1000)) + b"last"
        watcher.free(conn)


async def test_D1_writes_that_nobody_can_watch_complete_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Watcher(poller="loop") as watcher:

        def refuse(record: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(type(watcher._poller), "watch_writes", lambda _, record: refuse(record))
        server, client = tcp_pair()
        with client:
            conn = watcher.delegate(server)
            writes = [watcher.write(conn, bytes(16 << 20)), watcher.write(conn, b"behind")]
            results = await collect(watcher, 2)
            assert results == writes
            assert isinstance(writes[0].error, OSError)
            assert watcher.statistics().pending == 0
            watcher.free(conn)


async def test_S4_write_waits_quietly_while_the_system_is_short_of_memory(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        tries = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.1

        def short_of_memory(*_: object) -> int:
            nonlocal tries
            tries += 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

        with monkeypatch.context() as patch:
            patch.setattr(Record, "send", short_of_memory)
            patch.setattr(Record, "sendmsg", short_of_memory)
            first, second = watcher.write(conn, b"first"), watcher.write(conn, b"second")
            while loop.time() < end:
                await asyncio.sleep(0.005)
            assert not first.completed
            assert 1 <= tries <= 30, "it tries again by a timer, and by nothing else"
        assert await collect(watcher, 2) == [first, second]
        assert client.recv(11, socket.MSG_WAITALL) == b"firstsecond"
        watcher.free(conn)


async def test_S6_silence_does_not_count_while_results_await_collection(poller: str) -> None:
    """It is not the peer that is silent."""
    async with Watcher(poller=poller, batch_size=1) as watcher:  # type: ignore[arg-type]
        server, client = tcp_pair()
        with client:
            conn = watcher.delegate(server)
            other, other_client = tcp_pair()
            with other_client:
                first = watcher.delegate(other)
                watcher.read(first, multishot=True)
                other_client.sendall(b"fills the batch")
                while not watcher.statistics().bytes_read:
                    await asyncio.sleep(0)
                armed = watcher.read(conn, multishot=True, timeout=0.03)
                client.sendall(b"waits for room")
                await asyncio.sleep(0.1)
                assert not armed.completed
                assert [op.data for op in await collect(watcher, 2)] == [
                    b"fills the batch",
                    b"waits for room",
                ]
                operation = await one(watcher)
                assert operation is armed
                assert operation.type is OpType.READ
                assert isinstance(operation.error, DeadlineExceededError)
                watcher.free(conn)
                watcher.free(first)
                watcher.poll_io()


@pytest.mark.parametrize("vector", [False, True], ids=["write", "writev"])
@pytest.mark.parametrize("by", ["thread", "finalizer"])
async def test_T3_nothing_comes_between_the_parts_of_a_write(
    by: str, vector: bool, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or a finalizer, writes while the first part is being sent."""
    first, second = b"1" * 200_000, b"2" * 100
    server, client = tcp_pair()
    with client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        conn = watcher.delegate(server)
        write = watcher.threadsafe.write if by == "thread" else watcher.write
        sent: list[int] = []

        def between(name: str) -> Callable[..., int]:
            call = getattr(socket.socket, name)

            def send(self: Record, *arguments: object) -> int:
                sent.append(call(self, *arguments))
                if len(sent) == 1:
                    write(conn, second)
                return sent[-1]

            return send

        for name in ("send", "sendmsg"):
            monkeypatch.setattr(Record, name, between(name))
        operation = watcher.writev(conn, [first]) if vector else watcher.write(conn, first)
        assert operation is not None
        assert sent[0] < len(first), "it was not sent in parts"
        with client.makefile("rb") as file:
            received = asyncio.to_thread(file.read, len(first + second))
            data, operations = await asyncio.gather(received, collect(watcher, 2))
        assert operations[0] is operation
        assert data == first + second
        watcher.free(conn)


@pytest.mark.parametrize("call", ["read", "write", "notify_hangup"])
async def test_D1_a_finalizer_that_frees_while_a_request_enters_loses_none(
    call: str, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        admit = Watcher._admit

        def admit_and_free(self: Watcher, *arguments: object) -> bool:
            admitted = admit(self, *arguments)  # type: ignore[arg-type]
            watcher.free(conn)
            return admitted

        monkeypatch.setattr(Watcher, "_admit", admit_and_free)
        if call == "write":
            operation = watcher.write(conn, bytearray(10))
        else:
            watcher.read(conn, bytearray(10), timeout=0.001)
            operation = getattr(watcher, call)(conn)
        results = await collect(watcher, 1 if call == "write" else 2)
        assert operation in results
        assert conn.closed
        assert watcher.statistics().pending == 0


async def test_D1_what_is_behind_an_action_that_raised_in_the_inbox_is_not_lost(
    watcher: Watcher,
) -> None:
    loop, raised = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)

        def broken() -> None:
            raise ZeroDivisionError

        watcher._post(broken)
        behind = watcher.threadsafe.read(conn)
        client.sendall(b"x")
        assert await one(watcher) is behind
        later = watcher.threadsafe.read(conn)
        client.sendall(b"y")
        assert await one(watcher) is later
        watcher.free(conn)
    loop.set_exception_handler(None)
    assert [type(error) for error in raised] == [ZeroDivisionError]


@contextlib.contextmanager
def interrupting(kind: type, name: str, *, done: bool) -> Iterator[None]:
    """Let the next call of a method raise, as a signal handler does in the middle of anything.

    What it does is done by then, or not.
    """
    method, calls = getattr(kind, name), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 or done:
            result = method(*arguments)
        if calls == 1:
            raise ZeroDivisionError
        return result

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, interrupted)
        yield
    loop.set_exception_handler(None)
    assert calls, "nothing was interrupted"


async def in_spite_of_it(watcher: Watcher, count: int) -> list[Operation]:
    """So many results, whatever is raised in between, and no more."""
    results: list[Operation] = []
    async with asyncio.timeout(10):
        while len(results) < count:
            with contextlib.suppress(ZeroDivisionError):
                results += await watcher.wait_io()
    await settle()
    assert watcher.poll_io() == []
    assert len({id(op) for op in results}) == count
    return results


def broken_off(results: Sequence[Operation]) -> list[Operation]:
    """Those that ended since their connection was freed, in the middle of an attempt."""
    ended = [op for op in results if isinstance(op.error, ConnectionFreedError)]
    assert all(op.conn.closed for op in ended)
    return ended


async def four_reads(watcher: Watcher) -> list[tuple[socket.socket, socket.socket]]:
    """Of which each waits for its peer; the pairs."""
    pairs = [tcp_pair() for _ in range(4)]
    for server, _ in pairs:
        watcher.read(server)
    await settle()
    return pairs


async def assert_ended(watcher: Watcher, connections: Sequence[Connection]) -> None:
    """The next read of each finds its end."""
    for conn in connections:
        watcher.read(conn)
    results = await collect(watcher, len(connections))
    assert {type(op.error) for op in results} == {EndOfStreamError}
    for conn in connections:
        watcher.free(conn)


INTERRUPTED = pytest.mark.parametrize("done", [False, True], ids=["before", "after"])


@INTERRUPTED
async def test_D1_what_an_interrupted_turn_could_not_do_is_left_to_the_next(
    watcher: Watcher, done: bool
) -> None:
    """Its events are told once only."""
    pairs = await four_reads(watcher)
    for _, client in pairs:
        client.sendall(b"x")
    with interrupting(Record, "recv", done=done):
        results = await in_spite_of_it(watcher, 4)
    assert len(broken_off(results)) == 1
    assert sorted(op.data for op in results) == [b"", b"x", b"x", b"x"]
    for server, client in pairs:
        watcher.free(server)
        client.close()


@pytest.mark.parametrize("step", ["poll", "_take"])
@INTERRUPTED
async def test_D1_events_that_were_lost_on_their_way_are_told_again(
    watcher: Watcher, poller: str, step: str, done: bool
) -> None:
    """All of what they told: behind an end a short receive proves nothing."""
    if poller != "epoll":
        pytest.skip("the loop tells until nothing is left")
    pairs = await four_reads(watcher)
    for _, client in pairs:
        client.sendall(b"x")
        client.close()
    with interrupting(EpollPoller if step == "poll" else Watcher, step, done=done):
        results = await in_spite_of_it(watcher, 4)
    assert [op.data for op in results] == [b"x"] * 4
    await assert_ended(watcher, [op.conn for op in results])


@INTERRUPTED
async def test_D1_the_end_behind_an_interrupted_attempt_is_found(
    watcher: Watcher, done: bool
) -> None:
    pairs = await four_reads(watcher)
    for server, client in pairs:
        client.sendall(b"x")
        client.close()
        await until(partial(half_closed, watcher.delegate(server)))
    with interrupting(Record, "recv", done=done):
        results = await in_spite_of_it(watcher, 4)
    assert len(broken_off(results)) == 1
    whole = [op.conn for op in results if op.error is None]
    assert len(whole) == 3
    await assert_ended(watcher, whole)


@INTERRUPTED
@pytest.mark.parametrize("multishot", [False, True], ids=["read", "multishot"])
async def test_D1_a_result_that_was_on_its_way_is_not_lost(
    watcher: Watcher, poller: str, multishot: bool, done: bool
) -> None:
    """Between being taken out of its queue and being delivered an operation stands nowhere."""
    if poller != "loop":
        pytest.skip("_take() has _finish() written out")
    server, client = tcp_pair()
    with client:
        op = watcher.read(server, multishot=multishot)
        await settle()
        if multishot:
            client.shutdown(socket.SHUT_WR)
        else:
            client.sendall(b"x")
        with interrupting(Watcher, "_finish", done=done):
            assert await in_spite_of_it(watcher, 1) == [op]
        watcher.free(server)


@INTERRUPTED
async def test_D1_a_result_whose_deadline_was_being_removed_is_not_lost(
    watcher: Watcher, done: bool
) -> None:
    server, client = tcp_pair()
    with client:
        op = watcher.read(server, timeout=60)
        await settle()
        client.sendall(b"x")
        with interrupting(Deadlines, "discard", done=done):
            assert await in_spite_of_it(watcher, 1) == [op]
        watcher.free(server)


@INTERRUPTED
async def test_D2_a_consumer_whose_waking_was_interrupted_is_woken_by_the_next_result(
    watcher: Watcher, done: bool
) -> None:
    pairs = [tcp_pair() for _ in range(2)]
    ops = [watcher.read(server) for server, _ in pairs]
    waiting = asyncio.ensure_future(collect(watcher, 2))
    await settle()
    future = watcher._signal.future
    assert future is not None
    with interrupting(Waking, "set_result", done=done):
        watcher._signal.future = cast("Any", Waking(future))
        for (_, client), op in zip(pairs, ops, strict=True):
            client.sendall(b"x")
            await until(lambda op=op: op.completed)
        assert await waiting == ops
    for server, client in pairs:
        watcher.free(server)
        client.close()


class Waking:
    """In the place of the future that a consumer awaits."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.done = future.done
        self._future = future

    def set_result(self, result: None) -> None:
        self._future.set_result(result)


@INTERRUPTED
async def test_D1_events_behind_an_interrupted_backlog_are_not_lost(
    watcher: Watcher, done: bool
) -> None:
    (busy, busy_client), (quiet, quiet_client) = tcp_pair(), tcp_pair()
    with busy_client, quiet_client:
        reads = [watcher.read(busy, bytearray(1)) for _ in range(40)]
        behind = watcher.read(quiet)
        await settle()
        busy_client.sendall(bytes(40))
        await until(lambda: reads[0].completed)
        assert not reads[-1].completed  # the rest is in the backlog
        quiet_client.sendall(b"told once")
        with interrupting(Record, "recv_into", done=done):
            results = await in_spite_of_it(watcher, 41)
        ended = broken_off(results)
        assert ended == reads[-len(ended) :]  # none after a hole
        assert behind.data == b"told once"
        watcher.free(quiet)


@INTERRUPTED
async def test_D1_multishot_reads_behind_one_interrupted_when_there_is_room_go_on(
    poller: str, done: bool
) -> None:
    async with Watcher(poller=poller, batch_size=1) as watcher:  # type: ignore[arg-type]
        pairs = [tcp_pair() for _ in range(3)]
        for number, (server, client) in enumerate(pairs):
            watcher.read(server, multishot=True, context=number)
            client.sendall(b"x")
        await until(lambda: watcher.statistics().bytes_read == 1)
        await settle()
        with interrupting(Record, "recv", done=done):
            results = await in_spite_of_it(watcher, 3)
        assert len(broken_off(results)) == 1
        assert sorted(op.context for op in results) == [0, 1, 2]
        for server, client in pairs:
            watcher.free(server)
            client.close()
        watcher.poll_io()


@INTERRUPTED
@pytest.mark.parametrize("step", ["_withdraw", "_finish"])
async def test_T1_deadlines_behind_one_that_was_interrupted_are_kept(
    watcher: Watcher, step: str, done: bool
) -> None:
    pairs = [tcp_pair() for _ in range(3)]
    reads = [watcher.read(server, timeout=0.01) for server, _ in pairs]
    with interrupting(Watcher, step, done=done):
        results = await in_spite_of_it(watcher, 3)
    assert {id(op) for op in results} == {id(op) for op in reads}
    kinds = [type(op.error) for op in reads]
    assert kinds.count(DeadlineExceededError) == (3 if done else 2)
    assert watcher.statistics().pending == 0
    for server, client in pairs:
        watcher.free(server)
        client.close()


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("from_a_thread", [False, True], ids=["here", "from a thread"])
@INTERRUPTED
async def test_D1_request_interrupted_as_it_enters_frees_its_connection(
    watcher: Watcher, from_a_thread: bool, write: bool, done: bool
) -> None:
    """What was sent or received is not known: nothing is sent twice, nor left out."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"1234")
        await until(lambda: unread(conn) == 4)
        await settle()  # that it is readable has been told
        view = watcher.threadsafe if from_a_thread else watcher
        with interrupting(Record, "send" if write else "recv_into", done=done):

            def request() -> Operation:
                data = bytearray(b"once")
                return view.write(conn, data) if write else view.read(conn, data)

            if from_a_thread:
                requests = [request(), request()]
                assert await in_spite_of_it(watcher, 2) == requests
            else:
                with pytest.raises(ZeroDivisionError):
                    request()
                assert len(await in_spite_of_it(watcher, 1)) == 1
                requests = [request()]
                assert await in_spite_of_it(watcher, 1) == requests
        assert broken_off(requests) == requests
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(16) == (b"once" if write and done else b"")
        watcher.free(conn)


@pytest.mark.parametrize("call", ["read", "write", "writev"])
@INTERRUPTED
async def test_D1_request_interrupted_on_the_short_way_frees_its_connection(
    watcher: Watcher, call: str, done: bool
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"1234")
        await until(lambda: unread(conn) == 4)
        requests: dict[str, tuple[str, Callable[[], Operation | None]]] = {
            "read": ("recv", lambda: watcher.read(conn)),
            "write": ("send", lambda: watcher.write(conn, b"once", silent=True)),
            "writev": ("sendmsg", lambda: watcher.writev(conn, [b"on", b"ce"])),
        }
        name, request = requests[call]
        with interrupting(Record, name, done=done):
            with pytest.raises(ZeroDivisionError):
                request()
            assert conn.closed
            assert request() is not None  # it is told what has become of the connection
            assert len(broken_off(await in_spite_of_it(watcher, 1))) == 1
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(16) == (b"once" if call != "read" and done else b"")


async def test_O4_an_interrupted_accept_does_not_end_the_listener(watcher: Watcher) -> None:
    listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
    watcher.accept(listener, multishot=True)
    await settle()
    with interrupting(Record, "_accept", done=False):
        for _ in range(3):
            socket.create_connection(listener.sockname).close()
        results = await in_spite_of_it(watcher, 3)
    assert [op.error for op in results] == [None] * 3
    for op in results:
        assert op.accepted is not None
        watcher.free(op.accepted)
    watcher.free(listener)
    watcher.poll_io()


@pytest.mark.parametrize("how", ["free", "close"])
async def test_O2_what_is_pending_completes_though_its_end_is_interrupted(
    poller: str, how: str
) -> None:
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        pairs = [tcp_pair() for _ in range(3)]
        conns = [watcher.delegate(server) for server, _ in pairs]
        requests = [watcher.read(conn) for conn in conns for _ in range(3)]
        requests += [watcher.notify_hangup(conn) for conn in conns]
        post = watcher.threadsafe.read(conns[0])
        with interrupting(Watcher, "_finish", done=False):
            with pytest.raises(ZeroDivisionError):
                conns[0].close() if how == "free" else watcher.close()
            for conn in conns:
                assert watcher.free(conn) is (how == "free" and conn is not conns[0])
            results = await in_spite_of_it(watcher, 13)
        assert {id(op) for op in results} == {id(op) for op in [*requests, post]}
        assert all(op.error is not None for op in results)
        assert all(client.recv(1) == b"" for _, client in pairs)
        for _, client in pairs:
            client.close()


async def test_D1_an_action_that_raises_as_the_watcher_closes_keeps_nobody_from_the_end(
    poller: str,
) -> None:
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        server, client = tcp_pair()
        conn = watcher.delegate(server)
        with client:
            watcher._post(lambda: 1 / 0)
            request = watcher.threadsafe.read(conn)
            with pytest.raises(ZeroDivisionError):
                watcher.close()
            assert watcher.poll_io() == [request]


@pytest.mark.parametrize("multishot", [False, True])
async def test_D1_a_read_for_which_there_is_no_memory_ends_with_that_and_takes_nothing(
    multishot: bool, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)

        def short_of_memory(*_: object) -> bytes:
            raise MemoryError

        operation = watcher.read(conn, multishot=multishot)
        with monkeypatch.context() as patch:
            patch.setattr(Record, "recv", short_of_memory)
            client.sendall(b"x")
            assert await one(watcher) is operation
            assert isinstance(operation.error, MemoryError)
        watcher.read(conn)
        assert (await one(watcher)).data == b"x"
        watcher.free(conn)


@pytest.mark.skipif(not hasattr(bytes, "__buffer__"), reason="needs Python 3.12")
async def test_D1_a_buffer_that_became_read_only_fails_its_read_alone(watcher: Watcher) -> None:
    class Turning:
        writable = True

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(bytearray(10)) if self.writable else memoryview(bytes(10))

    server, client = tcp_pair()
    with client:
        conn, buffer = watcher.delegate(server), Turning()
        watcher.read(conn, buffer)  # type: ignore[arg-type]
        buffer.writable = False
        client.sendall(b"x")
        assert isinstance((await one(watcher)).error, BufferError)
        watcher.read(conn)
        assert (await one(watcher)).data == b"x"
        watcher.free(conn)


async def test_D3_cancel_runs_no_more_of_the_inbox_than_it_has_to(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        ran: list[int] = []
        here = watcher.read(conn)
        for number in range(10):
            watcher._post(lambda number=number: ran.append(number))  # type: ignore[misc]
        assert watcher.cancel(here)
        assert ran == []
        on_its_way = watcher.threadsafe.read(conn)
        for number in range(10, 20):
            watcher._post(lambda number=number: ran.append(number))  # type: ignore[misc]
        assert watcher.cancel(on_its_way)
        assert ran == list(range(10))
        assert await collect(watcher, 2) == [here, on_its_way]
        watcher.free(conn)


async def test_D5_drains_that_are_given_up_leave_nothing_in_the_queue(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        while watcher.write(conn, bytes(200_000)).completed:
            watcher.poll_io()
        for _ in range(100):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await watcher.drain(conn)
        assert conn._record.behind == 0
        watcher.free(conn)


async def test_O3_drains_of_a_connection_that_is_freed_leave_no_cycle(poller: str) -> None:
    watcher = Watcher(poller=poller)  # type: ignore[arg-type]
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        while watcher.write(conn, bytes(200_000)).completed:
            watcher.poll_io()
        drains = [asyncio.create_task(watcher.drain(conn)) for _ in range(2)]
        await asyncio.sleep(0)
        watcher.free(conn)
        await asyncio.gather(*drains)
        record = weakref.ref(conn._record)
        watcher.close()
        watcher.poll_io()
        gc.disable()
        try:
            del watcher, conn, drains, server
            await settle()
            assert record() is None
        finally:
            gc.enable()


async def test_S2_silent_data_of_another_thread_has_to_be_contiguous(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        with pytest.raises(TypeError, match="contiguous"):
            watcher.threadsafe.write(conn, memoryview(bytes(10))[::2], silent=True)
        watcher.free(conn)


#: What is called between the decision that an operation ends and its end.
BETWEEN: dict[str, tuple[str, Callable[..., Any]]] = {
    "as its deadline expires": (
        "aiogaio.deadlines.Deadlines.pop_expired",
        Deadlines.pop_expired,
    ),
    "during a cancel": ("aiogaio.proactor.OperationCancelledError", OperationCancelledError),
}


@pytest.mark.parametrize("when", BETWEEN)
async def test_O2_free_of_a_signal_handler_as_an_operation_ends_completes_it_once(
    when: str, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        cancels = when == "during a cancel"
        read = watcher.read(conn, timeout=None if cancels else 0.001)
        name, call = BETWEEN[when]

        def call_and_free(*arguments: Any) -> Any:
            result = call(*arguments)
            if result is not None:
                watcher.free(conn)
            return result

        monkeypatch.setattr(name, call_and_free)
        if cancels:
            assert watcher.cancel(read)
        assert await in_spite_of_it(watcher, 1) == [read]
        assert isinstance(read.error, ConnectionFreedError)
        assert watcher.statistics().pending == 0


async def test_D3_connections_with_much_to_read_have_their_turns_one_after_the_other(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a turn's bytes do not reach for all of them."""
    monkeypatch.setattr("aiogaio.proactor.TURN_BYTES", 4 * 8 * 1024)
    pairs = [unix_pair() for _ in range(9)]
    for number, (server, _) in enumerate(pairs):
        conn = watcher.delegate(server)
        conn.context = number
        for _ in range(40):
            watcher.read(conn, bytearray(1024))
    await settle()
    for _, client in pairs:
        client.sendall(bytes(40 * 1024))
    served = Counter[int]()
    async with asyncio.timeout(10):
        while max(served.values(), default=0) < 40:
            served.update(op.context for op in await watcher.wait_io())
    assert min(served[number] for number in range(9)) >= 20
    await in_spite_of_it(watcher, 9 * 40 - served.total())
    for server, client in pairs:
        watcher.free(server)
        client.close()


async def test_D4_a_close_that_was_interrupted_by_the_keyboard_says_so(poller: str) -> None:
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]

        def by_the_keyboard() -> None:
            raise KeyboardInterrupt

        def broken() -> None:
            raise ZeroDivisionError

        watcher._post(by_the_keyboard)
        watcher._post(broken)
        with pytest.raises(KeyboardInterrupt):
            watcher.close()
        gone = weakref.ref(watcher)
    await settle()  # the loop was asked to come
    with collecting_by_hand():
        del watcher
        assert gone() is None


async def test_D1_cancel_of_a_finalizer_as_a_hangup_is_told_completes_once(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    hangup = watcher.notify_hangup(conn, timeout=10)
    discard = Deadlines.discard

    def discard_and_cancel(self: Deadlines, operation: Operation) -> None:
        watcher.cancel(hangup)
        discard(self, operation)

    await settle()
    monkeypatch.setattr(Deadlines, "discard", discard_and_cancel)
    client.close()
    assert await in_spite_of_it(watcher, 1) == [hangup]
    assert hangup.error is None
    watcher.free(conn)


async def test_D4_close_of_a_finalizer_runs_what_a_thread_has_posted_behind_it(
    poller: str,
) -> None:
    async with no_loop_errors(), Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        server, client = tcp_pair()
        conn = watcher.delegate(server)
        with client:
            watcher._undisturbed(watcher.close)  # as in the middle of a turn
            behind = watcher.threadsafe.read(conn)
            await settle()
            assert watcher.closed
            assert watcher.poll_io() == [behind]


async def test_D4_close_ends_though_what_was_posted_cannot_be_run(
    poller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near the limit of recursion, for example."""
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        before = open_descriptors()
        watcher._post(int)

        def too_deep(*_: Any, **__: Any) -> None:
            raise RecursionError

        with monkeypatch.context() as patch:
            patch.setattr(Inbox, "empty", too_deep)
            with pytest.raises(RecursionError):
                watcher.close()
        assert watcher.closed
        assert poller == "loop" or len(open_descriptors()) < len(before)  # its epoll


@pytest.mark.parametrize("name", ["epoll", "loop"])
@pytest.mark.parametrize("loop", LOOPS)
def test_D5_watcher_is_closed_after_its_loop_though_somebody_drained(loop: str, name: str) -> None:
    async def begin() -> tuple[Watcher, Operation, asyncio.Task[None]]:
        watcher = Watcher(poller=name)  # type: ignore[arg-type]
        server, client = unix_pair()
        stack.enter_context(client)
        write = watcher.write(server, bytes(1 << 24))
        task = asyncio.ensure_future(watcher.drain())
        await settle()
        assert write is not None
        return watcher, write, task

    with contextlib.ExitStack() as stack:
        own = LOOPS[loop]()
        try:
            own.run_until_complete(asyncio.sleep(0))
            watcher, write, task = own.run_until_complete(begin())
        finally:
            own.close()
        watcher.close()
        assert watcher.poll_io() == [write]
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # which is the point
