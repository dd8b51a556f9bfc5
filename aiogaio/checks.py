"""Checks: what a request brings is looked at here, and its operation made, before it is submitted.

Misuse raises; nothing has been submitted, delegated or closed then. The state of a connection is
no misuse: it arrives as a result.
"""

from __future__ import annotations

import contextlib
import math
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiogaio import attempts
from aiogaio.attempts.messages import new_message
from aiogaio.attempts.vectors import IOV_MAX
from aiogaio.connection import Connection
from aiogaio.delegation import check_supported, give_back, is_listening, spend, take_over
from aiogaio.descriptor import duplicate
from aiogaio.errors import (
    EmptyBufferError,
    UnsupportedConnectionError,
    WatcherClosedError,
)
from aiogaio.limits import MAX_PENDING, MAX_QUEUED_BYTES
from aiogaio.operation import (
    Accept,
    Armed,
    ArmedMessage,
    Lasting,
    Operation,
    OpType,
    ReadFull,
    ReadInto,
    Write,
    WriteV,
    octets_of,
    start,
)
from aiogaio.proactor import Proactor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from aiogaio.connection import Record
    from aiogaio.instruments import Instrument
    from aiogaio.limits import Limits

_Into = TypeVar("_Into", bound=ReadInto)
_Armed = TypeVar("_Armed", bound=Lasting)
_Vector = TypeVar("_Vector", bound=WriteV)

_NUMBERS: Final = frozenset({int, float})
LARGEST: Final = 1 << 30  # more in one receive or poll is a mistake, not a wish


