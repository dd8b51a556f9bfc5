"""The loop poller: ``add_reader`` and ``add_writer`` of the loop, for each descriptor.

Level-triggered, and each change of interest is a system call. So a reader stays armed as long as
its events find a read to serve, and is taken out when one does not; a writer is armed only while
a write waits. Nothing is registered for a connection on which nothing is pending.
"""

from __future__ import annotations

import os
import socket
import weakref
from typing import TYPE_CHECKING

from aiogaio.pollers.base import WRITABLE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiogaio.completions import Signal
    from aiogaio.connection import Record
    from aiogaio.pollers.base import Target


class _Interest:
    """One direction of one descriptor, as the loop watches it."""

    __slots__ = ("armed", "fd", "held", "ignored_at")

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self.armed: bool = True  # the watcher wants it
        self.held: bool = True  # the loop has the callback
        self.ignored_at: int = -1  # Target._batches when an event was ignored last


class _Held:
    """Part of each callback: tells when the loop has let go of it.

    libuv stops watching a descriptor after EPOLLERR, and uvloop says nothing of it but lets go
    of the callback. A connected UDP socket with one ECONNREFUSED would be deaf from then on, so
    a callback that is let go while its interest is armed asks for a new one.

    It holds the task that awaits the watcher, if one does (see ``Signal``), and all else weakly.
    """

    __slots__ = ("_interest", "_poller", "_signal")

    def __init__(self, poller: LoopPoller, interest: _Interest) -> None:
        self._poller = weakref.ref(poller)
        self._signal = poller.signal
        self._interest = interest

    def __del__(self) -> None:
        self._interest.held = False
        poller = self._poller()
        if poller is not None and self._interest.armed:
            poller.lost(self._interest)


def _when_readable(poller: LoopPoller, record: Record, interest: _Interest) -> Callable[[], None]:
    """The callback for a reader. A closure: calling it takes less than an object's ``__call__``."""
    held = _Held(poller, interest)
    find_record, find_target, find_poller = weakref.ref(record), poller.target, weakref.ref(poller)
    fd = interest.fd

    def ready(_: _Held = held) -> None:
        target = find_target()
        if target is None or target._take_read(fd):
            return
        record, poller = find_record(), find_poller()
        if record is None or poller is None:
            return
        record.readable = True
        if record.reads is not None and interest.ignored_at != target._batches:
            # A multishot read waits for room among the results. As long as the consumer goes on
            # collecting, ignoring the event costs less than to remove the reader and add it again.
            interest.ignored_at = target._batches
        else:
            poller.unwatch_reads(record)

    return ready


def _when_writable(poller: LoopPoller, record: Record, interest: _Interest) -> Callable[[], None]:
    """The callback for a writer."""
    held = _Held(poller, interest)
    find_record, find_target, find_poller = weakref.ref(record), poller.target, weakref.ref(poller)
    fd = interest.fd

    def ready(_: _Held = held) -> None:
        record, target, poller = find_record(), find_target(), find_poller()
        if record is None or target is None or poller is None:
            return
        target._take_one(fd, WRITABLE)
        if record.writes is None or record.write_paused:
            poller.unwatch_writes(record)

    return ready


