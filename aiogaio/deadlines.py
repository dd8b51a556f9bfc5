"""Deadlines: which operation's time is over. A heap that knows numbers, not clocks or loops.

A pending deadline is an entry ``[when, number, operation]`` in a binary heap. To remove one, its
operation is taken out of the entry, which stays behind until it surfaces, or until empty entries
are more than the live ones: then the heap is built anew, so that a million deadlines that are
never reached (the usual fate of a deadline) cost neither memory nor time in the end.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

from aiogaio.operation import Lasting

if TYPE_CHECKING:
    from aiogaio.operation import Operation

#: ``[when, number, operation or None]``: a list, which compares in C and can be emptied.
Entry = list[Any]

#: So many empty entries are tolerated before it pays to build the heap anew.
_SLACK: Final = 64


class Deadlines:
    """The pending deadlines of one watcher. Times are seconds of any one clock."""

    __slots__ = ("_heap", "_live", "_number")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._live = 0
        self._number = 0  # orders equal times by submission, and keeps operations uncompared

    def __len__(self) -> int:
        """How many deadlines are pending; the heap holds at most twice as many, and a few."""
        return self._live

    def add(self, operation: Operation, when: float) -> None:
        """Let ``operation`` expire at ``when``; it has no deadline yet."""
        self._number += 1
        operation._timer = entry = [when, self._number, operation]
        heapq.heappush(self._heap, entry)
        self._live += 1

    def discard(self, operation: Operation) -> None:
        """Forget the deadline of ``operation``, if it has one."""
        entry = operation._timer
        if entry is None:
            return
        operation._timer = None
        entry[2] = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2] is not None]
            heapq.heapify(self._heap)

    def earliest(self) -> float | None:
        """When to look again: no deadline lies before it. ``None`` if there is none at all."""
        heap = self._heap
        while heap and heap[0][2] is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_expired(self, now: float) -> Operation | None:
        """Take out one operation whose time has come at ``now``, the earliest first."""
        while (heap := self._heap) and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            operation: Operation | None = entry[2]
            if operation is None:
                continue
            self._live -= 1
            operation._timer = None
            if isinstance(operation, Lasting):
                due = operation.due
                if due is not None and due > now:  # it completed meanwhile: its silence began anew
                    self.add(operation, due)
                    continue
            return operation
        return None
