"""What makes a figure worth less than it looks."""

from __future__ import annotations

from bench.plan import REFERENCE
from bench.results import Results, Row, spread

BUSY = 0.95  # of its core: less, and something else than the server was the limit
TAIL = 1.5  # times the reference's p99/p50: more, and some were served late
UNEVEN = 0.5  # a hundredth of the connections got less than this part of the median


def flags(results: Results, row: Row) -> list[str]:
    """Short words, none for a sound row."""
    if not row.has("latency_ns.p50"):
        return []
    if row.metric.startswith("open."):  # a burst is over too soon to say how it was shared
        return _not_busy(row, "open.")
    return [*_not_busy(row, ""), *_starving(results, row)]


def _not_busy(row: Row, phase: str) -> list[str]:
    core, server, load = (row.median(f"{phase}{side}_busy") for side in ("core", "server", "load"))
    if core < BUSY:
        return [f"core only {core:.0%} busy" + (", the load was the limit" if load > BUSY else "")]
    if server < core * 0.9:
        return [f"disturbed: had {server:.0%} of its core"]
    return []


def _starving(results: Results, row: Row) -> list[str]:
    reference = results.find(row.scenario, REFERENCE)
    found = []
    if reference and row is not reference:
        own, other = (spread(r.tails()).median for r in (row, reference))
        if own > other * TAIL:
            found.append(f"starves: p99/p50 {own:.1f}, {REFERENCE} {other:.1f}")
    # Fewer than four round trips per connection say nothing about how even they are.
    if row.median("fairness.median") >= 4:
        shares = [
            p1 / median
            for p1, median in zip(
                row.values("fairness.p1"), row.values("fairness.median"), strict=True
            )
        ]
        if spread(shares).median < UNEVEN:
            found.append("starves: uneven between connections")
    return found
