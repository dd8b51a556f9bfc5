"""Peers that reset, end, stall or stay silent in the middle: the one right outcome for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from aiogaio import Connection, DeadlineExceededError, EndOfStreamError, Operation, OpType
from tests.soak.budget import Budget
from tests.soak.fates import COMPLETE, END, MESSAGE, RESET, SILENT, STALLED, fate_of
from tests.soak.peers import NUMBER
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import Stage, stage

ASKED = "10,000 peers that reset, end, stall or say nothing: one outcome each, no reset as an end"
COST = 15.0
TIMEOUT = 3.0
OUTCOMES: dict[str, type[object]] = {
    RESET: ConnectionResetError,
    END: EndOfStreamError,
    STALLED: DeadlineExceededError,
    SILENT: DeadlineExceededError,
    COMPLETE: type(None),
}


@dataclass(slots=True)
class Hearing:
    """What one connection has said so far."""

    number: int = -1  # until it has said which it is
    size: int = 0  # of its message

    @property
    def armed(self) -> bool:
        return self.number % 3 == 2


class MessageServer(Server):
    """Reads the number of a connection, then a message; says a last word if that failed."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.outcomes: Counter[str] = Counter()
        self.resets_as_ends = 0
        self.unknown = 0  # broke off before the number was read

    def state(self) -> Hearing:
        return Hearing()

    def begin(self, conn: Connection) -> None:
        self.ledger.read_full(conn, bytearray(NUMBER.size))

    def received(self, op: Operation) -> None:
        hearing: Hearing = op.conn.context.state
        if hearing.number < 0:
            (hearing.number,) = NUMBER.unpack(op.data)
            self._ask(op.conn)
            return
        hearing.size += op.size
        if op.more:
            return
        if hearing.size < MESSAGE:
            self._ask(op.conn)
        else:
            self._judge(op)

    def _ask(self, conn: Connection) -> None:
        """In one of the three ways that there are to read."""
        hearing: Hearing = conn.context.state
        if hearing.number % 3 == 0:
            self.ledger.read_full(conn, bytearray(MESSAGE), timeout=TIMEOUT)
        else:
            self.ledger.read(conn, multishot=hearing.armed, timeout=TIMEOUT)

    def end(self, op: Operation) -> None:
        hearing: Hearing = op.conn.context.state
        if hearing.number < 0:
            self.unknown += 1
            self.drop(op.conn)
        elif op.type is OpType.READ:
            hearing.size += op.size
            self._judge(op)
        else:
            self.drop(op.conn)

    def sent(self, op: Operation) -> None:
        self.drop(op.conn)

    def _judge(self, op: Operation) -> None:
        hearing: Hearing = op.conn.context.state
        fate, size = fate_of(hearing.number)
        expected = OUTCOMES[fate]
        if fate == COMPLETE and hearing.armed:  # which goes on until nothing comes
            expected = DeadlineExceededError
        self.outcomes[fate] += 1
        self.resets_as_ends += fate == RESET and isinstance(op.error, EndOfStreamError)
        # After a reset the system may have thrown away what had arrived.
        whole = hearing.size == size or (fate == RESET and hearing.size < size)
        self.ledger.expect(isinstance(op.error, expected) and whole, f"wrong outcomes of {fate}")
        if fate == RESET:
            self.drop(op.conn)
        else:
            self.ledger.write(op.conn, b"bye")


async def figure(budget: Budget) -> Result:
    count = budget.connections(10_000)
    async with stage(budget) as one:
        server, peers = MessageServer(one), one.peers()
        await peers.ask("meet_fates", address=server.address, count=count)
        await one.until(lambda: server.ended == count, "every connection has its outcome")
        farewells = await peers.ask("farewells")
        met = server.outcomes
        one.require(not server.unknown, f"{server.unknown} ended before their number was read")
        one.require(met.total() == count, f"{met.total():,} outcomes of {count:,} connections")
        one.require(not server.resets_as_ends, f"{server.resets_as_ends} resets shown as ends")
        deaf = count - met[RESET] - farewells["heard"]
        one.require(not deaf, f"{deaf} peers did not get the server's last word")
        one.result.ran = f"{count:,} connections"
        one.result.measured = ", ".join(f"{met[fate]:,} {fate}" for fate in OUTCOMES)
    return one.result
