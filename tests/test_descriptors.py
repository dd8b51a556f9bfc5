"""Descriptors that are no sockets: pipes, FIFOs, ttys, eventfd, timerfd, inotify; and numbers.

They are duplicated. The original stays its owner's, and shares the non-blocking flag.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import resource
import socket
import stat
import struct
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import pytest_asyncio

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    LimitExceededError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import (
    LONG,
    drained,
    identity,
    is_open,
    open_descriptors,
    receive,
    recorded_warnings,
    resource_warnings,
    sealed,
    unread,
    until,
)
from tests.support import collect, one, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

libc = ctypes.CDLL(None, use_errno=True)


@pytest_asyncio.fixture
async def watcher(poller: str) -> AsyncIterator[Watcher]:
    async with sealed(poller) as watcher:
        yield watcher


class Pipe:
    """A pipe of the test's own; its ends are closed with it."""

    def __init__(self, *, path: Path | None = None) -> None:
        if path is None:
            self.reading, self.writing = os.pipe()
        else:
            os.mkfifo(path)
            self.reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.writing = os.open(path, os.O_WRONLY)

    def end_writing(self) -> None:
        os.close(self.writing)
        self.writing = -1

    def end_reading(self) -> None:
        os.close(self.reading)
        self.reading = -1

    def end(self) -> None:
        for number in (self.reading, self.writing):
            if number >= 0:
                os.close(number)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()


@pytest.fixture
def other_pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()


def reader_of(watcher: Watcher, pipe: Pipe) -> Connection:
    """The watcher's alone: the original is closed."""
    conn = watcher.delegate(pipe.reading)
    pipe.end_reading()
    return conn


def writer_of(watcher: Watcher, pipe: Pipe) -> Connection:
    conn = watcher.delegate(pipe.writing)
    pipe.end_writing()
    return conn


def full_writer_of(watcher: Watcher, pipe: Pipe) -> tuple[Connection, int]:
    """One that takes no byte until some are read, and how many."""
    conn = writer_of(watcher, pipe)
    size = 0
    for step in (1 << 16, 1):
        with suppress(BlockingIOError):
            while True:
                size += os.write(conn.fileno(), bytes(step))
    return conn, size


async def receive_from(number: int, count: int, *, step: int = 1 << 16) -> bytes:
    """Exactly so many bytes, with the loop running meanwhile; so many in one read at most."""
    os.set_blocking(number, False)
    received = bytearray()
    async with asyncio.timeout(10):
        while len(received) < count:
            with suppress(BlockingIOError):
                received += os.read(number, min(step, count - len(received)))
            await asyncio.sleep(0)
    return bytes(received)


class Shown:
    """An object that has a descriptor."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def fileno(self) -> Any:
        if isinstance(self.number, Exception):
            raise self.number
        return self.number


# --- Taking over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["number", "object", "file"])
async def test_delegate_serves_both_ends_of_a_pipe(watcher: Watcher, pipe: Pipe, form: str) -> None:
    files: list[BinaryIO] = []

    def source(number: int, mode: str) -> Any:
        if form == "file":
            files.append(os.fdopen(number, mode, buffering=0, closefd=False))
            return files[-1]
        return number if form == "number" else Shown(number)

    reading = watcher.delegate(source(pipe.reading, "rb"))
    writing = watcher.delegate(source(pipe.writing, "wb"))
    reading.context = "the connection's"
    read = watcher.read(reading)
    write = watcher.write(writing, b"through", context="mine")
    assert {id(op) for op in await collect(watcher, 2)} == {id(read), id(write)}
    assert (read.data, read.size, read.error) == (b"through", 7, None)
    assert (read.context, write.context) == ("the connection's", "mine")
    assert (read.conn, read.address, read.truncated) == (reading, None, False)
    assert (write.size, write.error, write.type) == (7, None, OpType.WRITE)
    figures = watcher.statistics()
    assert (figures.bytes_read, figures.bytes_written, figures.connections) == (7, 7, 2)
    assert not any(file.closed for file in files)
    for file in files:
        file.close()


async def test_connection_of_a_pipe_answers_what_a_connection_answers(
    watcher: Watcher, pipe: Pipe
) -> None:
    conn = watcher.delegate(pipe.reading)
    assert conn.fileno() not in (pipe.reading, pipe.writing)
    assert identity(conn.fileno()) == identity(pipe.reading)
    assert (conn.family, conn.type) == (socket.AF_UNSPEC, socket.SOCK_STREAM)
    assert (conn.peername, conn.sockname) == (None, None)
    assert conn.watcher is watcher and not conn.closed
    assert f"fd={conn.fileno()}" in repr(conn)
    assert not os.get_inheritable(conn.fileno())
    with pytest.raises(OSError):
        conn.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with pytest.raises(OSError):
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    assert watcher.delegate(conn) is conn
    conn.close()
    conn.close()
    assert conn.closed and conn.fileno() == -1


async def test_O1_original_stays_the_callers(watcher: Watcher, pipe: Pipe) -> None:
    """It is open after a free and after the watcher's close."""
    conn = watcher.delegate(pipe.reading)
    number = conn.fileno()
    assert watcher.free(conn)
    assert not is_open(number) and is_open(pipe.reading)
    os.write(pipe.writing, b"still")
    assert os.read(pipe.reading, 9) == b"still"
    conn = watcher.delegate(pipe.reading)
    watcher.close()
    assert conn.closed and is_open(pipe.reading)
    os.write(pipe.writing, b"there")
    assert os.read(pipe.reading, 9) == b"there"


