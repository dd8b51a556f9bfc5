"""Limits: how much may be pending, on one connection and on all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from aiogaio.errors import QueueFullError

#: What a connection may hold unless the program says otherwise. A peer that takes nothing costs no
#: more: 64 MiB of data, and a few hundred bytes for each request.
MAX_PENDING: Final = 65_536
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024

#: An int: for each connection. A pair: for each, and for all together; ``None`` is no limit.
Limit = int | tuple[int | None, int | None] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a watcher was told to hold at most."""

    pending: int | None
    pending_in_all: int | None
    queued_bytes: int | None
    queued_bytes_in_all: int | None

    @classmethod
    def of(cls, max_pending: Limit, max_queued_bytes: Limit) -> Self | None:
        """The limits that these arguments mean; ``None`` if there are none."""
        four = *_pair("max_pending", max_pending), *_pair("max_queued_bytes", max_queued_bytes)
        return None if four == (None, None, None, None) else cls(*four)

    @property
    def spare_the_first(self) -> bool:
        """Whether a request that finds its queue empty need not be counted.

        With the `max_pending` of the default one more or less does not matter.
        """
        return (
            self.pending in {None, MAX_PENDING}
            and self.pending_in_all is None
            and self.queued_bytes_in_all is None
        )

    @property
    def by_default(self) -> bool:
        """Whether nobody has asked for them: then they are there for what a slow peer can cost.

        Then of what is on its way from another thread only large writes are counted.
        """
        return self.spare_the_first and self.queued_bytes in {None, MAX_QUEUED_BYTES}

    def check_pending(self, pending: int, in_all: int) -> None:
        """Raise :exc:`QueueFullError` if one request more is too many."""
        if self.pending is not None and pending >= self.pending:
            raise QueueFullError(
                f"{pending} requests are pending on this connection, max_pending is "
                f"{self.pending}: submit more when some have completed"
            )
        if self.pending_in_all is not None and in_all >= self.pending_in_all:
            raise QueueFullError(
                f"{in_all} requests are pending in all, max_pending allows "
                f"{self.pending_in_all}: submit more when some have completed"
            )

    def check_bytes(self, count: int, queued: int, in_all: int) -> None:
        """The same for ``count`` bytes more. The first write in a queue may have any size."""
        limit = self.queued_bytes
        if limit is not None and count and queued and queued + count > limit:
            raise QueueFullError(
                f"{queued} bytes are queued on this connection, and {count} more are over "
                f"max_queued_bytes, {limit}: write more when some are sent"
            )
        limit = self.queued_bytes_in_all
        if limit is not None and count and in_all and in_all + count > limit:
            raise QueueFullError(
                f"{in_all} bytes are queued in all, and {count} more are over what "
                f"max_queued_bytes allows, {limit}: write more when some are sent"
            )


def _pair(name: str, limit: Limit) -> tuple[int | None, int | None]:
    each, in_all = limit if isinstance(limit, tuple) and len(limit) == 2 else (limit, None)
    for value in (each, in_all):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f"{name} takes an int for each connection, or a pair for each and for all "
                f"together, not {limit!r}"
            )
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    return each, in_all
