"""What the tests share: pairs of connected sockets, and a way to collect results."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiogaio import Operation, Watcher


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on the loopback, blocking, with a time-out of 10 s."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(10)
    return server, client


def unix_pair(kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    server, client = socket.socketpair(socket.AF_UNIX, kind)
    client.settimeout(10)
    return server, client


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer receives a RST (SO_LINGER of zero, tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def collect(watcher: Watcher, count: int, *, within: float = 10.0) -> list[Operation]:
    """Exactly ``count`` completed operations, in the order of delivery."""
    results: list[Operation] = []
    async with asyncio.timeout(within):
        while len(results) < count:
            results += await watcher.wait_io()
    assert len(results) == count, results
    return results


async def one(watcher: Watcher, *, within: float = 10.0) -> Operation:
    (operation,) = await collect(watcher, 1, within=within)
    return operation


async def settle(turns: int = 20) -> None:
    """Let the loop run a few iterations: what is due and needs no waiting then has happened."""
    for _ in range(turns):
        await asyncio.sleep(0)
