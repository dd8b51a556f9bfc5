"""writev, and small writes that are sent together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from aiogaio import (
    Connection,
    DeadlineExceededError,
    EmptyBufferError,
    OperationCancelledError,
    OpType,
    Watcher,
)
from aiogaio.connection import Record
from tests.support import collect, one, reset, tcp_pair, unix_pair

Pair = tuple[Connection, socket.socket]


@pytest.fixture
def pair(watcher: Watcher) -> Iterator[Pair]:
    server, client = tcp_pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    with client:
        yield watcher.delegate(server), client


def receive(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = client.recv(size - len(data))
        assert part, f"the end after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def blocked(watcher: Watcher, pair: Pair) -> int:
    """Queue one write that the socket cannot take whole; its size."""
    conn, _ = pair
    size = 1 << 22
    assert not watcher.write(conn, bytes(size), context="blocker").completed
    return size


async def read_beside(client: socket.socket, size: int) -> bytes:
    """The peer reads so much in a thread of its own, while the loop goes on."""
    return await asyncio.to_thread(receive, client, size)


async def unblock(client: socket.socket, size: int) -> None:
    """The peer reads what blocks the queue."""
    assert not any(await read_beside(client, size))


@pytest.mark.parametrize("kinds", [bytes, bytearray, memoryview, "mixed"])
async def test_S10_writev_sends_all_buffers_in_order(
    watcher: Watcher, pair: Pair, kinds: Any
) -> None:
    conn, client = pair
    parts: list[Any] = [b"a", b"", b"bc" * 50, b"", b"d"]
    if kinds == "mixed":
        parts[2] = bytearray(parts[2])
    else:
        parts = [kinds(part) for part in parts]
    operation = watcher.writev(conn, parts, context="all")
    assert operation is await one(watcher)
    assert (operation.type, operation.size, operation.context) == (OpType.WRITE, 102, "all")
    assert operation.error is None
    assert receive(client, 102) == b"a" + b"bc" * 50 + b"d"
    assert watcher.statistics().bytes_written == 102


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("silent", [False, True])
async def test_S10_writev_of_more_buffers_than_the_system_takes_goes_on_at_the_right_byte(
    watcher: Watcher, pair: Pair, kind: type, silent: bool
) -> None:
    conn, client = pair
    parts = [kind(b"%07d" % number * (number % 80)) for number in range(5000)]
    expected = b"".join(parts)
    operation = watcher.writev(conn, parts, silent=silent)
    assert operation is not None
    assert watcher.pending(conn).queued_bytes == len(expected) - operation.size > 0
    if silent and kind is bytearray:  # the data may be reused at once
        for part in parts:
            part[:] = bytes(len(part))
    read = await read_beside(client, len(expected))
    assert read == expected
    if not silent:
        assert operation is await one(watcher)
    assert operation.completed
    assert operation.size == len(expected)
    assert watcher.pending(conn) == type(watcher.pending(conn))(0, 0)


async def test_S10_small_writes_that_queue_are_sent_together_and_complete_one_by_one(
    watcher: Watcher, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, client = pair
    size = blocked(watcher, pair)
    calls: list[int] = []
    sendmsg = Record.sendmsg

    def counted(record: Record, parts: list[Any], *rest: Any) -> int:
        calls.append(len(parts))
        return sendmsg(record, parts, *rest)

    monkeypatch.setattr(Record, "sendmsg", counted)
    parts = [b"%03d" % number * (number + 1) for number in range(40)]
    loud = [watcher.write(conn, part, silent=number % 5 == 0) for number, part in enumerate(parts)]
    total = sum(map(len, parts))
    await unblock(client, size)
    assert await read_beside(client, total) == b"".join(parts)
    results = await collect(watcher, 1 + 32)
    assert results[0].context == "blocker"
    assert results[1:] == [op for number, op in enumerate(loud) if number % 5]
    assert [op.size for op in loud if op is not None] == [len(part) for part in parts]
    assert max(calls) == 40, calls
    statistics = watcher.statistics()
    assert statistics.pending == 0
    assert statistics.bytes_written == size + total


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_S3_one_of_the_writes_that_would_go_together_can_be_taken_out(
    watcher: Watcher, pair: Pair, how: str
) -> None:
    conn, client = pair
    size = blocked(watcher, pair)
    timeout = 0.01 if how == "timeout" else None
    first = watcher.write(conn, b"first")
    second = watcher.write(conn, b"second", timeout=timeout)
    third = watcher.write(conn, b"third")
    if how == "cancel":
        watcher.cancel(second)
    result = await one(watcher)
    assert result is second
    assert isinstance(result.error, OperationCancelledError | DeadlineExceededError)
    assert (result.size, watcher.pending(conn).requests) == (0, 3)
    await unblock(client, size)
    assert await read_beside(client, 10) == b"firstthird"
    assert (await collect(watcher, 3))[1:] == [first, third]


async def test_B2_a_buffer_resized_in_the_queue_fails_its_own_write_only(
    watcher: Watcher, pair: Pair
) -> None:
    conn, client = pair
    size = blocked(watcher, pair)
    buffer = bytearray(b"second")
    operations = [watcher.write(conn, data) for data in (b"first", buffer, b"third", b"fourth")]
    vector = watcher.writev(conn, [b"fifth", last := bytearray(b"sixth")])
    buffer += b"!"
    last += b"!"
    await unblock(client, size)
    results = (await collect(watcher, 6))[1:]
    assert results == [*operations, vector]
    assert [type(op.error) for op in results] == [
        type(None),
        BufferError,
        type(None),
        type(None),
        BufferError,
    ]
    assert await read_beside(client, 16) == b"firstthirdfourth"


@pytest.mark.parametrize("kind", ["write", "writev"])
async def test_T3_nothing_follows_a_torn_vector(watcher: Watcher, pair: Pair, kind: str) -> None:
    conn, _ = pair
    torn = watcher.writev(conn, [bytes(1 << 20)] * 8)
    behind = watcher.write(conn, b"x") if kind == "write" else watcher.writev(conn, [b"x", b"y"])
    assert torn is not None
    assert torn.size
    watcher.cancel(torn)
    results = await collect(watcher, 2)
    assert results == [torn, behind]
    assert all(isinstance(op.error, OperationCancelledError) for op in results)
    assert results[1].error.__cause__ is torn.error  # type: ignore[union-attr]
    assert watcher.pending(conn).queued_bytes == 0


async def test_S4_writev_on_a_broken_connection_ends_with_its_error(
    watcher: Watcher, pair: Pair
) -> None:
    conn, client = pair
    watcher.notify_hangup(conn)
    reset(client)
    await one(watcher)
    operations = [watcher.writev(conn, [b"a", b"b"]), watcher.writev(conn, [b"c"], silent=True)]
    results = await collect(watcher, 2)
    assert results == operations
    assert isinstance(results[0].error, ConnectionResetError)
    assert isinstance(results[1].error, BrokenPipeError)
    watcher.read(conn)
    assert isinstance((await one(watcher)).error, ConnectionResetError)
    assert watcher.pending(conn).queued_bytes == 0


async def test_S12_a_vector_of_a_datagram_socket_is_one_datagram(watcher: Watcher) -> None:
    server, client = unix_pair(socket.SOCK_DGRAM)
    with client:
        conn = watcher.delegate(server)
        watcher.writev(conn, [b"x"] * 1500)
        watcher.writev(conn, [b"a", b"b"])
        await collect(watcher, 2)
        assert client.recv(4096) == b"x" * 1500
        assert client.recv(4096) == b"ab"
        watcher.free(conn)


@pytest.mark.parametrize(
    ("buffers", "error"),
    [
        ([], EmptyBufferError),
        ([b"", b""], EmptyBufferError),
        (b"abc", TypeError),
        (bytearray(b"abc"), TypeError),
        ("abc", TypeError),
        ([b"a", "b"], TypeError),
        ([b"a", 5], TypeError),
        ([memoryview(b"abcd")[::2]], TypeError),
        (None, TypeError),
    ],
)
async def test_S2_writev_of_wrong_buffers_raises_and_delegates_nothing(
    watcher: Watcher, buffers: Any, error: type[Exception]
) -> None:
    server, client = tcp_pair()
    with server, client:
        before = watcher.statistics()
        with pytest.raises(error):
            watcher.writev(server, buffers)
        assert watcher.statistics() == before
        assert server.fileno() >= 0
