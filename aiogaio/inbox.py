"""Inbox: what other threads ask of a watcher, on its way to the loop's thread."""

from __future__ import annotations

import threading
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

    __slots__ = ("_actions", "_loop", "closed", "lock")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actions: deque[Callable[[], object]] = deque()
        self.closed: bool = False
        self.lock: threading.RLock = threading.RLock()

    def __len__(self) -> int:
        return len(self._actions)

    def post(self, action: Callable[[], object], run: Callable[[], None]) -> None:
        """Have the loop's thread call ``run``, which calls :meth:`empty`, some time soon.

        :raises WatcherClosedError: the inbox, or the loop, is closed.
        """
        with self.lock:
            if self.closed:
                raise WatcherClosedError("the watcher is closed")
            self._actions.append(action)
            if len(self._actions) > 1:
                return  # the loop has been called already
            try:
                self._loop.call_soon_threadsafe(run)
            except RuntimeError as error:
                self._actions.pop()
                raise WatcherClosedError("the watcher's event loop is closed") from error

    def empty(self) -> None:
        """Run all that is there, in the loop's thread."""
        actions = self._actions
        while actions:
            actions.popleft()()

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
