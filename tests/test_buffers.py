"""Whose buffer it is, and when: rules B1 to B3."""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from aiogaio import (
    DeadlineExceededError,
    EndOfStreamError,
    OperationCancelledError,
    OpType,
    Watcher,
)
from tests.probes import (
    LONG,
    collecting_by_hand,
    no_loop_errors,
    open_descriptors,
    receive,
    small_pair,
    traced,
    unread,
    until,
)
from tests.support import collect, one, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning")


def assert_unviewed(buffer: bytearray) -> None:
    """The owner can resize: a ``bytearray`` refuses while anyone holds a view of it."""
    buffer.append(0)  # raises BufferError otherwise
    buffer.pop()


# --- B1: reads without a buffer -----------------------------------------------------------------


async def test_B1_a_read_without_a_buffer_hands_out_bytes(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        pending = watcher.read(conn)
        await settle()
        peer.sendall(b"once pending")
        op = await one(watcher)
        assert op is pending
        assert type(op.data) is bytes
        assert (op.data, op.size, op.buffer, op.error) == (b"once pending", 12, None, None)

        peer.sendall(b"once ready")
        watcher.read(conn, context="ready")
        op = await one(watcher)
        assert type(op.data) is bytes
        assert (op.data, op.size) == (b"once ready", 10)


async def test_B1_a_read_takes_at_most_buffer_size_bytes(poller: str) -> None:
    ours, peer = unix_pair()
    with peer:
        async with Watcher(poller=poller, buffer_size=10) as watcher:
            conn = watcher.delegate(ours)
            peer.sendall(b"0123456789abcdefghijKLMNO")
            taken = []
            for _ in range(3):
                watcher.read(conn)
                taken.append((await one(watcher)).data)
            assert taken == [b"0123456789", b"abcdefghij", b"KLMNO"]


async def test_B1_multishot_reads_take_at_most_buffer_size_bytes(poller: str) -> None:
    ours, peer = unix_pair()
    async with Watcher(poller=poller, buffer_size=4) as watcher:
        watcher.read(ours, multishot=True)
        await settle()
        with peer:
            peer.sendall(b"0123456789")
        ops = await collect(watcher, 4)
        assert [op.data for op in ops[:3]] == [b"0123", b"4567", b"89"]
        assert isinstance(ops[3].error, EndOfStreamError)


async def test_B1_buffer_size_is_65536_unless_told(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        conn = watcher.delegate(ours)
        peer.sendall(bytes(100_000))
        watcher.read(conn)
        assert (await one(watcher)).size == 65536
        watcher.read(conn)
        assert (await one(watcher)).size == 100_000 - 65536


async def test_B1_handed_out_bytes_stay_as_they_are(watcher: Watcher) -> None:
    """Nothing is overwritten by later reads, of this or of another connection, ever."""
    pairs = [unix_pair() for _ in range(3)]
    conns = [watcher.delegate(ours) for ours, _ in pairs]
    kept: list[tuple[bytes, Any]] = []
    for number in range(30):
        for conn, (_, peer) in zip(conns, pairs, strict=True):
            sent = os.urandom(1 + 37 * number)
            watcher.read(conn)
            peer.sendall(sent)
            kept.append((sent, (await one(watcher)).data))
    for conn in conns:
        watcher.free(conn)
    watcher.close()
    for _, peer in pairs:
        peer.close()
    assert all(sent == data for sent, data in kept)
    assert len({id(data) for _, data in kept}) == len(kept)


async def test_B1_an_idle_connection_holds_no_buffer(poller: str) -> None:
    """Neither a pending read nor the past ones cost the memory of a buffer."""
    size = 1 << 20
    pairs = [unix_pair() for _ in range(16)]
    async with Watcher(poller=poller, buffer_size=size) as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        await settle()
        with traced() as grown:
            for conn in conns:
                watcher.read(conn)
            await settle()
            assert grown() < size // 2, "pending reads hold buffers"
            for _, peer in pairs:
                peer.sendall(bytes(100_000))
            ops = await collect(watcher, len(conns))
            assert all(op.size > 50_000 for op in ops)
            del ops
            for conn in conns:
                watcher.read(conn, multishot=True)  # what is left, and nothing more
            while watcher.statistics().bytes_read < 100_000 * len(conns):
                await watcher.wait_io()
            await settle()
            assert grown() < size // 2, "idle connections keep what they have read"
    for _, peer in pairs:
        peer.close()


async def test_B1_a_short_message_costs_its_own_length(poller: str) -> None:
    """What is kept of a short receive is short, however large a receive may be."""
    size = 1 << 20
    ours, peer = unix_pair()
    with peer:
        async with Watcher(poller=poller, buffer_size=size) as watcher:
            conn = watcher.delegate(ours)
            kept = []
            with traced() as grown:
                for _ in range(20):
                    peer.sendall(b"short")
                    watcher.read(conn)
                    kept.append((await one(watcher)).data)
                assert grown() < size // 2
            assert kept == [b"short"] * 20


# --- B2: the caller's buffer --------------------------------------------------------------------


async def test_B2_the_data_is_received_into_the_callers_buffer(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(b"." * 8)
        watcher.read(conn, buffer)
        await settle()
        peer.sendall(b"hello")
        op = await one(watcher)
        assert op.buffer is buffer
        assert bytes(buffer) == b"hello..."
        assert isinstance(op.data, memoryview)
        assert (bytes(op.data), op.size) == (b"hello", 5)
        op.data[0:1] = b"J"
        assert bytes(buffer) == b"Jello...", "the data is a copy, not a view"


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_B2_no_view_between_attempts(watcher: Watcher, full: bool) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(6)
        request = watcher.read_full if full else watcher.read
        request(conn, buffer)
        assert_unviewed(buffer)
        await settle()
        assert_unviewed(buffer)
        if full:
            peer.sendall(b"abc")
            await until(lambda: unread(conn) == 0)
            await settle()
            assert_unviewed(buffer)
            peer.sendall(b"def")
        else:
            peer.sendall(b"abcdef")
        op = await one(watcher)
        assert op.error is None
        assert bytes(buffer) == b"abcdef"


async def test_B2_no_view_of_what_is_to_be_written_between_attempts(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        data = bytearray(os.urandom(LONG))
        queued = bytearray(b"queued")
        sent = bytes(data) + bytes(queued)
        watcher.write(conn, data)
        watcher.write(conn, queued)
        for _ in range(3):
            assert_unviewed(data)
            assert_unviewed(queued)
            await settle(3)
        part = await receive(peer, LONG // 2)
        assert_unviewed(data)
        assert part + await receive(peer, LONG - len(part) + 6) == sent
        first, second = await collect(watcher, 2)
        assert (first.size, first.error, second.size) == (LONG, None, 6)
        assert_unviewed(data)
        assert_unviewed(queued)


def by_data(watcher: Watcher, op: Any, peer: socket.socket) -> None:
    peer.sendall(b"1234")


def by_end(watcher: Watcher, op: Any, peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def by_cancel(watcher: Watcher, op: Any, peer: socket.socket) -> None:
    assert watcher.cancel(op)


def by_free(watcher: Watcher, op: Any, peer: socket.socket) -> None:
    assert watcher.free(op.conn)


def by_close(watcher: Watcher, op: Any, peer: socket.socket) -> None:
    watcher.close()


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
@pytest.mark.parametrize("finish", [by_data, by_end, by_cancel, by_free, by_close])
async def test_B2_no_view_after_completion(
    watcher: Watcher,
    full: bool,
    finish: Callable[[Watcher, Any, socket.socket], None],
) -> None:
    """The owner can resize right after, with the operation still in hand and looked at."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(4)
        op = (watcher.read_full if full else watcher.read)(conn, buffer)
        await settle(3)
        finish(watcher, op, peer)
        assert await one(watcher) is op
        buffer.extend(bytes(100_000))
        assert len(bytes(op.data)) == op.size
        buffer.clear()


async def test_B2_no_view_after_a_deadline(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer, data = bytearray(10), bytearray(LONG)
        peer.sendall(b"abc")
        watcher.read_full(conn, buffer, timeout=0)
        watcher.write(conn, data, timeout=0)
        ops = await collect(watcher, 2)
        assert all(isinstance(op.error, DeadlineExceededError) for op in ops)
        assert all(op.size for op in ops)
        buffer.extend(bytes(100_000))
        data.extend(bytes(100_000))
        assert bytes(buffer[:3]) == b"abc"


async def test_B2_no_view_after_a_write_at_once(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        for silent in (False, True):
            data = bytearray(b"taken at once")
            op = watcher.write(conn, data, silent=silent)
            data.extend(bytes(100_000))
            if not silent:
                assert await one(watcher) is op
                data.extend(bytes(100_000))
        assert peer.recv(100) == b"taken at once" * 2


def bytearray_cleared() -> tuple[Any, Callable[[], None]]:
    buffer = bytearray(8)
    return buffer, buffer.clear


def bytearray_shrunk() -> tuple[Any, Callable[[], None]]:
    buffer = bytearray(8)

    def shrink() -> None:
        del buffer[2:]

    return buffer, shrink


def array_emptied() -> tuple[Any, Callable[[], None]]:
    buffer = array.array("H", [0] * 4)

    def empty() -> None:
        del buffer[:]

    return buffer, empty


def mmap_closed() -> tuple[Any, Callable[[], None]]:
    buffer = mmap.mmap(-1, 8)
    return buffer, buffer.close


def memoryview_released() -> tuple[Any, Callable[[], None]]:
    buffer = bytearray(8)
    view = memoryview(buffer)

    def release() -> None:
        view.release()
        assert_unviewed(buffer)  # a released view says nothing of its slices that live on

    return view, release


SPOILT = [
    bytearray_cleared,
    bytearray_shrunk,
    array_emptied,
    mmap_closed,
    memoryview_released,
]


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_B2_a_buffer_spoilt_meanwhile_fails_its_read_full_only(
    watcher: Watcher, spoilt: Callable[[], tuple[Any, Callable[[], None]]]
) -> None:
    """Five of eight bytes have come when the owner resizes or closes: the sixth has no room."""
    ours, peer = unix_pair()
    others, other_peer = unix_pair()
    with peer, other_peer:
        async with no_loop_errors():
            conn, other = watcher.delegate(ours), watcher.delegate(others)
            buffer, spoil = spoilt()
            failing = watcher.read_full(conn, buffer, context="failing")
            watcher.read_full(conn, bytearray(4), context="behind")
            watcher.read(other, context="other")
            await settle(3)
            peer.sendall(b"12345")
            await until(lambda: unread(conn) == 0)
            await settle(3)
            spoil()
            peer.sendall(b"6789")
            results = await collect(watcher, 2)
            assert [op.context for op in results] == ["failing", "behind"]
            assert results[0] is failing
            assert results[0].error is not None
            assert not isinstance(results[0].error, EndOfStreamError | OSError)
            assert results[0].size == 5
            assert results[1].error is None
            assert bytes(results[1].data) == b"6789", "the failed operation took bytes with it"

            other_peer.sendall(b"fine")
            assert (await one(watcher)).data == b"fine"
            watcher.write(conn, b"and writes go on")
            assert (await one(watcher)).error is None
            assert peer.recv(100) == b"and writes go on"


@pytest.mark.parametrize(
    "spoilt", [bytearray_cleared, array_emptied, mmap_closed, memoryview_released]
)
async def test_B2_a_buffer_spoilt_meanwhile_fails_its_read_only(
    watcher: Watcher, spoilt: Callable[[], tuple[Any, Callable[[], None]]]
) -> None:
    """A receive into no room returns 0 bytes; that is not the end of the stream."""
    ours, peer = unix_pair()
    with peer:
        async with no_loop_errors():
            conn = watcher.delegate(ours)
            buffer, spoil = spoilt()
            failing = watcher.read(conn, buffer)
            behind = watcher.read(conn, context="behind")
            await settle(3)
            spoil()
            peer.sendall(b"data")
            results = await collect(watcher, 2)
            assert results == [failing, behind]
            assert failing.error is not None
            assert not isinstance(failing.error, EndOfStreamError)
            assert failing.size == 0
            assert behind.data == b"data", "the failed operation took bytes with it"
            watcher.read(conn, bytearray(10))
            peer.sendall(b"more")
            assert bytes((await one(watcher)).data) == b"more"


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_B2_a_buffer_that_grows_meanwhile_harms_nobody(watcher: Watcher, full: bool) -> None:
    """Never beyond the length it was submitted with, whether it fails or not."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(4)
        op = (watcher.read_full if full else watcher.read)(conn, buffer)
        await settle(3)
        buffer.extend(b"." * 100)
        peer.sendall(b"12345678")
        assert await one(watcher) is op
        assert op.size in (0, 4)
        assert bytes(buffer) == b"12345678"[: op.size].ljust(4, b"\0") + b"." * 100
        watcher.read(conn)
        assert (await one(watcher)).data == b"12345678"[op.size :]


@pytest.mark.parametrize("how", ["cleared", "closed", "released"])
async def test_B2_data_spoilt_meanwhile_fails_its_write_only(watcher: Watcher, how: str) -> None:
    ours, peer = small_pair()
    with peer:
        async with no_loop_errors():
            conn = watcher.delegate(ours)
            data: Any
            owner = bytearray(b"x" * LONG)
            if how == "closed":
                data = mmap.mmap(-1, LONG)
                data[:] = owner
            else:
                data = memoryview(owner) if how == "released" else owner
            failing = watcher.write(conn, data)
            assert failing is not None
            await settle(3)
            assert not failing.completed
            if how == "closed":
                data.close()
            elif how == "released":
                data.release()
                assert_unviewed(owner)
            else:
                data.clear()
            before = await receive(peer, unread(peer))
            assert await one(watcher) is failing
            assert failing.error is not None
            assert not isinstance(failing.error, OSError)
            sent = failing.size
            assert 0 < sent < LONG
            watcher.write(conn, b"the next")
            assert (await one(watcher)).error is None
            rest = await receive(peer, sent - len(before) + 8)
            assert before + rest == b"x" * sent + b"the next"


async def test_B2_a_queued_write_spoilt_before_its_turn_sends_nothing(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        queued = bytearray(b"never sent")
        first = watcher.write(conn, b"x" * LONG)
        second = watcher.write(conn, queued)
        third = watcher.write(conn, b"third")
        await settle(3)
        queued.clear()
        assert await receive(peer, LONG + 5) == b"x" * LONG + b"third"
        assert await collect(watcher, 3) == [first, second, third]
        assert second is not None
        assert second.error is not None
        assert second.size == 0
        assert third is not None
        assert third.error is None


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_B2_any_writable_contiguous_buffer_will_do(watcher: Watcher, full: bool) -> None:
    """Sizes count bytes, whatever the buffer counts."""
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        words = array.array("I", [0] * 4)
        square = memoryview(bytearray(16)).cast("B", (4, 4))
        mapped = mmap.mmap(-1, 16)
        middle = memoryview(bytearray(32))[8:24]
        for buffer in (words, square, mapped, middle, bytearray(16)):
            (watcher.read_full if full else watcher.read)(conn, buffer)
            await settle(2)
            peer.sendall(b"0123456789abcdef")
            op = await one(watcher)
            assert (op.error, op.size) == (None, 16)
            assert op.buffer is buffer
            assert bytes(op.data) == b"0123456789abcdef"
            assert len(op.data) == 16
        assert words.tobytes() == square.tobytes() == mapped[:] == middle.tobytes()
        middle.release()
        square.release()
        del op
        mapped.close()  # refused while a view lives


async def test_B2_any_contiguous_data_can_be_written(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        words = array.array("I", [1, 2, 3, 4])
        square = memoryview(b"0123456789abcdef").cast("B", (4, 4))
        sent = b""
        for data in (words, square, memoryview(b"xxabcdxx")[2:6], bytearray(b"array"), b"bytes"):
            watcher.write(conn, data)
            op = await one(watcher)
            assert op.error is None
            assert op.size == len(bytes(data))
            sent += bytes(data)
        assert await receive(peer, len(sent)) == sent


async def test_B2_partial_data_is_seen_after_a_failure(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(10)
        op = watcher.read_full(conn, buffer)
        peer.sendall(b"abc")
        await until(lambda: unread(conn) == 0)
        await settle(3)
        watcher.cancel(op)
        assert await one(watcher) is op
        assert isinstance(op.error, OperationCancelledError)
        assert (op.size, bytes(op.data), bytes(buffer[:3])) == (3, b"abc", b"abc")


async def test_B2_a_result_keeps_the_buffer_and_the_watcher_does_not(watcher: Watcher) -> None:
    class Buffer(bytearray):
        """Can be watched as it goes, unlike its base."""

        gone = 0

        def __del__(self) -> None:
            Buffer.gone += 1

    ours, peer = unix_pair()
    with collecting_by_hand(), peer:
        conn = watcher.delegate(ours)
        op = watcher.read(conn, Buffer(4))
        write = watcher.write(conn, Buffer(b"data"))
        await settle(3)
        peer.sendall(b"1234")
        ops = await collect(watcher, 2)
        assert {result.type for result in ops} == {OpType.READ, OpType.WRITE}
        gc.collect()
        assert Buffer.gone == 0
        del op, write, ops
        await settle(3)
        gc.collect()
        assert Buffer.gone == 2
        assert not conn.closed


# --- B3: silent writes --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytearray, memoryview, mmap.mmap])
async def test_B3_a_silent_write_keeps_its_own_copy_of_the_rest(
    watcher: Watcher, kind: Any
) -> None:
    """The owner overwrites, resizes and closes as soon as the call has returned."""
    ours, peer = small_pair()
    with peer:
        async with no_loop_errors():
            conn = watcher.delegate(ours)
            sent = os.urandom(LONG)
            data: Any = bytearray(sent)
            if kind is memoryview:
                data = memoryview(data)
            elif kind is mmap.mmap:
                data = mmap.mmap(-1, LONG)
                data[:] = sent
            assert watcher.write(conn, data, silent=True) is not None, "it was not taken at once"
            data[:] = bytes(LONG)
            if kind is bytearray:
                data.clear()
            elif kind is memoryview:
                data.release()
            else:
                data.close()
            assert await receive(peer, LONG) == sent
            await settle()
            assert watcher.poll_io() == []


async def test_B3_a_silent_write_in_the_queue_keeps_its_own_copy(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        loud = watcher.write(conn, b"x" * LONG)
        data = bytearray(b"0000")
        for number in range(20):
            data[:] = b"%04d" % number
            assert watcher.write(conn, data, silent=True) is not None, "it overtook"
        data.clear()
        expected = b"x" * LONG + b"".join(b"%04d" % number for number in range(20))
        assert await receive(peer, len(expected)) == expected
        assert await one(watcher) is loud
        await settle()
        assert watcher.poll_io() == []


async def test_B3_the_copy_goes_when_it_is_sent(watcher: Watcher) -> None:
    ours, peer = small_pair()
    with peer:
        conn = watcher.delegate(ours)
        data = bytearray(3 * LONG)
        with traced() as grown:
            watcher.write(conn, data, silent=True)
            assert grown() > 2 * LONG, "no copy was made"
            assert len(await receive(peer, len(data))) == len(data)
            await settle()
            assert grown() < LONG // 2
        assert not conn.closed


@pytest.mark.parametrize("vector", [False, True])
async def test_B3_bytes_for_many_slow_peers_are_there_once(watcher: Watcher, vector: bool) -> None:
    """They cannot change: a broadcast needs no copy for each."""
    pairs = [small_pair() for _ in range(20)]
    with contextlib.ExitStack() as stack:
        for _, peer in pairs:
            stack.enter_context(peer)
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        for conn in conns:
            watcher.write(conn, b"x" * LONG, silent=True)  # behind which what follows is whole
        data = os.urandom(LONG)
        with traced() as grown:
            for conn in conns:
                if vector:
                    watcher.writev(conn, [data], silent=True)
                else:
                    watcher.write(conn, data, silent=True)
            assert grown() < LONG
        for _, peer in pairs:
            assert (await receive(peer, 2 * LONG))[LONG:] == data


async def test_B3_a_silent_write_from_another_thread_keeps_its_own_copy(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        data = bytearray(b"as it was")
        watcher.threadsafe.write(conn, data, silent=True)
        data[:] = b"overwrote"
        data.clear()
        assert await receive(peer, 9) == b"as it was"
        await settle()
        assert watcher.poll_io() == []


async def test_B_spoilt_buffers_open_and_close_nothing(watcher: Watcher) -> None:
    ours, peer = unix_pair()
    with peer:
        conn = watcher.delegate(ours)
        await settle()
        before = open_descriptors()
        for spoilt in (bytearray_cleared, array_emptied, mmap_closed, memoryview_released):
            buffer, spoil = spoilt()
            watcher.read_full(conn, buffer)
            spoil()
            peer.sendall(b"x")
            assert (await one(watcher)).error is not None
            watcher.read(conn)
            assert (await one(watcher)).data == b"x"
        assert open_descriptors() == before
        assert not conn.closed


async def test_B2_a_pending_tcp_read_into_a_reused_buffer(watcher: Watcher) -> None:
    """One buffer, one operation after another: it is free again each time."""
    ours, peer = tcp_pair()
    with peer:
        conn = watcher.delegate(ours)
        buffer = bytearray(1)
        received = bytearray()
        for _ in range(20):
            buffer += b"\0"
            watcher.read_full(conn, buffer)
            peer.sendall(b"x" * len(buffer))
            assert (await one(watcher)).error is None
            received += buffer
        assert received == b"x" * sum(range(2, 22))
        await asyncio.sleep(0)
