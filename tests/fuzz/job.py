"""A job: one process of many that fuzz at the same time."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from tests.fuzz.engine import Engine
from tests.fuzz.target import one_input
from tests.workers import leave_signals_to_parent

#: Seconds that one input may take; it takes some hundredths of one.
PATIENCE = 60


class Hang(AssertionError):  # noqa: N818 - it is what an input comes to, not what code handles
    """An input does not come to its end."""


def _patiently(data: bytes) -> int:
    """One input, which is a crash if it takes too long."""
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
    try:
        return one_input(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(*_: object) -> None:
    raise Hang(f"an input takes more than {PATIENCE} s")


def work(seed: int, corpus: Path | None, seconds: float, told: Any) -> None:
    """Fuzz for so long; each second put into the queue ``told`` how far it is."""
    engine, said = Engine(seed, corpus, _patiently), 0.0
    stop = time.monotonic() + seconds

    def tell() -> None:
        told.put((seed, engine.inputs, engine.steps, engine.lines, list(engine.crashes.values())))

    def goes_on() -> bool:
        nonlocal said
        now = time.monotonic()
        if now - said >= 1:
            said = now
            tell()
        return now < stop

    leave_signals_to_parent()
    signal.signal(signal.SIGALRM, _give_up)
    engine.run(goes_on)
    tell()
