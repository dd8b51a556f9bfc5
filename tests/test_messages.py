"""Messages: datagrams with their senders and their borders, and what travels beside the data.

``recvfrom``, ``recvmsg``, ``sendto`` and ``sendmsg``, and the plain read on sockets of messages.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
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
    QueueFullError,
    UnsupportedConnectionError,
    Watcher,
    WatcherClosedError,
)
from tests.probes import LONG, arrived, bounded, events, sealed, small_pair, until
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")

SO_PASSCRED = 16
IP_PKTINFO = 8
ONE = socket.CMSG_SPACE(4)  # room for one descriptor


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


LOCAL: dict[str, tuple[int, Any]] = {"udp4": (socket.AF_INET, ("127.0.0.1", 0))}
if has_ipv6():
    LOCAL["udp6"] = (socket.AF_INET6, ("::1", 0))
PAIRS = [*LOCAL, "unix", "seqpacket"]


@pytest_asyncio.fixture
async def watcher(poller: str) -> AsyncIterator[Watcher]:
    async with sealed(poller) as watcher:
        yield watcher


@contextmanager
def closing(*socks: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        for sock in socks:
            sock.close()


def bound(kind: str, directory: Path | None = None, name: str = "s") -> socket.socket:
    """An unconnected datagram socket with an address."""
    if kind in LOCAL:
        family, address = LOCAL[kind]
    else:
        family, address = socket.AF_UNIX, str(directory / name if directory else "")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(10)
    return sock


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of messages."""
    if kind == "unix":
        return unix_pair(socket.SOCK_DGRAM)
    if kind == "seqpacket":
        return unix_pair(socket.SOCK_SEQPACKET)
    ours, peer = bound(kind), bound(kind)
    ours.connect(peer.getsockname())
    peer.connect(ours.getsockname())
    return ours, peer


def full_pair(kind: int = socket.SOCK_DGRAM) -> tuple[socket.socket, socket.socket, int]:
    """A Unix pair whose first end takes no message until its peer has received; and how many."""
    ours, peer = unix_pair(kind)
    ours.setblocking(False)
    count = 0
    try:
        while True:
            ours.send(b"filler")
            count += 1
    except BlockingIOError:
        return ours, peer, count


@contextmanager
def filled_by_others(directory: Path) -> Iterator[tuple[socket.socket, int]]:
    """A bound Unix socket that takes no message more, and how many another one has sent it."""
    with (
        bound("unix", directory) as peer,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        other.setblocking(False)
        count = 0
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"filler", peer.getsockname())
                count += 1
        yield peer, count


def closed_port() -> int:
    with bound("udp4") as sock:
        return int(sock.getsockname()[1])


def refused_socket() -> socket.socket:
    """A UDP socket connected to a port where nobody listens."""
    sock = bound("udp4")
    sock.connect(("127.0.0.1", closed_port()))
    return sock


RECEIVES: dict[str, Callable[..., Operation]] = {
    "recvfrom": lambda watcher, conn, **more: watcher.recvfrom(conn, **more),
    "recvmsg": lambda watcher, conn, **more: watcher.recvmsg(conn, 64, **more),
    "read": lambda watcher, conn, **more: watcher.read(conn, **more),
    "read-into": lambda watcher, conn, **more: watcher.read(conn, bytearray(64), **more),
}
SHOTS = ["recvfrom", "recvmsg", "read"]
SENDS: dict[str, Callable[..., Operation]] = {
    "sendto": lambda watcher, conn, data, **more: watcher.sendto(conn, data, None, **more),
    "sendmsg": lambda watcher, conn, data, **more: watcher.sendmsg(
        conn, [data[:-1], data[-1:]], **more
    ),
    "write": lambda watcher, conn, data, **more: watcher.write(conn, data, **more),
    "writev": lambda watcher, conn, data, **more: watcher.writev(
        conn, [data[:-1], data[-1:]], **more
    ),
}


# --- The plain case -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LOCAL, "unix"])
async def test_recvfrom_brings_a_datagram_and_its_sender(
    watcher: Watcher, kind: str, tmp_path: Path
) -> None:
    """There already, and waited for."""
    with bound(kind, tmp_path, "a") as ours, bound(kind, tmp_path, "b") as peer:
        address = ours.getsockname()
        conn = watcher.delegate(ours)
        conn.context = "the connection's"
        peer.sendto(b"early", address)
        first = watcher.recvfrom(conn)
        second = watcher.recvfrom(conn, context="mine")
        assert await one(watcher) is first
        assert watcher.pending(conn).requests == 1
        peer.sendto(b"late", address)
        assert await one(watcher) is second
        for op, data, context in (
            (first, b"early", "the connection's"),
            (second, b"late", "mine"),
        ):
            assert (op.type, op.conn, op.context) == (OpType.READ, conn, context)
            assert (op.data, op.size, op.error) == (data, len(data), None)
            assert (op.address, op.truncated, op.flags) == (peer.getsockname(), False, 0)
            assert op.completed and not op.more
        assert watcher.pending(conn).requests == 0
        assert watcher.statistics().bytes_read == len(b"earlylate")


@pytest.mark.parametrize("kind", [*LOCAL, "unix"])
async def test_sendto_sends_one_datagram_to_an_address(
    watcher: Watcher, kind: str, tmp_path: Path
) -> None:
    with bound(kind, tmp_path, "a") as ours, bound(kind, tmp_path, "b") as peer:
        conn = watcher.delegate(ours)
        conn.context = "the connection's"
        target = peer.getsockname()
        for data in (b"bytes", bytearray(b"array"), memoryview(array.array("i", [1, 2]))):
            op = watcher.sendto(conn, data, target)
            assert op is not None and await one(watcher) is op
            assert (op.type, op.error, op.address) == (OpType.WRITE, None, target)
            assert (op.size, op.context) == (memoryview(data).nbytes, "the connection's")
            assert peer.recvfrom(64) == (bytes(data), conn.sockname)
        assert watcher.statistics().bytes_written == 18


async def test_sendto_takes_all_forms_of_a_numeric_address(watcher: Watcher) -> None:
    with bound("udp4") as peer, bound("udp4") as ours:
        port = peer.getsockname()[1]
        watcher.sendto(ours, b"1", ("", port))  # the socket module's name of any address
        assert (await one(watcher)).error is None
        assert peer.recv(9) == b"1"
    if "udp6" in LOCAL:
        with bound("udp6") as peer, bound("udp6") as ours:
            port = peer.getsockname()[1]
            conn = watcher.delegate(ours)
            for address in (("::1", port), ("::1", port, 0), ("::1", port, 0, 0), ("::1%1", port)):
                watcher.sendto(conn, b"6", address)
                assert (await one(watcher)).error is None
                assert peer.recv(9) == b"6"


@pytest.mark.parametrize("form", [str, os.fsencode], ids=["str", "bytes"])
async def test_sendto_takes_unix_paths(watcher: Watcher, tmp_path: Path, form: Any) -> None:
    with bound("unix", tmp_path) as peer:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        watcher.sendto(ours, b"x", form(tmp_path / "s"))
        assert (await one(watcher)).error is None
        assert peer.recv(9) == b"x"