class Checks(Proactor):
    """Connections by what stands for them, and operations out of arguments."""

    __slots__ = ("_spent",)

    def __init__(
        self,
        *,
        buffer_size: int,
        poller: str,
        batch_size: int,
        limits: Limits | None,
        instrument: Instrument | None,
    ) -> None:
        check_size("buffer_size", buffer_size)
        check_size("batch_size", batch_size)
        # Sockets delegated as such stand for their connections as long as they live.
        self._spent: weakref.WeakKeyDictionary[socket.socket, Connection] = (
            weakref.WeakKeyDictionary()
        )
        super().__init__(
            buffer_size=buffer_size,
            poller=poller,
            batch_size=batch_size,
            limits=limits,
            instrument=instrument,
        )

    def _make_read(
        self,
        conn: object,
        buffer: WriteableBuffer | None,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        multishot: bool,
    ) -> tuple[Operation, float | None]:
        length = 0 if buffer is None else room_of(buffer)
        if buffer is not None and multishot:
            raise ValueError(
                "a multishot read brings its own bytes for each arrival: pass no buffer"
            )
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._connection_of(conn, listening=False)
        if buffer is not None:
            return _new_into(ReadInto(), connection, buffer, length, context), due
        if connection._record.type != socket.SOCK_STREAM:  # say who sent it, and if it was cut
            if multishot:
                return _new_armed_message(connection, 0, context, timeout, due), due
            return new_message(connection, context, 0), due
        if not multishot:
            return start(Operation(), OpType.READ, connection, context), due
        return arm(Armed(), OpType.READ, connection, context, timeout, due), due

    def _make_read_full(
        self,
        conn: object,
        buffer: WriteableBuffer,
        context: Any,
        timeout: float | None,
        deadline: float | None,
    ) -> tuple[Operation, float | None]:
        length = room_of(buffer)
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._connection_of(conn, listening=False)
        return _new_into(ReadFull(), connection, buffer, length, context), due

    def _make_write(
        self,
        conn: object,
        data: ReadableBuffer,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        silent: bool,
    ) -> tuple[Write, float | None]:
        length = length_of(data)
        due = self._due(timeout, deadline)
        self._check_limits(conn, length)
        connection = self._connection_of(conn, listening=False)
        return new_write(connection, data, length, context, silent), due

    def _make_accept(
        self,
        listener: object,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        multishot: bool,
    ) -> tuple[Operation, float | None]:
        due = self._due(timeout, deadline)
        self._check_limits(listener)
        connection = self._connection_of(listener, listening=True)
        if not multishot:
            return start(Accept(), OpType.ACCEPT, connection, context), due
        return arm(Armed(), OpType.ACCEPT, connection, context, timeout, due), due

    def _make_message(
        self,
        conn: object,
        ancillary_size: int,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        multishot: bool,
    ) -> tuple[Operation, float | None]:
        if isinstance(ancillary_size, bool) or not isinstance(ancillary_size, int):
            raise TypeError("ancillary_size takes a number of bytes: see socket.CMSG_SPACE()")
        if not 0 <= ancillary_size <= LARGEST:
            raise ValueError(f"ancillary_size must be from 0 to {LARGEST}, not {ancillary_size}")
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._connection_of(conn, listening=False)
        if multishot:
            return _new_armed_message(connection, ancillary_size, context, timeout, due), due
        return new_message(connection, context, ancillary_size), due

    def _due(self, timeout: float | None, deadline: float | None) -> float | None:
        """The loop's time at which the operation expires; ``None`` for never."""
        if timeout is None:
            if deadline is None:
                return None
            name, value, start = "deadline", deadline, 0.0
        elif deadline is not None:
            raise ValueError("pass a timeout or a deadline, not both")
        else:
            name, value, start = "timeout", timeout, self._clock()
        if not isinstance(value, int | float):
            raise TypeError(f"{name} takes seconds as a number, not {type(value).__name__!r}")
        if not value >= 0:  # false for NaN as well
            raise ValueError(f"{name} must not be negative or NaN, but is {value!r}")
        if not value:  # past by any clock, also one that stood still since the call began
            return 0.0
        try:
            return None if value == math.inf else start + value
        except OverflowError:  # an int that no clock reaches
            return None

    def _connection_of(self, conn: object, *, listening: bool | None = None) -> Connection:
        """The connection that ``conn`` is or stands for; a socket is delegated on the spot.

        ``listening`` is what the request needs it to be, if that matters.
        """
        self._check_open()
        with self._inbox.lock:  # two threads may bring the same socket
            connection = self._delegated(conn)
            if connection is None:
                return self._delegate(conn, listening)
        check_listening(conn, connection._record.listening, listening)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise WatcherClosedError("the watcher is closed: make another one")
        if self._loop.is_closed():
            self._close()
            raise WatcherClosedError("the watcher's event loop is closed, and so is the watcher")

    def _check_limits(self, conn: object, count: int = 0) -> None:
        """Raise :exc:`QueueFullError` if a request of ``count`` bytes is one too many."""
        limits = self._limits
        if limits is None or self._closed:  # what comes next raises for that
            return
        connection = self._delegated(conn)
        requests, queued = 0, 0
        if connection is not None:
            record, exact = connection._record, self._exact
            posted = self._posted.get(record, (0, 0))
            queued = record.queued_bytes + posted[1]
            behind = record.behind + 2 + posted[0]  # the first of each direction with them
            if not exact and behind < MAX_PENDING and queued + count <= MAX_QUEUED_BYTES:
                return
            requests = record.pending + posted[0]
            if exact and limits.pending is not None and requests >= limits.pending:
                requests = self._pending(record) + posted[0]  # exactly, which takes its time
        pending = self._submitted - self._collected - len(self._ready) + self._shots - self._silent
        posted_in_all = list(self._posted.values())
        limits.check_pending(requests, pending + sum(number for number, _ in posted_in_all))
        in_all = self._queued_bytes + sum(size for _, size in posted_in_all)
        limits.check_bytes(count, queued, in_all)

    def _delegated(self, conn: object) -> Connection | None:
        """The connection that ``conn`` is, or stands for since it was delegated here."""
        if isinstance(conn, Connection):
            if conn._watcher is not self:
                raise UnsupportedConnectionError(
                    f"{conn!r} belongs to another watcher: submit the request to its own, "
                    "conn.watcher"
                )
            return conn
        return self._spent.get(conn) if isinstance(conn, socket.socket) else None

    def _delegate(self, conn: object, listening: bool | None) -> Connection:
        if self._inbox.closed:  # since the caller looked
            raise WatcherClosedError("the watcher is closed: make another one")
        sock = check_supported(conn)
        self._check_no_transport(sock.fileno())
        if self._serves(sock.fileno()):
            raise UnsupportedConnectionError(
                f"descriptor {sock.fileno()} is delegated already, by way of another socket "
                "object: use its Connection"
            )
        is_so = is_listening(sock)
        check_listening(sock, is_so, listening)
        record = take_over(sock, listening=is_so)
        try:
            self._register(record)
        except BaseException:
            give_back(sock, record)
            raise
        if record.read_watched and not is_so:  # edge-triggered, and what was there is told no more
            attempts.look_for_marks(record)
        spend(sock)
        self._spent[sock] = connection = self._opened(record)
        return connection

    def _delegate_descriptor(self, source: object) -> Connection:
        """Serve a duplicate of a descriptor that stays the caller's."""
        self._check_open()
        found = duplicate(source, self._check_descriptor)
        if isinstance(found, socket.socket):
            try:
                connection = self._connection_of(found)
            except BaseException:
                found.close()
                raise
            connection._record.shared = True
            return connection
        try:
            self._register(found)
        except BaseException:
            found.open = False
            found.close()
            raise
        return self._opened(found)

    def _check_descriptor(self, number: int, *, is_socket: bool) -> None:
        """Raise :exc:`UnsupportedConnectionError` if the descriptor has an owner already."""
        if self._serves(number):
            raise UnsupportedConnectionError(
                f"descriptor {number} is delegated already: use its Connection"
            )
        # Where the check would take away a reader of the caller's (uvloop), it is left out for
        # what stays the caller's.
        if is_socket or hasattr(self._loop, "_ensure_fd_no_transport"):
            self._check_no_transport(number)

    def _opened(self, record: Record) -> Connection:
        connection = Connection(self, record)  # type: ignore[arg-type]  # each is a Watcher
        if self._instrument is not None:
            self._instrument.connection_opened(connection)
        return connection

    def _check_no_transport(self, number: int) -> None:
        """Raise :exc:`UnsupportedConnectionError` if an asyncio transport owns the descriptor."""
        # Stock asyncio has a check without side effects; uvloop makes it in remove_reader.
        check = getattr(self._loop, "_ensure_fd_no_transport", self._loop.remove_reader)
        try:
            check(number)
        except RuntimeError as error:
            raise UnsupportedConnectionError(
                f"{error}, which goes on reading it: pass a socket that no transport owns"
            ) from None

    def _check_operation(self, op: Operation) -> None:
        if not isinstance(op, Operation):
            raise TypeError(f"cancel() takes an Operation, not {type(op).__name__!r}")
        if op.conn._watcher is not self:
            raise UnsupportedConnectionError(
                f"{op!r} belongs to another watcher: pass it to its own, op.conn.watcher"
            )


