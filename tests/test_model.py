"""The model, a little of it in each run; ``python -m tests.model`` runs as much as one likes."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import pytest

from aiogaio import Watcher
from tests.model.breaks import deliver_twice
from tests.model.machine import abandon, perform, read_back, written
from tests.model.runs import POLLERS, WORLDS, Run
from tests.model.session import Session

SIMULATED = ("simulated", "distant")


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("world", WORLDS)
def test_D1_each_request_has_one_result_whatever_is_done(world: str, poller: str) -> None:
    run = Run(world, poller, start=1_000_000, sessions=6, steps=200)
    assert run.make() >= 200


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("world", SIMULATED)
def test_requests_behind_a_relay_go_on_when_its_other_side_could_not_connect(
    world: str, poller: str
) -> None:
    session = Session(WORLDS[world](), poller)
    for step in (
        ("connect", [2, 3]),  # refused
        ("open", [0]),
        ("relay", [1, 0, 3]),
        ("shutdown", [1]),
        ("read", [1, 0, 0, 0]),
        ("peer_sends", [1, 0]),
        ("pass_time", [2]),
        ("quiesce", []),
    ):
        perform(session, step)
    _, line = session.lines
    assert all(request.settled for request in line.requests)
    session.close()
    session.world.close()


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
def test_a_relay_rests_while_the_system_is_short_of_memory(poller: str, number: int) -> None:
    session = Session(WORLDS["simulated"](), poller)
    for step in (("open", [0]), ("open", [0]), ("relay", [0, 1, 0])):
        perform(session, step)
    first, second = session.lines
    session.world.fail("send", number, 1)  # not the peer's send: the one that follows it
    first.peer_sends(100)
    session.world.settle()
    assert session.watcher.poll_io() == []
    session.world.pass_time(0.1)
    assert second.peer.recv(1000)
    session.close()
    session.world.close()


@pytest.mark.parametrize("ends", ["connects", "is refused"])
def test_O3_a_connection_that_was_connected_needs_no_collector_to_be_closed(ends: str) -> None:
    session = Session(WORLDS["simulated"](), "epoll")
    for step in (("connect", [0 if ends == "connects" else 2, 0]), ("quiesce", [])):
        perform(session, step)
    assert session.watcher.statistics().connections == 1
    perform(session, ("forget", [0]))
    assert session.watcher.statistics().connections == 0
    session.close()
    session.world.close()


# --- The model finds what is broken --------------------------------------------------------------


def _lose_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Watcher._collect

    def lossy(self: Any, limit: int) -> Any:
        return [op for op in collect(self, limit) if op.size != 7]

    monkeypatch.setattr(Watcher, "_collect", lossy)


def _leave_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_on_timer", lambda self: None)


def _tear_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_cancel_doomed", lambda self, record: None)


BREAKS = {
    _lose_a_result: [("open", [0]), ("write", [0, 0, 1, 0])],
    deliver_twice: [("open", [0]), ("write", [0, 0, 1, 0]), ("collect", [])],
    _leave_the_deadline: [("open", [0]), ("read", [0, 0, 0, 1]), ("pass_time", [2])],
    _tear_and_go_on: [
        ("open", [0]),
        ("write", [0, 0, 5, 0]),
        ("write", [0, 0, 2, 0]),
        ("cancel", [0, 1]),
        ("peer_receives", [0, 5]),
        ("quiesce", []),
    ],
}


@pytest.mark.parametrize("breaks", BREAKS)
def test_the_model_finds_a_broken_watcher(breaks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch)
    session = Session(WORLDS["simulated"](), "epoll")

    def go_through() -> None:
        for step in BREAKS[breaks]:
            perform(session, step)
        session.close()

    try:
        with pytest.raises(AssertionError):
            go_through()
    finally:
        abandon(session, session.world)


def test_a_failure_on_the_simulated_network_comes_with_the_command_that_repeats_it() -> None:
    text = Run("simulated", "loop", 0, 1, 1).how_to_repeat([("open", [0])])
    assert text.startswith(
        "repeat it: python -m tests.model --world simulated --poller loop --replay "
    )


def test_a_failure_on_the_simulated_network_is_repeated_by_its_command() -> None:
    word = written([("open", [0]), ("read", [0, 0, 0, 1]), ("pass_time", [2])])
    command = ["-m", "tests.model", "--world", "simulated", "--poller", "loop", "--replay", word]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "read(0, 0, 0, 1)" in done.stdout
    assert done.stdout.endswith("nothing went wrong\n")


def test_a_failure_on_real_sockets_prints_what_was_done() -> None:
    text = Run("asyncio", "epoll", 0, 1, 1).how_to_repeat([("open", [0]), ("turn", [1])])
    assert text.endswith("this was done:\n  open(0,)\n  turn(1,)")


def test_steps_are_written_and_read_back_and_nothing_else_is() -> None:
    steps = [("open", [1]), ("quiesce", [])]
    assert read_back(written(steps)) == steps
    with pytest.raises(ValueError, match="not a list of steps"):
        read_back("AAAA")
