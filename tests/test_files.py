"""sendfile: parts of files, in their place among the writes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from aiogaio import (
    Connection,
    DeadlineExceededError,
    EmptyBufferError,
    EndOfStreamError,
    OperationCancelledError,
    OpType,
    UnsupportedConnectionError,
    Watcher,
)
from tests.support import collect, one, reset, tcp_pair, unix_pair

CONTENT = random.Random(7).randbytes(3 << 20)
Pair = tuple[Connection, socket.socket]


class NoDescriptor(io.BytesIO):
    """A file that the system does not know."""


@contextlib.contextmanager
def on_disk(content: bytes) -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, watcher: Watcher) -> Iterator[Pair]:
    server, client = tcp_pair() if request.param == "tcp" else unix_pair()
    with client:
        yield watcher.delegate(server), client


@pytest.fixture(params=[on_disk, NoDescriptor], ids=["file", "BytesIO"])
def file(request: pytest.FixtureRequest) -> Iterator[Any]:
    with request.param(CONTENT) as file:
        yield file


async def receive(client: socket.socket, size: int) -> bytes:
    def all_of_it() -> bytes:
        data = bytearray()
        while len(data) < size:
            part = client.recv(size - len(data))
            if not part:
                break
            data += part
        return bytes(data)

    return await asyncio.to_thread(all_of_it)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, None), (0, 10), (1000, 1), (1 << 20, 1 << 20), (len(CONTENT) - 3, None)],
)
async def test_S11_sends_the_part_that_was_asked_for(
    watcher: Watcher, pair: Pair, file: Any, offset: int, count: int | None
) -> None:
    conn, client = pair
    expected = CONTENT[offset:][:count]
    operation = watcher.sendfile(conn, file, offset, count, context="part")
    assert await receive(client, len(expected)) == expected
    assert await one(watcher) is operation
    assert (operation.type, operation.size, operation.error) == (
        OpType.WRITE,
        len(expected),
        None,
    )
    assert operation.context == "part"
    assert watcher.statistics().bytes_written == len(expected)
    assert watcher.pending(conn).queued_bytes == 0


async def test_S3_stands_in_its_place_among_writes(watcher: Watcher, pair: Pair, file: Any) -> None:
    conn, client = pair
    requests = [
        watcher.write(conn, b"before"),
        watcher.sendfile(conn, file),
        watcher.write(conn, b"between"),
        watcher.sendfile(conn, file, 5, 5),
        watcher.shutdown(conn),
    ]
    expected = b"before" + CONTENT + b"between" + CONTENT[5:10]
    assert await receive(client, len(expected) + 1) == expected
    assert await collect(watcher, 5) == requests


async def test_S11_a_file_that_ends_before_count_is_an_error(
    watcher: Watcher, pair: Pair, file: Any
) -> None:
    conn, client = pair
    watcher.sendfile(conn, file, len(CONTENT) - 4, 10)
    result = await one(watcher)
    assert isinstance(result.error, EndOfStreamError)
    assert result.size == 4
    assert await receive(client, 4) == CONTENT[-4:]


async def test_S11_nothing_left_of_a_file_is_sent_as_nothing(
    watcher: Watcher, pair: Pair, file: Any
) -> None:
    conn, _ = pair
    watcher.sendfile(conn, file, len(CONTENT) + 100)
    result = await one(watcher)
    assert (result.size, result.error) == (0, None)


async def test_S11_what_the_system_cannot_send_from_is_read(watcher: Watcher, pair: Pair) -> None:
    conn, client = pair
    with open("/proc/self/cmdline", "rb") as file:
        expected = file.read()
        watcher.sendfile(conn, file)
        assert await receive(client, len(expected)) == expected
        assert (await one(watcher)).size == len(expected)


@pytest.mark.parametrize("how", ["cancel", "timeout", "free"])
async def test_T3_a_file_that_is_cut_is_torn(
    watcher: Watcher, pair: Pair, file: Any, how: str
) -> None:
    conn, _ = pair
    limit = 0.01 if how == "timeout" else None
    operations = [
        watcher.sendfile(conn, NoDescriptor(CONTENT * 4), timeout=limit),
        watcher.sendfile(conn, file),
        watcher.write(conn, b"x"),
    ]
    assert operations[0].size
    if how == "cancel":
        watcher.cancel(operations[0])
    elif how == "free":
        watcher.free(conn)
    results = await collect(watcher, 3)
    assert results == operations
    assert [op.size for op in results[1:]] == [0, 0]
    if how != "free":
        kind = DeadlineExceededError if how == "timeout" else OperationCancelledError
        assert isinstance(results[0].error, kind)
        assert all(isinstance(op.error, OperationCancelledError) for op in results[1:])


async def test_S4_a_peer_that_resets_ends_it(watcher: Watcher, file: Any) -> None:
    server, client = tcp_pair()
    conn = watcher.delegate(server)
    operation = watcher.sendfile(conn, file)
    reset(client)
    assert await one(watcher) is operation
    assert isinstance(operation.error, ConnectionResetError | BrokenPipeError)
    watcher.free(conn)


async def test_a_file_closed_meanwhile_fails_its_own_request(
    watcher: Watcher, pair: Pair, file: Any
) -> None:
    conn, client = pair
    first = watcher.write(conn, bytes(1 << 23))
    second = watcher.sendfile(conn, file)
    third = watcher.write(conn, b"x")
    file.close()
    assert await receive(client, (1 << 23) + 1) == bytes(1 << 23) + b"x"
    results = await collect(watcher, 3)
    assert results == [first, second, third]
    assert isinstance(second.error, ValueError)
    assert (first.error, third.error) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"offset": -1}, ValueError),
        ({"count": -1}, ValueError),
        ({"count": 0}, EmptyBufferError),
        ({"offset": "0"}, TypeError),
        ({"count": 1.5}, TypeError),
        ({"file": None}, TypeError),
        ({"file": "name"}, TypeError),
        ({"timeout": -1}, ValueError),
    ],
)
async def test_S2_wrong_arguments_raise_and_delegate_nothing(
    watcher: Watcher, arguments: dict[str, Any], error: type[Exception]
) -> None:
    server, client = tcp_pair()
    with server, client, on_disk(b"x") as file:
        with pytest.raises(error):
            watcher.sendfile(server, **{"file": file, **arguments})
        with pytest.raises(ValueError, match="text"), open(os.devnull) as text:
            watcher.sendfile(server, text)
        assert server.fileno() >= 0
        assert watcher.statistics().submitted == 0


async def test_S2_needs_a_stream(watcher: Watcher) -> None:
    server, client = unix_pair(socket.SOCK_DGRAM)
    with server, client, on_disk(b"x") as file, pytest.raises(UnsupportedConnectionError):
        watcher.sendfile(server, file)
