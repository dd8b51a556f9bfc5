"""One ``recv``, ``recv_into``, ``send`` or ``accept``: what nearly all operations are."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from aiogaio.attempts.connecting import hung_up
from aiogaio.errors import EndOfStreamError
from aiogaio.operation import Operation, OpType, octets_of

if sys.platform != "win32":
    import termios

if TYPE_CHECKING:
    from aiogaio.connection import Record
    from aiogaio.operation import Armed, ReadFull, ReadInto, Write

#: Bytes that one attempt moves at most to or from a caller's buffer: about 0.1 ms of copying, so
#: that a connection with 100 MiB to send leaves the others their turn.
CHUNK: Final = 256 * 1024

_READ: Final = OpType.READ  # a look-up of one step

#: accept(2): errors of the connection that was to be accepted, to be treated like EAGAIN.
_ARRIVAL_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,  # a firewall's rule
        errno.EPROTO,
    }
)

#: The system lacks memory for now. No event tells when it has some again.
SHORTAGE: Final = frozenset({errno.ENOBUFS, errno.ENOMEM})

#: accept(2): the process or the system lacks something for now. The listener stays readable.
ACCEPT_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE}) | SHORTAGE


def receive(record: Record, operation: Operation, room: int) -> bool:
    """Receive up to ``room`` bytes as fresh ``bytes``."""
    try:
        data = record.recv(room)
    except BlockingIOError:
        record.readable = False
        return False
    except OSError as error:
        record.latch(error)
        operation.error = error.with_traceback(None)
        return True
    except MemoryError as error:  # nothing was taken
        operation.error = error.with_traceback(None)
        return True
    size = len(data)
    if size < room:
        if size == 0 and ends_with_zero(record):
            operation.error = end_of_stream(record)
            return True
        if record.short_is_empty:
            record.readable = False
    operation.data = data
    operation.size = size
    return True


def receive_shot(record: Record, armed: Armed, room: int) -> Operation | None:
    """Receive as :func:`receive`, as one completion of an armed read; ``None`` if there is none.

    The new operation is filled in here, and :func:`receive` is not called, to save two calls for
    each message.
    """
    try:
        data = record.recv(room)
    except BlockingIOError:
        record.readable = False
        return None
    except OSError as error:
        record.latch(error)
        armed.error = error.with_traceback(None)
        return armed
    except MemoryError as error:  # nothing was taken
        armed.error = error.with_traceback(None)
        return armed
    size = len(data)
    if size < room:
        if size == 0 and ends_with_zero(record):
            armed.error = end_of_stream(record)
            return armed
        if record.short_is_empty:
            record.readable = False
    shot = Operation()
    shot.type = _READ
    shot.conn = armed.conn
    shot.context = armed.context
    shot.buffer = None
    shot.size = size
    shot.data = data
    shot.error = None
    shot.more = shot.completed = True
    shot.accepted = shot.address = None
    return shot


def receive_into(record: Record, operation: ReadInto) -> bool:
    """Receive once into the caller's buffer."""
    return _receive_part(record, operation) is not None


def receive_full(record: Record, operation: ReadFull) -> bool:
    """Receive behind what the caller's buffer holds already; done when it is full."""
    return _receive_part(record, operation) is not None and (
        operation.size == operation.length or operation.error is not None
    )


def _receive_part(record: Record, operation: ReadInto) -> int | None:
    """Receive once behind the ``size`` bytes already there; ``None`` if nothing has arrived."""
    done = operation.size
    room = share(record, operation.length - done)
    part = part_of(operation, done, room)
    if part is None:
        return 0
    try:
        with part:
            if record.type == socket.SOCK_STREAM:
                size = record.recv_into(part)
            else:  # which would be cut silently
                size, _, flags, operation.address = record.recvmsg_into([part])
                operation.flags, operation.truncated = flags, bool(flags & socket.MSG_TRUNC)
    except BlockingIOError:
        record.readable = False
        return None
    except OSError as error:
        record.latch(error)
        operation.error = error.with_traceback(None)
        return 0
    except MemoryError as error:  # nothing was taken
        operation.error = error.with_traceback(None)
        return 0
    if size < room:
        if size == 0 and ends_with_zero(record):
            operation.error = end_of_stream(record)
            return 0
        if record.short_is_empty:
            record.readable = False
    operation.size = done + size
    return size


def send(record: Record, operation: Write) -> bool:
    """Send once of what is left of the caller's data; done when all of it is taken.

    Raises :exc:`OSError` for all but EAGAIN.
    """
    done = operation.size - operation.skipped
    room = share(record, operation.length - done)
    part = part_of(operation, done, room)
    if part is None:
        return True
    try:
        with part:
            sent = record.send(part)
    except BlockingIOError:
        record.writable = False
        return False
    if sent < room:
        record.writable = False
    operation.size += sent
    return done + sent == operation.length


def accept(listener: Record) -> tuple[int, Any] | None:
    """Accept one connection: its descriptor and its peer's address; ``None`` if there is none.

    Raises :exc:`OSError` for what concerns the listener or the process.
    """
    while True:
        try:
            accepted: tuple[int, Any] = listener._accept()  # type: ignore[attr-defined]
            return accepted
        except BlockingIOError:
            listener.readable = False
            return None
        except OSError as error:
            if error.errno not in _ARRIVAL_ERRORS:
                raise


def part_of(operation: ReadInto | Write, done: int, room: int) -> memoryview | None:
    """The bytes of the caller's buffer for one attempt; ``None``, and the error, if it is gone."""
    try:
        with octets_of(operation.buffer) as octets:
            if octets.nbytes != operation.length:
                raise BufferError("the buffer was resized while the operation was pending")
            if octets.readonly and operation.type is _READ:
                raise BufferError("the buffer became read-only while the operation was pending")
            return octets[done : done + room]
    except Exception as error:  # released or closed by its owner, or whatever its class raises
        operation.error = error.with_traceback(None)
        return None


def share(record: Record, left: int) -> int:
    """How many of the bytes left one attempt may move: a message goes whole or not at all."""
    return CHUNK if left > CHUNK and record.type == socket.SOCK_STREAM else left


def ends_with_zero(record: Record) -> bool:
    """Whether a receive of zero bytes is the end: an empty datagram is not."""
    if record.type == socket.SOCK_SEQPACKET:  # an empty message looks the same
        return hung_up(record) and _nothing_follows(record)
    return record.type == socket.SOCK_STREAM


def _nothing_follows(record: Record) -> bool:
    try:
        if record.recv(1, socket.MSG_PEEK):
            return False
    except BlockingIOError:
        return False
    except OSError:
        return True
    # Another empty message, or the end. It is not, if bytes are waiting (unix(7), SIOCINQ).
    return record.family != socket.AF_UNIX or not record.ask(termios.FIONREAD)


def end_of_stream(record: Record) -> Exception:
    """The error of a stream that is over: in order, or by what was latched."""
    latched = record.latched
    if latched is not None:
        return OSError(*latched.args)  # of the subclass that its errno asks for
    return EndOfStreamError("the peer ended its side of the connection")
