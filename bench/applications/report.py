"""What is printed of a run: a table, a line for each target, and the short table for a README."""

from __future__ import annotations

import statistics

from bench.applications.model import Application, Row, Target
from bench.results import Spread, spread

NONE = "-"


def verdict(target: Target, rows: list[Row]) -> str:
    """One line: whether the target is reached, by the median of the rounds' ratios."""
    text = f"{target.load}: {target.server} / {target.rival}"
    ours, rival = (find(rows, target.load, name) for name in (target.server, target.rival))
    sign = "<=" if ours.lower_is_better else ">="
    found = ratios(ours, rival)
    if found is None:
        return f"?    {text:66} {sign} {target.factor:.2f}   not measured"
    reached = (
        found.median <= target.factor if ours.lower_is_better else found.median >= target.factor
    )
    figures = f"{found.median:.2f} ({found.low:.2f} .. {found.high:.2f})"
    if (by_cpu := cpu_ratio(ours, rival)) is not None:
        figures += f"   {by_cpu:.2f} by CPU"
    return f"{'ok  ' if reached else 'MISS'} {text:66} {sign} {target.factor:.2f}   {figures}"


def ratios(ours: Row, rival: Row) -> Spread | None:
    """Ours by the rival's, round by round; none if one of them has no figures."""
    return _by_round(ours.rates, rival.rates)


def cpu_ratio(ours: Row, rival: Row) -> float | None:
    """The same by the servers' CPU time."""
    found = _by_round(ours.cpu_rates, rival.cpu_rates)
    return found.median if found else None


def _by_round(ours: list[float], rivals: list[float]) -> Spread | None:
    rounds = list(zip(ours, rivals, strict=False))
    return spread(our / its for our, its in rounds) if rounds else None


def find(rows: list[Row], load: str, server: str) -> Row:
    return next(row for row in rows if (row.load, row.server) == (load, server))


def table(rows: list[Row]) -> list[str]:
    """Plain lines: the median figure, the same by CPU time, the load's CPU, lowest and highest.

    By CPU is what the server makes in a second of its own CPU time: where the load is the slower
    side, the figure itself says nothing of the server. The load's CPU is that of the load tool and
    of what runs beside it on its core, a backend for example.
    """
    wide = max(len(text) for row in rows for text in (f"  {row.server}", heading(row)))
    lines: list[str] = []
    load = ""
    for row in rows:
        if row.load != load:
            load = row.load
            lines += ["", f"{heading(row):{wide}} {'median':>12} {'by CPU':>12} {'load CPU':>9}"]
        if row.rates:
            low, median, high = map(number, spread(row.rates))
            figures = f"{median:>12} {cpu_median(row):>12} {statistics.median(row.load_busy):9.0%}"
            figures += f"   ({low} .. {high})"
        else:
            figures = f"{NONE:>12} {'':12} {'':9}   {row.error or 'not measured'}"
        lines.append(f"  {row.server:{wide - 2}} {figures}")
    return lines[1:]


def heading(row: Row) -> str:
    return f"{row.load}, {row.unit}"


def cpu_median(row: Row) -> str:
    return number(statistics.median(row.cpu_rates)) if row.cpu_rates else NONE


def number(value: float) -> str:
    """Three digits at least, and no more than are worth it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def markdown(applications: list[Application], rows: list[Row]) -> list[str]:
    """A table with a row for each example, under the first of its loads.

    The usual way is the rival that did best there, or the one on the same loop if the application
    compares so. Both ratios are those of ours to it.
    """
    lines = [
        "| example | what is counted | on asyncio | on uvloop | the usual way | ratio | by CPU |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for application in applications:
        load = application.loads[0]
        ours, its = (
            [find(rows, load.name, server.name) for server in servers]
            for servers in (application.ours, application.rivals)
        )
        if application.loop_by_loop:
            usual, name = its, its[0].server.rpartition("-")[0]
        else:
            usual, name = [best(its)] * len(ours), best(its).server
        example = ours[0].server.rpartition("-")[0]
        pairs = list(zip(ours, usual, strict=True))
        ratio = [None if (r := ratios(*pair)) is None else r.median for pair in pairs]
        by_cpu = [cpu_ratio(*pair) for pair in pairs]
        cells = [
            f"`{example}.py`",
            heading(ours[0]).removeprefix(f"{application.name}, "),
            *map(median, ours),
            f"{name}: {' / '.join([median(row) for row in usual[: 1 + application.loop_by_loop]])}",
            *(" / ".join(map(factor, each)) for each in (ratio, by_cpu)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def factor(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def median(row: Row) -> str:
    return number(statistics.median(row.rates)) if row.rates else NONE


def best(rows: list[Row]) -> Row:
    """The one with the best median; the first if none has figures."""
    measured = [row for row in rows if row.rates]
    if not measured:
        return rows[0]
    choose = min if measured[0].lower_is_better else max
    return choose(measured, key=lambda row: statistics.median(row.rates))
