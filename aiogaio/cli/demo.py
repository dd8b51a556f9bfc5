"""demo: the same load on a Watcher and on asyncio streams; every byte of every answer is compared.

The servers run here, one after the other; the clients in a process of their own (load.py), on
another core where there is one. They live in a session of their own too: the Ctrl-C of a terminal
is for this process alone, which then stops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiogaio.cli import limits, loops
from aiogaio.cli.failure import Failure
from aiogaio.cli.measurement import Batches, Measurement, Report
from aiogaio.cli.progress import Progress
from aiogaio.cli.server import BACKLOG, Serve, Serving, streams_server, watcher_server
from aiogaio.cli.summary import summary, verdict

HOST = "127.0.0.1"
OVERTIME = 30.0  # beyond --seconds, for the clients to start, connect and report


@dataclass(frozen=True, slots=True)
class DemoOptions:
    loop: loops.Loop = "asyncio"
    poller: loops.Poller = "auto"
    connections: int = 1000
    size: int = 128
    seconds: float = 3.0


def run(options: DemoOptions, servers: Mapping[str, Serve] | None = None) -> int:
    """Measure each of the servers (by name), print what came out; the exit status."""
    if servers is None:
        servers = {"aiogaio": watcher_server(options.poller), "asyncio streams": streams_server}
    limits.require_connections(options.connections)
    cores = limits.cores()
    print(_heading(options, cores), flush=True)
    _settle_allocator()
    with _pinned(cores):
        measurements = [
            loops.run(options.loop, _measure(name, serve, options, cores))
            for name, serve in servers.items()
        ]
    print(f"\n{summary(measurements)}\n\n{verdict(measurements)}", flush=True)
    return 0 if all(measurement.report.right for measurement in measurements) else 1


async def _measure(name: str, serve: Serve, options: DemoOptions, cores: list[int]) -> Measurement:
    with socket.create_server((HOST, 0), backlog=BACKLOG) as listener:
        address = listener.getsockname()
        async with serve(listener) as serving, _clients(address, options, cores) as clients:
            try:
                async with asyncio.timeout(options.seconds + OVERTIME):
                    live = Live(name, serving.batches)
                    return await _follow(clients, live, serving)
            except TimeoutError:
                raise Failure(f"{name}: the clients did not come to an end") from None


async def _follow(clients: Process, live: Live, serving: Serving) -> Measurement:
    """Start the connected clients, show what they tell, until they report."""
    await _hear(clients)
    cpu = time.process_time()
    _say_go(clients)
    while "report" not in (told := await _hear(clients)):
        live.show(**told)
    cpu = time.process_time() - cpu
    report = Report(**told["report"])
    live.close(report)
    return Measurement(live.name, serving.poller, serving.batches, report, cpu)


class Live:
    """The line of figures while a server is under load. It fits a terminal of 80 columns."""

    def __init__(self, name: str, batches: Batches | None) -> None:
        self.name = name
        self._batches = batches
        self._progress = Progress(sys.stdout)
        self._before = (0, 0.0)

    def show(self, round_trips: int, seconds: float, errors: int) -> None:
        count, began = self._before
        self._before = round_trips, seconds
        rate = (round_trips - count) / (seconds - began) if seconds > began else 0.0
        self._progress.show(self._line(round_trips, seconds, errors, rate))

    def close(self, report: Report) -> None:
        self._progress.end(
            self._line(report.round_trips, report.seconds, report.errors, report.rate)
        )

    def _line(self, round_trips: int, seconds: float, errors: int, rate: float) -> str:
        line = (
            f"{self.name:<15}  {seconds:4.1f} s  {round_trips:>9,} trips"
            f"  {rate:>7,.0f}/s  {errors:,} errors"
        )
        return f"{line}  {self._batches.mean:.0f} ops/batch" if self._batches else line


@contextlib.asynccontextmanager
async def _clients(
    address: tuple[str, int], options: DemoOptions, cores: list[int]
) -> AsyncIterator[Process]:
    """The process of the clients. It is gone after the block, however that ends."""
    host, port = address
    command = [sys.executable, "-m", "aiogaio.cli.load", host, str(port)]
    command += ["--connections", str(options.connections)]
    command += ["--size", str(options.size), "--seconds", str(options.seconds)]
    if len(cores) > 1:
        command += ["--core", str(cores[-1])]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it has nothing left to say
        await process.communicate()


async def _hear(clients: Process) -> dict[str, Any]:
    """The next line of the clients."""
    assert clients.stdout is not None
    line = await clients.stdout.readline()
    if not line:
        raise Failure(f"the clients ended without a report (status {await clients.wait()})")
    told: dict[str, Any] = json.loads(line)
    if "failed" in told:
        raise Failure(told["failed"])
    return told


def _say_go(clients: Process) -> None:
    assert clients.stdin is not None
    clients.stdin.write(b"go\n")


@contextlib.contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """The server's thread on the first core; the clients get the last."""
    if len(cores) < 2:
        yield
        return
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _settle_allocator() -> None:
    """Give asyncio its best, and the same in every run.

    Its transports allocate 256 KiB for each receive. The C library maps and unmaps blocks of that
    size, which doubles what a small round trip costs, until a larger one has once been freed; from
    then on it keeps them at hand (mallopt(3), M_MMAP_THRESHOLD). Here one is freed.
    """
    bytearray(16 << 20)


def _heading(options: DemoOptions, cores: list[int]) -> str:
    where = f"server on core {cores[0]}, clients on core {cores[-1]}" if cores else "not pinned"
    return (
        f"{options.connections:,} connections, messages of {options.size:,} bytes, "
        f"{options.seconds:g} s for each server\n"
        f"loop {options.loop}; {where}\n"
    )
