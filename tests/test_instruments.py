"""Instruments, which look on; and what wakes the loop up for other threads' requests."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

import aiogaio
from aiogaio import (
    Connection,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Statistics,
    Watcher,
    WatcherClosedError,
)
from aiogaio.instruments import Instrument, LoggingInstrument, PrometheusInstrument
from tests.probes import hung_up, receive, recorded_warnings, resource_warnings, small_pair, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

try:
    import prometheus_client as prometheus
except ImportError:
    prometheus = None  # type: ignore[assignment]

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

LONG = 100_000  # more than a small pair takes

METHODS = ("submitted", "completed", "batch", "connection_opened", "connection_closed")


class Recorder:
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def of(self, name: str) -> list[Any]:
        return [subject for event, subject in self.events if event == name]

    def submitted(self, operation: Operation) -> None:
        assert not operation.completed
        self.events.append(("submitted", operation))

    def completed(self, operation: Operation) -> None:
        assert operation.completed
        self.events.append(("completed", operation))

    def batch(self, operations: Sequence[Operation]) -> None:
        self.events.append(("batch", list(operations)))

    def connection_opened(self, conn: Connection) -> None:
        assert not conn.closed
        self.events.append(("connection_opened", conn.fileno()))

    def connection_closed(self, descriptor: int) -> None:
        self.events.append(("connection_closed", descriptor))

    def assert_balanced(self, statistics: Statistics) -> None:
        """What it was told is what the watcher counted."""
        submitted, completed = self.of("submitted"), self.of("completed")
        shots = [op for op in completed if op.more]
        ends = [op for op in completed if not op.more]
        assert len({id(op) for op in submitted}) == len(submitted) == statistics.submitted
        assert len({id(op) for op in completed}) == len(completed)
        assert len(ends) == statistics.completed
        assert {id(op) for op in ends} <= {id(op) for op in submitted}
        assert not {id(op) for op in shots} & {id(op) for op in submitted}
        assert len(self.of("batch")) == statistics.batches
        opened, closed = self.of("connection_opened"), self.of("connection_closed")
        assert len(opened) - len(closed) == statistics.connections
        assert not Counter(closed) - Counter(opened)
        both = OpType.RELAY, OpType.READ
        read = sum(op.size for op in completed if op.type in both)
        written = sum(op.size for op in completed if op.type in (OpType.RELAY, OpType.WRITE))
        if not statistics.pending:
            assert (read, written) == (statistics.bytes_read, statistics.bytes_written)


Pair = tuple[Connection, socket.socket]
Pairs = Callable[..., Pair]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def watched(poller: Any, recorder: Recorder) -> Any:
    async with Watcher(poller=poller, instrument=recorder) as watcher:
        yield watcher


@pytest.fixture
def pair() -> Iterator[Pairs]:
    """Delegates one end of a pair that takes little; the other is closed after the test."""
    with ExitStack() as stack:

        def make(watcher: Watcher, kind: Callable[[], Any] = small_pair) -> Pair:
            ours, peer = kind()
            stack.enter_context(peer)
            return watcher.delegate(ours), peer

        yield make


# --- What an instrument is told ------------------------------------------------------------------


async def test_instrument_is_told_of_each_step_in_order(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, peer = pair(watched)
    number = conn.fileno()
    read = watched.read(conn, context="mine")
    write = watched.write(conn, b"x")
    peer.sendall(b"y")
    batches = [await watched.wait_io()]
    if not read.completed or len(batches[0]) < 2:
        batches.append(await watched.wait_io())
    watched.free(conn)
    names = [name for name, _ in recorder.events if name != "batch"]
    assert names == [
        "connection_opened",
        "submitted",
        "submitted",
        "completed",
        "completed",
        "connection_closed",
    ]
    assert recorder.of("submitted") == [read, write]
    assert recorder.of("completed") == [op for batch in batches for op in batch]
    assert recorder.of("batch") == batches
    assert recorder.of("connection_opened") == recorder.of("connection_closed") == [number]
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_poll_io_when_it_brings_something(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, _ = pair(watched)
    assert watched.poll_io() == []
    assert recorder.of("batch") == []
    write = watched.write(conn, b"x")
    assert watched.poll_io() == [write]
    assert recorder.of("batch") == [[write]]


async def test_instrument_may_keep_and_change_the_batch(poller: Any, pair: Pairs) -> None:
    """It is shown what the program gets; what it breaks is its own fault, but nothing is lost."""
    seen: list[list[Operation]] = []
    instrument = Recorder()
    instrument.batch = lambda operations: seen.append(list(operations))  # type: ignore[method-assign]
    async with Watcher(poller=poller, instrument=instrument) as watcher:
        conn, _ = pair(watcher)
        writes = [watcher.write(conn, b"x") for _ in range(5)]
        assert await collect(watcher, 5) == writes
        assert [op for batch in seen for op in batch] == writes


SILENT: dict[str, Callable[[Watcher, Connection], Any]] = {
    "write": lambda watcher, conn: watcher.write(conn, bytes(LONG), silent=True),
    "writev": lambda watcher, conn: watcher.writev(conn, [bytes(LONG // 2)] * 2, silent=True),
    "sendmsg": lambda watcher, conn: watcher.sendmsg(conn, [bytes(LONG)], silent=True),
    "threadsafe": lambda watcher, conn: watcher.threadsafe.write(conn, bytes(LONG), silent=True),
}


@pytest.mark.parametrize("name", SILENT)
async def test_instrument_is_told_of_silent_writes(
    watched: Watcher, recorder: Recorder, pair: Pairs, name: str
) -> None:
    conn, peer = pair(watched)
    assert watched.write(conn, b"at once", silent=True) is None
    SILENT[name](watched, conn)
    SILENT[name](watched, conn)
    assert len(await receive(peer, 7 + 2 * LONG)) == 7 + 2 * LONG
    await until(lambda: watched.statistics().pending == 0)
    assert recorder.of("submitted") == recorder.of("completed")
    assert [op.size for op in recorder.of("completed")] == [7, LONG, LONG]
    assert all(op.error is None for op in recorder.of("completed"))
    assert recorder.of("batch") == []
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_a_silent_write_that_fails(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, peer = pair(watched, tcp_pair)
    reset(peer)
    await until(lambda: hung_up(conn))
    watched.write(conn, b"x", silent=True)
    failed = await one(watched)
    assert recorder.of("completed") == recorder.of("submitted") == [failed]
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_each_shot(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, peer = pair(watched)
    armed = watched.read(conn, multishot=True)
    for _ in range(3):
        peer.sendall(b"x")
        assert (await one(watched)).more
    peer.shutdown(socket.SHUT_WR)
    assert await one(watched) is armed
    assert recorder.of("submitted") == [armed]
    assert [op.more for op in recorder.of("completed")] == [True, True, True, False]
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_accepted_connections(
    watched: Watcher, recorder: Recorder
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        address = listener.getsockname()
        watched.accept(listener, multishot=True)
        accepted = []
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
            accepted.append((await one(watched)).accepted)
        assert len(recorder.of("connection_opened")) == 4
        assert [conn.fileno() for conn in accepted] == recorder.of("connection_opened")[1:]
        recorder.assert_balanced(watched.statistics())
        watched.close()
        assert len(recorder.of("connection_closed")) == 4
        watched.poll_io()
        recorder.assert_balanced(watched.statistics())


OPENINGS: dict[str, Callable[[Watcher, socket.socket], Any]] = {
    "delegate": lambda watcher, sock: watcher.delegate(sock),
    "read": lambda watcher, sock: watcher.read(sock),
    "write": lambda watcher, sock: watcher.write(sock, b"x"),
    "threadsafe": lambda watcher, sock: watcher.threadsafe.read(sock),
    "descriptor": lambda watcher, sock: watcher.delegate(sock.fileno()),
}


@pytest.mark.parametrize("name", OPENINGS)
async def test_instrument_is_told_once_however_a_connection_is_opened(
    watched: Watcher, recorder: Recorder, name: str
) -> None:
    sock, peer = unix_pair()
    with sock, peer:
        kept = OPENINGS[name](watched, sock)
        assert len(recorder.of("connection_opened")) == 1
        watched.close()
        watched.close()
        assert recorder.of("connection_closed") == recorder.of("connection_opened")
        watched.poll_io()
        assert watched.statistics().connections == 0
        del kept


async def test_instrument_is_told_of_an_adopted_connection(
    watched: Watcher, recorder: Recorder
) -> None:
    ours, peer = unix_pair()
    with peer:
        reader, writer = await asyncio.open_connection(sock=ours)
        conn = watched.adopt(writer, reader)
        assert recorder.of("connection_opened") == [conn.fileno()]
        await settle()
        conn.close()
        recorder.assert_balanced(watched.statistics())


async def test_instrument_is_not_told_of_what_was_refused(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, _ = pair(watched)
    del recorder.events[:]
    for misuse in (
        lambda: watched.read(conn, bytearray()),
        lambda: watched.write(conn, b""),
        lambda: watched.read(conn, timeout=-1),
        lambda: watched.accept(conn),
        lambda: watched.delegate(None),  # type: ignore[arg-type]
        lambda: watched.relay(conn, conn),
    ):
        with pytest.raises((ValueError, TypeError)):
            misuse()
    assert recorder.events == []


ENDS: dict[str, Callable[[Watcher, Connection, Operation], Any]] = {
    "cancel": lambda watcher, conn, op: watcher.cancel(op),
    "free": lambda watcher, conn, op: watcher.free(conn),
    "close": lambda watcher, conn, op: watcher.close(),
}


@pytest.mark.parametrize("name", ENDS)
async def test_instrument_is_told_of_each_request_once_however_it_ends(
    watched: Watcher, recorder: Recorder, pair: Pairs, name: str
) -> None:
    conn, _ = pair(watched)
    other, _ = pair(watched)
    read = watched.read_full(conn, bytearray(9))
    watched.read(conn, multishot=True)
    watched.notify_hangup(conn)
    watched.write(conn, bytes(LONG))
    watched.write(conn, bytes(10), silent=True)
    watched.relay(conn, other)
    watched.read(conn, timeout=0)
    ENDS[name](watched, conn, read)
    watched.free(conn) if not watched.closed else None
    watched.close()
    assert len(watched.poll_io()) == 7
    assert len(recorder.of("completed")) == 7
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_a_request_on_a_freed_connection(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, _ = pair(watched)
    watched.free(conn)
    operations = [watched.read(conn), watched.write(conn, b"x"), watched.notify_hangup(conn)]
    assert recorder.of("submitted") == recorder.of("completed") == operations
    assert await collect(watched, 3) == operations
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_connects_relays_and_ends(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watched.connect(socket.socket(), listener.getsockname())
        await one(watched)
    (first, near), (second, far) = pair(watched), pair(watched)
    watched.relay(first, second)
    near.sendall(b"there")
    assert await receive(far, 5) == b"there"
    near.close()
    far.close()
    await one(watched)
    third, peer = pair(watched)
    watched.shutdown(third)
    await one(watched)
    watched.notify_hangup(third)
    peer.close()
    await one(watched)
    kinds = [op.type for op in recorder.of("completed")]
    assert kinds == [OpType.CONNECT, OpType.RELAY, OpType.SHUTDOWN, OpType.HANGUP]
    recorder.assert_balanced(watched.statistics())


async def test_instrument_is_told_of_a_connection_that_nobody_held(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    number = pair(watched)[0].fileno()
    with recorded_warnings() as caught:
        gc.collect()
        await settle()
    del caught
    assert recorder.of("connection_closed") == [number]
    recorder.assert_balanced(watched.statistics())


async def test_O3_an_instrument_does_not_keep_the_watcher_alive(
    poller: Any, recorder: Recorder
) -> None:
    with recorded_warnings() as caught:
        watcher = Watcher(poller=poller, instrument=recorder)
        gone = weakref.ref(watcher)
        del watcher
        gc.collect()
        assert gone() is None
    assert len(resource_warnings(caught)) == 1


async def test_instrument_of_several_watchers(poller: Any, recorder: Recorder, pair: Pairs) -> None:
    async with (
        Watcher(poller=poller, instrument=recorder) as first,
        Watcher(poller=poller, instrument=recorder) as second,
    ):
        for watcher in (first, second):
            conn, _ = pair(watcher)
            watcher.write(conn, b"x")
            await one(watcher)
    assert len(recorder.of("completed")) == 2
    assert len(recorder.of("connection_closed")) == len(recorder.of("connection_opened")) == 2


async def test_a_watcher_with_an_instrument_works_as_one_without(
    watched: Watcher, recorder: Recorder, pair: Pairs
) -> None:
    conn, peer = pair(watched, tcp_pair)
    for number in range(50):
        watched.read(conn)
        watched.write(conn, b"%d" % number)
        assert await receive(peer, len(str(number))) == b"%d" % number
        peer.sendall(b"back %d" % number)
        read = next(op for op in await collect(watched, 2) if op.type is OpType.READ)
        assert read.data == b"back %d" % number
    recorder.assert_balanced(watched.statistics())


@pytest.mark.parametrize("seed", range(3))
async def test_instrument_in_a_storm(
    watched: Watcher, recorder: Recorder, pair: Pairs, seed: int
) -> None:
    rng = random.Random(seed)
    pairs = [pair(watched, rng.choice([small_pair, tcp_pair])) for _ in range(6)]
    for _, peer in pairs:
        peer.setblocking(False)
    requests: list[Callable[[Connection], Any]] = [
        watched.read,
        lambda conn: watched.read(conn, multishot=True, timeout=0.002),
        lambda conn: watched.read_full(conn, bytearray(20)),
        lambda conn: watched.read_until(conn, b"\0" * 9, limit=30),
        lambda conn: watched.write(conn, bytes(rng.choice([1, 50_000]))),
        lambda conn: watched.write(conn, bytes(rng.choice([1, 50_000])), silent=True),
        lambda conn: watched.writev(conn, [bytes(100)] * 3, silent=rng.random() < 0.5),
        lambda conn: watched.write(conn, bytes(9_000), timeout=0.001),
        lambda conn: watched.threadsafe.write(conn, bytes(9_000), silent=rng.random() < 0.5),
        watched.threadsafe.read,
        watched.notify_hangup,
        lambda conn: watched.relay(conn, rng.choice(pairs)[0], timeout=0.01),
    ]
    operations: list[Operation] = []
    for _ in range(300):
        conn, peer = rng.choice(pairs)
        try:
            operation = rng.choice(requests)(conn)
        except ValueError:  # a relay with itself
            continue
        if operation is not None:
            operations.append(operation)
        if operations and rng.random() < 0.1:
            watched.cancel(rng.choice(operations))
        try:
            peer.send(bytes(rng.randrange(1, 30)))
            peer.recv(100_000)
        except OSError:
            pass
        if rng.random() < 0.01:
            watched.free(conn)
        if rng.random() < 0.3:
            watched.poll_io()
            await asyncio.sleep(0)
            recorder_counts(recorder, watched)
    for conn, _ in pairs:
        watched.free(conn)
    await settle()
    watched.poll_io()
    assert watched.statistics().pending == 0
    recorder.assert_balanced(watched.statistics())


def recorder_counts(recorder: Recorder, watcher: Watcher) -> None:
    """At any time, and not only in the end."""
    statistics = watcher.statistics()
    ends = sum(not op.more for op in recorder.of("completed"))
    assert (len(recorder.of("submitted")), ends) == (statistics.submitted, statistics.completed)


# --- One that raises, and what is none -----------------------------------------------------------


class Broken:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        if name not in METHODS:
            raise AttributeError(name)

        def fail(_: Any) -> None:
            raise self.error(name)

        return fail


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_an_instrument_that_raises_changes_nothing(
    poller: Any, pair: Pairs, error: type[BaseException]
) -> None:
    seen: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: seen.append(context))
    async with Watcher(poller=poller, instrument=Broken(error)) as watcher:
        conn, peer = pair(watcher)
        read = watcher.read(conn)
        write = watcher.write(conn, bytes(LONG))
        silent = watcher.write(conn, b"silent", silent=True)
        armed = watcher.read(conn, multishot=True)
        relay = watcher.relay(conn, pair(watcher)[0])
        peer.sendall(b"x")
        assert await receive(peer, LONG + 6) == bytes(LONG) + b"silent"
        results = await collect(watcher, 2)
        assert {id(op) for op in results} == {id(read), id(write)}
        assert silent is not None
        await until(lambda: silent.completed)
        peer.sendall(b"shot")
        assert (await one(watcher)).data == b"shot"
        watcher.free(conn)
        assert {id(op) for op in await collect(watcher, 2)} == {id(armed), id(relay)}
        assert watcher.statistics().pending == 0
    counts = Counter(str(context["exception"]).strip("'") for context in seen)
    assert all(type(context["exception"]) is error for context in seen)
    assert all("instrument" in context["message"] for context in seen)
    assert counts.pop("batch") in (3, 4)
    assert counts == {
        "submitted": 5,
        "completed": 6,
        "connection_opened": 2,
        "connection_closed": 2,
    }


@pytest.mark.parametrize("missing", METHODS)
async def test_what_is_no_instrument_is_refused(missing: str) -> None:
    class Partial:
        pass

    for name in METHODS:
        if name != missing:
            setattr(Partial, name, lambda self, subject: None)
    with pytest.raises(TypeError, match=missing):
        Watcher(instrument=Partial())  # type: ignore[arg-type]
    setattr(Partial, missing, 5)
    with pytest.raises(TypeError, match=missing):
        Watcher(instrument=Partial())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, "log", object(), logging.getLogger("x"), True, False, 0, ""])
async def test_S2_a_wrong_object_as_instrument_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="instrument"):
        Watcher(instrument=wrong)


async def test_an_instrument_need_not_derive_from_anything(poller: Any) -> None:
    class Counting:
        count = 0

        def __getattr__(self, name: str) -> Callable[[Any], None]:
            return lambda _: None

    instrument: Instrument = Counting()  # type: ignore[assignment]
    async with Watcher(poller=poller, instrument=instrument) as watcher:
        sock, peer = unix_pair()
        with peer:
            watcher.write(sock, b"x")
            await one(watcher)


# --- LoggingInstrument ---------------------------------------------------------------------------


async def logged(
    poller: Any, pair: Pairs, caplog: pytest.LogCaptureFixture, *arguments: Any, name: str
) -> list[tuple[int, str]]:
    """What is logged of a write, an end, an error, and the connections."""
    with caplog.at_level(logging.DEBUG, logger=name):
        async with Watcher(poller=poller, instrument=LoggingInstrument(*arguments)) as watcher:
            conn, peer = pair(watcher)
            watcher.write(conn, b"x")
            await one(watcher)
            watcher.read(conn)
            peer.shutdown(socket.SHUT_WR)
            assert type((await one(watcher)).error) is EndOfStreamError
            watcher.read(conn, timeout=0, context="late")
            await one(watcher)
            cancelled = watcher.accept(socket.create_server(("127.0.0.1", 0)))
            watcher.cancel(cancelled)
            await one(watcher)
    return [(r.levelno, r.message) for r in caplog.records if r.name == name]


async def test_logging_instrument_says_what_happens(
    poller: Any, pair: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    lines = await logged(poller, pair, caplog, name="aiogaio")
    levels = Counter(level for level, _ in lines)
    assert levels[logging.INFO] == 4  # two opened, two closed
    assert levels[logging.WARNING] == 1  # an end is no failure
    assert levels[logging.DEBUG] == 4 + 3 + 4  # submitted, completed, batches
    texts = [text for _, text in lines]
    failed = [text for level, text in lines if level == logging.WARNING]
    assert [text.startswith("completed <Operation ACCEPT error=") for text in failed] == [True]
    assert sum(text.startswith("submitted <Operation") for text in texts) == 4
    assert sum(text.startswith("completed <Operation") for text in texts) == 4
    assert sum(text.startswith("opened <Connection") for text in texts) == 2
    assert sum(text.startswith("closed fd=") for text in texts) == 2
    assert texts.count("a batch of 1 results") == 4


async def test_logging_instrument_with_a_logger_of_one_s_own(
    poller: Any, pair: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    lines = await logged(poller, pair, caplog, logging.getLogger("mine"), name="mine")
    assert lines
    assert not [record for record in caplog.records if record.name == "aiogaio"]


async def test_logging_instrument_below_its_level_says_nothing(
    poller: Any, pair: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="aiogaio"):
        async with Watcher(poller=poller, instrument=LoggingInstrument()) as watcher:
            conn, _ = pair(watcher)
            watcher.write(conn, b"x")
            await one(watcher)
    names = [
        record.getMessage().split()[0] for record in caplog.records if record.name == "aiogaio"
    ]
    assert names == ["opened", "closed"]


# --- PrometheusInstrument ------------------------------------------------------------------------

needs_prometheus = pytest.mark.skipif(prometheus is None, reason="prometheus-client is not there")


class Metrics:
    """What a registry of its own says."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.instrument = PrometheusInstrument(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        value: float | None = self.registry.get_sample_value(f"aiogaio_{name}", labels)
        return value

    def sum(self, name: str) -> float:
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == f"aiogaio_{name}"
        )


