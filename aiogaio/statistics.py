"""Statistics: frozen snapshots of what a watcher has done, and of what is pending."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the watcher was made, from :meth:`aiogaio.Watcher.statistics`.

    - ``submitted``: requests accepted. A multishot request counts once.
    - ``completed``: requests that have come to their end, collected or not.
    - ``pending``: requests under way; ``submitted == completed + pending`` at any time.
    - ``connections``: delegated or accepted, and not closed yet.
    - ``bytes_read``, ``bytes_written``: by all operations.
    - ``batches``: lists of results handed over.
    - ``poller``: ``"epoll"`` or ``"loop"``.

    >>> op = watcher.read(conn)
    >>> watcher.write(conn, b"hello", silent=True)
    >>> now = watcher.statistics()
    >>> now.submitted == now.completed + now.pending
    True
    >>> now.pending, now.connections, now.bytes_read, now.batches, now.poller
    (1, 1, 0, 0, 'epoll')
    """

    submitted: int
    completed: int
    pending: int
    connections: int
    bytes_read: int
    bytes_written: int
    batches: int
    poller: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """What a connection has under way, from :meth:`aiogaio.Watcher.pending`.

    - ``requests``: those that have not completed.
    - ``queued_bytes``: bytes of writes that the socket has not taken yet.

    >>> op = watcher.write(conn, bytes(1_000_000))  # more than the socket takes at once
    >>> pending = watcher.pending(conn)
    >>> pending.requests, pending.queued_bytes == 1_000_000 - op.size
    (1, True)
    """

    requests: int
    queued_bytes: int
