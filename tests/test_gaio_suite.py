"""Each behaviour that the test suite of gaio (the Go library) proves, at the same scale.

What needs thousands of connections has its clients in a second process, ``load_client.py``, which
sends random content and compares every byte. Small scales run over the whole matrix; large ones
over both loops and both pollers, debug mode off.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import io
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    EndOfStreamError,
    Operation,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.support import collect, one, reset, tcp_pair

MIB = 1024 * 1024
LOAD_CLIENT = Path(__file__).with_name("load_client.py")
BACKLOG = 4096
PATIENCE = 100.0

debug_off = pytest.mark.parametrize(
    "poller", [("epoll", False), ("loop", False)], ids=["epoll", "loop"], indirect=True
)


class EchoServer:
    """An echo server on a watcher, the shape of gaio's: it reads again once the write is done.

    ``timeout`` is for the first read of each connection. Where that read gets its deadline, the
    connection is read again without one: it must still be usable.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        buffer: Callable[[], bytearray | None] = lambda: None,
        timeout: float | None = None,
    ) -> None:
        self.accepted = 0
        self.expired = 0
        self.ended: collections.Counter[type] = collections.Counter()
        self._closed = False
        self._watcher = watcher
        self._buffer = buffer
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._progress = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.address = listener.getsockname()
        watcher.accept(listener, multishot=True)

    async def run(self) -> None:
        async for results in self._watcher:
            for op in results:
                if not self._closed:
                    self._handle(op)
            self._progress.set()

    def close(self) -> None:
        self._closed = True
        self._watcher.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what ``condition`` says; it is looked at after each batch."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._progress.clear()
                await self._progress.wait()

    def _handle(self, op: Operation) -> None:
        if op.error is not None:
            self._failed(op)
        elif op.type is OpType.ACCEPT:
            self.accepted += 1
            assert op.accepted is not None
            self._read_first(op.accepted)
        elif op.type is OpType.READ:
            self._watcher.write(op.conn, op.data)
        else:
            self._watcher.read(op.conn, self._buffer())

    def _read_first(self, conn: Connection) -> None:
        if self._timeout is None:
            self._watcher.read(conn, self._buffer())
        else:
            due = self._loop.time() + self._timeout
            self._watcher.read(conn, self._buffer(), deadline=due, context=due)

    def _failed(self, op: Operation) -> None:
        if isinstance(op.error, DeadlineExceededError):
            assert self._loop.time() >= op.context, "a deadline came early"
            self.expired += 1
            self._watcher.read(op.conn, self._buffer())
        else:
            self.ended[type(op.error)] += 1
            self._watcher.free(op.conn)


@contextlib.asynccontextmanager
async def serving(
    watcher: Watcher,
    *,
    buffer: Callable[[], bytearray | None] = lambda: None,
    timeout: float | None = None,
) -> AsyncIterator[EchoServer]:
    server = EchoServer(watcher, buffer=buffer, timeout=timeout)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        yield server
        server.close()


class Clients:
    """The clients of the second process; see ``load_client.py`` for what they can be asked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.fspath(LOAD_CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            self._process.kill()  # it may be busy, and a thread may be waiting for its answer
        await asyncio.to_thread(self._process.__exit__, None, None, None)

    async def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        answer = await asyncio.to_thread(self._exchange, {"do": do, **arguments})
        assert "error" not in answer, answer["error"]
        return answer

    def _exchange(self, command: dict[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the clients are gone"}
        return answer

    async def connect(self, server: EchoServer, count: int) -> None:
        """``count`` connections; in waves, lest they overflow the listener's backlog."""
        wave = min(1024, backlog())
        for begin in range(0, count, wave):
            end = min(begin + wave, count)
            await self.ask("connect", address=server.address, count=end - begin)
            await server.until(lambda end=end: server.accepted == end)  # type: ignore[misc]

    async def echo(self, count: int, size: int) -> None:
        answer = await self.ask("echo", size=size)
        assert answer == {"bytes": count * size}

    async def reset(self, server: EchoServer, count: int) -> None:
        """Every client sends a RST, and on every connection the server gets to know it as one."""
        await self.ask("reset")
        await server.until(lambda: server.ended.total() == count)
        assert server.ended == {ConnectionResetError: count}


