"""`kv_server.py` beside redis-server, which keeps nothing on disk here, under redis-benchmark."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable

from bench.applications.model import LOOPS, Application, Load, Place, Sample, Server, Target, ours
from bench.process import RunError

EXPECTED = 60_000  # requests/s: redis-benchmark takes a number of them, no time


REDIS = Server(
    "redis-server",
    lambda place: [
        "redis-server", "--port", str(place.port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--io-threads", "1", "--dir", tempfile.gettempdir(),
    ],
    programs=("redis-server",),
)  # fmt: skip


def benchmark(test: str, depth: int) -> Callable[[Place, float], list[str]]:
    speed_up = 1 if depth == 1 else 6
    return lambda place, seconds: [
        "redis-benchmark", "-h", "127.0.0.1", "-p", str(place.port), "-t", test, "-c", "50",
        "-r", "10000", "-d", "16", "-n", str(round(EXPECTED * speed_up * seconds)),
        "-P", str(depth), "--csv",
    ]  # fmt: skip


def read(output: str) -> Sample:
    rows = list(csv.reader(output.splitlines()))
    try:
        return Sample(float(rows[-1][1]))
    except (IndexError, ValueError):
        raise RunError(f"redis-benchmark: {output.strip()[-80:]}") from None


def load(test: str, depth: int) -> Load:
    name = f"kv, {test.upper()}" + (f", {depth} pipelined" if depth > 1 else "")
    return Load(name, "requests/s", benchmark(test, depth), read, ("redis-benchmark",))


APPLICATION = Application(
    "kv",
    ours("kv_server", "hiredis"),
    [REDIS],
    [load(test, depth) for depth in (1, 16) for test in ("get", "set")],
    [
        Target(f"kv, {test}", f"kv_server-{loop}", "redis-server", 0.5)
        for test in ("GET", "SET")
        for loop in LOOPS
    ],
)