async def test_O1_connection_outlives_the_original(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    read = watcher.read(conn)
    with closing_numbers(*os.pipe()):  # the number is somebody else's now
        os.write(pipe.writing, b"x")
        assert await one(watcher) is read
        assert read.data == b"x"


@contextmanager
def closing_numbers(*numbers: int) -> Iterator[None]:
    try:
        yield
    finally:
        for number in numbers:
            os.close(number)


async def test_original_becomes_nonblocking_and_stays_so(watcher: Watcher, pipe: Pipe) -> None:
    """As the docstring of delegate says: the flag belongs to the shared description."""
    for number in (pipe.reading, pipe.writing):
        assert os.get_blocking(number)
        conn = watcher.delegate(number)
        assert not os.get_blocking(number)
        watcher.free(conn)
        assert not os.get_blocking(number)
        os.set_blocking(number, True)
    assert os.get_blocking(pipe.reading)


async def test_O3_connection_that_nobody_holds_is_closed_with_a_warning(
    watcher: Watcher, pipe: Pipe
) -> None:
    with recorded_warnings() as caught:
        watcher.delegate(pipe.reading)
        gc.collect()
    assert len(resource_warnings(caught)) == 1
    assert watcher.statistics().connections == 0
    assert is_open(pipe.reading)


async def test_one_pipe_can_be_delegated_twice(watcher: Watcher, pipe: Pipe) -> None:
    """Two duplicates: one description, and who reads first has it."""
    first, second = watcher.delegate(pipe.reading), watcher.delegate(pipe.reading)
    assert first is not second
    watcher.read(second)
    os.write(pipe.writing, b"x")
    assert (await one(watcher)).conn is second
    watcher.free(second)
    watcher.read(first)
    os.write(pipe.writing, b"y")
    assert (await one(watcher)).data == b"y"


async def test_O5_number_of_a_freed_descriptor_can_be_used_again(watcher: Watcher) -> None:
    """Freed in the moment in which the other end is gone."""
    loop = asyncio.get_running_loop()
    for end in ("reading", "writing"):
        pipe = Pipe()
        if end == "reading":
            conn = reader_of(watcher, pipe)
            watcher.read(conn)
            await settle(2)
            pipe.end_writing()
        else:
            conn, _ = full_writer_of(watcher, pipe)
            watcher.write(conn, b"x")
            await settle(2)
            pipe.end_reading()
        assert (await one(watcher)).error is not None
        number = conn.fileno()
        watcher.free(conn)
        assert not is_open(number)
        ours, theirs = os.pipe()
        os.dup2(ours, number)
        with closing_numbers(*{ours, theirs, number}):
            loop.add_reader(number, int)
            loop.add_writer(number, int)
            loop.remove_reader(number)
            loop.remove_writer(number)


async def test_delegate_without_descriptors_left_raises_and_changes_nothing(
    watcher: Watcher, pipe: Pipe
) -> None:
    before = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(pipe.reading)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            watcher.delegate(pipe.reading)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
    assert open_descriptors() == before
    assert os.get_blocking(pipe.reading)
    assert watcher.statistics().connections == 0


# --- What is refused ------------------------------------------------------------------------------


async def test_S2_what_is_always_ready_is_refused(watcher: Watcher, tmp_path: Path) -> None:
    """epoll(7) refuses them, too. Nothing is left open, and their flags are what they were."""
    plain = tmp_path / "plain"
    plain.write_bytes(b"text")
    for path in (plain, tmp_path, Path("/dev/null"), Path("/dev/zero")):
        number = os.open(path, os.O_RDONLY)
        with closing_numbers(number):
            before = open_descriptors()
            for source in (number, Shown(number)):
                with pytest.raises(UnsupportedConnectionError, match="always ready"):
                    watcher.delegate(source)
            assert open_descriptors() == before
            assert os.get_blocking(number)
    with plain.open("rb") as file:
        with pytest.raises(UnsupportedConnectionError):
            watcher.delegate(file)
        assert file.read() == b"text"
    assert watcher.statistics().connections == 0


async def test_S2_what_is_no_open_descriptor_is_refused(watcher: Watcher, pipe: Pipe) -> None:
    closed = os.dup(pipe.reading)
    file = os.fdopen(os.dup(pipe.reading), "rb")
    file.close()
    os.close(closed)
    things: list[Any] = [closed, -1, -100, 1 << 31, 1 << 63, 1 << 80, True, False]
    things += [None, "0", b"0", 0.0, 1j, [], object(), int, Watcher]
    things += [file]
    for thing in things:
        with pytest.raises(UnsupportedConnectionError):
            watcher.delegate(thing)
    for answer in (-1, closed, 1 << 40, True, "0", None, 1.0, OSError("x"), ValueError("x")):
        with pytest.raises(UnsupportedConnectionError):
            watcher.delegate(Shown(answer))
    assert watcher.statistics().connections == 0


async def test_S2_delegated_descriptor_is_not_delegated_again(watcher: Watcher, pipe: Pipe) -> None:
    conn = watcher.delegate(pipe.reading)
    for source in (conn.fileno(), Shown(conn.fileno())):
        with pytest.raises(UnsupportedConnectionError, match="delegated already"):
            watcher.delegate(source)
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        with pytest.raises(UnsupportedConnectionError, match="delegated already"):
            watcher.delegate(conn.fileno())
        watcher.read(conn)
        client.sendall(b"x")
        assert (await one(watcher)).data == b"x"


async def test_S2_descriptor_has_to_be_delegated_before_requests(
    watcher: Watcher, pipe: Pipe
) -> None:
    for source in (pipe.reading, Shown(pipe.reading)):
        with pytest.raises(UnsupportedConnectionError):
            watcher.read(source)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedConnectionError):
            watcher.write(source, b"x")  # type: ignore[arg-type]
    assert os.get_blocking(pipe.reading)
    assert watcher.statistics().submitted == 0


