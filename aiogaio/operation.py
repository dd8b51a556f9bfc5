"""Operation: a request and, once completed, its result. Data only; nothing here does I/O.

A program sees :class:`Operation` alone. A plain read, and a write that is sent at the call, are
of that very class: they are nearly all there are, and CPython reads the fields of objects of one
class about ten times as fast as those of several in turn. What needs more state while it is
pending has a class of its own below it. There is no ``__init__``: the requests that complete at
the call fill the fields themselves, and save a call for each message (see :func:`start`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from aiogaio.connection import Connection
    from aiogaio.deadlines import Entry


class OpType(enum.IntEnum):
    """What an operation does, as gaio's ``OpType``.

    All that receives is ``READ`` (``read_full``, ``read_until``, ``recvfrom``, ``recvmsg``), all
    that sends is ``WRITE`` (``writev``, ``sendfile``, ``sendto``, ``sendmsg``).

    >>> requests = [watcher.write(conn, b"hello"), watcher.read(conn)]
    >>> [op.type for op in requests]
    [<OpType.WRITE: 1>, <OpType.READ: 0>]
    >>> requests[0].type is OpType.WRITE
    True
    >>> [kind.name for kind in OpType if kind > OpType.WRITE]
    ['ACCEPT', 'CONNECT', 'SHUTDOWN', 'HANGUP', 'RELAY']
    """

    READ = 0
    WRITE = 1
    ACCEPT = 2
    CONNECT = 3
    SHUTDOWN = 4
    HANGUP = 5
    RELAY = 6


class Operation:
    """One request, returned by the call that submits it and delivered again when it completes.

    To be read only. ``error`` is delivered, never raised.

    - ``type``: what it does, an :class:`OpType`.
    - ``conn``: the :class:`~aiogaio.Connection` that it is on.
    - ``context``: the object passed with the request; without one, the connection's at that time.
    - ``buffer``: the caller's buffer of a read, the data of a write; else ``None``.
    - ``size``: bytes received or sent so far, also when it ends with an error.
    - ``data``: just the bytes read: ``bytes``, or a ``memoryview`` of the caller's buffer if the
      read had one.
    - ``error``: ``None``, or the exception that ended it.
    - ``more``: true if the request stays armed and further operations follow (multishot).
    - ``completed``: true once it is a result.
    - ``accepted``: the new connection of a completed accept; else ``None``.
    - ``address``: its peer's address, the sender's of a datagram, the one to connect or send to,
      in the form of its family; else ``None``.
    - ``truncated``: true if a datagram, or its ancillary data, was longer than the room for it.
    - ``flags``, ``ancillary``: what recvmsg(2) says beside the data; 0 and ``()`` else.
    - ``sizes``: of a relay, the bytes that went from its first connection to the second, and back.

    >>> request = watcher.read(conn, bytearray(16), context="first")
    >>> request.completed
    False
    >>> peer.sendall(b"hello")
    >>> [op] = await watcher.wait_io()
    >>> op is request, op.type, op.conn is conn, op.context
    (True, <OpType.READ: 0>, True, 'first')
    >>> op.size, bytes(op.data), len(op.buffer), op.error, op.more
    (5, b'hello', 16, None, False)
    """

    __slots__ = (
        "_next",
        "_previous",
        "_timer",
        "accepted",
        "address",
        "buffer",
        "completed",
        "conn",
        "context",
        "data",
        "error",
        "more",
        "size",
        "type",
    )

    type: OpType
    conn: Connection
    context: Any
    buffer: ReadableBuffer | None
    size: int
    # "| Any" as in re.Match.group(): which of the two it is, or whether there is one, the program
    # knows that made the request and looked at the error.
    data: bytes | Any
    accepted: Connection | Any
    address: Any
    error: Exception | None
    more: bool
    completed: bool

    # Of the class: those kinds that have more to say have fields of their own.
    truncated: bool = False
    flags: int = 0
    ancillary: Sequence[tuple[int, int, bytes]] = ()
    sizes: tuple[int, int] = (0, 0)

    # Set while it is pending: the neighbours in the queue of the connection's direction (no
    # `_previous` for the first), and the entry of the deadline.
    _next: Operation | None
    _previous: Operation | None
    _timer: Entry | None

    def __repr__(self) -> str:
        if not self.completed:
            state = "pending"
        elif self.error is not None:
            state = f"error={self.error!r}"
        else:
            state = "completed"
        more = " more" if self.more else ""
        return f"<Operation {self.type.name} {state}{more} size={self.size} conn={self.conn!r}>"


class ReadInto(Operation):
    """One receive into a buffer of the caller's."""

    __slots__ = ("flags", "length", "truncated")

    buffer: WriteableBuffer
    length: int  # of the buffer at submission, in bytes

    @property
    def data(self) -> memoryview:
        """The bytes received, a view made when asked for: nothing here holds one meanwhile."""
        with octets_of(self.buffer) as octets:
            return octets[: self.size]

    @data.setter
    def data(self, _: bytes | memoryview) -> None:
        """Nothing to keep: `start` gives every operation its first value."""


