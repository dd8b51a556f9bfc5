"""The same load again: what the first had needed is enough for the second."""

from __future__ import annotations

from tests.soak.budget import Budget
from tests.soak.footprint import growth, resident
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import stage

ASKED = "the second cycle of the same load grows resident memory by < 2%"
COST = 25.0
CYCLES = 4  # after the first


async def figure(budget: Budget) -> Result:
    connections = budget.connections(5000)
    trips = budget.count(200_000, least=10_000)
    churned = budget.count(10_000, least=500)
    async with stage(budget) as one:
        server, peers = Server(one), one.peers()

        async def cycle() -> int:
            await server.welcome(peers, connections)
            await peers.ask("trips", count=trips)
            await server.dismiss(peers)
            await peers.ask("churn", address=server.address, count=churned)
            await one.until(lambda: server.open == 0, "the server sees all ends")
            return resident()

        first, *later = [await cycle() for _ in range(1 + CYCLES)]
        # The allocator takes memory by the MiB, now and then: each cycle stands for its share.
        grown = growth(first, later[-1]) / CYCLES
        one.require(grown < 2, f"memory grew by {grown:.1f}% in each cycle")
        one.result.ran = (
            f"1 + {CYCLES} cycles of {connections + churned:,} connections, "
            f"{trips + churned:,} trips"
        )
        one.result.measured = f"{grown:+.1f}% of {first / 2**20:.0f} MiB in each"
    return one.result
