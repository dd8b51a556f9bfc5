"""Footprint: what is open and alive in this process, before a load and after it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.probes import open_kinds
from tests.support import settle


def resident() -> int:
    """Bytes of this process that are in memory, garbage aside."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def growth(before: int, after: int) -> float:
    """In per cent."""
    return (after / before - 1) * 100


#: The modules of what comes and goes with connections and requests; the watcher may stay.
KINDS = frozenset({"aiogaio.operation", "aiogaio.connection", "aiogaio.descriptor"})


class Footprint:
    """Descriptors, tasks, timers of the loop, and the library's objects."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: weakref.WeakSet[asyncio.TimerHandle] = weakref.WeakSet()
        for name in ("call_later", "call_at"):
            setattr(self._loop, name, self._noting(getattr(self._loop, name)))
        self._before = self._look()

    def _noting(self, call: Callable[..., asyncio.TimerHandle]) -> Callable[..., Any]:
        def noting(*args: Any, **options: Any) -> asyncio.TimerHandle:
            timer = call(*args, **options)
            self._timers.add(timer)
            return timer

        return noting

    def _look(self) -> Counter[str]:
        gc.collect()
        found = Counter({f"{kind} descriptors": n for kind, n in open_kinds().items()})
        found["tasks"] = len(asyncio.all_tasks())
        found["timers"] = sum(not timer.cancelled() for timer in self._timers)
        for one in gc.get_objects():
            if type(one).__module__ in KINDS:
                found[f"{type(one).__name__} objects"] += 1
        return found

    async def leftovers(self) -> list[str]:
        """What is there now and was not at the start."""
        await settle()
        more = self._look() - self._before
        for name in ("call_later", "call_at"):
            delattr(self._loop, name)
        return [f"{count:,} {kind} left" for kind, count in more.items()]
