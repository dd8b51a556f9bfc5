"""Progress of a long program: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0


class Report:
    """Says on stdout how much of ``total`` is done; what ``total`` counts is the program's."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._console = Console(highlight=False)
        self._bar = Progress(
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True, markup=False)

    def tell(self, done: float, text: str) -> None:
        """How far it is: in the bar, or as a line if the last one is 10 s ago."""
        self._bar.update(self._task, completed=min(done, self._total), description=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _EVERY:
            self._said = now
            self.say(f"{self.elapsed:6.0f} s: {text}")
