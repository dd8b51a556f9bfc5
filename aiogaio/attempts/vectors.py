"""One sendmsg(2) for many buffers: of one request, or of the small writes that stand in a queue."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from aiogaio.attempts.streams import CHUNK, part_of
from aiogaio.operation import Operation, Write, WriteV, octets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogaio.connection import Record

#: Small writes sent together: more would only let others wait.
_TOGETHER: Final = 64
_BYTES: Final = {bytes}
#: Buffers that the system takes in one call.
IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX")) if hasattr(os, "sysconf") else 16


def parts_of(record: Record, operation: WriteV) -> list[memoryview | bytes] | None:
    """What one attempt can send, to be released; ``None``, and the error, if a buffer is gone."""
    if operation.size == operation.skipped and operation.length <= CHUNK:
        whole = operation.parts
        if len(whole) <= IOV_MAX and set(map(type, whole)) == _BYTES:
            return whole  # type: ignore[return-value]  # the usual case
    views: list[memoryview | bytes] = []
    offset, total = operation.offset, 0
    stream = record.type == socket.SOCK_STREAM  # a message goes whole
    for number in range(operation.position, len(operation.parts)):
        if len(views) == IOV_MAX or (total >= CHUNK and stream):
            break
        part = operation.parts[number]
        if type(part) is bytes and not offset:
            views.append(part)
            total += operation.lengths[number]
            continue
        try:
            with octets_of(part) as octets:
                if octets.nbytes != operation.lengths[number]:
                    raise BufferError("a buffer was resized while the operation was pending")
                views.append(octets[offset:])
        except Exception as error:  # released or closed by its owner
            operation.error = error.with_traceback(None)
            release(views)
            return None
        total += operation.lengths[number] - offset
        offset = 0
    return views


def release(parts: list[memoryview | bytes]) -> None:
    """Hold no view of a caller's buffer any longer."""
    for part in parts:
        if type(part) is memoryview:
            part.release()


def advance(operation: WriteV, sent: int) -> bool:
    """Go on behind the bytes that were sent; done when that is the end."""
    operation.size += sent
    lengths = operation.lengths
    if sent == operation.length:  # all at once
        operation.position = len(lengths)
        return True
    operation.offset += sent
    while operation.position < len(lengths) and operation.offset >= lengths[operation.position]:
        operation.offset -= lengths[operation.position]
        operation.position += 1
    return operation.position == len(lengths)


def send_parts(record: Record, operation: WriteV) -> bool:
    """Send once of what is left of several buffers; done when all of it is taken.

    Raises :exc:`OSError` for all but EAGAIN.
    """
    parts = parts_of(record, operation)
    if parts is None:
        return True
    try:
        sent = record.sendmsg(parts)
        if sent < operation.length and sent < sum(map(len, parts)):
            record.writable = False
    except BlockingIOError:
        record.writable = False
        return False
    finally:
        release(parts)
    return advance(operation, sent)


def send_whole(record: Record, operation: WriteV) -> bool:
    """Send a new write of bytes; false if it is another, or not all of it was taken.

    Raises :exc:`OSError` for all but EAGAIN.
    """
    parts = operation.parts
    if len(parts) > IOV_MAX or set(map(type, parts)) != _BYTES:
        return False
    try:
        sent = record.sendmsg(parts)
    except BlockingIOError:
        record.writable = False
        return False
    if sent < operation.length:
        record.writable = False
    return advance(operation, sent)


def send_queued(record: Record, first: Write) -> tuple[int, list[Write]] | None:
    """Send small writes that stand one behind the other, together: the bytes, and who is done.

    ``None`` if there is only one to send. Raises :exc:`OSError` for all but EAGAIN.
    """
    if record.type != socket.SOCK_STREAM or record.family == socket.AF_UNSPEC:
        return None  # of messages, or a descriptor for which each write(2) may be one
    batch: list[Write] = []
    parts: list[memoryview | bytes] = []
    room = 0
    operation: Operation | None = first
    while type(operation) is Write and len(batch) < _TOGETHER and operation.length <= CHUNK:
        data = operation.buffer
        if type(data) is bytes and operation.size == operation.skipped:
            parts.append(data)
            room += operation.length
        else:
            done = operation.size - operation.skipped
            part = part_of(operation, done, operation.length - done)
            if part is None:  # its turn comes, alone, to tell the error
                operation.error = None
                break
            parts.append(part)
            room += len(part)
        batch.append(operation)
        operation = operation._next
        if room > CHUNK:  # not so small
            break
    try:
        if len(batch) < 2:
            return None
        sent = record.sendmsg(parts)
    except BlockingIOError:
        record.writable = False
        return 0, []
    finally:
        release(parts)
    if sent < room:
        record.writable = False
    else:
        for write in batch:
            write.size = write.skipped + write.length
        return sent, batch
    unclaimed = sent
    for number, write in enumerate(batch):
        left = write.length - write.size + write.skipped
        if unclaimed < left:
            write.size += unclaimed
            return sent, batch[:number]
        write.size += left
        unclaimed -= left
    return sent, batch


def keep_rest(operation: Write) -> None:
    """Copy what the socket has not taken of a silent write: the caller may reuse the data.

    Bytes cannot change and are kept as they are: what goes to many slow peers is there once.
    """
    if isinstance(operation, WriteV):
        parts = parts_left(operation)
        operation.buffer = operation.parts = parts  # type: ignore[assignment]
        operation.lengths = [len(part) for part in parts]
        operation.position = operation.offset = 0
        operation.skipped, operation.length = operation.size, sum(operation.lengths)
        return
    if type(operation.buffer) is bytes:
        return
    with octets_of(operation.buffer) as octets:
        operation.buffer = rest = octets[operation.size - operation.skipped :].tobytes()
    operation.skipped = operation.size
    operation.length = len(rest)


def parts_left(operation: WriteV) -> Sequence[bytes]:
    """Copies of the buffers that are not sent yet; those of bytes are the same once more."""
    parts, offset = [], operation.offset
    for part in operation.parts[operation.position :]:
        if type(part) is bytes:
            parts.append(part[offset:])
        else:
            with octets_of(part) as octets:
                parts.append(octets[offset:].tobytes())
        offset = 0
    return parts
