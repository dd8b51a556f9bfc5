"""What a million pending deadlines cost: ``python -m bench.deadlines SUBJECT``.

The rivals are the loops' own timers: ``call_later`` and ``cancel``. aiogaio's deadlines belong to
requests, so that its figure has a million reads in it; the same reads without a deadline stand
beside it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

COUNT = 1_000_000
CONNECTIONS = 1_000
FAR = 3600.0

Sample = dict[str, float]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def _turn_us(loop_turns: int = 2_000) -> float:
    """What one turn of the loop costs while all of them are pending."""
    start = time.process_time()
    for _ in range(loop_turns):
        await asyncio.sleep(0)
    return (time.process_time() - start) / loop_turns * 1e6


async def _timers() -> Sample:
    loop = asyncio.get_running_loop()
    memory = _resident()
    start = time.process_time()
    handles = [loop.call_later(FAR, print) for _ in range(COUNT)]
    added = time.process_time() - start
    memory = _resident() - memory
    turn = await _turn_us()
    start = time.process_time()
    for handle in handles:
        handle.cancel()
    await asyncio.sleep(0)  # some loops clear cancelled timers in their next turn
    return _sample(added, time.process_time() - start, memory, turn)


async def _reads(timeout: float | None) -> Sample:
    from aiogaio import Watcher

    pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
    async with Watcher() as watcher:
        conns = [watcher.delegate(ours) for ours, _ in pairs]
        memory = _resident()
        start = time.process_time()
        ops = [
            watcher.read(conn, timeout=timeout)
            for _ in range(COUNT // CONNECTIONS)
            for conn in conns
        ]
        added = time.process_time() - start
        memory = _resident() - memory
        turn = await _turn_us()
        start = time.process_time()
        for op in reversed(ops):  # the newest first: a queue drops its tail at little cost
            watcher.cancel(op)
        removed = time.process_time() - start
        while watcher.poll_io():
            pass
    for _, theirs in pairs:
        theirs.close()
    return _sample(added, removed, memory, turn)


def _sample(added: float, removed: float, memory: int, turn: float) -> Sample:
    return {
        "us": (added + removed) / COUNT * 1e6,
        "add_us": added / COUNT * 1e6,
        "remove_us": removed / COUNT * 1e6,
        "bytes": memory / COUNT,
        "turn_us": turn,
    }


def _uvloop(main: Callable[[], Awaitable[Sample]]) -> Sample:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())  # type: ignore[arg-type]


SUBJECTS: dict[str, Callable[[], Sample]] = {
    "aiogaio: reads with a deadline": lambda: asyncio.run(_reads(FAR)),
    "aiogaio: reads without": lambda: asyncio.run(_reads(None)),
    "asyncio: call_later": lambda: asyncio.run(_timers()),
    "uvloop: call_later": lambda: _uvloop(_timers),
}


if __name__ == "__main__":
    print(json.dumps(SUBJECTS[sys.argv[1]]()))
