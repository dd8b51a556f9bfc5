"""Clients that send a byte now and then and never a whole line, beside normal ones."""

from __future__ import annotations

import asyncio

from aiogaio import Connection, DeadlineExceededError, Operation
from tests.soak.budget import Budget
from tests.soak.footprint import resident
from tests.soak.ledger import READS, Ticket
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import Stage, stage

ASKED = "5,000 slow-loris clients beside 1,000 normal: memory bounded, p99 <= 3 x quiet"
COST = 20.0
BOUND = 16 * 1024
"""Bytes of resident memory that a slow client may cost; a buffer of a read would be 64 KiB."""


class LineServer(Server):
    """Wants a line within a time, and frees who does not send one."""

    def __init__(self, stage: Stage, timeout: float) -> None:
        super().__init__(stage)
        self.timeout = timeout
        self.expired = 0

    def begin(self, conn: Connection) -> None:
        ticket = Ticket(conn.context, READS)
        watcher = self.stage.watcher
        watcher.read_until(conn, b"\n", limit=1024, timeout=self.timeout, context=ticket)

    def end(self, op: Operation) -> None:
        self.expired += isinstance(op.error, DeadlineExceededError)
        super().end(op)


async def figure(budget: Budget) -> Result:
    seconds = budget.seconds(6.0)
    normal, slow = budget.connections(1000, each=2), budget.connections(5000, each=2)
    async with stage(budget) as one:
        server, lines = Server(one), LineServer(one, seconds + 3)
        pingers, loris = one.peers(), one.peers()
        await server.welcome(pingers, normal)
        quiet = await pingers.ask("ping", seconds=seconds, rate=1000)
        before = resident()
        await lines.welcome(loris, slow)
        dripping = asyncio.ensure_future(loris.ask("drip", seconds=seconds))
        loud = await pingers.ask("ping", seconds=seconds, rate=1000)
        each = (resident() - before) / lines.open
        await dripping
        await one.until(lambda: lines.accepted == slow and lines.open == 0, "all slow ones expire")
        one.require(server.open == normal, f"{normal - server.open} normal clients were lost")
        one.require(lines.expired == slow, f"{slow - lines.expired} slow ones did not expire")
        one.require(each <= BOUND, f"{each / 1024:.0f} KiB for each slow client")
        ratio = loud["p99"] / quiet["p99"]
        one.require(ratio <= 3, f"p99 {ratio:.1f} x quiet", gates=False)
        await server.dismiss(pingers)
        one.result.ran = f"{slow:,} slow, {normal:,} normal, {seconds:.0f} s"
        one.result.measured = (
            f"{each / 1024:.1f} KiB each, p99 {quiet['p99']:.1f} -> {loud['p99']:.1f} ms: "
            f"{ratio:.1f} x"
        )
    return one.result
