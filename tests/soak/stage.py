"""Stage: what every figure stands on, and the checks that are common to all.

A watcher with a ledger, a task that collects, peers in processes of their own. When it is struck,
each request must have completed once, and nothing of it may be left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiogaio import Watcher
from tests.soak.budget import Budget
from tests.soak.footprint import Footprint
from tests.soak.ledger import Ledger
from tests.soak.process import PeerProcess
from tests.soak.result import Result

PATIENCE = 60.0

T = TypeVar("T")


class Stage:
    def __init__(self, budget: Budget, watcher: Watcher) -> None:
        self.budget = budget
        self.watcher = watcher
        self.ledger = Ledger(watcher)
        self.result = Result()
        self._peers: list[PeerProcess] = []

    def peers(self) -> PeerProcess:
        """A further process for peers."""
        self._peers.append(PeerProcess())
        return self._peers[-1]

    def require(self, kept: bool, text: str, *, gates: bool = True) -> None:
        """Note ``text`` if it was not kept."""
        if not kept:
            (self.result.faults if gates else self.result.missed).append(text)

    def require_speed(self, kept: bool, text: str) -> None:
        self.require(kept, text, gates=self.budget.gates_speed)

    async def until(self, condition: Callable[[], bool], text: str) -> None:
        """Wait for what the loop's other tasks bring about."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"not within {PATIENCE:.0f} s: {text}; {self.ledger.settled:,} of "
                    f"{self.ledger.submitted:,} requests have completed"
                )
            await asyncio.sleep(0.005)

    async def collect(self) -> None:
        """Hand each result to the server whose connection it is."""
        settle = self.ledger.settle
        async for results in self.watcher:
            for op in results:
                settle(op).owner.take(op)

    def close(self) -> None:
        self.watcher.close()
        for peers in self._peers:
            peers.close()


@asynccontextmanager
async def stage(
    budget: Budget, kind: Callable[..., Watcher] = Watcher, **options: Any
) -> AsyncIterator[Stage]:
    footprint = Footprint()
    one = Stage(budget, kind(poller=budget.variant.poller, **options))
    result, ledger = one.result, one.ledger
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.collect())
            try:
                yield one
            finally:
                one.close()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    result.faults += ledger.faults()
    del one, ledger
    result.faults += await footprint.leftovers()


async def timed(action: Awaitable[T]) -> tuple[T, float]:
    begin = time.monotonic()
    return await action, time.monotonic() - begin
