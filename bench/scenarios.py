"""What is measured: each scenario knows how to take one sample of one server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.load import LIMIT, Load, Sample
from bench.machine import Cores, pinned
from bench.process import ROOT, RunError, serving

Measure = Callable[[str, Cores], Sample]


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    servers: tuple[str, ...]
    measure: Measure
    metric: str = "per_second"  # the path of the figure in a sample
    unit: str = "round trips/s"
    higher_is_better: bool = True


def human_size(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def with_load(load: Load) -> Measure:
    """Serve, load, done."""

    def measure(server: str, cores: Cores) -> Sample:
        with serving(server, cores, "--role", load.shape) as process:
            return load.run(process, cores)

    return measure


def echo(servers: tuple[str, ...], load: Load) -> Scenario:
    """Round trips per second with a message in flight on each connection."""
    name = f"{load.connections:,} x {human_size(load.size)}"
    if load.depth > 1:
        name += f", {load.depth} in flight"
    if load.idle:
        name += f" among {load.idle:,} idle"
    return Scenario(name, servers, with_load(load))


def throughput(servers: tuple[str, ...], load: Load) -> Scenario:
    """Megabytes per second, echoed through few connections."""
    scenario = echo(servers, load)
    return replace(scenario, metric="mb_per_second", unit="MB/s")


def completion(servers: tuple[str, ...], connections: int, size: int) -> Scenario:
    """Connect, send one message, read it back, on every connection: seconds for all together.

    The sample's ``open`` tells of that. The rest of it tells of a second message on each, sent at
    once now that all are connected.
    """
    load = Load("burst", connections=connections, size=size)
    return Scenario(
        f"{connections:,} connections, one message of {human_size(size)} each",
        servers,
        with_load(load),
        "open.seconds",
        "s to complete",
        False,
    )


def churn(servers: tuple[str, ...], load: Load) -> Scenario:
    """Connections accepted, served once and closed in order, by both sides."""
    name = f"accept, echo, close; {load.connections} at a time"
    return Scenario(name, servers, with_load(replace(load, task="churn")), unit="connections/s")


def relay(servers: tuple[str, ...], load: Load) -> Scenario:
    """Messages per second from one connection of a pair to the other."""
    name = f"relay, {plural(load.connections // 2, 'pair')} x {human_size(load.size)}"
    return Scenario(name, servers, with_load(replace(load, shape="relay")), unit="messages/s")


def push(servers: tuple[str, ...], load: Load) -> Scenario:
    """One message to all clients, then the next when all have it."""
    name = f"push {human_size(load.size)} to {load.connections:,} clients"
    return Scenario(name, servers, with_load(replace(load, shape="push")), unit="pushes/s")


def loop_lag(servers: tuple[str, ...], load: Load) -> Scenario:
    """How late a timer of 1 ms on the server's loop comes while the server is under full load."""

    def measure(server: str, cores: Cores) -> Sample:
        with serving(server, cores, "--ticker") as process:
            sample = load.run(process, cores)
            return {**sample, "ticker": process.ticker_report()}

    name = f"lag of a 1 ms ticker under {load.connections:,} x {human_size(load.size)}"
    return Scenario(name, servers, measure, "ticker.p99_ms", "ms late (p99)", False)


def idle_memory(servers: tuple[str, ...], connections: int = 8000) -> Scenario:
    """What one more idle connection costs in resident memory, after it has echoed a message.

    A few connections come before, so that what the first one brings into memory is not counted.
    """
    first = Load("hold", connections=64)
    rest = replace(first, connections=connections)

    def measure(server: str, cores: Cores) -> Sample:
        with serving(server, cores) as process, first.held(process, cores):
            before = process.resident_bytes()
            with rest.held(process, cores) as opened:
                after = process.resident_bytes()
        return {**opened, "bytes": (after - before) / connections}

    name = f"{connections:,} idle connections"
    return Scenario(name, servers, measure, "bytes", "resident bytes each", False)


def script(name: str, module: str, subjects: tuple[str, ...], metric: str, unit: str) -> Scenario:
    """What ``python -m bench.MODULE SUBJECT`` prints about itself: less is better."""

    def measure(subject: str, cores: Cores) -> Sample:
        command = [sys.executable, "-m", f"bench.{module}", subject]
        try:
            with pinned(cores.server):
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
                )
        except subprocess.TimeoutExpired:
            raise RunError(f"not done within {LIMIT} s") from None
        if done.returncode != 0:
            raise RunError(done.stderr.strip().rpartition("\n")[2])
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return Scenario(name, subjects, measure, metric, unit, False)
