"""``python -m tests.fuzz``: inputs for as long as one likes, or one input once more."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import queue
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.workers import ending_in_order, jobs


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Random bytes as sessions on a watcher, on a simulated network; what reaches "
        "new code is kept and changed. Exit status 1 if one breaks a rule.",
    )
    parser.add_argument("--minutes", type=float, default=1, help="how long (1)")
    parser.add_argument("--jobs", type=jobs, default=1, help="processes (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first job (0)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="where inputs are kept")
    parser.add_argument("--engine", choices=("own", "atheris"), default="own", help="(own)")
    parser.add_argument("--replay", metavar="FILE|HEX", help="one input, as it was printed")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < math.inf:
        parser.error("minutes must be more than 0")
    if arguments.corpus:
        try:
            arguments.corpus.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--corpus: {error}")
    return arguments


def _replay(word: str) -> None:
    from tests.fuzz.target import Crash, one_input

    try:
        data = Path(word).read_bytes() if Path(word).is_file() else bytes.fromhex(word)
    except (OSError, ValueError) as error:
        sys.exit(f"tests.fuzz: neither a file nor an input in hex: {error}")
    try:
        one_input(data, print)
    except Crash as crash:
        traceback.print_exception(crash)
        sys.exit(f"tests.fuzz: {crash}")
    print("nothing went wrong")


def _fuzz(arguments: argparse.Namespace) -> None:
    from tests.fuzz.count import Count
    from tests.fuzz.job import work
    from tests.fuzz.reach import all_lines
    from tests.progress import Report

    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    seconds = arguments.minutes * 60
    processes = [
        context.Process(
            target=work, args=(arguments.seed + n, arguments.corpus, seconds, told), daemon=True
        )
        for n in range(arguments.jobs)
    ]
    state: dict[int, tuple[int, int]] = {}
    lines: set[Any] = set()
    crashes: dict[str, Any] = {}
    count = Count(of_lines=len(all_lines()))
    for job in processes:
        job.start()
    with Report(seconds) as report:
        while any(job.is_alive() for job in processes) or not told.empty():
            try:
                seed, inputs, steps, reached, found = told.get(timeout=0.5)
            except queue.Empty:
                continue
            state[seed] = inputs, steps
            lines |= reached
            for crash in found:
                if crash.where not in crashes:
                    crashes[crash.where] = crash
                    report.say(f"{crash.text}\n  repeat it: {crash.how_to_repeat}")
            count.inputs, count.steps = (sum(each) for each in zip(*state.values(), strict=True))
            count.lines, count.crashes = len(lines), len(crashes)
            report.tell(report.elapsed, count.text(report.elapsed))
    report.say(count.text(report.elapsed))
    if crashes:
        sys.exit("tests.fuzz: a rule was broken")
    if any(job.exitcode for job in processes):
        sys.exit("tests.fuzz: a job has ended before its time")


def _by_atheris(arguments: argparse.Namespace) -> None:
    """libFuzzer's engine: it has its own progress, and stores a crash as a file for --replay."""
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        sys.exit("tests.fuzz: atheris is not installed: pip install atheris, or --engine own")
    with atheris.instrument_imports(include=["aiogaio"]):
        from tests.fuzz.engine import LONGEST, first_inputs
        from tests.fuzz.job import PATIENCE
        from tests.fuzz.target import one_input
    options = [f"-max_total_time={arguments.minutes * 60:.0f}", f"-timeout={PATIENCE}"]
    options += [f"-seed={arguments.seed + 1}", f"-max_len={LONGEST}"]
    if arguments.corpus:
        for number, data in enumerate(first_inputs()):
            (arguments.corpus / f"first-{number:02}").write_bytes(data)
        options.append(str(arguments.corpus))
    atheris.Setup([sys.argv[0], *options], lambda data: (one_input(data), None)[1])
    atheris.Fuzz()


def main() -> None:
    arguments = _arguments()
    try:
        _run(arguments)
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing.name} is not installed: pip install '.[test]'")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.replay is not None:
        _replay(arguments.replay)
    elif arguments.engine == "atheris":
        _by_atheris(arguments)
    else:
        _fuzz(arguments)


if __name__ == "__main__":
    ending_in_order(main)
