"""Connection: one delegated descriptor. The handle that programs hold, and the record behind it.

Two objects, since two sides hold them. The program holds the :class:`Connection`; when it lets go
of it and nothing is pending, the connection is closed. The watcher holds the :class:`Record`:
the socket itself, its two queues of pending requests, its readiness and its latched error.
Pending operations hold the handle, so a connection with a request under way is never collected.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Any, overload

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

    from aiogaio.operation import Operation
    from aiogaio.watcher import Watcher

_INT = struct.Struct("i")
#: What ends a stream for good without an end in order. Not EPIPE: a send gets it after a FIN too.
_STREAM_ERRORS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
#: Those of them that a connection may survive, as poll(2) tells.
_PASSING_ERRORS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)


class Record(_socket.socket):
    """The watcher's side of a connection: a socket with state.

    It derives from the C socket: one object less for each connection, and no bound method between
    an attempt and its system call. A queue is a chain through its operations, since most
    connections have at most one request pending for a direction and an empty ``deque`` alone
    takes 624 bytes.
    """

    __slots__ = (
        "__weakref__",
        "behind",
        "doomed",
        "hangups",
        "in_backlog",
        "latched",
        "listening",
        "open",
        "plain",
        "queued_bytes",
        "read_paused",
        "read_watched",
        "readable",
        "reads",
        "reads_tail",
        "refusal",
        "rest",
        "shared",
        "short_is_empty",
        "torn",
        "writable",
        "write_paused",
        "write_watched",
        "writes",
        "writes_tail",
    )

    reads: Operation | None
    reads_tail: Operation | None
    writes: Operation | None
    writes_tail: Operation | None

    def __init__(self, family: int, kind: int, proto: int, fd: int, *, listening: bool) -> None:
        super().__init__(family, kind, proto, fd)
        self.open: bool = True
        self.listening: bool = listening
        self.reads = self.reads_tail = None
        self.writes = self.writes_tail = None
        # Somebody else has the socket, too: its options are not ours alone.
        self.shared: bool = False
        # What stands in the queues behind their first: for the limits, and whoever asks.
        self.behind: int = 0
        # Bytes of writes that were not sent at the call, and still are not.
        self.queued_bytes: int = 0
        # Who waits for the peer to hang up. They stand in no queue.
        self.hangups: list[Operation] | None = None
        # Bytes that were received but not asked for yet: they come first in the next read.
        self.rest: bytearray | None = None
        # A read is one recv(2) and nothing else: see `plan`.
        self.plain: bool = kind == socket.SOCK_STREAM and not listening
        # Readiness: false only after an attempt has proven it, true again with the next event.
        self.readable: bool = True
        self.writable: bool = not listening  # so that a write on it takes the long way, and raises
        # A receive that is shorter than the room has emptied a TCP socket (epoll(7), question 9).
        # Not a Unix socket: it stops at passed descriptors. Not after an event that tells of the
        # end, an error or urgent data either: the next receive would find the end or stops at the
        # mark, and no further edge tells of it.
        self.short_is_empty: bool = self.is_tcp
        # Whether the poller reports this direction.
        self.read_watched: bool = False
        self.write_watched: bool = False
        # Its multishot request waits for room among the results, or for the system to recover.
        self.read_paused: bool = False
        # Its writes rest until the system has memory again.
        self.write_paused: bool = False
        # It waits in the watcher's backlog to go on without an event.
        self.in_backlog: bool = False
        # The error that ended the stream, whichever call it was that the system told.
        self.latched: OSError | None = None
        # The error of a write that was cut in the middle, until its result has been handed over.
        self.torn: Exception | None = None
        # The error of a connect that failed, until its result has been handed over.
        self.refusal: Exception | None = None
        # The last of the writes behind it that are still to be cancelled, and the cause.
        self.doomed: tuple[Operation, Exception] | None = None

    @property
    def is_tcp(self) -> bool:
        """Whether it is a TCP socket, listening or not."""
        return (
            self.type == socket.SOCK_STREAM
            and self.family in (socket.AF_INET, socket.AF_INET6)
            and self.proto in (0, socket.IPPROTO_TCP)
        )

    @property
    def pending(self) -> int:
        """How much stands in the queues."""
        first = (self.reads is not None) + (self.writes is not None)
        return self.behind + first + len(self.hangups or ())

    def events(self, asked: int) -> int:
        """Those of the events asked for that are there now, and errors and hang-ups (poll(2))."""
        poll = select.poll()
        poll.register(self.fileno(), asked)
        ready = poll.poll(0)
        return ready[0][1] if ready else 0

    def ask(self, request: int) -> int:
        """The number that an ioctl(2) answers with."""
        answer = fcntl.ioctl(self.fileno(), request, _INT.pack(0))
        return int(_INT.unpack(answer)[0])

    def latch(self, error: OSError, *, final: bool = False) -> None:
        """Keep the error that ended the stream: the system tells it once, to any call that asks.

        Without it a receive after a send that failed would see a clean end. Unless it is known to
        be ``final``, an error of the network may pass, and the stream go on (IP_RECVERR, ip(7)).
        """
        if error.errno in _PASSING_ERRORS and not (final or self.events(0) & select.POLLHUP):
            return
        if self.latched is None and error.errno in _STREAM_ERRORS:
            self.latched = OSError(*error.args)  # not the one delivered: a program may raise that

    def keep(self, data: ReadableBuffer) -> None:
        """Let ``data`` come first in the next read."""
        if self.rest is None:
            self.rest = bytearray(data)
        else:
            self.rest += data
        self.readable = True
        self.plan()

    def take_rest(self, room: int) -> bytes:
        """Up to ``room`` of the bytes kept."""
        rest = self.rest
        assert rest is not None
        data = bytes(rest[:room])
        del rest[:room]
        if not rest:
            self.rest = None
            self.plan()
        return data

    def plan(self) -> None:
        """Decide anew whether reads are plain."""
        self.plain = (
            self.open
            and not self.listening
            and self.type == socket.SOCK_STREAM
            and self.rest is None
            and self.hangups is None
            and self.refusal is None
        )

    # The tails are set only while a queue holds two operations or more.

    def append_read(self, operation: Operation) -> None:
        """Queue a read, or an accept."""
        last = self.reads_tail or self.reads
        if last is None:
            self.reads = operation
        else:
            _link(last, operation)
            self.reads_tail = operation
            self.behind += 1

    def append_write(self, operation: Operation) -> None:
        """Queue a write."""
        last = self.writes_tail or self.writes
        if last is None:
            self.writes = operation
        else:
            _link(last, operation)
            self.writes_tail = operation
            self.behind += 1

    def prepend_write(self, operation: Operation) -> None:
        """Put a write back to the head of its queue."""
        first = self.writes
        self.writes = operation
        if first is not None:
            _link(operation, first)
            self.writes_tail = self.writes_tail or first
            self.behind += 1

    def remove_read(self, operation: Operation) -> None:
        """Take a read, or an accept, out of its queue, wherever it stands."""
        if operation is self.reads:
            self.reads = operation._next
            self.read_paused = False
            if self.rest is not None:  # for which the next one need not wait
                self.readable = True
        if operation is self.reads_tail:
            self.reads_tail = operation._previous
        if self.reads_tail is self.reads:
            self.reads_tail = None
        self.behind -= _unlink(operation)

    def remove_first_writes(self, operations: Sequence[Operation]) -> None:
        """Take the first writes out of their queue, all of these, in their order."""
        following = operations[-1]._next
        self.writes = following
        if following is None:
            self.writes_tail = None
            self.behind -= len(operations) - 1
        else:
            following._previous = None
            self.behind -= len(operations)
            if self.writes_tail is following:
                self.writes_tail = None

    def remove_write(self, operation: Operation) -> None:
        """Take a write out of its queue, wherever it stands."""
        if self.doomed is not None and self.doomed[0] is operation:
            previous = operation._previous
            self.doomed = None if previous is None else (previous, self.doomed[1])
        if operation is self.writes:
            self.writes = operation._next
        if operation is self.writes_tail:
            self.writes_tail = operation._previous
        if self.writes_tail is self.writes:
            self.writes_tail = None
        self.behind -= _unlink(operation)


def _link(last: Operation, operation: Operation) -> None:
    last._next = operation
    operation._previous = last


def _unlink(operation: Operation) -> bool:
    """Take it out of its chain; whether it was not the only one there."""
    following, previous = operation._next, operation._previous
    if following is not None:
        following._previous = previous
    if previous is not None:
        previous._next = following
    operation._next = operation._previous = None
    return following is not None or previous is not None


class Connection:
    """A delegated descriptor, and the handle for all requests on it.

    It has no ``recv`` or ``send``: the watcher alone reads and writes. Made by
    :meth:`aiogaio.Watcher.delegate`, by a request on a socket, or by an accept; never directly.

    ``context`` is free for the program's own state of this connection.

    >>> conn.context = {"user": "ann"}
    >>> op = watcher.write(conn, b"hello")
    >>> op.context["user"]
    'ann'
    >>> hasattr(conn, "recv")
    False
    """

    __slots__ = ("__weakref__", "_record", "_watcher", "context")

    context: Any

    def __init__(self, watcher: Watcher, record: Record) -> None:
        self._watcher = watcher
        self._record = record
        self.context = None

    @property
    def watcher(self) -> Watcher:
        """The watcher that owns the descriptor.

        >>> conn.watcher is watcher
        True
        """
        return self._watcher

    @property
    def closed(self) -> bool:
        """True once the connection was freed, or its watcher closed.

        >>> conn.closed
        False
        >>> conn.close()
        >>> conn.closed
        True
        """
        return not self._record.open

    @property
    def family(self) -> socket.AddressFamily | int:
        """The address family (address_families(7)), as ``socket.socket.family``.

        >>> conn.family == socket.AF_UNIX
        True
        """
        family = self._record.family
        try:
            return socket.AddressFamily(family)
        except ValueError:
            return family

    @property
    def type(self) -> socket.SocketKind | int:
        """The socket's type (socket(2)), as ``socket.socket.type``.

        >>> conn.type == socket.SOCK_STREAM
        True
        """
        kind = self._record.type
        try:
            return socket.SocketKind(kind)
        except ValueError:
            return kind

    @property
    def peername(self) -> Any:
        """The peer's address (getpeername(2)), ``None`` if it is not connected or closed.

        >>> op = watcher.accept(socket.create_server(("127.0.0.1", 0)))
        >>> client = socket.create_connection(op.conn.sockname)
        >>> [op] = await watcher.wait_io()
        >>> op.accepted.peername == client.getsockname()
        True
        >>> op.conn.peername  # a listener has no peer: None
        """
        try:
            return self._record.getpeername()
        except OSError:
            return None

    @property
    def sockname(self) -> Any:
        """The own address (getsockname(2)), ``None`` once closed.

        >>> listener = watcher.delegate(socket.create_server(("127.0.0.1", 0)))
        >>> host, port = listener.sockname
        >>> host, port > 0
        ('127.0.0.1', True)
        """
        try:
            return self._record.getsockname()
        except OSError:
            return None

    def fileno(self) -> int:
        """The descriptor's number, -1 once closed. Reading or writing it is the watcher's alone.

        >>> os.get_blocking(conn.fileno())
        False
        >>> conn.close()
        >>> conn.fileno()
        -1
        """
        return self._record.fileno()

    @overload
    def getsockopt(self, level: int, option: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...
    def getsockopt(self, level: int, option: int, length: int = 0, /) -> int | bytes:
        """As ``socket.socket.getsockopt`` (getsockopt(2)); raises :exc:`OSError` once closed.

        Looking at ``SO_ERROR`` takes the error from the system (socket(7)): that of a stream is
        kept for the next read, which reports it.

        >>> conn.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        True
        """
        value: int | bytes
        if length:
            value = self._record.getsockopt(level, option, length)
        else:
            value = self._record.getsockopt(level, option)
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            number = value if isinstance(value, int) else int.from_bytes(value, sys.byteorder)
            self._record.latch(OSError(number, os.strerror(number)))
        return value

    @overload
    def setsockopt(self, level: int, option: int, value: int | ReadableBuffer, /) -> None: ...
    @overload
    def setsockopt(self, level: int, option: int, value: None, length: int, /) -> None: ...
    def setsockopt(self, *arguments: Any) -> None:
        """As ``socket.socket.setsockopt`` (setsockopt(2)); raises :exc:`OSError` once closed.

        >>> conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        >>> conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        1
        """
        self._record.setsockopt(*arguments)

    def close(self) -> None:
        """Close the connection now, as :meth:`aiogaio.Watcher.free`; idempotent.

        >>> conn.close()
        >>> peer.recv(16)  # the end
        b''
        >>> conn.close()
        """
        self._watcher._free(self._record)

    def __repr__(self) -> str:
        record = self._record
        if not record.open:
            return "<Connection closed>"
        kind = "listening " if record.listening else ""
        peer = "" if record.listening else f" peer={self.peername!r}"
        return f"<Connection {kind}fd={record.fileno()} at={self.sockname!r}{peer}>"

    def __del__(self) -> None:
        # Runs in whichever thread lets go of it, and after the loop is closed, too. An instance
        # whose construction failed has no record.
        record = getattr(self, "_record", None)
        if record is not None and record.open:
            try:  # the warning may be an error, and has to come while there is something to show
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self._watcher._release_orphan(record)
