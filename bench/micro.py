"""The hot calls alone, with pyperf: ``python -m bench micro [--fast] [-o FILE]``.

Each figure includes the system calls that the request makes. What only feeds the benchmark, such as
refilling the socket, is outside the measured time.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable

from aiogaio import Connection, Watcher

try:
    import pyperf  # type: ignore[import-untyped]
except ModuleNotFoundError:
    sys.exit("pyperf is not installed: pip install '.[bench]'")

SIXTEEN = [bytes(64)] * 16
FILL = 4_000  # single bytes that a socket is filled with at a time
Subject = Callable[[Watcher, Connection, socket.socket, int], Awaitable[float]]


async def _ready_read(watcher: Watcher, conn: Connection, peer: socket.socket, loops: int) -> float:
    """A read of one byte that is there: submitted, completed, collected."""
    buffer, elapsed = bytearray(1), 0.0
    while loops > 0:
        count = min(loops, FILL)
        peer.sendall(bytes(count))
        await asyncio.sleep(0)  # readiness is seen
        start = time.perf_counter()
        for _ in range(count):
            watcher.read(conn, buffer)
            watcher.poll_io()
        elapsed += time.perf_counter() - start
        loops -= count
    return elapsed


async def _pending_read(
    watcher: Watcher, conn: Connection, peer: socket.socket, loops: int
) -> float:
    """A read, then its byte arrives (the send is counted), then wait_io hands it over."""
    buffer = bytearray(1)
    send, read, wait_io = peer.send, watcher.read, watcher.wait_io
    start = time.perf_counter()
    for _ in range(loops):
        read(conn, buffer)
        send(b"x")
        await wait_io()
    return time.perf_counter() - start


async def _write(watcher: Watcher, conn: Connection, peer: socket.socket, loops: int) -> float:
    """A write of one byte that the socket takes at once: submitted, completed, collected."""
    elapsed = 0.0
    while loops > 0:
        count = min(loops, 100)  # what any socket buffer holds
        start = time.perf_counter()
        for _ in range(count):
            watcher.write(conn, b"x")
            watcher.poll_io()
        elapsed += time.perf_counter() - start
        peer.recv(count)
        loops -= count
    return elapsed


async def _sixteen_writes(
    watcher: Watcher, conn: Connection, peer: socket.socket, loops: int
) -> float:
    """Sixteen writes of 64 bytes, each sent at its call."""
    elapsed = 0.0
    for _ in range(loops):
        start = time.perf_counter()
        for part in SIXTEEN:
            watcher.write(conn, part)
        watcher.poll_io()
        elapsed += time.perf_counter() - start
        peer.recv(4096)
    return elapsed


async def _sixteen_queued(
    watcher: Watcher, conn: Connection, peer: socket.socket, loops: int
) -> float:
    """The same writes out of the queue, from the moment at which the socket takes them."""
    elapsed = 0.0
    for _ in range(loops):
        conn._record.writable = False  # as after EAGAIN
        for part in SIXTEEN:
            watcher.write(conn, part)
        conn._record.writable = True
        watcher._put_off(conn._record)  # as an event would have it
        start = time.perf_counter()
        watcher.poll_io()
        elapsed += time.perf_counter() - start
        peer.recv(4096)
    return elapsed


async def _one_writev(watcher: Watcher, conn: Connection, peer: socket.socket, loops: int) -> float:
    """The same bytes by one request."""
    elapsed = 0.0
    for _ in range(loops):
        start = time.perf_counter()
        watcher.writev(conn, SIXTEEN)
        watcher.poll_io()
        elapsed += time.perf_counter() - start
        peer.recv(4096)
    return elapsed


async def _empty_round(
    watcher: Watcher, conn: Connection, peer: socket.socket, loops: int
) -> float:
    """poll_io with nothing completed."""
    poll_io = watcher.poll_io
    start = time.perf_counter()
    for _ in range(loops):
        poll_io()
    return time.perf_counter() - start


async def _cancelled_read(
    watcher: Watcher, conn: Connection, peer: socket.socket, loops: int
) -> float:
    """A read that waits, cancelled, collected: what the next figure has without its deadline."""
    return _cancel(watcher, conn, loops, None)


async def _deadline(watcher: Watcher, conn: Connection, peer: socket.socket, loops: int) -> float:
    """The same with a deadline, which is added and removed."""
    return _cancel(watcher, conn, loops, 60.0)


def _cancel(watcher: Watcher, conn: Connection, loops: int, timeout: float | None) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        watcher.cancel(watcher.read(conn, timeout=timeout))
        watcher.poll_io()
    return time.perf_counter() - start


SUBJECTS: dict[str, Subject] = {
    "ready-read": _ready_read,
    "pending-read": _pending_read,
    "write": _write,
    "16-writes-of-64-bytes": _sixteen_writes,
    "16-writes-of-64-bytes-queued": _sixteen_queued,
    "writev-of-16-x-64-bytes": _one_writev,
    "empty-poll": _empty_round,
    "cancelled-read": _cancelled_read,
    "cancelled-read-with-deadline": _deadline,
}


async def _with_pair(subject: Subject, loops: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with theirs:
        async with Watcher() as watcher:
            return await subject(watcher, watcher.delegate(ours), theirs, loops)


def _timed(subject: Subject) -> Callable[[int], float]:
    return lambda loops: asyncio.run(_with_pair(subject, loops))


def main() -> None:
    runner = pyperf.Runner(program_args=("-m", "bench.micro"))
    for name, subject in SUBJECTS.items():
        runner.bench_time_func(name, _timed(subject))


if __name__ == "__main__":
    main()
