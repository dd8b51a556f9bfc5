"""The target: one input is carried out, and judged."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fuzz.session import FuzzSession
from tests.fuzz.steps import decode
from tests.model.machine import abandon, perform
from tests.model.runs import WORLDS
from tests.model.worlds import SimulatedWorld

#: System calls of one input, and turns of its loop; far more than one that gets somewhere makes.
_MOST = 50_000


class Crash(AssertionError):  # noqa: N818 - it is what an input comes to, not what code handles
    """An input has broken a rule; the cause says which."""


def one_input(data: bytes, log: Callable[[str], None] | None = None) -> int:
    """Carry out the session that ``data`` stands for; how many steps it had.

    Raises :exc:`Crash` if a rule of the model was broken, a call raised what it does not document,
    something was left behind, logged or raised where nobody could catch it, or no end was in sight.
    """
    set_up, steps = decode(data)
    before = _descriptors()
    with _nothing_unseen() as seen:
        try:
            _carry_out(set_up, steps, seen, log or (lambda _: None))
        except Exception as error:
            raise Crash("; ".join([f"{type(error).__name__}: {error}", *seen])) from error
        finally:
            gc.collect()
    left = _descriptors() - before
    if seen or left:
        raise Crash("; ".join([*seen, *(f"left open: {one}" for one in sorted(left))]))
    return len(steps)


def _carry_out(set_up: Any, steps: Any, seen: list[str], log: Callable[[str], None]) -> None:
    world = WORLDS[set_up.world]()
    assert isinstance(world, SimulatedWorld)
    world.loop.set_debug(set_up.debug)
    world.loop.set_exception_handler(lambda _, context: seen.append(_told(context)))
    _limit(world)
    log(f"{world.now:10.6f}  {set_up}")
    session = FuzzSession(world, set_up.poller, set_up.config)
    try:
        for name, numbers in steps:
            log(f"{world.now:10.6f}  {name}{tuple(numbers)}")
            perform(session, (name, numbers))
            assert not seen, seen[0]
        log(f"{world.now:10.6f}  the end")
        session.close()
        world.close()
    except BaseException:
        abandon(session, world)
        raise


def _limit(world: SimulatedWorld) -> None:
    """Let system calls and turns of the loop fail that are more than any session needs."""
    network, selector = world.network, world.loop._selector  # type: ignore[attr-defined]
    network.call = _counted(network.call, "system calls")  # type: ignore[method-assign]
    selector.select = _counted(selector.select, "turns of the loop")


def _counted(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    made = 0

    def counted(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        assert made <= _MOST, f"{name} without end: it spins"
        return call(*arguments)

    return counted


def _told(context: dict[str, Any]) -> str:
    return f"told to the loop: {context.get('message')} {context.get('exception')!r}"


def _descriptors() -> set[str]:
    """What is open in this process, the listing itself excepted."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {Path(f'/proc/self/fd/{name}').readlink()}")
        except OSError:
            continue
    return found


@contextmanager
def _nothing_unseen() -> Iterator[list[str]]:
    """What is raised where nobody can catch it, and what warns; the collector comes when asked.

    Else it would come when the process likes, and an input would not repeat itself.
    """
    seen: list[str] = []

    def note(unraisable: Any) -> None:
        seen.append(f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}")

    hook, sys.unraisablehook = sys.unraisablehook, note
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield seen
    finally:
        sys.unraisablehook = hook
        if collects:
            gc.enable()
