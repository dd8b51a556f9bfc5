"""Steps: any bytes as a set-up and a list of steps, and such a list as bytes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable

from tests.fuzz.session import FuzzSession
from tests.model.machine import Step

#: In this order, which the stored inputs rely on: append only.
NAMES = (
    "open",
    "read",
    "write",
    "peer_sends",
    "peer_receives",
    "turn",
    "wait",
    "listen",
    "dial",
    "accept",
    "connect",
    "free",
    "forget",
    "post",
    "shutdown",
    "hangup",
    "relay",
    "cancel",
    "cancel_completed",
    "peer_ends",
    "peer_closes",
    "pass_time",
    "cancel_wait",
    "collect",
    "fail",
    "close_watcher",
    "quiesce",
    "call",
    "call_with_two",
    "make_watcher",
    "spoil",
    "give_up_wait",
    "look",
    "drain",
    "cancel_drain",
    "close_in_order",
    "collect_garbage",
    "fail_with",
    "jump",
)
_SIZES = {name: len(inspect.signature(getattr(FuzzSession, name)).parameters) - 1 for name in NAMES}

#: A longer input is cut: an hour on one input finds less than an hour on many.
MOST = 200


@dataclasses.dataclass(frozen=True)
class SetUp:
    """The first two bytes: the world, the poller, the loop's mode, and the first watcher."""

    world: str
    poller: str
    debug: bool
    config: int


def decode(data: bytes) -> tuple[SetUp, list[Step]]:
    """What bytes mean: all bytes mean something, and what is missing at the end is zero."""
    head = data[:2].ljust(2, b"\0")
    world = ("simulated", "distant")[head[0] & 1]
    poller = ("epoll", "loop")[head[0] >> 1 & 1]
    steps: list[Step] = []
    position = 2
    while position < len(data) and len(steps) < MOST:
        name = NAMES[data[position] % len(NAMES)]
        end = position + 1 + _SIZES[name]
        steps.append((name, list(data[position + 1 : end].ljust(_SIZES[name], b"\0"))))
        position = end
    return SetUp(world, poller, bool(head[0] >> 2 & 1), head[1]), steps


def encode(steps: Iterable[Step], head: bytes = bytes(2)) -> bytes:
    """Bytes that mean these steps; ``head`` is the set-up."""
    parts = [head]
    for name, numbers in steps:
        assert len(numbers) == _SIZES[name], name
        parts.append(bytes((NAMES.index(name), *numbers)))
    return b"".join(parts)
