"""Measurement: what the clients saw of one server, and what the server spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Report:
    """The clients' side. It travels from their process as JSON."""

    connections: int
    served: int  # connections with at least one whole answer
    round_trips: int
    seconds: float
    p50: float  # seconds, as all times here
    p99: float
    bytes_checked: int
    errors: int
    complaints: list[str] = field(default_factory=list)  # the first few errors, in words

    @property
    def rate(self) -> float:
        return self.round_trips / self.seconds if self.seconds else 0.0

    @property
    def right(self) -> bool:
        """Every byte came back right, on every connection."""
        return self.errors == 0 and self.served == self.connections


@dataclass(slots=True)
class Batches:
    """Sizes of the batches of completed operations that a consumer was handed."""

    count: int = 0
    operations: int = 0
    largest: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.operations += size
        self.largest = max(self.largest, size)

    @property
    def mean(self) -> float:
        return self.operations / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    name: str
    poller: str | None  # None: not a watcher
    batches: Batches | None
    report: Report
    cpu_seconds: float

    @property
    def cpu_per_round_trip(self) -> float:
        return self.cpu_seconds / self.report.round_trips if self.report.round_trips else 0.0

    @property
    def busy(self) -> float:
        """The share of one core that the server took."""
        return self.cpu_seconds / self.report.seconds if self.report.seconds else 0.0
