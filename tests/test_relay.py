"""``relay()``: two streams joined, until both have ended.

``near`` is the peer of the first connection, ``far`` the peer of the second: what one of them
sends, the other receives.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import random
import socket
import stat
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

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
    WatcherClosedError,
)
from aiogaio.attempts import splices
from aiogaio.proactor import Proactor
from tests.probes import (
    drained,
    fill,
    half_closed,
    has_urgent_data,
    hung_up,
    in_a_child,
    open_descriptors,
    ready,
    receive,
    recorded_warnings,
    resource_warnings,
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

PAYLOAD = random.Random(7).randbytes(1 << 20)


@dataclass
class Line:
    """Two connections of a watcher, to be relayed, and their peers."""

    watcher: Watcher
    near: socket.socket
    a: Connection
    b: Connection
    far: socket.socket

    def relay(self, **options: Any) -> Operation:
        return self.watcher.relay(self.a, self.b, **options)

    def end(self) -> None:
        self.near.shutdown(socket.SHUT_WR)
        self.far.shutdown(socket.SHUT_WR)

    async def carries(self, there: bytes = b"there", back: bytes = b"back") -> None:
        """The relay is at work."""
        self.near.sendall(there)
        self.far.sendall(back)
        assert await receive(self.far, len(there)) == there
        assert await receive(self.near, len(back)) == back


Lay = Callable[..., Line]


@pytest.fixture
def lay() -> Iterator[Lay]:
    """Makes a line; its peers are closed when the test is over."""
    with ExitStack() as stack:

        def make(watcher: Watcher, kind: Callable[[], Any] = tcp_pair, other: Any = None) -> Line:
            (first, near), (second, far) = kind(), (other or kind)()
            stack.enter_context(near)
            stack.enter_context(far)
            return Line(watcher, near, watcher.delegate(first), watcher.delegate(second), far)

        yield make


@pytest.fixture
def line(watcher: Watcher, lay: Lay) -> Line:
    return lay(watcher)


def no_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splices, "_CAN_SPLICE", False)
    monkeypatch.delattr(os, "splice")


def failing(call: str, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return lambda monkeypatch: monkeypatch.setattr(os, call, fail)


def one_sided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receiving into a pipe works, sending from it does not."""
    splice = os.splice

    def half(source: int, target: int, *args: Any, **options: Any) -> int:
        if not is_pipe(target):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return splice(source, target, *args, **options)

    monkeypatch.setattr(os, "splice", half)


WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "splice": lambda monkeypatch: None,
    "no-splice": no_splice,
    "splice-EINVAL": failing("splice", errno.EINVAL),
    "splice-out-EINVAL": one_sided,
    "pipe-EMFILE": failing("pipe2", errno.EMFILE),
    "pipe-ENFILE": failing("pipe2", errno.ENFILE),
}

every_way = pytest.mark.parametrize("way", WAYS)


def is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def pipes() -> set[int]:
    """The descriptors of this process that are ends of pipes."""
    return set(filter(is_pipe, open_descriptors()))


async def send(peer: socket.socket, data: bytes) -> None:
    """All of it, with the loop running meanwhile."""
    peer.setblocking(False)
    view = memoryview(data)
    async with asyncio.timeout(20):
        while view:
            try:
                view = view[peer.send(view[: 1 << 18]) :]
            except BlockingIOError:
                await asyncio.sleep(0)


async def flood(peer: socket.socket) -> int:
    """Send until nothing has been taken for a while, in time and in turns; how much was."""
    loop = asyncio.get_running_loop()
    total, last, turns = 0, loop.time(), 0
    async with asyncio.timeout(20):
        while turns < 15 or loop.time() < last + 0.02:
            turns += 1
            if count := fill(peer):
                total, last, turns = total + count, loop.time(), 0
            await asyncio.sleep(0.001)
    return total


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each call of a poller, or of the loop, that asks the watcher to look."""
    calls: list[str] = []

    def counted(name: str) -> None:
        method = getattr(Proactor, name)

        def count(self: Proactor, *args: Any) -> Any:
            calls.append(name)
            return method(self, *args)

        monkeypatch.setattr(Proactor, name, count)

    for name in ("_look", "_take_read", "_take_one"):
        counted(name)
    return calls


async def assert_quiet(turns: list[str]) -> None:
    """The watcher does nothing while nothing moves."""
    await settle()
    del turns[:]
    await asyncio.sleep(0.03)
    assert len(turns) <= 5, f"{len(turns)} turns: {turns[:10]}"


def assert_balanced(watcher: Watcher, *connections: Connection) -> None:
    statistics = watcher.statistics()
    assert statistics.submitted == statistics.completed
    assert statistics.pending == 0
    for connection in connections:
        assert watcher.pending(connection).requests == 0
        assert watcher.pending(connection).queued_bytes == 0


# --- The plain case ------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("kind", "other"),
    [(tcp_pair, tcp_pair), (unix_pair, unix_pair), (tcp_pair, small_pair)],
    ids=["tcp", "unix", "tcp-small"],
)
async def test_relay_brings_both_directions_byte_for_byte(
    watcher: Watcher,
    lay: Lay,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    other: Any,
    way: str,
) -> None:
    WAYS[way](monkeypatch)
    line = lay(watcher, kind, other)
    relay = line.relay(context="mine")
    there, back = PAYLOAD[:600_001], PAYLOAD[300_000:700_003]

    async def one_way(source: socket.socket, target: socket.socket, data: bytes) -> bytes:
        sending = asyncio.create_task(send(source, data))
        received = await receive(target, len(data))
        await sending
        source.shutdown(socket.SHUT_WR)
        return received

    assert await asyncio.gather(
        one_way(line.near, line.far, there), one_way(line.far, line.near, back)
    ) == [there, back]
    assert await one(watcher) is relay
    assert (relay.type, relay.error, relay.conn) == (OpType.RELAY, None, line.a)
    assert relay.sizes == (len(there), len(back))
    assert relay.size == len(there) + len(back)
    assert relay.context == "mine"
    assert relay.completed
    assert not relay.more
    statistics = watcher.statistics()
    assert (statistics.bytes_read, statistics.bytes_written) == (relay.size, relay.size)
    assert_balanced(watcher, line.a, line.b)
    assert await drained(line.far) == await drained(line.near) == b""


async def test_relay_uses_splice_for_bulk(
    watcher: Watcher, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of the ways prove something only if there is another one."""
    moved: list[int] = []
    splice = os.splice

    def counted(*args: Any, **options: Any) -> int:
        count = splice(*args, **options)
        moved.append(count)
        return count

    monkeypatch.setattr(os, "splice", counted)
    line = lay(watcher)
    line.relay()
    sending = asyncio.create_task(send(line.near, PAYLOAD))
    assert await receive(line.far, len(PAYLOAD)) == PAYLOAD
    await sending
    assert sum(moved) > len(PAYLOAD)  # in and out