@needs_prometheus
async def test_prometheus_instrument_counts_what_the_watcher_counts(
    poller: Any, pair: Pairs
) -> None:
    metrics = Metrics()
    async with Watcher(poller=poller, instrument=metrics.instrument) as watcher:
        conn, peer = pair(watcher)
        watcher.write(conn, b"12345")
        watcher.write(conn, b"silent", silent=True)
        assert await receive(peer, 11) == b"12345silent"
        watcher.read(conn, multishot=True)
        for _ in range(3):
            peer.sendall(b"shot")
            assert (await collect(watcher, 1 + (not _)))[-1].data == b"shot"
        assert metrics.value("connections") == 1
        peer.shutdown(socket.SHUT_WR)
        await one(watcher)
        watcher.read_full(conn, bytearray(5), timeout=0)
        await one(watcher)
        value = metrics.value
        assert value("operations_submitted_total", type="write") == 2
        assert value("operations_submitted_total", type="read") == 2
        assert value("operations_completed_total", type="write", outcome="ok") == 2
        assert value("operations_completed_total", type="read", outcome="ok") == 3
        assert value("operations_completed_total", type="read", outcome="EndOfStreamError") == 2
        assert value("bytes_total", type="write") == watcher.statistics().bytes_written == 11
        assert value("bytes_total", type="read") == watcher.statistics().bytes_read == 12
        assert value("batch_size_count") == watcher.statistics().batches
        assert value("batch_size_sum") == 6
        watcher.free(conn)
        assert value("connections") == 0
        assert value("connections_opened_total") == 1
        (first, _), (second, _) = pair(watcher), pair(watcher)
        watcher.read(first)
        assert value("connections") == 2
    assert metrics.value("connections") == 0
    assert metrics.value("connections_opened_total") == 3
    closed = metrics.value("operations_completed_total", type="read", outcome="WatcherClosedError")
    assert closed == 1
    del second


