"""Misuse raises at the call; the state of a connection arrives as a result.

Rule S2. Every wrong call gets one exception, whose message says what was wrong and what to pass
instead; afterwards everything is as it was before: the watcher, the descriptors, and what was
passed in.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import fcntl
import gc
import math
import os
import re
import select
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from aiogaio import (
    AioGaioError,
    Connection,
    ConnectionFreedError,
    EmptyBufferError,
    Operation,
    UnsupportedConnectionError,
    UnsupportedLoopError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import ready
from tests.support import collect, one, reset, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]


def descriptors() -> set[tuple[str, str]]:
    """Number and kind of every open descriptor, the one that lists them excepted."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return {(name, what) for name, what in found if "/proc/" not in what}


# How a message says what to pass instead
INSTEAD = "pass|use|call|create|submit|give|encode|takes|must|required|instead|open|run"


@contextlib.contextmanager
def refused(error: type[Exception], *words: str) -> Iterator[None]:
    """Exactly one exception, which says all of ``words`` (regular expressions)."""
    if error is not WatcherClosedError:
        words = (*words, INSTEAD)
    before = descriptors()
    with pytest.raises(error) as caught:
        yield
    exception = caught.value
    assert exception.__cause__ is None
    assert exception.__context__ is None or exception.__suppress_context__, "two exceptions in one"
    message = str(exception)
    for word in words:
        assert re.search(word, message, re.IGNORECASE), f"{word!r} is not in {message!r}"
    del caught, exception
    assert descriptors() == before


@dataclasses.dataclass
class Scene:
    watcher: Watcher
    conn: Connection
    peer: socket.socket
    listener: Connection
    foreign: Connection  # nothing is pending on it: a short way might be taken
    foreign_pending: Operation

    def snapshot(self) -> tuple[object, ...]:
        """What a refused call must not change."""
        return (
            self.watcher.statistics(),
            self.foreign.watcher.statistics(),
            [conn.closed for conn in (self.conn, self.listener, self.foreign)],
            self.foreign_pending.completed,
        )


@pytest_asyncio.fixture
async def scene(poller: str) -> AsyncIterator[Scene]:
    server, peer = tcp_pair()
    foreign, foreign_peer = tcp_pair()
    busy, busy_peer = tcp_pair()
    async with Watcher(poller=poller) as watcher, Watcher(poller=poller) as other:
        theirs = other.delegate(foreign)
        yield Scene(
            watcher=watcher,
            conn=watcher.delegate(server),
            peer=peer,
            listener=watcher.delegate(socket.create_server(("127.0.0.1", 0))),
            foreign=theirs,
            foreign_pending=other.read(busy),
        )
    for sock in (peer, foreign_peer, busy_peer):
        sock.close()


def read_only() -> memoryview:
    return memoryview(bytearray(8)).toreadonly()


def strided() -> memoryview:
    return memoryview(bytearray(8))[::2]


NAN = float("nan")
EMPTY = (EmptyBufferError, "empty|zero|no bytes|at least")
READ_ONLY = (TypeError, "read-?only|writable|bytearray")
STRIDED = (TypeError, r"contiguous(?!.*\bbytes\()")  # bytes() could not be read into
NO_BUFFER = (TypeError, "buffer|bytearray|bytes-like")
NO_DATA = (TypeError, "bytes")
LISTENING = (UnsupportedConnectionError, "listen", "accept")
NOT_LISTENING = (UnsupportedConnectionError, "listen")
FOREIGN = (UnsupportedConnectionError, "another|other|different|belongs")
BOTH = (ValueError, "timeout", "deadline")
TIMEOUT = (ValueError, "timeout")
DEADLINE = (ValueError, "deadline")
MULTISHOT = (ValueError, "multishot", "buffer")

Call = Callable[[Scene], Any]