class LoopPoller:
    """Readiness by the loop itself."""

    name = "loop"

    __slots__ = ("__weakref__", "_loop", "_readers", "_served", "_writers", "signal", "target")

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Target) -> None:
        self._loop = loop
        self.target: weakref.ref[Target] = weakref.ref(target)
        self.signal: Signal = target._signal
        self._readers: dict[int, _Interest] = {}
        self._writers: dict[int, _Interest] = {}
        # The records served, each with the inode that tells its descriptor from a later one of
        # the same number.
        self._served: dict[int, tuple[Record, int]] = {}
        ours, other = socket.socketpair()
        try:  # a loop that cannot do it says so here, and not at the first request
            loop.add_reader(ours.fileno(), int)
            loop.remove_reader(ours.fileno())
        finally:
            ours.close()
            other.close()

    def register(self, record: Record) -> None:
        fd = record.fileno()
        # Nobody else may have a callback on a descriptor that is the watcher's, but the loop may
        # still hold one for an earlier descriptor of this number, closed behind its back.
        self._forget_both(fd)
        self._served[fd] = record, os.fstat(fd).st_ino

    def unregister(self, record: Record) -> bool:
        fd = record.fileno()
        self.unwatch_reads(record)
        self.unwatch_writes(record)
        ours = self.holds(record)
        self._served.pop(fd, None)
        return ours

    def holds(self, record: Record) -> bool:
        fd = record.fileno()
        try:
            return os.fstat(fd).st_ino == self._served[fd][1]
        except (OSError, KeyError):
            return False

    def watch_reads(self, record: Record) -> None:
        fd = record.fileno()
        self._readers[fd] = interest = _Interest(fd)
        self._add(self._loop.add_reader, fd, _when_readable(self, record, interest))
        record.read_watched = True

    def watch_writes(self, record: Record) -> None:
        fd = record.fileno()
        self._writers[fd] = interest = _Interest(fd)
        self._add(self._loop.add_writer, fd, _when_writable(self, record, interest))
        record.write_watched = True

    def _forget_both(self, fd: int) -> None:
        """Have the loop hold no callback on this number, whatever it knows of it."""
        _forget(self._loop.remove_reader, fd)
        _forget(self._loop.remove_writer, fd)

    def _add(self, add: Callable[..., object], fd: int, ready: Callable[[], None]) -> None:
        try:
            add(fd, ready)
        except RuntimeError:  # uvloop, whose libuv has stopped: see `_Held`. It has to be told.
            self._forget_both(fd)
            add(fd, ready)

    def unwatch_reads(self, record: Record) -> None:
        """An event found no read to serve."""
        record.read_watched = False
        self._drop(record, self._readers, self._loop.remove_reader)

    def unwatch_writes(self, record: Record) -> None:
        """No write waits any more."""
        record.write_watched = False
        self._drop(record, self._writers, self._loop.remove_writer)

    def poll(self, limit: int) -> list[tuple[int, int]]:
        """Nothing: the loop itself calls."""
        return []

    def tell_again(self, record: Record) -> None:
        """Nothing to do: the loop reports what is ready until it is not."""

    def lost(self, interest: _Interest) -> None:
        """The loop has dropped a callback that it was not told to drop. Called from a finalizer."""
        try:
            self._loop.call_soon_threadsafe(self._renew, interest)
        except RuntimeError:  # the loop is closed
            interest.armed = False

    def _renew(self, lost: _Interest) -> None:
        """Register the descriptor with the loop once more, both directions of it."""
        served, target = self._served.get(lost.fd), self.target()
        if not lost.armed or served is None or target is None:
            return
        fd, (record, _) = lost.fd, served
        if not self.holds(record):  # somebody else has the number now, and the callbacks with it
            return
        self._forget_both(fd)
        for interests, watch in (
            (self._readers, target._watch_reads),
            (self._writers, target._watch_writes),
        ):
            interest = interests.pop(fd, None)
            if interest is not None:
                interest.armed = False
                watch(record)

    def _drop(
        self, record: Record, interests: dict[int, _Interest], remove: Callable[[int], object]
    ) -> None:
        interest = interests.pop(record.fileno(), None)
        if interest is None:
            return
        interest.armed = False
        # If the loop has let go of it, either it has watched in vain since (see `_Held`), and must
        # be told to forget the number, or the number is somebody else's.
        if not self._loop.is_closed() and (interest.held or self.holds(record)):
            _forget(remove, interest.fd)

    def close(self) -> None:
        """Nothing of its own is open: the connections are unregistered one by one."""

    def abandon(self) -> set[int]:
        for interests in (self._readers, self._writers):
            for interest in interests.values():
                interest.armed = False
        return {fd for fd, (record, _) in self._served.items() if self.holds(record)}


def _forget(remove: Callable[[int], object], fd: int) -> None:
    """Have the loop forget a callback; it does so, but says that the descriptor is not there."""
    try:
        remove(fd)
    except OSError:
        pass
