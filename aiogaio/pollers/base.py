"""What a poller offers, and what it needs of the watcher that it works for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aiogaio.completions import Signal
    from aiogaio.connection import Record

# The bits of epoll(7), written out since select.EPOLLIN exists on Linux only.
READABLE: Final = 0x001
URGENT: Final = 0x002
WRITABLE: Final = 0x004
ERROR: Final = 0x008
HANGUP: Final = 0x010
PEER_HANGUP: Final = 0x2000

#: Bits after which a short receive proves nothing: see ``Record.short_is_empty``.
UNCERTAIN: Final = URGENT | ERROR | HANGUP | PEER_HANGUP
#: Bits after which a receive, or a send, has something to find.
FOR_READS: Final = READABLE | UNCERTAIN
FOR_WRITES: Final = WRITABLE | ERROR | HANGUP


class Target(Protocol):
    """The watcher, as its poller sees it. A poller and the loop hold it weakly."""

    _signal: Signal
    _batches: int  # lists of results handed over so far

    def _look(self) -> bool:
        """Some descriptor is ready: look which (``poll``) and make the attempts."""
        ...

    def _take_read(self, fd: int) -> bool:
        """This descriptor is readable: make the attempts; false if no read waits for it."""
        ...

    def _take_one(self, fd: int, bits: int) -> None:
        """This descriptor is ready: make the attempts."""
        ...

    def _watch_reads(self, record: Record) -> None:
        """Call the poller's ``watch_reads``, and see to it if that fails."""
        ...

    def _watch_writes(self, record: Record) -> None:
        """Call the poller's ``watch_writes``, and see to it if that fails."""
        ...


class Poller(Protocol):
    """Readiness of many descriptors. Sets ``read_watched``/``write_watched`` of the records."""

    name: str

    def register(self, record: Record) -> None:
        """Begin to serve a descriptor that is not registered. Raises :exc:`OSError`."""
        ...

    def unregister(self, record: Record) -> bool:
        """Stop serving it, before it is closed; returns as :meth:`holds`."""
        ...

    def holds(self, record: Record) -> bool:
        """Whether the number still means the descriptor that was registered.

        It does not if hostile code has closed it: then the number may be anybody's.
        """
        ...

    def watch_reads(self, record: Record) -> None:
        """Report when it becomes readable, if that is not being done."""
        ...

    def watch_writes(self, record: Record) -> None:
        """Report when it becomes writable, if that is not being done."""
        ...

    def poll(self, limit: int) -> list[tuple[int, int]]:
        """What is ready at this moment, as ``(descriptor, events)``, so many at most; no wait."""
        ...

    def tell_again(self, record: Record) -> None:
        """What was reported of it may have been lost on the way: report it anew."""
        ...

    def close(self) -> None:
        """Unregister from the loop and close what is the poller's own."""
        ...

    def abandon(self) -> set[int]:
        """As :meth:`close` in the child of a fork: leave alone what the parent shares.

        Returns the descriptors that are still those registered, for the child to close.
        """
        ...
