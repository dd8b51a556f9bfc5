"""What is measured: servers, loads, targets, and the rows of figures that come of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.process import ROOT

LOOPS = ("asyncio", "uvloop")
COMPILER = "a C compiler"  # a program that may have several names


class Place(NamedTuple):
    """Where a server is on the loopback."""

    port: int
    second: int  # for what the load has beside it, or for more of the server
    pid: int = 0  # once it runs


class Sample(NamedTuple):
    """What a load tool has found."""

    figure: float
    server_busy: float | None = (
        None  # CPU seconds a second of it, where the tool measures it itself
    )


@dataclass(frozen=True, slots=True)
class Server:
    """One that is measured: what starts it."""

    name: str  # of ours: the example's, a hyphen, the loop's
    command: Callable[[Place], list[str]]
    modules: tuple[str, ...] = ()  # that this interpreter needs
    programs: tuple[str, ...] = ()  # that the system needs
    protocol: str = "tcp"  # it is ready once its port is open; "udp", or "" if it opens none
    spread: bool = False  # over both cores, instead of on the server's
    alone: bool = False  # without what the load has beside it


@dataclass(frozen=True, slots=True)
class Load:
    """One load tool with its options, and how to read what it prints."""

    name: str
    unit: str
    command: Callable[[Place, float], list[str]]  # of the place, and the seconds to take
    read: Callable[[str], Sample]  # raises RunError if answers were wrong
    programs: tuple[str, ...] = ()
    beside: Server | None = None  # on the load's core and the second port: a backend, or more load
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """At this load, the first server makes at least ``factor`` of the second's figure.

    At most, where lower is better.
    """

    load: str
    server: str
    rival: str
    factor: float


@dataclass(frozen=True, slots=True)
class Application:
    """An example and the usual ways to do the same, under the same loads."""

    name: str
    ours: list[Server]
    rivals: list[Server]
    loads: list[Load]  # the first one is what the example is about: it is in the short table
    targets: list[Target] = field(default_factory=list)
    loop_by_loop: bool = False  # ours on a loop is told beside the rival on the same one

    @property
    def servers(self) -> list[Server]:
        return self.ours + self.rivals


@dataclass(slots=True)
class Row:
    """One server under one load: figures for each round, or why there are none."""

    application: str
    load: str
    server: str
    unit: str
    lower_is_better: bool = False
    rates: list[float] = field(default_factory=list)  # in the unit
    cpu_rates: list[float] = field(default_factory=list)  # the same per second of its CPU time
    load_busy: list[float] = field(default_factory=list)  # CPU seconds a second, with all beside it
    error: str | None = None


def example(name: str, *options: str) -> Callable[[Place], list[str]]:
    """The command of one of this project's examples."""
    return lambda place: [
        sys.executable, str(ROOT / "examples" / name), "--port", str(place.port), *options,
    ]  # fmt: skip


def needed(loop: str, *modules: str) -> tuple[str, ...]:
    """What a server on that loop needs."""
    return modules if loop == "asyncio" else (*modules, loop)


def ours(program: str, *modules: str, udp: bool = False) -> list[Server]:
    """The example on each loop."""
    return [
        Server(
            f"{program}-{loop}",
            example(f"{program}.py", "--loop", loop),
            needed(loop, *modules),
            protocol="udp" if udp else "tcp",
        )
        for loop in LOOPS
    ]


def rivals(name: str, module: str, *modules: str, udp: bool = False) -> list[Server]:
    """One of ``rivals/`` on each loop."""
    return [
        Server(
            f"{name}-{loop}",
            lambda place, loop=loop: [  # type: ignore[misc]
                sys.executable, "-m", f"bench.applications.rivals.{module}", "--loop", loop,
                "--port", str(place.port), "--to", str(place.second),
            ],
            needed(loop, *modules),
            protocol="udp" if udp else "tcp",
        )
        for loop in LOOPS
    ]  # fmt: skip