async def test_sendto_takes_abstract_unix_names(watcher: Watcher) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind("")  # the system picks one
        peer.settimeout(10)
        watcher.sendto(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), b"x", peer.getsockname())
        assert (await one(watcher)).error is None
        assert peer.recv(9) == b"x"


@pytest.mark.parametrize("kind", PAIRS)
async def test_messages_of_connected_sockets(watcher: Watcher, kind: str) -> None:
    """Without an address to the peer; what comes has the address that the system tells."""
    ours, peer = pair(kind)
    with closing(peer):
        sender = peer.getsockname() if kind in LOCAL else None
        conn = watcher.delegate(ours)
        for name, send in SENDS.items():
            op = send(watcher, conn, name.encode())
            assert await one(watcher) is op
            assert (op.error, op.size, op.address) == (None, len(name), None)
            assert peer.recv(64) == name.encode()
        for name, receive in RECEIVES.items():
            peer.send(name.encode())
            op = receive(watcher, conn)
            assert await one(watcher) is op
            assert (bytes(op.data), op.error, op.address) == (name.encode(), None, sender)


async def test_sendto_and_recvfrom_delegate_a_socket_on_the_spot(watcher: Watcher) -> None:
    with bound("udp4") as peer:
        ours = bound("udp4")
        address = ours.getsockname()
        sent = watcher.sendto(ours, b"ping", peer.getsockname())
        assert sent is not None and await one(watcher) is sent
        assert ours.fileno() == -1
        received = watcher.recvfrom(ours)
        peer.sendto(b"pong", address)
        assert await one(watcher) is received
        assert received.conn is sent.conn and received.data == b"pong"


async def test_messages_of_a_request_from_another_thread(watcher: Watcher) -> None:
    """A plain read submitted by a thread brings the sender, too."""
    with bound("udp4") as ours, bound("udp4") as peer:
        conn = watcher.delegate(ours)
        await asyncio.to_thread(watcher.threadsafe.read, conn)
        peer.sendto(b"x", conn.sockname)
        op = await one(watcher)
        assert (op.data, op.address) == (b"x", peer.getsockname())


# --- Empty datagrams ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LOCAL, "unix"])
async def test_empty_datagram_is_not_the_end(watcher: Watcher, kind: str) -> None:
    ours, peer = pair(kind)
    with closing(peer):
        conn = watcher.delegate(ours)
        for receive in RECEIVES.values():
            peer.send(b"")
            peer.send(b"next")
            empty, following = receive(watcher, conn), receive(watcher, conn)
            assert await collect(watcher, 2) == [empty, following]
            assert (bytes(empty.data), empty.size, empty.error) == (b"", 0, None)
            assert not empty.truncated
            assert bytes(following.data) == b"next"


@pytest.mark.parametrize("kind", [*LOCAL, "unix"])
async def test_empty_datagram_can_be_sent(watcher: Watcher, kind: str) -> None:
    ours, peer = pair(kind)
    with closing(peer):
        conn = watcher.delegate(ours)
        for submit in (
            lambda: watcher.sendto(conn, b"", None),
            lambda: watcher.sendmsg(conn, []),
            lambda: watcher.sendmsg(conn, [b"", bytearray()]),
        ):
            op = submit()
            assert await one(watcher) is op
            assert (op.size, op.error) == (0, None)
            assert peer.recv(9) == b""
        assert watcher.sendto(conn, b"", None, silent=True) is None
        assert peer.recv(9) == b""
        with pytest.raises(EmptyBufferError):
            watcher.write(conn, b"")


async def test_empty_datagram_that_had_to_wait_is_sent_once(watcher: Watcher) -> None:
    ours, peer, count = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        op = watcher.sendto(conn, b"", None)
        silent = watcher.sendmsg(conn, [b""], silent=True)
        last = watcher.write(conn, b"last")
        await settle()
        assert watcher.poll_io() == []
        for _ in range(count):
            assert peer.recv(9) == b"filler"
        assert await collect(watcher, 2) == [op, last]
        assert silent is not None and silent.completed
        assert [peer.recv(9) for _ in range(3)] == [b"", b"", b"last"]


async def test_empty_message_of_a_seqpacket_socket_is_not_the_end(watcher: Watcher) -> None:
    ours, peer = pair("seqpacket")
    with closing(peer):
        conn = watcher.delegate(ours)
        for receive in RECEIVES.values():
            peer.send(b"")
            op = receive(watcher, conn)
            assert await one(watcher) is op
            assert (bytes(op.data), op.error) == (b"", None)
        peer.close()
        watcher.recvfrom(conn)
        assert type((await one(watcher)).error) is EndOfStreamError


async def test_O4_data_behind_an_empty_message_comes_before_the_end(watcher: Watcher) -> None:
    ours, peer = pair("seqpacket")
    armed = watcher.recvfrom(ours, multishot=True)
    await settle(2)
    for data in (b"", b"data"):
        peer.send(data)
    peer.close()
    *shots, end = await collect(watcher, 3)
    assert [op.data for op in shots] == [b"", b"data"]
    assert end is armed and type(end.error) is EndOfStreamError


# --- Truncation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PAIRS)
async def test_truncated_datagram_says_so(poller: str, kind: str) -> None:
    """With a small ``buffer_size`` or buffer; one that just fits is whole, and so is the next."""
    ours, peer = pair(kind)
    receives = {**RECEIVES, "read-into": lambda w, conn: w.read(conn, bytearray(4))}
    receives["read_full"] = lambda w, conn: w.read_full(conn, bytearray(4))
    with closing(peer):
        async with Watcher(poller=poller, buffer_size=4) as watcher:
            conn = watcher.delegate(ours)
            for receive in receives.values():
                for data in (b"1234", b"12345", b"abcd"):
                    peer.send(data)
                    op = receive(watcher, conn)
                    assert await one(watcher) is op
                    assert (bytes(op.data), op.size, op.error) == (data[:4], 4, None)
                    assert op.truncated is (len(data) > 4)
                    assert bool(op.flags & socket.MSG_TRUNC) is op.truncated


@pytest.mark.parametrize("name", SHOTS)
async def test_truncated_datagrams_of_a_multishot_request(poller: str, name: str) -> None:
    ours, peer = pair("udp4")
    with closing(peer):
        async with Watcher(poller=poller, buffer_size=4) as watcher:
            conn = watcher.delegate(ours)
            RECEIVES[name](watcher, conn, multishot=True)
            for data in (b"123", b"12345", b"1234"):
                peer.send(data)
            results = await collect(watcher, 3)
            assert [op.data for op in results] == [b"123", b"1234", b"1234"]
            assert [op.truncated for op in results] == [False, True, False]


async def test_truncated_is_about_data_where_no_ancillary_data_was_asked_for(
    watcher: Watcher,
) -> None:
    """A socket that brings ancillary data does not make every plain read look cut."""
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        conn.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        for name in ("recvfrom", "read", "read-into"):
            peer.send(b"whole")
            op = RECEIVES[name](watcher, conn)
            assert await one(watcher) is op
            assert (bytes(op.data), op.truncated) == (b"whole", False)


