"""Timer: one timer of the loop, for the earliest of the times asked for."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Timer:
    """Calls ``callback``, a bound method, at the earliest time set since it last did.

    The loop holds the timer; the timer holds the method's owner weakly, so that a deadline an
    hour away does not keep a watcher alive that nobody holds.
    """

    __slots__ = ("_callback", "_handle", "_loop", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = weakref.WeakMethod(callback)
        self._handle: asyncio.TimerHandle | None = None
        self._when = 0.0

    def set(self, when: float) -> None:
        """Call at ``when``, in the loop's time, unless a call before it is due anyway."""
        if self._handle is not None:
            if self._when <= when:
                return
            self._handle.cancel()
        self._when = when
        self._handle = self._loop.call_at(when, self._fire)

    def cancel(self) -> None:
        """Call no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        callback = self._callback()
        if callback is not None:
            callback()
