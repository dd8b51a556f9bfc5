"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.flags import flags
from bench.plan import FLOOR, GRID_CONNECTIONS, GRID_SIZES, REFERENCE, SIX
from bench.regression import GAIO_INTERCEPT, GAIO_SLOPE, series
from bench.results import Results, Row, spread
from bench.scenarios import human_size, plural


def markdown(results: Results, charts: Sequence[str] = ()) -> str:
    """The machine, the charts, the summaries, and every row."""
    parts = [
        "# How fast, beside the others\n",
        _machine(results),
        _absent(results),
        "\n".join(f"![{name}]({name})\n" for name in charts),
        _grid(results),
        _regression(results),
        *(_scenario(results, name) for name in results.scenarios),
    ]
    return "\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Three or four figures that matter."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _machine(results: Results) -> str:
    facts = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = (
        f"{facts['date']}, commit {facts['commit']}. {facts['cpu']}, {facts['cores']} cores "
        f"(server on {facts['server_core']}, load on {facts['load_core']}); {facts['kernel']}; "
        f"{facts['python']}; {versions}; {facts['compiler']}. "
        f"Interleaved rounds: {results.rounds}, {facts.get('seconds', 0)} s in all. "
        "Figures are medians, with lowest .. highest.\n"
    )
    if facts["server_core"] == facts["load_core"]:
        text += "\n**Server and load shared one core: the figures say little.**\n"
    return text


def _absent(results: Results) -> str:
    lines = [f"- {server}: {reason}\n" for server, reason in results.missing.items()]
    lines += [f"- {r.server}, {r.scenario}: failed: {r.error}\n" for r in results.rows if r.error]
    return "Not measured:\n\n" + "".join(lines) if lines else ""


def _grid(results: Results) -> str:
    """Round trips per second of the reference, and the others as parts of it."""
    parts = []
    for connections in GRID_CONNECTIONS:
        names = [f"{connections:,} x {human_size(size)}" for size in GRID_SIZES]
        if all(results.find(name, REFERENCE) for name in names):
            rows = [[server, *(_relative(results, n, server) for n in names)] for server in SIX]
            head = [plural(connections, "connection"), *(human_size(size) for size in GRID_SIZES)]
            parts.append(table(head, rows))
    if not parts:
        return ""
    title = (
        "## Connections x sizes\n\n"
        f"Round trips per second of {REFERENCE}; the others as parts of it. "
        "An asterisk: part of the round trips are served late "
        "(p99/p50 over 1.5 times the reference's).\n"
    )
    return "\n".join([title, *parts])


def _relative(results: Results, scenario: str, server: str) -> str:
    row, reference = results.find(scenario, server), results.find(scenario, REFERENCE)
    if row is None or reference is None:
        return "-"
    if row is reference:
        return number(row.median())
    mark = "*" if any(flag.startswith("starves") for flag in flags(results, row)) else ""
    return f"{row.median() / reference.median():.2f}{mark}"


def _regression(results: Results) -> str:
    lines = [
        [s.server, f"{s.fit.slope:.3g}", f"{s.fit.intercept:.3g}", f"{s.fit.r2:.4f}"]
        for s in series(results)
    ]
    if not lines:
        return ""
    lines.append(["gaio, as published", f"{GAIO_SLOPE:.3g}", f"{GAIO_INTERCEPT:.3g}", "-"])
    head = ["server", "slope (s per connection)", "intercept (s)", "R2"]
    title = "## Time to complete against connections: the line through it\n"
    return f"{title}\n{table(head, lines)}"


def _scenario(results: Results, scenario: str) -> str:
    rows = results.of(scenario)
    if not rows:
        return ""
    rows.sort(key=Row.median, reverse=rows[0].higher_is_better)
    floor = results.find(scenario, FLOOR)
    columns = _columns(rows[0])
    head = [f"server ({rows[0].unit})", "median", "lowest .. highest", "floor = 1", *columns]
    lines = [
        [
            *_figure(row, floor),
            *(column(row) for column in columns.values()),
            _remarks(results, row),
        ]
        for row in rows
    ]
    return f"## {scenario}\n\n{table([*head, 'remarks'], lines)}"


def _figure(row: Row, floor: Row | None) -> list[str]:
    low, median, high = row.spread()
    relative = f"{median / floor.median():.2f}" if floor and floor.median() else "-"
    return [row.server, number(median), f"{number(low)} .. {number(high)}", relative]


Column = Callable[[Row], str]


def _middle(path: str, scale: float = 1.0) -> Column:
    return lambda row: number(row.median(path) * scale) if row.has(path) else "-"


_LOADED: dict[str, Column] = {
    "CPU us": _middle("cpu_us"),
    "user": _middle("cpu_us_user"),
    "system": _middle("cpu_us_system"),
    "p50 us": _middle("latency_ns.p50", 1e-3),
    "p99 us": _middle("latency_ns.p99", 1e-3),
    "p99/p50": lambda row: f"{spread(row.tails()).median:.2f}",
    "round trips per connection": lambda row: " .. ".join(
        number(row.median(f"fairness.{end}")) for end in ("min", "max")
    ),
    "core busy": lambda row: f"{row.median('core_busy'):.0%}",
}


_BURST: dict[str, Column] = {
    "CPU us per connection": _middle("open.cpu_us"),
    "core busy": lambda row: f"{row.median('open.core_busy'):.0%}",
    "load busy": lambda row: f"{row.median('open.load_busy'):.0%}",
    "all at once: s": _middle("seconds"),
    "its CPU us": _middle("cpu_us"),
    "its p50 us": _middle("latency_ns.p50", 1e-3),
    "its p99 us": _middle("latency_ns.p99", 1e-3),
}


def _columns(row: Row) -> dict[str, Column]:
    if row.metric.startswith("open."):
        return _BURST
    if row.has("latency_ns.p50"):
        return _LOADED
    names = [n for n in row.figures if n != row.metric and not n.startswith("open.")]
    return {name: _middle(name) for name in names}


def _remarks(results: Results, row: Row) -> str:
    return "; ".join(flags(results, row))