async def test_relay_context_is_the_first_connection_s_own(line: Line) -> None:
    line.a.context, line.b.context = "first", "second"
    assert line.relay().context == "first"


async def test_relay_of_sockets_delegates_them(watcher: Watcher) -> None:
    (first, near), (second, far) = tcp_pair(), unix_pair()
    with near, far:
        relay = watcher.relay(first, second)
        assert watcher.statistics().connections == 2
        near.sendall(b"there")
        assert await receive(far, 5) == b"there"
        assert relay.conn is watcher.delegate(first)


async def test_relay_of_messages_to_and_fro(line: Line) -> None:
    line.relay()
    for number in range(20):
        await line.carries(b"there %d" % number, b"back %d" % number)
    line.end()
    relay = await one(line.watcher)
    assert (relay.error, relay.sizes) == (None, (10 * 7 + 10 * 8, 10 * 6 + 10 * 7))


@every_way
@pytest.mark.parametrize("last", [0, 1, 100_000])
@pytest.mark.parametrize("kind", [tcp_pair, unix_pair], ids=["tcp", "unix"])
async def test_relay_goes_on_behind_urgent_data(
    watcher: Watcher,
    lay: Lay,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: Callable[[], Any],
    last: int,
) -> None:
    """At the mark splice(2) moves nothing, which is neither the end nor EAGAIN."""
    if not has_urgent_data(kind):
        pytest.skip("no urgent data of such sockets on this machine")
    WAYS[way](monkeypatch)
    line = lay(watcher, kind)
    relay = line.relay()
    there = PAYLOAD[: 300_000 + last]
    for _ in range(3):

        async def with_a_mark() -> None:
            await send(line.near, there[:300_000])
            assert line.near.send(b"!", socket.MSG_OOB) == 1
            await send(line.near, there[300_000:])

        sending = asyncio.create_task(with_a_mark())
        assert await receive(line.far, len(there)) == there
        await sending
    await line.carries()
    line.end()
    assert await one(watcher) is relay
    assert (relay.error, relay.sizes) == (None, (3 * len(there) + 5, 4))