async def test_read_full_gathers_datagrams(watcher: Watcher) -> None:
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        op = watcher.read_full(conn, bytearray(6))
        for data in (b"ab", b"", b"cd"):
            peer.send(data)
        await until(lambda: op.size == 4)
        assert not op.completed
        peer.send(b"efg")
        assert await one(watcher) is op
        assert (bytes(op.data), op.truncated) == (b"abcdef", True)


# --- Multishot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOTS)
async def test_S6_multishot_receive_delivers_one_datagram_after_another(
    watcher: Watcher, name: str
) -> None:
    with bound("udp4") as ours, bound("udp4") as a, bound("udp4") as b:
        conn = watcher.delegate(ours)
        armed = RECEIVES[name](watcher, conn, multishot=True, context="mine")
        sent = [(a, b"1"), (b, b""), (a, b"3"), (b, b"4")]
        for sender, data in sent[:2]:
            sender.sendto(data, conn.sockname)
        results = await collect(watcher, 2)
        for sender, data in sent[2:]:
            sender.sendto(data, conn.sockname)
        results += await collect(watcher, 2)
        assert [(op.data, op.address) for op in results] == [
            (data, sender.getsockname()) for sender, data in sent
        ]
        assert all(op.more and op.completed and op.error is None for op in results)
        assert all(op.context == "mine" and op.conn is conn for op in results)
        assert len({id(op) for op in [*results, armed]}) == 5
        assert not armed.completed and watcher.pending(conn).requests == 1
        assert watcher.cancel(armed)
        assert await one(watcher) is armed
        assert type(armed.error) is OperationCancelledError
        assert not armed.more and armed.size == 0


