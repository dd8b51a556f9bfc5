"""Processes that work for a program, and end with it however it ends."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

INTERRUPTED = 128 + signal.SIGINT
MOST_JOBS = 256


def jobs(text: str) -> int:
    """How many processes, as an argument of a command."""
    if not 1 <= int(text) <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"must be 1-{MOST_JOBS}, not {text}")
    return int(text)


def ending_in_order(main: Callable[[], None]) -> None:
    """Run a program: SIGTERM ends it as Ctrl-C does, in one line, and its processes with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM):  # from one who is impatient
            signal.signal(again, signal.SIG_IGN)
        end_children()
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def end_children() -> None:
    """End the processes that this one has started."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join()


def leave_signals_to_parent() -> None:
    """What a terminal sends to all of them is for the program alone, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A program that was killed ends nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes; if the block is left by an exception, nobody waits for their work."""
    with ProcessPoolExecutor(jobs, initializer=leave_signals_to_parent) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise
