"""A million deadlines that are hardly ever reached, and those that are, on an idle machine."""

from __future__ import annotations

import asyncio
import random
import socket

from aiogaio import DeadlineExceededError, Operation
from tests.soak.budget import Budget
from tests.soak.result import Result
from tests.soak.stage import Stage, stage

ASKED = (
    "1,000,000 deadlines, 99.9% never reached: heap <= 2 x live + 100, none early, "
    "p99 <= 20 ms late when idle"
)
COST = 30.0
LINES, DEPTH = 100, 100  # connections, and reads that are pending on each
FAR = 3600.0


class Pair:
    """A connection of the load, and its peer in this process."""

    def __init__(self, load: Load) -> None:
        ours, self.peer = socket.socketpair()
        self.ledger = load.ledger
        self.conn = load.stage.watcher.delegate(ours)
        self.ledger.open(self.conn, load, self)

    def close(self) -> None:
        self.ledger.free(self.conn)
        self.peer.close()


class Line(Pair):
    """Its reads each take one byte; the bytes are numbered."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.sent = self.got = 0

    def ask(self) -> list[Operation]:
        return [self.ledger.read(self.conn, bytearray(1), timeout=FAR) for _ in range(DEPTH)]

    def send(self, count: int) -> None:
        self.peer.sendall(bytes((self.sent + n) & 255 for n in range(count)))
        self.sent += count


class Silent(Pair):
    """Nothing ever arrives: its one deadline is reached."""

    def __init__(self, load: Load, delay: float) -> None:
        super().__init__(load)
        self.due = asyncio.get_running_loop().time() + delay
        self.ledger.read(self.conn, deadline=self.due)


class Load:
    """Waves of reads with deadlines far away: half are served, half are cancelled."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ledger = stage.ledger
        self.lines = [Line(self) for _ in range(LINES)]
        self.late: list[float] = []  # seconds, of those that were reached
        self.heap_over = 0
        self.largest = 0

    def take(self, op: Operation) -> None:
        pair = op.conn.context.state
        if op.error is None:
            self.ledger.expect(op.data[0] == pair.got & 255, "reads with a wrong byte")
            pair.got += 1
        elif isinstance(op.error, DeadlineExceededError):
            self.late.append(asyncio.get_running_loop().time() - pair.due)

    def look(self) -> None:
        """Looks at the heap behind the watcher's back: nothing public tells its length."""
        deadlines = self.stage.watcher._deadlines
        self.largest = max(self.largest, len(deadlines._heap))
        self.heap_over += len(deadlines._heap) > 2 * len(deadlines) + 100

    async def wave(self, chance: random.Random) -> None:
        for line in self.lines:
            requests = line.ask()
            for request in chance.sample(requests, DEPTH // 2):
                self.stage.watcher.cancel(request)
            self.look()
            line.send(DEPTH // 2)
        await self.stage.until(
            lambda: all(line.got == line.sent for line in self.lines), "all reads are served"
        )
        self.look()


async def figure(budget: Budget) -> Result:
    waves = budget.count(100, least=2)
    reached = budget.connections(1000, least=50, each=2)
    chance = random.Random(1)
    async with stage(budget) as one:
        load = Load(one)
        for _ in range(waves - 1):
            await load.wave(chance)
        for line in load.lines:  # the last wave stays pending: ten thousand live ones
            line.ask()
        del line
        silent = [Silent(load, chance.uniform(1, 3)) for _ in range(reached)]
        await asyncio.sleep(3)  # idle
        await one.until(lambda: len(load.late) == reached, "all deadlines are told")
        while load.lines:
            load.lines.pop().close()
        while silent:
            silent.pop().close()
        load.look()
        late = sorted(load.late)
        p99 = late[-len(late) // 100 - 1] * 1e3
        early = sum(seconds < 0 for seconds in late)
        one.require(not early, f"{early} were early")
        one.require(not load.heap_over, f"the heap was too large {load.heap_over} times")
        one.require_speed(p99 <= 20, f"p99 {p99:.0f} ms late")
        one.result.ran = f"{waves * LINES * DEPTH + reached:,} deadlines, {reached:,} reached"
        one.result.measured = f"heap <= {load.largest:,}, {early} early, p99 {p99:.1f} ms late"
    return one.result
