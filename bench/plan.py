"""Which scenarios a run has: the quick look, and the whole comparison."""

from __future__ import annotations

from dataclasses import replace

from bench import deadlines, imports
from bench.load import Load
from bench.scenarios import (
    Scenario,
    churn,
    completion,
    echo,
    idle_memory,
    loop_lag,
    push,
    relay,
    script,
    throughput,
)
from bench.servers import SERVERS

REFERENCE = "uvloop-protocol"
FLOOR = "floor"
COMPLETIONS = "aiogaio-rw-asyncio-epoll"
MULTISHOT = "aiogaio-ms-asyncio-epoll"

FIVE = (COMPLETIONS, MULTISHOT, "asyncio-streams", REFERENCE, FLOOR)
SIX = (*FIVE, "asyncio-buffered")


def _every(role: str) -> tuple[str, ...]:
    return tuple(name for name, server in SERVERS.items() if role in server.roles)


EVERY = _every("echo")
RELAYING = tuple(name for name in _every("relay") if not name.endswith("ms-asyncio-loop"))
PUSHING = tuple(name for name in _every("push") if not name.endswith("asyncio-loop"))

GRID_CONNECTIONS = (1, 64, 1000, 8192)
GRID_SIZES = (16, 128, 1024, 16384, 65536)
REGRESSION = (1024, 2048, 4096, 6144, 8192, 10240, 12288)

QUICK_ROUNDS = 2
FULL_ROUNDS = 5


def quick() -> list[Scenario]:
    """Under a minute."""
    load = Load(seconds=0.4, warmup=0.2)
    return [
        echo(FIVE, load),
        echo(FIVE, replace(load, connections=1000)),
        echo(FIVE, replace(load, connections=8192, size=1024)),
    ]


def full() -> list[Scenario]:
    """About twenty minutes, with five rounds."""
    load = Load(seconds=0.5, warmup=0.2)
    return [*headlines(load), *regression(), *grid(load), *others(load)]


def headlines(load: Load) -> list[Scenario]:
    """gaio's own: 64 KiB messages sent on and on through one connection; 8,192 x 1 KiB."""
    stream = replace(load, connections=1, size=65536, depth=16)
    return [throughput(EVERY, stream), completion(EVERY, 8192, 1024)]


def regression() -> list[Scenario]:
    """gaio's third: how the time to complete grows with the number of connections."""
    return [completion(SIX, count, 1024) for count in REGRESSION if count != 8192]


def grid(load: Load) -> list[Scenario]:
    # The most connections need more time for several round trips each.
    longer = replace(load, seconds=load.seconds * 1.5, warmup=load.warmup * 2)
    return [
        echo(
            SIX, replace(longer if connections > 1000 else load, connections=connections, size=size)
        )
        for connections in GRID_CONNECTIONS
        for size in GRID_SIZES
    ]


def others(load: Load) -> list[Scenario]:
    lagging = tuple(name for name in (*SIX, "aiogaio-ms-uvloop-loop") if name != FLOOR)
    return [
        echo(EVERY, replace(load, depth=8)),
        echo(SIX, replace(load, connections=1, idle=8000)),
        idle_memory(EVERY),
        churn(SIX, load),
        push(PUSHING, replace(load, connections=8192, size=1024)),
        relay(RELAYING, replace(load, connections=2, size=65536, depth=8)),
        relay(RELAYING, replace(load, connections=64, size=1024)),
        loop_lag(lagging, replace(load, connections=1000)),
        script(
            "1,000,000 pending deadlines", "deadlines", tuple(deadlines.SUBJECTS), "us", "us each"
        ),
        script("import", "imports", imports.SUBJECTS, "ms", "ms"),
    ]
