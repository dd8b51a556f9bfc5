"""Every sequence of up to three events; ``python -m tests.interleavings`` goes deeper."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from aiogaio import Watcher
from aiogaio.completions import Signal
from tests.interleavings.events import ALPHABETS, following, happen
from tests.interleavings.walk import Broken, Impossible, Walk, reduced, replay, run
from tests.model.breaks import deliver_twice
from tests.model.runs import POLLERS
from tests.model.session import Session
from tests.model.worlds import SimulatedWorld

#: From the beginning, and from where a task waits for results, which takes two turns.
WALKS = [("middle", ()), ("narrow", ("wait", "turn", "turn"))]


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize(("alphabet", "first"), WALKS)
def test_D1_the_rules_are_kept_in_every_sequence_of_three_events(
    alphabet: str, first: tuple[str, ...], poller: str
) -> None:
    depth = len(first) + 3
    made = Walk(poller, alphabet, depth, first).make()
    assert set(made) == set(range(len(first), depth + 1))
    assert made[len(first)] == 1
    assert made[len(first) + 1] == len(run(poller, first, alphabet))
    assert made[depth] > made[depth - 1]


# --- None is left out ----------------------------------------------------------------------------


@pytest.mark.parametrize("poller", POLLERS)
def test_every_pair_of_events_that_can_happen_is_walked(poller: str) -> None:
    names = {
        name
        for event in ALPHABETS["narrow"]
        for name in (event, f"{event} A", f"{event} B")
    }  # fmt: skip
    possible = 0
    for pair in itertools.product(names, repeat=2):
        try:
            replay(poller, pair)
        except Impossible:
            continue
        possible += 1
    assert Walk(poller, "narrow", depth=2).make()[2] == possible


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_walk_in_parts_is_the_same_walk(depth: int) -> None:
    walk = Walk("epoll", "narrow", depth)
    parts = sum((part.make() for part in walk.divided()), Counter())
    assert parts == walk.make()


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("before", [(), ("read A", "turn"), ("wait", "turn"), ("connect A",)])
def test_a_turn_that_is_left_out_would_have_done_nothing(
    poller: str, before: tuple[str, ...]
) -> None:
    world = SimulatedWorld()
    session = Session(world, poller)
    for event in before:
        happen(session, event)
    while "turn" in following(session, ALPHABETS["wide"]):
        happen(session, "turn")
    calls, delivered = world.network.calls.copy(), session.deliveries
    happen(session, "turn")
    assert (world.network.calls, session.deliveries) == (calls, delivered)
    session.close()
    world.close()


def test_the_second_connection_gets_the_number_of_the_first_that_was_freed() -> None:
    world = SimulatedWorld()
    session = Session(world, "epoll")
    happen(session, "read A")
    number = session.lines[0].conn.fileno()
    happen(session, "free A")
    happen(session, "read B")
    assert session.lines[1].conn.fileno() == number
    session.close()
    world.close()


# --- What is broken is found ---------------------------------------------------------------------


def _wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signal, "wake", lambda self: None)


def _leave_what_stood_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_put_off", lambda self, record: None)


def _leave_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_on_timer", lambda self: None)


def _tear_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def withdraw(self: Any, record: Any, operation: Any, error: Exception) -> None:
        record.remove_write(operation)
        self._finish(operation, error)

    monkeypatch.setattr(Watcher, "_withdraw_write", withdraw)


#: What breaks it, the walk that finds it, and what that says.
BREAKS: list[tuple[Any, Walk, str]] = [
    (_wake_nobody, Walk("epoll", "middle", 4, ("wait", "turn")), "nobody woke the task that waits"),
    (_leave_what_stood_behind, Walk("epoll", "middle", 2), "waits for room that is there"),
    (_leave_the_deadline, Walk("epoll", "narrow", 1), "a deadline has passed"),
    (_tear_and_go_on, Walk("loop", "middle", 4, ("timed-write A", "write A")), "a torn write"),
    (deliver_twice, Walk("epoll", "middle", 1), "delivered twice"),
]


@pytest.mark.parametrize(("breaks", "walk", "says"), BREAKS)
def test_the_walk_finds_a_broken_watcher(
    breaks: Any, walk: Walk, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(Broken, match=says):
        walk.make()


def test_a_sequence_that_fails_is_reduced_to_the_events_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _tear_and_go_on(monkeypatch)
    needed = ("timed-write A", "write A", "cancel-first A", "receive A")
    more = ("timed-write A", "read B", "write A", "send B", "cancel-first A", "receive A")
    with pytest.raises(AssertionError) as caught:
        run("epoll", more)
    assert reduced("epoll", more, caught.value) == needed
    with pytest.raises(AssertionError, match="torn write"):
        replay("epoll", needed)


# --- The command ---------------------------------------------------------------------------------

_BREAK = "from aiogaio import Watcher; Watcher._on_timer = lambda self: None"
_COMMAND = "import runpy; runpy.run_module('tests.interleavings', run_name='__main__')"


def _command(*arguments: str, broken: bool = False) -> subprocess.CompletedProcess[str]:
    program = f"{_BREAK}; {_COMMAND}" if broken else _COMMAND
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_says_how_many_sequences_there_were() -> None:
    done = _command("--depth", "2", "--poller", "epoll", "--alphabet", "narrow", "--jobs", "1")
    made = Walk("epoll", "narrow", depth=2).make()
    assert done.returncode == 0, done.stderr
    assert f"{made.total():,} sequences, {made[1] + 2 * made[2]:,} events" in done.stdout


def test_a_failure_comes_with_the_one_command_that_repeats_it() -> None:
    done = _command("--depth", "2", "--jobs", "1", broken=True)
    assert done.returncode == 1, done.stderr
    assert "a deadline has passed" in done.stdout
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("repeat it: ")]
    words = shlex.split(command.removeprefix("repeat it: "))
    assert words[:3] == ["python", "-m", "tests.interleavings"]

    again = _command(*words[3:], broken=True)
    assert again.returncode == 1
    assert "a deadline has passed" in again.stderr
    mended = _command(*words[3:])
    assert mended.returncode == 0, mended.stderr
    assert mended.stdout.endswith("nothing went wrong\n")


@pytest.mark.parametrize("option", ["--replay", "--after"])
def test_a_sequence_that_cannot_happen_is_refused(option: str) -> None:
    done = _command("--poller", "loop", option, "read A, cancel-last A")
    assert done.returncode == 1
    assert done.stderr == "tests.interleavings: 'cancel-last A' cannot happen here\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--replay", ""), "--replay needs --poller, as it was printed"),
        (("--jobs", "1000000"), "argument --jobs: must be 1-256, not 1000000"),
        (("--depth", "0"), "depth must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = _command(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"error: {complaint}")
