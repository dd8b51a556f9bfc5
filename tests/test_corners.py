"""Corners in which a rule was broken once: each test is of a defect that was found and mended."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import socket
import threading
import warnings
from collections.abc import Callable

import pytest

from aiogaio import ConnectionFreedError, EndOfStreamError, UnsupportedConnectionError, Watcher
from tests.support import collect, one, reset, tcp_pair


async def test_D1_end_that_came_before_a_thread_delegates_is_told(watcher: Watcher) -> None:
    """The event of a descriptor may come before the call that registers it has returned."""
    for _ in range(50):
        server, client = tcp_pair()
        client.sendall(b"x")
        client.close()
        thread = threading.Thread(target=watcher.threadsafe.read, args=(server,))
        thread.start()
        first = await one(watcher)
        thread.join()
        assert first.data == b"x"
        watcher.read(first.conn)
        assert isinstance((await one(watcher)).error, EndOfStreamError)
        watcher.free(first.conn)


async def test_threadsafe_requests_of_a_long_time_call_the_loop_once_at_a_time(
    watcher: Watcher,
) -> None:
    """What is left over in the inbox and what comes in meanwhile share one callback."""
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        loop = asyncio.get_running_loop()
        inbox = watcher._inbox
        calls = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *arguments: object) -> object:
            nonlocal calls
            calls += 1
            return call_soon_threadsafe(callback, *arguments)

        class CountingLoop:
            call_soon_threadsafe = staticmethod(counted)
            is_closed = staticmethod(loop.is_closed)

        inbox._loop = CountingLoop()  # type: ignore[assignment]
        for _ in range(20_000):
            watcher.threadsafe.read(conn)
        assert calls == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = len(inbox)
        watcher.threadsafe.read(conn)
        assert calls == (1 if left else 2)
        watcher.free(conn)
        results = await collect(watcher, 20_001)
        assert all(isinstance(op.error, ConnectionFreedError) for op in results)


async def test_O1_refused_twin_of_a_delegated_descriptor_changes_nothing(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        twin = socket.socket(fileno=conn.fileno())
        twin.settimeout(None)
        os.set_blocking(conn.fileno(), False)
        with pytest.raises(UnsupportedConnectionError, match="delegated already"):
            watcher.delegate(twin)
        assert not os.get_blocking(conn.fileno())
        assert twin.detach() == conn.fileno()
        watcher.read(conn)
        client.sendall(b"here")
        assert (await one(watcher)).data == b"here"
        watcher.free(conn)


async def test_O3_error_that_was_raised_does_not_keep_its_connection(watcher: Watcher) -> None:
    async def handle() -> None:
        server, client = tcp_pair()
        watcher.read(server)
        del server
        reset(client)
        operation = await one(watcher)
        assert operation.error is not None
        conn = operation.conn  # in the frame that the raised error remembers
        assert not conn.closed
        with pytest.raises(ConnectionResetError):
            raise operation.error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await handle()
        gc.collect()
        assert watcher.statistics().connections == 0


class _Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_short))


@pytest.mark.parametrize(
    "make",
    [ctypes.c_int * 4, lambda: ctypes.create_string_buffer(16), _Pair],
    ids=["array", "string_buffer", "structure"],
)
async def test_B2_buffers_of_ctypes_are_buffers(
    watcher: Watcher, make: Callable[[], ctypes.Array[ctypes.c_int]]
) -> None:
    server, client = tcp_pair()
    with client:
        conn = watcher.delegate(server)
        buffer = make()
        size = ctypes.sizeof(buffer)
        content = bytes(range(1, size + 1))
        watcher.read_full(conn, buffer)
        client.sendall(content[:3])
        await asyncio.sleep(0)
        client.sendall(content[3:])
        operation = await one(watcher)
        assert operation.error is None
        assert operation.data == content
        assert bytes(buffer) == content
        for silent in (False, True):
            watcher.write(conn, buffer, silent=silent)
            assert client.recv(size, socket.MSG_WAITALL) == content
        await one(watcher)
        watcher.free(conn)


async def test_S2_listener_of_packets_is_a_listener(watcher: Watcher) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the system chooses an abstract name (unix(7), autobind)
        listener.listen()
        with pytest.raises(UnsupportedConnectionError, match="accept"):
            watcher.read(listener)
        watcher.accept(listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            conn = watcher.delegate(listener)
            client.connect(conn.sockname)
            operation = await one(watcher)
            watcher.write(operation.accepted, b"packet")
            assert client.recv(100) == b"packet"
            watcher.free(operation.accepted)
        watcher.free(conn)
