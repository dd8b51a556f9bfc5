"""Watcher: the public calls. They check what they are given, make the operation and submit it.

The machine that carries them out is :class:`~aiogaio.proactor.Proactor`, from which the class
derives so that a request reaches it without a further call.
"""

from __future__ import annotations

import math
import socket
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from aiogaio import attempts
from aiogaio.affinity import pin_thread
from aiogaio.completions import BATCH_LIMIT
from aiogaio.connection import Connection
from aiogaio.delegation import check_supported, give_back, is_listening, spend, take_over
from aiogaio.errors import (
    EmptyBufferError,
    UnsupportedConnectionError,
    WatcherClosedError,
)
from aiogaio.operation import Accept, Armed, Operation, OpType, ReadFull, ReadInto, Write, start
from aiogaio.proactor import Proactor
from aiogaio.statistics import Statistics
from aiogaio.threadsafe import ThreadSafe

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


_READ: Final = OpType.READ  # look-ups of one step
_WRITE: Final = OpType.WRITE
_LARGEST: Final = 1 << 30  # more in one receive or poll is a mistake, not a wish


class Watcher(Proactor):
    """A proactor on the running event loop: submit requests, collect completed operations.

    :param buffer_size: bytes that a read without a buffer takes at most.
    :param poller: ``"epoll"``, ``"loop"``, or ``"auto"`` for the first of them that works.
    :param batch_size: readiness events taken per poll at most; while so many completions await
        collection, multishot requests take nothing more.
    :raises UnsupportedLoopError: no loop is running, or it has no ``add_reader``.
    :raises ValueError: an unknown poller, or a size below 1.
    """

    __slots__ = ("_spent",)

    def __init__(
        self,
        *,
        buffer_size: int = 65536,
        poller: Literal["auto", "epoll", "loop"] = "auto",
        batch_size: int = 128,
    ) -> None:
        _check_size("buffer_size", buffer_size)
        _check_size("batch_size", batch_size)
        super().__init__(buffer_size=buffer_size, poller=poller, batch_size=batch_size)
        # Sockets delegated as such stand for their connections as long as they live.
        self._spent: weakref.WeakKeyDictionary[socket.socket, Connection] = (
            weakref.WeakKeyDictionary()
        )

    # --- Requests ------------------------------------------------------------------------------

    def delegate(self, sock: socket.socket | Connection) -> Connection:
        """Take a socket over: stream, datagram, Unix or listening.

        From then on the watcher owns the descriptor and ``sock`` is spent: its own ``recv`` and
        ``send`` raise :exc:`OSError`. A socket that was delegated here stands for its connection.

        :raises UnsupportedConnectionError: not a socket, an ``SSLSocket``, a socket that is
            closed, or that belongs to an asyncio transport or to another watcher.
        :raises WatcherClosedError: the watcher is closed.
        """
        return self._connection_of(sock)

    def read(
        self,
        conn: Connection | socket.socket,
        buffer: WriteableBuffer | None = None,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        multishot: bool = False,
    ) -> Operation:
        """Request one receive (recv(2)): into ``buffer``, or without one as fresh ``bytes``.

        :param buffer: a writable, contiguous buffer; it belongs to the operation until that
            completes. Without one up to ``buffer_size`` bytes are taken.
        :param context: any object; it comes back as ``op.context``.
        :param timeout: seconds from the call; for a multishot read the longest silence.
        :param deadline: a time of ``loop.time()``.
        :param multishot: stay armed and deliver one operation for each arrival. The last one, the
            object returned here, has ``more=False`` and an ``error``.
        :raises EmptyBufferError: ``buffer`` has no room.
        :raises TypeError: ``buffer`` is read-only or not contiguous.
        :raises ValueError: a negative or NaN time, both times, or a buffer with ``multishot``.
        :raises UnsupportedConnectionError: ``conn`` is a listener, or nothing to be read from.
        :raises WatcherClosedError: the watcher is closed.
        """
        # The short way for what nearly every call is: one attempt or none, and no further call. The
        # operation is made first, since the collector may run then, and finalizers of the program.
        if (
            type(conn) is Connection
            and conn._watcher is self
            and buffer is None
            and timeout is None
            and deadline is None
            and not multishot
        ):
            operation = Operation()
            operation.type = _READ
            operation.conn = conn
            operation.context = conn.context if context is None else context
            operation.buffer = None
            operation.size = 0
            operation.data = b""
            operation.error = None
            operation.more = operation.completed = False
            operation.accepted = operation.address = None
            operation._next = operation._previous = operation._timer = None
            record = conn._record
            if record.reads is None and record.open and not record.listening and self._direct:
                if (
                    record.readable
                    and self._bytes_read < self._read_limit
                    and attempts.receive(record, operation, self._buffer_size)
                ):
                    operation.completed = True
                    self._submitted += 1
                    self._bytes_read += operation.size
                    self._deliver(operation)
                    if self._signal.future is not None:
                        self._signal.wake()
                elif record.reads is None and record.open and not record.readable:
                    record.reads = operation
                    self._submitted += 1
                    if not record.read_watched:
                        self._watch_reads(record)
                else:
                    self._submit_read(record, operation, None)
                return operation
        request, due = self._make_read(conn, buffer, context, timeout, deadline, multishot)
        self._submit_read(request.conn._record, request, due)
        return request

    def read_full(
        self,
        conn: Connection | socket.socket,
        buffer: WriteableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request as many receives as fill the whole of ``buffer``; completes as ``READ``.

        If it ends with an error, ``op.size`` says how many bytes have come. Parameters and
        errors raised are those of :meth:`read`.
        """
        operation, due = self._make_read_full(conn, buffer, context, timeout, deadline)
        self._submit_read(operation.conn._record, operation, due)
        return operation

    @overload
    def write(
        self,
        conn: Connection | socket.socket,
        data: ReadableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: Literal[False] = False,
    ) -> Operation: ...
    @overload
    def write(
        self,
        conn: Connection | socket.socket,
        data: ReadableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool,
    ) -> Operation | None: ...
    def write(
        self,
        conn: Connection | socket.socket,
        data: ReadableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool = False,
    ) -> Operation | None:
        """Request to send all of ``data`` (send(2)).

        :param data: bytes, or a contiguous buffer that stays as it is until the write completes.
        :param silent: deliver only a failure. The data may be reused when the call returns;
            ``None`` is returned if all of it was taken at once.
        :raises EmptyBufferError: ``data`` is empty.
        :raises TypeError: ``data`` is not bytes-like, or not contiguous.
        :raises ValueError: a negative or NaN time, or both times.
        :raises UnsupportedConnectionError: ``conn`` is a listener, or as :meth:`delegate`.
        :raises WatcherClosedError: the watcher is closed.

        ``context``, ``timeout`` and ``deadline`` are as for :meth:`read`. A write that fails
        after a part of it was sent takes with it the writes that stand behind it.
        """
        # The short way, as in read(). The one system call made outside of `attempts`: a call more
        # takes 2% of the time of a small message.
        if (
            type(conn) is Connection
            and conn._watcher is self
            and type(data) is bytes
            and timeout is None
            and deadline is None
        ):
            record = conn._record
            length = len(data)
            if (
                record.writable
                and record.writes is None
                and record.torn is None
                and 0 < length <= attempts.CHUNK
                and self._direct
                and self._bytes_written < self._write_limit
            ):
                operation = None
                if not silent:
                    operation = Operation()
                    operation.type = _WRITE
                    operation.conn = conn
                    operation.context = conn.context if context is None else context
                    operation.buffer = data
                    operation.data = b""
                    operation.error = operation.accepted = operation.address = None
                    operation.more = False
                try:
                    sent = record.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    failed = _new_write(conn, data, length, context, silent)
                    self._submitted += 1
                    self._send_failed(record, failed, error)
                    return failed
                self._bytes_written += sent
                if sent < length:
                    record.writable = False
                    rest = _new_write(conn, data, length, context, silent)
                    rest.size = sent
                    self._submit_write(record, rest, None)
                    return rest
                if operation is None:
                    self._silent_at_once += 1
                    return None
                self._submitted += 1
                operation.size = sent
                operation.completed = True
                self._deliver(operation)
                if self._signal.future is not None:
                    self._signal.wake()
                return operation
        request, due = self._make_write(conn, data, context, timeout, deadline, silent)
        self._submit_write(request.conn._record, request, due)
        return None if silent and request.completed and request.error is None else request

    def accept(
        self,
        listener: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        multishot: bool = False,
    ) -> Operation:
        """Request one connection from a listener (accept(2)).

        ``op.accepted`` is the new :class:`Connection`, ``op.address`` its peer. Parameters and
        errors raised are those of :meth:`read`; a multishot accept delivers EMFILE and its like
        with ``more=True`` and goes on within a second.

        :raises UnsupportedConnectionError: the socket does not listen.
        """
        operation, due = self._make_accept(listener, context, timeout, deadline, multishot)
        self._submit_read(operation.conn._record, operation, due)
        return operation

    def cancel(self, op: Operation) -> bool:
        """Complete a pending operation with :exc:`OperationCancelledError`.

        Returns ``False`` if it was completed already. What it has received or sent so far stays,
        as ``op.size``.

        :raises TypeError: not an operation.
        :raises UnsupportedConnectionError: an operation of another watcher.
        """
        self._check_operation(op)
        if self._inbox.waiting and not self._busy:  # it may be on its way from another thread
            self._run_inbox()
        return self._cancel(op)

    def free(self, conn: Connection | socket.socket) -> bool:
        """Close the connection now, and release all that belongs to it.

        What is pending completes with :exc:`ConnectionFreedError`, reads first. A socket that
        was never delegated is just closed. Returns ``False`` if it was closed already.

        :raises UnsupportedConnectionError: as :meth:`delegate`.
        """
        connection = self._delegated(conn)
        if connection is not None:
            return self._free(connection._record)
        if isinstance(conn, socket.socket) and conn.fileno() < 0:
            return False
        sock = check_supported(conn)
        self._check_no_transport(sock)
        sock.close()
        return True

    @property
    def threadsafe(self) -> ThreadSafe:
        """A view of this watcher whose requests may be made from any thread."""
        return ThreadSafe(self)

    # --- Results -------------------------------------------------------------------------------

    async def wait_io(self) -> list[Operation]:
        """Wait for completed operations and return them, one or more, in order of completion.

        Cancelling the call loses nothing: the next one returns what has completed.

        :raises WatcherClosedError: the watcher is closed and all results are collected.
        :raises RuntimeError: another task is waiting already.
        """
        await self._completions.wait(self._look)
        return self._collect(BATCH_LIMIT)

    def poll_io(self) -> list[Operation]:
        """Return what is completed now, possibly nothing; never waits."""
        self._look()
        return self._collect(len(self._ready))

    def __aiter__(self) -> Self:
        """Iterate over lists of results, as :meth:`wait_io`, until closed and drained."""
        return self

    async def __anext__(self) -> list[Operation]:
        try:
            return await self.wait_io()
        except WatcherClosedError:
            raise StopAsyncIteration from None

    # --- The watcher itself --------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called. Results may still wait to be collected."""
        return self._closed

    def close(self) -> None:
        """Close every connection; all that is pending completes with :exc:`WatcherClosedError`.

        What is undelivered can still be collected. Idempotent.
        """
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        try:  # the warning may be an error
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            self._close_from_finalizer()

    def statistics(self) -> Statistics:
        """A snapshot of the counters."""
        submitted = self._submitted + self._silent_at_once
        silent = self._silent + self._silent_at_once
        completed = self._collected + len(self._ready) + silent - self._shots
        return Statistics(
            submitted=submitted,
            completed=completed,
            pending=submitted - completed,
            connections=self._count_connections(),
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            batches=self._batches,
            poller=self._poller.name,
        )

    def set_affinity(self, cpu: int) -> None:
        """Pin the loop's thread to a core (sched_setaffinity(2)).

        :param cpu: the core's number, from 0.
        :raises ValueError: there is no such core, or this process may not run on it.
        :raises NotImplementedError: the system has no such call.
        """
        pin_thread(self._thread, cpu)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._count_connections()} connections"
        return f"<Watcher {self._poller.name} {state}>"

    # --- Checking, and making operations ---------------------------------------------------------

    def _make_read(
        self,
        conn: object,
        buffer: WriteableBuffer | None,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        multishot: bool,
    ) -> tuple[Operation, float | None]:
        length = 0 if buffer is None else _room(buffer)
        if buffer is not None and multishot:
            raise ValueError(
                "a multishot read brings its own bytes for each arrival: pass no buffer"
            )
        due = self._due(timeout, deadline)
        connection = self._connection_of(conn, listening=False)
        if buffer is not None:
            operation = start(ReadInto(), OpType.READ, connection, context)
            operation.buffer, operation.length = buffer, length
            return operation, due
        if not multishot:
            return start(Operation(), OpType.READ, connection, context), due
        return _new_armed(OpType.READ, connection, context, timeout, due), due

    def _make_read_full(
        self,
        conn: object,
        buffer: WriteableBuffer,
        context: Any,
        timeout: float | None,
        deadline: float | None,
    ) -> tuple[Operation, float | None]:
        length = _room(buffer)
        due = self._due(timeout, deadline)
        connection = self._connection_of(conn, listening=False)
        operation = start(ReadFull(), OpType.READ, connection, context)
        operation.buffer, operation.length = buffer, length
        return operation, due

    def _make_write(
        self,
        conn: object,
        data: ReadableBuffer,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        silent: bool,
    ) -> tuple[Write, float | None]:
        length = _length(data)
        due = self._due(timeout, deadline)
        connection = self._connection_of(conn, listening=False)
        return _new_write(connection, data, length, context, silent), due

    def _make_accept(
        self,
        listener: object,
        context: Any,
        timeout: float | None,
        deadline: float | None,
        multishot: bool,
    ) -> tuple[Operation, float | None]:
        due = self._due(timeout, deadline)
        connection = self._connection_of(listener, listening=True)
        if not multishot:
            return start(Accept(), OpType.ACCEPT, connection, context), due
        return _new_armed(OpType.ACCEPT, connection, context, timeout, due), due

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
        return None if value == math.inf else start + value

    def _connection_of(self, conn: object, *, listening: bool | None = None) -> Connection:
        """The connection that ``conn`` is or stands for; a socket is delegated on the spot.

        ``listening`` is what the request needs it to be, if that matters.
        """
        if self._closed:
            raise WatcherClosedError("the watcher is closed: make another one")
        if self._loop.is_closed():
            self.close()
            raise WatcherClosedError("the watcher's event loop is closed, and so is the watcher")
        with self._inbox.lock:  # two threads may bring the same socket
            connection = self._delegated(conn)
            if connection is None:
                return self._delegate(conn, listening)
        _check_listening(conn, connection._record.listening, listening)
        return connection

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
        self._check_no_transport(sock)
        if self._serves(sock.fileno()):
            raise UnsupportedConnectionError(
                f"descriptor {sock.fileno()} is delegated already, by way of another socket "
                "object: use its Connection"
            )
        is_so = is_listening(sock)
        _check_listening(sock, is_so, listening)
        record = take_over(sock, listening=is_so)
        try:
            self._register(record)
        except BaseException:
            give_back(sock, record)
            raise
        spend(sock)
        connection = Connection(self, record)
        self._spent[sock] = connection
        return connection

    def _check_no_transport(self, sock: socket.socket) -> None:
        """Raise :exc:`UnsupportedConnectionError` if an asyncio transport owns the descriptor."""
        # Stock asyncio has a check without side effects; uvloop makes it in remove_reader.
        check = getattr(self._loop, "_ensure_fd_no_transport", self._loop.remove_reader)
        try:
            check(sock.fileno())
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


