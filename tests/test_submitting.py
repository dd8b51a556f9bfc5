"""Submitting: what a request call does, in which order requests run, and when they complete.

Rules S1 and S3 to S7; the misuse of rule S2 is in test_misuse.py.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import importlib.util
import os
import random
import resource
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aiogaio
from aiogaio import (
    Connection,
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
    WatcherClosedError,
)
from tests.probes import arrived, ready, unread
from tests.support import collect, one, reset, settle, tcp_pair, unix_pair

# A test's connections go with its frame, before the fixture closes the watcher they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <Connection:ResourceWarning"),
    pytest.mark.usefixtures("no_errors_in_callbacks"),
]


async def taken(conn: Connection) -> None:
    """Return when the watcher has taken all that waited in the socket."""
    await until(lambda: unread(conn) == 0)


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.001)


def receive(sock: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = sock.recv(min(1 << 18, count - len(received)))
        assert chunk, f"the stream ended after {len(received)} of {count} bytes"
        received += chunk
    return bytes(received)


def receive_present(sock: socket.socket) -> bytes:
    """All that waits in a socket, without waiting for more."""
    received = bytearray()
    timeout = sock.gettimeout()
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while chunk := sock.recv(1 << 18):
            received += chunk
    sock.settimeout(timeout)
    return bytes(received)


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


@contextlib.contextmanager
def clients_of(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address)) for _ in range(count)]


@contextlib.contextmanager
def no_descriptor_to_be_had() -> Iterator[None]:
    """Whatever would open a descriptor in here fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Hostile:
    """A context that must be handed through and never be looked at."""

    def _refuse(self, *_: object) -> bool:
        raise AssertionError("the library ran code of the program's context")

    __bool__ = __eq__ = __len__ = _refuse  # type: ignore[assignment]
    __hash__ = _refuse  # type: ignore[assignment]


# S1: a request call never blocks and never runs user code; it is attempted at once if it may be


async def test_S1_read_of_waiting_data_completes_in_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"waiting")
        arrived(conn, 7)
        operation = watcher.read(conn)
        assert operation.completed
        assert watcher.poll_io() == [operation]
        assert (operation.data, operation.size, operation.error) == (b"waiting", 7, None)


async def test_S1_read_full_of_waiting_data_completes_in_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"waiting")
        arrived(conn, 7)
        buffer = bytearray(7)
        operation = watcher.read_full(conn, buffer)
        assert watcher.poll_io() == [operation]
        assert buffer == b"waiting"


async def test_S1_write_reaches_the_peer_in_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        operation = watcher.write(watcher.delegate(server), b"at once")
        assert client.recv(7) == b"at once"  # the loop has not run since
        assert watcher.poll_io() == [operation]


async def test_S1_accept_of_a_waiting_client_completes_in_the_call(watcher: Watcher) -> None:
    with listen() as listener:
        address = listener.getsockname()
        with clients_of(address, 1) as (client,):
            conn = watcher.delegate(listener)
            ready(conn)
            operation = watcher.accept(conn)
            assert watcher.poll_io() == [operation]
            assert operation.address == client.getsockname()


