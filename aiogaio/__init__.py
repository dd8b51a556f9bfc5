"""aiogaio: the proactor pattern of gaio (Go), native to asyncio.

Submit reads, writes and accepts on thousands of connections to a :class:`Watcher`, and collect
batches of completed operations from it.

In the examples ``watcher`` is a Watcher inside a running event loop, ``conn`` a connection that is
delegated to it, and ``peer`` the plain socket at the other end; what they name besides is imported,
and ``await`` is that of a coroutine.

>>> op = watcher.read(conn)  # a request
>>> peer.sendall(b"hello")
>>> for op in await watcher.wait_io():  # a batch of results
...     print(op.type.name, op.data)
READ b'hello'

A map for the reader, from the public calls down; imports point down only:

- ``watcher``, ``threadsafe``: the calls that gaio has; ``messages`` and ``streams``: those beyond.
- ``checks``: what a request brings is looked at, and its operation made. ``addresses``,
  ``adoption``, ``limits`` beside it.
- ``proactor``: the machine. Readiness in, completions out. Below it, each on top of the next,
  ``joints``, ``writes``, ``reads`` and ``core``: the kinds of requests, and the state.
- ``completions``: the queue of results, and the place that awaits.
- ``pollers``: which descriptors are ready: by an epoll of our own, or by the loop.
- ``attempts``: the system calls that move bytes.
- ``deadlines``, ``timer``: whose time is over, and the loop's timer that says so.
- ``inbox``: what other threads ask for.
- ``delegation``, ``descriptor``, ``connection``: taking a socket over, or another descriptor; one
  delegated descriptor.
- ``operation``, ``errors``, ``statistics``, ``affinity``: data, and small things.
- ``instruments``: who may look on.

``cli`` is the program ``python -m aiogaio``; nothing of the above knows it.
"""

from aiogaio.connection import Connection
from aiogaio.errors import (
    AioGaioError,
    ConnectionFreedError,
    DeadlineExceededError,
    EmptyBufferError,
    EndOfStreamError,
    LimitExceededError,
    OperationCancelledError,
    QueueFullError,
    UnsupportedConnectionError,
    UnsupportedLoopError,
    WatcherClosedError,
)
from aiogaio.operation import Operation, OpType
from aiogaio.statistics import Pending, Statistics
from aiogaio.threadsafe import ThreadSafe
from aiogaio.watcher import Watcher

__docformat__ = "restructuredtext"
__version__ = "0.1.0"

__all__ = [
    "AioGaioError",
    "Connection",
    "ConnectionFreedError",
    "DeadlineExceededError",
    "EmptyBufferError",
    "EndOfStreamError",
    "LimitExceededError",
    "OpType",
    "Operation",
    "OperationCancelledError",
    "Pending",
    "QueueFullError",
    "Statistics",
    "ThreadSafe",
    "UnsupportedConnectionError",
    "UnsupportedLoopError",
    "Watcher",
    "WatcherClosedError",
]
