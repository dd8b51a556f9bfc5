"""The long programs end when they are told to, and what they have started ends with them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.programs import LIMIT, environment

PROGRAMS = {
    "model": ("tests.model", "--world", "simulated", "--nightly", "--jobs", "2"),
    "interleavings": ("tests.interleavings", "--depth", "6", "--jobs", "2"),
    "fuzz": ("tests.fuzz", "--minutes", "60", "--jobs", "2"),
}


@contextlib.contextmanager
def running(name: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """One of them, and its processes, which are at work."""
    with subprocess.Popen(
        [sys.executable, "-m", *PROGRAMS[name]],
        cwd=Path(__file__).parent.parent,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, _working(process)
        finally:
            process.kill()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_long_program_that_is_interrupted_ends_with_all_its_processes(
    name: str, by: signal.Signals
) -> None:
    with running(name) as (process, workers):
        process.send_signal(by)
        assert process.wait(LIMIT) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"
        _, alive = psutil.wait_procs(workers, LIMIT)
        assert not alive


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_processes_of_a_long_program_that_is_killed_end_as_well(name: str) -> None:
    with running(name) as (process, workers):
        process.kill()
        _, alive = psutil.wait_procs(workers, LIMIT)
        for worker in alive:
            worker.kill()
        assert not alive


def _working(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its processes, once two of them are at work."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        children = psutil.Process(process.pid).children(recursive=True)
        if sum(child.cpu_times().user > 0.5 for child in children) >= 2:
            return children
        time.sleep(0.05)
    raise AssertionError("nobody works")
