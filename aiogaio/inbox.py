"""Inbox: what other threads ask of a watcher, on its way to the loop's thread."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from aiogaio.errors import WatcherClosedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Inbox:
    """Actions in their order. None is lost: one that was posted runs, at the latest at the close.

    ``lock`` orders posting, and delegating from another thread, against the close. It is
    reentrant, since a finalizer may run while this very thread holds it.
    """

    __slots__ = ("_actions", "_called", "_loop", "closed", "lock", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actions: deque[Callable[[], object]] = deque()
        self._called = False  # the loop will come
        self.closed: bool = False
        self.waiting: bool = False  # something is there
        self.lock: threading.RLock = threading.RLock()

    def __len__(self) -> int:
        """How many are waiting."""
        return len(self._actions)

    def post(self, action: Callable[[], object], run: Callable[[], None]) -> None:
        """Have the loop's thread call ``run``, which calls :meth:`empty`, some time soon.

        :raises WatcherClosedError: the inbox, or the loop, is closed.
        """
        with self.lock:
            if self.closed:
                raise WatcherClosedError("the watcher is closed")
            if self._loop.is_closed():
                raise WatcherClosedError("the watcher's event loop is closed")
            self._actions.append(action)
            self.waiting = True
            if self._called:
                return
            try:
                self._loop.call_soon_threadsafe(run)
            except RuntimeError as error:
                self._actions.pop()
                self.waiting = bool(self._actions)
                raise WatcherClosedError("the watcher's event loop is closed") from error
            self._called = True

    def come(self, seconds: float) -> bool:
        """The loop has come: run what is there for so long. True if it need not come again.

        If an action raises, the others stay, and the loop has to come again.
        """
        self.empty(seconds)
        with self.lock:
            self._called = self.waiting
            return not self.waiting

    def empty(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> None:
        """Run what is there now, in the loop's thread, for so long at most, or until this is true.

        What other threads add meanwhile waits: they may be faster than it is run.
        """
        actions = self._actions
        stop = time.monotonic() + seconds
        try:
            for done in range(len(actions)):
                late = done % 64 == 63 and time.monotonic() > stop
                if not actions or until() or late:  # a close among them empties it
                    break
                actions.popleft()()
        finally:
            with self.lock:
                self.waiting = bool(actions)

    def close(self) -> bool:
        """Take nothing more; false if it was closed before."""
        with self.lock:
            was_open, self.closed = not self.closed, True
        return was_open

    def abandon(self) -> None:
        """Forget all, in the child of a fork: another thread may have held the lock."""
        self.lock = threading.RLock()
        self.closed = True
        self._actions.clear()
