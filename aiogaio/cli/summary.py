"""The closing summary: an aligned table, a column for each server, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiogaio.cli.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    cell: Callable[[Measurement], str]
    figure: Callable[[Measurement], float] | None = None  # what the ratio is taken of


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


ROWS = (
    Row("poller", lambda m: m.poller or "-"),
    Row("round trips", lambda m: f"{m.report.round_trips:,}"),
    Row("round trips per second", lambda m: f"{m.report.rate:,.0f}", lambda m: m.report.rate),
    Row("latency p50, ms", lambda m: _milliseconds(m.report.p50), lambda m: m.report.p50),
    Row("latency p99, ms", lambda m: _milliseconds(m.report.p99), lambda m: m.report.p99),
    Row("bytes checked", lambda m: f"{m.report.bytes_checked:,}"),
    Row("errors", lambda m: f"{m.report.errors:,}"),
    Row("connections served", lambda m: f"{m.report.served:,} of {m.report.connections:,}"),
    Row("operations per batch, mean", lambda m: f"{m.batches.mean:.1f}" if m.batches else "-"),
    Row("operations per batch, max", lambda m: f"{m.batches.largest:,}" if m.batches else "-"),
    Row(
        "server CPU per round trip, us",
        lambda m: f"{m.cpu_per_round_trip * 1e6:.2f}",
        lambda m: m.cpu_per_round_trip,
    ),
    Row("server CPU, % of a core", lambda m: f"{m.busy:.0%}".rstrip("%")),
)


# Without it a maximum above batch_size looks like a mistake.
BATCHES = "A batch may exceed batch_size: it holds the completed writes beside the reads."


def summary(measurements: Sequence[Measurement]) -> str:
    """The table; with two servers, a last column has the first one's figure over the second's."""
    header = ["", *(m.name for m in measurements)]
    lines = [[row.label, *(row.cell(m) for m in measurements)] for row in ROWS]
    if len(measurements) == 2:
        header.append("ratio")
        for line, row in zip(lines, ROWS, strict=True):
            line.append(_ratio(row, *measurements))
    table = _align([header, *lines])
    return f"{table}\n{BATCHES}" if any(m.batches for m in measurements) else table


def verdict(measurements: Sequence[Measurement]) -> str:
    """What went wrong, in words, or that nothing did."""
    wrong = [m for m in measurements if not m.report.right]
    if not wrong:
        return "Every byte came back right, on every connection."
    complaints = [f"  {m.name}: {what}" for m in wrong for what in _complaints(m)]
    return "\n".join(["FAILED: not every byte came back right.", *complaints])


def _complaints(measurement: Measurement) -> list[str]:
    report = measurement.report
    missing = report.connections - report.served
    idle = [f"{missing:,} connections had no round trip"] if missing else []
    return [*report.complaints, *idle]


def _ratio(row: Row, first: Measurement, second: Measurement) -> str:
    if row.figure is None or not row.figure(second):
        return ""
    return f"{row.figure(first) / row.figure(second):.2f}"


def _align(lines: Sequence[Sequence[str]]) -> str:
    """Labels to the left, figures to the right, each column as wide as it needs to be."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
