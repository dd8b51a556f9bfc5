"""Result: what came of one figure on one variant."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Result:
    figure: str = ""
    variant: str = ""
    asked: str = ""
    ran: str = ""  # the counts that were really run
    measured: str = ""
    faults: list[str] = field(default_factory=list)  # what was not kept
    missed: list[str] = field(default_factory=list)  # the same, but reported only
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        return not self.faults

    @property
    def verdict(self) -> str:
        if self.faults:
            return f"NOT kept: {'; '.join(self.faults)}"
        return f"kept; reported only: {'; '.join(self.missed)}" if self.missed else "kept"
