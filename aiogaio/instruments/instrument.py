"""Instrument: what a watcher tells whoever looks on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogaio.connection import Connection
    from aiogaio.operation import Operation


class Instrument(Protocol):
    """Called in the loop's thread, in the middle of the watcher's work.

    So a method has to be quick, must not wait, and must not make requests. What it raises goes to
    the loop's exception handler and changes nothing, save KeyboardInterrupt and SystemExit.

    >>> class Sizes(Instrument):
    ...     def completed(self, operation):
    ...         print(operation.type.name, operation.size)
    >>> watched = Watcher(instrument=Sizes())
    >>> op = watched.write(peer, b"hello")
    WRITE 5
    """

    def submitted(self, operation: Operation) -> None:
        """A request was accepted; it is not completed yet.

        >>> class Requests(Instrument):
        ...     def submitted(self, operation):
        ...         print("submitted", operation.type.name)
        >>> watched = Watcher(instrument=Requests())
        >>> op = watched.read(peer)
        submitted READ
        """

    def completed(self, operation: Operation) -> None:
        """An operation has completed: a request, one shot of it, or a silent write.

        >>> class Failures(Instrument):
        ...     def completed(self, operation):
        ...         print(repr(operation.error))
        >>> watched = Watcher(instrument=Failures())
        >>> watched.cancel(watched.read(peer))
        OperationCancelledError('the operation was cancelled')
        True
        """

    def batch(self, operations: Sequence[Operation]) -> None:
        """These results are handed over to the program.

        >>> class Batches(Instrument):
        ...     def batch(self, operations):
        ...         print("batch of", len(operations))
        >>> watched = Watcher(instrument=Batches())
        >>> requests = [watched.write(peer, b"one"), watched.write(peer, b"two")]
        >>> results = await watched.wait_io()
        batch of 2
        """

    def connection_opened(self, conn: Connection) -> None:
        """A connection was delegated or accepted.

        >>> class Arrivals(Instrument):
        ...     def connection_opened(self, conn):
        ...         conn.context = "new"
        >>> watched = Watcher(instrument=Arrivals())
        >>> watched.delegate(peer).context
        'new'
        """

    def connection_closed(self, descriptor: int) -> None:
        """The connection with this descriptor is being closed.

        >>> class Departures(Instrument):
        ...     def connection_closed(self, descriptor):
        ...         print("closed", descriptor == number)
        >>> number = peer.fileno()
        >>> watched = Watcher(instrument=Departures())
        >>> watched.free(watched.delegate(peer))
        closed True
        True
        """
