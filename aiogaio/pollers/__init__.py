"""Pollers: say which descriptors are ready. They know records, but no operations.

Two of them, chosen by :func:`open_poller`:

- ``epoll``: one edge-triggered epoll of the watcher's own, whose descriptor is the only one that
  the loop watches. A batch of events costs one callback of the loop.
- ``loop``: ``add_reader``/``add_writer`` of the loop for each descriptor. Works wherever the
  loop has these.

Readiness is told as the bits of epoll(7), whichever poller it is.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from aiogaio.errors import UnsupportedLoopError
from aiogaio.pollers.loop import LoopPoller

if TYPE_CHECKING:
    import asyncio

    from aiogaio.pollers.base import Poller, Target

NAMES = ("auto", "epoll", "loop")


def open_poller(name: str, loop: asyncio.AbstractEventLoop, target: Target) -> Poller:
    """Open the poller ``name`` on ``loop``; ``"auto"`` takes epoll where it works."""
    if name not in NAMES:
        raise ValueError(f"poller must be one of {', '.join(map(repr, NAMES))}, not {name!r}")
    if name != "loop" and hasattr(select, "epoll"):
        from aiogaio.pollers.epoll import EpollPoller  # noqa: PLC0415 - exists on Linux only

        try:
            return EpollPoller(loop, target)
        except (AttributeError, NotImplementedError):
            if name == "epoll":
                raise _unsupported(loop) from None
        except (OSError, ValueError):
            if name == "epoll":
                raise
    elif name == "epoll":
        raise UnsupportedLoopError(
            "this system has no epoll: use poller='loop', or 'auto' to let the watcher choose"
        )
    try:
        return LoopPoller(loop, target)
    except (AttributeError, NotImplementedError):
        raise _unsupported(loop) from None


def _unsupported(loop: asyncio.AbstractEventLoop) -> UnsupportedLoopError:
    return UnsupportedLoopError(
        f"{type(loop).__name__} has no add_reader/add_writer: run the program with "
        "asyncio.SelectorEventLoop (asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)) "
        "or with uvloop"
    )