async def test_S1_call_does_not_block_on_sockets_left_blocking(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client, listen() as listener:
        server.setblocking(True)
        listener.setblocking(True)
        conn = watcher.delegate(server)
        operations = [
            watcher.read(conn),
            watcher.read_full(conn, bytearray(4)),
            watcher.write(conn, bytes(8 << 20)),
            watcher.accept(listener),
        ]
        assert not any(operation.completed for operation in operations)
        assert watcher.poll_io() == []


async def test_S1_accepted_connections_do_not_block_either(watcher: Watcher) -> None:
    with listen() as listener, clients_of(listener.getsockname(), 1):
        watcher.accept(listener)
        accepted = (await one(watcher)).accepted
        assert not watcher.read(accepted).completed


async def test_S1_request_behind_a_pending_one_queues(watcher: Watcher) -> None:
    """The first one is not served before the loop runs; then the second must not be either."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        first = watcher.read(conn, bytearray(2))
        client.sendall(b"abcd")
        arrived(conn, 4)
        second = watcher.read(conn, bytearray(2))
        assert first.completed or not second.completed
        assert await collect(watcher, 2) == [first, second]
        assert (bytes(first.data), bytes(second.data)) == (b"ab", b"cd")


async def test_S1_consumer_does_not_run_inside_the_call(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        seen: list[Operation] = []

        async def consumer() -> None:
            seen.extend(await watcher.wait_io())

        task = asyncio.create_task(consumer())
        await settle()
        operation = watcher.write(conn, b"x")
        assert seen == []
        await asyncio.wait_for(task, 10)
        assert seen == [operation]


REQUESTS: dict[str, Callable[..., Operation | None]] = {
    "read": lambda watcher, conn, **options: watcher.read(conn, **options),
    "read with timeout": lambda watcher, conn, **options: watcher.read(conn, timeout=9, **options),
    "read into": lambda watcher, conn, **options: watcher.read(conn, bytearray(9), **options),
    "read_full": lambda watcher, conn, **options: watcher.read_full(conn, bytearray(1), **options),
    "multishot": lambda watcher, conn, **options: watcher.read(conn, multishot=True, **options),
    "write": lambda watcher, conn, **options: watcher.write(conn, b"x", **options),
    "write timeout": lambda watcher, conn, **options: watcher.write(
        conn, b"x", timeout=9, **options
    ),
    "write view": lambda watcher, conn, **options: watcher.write(conn, bytearray(9), **options),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_S1_context_is_handed_through_unexamined(
    watcher: Watcher, request_: Callable[..., Operation | None]
) -> None:
    """The very object, be it false or not to be asked; without one, the connection's."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        hostile, inherited = Hostile(), Hostile()
        conn.context = inherited
        for context in (hostile, 0, "", (), False, None):
            client.sendall(b"x")
            operation = request_(watcher, conn, context=context)
            delivered = await one(watcher)
            assert delivered.context is (inherited if context is None else context)
            if delivered is not operation:  # the multishot is still there
                assert operation is not None
                watcher.cancel(operation)
                assert (await one(watcher)).context is delivered.context


async def test_S1_context_of_an_accept_is_handed_through(watcher: Watcher) -> None:
    listener = watcher.delegate(listen())
    inherited = Hostile()
    listener.context = inherited
    for multishot in (False, True):
        for context in (Hostile(), 0, None):
            operation = watcher.accept(listener, multishot=multishot, context=context)
            with clients_of(listener.sockname, 1):
                delivered = await one(watcher)
                assert delivered.context is (inherited if context is None else context)
                assert delivered.accepted.context is None
            if multishot:
                watcher.cancel(operation)
                await one(watcher)


async def test_S1_context_of_the_connection_is_the_one_at_submission(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        before, after = object(), object()
        conn.context = before
        first = watcher.read(conn, bytearray(1))
        conn.context = after
        second = watcher.read(conn, bytearray(1))
        client.sendall(b"ab")
        await collect(watcher, 2)
        assert first.context is before
        assert second.context is after


async def test_S1_returned_operation_is_the_one_delivered(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(16)
        reading = watcher.read(conn, buffer)
        writing = watcher.write(conn, b"question")
        assert await one(watcher) is writing
        client.sendall(b"answer")
        assert await one(watcher) is reading
        assert (reading.type, writing.type) == (OpType.READ, OpType.WRITE)
        assert reading.conn is conn
        assert writing.conn is conn
        assert reading.buffer is buffer
        assert (reading.size, bytes(reading.data), buffer[:6]) == (6, b"answer", b"answer")
        assert writing.size == 8
        assert not reading.more
        assert not writing.more
        assert reading.completed
        assert writing.completed


# S3: per connection and direction, operations start and complete in the order submitted


async def test_S3_reads_complete_in_the_order_submitted(watcher: Watcher) -> None:
    server, client = tcp_pair()
    rng = random.Random(1)
    sizes = [rng.randint(1, 200) for _ in range(300)]
    data = rng.randbytes(sum(sizes))
    with client:
        conn = watcher.delegate(server)
        operations = [watcher.read_full(conn, bytearray(size)) for size in sizes]
        client.sendall(data)
        assert await collect(watcher, len(sizes)) == operations
        assert b"".join(operation.data for operation in operations) == data


async def test_S3_reads_of_every_kind_keep_their_order(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operations = [
            watcher.read_full(conn, bytearray(4)),
            watcher.read(conn, bytearray(3)),
            watcher.read_full(conn, bytearray(2)),
            watcher.read(conn),
        ]
        for part in (b"ab", b"cd", b"efg", b"hi", b"jklm"):
            client.sendall(part)
            arrived(conn, len(part))
            await taken(conn)
        assert await collect(watcher, 4) == operations
        assert [bytes(o.data) for o in operations] == [b"abcd", b"efg", b"hi", b"jklm"]


async def test_S3_writes_complete_and_arrive_in_the_order_submitted(watcher: Watcher) -> None:
    server, client = unix_pair()
    rng = random.Random(2)
    messages = [rng.randbytes(rng.choice([1, 100, 300_000])) for _ in range(60)]
    with client:
        conn = watcher.delegate(server)
        operations = [
            watcher.write(conn, message, silent=number % 3 == 0)
            for number, message in enumerate(messages)
        ]
        reader = asyncio.create_task(asyncio.to_thread(receive, client, sum(map(len, messages))))
        loud = [o for number, o in enumerate(operations) if number % 3]
        assert await collect(watcher, len(loud)) == loud
        assert await reader == b"".join(messages)


async def test_S3_small_write_does_not_overtake_a_torn_one(watcher: Watcher) -> None:
    """The peer made room, the loop has not run: the socket would take the second write now."""
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        first = watcher.write(conn, b"a" * (4 << 20))
        got = receive_present(client)
        ready(conn, select.POLLOUT)
        second = watcher.write(conn, b"b" * 10)
        rest = (4 << 20) + 10 - len(got)
        reader = asyncio.create_task(asyncio.to_thread(receive, client, rest))
        assert await collect(watcher, 2) == [first, second]
        assert (got + await reader).rstrip(b"b") == b"a" * (4 << 20)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "timeout", "silent"])
async def test_S3_write_submitted_while_a_queue_is_sent_stays_behind_it(
    watcher: Watcher, kind: str
) -> None:
    """The socket takes more, and the watcher has not come to all that was queued before."""
    server, client = unix_pair()
    client.setblocking(False)
    with client:
        conn = watcher.delegate(server)
        first = watcher.write(conn, bytes(1 << 20))
        for number in range(100):
            watcher.write(conn, b"%4d" % number)
        number = 100
        received = bytearray()
        async with asyncio.timeout(10):
            while len(received) < (1 << 20) + 4 * 200:
                received += receive_present(client)
                await asyncio.sleep(0)
                if first.completed and number < 200:
                    data = b"%4d" % number
                    number += 1
                    match kind:
                        case "bytes":
                            watcher.write(conn, data)
                        case "bytearray":
                            watcher.write(conn, bytearray(data))
                        case "timeout":
                            watcher.write(conn, data, timeout=60)
                        case "silent":
                            watcher.write(conn, data, silent=True)
        assert bytes(received[1 << 20 :]) == b"".join(b"%4d" % number for number in range(200))
        assert all(operation.error is None for operation in watcher.poll_io())


@pytest.mark.parametrize("full", [False, True], ids=["read", "read_full"])
async def test_S3_read_submitted_while_a_queue_is_served_stays_behind_it(
    watcher: Watcher, full: bool
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)

        def submit() -> Operation:
            if full:
                return watcher.read_full(conn, bytearray(4))
            return watcher.read(conn, bytearray(4))

        submitted = [submit() for _ in range(100)]
        client.sendall(b"".join(b"%4d" % number for number in range(200)))
        arrived(conn, 800)
        results: list[Operation] = []
        async with asyncio.timeout(10):
            while len(results) < 200:
                await asyncio.sleep(0)
                if len(submitted) < 200:
                    submitted.append(submit())
                results += watcher.poll_io()
        assert results == submitted
        assert [int(bytes(o.data)) for o in results] == list(range(200))


async def test_S3_accepts_complete_in_the_order_submitted(watcher: Watcher) -> None:
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        operations = [watcher.accept(conn) for _ in range(10)]
        with clients_of(address, 10) as clients:
            assert await collect(watcher, 10) == operations
            assert [o.address for o in operations] == [c.getsockname() for c in clients]


async def test_S3_stuck_write_does_not_hold_up_reads(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        writing = watcher.write(conn, bytes(4 << 20))
        reading = watcher.read(conn)
        client.sendall(b"meanwhile")
        assert await one(watcher) is reading
        assert reading.data == b"meanwhile"
        assert not writing.completed


async def test_S3_pending_read_does_not_hold_up_writes(watcher: Watcher) -> None:
    server, client = unix_pair()
    size = 4 << 20
    with client:
        conn = watcher.delegate(server)
        reading = watcher.read(conn)
        writing = watcher.write(conn, bytes(size))
        reader = asyncio.create_task(asyncio.to_thread(receive, client, size))
        assert await one(watcher) is writing
        await reader
        assert not reading.completed


async def test_S3_both_directions_at_full_speed(watcher: Watcher) -> None:
    left, right = tcp_pair()
    rng = random.Random(3)
    size = 2 << 20
    ends = [watcher.delegate(left), watcher.delegate(right)]
    data = [rng.randbytes(size), rng.randbytes(size)]
    buffers = [bytearray(size), bytearray(size)]
    for conn, out, into in zip(ends, data, buffers, strict=True):
        watcher.write(conn, out)
        watcher.read_full(conn, into)
    for operation in await collect(watcher, 4):
        assert (operation.error, operation.size) == (None, size)
    assert buffers[0] == data[1]
    assert buffers[1] == data[0]


async def test_S3_cancel_takes_one_out_of_the_middle(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        first, middle, last = (watcher.read_full(conn, bytearray(4)) for _ in range(3))
        assert watcher.cancel(middle) is True
        assert watcher.poll_io() == [middle]
        client.sendall(b"abcdefgh")
        assert await collect(watcher, 2) == [first, last]
        assert (bytes(first.data), bytes(last.data)) == (b"abcd", b"efgh")
        assert isinstance(middle.error, OperationCancelledError)
        assert middle.size == 0


async def test_S3_deadline_takes_one_out_of_the_middle(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        first = watcher.read_full(conn, bytearray(4))
        middle = watcher.read_full(conn, bytearray(4), timeout=0.01)
        last = watcher.read_full(conn, bytearray(4))
        assert await one(watcher) is middle
        client.sendall(b"abcdefgh")
        assert await collect(watcher, 2) == [first, last]
        assert (bytes(first.data), bytes(last.data)) == (b"abcd", b"efgh")
        assert isinstance(middle.error, DeadlineExceededError)


async def test_S3_cancel_of_the_head_lets_the_next_one_start(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        head = watcher.read_full(conn, bytearray(8))
        following = watcher.read_full(conn, bytearray(4))
        client.sendall(b"abc")
        arrived(conn, 3)
        await taken(conn)
        assert watcher.cancel(head) is True
        client.sendall(b"defg")
        assert await collect(watcher, 2) == [head, following]
        assert (bytes(head.data), bytes(following.data)) == (b"abc", b"defg")


async def test_S3_write_that_sent_nothing_is_cancelled_and_the_next_one_sent(
    watcher: Watcher,
) -> None:
    server, client = unix_pair()
    with client:
        server.setblocking(False)
        full = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                full += server.send(bytes(1 << 16))
        conn = watcher.delegate(server)
        head = watcher.write(conn, b"never")
        following = watcher.write(conn, b"sent")
        assert watcher.cancel(head) is True
        assert receive(client, full) == bytes(full)
        assert await collect(watcher, 2) == [head, following]
        assert (head.size, following.size, following.error) == (0, 4, None)
        assert receive(client, 4) == b"sent"


async def test_S3_reads_behind_the_end_all_end_in_order(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operations = [watcher.read_full(conn, bytearray(4)) for _ in range(5)]
        client.sendall(b"abcdef")
        client.shutdown(socket.SHUT_WR)
        assert await collect(watcher, 5) == operations
        assert [o.size for o in operations] == [4, 2, 0, 0, 0]
        assert operations[0].error is None
        assert all(isinstance(o.error, EndOfStreamError) for o in operations[1:])


async def test_S3_read_behind_a_multishot_waits_for_its_end(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        armed = watcher.read(conn, multishot=True)
        behind = watcher.read(conn)
        for message in (b"one", b"two"):
            client.sendall(message)
            got = await one(watcher)
            assert (got.data, got.more) == (message, True)
        assert not behind.completed
        watcher.cancel(armed)
        assert await one(watcher) is armed
        client.sendall(b"three")
        assert await one(watcher) is behind
        assert behind.data == b"three"


# S4: a write completes when all is sent, or with an error and the count; read_full likewise


async def test_S4_write_completes_only_when_all_bytes_are_sent(watcher: Watcher) -> None:
    server, client = unix_pair()
    data = random.Random(4).randbytes(4 << 20)
    with client:
        operation = watcher.write(watcher.delegate(server), data)
        half = len(data) // 2
        got = await asyncio.to_thread(receive, client, half)
        await settle()
        assert not operation.completed  # what is still to be received exceeds any socket buffer
        reader = asyncio.create_task(asyncio.to_thread(receive, client, len(data) - half))
        assert await one(watcher) is operation
        assert (operation.size, operation.error) == (len(data), None)
        assert got + await reader == data


@pytest.mark.parametrize("how", ["deadline", "cancel", "free", "close"])
async def test_S4_failed_write_tells_exactly_what_was_sent(watcher: Watcher, how: str) -> None:
    server, client = unix_pair()
    data = random.Random(5).randbytes(4 << 20)
    with client:
        conn = watcher.delegate(server)
        timeout = 0.05 if how == "deadline" else None
        operation = watcher.write(conn, data, timeout=timeout)
        got = receive(client, 200_000)
        await settle()
        match how:
            case "cancel":
                watcher.cancel(operation)
            case "free":
                watcher.free(conn)
            case "close":
                watcher.close()
        assert await one(watcher) is operation
        kind = {
            "deadline": DeadlineExceededError,
            "cancel": OperationCancelledError,
            "free": ConnectionFreedError,
            "close": WatcherClosedError,
        }[how]
        assert isinstance(operation.error, kind)
        got += receive_present(client)
        assert 0 < operation.size < len(data)
        assert operation.size == len(got)
        assert got == data[: len(got)]


async def test_S4_write_to_a_peer_that_resets_never_ends_well(watcher: Watcher) -> None:
    server, client = tcp_pair()
    size = 32 << 20
    with client:
        operation = watcher.write(watcher.delegate(server), bytes(size))
        got = len(receive(client, 100_000))
        reset(client)
        assert await one(watcher) is operation
        assert isinstance(operation.error, ConnectionError)
        assert got <= operation.size < size


async def test_S4_datagram_too_long_is_an_error_and_sends_nothing(watcher: Watcher) -> None:
    server, client = unix_pair(socket.SOCK_DGRAM)
    with client:
        conn = watcher.delegate(server)
        too_long = watcher.write(conn, bytes(8 << 20))
        following = watcher.write(conn, b"short")
        assert await collect(watcher, 2) == [too_long, following]
        assert isinstance(too_long.error, OSError)
        assert too_long.size == 0
        assert following.error is None
        assert client.recv(100) == b"short"


async def test_S4_read_full_fills_the_whole_buffer(watcher: Watcher) -> None:
    server, client = tcp_pair()
    data = random.Random(6).randbytes(3000)
    with client:
        conn = watcher.delegate(server)
        buffer = bytearray(len(data))
        operation = watcher.read_full(conn, buffer)
        for start in range(0, len(data), 500):
            assert not operation.completed
            client.sendall(data[start : start + 500])
            await settle()
        assert await one(watcher) is operation
        assert (operation.type, operation.size, operation.error) == (OpType.READ, 3000, None)
        assert buffer == data
        assert operation.data == data


@pytest.mark.parametrize("how", ["end", "reset", "deadline", "cancel", "free", "close"])
async def test_S4_failed_read_full_tells_what_was_received(watcher: Watcher, how: str) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"part")
        arrived(conn, 4)
        buffer = bytearray(b"." * 10)
        operation = watcher.read_full(conn, buffer, timeout=0.02 if how == "deadline" else None)
        assert not operation.completed
        match how:
            case "end":
                client.shutdown(socket.SHUT_WR)
            case "reset":
                reset(client)
            case "cancel":
                assert watcher.cancel(operation) is True
            case "free":
                assert watcher.free(conn) is True
            case "close":
                watcher.close()
        assert await one(watcher) is operation
        kind = {
            "end": EndOfStreamError,
            "reset": ConnectionResetError,
            "deadline": DeadlineExceededError,
            "cancel": OperationCancelledError,
            "free": ConnectionFreedError,
            "close": WatcherClosedError,
        }[how]
        assert isinstance(operation.error, kind)
        assert operation.size == 4
        assert bytes(operation.data) == b"part"
        assert buffer == b"part......"


async def test_S4_bytes_after_a_failed_read_full_are_the_next_ones(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"abc")
        arrived(conn, 3)
        torn = watcher.read_full(conn, bytearray(10), timeout=0.01)
        assert await one(watcher) is torn
        client.sendall(b"def")
        watcher.read_full(conn, bytearray(3))
        assert bytes(torn.data) + bytes((await one(watcher)).data) == b"abcdef"


async def test_S4_sizes_count_bytes_not_items(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        numbers = array.array("I", range(100))
        writing = watcher.write(conn, numbers)
        assert await one(watcher) is writing
        assert writing.size == numbers.itemsize * 100
        assert client.recv(4096) == numbers.tobytes()
        client.sendall(numbers.tobytes())
        into = array.array("I", bytes(numbers.itemsize * 100))
        reading = watcher.read_full(conn, into)
        assert await one(watcher) is reading
        assert reading.size == numbers.itemsize * 100
        assert into == numbers
        assert bytes(reading.data) == numbers.tobytes()


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=lambda make: make.__name__)
@pytest.mark.parametrize("silent", [False, True], ids=["loud", "silent"])
async def test_S4_any_buffer_can_be_written(
    watcher: Watcher, make: Callable[[bytes], bytes], silent: bool
) -> None:
    server, client = tcp_pair()
    with client:
        watcher.write(watcher.delegate(server), make(b"some data"), silent=silent)
        assert client.recv(100) == b"some data"
        watcher.poll_io()


async def test_S4_strided_data_is_refused_or_written_as_it_reads(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        try:
            watcher.write(conn, memoryview(b"a-b-c-")[::2])
        except (TypeError, ValueError, BufferError):
            assert watcher.statistics().submitted == 0
        else:
            assert (await one(watcher)).size == 3
            assert client.recv(100) == b"abc"


# S5: a silent write that succeeds delivers nothing; its data may be reused at once


@pytest.mark.parametrize("make", [bytes, bytearray], ids=lambda make: make.__name__)
@pytest.mark.parametrize("timeout", [None, 60], ids=["no timeout", "timeout"])
async def test_S5_silent_write_taken_at_once_returns_none(
    watcher: Watcher, make: Callable[[bytes], bytes], timeout: float | None
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        assert watcher.write(conn, make(b"quiet"), silent=True, timeout=timeout) is None
        assert client.recv(5) == b"quiet"
        marker = watcher.write(conn, b"!")
        assert await one(watcher) is marker
        await settle()
        assert watcher.poll_io() == []


async def test_S5_queued_silent_write_that_succeeds_delivers_nothing(watcher: Watcher) -> None:
    server, client = unix_pair()
    data = random.Random(7).randbytes(2 << 20)
    with client:
        conn = watcher.delegate(server)
        operation = watcher.write(conn, data, silent=True)
        assert operation is not None
        assert not operation.completed
        assert await asyncio.to_thread(receive, client, len(data)) == data
        marker = watcher.write(conn, b"!")
        assert await one(watcher) is marker
        await settle()
        assert watcher.poll_io() == []
        assert operation.completed
        assert (operation.error, operation.size) == (None, len(data))


async def test_S5_silent_write_that_fails_at_once_delivers_its_error(watcher: Watcher) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    reset(client)
    ready(conn)
    context = object()
    operation = watcher.write(conn, b"too late", silent=True, context=context)
    assert operation is not None
    assert await one(watcher) is operation
    assert isinstance(operation.error, ConnectionError)
    assert operation.context is context
    await settle()
    assert watcher.poll_io() == []


@pytest.mark.parametrize("how", ["reset", "deadline", "cancel", "free", "close"])
async def test_S5_queued_silent_write_that_fails_delivers_its_error(
    watcher: Watcher, how: str
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        operation = watcher.write(
            conn, bytes(32 << 20), silent=True, timeout=0.02 if how == "deadline" else None
        )
        assert operation is not None
        assert not operation.completed
        match how:
            case "reset":
                reset(client)
            case "cancel":
                assert watcher.cancel(operation) is True
            case "free":
                watcher.free(conn)
            case "close":
                watcher.close()
        assert await one(watcher) is operation
        kind = {
            "reset": ConnectionError,
            "deadline": DeadlineExceededError,
            "cancel": OperationCancelledError,
            "free": ConnectionFreedError,
            "close": WatcherClosedError,
        }[how]
        assert isinstance(operation.error, kind)
        assert 0 < operation.size < 32 << 20
        await settle()
        assert watcher.poll_io() == []


async def test_S5_silent_write_to_a_freed_connection_delivers_its_error(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.free(conn)
        operation = watcher.write(conn, b"x", silent=True)
        assert await one(watcher) is operation
        assert operation is not None
        assert isinstance(operation.error, ConnectionFreedError)


@pytest.mark.parametrize("ahead", [0, 1], ids=["alone", "behind another"])
async def test_S5_silent_data_may_be_reused_at_once(watcher: Watcher, ahead: int) -> None:
    server, client = unix_pair()
    data = bytearray(random.Random(8).randbytes(1 << 20))
    expected = bytes(1 << 20) * ahead + bytes(data)
    with client:
        conn = watcher.delegate(server)
        for _ in range(ahead):
            watcher.write(conn, bytes(1 << 20))
        assert watcher.write(conn, data, silent=True) is not None
        data[:] = b"#" * len(data)
        del data[10:]  # a BufferError, had the call left a view behind
        assert await asyncio.to_thread(receive, client, len(expected)) == expected
        await collect(watcher, ahead)


async def test_S5_memoryview_may_be_released_at_once(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        with memoryview(bytearray(b"v" * (1 << 20))) as view:
            watcher.write(conn, view, silent=True)
        assert await asyncio.to_thread(receive, client, 1 << 20) == b"v" * (1 << 20)


async def test_S5_silent_writes_keep_their_place_among_others(watcher: Watcher) -> None:
    server, client = unix_pair()
    with client:
        conn = watcher.delegate(server)
        watcher.write(conn, b"a" * (1 << 20))
        watcher.write(conn, b"b" * 10, silent=True)
        watcher.write(conn, b"c" * 10)
        expected = b"a" * (1 << 20) + b"b" * 10 + b"c" * 10
        assert await asyncio.to_thread(receive, client, len(expected)) == expected
        assert [o.size for o in await collect(watcher, 2)] == [1 << 20, 10]


# S6: a multishot request stays armed until an error, the end, a cancel or free


async def test_S6_multishot_read_delivers_one_operation_after_another(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        context = object()
        armed = watcher.read(conn, multishot=True, context=context)
        seen: list[Operation] = []
        for number in range(10):
            client.sendall(b"%d" % number)
            operation = await one(watcher)
            assert operation is not armed
            assert not any(operation is o for o in seen)
            assert operation.data == b"%d" % number
            assert operation.size == 1
            assert operation.error is None
            assert operation.more
            assert operation.completed
            assert (operation.type, operation.buffer) == (OpType.READ, None)
            assert operation.conn is conn
            assert operation.context is context
            assert not armed.completed
            seen.append(operation)


async def test_S6_what_was_delivered_does_not_change_later(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        armed = watcher.read(conn, multishot=True)
        client.sendall(b"first")
        first = await one(watcher)
        client.sendall(b"second")
        await one(watcher)
        client.close()
        assert await one(watcher) is armed
        assert (first.data, first.size, first.more, first.error) == (b"first", 5, True, None)


@pytest.mark.parametrize("how", ["end", "reset", "cancel", "free", "close", "deadline"])
async def test_S6_multishot_read_ends_with_the_returned_operation(
    watcher: Watcher, how: str
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        deadline = asyncio.get_running_loop().time() + 0.5 if how == "deadline" else None
        armed = watcher.read(conn, multishot=True, deadline=deadline)
        client.sendall(b"data")
        async with asyncio.timeout(10):
            shot, *more = await watcher.wait_io()  # the end as well, if the machine paused
        assert shot.data == b"data"
        match how:
            case "end":
                client.shutdown(socket.SHUT_WR)
            case "reset":
                reset(client)
            case "cancel":
                assert watcher.cancel(armed) is True
            case "free":
                assert watcher.free(conn) is True
            case "close":
                watcher.close()
        assert (more or await collect(watcher, 1)) == [armed]
        kind = {
            "end": EndOfStreamError,
            "reset": ConnectionResetError,
            "cancel": OperationCancelledError,
            "free": ConnectionFreedError,
            "close": WatcherClosedError,
            "deadline": DeadlineExceededError,
        }[how]
        assert isinstance(armed.error, kind)
        assert armed.completed
        assert not armed.more
        assert armed.size == 0
        await settle()
        assert watcher.poll_io() == []


async def test_S6_data_that_comes_with_the_end_is_delivered_first(watcher: Watcher) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    armed = watcher.read(conn, multishot=True)
    with client:
        client.sendall(b"last words")
    data, end = await collect(watcher, 2)
    assert (data.data, data.more) == (b"last words", True)
    assert end is armed
    assert isinstance(end.error, EndOfStreamError)


async def test_S6_cancelled_multishot_leaves_the_connection_usable(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        armed = watcher.read(conn, multishot=True)
        watcher.cancel(armed)
        assert watcher.cancel(armed) is False
        assert await one(watcher) is armed
        client.sendall(b"for the next one")
        arrived(conn)
        await settle()
        assert watcher.poll_io() == []
        watcher.read(conn)
        assert (await one(watcher)).data == b"for the next one"


async def test_S6_multishot_read_of_datagrams_keeps_their_bounds(watcher: Watcher) -> None:
    server, client = unix_pair(socket.SOCK_DGRAM)
    with client:
        conn = watcher.delegate(server)
        watcher.read(conn, multishot=True)
        messages = [b"one", b"", b"three"]
        for message in messages:
            client.send(message)
        operations = await collect(watcher, 3)
        assert [o.data for o in operations] == messages
        assert all(o.more and o.error is None for o in operations)


async def test_S6_multishot_accept_delivers_one_connection_after_another(
    watcher: Watcher,
) -> None:
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        armed = watcher.accept(conn, multishot=True)
        for _ in range(3):  # every round finds the accept armed again
            with clients_of(address, 5) as clients:
                operations = await collect(watcher, 5)
                assert [o.address for o in operations] == [c.getsockname() for c in clients]
                for operation, client in zip(operations, clients, strict=True):
                    assert operation is not armed
                    assert operation.more
                    assert operation.type is OpType.ACCEPT
                    assert operation.conn is conn
                    assert isinstance(operation.accepted, Connection)
                    assert operation.accepted.peername == client.getsockname()
                    watcher.write(operation.accepted, b"hello", silent=True)
                    assert receive(client, 5) == b"hello"
        assert not armed.completed
        watcher.cancel(armed)
        assert await one(watcher) is armed
        assert armed.accepted is None
        assert not armed.more


async def test_S6_accept_cancelled_takes_no_further_client(watcher: Watcher) -> None:
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        watcher.cancel(watcher.accept(conn, multishot=True))
        await one(watcher)
        with clients_of(address, 1) as (client,):
            await settle()
            assert watcher.poll_io() == []
            watcher.accept(conn)
            assert (await one(watcher)).address == client.getsockname()


@pytest.mark.parametrize("how", ["free", "close", "shutdown"])
async def test_S6_multishot_accept_ends_with_the_listener(watcher: Watcher, how: str) -> None:
    conn = watcher.delegate(listen())
    armed = watcher.accept(conn, multishot=True)
    match how:
        case "free":
            watcher.free(conn)
        case "close":
            watcher.close()
        case "shutdown":  # accept(2) fails with EINVAL from now on
            with socket.socket(fileno=os.dup(conn.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
    assert await one(watcher) is armed
    kind = {"free": ConnectionFreedError, "close": WatcherClosedError, "shutdown": OSError}[how]
    assert isinstance(armed.error, kind)
    assert not armed.more
    assert armed.completed


async def test_S6_accept_survives_a_lack_of_descriptors(watcher: Watcher) -> None:
    """EMFILE is delivered, accepting resumes by itself: no new client comes to wake it up."""
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        armed = watcher.accept(conn, multishot=True)
        with clients_of(address, 2) as clients:
            with no_descriptor_to_be_had():
                failed = await one(watcher)
                assert isinstance(failed.error, OSError)
                assert failed.error.errno == errno.EMFILE
                assert failed.more
                assert failed.completed
                assert failed is not armed
                assert failed.accepted is None
                again = watcher.poll_io()
            operations: list[Operation] = []
            async with asyncio.timeout(5):
                while len([o for o in operations if o.error is None]) < 2:
                    operations += await watcher.wait_io()
            again += [o for o in operations if o.error is not None]
            assert all(isinstance(o.error, OSError) and o.more for o in again)
            accepted = [o for o in operations if o.error is None]
            assert [o.address for o in accepted] == [c.getsockname() for c in clients]
            assert not armed.completed


@pytest.mark.parametrize("how", ["cancel", "free", "close"])
async def test_S6_accept_that_is_backing_off_can_be_ended(watcher: Watcher, how: str) -> None:
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        armed = watcher.accept(conn, multishot=True)
        with clients_of(address, 1), no_descriptor_to_be_had():
            await one(watcher)
            match how:
                case "cancel":
                    watcher.cancel(armed)
                case "free":
                    watcher.free(conn)
                case "close":
                    watcher.close()
            *retries, last = watcher.poll_io()
            assert last is armed
            assert not last.more
            assert all(isinstance(o.error, OSError) for o in retries)
            await settle()
            assert watcher.poll_io() == []


async def test_S6_single_accept_without_descriptors_fails_and_can_be_repeated(
    watcher: Watcher,
) -> None:
    """The client still waits in the backlog, and will cause no further event."""
    with listen() as listener:
        address = listener.getsockname()
        conn = watcher.delegate(listener)
        operation = watcher.accept(conn)
        with clients_of(address, 1) as (client,):
            with no_descriptor_to_be_had():
                assert await one(watcher) is operation
                assert isinstance(operation.error, OSError)
                assert operation.error.errno == errno.EMFILE
                assert not operation.more
            watcher.accept(conn)
            assert (await one(watcher)).address == client.getsockname()


@pytest.mark.parametrize("behind", [0, 1], ids=["alone", "others behind"])
async def test_S6_timeout_is_the_longest_silence(watcher: Watcher, behind: int) -> None:
    """Data keeps coming for longer than the time-out; then it stops."""
    timeout = 0.12
    server, client = tcp_pair()
    loop = asyncio.get_running_loop()
    with client:
        conn = watcher.delegate(server)
        for _ in range(5):  # a machine that pauses for too long is no failure: try again
            began = last = loop.time()
            longest = 0.0
            armed = watcher.read(conn, multishot=True, timeout=timeout)
            waiting = [watcher.read(conn) for _ in range(behind)]
            while last - began < 2 * timeout and not armed.completed:
                client.sendall(b"x")
                await watcher.wait_io()
                await asyncio.sleep(timeout / 10)
                longest = max(longest, loop.time() - last)
                last = loop.time()
            if not armed.completed:
                client.sendall(b"x")
                sent = loop.time()
                results: list[Operation] = []
                async with asyncio.timeout(10):
                    while armed not in results:
                        results += await watcher.wait_io()
                assert isinstance(armed.error, DeadlineExceededError)
                if results[0] is not armed:
                    assert results[1] is armed
                    assert loop.time() - sent >= timeout
                    return
                longest = max(longest, loop.time() - last)
            assert longest > timeout * 0.8, "expired in spite of data"
            for operation in waiting:
                watcher.cancel(operation)
            watcher.poll_io()
        pytest.fail("the machine paused in every attempt")


async def test_S6_timeout_of_an_accept_is_restarted_by_each_client(watcher: Watcher) -> None:
    timeout = 0.15
    loop = asyncio.get_running_loop()
    with listen() as listener:
        address = listener.getsockname()
        armed = watcher.accept(listener, multishot=True, timeout=timeout)
        await asyncio.sleep(timeout / 2)
        before = loop.time()
        with clients_of(address, 1):
            results: list[Operation] = []
            async with asyncio.timeout(10):
                while not results or results[-1] is not armed:
                    results += await watcher.wait_io()
            assert isinstance(armed.error, DeadlineExceededError)
            if len(results) > 1:  # else the machine paused until it was too late for the client
                assert results[0].more
                assert loop.time() - before >= timeout


async def test_S6_deadline_ends_the_whole_in_spite_of_data(watcher: Watcher) -> None:
    server, client = tcp_pair()
    loop = asyncio.get_running_loop()
    with client:
        conn = watcher.delegate(server)
        client.sendall(b"x")
        arrived(conn)
        deadline = loop.time() + 0.1
        armed = watcher.read(conn, multishot=True, deadline=deadline)
        results: list[Operation] = []
        while not results or results[-1].more:
            assert loop.time() < deadline + 5, "data put the deadline off"
            client.sendall(b"x")
            results += await watcher.wait_io()
        assert loop.time() >= deadline
        assert results[-1] is armed
        assert len(results) > 1
        assert isinstance(armed.error, DeadlineExceededError)


async def test_S6_deadline_ends_a_multishot_that_is_paused(poller: str) -> None:
    server, client = tcp_pair()
    loop = asyncio.get_running_loop()
    with client, contextlib.closing(Watcher(poller=poller, batch_size=1, buffer_size=4)) as watcher:
        conn = watcher.delegate(server)
        client.sendall(b"0123456789")
        arrived(conn, 10)
        deadline = loop.time() + 0.05
        armed = watcher.read(conn, multishot=True, deadline=deadline)
        await until(lambda: armed.completed)
        assert loop.time() >= deadline
        data, end = watcher.poll_io()
        assert data.data == b"0123"
        assert end is armed
        assert isinstance(end.error, DeadlineExceededError)
        watcher.read(conn, bytearray(6))
        assert bytes((await one(watcher)).data) == b"456789"


def small_batches(poller: str) -> contextlib.closing[Watcher]:
    return contextlib.closing(Watcher(poller=poller, batch_size=4, buffer_size=10))


async def test_S6_multishot_reads_pause_while_a_batch_awaits_collection(poller: str) -> None:
    server, client = tcp_pair()
    data = random.Random(9).randbytes(1000)
    with client, small_batches(poller) as watcher:
        conn = watcher.delegate(server)
        client.sendall(data)
        arrived(conn, len(data))
        watcher.read(conn, multishot=True)
        got = b""
        while len(got) < len(data):
            due = min(len(got) + 40, len(data))
            await until(lambda due=due: watcher.statistics().bytes_read >= due)
            await settle()
            assert watcher.statistics().bytes_read == due
            results = watcher.poll_io()
            assert len(results) <= 4
            got += b"".join(operation.data for operation in results)
        assert got == data


async def test_S6_collecting_by_wait_io_resumes_too(poller: str) -> None:
    server, client = tcp_pair()
    data = random.Random(10).randbytes(1000)
    with client, small_batches(poller) as watcher:
        conn = watcher.delegate(server)
        client.sendall(data)
        arrived(conn, len(data))
        watcher.read(conn, multishot=True)
        results = await collect(watcher, 100)
        assert b"".join(operation.data for operation in results) == data


async def test_S6_all_multishots_share_the_bound(poller: str) -> None:
    pairs = [tcp_pair() for _ in range(6)]
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(small_batches(poller))
        conns = []
        for server, client in pairs:
            stack.enter_context(client).sendall(b"x" * 100)
            conns.append(watcher.delegate(server))
            arrived(conns[-1], 100)
        for conn in conns:
            watcher.read(conn, multishot=True)
        await until(lambda: watcher.statistics().bytes_read >= 40)
        await settle()
        assert watcher.statistics().bytes_read == 40
        results = await collect(watcher, 60)
        assert {o.conn for o in results} == set(conns)


async def test_S6_multishot_armed_later_takes_nothing_from_a_full_queue(poller: str) -> None:
    server, client = tcp_pair()
    with client, small_batches(poller) as watcher:
        conn = watcher.delegate(server)
        written = [watcher.write(conn, b"x") for _ in range(4)]
        client.sendall(b"data")
        arrived(conn, 4)
        watcher.read(conn, multishot=True)
        await settle()
        assert watcher.statistics().bytes_read == 0
        assert watcher.poll_io() == written
        assert (await one(watcher)).data == b"data"


async def test_S6_collecting_resumes_all_that_were_paused(poller: str) -> None:
    """Those that find nothing do not stand in the way of those that would."""
    pairs = [tcp_pair() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(small_batches(poller))
        for _, client in pairs:
            stack.enter_context(client)
        conns = [watcher.delegate(server) for server, _ in pairs]
        written = [watcher.write(conns[0], b"x") for _ in range(4)]
        pairs[-1][1].sendall(b"data")
        arrived(conns[-1], 4)
        for conn in conns:
            watcher.read(conn, multishot=True)
        await settle()
        assert watcher.poll_io() == written
        operation = await one(watcher)
        assert (operation.conn, operation.data) == (conns[-1], b"data")


async def test_S6_only_multishots_pause(poller: str) -> None:
    busy, client = tcp_pair()
    other, peer = tcp_pair()
    with client, peer, small_batches(poller) as watcher:
        client.sendall(b"x" * 100)
        conn = watcher.delegate(busy)
        arrived(conn, 100)
        watcher.read(conn, multishot=True)
        await until(lambda: watcher.statistics().bytes_read >= 40)
        single = watcher.read(watcher.delegate(other))
        peer.sendall(b"single")
        await until(lambda: single.completed)
        assert single.data == b"single"
        assert watcher.statistics().bytes_read == 46


async def test_S6_multishot_accept_pauses_too(poller: str) -> None:
    with small_batches(poller) as watcher, listen() as listener:
        address = listener.getsockname()
        with clients_of(address, 10) as clients:
            conn = watcher.delegate(listener)
            before = watcher.statistics().connections
            watcher.accept(conn, multishot=True)
            collected: list[Operation] = []  # holds the connections
            for due in (4, 8, 10):
                await until(lambda due=due: watcher.statistics().connections >= before + due)
                await settle()
                assert watcher.statistics().connections == before + due
                collected += watcher.poll_io()
                assert len(collected) == due
            assert [o.address for o in collected] == [c.getsockname() for c in clients]


async def test_S6_sleeping_consumer_lets_the_sender_wait(poller: str) -> None:
    """What a consumer does not take stays in the kernel: the peer's send is what stops."""
    server, client = unix_pair()
    with client, small_batches(poller) as watcher:
        watcher.read(watcher.delegate(server), multishot=True)
        client.setblocking(False)
        sent = 0
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                while sent < 64 << 20:
                    sent += client.send(bytes(1 << 16))
            await settle(5)
        assert sent < 8 << 20
        assert watcher.statistics().bytes_read == 40


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_S6_read_behind_a_paused_multishot_starts_when_that_ends(
    poller: str, how: str
) -> None:
    """What the multishot left in the socket causes no further event."""
    server, client = tcp_pair()
    with client, small_batches(poller) as watcher:
        text = b"0123456789" * 4 + b"left"
        client.sendall(text)
        conn = watcher.delegate(server)
        arrived(conn, 44)
        deadline = asyncio.get_running_loop().time() + 0.05 if how == "deadline" else None
        armed = watcher.read(conn, multishot=True, deadline=deadline)
        behind = watcher.read(conn)
        await until(lambda: watcher.statistics().bytes_read >= 40 or armed.completed)
        if how == "cancel":
            watcher.cancel(armed)
        await until(lambda: behind.completed)
        *shots, end, last = watcher.poll_io()
        assert (end, last) == (armed, behind)
        taken = sum(shot.size for shot in shots)  # 40, unless the machine paused for too long
        assert taken == 40 or how == "deadline"
        assert behind.data == text[taken:][:10]


@pytest.mark.parametrize("how", ["cancel", "free", "close"])
async def test_S6_paused_multishot_can_be_ended(poller: str, how: str) -> None:
    server, client = tcp_pair()
    with client, small_batches(poller) as watcher:
        client.sendall(b"x" * 100)
        conn = watcher.delegate(server)
        arrived(conn, 100)
        armed = watcher.read(conn, multishot=True)
        await until(lambda: watcher.statistics().bytes_read >= 40)
        match how:
            case "cancel":
                watcher.cancel(armed)
            case "free":
                watcher.free(conn)
            case "close":
                watcher.close()
        *data, end = watcher.poll_io()
        assert [o.size for o in data] == [10] * 4
        assert end is armed
        assert not end.more
        await settle()
        assert watcher.poll_io() == []


# S6, accept(2) failing. No kernel fails on request: a shim in front of its accept does.

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

static int codes[65536], left[65536], calls[65536];

void fail_accepts(int fd, int code, int times) { codes[fd] = code; left[fd] = times; }
int count_accepts(int fd) { return calls[fd]; }

static int refuse(int fd)
{
    calls[fd]++;
    if (left[fd] == 0) return 0;
    if (left[fd] > 0) left[fd]--;
    errno = codes[fd];
    return 1;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*real)(int, struct sockaddr *, socklen_t *, int);
    if (!real) real = dlsym(RTLD_NEXT, "accept4");
    return refuse(fd) ? -1 : real(fd, address, length, flags);
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
    static int (*real)(int, struct sockaddr *, socklen_t *);
    if (!real) real = dlsym(RTLD_NEXT, "accept");
    return refuse(fd) ? -1 : real(fd, address, length);
}
"""

SKIPPED = """
import asyncio, ctypes, errno, socket, sys
from aiogaio import Watcher

shim = ctypes.CDLL(None)
SKIPPED = ["ECONNABORTED", "EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH",
           "ENOPROTOOPT", "ENONET"]

async def main(poller):
    async with Watcher(poller=poller) as watcher:
        listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        armed = watcher.accept(listener, multishot=True)
        for name in SKIPPED:
            for times in (1, 3):
                shim.fail_accepts(listener.fileno(), getattr(errno, name), times)
                with socket.create_connection(listener.sockname) as client:
                    async with asyncio.timeout(10):
                        (operation,) = await watcher.wait_io()
                    assert operation.error is None, (name, operation.error)
                    assert operation.more and operation is not armed, name
                    assert operation.address == client.getsockname(), name
                    assert watcher.free(operation.accepted)
        assert not armed.completed
"""

BACKED_OFF = """
import asyncio, ctypes, errno, socket, sys, time
from aiogaio import Watcher

shim = ctypes.CDLL(None)
SHORT = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]

async def main(poller):
    async with Watcher(poller=poller) as watcher:
        listeners = {}
        clients = []
        for name in SHORT:
            conn = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
            shim.fail_accepts(conn.fileno(), getattr(errno, name), -1)
            watcher.accept(conn, multishot=True)
            clients.append(socket.create_connection(conn.sockname))
            listeners[conn] = name
        failed, accepted = set(), {}
        rested = time.monotonic() + 0.2
        while time.monotonic() < rested:  # a consumer that always collects: nothing else pauses it
            for operation in watcher.poll_io():
                failed.add(operation.conn)
            await asyncio.sleep(0.001)
        for conn in listeners:
            calls = shim.count_accepts(conn.fileno())
            assert 1 <= calls < 50, f"{calls} calls in 0.2 s: it spins"
            shim.fail_accepts(conn.fileno(), 0, 0)
        async with asyncio.timeout(5):
            while len(accepted) < len(listeners):
                for operation in await watcher.wait_io():
                    assert operation.more
                    if operation.error is None:
                        accepted[operation.conn] = operation.accepted
                    else:
                        assert operation.conn not in accepted
                        assert operation.error.errno == getattr(errno, listeners[operation.conn])
                        failed.add(operation.conn)
        assert failed == set(listeners)
        for client in clients:
            client.close()
"""

RUN = """
loop, poller = sys.argv[1:]
if loop == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
else:
    factory = asyncio.SelectorEventLoop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main(poller))
print("held")
"""


@pytest.fixture(scope="session")
def accept_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to make accept(2) fail with")
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.skipif(sys.platform != "linux", reason="the shim is for glibc and musl")
@pytest.mark.parametrize("poller", ["epoll", "loop"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SKIPPED, id="errors of one arrival are skipped"),
        pytest.param(BACKED_OFF, id="lack of resources backs off"),
    ],
)
def test_S6_accept_errors_do_not_end_a_multishot(
    accept_shim: Path, script: str, loop: str, poller: str
) -> None:
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(accept_shim),
        "PYTHONPATH": str(Path(aiogaio.__file__).parents[1]),
    }
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", script + RUN, loop, poller],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "held\n", "")


# S7: accepted and connected TCP sockets get TCP_NODELAY


def has_nodelay(conn: Connection) -> bool:
    return bool(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.fixture(params=["127.0.0.1", "::1"])
def address(request: pytest.FixtureRequest) -> str:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        socket.create_server((request.param, 0), family=family).close()
    except OSError:
        pytest.skip(f"no {request.param} on this machine")
    return str(request.param)


async def test_S7_accepted_sockets_do_not_delay(watcher: Watcher, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        name = listener.getsockname()[:2]
        conn = watcher.delegate(listener)
        assert not has_nodelay(conn)  # or accepted sockets would inherit what is asked for here
        with clients_of(name, 3):
            watcher.accept(conn)
            single = await one(watcher)
            watcher.accept(conn, multishot=True)
            for operation in [single, *await collect(watcher, 2)]:
                assert has_nodelay(operation.accepted)


async def test_S7_delegated_sockets_do_not_delay(watcher: Watcher, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        assert not client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert has_nodelay(watcher.delegate(client))
        on_the_spot = watcher.read(server)
        assert has_nodelay(on_the_spot.conn)


async def test_S7_sockets_without_the_option_are_taken_as_they_are(watcher: Watcher) -> None:
    stream, stream_peer = unix_pair()
    datagram, datagram_peer = unix_pair(socket.SOCK_DGRAM)
    udp, udp_peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    udp_peer.settimeout(10)
    udp_peer.bind(("127.0.0.1", 0))
    udp.connect(udp_peer.getsockname())
    with stream_peer, datagram_peer, udp_peer:
        for sock, peer in (
            (stream, stream_peer),
            (datagram, datagram_peer),
            (udp, udp_peer),
        ):
            watcher.write(watcher.delegate(sock), b"x", silent=True)
            assert peer.recv(10) == b"x"
