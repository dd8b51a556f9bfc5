"""How far a run is: a live bar in a terminal, a line per step elsewhere.

The display changes between runs only, so that drawing never takes time from a measurement.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    def start(self, steps: int) -> None: ...
    def step(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


class PlainProgress:
    def __init__(self) -> None:
        self.steps = self.done = 0
        self.started = 0.0

    def start(self, steps: int) -> None:
        self.steps = steps
        self.started = time.monotonic()

    def step(self, text: str) -> None:
        self.done += 1
        elapsed = time.monotonic() - self.started
        print(f"[{self.done}/{self.steps} {elapsed:5.0f} s] {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"! {text}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        pass


class RichProgress:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TimeElapsedColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )

    def start(self, steps: int) -> None:
        self.task = self.bar.add_task("", total=steps)
        self.done = -1
        self.bar.start()

    def step(self, text: str) -> None:
        self.done += 1
        self.bar.update(self.task, completed=self.done, description=text)
        self.bar.refresh()

    def note(self, text: str) -> None:
        self.bar.console.print(f"[yellow]{text}")

    def finish(self) -> None:
        self.bar.update(self.task, completed=self.done + 1, description="done")
        self.bar.refresh()
        self.bar.stop()


def progress_display() -> Progress:
    if sys.stderr.isatty():
        try:
            return RichProgress()
        except ImportError:
            pass
    return PlainProgress()
