"""recvmsg(2) and sendmsg(2): datagrams, their senders, and ancillary data."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from aiogaio.attempts.streams import end_of_stream, ends_with_zero
from aiogaio.attempts.vectors import advance, parts_of, release
from aiogaio.operation import Message, OpType, start

if TYPE_CHECKING:
    from aiogaio.connection import Record
    from aiogaio.operation import ArmedMessage, SendMessage

# As plain numbers: those of the enumeration compute in Python, which takes 4 us of a datagram.
#: Descriptors that come with a message are not for programs that this one starts.
_FLAGS: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_SHOWN: Final = ~_FLAGS  # Linux returns them, too
_CUT: Final = int(socket.MSG_TRUNC)
_CUT_ANYHOW: Final = _CUT | int(socket.MSG_CTRUNC)


def receive_message(record: Record, operation: Message, room: int) -> bool:
    """Receive one message of up to ``room`` bytes, and say if it was longer."""
    try:
        data, ancillary, flags, address = record.recvmsg(room, operation.ancillary_size, _FLAGS)
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
    operation.address = address or None
    operation.ancillary, operation.flags = ancillary, flags & _SHOWN
    operation.truncated = bool(flags & (_CUT_ANYHOW if operation.ancillary_size else _CUT))
    told = ancillary and record.type != socket.SOCK_STREAM
    if not data and not told and ends_with_zero(record):
        operation.error = end_of_stream(record)
        return True
    operation.data = data
    operation.size = len(data)
    return True


def message_shot(record: Record, armed: ArmedMessage, room: int) -> Any:
    """One completion of an armed request; itself at its end, ``None`` if nothing is there."""
    shot = new_message(armed.conn, armed.context, armed.ancillary_size)
    if not receive_message(record, shot, room):
        return None
    if shot.error is not None:
        armed.error = shot.error
        return armed
    shot.more = shot.completed = True
    return shot


def new_message(conn: Any, context: Any, ancillary_size: int) -> Message:
    """A message that has still to be received."""
    message = start(Message(), OpType.READ, conn, context)
    message.ancillary, message.ancillary_size = (), ancillary_size
    message.flags, message.truncated = 0, False
    return message


def send_message(record: Record, operation: SendMessage) -> bool:
    """Send a message; ancillary data goes with its first byte.

    Raises :exc:`OSError` for all but EAGAIN.
    """
    parts = parts_of(record, operation)
    if parts is None:
        return True
    ancillary = operation.ancillary if operation.size == 0 else ()
    try:
        if operation.address is None:
            sent = record.sendmsg(parts, ancillary)
        else:
            sent = record.sendmsg(parts, ancillary, 0, operation.address)
    except BlockingIOError:
        if operation.address is not None and record.family == getattr(socket, "AF_UNIX", None):
            # It is the receiver that has no room, and no event of this socket will tell.
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None
        record.writable = False
        return False
    finally:
        release(parts)
    return advance(operation, sent)
