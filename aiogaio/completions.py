"""Completions: the queue of completed operations, and the one place that awaits.

Results never travel inside a future: they stay in the queue until somebody takes them, and the
future is only a signal. A waiter that is cancelled in the tick in which a result arrives
therefore loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aiogaio.errors import WatcherClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiogaio.operation import Operation

#: Seconds that a consumer who always finds results may keep the loop from other tasks.
SLICE: Final = 0.002

#: Results in one list at most: the requests that a consumer makes for each of them are work too.
BATCH_LIMIT: Final = 512


class Signal:
    """The future of the task that awaits completions, if one does.

    An object of its own, since the loop's callbacks hold it: through the future they keep the
    task, and with it the watcher, that nobody else may hold. They hold the watcher only weakly.
    """

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let the task that awaits go on, in the loop's next iteration."""
        future = self.future
        if future is not None and not future.done():
            try:
                future.set_result(None)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass
        self.future = None  # not before: a signal handler may raise in between


class Completions:
    """Completed operations in their order, waiting to be collected by one consumer."""

    __slots__ = ("_loop", "_waiting", "ready", "signal", "slice_end")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting = False
        self.ready: list[Operation] = []
        self.signal: Signal = Signal()
        self.slice_end: float = 0.0

    async def wait(self, look: Callable[[], bool]) -> None:
        """Return when ``ready`` holds something.

        ``look`` makes one turn of the watcher, and returns false if it is closed and no result
        can come any more: then :exc:`WatcherClosedError` is raised.
        """
        if self._waiting:
            raise RuntimeError(
                "another task is waiting for results of this watcher already: "
                "let one task collect and hand on"
            )
        self._waiting = True
        try:
            if time.monotonic() >= self.slice_end:
                await asyncio.sleep(0)
                self.slice_end = time.monotonic() + SLICE
            while not self.ready:
                if not look():
                    raise WatcherClosedError("the watcher is closed and all results are collected")
                if self.ready:
                    break
                self.signal.future = self._loop.create_future()
                try:
                    await self.signal.future
                finally:
                    self.signal.future = None
                self.slice_end = time.monotonic() + SLICE
        finally:
            self._waiting = False

    def take(self, limit: int) -> list[Operation]:
        """Hand over up to ``limit`` results, the oldest first."""
        batch = self.ready[:limit]
        del self.ready[: len(batch)]  # the list itself stays: others hold its `append`
        return batch


class Drained:
    """Waits until what was fenced off has completed."""

    __slots__ = ("_count", "_loop", "_signal")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._signal = Signal()
        self._count = 0

    def expect(self) -> None:
        """One fence more."""
        self._count += 1

    def reached(self) -> None:
        """A fence was reached."""
        self._count -= 1
        if not self._count:
            self._signal.wake()

    async def wait(self) -> None:
        """Return when all fences are reached."""
        if self._count:
            self._signal.future = self._loop.create_future()
            await self._signal.future
