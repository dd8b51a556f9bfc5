"""Budget: how much of a figure is run, so that all of them fit into the time given."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass

from tests.soak.variant import Variant

SPARE_DESCRIPTORS = 400


@dataclass(frozen=True)
class Budget:
    variant: Variant
    scale: float = 1.0  # of the full counts
    repeats: int = 1
    gates_speed: bool = True  # else what depends on the machine's speed is reported only

    def count(self, full: int, *, least: int = 1) -> int:
        return min(full, max(least, round(full * self.scale)))

    def seconds(self, full: float, *, least: float = 1.0) -> float:
        return min(full, max(least, full * self.scale))

    def connections(self, full: int, *, least: int = 100, each: int = 1) -> int:
        """As ``count``, and no more than this process may have, at ``each`` descriptors."""
        most = (descriptor_limit() - SPARE_DESCRIPTORS) // each
        return min(self.count(full, least=least), most)


def descriptor_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def raise_descriptor_limit() -> None:
    hard = descriptor_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spread(costs: Mapping[str, float], seconds: float) -> tuple[dict[str, float], int]:
    """The scale of each figure, and how often to repeat them all, to fill so many seconds.

    Each gets the same share; one that needs less leaves the rest to the others.
    """
    scales: dict[str, float] = {}
    left = seconds
    for name, cost in sorted(costs.items(), key=lambda item: item[1]):
        given = min(cost, left / (len(costs) - len(scales)))
        scales[name] = given / cost
        left -= given
    return scales, max(1, int(seconds / sum(costs.values())))
