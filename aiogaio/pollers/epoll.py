"""The epoll poller: one edge-triggered epoll for all descriptors of a watcher (epoll(7)).

Each descriptor is registered once, for both directions, and never touched again until it is
closed: adding and removing interest for every request would cost more than the request. The
price is the rule of edge-triggering: readiness is told once, when it begins, and has to be
remembered until an attempt has proven that it is over (``Record.readable``, ``.writable``).

The epoll's own descriptor is readable while events are waiting in it, so the event loop watches
that one alone, level-triggered, as it would a socket.
"""

from __future__ import annotations

import re
import select
import weakref
from typing import TYPE_CHECKING, Final

from aiogaio.pollers.base import PEER_HANGUP, READABLE, URGENT, WRITABLE

if TYPE_CHECKING:
    import asyncio

    from aiogaio.completions import Signal
    from aiogaio.connection import Record
    from aiogaio.pollers.base import Target

_EDGES: Final = READABLE | WRITABLE | URGENT | PEER_HANGUP | select.EPOLLET


class _Callback:
    """What the loop holds: the watcher weakly, and whoever awaits it (see ``Signal``)."""

    __slots__ = ("_signal", "_target")

    def __init__(self, target: Target) -> None:
        self._target = weakref.ref(target)
        self._signal: Signal = target._signal

    def __call__(self) -> None:
        target = self._target()
        if target is not None:
            target._look()


class EpollPoller:
    """Readiness by a nested epoll."""

    name = "epoll"

    __slots__ = ("_epoll", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Target) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        try:
            loop.add_reader(self._epoll.fileno(), _Callback(target))
        except BaseException:
            self._epoll.close()
            raise

    def register(self, record: Record) -> None:
        self._epoll.register(record.fileno(), _EDGES)
        record.read_watched = record.write_watched = True

    def unregister(self, record: Record) -> bool:
        try:
            self._epoll.unregister(record.fileno())
        except OSError:  # ENOENT or EBADF: the number is not the descriptor that was registered
            return False
        return True

    def holds(self, record: Record) -> bool:
        try:
            self._epoll.modify(record.fileno(), _EDGES)
        except OSError:
            return False
        return True

    def watch_reads(self, record: Record) -> None:
        """Nothing to do: both directions are watched from ``register`` on."""

    def watch_writes(self, record: Record) -> None:
        """Nothing to do: both directions are watched from ``register`` on."""

    def poll(self, limit: int) -> list[tuple[int, int]]:
        return self._epoll.poll(0, limit)

    def tell_again(self, record: Record) -> None:
        self.holds(record)  # EPOLL_CTL_MOD is an edge for what is ready

    def close(self) -> None:
        # First out of the loop, then closed: uvloop aborts the process otherwise.
        if not self._epoll.closed:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def abandon(self) -> set[int]:
        # epoll_ctl would change the parent's epoll, too. Reading what is registered does not.
        try:
            with open(f"/proc/self/fdinfo/{self._epoll.fileno()}", encoding="ascii") as file:
                registered = set(map(int, re.findall(r"^tfd:\s*(\d+)", file.read(), re.MULTILINE)))
        except OSError:  # no /proc: better an open copy than somebody else's descriptor closed
            registered = set()
        self._epoll.close()
        return registered