CALLS: dict[str, tuple[Call, tuple[Any, ...]]] = {
    # buffers of reads
    "read empty": (lambda s: s.watcher.read(s.conn, bytearray()), EMPTY),
    "read empty view": (lambda s: s.watcher.read(s.conn, memoryview(bytearray())), EMPTY),
    "read empty array": (lambda s: s.watcher.read(s.conn, array.array("I")), EMPTY),
    "read bytes": (lambda s: s.watcher.read(s.conn, b"12345678"), READ_ONLY),
    "read read-only view": (lambda s: s.watcher.read(s.conn, read_only()), READ_ONLY),
    "read strided": (lambda s: s.watcher.read(s.conn, strided()), STRIDED),
    "read str": (lambda s: s.watcher.read(s.conn, "buffer"), NO_BUFFER),
    "read size": (lambda s: s.watcher.read(s.conn, 4096), NO_BUFFER),
    "read list": (lambda s: s.watcher.read(s.conn, [bytearray(8)]), NO_BUFFER),
    "read_full empty": (lambda s: s.watcher.read_full(s.conn, bytearray()), EMPTY),
    "read_full bytes": (lambda s: s.watcher.read_full(s.conn, b"12345678"), READ_ONLY),
    "read_full read-only": (lambda s: s.watcher.read_full(s.conn, read_only()), READ_ONLY),
    "read_full strided": (lambda s: s.watcher.read_full(s.conn, strided()), STRIDED),
    "read_full None": (lambda s: s.watcher.read_full(s.conn, None), NO_BUFFER),
    "read_full size": (lambda s: s.watcher.read_full(s.conn, 4096), NO_BUFFER),
    # data of writes
    "write empty": (lambda s: s.watcher.write(s.conn, b""), EMPTY),
    "write empty bytearray": (lambda s: s.watcher.write(s.conn, bytearray()), EMPTY),
    "write empty view": (lambda s: s.watcher.write(s.conn, memoryview(b"")), EMPTY),
    "write empty slice": (lambda s: s.watcher.write(s.conn, memoryview(b"abc")[3:]), EMPTY),
    "write empty silent": (lambda s: s.watcher.write(s.conn, b"", silent=True), EMPTY),
    "write str": (lambda s: s.watcher.write(s.conn, "text"), (*NO_DATA, "str", "encode|bytes")),
    "write str silent": (lambda s: s.watcher.write(s.conn, "text", silent=True), NO_DATA),
    "write empty str": (lambda s: s.watcher.write(s.conn, ""), NO_DATA),
    "write None": (lambda s: s.watcher.write(s.conn, None), NO_DATA),
    "write number": (lambda s: s.watcher.write(s.conn, 5), NO_DATA),
    "write list": (lambda s: s.watcher.write(s.conn, [1, 2, 3]), NO_DATA),
    "write list silent": (lambda s: s.watcher.write(s.conn, [1, 2, 3], silent=True), NO_DATA),
    # listeners
    "read listener": (lambda s: s.watcher.read(s.listener), LISTENING),
    "read multishot listener": (lambda s: s.watcher.read(s.listener, multishot=True), LISTENING),
    "read_full listener": (lambda s: s.watcher.read_full(s.listener, bytearray(8)), LISTENING),
    "accept stream": (lambda s: s.watcher.accept(s.conn), NOT_LISTENING),
    "accept stream multishot": (lambda s: s.watcher.accept(s.conn, multishot=True), NOT_LISTENING),
    # connections and operations of another watcher
    "foreign delegate": (lambda s: s.watcher.delegate(s.foreign), FOREIGN),
    "foreign read": (lambda s: s.watcher.read(s.foreign), FOREIGN),
    "foreign read_full": (lambda s: s.watcher.read_full(s.foreign, bytearray(8)), FOREIGN),
    "foreign write": (lambda s: s.watcher.write(s.foreign, b"x"), FOREIGN),
    "foreign silent": (lambda s: s.watcher.write(s.foreign, b"x", silent=True), FOREIGN),
    "foreign accept": (lambda s: s.watcher.accept(s.foreign), (UnsupportedConnectionError,)),
    "foreign free": (lambda s: s.watcher.free(s.foreign), FOREIGN),
    "foreign cancel": (lambda s: s.watcher.cancel(s.foreign_pending), FOREIGN),
    # what is no operation at all
    "cancel None": (lambda s: s.watcher.cancel(None), (TypeError, "Operation")),
    "cancel connection": (lambda s: s.watcher.cancel(s.conn), (TypeError, "Operation")),
    "cancel number": (lambda s: s.watcher.cancel(1), (TypeError, "Operation")),
    # time
    "read both": (lambda s: s.watcher.read(s.conn, timeout=1, deadline=1e9), BOTH),
    "read_full both": (
        lambda s: s.watcher.read_full(s.conn, bytearray(8), timeout=1, deadline=1e9),
        BOTH,
    ),
    "write both": (lambda s: s.watcher.write(s.conn, b"x", timeout=0, deadline=0), BOTH),
    "accept both": (lambda s: s.watcher.accept(s.listener, timeout=1, deadline=1e9), BOTH),
    "read negative": (lambda s: s.watcher.read(s.conn, timeout=-1), TIMEOUT),
    "read_full negative": (
        lambda s: s.watcher.read_full(s.conn, bytearray(8), timeout=-1e-9),
        TIMEOUT,
    ),
    "write negative": (lambda s: s.watcher.write(s.conn, b"x", timeout=-1), TIMEOUT),
    "silent negative": (
        lambda s: s.watcher.write(s.conn, b"x", timeout=-1, silent=True),
        TIMEOUT,
    ),
    "accept negative": (lambda s: s.watcher.accept(s.listener, timeout=-math.inf), TIMEOUT),
    "read NaN": (lambda s: s.watcher.read(s.conn, timeout=NAN), (*TIMEOUT, "nan")),
    "write NaN": (lambda s: s.watcher.write(s.conn, b"x", timeout=NAN), TIMEOUT),
    "silent NaN": (lambda s: s.watcher.write(s.conn, b"x", deadline=NAN, silent=True), DEADLINE),
    "accept NaN": (lambda s: s.watcher.accept(s.listener, deadline=NAN), DEADLINE),
    "read negative deadline": (lambda s: s.watcher.read(s.conn, deadline=-1), DEADLINE),
    "read_full NaN deadline": (
        lambda s: s.watcher.read_full(s.conn, bytearray(8), deadline=NAN),
        DEADLINE,
    ),
    "write negative deadline": (lambda s: s.watcher.write(s.conn, b"x", deadline=-1), DEADLINE),
    "read timeout str": (lambda s: s.watcher.read(s.conn, timeout="1"), (TypeError, "timeout")),
    "write deadline str": (
        lambda s: s.watcher.write(s.conn, b"x", deadline="1"),
        (TypeError, "deadline"),
    ),
    # multishot
    "multishot with buffer": (
        lambda s: s.watcher.read(s.conn, bytearray(8), multishot=True),
        MULTISHOT,
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_S2_wrong_call_raises_and_changes_nothing(scene: Scene, name: str) -> None:
    call, (error, *words) = CALLS[name]
    before = scene.snapshot()
    with refused(error, *words):
        call(scene)
    assert scene.snapshot() == before
    assert scene.watcher.poll_io() == []
    # and everything still works
    scene.peer.sendall(b"question")
    scene.watcher.read(scene.conn)
    assert (await one(scene.watcher)).data == b"question"
    scene.watcher.write(scene.conn, b"answer", silent=True)
    assert scene.peer.recv(100) == b"answer"


@pytest.mark.parametrize(
    "name", ["read both", "read negative", "read NaN", "multishot with buffer", "read empty"]
)
async def test_S2_wrong_call_raises_for_a_freed_connection_too(scene: Scene, name: str) -> None:
    """Misuse is the program's fault whatever the state of the connection is."""
    call, (error, *words) = CALLS[name]
    scene.watcher.free(scene.conn)
    with refused(error, *words):
        call(scene)
    assert scene.watcher.poll_io() == []


# Requests that are refused do not take over the socket that they were made with


FRESH: dict[str, tuple[Callable[[Watcher, socket.socket], Any], type[Exception]]] = {
    "read empty": (lambda w, sock: w.read(sock, bytearray()), EmptyBufferError),
    "read bytes": (lambda w, sock: w.read(sock, b"12345678"), TypeError),
    "read strided": (lambda w, sock: w.read(sock, strided()), TypeError),
    "read negative": (lambda w, sock: w.read(sock, timeout=-1), ValueError),
    "read both": (lambda w, sock: w.read(sock, timeout=1, deadline=1), ValueError),
    "read multishot": (lambda w, sock: w.read(sock, bytearray(8), multishot=True), ValueError),
    "read_full None": (lambda w, sock: w.read_full(sock, None), TypeError),
    "read_full empty": (lambda w, sock: w.read_full(sock, bytearray()), EmptyBufferError),
    "write empty": (lambda w, sock: w.write(sock, b""), EmptyBufferError),
    "write str": (lambda w, sock: w.write(sock, "text"), TypeError),
    "silent str": (lambda w, sock: w.write(sock, "text", silent=True), TypeError),
    "write NaN": (lambda w, sock: w.write(sock, b"x", timeout=NAN), ValueError),
    "accept": (lambda w, sock: w.accept(sock), UnsupportedConnectionError),
}


@pytest.mark.parametrize("name", FRESH)
async def test_S2_refused_request_does_not_take_the_socket_over(
    watcher: Watcher, name: str
) -> None:
    call, error = FRESH[name]
    sock, client = tcp_pair()
    with sock, client:
        sock.settimeout(7)
        before = watcher.statistics()
        with refused(error):
            call(watcher, sock)
        assert watcher.statistics() == before
        assert sock.gettimeout() == 7
        assert os.get_blocking(sock.fileno()) is False  # as a socket with a time-out is
        client.sendall(b"still")
        assert sock.recv(100) == b"still"
        watcher.close()
        sock.sendall(b"mine")
        assert client.recv(100) == b"mine"


@pytest.mark.parametrize("kind", ["read", "read_full"])
async def test_S2_fresh_listener_given_to_a_read_stays_with_its_owner(
    watcher: Watcher, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with refused(UnsupportedConnectionError, "listen", "accept"):
            if kind == "read":
                watcher.read(listener)
            else:
                watcher.read_full(listener, bytearray(8))
        watcher.close()
        with socket.create_connection(listener.getsockname()) as client:
            accepted, address = listener.accept()
            accepted.close()
            assert address == client.getsockname()


async def test_S2_datagram_socket_is_no_listener(watcher: Watcher) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with refused(UnsupportedConnectionError, "listen"):
            watcher.accept(sock)
        assert sock.fileno() >= 0


# Objects that are no supported connection


USES: dict[str, Callable[[Watcher, Any], Any]] = {
    "delegate": lambda watcher, thing: watcher.delegate(thing),
    "read": lambda watcher, thing: watcher.read(thing),
    "read_full": lambda watcher, thing: watcher.read_full(thing, bytearray(8)),
    "write": lambda watcher, thing: watcher.write(thing, b"x"),
    "silent write": lambda watcher, thing: watcher.write(thing, b"x", silent=True),
    "accept": lambda watcher, thing: watcher.accept(thing),
}


class LooksLikeASocket:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()


@contextlib.contextmanager
def plain_file() -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        yield file
        assert not file.closed
        file.write(b"still open")


@contextlib.contextmanager
def pipe() -> Iterator[Any]:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as writer:
        yield reader
        writer.write(b"x")
        assert reader.read(1) == b"x"


@contextlib.contextmanager
def number() -> Iterator[Any]:
    server, client = tcp_pair()
    with server, client:
        yield server.fileno()
        server.sendall(b"x")
        assert client.recv(1) == b"x"


@contextlib.contextmanager
def look_alike() -> Iterator[Any]:
    server, client = tcp_pair()
    with server, client:
        yield LooksLikeASocket(server)
        server.sendall(b"x")
        assert client.recv(1) == b"x"


@contextlib.contextmanager
def ssl_socket() -> Iterator[Any]:
    server, client = tcp_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    wrapped = context.wrap_socket(server, do_handshake_on_connect=False)
    with wrapped, client:
        yield wrapped
        assert wrapped.fileno() >= 0
        assert os.fstat(wrapped.fileno())


@contextlib.contextmanager
def closed_socket() -> Iterator[Any]:
    server, client = tcp_pair()
    client.close()
    server.close()
    yield server


@contextlib.contextmanager
def detached_socket() -> Iterator[Any]:
    server, client = tcp_pair()
    with client, socket.socket(fileno=server.detach()) as taker:
        yield server
        taker.sendall(b"x")
        assert client.recv(1) == b"x"


THINGS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Any]], str]] = {
    "plain file": (plain_file, "file|BufferedRandom|socket"),
    "pipe": (pipe, "FileIO|socket"),
    "descriptor": (number, "int|socket"),
    "look-alike": (look_alike, "LooksLikeASocket|socket"),
    "SSLSocket": (ssl_socket, "SSL|TLS"),
    "closed socket": (closed_socket, "closed|detached"),
    "detached socket": (detached_socket, "closed|detached|spent"),
    "None": (lambda: contextlib.nullcontext(None), "None"),
    "str": (lambda: contextlib.nullcontext("127.0.0.1:9000"), "str"),
    "class": (lambda: contextlib.nullcontext(socket.socket), "socket"),
}


