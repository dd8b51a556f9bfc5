"""connect(): the way to a connection, and what stands before and behind it."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiogaio import (
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import LONG, half_closed, ready, receive, small_pair, unread, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

SHORT = 0.25  # longer than a busy machine pauses within a call
TYPES = [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX]


# --- How a pending request may end, whatever it is; for other files, too --------------------------


@dataclass(frozen=True)
class Ending:
    """What ends a pending request from this side, and the error that it brings."""

    error: type[Exception]
    times: Callable[[], dict[str, Any]]  # to be passed with the request
    act: Callable[[Watcher, Operation], object]


def _soon() -> dict[str, Any]:
    return {"deadline": asyncio.get_running_loop().time() + SHORT}


ENDINGS = {
    "cancel": Ending(OperationCancelledError, dict, lambda watcher, op: watcher.cancel(op)),
    "free": Ending(ConnectionFreedError, dict, lambda watcher, op: watcher.free(op.conn)),
    "close": Ending(WatcherClosedError, dict, lambda watcher, _: watcher.close()),
    "timeout": Ending(DeadlineExceededError, lambda: {"timeout": SHORT}, lambda *_: None),
    "deadline": Ending(DeadlineExceededError, _soon, lambda *_: None),
}
every_ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
#: Those that take one request out and leave the connection.
single_endings = pytest.mark.parametrize(
    "ending", [ENDINGS[name] for name in ("cancel", "timeout")], ids=["cancel", "timeout"]
)
#: Times that no request takes.
BAD_TIMES: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"timeout": -1}, ValueError),
    ({"deadline": -0.1}, ValueError),
    ({"timeout": math.nan}, ValueError),
    ({"timeout": 1, "deadline": 1}, ValueError),
    ({"timeout": "1"}, TypeError),
]


def assert_balanced(watcher: Watcher, pending: int = 0) -> None:
    counts = watcher.statistics()
    assert counts.pending == pending
    assert counts.submitted == counts.completed + pending


async def assert_nothing_more(watcher: Watcher, pending: int = 0) -> None:
    """No result is delivered twice, and none is left behind."""
    await settle(5)
    assert watcher.poll_io() == []
    assert_balanced(watcher, pending)


# --- Places to connect to -------------------------------------------------------------------------


class Place:
    """A listener, and sockets that fit."""

    def __init__(self, family: int, folder: Path, backlog: int = 8) -> None:
        self.family = family
        self.listener = socket.socket(family)
        hosts: dict[int, Any] = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
        self.listener.bind(hosts.get(family, str(folder / "s")))
        self.listener.listen(backlog)
        self.listener.settimeout(10)
        self.address = self.listener.getsockname()

    def socket(self) -> socket.socket:
        return socket.socket(self.family)

    def accept(self) -> socket.socket:
        peer, _ = self.listener.accept()
        peer.settimeout(10)
        return peer

    def close(self) -> None:
        self.listener.close()


@pytest.fixture(params=TYPES, ids=["ipv4", "ipv6", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(request.param, tmp_path)
    yield place
    place.close()


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[Place]:
    place = Place(socket.AF_INET, tmp_path)
    yield place
    place.close()


def _filled(place: Place) -> Iterator[Place]:
    with place.socket() as first:  # all that its queue takes
        first.connect(place.address)
        yield place
    place.close()


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["ipv4", "unix"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A listener whose queue is full: TCP drops what comes (no answer), Unix says EAGAIN."""
    yield from _filled(Place(request.param, tmp_path, 0))


@pytest.fixture
def full_unix(tmp_path: Path) -> Iterator[Place]:
    """One that takes the next connection as soon as one is accepted."""
    yield from _filled(Place(socket.AF_UNIX, tmp_path, 0))


@pytest.fixture
def datagrams() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with ours, peer:
        ours.bind(("127.0.0.1", 0))
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(10)
        yield ours, peer


def refused_address(place: Place) -> Any:
    """Where nobody listens any more."""
    place.close()
    return place.address


# --- Connected, or refused ------------------------------------------------------------------------


