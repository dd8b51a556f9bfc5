"""Connections opened and closed, in order and by reset."""

from __future__ import annotations

from tests.soak.budget import Budget
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import stage, timed

ASKED = "100,000 connections opened and closed, 0 descriptors left"
COST = 30.0


async def figure(budget: Budget) -> Result:
    count = budget.count(100_000, least=1000)
    async with stage(budget) as one:
        server, peers = Server(one), one.peers()
        _, seconds = await timed(peers.ask("churn", address=server.address, count=count))
        await one.until(lambda: server.ended == count, "the server sees all ends")
        left = one.watcher.statistics().connections - 1  # the listener
        one.require(not left, f"{left} connections left")
        one.result.ran = f"{count:,} connections"
        one.result.measured = f"{left} left, {count / seconds:,.0f} per second"
    return one.result