async def test_S2_delegate_on_a_closed_watcher_raises(watcher: Watcher, pipe: Pipe) -> None:
    watcher.close()
    before = open_descriptors()
    for source in (pipe.reading, Shown(pipe.writing), -1):
        with pytest.raises(WatcherClosedError):
            watcher.delegate(source)
    assert open_descriptors() == before and os.get_blocking(pipe.reading)


async def test_S2_requests_for_sockets_do_not_suit_a_pipe(watcher: Watcher, pipe: Pipe) -> None:
    """What only a socket can do raises, or fails; never is a part of it left out in silence."""
    reading, writing = watcher.delegate(pipe.reading), watcher.delegate(pipe.writing)
    with pytest.raises(UnsupportedConnectionError):
        watcher.accept(reading)
    for submit in (
        lambda: watcher.sendto(writing, b"x", ("127.0.0.1", 9)),
        lambda: watcher.sendmsg(
            writing, [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))]
        ),
    ):
        with pytest.raises(UnsupportedConnectionError):
            submit()
    os.write(pipe.writing, b"x")
    for submit in (
        lambda: watcher.recvmsg(reading, 64),
        lambda: watcher.recvfrom(reading, multishot=True),
        lambda: watcher.shutdown(writing),
        lambda: watcher.connect(writing, "/nowhere"),
    ):
        try:
            op = submit()
        except UnsupportedConnectionError:
            continue
        assert await one(watcher) is op
        assert isinstance(op.error, OSError) and not op.more
        assert op.error.errno == errno.ENOTSOCK
    assert unread_of(pipe.reading) == 1


def unread_of(number: int) -> int:
    return unread(Shown(number))  # type: ignore[arg-type]


# --- Reading a pipe -------------------------------------------------------------------------------


@pytest.mark.parametrize("fifo", [False, True], ids=["pipe", "fifo"])
async def test_O4_pipe_is_read_to_its_end(watcher: Watcher, tmp_path: Path, fifo: bool) -> None:
    pipe = Pipe(path=tmp_path / "fifo" if fifo else None)
    conn = reader_of(watcher, pipe)
    first = watcher.read(conn)
    await settle()
    assert not first.completed
    os.write(pipe.writing, b"data")
    assert await one(watcher) is first and first.data == b"data"
    ops = [watcher.read(conn) for _ in range(3)]
    os.write(pipe.writing, b"last")
    pipe.end_writing()
    assert await collect(watcher, 3) == ops
    assert ops[0].data == b"last"
    assert {type(op.error) for op in ops[1:]} == {EndOfStreamError}


READS: dict[str, Callable[[Watcher, Connection], Operation]] = {
    "read": lambda watcher, conn: watcher.read(conn),
    "into": lambda watcher, conn: watcher.read(conn, bytearray(9)),
    "full": lambda watcher, conn: watcher.read_full(conn, bytearray(4)),
    "until": lambda watcher, conn: watcher.read_until(conn, b"ta"),
    "multishot": lambda watcher, conn: watcher.read(conn, multishot=True),
}

by_each_read = pytest.mark.parametrize("read", READS)


@by_each_read
async def test_fifo_without_a_writer_yet_has_not_ended(
    watcher: Watcher, tmp_path: Path, read: str
) -> None:
    """There read(2) gives nothing, as it does at the end (fifo(7))."""
    os.mkfifo(tmp_path / "fifo")
    number = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    conn = watcher.delegate(number)
    os.close(number)
    READS[read](watcher, conn)
    await settle()
    assert watcher.poll_io() == []
    with open(tmp_path / "fifo", "wb", buffering=0) as writer:
        writer.write(b"data")
        op = await one(watcher)
        assert (op.error, bytes(op.data)) == (None, b"data")
    if not op.more:
        READS[read](watcher, conn)
    assert type((await one(watcher)).error) is EndOfStreamError


