"""The benchmark itself: a load that notices what is wrong, and figures that say what they mean."""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

import bench.__main__ as program
from bench import native
from bench.compare import compare
from bench.flags import flags
from bench.regression import fit
from bench.results import Results, Row

with_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)


class _Echo(threading.Thread):
    """An echo server for one connection; ``spoil`` changes what goes back from the third on."""

    def __init__(self, spoil) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.spoil = spoil

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as client:
            count = 0
            try:
                while data := client.recv(65536):
                    count += 1
                    client.sendall(self.spoil(data) if count > 2 else data)
            except OSError:
                pass

    def load(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.start()
        port = str(self.listener.getsockname()[1])
        command = [native.build("load"), "loop", "--port", port, "--connections", "1", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        self.join(10)
        return done


@with_compiler
def test_the_load_accepts_a_faithful_echo():
    done = _Echo(lambda data: data).load("--seconds", "1", "--warmup", "0")
    assert done.returncode == 0, done.stderr


@with_compiler
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + data[:1],
        lambda data: data[1:] + data[:1],
    ],
    ids=["one wrong bit", "one byte more", "shifted"],
)
def test_the_load_notices_a_wrong_byte(spoil):
    done = _Echo(spoil).load()
    assert done.returncode == 2
    assert "wrong bytes came back" in done.stderr


@with_compiler
def test_the_load_does_not_wait_for_ever():
    done = _Echo(lambda data: b"").load("--limit", "1")
    assert done.returncode == 2
    assert "not done within the limit" in done.stderr


def _row(server: str, values: list[float], **figures: float) -> Row:
    sound = {
        "core_busy": 1.0, "server_busy": 1.0, "load_busy": 0.5, "latency_ns.p50": 100.0,
        "latency_ns.p99": 150.0, "fairness.p1": 90.0, "fairness.median": 100.0,
    }  # fmt: skip
    row = Row("64 x 128 B", server, "per_second", "round trips/s", True)
    for value in values:
        row.add({"per_second": value, **sound, **figures})
    return row


def _results(*rows: Row) -> Results:
    return Results({"cpu": "any"}, 5, list(rows))


def test_a_row_whose_tail_is_longer_than_the_references_is_flagged():
    sound, late = _row("uvloop-protocol", [9.0]), _row("other", [9.0], **{"latency_ns.p99": 300.0})
    results = _results(sound, late)
    assert flags(results, sound) == []
    assert [flag.split(":")[0] for flag in flags(results, late)] == ["starves"]


def test_a_row_that_serves_a_few_connections_only_is_flagged():
    row = _row("other", [9.0], **{"fairness.p1": 3.0})
    assert flags(_results(row), row) == ["starves: uneven between connections"]


def test_a_server_that_did_not_fill_its_core_is_flagged():
    row = _row("other", [9.0], core_busy=0.5, load_busy=1.0)
    assert flags(_results(row), row) == ["core only 50% busy, the load was the limit"]


def test_compare_tells_a_change_from_noise():
    before = _results(_row("a", [10, 11, 12]), _row("b", [10, 11, 12]), _row("c", [10, 11, 12]))
    after = _results(_row("a", [13, 14, 15]), _row("b", [11, 12, 13]), _row("c", [7, 8, 9]))
    text = compare(before, after)
    assert "| a | 11 | 14 | +27.3% | better |" in text
    assert "| c | 11 | 8 | -27.3% | worse |" in text
    assert "| b |" not in text


def test_the_regression_finds_the_line():
    line = fit([1000, 2000, 3000], [0.2, 0.3, 0.4])
    assert line.slope == pytest.approx(1e-4)
    assert line.intercept == pytest.approx(0.1)
    assert line.r2 == pytest.approx(1.0)


def test_results_survive_their_file(tmp_path: Path):
    results = _results(_row("a", [1.0, 2.0]), _row("b", [3.0]))
    results.save(tmp_path / "run.json")
    assert Results.load(tmp_path / "run.json") == results


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_run_that_is_interrupted_does_not_take_the_place_of_a_whole_one(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run_rounds(scenarios, rounds, progress, keep):
        results = _results(_row("a", [1.0]))
        keep(results)  # as after each round
        results.interrupted = interrupted
        return results

    monkeypatch.setattr(program, "RESULTS", tmp_path)
    monkeypatch.setattr(program, "run_rounds", run_rounds)
    monkeypatch.setattr(program, "_write_report", lambda results, stem: None)
    options = argparse.Namespace(quick=True, rounds=1, only="*", name="new")
    assert program._compare_servers(options) == (130 if interrupted else 0)
    (file,) = tmp_path.iterdir()
    assert file.stem.endswith("-new-partial" if interrupted else "-new")
    assert Results.load(file).interrupted is interrupted