def backlog() -> int:
    """What the system allows for a backlog, where it can be known."""
    try:
        return min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    except OSError:
        return 128


@pytest.fixture
def room_for() -> Iterator[Callable[[int], None]]:
    """Raise the limit of open files for a number of connections, or skip where it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def room_for(connections: int) -> None:
        in_use = len(os.listdir("/proc/self/fd"))
        if hard != resource.RLIM_INFINITY and hard < connections + in_use + 16:
            pytest.skip(f"{connections} connections need more than {hard} open files (ulimit -Hn)")

    yield room_for
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def received(peer: socket.socket, count: int) -> bytes:
    """Exactly ``count`` bytes from a socket of the test's own; fewer if the peer ends first."""
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    data = bytearray()
    async with asyncio.timeout(10):
        while len(data) < count and (chunk := await loop.sock_recv(peer, count - len(data))):
            data += chunk
    return bytes(data)


@contextlib.contextmanager
def connected(watcher: Watcher) -> Iterator[tuple[Connection, socket.socket]]:
    """A TCP connection: one end delegated, the other the test's own."""
    sock, peer = tcp_pair()
    with peer, contextlib.closing(watcher.delegate(sock)) as conn:
        yield conn, peer


# Echo ----------------------------------------------------------------------------------------


async def test_echo_through_a_one_byte_buffer(watcher: Watcher) -> None:
    async with serving(watcher, buffer=lambda: bytearray(1)) as server:
        with socket.create_connection(server.address) as client:
            client.sendall(b"hello world")
            assert await received(client, 11) == b"hello world"
        await server.until(lambda: bool(server.ended))
        assert server.ended == {EndOfStreamError: 1}


async def test_both_directions_of_one_connection(watcher: Watcher, poller: str) -> None:
    async with serving(watcher) as server, Watcher(poller=poller) as clients:
        conn = clients.delegate(socket.create_connection(server.address))
        written = clients.write(conn, b"hello world")
        read = clients.read(conn)
        assert await collect(clients, 2) == [written, read]
        assert (written.error, written.size) == (None, 11)
        assert (read.error, read.size, read.data) == (None, 11, b"hello world")


async def echo_in_one_stream(watcher: Watcher, size: int) -> None:
    async with serving(watcher, buffer=lambda: bytearray(65536)) as server, Clients() as clients:
        await clients.connect(server, 1)
        await clients.echo(1, size)
        await clients.reset(server, 1)
    statistics = watcher.statistics()
    assert (statistics.bytes_read, statistics.bytes_written) == (size, size)


async def test_a_mebibyte_through_one_connection(watcher: Watcher) -> None:
    await echo_in_one_stream(watcher, MIB)


@pytest.mark.heavy
@debug_off
async def test_100_mebibytes_through_one_connection(watcher: Watcher) -> None:
    await echo_in_one_stream(watcher, 100 * MIB)


async def write_and_read_full(watcher: Watcher, poller: str, size: int) -> None:
    """One write and one read_full, full duplex: the echo comes while the rest is still sent."""
    sent, buffer = os.urandom(size), bytearray(size)
    async with serving(watcher) as server, Watcher(poller=poller) as clients:
        conn = clients.delegate(socket.create_connection(server.address))
        read = clients.read_full(conn, buffer)
        written = clients.write(conn, sent)
        assert await collect(clients, 2, within=PATIENCE) == [written, read]
    assert (written.type, written.error, written.size) == (OpType.WRITE, None, size)
    assert (read.type, read.error, read.size) == (OpType.READ, None, size)
    assert buffer == sent


async def test_S4_write_and_read_full_in_full_duplex(watcher: Watcher, poller: str) -> None:
    await write_and_read_full(watcher, poller, 4 * MIB)


@pytest.mark.heavy
@debug_off
async def test_S4_write_and_read_full_of_100_mebibytes(watcher: Watcher, poller: str) -> None:
    await write_and_read_full(watcher, poller, 100 * MIB)


