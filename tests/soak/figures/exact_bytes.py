"""Many connections at once, each with a content of its own, compared at both ends."""

from __future__ import annotations

from dataclasses import dataclass

from aiogaio import Connection, Operation
from tests.soak.budget import Budget
from tests.soak.peers import NUMBER, Content
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import Stage, stage, timed

ASKED = "10,000 connections x 1 MiB at once, every byte equal at both ends, < 60 s"
COST = 60.0
SIZE = 1 << 20


@dataclass(slots=True)
class Progress:
    index: int = -1  # until the connection has said which it is
    position: int = 0


class ExactServer(Server):
    """An echo server that knows what each connection is to send."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.content = Content(SIZE)
        self.complete = 0

    def state(self) -> Progress:
        return Progress()

    def begin(self, conn: Connection) -> None:
        self.ledger.read_full(conn, bytearray(NUMBER.size))

    def received(self, op: Operation) -> None:
        progress: Progress = op.conn.context.state
        if progress.index < 0:
            (progress.index,) = NUMBER.unpack(op.data)
            self.ledger.read(op.conn)
            return
        equal = self.content.matches(progress.index, progress.position, op.data)
        self.ledger.expect(equal, "receives with other bytes than those sent")
        progress.position += op.size
        self.complete += progress.position == SIZE
        self.ledger.write(op.conn, op.data)


async def figure(budget: Budget) -> Result:
    count = budget.connections(10_000)
    async with stage(budget) as one:
        server, peers = ExactServer(one), one.peers()
        await server.welcome(peers, count)
        answer, seconds = await timed(peers.ask("exact", size=SIZE))
        one.require(answer["complete"] == server.complete == count, "not all were complete")
        await server.dismiss(peers)
        one.require_speed(seconds < 60, f"{seconds:.0f} s")
        one.result.ran = f"{count:,} x 1 MiB"
        one.result.measured = f"{seconds:.1f} s, {answer['bytes'] / seconds / 2**20:.0f} MiB/s"
    return one.result
