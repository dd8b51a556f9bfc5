"""Watcher: the public calls. They check what they are given, make the operation and submit it.

The machine that carries them out is :class:`~aiogaio.proactor.Proactor`, from which the class
derives so that a request reaches it without a further call.
"""

from __future__ import annotations

import asyncio
import socket
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from aiogaio import attempts
from aiogaio.affinity import pin_thread
from aiogaio.checks import is_time, new_write
from aiogaio.completions import BATCH_LIMIT, Drained
from aiogaio.connection import Connection
from aiogaio.delegation import check_supported, is_of_asyncio
from aiogaio.errors import (
    OperationCancelledError,
    UnsupportedConnectionError,
    WatcherClosedError,
)
from aiogaio.limits import MAX_PENDING, MAX_QUEUED_BYTES, Limits
from aiogaio.messages import MessageRequests
from aiogaio.operation import Operation, OpType
from aiogaio.statistics import Pending, Statistics
from aiogaio.threadsafe import ThreadSafe

if TYPE_CHECKING:
    from _typeshed import HasFileno, ReadableBuffer, WriteableBuffer

    from aiogaio.instruments import Instrument
    from aiogaio.limits import Limit


_READ: Final = OpType.READ  # look-ups of one step
_WRITE: Final = OpType.WRITE