class ReadFull(ReadInto):
    """As many receives as fill the caller's buffer."""

    __slots__ = ()


class ReadUntil(Operation):
    """As many receives as bring a separator."""

    __slots__ = ("limit", "searched", "separator")

    separator: bytes
    limit: int  # bytes of the result at most, the separator among them
    searched: int  # bytes kept in which no separator begins


class Message(Operation):
    """One message, by recvmsg(2): a datagram with its sender, or ancillary data."""

    __slots__ = ("ancillary", "ancillary_size", "flags", "truncated")

    ancillary_size: int  # bytes of room


class Write(Operation):
    """A write that was not sent at the call: as many sends as take all of the data."""

    __slots__ = ("length", "silent", "skipped")

    buffer: ReadableBuffer
    length: int  # of the buffer, in bytes
    silent: bool
    skipped: int  # bytes sent before the rest was copied to `buffer` (silent writes)


class WriteV(Write):
    """A write of several buffers."""

    __slots__ = ("lengths", "offset", "parts", "position")

    parts: Sequence[ReadableBuffer]
    lengths: Sequence[int]
    position: int  # of the first part that is not sent whole
    offset: int  # bytes of it that are sent


class SendMessage(WriteV):
    """A message, by sendmsg(2): to an address, or with ancillary data."""

    __slots__ = ("ancillary",)


class SendFile(Write):
    """A part of a file, by sendfile(2). ``length`` is -1 until the end of the file is found."""

    __slots__ = ("copying", "file", "offset")

    file: Any
    offset: int
    copying: bool  # the system cannot send from this file: read and send


class Shutdown(Operation):
    """No more writes, behind those that are queued."""

    __slots__ = ()


class Fence(Operation):
    """Stands behind the writes of a connection and tells when they are done; never delivered."""

    __slots__ = ("reached",)

    reached: Callable[[], None]

    def reach(self) -> None:
        """What stood before it has completed, or will never."""
        self.completed = True
        self.reached()


class Accept(Operation):
    """One connection from a listener."""

    __slots__ = ()


class Lasting(Operation):
    """A request whose ``timeout`` is the longest silence, rather than the whole time."""

    __slots__ = ("due", "silence")

    silence: float | None  # seconds that may pass between two completions
    due: float | None  # when that is over; behind the heap's entry, which is moved only when due


class Armed(Lasting):
    """A multishot read or accept. What arrives is delivered as operations of their own."""

    __slots__ = ()


class ArmedMessage(Armed):
    """A multishot request for messages."""

    __slots__ = ("ancillary_size",)

    ancillary_size: int


class Joint(Lasting):
    """A request that occupies several queues: with a gate in each, it acts once all are first."""

    __slots__ = ("gates",)

    gates: list[Gate]


class Gate(Operation):
    """Keeps the place of a joint request in one queue; never delivered."""

    __slots__ = ("for_reads", "joint")

    joint: Joint
    for_reads: bool


class Connect(Joint):
    """A connection to be made."""

    __slots__ = ()


class Relay(Joint):
    """Two connections, the bytes of each to be sent to the other, until both have ended."""

    __slots__ = ("sizes", "ways")

    ways: tuple[Any, Any]  # see `relay.Way`


def octets_of(buffer: ReadableBuffer) -> memoryview:
    """A view of the bytes of any contiguous buffer, whatever the type of its items."""
    with memoryview(buffer) as view:
        return view.cast("B")


AnyOperation = TypeVar("AnyOperation", bound=Operation)


def start(operation: AnyOperation, kind: OpType, conn: Connection, context: Any) -> AnyOperation:
    """Fill in the fields of a new operation that has still to be carried out."""
    operation.type = kind
    operation.conn = conn
    operation.context = conn.context if context is None else context
    operation.buffer = None
    operation.size = 0
    operation.data = b""
    operation.error = None
    operation.more = False
    operation.completed = False
    operation.accepted = None
    operation.address = None
    operation._next = None
    operation._previous = None
    operation._timer = None
    return operation
