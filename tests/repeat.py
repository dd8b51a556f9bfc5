"""Repeat the suite in random orders: ``python -m tests.repeat --times 20 [pytest arguments]``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PASSED, FAILED = 0, 1  # pytest's exit status; any other says that the tests did not run
PERCENT = re.compile(r"\[ *(\d+)%\]$")

Tell = Callable[[int], None]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class SuiteError(Exception):
    """The suite could not be run."""


@dataclass(frozen=True)
class Run:
    """One run of the suite."""

    seed: int
    tests: int
    failures: frozenset[str]
    seconds: float
    log: Path  # there if a test failed


def run_suite(seed: int, arguments: Sequence[str], directory: Path, tell: Tell) -> Run:
    """Run pytest once, in the order of ``seed``; the output stays in a file if a test fails."""
    log, results = directory / f"{seed}.log", directory / f"{seed}.xml"
    began = time.monotonic()
    command = [
        *(sys.executable, "-u", "-m", "pytest", "-q", "-n", "auto", "-p", "no:randomly"),
        *("--random-order-bucket=global", f"--random-order-seed={seed}"),
        *(f"--junitxml={results}", "-o", "junit_family=xunit1"),  # which has the tests' files
        *arguments,
    ]
    with (
        log.open("w", buffering=1) as output,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.write(line)
                if percent := PERCENT.search(line.rstrip()):
                    tell(int(percent[1]))
        except KeyboardInterrupt:
            process.terminate()
            raise
    tests, failures = read_results(results) if results.exists() else (0, frozenset())
    if process.returncode != (FAILED if failures else PASSED):
        raise SuiteError("\n".join(log.read_text().splitlines()[-10:]))
    results.unlink()
    if not failures:
        log.unlink()
    return Run(seed, tests, failures, time.monotonic() - began, log)


def read_results(path: Path) -> tuple[int, frozenset[str]]:
    """How many tests pytest's report has, and those that failed, by their names for pytest."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    return len({name_of(case) for case in cases}), frozenset(map(name_of, failed))


def name_of(case: ElementTree.Element) -> str:
    """The test's name for pytest: the file, the class if there is one, the function."""
    file, owner = case.get("file", ""), case.get("classname", "")
    inner = owner.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
    return "::".join(part for part in (file, inner, case.get("name", "")) if part)


def flakes_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Each test that failed, with the runs in which it did."""
    names = sorted({name for run in runs for name in run.failures})
    return {name: [run for run in runs if name in run.failures] for name in names}


def print_flakes(runs: Sequence[Run], arguments: Sequence[str]) -> None:
    flakes = flakes_of(runs)
    print(f"\nflakes: {len(flakes)}")
    for name, failing in flakes.items():
        seeds = ", ".join(str(run.seed) for run in failing)
        print(f"\n{name}\n  failed in {len(failing)} of {len(runs)} runs, seeds: {seeds}")
        print(f"  its output: {failing[0].log}")
    if flakes:
        again = f"--times 1 --seed SEED {shlex.join(arguments)}"
        print(f"\nThe order of a seed, again: python -m tests.repeat {again}")


@contextlib.contextmanager
def display(times: int) -> Iterator[Callable[[str, float], None]]:
    """Shows on a terminal how many runs are done; elsewhere the rows of the table do."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda text, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}")
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("", total=times)
        yield lambda text, done: bar.update(task, completed=done, description=text)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m tests.repeat",
        allow_abbrev=False,
        description="Run the default suite several times, each in another random order. "
        "Exit status 1 if any test failed in any run.",
        epilog="All other arguments are pytest's, such as -n 2, or -k 'not epoll-debug'.",
    )
    parser.add_argument("--times", type=int, default=20, metavar="N", help="how often, %(default)s")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the first run's order; the next has the next number"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.times < 1:
        parser.error(f"--times must be at least 1, not {options.times}")
    for module, package in (("random_order", "pytest-random-order"), ("xdist", "pytest-xdist")):
        if importlib.util.find_spec(module) is None:
            parser.error(f"{package} is not installed: pip install {package}")
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    return options, rest


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Run]:
    """Run after run, as they end."""
    directory = Path(tempfile.mkdtemp(prefix="repeat-"))
    try:
        with display(options.times) as show:
            for done in range(options.times):
                seed = options.seed + done
                text = f"run {done + 1} of {options.times}, seed {seed}"
                show(text, done)

                def tell(percent: int, text: str = text, done: int = done) -> None:
                    show(text, done + percent / 100)

                yield run_suite(seed, arguments, directory, tell)
    finally:
        with contextlib.suppress(OSError):  # it holds the output of failures
            directory.rmdir()


def main(arguments: Sequence[str] | None = None) -> int:
    options, rest = parse(arguments)
    runs: list[Run] = []
    status = 0
    print(f"{'run':>4} {'seed':>8} {'tests':>7} {'failures':>9} {'seconds':>8}", flush=True)
    try:
        for number, run in enumerate(run_all(options, rest), 1):
            runs.append(run)
            row = f"{number:>4} {run.seed:>8} {run.tests:>7} {len(run.failures):>9}"
            print(f"{row} {run.seconds:>8.0f}", flush=True)
    except SuiteError as error:
        print(f"the suite did not run:\n{error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    if runs:
        print_flakes(runs, rest)
    return status or int(any(run.failures for run in runs))


if __name__ == "__main__":
    sys.exit(main())