def _new_write(
    conn: Connection, data: ReadableBuffer, length: int, context: Any, silent: bool
) -> Write:
    operation = start(Write(), OpType.WRITE, conn, context)
    operation.buffer, operation.length = data, length
    operation.silent, operation.skipped = silent, 0
    return operation


def _new_armed(
    kind: OpType, conn: Connection, context: Any, timeout: float | None, due: float | None
) -> Armed:
    """A multishot request. A deadline ends it once; a timeout is its longest silence."""
    operation = start(Armed(), kind, conn, context)
    operation.silence = timeout if due is not None else None
    operation.due = due if timeout is not None else None
    return operation


def _check_size(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__!r}")
    if not 1 <= value <= _LARGEST:
        raise ValueError(f"{name} must be from 1 to {_LARGEST}, but is {value}")


def _check_listening(conn: object, is_so: bool, wanted: bool | None) -> None:
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


def _room(buffer: WriteableBuffer) -> int:
    """The bytes that a caller's buffer can take; raises if it cannot take any."""
    with _view_of(buffer, "the buffer", "a bytearray or another writable buffer") as view:
        if view.readonly:
            raise TypeError("the buffer is read-only: pass a bytearray or another writable buffer")
        if not view.c_contiguous:
            raise TypeError("the buffer is not contiguous: pass a contiguous one to read into")
        if not view.nbytes:
            raise EmptyBufferError("the buffer is empty: pass one of at least 1 byte")
        return view.nbytes


def _length(data: ReadableBuffer) -> int:
    """The bytes of a write's data; raises if there are none."""
    with _view_of(data, "the data", "bytes (a str has to be encoded)") as view:
        if not view.c_contiguous:
            raise TypeError("the data is not contiguous: pass a copy, for example bytes(view)")
        if not view.nbytes:
            raise EmptyBufferError("the data is empty: pass at least 1 byte")
        return view.nbytes
