"""Servers and load tools as processes, each pinned to its core; rounds in turns; figures."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from bench.applications.cpu import cpu_seconds
from bench.applications.model import COMPILER, Application, Load, Place, Row, Sample, Server
from bench.machine import Cores
from bench.native import NoCompilerError, compiler
from bench.process import PATIENCE, ROOT, RunError, end, last_line
from bench.progress import Progress

LIMIT = 60.0  # seconds for a load to connect, and more if it is slow
AFTERMATH = 1.0  # seconds for a server that fails to end
WARM_UP = 0.25  # seconds at least
PORTS = range(10_000, 32_768)  # which few services have, and few systems give to who connects
OPEN = {"tcp": "0A", "udp": "07"}  # the state of a socket that anybody may talk to


def measure(
    applications: list[Application], rounds: int, seconds: float, cores: Cores, progress: Progress
) -> tuple[list[Row], bool]:
    """Every server under every load once per round; false if an interrupt has ended it early."""
    plan = [
        (server, load, Row(application.name, load.name, server.name, load.unit))
        for application in applications
        for load in application.loads
        for server in application.servers
    ]
    for server, load, row in plan:
        row.lower_is_better = load.lower_is_better
        row.error = missing(server, load)
    progress.start(rounds * len(plan))
    whole = False
    try:
        for number in range(rounds):
            shift = number * len(plan) // rounds  # nobody always follows the same neighbour
            for server, load, row in plan[shift:] + plan[:shift]:
                progress.step(f"round {number + 1}/{rounds}  {row.load}  {row.server}")
                sample(server, load, row, seconds, cores, progress)
        whole = True
    except KeyboardInterrupt:
        progress.note("interrupted: here is what has been measured")
    progress.finish()
    return [row for _, _, row in plan], whole


def missing(server: Server, load: Load) -> str | None:
    """What the two need and is not here."""
    programs = server.programs + load.programs + (load.beside.programs if load.beside else ())
    absent = [name for name in server.modules if importlib.util.find_spec(name) is None]
    absent += [name for name in dict.fromkeys(programs) if not is_installed(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def is_installed(program: str) -> bool:
    if program != COMPILER:
        return shutil.which(program) is not None
    try:
        return bool(compiler())
    except NoCompilerError:
        return False


def sample(
    server: Server, load: Load, row: Row, seconds: float, cores: Cores, progress: Progress
) -> None:
    if row.error is not None:
        return
    place = Place(*free_ports())
    core = f"{cores.load},{cores.server}" if server.spread else str(cores.server)
    beside = None
    try:
        with contextlib.ExitStack() as stack:
            pid = stack.enter_context(serving(server, place, place.port, core))
            place = place._replace(pid=pid)
            if load.beside is not None and not server.alone:
                more = serving(load.beside, place, place.second, str(cores.load))
                beside = stack.enter_context(more)
            run_load(load, place, max(seconds / 4, WARM_UP), cores)
            before = usage(pid, beside)
            found = run_load(load, place, seconds, cores)
            server_busy, load_busy = shares(before, usage(pid, beside))
    except RunError as error:
        row.error = str(error)
        progress.note(f"{row.server}, {row.load}: {error}")
        return
    row.rates.append(found.figure)
    row.load_busy.append(load_busy)
    if not load.lower_is_better:
        busy = server_busy if found.server_busy is None else found.server_busy
        row.cpu_rates.append(found.figure / max(busy, 0.01))


class Usage(NamedTuple):
    """Seconds: of the clock, and of CPU time."""

    wall: float
    server: float
    load: float  # with what runs beside it


def usage(server: int, beside: int | None) -> Usage:
    """Up to now; what a load has used counts once it has ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    load = ended.ru_utime + ended.ru_stime
    if beside is not None:
        load += cpu_seconds(beside)
    return Usage(time.monotonic(), cpu_seconds(server), load)


def shares(before: Usage, after: Usage) -> tuple[float, float]:
    """How busy server and load have been between: CPU seconds a second."""
    wall = after.wall - before.wall
    return (after.server - before.server) / wall, (after.load - before.load) / wall


@contextlib.contextmanager
def serving(server: Server, place: Place, port: int, cores: str) -> Iterator[int]:
    """Start the server, wait until its port is open, and end it on leaving. Gives its pid."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            pinned(server.command(place), cores),  # taskset becomes the server
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server.protocol, port, process, output)
            try:
                yield process.pid
            except RunError:  # the load's: it may fail because the server does
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(AFTERMATH)
                if process.poll() is None:
                    raise
            if process.poll() is not None:
                raise RunError(f"the server ended: {last_line(output)}")
        finally:
            end(process)


def wait_for(protocol: str, port: int, process: subprocess.Popen[bytes], output: IO[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit and process.poll() is None:
        if not protocol or is_open(protocol, port):
            return
        time.sleep(0.02)
    raise RunError(f"the server did not start: {last_line(output)}")


def is_open(protocol: str, port: int) -> bool:
    """Whether somebody has the port open (proc_net(5)). Nobody is disturbed by the question."""
    for table in (Path(f"/proc/net/{protocol}"), Path(f"/proc/net/{protocol}6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for _, local, _, state, *_ in map(str.split, lines):
            if state == OPEN[protocol] and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def run_load(load: Load, place: Place, seconds: float, cores: Cores) -> Sample:
    command = load.command(place, seconds)
    try:
        done = subprocess.run(
            pinned(command, str(cores.load)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=10 * seconds + LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{Path(command[0]).name} did not end in time") from None
    if done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise RunError(f"{Path(command[0]).name}: {message or f'status {done.returncode}'}")
    return load.read(done.stdout)


def pinned(command: list[str], cores: str) -> list[str]:
    return ["taskset", "--cpu-list", cores, *command]


def free_ports() -> list[int]:
    """Two, each free for TCP, and for UDP as good as certainly.

    They are none that the system gives to who connects: those could be taken by the time that the
    server wants them.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(PORTS.start, given) if given > PORTS.start else PORTS
    found: set[int] = set()
    while len(found) < 2:
        port = random.choice(ports)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)
