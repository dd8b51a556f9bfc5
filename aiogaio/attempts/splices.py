"""Relaying: bytes of one connection sent to another, by splice(2) or through one shared buffer.

Small messages go through the buffer: a receive and a send cost less than two splices and the third
that only says EAGAIN. When the buffer is filled there is more than that, and the pipe takes over
until little comes again.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from aiogaio.connection import Record

#: Bytes that are copied rather than spliced.
_LITTLE: Final = 16 * 1024
#: Bytes asked for in one step, and of a pipe if the system lets it grow so far.
_STEP: Final = 256 * 1024
_CAN_SPLICE: Final = hasattr(os, "splice")
_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_F_SETPIPE_SZ: Final = 1031  # linux/fcntl.h; in the fcntl module of some Pythons only
#: No descriptors for a pipe: go on without.
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE})
#: These descriptors cannot be spliced.
_NOT_SUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class Pipes:
    """The pipes through which a watcher splices, and the buffer for what cannot be spliced.

    A pipe is taken while there are bytes in it, so that an idle relay holds none.
    """

    __slots__ = ("_all", "_free", "buffer")

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []
        self._all: set[tuple[int, int]] = set()
        self.buffer: bytearray = bytearray(_LITTLE)

    def take(self) -> tuple[int, int]:
        """An empty pipe, ``(for reading, for writing)``. Raises :exc:`OSError`."""
        if self._free:
            return self._free.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._all.add(pipe)
        try:
            fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, _STEP)
        except OSError:  # more than this user may have: it works with less
            pass
        return pipe

    def give_back(self, pipe: tuple[int, int]) -> None:
        """Take back a pipe that is empty again."""
        self._free.append(pipe)

    def drop(self, pipe: tuple[int, int]) -> None:
        """Close a pipe that was taken, with what is in it."""
        if pipe in self._all:
            self._all.remove(pipe)
            for descriptor in pipe:
                os.close(descriptor)

    def close(self) -> None:
        """Close all of them."""
        self._free.clear()
        for pipe in list(self._all):
            self.drop(pipe)


class Way:
    """One direction of a relay."""

    __slots__ = (
        "_bulk",
        "_ended",
        "_held",
        "_pipe",
        "_pipes",
        "_rest",
        "_splices",
        "done",
        "sent",
        "source",
        "target",
    )

    def __init__(self, source: Record, target: Record, pipes: Pipes) -> None:
        self.source: Record = source
        self.target: Record = target
        self.sent: int = 0  # bytes
        self.done: bool = False  # the end has been passed on
        self._pipes = pipes
        self._pipe: tuple[int, int] | None = None
        self._held = 0  # bytes in the pipe
        self._rest: bytes | bytearray = b""  # bytes to be sent first
        self._ended = False  # the source has
        self._splices = _CAN_SPLICE
        self._bulk = False  # much is coming

    @property
    def sends(self) -> bool:
        """Whether there are bytes to be sent; nothing is received meanwhile."""
        return bool(self._held or self._rest)

    @property
    def receives(self) -> bool:
        """Whether bytes are to be received."""
        return not (self._ended or self._held or self._rest)

    def move(self, steps: int) -> bool:
        """Receive and send, at most so often; true if it could go on at once.

        Raises :exc:`OSError` for all but EAGAIN.
        """
        for _ in range(steps):
            if self._held or self._rest:
                if not self.target.writable:
                    return False
                self._send()
            elif self._ended:
                self._end()
                return False
            elif self.source.rest is not None:
                self._rest = self.source.take_rest(_STEP)
            elif self.source.readable:
                self._receive()
            else:
                return False
        if self._ended and not self.sends:
            self._end()
            return False
        return True

    def close(self) -> None:
        """Give up; bytes on their way are lost."""
        if self._pipe is not None:
            self._pipes.drop(self._pipe)
            self._pipe = None
        self._held, self._rest = 0, b""

    def _receive(self) -> None:
        source = self.source
        try:
            received = self._splice_in() if self._splices and self._bulk else self._copy()
        except BlockingIOError:
            source.readable = False
            return
        except OSError as error:
            source.latch(error)
            raise
        if received == 0:
            if source.latched is not None:
                raise OSError(*source.latched.args)
            self._ended = True

    def _splice_in(self) -> int | None:
        """Bytes received into a pipe; ``None`` if this source cannot do it."""
        try:
            self._pipe = self._pipe or self._pipes.take()
            self._held = os.splice(self.source.fileno(), self._pipe[1], _STEP, flags=_FLAGS)
        except BlockingIOError:
            self._held = 0
        except OSError as error:
            self._release_pipe()
            if error.errno not in _NOT_SUPPORTED | _SHORTAGE:
                raise
            self._splices = False
            return None
        self._bulk = self._held >= _LITTLE
        if not self._held:
            # Nothing there, the end, or urgent data next, which splice(2) never passes (Linux,
            # tcp_read_sock): only a receive can tell which.
            self._release_pipe()
            return self._copy()
        return self._held

    def _copy(self) -> int:
        """Bytes received into the shared buffer, and from there into one of their own."""
        source, buffer = self.source, self._pipes.buffer
        received = source.recv_into(buffer)
        self._bulk = received == len(buffer)
        if received and not self._bulk and source.short_is_empty:
            source.readable = False
        self._rest = buffer[:received]
        return received

    def _send(self) -> None:
        try:
            if self._rest:
                sent = self.target.send(self._rest)
                self._rest = self._rest[sent:]
            else:
                sent = self._splice_out()
        except BlockingIOError:
            self.target.writable = False
            return
        except OSError as error:
            self.target.latch(error)
            raise
        self.sent += sent

    def _splice_out(self) -> int:
        assert self._pipe is not None
        try:
            sent = os.splice(self._pipe[0], self.target.fileno(), self._held, flags=_FLAGS)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self._splices = False
            self._rest = os.read(self._pipe[0], self._held)
            self._held -= len(self._rest)
            sent = 0
        else:
            self._held -= sent
        if not self._held:
            self._release_pipe()
        return sent

    def _release_pipe(self) -> None:
        """The pipe is empty: let another have it."""
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None

    def _end(self) -> None:
        """Pass the end on."""
        self.done = True
        try:
            self.target.shutdown(socket.SHUT_WR)
        except OSError:  # gone already, as the other way will find; or no socket
            pass
