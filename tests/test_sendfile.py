"""``sendfile()``: a part of a file, by sendfile(2) or by reading and sending."""

from __future__ import annotations

import asyncio
import bz2
import errno
import gzip
import io
import lzma
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from aiogaio.statistics import Pending
from tests.probes import (
    drained,
    fill,
    hung_up,
    open_descriptors,
    receive,
    small_pair,
    traced,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]

CONTENT = random.Random(11).randbytes(1 << 20)
"""More than fits between the two ends."""
SMALL = CONTENT[:5000]


@dataclass
class Way:
    """A connection that takes little, and its peer."""

    watcher: Watcher
    conn: Connection
    peer: socket.socket
    filling: int = 0  # bytes that the peer has to receive before anything is sent

    def sendfile(self, file: Any, *arguments: Any, **options: Any) -> Operation:
        return self.watcher.sendfile(self.conn, file, *arguments, **options)

    def write(self, data: Any, **options: Any) -> Any:
        return self.watcher.write(self.conn, data, **options)

    async def arrives(self, content: bytes) -> None:
        """The peer receives this and nothing else."""
        filling, self.filling = self.filling, 0
        await receive(self.peer, filling)
        assert await receive(self.peer, len(content)) == content
        await settle(3)
        assert not unread(self.peer)

    async def arrives_and_ends(self, content: bytes) -> None:
        """The same, and the connection is closed at this end: nothing came behind it."""
        self.watcher.free(self.conn)
        received = await drained(self.peer)
        assert len(received) == len(content)
        assert received == content

    async def sent(self, op: Operation, content: bytes) -> None:
        """This operation is the next result, and has sent this."""
        await self.arrives(content)
        assert await one(self.watcher) is op
        assert op.error is None
        assert op.size == len(content)


async def open_way(
    watcher: Watcher, ours: socket.socket, peer: socket.socket, filling: int
) -> AsyncIterator[Way]:
    with peer:
        way = Way(watcher, watcher.delegate(ours), peer, filling)
        yield way
        watcher.free(way.conn)
        assert not [op for op in watcher.poll_io() if op.error is None]
        assert watcher.statistics().pending == 0
        assert watcher.pending(way.conn) == Pending(0, 0)


@pytest_asyncio.fixture
async def way(watcher: Watcher) -> AsyncIterator[Way]:
    """TCP with the loop's debug mode off, Unix with it on."""
    if asyncio.get_running_loop().get_debug():
        ours, peer = small_pair()
    else:
        ours, peer = tcp_pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    async for opened in open_way(watcher, ours, peer, 0):
        yield opened


@pytest_asyncio.fixture
async def stopped(watcher: Watcher) -> AsyncIterator[Way]:
    """It takes nothing until the filling is received: all writes stand in the queue."""
    ours, peer = small_pair()
    async for opened in open_way(watcher, ours, peer, fill(ours)):
        yield opened


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    contents = {"small": SMALL, "large": CONTENT, "empty": b""}
    return {name: written(folder / name, content) for name, content in contents.items()}


@pytest.fixture
def small(paths: dict[str, Path]) -> Iterator[io.BufferedReader]:
    with paths["small"].open("rb") as file:
        yield file


@pytest.fixture
def large(paths: dict[str, Path]) -> Iterator[io.BufferedReader]:
    with paths["large"].open("rb") as file:
        yield file


@pytest.fixture
def empty(paths: dict[str, Path]) -> Iterator[io.BufferedReader]:
    with paths["empty"].open("rb") as file:
        yield file


