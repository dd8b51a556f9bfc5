"""Operation: a request and, once completed, its result. Data only; nothing here does I/O.

A program sees every operation through the fields of :class:`Operation`. Behind it stands one
class for each kind, so that a pending read does not carry the fields of an accept, and so that
the kind needs no field of its own. Operations are made without ``__init__`` where a request
completes at the call: it fills only what a result needs.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from aiogaio.connection import Connection
    from aiogaio.deadlines import Entry


class OpType(enum.IntEnum):
    """What an operation does, as gaio's ``OpType``; ``read_full`` completes as ``READ``."""

    READ = 0
    WRITE = 1
    ACCEPT = 2


class Operation:
    """One request, returned by the call that submits it and delivered again when it completes.

    Fields, all to be read only:

    - ``type``: :class:`OpType`.
    - ``conn``: the :class:`~aiogaio.Connection`.
    - ``context``: the object passed with the request, or the connection's at that time.
    - ``size``: bytes received or sent so far, also when it ends with an error.
    - ``error``: ``None`` or the exception that ended it. It is delivered, never raised.
    - ``more``: true if the request stays armed and further operations follow (multishot).
    - ``completed``: true once it is a result.
    - ``buffer``, ``data``, ``accepted``, ``address``: see the properties below.
    """

    __slots__ = (
        "_next",
        "_previous",
        "_timer",
        "completed",
        "conn",
        "context",
        "error",
        "more",
        "size",
    )

    type: ClassVar[OpType]
    conn: Connection
    context: Any
    size: int
    error: Exception | None
    more: bool
    completed: bool

    # Neighbours in the queue of the connection's direction, and the entry of the deadline: set
    # only while the operation is pending.
    _next: Operation | None
    _previous: Operation | None
    _timer: Entry | None

    def __init__(self, conn: Connection, context: Any) -> None:
        self.conn = conn
        self.context = conn.context if context is None else context
        self.size = 0
        self.error = None
        self.more = False
        self.completed = False
        self._next = None
        self._previous = None
        self._timer = None

    @property
    def buffer(self) -> ReadableBuffer | None:
        """The caller's buffer of a read, the data of a write; else ``None``."""
        return None

    @property
    def data(self) -> bytes | memoryview:
        """Just the ``size`` bytes read: ``bytes`` if no buffer was given, else a view of yours."""
        return b""

    @property
    def accepted(self) -> Connection | Any:  # "| Any": None after an error, as re.Match.group()
        """The new :class:`~aiogaio.Connection` of a completed accept; else ``None``."""
        return None

    @property
    def address(self) -> Any:
        """The peer's address of a completed accept, in the form of its family; else ``None``."""
        return None

    def __repr__(self) -> str:
        if not self.completed:
            state = "pending"
        elif self.error is not None:
            state = f"error={self.error!r}"
        else:
            state = "completed"
        more = " more" if self.more else ""
        return f"<Operation {self.type.name} {state}{more} size={self.size} conn={self.conn!r}>"


class Read(Operation):
    """One receive, as fresh ``bytes``."""

    __slots__ = ("data",)

    type = OpType.READ
    data: bytes

    def __init__(self, conn: Connection, context: Any) -> None:
        super().__init__(conn, context)
        self.data = b""


class MultishotRead(Read):
    """An armed read: what arrives is delivered as :class:`Read`, this one comes last."""

    __slots__ = ("due", "silence")

    silence: float | None  # seconds that may pass between two completions
    due: float | None  # when that is over; behind the heap's entry, which is moved only when due


class ReadInto(Operation):
    """One receive into a buffer of the caller's."""

    __slots__ = ("buffer", "length")

    type = OpType.READ
    buffer: WriteableBuffer
    length: int  # of the buffer at submission, in bytes

    @property
    def data(self) -> memoryview:
        # Made when asked for: between attempts and afterwards nothing here holds the buffer.
        return memoryview(self.buffer).cast("B")[: self.size]


class ReadFull(ReadInto):
    """As many receives as fill the caller's buffer."""

    __slots__ = ()


class Write(Operation):
    """As many sends as take all of the data."""

    __slots__ = ("buffer", "length", "skipped", "silent")

    type = OpType.WRITE
    buffer: ReadableBuffer
    length: int  # of the buffer at submission, in bytes
    skipped: int  # bytes sent before the rest was copied to `buffer` (silent writes)
    silent: bool


class Accept(Operation):
    """One connection from a listener."""

    __slots__ = ("accepted", "address")

    type = OpType.ACCEPT
    accepted: Connection | Any
    address: Any

    def __init__(self, conn: Connection, context: Any) -> None:
        super().__init__(conn, context)
        self.accepted = None
        self.address = None


class MultishotAccept(Accept):
    """An armed accept: connections are delivered as :class:`Accept`, this one comes last."""

    __slots__ = ("due", "silence")

    silence: float | None
    due: float | None
