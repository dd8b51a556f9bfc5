"""ThreadSafe: a watcher's requests, made from any thread.

The request is checked, and its operation made, in the thread that calls; then it travels to the
loop's thread through the watcher's inbox and is submitted there. The watcher's ``close()`` empties
the inbox, so each request that was taken is completed, by a result or by the close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiogaio.checks import length_of
from aiogaio.writes import bytes_left

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from aiogaio.connection import Connection, Record
    from aiogaio.operation import Operation
    from aiogaio.watcher import Watcher


class ThreadSafe:
    """The view that :attr:`aiogaio.Watcher.threadsafe` returns.

    The calls take what those of :class:`aiogaio.Watcher` take and raise what they raise. Results
    are delivered by the watcher, in the loop's thread, as always. There is no ``delegate``: pass
    the socket with the first request. The watcher's own calls belong to the loop's thread alone.

    >>> view = watcher.threadsafe
    >>> op = await asyncio.to_thread(view.read, conn, timeout=5)
    >>> peer.sendall(b"hello")
    >>> [op] = await watcher.wait_io()
    >>> op.data
    b'hello'
    """

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

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
        """As :meth:`aiogaio.Watcher.read`.

        >>> op = await asyncio.to_thread(watcher.threadsafe.read, conn)
        >>> peer.sendall(b"hello")
        >>> [op] = await watcher.wait_io()
        >>> op.data
        b'hello'
        """
        watcher = self._watcher
        with watcher._inbox.lock:
            operation, due = watcher._make_read(conn, buffer, context, timeout, deadline, multishot)
            self._post(watcher._enter_read, operation, due)
        return operation

    def read_full(
        self,
        conn: Connection | socket.socket,
        buffer: WriteableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """As :meth:`aiogaio.Watcher.read_full`.

        >>> buffer = bytearray(5)
        >>> op = await asyncio.to_thread(watcher.threadsafe.read_full, conn, buffer)
        >>> peer.sendall(b"hello")
        >>> [op] = await watcher.wait_io()
        >>> buffer
        bytearray(b'hello')
        """
        watcher = self._watcher
        with watcher._inbox.lock:
            operation, due = watcher._make_read_full(conn, buffer, context, timeout, deadline)
            self._post(watcher._enter_read, operation, due)
        return operation

    def write(
        self,
        conn: Connection | socket.socket,
        data: ReadableBuffer,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool = False,
    ) -> Operation:
        """As :meth:`aiogaio.Watcher.write`; the data of a silent write is copied in the call.

        The operation is returned also for a silent write, since it is not known yet what becomes
        of it; without a failure it is not delivered.

        >>> op = await asyncio.to_thread(watcher.threadsafe.write, conn, b"hello")
        >>> [op] = await watcher.wait_io()
        >>> op.size, peer.recv(16)
        (5, b'hello')
        """
        watcher = self._watcher
        if silent:
            length_of(data)  # raises for what is not contiguous
            with memoryview(data) as view:
                data = view.tobytes()
        with watcher._inbox.lock:
            operation, due = watcher._make_write(conn, data, context, timeout, deadline, silent)
            self._post(watcher._enter_write, operation, due)
        return operation

    def accept(
        self,
        listener: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        multishot: bool = False,
    ) -> Operation:
        """As :meth:`aiogaio.Watcher.accept`.

        >>> listener = socket.create_server(("127.0.0.1", 0))
        >>> op = await asyncio.to_thread(watcher.threadsafe.accept, listener)
        >>> client = socket.create_connection(op.conn.sockname)
        >>> [op] = await watcher.wait_io()
        >>> op.address == client.getsockname()
        True
        """
        watcher = self._watcher
        with watcher._inbox.lock:
            operation, due = watcher._make_accept(listener, context, timeout, deadline, multishot)
            self._post(watcher._enter_read, operation, due)
        return operation

    def cancel(self, op: Operation) -> None:
        """As :meth:`aiogaio.Watcher.cancel`, some time soon; what came of it is in the result.

        >>> op = watcher.read(conn)
        >>> await asyncio.to_thread(watcher.threadsafe.cancel, op)
        >>> [op] = await watcher.wait_io()
        >>> op.error
        OperationCancelledError('the operation was cancelled')
        """
        watcher = self._watcher
        watcher._check_operation(op)
        watcher._post_quietly(lambda: watcher._cancel(op))

    def free(self, conn: Connection | socket.socket) -> None:
        """As :meth:`aiogaio.Watcher.free`, some time soon; nothing is sent or received after it.

        >>> op = watcher.read(conn)
        >>> await asyncio.to_thread(watcher.threadsafe.free, conn)
        >>> [op] = await watcher.wait_io()
        >>> op.error, conn.closed
        (ConnectionFreedError('the connection was freed'), True)
        """
        watcher = self._watcher
        connection = watcher._delegated(conn)
        if connection is None:  # the descriptor is not the watcher's: no need to wait for it
            watcher.free(conn)
        else:
            watcher._post_quietly(lambda: watcher._free(connection._record))

    def _post(
        self,
        enter: Callable[[Record, Any, float | None], None],
        operation: Operation,
        due: float | None,
    ) -> None:
        """Post a request that was made; the inbox's lock is held since."""
        record = operation.conn._record
        count = bytes_left(operation)
        self._watcher._post_request(operation, lambda: enter(record, operation, due), count)