# By the system, and by reading. The same has to come of both.
SOURCES: dict[str, Callable[[bytes, Path], Any]] = {
    "file": lambda content, folder: written(folder / "file", content).open("rb"),
    "raw": lambda content, folder: written(folder / "raw", content).open("rb", buffering=0),
    "bytesio": lambda content, folder: io.BytesIO(content),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Makes a file of some content."""
    files = []

    def make(content: bytes) -> Any:
        files.append(SOURCES[request.param](content, tmp_path))
        return files[-1]

    yield make
    for file in files:
        file.close()


# --- The plain case -------------------------------------------------------------------------------


async def test_sendfile_sends_all_of_a_file(way: Way, small: io.BufferedReader) -> None:
    small.seek(17)
    op = way.sendfile(small, context="mine")
    await way.sent(op, SMALL)
    assert (op.type, op.conn, op.context) == (OpType.WRITE, way.conn, "mine")
    assert (op.buffer, op.data, op.more) == (None, b"", False)
    assert small.tell() == 17, "the file's position is its owner's"
    assert way.watcher.statistics().bytes_written == len(SMALL)


async def test_S1_sendfile_of_little_is_sent_at_the_call(way: Way, small: Any) -> None:
    op = way.sendfile(small, 0, 100)
    assert op.completed
    await way.sent(op, SMALL[:100])


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        ((0,), SMALL),
        ((0, None), SMALL),
        ((1000,), SMALL[1000:]),
        ((1000, 7), SMALL[1000:1007]),
        ((0, 5000), SMALL),
        ((4999, 1), SMALL[4999:]),
        ((0, 1), SMALL[:1]),
        ((5000,), b""),
        ((9999,), b""),
        ((1 << 40,), b""),
    ],
)
async def test_sendfile_of_a_part(
    way: Way, source: Callable[[bytes], Any], arguments: tuple[int, ...], content: bytes
) -> None:
    await way.sent(way.sendfile(source(SMALL), *arguments), content)


@pytest.mark.parametrize(("offset", "count", "size"), [(0, 5001, 5000), (4990, 100, 10)])
async def test_sendfile_count_beyond_the_end_says_so(
    way: Way, source: Callable[[bytes], Any], offset: int, count: int, size: int
) -> None:
    op = way.sendfile(source(SMALL), offset, count)
    assert await one(way.watcher) is op
    assert type(op.error) is EndOfStreamError
    assert str(count - size) in str(op.error)
    assert op.size == size
    await way.arrives(SMALL[offset:])


@pytest.mark.parametrize("offset", [5000, 6000])
async def test_sendfile_of_nothing_but_what_is_beyond_the_end_tears_nothing(
    stopped: Way, source: Callable[[bytes], Any], offset: int
) -> None:
    op, behind = stopped.sendfile(source(SMALL), offset, 1), stopped.write(b"behind")
    await stopped.arrives(b"behind")
    assert await collect(stopped.watcher, 2) == [op, behind]
    assert type(op.error) is EndOfStreamError
    assert (op.size, behind.error) == (0, None)


async def test_sendfile_of_an_empty_file_sends_nothing(
    way: Way, source: Callable[[bytes], Any]
) -> None:
    op = way.sendfile(source(b""))
    assert await one(way.watcher) is op
    assert (op.error, op.size) == (None, 0)
    behind = way.write(b"behind")
    await way.sent(behind, b"behind")


async def test_sendfile_of_a_file_without_a_descriptor_moves_its_position(way: Way) -> None:
    file = io.BytesIO(SMALL)
    file.seek(3)
    await way.sent(way.sendfile(file, 10, 90), SMALL[10:100])
    assert file.tell() == 100


async def test_sendfile_of_what_the_system_cannot_send(way: Way) -> None:
    with open("/proc/version", "rb") as file:
        content = file.read()
        await way.sent(way.sendfile(file), content)
        await way.sent(way.sendfile(file, 3, 5), content[3:8])
    with open("/proc/self/status", "rb") as file:
        op = way.sendfile(file)
        assert await one(way.watcher) is op
        assert op.error is None
        assert (await receive(way.peer, op.size)).startswith(b"Name:")
    with open("/dev/zero", "rb", buffering=0) as file:
        await way.sent(way.sendfile(file, 0, 1000), bytes(1000))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("working", [0, 1, 2])
async def test_sendfile_reads_where_the_system_refuses(
    way: Way, large: Any, monkeypatch: pytest.MonkeyPatch, number: int, working: int
) -> None:
    """Also if it finds that late: what is sent already is not sent again."""
    original, calls, refused = os.sendfile, 0, 0

    def refusing(*arguments: int) -> int:
        nonlocal calls, refused
        if calls >= working:
            refused += 1
            raise OSError(number, os.strerror(number))
        sent = original(*arguments)
        calls += 1
        return sent

    monkeypatch.setattr(os, "sendfile", refusing)
    count = 300_000
    op = way.sendfile(large, 1000, count)
    assert await receive(way.peer, count) == CONTENT[1000 : 1000 + count]
    assert await one(way.watcher) is op
    assert (op.error, op.size) == (None, count)
    assert refused == 1, "it asks once"


async def test_sendfile_of_a_large_file_to_a_slow_reader(
    way: Way, source: Callable[[bytes], Any]
) -> None:
    op = way.sendfile(source(CONTENT))
    # A file's bytes are not in memory: they do not count.
    assert way.watcher.pending(way.conn) == Pending(1, 0)
    rng = random.Random(3)
    received = bytearray()
    while len(received) < len(CONTENT):
        room = min(rng.randrange(1, 50_000), len(CONTENT) - len(received))
        received += await receive(way.peer, room)
    assert received == CONTENT
    assert await one(way.watcher) is op
    assert (op.error, op.size) == (None, len(CONTENT))
    assert way.watcher.statistics().bytes_written == len(CONTENT)


@pytest.mark.parametrize("copied", [False, True])
async def test_sendfile_needs_no_memory_for_the_file(
    way: Way, tmp_path: Path, copied: bool
) -> None:
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(64 << 20)
        with traced() as grown:
            op = way.sendfile(_Readable(file) if copied else file)
            await until(lambda: op.size > 0)
            assert grown() < 2 << 20
            way.watcher.cancel(op)
            assert await one(way.watcher) is op


class _Readable:
    """A file without a descriptor."""

    def __init__(self, file: Any) -> None:
        self.seek, self.read = file.seek, file.read


async def test_sendfile_of_any_file(way: Way, tmp_path: Path) -> None:
    with (tmp_path / "mixed").open("w+b") as mixed, tempfile.TemporaryFile() as temporary:
        for file in (mixed, temporary):
            file.write(SMALL)
            file.flush()
            await way.sent(way.sendfile(file), SMALL)
            await way.sent(way.sendfile(_Readable(file)), SMALL)
    with tempfile.SpooledTemporaryFile(max_size=100) as spooled:
        spooled.write(SMALL[:50])
        await way.sent(way.sendfile(spooled), SMALL[:50])


@pytest.mark.parametrize("module", [bz2, gzip, lzma])
async def test_sendfile_sends_what_the_file_gives(way: Way, tmp_path: Path, module: Any) -> None:
    """Not what stands in the one below."""
    path = written(tmp_path / "compressed", module.compress(SMALL))
    with module.open(path) as file:
        await way.sent(way.sendfile(file, 5, 4000), SMALL[5:4005])


async def test_sendfile_to_a_pipe(watcher: Watcher, small: Any) -> None:
    source, sink = os.pipe()
    conn = watcher.delegate(sink)
    for file in (small, io.BytesIO(SMALL)):
        op = watcher.sendfile(conn, file, 100)
        assert await one(watcher) is op
        assert op.error is None
        assert os.read(source, 10_000) == SMALL[100:]
    watcher.free(conn)
    os.close(source)
    os.close(sink)


async def test_sendfile_holds_its_file_until_it_has_completed(
    stopped: Way, paths: dict[str, Path]
) -> None:
    with paths["small"].open("rb") as file:
        twin = os.fdopen(os.dup(file.fileno()), "rb")
    op = stopped.sendfile(twin)
    del twin
    await stopped.sent(op, SMALL)
    op.file.close()  # type: ignore[attr-defined]


# --- Order ----------------------------------------------------------------------------------------


async def test_S3_sendfile_keeps_its_place_among_writes(
    stopped: Way, source: Callable[[bytes], Any]
) -> None:
    file, other = source(SMALL), io.BytesIO(b"other")
    requests = [
        stopped.write(b"first"),
        stopped.sendfile(file, 0, 3000),
        stopped.sendfile(other),
        stopped.watcher.writev(stopped.conn, [b"be", b"tween"]),
        stopped.write(b"two"),
        stopped.write(b"small"),
        stopped.sendfile(file, 3000),
        stopped.write(b"last"),
    ]
    read = stopped.watcher.read(stopped.conn)
    stopped.peer.sendall(b"the other direction")
    assert await one(stopped.watcher) is read
    await stopped.arrives(b"first%sotherbetweentwosmall%slast" % (SMALL[:3000], SMALL[3000:]))
    assert await collect(stopped.watcher, 8) == requests
    assert all(op.error is None for op in requests)


async def test_S3_shutdown_behind_a_sendfile(way: Way, large: Any) -> None:
    requests = [way.sendfile(large), way.watcher.shutdown(way.conn)]
    assert await drained(way.peer) == CONTENT
    assert await collect(way.watcher, 2) == requests


async def test_drain_waits_for_a_sendfile(way: Way, large: Any) -> None:
    op = way.sendfile(large)
    draining = asyncio.ensure_future(way.watcher.drain())
    await settle(3)
    assert not draining.done()
    await way.sent(op, CONTENT)
    await asyncio.wait_for(draining, 10)


async def test_D3_sendfile_leaves_others_their_turn(watcher: Watcher, large: Any) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        op = watcher.sendfile(conn, large)
        other, other_peer = tcp_pair()
        with other_peer:
            read = watcher.read(other)
            other_peer.sendall(b"meanwhile")
            assert await one(watcher) is read
            assert not op.completed
            watcher.free(read.conn)
        watcher.free(conn)
        assert await one(watcher) is op


# --- What ends it ---------------------------------------------------------------------------------


def by_cancel(way: Way, op: Operation) -> None:
    assert way.watcher.cancel(op)
    assert not way.watcher.cancel(op)


def by_waiting(way: Way, op: Operation) -> None:
    """By its timeout, which all these requests have."""


CUTS: dict[str, tuple[Callable[[Way, Operation], None], float, type[Exception]]] = {
    "cancel": (by_cancel, 10, OperationCancelledError),
    "deadline": (by_waiting, 0.02, DeadlineExceededError),
}


@pytest.mark.parametrize("how", CUTS)
async def test_T3_sendfile_cut_after_a_part_takes_those_behind_with_it(
    way: Way, source: Callable[[bytes], Any], how: str
) -> None:
    cut, timeout, error = CUTS[how]
    file = source(CONTENT)
    torn = way.sendfile(file, timeout=timeout)
    behind = [way.write(b"behind"), way.sendfile(file), way.sendfile(io.BytesIO(b"x"), timeout=10)]
    cut(way, torn)
    await until(lambda: torn.completed)
    behind.append(way.sendfile(file, 0, 3))
    assert await collect(way.watcher, 5) == [torn, *behind]
    assert type(torn.error) is error
    assert 0 < torn.size < len(CONTENT)
    for op in behind:
        assert op.size == 0
        assert type(op.error) is OperationCancelledError
        assert op.error.__cause__ is torn.error
    after = way.sendfile(file, 7, 10)
    await way.arrives(CONTENT[: torn.size] + CONTENT[7:17])
    assert await one(way.watcher) is after


async def test_T3_sendfile_whose_file_ends_early_takes_those_behind_with_it(
    stopped: Way, source: Callable[[bytes], Any]
) -> None:
    torn, behind = stopped.sendfile(source(SMALL), 0, 5001), stopped.write(b"behind")
    await stopped.arrives(SMALL)
    assert await collect(stopped.watcher, 2) == [torn, behind]
    assert type(torn.error) is EndOfStreamError
    assert torn.size == 5000
    assert type(behind.error) is OperationCancelledError
    assert behind.error.__cause__ is torn.error


@pytest.mark.parametrize("how", CUTS)
async def test_S3_sendfile_cut_before_its_turn_leaves_the_others_alone(
    stopped: Way, small: Any, how: str
) -> None:
    cut, timeout, error = CUTS[how]
    requests = [stopped.sendfile(small, 0, 10), stopped.sendfile(small, 10, 10, timeout=timeout)]
    requests.append(stopped.sendfile(small, 20, 10))
    cut(stopped, requests[1])
    assert await one(stopped.watcher) is requests[1]
    assert type(requests[1].error) is error
    assert requests[1].size == 0
    await stopped.arrives(SMALL[:10] + SMALL[20:30])
    assert await collect(stopped.watcher, 2) == [requests[0], requests[2]]


async def test_T1_sendfile_whose_deadline_is_past_is_attempted_once(
    way: Way, source: Callable[[bytes], Any]
) -> None:
    file = source(CONTENT)
    await way.sent(way.sendfile(file, 0, 100, timeout=0), CONTENT[:100])
    op = way.sendfile(file, deadline=asyncio.get_running_loop().time())
    assert await one(way.watcher) is op
    assert type(op.error) is DeadlineExceededError
    assert 0 < op.size < len(CONTENT)
    await way.arrives_and_ends(CONTENT[: op.size])


async def test_T1_sendfile_past_its_deadline_behind_another_is_not_sent(
    stopped: Way, small: Any
) -> None:
    first, past = stopped.write(b"first"), stopped.sendfile(small, timeout=0)
    assert await one(stopped.watcher) is past
    assert type(past.error) is DeadlineExceededError
    await stopped.sent(first, b"first")


@pytest.mark.parametrize("whole", [False, True])
async def test_O2_D4_sendfile_completes_when_its_connection_is_closed(
    way: Way, source: Callable[[bytes], Any], whole: bool
) -> None:
    file = source(CONTENT)
    requests = [way.sendfile(file), way.sendfile(file, timeout=10)]
    await until(lambda: requests[0].size > 0)
    assert way.watcher.pending(way.conn).requests == 2
    if whole:
        way.watcher.close()
    else:
        way.watcher.free(way.conn)
    assert await collect(way.watcher, 2) == requests
    error = WatcherClosedError if whole else ConnectionFreedError
    assert [type(op.error) for op in requests] == [error] * 2
    assert 0 < requests[0].size < len(CONTENT)
    assert requests[1].size == 0
    assert await drained(way.peer) == CONTENT[: requests[0].size]


async def test_D1_sendfile_and_a_cancelled_wait_io(stopped: Way, small: Any) -> None:
    op = stopped.sendfile(small)
    waiting = asyncio.ensure_future(stopped.watcher.wait_io())
    await settle(2)
    await stopped.arrives(SMALL)
    waiting.cancel()
    results = []
    with suppress(asyncio.CancelledError):
        results = await waiting
    assert (results or await collect(stopped.watcher, 1)) == [op]


async def test_sendfile_to_a_peer_that_has_reset(watcher: Watcher, source: Any) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    reset(peer)
    await until(lambda: hung_up(conn))
    requests = [watcher.sendfile(conn, source(SMALL)) for _ in range(2)]
    assert await collect(watcher, 2) == requests
    assert [type(op.error) for op in requests] == [ConnectionResetError, BrokenPipeError]
    assert [op.size for op in requests] == [0, 0]
    watcher.read(conn)
    assert type((await one(watcher)).error) is ConnectionResetError
    watcher.free(conn)


async def test_T3_sendfile_torn_by_a_reset(watcher: Watcher, source: Any) -> None:
    ours, peer = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    conn = watcher.delegate(ours)
    torn, behind = watcher.sendfile(conn, source(CONTENT)), watcher.write(conn, b"behind")
    await until(lambda: torn.size > 0)
    reset(peer)
    assert await collect(watcher, 2) == [torn, behind]
    assert type(torn.error) is ConnectionResetError
    assert 0 < torn.size < len(CONTENT)
    assert behind.error.__cause__ is torn.error
    watcher.free(conn)


async def test_S4_sendfile_waits_while_the_system_is_short_of_memory(
    way: Way, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = os.sendfile, 0

    def short(*arguments: int) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return original(*arguments)

    monkeypatch.setattr(os, "sendfile", short)
    op, behind = way.sendfile(small), way.write(b"behind")
    await way.arrives(SMALL + b"behind")
    assert await collect(way.watcher, 2) == [op, behind]
    assert tries in (3, 4)


async def test_sendfile_on_a_freed_connection_is_a_result(way: Way, small: Any) -> None:
    way.watcher.free(way.conn)
    op = way.sendfile(small)
    assert await one(way.watcher) is op
    assert type(op.error) is ConnectionFreedError


# --- Files that fail ------------------------------------------------------------------------------


async def test_sendfile_whose_file_is_closed_meanwhile_fails_alone(
    stopped: Way, source: Callable[[bytes], Any]
) -> None:
    file = source(SMALL)
    before, op, behind = stopped.write(b"be"), stopped.sendfile(file), stopped.write(b"hind")
    file.close()
    await stopped.arrives(b"behind")
    assert await collect(stopped.watcher, 3) == [before, op, behind]
    assert type(op.error) is ValueError
    assert (op.size, behind.error) == (0, None)


async def test_T3_sendfile_whose_file_is_closed_in_the_middle_is_torn(
    way: Way, source: Callable[[bytes], Any]
) -> None:
    file = source(CONTENT)
    op, behind = way.sendfile(file), way.write(b"behind")
    await until(lambda: op.size > 0)
    file.close()
    received = await receive(way.peer, op.size)
    assert await collect(way.watcher, 2) == [op, behind]
    assert type(op.error) is ValueError
    assert behind.error.__cause__ is op.error
    await way.arrives_and_ends(CONTENT[len(received) : op.size])


async def test_sendfile_of_a_file_that_shrinks_meanwhile(way: Way, tmp_path: Path) -> None:
    with written(tmp_path / "shrinks", CONTENT).open("r+b") as file:
        op = way.sendfile(file)
        await until(lambda: op.size > 0)
        file.truncate(10)
        received = await receive(way.peer, op.size)
        assert await one(way.watcher) is op
        assert op.error is None
        await way.arrives_and_ends(CONTENT[len(received) : op.size])


class _Odd:
    """A file that answers as it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> Any:
        answer = self.answers.pop(0) if self.answers else b""
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (5, TypeError),
        (OSError(errno.EIO, "the disk"), OSError),
        (BlockingIOError(errno.EAGAIN, "not now"), BlockingIOError),
        (ZeroDivisionError("whatever"), ZeroDivisionError),
    ],
    ids=["text", "none", "number", "disk", "blocking", "bug"],
)
async def test_sendfile_whose_file_cannot_be_read_fails_alone(
    stopped: Way, answer: Any, error: type[Exception]
) -> None:
    bad, behind = stopped.sendfile(_Odd(answer)), stopped.write(b"behind")
    await stopped.arrives(b"behind")
    assert await collect(stopped.watcher, 2) == [bad, behind]
    assert type(bad.error) is error
    assert bad.error.__traceback__ is None
    assert (bad.size, behind.error) == (0, None)
    # Nothing of it is taken for the connection's.
    stopped.peer.sendall(b"alive")
    stopped.watcher.read(stopped.conn)
    assert (await one(stopped.watcher)).data == b"alive"