@pytest.mark.parametrize("kind", ["udp4", "unix", "seqpacket"])
async def test_S6_multishot_receive_takes_no_more_than_a_batch(poller: str, kind: str) -> None:
    """A sleeping consumer leaves the datagrams with the system; collecting goes on with them."""
    ours, peer = pair(kind)
    count = 9
    with closing(peer):
        async with Watcher(poller=poller, batch_size=4) as watcher:
            conn = watcher.delegate(ours)
            watcher.recvfrom(conn, multishot=True)
            for number in range(count):
                peer.send(b"%d" % number)
            await until(lambda: watcher.statistics().bytes_read >= 4)
            await settle(50)
            assert watcher.statistics().bytes_read == 4  # one byte each
            arrived(conn, 1)
            results = await collect(watcher, count)
            assert [op.data for op in results] == [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("name", SHOTS)
async def test_S6_timeout_of_a_multishot_receive_is_the_longest_silence(
    watcher: Watcher, name: str
) -> None:
    loop = asyncio.get_running_loop()
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        for timeout in (0.5, 2, 8):  # a machine that pauses for so long gets more
            armed = RECEIVES[name](watcher, conn, multishot=True, timeout=timeout)
            begin = loop.time()
            await asyncio.sleep(timeout / 5)
            peer.send(b"x")
            results: list[Operation] = []
            while armed not in results:
                results += await bounded(watcher.wait_io())
            assert type(armed.error) is DeadlineExceededError
            if len(results) > 1:
                break
            watcher.recvfrom(conn)
            assert (await one(watcher)).data == b"x"
        assert [op.more for op in results] == [True, False]
        assert loop.time() - begin >= timeout * 1.2  # the arrival has restarted it
        peer.send(b"later")  # the connection stays usable
        watcher.recvfrom(conn)
        assert (await one(watcher)).data == b"later"


async def test_S6_deadline_ends_a_multishot_receive_for_good(watcher: Watcher) -> None:
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        due = asyncio.get_running_loop().time() + 0.02
        peer.send(b"x")
        armed = watcher.recvmsg(conn, multishot=True, deadline=due)
        shot, end = await collect(watcher, 2)
        assert (shot.data, shot.more) == (b"x", True)
        assert end is armed and not end.more
        assert type(end.error) is DeadlineExceededError


async def test_S6_multishot_receive_ends_with_the_stream(watcher: Watcher) -> None:
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        ours, peer = unix_pair(kind)
        armed = watcher.recvmsg(ours, ONE, multishot=True)
        peer.send(b"last")
        peer.close()
        shot, end = await collect(watcher, 2)
        assert (shot.data, shot.more) == (b"last", True)
        assert end is armed and type(end.error) is EndOfStreamError and not end.more


# --- Order ----------------------------------------------------------------------------------------


async def test_S3_receives_of_all_kinds_complete_in_order(watcher: Watcher) -> None:
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        ops = [receive(watcher, conn) for receive in RECEIVES.values() for _ in range(2)]
        armed = watcher.recvfrom(conn, multishot=True)
        behind = watcher.read(conn)
        for number in range(len(ops) + 1):
            peer.send(b"%d" % number)
        results = await collect(watcher, len(ops) + 1)
        assert results[:-1] == ops and results[-1].more
        assert [bytes(op.data) for op in results] == [b"%d" % n for n in range(len(results))]
        assert not behind.completed
        watcher.cancel(armed)
        peer.send(b"behind")
        assert await collect(watcher, 2) == [armed, behind]
        assert behind.data == b"behind"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_S3_sends_of_all_kinds_stay_apart_and_in_order(watcher: Watcher, kind: int) -> None:
    """Queued small writes are sent together on streams only."""
    ours, peer, count = full_pair(kind)
    with closing(peer):
        conn = watcher.delegate(ours)
        ops = [
            send(watcher, conn, b"%s %d" % (name.encode(), number))
            for number in range(2)
            for name, send in SENDS.items()
        ]
        await settle()
        assert watcher.poll_io() == []
        assert watcher.pending(conn).requests == len(ops)
        receiver = watcher.delegate(peer)
        watcher.recvfrom(receiver, multishot=True)
        results = await collect(watcher, count + 2 * len(ops))
        assert [op for op in results if op.type is OpType.WRITE] == ops
        received = [op.data for op in results if op.type is OpType.READ]
        assert received[count:] == [
            b"%s %d" % (name.encode(), n) for n in range(2) for name in SENDS
        ]
        assert watcher.pending(conn) == type(watcher.pending(conn))(0, 0)


# --- Exactly one result ---------------------------------------------------------------------------

ENDS: dict[str, type[Exception]] = {
    "cancel": OperationCancelledError,
    "deadline": DeadlineExceededError,
}


def times(end: str) -> dict[str, float]:
    return {"timeout": 0.01} if end == "deadline" else {}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("end", ENDS)
async def test_D1_receive_that_is_taken_out_of_its_queue(
    watcher: Watcher, end: str, position: int
) -> None:
    """At the head and in the middle: one result, and the datagrams go to the others."""
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        for receive in RECEIVES.values():
            ops = [receive(watcher, conn, **times(end if n == position else "")) for n in range(3)]
            taken = ops.pop(position)
            if end == "cancel":
                assert watcher.cancel(taken)
            assert await one(watcher) is taken
            assert type(taken.error) is ENDS[end]
            assert (bytes(taken.data), taken.size, taken.more) == (b"", 0, False)
            assert not watcher.cancel(taken)
            peer.send(b"1")
            peer.send(b"2")
            assert await collect(watcher, 2) == ops
            assert [bytes(op.data) for op in ops] == [b"1", b"2"]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("end", ENDS)
async def test_D1_send_that_is_taken_out_of_its_queue(
    watcher: Watcher, end: str, position: int
) -> None:
    """Nothing of it was sent: what stands behind it goes on."""
    for send in SENDS.values():
        ours, peer, count = full_pair()
        with closing(peer):
            conn = watcher.delegate(ours)
            ops = [
                send(watcher, conn, b"op%d" % n, **times(end if n == position else ""))
                for n in range(3)
            ]
            taken = ops.pop(position)
            if end == "cancel":
                assert watcher.cancel(taken)
            assert await one(watcher) is taken
            assert (type(taken.error), taken.size) == (ENDS[end], 0)
            for _ in range(count):
                assert peer.recv(9) == b"filler"
            assert await collect(watcher, 2) == ops
            assert [op.error for op in ops] == [None, None]
            expected = [b"op%d" % n for n in range(3) if n != position]
            assert [peer.recv(9) for _ in range(2)] == expected
            watcher.free(conn)


async def test_O2_free_completes_receives_then_sends(watcher: Watcher) -> None:
    ours, peer, _ = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        sends = [send(watcher, conn, b"xy") for send in SENDS.values()]
        silent = watcher.sendto(conn, b"xy", None, silent=True)
        receives = [receive(watcher, conn) for receive in RECEIVES.values()]
        receives.append(watcher.recvfrom(conn, multishot=True))
        assert watcher.free(conn)
        results = await collect(watcher, len(sends) + len(receives) + 1)
        assert results == [*receives, *sends, silent]
        assert {type(op.error) for op in results} == {ConnectionFreedError}
        assert not watcher.free(conn)
        late = [watcher.recvfrom(conn), watcher.sendto(conn, b"x", None)]
        assert await collect(watcher, 2) == late
        assert {type(op.error) for op in late if op} == {ConnectionFreedError}


async def test_D4_close_completes_messages_that_are_pending(watcher: Watcher) -> None:
    ours, peer, _ = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        ops = [watcher.recvmsg(conn, 64), watcher.recvfrom(conn, multishot=True)]
        ops += [send(watcher, conn, b"xy") for send in SENDS.values()]
        watcher.close()
        results = await collect(watcher, len(ops))
        assert results == ops
        assert {type(op.error) for op in results} == {WatcherClosedError}
        with pytest.raises(WatcherClosedError):
            await watcher.wait_io()


async def test_D2_cancelled_wait_io_loses_no_datagram(watcher: Watcher) -> None:
    ours, peer = pair("udp4")
    with closing(peer):
        conn = watcher.delegate(ours)
        watcher.recvfrom(conn, multishot=True)
        for number in range(5):
            waiter = asyncio.ensure_future(watcher.wait_io())
            await asyncio.sleep(0)
            peer.send(b"%d" % number)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        assert [op.data for op in await collect(watcher, 5)] == [b"%d" % n for n in range(5)]


async def test_T1_past_deadline_is_attempted_once(watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    ours, peer, count = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        for past in ({"timeout": 0}, {"deadline": loop.time() - 1}):
            for receive in RECEIVES.values():
                peer.send(b"there")
                op = receive(watcher, conn, **past)
                assert watcher.poll_io() == [op]
                assert (bytes(op.data), op.error) == (b"there", None)
                op = receive(watcher, conn, **past)
                assert watcher.poll_io() == [op]
                assert type(op.error) is DeadlineExceededError
            for send in SENDS.values():
                op = send(watcher, conn, b"xy", **past)
                assert watcher.poll_io() == [op]
                assert (type(op.error), op.size) == (DeadlineExceededError, 0)
        for _ in range(count):
            peer.recv(9)
        op = watcher.sendto(conn, b"xy", None, timeout=0)
        assert watcher.poll_io() == [op]
        assert op is not None and op.error is None
        assert peer.recv(9) == b"xy"


async def test_T1_expired_receive_is_never_early(watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    with bound("udp4") as ours:
        conn = watcher.delegate(ours)
        due = loop.time() + 0.01
        ops = [watcher.recvfrom(conn, deadline=due), watcher.recvmsg(conn, 64, deadline=due)]
        assert set(map(id, await collect(watcher, 2))) == set(map(id, ops))
        assert loop.time() >= due
        assert {type(op.error) for op in ops} == {DeadlineExceededError}


# --- Errors of the system -------------------------------------------------------------------------


async def refused(watcher: Watcher, conn: Connection, *, armed: bool = False) -> None:
    """One datagram to nobody; the receive that waits is told."""
    receive = watcher.recvfrom(conn, multishot=armed)
    send = watcher.write(conn, b"anybody?")
    results = await collect(watcher, 2)
    assert {id(op) for op in results} == {id(receive), id(send)}
    assert send.error is None
    assert type(receive.error) is ConnectionRefusedError
    assert (receive.data, receive.size, receive.more) == (b"", 0, False)


@pytest.mark.parametrize("armed", [False, True], ids=["single", "multishot"])
async def test_refused_datagram_is_told_and_the_socket_goes_on(
    watcher: Watcher, armed: bool
) -> None:
    sock = refused_socket()
    port = sock.getpeername()[1]
    conn = watcher.delegate(sock)
    for _ in range(3):
        await refused(watcher, conn, armed=armed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", port))
        peer.settimeout(10)
        watcher.write(conn, b"hello")
        assert (await one(watcher)).error is None
        assert peer.recv(9) == b"hello"
        for number in range(3):
            watcher.recvfrom(conn)
            await settle(3)
            peer.sendto(b"%d" % number, conn.sockname)
            op = await one(watcher)
            assert (op.data, op.address) == (b"%d" % number, ("127.0.0.1", port))


async def test_refused_datagram_is_told_to_a_send(watcher: Watcher) -> None:
    """If no receive waits, the next call of any kind is told, once."""
    conn = watcher.delegate(refused_socket())
    for send in SENDS.values():
        watcher.sendto(conn, b"x", None)
        assert (await one(watcher)).error is None
        await until(lambda: bool(events(conn) & select.POLLERR))
        await settle()
        op = send(watcher, conn, b"xy")
        assert await one(watcher) is op
        assert (type(op.error), op.size) == (ConnectionRefusedError, 0)


async def test_O5_number_of_a_refused_socket_can_be_used_again(watcher: Watcher) -> None:
    """Freed in the moment of the refusal, by whatever way the loop was told."""
    loop = asyncio.get_running_loop()
    conn = watcher.delegate(refused_socket())
    number = conn.fileno()
    await refused(watcher, conn)
    watcher.free(conn)
    ours, peer = pair("udp4")
    with closing(ours, peer):
        assert number in (ours.fileno(), peer.fileno())
        for sock in (ours, peer):
            loop.add_reader(sock.fileno(), int)
            loop.remove_reader(sock.fileno())


async def test_message_that_is_too_long_fails_whole(watcher: Watcher) -> None:
    """Whichever call sends it; the next message is sent, and nothing is cancelled for it."""
    data = bytes(70_000)
    for kind in LOCAL:
        ours, peer = pair(kind)
        with closing(peer):
            conn = watcher.delegate(ours)
            for send in SENDS.values():
                for silent in (False, True):
                    op = send(watcher, conn, data, silent=silent)
                    fine = send(watcher, conn, b"fine")
                    assert await collect(watcher, 2) == [op, fine]
                    assert (op.error.errno, op.size) == (errno.EMSGSIZE, 0)
                    assert fine.error is None
                    assert peer.recv(9) == b"fine"


async def test_large_datagrams_go_whole(watcher: Watcher) -> None:
    """Longer than what one attempt moves on a stream."""
    ours, peer = unix_pair(socket.SOCK_SEQPACKET)
    size = 300_000
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    if ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= size:
        pytest.skip("the system allows no such datagram")
    data = os.urandom(size)
    with closing(peer):
        conn, receiver = watcher.delegate(ours), watcher.delegate(peer)
        for send in SENDS.values():
            send(watcher, conn, data)
            into = watcher.read(receiver, bytearray(size))
            assert {op.error for op in await collect(watcher, 2)} == {None}
            assert (into.data == data, into.truncated) == (True, False)


async def test_errors_of_sends_to_addresses_are_results(watcher: Watcher, tmp_path: Path) -> None:
    gone = bound("unix", tmp_path, "gone")
    gone.close()
    ours = watcher.delegate(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    for path, error in (("missing", FileNotFoundError), ("gone", ConnectionRefusedError)):
        watcher.sendto(ours, b"x", str(tmp_path / path))
        op = await one(watcher)
        assert (type(op.error), op.size) == (error, 0)
        assert op.address == str(tmp_path / path)


async def test_send_without_an_address_on_an_unconnected_socket_fails(watcher: Watcher) -> None:
    for kind, number in (("udp4", errno.EDESTADDRREQ), ("unix", errno.ENOTCONN)):
        family = socket.AF_INET if kind == "udp4" else socket.AF_UNIX
        conn = watcher.delegate(socket.socket(family, socket.SOCK_DGRAM))
        for send in SENDS.values():
            send(watcher, conn, b"xy")
            assert (await one(watcher)).error.errno == number


async def test_connected_socket_sends_elsewhere_too(watcher: Watcher) -> None:
    with bound("udp4") as other, bound("udp4") as peer:
        ours = bound("udp4")
        ours.connect(peer.getsockname())
        conn = watcher.delegate(ours)
        watcher.sendto(conn, b"other", other.getsockname())
        watcher.sendto(conn, b"peer", None)
        assert [op.error for op in await collect(watcher, 2)] == [None, None]
        assert (other.recv(9), peer.recv(9)) == (b"other", b"peer")


async def test_end_and_broken_pipe_of_a_seqpacket_socket(watcher: Watcher) -> None:
    ours, peer = pair("seqpacket")
    conn = watcher.delegate(ours)
    peer.send(b"last")
    peer.close()
    for receive in RECEIVES.values():
        first = receive(watcher, conn)
        op = await one(watcher)
        assert op is first
        assert type(op.error) is EndOfStreamError or bytes(op.data) == b"last"
    assert type(op.error) is EndOfStreamError
    for send in SENDS.values():
        send(watcher, conn, b"xy")
        assert type((await one(watcher)).error) is BrokenPipeError


async def test_peer_of_a_unix_datagram_socket_is_gone(watcher: Watcher) -> None:
    """A send is refused, also one that was waiting; there is no end to receive."""
    ours, peer, _ = full_pair()
    conn = watcher.delegate(ours)
    waiting = watcher.sendto(conn, b"x", None)
    silent = watcher.sendto(conn, b"x", None, silent=True)
    await settle()
    peer.close()
    assert await collect(watcher, 2) == [waiting, silent]
    assert waiting is not None and silent is not None
    assert (type(waiting.error), waiting.size) == (ConnectionRefusedError, 0)
    assert isinstance(silent.error, OSError) and silent.size == 0  # it is not connected any more


async def test_send_to_a_peer_that_others_have_filled_waits_in_peace(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unconnected Unix socket counts as writable then, for ever: no reason to try for ever."""
    from aiogaio import attempts

    tries = 0
    send_message = attempts.send_message

    def counted(*arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        return send_message(*arguments)

    with filled_by_others(tmp_path) as (peer, count):
        monkeypatch.setattr(attempts, "send_message", counted)
        ours = watcher.delegate(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        op = watcher.sendto(ours, b"mine", str(tmp_path / "s"))
        behind = watcher.sendto(ours, b"behind", str(tmp_path / "s"))
        with pytest.raises(TimeoutError):
            await one(watcher, within=0.05)
        assert 0 < tries < 50
        for _ in range(count):
            peer.recv(9)
        assert await collect(watcher, 2) == [op, behind]
        assert (peer.recv(9), peer.recv(9)) == (b"mine", b"behind")


async def test_D1_sends_to_a_peer_that_others_have_filled_end_in_every_way(
    watcher: Watcher, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with filled_by_others(tmp_path) as (peer, count):
        conn = watcher.delegate(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        late = watcher.sendto(conn, b"late", path, timeout=0)
        assert watcher.poll_io() == [late]
        data = bytearray(b"silent")
        silent = watcher.sendto(conn, data, path, silent=True)
        data[:] = b"gone"
        expiring = watcher.sendto(conn, b"expiring", path, timeout=0.02)
        cancelled = watcher.sendto(conn, b"cancelled", path)
        last = watcher.sendto(conn, b"last", path)
        assert watcher.cancel(cancelled)
        assert await collect(watcher, 2) == [cancelled, expiring]
        for op in (late, expiring):
            assert op is not None and type(op.error) is DeadlineExceededError
        for _ in range(count):
            peer.recv(9)
        assert await one(watcher) is last
        assert silent is not None and silent.completed
        assert (peer.recv(9), peer.recv(9)) == (b"silent", b"last")


async def test_O2_free_while_a_send_rests(watcher: Watcher, tmp_path: Path) -> None:
    with filled_by_others(tmp_path):
        conn = watcher.delegate(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        op = watcher.sendto(conn, b"x", str(tmp_path / "s"))
        assert watcher.free(conn)
        assert await one(watcher) is op
        assert type(op.error) is ConnectionFreedError
        await asyncio.sleep(0.015)  # the time at which it would have been tried again
        assert watcher.poll_io() == []


# --- Silent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SENDS)
async def test_S5_silent_message_delivers_nothing_but_a_failure(
    watcher: Watcher, name: str
) -> None:
    ours, peer, count = full_pair()
    send = SENDS[name]
    with closing(peer):
        conn = watcher.delegate(ours)
        data = bytearray(b"mine")
        waiting = send(watcher, conn, data, silent=True)
        data[:] = b"gone"
        assert waiting is not None and not waiting.completed
        for _ in range(count):
            peer.recv(9)
        await until(lambda: waiting.completed)
        assert peer.recv(9) == b"mine"
        assert send(watcher, conn, b"at once", silent=True) is None
        assert peer.recv(9) == b"at once"
        assert watcher.poll_io() == []
        peer.close()
        failed = send(watcher, conn, b"to nobody", silent=True)
        assert await one(watcher) is failed
        assert isinstance(failed.error, ConnectionError)


async def test_S5_silent_message_is_copied_while_the_watcher_is_busy(watcher: Watcher) -> None:
    """Requests that are on their way from a thread come first: the message waits, as a copy."""
    ours, peer = pair("unix")
    with closing(peer):
        conn = watcher.delegate(ours)
        view = watcher.threadsafe
        await asyncio.to_thread(lambda: [view.write(conn, b"first"), view.write(conn, b"second")])
        data = bytearray(b"third")
        watcher.sendmsg(conn, [data], silent=True)
        data[:] = b"wrong"
        await collect(watcher, 2)
        await until(lambda: watcher.statistics().pending == 0)
        assert [peer.recv(9) for _ in range(3)] == [b"first", b"second", b"third"]


# --- Ancillary data -------------------------------------------------------------------------------


def rights(*numbers: int) -> list[tuple[int, int, Any]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]


def received_descriptors(ancillary: Any) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % 4])
    return list(numbers)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


UNIX = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


@pytest.mark.parametrize("kind", UNIX)
async def test_descriptors_are_passed_over_unix_sockets(
    watcher: Watcher, kind: int, pipe: tuple[int, int]
) -> None:
    ours, peer = unix_pair(kind)
    conn, receiver = watcher.delegate(ours), watcher.delegate(peer)
    sent = watcher.sendmsg(conn, [b"two ", b"ends"], rights(*pipe))
    received = watcher.recvmsg(receiver, socket.CMSG_SPACE(8))
    assert {id(op) for op in await collect(watcher, 2)} == {id(sent), id(received)}
    assert (received.data, received.truncated, received.error) == (b"two ends", False, None)
    assert isinstance(received.ancillary, list)
    numbers = received_descriptors(received.ancillary)
    try:
        assert len(numbers) == 2
        assert not any(map(os.get_inheritable, numbers))
        os.write(numbers[1], b"through")
        assert os.read(pipe[0], 9) == b"through"
    finally:
        for number in numbers:
            os.close(number)


@pytest.mark.parametrize("kind", UNIX)
async def test_descriptors_of_a_multishot_request(
    watcher: Watcher, kind: int, pipe: tuple[int, int]
) -> None:
    """Each message brings its own; on a stream, bytes of two of them do not run together."""
    ours, peer = unix_pair(kind)
    with closing(peer):
        watcher.recvmsg(ours, ONE, multishot=True)
        for number in range(3):
            socket.send_fds(peer, [b"%d" % number], [pipe[0]])
        results = await collect(watcher, 3)
        for op in results:
            (number,) = received_descriptors(op.ancillary)
            os.close(number)
        assert [op.data for op in results] == [b"0", b"1", b"2"]
        assert all(op.more for op in results)


@pytest.mark.parametrize("kind", UNIX)
async def test_descriptors_without_room_are_closed_and_said(
    watcher: Watcher, kind: int, pipe: tuple[int, int]
) -> None:
    ours, peer = unix_pair(kind)
    with closing(peer):
        conn = watcher.delegate(ours)
        for room, expected in ((socket.CMSG_LEN(4), 1), (socket.CMSG_SPACE(8), 2)):
            socket.send_fds(peer, [b"data"], pipe)
            op = watcher.recvmsg(conn, room)
            assert await one(watcher) is op
            numbers = received_descriptors(op.ancillary)
            for number in numbers:
                os.close(number)
            assert (op.data, len(numbers)) == (b"data", expected)
            assert op.truncated is (expected < 2)
            assert bool(op.flags & socket.MSG_CTRUNC) is op.truncated
        for receive in (watcher.recvfrom, watcher.read):
            socket.send_fds(peer, [b"data"], pipe)
            receive(conn)
            assert (await one(watcher)).data == b"data"


@pytest.mark.parametrize("silent", [False, True], ids=["told", "silent"])
async def test_ancillary_data_of_a_stream_goes_once_with_the_first_byte(
    watcher: Watcher, silent: bool, pipe: tuple[int, int]
) -> None:
    """However many sends the message takes."""
    ours, peer = small_pair()
    conn = watcher.delegate(ours)
    receiver = watcher.delegate(peer)
    parts = [b"", b"ab" * (LONG // 4), bytearray(b"cd" * (LONG // 4))]
    op = watcher.sendmsg(conn, parts, rights(pipe[0]), silent=silent)
    assert op is not None and not op.completed and 0 < op.size < LONG
    data, numbers, places = bytearray(), [], []
    while len(data) < LONG:
        received = watcher.recvmsg(receiver, ONE)
        while not received.completed:
            await watcher.wait_io()
        assert received.error is None
        for number in received_descriptors(received.ancillary):
            numbers.append(number)
            places.append(len(data))
        data += received.data
    for number in numbers:
        os.close(number)
    assert places == [0]
    assert data == b"".join(parts)
    await until(lambda: op.completed)
    assert (op.size, op.error) == (LONG, None)


async def test_ancillary_data_waits_with_its_message(
    watcher: Watcher, pipe: tuple[int, int]
) -> None:
    """A message that could not be sent at once takes it along; also if it is silent."""
    ours, peer, count = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        numbers = array.array("i", [pipe[0]])
        for silent in (False, True):
            items = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
            op = watcher.sendmsg(conn, [b"x"], items, silent=silent)
            assert op is not None and not op.completed
        numbers[0] = -1  # it was copied
        for _ in range(count):
            peer.recv(9)
        await until(lambda: watcher.statistics().pending == 0)
        for _ in range(2):
            data, received, _, _ = socket.recv_fds(peer, 9, 2)
            assert data == b"x" and len(received) == 1
            os.close(received[0])
        watcher.poll_io()


async def test_sendmsg_of_a_closed_descriptor_fails_whole(
    watcher: Watcher,
) -> None:
    closed = 1_000_000
    for kind in UNIX:
        ours, peer = unix_pair(kind)
        with closing(peer):
            conn = watcher.delegate(ours)
            watcher.sendmsg(conn, [b"x"], rights(closed))
            op = await one(watcher)
            assert (op.error.errno, op.size) == (errno.EBADF, 0)
            watcher.write(conn, b"goes on")
            assert (await one(watcher)).error is None
            assert peer.recv(9) == b"goes on"


@pytest.mark.parametrize("multishot", [False, True])
async def test_recvmsg_brings_packet_information(watcher: Watcher, multishot: bool) -> None:
    with bound("udp4") as peer:
        ours = bound("udp4")
        ours.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        conn = watcher.delegate(ours)
        watcher.recvmsg(conn, socket.CMSG_SPACE(12), multishot=multishot)
        peer.sendto(b"x", conn.sockname)
        op = await one(watcher)
        assert (op.data, op.address, op.truncated) == (b"x", peer.getsockname(), False)
        ((level, kind, data),) = op.ancillary
        assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
        assert data[8:12] == socket.inet_aton("127.0.0.1")


async def test_sendmsg_with_packet_information_and_an_address(watcher: Watcher) -> None:
    """The datagram leaves from the address that the ancillary data says."""
    with bound("udp4") as peer:
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ours.bind(("0.0.0.0", 0))
        info = struct.pack("=i4s4s", 0, socket.inet_aton("127.0.0.2"), bytes(4))
        item = (socket.IPPROTO_IP, IP_PKTINFO, info)
        op = watcher.sendmsg(ours, [b"a", b"b"], [item], peer.getsockname())
        assert await one(watcher) is op
        assert (op.error, op.size, op.address) == (None, 2, peer.getsockname())
        data, sender = peer.recvfrom(9)
        assert (data, sender[0]) == (b"ab", "127.0.0.2")


async def test_ancillary_is_empty_where_nothing_came(watcher: Watcher) -> None:
    ours, peer = pair("unix")
    with closing(peer):
        conn = watcher.delegate(ours)
        peer.send(b"x")
        plain = watcher.recvmsg(conn, 64)
        expired = watcher.recvmsg(conn, 64, timeout=0)
        await collect(watcher, 2)
        assert (list(plain.ancillary), plain.flags) == ([], 0)
        assert (list(expired.ancillary), expired.flags) == ([], 0)


@pytest.mark.parametrize("multishot", [False, True])
async def test_O4_end_of_a_stream_with_credentials_is_the_end(
    watcher: Watcher, multishot: bool
) -> None:
    """The system puts credentials beside the end, too (SO_PASSCRED, unix(7))."""
    ours, peer = unix_pair()
    ours.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
    conn = watcher.delegate(ours)
    peer.send(b"last")
    peer.close()
    room = socket.CMSG_SPACE(12)
    op = watcher.recvmsg(conn, room, multishot=multishot)
    last = await one(watcher) if not multishot else None
    if last is None:
        last, end = await collect(watcher, 2)
        assert end is op
    else:
        watcher.recvmsg(conn, room)
        end = await one(watcher)
    assert last.data == b"last" and len(last.ancillary) == 1
    assert type(end.error) is EndOfStreamError


# --- Messages on streams --------------------------------------------------------------------------


async def test_recvmsg_on_a_stream_is_a_read(watcher: Watcher) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    op = watcher.recvmsg(conn, 64)
    client.sendall(b"bytes")
    assert await one(watcher) is op
    assert (op.data, op.address, op.truncated, list(op.ancillary)) == (b"bytes", None, False, [])
    client.sendall(b"head\nbody")
    watcher.read_until(conn, b"\n")
    assert (await one(watcher)).data == b"head\n"
    watcher.recvmsg(conn, 64)
    op = await one(watcher)
    assert (op.data, op.truncated, op.flags) == (b"body", False, 0)
    armed = watcher.recvfrom(conn, multishot=True)
    client.close()
    assert await one(watcher) is armed
    assert type(armed.error) is EndOfStreamError


async def test_O4_reset_is_told_to_recvmsg(watcher: Watcher) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    watcher.recvmsg(conn)
    reset(client)
    assert type((await one(watcher)).error) is ConnectionResetError
    watcher.read(conn)  # for good
    assert type((await one(watcher)).error) is ConnectionResetError


async def test_T3_torn_message_on_a_stream_takes_what_stands_behind_it(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        torn = watcher.sendmsg(conn, [bytes(LONG), b"tail"], timeout=0.01)
        behind = watcher.sendmsg(conn, [b"behind"])
        assert await collect(watcher, 2) == [torn, behind]
        assert type(torn.error) is DeadlineExceededError and 0 < torn.size < LONG
        assert type(behind.error) is OperationCancelledError and behind.size == 0
        assert behind.error.__cause__ is torn.error
        sent = len(peer.recv(LONG))
        watcher.sendmsg(conn, [b"again"])
        assert (await one(watcher)).error is None
        assert sent == torn.size and peer.recv(9) == b"again"


async def test_S2_empty_message_on_a_stream_raises(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with closing(ours, peer):
        for buffers in ([], [b""], [b"", bytearray()]):
            with pytest.raises(EmptyBufferError):
                watcher.sendmsg(ours, buffers)
        assert watcher.statistics().submitted == 0
        assert ours.fileno() >= 0


# --- Many buffers ---------------------------------------------------------------------------------


async def test_message_of_more_buffers_than_the_system_takes_goes_whole(watcher: Watcher) -> None:
    """IOV_MAX is 1024: a message must not become two."""
    buffers = [b"%04d" % number for number in range(1500)]
    for kind in ("udp4", "unix", "seqpacket"):
        ours, peer = pair(kind)
        with closing(peer):
            conn = watcher.delegate(ours)
            for submit in (watcher.sendmsg, watcher.writev):
                for silent in (False, True):
                    op = submit(conn, buffers, silent=silent)
                    if not silent:
                        assert await one(watcher) is op and op.size == 6000
                    assert peer.recv(9000) == b"".join(buffers)


async def test_stream_message_of_many_buffers(watcher: Watcher) -> None:
    ours, peer = small_pair()
    buffers = [b"%06d" % number for number in range(5000)]
    op = watcher.sendmsg(ours, iter(buffers))
    into = watcher.read_full(peer, bytearray(30_000))
    assert {id(one) for one in await collect(watcher, 2)} == {id(op), id(into)}
    assert (op.size, op.error) == (30_000, None)
    assert into.data == b"".join(buffers)


async def test_B2_buffer_that_is_resized_while_its_message_waits(watcher: Watcher) -> None:
    ours, peer, count = full_pair()
    with closing(peer):
        conn = watcher.delegate(ours)
        data = bytearray(b"data")
        op = watcher.sendmsg(conn, [b"head", data])
        behind = watcher.sendto(conn, b"behind", None)
        data += b"longer"
        for _ in range(count):
            peer.recv(9)
        assert await collect(watcher, 2) == [op, behind]
        assert (type(op.error), op.size, behind.error) == (BufferError, 0, None)
        assert peer.recv(9) == b"behind"


async def test_limits_count_messages(poller: str) -> None:
    ours, peer, _ = full_pair()
    with closing(peer):
        async with Watcher(poller=poller, max_pending=3, max_queued_bytes=10) as watcher:
            conn = watcher.delegate(ours)
            watcher.sendto(conn, b"123456", None)
            assert watcher.pending(conn).queued_bytes == 6
            with pytest.raises(QueueFullError):
                watcher.sendmsg(conn, [b"123", b"45"])
            watcher.sendmsg(conn, [b"12", b"34"])
            watcher.recvfrom(conn)
            for submit in (watcher.recvfrom, watcher.recvmsg):
                with pytest.raises(QueueFullError):
                    submit(conn)
            with pytest.raises(QueueFullError):
                watcher.sendto(conn, b"", None)
            assert watcher.pending(conn).requests == 3


# --- Misuse ---------------------------------------------------------------------------------------


@contextmanager
def nothing_changes(watcher: Watcher, sock: socket.socket) -> Iterator[None]:
    """What raises at the call neither submits nor delegates."""
    before = watcher.statistics()
    yield
    assert watcher.statistics() == before
    assert sock.fileno() >= 0
    assert watcher.poll_io() == []


ADDRESSES: list[tuple[int, Any, type[Exception]]] = [
    (socket.AF_INET, ("localhost", 9), ValueError),
    (socket.AF_INET, ("example.invalid", 9), ValueError),
    (socket.AF_INET, ("127.1", 9), ValueError),
    (socket.AF_INET, ("127.0.0.1%lo", 9), ValueError),
    (socket.AF_INET, ("::1", 9), ValueError),
    (socket.AF_INET, ("127.0.0.1\0", 9), ValueError),
    (socket.AF_INET6, ("localhost", 9), ValueError),
    (socket.AF_INET6, ("127.0.0.1", 9), ValueError),
    (socket.AF_INET, ("127.0.0.1", -1), ValueError),
    (socket.AF_INET, ("127.0.0.1", 65536), ValueError),
    (socket.AF_INET6, ("::1", 9, -1), ValueError),
    (socket.AF_INET6, ("::1", 9, 1 << 20), ValueError),
    (socket.AF_INET6, ("::1", 9, 0, 1 << 32), ValueError),
    (socket.AF_INET, "127.0.0.1:9", TypeError),
    (socket.AF_INET, ("127.0.0.1",), TypeError),
    (socket.AF_INET, ("127.0.0.1", 9, 0), TypeError),
    (socket.AF_INET, ["127.0.0.1", 9], TypeError),
    (socket.AF_INET, (b"127.0.0.1", 9), TypeError),
    (socket.AF_INET, ("127.0.0.1", "9"), TypeError),
    (socket.AF_INET, ("127.0.0.1", 9.0), TypeError),
    (socket.AF_INET, 9, TypeError),
    (socket.AF_INET6, ("::1", 9, 0, 0, 0), TypeError),
    (socket.AF_INET6, ("::1", 9, "0"), TypeError),
    (socket.AF_UNIX, ("127.0.0.1", 9), TypeError),
    (socket.AF_UNIX, 9, TypeError),
    (socket.AF_UNIX, "\ud800", ValueError),
]


@pytest.mark.parametrize("delegated", [False, True], ids=["socket", "connection"])
async def test_S2_address_of_another_form_raises(watcher: Watcher, delegated: bool) -> None:
    for family, address, error in ADDRESSES:
        if family == socket.AF_INET6 and "udp6" not in LOCAL:
            continue
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            target: Any = watcher.delegate(sock) if delegated else sock
            with nothing_changes(watcher, target):
                for submit in (
                    lambda target=target, address=address: watcher.sendto(target, b"x", address),
                    lambda target=target, address=address: watcher.sendmsg(
                        target, [b"x"], address=address, silent=True
                    ),
                ):
                    with pytest.raises(error):
                        submit()
            if delegated:
                watcher.free(target)


async def test_S2_host_name_raises_and_names_the_resolver(watcher: Watcher) -> None:
    with bound("udp4") as sock, nothing_changes(watcher, sock):
        for submit in (
            lambda: watcher.sendto(sock, b"x", ("localhost", 9)),
            lambda: watcher.sendmsg(sock, [b"x"], (), ("localhost", 9)),
        ):
            with pytest.raises(ValueError, match=r"getaddrinfo"):
                submit()


async def test_S2_address_of_a_family_that_is_not_looked_at(watcher: Watcher) -> None:
    """What the socket module refuses is raised, or a result; it does not stay pending."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    with closing(sock):
        try:
            watcher.sendto(sock, b"x", "not a pair")
        except TypeError:
            assert watcher.statistics().submitted == 0
        else:
            assert type((await one(watcher)).error) is TypeError
        assert watcher.statistics().pending == 0


ITEMS: list[Any] = [
    [b"no item"],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS)],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, "text")],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, [1])],
    [("level", socket.SCM_RIGHTS, b"")],
    [(socket.SOL_SOCKET, 1.0, b"")],
    [(1 << 40, 1, b"")],
    [(1, 1 << 40, b"")],
    [(1, -(1 << 31) - 1, b"")],
    None,
    7,
]