class Watcher(MessageRequests):
    """A proactor on the running event loop: submit requests, collect completed operations.

    What gaio's ``Watcher`` is.

    :param buffer_size: bytes that a read without a buffer takes at most.
    :param poller: ``"epoll"``, ``"loop"``, or ``"auto"`` for the first of them that works.
    :param batch_size: readiness events taken per poll at most; while so many completions await
        collection, multishot requests take nothing more.
    :param max_pending: requests that may be pending on one connection; or a pair, for one and for
        all together; ``None`` for no limit. Over it a request raises :exc:`QueueFullError`.
    :param max_queued_bytes: the same for bytes of writes that the sockets have not taken. The
        first write of an empty queue may be longer.
    :param instrument: who looks on, see :mod:`aiogaio.instruments`.
    :raises UnsupportedLoopError: no loop is running, or it has no ``add_reader``.
    :raises ValueError: an unknown poller, or a size below 1.
    :raises TypeError: a size that is no int, or an instrument that is none.

    The two limits of the default keep a peer that takes nothing from filling the memory: they are
    checked where that costs nothing, and a request more may slip through. Limits of your own are
    exact. With an instrument, a ``max_pending`` or a limit for all together each message takes a
    longer way, by about a half.

    >>> async with Watcher(buffer_size=4096) as mine:
    ...     op = mine.read(peer)  # a socket is delegated by its first request
    ...     watcher.write(conn, b"hello", silent=True)
    ...     async for results in mine:
    ...         print([op.data for op in results])
    ...         mine.close()
    [b'hello']
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        buffer_size: int = 65536,
        poller: Literal["auto", "epoll", "loop"] = "auto",
        batch_size: int = 128,
        max_pending: Limit = MAX_PENDING,
        max_queued_bytes: Limit = MAX_QUEUED_BYTES,
        instrument: Instrument | None = None,
    ) -> None:
        super().__init__(
            buffer_size=buffer_size,
            poller=poller,
            batch_size=batch_size,
            limits=Limits.of(max_pending, max_queued_bytes),
            instrument=instrument,
        )

    # --- Requests ------------------------------------------------------------------------------

    def delegate(self, sock: socket.socket | Connection | HasFileno | int) -> Connection:
        """Take a socket over: stream, datagram, Unix or listening. Or serve a descriptor.

        From then on the watcher owns the descriptor and ``sock`` is spent: its own ``recv`` and
        ``send`` raise :exc:`OSError`. A socket that was delegated here stands for its connection.

        Anything else that can be waited for (a pipe, a tty, an eventfd, a timerfd, inotify, tun:
        an object with ``fileno()``, or the number) is duplicated, and stays the caller's. The
        duplicate shares the open file description, so the original becomes non-blocking as well
        (O_NONBLOCK, fcntl(2)), in every process that has it: for a terminal, that is the shell's
        stdin, too. Set it back with ``os.set_blocking(fd, True)`` when you are done. Whoever does
        so before lets reads that find nothing hold the loop.

        :raises UnsupportedConnectionError: nothing of this kind, a plain file, an ``SSLSocket``, a
            socket that is closed, or that belongs to an asyncio transport or to another watcher.
        :raises WatcherClosedError: the watcher is closed.

        >>> ours, theirs = socket.socketpair()
        >>> delegated = watcher.delegate(ours)
        >>> ours.fileno()  # spent, and stands for its connection
        -1
        >>> watcher.delegate(ours) is delegated
        True
        """
        if isinstance(sock, socket.socket | Connection) or is_of_asyncio(sock):
            return self._connection_of(sock)
        return self._delegate_descriptor(sock)

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
        :raises QueueFullError: more is pending than the watcher's ``max_pending``.
        :raises WatcherClosedError: the watcher is closed.

        >>> op = watcher.read(conn, context="greeting", timeout=5)
        >>> peer.sendall(b"hello")
        >>> [op] = await watcher.wait_io()
        >>> op.data, op.context
        (b'hello', 'greeting')
        """
        # The short way for what nearly every call is: one attempt or none, and no further call. The
        # operation is made first, since the collector may run then, and finalizers of the program.
        if (
            type(conn) is Connection
            and conn._watcher is self
            and buffer is None
            and not multishot
            and ((timeout is None and deadline is None) or is_time(timeout, deadline))
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
            if record.reads is None and record.plain and self._direct:
                if record.readable and self._bytes_read < self._read_limit:
                    try:
                        if attempts.receive(record, operation, self._buffer_size):
                            operation.completed = True
                            self._submitted += 1
                            self._bytes_read += operation.size
                            self._deliver(operation)
                            if self._signal.future is not None:
                                self._signal.wake()
                            return operation
                    except BaseException as error:  # as in _enter()
                        self._break_off(record, error)
                        raise
                if record.reads is None and record.plain and not record.readable:
                    if deadline is not None or timeout == 0:  # it may be past
                        self._submit_read(record, operation, self._due(timeout, deadline))
                        return operation
                    record.reads = operation
                    self._submitted += 1
                    if timeout is not None and (due := self._due(timeout, None)) is not None:
                        self._add_deadline(operation, due)
                    if not record.read_watched:
                        self._watch_reads(record)
                else:
                    self._submit_read(record, operation, self._due(timeout, deadline))
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

        What gaio's ``ReadFull`` does. If it ends with an error, ``op.size`` says how many bytes
        have come. Parameters and errors raised are those of :meth:`read`.

        >>> buffer = bytearray(8)
        >>> op = watcher.read_full(conn, buffer)
        >>> for half in b"long", b"word":
        ...     peer.sendall(half)
        >>> [op] = await watcher.wait_io()
        >>> op.size, buffer
        (8, bytearray(b'longword'))
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
        :raises QueueFullError: more is pending than ``max_pending`` or ``max_queued_bytes``.
        :raises WatcherClosedError: the watcher is closed.

        ``context``, ``timeout`` and ``deadline`` are as for :meth:`read`. A write that fails
        after a part of it was sent takes with it the writes that stand behind it.

        >>> op = watcher.write(conn, b"hello, ")
        >>> [op] = await watcher.wait_io()
        >>> op.type.name, op.size
        ('WRITE', 7)
        >>> watcher.write(conn, b"world", silent=True)  # taken whole at once: None
        >>> peer.recv(16)
        b'hello, world'
        """
        # The short way, as in read(). The one system call made outside of `attempts`: a call more
        # takes 2% of the time of a small message.
        if (
            type(conn) is Connection
            and conn._watcher is self
            and type(data) is bytes
            and ((timeout is None and deadline is None) or is_time(timeout, deadline))
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
                # As _undisturbed(): nothing may come between the two parts of a message.
                self._busy, self._direct = True, False
                try:
                    try:
                        sent = record.send(data)
                    except BlockingIOError:
                        sent = 0
                    except OSError as error:
                        failed = new_write(conn, data, length, context, silent)
                        self._fail_at_call(record, failed, error, self._due(timeout, deadline))
                        return failed
                    self._bytes_written += sent
                    if sent < length:
                        record.writable = False
                        rest = new_write(conn, data, length, context, silent)
                        rest.size = sent
                        self._enter_write(record, rest, self._due(timeout, deadline))
                        return rest
                except BaseException as error:  # as in _enter()
                    self._break_off(record, error)
                    raise
                finally:
                    self._busy, self._direct = False, not self._inbox.waiting
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

        >>> op = watcher.accept(socket.create_server(("127.0.0.1", 0)))
        >>> client = socket.create_connection(op.conn.sockname)
        >>> [op] = await watcher.wait_io()
        >>> op.address == op.accepted.peername == client.getsockname()
        True
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

        >>> op = watcher.read(conn)
        >>> watcher.cancel(op)
        True
        >>> [op] = await watcher.wait_io()
        >>> op.error
        OperationCancelledError('the operation was cancelled')
        >>> watcher.cancel(op)
        False
        """
        self._check_operation(op)
        if self._inbox.waiting and not self._busy:  # it may be on its way from another thread
            self._run_inbox(until=partial(self._has_come, op))
        return self._cancel(op)

    def free(self, conn: Connection | socket.socket) -> bool:
        """Close the connection now (close(2)), and release all that belongs to it.

        What is pending completes with :exc:`ConnectionFreedError`, reads first. A socket that
        was never delegated is just closed. Returns ``False`` if it was closed already. A time in
        SO_LINGER (socket(7)) does not make it wait: the system sends what it has taken.

        :raises UnsupportedConnectionError: as :meth:`delegate`.

        >>> op = watcher.read(conn)
        >>> watcher.free(conn)
        True
        >>> [op] = await watcher.wait_io()
        >>> op.error
        ConnectionFreedError('the connection was freed')
        >>> watcher.free(conn)
        False
        """
        connection = self._delegated(conn)
        if connection is not None:
            return self._free(connection._record)
        if isinstance(conn, socket.socket) and conn.fileno() < 0:
            return False
        sock = check_supported(conn)
        self._check_no_transport(sock.fileno())
        attempts.forgo_linger(sock)
        sock.close()
        return True

    @property
    def threadsafe(self) -> ThreadSafe:
        """A view of this watcher whose requests may be made from any thread.

        >>> op = await asyncio.to_thread(watcher.threadsafe.write, conn, b"hello")
        >>> [op] = await watcher.wait_io()
        >>> peer.recv(16)
        b'hello'
        """
        return ThreadSafe(self)

    # --- Results -------------------------------------------------------------------------------

    async def wait_io(self) -> list[Operation]:
        """Wait for completed operations and return them, one or more, in order of completion.

        What gaio's ``WaitIO`` does. Cancelling the call loses nothing: the next one returns what
        has completed.

        :raises WatcherClosedError: the watcher is closed and all results are collected.
        :raises RuntimeError: another task is waiting already.

        >>> requests = [watcher.write(conn, b"one"), watcher.write(conn, b"two")]
        >>> results = await watcher.wait_io()
        >>> results == requests
        True
        >>> [op.size for op in results]
        [3, 3]
        """
        await self._completions.wait(self._look)
        return self._collect(BATCH_LIMIT)

    def poll_io(self) -> list[Operation]:
        """Return what is completed now, possibly nothing; never waits, and raises nothing.

        >>> watcher.poll_io()
        []
        >>> op = watcher.write(conn, b"hello")
        >>> watcher.poll_io() == [op]
        True
        """
        self._look()
        return self._collect(len(self._ready))

    def __aiter__(self) -> Self:
        """Iterate over lists of results, as :meth:`wait_io`, until closed and drained.

        >>> op = watcher.write(conn, b"hello")
        >>> watcher.close()
        >>> async for results in watcher:
        ...     print([op.size for op in results])
        [5]
        """
        return self

    async def __anext__(self) -> list[Operation]:
        try:
            return await self.wait_io()
        except WatcherClosedError:
            raise StopAsyncIteration from None

    # --- The watcher itself --------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called. Results may still wait to be collected.

        >>> watcher.closed
        False
        >>> watcher.close()
        >>> watcher.closed
        True
        """
        return self._closed

    def close(self) -> None:
        """Close every connection; all that is pending completes with :exc:`WatcherClosedError`.

        What is undelivered can still be collected. Idempotent.

        >>> op = watcher.read(conn)
        >>> watcher.close()
        >>> [op] = await watcher.wait_io()
        >>> op.error, conn.closed
        (WatcherClosedError('the watcher was closed'), True)
        """
        self._close()

    async def drain(self, conn: Connection | socket.socket | None = None) -> None:
        """Wait until the writes that are queued now have completed, on ``conn`` or on all.

        All that sends counts, and ``connect`` and ``shutdown``; reads and accepts do not. Results
        are delivered as always. May be cancelled.

        :raises UnsupportedConnectionError: ``conn`` is not delegated to this watcher.

        >>> op = watcher.write(conn, bytes(1_000_000))  # more than the socket takes at once
        >>> slow = asyncio.to_thread(peer.recv, 1_000_000, socket.MSG_WAITALL)
        >>> received, _ = await asyncio.gather(slow, watcher.drain(conn))
        >>> op.completed, len(received)
        (True, 1000000)
        """
        if self._inbox.waiting:
            await self._inbox_emptied()
        records = self._records
        if conn is not None:
            connection = self._delegated(conn)
            if connection is None:
                raise UnsupportedConnectionError(f"{conn!r} is not delegated to this watcher")
            records = [connection._record]
        drained, fences = Drained(self._loop), []
        for record in records:
            if record is not None and record.writes is not None:
                drained.expect()
                fences.append(self._fence(record, drained.reached))
        try:
            await drained.wait()
        finally:
            for fence in fences:  # nobody waits for it any more
                if not fence.completed:
                    error = OperationCancelledError("nobody waits for it any more")
                    self._undisturbed(partial(self._withdraw, fence, error))

    async def aclose(self, grace: float | None = 10.0) -> None:
        """Close in order: stop accepting, let the queued writes complete, then :meth:`close`.

        :param grace: seconds that this may take; ``None`` for as long as it takes.
        :raises ValueError: ``grace`` is negative or NaN.

        >>> op = watcher.write(conn, b"goodbye")
        >>> await watcher.aclose(grace=5)
        >>> watcher.closed, peer.recv(16)
        (True, b'goodbye')
        """
        if grace is not None and not grace >= 0:
            raise ValueError(f"grace must not be negative or NaN, but is {grace!r}")
        try:
            for record in list(self._records):
                if record is not None and record.listening:
                    error = WatcherClosedError("the watcher stopped accepting")
                    self._undisturbed(partial(self._release, record, error))
            async with asyncio.timeout_at(self._due(grace, None)):
                await self.drain()
        except TimeoutError:
            pass
        finally:
            self.close()

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
        """A snapshot of the counters; see :class:`Statistics`. Also after :meth:`close`.

        >>> op = watcher.write(conn, b"hello")
        >>> now = watcher.statistics()
        >>> now.submitted, now.completed, now.pending, now.bytes_written
        (1, 1, 0, 5)
        """
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

    def pending(self, conn: Connection | socket.socket) -> Pending:
        """How many requests are pending on a connection, and how many bytes wait to be sent.

        :raises UnsupportedConnectionError: nothing that was delegated to this watcher.

        >>> op = watcher.read(conn)
        >>> watcher.pending(conn)
        Pending(requests=1, queued_bytes=0)
        """
        connection = self._delegated(conn)
        if connection is None:
            raise UnsupportedConnectionError(f"{conn!r} is not delegated to this watcher")
        record = connection._record
        return Pending(self._pending(record), record.queued_bytes)

    def set_affinity(self, cpu: int) -> None:
        """Pin the loop's thread to a core (sched_setaffinity(2)).

        :param cpu: the core's number, from 0.
        :raises ValueError: there is no such core, or this process may not run on it.
        :raises NotImplementedError: the system has no such call.

        >>> cores = os.sched_getaffinity(0)
        >>> watcher.set_affinity(min(cores))
        >>> os.sched_getaffinity(0) == {min(cores)}
        True
        >>> os.sched_setaffinity(0, cores)  # as before
        """
        pin_thread(self._thread, cpu)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._count_connections()} connections"
        return f"<Watcher {self._poller.name} {state}>"
