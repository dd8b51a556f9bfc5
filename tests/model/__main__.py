"""``python -m tests.model``: many seeds of the model, or one failure once more."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from concurrent.futures import as_completed

from tests.workers import ending_in_order, jobs, pool

try:
    from tests.model.machine import read_back
    from tests.model.runs import POLLERS, WORLDS, Run, attempt, end, replay
    from tests.progress import Report
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed: pip install '.[test]'")

#: Sessions in one piece of work: what one process does before it takes the next piece.
_PIECE = 10
_NIGHTLY = 10_000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.model",
        description="Random sessions on a watcher, checked against a model of what may come of "
        "them: on a simulated network, and on real sockets. Exit status 1 if a rule is broken.",
    )
    parser.add_argument("--world", choices=WORLDS, help="only this one")
    parser.add_argument("--poller", choices=POLLERS, help="only this one")
    parser.add_argument("--seeds", type=int, default=200, help="sessions for each (200)")
    parser.add_argument("--steps", type=int, default=500, help="steps of a session (500)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=jobs, default=os.cpu_count(), help="processes")
    parser.add_argument("--nightly", action="store_true", help=f"--seeds {_NIGHTLY}")
    parser.add_argument("--replay", metavar="WORD", help="a failure, as it was printed")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.steps) < 1:
        parser.error("seeds and steps must be at least 1")
    if arguments.replay is not None and not (arguments.world and arguments.poller):
        parser.error("--replay needs --world and --poller, as it was printed")
    return arguments


def _pieces(arguments: argparse.Namespace) -> list[Run]:
    seeds = _NIGHTLY if arguments.nightly else arguments.seeds
    worlds = [arguments.world] if arguments.world else list(WORLDS)
    pollers = [arguments.poller] if arguments.poller else POLLERS
    return [
        Run(world, poller, start, min(_PIECE, arguments.start + seeds - start), arguments.steps)
        for start in range(arguments.start, arguments.start + seeds, _PIECE)
        for world in worlds
        for poller in pollers
    ]


def main() -> None:
    warnings.simplefilter("error", ResourceWarning)
    arguments = _arguments()
    if arguments.replay is not None:
        try:
            steps = read_back(arguments.replay)
        except ValueError as error:
            end(str(error))
        replay(arguments.world, arguments.poller, steps, print)
        print("nothing went wrong")
        return
    pieces = _pieces(arguments)
    sessions = steps = failures = 0
    total = sum(piece.sessions for piece in pieces)
    with pool(arguments.jobs) as workers, Report(total) as report:
        for future in as_completed([workers.submit(attempt, piece) for piece in pieces]):
            run, done, failure = future.result()
            steps += done
            sessions += run.sessions
            if failure:
                failures += 1
                report.say(f"{run}: {failure}")
            report.tell(sessions, f"{sessions:,} of {total:,} sessions, {steps:,} steps")
    report.say(
        f"{sessions:,} sessions, {steps:,} steps, {failures} failures, {report.elapsed:.0f} s"
    )
    if failures:
        end("a rule was broken")


if __name__ == "__main__":
    ending_in_order(main)