#: What has to be delegated before there may be requests on it.
DESCRIPTORS = {"pipe", "descriptor", "look-alike"}


@pytest.mark.parametrize(
    ("name", "use"),
    [(n, u) for n in THINGS for u in USES if u != "delegate" or n not in DESCRIPTORS],
)
async def test_S2_what_is_no_connection_is_refused_and_left_alone(
    watcher: Watcher, name: str, use: str
) -> None:
    make, word = THINGS[name]
    with make() as thing:
        before = watcher.statistics()
        with refused(UnsupportedConnectionError, word):
            USES[use](watcher, thing)
        assert watcher.statistics() == before
        watcher.close()


@pytest.mark.parametrize(
    "name",
    ["plain file", "pipe", "descriptor", "look-alike", "None", "str", "class"],
)
async def test_S2_free_of_what_is_no_connection_closes_nothing(watcher: Watcher, name: str) -> None:
    make, _ = THINGS[name]
    with make() as thing, refused(UnsupportedConnectionError):
        watcher.free(thing)


async def test_S2_socket_spent_on_another_watcher_is_refused(poller: str) -> None:
    server, client = tcp_pair()
    async with Watcher(poller=poller) as owner, Watcher(poller=poller) as other:
        with client:
            conn = owner.delegate(server)
            for use in USES.values():
                with refused(UnsupportedConnectionError, "another|spent|closed|detached|belongs"):
                    use(other, server)
            assert not conn.closed
            owner.write(conn, b"still", silent=True)
            assert client.recv(100) == b"still"


