"""Round trips without end: what each takes of memory, it gives back."""

from __future__ import annotations

from tests.soak.budget import Budget
from tests.soak.footprint import growth, resident
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import stage

ASKED = "5,000,000 round trips, resident memory grows by < 2% after warm-up"
COST = 75.0
CONNECTIONS = 64


async def figure(budget: Budget) -> Result:
    count = budget.count(5_000_000, least=20_000)
    warm_up = count // 10
    async with stage(budget) as one:
        server, peers = Server(one), one.peers()
        await server.welcome(peers, CONNECTIONS)
        await peers.ask("trips", count=warm_up)
        before = resident()
        await peers.ask("trips", count=count - warm_up)
        after = resident()
        grown = growth(before, after)
        one.require(grown < 2, f"memory grew by {grown:.1f}%")
        await server.dismiss(peers)
        one.result.ran = f"{count:,} round trips"
        one.result.measured = f"{grown:+.1f}% of {before / 2**20:.0f} MiB"
    return one.result
