"""The fuzz target, a little of it in each run; ``python -m tests.fuzz`` runs as long as one likes.

A few hundred inputs of a fixed seed, the inputs of crashes that were found, and a watcher that is
broken on purpose: it has to be found, and its input has to find it again.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from aiogaio import OpType, Watcher
from tests.fuzz.engine import Engine, first_inputs, mutated
from tests.fuzz.reach import all_lines
from tests.fuzz.steps import MOST, NAMES, decode, encode
from tests.fuzz.target import Crash, one_input
from tests.model.machine import _STEPS
from tests.probes import arrived, until
from tests.support import collect, one, settle, tcp_pair

SEED = 7
INPUTS = 200


def _bounded(inputs: int) -> Any:
    """Goes on for so many inputs."""
    left = iter(range(inputs))
    return lambda: next(left, None) is not None


@pytest.fixture(scope="module")
def explored() -> Engine:
    engine = Engine(SEED)
    engine.run(_bounded(INPUTS))
    return engine


def test_no_input_of_a_fixed_seed_breaks_a_rule(explored: Engine) -> None:
    assert [found.text + found.how_to_repeat for found in explored.crashes.values()] == []
    assert explored.inputs == INPUTS
    assert explored.steps > INPUTS


def test_what_is_reached_is_counted_and_inputs_that_reach_more_are_kept(explored: Engine) -> None:
    lines = all_lines()
    assert explored.lines <= lines
    assert len(explored.lines) > len(lines) / 3
    assert 1 < len(explored.kept) < INPUTS


@pytest.mark.parametrize("first", range(4))
def test_short_inputs_are_sessions_too(first: int) -> None:
    """No byte, one, and each step without its numbers."""
    assert one_input(b"") == 0
    assert one_input(bytes((first,))) == 0
    for step in range(first, len(NAMES), 2):
        assert one_input(bytes((first, 0, step))) == 1


# --- Bytes and steps -----------------------------------------------------------------------------


def test_steps_are_what_their_bytes_say() -> None:
    steps = [("open", [1]), ("call", [1, 2, 3, 4, 255]), ("quiesce", [])]
    set_up, read_back = decode(encode(steps, bytes((7, 9))))
    assert read_back == steps
    assert (set_up.world, set_up.poller, set_up.debug, set_up.config) == (
        "distant",
        "loop",
        True,
        9,
    )


def test_each_step_of_the_model_can_be_reached() -> None:
    assert set(_STEPS) <= set(NAMES)
    steps = {name for step in range(256) for name, _ in decode(bytes((0, 0, step)))[1]}
    assert steps == set(NAMES)


def test_any_bytes_have_a_bounded_number_of_steps() -> None:
    chance = random.Random(1)
    for _ in range(100):
        assert len(decode(chance.randbytes(5000))[1]) <= MOST


def test_one_seed_makes_the_same_inputs_again() -> None:
    def inputs() -> list[bytes]:
        chance = random.Random(5)
        return [mutated(b"abcdefgh" * 9, first_inputs(), chance) for _ in range(50)]

    assert inputs() == inputs()
    assert len(set(inputs())) > 25


# --- Crashes that were found, and mended ---------------------------------------------------------

REGRESSIONS = {
    "a timeout that no float can hold": encode([("call", [0, 0, 0, 2, 8])]),
    "a hang-up behind a multishot read that had to rest": bytes.fromhex(
        "66012300670000010001000003004701003700001b000000000000001d00000a00000f00001d0000140000"
    ),
    "writes before a connect, at the close": bytes.fromhex(
        "000000000200000b001b0c00001f000200000000"
    ),
    "a shutdown on its way, behind a torn write": bytes.fromhex(
        "00000000020000050107151f1bec1d0023000e0017"
    ),
    "ancillary items out of a memoryview": bytes.fromhex("00001b09000009ff"),
    "an offset that no file has": bytes.fromhex("00001b0a00005c52"),
    "a free that a closed watcher refuses": bytes.fromhex("0000071b4fcf0000050b00"),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_an_input_that_was_a_crash_is_none_any_more(name: str) -> None:
    assert one_input(REGRESSIONS[name]) > 0


NEVER = 10**400  # more than a float can hold


async def test_T1_a_timeout_that_no_float_can_hold_never_comes(watcher: Watcher) -> None:
    server, client = tcp_pair()
    with client:
        for limit in ({"timeout": NEVER}, {"deadline": NEVER}):
            watcher.read(server, **limit)
            client.sendall(b"x")
            assert (await one(watcher)).data == b"x"
        await watcher.aclose(NEVER)
        assert watcher.closed


@pytest.mark.parametrize("name", ["offset", "count"])
async def test_S2_a_place_that_no_file_has_raises_at_the_call(watcher: Watcher, name: str) -> None:
    server, client = tcp_pair()
    with client, tempfile.TemporaryFile() as file:
        conn = watcher.delegate(server)
        for number in (1 << 63, NEVER):
            with pytest.raises(ValueError, match=f"{name} must be at most"):
                watcher.sendfile(conn, file, **{name: number})
        assert watcher.statistics().submitted == 0
        watcher.free(conn)


async def test_a_hangup_is_told_behind_a_multishot_read_that_had_to_rest(poller: str) -> None:
    server, client = tcp_pair()
    async with Watcher(poller=poller, batch_size=1) as watcher:
        conn = watcher.delegate(server)
        watcher.recvmsg(conn, multishot=True)
        client.sendall(b"x")
        await until(lambda: watcher.statistics().bytes_read == 1)
        await settle()  # its result waits to be collected, so it takes nothing more
        watcher.notify_hangup(conn)
        client.sendall(b"y")
        arrived(conn, 1)
        await settle()  # and with the loop poller is no longer told of events
        client.close()
        results = await collect(watcher, 4)
        reads = [op.data for op in results if op.type is OpType.READ]
        assert reads == [b"x", b"y", b""]
        assert sum(op.type is OpType.HANGUP for op in results) == 1


# --- A watcher that is broken on purpose ---------------------------------------------------------


def _forget_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Watcher._collect
    monkeypatch.setattr(Watcher, "_collect", lambda self, limit: collect(self, limit)[1:])


def _raise_what_nobody_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    due = Watcher._due

    def strict(self: Any, timeout: Any, deadline: Any) -> Any:
        if isinstance(timeout, str):
            raise KeyError(timeout)
        return due(self, timeout, deadline)

    monkeypatch.setattr(Watcher, "_due", strict)


def _take_a_foreign_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    delegated = Watcher._delegated

    def lax(self: Any, conn: Any) -> Any:
        return conn if type(conn).__name__ == "Connection" else delegated(self, conn)

    monkeypatch.setattr(Watcher, "_delegated", lax)


def _raise_in_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_on_timer", lambda self: 1 / 0)


BREAKS = {
    _forget_what_is_collected: "a request was lost",
    _raise_what_nobody_documents: "KeyError",
    _take_a_foreign_connection: "a foreign",
    _raise_in_a_callback: "ZeroDivisionError",
}


@pytest.mark.parametrize("breaks", BREAKS)
def test_a_broken_watcher_is_found_made_small_and_found_again(
    breaks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        breaks(broken)
        engine = Engine(SEED)
        engine.run(lambda: not engine.crashes and engine.inputs < 2000)
        found = next(iter(engine.crashes.values()))
        word = found.how_to_repeat.rpartition(" ")[2]
        assert bytes.fromhex(word) == found.data
        assert len(decode(found.data)[1]) <= 8
        with pytest.raises(Crash) as again:
            one_input(bytes.fromhex(word))
        assert BREAKS[breaks] in str(again.value)
    assert one_input(found.data) >= 0, "without the fault it is no crash"


def _program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_program_repeats_an_input_step_by_step(tmp_path: Path) -> None:
    data = encode([("open", [0]), ("write", [0, 0, 1, 0])])
    (tmp_path / "input").write_bytes(data)
    for word in (data.hex(), str(tmp_path / "input")):
        done = _program("--replay", word)
        assert done.returncode == 0, done.stderr
        assert "write(0, 0, 1, 0)" in done.stdout
        assert done.stdout.endswith("nothing went wrong\n")


def test_the_program_stores_inputs_and_ends_with_one_line(tmp_path: Path) -> None:
    done = _program("--minutes", "0.02", "--corpus", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"[\d,]+ inputs, [\d,]+ steps, \d+ inputs/s, "
        r"[\d,]+ of [\d,]+ lines of aiogaio reached, 0 crashes",
        done.stdout.splitlines()[-1],
    )
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [("--replay", "no hex"), ("--minutes", "-1"), ("--jobs", "0"), ("--corpus", "/dev/null/no")],
    ids=" ".join,
)
def test_the_program_refuses_what_it_cannot_do_in_one_line(arguments: tuple[str, ...]) -> None:
    done = _program(*arguments)
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert "fuzz: " in done.stderr.splitlines()[-1]


def test_a_watcher_that_spins_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def come_again(self: Any) -> None:
        self._loop.call_soon(come_again, self)

    monkeypatch.setattr(Watcher, "_on_timer", come_again)
    data = encode([("open", [0]), ("read", [0, 0, 0, 1]), ("pass_time", [2])])
    with pytest.raises(Crash, match="it spins"):
        one_input(data)


def test_a_descriptor_that_is_left_open_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    delegate, left = Watcher.delegate, []

    def wasteful(self: Any, sock: Any) -> Any:
        left.append(os.dup(0))
        return delegate(self, sock)

    monkeypatch.setattr(Watcher, "delegate", wasteful)
    try:
        with pytest.raises(Crash, match="left open: "):
            one_input(encode([("open", [0])]))
    finally:
        for descriptor in left:
            os.close(descriptor)
