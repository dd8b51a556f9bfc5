"""adopt(): a connection that asyncio had, with every byte that asyncio had already read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from aiogaio import (
    Connection,
    EndOfStreamError,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import (
    LONG,
    arrived,
    drained,
    half_closed,
    identity,
    open_descriptors,
    ready,
    receive,
    unread,
    until,
)
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]


async def client_of(ours: socket.socket, **options: Any) -> tuple[Any, Any]:
    """Streams on a connected socket, as a client makes them."""
    if ours.family == socket.AF_UNIX:
        return await asyncio.open_unix_connection(sock=ours, **options)
    return await asyncio.open_connection(sock=ours, **options)


@pytest_asyncio.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
async def streams(request: pytest.FixtureRequest, poller: str) -> AsyncIterator[Streams]:
    """A stream's reader and writer, and the peer's socket."""
    ours, peer = request.param()
    reader, writer = await client_of(ours)
    yield reader, writer, peer
    peer.close()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def socket_of(writer: asyncio.StreamWriter | asyncio.Transport) -> Any:
    return writer.get_extra_info("socket")


async def buffered(streams: Streams, data: bytes) -> None:
    """Let the reader hold ``data``, which the peer sends behind a line that is read."""
    reader, _, peer = streams
    peer.sendall(b"line\n" + data)
    assert await reader.readline() == b"line\n"
    await until(lambda: unread(socket_of(streams[1])) == 0)


async def read(watcher: Watcher, conn: Connection, *args: Any) -> bytes:
    """What the next read brings."""
    op = watcher.read(conn, *args)
    assert await one(watcher) is op
    assert op.error is None
    return bytes(op.data)


async def assert_end(watcher: Watcher, conn: Connection) -> None:
    watcher.read(conn)
    assert type((await one(watcher)).error) is EndOfStreamError


async def assert_works(watcher: Watcher, conn: Connection, peer: socket.socket) -> None:
    """Both directions are the watcher's."""
    watcher.write(conn, b"ping")
    assert (await one(watcher)).error is None
    assert await receive(peer, 4) == b"ping"
    peer.sendall(b"pong")
    assert await read(watcher, conn) == b"pong"


async def assert_asyncio_works(streams: Streams) -> None:
    """The streams are as they were."""
    reader, writer, peer = streams
    writer.write(b"ping")
    assert await receive(peer, 4) == b"ping"
    peer.sendall(b"pong\n")
    async with asyncio.timeout(10):
        assert await reader.readline() == b"pong\n"


# --- From a client, from a server, from a transport --------------------------------------------


async def test_adopt_streams(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    names = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    conn = watcher.adopt(writer, reader)
    assert isinstance(conn, Connection)
    assert conn.watcher is watcher
    assert (conn.sockname, conn.peername) == names
    assert watcher.statistics().connections == 1
    await assert_works(watcher, conn, peer)


async def test_adopt_leaves_the_connection_open_when_the_transport_closes(
    watcher: Watcher, streams: Streams
) -> None:
    """One descriptor of it stays, the watcher's own."""
    reader, writer, peer = streams
    before = identity(socket_of(writer).fileno())
    conn = watcher.adopt(writer, reader)
    async with asyncio.timeout(10):
        await writer.wait_closed()
    assert writer.is_closing()
    await until(lambda: [identity(fd) for fd in open_descriptors()].count(before) == 1)
    assert identity(conn.fileno()) == before
    assert not half_closed(peer)
    await assert_works(watcher, conn, peer)
    assert watcher.free(conn)
    assert await drained(peer) == b""


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("where", ["in the handler", "outside"])
async def test_adopt_from_a_server(watcher: Watcher, tmp_path: Any, unix: bool, where: str) -> None:
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"hello\n"
        if where == "in the handler":
            accepted.set_result(watcher.adopt(writer, reader))
        else:
            accepted.set_result((writer, reader))
            await writer.wait_closed()

    path = str(tmp_path / "s")
    if unix:
        server = await asyncio.start_unix_server(handle, path)
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname())
    with peer:
        peer.sendall(b"hello\nrest")
        async with asyncio.timeout(10):
            conn = await accepted
            if where == "outside":
                conn = watcher.adopt(*conn)
            server.close()
            await server.wait_closed()
        assert await read(watcher, conn) == b"rest"
        await assert_works(watcher, conn, peer)