async def test_S2_ancillary_data_of_another_form_raises(watcher: Watcher) -> None:
    ours, peer = pair("unix")
    with closing(ours, peer), nothing_changes(watcher, ours):
        for items in ITEMS:
            with pytest.raises((TypeError, ValueError)):
                watcher.sendmsg(ours, [b"x"], items)


async def test_S2_data_of_another_form_raises(watcher: Watcher) -> None:
    ours, peer = pair("unix")
    with closing(ours, peer), nothing_changes(watcher, ours):
        for data in ("text", None, 7, [b"x"], memoryview(b"abcd")[::2]):
            with pytest.raises(TypeError):
                watcher.sendto(ours, data, None)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                watcher.sendmsg(ours, [b"fine", data])  # type: ignore[list-item]
        for buffers in (b"one buffer", b"", bytearray(b"x"), memoryview(b"x"), "text", "", None, 7):
            with pytest.raises(TypeError):
                watcher.sendmsg(ours, buffers)  # type: ignore[arg-type]


async def test_S2_ancillary_size_of_another_form_raises(watcher: Watcher) -> None:
    with bound("udp4") as sock, nothing_changes(watcher, sock):
        for size in (-1, (1 << 30) + 1, 1 << 80):
            with pytest.raises(ValueError):
                watcher.recvmsg(sock, size)
        for size in (True, 1.0, "1", None, b"1"):
            with pytest.raises(TypeError):
                watcher.recvmsg(sock, size)  # type: ignore[arg-type]


