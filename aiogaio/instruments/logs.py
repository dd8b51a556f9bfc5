"""LoggingInstrument: a line for each event, by the standard library's logging."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogaio.connection import Connection
    from aiogaio.operation import Operation


class LoggingInstrument:
    """Logs connections at ``INFO``, failed operations at ``WARNING``, all else at ``DEBUG``.

    :param logger: where to; by default the logger ``"aiogaio"``.

    An end of the stream is no failure.

    >>> logger = logging.Logger("server", logging.WARNING)
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> watched = Watcher(instrument=LoggingInstrument(logger))
    >>> watched.cancel(watched.read(peer))
    completed <Operation READ error=OperationCancelledError('the operation was cancelled') ...>
    True
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("aiogaio")

    def submitted(self, operation: Operation) -> None:
        """As :meth:`Instrument.submitted`."""
        self._logger.debug("submitted %r", operation)

    def completed(self, operation: Operation) -> None:
        """As :meth:`Instrument.completed`."""
        error = operation.error
        failed = error is not None and not isinstance(error, EOFError)
        self._logger.log(logging.WARNING if failed else logging.DEBUG, "completed %r", operation)

    def batch(self, operations: Sequence[Operation]) -> None:
        """As :meth:`Instrument.batch`."""
        self._logger.debug("a batch of %d results", len(operations))

    def connection_opened(self, conn: Connection) -> None:
        """As :meth:`Instrument.connection_opened`."""
        self._logger.info("opened %r", conn)

    def connection_closed(self, descriptor: int) -> None:
        """As :meth:`Instrument.connection_closed`."""
        self._logger.info("closed fd=%d", descriptor)