# Many connections ----------------------------------------------------------------------------


def without_buffer() -> None:
    return None


def one_in_thirteen_without_buffer() -> bytearray | None:
    return bytearray(1024) if random.randrange(13) else None


async def echo_on_many(
    watcher: Watcher,
    count: int,
    size: int,
    buffer: Callable[[], bytearray | None] = without_buffer,
) -> None:
    """All connections open at once, two echoes at once on each, and a RST as the end of each."""
    async with serving(watcher, buffer=buffer) as server, Clients() as clients:
        await clients.connect(server, count)
        assert watcher.statistics().connections == count + 1  # and the listener
        await clients.echo(count, size)
        await clients.echo(count, size)
        await clients.reset(server, count)
    statistics = watcher.statistics()
    assert (statistics.connections, statistics.pending) == (0, 0)
    assert (statistics.bytes_read, statistics.bytes_written) == (2 * count * size, 2 * count * size)


@pytest.mark.parametrize("size", [1024, 16])
@pytest.mark.parametrize("count", [1024, 2048])
async def test_echo_on_thousands_of_connections(
    watcher: Watcher, room_for: Callable[[int], None], count: int, size: int
) -> None:
    room_for(count)
    await echo_on_many(watcher, count, size)


@pytest.mark.heavy
@debug_off
@pytest.mark.parametrize("size", [1024, 16])
@pytest.mark.parametrize("count", [4096, 8192, 10240, 12288])
async def test_echo_on_many_thousands_of_connections(
    watcher: Watcher, room_for: Callable[[int], None], count: int, size: int
) -> None:
    room_for(count)
    await echo_on_many(watcher, count, size)


async def test_B1_reads_with_and_without_buffers_mix(
    watcher: Watcher, room_for: Callable[[int], None]
) -> None:
    room_for(1024)
    await echo_on_many(watcher, 1024, 1024, one_in_thirteen_without_buffer)


@pytest.mark.heavy
@debug_off
@pytest.mark.parametrize("buffer", [without_buffer, one_in_thirteen_without_buffer])
async def test_B1_reads_without_buffers_on_ten_thousand_connections(
    watcher: Watcher,
    room_for: Callable[[int], None],
    buffer: Callable[[], bytearray | None],
) -> None:
    room_for(10240)
    await echo_on_many(watcher, 10240, 1024, buffer)


async def test_P2_clients_and_server_on_two_watchers_of_one_loop(
    watcher: Watcher, poller: str, room_for: Callable[[int], None]
) -> None:
    count, size = 1024, 1024
    room_for(2 * count)
    async with serving(watcher) as server, Watcher(poller=poller) as clients:
        for _ in range(count):
            conn = clients.delegate(socket.create_connection(server.address))
            conn.context = os.urandom(size)
            clients.write(conn, conn.context)
            clients.read_full(conn, bytearray(size))
        results = await collect(clients, 2 * count)
        reads = [op for op in results if op.type is OpType.READ]
        assert len(reads) == count
        assert all(op.error is None for op in results)
        assert all(op.buffer == op.context for op in reads)


# Deadlines -----------------------------------------------------------------------------------


async def test_T2_a_read_gets_its_deadline(watcher: Watcher) -> None:
    due = asyncio.get_running_loop().time() + 0.05
    with connected(watcher) as (conn, peer):
        op = watcher.read(conn, deadline=due)
        assert await one(watcher) is op
        assert asyncio.get_running_loop().time() >= due
        assert isinstance(op.error, DeadlineExceededError)
        assert op.size == 0

        again = watcher.read(conn)
        peer.sendall(b"late")
        assert await one(watcher) is again
        assert again.data == b"late"


async def test_T2_a_write_gets_its_deadline(watcher: Watcher) -> None:
    """The peer does not read: part of the data is sent, the size says how much."""
    data = os.urandom(16 * MIB)
    due = asyncio.get_running_loop().time() + 0.05
    with connected(watcher) as (conn, peer):
        op = watcher.write(conn, data, deadline=due)
        assert await one(watcher) is op
        assert asyncio.get_running_loop().time() >= due
        assert isinstance(op.error, DeadlineExceededError)
        assert 0 < op.size < len(data)

        again = watcher.write(conn, b"end")
        assert await received(peer, op.size + 3) == data[: op.size] + b"end"
        assert await one(watcher) is again
        assert again.error is None


