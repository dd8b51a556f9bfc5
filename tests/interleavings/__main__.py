"""``python -m tests.interleavings``: every sequence up to a depth, or one of them once more."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import as_completed
from typing import NoReturn

from tests.workers import ending_in_order, jobs, pool

try:
    from tests.interleavings.events import ALPHABETS, alphabet_for
    from tests.interleavings.walk import Broken, Impossible, Sequence, Walk, replay
    from tests.model.runs import POLLERS
    from tests.progress import Report
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed: pip install '.[test]'")


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
    parser.add_argument("--jobs", type=jobs, default=os.cpu_count(), help="processes")
    parser.add_argument("--replay", metavar="EVENTS", help="a failure, as it was printed")
    arguments = parser.parse_args()
    if arguments.depth < 1:
        parser.error("depth must be at least 1")
    if arguments.replay is not None and not arguments.poller:
        parser.error("--replay needs --poller, as it was printed")
    return arguments


def main() -> None:
    warnings.simplefilter("error", ResourceWarning)
    arguments = _arguments()
    if arguments.replay is not None:
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


def _walk(walk: Walk, processes: int) -> None:
    """Make all of a walk, in several processes. Raises :exc:`Broken`."""
    made: Counter[int] = Counter()
    divided = walk.divided()
    with pool(processes) as workers, Report(len(divided)) as report:
        parts = [workers.submit(part.make) for part in divided]
        for done, part in enumerate(as_completed(parts), 1):
            made += part.result()
            figures = f"{walk.poller} poller: {_figures(made)}"
            report.tell(done, f"{figures}, {done} of {len(parts)} parts")
    report.say(
        f"{walk.poller} poller, {walk.alphabet} alphabet: {_figures(made)}, {report.elapsed:.0f} s"
    )
    report.say(
        "  of each length: "
        + ", ".join(f"{length}: {count:,}" for length, count in sorted(made.items()))
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
