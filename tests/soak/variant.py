"""Variant: one event loop and one poller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from tests.probes import LOOP_FACTORIES

LOOPS = ("asyncio", "uvloop")
POLLERS = ("epoll", "loop")


@dataclass(frozen=True)
class Variant:
    loop: str
    poller: str

    def __str__(self) -> str:
        return f"{self.loop} {self.poller}"

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[self.loop]) as runner:
            return runner.run(main())


def variants(loops: Sequence[str], pollers: Sequence[str]) -> list[Variant]:
    """All that were asked for and that are installed."""
    return [Variant(loop, poller) for loop in loops if loop in LOOP_FACTORIES for poller in pollers]
