"""Events: what can happen next in a session, each by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.machine import perform
from tests.model.worlds import SimulatedWorld
from tests.simulation.streams import Stream

if TYPE_CHECKING:
    from tests.model.lines import Line
    from tests.model.machine import Step
    from tests.model.session import Session

#: The connections, in the order in which they come into use.
_NAMES = "AB"

#: Numbers of the model's steps: a timeout that a jump of the clock is over with, and sizes. Of the
#: 4,096 bytes that a socket of the simulated network holds, one send of the peer takes a part.
_TIMED, _UNTIMED = 2, 0
_SMALL, _PART, _LARGE, _ALL = 2, 3, 4, 5

#: What is asked of a connection: the step, and its numbers behind that of the connection.
_REQUESTS: dict[str, tuple[str, list[int]]] = {
    "read": ("read", [0, 0, _UNTIMED]),
    "timed-read": ("read", [0, 0, _TIMED]),
    "read-full": ("read", [2, _LARGE, _UNTIMED]),  # of more than the socket holds
    "multishot": ("read", [6, 0, _UNTIMED]),
    "write": ("write", [0, _SMALL, _UNTIMED]),
    "large-write": ("write", [0, _LARGE, _UNTIMED]),  # of more than the socket takes
    "timed-write": ("write", [0, _LARGE, _TIMED]),
    "silent-write": ("write", [3, _LARGE, _UNTIMED]),
    "shutdown": ("shutdown", []),
    "hangup": ("hangup", [_UNTIMED]),
}
#: What a freed connection is asked still; its other requests fail at the same place.
_OF_THE_FREED = ("read", "write")

_PEER: dict[str, tuple[str, list[int]]] = {
    "send": ("peer_sends", [_PART]),
    "receive": ("peer_receives", [_ALL]),
    "end": ("peer_ends", []),
    "reset": ("peer_closes", [1]),
}

#: A connection that is not a pair from the beginning: to somebody who listens, or to nobody.
_CONNECTS = {"connect": 0, "refused": 2}

_RELAYS: dict[str, list[int]] = {"relay A B": [0, 1], "relay B A": [1, 0]}

_ANYWHERE: dict[str, Step] = {
    "turn": ("turn", [0]),
    "wait": ("wait", [0]),
    "cancel-wait": ("cancel_wait", []),
    "collect": ("collect", []),
    "jump": ("jump", []),
    "close": ("finish_watcher", []),
}

_NARROW = frozenset(
    ["read", "multishot", "timed-write", "send", "receive", "reset", "cancel-first", "free"]
) | {"turn", "wait", "cancel-wait", "jump", "close"}
_MIDDLE = _NARROW | {
    *("timed-read", "read-full", "write", "connect", "relay A B"),
    *("silent-write", "shutdown", "end", "cancel-last", "collect"),
}
_WIDE = _MIDDLE | {"large-write", "hangup", "refused", "relay B A"}

#: Which events there are. With each event more there are some 30 times as many sequences of the
#: first, 27 of the second, 14 of the third: so that each of the alphabets has its depth.
ALPHABETS: dict[str, frozenset[str]] = {"wide": _WIDE, "middle": _MIDDLE, "narrow": _NARROW}


def alphabet_for(depth: int) -> str:
    """The largest alphabet with which a depth takes minutes (to 4), or hours (6)."""
    return "wide" if depth < 4 else "middle" if depth == 4 else "narrow"


def happen(session: Session, event: str) -> None:
    """Let an event happen that can."""
    for step in _steps(session, event):
        perform(session, step)
    session.reap()


def following(session: Session, alphabet: frozenset[str]) -> list[str]:
    """The events that can happen now and would change something, in a fixed order."""
    if session.watcher.closed:
        return []
    events = [name for name in _ANYWHERE if name in alphabet and _anywhere(session, name)]
    for name in _RELAYS:
        if name in alphabet and len(session.lines) == 2 and _can_relay(session):
            events.append(name)
    for number, name in enumerate(_NAMES[: len(session.lines) + 1]):
        line = session.lines[number] if number < len(session.lines) else None
        kinds = _of_new() if line is None else _of(session, line)
        events += [f"{kind} {name}" for kind in kinds if kind in alphabet]
    return events


def _anywhere(session: Session, name: str) -> bool:
    world = session.world
    assert isinstance(world, SimulatedWorld)
    match name:
        case "turn":
            return world.busy
        case "wait":
            return not session.waits
        case "cancel-wait":
            return session.waits
        case "jump":
            return any(one.due and one.due > world.now for one in session.pending())
    return True


def _can_relay(session: Session) -> bool:
    under_way = any(request.kind == "relay" for request in session.pending())
    return not under_way and all(line.alive for line in session.lines)


def _of_new() -> list[str]:
    return [*_REQUESTS, *_CONNECTS, "send", "end", "reset"]


def _of(session: Session, line: Line) -> list[str]:
    """What can happen on a connection."""
    if line.freed:
        return list(_OF_THE_FREED)
    kinds = [*_REQUESTS, "free"]
    pending = len(_pending(session, line))
    if pending:
        kinds.append("cancel-first")
    if pending > 1:
        kinds.append("cancel-last")
    if line.peer is not None:
        kinds.append("reset")
        if not (line.ended or line.broken):
            kinds.append("end")
            if _room(session, line):
                kinds.append("send")
        if line.peer.unread:
            kinds.append("receive")
    return kinds


def _room(session: Session, line: Line) -> int:
    """Bytes that the peer can send now."""
    world = session.world
    assert isinstance(world, SimulatedWorld)
    stream = world.network.description(line.peer.fileno())
    assert isinstance(stream, Stream)
    return stream.room


def _pending(session: Session, line: Line) -> list[int]:
    """Where the requests of a connection stand among all that are pending."""
    return [place for place, one in enumerate(session.pending()) if line in one.lines]


def _steps(session: Session, event: str) -> list[Step]:
    """An event as steps of the model."""
    if event in _ANYWHERE:
        return [_ANYWHERE[event]]
    if event in _RELAYS:
        return [("relay", [*_RELAYS[event], _TIMED])]
    kind, name = event.split()
    number = _NAMES.index(name)
    if kind in _CONNECTS:
        return [("connect", [_CONNECTS[kind], _UNTIMED])]
    if kind == "free":
        return [("free", [number])]
    if kind in ("cancel-first", "cancel-last"):
        places = _pending(session, session.lines[number])
        return [("cancel", [places[0 if kind == "cancel-first" else -1], 1])]
    step, numbers = _REQUESTS.get(kind) or _PEER[kind]
    steps: list[Step] = [(step, [number, *numbers])]
    return steps if number < len(session.lines) else [("open", [0]), *steps]
