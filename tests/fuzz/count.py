"""Count: what the jobs have done so far, as one line."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Count:
    """What all jobs together have done."""

    inputs: int = 0
    steps: int = 0
    lines: int = 0
    of_lines: int = 0
    crashes: int = 0

    def text(self, seconds: float) -> str:
        rate = self.inputs / seconds if seconds else 0.0
        return (
            f"{self.inputs:,} inputs, {self.steps:,} steps, {rate:.0f} inputs/s, "
            f"{self.lines:,} of {self.of_lines:,} lines of aiogaio reached, {self.crashes} crashes"
        )