@pytest.mark.parametrize("brief", [False, True], ids=["stays", "goes"])
async def test_fifo_gets_its_writer_in_the_moment_of_a_read_of_nothing(
    watcher: Watcher, tmp_path: Path, brief: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    number = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    conn = watcher.delegate(number)
    os.close(number)
    read, writers = os.read, []

    def read_and_open(number: int, room: int) -> bytes:
        data = read(number, room)
        if not writers:
            writers.append(os.open(tmp_path / "fifo", os.O_WRONLY))
            os.write(writers[0], b"data")
            if brief:
                os.close(writers[0])
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read_and_open)
        watcher.read(conn, multishot=True)
    if not brief:
        await settle()
        os.close(writers[0])
    data, end = await collect(watcher, 2)
    assert (data.error, data.data) == (None, b"data")
    assert type(end.error) is EndOfStreamError


@by_each_read
async def test_terminal_that_reads_nothing_at_once_has_not_ended(
    watcher: Watcher, read: str
) -> None:
    """With a MIN and a TIME of zero read(2) gives nothing, not EAGAIN (termios(3))."""
    ours, theirs = os.openpty()
    try:
        tty.setraw(theirs)
        settings = termios.tcgetattr(theirs)
        settings[6][termios.VMIN] = settings[6][termios.VTIME] = 0
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        conn = watcher.delegate(theirs)
        for number in range(3):
            if read != "multishot" or number == 0:
                READS[read](watcher, conn)
            await settle()
            assert watcher.poll_io() == []
            os.write(ours, b"data")
            op = await one(watcher)
            assert (op.error, bytes(op.data)) == (None, b"data")
    finally:
        os.close(ours)
        os.close(theirs)


@by_each_read
async def test_end_that_is_typed_on_a_terminal_is_the_end(watcher: Watcher, read: str) -> None:
    """By a control-D in canonical mode: it shows once, by a read of nothing."""
    ours, theirs = os.openpty()
    try:
        conn = watcher.delegate(theirs)
        READS[read](watcher, conn)
        await settle()
        assert watcher.poll_io() == []
        os.write(ours, b"\x04")
        assert type((await one(watcher)).error) is EndOfStreamError
    finally:
        os.close(ours)
        os.close(theirs)


async def test_fifo_goes_on_with_its_next_writer(watcher: Watcher, tmp_path: Path) -> None:
    """The end of one writer is not the end of all: a FIFO can be opened again."""
    pipe = Pipe(path=tmp_path / "fifo")
    conn = reader_of(watcher, pipe)
    for number in range(3):
        if pipe.writing < 0:
            pipe.writing = os.open(tmp_path / "fifo", os.O_WRONLY)
        read = watcher.read(conn)
        await settle(3)
        os.write(pipe.writing, b"%d" % number)
        assert await one(watcher) is read
        assert read.data == b"%d" % number
        pipe.end_writing()
        watcher.read(conn)
        assert type((await one(watcher)).error) is EndOfStreamError


