"""One connection that sends as fast as it can, beside a thousand that ping."""

from __future__ import annotations

import asyncio
import zlib

from aiogaio import Connection, Operation
from tests.soak.budget import Budget
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import Stage, stage

ASKED = "a firehose beside 1,000 pingers: ping p99 <= 5 x quiet"
COST = 16.0


class Sink(Server):
    """Takes all that comes, by an armed read."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.bytes = self.checksum = 0

    def begin(self, conn: Connection) -> None:
        self.ledger.read(conn, multishot=True)

    def received(self, op: Operation) -> None:
        self.bytes += op.size
        self.checksum = zlib.crc32(op.data, self.checksum)


async def figure(budget: Budget) -> Result:
    seconds = budget.seconds(6.0)
    count = budget.connections(1000)
    async with stage(budget) as one:
        server, sink = Server(one), Sink(one)
        pingers, firehose = one.peers(), one.peers()
        await server.welcome(pingers, count)
        quiet = await pingers.ask("ping", seconds=seconds, rate=1000)
        loud, flood = await asyncio.gather(
            pingers.ask("ping", seconds=seconds, rate=1000),
            firehose.ask("flood", address=sink.address, seconds=seconds),
        )
        await pingers.ask("close")
        await one.until(lambda: server.open + sink.open == 0, "the server sees all ends")
        taken = sink.bytes, sink.checksum
        one.require(taken == (flood["bytes"], flood["checksum"]), "the firehose's bytes differ")
        ratio = loud["p99"] / quiet["p99"]
        one.require(ratio <= 5, f"p99 {ratio:.1f} x quiet", gates=False)
        one.result.ran = f"{count:,} pingers, {seconds:.0f} s"
        times = f"p99 {quiet['p99']:.1f} -> {loud['p99']:.1f} ms: {ratio:.1f} x"
        one.result.measured = f"{times}, {sink.bytes / 2**30:.1f} GiB"
    return one.result
