"""Progress: one line that is rewritten on a terminal, one line after another anywhere else."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

PLAIN_INTERVAL = 1.0  # a log needs fewer lines than an eye


class Progress:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rewrite = out.isatty()
        self._width = 0  # of what stands on the line now
        self._next = 0.0

    def show(self, line: str) -> None:
        """Show the latest figures, unless plain lines would come too fast."""
        if self._rewrite:
            self._draw(line)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL
            print(line, file=self._out, flush=True)

    def end(self, line: str) -> None:
        """The last figures; they stay."""
        if self._rewrite:
            self._draw(line)
            print(file=self._out, flush=True)
        else:
            print(line, file=self._out, flush=True)

    def _draw(self, line: str) -> None:
        # Not into the last column: a line that wraps cannot be rewritten.
        line = line[: shutil.get_terminal_size().columns - 1]
        blank = " " * (self._width - len(line))
        print(f"\r{line}{blank}", end="", file=self._out, flush=True)
        self._width = len(line)
