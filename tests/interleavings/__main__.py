"""``python -m tests.interleavings``: every sequence up to a depth, or one of them once more."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import as_completed
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.interleavings.events import ALPHABETS, alphabet_for
from tests.interleavings.walk import Broken, Impossible, Sequence, Walk, replay
from tests.model.runs import POLLERS
from tests.workers import ending_in_order, pool

#: Seconds between two lines about how far it is, where there is no terminal.
_PAUSE = 30


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.interleavings",
        description="Every sequence of up to so many events on two connections of a simulated "
        "network, checked against the model. Exit status 1 if a rule is broken.",
    )
    parser.add_argument("--depth", type=int, default=4, help="events in a sequence (4)")
    parser.add_argument(
        "--alphabet",
        choices=ALPHABETS,
        help="which events: by default wide up to a depth of 3, middle for 4, narrow beyond",
    )
    parser.add_argument(
        "--after", metavar="EVENTS", default="", help="what comes before each; the depth is added"
    )
    parser.add_argument("--poller", choices=POLLERS, help="only this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--replay", metavar="EVENTS", help="a failure, as it was printed")
    arguments = parser.parse_args()
    if min(arguments.depth, arguments.jobs) < 1:
        parser.error("depth and jobs must be at least 1")
    if arguments.replay and not arguments.poller:
        parser.error("--replay needs --poller, as it was printed")
    return arguments


def main() -> None:
    warnings.simplefilter("error", ResourceWarning)
    arguments = _arguments()
    if arguments.replay:
        _replay(arguments.poller, arguments.replay)
        return
    alphabet = arguments.alphabet or alphabet_for(arguments.depth)
    first = _events(arguments.after)
    depth = len(first) + arguments.depth
    for poller in [arguments.poller] if arguments.poller else POLLERS:
        try:
            replay(poller, first)
            _walk(Walk(poller, alphabet, depth, first), arguments.jobs)
        except Impossible as error:
            _end(str(error))
        except Broken as failure:
            print(f"{poller} poller: {failure}")
            _end("a rule was broken")


def _walk(walk: Walk, jobs: int) -> None:
    """Make all of a walk, in several processes. Raises :exc:`Broken`."""
    console = Console(highlight=False)
    began = said = time.monotonic()
    made: Counter[int] = Counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        pool(jobs) as workers,
        Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        ) as progress,
    ):
        parts = [workers.submit(part.make) for part in walk.divided()]
        task = progress.add_task(f"{walk.poller} poller", total=len(parts))
        for done, part in enumerate(as_completed(parts), 1):
            made += part.result()
            progress.advance(task)
            if not console.is_terminal and time.monotonic() - said > _PAUSE:
                said = time.monotonic()
                print(
                    f"{walk.poller} poller: {_figures(made)}, {done}/{len(parts)} of the way",
                    flush=True,
                )
    seconds = time.monotonic() - began
    console.print(
        f"{walk.poller} poller, {walk.alphabet} alphabet: {_figures(made)}, {seconds:.0f} s",
        soft_wrap=True,
    )
    console.print(
        "  of each length: "
        + ", ".join(f"{length}: {count:,}" for length, count in sorted(made.items())),
        soft_wrap=True,
    )


def _figures(made: Counter[int]) -> str:
    events = sum(length * count for length, count in made.items())
    return f"{made.total():,} sequences, {events:,} events"


def _events(text: str) -> Sequence:
    return tuple(event.strip() for event in text.split(",") if event.strip())


def _replay(poller: str, events: str) -> None:
    """One sequence, and what went wrong in it."""
    try:
        replay(poller, _events(events), print)
    except Impossible as error:
        _end(str(error))
    print("nothing went wrong")


def _end(message: str) -> NoReturn:
    sys.exit(f"tests.interleavings: {message}")


if __name__ == "__main__":
    ending_in_order(main)
