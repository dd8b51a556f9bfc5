"""aiogaio: the proactor pattern of gaio (Go), native to asyncio.

Submit reads, writes and accepts on thousands of connections to a :class:`Watcher`, and collect
batches of completed operations from it.

A map for the reader, from the public calls down; imports point down only:

- ``watcher``, ``threadsafe``: the calls. They check and make operations.
- ``proactor``: the machine. Readiness in, completions out.
- ``completions``: the queue of results, and the one place that awaits.
- ``pollers``: which descriptors are ready: by an epoll of our own, or by the loop.
- ``attempts``: the ``recv``, ``send`` and ``accept`` calls.
- ``deadlines``, ``timer``: whose time is over, and the loop's timer that says so.
- ``inbox``: what other threads ask for.
- ``delegation``, ``connection``: taking a socket over; one delegated descriptor.
- ``operation``, ``errors``, ``statistics``, ``affinity``: data, and small things.

``cli`` is the program ``python -m aiogaio``; nothing of the above knows it.
"""

from aiogaio.connection import Connection
from aiogaio.errors import (
    AioGaioError,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    EndOfStreamError,
    OperationCancelledError,
    UnsupportedConnectionError,
    UnsupportedLoopError,
    WatcherClosedError,
)
from aiogaio.operation import Operation, OpType
from aiogaio.statistics import Statistics
from aiogaio.threadsafe import ThreadSafe
from aiogaio.watcher import Watcher

__version__ = "0.1.0"

__all__ = [
    "AioGaioError",
    "Connection",
    "ConnectionFreedError",
    "DeadlineExceededError",
    "EmptyBufferError",
    "EndOfStreamError",
    "OpType",
    "Operation",
    "OperationCancelledError",
    "Statistics",
    "ThreadSafe",
    "UnsupportedConnectionError",
    "UnsupportedLoopError",
    "Watcher",
    "WatcherClosedError",
]
