"""The ends of a connection's life: connect(2), shutdown(2), and whether the peer has hung up."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiogaio.connection import Record

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})
_HUNG_UP: Final = getattr(select, "POLLRDHUP", 0)


def connect(record: Record, address: Any) -> bool:
    """Begin to connect, or see how far it is: this may be asked again and again.

    Not SO_ERROR: a socket has an event also before it is connected, when there is no error yet.
    Raises :exc:`OSError` if it is refused, :exc:`BlockingIOError` (EAGAIN) if the queue of a Unix
    listener is full, of which no event tells.
    """
    number = record.connect_ex(address)
    if number == 0:
        return True
    if number in _UNDER_WAY:
        record.writable = False
        return False
    raise OSError(number, os.strerror(number))


def hung_up(record: Record) -> bool:
    """Whether the peer has ended its side, or all is over (poll(2)); nothing is consumed."""
    if not _HUNG_UP:  # not Linux: it is seen once all data before it has been read
        try:
            return not record.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return shows(record, _HUNG_UP)


def is_uncertain(record: Record) -> bool:
    """Whether there is the end, an error or urgent data: see ``Record.short_is_empty``."""
    return shows(record, _HUNG_UP | select.POLLPRI)


def shows(record: Record, events: int) -> bool:
    """Whether one of these events is there now, or an error (poll(2))."""
    poll = select.poll()
    poll.register(record.fileno(), events)
    return bool(poll.poll(0))


def shut_down(record: Record) -> OSError | None:
    """End the own side of the stream (shutdown(2)); the error, if it cannot be."""
    try:
        record.shutdown(socket.SHUT_WR)
    except OSError as error:
        return error
    return None
