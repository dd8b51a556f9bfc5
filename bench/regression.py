"""The line through completion times: seconds = slope x connections + intercept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.plan import REGRESSION, SIX
from bench.results import Results
from bench.scenarios import completion

GAIO_SLOPE = 8.613e-5  # seconds per connection, as gaio publishes it (Go, several cores)
GAIO_INTERCEPT = 0.08278


@dataclass(frozen=True, slots=True)
class Fit:
    slope: float
    intercept: float
    r2: float


@dataclass(frozen=True, slots=True)
class Series:
    server: str
    connections: list[int]
    seconds: list[float]  # medians
    fit: Fit


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    slope, intercept = statistics.linear_regression(x, y)
    return Fit(slope, intercept, statistics.correlation(x, y) ** 2)


def series(results: Results) -> list[Series]:
    """One per server that has at least three of the points."""
    found = []
    for server in SIX:
        points = []
        for count in REGRESSION:
            row = results.find(completion((), count, 1024).name, server)
            if row:
                points.append((count, row.median()))
        if len(points) >= 3:
            counts, seconds = map(list, zip(*points, strict=True))
            found.append(Series(server, counts, seconds, fit(counts, seconds)))
    return found
