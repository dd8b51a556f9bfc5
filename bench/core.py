"""The figures that the library is built to: each with its target and what was measured.

Every speed counts only together with its latency: p99/p50 at most 1.5 times that of uvloop's
Protocol in the same rounds. Serving a hot few and starving the rest is not speed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.load import Load
from bench.plan import COMPLETIONS, FLOOR, MULTISHOT
from bench.plan import REFERENCE as RIVAL
from bench.results import Results, Row, Spread, spread
from bench.scenarios import Scenario, echo, idle_memory

STREAMS = "asyncio-streams"
TAIL_LIMIT = 1.5
BUSY_LIMIT = 0.95

SMALL = "64 x 128 B"
MIDDLE = "1,000 x 128 B"
LARGE = "8,192 x 1 KiB"
LARGE_SAME_SIZE = "8,192 x 128 B"
IDLE = "8,000 idle connections"


@dataclass(frozen=True, slots=True)
class Target:
    """``server`` against ``rival`` in one scenario, by round trips per second."""

    scenario: str
    server: str
    rival: str
    at_least: float
    strive: float


TARGETS = (
    Target(SMALL, COMPLETIONS, RIVAL, 0.68, 0.75),
    Target(SMALL, COMPLETIONS, STREAMS, 3.0, 3.0),
    Target(SMALL, MULTISHOT, RIVAL, 0.80, 0.90),
    Target(MIDDLE, COMPLETIONS, RIVAL, 0.67, 0.72),
    Target(MIDDLE, MULTISHOT, RIVAL, 0.82, 0.88),
    Target(LARGE, COMPLETIONS, RIVAL, 0.85, 0.85),
    Target(LARGE, MULTISHOT, RIVAL, 1.0, 1.0),
    Target(SMALL, "aiogaio-rw-uvloop-loop", RIVAL, 0.55, 0.55),
    Target(SMALL, "aiogaio-ms-uvloop-loop", RIVAL, 0.77, 0.77),
)
IDLE_LIMIT = 600
GROWTH_LIMIT = 1.6


def scenarios(seconds: float, only: str) -> list[Scenario]:
    """All that the figures need, or those whose name matches the pattern ``only``."""
    load = Load(seconds=seconds)
    own = (COMPLETIONS, MULTISHOT)
    small = (*own, "aiogaio-rw-uvloop-loop", "aiogaio-ms-uvloop-loop", RIVAL, STREAMS, FLOOR)
    every = [
        echo(small, load),
        echo((*own, RIVAL, FLOOR), replace(load, connections=1000)),
        echo((*own, RIVAL, FLOOR), replace(load, connections=8192, size=1024)),
        echo((*own, RIVAL, FLOOR), replace(load, connections=8192)),
        idle_memory((COMPLETIONS, RIVAL, STREAMS)),
    ]
    return [scenario for scenario in every if fnmatch.fnmatch(scenario.name, only)]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: what, its bound, what was measured, and whether that is within the bound."""

    what: str
    bound: str
    measured: Spread | None
    good: bool
    remark: str = ""


def _ratios(row: Row, rival: Row, path: str | None = None) -> Spread:
    """Round by round, then the median: what disturbs a round disturbs both."""
    pairs = zip(row.values(path), rival.values(path), strict=False)
    return spread(a / b for a, b in pairs)


def _tail_ratio(row: Row, rival: Row) -> float:
    pairs = zip(row.tails(), rival.tails(), strict=False)
    return spread(a / b for a, b in pairs).median


def _remark(row: Row, rival: Row, tails: float) -> str:
    """The same ratio by CPU time, which other processes disturb less, and what spoils a figure."""
    words = [
        f"{_ratios(rival, row, 'cpu_us').median:.2f} by CPU",
        f"p99/p50 {tails:.2f} x uvloop's",
    ]
    if tails > TAIL_LIMIT:
        words.append("TOO LONG A TAIL")
    if any(r.median("server_busy") < BUSY_LIMIT for r in (row, rival)):
        words.append("DISTURBED: a server had less than its core")
    return ", ".join(words)


def lines(results: Results) -> Iterator[Line]:
    """Every figure for which the results have samples."""
    for target in TARGETS:
        row, rival = (results.find(target.scenario, s) for s in (target.server, target.rival))
        reference = results.find(target.scenario, RIVAL)
        what = f"{target.scenario}: {target.server} / {target.rival}"
        bound = f">= {target.at_least:.2f}"
        if target.strive > target.at_least:
            bound += f" (strive {target.strive:.2f})"
        if row and rival and reference:
            ratio, tails = _ratios(row, rival), _tail_ratio(row, reference)
            good = ratio.median >= target.at_least and tails <= TAIL_LIMIT
            yield Line(what, bound, ratio, good, _remark(row, rival, tails))
        elif target.scenario in results.scenarios:
            yield Line(what, bound, None, False, "not measured")
    yield from _growth(results)
    yield from _memory(results)


def _growth(results: Results) -> Iterator[Line]:
    for server in (COMPLETIONS, MULTISHOT, RIVAL, FLOOR):
        few, many = (results.find(name, server) for name in (SMALL, LARGE_SAME_SIZE))
        if few and many:
            own = server.startswith("aiogaio")
            ratio = _ratios(many, few, "cpu_us")
            bound = f"< {GROWTH_LIMIT}" if own else "for comparison"
            good = ratio.median < GROWTH_LIMIT or not own
            what = f"CPU per round trip, 64 -> 8,192 connections: {server}"
            yield Line(what, bound, ratio, good)


def _memory(results: Results) -> Iterator[Line]:
    for row in results.of(IDLE):
        own = row.server.startswith("aiogaio")
        size = row.spread()
        bound = f"<= {IDLE_LIMIT}" if own else "for comparison"
        good = size.median <= IDLE_LIMIT or not own
        yield Line(f"resident bytes per idle connection: {row.server}", bound, size, good)


def print_lines(results: Results) -> bool:
    """Print the table; whether every figure is within its bound."""
    every = list(lines(results))
    width = max((len(line.what) for line in every), default=0)
    for line in every:
        m = line.measured
        text = f"{_short(m.median):>7} ({_short(m.low)} .. {_short(m.high)})" if m else "      -"
        mark = "ok  " if line.good else "MISS" if m else "?   "
        print(f"{mark} {line.what:{width}}  {line.bound:22} {text:24} {line.remark}")
    return all(line.good for line in every)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


_COLUMNS = ("cpu_us", "cpu_us_user", "latency_ns.p50", "server_busy", "core_busy", "load_busy")


def print_rows(results: Results) -> None:
    """The raw figures behind the ratios."""
    speeds = [row for row in results.rows if row.measured and row.metric == "per_second"]
    if speeds:
        print(
            f"\n{'scenario':16} {'server':26} {'per second':>10} {'CPU us':>7} {'user':>6} "
            f"{'p50 us':>8} {'p99/p50':>7} {'server':>6} {'core':>5} {'load':>5}"
        )
    for row in speeds:
        cpu, user, p50, server, core, load = map(row.median, _COLUMNS)
        print(
            f"{row.scenario:16} {row.server:26} {row.median():10,.0f} {cpu:7.2f} {user:6.2f} "
            f"{p50 / 1e3:8,.0f} {spread(row.tails()).median:7.2f} "
            f"{server:6.0%} {core:5.0%} {load:5.0%}"
        )
    for row in results.rows:
        if row.error:
            print(f"{row.scenario}, {row.server}: failed: {row.error}")