async def test_sendfile_of_a_file_that_gives_little_at_a_time(way: Way) -> None:
    await way.sent(way.sendfile(_Odd(b"a", b"bc", b"", b"never")), b"abc")
    op = way.sendfile(_Odd(b"a", b"bc"), 0, 10)
    assert await one(way.watcher) is op
    assert type(op.error) is EndOfStreamError
    assert op.size == 3


async def test_sendfile_never_sends_more_than_count(way: Way) -> None:
    """Whatever the file gives."""
    op = way.sendfile(_Odd(b"more than was asked for", b"and more", b"and more"), 0, 4)
    assert await one(way.watcher) is op
    assert (op.error, op.size) == (None, 4)
    await way.arrives_and_ends(b"more")


async def test_S1_sendfile_whose_file_submits_while_it_is_read(way: Way) -> None:
    class Submitting(_Odd):
        def read(self, size: int) -> Any:
            requests.append(way.write(b"<from within>"))
            return super().read(size)

    requests: list[Operation] = []
    op = way.sendfile(Submitting(b"a", b"b"), 0, 2)
    await way.arrives(b"ab<from within><from within>")
    assert await collect(way.watcher, 3) == [op, *requests]


async def test_sendfile_of_a_file_opened_for_writing_alone_is_a_result(
    way: Way, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as file:
        op = way.sendfile(file)
        assert await one(way.watcher) is op
        assert isinstance(op.error, OSError)
        assert op.size == 0
    await way.sent(way.write(b"works"), b"works")


async def test_sendfile_of_what_cannot_seek_is_a_result(way: Way) -> None:
    source, sink = os.pipe()
    with os.fdopen(source, "rb") as file:
        os.write(sink, b"in a pipe")
        op = way.sendfile(file)
        assert await one(way.watcher) is op
        assert isinstance(op.error, OSError)
        assert op.size == 0
    os.close(sink)


# --- Misuse ---------------------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = {
    "count of 0": ((0, 0), {}, EmptyBufferError),
    "negative offset": ((-1,), {}, ValueError),
    "negative count": ((0, -1), {}, ValueError),
    "offset as text": (("0",), {}, TypeError),
    "offset with a fraction": ((1.0,), {}, TypeError),
    "offset of none": ((None,), {}, TypeError),
    "truth as offset": ((True,), {}, TypeError),
    "truth as count": ((0, True), {}, TypeError),
    "count with a fraction": ((0, 1.5), {}, TypeError),
    "both times": ((), {"timeout": 1, "deadline": 1}, ValueError),
    "negative time": ((), {"timeout": -1}, ValueError),
    "no number": ((), {"deadline": float("nan")}, ValueError),
    "time as text": ((), {"timeout": "1"}, TypeError),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
async def test_S2_sendfile_misused_raises_and_changes_nothing(
    way: Way, small: Any, case: str
) -> None:
    arguments, options, error = BAD_ARGUMENTS[case]
    sock, other = tcp_pair()
    before = way.watcher.statistics()
    with sock, other:
        for conn in (way.conn, sock):
            with pytest.raises(error):
                way.watcher.sendfile(conn, small, *arguments, **options)
        assert way.watcher.statistics() == before
        sock.sendall(b"still its owner's")
    await way.sent(way.sendfile(small), SMALL)


@pytest.mark.parametrize("file", [5, "path", b"bytes", None, object(), [b"x"]])
async def test_S2_sendfile_of_what_is_no_file_raises(way: Way, file: Any) -> None:
    before = way.watcher.statistics()
    with pytest.raises(TypeError):
        way.sendfile(file)
    assert way.watcher.statistics() == before


async def test_S2_sendfile_of_a_text_file_raises(way: Way, paths: dict[str, Path]) -> None:
    before = way.watcher.statistics()
    with paths["small"].open(encoding="latin-1") as file:
        for text in (file, io.StringIO("text"), io.TextIOWrapper(io.BytesIO(b"text"), "ascii")):
            with pytest.raises(ValueError, match="text"):
                way.sendfile(text)
    assert way.watcher.statistics() == before


async def test_S2_sendfile_of_a_closed_file_raises(
    way: Way, source: Callable[[bytes], Any]
) -> None:
    file = source(SMALL)
    file.close()
    before = way.watcher.statistics()
    with pytest.raises(ValueError, match="closed"):
        way.sendfile(file)
    assert way.watcher.statistics() == before


async def test_S2_sendfile_on_what_is_no_stream_raises(way: Way, small: Any, poller: str) -> None:
    ours, peer = unix_pair(socket.SOCK_DGRAM)
    listener = socket.create_server(("127.0.0.1", 0))
    before = way.watcher.statistics()
    with ours, peer, listener:
        for target in (ours, listener, small, 3.5):
            with pytest.raises(UnsupportedConnectionError):
                way.watcher.sendfile(target, small)
        ours.send(b"still its owner's")
    assert way.watcher.statistics() == before
    other = Watcher(poller=poller)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedConnectionError, match="another watcher"):
        other.sendfile(way.conn, small)
    other.close()
    with pytest.raises(WatcherClosedError):
        other.sendfile(way.conn, small)


async def test_O1_sendfile_delegates_a_socket_on_the_spot(watcher: Watcher, small: Any) -> None:
    ours, peer = tcp_pair()
    with peer:
        assert watcher.sendfile(ours, small) is await one(watcher)
        assert await receive(peer, 5000) == SMALL
        assert ours.fileno() == -1
        watcher.free(ours)


async def test_sendfile_leaves_no_descriptor(poller: str, paths: dict[str, Path]) -> None:
    before = open_descriptors()
    async with Watcher(poller=poller) as watcher:  # type: ignore[arg-type]
        ours, peer = small_pair()
        with peer, paths["large"].open("rb") as file:
            watcher.sendfile(ours, file)
            watcher.sendfile(ours, io.BytesIO(CONTENT))
    assert open_descriptors() == before