def is_time(timeout: object, deadline: object) -> bool:
    """Whether one of them is given, and right: what the short way of a request has to know."""
    if timeout is None:
        return type(deadline) in _NUMBERS and deadline >= 0  # type: ignore[operator]
    return deadline is None and type(timeout) in _NUMBERS and timeout >= 0  # type: ignore[operator]


def new_write(
    conn: Connection, data: ReadableBuffer, length: int, context: Any, silent: bool
) -> Write:
    """A write that has still to be sent."""
    operation = start(Write(), OpType.WRITE, conn, context)
    operation.buffer, operation.length = data, length
    operation.silent, operation.skipped = silent, 0
    return operation


def parts_of(buffers: Iterable[ReadableBuffer]) -> tuple[list[ReadableBuffer], list[int]]:
    """Buffers and their lengths in bytes, which may be 0; raises if they are no buffers."""
    if isinstance(buffers, bytes | bytearray | memoryview | str):
        raise TypeError("pass a list of buffers; write() takes one")
    parts = list(buffers)
    if set(map(type, parts)) == {bytes}:  # the usual case
        return parts, list(map(len, parts))  # type: ignore[arg-type]
    return parts, [length_of(part, may_be_empty=True) for part in parts]


def new_vector(
    operation: _Vector,
    conn: Connection,
    parts: list[ReadableBuffer],
    lengths: list[int],
    context: Any,
    silent: bool,
) -> _Vector:
    """A write of several buffers that has still to be sent."""
    if len(parts) > IOV_MAX and conn._record.type != socket.SOCK_STREAM:  # a message goes whole
        with contextlib.ExitStack() as stack:
            views = [stack.enter_context(octets_of(part)) for part in parts]
            parts = [b"".join(views)]
        lengths = [sum(lengths)]
    start(operation, OpType.WRITE, conn, context)
    operation.buffer = operation.parts = parts  # type: ignore[assignment]
    operation.lengths, operation.length = lengths, sum(lengths)
    operation.position = operation.offset = operation.skipped = 0
    operation.silent = silent
    return operation


