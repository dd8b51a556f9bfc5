"""Bytes that were received before they were asked for, and reads up to a separator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiogaio.attempts.streams import end_of_stream, ends_with_zero, part_of
from aiogaio.errors import LimitExceededError
from aiogaio.operation import Operation, OpType, ReadFull, ReadInto, start

if TYPE_CHECKING:
    from aiogaio.connection import Record
    from aiogaio.operation import Armed, ReadUntil


def receive_until(record: Record, operation: ReadUntil, room: int) -> bool:
    """Look for the separator in what is there, and if it is not, receive once.

    Bytes are taken only when it is found: whatever else happens, they stay for the next read.
    """
    if _found(record, operation):
        return True
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
    if not data and ends_with_zero(record):
        operation.error = end_of_stream(record)
        return True
    short = len(data) < room and record.short_is_empty
    separator = operation.separator
    if (
        record.rest is None
        and data.find(separator) + len(separator) == len(data) <= operation.limit
        and data.endswith(separator)
    ):  # one line, and nothing behind it
        operation.data = data
        operation.size = len(data)
        record.readable = not short
        return True
    record.keep(data)
    record.readable = not short
    return _found(record, operation)


def _found(record: Record, operation: ReadUntil) -> bool:
    """Take what ends with the separator out of the bytes kept; also done if it is too far."""
    rest, separator, limit = record.rest, operation.separator, operation.limit
    if rest is None:
        return False
    begin = rest.find(separator, operation.searched, limit)
    if begin >= 0:
        operation.data = record.take_rest(begin + len(separator))
        operation.size = len(operation.data)
        return True
    if len(rest) >= limit:
        operation.error = LimitExceededError(
            f"no {separator!r} within {limit} bytes; what has come stays for the next read"
        )
        return True
    operation.searched = max(0, len(rest) - len(separator) + 1)
    return False


def receive_rest(record: Record, operation: Operation, room: int) -> bool:
    """Serve any read but :func:`receive_until` from the bytes kept."""
    if isinstance(operation, ReadInto):
        done = operation.size
        part = part_of(operation, done, operation.length - done)
        if part is None:
            return True
        with part:
            data = record.take_rest(len(part))
            part[: len(data)] = data
        operation.size = done + len(data)
        return operation.size == operation.length or not isinstance(operation, ReadFull)
    operation.data = record.take_rest(room)
    operation.size = len(operation.data)
    return True


def rest_shot(record: Record, armed: Armed, room: int) -> Operation:
    """One completion of an armed read from the bytes kept."""
    shot = start(Operation(), OpType.READ, armed.conn, armed.context)
    receive_rest(record, shot, room)
    shot.more = shot.completed = True
    return shot