@every_way
async def test_relay_of_a_pipe_into_a_socket(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    reader, writer = os.pipe()
    WAYS[way](monkeypatch)
    ours, peer = tcp_pair()
    with peer:
        relay = watcher.relay(watcher.delegate(reader), ours)
        os.write(writer, PAYLOAD[:50_000])
        assert await receive(peer, 50_000) == PAYLOAD[:50_000]
        os.close(writer)
        assert await drained(peer) == b""
        peer.close()
        assert await one(watcher) is relay
        assert (relay.error, relay.sizes) == (None, (50_000, 0))
    os.close(reader)


# --- Ends ----------------------------------------------------------------------------------------


async def test_relay_passes_a_half_close_on(line: Line) -> None:
    relay = line.relay()
    line.near.sendall(b"request")
    line.near.shutdown(socket.SHUT_WR)
    assert await drained(line.far) == b"request"
    line.far.setblocking(True)
    for _ in range(3):
        line.far.sendall(b"response")
        assert await receive(line.near, 8) == b"response"
    assert not relay.completed
    line.far.close()
    assert await drained(line.near) == b""
    assert await one(line.watcher) is relay
    assert (relay.error, relay.sizes) == (None, (7, 24))


async def test_relay_of_streams_that_have_ended_already(watcher: Watcher, lay: Lay) -> None:
    for kind in (tcp_pair, unix_pair):
        line = lay(watcher, kind)
        line.near.sendall(b"last words")
        line.end()
        line.relay()
        relay = await one(watcher)
        assert (relay.error, relay.sizes) == (None, (10, 0))
        assert await drained(line.far) == b"last words"


@pytest.mark.parametrize("batch_size", [1, 32, 48, 128])
@pytest.mark.parametrize("way", ["splice", "no-splice"])
@pytest.mark.parametrize("odd", [0, 1])
async def test_relay_finds_the_end_in_whichever_step_it_comes(
    poller: Any,
    lay: Lay,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    way: str,
    odd: int,
) -> None:
    """A turn ends after some steps; the end, or a byte before it, may be in any of them."""
    WAYS[way](monkeypatch)
    async with Watcher(poller=poller, batch_size=batch_size) as watcher:
        for steps in range(0, 18, 1 if batch_size > 32 and way == "no-splice" else 5):
            line = lay(watcher, unix_pair)
            line.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            data = PAYLOAD[: steps * 16 * 1024 + odd]
            line.near.sendall(data)
            line.end()
            line.relay()
            receiving = asyncio.create_task(drained(line.far))
            relay = await one(watcher, within=2)
            assert (relay.error, relay.sizes) == (None, (len(data), 0))
            assert await receiving == data
            watcher.free(line.a)
            watcher.free(line.b)
            line.near.close()
            line.far.close()


async def fails(line: Line, relay: Operation, error: type[OSError]) -> None:
    assert await one(line.watcher) is relay
    assert type(relay.error) is error
    assert_balanced(line.watcher, line.a, line.b)


async def assert_said_of_each(line: Line, reset_one: Connection) -> None:
    """O4: of a reset connection that it was reset, of the other that it ended."""
    for conn, peer in ((line.a, line.near), (line.b, line.far)):
        if conn is reset_one:
            expected: type[Exception] = ConnectionResetError
        else:
            expected = EndOfStreamError
            peer.shutdown(socket.SHUT_WR)
        while True:  # what was not taken comes first
            line.watcher.read(conn)
            read = await one(line.watcher)
            if read.error is not None:
                break
        assert type(read.error) is expected


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_O4_relay_ends_with_a_reset_of_either_side(line: Line, first: bool) -> None:
    relay = line.relay()
    await line.carries()
    victim, peer = (line.a, line.near) if first else (line.b, line.far)
    reset(peer)
    await fails(line, relay, ConnectionResetError)
    assert relay.sizes == (5, 4)
    await assert_said_of_each(line, victim)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_O4_relay_finds_the_reset_when_it_sends(line: Line, first: bool) -> None:
    """The system tells the send of it, and is silent to all that comes later."""
    await settle()
    victim, peer, other = (line.a, line.near, line.far) if first else (line.b, line.far, line.near)
    other.sendall(b"into the void")
    reset(peer)
    await until(lambda: hung_up(victim))
    await fails(line, line.relay(), ConnectionResetError)
    await assert_said_of_each(line, victim)


@every_way
async def test_relay_ends_with_a_reset_in_the_middle_of_bulk(
    watcher: Watcher, lay: Lay, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    WAYS[way](monkeypatch)
    line = lay(watcher)
    relay = line.relay()
    await flood(line.near)
    reset(line.far)
    await fails(line, relay, ConnectionResetError)
    await assert_said_of_each(line, line.b)


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "at-the-call"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_O4_relay_brings_what_came_before_a_reset(
    line: Line, begun: bool, first: bool
) -> None:
    victim, peer, other = (line.a, line.near, line.far) if first else (line.b, line.far, line.near)
    relay = line.relay() if begun else None
    await settle()
    peer.sendall(b"last words")
    reset(peer)
    if relay is None:
        await until(lambda: hung_up(victim))
        relay = line.relay()
    await fails(line, relay, ConnectionResetError)
    assert relay.sizes == ((10, 0) if first else (0, 10))
    assert await receive(other, 10) == b"last words"


async def test_S3_relay_that_waits_fails_behind_what_stands_before_it(line: Line) -> None:
    watcher = line.watcher
    operations = [watcher.read(line.a), watcher.read(line.a), line.relay()]
    await settle()
    reset(line.near)
    assert await collect(watcher, 3) == operations
    assert [type(op.error) for op in operations] == [ConnectionResetError] * 3


async def test_relay_that_waits_for_a_broken_pipe(watcher: Watcher, lay: Lay) -> None:
    """There is no SO_ERROR to ask for; what is ready in the same turn is not lost."""
    reader, writer = os.pipe()
    line = lay(watcher)
    read = watcher.read(line.a)
    relay = watcher.relay(line.a, watcher.delegate(writer))
    await settle()
    os.close(reader)
    os.close(writer)
    other = watcher.read(line.b)
    line.far.sendall(b"heard")
    assert await one(watcher) is other
    line.near.sendall(b"x")
    assert await collect(watcher, 2) == [read, relay]
    assert isinstance(relay.error, OSError)
    assert_balanced(watcher)


async def test_relay_ends_when_a_unix_peer_goes_with_bytes_unread(
    watcher: Watcher, lay: Lay
) -> None:
    line = lay(watcher, unix_pair)
    relay = line.relay()
    line.near.sendall(b"x")
    await until(lambda: unread(line.far) == 1)
    line.far.close()
    await fails(line, relay, ConnectionResetError)
    await assert_said_of_each(line, line.b)


async def test_relay_of_a_terminal(watcher: Watcher) -> None:
    """One descriptor, both directions, and no socket."""
    master, slave = os.openpty()
    tty.setraw(slave)
    ours, peer = unix_pair()
    with peer:
        relay = watcher.relay(watcher.delegate(master), ours)
        peer.sendall(b"typed")
        await until(lambda: unread_of(slave) == 5)
        assert os.read(slave, 9) == b"typed"
        os.write(slave, b"shown")
        assert await receive(peer, 5) == b"shown"
        os.close(slave)
        assert await one(watcher) is relay
        assert (type(relay.error), relay.sizes) == (OSError, (5, 5))  # EIO: it is so for ttys
    os.close(master)


def unread_of(fd: int) -> int:
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(answer, sys.byteorder)


async def test_relay_and_who_waits_for_its_sides_to_hang_up(line: Line) -> None:
    watcher = line.watcher
    relay = line.relay()
    hangups = watcher.notify_hangup(line.a), watcher.notify_hangup(line.b)
    await line.carries()
    line.near.shutdown(socket.SHUT_WR)
    assert await one(watcher) is hangups[0]
    line.far.sendall(b"still")
    assert await receive(line.near, 5) == b"still"
    line.far.shutdown(socket.SHUT_WR)
    assert {id(op) for op in await collect(watcher, 2)} == {id(hangups[1]), id(relay)}
    assert relay.error is None


async def test_relay_ends_with_a_broken_pipe(watcher: Watcher, lay: Lay) -> None:
    line = lay(watcher, unix_pair)
    line.far.close()
    await settle()
    line.near.sendall(b"into the void")
    await fails(line, line.relay(), BrokenPipeError)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_relay_ends_with_a_reset_of_a_side_that_has_ended(line: Line, first: bool) -> None:
    if line.watcher.statistics().poller == "loop":
        pytest.skip("it is told only of what it waits for")
    relay = line.relay()
    peer, other = (line.near, line.far) if first else (line.far, line.near)
    peer.shutdown(socket.SHUT_WR)
    await until(lambda: half_closed(other))
    reset(peer)
    await fails(line, relay, BrokenPipeError)  # so the system calls it after a FIN


# --- Back-pressure -------------------------------------------------------------------------------

HELD = 2 * 256 * 1024  # of a relay at most: a pipe, or the buffer


@every_way
@pytest.mark.parametrize("kind", [unix_pair, small_pair], ids=["wide", "small"])
async def test_relay_takes_nothing_that_the_other_side_does_not_take(
    watcher: Watcher,
    lay: Lay,
    monkeypatch: pytest.MonkeyPatch,
    turns: list[str],
    way: str,
    kind: Any,
) -> None:
    WAYS[way](monkeypatch)
    line = lay(watcher, kind)
    relay = line.relay()
    before = pipes()
    with traced() as grown:
        taken = await flood(line.near)
        await assert_quiet(turns)
        assert grown() < HELD
    assert len(pipes() - before) <= 2
    # Two socket buffers of 416 KiB at most (wmem_default, doubled), and what the relay holds.
    assert taken < 2 * 416 * 1024 + HELD
    assert not relay.completed
    assert await receive(line.far, taken) == bytes(taken)  # and all of it goes on
    await line.carries()
    line.end()
    assert await one(watcher) is relay
    assert (relay.error, relay.sizes) == (None, (taken + 5, 4))


async def test_relay_back_pressure_in_both_directions(
    watcher: Watcher, lay: Lay, turns: list[str]
) -> None:
    line = lay(watcher, small_pair)
    relay = line.relay()
    there, back = await flood(line.near), await flood(line.far)
    await assert_quiet(turns)
    received = await asyncio.gather(receive(line.far, there), receive(line.near, back))
    assert [len(one) for one in received] == [there, back]
    line.end()
    assert await one(watcher) is relay
    assert (relay.error, relay.sizes) == (None, (there, back))


async def test_relay_back_pressure_in_one_direction_leaves_the_other_alone(
    watcher: Watcher, lay: Lay, turns: list[str]
) -> None:
    line = lay(watcher, small_pair)
    line.relay()
    await flood(line.near)
    for _ in range(5):
        line.far.sendall(b"back")
        assert await receive(line.near, 4) == b"back"
    await assert_quiet(turns)


async def test_relay_that_is_idle_does_nothing(line: Line, turns: list[str]) -> None:
    line.relay()
    await line.carries()
    await assert_quiet(turns)


async def test_relay_that_has_ended_on_one_side_does_nothing(line: Line, turns: list[str]) -> None:
    line.relay()
    line.near.shutdown(socket.SHUT_WR)
    assert await drained(line.far) == b""
    await assert_quiet(turns)


async def test_relay_that_waits_does_nothing(line: Line, turns: list[str]) -> None:
    """It stands behind a read of one side while the other has bytes to bring."""
    watcher = line.watcher
    line.far.sendall(b"1")
    watcher.read(line.b)
    await one(watcher)
    watcher.read(line.a)
    line.relay()
    line.far.sendall(b"back")
    await until(lambda: unread(line.b) == 4)
    await assert_quiet(turns)
    line.near.sendall(b"2")
    assert (await one(watcher)).data == b"2"
    assert await receive(line.near, 4) == b"back"


async def test_relay_that_waits_does_nothing_though_it_could_send(
    watcher: Watcher, lay: Lay, turns: list[str]
) -> None:
    line = lay(watcher, small_pair)
    watcher.read(line.a)
    write = watcher.write(line.b, bytes(100_000))
    line.relay()
    assert not write.completed
    await receive(line.far, 100_000)
    assert await one(watcher) is write
    await assert_quiet(turns)
    line.near.sendall(b"2")
    assert (await one(watcher)).data == b"2"
    await line.carries()


# --- What came before, and what stands around it --------------------------------------------------


@every_way
@pytest.mark.parametrize("size", [5, 100_000])
async def test_relay_brings_first_what_read_until_has_kept(
    watcher: Watcher, lay: Lay, monkeypatch: pytest.MonkeyPatch, way: str, size: int
) -> None:
    """As after the head of a CONNECT request."""
    WAYS[way](monkeypatch)
    line = lay(watcher, unix_pair)
    line.near.sendall(b"CONNECT there\r\n\r\n" + PAYLOAD[:size])
    watcher.read_until(line.a, b"\r\n\r\n")
    assert (await one(watcher)).data == b"CONNECT there\r\n\r\n"
    relay = line.relay()
    line.near.sendall(b" and more")
    assert await receive(line.far, size + 9) == PAYLOAD[:size] + b" and more"
    line.end()
    assert await one(watcher) is relay
    assert (relay.error, relay.sizes) == (None, (size + 9, 0))


async def test_relay_brings_first_what_is_kept_on_the_second_side(line: Line) -> None:
    line.far.sendall(b"line\nrest")
    line.watcher.read_until(line.b, b"\n")
    await one(line.watcher)
    line.relay()
    assert await receive(line.near, 4) == b"rest"


async def test_relay_brings_first_what_asyncio_had_read(watcher: Watcher, lay: Lay) -> None:
    (ours, near), (second, far) = unix_pair(), unix_pair()
    with near, far:
        reader, writer = await asyncio.open_connection(sock=ours)
        near.sendall(b"head\nrest")
        assert await reader.readline() == b"head\n"
        watcher.relay(watcher.adopt(writer, reader), second)
        near.sendall(b" and more")
        assert await receive(far, 13) == b"rest and more"


async def test_S3_relay_waits_for_what_stands_before_it(line: Line) -> None:
    watcher = line.watcher
    first = watcher.read_full(line.a, bytearray(4))
    second = watcher.read_full(line.b, bytearray(4))
    relay = line.relay()
    line.far.sendall(b"far-back")
    assert await one(watcher) is second
    await settle()
    assert line.near.getblocking()
    line.near.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing of it is moved before its turn has come
        line.near.recv(1)
    line.near.sendall(b"nearthere")
    assert await one(watcher) is first
    assert (first.buffer, second.buffer) == (b"near", b"far-")
    assert await receive(line.far, 5) == b"there"
    assert await receive(line.near, 4) == b"back"
    line.end()
    assert await one(watcher) is relay
    assert relay.sizes == (5, 4)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16])