async def deadlines_on_many(watcher: Watcher, count: int, timeout: float) -> None:
    """Idle connections all get their deadline, never early, and can be used afterwards."""
    async with serving(watcher, timeout=timeout) as server, Clients() as clients:
        await clients.connect(server, count)
        await server.until(lambda: server.expired == count)
        await clients.echo(count, 16)
        await clients.reset(server, count)
        assert server.expired == count


@pytest.mark.parametrize("count", [1024, 2048])
async def test_T2_thousands_of_idle_connections_get_their_deadlines(
    watcher: Watcher, room_for: Callable[[int], None], count: int
) -> None:
    room_for(count)
    await deadlines_on_many(watcher, count, 0.1)


@pytest.mark.heavy
@debug_off
@pytest.mark.parametrize("count", [1024, 2048, 4096, 8192])
async def test_T2_many_thousands_of_idle_connections_get_their_deadlines(
    watcher: Watcher, room_for: Callable[[int], None], count: int
) -> None:
    room_for(count)
    await deadlines_on_many(watcher, count, 1.0)


# Submitting ----------------------------------------------------------------------------------


async def test_S2_an_empty_buffer_is_refused(watcher: Watcher) -> None:
    with connected(watcher) as (conn, _):
        for submit in (
            lambda: watcher.write(conn, b""),
            lambda: watcher.write(conn, b"", timeout=1.0),
            lambda: watcher.write(conn, b"", silent=True),
            lambda: watcher.read(conn, bytearray()),
            lambda: watcher.read_full(conn, bytearray(), timeout=1.0),
        ):
            with pytest.raises(EmptyBufferError):
                submit()
        assert watcher.statistics().submitted == 0


async def test_S2_what_is_no_connection_is_refused(watcher: Watcher) -> None:
    with contextlib.ExitStack() as stack:
        pipe = [stack.enter_context(os.fdopen(fd, "r+b", buffering=0)) for fd in os.pipe()]
        file = stack.enter_context(tempfile.TemporaryFile())
        for thing in (None, object(), io.BytesIO(b"data"), file, *pipe):
            unsupported: Any = thing
            with pytest.raises(UnsupportedConnectionError):
                watcher.read(unsupported)
            with pytest.raises(UnsupportedConnectionError):
                watcher.write(unsupported, b"data")
        assert not file.closed
        assert not any(end.closed for end in pipe)
        assert watcher.statistics().submitted == 0


async def test_contexts_come_back_as_the_very_objects(watcher: Watcher) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    of_accept, of_read, of_read_full, of_write, of_conn = ([number] for number in range(5))
    accept = watcher.accept(listener, context=of_accept)
    with socket.create_connection(accept.conn.sockname) as client:
        assert await one(watcher) is accept
        assert accept.context is of_accept
        assert accept.accepted is not None

        conn = accept.accepted
        conn.context = of_conn
        read = watcher.read(conn, context=of_read)
        read_full = watcher.read_full(conn, bytearray(4), context=of_read_full)
        write = watcher.write(conn, b"data", context=of_write)
        without = watcher.write(conn, b"data")
        client.sendall(b"data")
        await collect(watcher, 3)
        client.sendall(b"data")
        await collect(watcher, 1)
        assert [op.context for op in (read, read_full, write, without)] == [[1], [2], [3], [4]]
        assert read.context is of_read
        assert read_full.context is of_read_full
        assert write.context is of_write
        assert without.context is of_conn
        watcher.free(conn)
        watcher.free(accept.conn)


@pytest.mark.parametrize("cpu", [-1, (os.cpu_count() or 1) + 100])
async def test_affinity_to_a_core_that_does_not_exist_is_refused(
    watcher: Watcher, cpu: int
) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match=str(cpu)):
        watcher.set_affinity(cpu)
    assert os.sched_getaffinity(0) == before


