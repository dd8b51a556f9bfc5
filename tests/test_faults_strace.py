"""The scripted session as a process whose system calls fail in truth, by strace's fault injection.

What the wrappers of ``tests.faults`` cannot reach is in between: the interpreter, and the loop's
own poller. The puppets are in this process, which is not traced; the calls to fail are those that
a run without a fault makes between the session's beginning and its end.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_session import STREAM_ERRORS, Puppets

pytestmark = pytest.mark.strace

STRACE = shutil.which("strace")
WITHIN = 20.0
"""Seconds for one session; it takes about half of one."""
SHARE, HEAVY_SHARE = 60, 4
"""One in so many of the single failures is made: by the default run, and by the heavy one."""
AT_ONCE = 2
"""Sessions under way at a time."""
ATTEMPTS = 4
"""Sessions for one failure, until one meets it: how many calls there are depends on timing."""

CALLS = (
    "accept4",
    "connect",
    "epoll_ctl",
    "epoll_wait",
    "recvfrom",
    "recvmsg",
    "sendfile",
    "sendmsg",
    "sendto",
    "splice",
)
"""All that watchers make. Our own marks are written with write(2), which does not fail."""

UNSEEN = {
    "accept4": "ECONNABORTED EPROTO",
    "sendfile": "EINVAL ENOMEM",
    "sendmsg": "ENOBUFS",
    "sendto": "ENOBUFS ENOMEM",
    "splice": "EINVAL ENOMEM",
}
"""Errnos of which the program hears nothing: the watcher tries again, or does it otherwise."""
SHOWN = {
    "accept4": "EMFILE EBADF",
    "connect": "ECONNREFUSED EADDRNOTAVAIL ENETUNREACH",
    "epoll_ctl": "ENOMEM ENOSPC",
    "recvfrom": "ECONNRESET EBADF",
    "recvmsg": "ENOBUFS ECONNRESET",
    "sendfile": "EPIPE EIO",
    "sendmsg": "EPIPE",
    "sendto": "EPIPE ECONNRESET",
    "splice": "ECONNRESET EPIPE",
}
"""Errnos with which a request has to fail, and nothing else."""

INTERRUPTED = {name: 2 for name in CALLS if name not in {"connect", "epoll_ctl"}} | {
    "epoll_wait": 3
}
"""One in so many of these calls is interrupted, and tried again (PEP 475). A poll that does not
wait is not, and every second one would be the watcher's each time."""


