"""Guard: keeps what an instrument raises from the watcher."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiogaio.instruments.instrument import Instrument

_METHODS = ("submitted", "completed", "batch", "connection_opened", "connection_closed")


class _Guard:
    """An instrument whose methods do not raise."""

    __slots__ = _METHODS

    submitted: Callable[[Any], None]
    completed: Callable[[Any], None]
    batch: Callable[[Any], None]
    connection_opened: Callable[[Any], None]
    connection_closed: Callable[[Any], None]

    def __init__(self, instrument: Instrument, loop: asyncio.AbstractEventLoop) -> None:
        for name in _METHODS:
            method = getattr(instrument, name, None)
            if not callable(method):
                raise TypeError(
                    f"the instrument has no method {name}(): see aiogaio.instruments.Instrument"
                )
            setattr(self, name, partial(_call, loop, method))


def guarded(instrument: Instrument | None, loop: asyncio.AbstractEventLoop) -> Instrument | None:
    """The instrument, made safe. Raises :exc:`TypeError` if it is none."""
    return None if instrument is None else _Guard(instrument, loop)


def _call(loop: asyncio.AbstractEventLoop, method: Callable[[Any], None], subject: Any) -> None:
    try:
        method(subject)
    except (KeyboardInterrupt, SystemExit):  # as asyncio does it with its callbacks
        raise
    except BaseException as error:  # a CancelledError, of some future that it looked at
        loop.call_exception_handler(
            {"message": f"aiogaio: the instrument's {method!r} failed", "exception": error}
        )
