"""What ``--loop`` and ``--poller`` name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar, get_args

from aiogaio.cli.failure import Failure

Loop = Literal["asyncio", "uvloop"]
Poller = Literal["auto", "epoll", "loop"]

LOOPS: tuple[str, ...] = get_args(Loop)
POLLERS: tuple[str, ...] = get_args(Poller)
INSTALL_UVLOOP = "pip install uvloop"

T = TypeVar("T")


def loop_factory(name: Loop) -> Callable[[], asyncio.AbstractEventLoop]:
    """
    :raises Failure: uvloop is asked for and not installed.
    """
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    try:
        import uvloop
    except ImportError:
        raise Failure(f"uvloop is not installed: {INSTALL_UVLOOP}", status=2) from None
    return uvloop.new_event_loop


def run(name: Loop, main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on the loop of that name; SIGINT cancels ``main``."""
    try:
        factory = loop_factory(name)
    except Failure:
        main.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
