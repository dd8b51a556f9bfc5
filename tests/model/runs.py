"""Runs: many sessions on one world with one poller, and what to print when one fails."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from functools import partial

from tests.model.machine import Failed, Step, abandon, explore, perform, written
from tests.model.session import Session
from tests.model.worlds import RealWorld, SimulatedWorld, World
from tests.probes import LOOP_FACTORIES

POLLERS = ("epoll", "loop")

WORLDS: dict[str, Callable[[], World]] = {
    "simulated": SimulatedWorld,
    "distant": lambda: SimulatedWorld(latency=0.002, cost=0.00002),
    **{name: partial(RealWorld, new_loop) for name, new_loop in LOOP_FACTORIES.items()},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """``sessions`` sessions of ``steps`` steps, seeded by ``start``."""

    world: str
    poller: str
    start: int
    sessions: int
    steps: int

    def __str__(self) -> str:
        return f"{self.world} network, {self.poller} poller, seed {self.start}"

    def make(self) -> int:
        """Run them; how many steps there were. Raises :exc:`Failed`."""
        return explore(
            WORLDS[self.world],
            self.poller,
            self.how_to_repeat,
            start=self.start,
            sessions=self.sessions,
            steps=self.steps,
        )

    def how_to_repeat(self, steps: list[Step]) -> str:
        """The command, or, as real sockets do not repeat themselves, what was done."""
        if self.world in ("simulated", "distant"):
            arguments = ["--world", self.world, "--poller", self.poller, "--replay", written(steps)]
            return f"repeat it: {shlex.join(['python', '-m', 'tests.model', *arguments])}"
        done = "\n".join(f"  {name}{tuple(numbers)}" for name, numbers in steps)
        return f"on the {self.world} loop, {self.poller} poller, this was done:\n{done}"


def replay(world: str, poller: str, steps: list[Step], log: Callable[[str], None]) -> None:
    """Make the steps of a failure once more, and say what each came to."""
    place = WORLDS[world]()
    session = Session(place, poller)
    try:
        for name, numbers in steps:
            before = session.deliveries
            log(f"{place.now:10.6f}  {name}{tuple(numbers)}")
            perform(session, (name, numbers))
            if session.deliveries > before:
                log(f"{'':10}  {session.deliveries - before} delivered")
        log(f"{place.now:10.6f}  the end")
        session.close()
        place.close()
    except BaseException:
        abandon(session, place)
        raise


def attempt(run: Run) -> tuple[Run, int, str]:
    """Make a run; its steps, or what went wrong."""
    try:
        return run, run.make(), ""
    except Failed as failure:
        return run, 0, str(failure)


def end(message: str) -> None:
    """End the program with one line."""
    sys.exit(f"tests.model: {message}")