CALLS: dict[str, Callable[..., Any]] = {
    "recvfrom": lambda watcher, sock, **more: watcher.recvfrom(sock, **more),
    "recvmsg": lambda watcher, sock, **more: watcher.recvmsg(sock, 64, **more),
    "sendto": lambda watcher, sock, **more: watcher.sendto(sock, b"x", None, **more),
    "sendmsg": lambda watcher, sock, **more: watcher.sendmsg(sock, [b"x"], **more),
}


@pytest.mark.parametrize("name", CALLS)
async def test_S2_misuse_of_message_requests_raises(watcher: Watcher, name: str) -> None:
    call = CALLS[name]
    with bound("udp4") as sock, nothing_changes(watcher, sock):
        for times, error in (
            ({"timeout": -1}, ValueError),
            ({"timeout": float("nan")}, ValueError),
            ({"deadline": -0.5}, ValueError),
            ({"timeout": 1, "deadline": 1}, ValueError),
            ({"timeout": "1"}, TypeError),
        ):
            with pytest.raises(error):
                call(watcher, sock, **times)
        for thing in (None, 7, b"x", "x", object()):
            with pytest.raises(UnsupportedConnectionError):
                call(watcher, thing)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        nothing_changes(watcher, listener),
        pytest.raises(UnsupportedConnectionError, match="accept"),
    ):
        call(watcher, listener)
    async with Watcher() as other:
        conn = other.delegate(bound("udp4"))
        with pytest.raises(UnsupportedConnectionError, match="another watcher"):
            call(watcher, conn)
    assert watcher.statistics().submitted == 0


@pytest.mark.parametrize("name", CALLS)
async def test_S2_message_request_on_a_closed_watcher_raises(watcher: Watcher, name: str) -> None:
    with bound("udp4") as sock:
        watcher.close()
        with pytest.raises(WatcherClosedError):
            CALLS[name](watcher, sock)
        assert sock.fileno() >= 0
