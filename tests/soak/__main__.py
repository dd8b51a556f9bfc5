"""The soak's command line: ``python -m tests.soak --minutes 30``."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.soak import report
from tests.soak.budget import Budget, spread
from tests.soak.process import ChildError, run_child
from tests.soak.progress import progress_display
from tests.soak.result import Result
from tests.soak.variant import LOOPS, POLLERS, variants

try:
    from tests.soak.figures import FIGURES, Figure
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed: pip install '.[test]'")

FULL_MINUTES = 30.0
SHORT_MINUTES = 2.5
PATIENCE = 180.0
"""Seconds that a figure may take beyond four times what is planned: it gives up sooner itself."""

Run = Callable[[Figure, Budget], Result]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < 1e5:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return minutes


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tests.soak",
        description="Large and long loads against the library. Exit status 1 if a figure is not "
        "kept.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=_minutes,
        default=FULL_MINUTES,
        metavar="N",
        help=f"the time for all of it: counts are scaled down, or all is repeated, to fill it; "
        f"with {FULL_MINUTES:.0f} (the default) the counts are full",
    )
    length.add_argument(
        "--short",
        action="store_true",
        help="scaled down to less than 5 minutes; what depends on the machine's speed is reported "
        "only",
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--only", choices=FIGURES, **several, help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--loop", choices=LOOPS, default=LOOPS, **several)
    parser.add_argument("--poller", choices=POLLERS, default=POLLERS, **several)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results in this file")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    return parser


def run_figure(figure: Figure, budget: Budget) -> Result:
    """Run a figure in a child; whatever becomes of the child is a result."""
    plan = {
        field.name: getattr(budget, field.name)
        for field in dataclasses.fields(budget)
        if field.name != "variant"
    }
    within = PATIENCE + 4 * budget.repeats * max(1.0, figure.cost * budget.scale)
    try:
        answer = run_child({"figure": figure.name, **vars(budget.variant), **plan}, within)
        return Result(**answer)
    except ChildError as error:
        print(error.output, file=sys.stderr, end="")
        return Result(figure.name, str(budget.variant), figure.asked, faults=[str(error)])


def main(arguments: Sequence[str] | None = None, run: Run = run_figure) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = [FIGURES[name] for name in options.only or FIGURES]
    several = variants(options.loop, options.poller)
    if not several:
        parser.error("uvloop is not installed: pip install uvloop")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    minutes = SHORT_MINUTES if options.short else options.minutes
    costs = {figure.name: figure.cost for figure in chosen}
    scales, repeats = spread(costs, minutes * 60 / len(several))
    results: list[Result] = []
    try:
        with progress_display(len(chosen) * len(several)) as progress:
            for loop in {*options.loop} - {variant.loop for variant in several}:
                progress.note(f"{loop} is not installed: not run on it")
            for figure in chosen:
                for variant in several:
                    progress.begin(f"{figure.name}, {variant}", figure.asked)
                    budget = Budget(variant, scales[figure.name], repeats, not options.short)
                    results.append(run(figure, budget))
                    progress.end(results[-1])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        _tell(results, options)
    return 0 if all(result.kept for result in results) else 1


def _tell(results: Sequence[Result], options: argparse.Namespace) -> None:
    if options.markdown:
        print(report.markdown(results))
    else:
        report.show(results)
    if options.json:
        report.save(results, options.json)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the children have to be ended
    sys.exit(main())