async def test_connect(watcher: Watcher, place: Place) -> None:
    context = object()
    op = watcher.connect(place.socket(), place.address, context=context)
    assert await one(watcher) is op
    assert (op.type, op.error, op.size, op.data, op.more) == (OpType.CONNECT, None, 0, b"", False)
    assert op.context is context
    assert op.address == place.address
    assert op.conn.peername == place.address
    with place.accept() as peer:
        watcher.write(op.conn, b"ping")
        assert await receive(peer, 4) == b"ping"
        peer.sendall(b"pong")
        watcher.read(op.conn)
        assert [r.data for r in await collect(watcher, 2)] == [b"", b"pong"]
    assert_balanced(watcher)


async def test_S7_connect_sets_tcp_nodelay(watcher: Watcher, tcp: Place) -> None:
    op = watcher.connect(tcp.socket(), tcp.address)
    await one(watcher)
    assert op.conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connect_of_a_connection_with_a_context(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    conn.context = object()
    watcher.connect(conn, tcp.address)
    op = await one(watcher)
    assert op.conn is conn
    assert op.context is conn.context


async def test_connect_an_ipv6_address_of_four(watcher: Watcher, tmp_path: Path) -> None:
    place = Place(socket.AF_INET6, tmp_path)
    for address in (place.address[:2], (*place.address[:2], 0), place.address):
        op = watcher.connect(place.socket(), address)
        assert (await one(watcher)).error is None
        assert op.address == address
    place.close()


async def test_connect_an_abstract_unix_address(watcher: Watcher) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"")  # the system chooses one
        listener.listen()
        watcher.connect(socket.socket(socket.AF_UNIX), listener.getsockname())
        assert (await one(watcher)).error is None


async def test_connect_many_at_once(watcher: Watcher, tcp: Place) -> None:
    tcp.listener.listen(64)
    ops = [watcher.connect(tcp.socket(), tcp.address, context=number) for number in range(50)]
    results = await collect(watcher, len(ops))
    assert {op.context for op in results} == set(range(50))
    assert not any(op.error for op in results)
    assert len({op.conn.sockname for op in results}) == len(ops)
    assert_balanced(watcher)


async def test_connect_refused(watcher: Watcher, place: Place) -> None:
    op = watcher.connect(place.socket(), refused_address(place))
    assert await one(watcher) is op
    assert type(op.error) is ConnectionRefusedError
    assert op.error.errno == errno.ECONNREFUSED
    assert not op.conn.closed
    assert watcher.pending(op.conn) == type(watcher.pending(op.conn))(0, 0)
    await assert_nothing_more(watcher)


async def test_connect_to_a_path_that_is_not_there(watcher: Watcher, tmp_path: Path) -> None:
    watcher.connect(socket.socket(socket.AF_UNIX), str(tmp_path / "none"))
    assert type((await one(watcher)).error) is FileNotFoundError


async def test_connect_refused_takes_with_it_what_stands_behind(
    watcher: Watcher, place: Place
) -> None:
    conn = watcher.delegate(place.socket())
    conns = [watcher.connect(conn, refused_address(place))]
    if conns[0].completed:  # a Unix socket is refused at once: nothing can stand behind it
        assert watcher.poll_io() == conns
        return
    reads = [watcher.read(conn), watcher.read_full(conn, bytearray(4)), watcher.read(conn)]
    writes = [watcher.write(conn, b"1"), watcher.write(conn, b"2", silent=True)]
    writes += [watcher.shutdown(conn), watcher.writev(conn, [b"3", b"4"])]
    conns.append(watcher.connect(conn, ("127.0.0.1", 1) if place.family == 2 else ("::1", 1)))
    writes.append(watcher.write(conn, b"5"))
    assert watcher.pending(conn).requests == 10
    assert watcher.pending(conn).queued_bytes == 5
    results = await collect(watcher, 10)
    assert results[0] is conns[0]
    assert [op for op in results if op in reads] == reads
    assert [op for op in results if op in writes] == writes
    assert {type(op.error) for op in results} == {ConnectionRefusedError}
    assert len({id(op.error) for op in results}) == 10  # a program may raise each of them
    assert not any(op.size for op in results)
    assert watcher.pending(conn).queued_bytes == 0
    await assert_nothing_more(watcher)


