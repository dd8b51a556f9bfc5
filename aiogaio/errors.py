"""Every exception that aiogaio itself raises or delivers.

Errors of the operating system are not here: they stay the plain ``OSError`` subclasses that they
are (:exc:`ConnectionResetError`, :exc:`BrokenPipeError`, ...). Where a built-in exception says the
same, the class below derives from it as well.
"""

from __future__ import annotations


class AioGaioError(Exception):
    """Base of all errors of this package.

    >>> try:
    ...     op = watcher.write(conn, b"")
    ... except AioGaioError as error:
    ...     print(error)
    the data is empty: pass at least 1 byte
    """


class WatcherClosedError(AioGaioError):
    """The watcher was closed, by ``close()`` or with its ``async with`` block.

    What gaio's ``ErrWatcherClosed`` is.

    >>> watcher.close()
    >>> watcher.read(conn)
    Traceback (most recent call last):
    aiogaio.errors.WatcherClosedError: the watcher is closed: make another one
    """


class ConnectionFreedError(AioGaioError):
    """The connection was freed: by ``free()``, ``Connection.close()``, or before the request.

    Also if something was raised in the middle of an attempt on it (by a handler of
    ``signal.signal()``, or for want of memory): nobody knows then what was sent or received.
    What ``io.ErrClosedPipe`` is in gaio.

    >>> watcher.free(conn)
    True
    >>> watcher.read(conn).error
    ConnectionFreedError('the connection was freed before the request')
    """


class OperationCancelledError(AioGaioError):
    """The operation was cancelled, or stood behind a torn write: see its ``__cause__``.

    >>> op = watcher.read(conn)
    >>> watcher.cancel(op)
    True
    >>> op.error
    OperationCancelledError('the operation was cancelled')
    """


class DeadlineExceededError(AioGaioError, TimeoutError):
    """The operation's ``timeout`` or ``deadline`` passed; ``size`` says how far it came, in bytes.

    What gaio's ``ErrDeadline`` is.

    >>> peer.sendall(b"half")
    >>> op = watcher.read_full(conn, bytearray(8), timeout=0.001)
    >>> [op] = await watcher.wait_io()
    >>> isinstance(op.error, TimeoutError), op.size
    (True, 4)
    """


class EndOfStreamError(AioGaioError, EOFError):
    """The peer ended its side of the stream in order (a FIN, read(2) returning 0; RFC 9293, 3.6).

    >>> peer.close()
    >>> op = watcher.read(conn)
    >>> op.error
    EndOfStreamError('the peer ended its side of the connection')
    """


class EmptyBufferError(AioGaioError, ValueError):
    """A read into, or a write of, zero bytes was requested.

    What gaio's ``ErrEmptyBuffer`` is.

    >>> watcher.read(conn, bytearray())
    Traceback (most recent call last):
    aiogaio.errors.EmptyBufferError: the buffer is empty: pass one of at least 1 byte
    """


class LimitExceededError(AioGaioError):
    """``read_until`` found no separator within its limit. What has come stays for the next read.

    >>> op = watcher.read_until(conn, b";", limit=4)
    >>> peer.sendall(b"far too long;")
    >>> [op] = await watcher.wait_io()
    >>> type(op.error).__name__, op.size
    ('LimitExceededError', 0)
    >>> watcher.read(conn).data
    b'far too long;'
    """


class QueueFullError(AioGaioError):
    """More is pending than ``max_pending`` or ``max_queued_bytes`` allow; nothing was submitted.

    >>> limited = Watcher(max_pending=1)
    >>> op = limited.read(peer)
    >>> limited.read(peer)
    Traceback (most recent call last):
    aiogaio.errors.QueueFullError: 1 requests are pending on this connection, max_pending is 1: ...
    """


class UnsupportedConnectionError(AioGaioError, TypeError):
    """The object is no connection that this watcher can serve.

    What gaio's ``ErrUnsupported`` is.

    >>> watcher.read("example.org:80")
    Traceback (most recent call last):
    aiogaio.errors.UnsupportedConnectionError: cannot delegate 'str' object: ...
    """


class UnsupportedLoopError(AioGaioError, RuntimeError):
    """There is no running event loop, or it has no ``add_reader``/``add_writer``.

    >>> await asyncio.to_thread(Watcher)  # no loop runs in that thread
    Traceback (most recent call last):
    aiogaio.errors.UnsupportedLoopError: a Watcher is bound to the running event loop and ...
    """