def _new_into(
    operation: _Into, conn: Connection, buffer: WriteableBuffer, length: int, context: Any
) -> _Into:
    start(operation, OpType.READ, conn, context)
    operation.buffer, operation.length = buffer, length
    operation.flags, operation.truncated = 0, False
    return operation


def arm(
    operation: _Armed,
    kind: OpType,
    conn: Connection,
    context: Any,
    timeout: float | None,
    due: float | None,
) -> _Armed:
    """A request that lasts. A deadline ends it once; a timeout is its longest silence."""
    start(operation, kind, conn, context)
    operation.silence = timeout if due is not None else None
    operation.due = due if timeout is not None else None
    return operation


def _new_armed_message(
    conn: Connection, size: int, context: Any, timeout: float | None, due: float | None
) -> ArmedMessage:
    operation = arm(ArmedMessage(), OpType.READ, conn, context, timeout, due)
    operation.ancillary_size = size
    return operation


def check_size(name: str, value: int) -> None:
    """Raise unless ``value`` is an int of a size that makes sense."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__!r}")
    if not 1 <= value <= LARGEST:
        raise ValueError(f"{name} must be from 1 to {LARGEST}, but is {value}")


def check_listening(conn: object, is_so: bool, wanted: bool | None) -> None:
    """Raise :exc:`UnsupportedConnectionError` if it listens and should not, or the reverse."""
    if wanted is None or is_so is wanted:
        return
    if is_so:
        raise UnsupportedConnectionError(f"{conn!r} is a listener: use accept()")
    raise UnsupportedConnectionError(
        f"{conn!r} does not listen: call listen() on the socket before it is delegated"
    )


def _view_of(buffer: ReadableBuffer, name: str, wanted: str) -> memoryview:
    try:
        return memoryview(buffer)
    except TypeError:
        raise TypeError(f"{name} is of type {type(buffer).__name__!r}: pass {wanted}") from None


def room_of(buffer: WriteableBuffer) -> int:
    """The bytes that a caller's buffer can take; raises if it cannot take any."""
    with _view_of(buffer, "the buffer", "a bytearray or another writable buffer") as view:
        if view.readonly:
            raise TypeError("the buffer is read-only: pass a bytearray or another writable buffer")
        if not view.c_contiguous:
            raise TypeError("the buffer is not contiguous: pass a contiguous one to read into")
        if not view.nbytes:
            raise EmptyBufferError("the buffer is empty: pass one of at least 1 byte")
        return view.nbytes


def length_of(data: ReadableBuffer, *, may_be_empty: bool = False) -> int:
    """The bytes of a write's data; raises if there are none."""
    with _view_of(data, "the data", "bytes (a str has to be encoded)") as view:
        if not view.c_contiguous:
            raise TypeError("the data is not contiguous: pass a copy, for example bytes(view)")
        if not view.nbytes and not may_be_empty:
            raise EmptyBufferError("the data is empty: pass at least 1 byte")
        return view.nbytes