async def test_S3_reads_of_all_kinds_on_a_pipe(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    ops = [
        watcher.read_until(conn, b"\n"),
        watcher.read(conn, bytearray(2)),
        watcher.read_full(conn, bytearray(4)),
        watcher.read_until(conn, b"\r\n", limit=8),
        watcher.read(conn),
    ]
    for part in (b"li", b"ne\nab", b"cd", b"ef", b"12\r", b"\nrest"):
        os.write(pipe.writing, part)
        await settle(3)
    assert await collect(watcher, 5) == ops
    assert [bytes(op.data) for op in ops] == [b"line\n", b"ab", b"cdef", b"12\r\n", b"rest"]
    assert {op.error for op in ops} == {None}


async def test_pipe_ends_within_a_read(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    until_, full = watcher.read_until(conn, b"\n"), watcher.read_full(conn, bytearray(8))
    await settle(2)
    os.write(pipe.writing, b"part")
    pipe.end_writing()
    assert await collect(watcher, 2) == [until_, full]
    assert type(until_.error) is EndOfStreamError and until_.size == 0
    assert type(full.error) is EndOfStreamError
    assert (full.size, bytes(full.data)) == (4, b"part")


async def test_read_until_over_its_limit_loses_nothing_of_a_pipe(
    watcher: Watcher, pipe: Pipe
) -> None:
    conn = reader_of(watcher, pipe)
    watcher.read_until(conn, b"\n", limit=4)
    os.write(pipe.writing, b"123456\n")
    assert type((await one(watcher)).error) is LimitExceededError
    watcher.read_until(conn, b"\n")
    assert (await one(watcher)).data == b"123456\n"


async def test_S6_multishot_read_of_a_pipe(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    armed = watcher.read(conn, multishot=True, context="mine")
    for number in range(3):
        os.write(pipe.writing, b"%d" % number)
        shot = await one(watcher)
        assert (shot.data, shot.more, shot.context) == (b"%d" % number, True, "mine")
    pipe.end_writing()
    assert await one(watcher) is armed
    assert type(armed.error) is EndOfStreamError and not armed.more


async def test_S6_multishot_read_of_a_pipe_takes_no_more_than_a_batch(
    poller: str, pipe: Pipe
) -> None:
    async with Watcher(poller=poller, buffer_size=10, batch_size=4) as watcher:
        conn = reader_of(watcher, pipe)
        watcher.read(conn, multishot=True)
        data = bytes(range(200))
        os.write(pipe.writing, data)
        await until(lambda: watcher.statistics().bytes_read >= 40)
        await settle(50)
        assert watcher.statistics().bytes_read == 40
        assert b"".join(op.data for op in await collect(watcher, 20)) == data


async def test_read_from_the_writing_end_fails(watcher: Watcher, pipe: Pipe) -> None:
    """And the other way round: the system's plain error."""
    reading, writing = watcher.delegate(pipe.reading), watcher.delegate(pipe.writing)
    ops = [
        watcher.read(writing),
        watcher.read(writing, bytearray(9)),
        watcher.read_until(writing, b"\n"),
        watcher.read(writing, multishot=True),
        watcher.write(reading, b"x"),
        watcher.write(reading, bytearray(b"x")),
        watcher.writev(reading, [b"x", b"y"]),
        watcher.write(reading, b"x", silent=True),
    ]
    assert {id(op) for op in await collect(watcher, len(ops))} == {id(op) for op in ops}
    assert {op.error.errno for op in ops if op} == {errno.EBADF}
    watcher.write(writing, b"fine")
    assert (await one(watcher)).error is None


# --- Writing to a pipe ----------------------------------------------------------------------------


def write_bytes(watcher: Watcher, conn: Connection, data: bytes, **more: Any) -> Operation:
    return watcher.write(conn, data, **more)


def write_parts(watcher: Watcher, conn: Connection, data: bytes, **more: Any) -> Any:
    third = len(data) // 3
    return watcher.writev(conn, [data[:third], b"", bytearray(data[third:])], **more)


WRITES = [write_bytes, write_parts]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("silent", [False, True], ids=["told", "silent"])
async def test_S4_large_write_to_a_slow_reader_goes_whole(
    watcher: Watcher, pipe: Pipe, write: Callable[..., Any], silent: bool
) -> None:
    conn = writer_of(watcher, pipe)
    data = os.urandom(LONG // 4)
    op = write(watcher, conn, data, silent=silent)
    behind = watcher.write(conn, b"behind")
    await settle()
    assert op is not None and not op.completed and 0 < op.size < len(data)
    assert await receive_from(pipe.reading, len(data), step=5000) == data
    results = await collect(watcher, 1 if silent else 2)
    assert results == ([behind] if silent else [op, behind])
    assert (op.size, op.error) == (len(data), None)
    assert os.read(pipe.reading, 99) == b"behind"


async def test_S3_many_queued_writes_to_a_pipe_keep_their_order(
    watcher: Watcher, pipe: Pipe
) -> None:
    """Small ones are sent together, each completes on its own."""
    conn, filler = full_writer_of(watcher, pipe)
    data = [b"%03d " % number for number in range(300)]
    ops = [watcher.write(conn, part) for part in data]
    watcher.writev(conn, [b"the ", b"end"], silent=True)
    await settle()
    assert watcher.poll_io() == []
    assert watcher.pending(conn).queued_bytes == 4 * 300 + 7
    await receive_from(pipe.reading, filler)
    assert await collect(watcher, 300) == ops
    assert {(op.size, op.error) for op in ops} == {(4, None)}
    assert await receive_from(pipe.reading, 1207) == b"".join(data) + b"the end"


async def test_sendfile_to_a_pipe(watcher: Watcher, pipe: Pipe, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "file").write_bytes(data)
    conn = writer_of(watcher, pipe)
    with (tmp_path / "file").open("rb") as file:
        op = watcher.sendfile(conn, file, 1000)
        behind = watcher.write(conn, b"behind")
        assert await receive_from(pipe.reading, len(data) - 1000 + 6) == data[1000:] + b"behind"
        assert await collect(watcher, 2) == [op, behind]
    assert (op.size, op.error) == (len(data) - 1000, None)


async def test_write_to_a_pipe_that_nobody_reads_is_a_broken_pipe(
    watcher: Watcher, pipe: Pipe
) -> None:
    conn = writer_of(watcher, pipe)
    pipe.end_reading()
    for _ in range(2):
        for write in WRITES:
            for silent in (False, True):
                op = write(watcher, conn, b"data", silent=silent)
                assert await one(watcher) is op
                assert (type(op.error), op.size) == (BrokenPipeError, 0)


@pytest.mark.parametrize("write", WRITES)
async def test_T3_write_whose_reader_leaves_takes_with_it_what_stands_behind(
    watcher: Watcher, pipe: Pipe, write: Callable[..., Any]
) -> None:
    conn = writer_of(watcher, pipe)
    torn = write(watcher, conn, bytes(LONG))
    behind = watcher.write(conn, b"behind")
    await settle()
    pipe.end_reading()
    assert await collect(watcher, 2) == [torn, behind]
    assert type(torn.error) is BrokenPipeError and 0 < torn.size < LONG
    assert type(behind.error) is OperationCancelledError
    assert behind.error.__cause__ is torn.error


async def test_reader_sees_the_end_once_every_writer_is_closed(
    watcher: Watcher, pipe: Pipe
) -> None:
    """The duplicate is a writer of its own, and free closes it."""
    conn = watcher.delegate(pipe.writing)
    pipe.end_writing()
    os.set_blocking(pipe.reading, False)
    with pytest.raises(BlockingIOError):
        os.read(pipe.reading, 1)
    watcher.write(conn, b"last")
    watcher.free(conn)
    assert (await one(watcher)).error is None
    assert (os.read(pipe.reading, 9), os.read(pipe.reading, 9)) == (b"last", b"")


# --- Exactly one result ---------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_D1_request_on_a_pipe_that_is_taken_out_of_its_queue(
    watcher: Watcher, pipe: Pipe, other_pipe: Pipe, end: str, position: int
) -> None:
    reading = reader_of(watcher, pipe)
    writing, filler = full_writer_of(watcher, other_pipe)
    error = OperationCancelledError if end == "cancel" else DeadlineExceededError
    times = [{"timeout": 0.01} if end == "deadline" and n == position else {} for n in range(3)]
    reads = [watcher.read(reading, **times[n]) for n in range(3)]
    writes = [watcher.write(writing, b"op%d" % n, **times[n]) for n in range(3)]
    taken = [reads.pop(position), writes.pop(position)]
    if end == "cancel":
        assert all(map(watcher.cancel, taken))
    assert {id(op) for op in await collect(watcher, 2)} == set(map(id, taken))
    assert {(type(op.error), op.size) for op in taken} == {(error, 0)}
    assert not any(map(watcher.cancel, taken))
    for number, read in enumerate(reads):
        os.write(pipe.writing, b"%d" % number)
        assert await one(watcher) is read and read.data == b"%d" % number
    await receive_from(other_pipe.reading, filler)
    assert await collect(watcher, 2) == writes
    left = b"".join(b"op%d" % n for n in range(3) if n != position)
    assert os.read(other_pipe.reading, 99) == left


@pytest.mark.parametrize("way", ["free", "close"])
async def test_O2_end_of_a_pipe_completes_what_is_pending(
    watcher: Watcher, pipe: Pipe, other_pipe: Pipe, way: str
) -> None:
    reading = reader_of(watcher, pipe)
    writing, _ = full_writer_of(watcher, other_pipe)
    reads = [watcher.read(reading), watcher.read_full(reading, bytearray(4))]
    reads += [watcher.read_until(reading, b"\n"), watcher.read(reading, multishot=True)]
    writes = [watcher.write(writing, b"x"), watcher.write(writing, b"x", silent=True)]
    writes += [watcher.writev(writing, [b"x"])]
    numbers = reading.fileno(), writing.fileno()
    if way == "free":
        assert watcher.free(reading) and watcher.free(writing)
        error: type[Exception] = ConnectionFreedError
    else:
        watcher.close()
        error = WatcherClosedError
    results = await collect(watcher, 7)
    assert [op for op in results if op.type is OpType.READ] == reads
    assert [op for op in results if op.type is OpType.WRITE] == writes
    assert {type(op.error) for op in results} == {error}
    assert not any(map(is_open, numbers))


async def test_T1_past_deadline_on_a_pipe_is_attempted_once(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    os.write(pipe.writing, b"there")
    there, late = watcher.read(conn, timeout=0), watcher.read(conn, timeout=0)
    assert watcher.poll_io() == [there, late]
    assert there.data == b"there" and type(late.error) is DeadlineExceededError


async def test_D2_cancelled_wait_io_loses_nothing_of_a_pipe(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    watcher.read(conn, multishot=True)
    data = b"".join(b"%d" % number for number in range(5))
    for number in range(5):
        waiter = asyncio.ensure_future(watcher.wait_io())
        await asyncio.sleep(0)
        os.write(pipe.writing, data[number : number + 1])
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    received = b""
    while len(received) < 5:
        received += b"".join(op.data for op in await watcher.wait_io())
    assert received == data


# --- Hang-ups and relays --------------------------------------------------------------------------


async def test_hangup_of_a_pipe_is_told_at_both_ends(
    watcher: Watcher, pipe: Pipe, other_pipe: Pipe
) -> None:
    """The reader leaves, or the writer does; a pending request is no obstacle."""
    for end in (pipe, other_pipe):
        conn = reader_of(watcher, end) if end is pipe else writer_of(watcher, end)
        op = watcher.notify_hangup(conn, context="mine")
        await settle()
        assert watcher.poll_io() == []
        if end is pipe:
            end.end_writing()
        else:
            end.end_reading()
        assert await one(watcher) is op
        assert (op.type, op.error, op.context) == (OpType.HANGUP, None, "mine")


async def test_relay_from_a_pipe_to_a_socket(watcher: Watcher, pipe: Pipe) -> None:
    conn = reader_of(watcher, pipe)
    server, client = unix_pair()
    client.setblocking(False)
    with client:
        relay = watcher.relay(conn, server)
        data = os.urandom(300_000)
        os.set_blocking(pipe.writing, False)
        sent = 0
        received = bytearray()
        async with asyncio.timeout(10):
            while len(received) < len(data):
                with suppress(BlockingIOError):
                    sent += os.write(pipe.writing, data[sent : sent + 50_000])
                with suppress(BlockingIOError):
                    received += client.recv(50_000)
                await asyncio.sleep(0)
            assert received == data
            pipe.end_writing()
            assert await drained(client) == b""  # the end is passed on
        client.shutdown(socket.SHUT_WR)
        assert await one(watcher) is relay
        assert (relay.error, relay.sizes) == (None, (len(data), 0))


async def test_relay_between_a_tty_and_a_socket(watcher: Watcher) -> None:
    """Both directions, as a terminal server does it."""
    master, slave = os.openpty()
    tty.setraw(slave)
    conn = watcher.delegate(master)
    os.close(master)
    server, client = unix_pair()
    with client, closing_numbers(slave):
        relay = watcher.relay(conn, server)
        client.sendall(b"to the tty")
        assert await receive_from(slave, 10) == b"to the tty"
        os.write(slave, b"and back")
        assert await receive(client, 8) == b"and back"
        watcher.cancel(relay)
        assert await one(watcher) is relay
        assert (type(relay.error), relay.sizes) == (OperationCancelledError, (8, 10))


# --- Ttys, eventfd, timerfd, inotify --------------------------------------------------------------


async def test_tty_is_read_and_written_at_both_sides(watcher: Watcher) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    ours, theirs = watcher.delegate(master), watcher.delegate(slave)
    assert os.isatty(ours.fileno()) and not os.get_blocking(slave)
    os.close(master)
    os.close(slave)
    data = os.urandom(60_000)
    for source, target in ((ours, theirs), (theirs, ours)):
        into = watcher.read_full(target, bytearray(len(data)))
        op = watcher.write(source, data)
        assert {id(one) for one in await collect(watcher, 2)} == {id(op), id(into)}
        assert into.error is op.error is None
        assert into.data == data


@pytest.mark.parametrize("queued", [False, True])
async def test_tty_hangs_up(watcher: Watcher, queued: bool) -> None:
    """Its master gets EIO once no slave is open; its slave an end."""
    master, slave = os.openpty()
    conn = watcher.delegate(master)
    read = watcher.read(conn) if queued else None
    await settle(2)
    os.close(master)
    os.close(slave)
    read = read or watcher.read(conn)
    assert await one(watcher) is read
    assert isinstance(read.error, OSError) and read.error.errno == errno.EIO


async def test_tty_hangs_up_at_its_slave(watcher: Watcher) -> None:
    master, slave = os.openpty()
    conn = watcher.delegate(slave)
    os.close(slave)
    read = watcher.read(conn)
    await settle(2)
    os.close(master)
    assert await one(watcher) is read
    assert type(read.error) is EndOfStreamError
    watcher.write(conn, b"x")
    error = (await one(watcher)).error
    assert isinstance(error, OSError) and error.errno == errno.EIO


async def test_eventfd_counts(watcher: Watcher) -> None:
    number = os.eventfd(0)
    conn = watcher.delegate(number)
    armed = watcher.read(conn, multishot=True)
    for value in (1, 7):
        os.eventfd_write(number, value)
        shot = await one(watcher)
        assert (shot.data, shot.more) == (struct.pack("=Q", value), True)
    watcher.cancel(armed)
    await one(watcher)
    watcher.write(conn, struct.pack("=Q", 5))
    assert (await one(watcher)).error is None
    assert os.eventfd_read(number) == 5
    os.close(number)


async def test_eventfd_that_is_full_lets_a_write_wait(watcher: Watcher) -> None:
    number = os.eventfd(0)
    conn = watcher.delegate(number)
    largest = (1 << 64) - 2
    watcher.write(conn, struct.pack("=Q", largest))
    assert (await one(watcher)).error is None
    waiting = watcher.write(conn, struct.pack("=Q", 3))
    await settle()
    assert watcher.poll_io() == []
    assert os.eventfd_read(number) == largest
    assert await one(watcher) is waiting and waiting.error is None
    assert os.eventfd_read(number) == 3
    os.close(number)


async def test_read_into_too_small_a_buffer_of_an_eventfd_fails(watcher: Watcher) -> None:
    number = os.eventfd(3)
    conn = watcher.delegate(number)
    watcher.read(conn, bytearray(4))
    error = (await one(watcher)).error
    assert isinstance(error, OSError) and error.errno == errno.EINVAL
    watcher.read(conn, bytearray(8))
    assert (await one(watcher)).data == struct.pack("=Q", 3)
    os.close(number)


def timerfd(first: float, interval: float = 0.0) -> int:
    """A timer as a descriptor; Python has it from 3.13 on."""
    number = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
    assert number >= 0, os.strerror(ctypes.get_errno())
    billion = 1_000_000_000
    times = [divmod(round(seconds * billion), billion) for seconds in (interval, first)]
    assert libc.timerfd_settime(number, 0, struct.pack("4l", *times[0], *times[1]), None) == 0
    return int(number)


async def test_timerfd_fires(watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    begin = time.monotonic()
    number = timerfd(0.01, 0.005)
    conn = watcher.delegate(number)
    armed = watcher.read(conn, multishot=True)
    expirations = 0
    async with asyncio.timeout(10):
        while expirations < 3:
            for shot in await watcher.wait_io():
                assert shot.more and shot.size == 8
                expirations += struct.unpack("=Q", shot.data)[0]
    assert time.monotonic() - begin >= 0.01 + 0.005 * (expirations - 1)
    watcher.cancel(armed)
    while not armed.completed or watcher.poll_io():
        pass
    os.close(number)
    quiet = timerfd(60)
    conn = watcher.delegate(quiet)
    due = loop.time() + 0.005
    watcher.read(conn, deadline=due)
    assert type((await one(watcher)).error) is DeadlineExceededError
    os.close(quiet)


async def test_inotify_tells_of_files(watcher: Watcher, tmp_path: Path) -> None:
    number = libc.inotify_init1(os.O_CLOEXEC)
    if number < 0:
        pytest.skip(f"no inotify: {os.strerror(ctypes.get_errno())}")
    in_create = 0x100
    assert libc.inotify_add_watch(number, os.fsencode(tmp_path), in_create) >= 0
    conn = watcher.delegate(number)
    os.close(number)
    watcher.read(conn, multishot=True)
    for name in ("one", "two"):
        (tmp_path / name).touch()
        shot = await one(watcher)
        _, mask, _, length = struct.unpack_from("=iIII", shot.data)
        assert (mask, shot.data[16 : 16 + length].rstrip(b"\0")) == (in_create, name.encode())


# --- Numbers of sockets ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", [int, Shown], ids=["number", "object"])
async def test_number_of_a_socket_is_served_as_a_socket(watcher: Watcher, form: Any) -> None:
    server, client = tcp_pair()
    server.settimeout(None)
    with server, client:
        conn = watcher.delegate(form(server.fileno()))
        assert conn.fileno() != server.fileno() >= 0
        assert (conn.family, conn.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert conn.peername == client.getsockname()
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_blocking(server.fileno())
        assert not os.get_inheritable(conn.fileno())
        read = watcher.read(conn)
        client.sendall(b"x")
        assert await one(watcher) is read and read.data == b"x"
        watcher.free(conn)
        client.sendall(b"y")
        os.set_blocking(server.fileno(), True)
        assert server.recv(9) == b"y"  # the original is open, and its owner's
        server.sendall(b"z")
        assert client.recv(9) == b"z"


async def test_number_of_a_listener_accepts(watcher: Watcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = watcher.delegate(listener.fileno())
        watcher.accept(conn)
        with socket.create_connection(listener.getsockname()):
            assert (await one(watcher)).accepted is not None
        with pytest.raises(UnsupportedConnectionError):
            watcher.read(conn)


async def test_number_of_a_datagram_socket_brings_senders(watcher: Watcher) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        conn = watcher.delegate(ours.fileno())
        watcher.recvfrom(conn)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"", ours.getsockname())
            op = await one(watcher)
            assert (op.data, op.error, op.address[0]) == (b"", None, "127.0.0.1")


async def test_S2_number_of_a_transports_socket_is_refused(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    reader, writer = await asyncio.open_connection(sock=ours)
    number = writer.get_extra_info("socket").fileno()
    before = open_descriptors()
    for source in (number, Shown(number)):
        with pytest.raises(UnsupportedConnectionError, match="transport"):
            watcher.delegate(source)
    assert open_descriptors() == before
    with peer:
        peer.sendall(b"still asyncio's")
        assert await reader.read(99) == b"still asyncio's"
    writer.close()
    await writer.wait_closed()


async def test_delegate_of_a_pipe_leaves_the_callers_own_callbacks_alone(
    watcher: Watcher, pipe: Pipe
) -> None:
    """The original may still be watched by the program itself."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(pipe.reading, seen.set)
    conn = watcher.delegate(pipe.reading)
    watcher.free(conn)
    os.write(pipe.writing, b"x")
    async with asyncio.timeout(10):
        await seen.wait()
    loop.remove_reader(pipe.reading)


async def test_descriptor_of_a_file_type_that_is_none_of_these(watcher: Watcher) -> None:
    """An epoll can be waited for, but not read: the system's error is a result."""
    import select

    with select.epoll() as epoll:
        assert not stat.S_ISSOCK(os.fstat(epoll.fileno()).st_mode)
        conn = watcher.delegate(epoll)
        watcher.read(conn)
        await settle()
        error = (await one(watcher)).error
        assert isinstance(error, OSError) and error.errno == errno.EINVAL