async def test_affinity_pins_the_thread_of_the_loop(watcher: Watcher) -> None:
    before = os.sched_getaffinity(0)
    try:
        watcher.set_affinity(max(before))
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)


# The end of connections and watchers ---------------------------------------------------------


async def test_O2_free_closes_the_connection(watcher: Watcher) -> None:
    sock, peer = tcp_pair()
    with peer:
        op = watcher.write(sock, b"hello")
        assert await one(watcher) is op
        assert watcher.free(op.conn) is True
        assert watcher.free(op.conn) is False
        assert op.conn.closed
        assert watcher.statistics().connections == 0
        assert await received(peer, 10) == b"hello"  # and then the end of the stream
        with pytest.raises(OSError, match="descriptor"):
            sock.recv(10)


async def test_O2_a_read_on_a_freed_connection_says_so(watcher: Watcher) -> None:
    with connected(watcher) as (conn, _):
        watcher.write(conn, b"hello world")
        await one(watcher)
        watcher.free(conn)
        op = watcher.read(conn, bytearray(16))
        assert await one(watcher) is op
        assert isinstance(op.error, ConnectionFreedError)


async def test_S2_a_write_on_a_closed_connection_says_so(watcher: Watcher) -> None:
    with connected(watcher) as (conn, _):
        conn.close()
        op = watcher.write(conn, b"hello world")
        assert await one(watcher) is op
        assert isinstance(op.error, ConnectionFreedError)
        assert op.size == 0


async def test_S2_a_write_on_a_closed_socket_is_refused(watcher: Watcher) -> None:
    with socket.socket() as sock:
        pass
    with pytest.raises(UnsupportedConnectionError):
        watcher.write(sock, b"hello world")
    assert watcher.statistics().submitted == 0


async def test_a_write_on_a_connection_that_the_peer_reset_fails(watcher: Watcher) -> None:
    with connected(watcher) as (conn, peer):
        reset(peer)
        op = None
        async with asyncio.timeout(10):
            while op is None or op.error is None:
                op = watcher.write(conn, b"hello world")
                assert await one(watcher) is op
        assert isinstance(op.error, ConnectionResetError | BrokenPipeError)


async def abandon(watcher: Watcher, count: int) -> list[socket.socket]:
    """Connections that nobody holds once their write is done; what is left are their peers."""
    peers = []
    for _ in range(count):
        sock, peer = tcp_pair()
        peers.append(peer)
        watcher.write(sock, b"x" * 1024)
    await collect(watcher, count)
    return peers


async def see_the_end(peers: list[socket.socket]) -> None:
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.enter_context(peer)
        gc.collect()
        for peer in peers:
            assert await received(peer, 2048) == b"x" * 1024


async def test_O3_connections_that_nobody_holds_are_closed(watcher: Watcher) -> None:
    with pytest.warns(ResourceWarning) as warned:
        await see_the_end(await abandon(watcher, 200))
    assert len(warned) == 200
    assert watcher.statistics().connections == 0


async def test_D4_closing_twice_is_closing_once(poller: str) -> None:
    watcher = Watcher(poller=poller)
    watcher.close()
    watcher.close()


async def test_D4_waiting_after_the_close_says_so(poller: str) -> None:
    watcher = Watcher(poller=poller)
    watcher.close()
    with pytest.raises(WatcherClosedError):
        await watcher.wait_io()
    assert watcher.poll_io() == []
    assert [results async for results in watcher] == []


async def test_S2_submitting_after_the_close_is_refused(poller: str) -> None:
    watcher = Watcher(poller=poller)
    watcher.close()
    with socket.socket() as sock:
        for submit in (
            lambda: watcher.delegate(sock),
            lambda: watcher.read(sock, bytearray(1)),
            lambda: watcher.read_full(sock, bytearray(1)),
            lambda: watcher.write(sock, b"x"),
            lambda: watcher.accept(sock),
        ):
            with pytest.raises(WatcherClosedError):
                submit()
        assert sock.fileno() != -1, "a socket that was refused stays the program's own"
