"""Progress: how far it is; a live bar on a terminal, a line per step elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from typing import Self, TextIO

from tests.soak.result import Result


class PlainProgress:
    """A line when a step begins, and one when it ends."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self.steps = steps
        self.stream = stream
        self.done = 0
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, step: str, asked: str) -> None:
        elapsed = time.monotonic() - self.started
        self._say(f"[{self.done + 1}/{self.steps} {elapsed:5.0f} s] {step}: {asked}")

    def end(self, result: Result) -> None:
        self.done += 1
        self._say("    " + ": ".join(filter(None, (result.ran, result.measured, result.verdict))))

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class RichProgress(PlainProgress):
    """A bar, and a line above it for each step that was not kept."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__(steps, stream)
        self.bar = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=stream),
        )
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, step: str, asked: str) -> None:
        self.bar.update(self.task, description=step)

    def end(self, result: Result) -> None:
        self.bar.advance(self.task)
        if not result.kept:
            self.note(f"{result.figure}, {result.variant}: {result.verdict}")

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False)


def progress_display(steps: int, stream: TextIO | None = None) -> PlainProgress:
    stream = stream or sys.stderr
    if stream.isatty():
        try:
            return RichProgress(steps, stream)
        except ImportError:
            pass
    return PlainProgress(steps, stream)
