"""Every exception that aiogaio itself raises or delivers.

Errors of the operating system are not here: they stay the plain ``OSError`` subclasses that they
are (:exc:`ConnectionResetError`, :exc:`BrokenPipeError`, ...). Where a built-in exception says the
same, the class below derives from it as well.
"""

from __future__ import annotations


class AioGaioError(Exception):
    """Base of all errors of this package."""


class WatcherClosedError(AioGaioError):
    """The watcher was closed, by ``close()`` or with its ``async with`` block."""


class ConnectionFreedError(AioGaioError):
    """The connection was freed: by ``free()``, ``Connection.close()``, or before the request."""


class OperationCancelledError(AioGaioError):
    """The operation was cancelled, or stood behind a torn write: see its ``__cause__``."""


class DeadlineExceededError(AioGaioError, TimeoutError):
    """The operation's ``timeout`` or ``deadline`` passed; ``size`` says how far it came."""


class EndOfStreamError(AioGaioError, EOFError):
    """The peer ended its side of the stream in order (a FIN, read(2) returning 0)."""


class EmptyBufferError(AioGaioError, ValueError):
    """A read into, or a write of, zero bytes was requested."""


class LimitExceededError(AioGaioError):
    """``read_until`` found no separator within its limit. What has come stays for the next read."""


class QueueFullError(AioGaioError):
    """More is pending than ``max_pending`` or ``max_queued_bytes`` allow; nothing was submitted."""


class UnsupportedConnectionError(AioGaioError, TypeError):
    """The object is no connection that this watcher can serve."""


class UnsupportedLoopError(AioGaioError, RuntimeError):
    """There is no running event loop, or it has no ``add_reader``/``add_writer``."""