@needs_prometheus
async def test_prometheus_instrument_of_several_watchers(poller: Any, pair: Pairs) -> None:
    metrics = Metrics()
    async with (
        Watcher(poller=poller, instrument=metrics.instrument) as first,
        Watcher(poller=poller, instrument=metrics.instrument) as second,
    ):
        kept = [pair(first), pair(second)]
        assert metrics.value("connections") == len(kept) == 2
    assert metrics.value("connections") == 0


@needs_prometheus
async def test_prometheus_instrument_is_shown_as_text(poller: Any, pair: Pairs) -> None:
    metrics = Metrics()
    async with Watcher(poller=poller, instrument=metrics.instrument) as watcher:
        conn, _ = pair(watcher)
        watcher.write(conn, b"x")
        await one(watcher)
        text = prometheus.generate_latest(metrics.registry).decode()
        assert 'aiogaio_operations_completed_total{outcome="ok",type="write"} 1.0' in text
        assert "aiogaio_connections 1.0" in text


@needs_prometheus
async def test_prometheus_instrument_counts_errors_by_their_class(poller: Any, pair: Pairs) -> None:
    metrics = Metrics()
    async with Watcher(poller=poller, instrument=metrics.instrument) as watcher:
        conn, _ = pair(watcher)
        watcher.cancel(watcher.read(conn))
        watcher.read(conn, timeout=0)
        results = await collect(watcher, 2)
        assert [type(op.error) for op in results] == [
            OperationCancelledError,
            DeadlineExceededError,
        ]
        for error in (OperationCancelledError, DeadlineExceededError):
            assert (
                metrics.value("operations_completed_total", type="read", outcome=error.__name__)
                == 1
            )
        assert metrics.sum("operations_completed_total") == 2