# Sockets that a transport of asyncio owns


@contextlib.asynccontextmanager
async def transport_pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket, Any]]:
    """A transport, the socket it was made with, and a peer that echoes one message."""
    loop = asyncio.get_running_loop()
    server, client = tcp_pair()
    server.setblocking(False)
    received: asyncio.Queue[bytes] = asyncio.Queue()

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.put_nowait(data)

    transport, _ = await loop.create_connection(Receiver, sock=server)
    try:
        with client:
            yield transport, server, received
            client.sendall(b"ping")
            assert await asyncio.wait_for(received.get(), 10) == b"ping"
            transport.write(b"pong")
            assert await asyncio.to_thread(client.recv, 100) == b"pong"
    finally:
        transport.abort()
        async with asyncio.timeout(10):
            while server.fileno() >= 0:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("use", USES)
async def test_S2_socket_of_a_transport_is_refused_and_the_transport_goes_on(
    watcher: Watcher, use: str
) -> None:
    async with transport_pair() as (transport, sock, _):
        before = watcher.statistics()
        seen = transport.get_extra_info("socket")
        for thing in (sock, seen):
            with refused(UnsupportedConnectionError, "transport|TransportSocket|PseudoSocket"):
                USES[use](watcher, thing)
        assert watcher.statistics() == before


