"""Statistics: a frozen snapshot of what a watcher has done."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the watcher was made, from :meth:`aiogaio.Watcher.statistics`.

    ``submitted == completed + pending`` holds at any time. A multishot request counts once, and
    as completed when it ends.
    """

    submitted: int  #: requests accepted
    completed: int  #: requests that have come to their end, collected or not
    pending: int  #: requests under way
    connections: int  #: connections delegated or accepted, and not closed yet
    bytes_read: int
    bytes_written: int
    batches: int  #: lists of results handed over
    poller: str  #: ``"epoll"`` or ``"loop"``
