"""Threads that submit at once, through the watcher's view for threads."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

from aiogaio import Connection, Operation, OpType
from tests.soak.budget import Budget
from tests.soak.ledger import READS, WRITES, Ticket
from tests.soak.result import Result
from tests.soak.stage import PATIENCE, Stage, stage, timed

ASKED = "8 threads x 100,000 submits through threadsafe, none lost, none twice"
COST = 40.0
THREADS = 8
AHEAD = 1000  # requests that a thread may have pending
NUMBER = struct.Struct("!Q")


class Submitter:
    """One thread: writes numbers into one end of a pair, and reads them from the other."""

    def __init__(self, stage: Stage, count: int) -> None:
        self.view = stage.watcher.threadsafe
        self.ledger = stage.ledger
        self.count = count
        self.ends: list[Connection] = [stage.watcher.delegate(sock) for sock in socket.socketpair()]
        for conn in self.ends:
            self.ledger.open(conn, self)
        self.room = threading.Semaphore(AHEAD)
        self.read = self.written = 0

    def run(self) -> None:
        into, out = self.ends
        for number in range(self.count // 2):
            self._wait()
            data = NUMBER.pack(number)
            self.view.write(into, data, context=Ticket(into.context, WRITES))
            self._wait()
            buffer = bytearray(NUMBER.size)
            self.view.read_full(out, buffer, context=Ticket(out.context, READS))

    def _wait(self) -> None:
        if not self.room.acquire(timeout=PATIENCE):
            raise TimeoutError(f"{AHEAD} requests of one thread never completed")

    def take(self, op: Operation) -> None:
        self.room.release()
        self.ledger.expect(op.error is None, "requests that failed")
        if op.type is OpType.READ:
            right = bytes(op.data) == NUMBER.pack(self.read)
            self.ledger.expect(right, "reads with a wrong number")
            self.read += 1
        else:
            self.written += 1

    @property
    def done(self) -> bool:
        return self.read + self.written == self.count


async def figure(budget: Budget) -> Result:
    count = budget.count(100_000, least=2000) // 2 * 2
    async with stage(budget) as one:
        submitters = [Submitter(one, count) for _ in range(THREADS)]
        threads = [asyncio.to_thread(submitter.run) for submitter in submitters]
        _, seconds = await timed(asyncio.gather(*threads))
        await one.until(lambda: all(s.done for s in submitters), "all are delivered")
        one.result.ran = f"{THREADS} x {count:,} submits"
        one.result.measured = f"{one.ledger.settled:,} completed, {seconds:.1f} s"
        for submitter in submitters:
            for conn in submitter.ends:
                one.ledger.free(conn)
            submitter.ends.clear()
        del conn
    return one.result
