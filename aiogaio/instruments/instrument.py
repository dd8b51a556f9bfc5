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
    the loop's exception handler and changes nothing.
    """

    def submitted(self, operation: Operation) -> None:
        """A request was accepted; it is not completed yet."""

    def completed(self, operation: Operation) -> None:
        """An operation has completed: a request, one shot of it, or a silent write."""

    def batch(self, operations: Sequence[Operation]) -> None:
        """These results are handed over to the program."""

    def connection_opened(self, conn: Connection) -> None:
        """A connection was delegated or accepted."""

    def connection_closed(self, descriptor: int) -> None:
        """The connection with this descriptor is being closed."""