async def test_S2_stream_writer_and_transport_are_no_connections(watcher: Watcher) -> None:
    async with transport_pair() as (transport, _, _received):
        with refused(UnsupportedConnectionError, "transport"):
            watcher.read(transport)


async def test_S2_listening_socket_of_a_server_is_refused_and_the_server_goes_on(
    watcher: Watcher,
) -> None:
    greeted = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.set()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        (listener,) = server.sockets
        for use in (USES["delegate"], USES["accept"]):
            with refused(UnsupportedConnectionError):
                use(watcher, listener)
        with socket.create_connection(listener.getsockname()):
            await asyncio.wait_for(greeted.wait(), 10)


async def test_S2_number_that_a_transport_had_once_is_accepted(watcher: Watcher) -> None:
    async with transport_pair() as (_, sock, _received):
        number = sock.fileno()
    one_end, other_end = tcp_pair()
    if other_end.fileno() == number:
        one_end, other_end = other_end, one_end
    elif one_end.fileno() != number:
        with one_end:
            one_end = socket.socket(fileno=fcntl.fcntl(one_end, fcntl.F_DUPFD, number))
    with other_end:
        assert one_end.fileno() == number
        watcher.write(one_end, b"mine", silent=True)
        assert other_end.recv(100) == b"mine"