async def test_S3_relay_begins_behind_any_number_of_reads(line: Line, count: int) -> None:
    watcher = line.watcher
    for _ in range(count - 1):
        watcher.read(line.a, bytearray(1))
    watcher.read(line.a)
    line.relay()
    line.far.sendall(b"back")
    await until(lambda: unread(line.b) == 4)
    await settle()
    line.near.sendall(bytes(count))
    await collect(watcher, count)
    assert await receive(line.near, 4, within=2) == b"back"


@pytest.mark.parametrize("count", [1, 8, 9])
async def test_S3_relay_begins_behind_any_number_of_writes(
    watcher: Watcher, lay: Lay, count: int
) -> None:
    line = lay(watcher, small_pair)
    line.far.sendall(b"back")
    for _ in range(count):
        watcher.write(line.a, bytes(40_000))
        watcher.write(line.b, bytes(40_000))
    line.relay()
    received = await asyncio.gather(
        receive(line.far, count * 40_000), receive(line.near, count * 40_000 + 4)
    )
    assert received == [bytes(count * 40_000), bytes(count * 40_000) + b"back"]
    assert len(await collect(watcher, 2 * count)) == 2 * count


async def test_S3_requests_behind_a_relay_wait(line: Line) -> None:
    watcher = line.watcher
    relay = line.relay()
    behind = [
        watcher.write(line.a, b"written to near"),
        watcher.read(line.a),
        watcher.write(line.b, b"written to far"),
        watcher.read(line.b, bytearray(10)),
    ]
    await line.carries()
    await settle()
    assert not any(op.completed for op in behind)
    assert (watcher.pending(line.a).requests, watcher.pending(line.b).requests) == (3, 3)
    assert watcher.cancel(relay)
    results = await collect(watcher, 3)
    assert results[0] is relay
    assert {id(op) for op in results[1:]} == {id(behind[0]), id(behind[2])}
    assert await receive(line.near, 15) == b"written to near"
    assert await receive(line.far, 14) == b"written to far"
    line.near.sendall(b"read")
    line.far.sendall(b"read too")
    assert {bytes(op.data) for op in await collect(watcher, 2)} == {b"read", b"read too"}
    assert all(op.error is None for op in behind)
    assert_balanced(watcher, line.a, line.b)


