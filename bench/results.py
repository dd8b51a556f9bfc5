"""What was measured: rows of figures, their spread, and the file they are kept in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import Sample


class Spread(NamedTuple):
    low: float
    median: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return Spread(ordered[0], statistics.median(ordered), ordered[-1])


def flatten(sample: Sample, prefix: str = "") -> dict[str, float]:
    """``{"latency_ns": {"p99": 7}}`` becomes ``{"latency_ns.p99": 7}``."""
    flat: dict[str, float] = {}
    for key, value in sample.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclass(slots=True)
class Row:
    """One server in one scenario: for each figure a value per round, or why there is none."""

    scenario: str
    server: str
    metric: str  # the figure that the scenario is about
    unit: str
    higher_is_better: bool
    figures: dict[str, list[float]] = field(default_factory=dict)
    error: str | None = None

    def add(self, sample: Sample) -> None:
        for name, value in flatten(sample).items():
            self.figures.setdefault(name, []).append(value)

    def has(self, figure: str) -> bool:
        return figure in self.figures

    @property
    def measured(self) -> bool:
        return self.metric in self.figures

    def values(self, figure: str | None = None) -> list[float]:
        return self.figures[figure or self.metric]

    def spread(self, figure: str | None = None) -> Spread:
        return spread(self.values(figure))

    def median(self, figure: str | None = None) -> float:
        return self.spread(figure).median

    def tails(self) -> list[float]:
        """p99/p50 of the latency, per round: 1 where all are served alike."""
        pairs = zip(self.values("latency_ns.p99"), self.values("latency_ns.p50"), strict=True)
        return [p99 / max(1.0, p50) for p99, p50 in pairs]


@dataclass(slots=True)
class Results:
    """One run of the benchmark."""

    machine: dict[str, Any]
    rounds: int
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # server: why it did not take part
    interrupted: bool = False

    def find(self, scenario: str, server: str) -> Row | None:
        """The row, if it has figures."""
        for row in self.of(scenario):
            if row.server == server:
                return row
        return None

    def of(self, scenario: str) -> list[Row]:
        """The rows of a scenario that have figures."""
        return [row for row in self.rows if row.scenario == scenario and row.measured]

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(row.scenario for row in self.rows))

    def save(self, path: Path) -> None:
        """Keep it as JSON, a line per row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = asdict(self)
        rows = ",\n".join(json.dumps(row) for row in data.pop("rows"))
        head = json.dumps(data, indent=1).removesuffix("\n}")
        path.write_text(f'{head},\n "rows": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Results:
        data = json.loads(path.read_text())
        rows = [Row(**row) for row in data.pop("rows")]
        return cls(rows=rows, **data)
