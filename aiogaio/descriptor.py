"""Descriptors that are no sockets: pipes, ttys, eventfd, timerfd, inotify, tun and the like."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Self

if sys.platform != "win32":
    import termios

from aiogaio.connection import Record
from aiogaio.errors import UnsupportedConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer


class FileRecord(Record):
    """A record whose attempts are read(2) and write(2).

    The C socket below wants to see a socket when it is made. It gets one, in whose place the
    duplicate is put at once: so it closes the right thing, and the rest of the package need not
    know.
    """

    __slots__ = ()

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM  # read(2) returning 0 is the end

    @classmethod
    def duplicate_of(cls, number: int) -> Self:
        """A record of a duplicate of ``number``. Raises :exc:`OSError`."""
        place = socket.socket(socket.AF_UNIX).detach()
        record = cls(socket.AF_UNIX, socket.SOCK_STREAM, 0, place, listening=False)
        try:
            os.dup2(number, place, inheritable=False)
            os.set_blocking(place, False)
        except BaseException:
            record.open = False
            record.close()
            raise
        return record

    def recv(self, room: int, flags: int = 0, /) -> bytes:
        """Receive, as a socket does."""
        data = os.read(self.fileno(), room)
        if not data and self._is_silent():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return data

    def recv_into(self, buffer: WriteableBuffer, *_: int) -> int:
        """Receive into a buffer, as a socket does."""
        size = os.readv(self.fileno(), [buffer])
        if not size and self._is_silent():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return size

    def _is_silent(self) -> bool:
        """Whether a read of nothing is not the end, of which poll(2) shows a hang-up.

        A FIFO that no writer has opened yet gives nothing (fifo(7)), and so does a terminal in
        noncanonical mode with a MIN and a TIME of zero (termios(3)); in canonical mode it is a ^D.
        """
        number = self.fileno()
        events = self.events(select.POLLIN)
        over = bool(events & (select.POLLHUP | select.POLLERR))
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            return not over or bool(events & select.POLLIN)  # by a writer who has come since
        try:
            return not over and not termios.tcgetattr(number)[3] & termios.ICANON
        except termios.error:  # no terminal
            return False

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Send, as a socket does."""
        return os.write(self.fileno(), data)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], *_: Any) -> int:
        """Send several buffers, as a socket does."""
        return os.writev(self.fileno(), list(buffers))


def duplicate(source: object, check: Callable[..., None]) -> FileRecord | socket.socket:
    """A duplicate of what ``source``, a number or an object with ``fileno()``, stands for.

    A record, or if it is a socket, a socket object. ``source`` stays its owner's.

    :param check: called with the number and ``is_socket``; raises if it has an owner.
    :raises UnsupportedConnectionError: not an open descriptor, or one that cannot be waited for:
        plain files and directories are always ready.
    """
    number = _number_of(source)
    try:
        mode = os.fstat(number).st_mode
    except (OSError, OverflowError) as error:
        raise UnsupportedConnectionError(
            f"cannot delegate descriptor {number} ({error}): pass an open one"
        ) from None
    check(number, is_socket=stat.S_ISSOCK(mode))
    if stat.S_ISSOCK(mode):
        return socket.socket(fileno=os.dup(number))
    if not _can_be_awaited(number):
        raise UnsupportedConnectionError(
            f"cannot delegate descriptor {number}: it is a plain file or another one that is "
            "always ready; use sendfile() to send it, or a thread"
        )
    return FileRecord.duplicate_of(number)


def _number_of(source: object) -> int:
    number = source
    if not isinstance(source, int):
        try:
            number = source.fileno()  # type: ignore[attr-defined]
        except Exception as error:  # closed, detached, or none of its own
            raise UnsupportedConnectionError(
                f"cannot delegate {source!r} ({error}): pass a socket, a descriptor, or an object "
                "with fileno()"
            ) from None
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UnsupportedConnectionError(
            f"cannot delegate {source!r}: pass a socket, a descriptor, or an object with fileno()"
        )
    return number


def _can_be_awaited(number: int) -> bool:
    """Whether epoll(7) accepts it; elsewhere, whether it is no plain file."""
    if not hasattr(select, "epoll"):
        mode = os.fstat(number).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode))
    with select.epoll() as epoll:
        try:
            epoll.register(number, 0)
        except PermissionError:
            return False
    return True