async def test_S3_requests_behind_a_relay_see_the_end_that_it_saw(line: Line) -> None:
    watcher = line.watcher
    relay = line.relay()
    reads = watcher.read(line.a), watcher.read(line.b)
    writes = watcher.write(line.a, b"late"), watcher.write(line.b, b"late")
    line.end()
    results = await collect(watcher, 5)
    assert results[0] is relay
    assert [type(op.error) for op in reads] == [EndOfStreamError] * 2
    assert [type(op.error) for op in writes] == [BrokenPipeError] * 2  # the end was passed on


async def test_relays_one_behind_the_other(line: Line) -> None:
    first, second = line.relay(context=1), line.watcher.relay(line.b, line.a, context=2)
    await line.carries()
    line.watcher.cancel(first)
    assert await one(line.watcher) is first
    await line.carries(b"more", b"and more")
    line.end()
    assert await one(line.watcher) is second
    assert (first.sizes, second.sizes) == ((5, 4), (8, 4))


async def test_relays_of_a_chain_that_wait_for_each_other(watcher: Watcher, lay: Lay) -> None:
    """The second needs a connection of the first and one of the third; each gets its turn."""
    one_line, other = lay(watcher), lay(watcher)
    first = one_line.relay()
    second = watcher.relay(one_line.b, other.a)
    third = watcher.relay(other.a, other.b)
    await one_line.carries()
    watcher.cancel(first)
    assert await one(watcher) is first
    one_line.far.sendall(b"x")
    assert await receive(other.near, 1) == b"x"
    watcher.cancel(second)
    assert await one(watcher) is second
    await other.carries()
    watcher.cancel(third)
    assert await one(watcher) is third
    assert_balanced(watcher, one_line.a, one_line.b, other.a, other.b)


async def test_relay_ends_in_place_of_a_multishot_read_that_is_cancelled(line: Line) -> None:
    watcher = line.watcher
    armed = watcher.read(line.a, multishot=True)
    line.relay()
    line.near.sendall(b"shot")
    assert (await one(watcher)).data == b"shot"
    watcher.cancel(armed)
    assert await one(watcher) is armed
    await line.carries()


async def test_multishot_read_goes_on_behind_a_relay(line: Line) -> None:
    watcher = line.watcher
    relay = line.relay()
    watcher.read(line.a, multishot=True)
    await line.carries()
    watcher.cancel(relay)
    assert await one(watcher) is relay
    line.near.sendall(b"shot")
    shot = await one(watcher)
    assert (shot.data, shot.more) == (b"shot", True)


