"""The soak itself: it finds what is lost, and says so where a person and a program look."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys

import pytest

pytest.importorskip("psutil")

from aiogaio import Operation, Watcher
from tests.soak import report
from tests.soak.__main__ import main
from tests.soak.budget import Budget, spread
from tests.soak.fates import END, RESET, fate_of
from tests.soak.figures import FIGURES
from tests.soak.peers import Content
from tests.soak.process import ChildError, PeerProcess, run_child
from tests.soak.result import Result
from tests.soak.server import Server
from tests.soak.stage import stage
from tests.soak.variant import Variant

ONE_VARIANT = ["--loop", "asyncio", "--poller", "epoll"]


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.soak", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def fake(**outcome):
    """What stands in for a child: every figure has this outcome."""

    def run(figure, budget):
        return Result(figure.name, str(budget.variant), figure.asked, "5", "6 ms", **outcome)

    return run


# --- The command line ----------------------------------------------------------------------------


def test_a_small_soak_is_kept_and_its_table_is_plain_when_piped(tmp_path):
    file = tmp_path / "soak.json"
    done = soak("--minutes", "0.01", "--only", "round-trips", *ONE_VARIANT, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert FIGURES["round-trips"].asked in done.stdout
    assert "asyncio epoll  40,000 round trips  " in done.stdout
    assert not set(done.stdout) & set("\x1b│┃━")
    assert "[1/1" in done.stderr
    (row,) = json.loads(file.read_text())
    assert row["kept"] is True
    assert row["variant"] == "asyncio epoll"
    assert row["seconds"] > 0


def test_a_figure_that_fails_makes_exit_status_1(capsys):
    status = main(["--only", "idle", *ONE_VARIANT], run=fake(faults=["3 spurious callbacks"]))
    assert status == 1
    assert "NOT kept: 3 spurious callbacks" in capsys.readouterr().out


def test_what_is_reported_only_does_not_fail(capsys):
    status = main(["--only", "firehose", *ONE_VARIANT], run=fake(missed=["p99 9.0 x quiet"]))
    assert status == 0
    assert "kept; reported only: p99 9.0 x quiet" in capsys.readouterr().out


def test_one_bad_variant_among_good_ones_makes_exit_status_1():
    def run(figure, budget):
        faults = ["lost"] if budget.variant == Variant("asyncio", "loop") else []
        return fake(faults=faults)(figure, budget)

    assert main(["--only", "idle", "churn", "--loop", "asyncio"], run=run) == 1
    assert main(["--only", "idle", "churn", *ONE_VARIANT], run=run) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--minutes", "soon"],
        ["--minutes", "0"],
        ["--minutes", "nan"],
        ["--only", "nothing"],
        ["--poller", "select"],
        ["--short", "--minutes", "3"],
        ["--surprise"],
        ["--json", "/no/such/folder/soak.json"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert arguments[0].lstrip("-") in captured.err


def test_an_interrupt_prints_what_is_there(capsys):
    def run(figure, budget):
        if figure.name == "idle":
            raise KeyboardInterrupt
        return fake()(figure, budget)

    assert main(["--only", "churn", "idle", *ONE_VARIANT], run=run) == 130
    captured = capsys.readouterr()
    assert "churn" in captured.out
    assert captured.err.endswith("interrupted\n")


def test_the_markdown_has_a_row_per_figure_and_a_column_per_variant(capsys):
    main(["--only", "idle", "churn", "--loop", "asyncio", "--markdown"], run=fake())
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| asked | run | asyncio epoll | asyncio loop |"
    assert rule == "| --- | --- | --- | --- |"
    assert [row.split(" | ")[1:] for row in rows] == [["5", "6 ms", "6 ms |"]] * 2


def test_the_markdown_shows_what_was_not_kept():
    bad = Result("a", "b", "c", "d", "e", faults=["1 lost"])
    assert "**NOT kept: 1 lost** e" in report.markdown([bad])


def test_on_a_terminal_the_table_is_drawn():
    pytest.importorskip("rich")
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    report.show([Result("a", "b", "c", "d", "e", faults=["1 [lost]"])], screen)
    assert "│" in screen.getvalue()
    assert "1 of 1" not in screen.getvalue()


# --- How much is run -----------------------------------------------------------------------------


def test_time_is_shared_and_what_a_small_figure_leaves_goes_to_the_others():
    scales, repeats = spread({"small": 10, "large": 100, "larger": 200}, 160)
    assert scales == {"small": 1.0, "large": 0.75, "larger": 0.375}
    assert repeats == 1


def test_more_time_than_needed_repeats_full_counts():
    assert spread({"a": 10, "b": 20}, 95) == ({"a": 1.0, "b": 1.0}, 3)


def test_counts_are_scaled_but_never_above_what_was_asked_or_below_what_makes_sense():
    budget = Budget(Variant("asyncio", "epoll"), scale=0.001)
    assert budget.count(100_000) == 100
    assert budget.count(1000, least=50) == 50
    assert budget.count(20, least=50) == 20
    assert budget.seconds(60.0, least=2.0) == 2.0
    assert Budget(budget.variant).count(100_000) == 100_000


# --- The children --------------------------------------------------------------------------------


def test_a_child_that_fails_is_a_line_and_its_own_words():
    with pytest.raises(ChildError, match="ended with 1: KeyError: 'nothing'") as error:
        run_child({"figure": "nothing", "loop": "asyncio", "poller": "epoll"}, 30)
    assert "Traceback" in error.value.output


def test_a_child_that_hangs_is_ended():
    plan = {"figure": "idle", "loop": "asyncio", "poller": "epoll", "scale": 1.0}
    with pytest.raises(ChildError, match="not done within"):
        run_child(plan, 0.5)


def test_a_soak_that_is_terminated_leaves_no_process_behind():
    import psutil

    command = [sys.executable, "-m", "tests.soak", "--only", "idle", *ONE_VARIANT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline().startswith("[1/1")
        family = []
        while len(family) < 2:  # the figure and its peers
            family = psutil.Process(parent.pid).children(recursive=True)
        parent.terminate()
        assert parent.stderr.read().endswith("interrupted\n")
        assert parent.wait(10) == 130
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


async def test_a_command_that_fails_among_the_peers_is_a_line():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    peers = PeerProcess()
    try:
        with pytest.raises(ChildError, match="open: ConnectionRefusedError"):
            await peers.ask("open", address=address, count=1)
    finally:
        peers.close()


# --- What the ledger and the footprint find ------------------------------------------------------


class Forger(Watcher):
    """A watcher that loses, repeats or swaps results on their way to the program."""

    __slots__ = ("forge",)

    def _collect(self, limit: int) -> list[Operation]:
        return self.forge(super()._collect(limit))


class Forgery:
    """Does something to the results, once there are enough that bring data."""

    def __init__(self, needs, change) -> None:
        self.needs, self.change, self.done, self.held = needs, change, False, []

    def __call__(self, results):
        if self.done:
            return results
        plain = [op for op in results if not op.more and op.error is None]
        if len(plain) < self.needs:
            return results
        self.done = True
        return self.change(results, plain)


def lose(results, plain):
    return [op for op in results if op is not plain[0]]


def repeat(results, plain):
    return [*results, plain[0]]


def swap(results, plain):
    first, second = map(results.index, plain[:2])
    results[first], results[second] = results[second], results[first]
    return results


def forged(change, needs=1):
    def make(**options):
        watcher = Forger(**options)
        watcher.forge = Forgery(needs, change)
        return watcher

    return make


class Reader(Server):
    """Two reads of one byte at a time on each connection, so that order can be seen."""

    def __init__(self, stage) -> None:
        super().__init__(stage)
        self.got = 0

    def begin(self, conn):
        for _ in range(2):
            self.ledger.read(conn, bytearray(1))

    def received(self, op):
        self.got += 1


async def read_two_bytes(kind) -> list[str]:
    """The faults of a stage on which one connection brings two bytes and ends."""
    async with stage(Budget(Variant("", "epoll")), kind) as one:
        server = Reader(one)
        with socket.create_connection(server.address) as peer:
            peer.sendall(b"ab")
            async with asyncio.timeout(10):
                while one.watcher.statistics().bytes_read < 2:
                    await asyncio.sleep(0)
                for _ in range(20):
                    await asyncio.sleep(0)
    return [fault for fault in one.result.faults if "objects" not in fault]


async def test_a_faithful_watcher_has_no_fault():
    assert await read_two_bytes(forged(lambda results, plain: results)) == []


async def test_a_lost_completion_is_found():
    faults = await read_two_bytes(forged(lose))
    assert "1 of 3 requests never completed" in faults


async def test_a_completion_that_comes_twice_is_found():
    assert "1 delivered twice" in await read_two_bytes(forged(repeat))


async def test_completions_out_of_order_are_found():
    assert "1 delivered out of order" in await read_two_bytes(forged(swap, needs=2))


async def test_a_descriptor_and_a_task_and_a_timer_that_are_left_are_found():
    left = []
    async with stage(Budget(Variant("", "epoll"))) as one:
        left = [
            socket.socket(),
            asyncio.create_task(asyncio.sleep(60)),
            asyncio.get_running_loop().call_later(60, print),
        ]
        await asyncio.sleep(0)
    assert set(one.result.faults) == {"1 socket descriptors left", "1 tasks left", "2 timers left"}
    left[0].close()
    left[1].cancel()
    left[2].cancel()


async def test_an_operation_that_is_left_is_found():
    async with stage(Budget(Variant("", "epoll"))) as one:
        ours, peer = socket.socketpair()
        conn = one.watcher.delegate(ours)
        one.ledger.open(conn, Reader(one))
        one.ledger.free(conn)
        peer.close()
    gc.collect()
    assert "1 Connection objects left" in one.result.faults


async def test_an_error_in_a_server_ends_the_stage():
    class Broken(Server):
        def begin(self, conn):
            raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        async with stage(Budget(Variant("", "epoll"))) as one:
            with socket.create_connection(Broken(one).address):
                await asyncio.sleep(30)


# --- The peers' own checks -----------------------------------------------------------------------


async def test_a_wrong_byte_is_found_by_the_peers():
    class Liar(Server):
        def received(self, op):
            self.ledger.write(op.conn, op.data[:-1] + bytes([op.data[-1] ^ 1]))

    async with stage(Budget(Variant("", "epoll"))) as one:
        server, peers = Liar(one), one.peers()
        await peers.ask("open", address=server.address, count=2)
        with pytest.raises(ChildError, match="other bytes than those sent"):
            await peers.ask("trips", count=10)


def test_the_contents_of_connections_differ():
    content = Content(1000)
    data = content.pool[content.place(7) :][:1000]
    assert content.matches(7, 0, data)
    assert content.matches(7, 500, data[500:])
    assert not content.matches(8, 0, data)
    assert not content.matches(7, 1, data[:-1])
    assert not content.matches(7, 1, data)


def test_a_fate_is_known_to_both_ends():
    fates = [fate_of(index) for index in range(1000)]
    assert fates == [fate_of(index) for index in range(1000)]
    assert {fate for fate, _ in fates} >= {RESET, END}
    assert all(size < 64 for fate, size in fates if fate in (RESET, END))
