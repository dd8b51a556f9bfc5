"""The ends of a connection's life: connect(2), shutdown(2), and whether the peer has hung up."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import _socket

    from aiogaio.connection import Record

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})
_LINGER: Final = struct.Struct("ii")
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
    # Not an error alone: a queue of errors that nobody reads shows it, too (MSG_ERRQUEUE, recv(2)).
    # What is no socket has none of these, and a pipe without a reader shows nothing but an error.
    signs = _HUNG_UP | select.POLLHUP
    if record.family == socket.AF_UNSPEC:
        signs |= select.POLLERR
    return bool(record.events(_HUNG_UP) & signs)


def is_uncertain(record: Record) -> bool:
    """Whether there is the end, an error or urgent data: see ``Record.short_is_empty``."""
    return bool(record.events(_HUNG_UP | select.POLLPRI))


def forgo_linger(sock: _socket.socket) -> None:
    """Have close(2) not wait, as it does with a time in SO_LINGER, of a non-blocking socket too.

    The system sends what is left all the same (Linux, inet_release). A time of zero, which makes a
    reset of the end, stays.
    """
    try:
        lingers, seconds = _LINGER.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
        )
        if lingers and seconds:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(0, 0))
    except OSError:  # no socket
        pass


def shut_down(record: Record) -> OSError | None:
    """End the own side of the stream (shutdown(2)); the error, if it cannot be."""
    try:
        record.shutdown(socket.SHUT_WR)
    except OSError as error:
        return error
    return None
