"""The machine: hypothesis chooses the steps of a session, and shrinks those that fail."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.model.session import Session
from tests.model.worlds import World

#: A step: its name, and its numbers.
Step = tuple[str, list[int]]

#: How often each step is on offer, and how large its numbers are.
_STEPS: dict[str, tuple[int, ...]] = {
    "open": (4,),
    "listen": (),
    "dial": (),
    "accept": (2, 7),
    "connect": (4, 7),
    "free": (6,),
    "forget": (6,),
    "read": (6, 8, 6, 7),
    "write": (6, 8, 6, 7),
    "post": (6, 5, 6, 7),
    "shutdown": (6,),
    "hangup": (6, 7),
    "relay": (6, 6, 7),
    "cancel": (8, 4),
    "cancel_completed": (4,),
    "peer_sends": (6, 6),
    "peer_receives": (6, 6),
    "peer_ends": (6,),
    "peer_closes": (6, 2),
    "turn": (3,),
    "pass_time": (5,),
    "wait": (3,),
    "cancel_wait": (),
    "collect": (),
    "fail": (5, 3),
    "close_watcher": (12,),
    "quiesce": (),
}
_OFTEN = ("open", "read", "read", "write", "peer_sends", "peer_receives", "turn", "wait")


class Failed(AssertionError):  # noqa: N818 - it is what a test reports, not what code handles
    """A session has broken a rule; its text says how to repeat it."""


def perform(session: Session, step: Step) -> None:
    """Make one step, and take what a waiting task may have brought."""
    name, numbers = step
    session.reap()
    getattr(session, name)(*numbers)


def written(steps: Iterable[Step]) -> str:
    """A list of steps as one word."""
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(list(steps)).encode(), 9)).decode()


def read_back(word: str) -> list[Step]:
    """The list of steps again. Raises :exc:`ValueError` for anything else."""
    try:
        steps = json.loads(zlib.decompress(base64.urlsafe_b64decode(word)))
    except zlib.error as error:
        raise ValueError(f"not a list of steps: {error}") from None
    return [(name, numbers) for name, numbers in steps]


def machine(
    new_world: Callable[[], World],
    poller: str,
    how_to_repeat: Callable[[list[Step]], str],
    count: Callable[[int], None],
) -> type[RuleBasedStateMachine]:
    """A state machine of hypothesis: one rule for each step, some of them more than once."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[Step] = []
            self.world = new_world()
            self.session = Session(self.world, poller)
            self.failed = False

        def perform(self, step: Step) -> None:
            self.steps.append(step)
            self.guarded(lambda: perform(self.session, step))

        def guarded(self, action: Callable[[], None]) -> None:
            try:
                action()
            except Exception as error:
                self.failed = True
                raise Failed(f"{error!r}\n{how_to_repeat(self.steps)}") from error

        def teardown(self) -> None:
            try:
                if not self.failed:
                    self.guarded(self.session.close)
                    self.guarded(self.world.close)
                    count(len(self.steps))
            finally:
                if self.failed:
                    abandon(self.session, self.world)

    for name in (*_STEPS, *_OFTEN):
        _add_rule(Machine, name, _STEPS[name])
    return Machine


def _add_rule(cls: type, name: str, sizes: tuple[int, ...]) -> None:
    def step(self: Any, choice: int) -> None:
        numbers = []
        for size in sizes:
            choice, number = divmod(choice, size)
            numbers.append(number)
        self.perform((name, numbers))

    label = name
    while hasattr(cls, label):
        label += "_"
    step.__name__ = step.__qualname__ = label
    # One number for all of them: hypothesis has room for so many choices only.
    setattr(cls, label, rule(choice=st.integers(0, math.prod(sizes) - 1))(step))


def abandon(session: Session, world: World) -> None:
    """After a failure: close what can be, and let nothing more be asserted."""
    for close in (session.abandon, world.close):
        try:
            close()
        except Exception:
            pass


def explore(
    new_world: Callable[[], World],
    poller: str,
    how_to_repeat: Callable[[list[Step]], str],
    *,
    start: int,
    sessions: int,
    steps: int,
) -> int:
    """Run so many sessions of so many steps; ``start`` seeds them. How many steps there were.

    Raises :exc:`Failed`. Hypothesis makes some of them shorter.
    """
    made: list[int] = []
    cls = seed(start)(machine(new_world, poller, how_to_repeat, made.append))
    run_state_machine_as_test(
        cls,
        settings=settings(
            max_examples=sessions,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return sum(made)