@needs_prometheus
def test_prometheus_instruments_on_one_registry_clash_as_metrics_do() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="aiogaio"):
        PrometheusInstrument(metrics.registry)


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
import asyncio, socket
import aiogaio.instruments
from aiogaio import Watcher
from aiogaio.instruments import Instrument, LoggingInstrument, PrometheusInstrument
try:
    PrometheusInstrument()
except ImportError as error:
    assert "pip install prometheus-client" in str(error), error
else:
    raise SystemExit("made without its package")

async def main():
    async with Watcher(instrument=LoggingInstrument()) as watcher:
        ours, peer = socket.socketpair()
        with peer:
            watcher.write(ours, b"x")
            await watcher.wait_io()

asyncio.run(main())
print("works")
"""


def in_a_process(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_instruments_work_without_prometheus_client() -> None:
    assert in_a_process(WITHOUT) == "works"


def test_importing_the_package_imports_no_prometheus_client() -> None:
    program = (
        "import aiogaio, aiogaio.instruments, sys; "
        "print('prometheus_client' in sys.modules, aiogaio.__version__)"
    )
    assert in_a_process(program) == f"False {aiogaio.__version__}"


# --- Wake-ups of the loop ------------------------------------------------------------------------


@pytest.fixture
def wake_ups(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Counts how often a thread asks the running loop to come; to be called in the loop."""

    def begin() -> list[str]:
        loop, calls = asyncio.get_running_loop(), []
        original = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *args: Any, **options: Any) -> Any:
            calls.append(threading.current_thread().name)
            return original(callback, *args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        return calls

    return begin


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run it in so many threads, while the loop's own stands still."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_many_requests_of_other_threads_cost_one_wake_up(
    watcher: Watcher, pair: Pairs, wake_ups: Callable[[], list[str]]
) -> None:
    conn, peer = pair(watcher)
    view = watcher.threadsafe
    operations: list[Operation] = []
    calls = wake_ups()

    def work(number: int) -> None:
        for _ in range(100):
            operations.append(view.write(conn, b"x"))
        view.cancel(view.read(conn))

    for turn in range(3):
        del calls[:]
        in_threads(4, work)
        assert len(calls) == 1
        assert await receive(peer, 400) == b"x" * 400
        results = await collect(watcher, 404)
        assert len({id(op) for op in results}) == 404
        assert len(operations) == 400 * (turn + 1)
        assert len(calls) == 1