async def test_relay_behind_a_torn_write_is_cancelled(watcher: Watcher, lay: Lay) -> None:
    """T3: nothing may follow a torn message, whoever sends it."""
    line = lay(watcher, small_pair)
    torn = watcher.write(line.b, bytes(100_000))
    queued = line.relay()
    watcher.cancel(torn)
    later = line.relay()
    assert await collect(watcher, 3) == [torn, queued, later]
    assert torn.size > 0
    for relay in (queued, later):
        assert type(relay.error) is OperationCancelledError
        assert relay.error.__cause__ is torn.error
        assert relay.sizes == (0, 0)
    assert_balanced(watcher, line.a, line.b)
    await receive(line.far, torn.size)
    line.relay()  # the program knows now
    await line.carries()


# --- Taken away ----------------------------------------------------------------------------------

Act = Callable[[Line, Operation], Any]

TAKE_AWAY: dict[str, tuple[Act, type[Exception]]] = {
    "cancel": (lambda line, relay: line.watcher.cancel(relay), OperationCancelledError),
    "free-first": (lambda line, relay: line.watcher.free(line.a), ConnectionFreedError),
    "free-second": (lambda line, relay: line.watcher.free(line.b), ConnectionFreedError),
    "close-first": (lambda line, relay: line.a.close(), ConnectionFreedError),
    "close-watcher": (lambda line, relay: line.watcher.close(), WatcherClosedError),
    "cancel-from-elsewhere": (
        lambda line, relay: line.watcher.threadsafe.cancel(relay),
        OperationCancelledError,
    ),
    "free-from-elsewhere": (
        lambda line, relay: line.watcher.threadsafe.free(line.b),
        ConnectionFreedError,
    ),
}


@pytest.mark.parametrize("how", TAKE_AWAY)
@pytest.mark.parametrize("state", ["idle", "held", "queued"])
async def test_D1_relay_that_is_taken_away_completes_once(
    watcher: Watcher, lay: Lay, state: str, how: str
) -> None:
    act, error = TAKE_AWAY[how]
    before = pipes()
    line = lay(watcher, unix_pair)
    others = [watcher.read(line.a), watcher.read(line.b)] if state == "queued" else []
    relay = line.relay()
    if state == "held":
        await flood(line.near)
        assert any(way.sends for way in relay.ways)  # in a pipe or, if it is little, in memory
    act(line, relay)
    results = [op for op in await collect_until(watcher, relay) if op not in others]
    assert results == [relay]
    assert type(relay.error) is error
    assert not watcher.cancel(relay) if not watcher.closed else True
    if how == "cancel" and state != "queued":
        assert not line.a.closed
        assert not line.b.closed
        assert_balanced(watcher, line.a, line.b)
    assert relay.sizes[0] + relay.sizes[1] == relay.size
    watcher.close()
    assert {*watcher.poll_io()} <= {*others}
    assert watcher.statistics().pending == 0
    assert pipes() == before


async def collect_until(watcher: Watcher, last: Operation) -> list[Operation]:
    results: list[Operation] = []
    async with asyncio.timeout(10):
        while last not in results:
            results += await watcher.wait_io()
    return results


async def test_O2_relay_whose_side_is_freed_lets_the_other_go_on(line: Line) -> None:
    watcher = line.watcher
    relay = line.relay()
    read = watcher.read(line.a)
    watcher.free(line.b)
    assert await one(watcher) is relay
    line.near.sendall(b"mine again")
    assert await one(watcher) is read
    assert read.data == b"mine again"
    assert await drained(line.far) == b""


@pytest.mark.parametrize("which", ["first", "second"])
async def test_S2_relay_of_a_freed_connection_completes_with_the_error(
    line: Line, which: str
) -> None:
    watcher = line.watcher
    freed, other = (line.a, line.b) if which == "first" else (line.b, line.a)
    watcher.free(freed)
    relay = line.relay()
    assert await one(watcher) is relay
    assert type(relay.error) is ConnectionFreedError
    assert watcher.pending(other).requests == 0
    assert_balanced(watcher)


async def test_D1_relay_s_result_survives_a_cancelled_wait(line: Line) -> None:
    relay = line.relay()
    waiting = asyncio.create_task(line.watcher.wait_io())
    await settle()
    line.end()
    await until(lambda: relay.completed)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await one(line.watcher) is relay


async def test_D1_relay_cancelled_as_it_ends(line: Line) -> None:
    relay = line.relay()
    line.end()
    await until(lambda: relay.completed)
    assert not line.watcher.cancel(relay)
    assert await one(line.watcher) is relay
    assert relay.error is None


async def test_relay_leaves_connections_that_can_be_used_again(line: Line) -> None:
    watcher = line.watcher
    for _ in range(3):
        relay = line.relay()
        await line.carries()
        watcher.cancel(relay)
        assert await one(watcher) is relay
        read = watcher.read(line.a)
        line.near.sendall(b"read")
        assert await one(watcher) is read
        assert read.data == b"read"
        write = watcher.write(line.b, b"write")
        assert await one(watcher) is write
        assert await receive(line.far, 5) == b"write"
    line.relay()
    await line.carries()


async def test_relay_under_back_pressure_leaves_connections_that_can_be_used_again(
    watcher: Watcher, lay: Lay
) -> None:
    line = lay(watcher, small_pair)
    relay = line.relay()
    await flood(line.near)
    watcher.cancel(relay)
    assert await one(watcher) is relay
    assert await receive(line.far, relay.sizes[0]) == bytes(relay.sizes[0])
    watcher.write(line.b, b"behind")
    assert (await one(watcher)).error is None
    assert await receive(line.far, 6) == b"behind"
    watcher.read(line.a)
    assert (await one(watcher)).size > 0  # what it had not taken