# The state of a connection is no misuse: it arrives as a result


async def test_S2_freed_connection_arrives_as_a_result(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.free(conn)
        submitted = [
            watcher.read(conn),
            watcher.read(conn, bytearray(8)),
            watcher.read_full(conn, bytearray(8)),
            watcher.write(conn, b"x"),
            watcher.read(conn, timeout=0),
        ]
        assert await collect(watcher, 5) == submitted
        for operation in submitted:
            assert isinstance(operation.error, ConnectionFreedError)
            assert operation.conn is conn
            assert operation.size == 0


async def test_S2_reset_connection_arrives_as_a_result(watcher: Watcher) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    reset(client)
    ready(conn, select.POLLHUP)
    submitted = [watcher.read(conn), watcher.write(conn, bytes(1 << 20))]
    results = await collect(watcher, 2)
    assert set(results) == set(submitted)
    assert all(isinstance(operation.error, ConnectionError) for operation in results)


async def test_S2_unconnected_socket_arrives_as_a_result(watcher: Watcher) -> None:
    conn = watcher.delegate(socket.socket())
    submitted = [watcher.read(conn), watcher.write(conn, b"x")]
    results = await collect(watcher, 2)
    assert set(results) == set(submitted)
    assert all(isinstance(operation.error, OSError) for operation in results)


async def test_S2_unconnected_datagram_socket_arrives_as_a_result(watcher: Watcher) -> None:
    conn = watcher.delegate(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    operation = watcher.write(conn, b"to whom?")
    assert await one(watcher) is operation
    assert isinstance(operation.error, OSError)


@pytest.mark.parametrize("timeout", [0, 0.0, 1e300, float("inf"), True])
async def test_S2_unusual_but_good_timeouts_are_taken(watcher: Watcher, timeout: float) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.write(conn, b"x", timeout=timeout)
        assert await one(watcher) is operation
        assert operation.error is None
        pending = watcher.read(conn, timeout=timeout)
        if timeout:
            client.sendall(b"x")
        assert await one(watcher) is pending
        assert (pending.error is None) == bool(timeout)


# A closed watcher


@pytest.mark.parametrize("use", USES)
async def test_S2_closed_watcher_refuses_connections(watcher: Watcher, use: str) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.close()
        before = watcher.statistics()
        with refused(WatcherClosedError, "closed"):
            USES[use](watcher, conn)
        assert watcher.statistics() == before
        assert watcher.poll_io() == []


@pytest.mark.parametrize("use", USES)
async def test_S2_closed_watcher_leaves_a_socket_with_its_owner(watcher: Watcher, use: str) -> None:
    server, client = tcp_pair()
    with server, client:
        watcher.close()
        with refused(WatcherClosedError, "closed"):
            USES[use](watcher, server)
        server.sendall(b"mine")
        assert client.recv(100) == b"mine"


# Making a watcher


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "poller": ({"poller": "kqueue"}, "poller.*(epoll.*loop|loop.*epoll)|(epoll.*loop).*poller"),
    "poller empty": ({"poller": ""}, "poller"),
    "buffer_size 0": ({"buffer_size": 0}, "buffer_size"),
    "buffer_size -1": ({"buffer_size": -1}, "buffer_size"),
    "batch_size 0": ({"batch_size": 0}, "batch_size"),
    "batch_size -1": ({"batch_size": -1}, "batch_size"),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_S2_wrong_options_of_a_watcher_are_refused(name: str) -> None:
    options, word = OPTIONS[name]
    with refused(ValueError, word):
        Watcher(**options)
    gc.collect()  # a half-made one has nothing to complain about


@pytest.mark.parametrize(
    "options",
    [{"buffer_size": "big"}, {"batch_size": 1.5}, {"poller": None}, {"batch_size": None}],
    ids=str,
)
async def test_S2_options_of_a_wrong_type_are_refused(options: dict[str, Any]) -> None:
    with refused((TypeError, ValueError), next(iter(options))):  # type: ignore[arg-type]
        Watcher(**options)
    gc.collect()


@pytest.mark.parametrize("poller", ["auto", "epoll", "loop"])
def test_S2_watcher_outside_a_loop_is_refused(poller: str) -> None:
    with refused(UnsupportedLoopError, "loop", "async|running|coroutine"):
        Watcher(poller=poller)
    gc.collect()


class BareLoop(asyncio.SelectorEventLoop):
    """As the loop of Windows that is made for overlapped I/O: it has no ``add_reader``."""

    def add_reader(self, *_: object) -> Any:
        raise NotImplementedError

    def add_writer(self, *_: object) -> Any:
        raise NotImplementedError

    def remove_reader(self, *_: object) -> Any:
        raise NotImplementedError

    def remove_writer(self, *_: object) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("poller", ["auto", "epoll", "loop"])
def test_S2_loop_without_readiness_is_refused(poller: str) -> None:
    async def attempt() -> None:
        with refused(UnsupportedLoopError, "add_reader", "SelectorEventLoop|uvloop"):
            Watcher(poller=poller)
        gc.collect()

    with asyncio.Runner(loop_factory=BareLoop) as runner:
        runner.run(attempt())


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (EmptyBufferError, ValueError),
        (UnsupportedConnectionError, TypeError),
        (UnsupportedLoopError, RuntimeError),
        (WatcherClosedError, AioGaioError),
        (ConnectionFreedError, AioGaioError),
    ],
    ids=lambda kind: kind.__name__,
)
def test_S2_errors_have_a_common_base_and_their_builtin_one(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, AioGaioError)
    assert issubclass(error, builtin)


async def test_S2_unix_and_datagram_sockets_are_supported(watcher: Watcher) -> None:
    """The counterpart: what the contract names is not refused."""
    for server, client in (unix_pair(), unix_pair(socket.SOCK_DGRAM)):
        with client:
            watcher.write(server, b"x", silent=True)
            assert client.recv(10) == b"x"
