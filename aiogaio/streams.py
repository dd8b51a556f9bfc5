"""Requests on streams beyond gaio's: connect, frames, gathered writes, files, ends, relays."""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING, Any

from aiogaio import attempts
from aiogaio.addresses import check_address
from aiogaio.adoption import drained, socket_of, transport_of
from aiogaio.attempts.files import LARGEST_OFFSET
from aiogaio.attempts.splices import Pipes, Way
from aiogaio.checks import LARGEST, Checks, arm, check_listening, new_vector, parts_of
from aiogaio.delegation import check_supported, is_listening
from aiogaio.errors import EmptyBufferError, UnsupportedConnectionError
from aiogaio.joints import gates_of
from aiogaio.operation import (
    Connect,
    Operation,
    OpType,
    ReadUntil,
    Relay,
    SendFile,
    Shutdown,
    WriteV,
    start,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

    from aiogaio.connection import Connection


class StreamRequests(Checks):
    """The calls of a watcher that concern streams."""

    __slots__ = ()

    def connect(
        self,
        sock: Connection | socket.socket,
        address: Any,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request a connection to ``address`` (connect(2)); completes as ``CONNECT``.

        ``op.error`` is the plain :exc:`OSError` of a failure, ``op.address`` the address. Requests
        made after it on the same socket wait for it, and fail with its error.

        :param address: as the socket's family has it, and numeric: ``("192.0.2.1", 80)``, a path.
        :param timeout: seconds from the call. The system may go on trying: free the connection.
        :raises ValueError: a host name (``loop.getaddrinfo`` looks it up), a port out of range, a
            negative or NaN time, or both times.
        :raises TypeError: an address of another form.
        :raises UnsupportedConnectionError: ``sock`` is a listener, or as :meth:`Watcher.delegate`.
        :raises QueueFullError: more is pending than the watcher's ``max_pending``.
        :raises WatcherClosedError: the watcher is closed.

        >>> listener = socket.create_server(("127.0.0.1", 0))
        >>> op = watcher.connect(socket.socket(), listener.getsockname(), timeout=5)
        >>> [op] = await watcher.wait_io()
        >>> op.type.name, op.error
        ('CONNECT', None)
        >>> op.conn.peername == op.address == listener.getsockname()
        True
        """
        due = self._due(timeout, deadline)
        family = getattr(sock, "family", None)
        if family is not None:
            check_address(family, address)
        self._check_limits(sock)
        connection = self._connection_of(sock, listening=False)
        joint = arm(Connect(), OpType.CONNECT, connection, context, None, due)
        joint.address = address
        joint.gates = gates_of(joint, connection)
        self._submit_joint(joint, due)
        return joint

    def read_until(
        self,
        conn: Connection | socket.socket,
        separator: bytes,
        *,
        limit: int = 65536,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        r"""Request all bytes through the first ``separator``; completes as ``READ``.

        As asyncio's ``StreamReader.readuntil``: ``op.data`` ends with the separator. Bytes behind
        it are kept, and come first in the next read of any kind. If it ends with an error, nothing
        is taken: ``op.size`` is 0, and what has come stays for the next read.

        :param separator: at least one byte.
        :param limit: bytes of ``op.data`` at most; over it the operation completes with
            :exc:`LimitExceededError`. The connection keeps up to ``buffer_size`` bytes more.
        :raises ValueError: an empty separator, or one longer than the limit.
        :raises TypeError: the separator is not bytes.
        :raises UnsupportedConnectionError: ``conn`` is no stream.

        All else is as for :meth:`Watcher.read`.

        >>> op = watcher.read_until(conn, b"\r\n", limit=1024)
        >>> peer.sendall(b"one line\r\nand more")
        >>> [op] = await watcher.wait_io()
        >>> op.data
        b'one line\r\n'
        >>> watcher.read(conn).data
        b'and more'
        """
        if not isinstance(separator, bytes | bytearray | memoryview):
            raise TypeError(f"the separator must be bytes, not {type(separator).__name__!r}")
        separator = bytes(separator)
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit takes a number of bytes, not {type(limit).__name__!r}")
        if not separator:
            raise ValueError("the separator is empty: pass at least 1 byte")
        if not len(separator) <= limit <= LARGEST:
            raise ValueError(
                f"limit must be from the separator's length, {len(separator)}, to {LARGEST}, "
                f"but is {limit}"
            )
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._stream_of(conn)
        operation = start(ReadUntil(), OpType.READ, connection, context)
        operation.separator, operation.limit, operation.searched = separator, limit, 0
        self._submit_read(connection._record, operation, due)
        return operation

    def writev(
        self,
        conn: Connection | socket.socket,
        buffers: Iterable[ReadableBuffer],
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool = False,
    ) -> Operation | None:
        """Request to send all of several buffers, one behind the other (sendmsg(2)).

        They may be any number. ``op.size`` counts the bytes of all, ``op.buffer`` is the list of
        them.

        :raises EmptyBufferError: there is not one byte in them.
        :raises TypeError: one is not bytes-like or not contiguous.

        All else is as for :meth:`Watcher.write`.

        >>> op = watcher.writev(conn, [b"head, ", b"body"])
        >>> peer.recv(16)
        b'head, body'
        >>> op.size
        10
        """
        due = self._due(timeout, deadline)
        parts, lengths = parts_of(buffers)
        length = sum(lengths)
        if not length:
            raise EmptyBufferError("the buffers are empty: pass at least 1 byte")
        self._check_limits(conn, length)
        connection = self._connection_of(conn, listening=False)
        record = connection._record
        operation = new_vector(WriteV(), connection, parts, lengths, context, silent)
        # The short way, for what can be sent at once, as in Watcher.write(): half the time.
        if (
            record.writable
            and record.writes is None
            and record.torn is None
            and length <= attempts.CHUNK
            and self._direct
            and self._bytes_written < self._write_limit
        ):
            self._busy, self._direct = True, False
            try:
                try:
                    done = attempts.send_whole(record, operation)
                except OSError as error:
                    self._fail_at_call(record, operation, error, due)
                    return operation
                self._bytes_written += operation.size
                if operation.size and not done:  # nothing may come between the two parts
                    self._enter_write(record, operation, due)
                    return operation
            except BaseException as error:  # as in _enter()
                self._break_off(record, error)
                raise
            finally:
                self._busy, self._direct = False, not self._inbox.waiting
            if done:
                self._submitted += 1
                operation.completed = True
                if silent:
                    self._silent += 1
                    return None
                self._deliver(operation)
                if self._signal.future is not None:
                    self._signal.wake()
                return operation
        self._submit_write(record, operation, due)
        return None if silent and operation.completed and operation.error is None else operation

    def sendfile(
        self,
        conn: Connection | socket.socket,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request to send a part of a file (sendfile(2)); completes as ``WRITE``.

        Where the system cannot send from it, the file is read and sent: then its position moves.
        Reading may wait for the disk. The file stays open until the operation completes; what a
        program has written to it and not flushed is not in it yet.

        :param file: a file opened as binary; without a ``fileno()``, one that can seek.
        :param offset: bytes from its beginning.
        :param count: bytes to send; ``None`` for all until its end. A file that ends before it
            completes the operation with :exc:`EndOfStreamError`.
        :raises EmptyBufferError: ``count`` is 0.
        :raises ValueError: a number that is negative or far too large, or a file opened as text.
        :raises TypeError: not a number, or not a file.

        All else is as for :meth:`Watcher.write`.

        >>> with open(socket.__file__, "rb") as file:
        ...     op = watcher.sendfile(conn, file, offset=10, count=90)
        ...     [op] = await watcher.wait_io()
        >>> op.size, len(peer.recv(1024))
        (90, 90)
        """
        for name, number in (("offset", offset), ("count", count)):
            if number is None and name == "count":
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} takes a number of bytes, not {type(number).__name__!r}")
            if number < 0:
                raise ValueError(f"{name} must not be negative, but is {number}")
            if number > LARGEST_OFFSET:
                raise ValueError(f"{name} must be at most {LARGEST_OFFSET}: no file is longer")
        if count == 0:
            raise EmptyBufferError("count is 0: send at least 1 byte")
        mode = getattr(file, "mode", "b")
        if isinstance(file, io.TextIOBase) or (isinstance(mode, str) and "b" not in mode):
            raise ValueError("the file is opened as text: open it with mode 'rb'")
        due = self._due(timeout, deadline)
        copying = _must_be_read(file)
        self._check_limits(conn)
        connection = self._stream_of(conn)
        operation = start(SendFile(), OpType.WRITE, connection, context)
        operation.file, operation.offset, operation.copying = file, offset, copying
        operation.length = -1 if count is None else count
        operation.silent, operation.skipped = False, 0
        self._submit_write(connection._record, operation, due)
        return operation

    def shutdown(
        self,
        conn: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request to end the own side, behind the writes that are queued (shutdown(2), SHUT_WR).

        Completes as ``SHUTDOWN``. The peer sees the end; its data can still be read. Parameters and
        errors raised are those of :meth:`Watcher.write`.

        >>> requests = [watcher.write(conn, b"goodbye"), watcher.shutdown(conn)]
        >>> [op.type.name for op in await watcher.wait_io()]
        ['WRITE', 'SHUTDOWN']
        >>> peer.recv(16), peer.recv(16)  # and the end
        (b'goodbye', b'')
        """
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._connection_of(conn, listening=False)
        operation = start(Shutdown(), OpType.SHUTDOWN, connection, context)
        self._submit_write(connection._record, operation, due)
        return operation

    def notify_hangup(
        self,
        conn: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request to be told when the peer has ended its side, or the connection is broken.

        Completes as ``HANGUP``, with no read pending, and takes nothing (EPOLLRDHUP, EPOLLHUP,
        epoll_ctl(2)): a read still gets what has come before, and then the end or the error. With
        the loop poller it is seen once earlier data has been read, and not behind a queue of errors
        (MSG_ERRQUEUE, recv(2)). Parameters and errors raised are those of :meth:`Watcher.read`.

        >>> op = watcher.notify_hangup(conn)
        >>> peer.close()
        >>> [op] = await watcher.wait_io()
        >>> op.type.name, op.error
        ('HANGUP', None)
        """
        due = self._due(timeout, deadline)
        self._check_limits(conn)
        connection = self._stream_of(conn)
        operation = start(Operation(), OpType.HANGUP, connection, context)
        self._submit_hangup(connection._record, operation, due)
        return operation

    def relay(
        self,
        a: Connection | socket.socket,
        b: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> Operation:
        """Request to send what comes on each of two streams to the other, until both have ended.

        Completes as ``RELAY`` with the bytes of both directions in ``op.sizes``, ``op.conn`` is
        ``a``. An end is passed on as an end, an error of either ends the whole (the loop poller
        sees that of a side that has ended when there is something to send to it). Nothing is taken
        that the other side does not take: memory stays flat. It is made by splice(2) where that
        works, else through one buffer for all relays of the watcher. Other requests on the two
        wait until it is done. Both have to be open in both directions, as one end of a pipe is
        not.

        :param timeout: seconds that may pass without a byte in either direction, from the call on.
        :param deadline: a time of ``loop.time()`` at which it ends. If it is cut, bytes on their
            way are lost: ``op.sizes`` counts those sent. Free both.
        :raises ValueError: ``a`` is ``b``, a negative or NaN time, or both times.
        :raises UnsupportedConnectionError: one of them is no stream, or as
            :meth:`Watcher.delegate`.
        :raises QueueFullError: more is pending than the watcher's ``max_pending``.
        :raises WatcherClosedError: the watcher is closed.

        >>> near, far = socket.socketpair()
        >>> op = watcher.relay(conn, near)
        >>> for client, data in (peer, b"ping"), (far, b"ok"):
        ...     client.sendall(data)
        ...     client.shutdown(socket.SHUT_WR)
        >>> [op] = await watcher.wait_io()
        >>> op.sizes, far.recv(16), peer.recv(16)
        ((4, 2), b'ping', b'ok')
        """
        due = self._due(timeout, deadline)
        if a is b:
            raise ValueError("a relay needs two connections")
        for one in (a, b):  # before either is delegated
            self._check_stream(one)
            self._check_limits(one)
        known = self._delegated(a)
        if known is not None and known is self._delegated(b):
            raise ValueError("a relay needs two connections")
        first, second = self._connection_of(a), self._connection_of(b)
        if self._pipes is None:
            self._pipes = Pipes()
        relay = arm(Relay(), OpType.RELAY, first, context, timeout, due)
        relay.sizes = (0, 0)
        relay.ways = (
            Way(first._record, second._record, self._pipes),
            Way(second._record, first._record, self._pipes),
        )
        relay.gates = gates_of(relay, first, second)
        self._submit_joint(relay, due)
        return relay

    def adopt(
        self,
        transport: Any,
        reader: asyncio.StreamReader | None = None,
    ) -> Connection:
        """Take a connection over from an asyncio transport, or from asyncio streams.

        For after a handshake that was made there. What asyncio has read already and ``reader``
        still holds comes first in the next read. The transport is closed, the connection is not;
        its protocol's ``connection_lost`` is called.

        :param transport: an ``asyncio.Transport``, or a stream's ``asyncio.StreamWriter``.
        :param reader: the reader that belongs to the writer.
        :raises UnsupportedConnectionError: TLS, a transport that is closing, that has no socket,
            or that has not sent all of what was written to it.
        :raises TypeError: a writer without its reader, or no transport.
        :raises WatcherClosedError: the watcher is closed.

        >>> reader, writer = await asyncio.open_unix_connection(sock=peer)
        >>> watcher.write(conn, b"LOGIN ok;first data", silent=True)
        >>> await reader.readuntil(b";")
        b'LOGIN ok;'
        >>> adopted = watcher.adopt(writer, reader)
        >>> watcher.read(adopted).data
        b'first data'
        """
        self._check_open()
        transport = transport_of(transport, reader)
        sock = socket_of(transport)
        try:
            connection = self._connection_of(sock)
        except BaseException:
            sock.close()
            raise
        try:
            received = drained(reader)
        except BaseException:
            connection.close()
            raise
        transport.pause_reading()  # whose loop has had no time to read on
        transport.close()
        if received:
            connection._record.keep(received)
        return connection

    def _stream_of(self, conn: Connection | socket.socket) -> Connection:
        self._check_stream(conn)
        return self._connection_of(conn, listening=False)

    def _check_stream(self, conn: Connection | socket.socket) -> None:
        """Raise :exc:`UnsupportedConnectionError` if it is none; nothing is delegated here."""
        self._check_open()
        connection = self._delegated(conn)
        if connection is not None:
            kind, listening = connection._record.type, connection._record.listening
        else:
            sock = check_supported(conn)
            self._check_no_transport(sock.fileno())
            kind, listening = sock.type, is_listening(sock)
        check_listening(conn, listening, wanted=False)
        if kind != socket.SOCK_STREAM:
            raise UnsupportedConnectionError(f"{conn!r} is no stream: use read() and write()")


def _must_be_read(file: Any) -> bool:
    """Whether the system cannot send from this file; raises if it cannot be read either."""
    if getattr(file, "closed", False) is True:
        raise ValueError("the file is closed: pass an open one")
    # What has a descriptor may have other bytes than it: a GzipFile shows that of the packed file.
    raw = getattr(file, "raw", file)
    readable = callable(getattr(file, "read", None)) and callable(getattr(file, "seek", None))
    if isinstance(raw, io.FileIO) or (not readable and hasattr(file, "fileno")):
        file.fileno()
        return False
    if not readable:
        raise TypeError(f"not a file: {file!r}")
    return True
