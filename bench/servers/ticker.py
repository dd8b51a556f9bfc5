"""A task that wants to run every millisecond, and how late it comes: the loop's lag under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from array import array

PERIOD = 0.001


def start() -> None:
    """Tick on the running asyncio loop; SIGTERM prints the lags and exits."""
    loop = asyncio.get_running_loop()
    lags = array("d")

    def tick(due: float) -> None:
        now = loop.time()
        lags.append(now - due)
        due = max(due + PERIOD, now)
        loop.call_at(due, tick, due)

    def report(*_: object) -> None:
        print(json.dumps(_summary(lags)), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, report)
    due = loop.time() + PERIOD
    loop.call_at(due, tick, due)


def _summary(lags: array[float]) -> dict[str, float]:
    ordered = sorted(lags)
    last = len(ordered) - 1
    return {
        "ticks": len(ordered),
        "p50_ms": ordered[last // 2] * 1e3,
        "p99_ms": ordered[last * 99 // 100] * 1e3,
        "max_ms": ordered[last] * 1e3,
    }
