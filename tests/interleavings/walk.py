"""The walk: one sequence, all that begin with it, and what is left of one that fails."""

from __future__ import annotations

import dataclasses
import shlex
import traceback
from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

from aiogaio import core
from tests.interleavings.events import ALPHABETS, following, happen
from tests.model.machine import abandon
from tests.model.session import Session
from tests.model.worlds import SimulatedWorld

Sequence = tuple[str, ...]


class Broken(AssertionError):  # noqa: N818 - it is what a test reports, not what code handles
    """A sequence has broken a rule; its text says which, and how to repeat it."""


class Impossible(ValueError):  # noqa: N818 - likewise
    """An event of a sequence cannot happen at its place."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """All sequences that begin with ``first`` and have up to ``depth`` events, those included."""

    poller: str
    alphabet: str
    depth: int
    first: Sequence = ()

    def make(self) -> Counter[int]:
        """Run them. How many there were, by their length. Raises :exc:`Broken` for the first that
        fails.
        """
        made: Counter[int] = Counter()
        waiting = [self.first]
        with patch.object(core, "_warm_up"):  # a fifth of the time, and of no consequence here
            while waiting:
                sequence = waiting.pop()
                follow = self._run(sequence)
                made[len(sequence)] += 1
                waiting += [(*sequence, event) for event in reversed(follow)]
        return made

    def divided(self) -> list[Walk]:
        """The same sequences in many walks: the first of them has those of up to one event more
        than ``first``, each other those that begin with a certain two.

        Raises :exc:`Broken`, since the short ones are run to see what can follow.
        """
        firsts, length = [self.first], len(self.first) + 2
        while firsts and len(firsts[0]) < length:
            firsts = [(*one, event) for one in firsts for event in self._run(one)]
        short = dataclasses.replace(self, depth=min(self.depth, length - 1))
        return [short, *(dataclasses.replace(self, first=first) for first in firsts)]

    def _run(self, sequence: Sequence) -> list[str]:
        try:
            return run(self.poller, sequence, self.alphabet if len(sequence) < self.depth else None)
        except Exception as error:
            shortest = reduced(self.poller, sequence, error)
            raise Broken(f"{told(error)}\n{how_to_repeat(self.poller, shortest)}") from error


def run(
    poller: str,
    sequence: Sequence,
    alphabet: str | None = None,
    log: Callable[[str], None] | None = None,
) -> list[str]:
    """Run one sequence with its final check; the events of the alphabet that can follow it.

    Raises whatever a broken rule raises.
    """
    world = SimulatedWorld()
    session = Session(world, poller)
    try:
        for event in sequence:
            before = session.deliveries
            happen(session, event)
            if log is not None:
                log(f"{world.now:8.3f}  {event}: {session.deliveries - before} delivered")
        follow = following(session, ALPHABETS[alphabet]) if alphabet else []
        if any(request.due for request in session.pending()):
            session.quiesce()
            for _ in range(2):  # past the time, and past a time that began anew with a result
                session.jump()
                session.turn(0)
        session.close()
        world.close()
    except BaseException:
        abandon(session, world)
        raise
    return follow


def replay(poller: str, sequence: Sequence, log: Callable[[str], None] | None = None) -> None:
    """Run one sequence. Raises :exc:`Impossible` if an event of it cannot happen."""
    for length, event in enumerate(sequence):
        if event not in run(poller, sequence[:length], "wide"):
            raise Impossible(f"{event!r} cannot happen here")
    run(poller, sequence, log=log)


def reduced(poller: str, sequence: Sequence, error: Exception) -> Sequence:
    """What is left of a sequence that fails so if no event of it can be left out."""
    for place in range(len(sequence)):
        shorter = sequence[:place] + sequence[place + 1 :]
        try:
            replay(poller, shorter)
        except Exception as other:
            if told(other) == told(error):
                return reduced(poller, shorter, error)
    return sequence


def told(error: Exception) -> str:
    """What went wrong; an assertion that says nothing is shown itself."""
    text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {text}"


def how_to_repeat(poller: str, sequence: Sequence) -> str:
    """The command that runs one sequence."""
    arguments = ["--poller", poller, "--replay", ", ".join(sequence)]
    return f"repeat it: {shlex.join(['python', '-m', 'tests.interleavings', *arguments])}"
