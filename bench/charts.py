"""The results as pictures, for the report and the README."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan import FLOOR, GRID_CONNECTIONS, GRID_SIZES, REFERENCE, REGRESSION, SIX
from bench.regression import GAIO_INTERCEPT, GAIO_SLOPE, series
from bench.results import Results, Row
from bench.scenarios import human_size, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, OTHER, GROUND = "#0b6e99", "#b9c2c9", "#e3b23c"
LINES = dict(zip(SIX, ("#0b6e99", "#6bb3d6", "#8d99a6", "#d1495b", GROUND, "#444b54"), strict=True))


def draw(results: Results, directory: Path, stem: str) -> list[str]:
    """Write the charts that the results have figures for; their file names.

    :raises ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    written = []
    for name, paint in CHARTS.items():
        figure = paint(results, plt)
        if figure is not None:
            file = f"{stem}-{name}.png"
            figure.savefig(directory / file, dpi=110, bbox_inches="tight")
            plt.close(figure)
            written.append(file)
    return written


def _colour(server: str) -> str:
    if server.startswith("aiogaio"):
        return OWN
    return GROUND if server == FLOOR else OTHER


def _bars(axes: Axes, rows: list[Row], title: str, unit: str) -> None:
    """Horizontal bars from the median, whiskers from lowest to highest; the best on top."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    rows = sorted(rows, key=Row.median, reverse=not rows[0].higher_is_better)
    middle = [row.median() for row in rows]
    errors = [
        [row.median() - row.spread().low for row in rows],
        [row.spread().high - row.median() for row in rows],
    ]
    axes.barh(
        [row.server for row in rows],
        middle,
        xerr=errors,
        color=[_colour(row.server) for row in rows],
        error_kw={"elinewidth": 0.8, "ecolor": "#444b54"},
    )
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _throughput(results: Results, plt: Any) -> Any:
    names = [name for name in ("64 x 128 B", "1,000 x 128 B", "8,192 x 1 KiB") if results.of(name)]
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 2.4), squeeze=False)
    for one, name in zip(axes[0], names, strict=True):
        _bars(one, results.of(name), name, "echo round trips per second")
    figure.tight_layout()
    return figure


def _grid(results: Results, plt: Any) -> Any:
    if not results.find("64 x 16 B", REFERENCE):
        return None
    count = len(GRID_CONNECTIONS)
    figure, axes = plt.subplots(1, count, figsize=(2.9 * count, 3), sharey=True)
    for one, connections in zip(axes, GRID_CONNECTIONS, strict=True):
        for server, colour in LINES.items():
            points = []
            for size in GRID_SIZES:
                scenario = f"{connections:,} x {human_size(size)}"
                row, base = (results.find(scenario, s) for s in (server, REFERENCE))
                if row and base:
                    points.append((human_size(size), row.median() / base.median()))
            if points:
                one.plot(*zip(*points, strict=True), marker="o", ms=3, color=colour, label=server)
        one.set_title(plural(connections, "connection"), loc="left")
        one.tick_params(axis="x", rotation=45)
    axes[0].set_ylabel(f"round trips per second,\n{REFERENCE} = 1")
    axes[0].set_ylim(bottom=0)
    figure.tight_layout()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="upper center",
        ncol=6,
        bbox_to_anchor=(0.5, 0.02),
        frameon=False,
    )
    return figure


def _regression(results: Results, plt: Any) -> Any:
    every = series(results)
    if not every:
        return None
    figure, axes = plt.subplots(figsize=(7, 4))
    ends = [0, max(REGRESSION)]
    for one in every:
        colour = LINES[one.server]
        label = f"{one.server}: {one.fit.slope * 1e6:.0f} us each, R2 {one.fit.r2:.3f}"
        axes.plot(one.connections, one.seconds, "o", ms=4, color=colour)
        axes.plot(
            ends, [one.fit.intercept + one.fit.slope * x for x in ends], color=colour, label=label
        )
    axes.plot(
        ends,
        [GAIO_INTERCEPT + GAIO_SLOPE * x for x in ends],
        "--",
        color="black",
        label=f"gaio, as published: {GAIO_SLOPE * 1e6:.0f} us each",
    )
    axes.set_xlabel("connections; each connects, sends 1 KiB and reads it back")
    axes.set_ylabel("seconds to complete")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _memory(results: Results, plt: Any) -> Any:
    rows = results.of("8,000 idle connections")
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.22 * len(rows)))
    _bars(axes, rows, "An idle connection, after one echo", "resident bytes (a logarithmic scale)")
    axes.set_xscale("log")
    return figure


CHARTS = {
    "throughput": _throughput,
    "grid": _grid,
    "regression": _regression,
    "memory": _memory,
}