def why_not() -> str | None:
    """The reason if processes cannot be traced here."""
    if STRACE is None:
        return "strace is not installed"
    tried = subprocess.run(
        [STRACE, "-qq", "-e", "inject=getpid:error=EINTR", "true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()}"


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@dataclass(frozen=True)
class Injected:
    """What is to fail in a run, and whether the program sees it."""

    injections: tuple[str, ...]  # as strace has them
    number: int
    shown: bool


@dataclass
class Traced:
    """A session that was traced."""

    report: dict[str, Any]
    calls: list[tuple[str, str]]  # names and lines, from its beginning to its end
    before: dict[str, int]  # how many of each were made before
    faults: list[str]

    @property
    def struck(self) -> list[tuple[str, str]]:
        """The calls that were made to fail."""
        return [(name, rest) for name, rest in self.calls if "(INJECTED)" in rest]

    @property
    def hit(self) -> bool:
        """Whether something was made to fail that can."""
        return any(_concerns_us(name, rest) for name, rest in self.struck)

    @property
    def astray(self) -> bool:
        """Whether something was made to fail that never does: nothing can be told from it."""
        return bool(self.struck) and not self.hit

    @property
    def errnos(self) -> set[int]:
        return {number for number in self.report.get("errors", ()) if number is not None}


async def session(poller: str, *injections: str) -> Traced:
    """Run one, with the puppets here."""
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place) / "trace"
        options = [f"--inject={injection}" for injection in injections]
        puppets = Puppets()
        faults: list[str] = []
        report: dict[str, Any] = {}
        assert STRACE is not None
        process = await asyncio.create_subprocess_exec(
            *(STRACE, "-f", "-qq", "-o", str(trace), f"--trace=write,{','.join(CALLS)}", *options),
            *(sys.executable, "-m", "tests.scripted_session", poller),
            *(str(puppets.address[1]), str(puppets.datagram_address[1])),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 26,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(WITHIN):
                report = await _serve(process, puppets)
                said = (await process.stderr.read()).decode()  # type: ignore[union-attr]
                if await process.wait() or said:
                    faults.append(f"ends with {process.returncode} and says {said}")
        except TimeoutError:
            faults.append("hangs")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, 9)
                await process.wait()
            faults += await puppets.finish()
        faults += report.get("faults", ["no report"])
        return Traced(report, *_read(trace), faults)


async def _serve(process: asyncio.subprocess.Process, puppets: Puppets) -> dict[str, Any]:
    """Do what the session asks for, and return its report."""
    report: dict[str, Any] = {}
    assert process.stdout is not None
    async for line in process.stdout:
        command, key, data = line.decode().rstrip("\n").split(" ")
        if command == "report":
            report = json.loads(bytes.fromhex(data))
        elif command not in {"begin", "over"}:
            puppets.tell(command, key, bytes.fromhex(data))
    return report


def _read(trace: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    calls: list[tuple[str, str]] = []
    before = dict.fromkeys(CALLS, 0)
    begun = False
    for line in trace.read_text(errors="replace").splitlines():
        found = re.match(r"\d+\s+(\w+)\((.*)", line)
        if found is None:
            continue
        name, rest = found.groups()
        if name == "write":
            if rest.startswith('1, "begin'):
                begun = True
            elif rest.startswith('1, "over'):
                break
        elif begun:
            calls.append((name, rest))
        else:
            before[name] += 1
    return calls, before


@functools.cache
def dry_run(poller: str) -> Traced:
    dry = asyncio.run(session(poller))
    assert not dry.faults
    assert not dry.report["setbacks"]
    return dry


def positions(dry: Traced, name: str) -> list[int]:
    """The numbers of these calls, as strace counts them."""
    lines = [rest for called, rest in dry.calls if called == name]
    return [
        dry.before[name] + number
        for number, rest in enumerate(lines, start=1)
        if _concerns_us(name, rest)
    ]


def _concerns_us(name: str, rest: str) -> bool:
    """The system may be short of room for a descriptor, never for changing or forgetting one."""
    return name != "epoll_ctl" or "EPOLL_CTL_ADD" in rest


def judge(traced: Traced, dry: Traced, number: int, *, shown: bool) -> Iterator[str]:
    """What is wrong with it."""
    yield from traced.faults
    if len(traced.calls) > 3 * len(dry.calls) + 100:
        yield f"spins: {len(traced.calls)} system calls"
    if traced.errnos - dry.errnos - {number}:
        yield f"errors of other kinds: {traced.report['errors']}"
    if not shown and traced.report.get("setbacks"):
        yield f"seen: {traced.report['setbacks']}"
    if shown and traced.hit and number not in traced.errnos:
        yield "swallowed"
    for kind, cause, end in traced.report.get("ends", ()):
        if end is None and cause in STREAM_ERRORS and kind != "RELAY":
            yield f"a {kind} failed with {cause}, and then there is an end in order"
        if end is not None and end not in {cause, *dry.errnos}:
            yield f"a {kind} failed with {cause}, and then there is {end}"


def check(poller: str, runs: Sequence[Injected]) -> None:
    """A session for each of the runs."""
    dry = dry_run(poller)
    wrong: list[str] = []
    hits: list[bool] = []

    async def one(run: Injected, turn: asyncio.Semaphore) -> None:
        async with turn:
            for _ in range(ATTEMPTS):
                traced = await session(poller, *run.injections)
                told = () if traced.astray else judge(traced, dry, run.number, shown=run.shown)
                wrong.extend(f"{' '.join(run.injections)}: {what}" for what in told)
                if traced.hit:
                    break
        hits.append(traced.hit)

    async def every() -> None:
        turn = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for run in runs:
                tasks.create_task(one(run, turn))

    asyncio.run(every())
    assert not wrong, "\n".join(wrong)
    assert sum(hits) > 0.8 * len(runs)  # the dry run's calls are much the same as the others'


def singles(poller: str) -> list[Injected]:
    """Each call of each kind, with each errno."""
    dry = dry_run(poller)
    return [
        Injected((f"{name}:error={code}:when={position}",), getattr(errno, code), shown)
        for table, shown in ((UNSEEN, False), (SHOWN, True))
        for name, codes in table.items()
        for code in codes.split()
        for position in positions(dry, name)
    ]


def sweeps(poller: str) -> list[Injected]:
    """Interruptions, so that each call meets one in one of the runs."""
    before = dry_run(poller).before
    return [
        Injected(
            tuple(
                f"{name}:error=EINTR:when={before[name] + 1 + shift % step}+{step}"
                for name, step in INTERRUPTED.items()
            ),
            errno.EINTR,
            False,
        )
        for shift in range(max(INTERRUPTED.values()))
    ]


@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_a_traced_session_does_not_notice_interrupted_system_calls(poller: str) -> None:
    check(poller, sweeps(poller))


@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_a_traced_session_survives_the_failure_of_a_system_call(poller: str) -> None:
    check(poller, singles(poller)[::SHARE])


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_a_traced_session_survives_the_failure_of_many_a_system_call(poller: str) -> None:
    check(poller, singles(poller)[::HEAVY_SHARE])
