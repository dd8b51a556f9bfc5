"""Servers and load tools as processes, each pinned to its core; rounds in turns; figures."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.machine import Cores
from bench.process import PATIENCE, ROOT, RunError, end, last_line
from bench.progress import Progress
from bench.results import spread


@dataclass(frozen=True, slots=True)
class Server:
    """One that is measured: what starts it on a port of the loopback."""

    name: str
    command: Callable[[int], list[str]]
    modules: tuple[str, ...] = ()  # that this interpreter needs
    programs: tuple[str, ...] = ()  # that the system needs


@dataclass(frozen=True, slots=True)
class Load:
    """One load tool with its options, and how to read a rate from what it prints."""

    name: str
    unit: str
    command: Callable[[int, float], list[str]]  # of the port, and the seconds to take
    rate: Callable[[str], float]  # raises RunError if answers were wrong
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """At this load, the first server makes at least ``factor`` of the second's rate."""

    load: str
    server: str
    rival: str
    factor: float


@dataclass(frozen=True, slots=True)
class Application:
    name: str
    servers: list[Server]
    loads: list[Load]
    targets: list[Target] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """One server under one load: figures for each round, or why there are none."""

    application: str
    load: str
    server: str
    unit: str
    rates: list[float] = field(default_factory=list)  # per second
    cpu_rates: list[float] = field(default_factory=list)  # per second of the server's CPU time
    error: str | None = None


def example(name: str, *options: str) -> Callable[[int], list[str]]:
    """The command of one of this project's examples."""
    return lambda port: [
        sys.executable, str(ROOT / "examples" / name), "--port", str(port), *options,
    ]  # fmt: skip


def measure(
    applications: list[Application], rounds: int, seconds: float, cores: Cores, progress: Progress
) -> list[Row]:
    """Every server under every load once per round. An interrupt ends it with what there is."""
    plan = [
        (server, load, Row(application.name, load.name, server.name, load.unit))
        for application in applications
        for load in application.loads
        for server in application.servers
    ]
    for server, load, row in plan:
        row.error = missing(server.modules, (*server.programs, *load.programs))
    progress.start(rounds * len(plan))
    try:
        for number in range(rounds):
            shift = number * len(plan) // rounds  # nobody always follows the same neighbour
            for server, load, row in plan[shift:] + plan[:shift]:
                progress.step(f"round {number + 1}/{rounds}  {row.load}  {row.server}")
                sample(server, load, row, seconds, cores, progress)
    except KeyboardInterrupt:
        progress.note("interrupted: what has been measured counts")
    progress.finish()
    return [row for _, _, row in plan]


def missing(modules: tuple[str, ...], programs: tuple[str, ...]) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    absent += [name for name in programs if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def sample(
    server: Server, load: Load, row: Row, seconds: float, cores: Cores, progress: Progress
) -> None:
    if row.error is not None:
        return
    try:
        with serving(server, cores) as (port, pid):
            run_load(load, port, seconds / 4, cores)  # to warm up
            began, used = time.monotonic(), cpu_seconds(pid)
            rate = run_load(load, port, seconds, cores)
            busy = (cpu_seconds(pid) - used) / (time.monotonic() - began)
        row.rates.append(rate)
        row.cpu_rates.append(rate / max(busy, 0.01))
    except RunError as error:
        row.error = str(error)
        progress.note(f"{row.server}, {row.load}: {error}")


@contextlib.contextmanager
def serving(server: Server, cores: Cores) -> Iterator[tuple[int, int]]:
    """Start the server on a free port, wait until it accepts, and end it on leaving."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            pinned(server.command(port), cores.server),  # taskset becomes the server
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(port, process, output)
            yield port, process.pid
            if process.poll() is not None:
                raise RunError(f"the server ended: {last_line(output)}")
        finally:
            end(process)


def wait_for(port: int, process: subprocess.Popen[bytes], output: IO[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RunError(f"the server did not start: {last_line(output)}")


def run_load(load: Load, port: int, seconds: float, cores: Cores) -> float:
    command = pinned(load.command(port, seconds), cores.load)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=10 * seconds + PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{load.programs[0]} did not end in time") from None
    if done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise RunError(f"{load.programs[0]}: {message or f'status {done.returncode}'}")
    return load.rate(done.stdout)


def pinned(command: list[str], core: int) -> list[str]:
    return ["taskset", "--cpu-list", str(core), *command]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, its threads included (proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise RunError("the server ended") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def verdict(target: Target, rows: list[Row]) -> str:
    """One line: whether the target is reached, by the median of the rounds' ratios."""
    text = f"{target.load}: {target.server} / {target.rival}"
    ours, rival = (find(rows, target.load, name) for name in (target.server, target.rival))
    rounds = list(zip(ours.rates, rival.rates, strict=False))
    if not rounds:
        return f"?    {text:62} >= {target.factor:.2f}   not measured"
    low, median, high = spread(ours / rival for ours, rival in rounds)
    by_cpu = statistics.median(ours.cpu_rates) / statistics.median(rival.cpu_rates)
    mark = "ok  " if median >= target.factor else "MISS"
    figures = f"{median:.2f} ({low:.2f} .. {high:.2f})   {by_cpu:.2f} by CPU"
    return f"{mark} {text:62} >= {target.factor:.2f}   {figures}"


def find(rows: list[Row], load: str, server: str) -> Row:
    return next(row for row in rows if (row.load, row.server) == (load, server))


def table(rows: list[Row]) -> list[str]:
    """Plain lines: the median rate, the lowest and highest round, and the same by CPU time.

    The latter is what the server makes in a second of its own CPU time: where the load tool is the
    slower side, the rate says nothing of the server.
    """
    wide = max(len(text) for row in rows for text in (f"  {row.server}", heading(row)))
    lines: list[str] = []
    load = ""
    for row in rows:
        if row.load != load:
            load = row.load
            lines += ["", f"{heading(row):{wide}} {'median':>12} {'by CPU':>12}"]
        if row.rates:
            low, median, high = spread(row.rates)
            figures = f"{median:12,.0f} {statistics.median(row.cpu_rates):12,.0f}"
            figures += f"   ({low:,.0f} .. {high:,.0f})"
        else:
            figures = f"{'-':>12} {'':12}   {row.error or 'not measured'}"
        lines.append(f"  {row.server:{wide - 2}} {figures}")
    return lines[1:]


def heading(row: Row) -> str:
    return f"{row.load}, {row.unit}"
