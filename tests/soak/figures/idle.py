"""Connections on which nothing happens: they cost nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiogaio import Watcher
from tests.soak.budget import Budget
from tests.soak.figures.exact_bytes import SIZE, ExactServer
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import stage

ASKED = "10,000 idle connections for 60 s: < 0.5% CPU, 0 spurious callbacks"
COST = 70.0
BUSY = 20


class CountingWatcher(Watcher):
    """Counts how often the loop calls it; its hooks are those that the pollers call."""

    __slots__ = ("calls",)

    def __init__(self, **options: Any) -> None:
        self.calls = 0
        super().__init__(**options)

    def _look(self) -> bool:
        self.calls += 1
        return super()._look()

    def _take_read(self, fd: int) -> bool:
        self.calls += 1
        return super()._take_read(fd)

    def _take_one(self, fd: int, bits: int) -> None:
        self.calls += 1
        super()._take_one(fd, bits)


async def figure(budget: Budget) -> Result:
    seconds = budget.seconds(60.0, least=2.0)
    count = budget.connections(10_000, least=2000)
    async with stage(budget, CountingWatcher) as one:
        watcher = one.watcher
        assert isinstance(watcher, CountingWatcher)
        server, peers = Server(one), one.peers()
        exact, busy = ExactServer(one), one.peers()
        await exact.welcome(busy, BUSY)  # so that some have had more to write than sockets take
        await busy.ask("exact", size=SIZE)
        await server.welcome(peers, count)
        await asyncio.sleep(0.5)  # what the load has begun may end
        calls, cpu = watcher.calls, time.process_time()
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - cpu) / seconds * 100
        calls = watcher.calls - calls
        one.require(not calls, f"{calls} spurious callbacks")
        one.require(cpu < 0.5, f"{cpu:.2f}% CPU")
        await peers.ask("trips", count=count)  # and they are alive
        await server.dismiss(peers)
        await exact.dismiss(busy)
        one.result.ran = f"{count:,} connections, {seconds:.0f} s"
        one.result.measured = f"{cpu:.2f}% CPU, {calls} callbacks"
    return one.result