class Recorder(asyncio.Protocol):
    """Writes down what a transport tells."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Exception | None] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)


@pytest_asyncio.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
async def bare(
    request: pytest.FixtureRequest, poller: str
) -> AsyncIterator[tuple[Recorder, socket.socket]]:
    """The protocol of a transport, and the peer's socket."""
    ours, peer = request.param()
    loop = asyncio.get_running_loop()
    create = (
        loop.create_connection if ours.family == socket.AF_INET else loop.create_unix_connection
    )
    _, protocol = await create(Recorder, sock=ours)
    yield protocol, peer
    peer.close()
    protocol.transport.close()
    await until(lambda: bool(protocol.lost))


async def test_adopt_a_transport(watcher: Watcher, bare: tuple[Recorder, socket.socket]) -> None:
    """Its protocol gets what has come before, and then no more than the news of its end."""
    protocol, peer = bare
    peer.sendall(b"before")
    await until(lambda: protocol.data == b"before")
    conn = watcher.adopt(protocol.transport)
    peer.sendall(b"after")
    assert protocol.lost == []  # not within the call
    await until(lambda: bool(protocol.lost))
    assert await read(watcher, conn) == b"after"
    await assert_works(watcher, conn, peer)
    assert protocol.lost == [None]
    assert protocol.data == b"before"


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
async def test_adopt_a_transport_with_data_that_nobody_read(
    watcher: Watcher, bare: tuple[Recorder, socket.socket], paused: bool
) -> None:
    """It has arrived when the transport is adopted, and the loop has not come for it."""
    protocol, peer = bare
    if paused:
        protocol.transport.pause_reading()
        await settle(3)
    peer.sendall(b"data")
    arrived(socket_of(protocol.transport), 4)
    conn = watcher.adopt(protocol.transport)
    await until(lambda: bool(protocol.lost))
    assert protocol.data == b""
    assert await read(watcher, conn) == b"data"


