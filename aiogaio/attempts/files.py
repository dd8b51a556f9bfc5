"""sendfile(2), and reading and sending where the system cannot."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from aiogaio.attempts.streams import CHUNK
from aiogaio.errors import EndOfStreamError

if TYPE_CHECKING:
    from aiogaio.connection import Record
    from aiogaio.operation import SendFile

#: Where a file can end at most: off_t has 64 bits.
LARGEST_OFFSET: Final = (1 << 63) - 1

#: The system cannot send from this kind of file, or to this kind of descriptor.
_NOT_SUPPORTED: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTSOCK, errno.ESPIPE}
)


def send_file(record: Record, operation: SendFile) -> bool:
    """Send once of what is left of the file; done when all of it is sent.

    Raises :exc:`OSError` for what concerns the connection.
    """
    left = CHUNK if operation.length < 0 else min(CHUNK, operation.length - operation.size)
    try:
        sent = _send_some(record, operation, left)
    except BlockingIOError:
        record.writable = False
        return False
    if sent is None:  # the file is at fault
        return True
    operation.size += sent
    if not sent:
        if operation.length >= 0:
            operation.error = EndOfStreamError(
                f"the file ended {operation.length - operation.size} bytes before count"
            )
        return True
    return operation.size == operation.length


def _send_some(record: Record, operation: SendFile, left: int) -> int | None:
    """Bytes sent, 0 at the end of the file; ``None``, and the error, if the file cannot be read."""
    position = operation.offset + operation.size
    if not operation.copying:
        try:
            number = operation.file.fileno()
        except Exception as error:  # closed by its owner
            operation.error = error.with_traceback(None)
            return None
        try:
            return os.sendfile(record.fileno(), number, position, left)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        operation.copying = True
    try:
        data = _read_some(operation, position, left)
    except Exception as error:
        operation.error = error.with_traceback(None)
        return None
    return record.send(data) if data else 0


def _read_some(operation: SendFile, position: int, left: int) -> bytes:
    file = operation.file
    file.seek(position)
    data = file.read(left)
    if not isinstance(data, bytes):
        raise TypeError(f"the file's read() returned {type(data).__name__!r}: open it as binary")
    return data[:left]
