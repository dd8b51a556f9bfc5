"""Progress: how far it is; a live line on a terminal, a plain one every 10 s elsewhere."""

from __future__ import annotations

import dataclasses
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0


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


class Report:
    """Says now and then how far it is."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._console = Console(highlight=False)
        self._bar = Progress(
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=seconds)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    def tell(self, count: Count) -> None:
        text = count.text(self.elapsed)
        self._bar.update(self._task, completed=min(self.elapsed, self._seconds), description=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _EVERY:
            self._said = now
            self.say(f"{self.elapsed:6.0f} s: {text}")
