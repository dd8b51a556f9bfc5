"""Requests for messages: datagrams with their senders, and ancillary data (recvmsg, sendmsg)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from aiogaio.addresses import check_address
from aiogaio.checks import is_time, new_vector, parts_of
from aiogaio.connection import Connection
from aiogaio.descriptor import FileRecord
from aiogaio.errors import EmptyBufferError, UnsupportedConnectionError
from aiogaio.operation import Operation, OpType, SendMessage, start
from aiogaio.streams import StreamRequests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer


_DATAGRAM: Final = int(socket.SOCK_DGRAM)


class MessageRequests(StreamRequests):
    """The calls of a watcher that concern messages."""

    __slots__ = ()

    def recvfrom(
        self,
        sock: Connection | socket.socket,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        multishot: bool = False,
    ) -> Operation:
        """Request one datagram; completes as ``READ`` (recvmsg(2)).

        ``op.data`` is what it brought, perhaps nothing: an empty datagram is not the end.
        ``op.address`` is its sender, ``None`` if that has none. A datagram longer than the
        watcher's ``buffer_size`` has ``op.truncated``. All else is as for :meth:`Watcher.read`.

        >>> sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        >>> sock.bind(("127.0.0.1", 0))
        >>> op = watcher.recvfrom(sock)
        >>> watcher.sendto(sock, b"to myself", op.conn.sockname, silent=True)
        >>> [op] = await watcher.wait_io()
        >>> op.data, op.address == op.conn.sockname, op.truncated
        (b'to myself', True, False)
        """
        return self.recvmsg(
            sock, 0, context=context, timeout=timeout, deadline=deadline, multishot=multishot
        )

    def recvmsg(
        self,
        sock: Connection | socket.socket,
        ancillary_size: int = 0,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        multishot: bool = False,
    ) -> Operation:
        """Request one message with its ancillary data (recvmsg(2)); completes as ``READ``.

        As :meth:`recvfrom`, and ``op.ancillary`` is a list of ``(level, type, data)``, as of
        ``socket.recvmsg``; ``op.flags`` are the message's. Descriptors that come with it
        (SCM_RIGHTS, cmsg(3)) are the program's to close; they are not inherited.

        :param ancillary_size: bytes of room, ``socket.CMSG_SPACE(n)`` for an item of n bytes; if
            it is too small, ``op.truncated`` is set.
        :raises ValueError: a size that is negative, or far too large.

        >>> op = watcher.recvmsg(conn, socket.CMSG_SPACE(4))
        >>> _ = socket.send_fds(peer, [b"a descriptor"], [peer.fileno()])
        >>> [op] = await watcher.wait_io()
        >>> [(level, kind, fd)] = op.ancillary
        >>> op.data, kind == socket.SCM_RIGHTS, bool(op.flags & socket.MSG_CTRUNC)
        (b'a descriptor', True, False)
        >>> os.close(int.from_bytes(fd, sys.byteorder))
        """
        operation, due = self._make_message(
            sock, ancillary_size, context, timeout, deadline, multishot
        )
        self._submit_read(operation.conn._record, operation, due)
        return operation

    def sendto(
        self,
        sock: Connection | socket.socket,
        data: ReadableBuffer,
        address: Any,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool = False,
    ) -> Operation | None:
        """Request to send one datagram to ``address``; completes as ``WRITE`` (sendmsg(2)).

        It may be empty. ``op.address`` is the address.

        :param address: numeric, as the socket's family has it.
        :raises ValueError: a host name: ``loop.getaddrinfo`` looks it up.
        :raises TypeError: an address of another form.

        All else is as for :meth:`Watcher.write`.

        >>> receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        >>> receiver.bind(("127.0.0.1", 0))
        >>> sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        >>> op = watcher.sendto(sender, b"hello", receiver.getsockname())
        >>> receiver.recv(16), op.size
        (b'hello', 5)
        """
        # The short way, as in Watcher.write(): a third of the time.
        if (
            type(sock) is Connection
            and sock._watcher is self
            and type(data) is bytes
            and address is not None
            and ((timeout is None and deadline is None) or is_time(timeout, deadline))
        ):
            record = sock._record
            if (
                record.writable
                and record.writes is None
                and record.torn is None
                and record.type == _DATAGRAM
                and self._direct
                and self._bytes_written < self._write_limit
            ):
                try:
                    sent = record.sendto(data, check_address(record.family, address))
                except BlockingIOError:
                    pass  # the long way knows what to do
                except OSError as error:
                    failed = new_vector(SendMessage(), sock, [data], [len(data)], context, silent)
                    failed.ancillary, failed.address = [], address
                    self._fail_at_call(record, failed, error, self._due(timeout, deadline))
                    return failed
                else:
                    self._bytes_written += sent
                    if silent:
                        self._silent_at_once += 1
                        return None
                    operation = start(Operation(), OpType.WRITE, sock, context)
                    operation.buffer, operation.address = [data], address  # type: ignore[assignment]
                    operation.size, operation.completed = sent, True
                    self._submitted += 1
                    self._deliver(operation)
                    if self._signal.future is not None:
                        self._signal.wake()
                    return operation
        return self.sendmsg(
            sock,
            [data],
            address=address,
            context=context,
            timeout=timeout,
            deadline=deadline,
            silent=silent,
        )

    def sendmsg(
        self,
        sock: Connection | socket.socket,
        buffers: Iterable[ReadableBuffer],
        ancillary: Iterable[tuple[int, int, ReadableBuffer]] = (),
        address: Any = None,
        *,
        context: Any = None,
        timeout: float | None = None,
        deadline: float | None = None,
        silent: bool = False,
    ) -> Operation | None:
        """Request to send one message of several buffers (sendmsg(2)); completes as ``WRITE``.

        :param ancillary: items ``(level, type, data)``; they go with the first byte. Descriptors
            among them (SCM_RIGHTS) have to stay open until the operation completes.
        :param address: where to; ``None`` for the peer of a connected socket.
        :raises EmptyBufferError: no byte at all, on a stream.

        All else is as for :meth:`sendto`.

        >>> fd = peer.fileno().to_bytes(4, sys.byteorder)
        >>> item = socket.SOL_SOCKET, socket.SCM_RIGHTS, fd
        >>> op = watcher.sendmsg(conn, [b"a ", b"descriptor"], [item])
        >>> data, [copy], _, _ = socket.recv_fds(peer, 16, 1)
        >>> os.close(copy)
        >>> data
        b'a descriptor'
        """
        due = self._due(timeout, deadline)
        parts, lengths = parts_of(buffers)
        if isinstance(ancillary, memoryview):  # it may be of several dimensions
            raise TypeError("ancillary takes items (level, type, data), not a memoryview")
        items = [_item(one) for one in ancillary]
        if address is not None and (family := getattr(sock, "family", None)) is not None:
            check_address(family, address)
        kind = getattr(sock, "type", None)
        if kind == socket.SOCK_STREAM and not sum(lengths):
            raise EmptyBufferError("the buffers are empty: a stream needs at least 1 byte")
        self._check_limits(sock, sum(lengths))
        connection = self._connection_of(sock, listening=False)
        if isinstance(connection._record, FileRecord) and (items or address is not None):
            raise UnsupportedConnectionError(
                f"{connection!r} is no socket: use write() or writev()"
            )
        operation = new_vector(SendMessage(), connection, parts, lengths, context, silent)
        operation.ancillary, operation.address = items, address
        self._submit_write(connection._record, operation, due)
        return None if silent and operation.completed and operation.error is None else operation


def _item(item: Any) -> tuple[int, int, bytes]:
    try:
        level, kind, data = item
        copy = bytes(memoryview(data).cast("B"))
    except (TypeError, ValueError):
        raise TypeError(
            f"an item of ancillary data is (level, type, bytes-like), not {item!r}"
        ) from None
    if not isinstance(level, int) or not isinstance(kind, int):
        raise TypeError(f"the level and type of ancillary data are ints, not {item!r}")
    if not all(-(1 << 31) <= number < 1 << 31 for number in (level, kind)):
        raise ValueError(f"the level and type of ancillary data have 32 bits: {item!r}")
    return level, kind, copy