async def test_connect_again_after_a_refusal(watcher: Watcher, tcp: Place, tmp_path: Path) -> None:
    """And the refusal is forgotten: the end of the stream is an end."""
    gone = Place(socket.AF_INET, tmp_path)
    op = watcher.connect(gone.socket(), refused_address(gone))
    assert type((await one(watcher)).error) is ConnectionRefusedError
    conn = op.conn
    watcher.connect(conn, tcp.address)
    assert (await one(watcher)).error is None
    tcp.accept().close()
    watcher.read(conn)
    assert type((await one(watcher)).error) is EndOfStreamError


async def test_connect_to_another_address_of_a_connected_socket_fails(
    watcher: Watcher, place: Place
) -> None:
    conn = watcher.delegate(place.socket())
    watcher.connect(conn, place.address)
    assert (await one(watcher)).error is None
    watcher.connect(conn, place.address)
    error = (await one(watcher)).error
    assert type(error) is OSError
    assert error.errno == errno.EISCONN
    with place.accept() as peer:  # the connection is as it was
        watcher.write(conn, b"data")
        assert await receive(peer, 4) == b"data"
    assert (await one(watcher)).error is None


# --- What stands behind it waits ------------------------------------------------------------------


async def test_S3_what_stands_behind_a_connect_follows_it(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    first = watcher.connect(conn, tcp.address)
    reads = [watcher.read_full(conn, bytearray(3)), watcher.read(conn)]
    writes = [watcher.write(conn, b"one"), watcher.writev(conn, [b"two", b"three"])]
    writes.append(watcher.shutdown(conn))
    assert not first.completed
    assert watcher.pending(conn) == type(watcher.pending(conn))(6, 11)
    with tcp.accept() as peer:
        peer.sendall(b"123456")
        results = await collect(watcher, 6)
        assert results[0] is first
        assert [op for op in results if op in reads] == reads
        assert [op for op in results if op in writes] == writes
        assert not any(op.error for op in results)
        assert [bytes(op.data) for op in reads] == [b"123", b"456"]
        assert await receive(peer, 11) == b"onetwothree"
        ready(peer)
        assert peer.recv(1) == b""
    await assert_nothing_more(watcher)


async def test_connect_waits_while_a_unix_listeners_queue_is_full(
    watcher: Watcher, full_unix: Place
) -> None:
    """No event tells of room, so it asks again and again; what is behind it goes on then."""
    conn = watcher.delegate(full_unix.socket())
    op = watcher.connect(conn, full_unix.address)
    read, write = watcher.read(conn), watcher.write(conn, b"data")
    with pytest.raises(TimeoutError):
        await collect(watcher, 1, within=0.03)
    assert watcher.pending(conn).requests == 3
    full_unix.accept().close()
    assert await collect(watcher, 2) == [op, write]
    assert (op.error, write.error) == (None, None)
    with full_unix.accept() as peer:
        assert await receive(peer, 4) == b"data"
        peer.sendall(b"more")
        assert await one(watcher) is read
        assert read.data == b"more"
    await assert_nothing_more(watcher)


async def test_connect_armed_read_behind_it(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    watcher.connect(conn, tcp.address)
    armed = watcher.read(conn, multishot=True)
    assert (await one(watcher)).type is OpType.CONNECT
    with tcp.accept() as peer:
        for data in (b"1", b"2"):
            peer.sendall(data)
            shot = await one(watcher)
            assert (shot.data, shot.more) == (data, True)
    assert await one(watcher) is armed
    assert type(armed.error) is EndOfStreamError


async def test_connect_fails_while_somebody_drains(watcher: Watcher, full_unix: Place) -> None:
    """Who drains is told, and stands in the queue; it is no result."""
    conn = watcher.delegate(full_unix.socket())
    ops = [watcher.connect(conn, full_unix.address), watcher.write(conn, b"1")]
    draining = asyncio.ensure_future(watcher.drain())
    await settle(3)
    assert not draining.done()
    ops.append(watcher.shutdown(conn))
    watcher.cancel(ops[0])
    async with asyncio.timeout(10):
        await draining
    assert await collect(watcher, 3) == ops
    assert {type(op.error) for op in ops} == {OperationCancelledError}
    assert watcher.pending(conn).requests == 0
    await assert_nothing_more(watcher)


async def test_connect_drain_waits_for_it(watcher: Watcher, full_unix: Place) -> None:
    op = watcher.connect(full_unix.socket(), full_unix.address)
    draining = asyncio.ensure_future(watcher.drain(op.conn))
    await settle(5)
    assert not draining.done()
    full_unix.accept().close()
    async with asyncio.timeout(10):
        await draining
    assert op.completed
    assert await one(watcher) is op


async def test_D5_drain_waits_for_another_connection_when_one_is_freed_as_it_connects(
    watcher: Watcher, full_unix: Place
) -> None:
    server, client = unix_pair()
    with client:
        write = watcher.write(server, bytes(1 << 24))
        connect = watcher.connect(full_unix.socket(), full_unix.address)
        draining = asyncio.ensure_future(watcher.drain())
        await settle()
        watcher.free(connect.conn)
        await settle()
        assert not draining.done()
        watcher.free(server)
        await draining
        assert await collect(watcher, 2) == [connect, write]
        await assert_nothing_more(watcher)


@single_endings
async def test_T2_what_stands_behind_a_connect_ends_alone(
    watcher: Watcher, full: Place, ending: Ending
) -> None:
    conn = watcher.delegate(full.socket())
    connect = watcher.connect(conn, full.address)
    behind = [watcher.read(conn, **ending.times()), watcher.write(conn, b"x", **ending.times())]
    others = [watcher.read(conn), watcher.write(conn, b"y")]
    for op in behind:
        ending.act(watcher, op)
    assert set(await collect(watcher, 2)) == set(behind)
    assert {type(op.error) for op in behind} == {ending.error}
    assert not connect.completed
    assert watcher.pending(conn).requests == 3
    watcher.cancel(connect)
    assert set(await collect(watcher, 3)) == {connect, *others}
    await assert_nothing_more(watcher)


# --- Exactly one result ---------------------------------------------------------------------------


@every_ending
async def test_D1_connect_under_way_ends_once(
    watcher: Watcher, full: Place, ending: Ending
) -> None:
    """And what stands behind it ends with its error."""
    conn = watcher.delegate(full.socket())
    op = watcher.connect(conn, full.address, **ending.times())
    behind = [watcher.read(conn), watcher.write(conn, b"1", silent=True), watcher.shutdown(conn)]
    assert not op.completed
    ending.act(watcher, op)
    results = await collect(watcher, 3 + 1)
    assert results[0] is op
    assert {type(result.error) for result in results} == {ending.error}
    assert [result.type for result in results[1:]].count(OpType.WRITE) == 1
    assert {behind[0], behind[2]} < set(results)
    assert conn.closed is (ending.error in (ConnectionFreedError, WatcherClosedError))
    assert watcher.cancel(op) is False
    await assert_nothing_more(watcher)


async def test_T1_connect_that_is_overdue_is_begun_once(watcher: Watcher, full: Place) -> None:
    for times in ({"timeout": 0}, {"deadline": asyncio.get_running_loop().time()}):
        op = watcher.connect(full.socket(), full.address, **times)
        assert watcher.poll_io() == [op]
        assert type(op.error) is DeadlineExceededError


async def test_T1_connect_that_is_overdue_and_done_at_once_succeeds(
    watcher: Watcher, tmp_path: Path
) -> None:
    place = Place(socket.AF_UNIX, tmp_path)
    op = watcher.connect(place.socket(), place.address, timeout=0)
    assert watcher.poll_io() == [op]
    assert op.error is None
    place.close()


async def test_T2_connect_again_after_the_deadline(watcher: Watcher, full_unix: Place) -> None:
    conn = watcher.delegate(full_unix.socket())
    watcher.connect(conn, full_unix.address, timeout=0)
    assert type((await one(watcher)).error) is DeadlineExceededError
    full_unix.accept().close()
    watcher.connect(conn, full_unix.address)
    assert (await one(watcher)).error is None
    with full_unix.accept() as peer:
        watcher.write(conn, b"data")
        assert await receive(peer, 4) == b"data"
    assert (await one(watcher)).error is None


async def test_connect_that_was_given_up_goes_on_in_the_system(
    watcher: Watcher, tcp: Place
) -> None:
    """As the docstring says; the next connect finds it done, and the writer still wakes up."""
    conn = watcher.delegate(tcp.socket())
    op = watcher.connect(conn, tcp.address)
    assert watcher.cancel(op)
    assert type((await one(watcher)).error) is OperationCancelledError
    write = watcher.write(conn, b"data")
    assert await one(watcher) is write
    with tcp.accept() as peer:
        assert await receive(peer, 4) == b"data"
    watcher.free(conn)
    await assert_nothing_more(watcher)


async def test_D1_connect_survives_a_cancelled_wait_io(watcher: Watcher, full_unix: Place) -> None:
    op = watcher.connect(full_unix.socket(), full_unix.address)
    waiting = asyncio.ensure_future(watcher.wait_io())
    await settle(2)
    full_unix.accept().close()
    await until(lambda: op.completed)
    waiting.cancel()
    results = (await asyncio.gather(waiting, return_exceptions=True))[0]
    if isinstance(results, asyncio.CancelledError):
        results = await watcher.wait_io()
    assert results == [op]
    await assert_nothing_more(watcher)


async def test_connect_of_a_freed_connection(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    watcher.free(conn)
    op = watcher.connect(conn, tcp.address)
    assert watcher.poll_io() == [op]
    assert type(op.error) is ConnectionFreedError
    assert_balanced(watcher)


# --- What has come already when the connection is seen --------------------------------------------


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
async def test_O4_connect_data_and_end_at_once(watcher: Watcher, tcp: Place, seen: bool) -> None:
    """No edge tells of the end any more: the read after a short receive has to find it."""
    conn = watcher.delegate(tcp.socket())
    watcher.connect(conn, tcp.address)
    if seen:
        await one(watcher)
    with tcp.accept() as peer:
        peer.sendall(b"data")
    await until(lambda: half_closed(conn))
    if not seen:
        await one(watcher)
    else:
        await settle(3)
    watcher.read(conn)
    assert (await one(watcher)).data == b"data"
    watcher.read(conn)
    assert type((await one(watcher)).error) is EndOfStreamError


async def test_O4_connect_and_reset_at_once(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    ops = [watcher.connect(conn, tcp.address), watcher.read(conn)]
    reset(tcp.accept())
    ready(conn, select.POLLHUP)
    assert await collect(watcher, 2) == ops
    assert {type(op.error) for op in ops} == {ConnectionResetError}


async def test_O4_reset_right_after_the_connect(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    watcher.connect(conn, tcp.address)
    assert (await one(watcher)).error is None
    reset(tcp.accept())
    for _ in range(2):
        watcher.read(conn)
        assert type((await one(watcher)).error) is ConnectionResetError


async def test_connect_and_urgent_data_at_once(watcher: Watcher, tcp: Place) -> None:
    """A receive stops at its mark, and no edge tells of what is behind it."""
    conn = watcher.delegate(tcp.socket())
    watcher.connect(conn, tcp.address)
    with tcp.accept() as peer:
        peer.sendall(b"before")
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"behind")
        await until(lambda: unread(conn) > 0)
        assert (await one(watcher)).error is None
        received = b""
        while len(received) < 12:
            watcher.read(conn)
            received += (await one(watcher, within=2)).data
    assert received == b"beforebehind"


# --- Behind earlier requests: datagrams, which connect at any time --------------------------------


async def test_connect_datagrams(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    op = watcher.connect(conn, peer.getsockname(), timeout=0)
    assert watcher.poll_io() == [op]
    assert op.error is None
    assert conn.peername == peer.getsockname()
    watcher.write(conn, b"data")
    assert peer.recv(10) == b"data"
    peer.sendto(b"back", conn.sockname)
    watcher.read(conn)
    assert [r.data for r in await collect(watcher, 2)] == [b"", b"back"]


async def test_connect_datagrams_to_another_address(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    """Unlike a stream, they may be connected anew."""
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    for address in (("127.0.0.1", 9), peer.getsockname()):
        watcher.connect(conn, address)
        assert (await one(watcher)).error is None
        assert conn.peername == address


async def _served(watcher: Watcher, peer: socket.socket, read: Operation) -> None:
    peer.sendto(b"data", read.conn.sockname)


async def _cancelled(watcher: Watcher, peer: socket.socket, read: Operation) -> None:
    assert watcher.cancel(read)


async def _armed_and_served(watcher: Watcher, peer: socket.socket, read: Operation) -> None:
    await _served(watcher, peer, read)
    assert (await one(watcher)).more
    assert read.conn.peername is None
    await _cancelled(watcher, peer, read)


async def _expired(watcher: Watcher, peer: socket.socket, read: Operation) -> None:
    """Its timeout is short."""


WAYS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "served": (_served, {}),
    "cancelled": (_cancelled, {}),
    "expired": (_expired, {"timeout": SHORT}),
    "armed, served": (_armed_and_served, {"multishot": True}),
    "armed, cancelled": (_cancelled, {"multishot": True}),
    "armed, expired": (_expired, {"multishot": True, "timeout": SHORT}),
}


@pytest.mark.parametrize(("way", "arguments"), WAYS.values(), ids=WAYS)
async def test_S3_connect_waits_for_earlier_reads(
    watcher: Watcher,
    datagrams: tuple[socket.socket, socket.socket],
    way: Callable[..., Any],
    arguments: dict[str, Any],
) -> None:
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    read = watcher.read(conn, **arguments)
    connect = watcher.connect(conn, peer.getsockname())
    behind = watcher.write(conn, b"behind")
    if "timeout" not in arguments:
        await settle(2)
    assert conn.peername is None
    assert watcher.pending(conn).requests == 3
    await way(watcher, peer, read)
    assert await collect(watcher, 3) == [read, connect, behind]
    assert (connect.error, behind.error) == (None, None)
    assert conn.peername == peer.getsockname()
    assert peer.recv(10) == b"behind"
    await assert_nothing_more(watcher)


@every_ending
async def test_D1_connect_behind_a_read_ends_once(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket], ending: Ending
) -> None:
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    read = watcher.read(conn)
    connect = watcher.connect(conn, peer.getsockname(), **ending.times())
    write = watcher.write(conn, b"behind")
    ending.act(watcher, connect)
    closing = ending.error in (ConnectionFreedError, WatcherClosedError)
    expected = [read, connect, write] if closing else [connect, write]
    assert await collect(watcher, len(expected)) == expected
    assert {type(op.error) for op in expected} == {ending.error}
    if not closing:
        peer.sendto(b"data", conn.sockname)
        assert await one(watcher) is read
        assert (read.data, conn.peername) == (b"data", None)
    await assert_nothing_more(watcher)


async def test_T1_overdue_connect_behind_a_read_is_not_begun(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    watcher.read(conn)
    op = watcher.connect(conn, peer.getsockname(), timeout=0)
    assert watcher.poll_io() == [op]
    assert type(op.error) is DeadlineExceededError
    assert conn.peername is None


async def test_S3_connect_behind_a_request_of_another_thread(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    await asyncio.to_thread(watcher.threadsafe.read, conn, context="read")
    watcher.connect(conn, peer.getsockname(), context="connect")
    peer.sendto(b"data", conn.sockname)
    assert [op.context for op in await collect(watcher, 2)] == ["read", "connect"]
    await assert_nothing_more(watcher)


async def test_D1_connect_that_a_close_overtakes(
    watcher: Watcher, datagrams: tuple[socket.socket, socket.socket]
) -> None:
    """It stands in the queue of other threads' requests when the watcher closes."""
    ours, peer = datagrams
    conn = watcher.delegate(ours)
    watcher.threadsafe.read(conn)
    op = watcher.connect(conn, peer.getsockname())
    watcher.close()
    results = await collect(watcher, 2)
    assert results[-1] is op
    assert {type(result.error) for result in results} == {WatcherClosedError}
    assert_balanced(watcher)


async def test_T3_connect_behind_a_torn_write(watcher: Watcher) -> None:
    ours, peer = small_pair()
    conn = watcher.delegate(ours)
    write = watcher.write(conn, bytes(LONG))
    behind = watcher.connect(conn, "somewhere")
    watcher.cancel(write)
    between = watcher.connect(conn, "somewhere")
    assert await collect(watcher, 3) == [write, behind, between]
    assert write.size > 0
    for op in (behind, between):
        assert type(op.error) is OperationCancelledError
        assert op.error.__cause__ is not None
    peer.close()
    await assert_nothing_more(watcher)


# --- Hang-ups are requests as well ----------------------------------------------------------------


async def test_hangup_behind_a_connect_waits_for_it(watcher: Watcher, full_unix: Place) -> None:
    """A socket that is not connected yet looks hung up."""
    conn = watcher.delegate(full_unix.socket())
    connect = watcher.connect(conn, full_unix.address)
    hangup = watcher.notify_hangup(conn)
    await settle(3)
    assert watcher.poll_io() == []
    full_unix.accept().close()
    assert await one(watcher) is connect
    peer = full_unix.accept()
    await settle(5)
    assert not hangup.completed
    peer.close()
    assert await one(watcher) is hangup
    assert hangup.error is None


async def test_hangup_behind_a_connect_that_is_refused(watcher: Watcher, tcp: Place) -> None:
    conn = watcher.delegate(tcp.socket())
    connect = watcher.connect(conn, refused_address(tcp))
    hangup = watcher.notify_hangup(conn)
    assert await collect(watcher, 2) == [connect, hangup]
    assert type(hangup.error) is ConnectionRefusedError


# --- Misuse ---------------------------------------------------------------------------------------

NOT_NUMERIC = [
    (socket.AF_INET, ("localhost", 80)),
    (socket.AF_INET, ("example.org", 80)),
    (socket.AF_INET, ("::1", 80)),
    (socket.AF_INET, ("127.0.0.1\0", 80)),
    (socket.AF_INET, ("127.0.0.1%lo", 80)),
    (socket.AF_INET6, ("localhost", 80)),
    (socket.AF_INET6, ("127.0.0.1", 80, 0, 0)),
]


@pytest.mark.parametrize(("family", "address"), NOT_NUMERIC)
async def test_S2_connect_takes_numeric_addresses_only(family: int, address: Any) -> None:
    """A look-up would block the loop; the error says whose work it is."""
    with socket.socket(family) as sock:
        async with Watcher() as watcher:
            with pytest.raises(ValueError, match=r"loop\.getaddrinfo"):
                watcher.connect(sock, address)
            assert watcher.statistics().submitted == 0
        assert sock.fileno() >= 0


WRONG_ADDRESSES: list[tuple[int, Any, type[Exception]]] = [
    (socket.AF_INET, "127.0.0.1", TypeError),
    (socket.AF_INET, ["127.0.0.1", 80], TypeError),
    (socket.AF_INET, ("127.0.0.1",), TypeError),
    (socket.AF_INET, ("127.0.0.1", 80, 0), TypeError),
    (socket.AF_INET, ("127.0.0.1", "80"), TypeError),
    (socket.AF_INET, (None, 80), TypeError),
    (socket.AF_INET, ("127.0.0.1", 65536), ValueError),
    (socket.AF_INET, ("127.0.0.1", -1), ValueError),
    (socket.AF_INET6, ("::1",), TypeError),
    (socket.AF_INET6, ("::1", 80, 0, 0, 0), TypeError),
    (socket.AF_INET6, ("::1", 80, "0"), TypeError),
    (socket.AF_INET6, ("::1", 80, -1), ValueError),
    (socket.AF_INET6, ("::1", 80, 1 << 20), ValueError),
    (socket.AF_INET6, ("::1", 80, 0, 1 << 32), ValueError),
    (socket.AF_UNIX, ("127.0.0.1", 80), TypeError),
    (socket.AF_UNIX, None, TypeError),
    (socket.AF_UNIX, "/" + "long" * 50, ValueError),
]


@pytest.mark.parametrize(("family", "address", "error"), WRONG_ADDRESSES)
async def test_S2_connect_to_what_is_no_address(
    family: int, address: Any, error: type[Exception]
) -> None:
    with socket.socket(family) as sock:
        sock.settimeout(7)
        async with Watcher() as watcher:
            with pytest.raises(error):
                watcher.connect(sock, address)
            assert (watcher.statistics().submitted, watcher.statistics().connections) == (0, 0)
        assert sock.fileno() >= 0
        assert sock.gettimeout() == 7


@pytest.mark.parametrize(("times", "error"), BAD_TIMES)
async def test_S2_connect_with_a_bad_time(
    tcp: Place, times: dict[str, Any], error: type[Exception]
) -> None:
    with tcp.socket() as sock:
        async with Watcher() as watcher:
            with pytest.raises(error):
                watcher.connect(sock, tcp.address, **times)
            assert watcher.statistics().connections == 0
        assert sock.fileno() >= 0


async def test_S2_connect_of_what_cannot(tcp: Place) -> None:
    async with Watcher() as watcher, Watcher() as other:
        conn = other.delegate(tcp.socket())
        listener = watcher.delegate(tcp.listener.dup())
        for wrong in (conn, listener, tcp.listener, object(), None):
            with pytest.raises(UnsupportedConnectionError):
                watcher.connect(wrong, tcp.address)
        assert tcp.listener.fileno() >= 0
        with tcp.socket() as spent:
            spent.close()
            with pytest.raises(UnsupportedConnectionError):
                watcher.connect(spent, tcp.address)
        assert watcher.statistics().submitted == 0
        assert other.statistics().submitted == 0


async def test_S2_connect_on_a_closed_watcher(tcp: Place) -> None:
    watcher = Watcher()
    watcher.close()
    with tcp.socket() as sock:
        with pytest.raises(WatcherClosedError):
            watcher.connect(sock, tcp.address)
        assert sock.fileno() >= 0


async def test_connect_of_a_descriptor_that_is_no_socket(watcher: Watcher) -> None:
    read_end, write_end = os.pipe()
    conn = watcher.delegate(read_end)
    watcher.connect(conn, "somewhere")
    error = (await one(watcher)).error
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOTSOCK
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("ends", ["free", "close"])
async def test_S3_what_stands_before_a_connect_completes_before_it_at_the_end(
    watcher: Watcher, ends: str
) -> None:
    """In both directions, since it occupies both; what stands behind it comes after it."""
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        before = [watcher.read(conn), watcher.write(conn, bytes(LONG)), watcher.write(conn, b"x")]
        connect = watcher.connect(conn, peer.getsockname())
        behind = [watcher.read(conn), watcher.write(conn, b"y")]
        watcher.free(conn) if ends == "free" else watcher.close()
        assert watcher.poll_io() == [*before, connect, *behind]


async def test_connect_of_a_connected_pair_frees_cleanly(watcher: Watcher) -> None:
    ours, peer = tcp_pair()
    conn = watcher.delegate(ours)
    op = watcher.connect(conn, peer.getsockname())
    assert await one(watcher) is op
    watcher.free(conn)
    ready(peer)
    assert peer.recv(1) == b""
    peer.close()
    await assert_nothing_more(watcher)
