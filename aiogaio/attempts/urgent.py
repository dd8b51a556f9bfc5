"""Receiving from a stream with urgent data in it, where EAGAIN does not prove that it is empty."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final

from aiogaio.connection import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

_SIOCATMARK: Final = 0x8905  # asm-generic/sockios.h; in no module of Python
#: Signals that come one upon another: more of them than this are no coincidence.
_TRIES: Final = 100


class MarkedRecord(Record):
    """A TCP socket in which there may be a mark of urgent data (tcp(7)).

    When the mark comes next, recv(2) fails with EAGAIN while a signal is pending in the thread,
    even if more has arrived behind it (Linux, tcp_recvmsg). No edge tells of that again, so it is
    poll(2) that says whether the socket is empty. If it is, and not at a mark, none is left.
    """

    __slots__ = ()

    def recv(self, room: int, flags: int = 0, /) -> bytes:
        """Receive, as a socket does."""
        return self._insist(super().recv, room, flags)  # type: ignore[no-any-return]

    def recv_into(self, buffer: WriteableBuffer, *sizes: int) -> int:
        """Receive into a buffer, as a socket does."""
        return self._insist(super().recv_into, buffer, *sizes)  # type: ignore[no-any-return]

    def recvmsg(self, *sizes: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """Receive with ancillary data, as a socket does."""
        return self._insist(super().recvmsg, *sizes)  # type: ignore[no-any-return]

    def _insist(self, receive: Callable[..., Any], *args: Any) -> Any:
        for _ in range(_TRIES):
            try:
                return receive(*args)
            except BlockingIOError:
                if not self.events(select.POLLIN):
                    if not self.ask(_SIOCATMARK):
                        self.short_is_empty = True
                        self.__class__ = Record  # type: ignore[assignment]
                    raise
        return receive(*args)


def expect_marks(record: Record) -> None:
    """Urgent data may be in the stream: see :class:`MarkedRecord`."""
    if type(record) is Record and record.is_tcp:
        record.short_is_empty = False
        record.__class__ = MarkedRecord


def look_for_marks(record: Record) -> None:
    """The same if there may be a mark of which no event tells: its byte was received already."""
    if type(record) is not Record or not record.is_tcp:
        return
    if record.events(select.POLLIN) & select.POLLIN or record.ask(_SIOCATMARK):
        expect_marks(record)