# --- Times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [{"timeout": 0}, {"deadline": 0.0}, {"deadline": 1e-9}])
async def test_T1_relay_whose_time_is_past_is_attempted_once(
    line: Line, past: dict[str, float]
) -> None:
    line.near.sendall(b"there")
    await until(lambda: unread(line.a) == 5)
    relay = line.relay(**past)
    assert await one(line.watcher) is relay
    assert type(relay.error) is DeadlineExceededError
    assert relay.sizes == (5, 0)
    assert await receive(line.far, 5) == b"there"
    assert_balanced(line.watcher, line.a, line.b)


async def test_T1_relay_of_ended_streams_whose_time_is_past_succeeds(line: Line) -> None:
    line.end()
    await until(lambda: half_closed(line.a) and half_closed(line.b))
    line.relay(timeout=0)
    assert (await one(line.watcher)).error is None


@pytest.mark.parametrize("kind", ["timeout", "deadline"])
@pytest.mark.parametrize("queued", [True, False], ids=["queued", "begun"])
async def test_T2_relay_expires_and_both_connections_stay(
    line: Line, kind: str, queued: bool
) -> None:
    watcher, loop = line.watcher, asyncio.get_running_loop()
    read = watcher.read(line.b) if queued else None
    began = loop.time()
    relay = line.relay(**{kind: 0.02 if kind == "timeout" else began + 0.02})
    assert await one(watcher) is relay
    assert loop.time() - began >= 0.019
    assert type(relay.error) is DeadlineExceededError
    if read is not None:
        watcher.cancel(read)
        assert await one(watcher) is read
    assert_balanced(watcher, line.a, line.b)
    line.relay()
    await line.carries()


@pytest.mark.parametrize("back", [True, False], ids=["back", "there"])
@pytest.mark.parametrize("name", ["epoll", "loop"])
async def test_relay_timeout_is_the_longest_silence_in_both_directions(
    name: Any, lay: Lay, back: bool
) -> None:
    loop = asyncio.get_running_loop()
    async with Watcher(poller=name) as watcher:
        line = lay(watcher)
        source, target = (line.far, line.near) if back else (line.near, line.far)
        relay = line.relay(timeout=0.6)
        begin = last = loop.time()
        while loop.time() < begin + 1 and not relay.completed:
            source.sendall(b"x")
            assert await receive(target, 1) == b"x"
            last = loop.time()
            await asyncio.sleep(0.02)
        assert not relay.completed or loop.time() - last > 0.59  # a machine that stood still
        assert await one(watcher) is relay
        assert type(relay.error) is DeadlineExceededError
        assert 0.59 <= loop.time() - last < 5


@pytest.mark.parametrize("name", ["epoll", "loop"])
async def test_relay_deadline_ends_it_though_bytes_come(name: Any, lay: Lay) -> None:
    loop = asyncio.get_running_loop()
    async with Watcher(poller=name) as watcher:
        line = lay(watcher)
        line.near.sendall(b"x")
        ready(line.a)
        end = loop.time() + 0.05
        relay = line.relay(deadline=end)
        async with asyncio.timeout(10):
            while not relay.completed:
                line.near.sendall(b"x")
                await asyncio.sleep(0.001)
        assert loop.time() >= end - 0.001
        assert type(relay.error) is DeadlineExceededError
        assert relay.sizes[0] > 0
        assert await receive(line.far, relay.sizes[0]) == b"x" * relay.sizes[0]


