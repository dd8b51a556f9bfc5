"""The engine: inputs that reach something new are kept and mutated; crashes are made small."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.fuzz.reach import Place, Reach
from tests.fuzz.session import CALLS, VALUES
from tests.fuzz.steps import NAMES, decode, encode
from tests.fuzz.target import Crash, one_input
from tests.model.machine import Step

LONGEST = 600
_REDUCTIONS = 2000  # inputs to make a crash small


@dataclasses.dataclass(frozen=True)
class Found:
    """A crash: what it was, where, and the input, as small as it could be made."""

    text: str
    where: str
    data: bytes

    @property
    def how_to_repeat(self) -> str:
        return f"python -m tests.fuzz --replay {self.data.hex()}"


def first_inputs() -> list[bytes]:
    """Nothing; each step once, behind requests that wait; and each odd value in each call."""
    start: list[Step] = [("open", [0]), ("listen", []), ("read", [0, 0, 0, 0])]
    each_step = [encode(start) + bytes((NAMES.index(name), *([1] * 7))) for name in NAMES]
    each_value = [
        encode([*start, *(("call", [call, 0, 0, value + call, value]) for call in range(CALLS))])
        for value in range(VALUES)
    ]
    return [b"", *each_step, *each_value]


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A few changes: bits, bytes, pieces left out, doubled, put in, or taken from another input."""
    result = bytearray(data)
    for _ in range(1 << chance.randrange(5)):
        at = chance.randrange(len(result) + 1)
        end = min(len(result), at + 1 + chance.randrange(1 << chance.randrange(1, 6)))
        match chance.randrange(8):
            case 0 if at < len(result):
                result[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(result):
                result[at] = chance.randrange(256)
            case 2 if at < len(result):
                result[at] = (result[at] + chance.choice((1, -1, 4, -4))) % 256
            case 3:
                del result[at:end]
            case 4:
                result[at:at] = result[at:end]
            case 5:  # a step
                result[at:at] = bytes((chance.randrange(len(NAMES)),)) + chance.randbytes(4)
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                result[at:at] = other[start : start + chance.randrange(1, 40)]
            case 7:
                other = chance.choice(others)
                result[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(result[:LONGEST])


def crash_of(data: bytes, run: Callable[[bytes], object] = one_input) -> tuple[str, str] | None:
    """What is wrong with an input, and where it shows; ``None`` if nothing is."""
    try:
        run(data)
    except Crash as crash:
        cause = crash.__cause__
        kind = type(cause or crash).__name__
        frames = traceback.extract_tb(cause.__traceback__) if cause else []
        where = f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return str(crash), where or str(crash).partition("<")[0][:60]
    return None


def minimised(data: bytes, where: str, run: Callable[[bytes], object] = one_input) -> bytes:
    """The smallest input found that fails in the same place: steps left out, numbers made zero."""

    def fails(candidate: bytes) -> bool:
        found = crash_of(candidate, run)
        return found is not None and found[1] == where

    head, steps = data[:2].ljust(2, b"\0"), decode(data)[1]
    left = _REDUCTIONS
    size = max(1, len(steps) // 2)
    while size:
        for at in range(len(steps) - size, -1, -size):
            shorter = steps[:at] + steps[at + size :]
            left -= 1
            if left and fails(encode(shorter, head)):
                steps = shorter
        size //= 2
    for at, which in [(at, n) for at, step in enumerate(steps) for n in range(len(step[1]))]:
        name, numbers = steps[at]
        simpler = (name, [*numbers[:which], 0, *numbers[which + 1 :]])
        candidate = [*steps[:at], simpler, *steps[at + 1 :]]
        if numbers[which] and fails(encode(candidate, head)):
            steps = candidate
    return encode(steps, bytes(2) if fails(encode(steps, bytes(2))) else head)


class Engine:
    """Inputs one after another. Deterministic by its seed, as long as no limit is a time."""

    def __init__(
        self, seed: int, corpus: Path | None = None, run: Callable[[bytes], int] = one_input
    ) -> None:
        self._chance = random.Random(seed)
        self._folder, self._run = corpus, run
        self.kept: list[bytes] = []
        self.crashes: dict[str, Found] = {}
        self.inputs = self.steps = 0
        self.seen: set[Place] = set()

    @property
    def lines(self) -> set[Place]:
        """The lines reached."""
        return {place for place in self.seen if len(place) == 2}

    def run(self, goes_on: Callable[[], bool]) -> None:
        """First what is stored, then what comes of it, until ``goes_on`` says no."""
        gc.freeze()  # what is there already need not be looked at after each input
        try:
            for data in self._inputs():
                if not goes_on():
                    return
                self._try(data)
        finally:
            gc.unfreeze()

    def _inputs(self) -> Iterator[bytes]:
        yield from (*first_inputs(), *self._stored())
        while True:
            # The newest have reached what others have not.
            newest = self.kept[-20:] if self._chance.randrange(3) == 0 else self.kept
            yield mutated(self._chance.choice(newest or [b""]), self.kept or [b""], self._chance)

    def _stored(self) -> Iterable[bytes]:
        if self._folder is None:
            return []
        self._folder.mkdir(parents=True, exist_ok=True)
        return [path.read_bytes() for path in sorted(self._folder.iterdir()) if path.is_file()]

    def _try(self, data: bytes) -> None:
        with Reach() as reach:
            found = crash_of(data, self._count)
        self.inputs += 1
        if found is not None:
            text, where = found
            if where not in self.crashes:
                self.crashes[where] = Found(text, where, minimised(data, where, self._run))
        elif not reach.seen <= self.seen:
            self.kept.append(data)
            if self._folder is not None:
                name = hashlib.sha256(data).hexdigest()[:16]
                (self._folder / name).write_bytes(data)
        self.seen |= reach.seen

    def _count(self, data: bytes) -> None:
        self.steps += self._run(data)