async def test_a_wake_up_that_the_loop_had_no_time_for_is_not_repeated(
    watcher: Watcher, pair: Pairs, wake_ups: Callable[[], list[str]]
) -> None:
    """What takes many turns takes no further call of another thread."""
    pairs = [pair(watcher) for _ in range(50)]
    view = watcher.threadsafe
    calls = wake_ups()

    def work(number: int) -> None:
        for conn, _ in pairs:
            for _ in range(100):
                view.read(conn)

    in_threads(1, work)
    await until(lambda: watcher.statistics().submitted == 5000)
    assert len(calls) == 1
    in_threads(1, lambda _: view.free(pairs[0][0]))
    assert len(calls) == 2
    await until(lambda: pairs[0][0].closed)


async def test_a_request_of_the_loop_s_thread_takes_the_others_along(
    watcher: Watcher, pair: Pairs, wake_ups: Callable[[], list[str]]
) -> None:
    conn, peer = pair(watcher)
    calls = wake_ups()
    in_threads(1, lambda _: watcher.threadsafe.write(conn, b"first"))
    watcher.write(conn, b"second")
    watcher.cancel(watcher.read(conn))
    assert len(calls) == 1
    in_threads(1, lambda _: watcher.threadsafe.write(conn, b"third"))
    assert len(calls) <= 2
    assert await receive(peer, 16) == b"firstsecondthird"
    await collect(watcher, 4)


async def test_requests_after_a_close_wake_nobody(
    watcher: Watcher, pair: Pairs, wake_ups: Callable[[], list[str]]
) -> None:
    conn, _ = pair(watcher)
    watcher.close()
    calls, errors = wake_ups(), []

    def work(_: int) -> None:
        try:
            watcher.threadsafe.write(conn, b"x")
        except WatcherClosedError as error:
            errors.append(error)
        watcher.threadsafe.free(conn)

    in_threads(2, work)
    assert len(errors) == 2
    assert calls == []
