"""Report: the results as one table, for a terminal, for a file, for a README, for a program."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tests.soak.result import Result

HEAD = ("figure", "variant", "asked", "run", "measured", "kept")


def show(results: Sequence[Result], stream: TextIO | None = None) -> None:
    """A table of rich on a terminal, plain text elsewhere."""
    stream = stream or sys.stdout
    if stream.isatty():
        try:
            _show_rich(results, stream)
            return
        except ImportError:
            pass
    print(plain(results), file=stream)


def plain(results: Sequence[Result]) -> str:
    """Columns as wide as what they hold; what was asked stands once, above its variants."""
    rows = [(r.variant, r.ran, r.measured, r.verdict) for r in results]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines: list[str] = []
    asked = ""
    for result, row in zip(results, rows, strict=True):
        if result.asked != asked:
            asked = result.asked
            lines += ["", f"{result.figure}: {asked}"]
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join(["", *cells, row[3]]))
    return "\n".join([*lines, "", summary(results)])


def _show_rich(results: Sequence[Result], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEAD)
    asked = ""
    for r in results:
        style = "green" if r.kept else "bold red"
        new = r.asked != asked
        asked = r.asked
        if new:
            table.add_section()
        cells = (r.figure, r.variant, r.asked) if new else ("", r.variant, "")
        table.add_row(*map(Text, (*cells, r.ran, r.measured)), Text(r.verdict, style))
    console = Console(file=stream)
    console.print(table)
    console.print(summary(results), markup=False)


def summary(results: Sequence[Result]) -> str:
    kept = sum(result.kept for result in results)
    seconds = sum(result.seconds for result in results)
    return f"{kept} of {len(results)} kept, in {seconds:.0f} s"


def markdown(results: Sequence[Result]) -> str:
    """One row per figure, one column per variant, and the counts that were really run."""
    variants = list(dict.fromkeys(result.variant for result in results))
    figures = {
        result.asked: {r.variant: r for r in results if r.asked == result.asked}
        for result in results
    }
    head = ["asked", "run", *variants]
    rows = [head, ["---"] * len(head)]
    for asked, by_variant in figures.items():
        ran = ", or ".join(dict.fromkeys(r.ran for r in by_variant.values() if r.ran))
        rows.append([asked, ran, *(_cell(by_variant.get(variant)) for variant in variants)])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    mark = "" if result.kept else f"**{result.verdict}** "
    missed = f" ({result.verdict})" if result.kept and result.missed else ""
    return f"{mark}{result.measured}{missed}"


def save(results: Sequence[Result], file: Path) -> None:
    rows = [{**dataclasses.asdict(result), "kept": result.kept} for result in results]
    file.write_text(json.dumps(rows, indent=1) + "\n")
