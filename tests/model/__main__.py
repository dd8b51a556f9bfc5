"""``python -m tests.model``: many seeds of the model, or one failure once more."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from concurrent.futures import as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.model.machine import read_back
from tests.model.runs import POLLERS, WORLDS, Run, attempt, end, replay
from tests.workers import ending_in_order, pool

#: Sessions in one piece of work: what one process does before it takes the next piece.
_PIECE = 10
_PAUSE = 10.0  # seconds from one line of progress to the next, where no bar is shown
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--nightly", action="store_true", help=f"--seeds {_NIGHTLY}")
    parser.add_argument("--replay", metavar="WORD", help="a failure, as it was printed")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.steps, arguments.jobs) < 1:
        parser.error("seeds, steps and jobs must be at least 1")
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
    console = Console(highlight=False)
    began = said = time.monotonic()
    sessions = steps = 0
    failures = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        pool(arguments.jobs) as workers,
        Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        ) as progress,
    ):
        task = progress.add_task("sessions", total=sum(piece.sessions for piece in pieces))
        for future in as_completed([workers.submit(attempt, piece) for piece in pieces]):
            run, done, failure = future.result()
            steps += done
            sessions += run.sessions
            progress.advance(task, run.sessions)
            if not console.is_terminal and time.monotonic() - said > _PAUSE:
                said = time.monotonic()
                print(f"{sessions:,} sessions, {steps:,} steps", flush=True)
            if failure:
                failures.append(failure)
                console.print(f"{run}: {failure}", soft_wrap=True)
    seconds = time.monotonic() - began
    console.print(
        f"{sessions:,} sessions, {steps:,} steps, {len(failures)} failures, {seconds:.0f} s"
    )
    if failures:
        end("a rule was broken")


if __name__ == "__main__":
    ending_in_order(main)
