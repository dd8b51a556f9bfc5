"""What the tests share: pairs of connected sockets, and a way to collect results."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
import time

from aiogaio import Connection, Operation, Watcher


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


def ready(sock: socket.socket | Connection, event: int = select.POLLIN) -> None:
    """Return when poll(2) says so of the socket; the loop does not run meanwhile.

    Loopback takes its time: what one end has sent need not be at the other end at once.
    """
    poll = select.poll()
    poll.register(sock.fileno(), event)
    assert poll.poll(10_000), "no event"


def arrived(sock: socket.socket | Connection, count: int) -> None:
    """The same, for so many bytes that wait in the socket (FIONREAD)."""
    give_up = time.monotonic() + 10
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0] < count:
        assert time.monotonic() < give_up, f"{count} bytes have not arrived"


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