# --- Misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"deadline": -0.1}, ValueError),
        ({"deadline": float("nan")}, ValueError),
        ({"timeout": 1, "deadline": 1}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
    ids=str,
)
async def test_S2_relay_with_a_wrong_time_raises(
    line: Line, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        line.relay(**options)
    assert line.watcher.statistics().submitted == 0
    assert line.watcher.pending(line.a).requests == 0


async def test_S2_relay_of_a_connection_with_itself_raises(line: Line) -> None:
    with pytest.raises(ValueError, match="two connections"):
        line.watcher.relay(line.a, line.a)
    sock, peer = tcp_pair()
    with peer:
        conn = line.watcher.delegate(sock)
        with pytest.raises(ValueError, match="two connections"):
            line.watcher.relay(sock, conn)
    assert line.watcher.statistics().submitted == 0


async def test_S2_relay_on_a_closed_watcher_raises(line: Line) -> None:
    line.watcher.close()
    sock, peer = tcp_pair()
    with sock, peer:
        with pytest.raises(WatcherClosedError):
            line.watcher.relay(sock, line.b)
        assert sock.fileno() >= 0


async def test_S2_relay_of_what_is_no_stream_raises_and_delegates_nothing(
    watcher: Watcher, poller: Any
) -> None:
    (good, peer), datagram = tcp_pair(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener = socket.create_server(("127.0.0.1", 0))
    foreign, foreign_peer = tcp_pair()
    async with Watcher(poller=poller) as other:
        with good, peer, datagram, listener, foreign_peer:
            strangers: list[Any] = [datagram, listener, other.delegate(foreign), None, 5.5, "fd"]
            for stranger in strangers:
                for pair in ((good, stranger), (stranger, good)):
                    with pytest.raises(UnsupportedConnectionError):
                        watcher.relay(*pair)
            with pytest.raises(ValueError, match="timeout"):
                watcher.relay(good, peer, timeout=-1)
            assert watcher.statistics().connections == watcher.statistics().submitted == 0
            peer.sendall(b"not spent")
            assert good.recv(9) == b"not spent"


# --- Many ----------------------------------------------------------------------------------------


async def test_relay_200_at_once_through_few_pipes(watcher: Watcher, lay: Lay) -> None:
    before = pipes()
    lines = [lay(watcher, unix_pair) for _ in range(200)]
    relays = [line.relay(context=number) for number, line in enumerate(lines)]
    size = 80_000
    for number, line in enumerate(lines):
        line.near.sendall(PAYLOAD[number : number + size])
        line.far.sendall(b"%d" % number)
        line.end()
    results = await collect(watcher, len(lines), within=20)
    assert {id(op) for op in results} == {id(relay) for relay in relays}
    for number, line in enumerate(lines):
        assert relays[number].error is None
        assert relays[number].sizes == (size, len(str(number)))
        assert await drained(line.far) == PAYLOAD[number : number + size]
        assert await drained(line.near) == b"%d" % number
    assert len(pipes() - before) <= 8
    assert_balanced(watcher)


@pytest.mark.parametrize("size", [16 * 1024 + 100, 100_000])
async def test_relay_that_is_idle_holds_no_pipe(watcher: Watcher, lay: Lay, size: int) -> None:
    before = pipes()
    lines = [lay(watcher, unix_pair) for _ in range(10)]
    for line in lines:
        line.near.sendall(PAYLOAD[:size])
        line.relay()
        assert await receive(line.far, size) == PAYLOAD[:size]
    assert len(pipes() - before) == 2


async def test_D3_relays_leave_other_tasks_their_time(watcher: Watcher, lay: Lay) -> None:
    lines = [lay(watcher, unix_pair) for _ in range(4)]
    for line in lines:
        line.relay()
        line.near.setblocking(False)
        line.far.setblocking(False)
    turns: list[float] = []
    moved = 0
    for _ in range(100):
        for line in lines:
            with suppress(BlockingIOError):
                line.near.send(PAYLOAD[: 1 << 16])
            with suppress(BlockingIOError):
                moved += len(line.far.recv(1 << 16))
        begin = time.monotonic()
        await asyncio.sleep(0)
        turns.append(time.monotonic() - begin)
    assert sorted(turns)[len(turns) // 2] < 0.01
    assert moved


# --- Descriptors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ended", "idle", "held", "cancelled"])
async def test_O5_relay_leaves_no_descriptor_behind(poller: Any, lay: Lay, state: str) -> None:
    before = open_descriptors()
    async with Watcher(poller=poller) as watcher:
        line = lay(watcher, unix_pair)
        line.near.sendall(PAYLOAD[:100_000])
        relay = line.relay()
        assert await receive(line.far, 100_000) == PAYLOAD[:100_000]
        assert any(map(is_pipe, open_descriptors() - before))
        if state in ("held", "cancelled"):
            await flood(line.near)
        if state == "cancelled":
            watcher.cancel(relay)
        elif state == "ended":
            line.end()
        if state in ("cancelled", "ended"):
            await one(watcher)
        line.near.close()
        line.far.close()
    assert open_descriptors() == before


async def test_O5_relay_pipe_with_bytes_in_it_is_never_used_again(
    watcher: Watcher, lay: Lay
) -> None:
    """What was cut in one relay must not come out of another."""
    before = pipes()
    line = lay(watcher, unix_pair)
    relay = line.relay()
    await flood(line.near)
    assert len(pipes() - before) == 2
    watcher.cancel(relay)
    await one(watcher)
    other = lay(watcher)
    other.relay()
    sending = asyncio.create_task(send(other.near, PAYLOAD))
    assert await receive(other.far, len(PAYLOAD)) == PAYLOAD
    await sending


async def test_O5_relay_leaves_no_pipe_in_the_child_of_a_fork(watcher: Watcher, lay: Lay) -> None:
    before = pipes()
    line = lay(watcher, unix_pair)
    relay = line.relay()
    taken = await flood(line.near)
    held = pipes() - before
    assert held

    def look() -> None:
        assert not held & pipes()

    in_a_child(look)
    assert held <= pipes()  # the parent goes on
    assert await receive(line.far, taken) == bytes(taken)
    await line.carries()
    line.end()
    assert await one(watcher) is relay
    assert relay.sizes == (taken + 5, 4)


async def test_O3_relay_keeps_its_connections_alive(watcher: Watcher) -> None:
    (first, near), (second, far) = tcp_pair(), tcp_pair()
    with near, far:
        watcher.relay(first, second)
        del first, second
        near.sendall(b"there")
        assert await receive(far, 5) == b"there"
        assert watcher.statistics().connections == 2


async def test_O3_watcher_that_nobody_holds_closes_its_pipes(poller: Any) -> None:
    before = open_descriptors()
    with recorded_warnings() as caught:
        watcher = Watcher(poller=poller)
        (first, near), (second, far) = unix_pair(), unix_pair()
        with near, far:
            watcher.relay(first, second)
            await flood(near)
            assert any(map(is_pipe, open_descriptors() - before))
            del watcher, first, second
            gc.collect()
            await settle()
            gc.collect()
    assert resource_warnings(caught)
    assert open_descriptors() == before


@pytest.mark.parametrize("end", ["serve", "close", "cancel"])
async def test_relay_behind_what_other_threads_have_asked_for(line: Line, end: str) -> None:
    watcher = line.watcher
    thread = threading.Thread(target=lambda: watcher.threadsafe.write(line.a, b"first"))
    thread.start()
    thread.join(10)
    relay = line.relay()
    line.far.sendall(b"second")
    if end == "close":
        watcher.close()
    elif end == "cancel":
        assert watcher.cancel(relay)
    else:
        assert await receive(line.near, 11) == b"firstsecond"
        line.end()
    results = await collect(watcher, 2)
    assert results[-1] is relay
    expected = {"close": WatcherClosedError, "cancel": OperationCancelledError}
    assert type(relay.error) is expected.get(end, type(None))
    assert_balanced(watcher)
