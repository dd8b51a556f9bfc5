"""info: what a watcher would run on here, and how many connections that allows."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import select
from dataclasses import dataclass

import aiogaio
from aiogaio import Watcher
from aiogaio.cli import limits, loops


@dataclass(frozen=True, slots=True)
class InfoOptions:
    loop: loops.Loop = "asyncio"
    poller: loops.Poller = "auto"


def run(options: InfoOptions) -> int:
    loop, poller = loops.run(options.loop, _probe(options.poller))
    facts = {
        "aiogaio": aiogaio.__version__,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": _uvloop_version(),
        "kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "loop": f"{options.loop} ({loop})",
        "poller": f"{poller}: {_why(options.poller, poller)}",
        "cores": _cores(),
        "open files": _open_files(),
        "connections": _connections(),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0


async def _probe(poller: loops.Poller) -> tuple[str, str]:
    """The class of the running loop, and the poller that a watcher takes on it."""
    loop = type(asyncio.get_running_loop())
    async with Watcher(poller=poller) as watcher:
        return f"{loop.__module__}.{loop.__qualname__}", watcher.statistics().poller


def _why(asked: loops.Poller, poller: str) -> str:
    if asked != "auto":
        return "as asked for"
    if poller == "epoll":
        return "this system has epoll, and the loop watches its descriptor"
    if not hasattr(select, "epoll"):
        return "this system has no epoll"
    return "the loop does not accept the descriptor of an epoll"


def _uvloop_version() -> str:
    try:
        return importlib.metadata.version("uvloop")
    except importlib.metadata.PackageNotFoundError:
        return f"not installed ({loops.INSTALL_UVLOOP})"


def _cores() -> str:
    usable = limits.cores()
    return f"{len(usable)} usable of {os.cpu_count()}" if usable else f"{os.cpu_count()}"


def _open_files() -> str:
    soft, hard = map(_limit, limits.open_files())
    return f"soft limit {soft}, hard limit {hard}"


def _connections() -> str:
    """What the limits come to."""
    files, _ = limits.open_files()
    soft, hard = map(limits.room, limits.open_files())
    if files is None or soft is None:
        return "as many in one process as memory allows"
    now = f"about {soft:,} in one process"
    if soft == hard:
        return f"{now}; more needs a higher hard limit ({limits.higher_hard_limit(2 * files)})"
    more = "any number" if hard is None else f"about {hard:,}"
    return f"{now}; {more} once it raises its soft limit, as demo and echo do"


def _limit(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