async def test_adopt_keeps_the_options_of_the_socket(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    reader, writer = await client_of(ours)
    with peer:
        conn = watcher.adopt(writer, reader)
        await writer.wait_closed()
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(conn.fileno())
        assert not os.get_blocking(conn.fileno())


# --- What had been read already comes first -------------------------------------------------------


async def _read(watcher: Watcher, conn: Connection) -> list[bytes]:
    return [await read(watcher, conn), await read(watcher, conn)]


async def _read_small(watcher: Watcher, conn: Connection) -> list[bytes]:
    parts = [await read(watcher, conn, bytearray(3)) for _ in range(4)]
    return [b"".join(parts[:2]), b"".join(parts[2:])]


async def _read_full(watcher: Watcher, conn: Connection) -> list[bytes]:
    op = watcher.read_full(conn, bytearray(12))
    await one(watcher)
    return [bytes(op.data[:6]), bytes(op.data[6:])]


async def _armed(watcher: Watcher, conn: Connection) -> list[bytes]:
    armed = watcher.read(conn, multishot=True)
    results = [op.data for op in await collect(watcher, 2)]
    watcher.cancel(armed)
    await one(watcher)
    return results


@pytest.mark.parametrize("reading", [_read, _read_small, _read_full, _armed])
async def test_adopt_bytes_already_read_come_first(
    watcher: Watcher,
    streams: Streams,
    reading: Callable[[Watcher, Connection], Awaitable[list[bytes]]],
) -> None:
    reader, writer, peer = streams
    await buffered(streams, b"123456")
    peer.sendall(b"------")  # asyncio has not read these
    conn = watcher.adopt(writer, reader)
    await until(lambda: unread(conn) == 6)
    assert await reading(watcher, conn) == [b"123456", b"------"]
    await assert_works(watcher, conn, peer)


async def test_adopt_bytes_already_read_are_searched_for_a_separator(
    watcher: Watcher, streams: Streams
) -> None:
    """It may begin in them and end in what comes later."""
    reader, writer, peer = streams
    await buffered(streams, b"one;two\r")
    conn = watcher.adopt(writer, reader)
    ops = [watcher.read_until(conn, b";"), watcher.read_until(conn, b"\r\n"), watcher.read(conn)]
    peer.sendall(b"\nthree")
    assert await collect(watcher, 3) == ops
    assert [op.data for op in ops] == [b"one;", b"two\r\n", b"three"]


async def test_adopt_bytes_already_read_are_done_at_the_call(
    watcher: Watcher, streams: Streams
) -> None:
    """No event of the descriptor tells of them; not even one that is overdue has to wait."""
    reader, writer, _ = streams
    await buffered(streams, b"12")
    conn = watcher.adopt(writer, reader)
    for data in (b"1", b"2"):
        op = watcher.read(conn, bytearray(1), timeout=0)
        assert watcher.poll_io() == [op]
        assert bytes(op.data) == data


async def test_adopt_the_reader_has_nothing_left(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    await buffered(streams, b"rest")
    conn = watcher.adopt(writer, reader)
    await writer.wait_closed()
    assert await reader.read() == b""
    assert reader.at_eof()
    assert await read(watcher, conn) == b"rest"
    await assert_works(watcher, conn, peer)


async def test_adopt_more_than_the_reader_likes_to_hold(watcher: Watcher) -> None:
    """So much that it had stopped the transport; taking it must not make it read on."""
    ours, peer = unix_pair()
    reader, writer = await client_of(ours, limit=1024)
    payload = os.urandom(LONG)
    with peer:
        peer.setblocking(False)
        sent = peer.send(payload)
        await until(lambda: not writer.transport.is_reading())
        sent += peer.send(payload[sent:])
        arrived(socket_of(writer), 1)
        conn = watcher.adopt(writer, reader)
        reading = asyncio.ensure_future(_collect_bytes(watcher, conn, LONG))
        while sent < LONG:
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(payload[sent:])
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await reading == payload
        await writer.wait_closed()
        await assert_works(watcher, conn, peer)


async def _collect_bytes(watcher: Watcher, conn: Connection, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        received += await read(watcher, conn)
    return bytes(received)


@pytest.mark.parametrize("data", [b"", b"rest"], ids=["", "rest"])
async def test_adopt_when_the_end_was_seen_already(
    watcher: Watcher, streams: Streams, data: bytes
) -> None:
    """What was read comes first, and the end after it; the other direction is open still."""
    reader, writer, peer = streams
    peer.sendall(b"line\n" + data)
    peer.shutdown(socket.SHUT_WR)
    assert await reader.readline() == b"line\n"
    await until(lambda: half_closed(socket_of(writer)))
    await settle(10)
    assert reader.at_eof() is not bool(data)  # it was told
    conn = watcher.adopt(writer, reader)
    if data:
        assert await read(watcher, conn) == data
    await assert_end(watcher, conn)
    watcher.write(conn, b"still")
    assert (await one(watcher)).error is None
    assert await receive(peer, 5) == b"still"


async def test_adopt_when_the_own_end_was_sent_already(watcher: Watcher, streams: Streams) -> None:
    """The peer sees it, whenever the loop would have carried it out."""
    reader, writer, peer = streams
    writer.write(b"last")
    writer.write_eof()
    try:
        conn = watcher.adopt(writer, reader)
    except UnsupportedConnectionError:  # it is under way
        await settle(5)
        conn = watcher.adopt(writer, reader)
    await settle(5)
    assert await receive(peer, 4) == b"last"
    await until(lambda: half_closed(peer), within=1)
    peer.sendall(b"data")
    assert await read(watcher, conn) == b"data"


async def test_O4_adopt_and_a_reset(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    reader, writer = await client_of(ours)
    await buffered((reader, writer, peer), b"rest")
    conn = watcher.adopt(writer, reader)
    reset(peer)
    assert await read(watcher, conn) == b"rest"
    watcher.read(conn)
    assert type((await one(watcher)).error) is ConnectionResetError
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_adopt_and_a_hangup(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    await buffered(streams, b"rest")
    conn = watcher.adopt(writer, reader)
    hangup = watcher.notify_hangup(conn)
    await settle(5)
    assert not hangup.completed
    assert await read(watcher, conn) == b"rest"
    peer.close()
    assert await one(watcher) is hangup
    await assert_end(watcher, conn)


async def test_D4_adopted_and_the_watcher_closes(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    await buffered(streams, b"rest")
    watcher.adopt(writer, reader)
    watcher.close()
    await writer.wait_closed()
    ready(peer)
    assert peer.recv(1) == b""


# --- What cannot be adopted, and is as it was -----------------------------------------------------


async def test_S2_adopt_with_bytes_unsent(watcher: Watcher, streams: Streams) -> None:
    """The error says how many, and what to do; what is left is still sent by asyncio."""
    reader, writer, peer = streams
    await buffered(streams, b"rest\n")
    writer.write(bytes(8 * LONG))
    unsent = writer.transport.get_write_buffer_size()
    assert unsent > 0
    with pytest.raises(UnsupportedConnectionError, match=rf"{unsent} bytes.*drain\(\)"):
        watcher.adopt(writer, reader)
    assert watcher.statistics().connections == 0
    assert await reader.readline() == b"rest\n"
    await receive(peer, 8 * LONG)
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()
    await assert_asyncio_works(streams)
    conn = watcher.adopt(writer, reader)  # it works as the error said
    await assert_works(watcher, conn, peer)


async def test_adopt_right_after_writes(watcher: Watcher, streams: Streams) -> None:
    """uvloop sends them when the loop comes to it: nothing may be lost, and nothing come behind."""
    reader, writer, peer = streams
    for number in range(100):
        writer.write(b"%02d" % number)
    try:
        conn = watcher.adopt(writer, reader)
    except UnsupportedConnectionError:
        await writer.drain()
        await until(lambda: writer.transport.get_write_buffer_size() == 0)
        conn = watcher.adopt(writer, reader)
    watcher.write(conn, b"end")
    expected = b"".join(b"%02d" % number for number in range(100)) + b"end"
    assert await receive(peer, 203) == expected
    assert (await one(watcher)).error is None


async def test_S2_adopt_what_is_closing(watcher: Watcher, streams: Streams) -> None:
    """Twice, for example."""
    reader, writer, peer = streams
    conn = watcher.adopt(writer, reader)
    for _ in range(2):
        for arguments in ((writer, reader), (writer.transport,)):
            with pytest.raises(UnsupportedConnectionError, match="closing"):
                watcher.adopt(*arguments)
        await writer.wait_closed()
    assert watcher.statistics().connections == 1
    await assert_works(watcher, conn, peer)


async def test_S2_adopt_without_the_reader(watcher: Watcher, streams: Streams) -> None:
    _, writer, _ = streams
    with pytest.raises(TypeError, match="reader"):
        watcher.adopt(writer)
    await assert_asyncio_works(streams)


async def test_S2_adopt_what_is_no_transport(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    for wrong in (None, object(), reader, peer, socket_of(writer), 5, "transport"):
        with pytest.raises(TypeError, match="transport"):
            watcher.adopt(wrong)
    for wrong in (object(), writer, b"bytes"):
        with pytest.raises(TypeError, match="reader"):
            watcher.adopt(writer, wrong)
    assert watcher.statistics().connections == 0
    await assert_asyncio_works(streams)


async def test_S2_adopt_a_stream_that_a_task_reads(watcher: Watcher, streams: Streams) -> None:
    reader, writer, peer = streams
    reading = asyncio.ensure_future(reader.readline())
    await settle(3)
    with pytest.raises(UnsupportedConnectionError, match="task"):
        watcher.adopt(writer, reader)
    peer.sendall(b"line\n")
    async with asyncio.timeout(10):
        assert await reading == b"line\n"
    await assert_asyncio_works(streams)


async def test_S2_adopt_a_stream_that_failed(watcher: Watcher, streams: Streams) -> None:
    reader, writer, _ = streams
    reader.set_exception(ValueError("a parser's"))
    with pytest.raises(UnsupportedConnectionError, match="a parser's") as caught:
        watcher.adopt(writer, reader)
    assert caught.tb is not None  # as long as it holds what was made, no finalizer cleans up
    assert watcher.statistics().connections == 0
    assert writer.transport.is_reading()


async def test_S2_adopt_on_a_closed_watcher(streams: Streams) -> None:
    watcher = Watcher()
    watcher.close()
    await buffered(streams, b"rest\n")
    with pytest.raises(WatcherClosedError):
        watcher.adopt(streams[1], streams[0])
    assert await streams[0].readline() == b"rest\n"
    await assert_asyncio_works(streams)


async def test_adopt_that_fails_leaves_the_stream_whole(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system cannot serve one descriptor more."""
    reader, writer, _ = streams
    await buffered(streams, b"rest\n")

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with Watcher(poller="loop") as watcher:
        before = open_descriptors()
        monkeypatch.setattr(
            "aiogaio.pollers.loop.LoopPoller.register", lambda _, record: fail(record)
        )
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            watcher.adopt(writer, reader)
        assert open_descriptors() == before
        assert watcher.statistics().connections == 0
        assert await reader.readline() == b"rest\n"
        await assert_asyncio_works(streams)


@pytest.mark.parametrize("end", ["read", "write"])
async def test_S2_adopt_a_pipes_transport(watcher: Watcher, end: str) -> None:
    """It has no socket; no descriptor is left by the attempt."""
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    transport: Any
    if end == "read":
        file, peer = os.fdopen(read_end, "rb", 0), write_end
        transport, protocol = await loop.connect_read_pipe(Recorder, file)
    else:
        file, peer = os.fdopen(write_end, "wb", 0), read_end
        transport, protocol = await loop.connect_write_pipe(Recorder, file)
    before = open_descriptors()
    try:
        with pytest.raises(UnsupportedConnectionError):
            watcher.adopt(transport)
        assert open_descriptors() == before
        assert not transport.is_closing()
    finally:
        transport.close()
        await until(lambda: bool(protocol.lost))
        os.close(peer)


async def test_S2_adopt_a_datagram_transport(watcher: Watcher) -> None:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Recorder, local_addr=("127.0.0.1", 0)
    )
    try:
        with pytest.raises(TypeError, match=r"transport|stream"):
            watcher.adopt(transport)
        assert not transport.is_closing()
    finally:
        transport.close()
        await until(lambda: bool(protocol.lost))


# --- TLS ------------------------------------------------------------------------------------------


def anonymous(protocol: int) -> ssl.SSLContext:
    """TLS without certificates, which is all that a test needs."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


@pytest_asyncio.fixture
async def secret(poller: str) -> AsyncIterator[dict[str, Any]]:
    """Streams over TLS: the client's and the server's."""
    served: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.set_result((writer, reader))

    server = await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=anonymous(ssl.PROTOCOL_TLS_SERVER)
    )
    host, port = server.sockets[0].getsockname()
    context = anonymous(ssl.PROTOCOL_TLS_CLIENT)
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        sides = {"client": (writer, reader), "server": await served}
    yield sides
    for writer, _ in sides.values():
        writer.close()
    for writer, _ in sides.values():
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_S2_adopt_tls(watcher: Watcher, secret: dict[str, Any], side: str) -> None:
    """The error says so, and the conversation goes on."""
    writer, reader = secret[side]
    for arguments in ((writer, reader), (writer.transport,)):
        with pytest.raises(UnsupportedConnectionError, match="TLS"):
            watcher.adopt(*arguments)
    assert watcher.statistics().connections == 0
    other_writer, other_reader = secret["server" if side == "client" else "client"]
    other_writer.write(b"ping\n")
    async with asyncio.timeout(10):
        assert await reader.readline() == b"ping\n"
        writer.write(b"pong\n")
        assert await other_reader.readline() == b"pong\n"
