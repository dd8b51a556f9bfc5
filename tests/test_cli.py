"""The command line, run as a person runs it: as a process, on a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiogaio import OpType, Watcher, __version__
from aiogaio.__main__ import main
from aiogaio.cli import demo
from aiogaio.cli.demo import DemoOptions
from aiogaio.cli.failure import Failure
from aiogaio.cli.measurement import Batches, Measurement, Report
from aiogaio.cli.server import (
    EchoServer,
    Serve,
    Serving,
    background,
    streams_server,
    watcher_server,
)
from aiogaio.cli.summary import summary, verdict
from tests.probes import drained, receive
from tests.programs import LIMIT, ROOT, wait_until

BRIEF = ("--connections", "20", "--seconds", "0.2")

needs_uvloop = pytest.mark.skipif(
    not any((Path(entry) / "uvloop").is_dir() for entry in sys.path), reason="needs uvloop"
)
needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def aiogaio(*arguments: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """``python -m aiogaio``, to its end; ``shell`` runs before it, in the same process."""
    command = [sys.executable, "-m", "aiogaio", *arguments]
    if shell:
        command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m aiogaio``, running; its standard output is a pipe."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiogaio", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str], pattern: str) -> str:
    """The next line of its output that matches."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    pytest.fail(f"it ended without a line like {pattern!r}: {process.communicate()}")


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


# demo


def cells(output: str, label: str) -> list[str]:
    (row,) = [line for line in output.splitlines() if line.startswith(label)]
    return re.split(r"\s{2,}", row)[1:]


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_demo_checks_every_byte_and_shows_both_servers(loop: str, poller: str) -> None:
    done = aiogaio("demo", *BRIEF, "--loop", loop, "--poller", poller)
    assert (done.returncode, done.stderr) == (0, "")
    assert cells(done.stdout, "poller") == [poller, "-"]
    assert cells(done.stdout, "connections served") == ["20 of 20", "20 of 20"]
    assert cells(done.stdout, "errors") == ["0", "0"]
    mine, theirs, ratio = (
        float(cell.replace(",", "")) for cell in cells(done.stdout, "round trips per second")
    )
    assert mine > 0 and theirs > 0 and ratio == pytest.approx(mine / theirs, rel=0.1, abs=0.01)
    trips = [int(cell.replace(",", "")) for cell in cells(done.stdout, "round trips  ")]
    checked = [int(cell.replace(",", "")) for cell in cells(done.stdout, "bytes checked")]
    assert checked == [128 * count for count in trips]
    assert all(float(cell) > 0 for cell in cells(done.stdout, "server CPU per round trip"))
    mean, peerless = cells(done.stdout, "operations per batch, mean")
    assert float(mean) >= 1 and peerless == "-"
    assert "A batch may exceed batch_size: it holds the completed writes" in done.stdout
    assert done.stdout.endswith("Every byte came back right, on every connection.\n")


@pytest.mark.parametrize(("size", "connections"), [(1, 3), (300_000, 4), (4_000_000, 1)])
def test_demo_takes_messages_of_any_size(size: int, connections: int) -> None:
    done = aiogaio(
        "demo", "--size", f"{size}", "--connections", f"{connections}", "--seconds", "0.2"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_demo_prints_plain_lines_into_a_pipe() -> None:
    done = aiogaio("demo", "--connections", "20", "--seconds", "1")
    assert "\r" not in done.stdout and "\x1b" not in done.stdout
    assert len(re.findall(r"^aiogaio +\d.*trips.*errors.*ops/batch$", done.stdout, re.M)) >= 2


def test_demo_rewrites_one_line_on_a_terminal() -> None:
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "aiogaio", "demo", "--connections", "5", "--seconds", "0.7"],
        env=environment() | {"COLUMNS": "60"},
        stdout=its_end,
    ) as process:
        os.close(its_end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(terminal, 65536):
                shown += chunk
        os.close(terminal)
    assert process.returncode == 0
    lines = [line for line in shown.decode().split("\r\n") if "\r" in line]
    assert len(lines) == 2, "one for each server"
    for line in lines:
        versions = line.split("\r")
        assert len(versions) > 2 and all(len(version) < 60 for version in versions), versions


def test_demo_progress_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Also with figures larger than any yet; a line must leave the last column free."""
    batches = Batches(count=1, operations=256)
    report = replace(measured("any", rate=9_999_999).report, seconds=99.9)
    for name in ("aiogaio", "asyncio streams"):
        demo.Live(name, batches).close(report)
    first, _ = lines = capsys.readouterr().out.splitlines()
    assert "9,999,999 trips" in first and first.endswith("256 ops/batch")
    assert all(len(line) < 80 for line in lines), lines


# What a misbehaving server looks like to the demo: a server on public names, with one fault.


def faulty(fault: Callable[[int, bytes], bytes]) -> Serve:
    """An echo server whose n-th answer (from 1) is what ``fault`` makes of it; b"" closes."""

    async def answer(watcher: Watcher, listener: socket.socket) -> None:
        count = 0
        watcher.accept(listener, multishot=True)
        async for results in watcher:
            for op in results:
                if op.type is OpType.ACCEPT:
                    watcher.read(op.accepted, multishot=True)
                elif op.error is not None:
                    watcher.free(op.conn)
                elif op.type is OpType.READ:
                    count += 1
                    if data := fault(count, bytes(op.data)):
                        watcher.write(op.conn, data, silent=True)
                    else:
                        watcher.free(op.conn)

    @contextlib.asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[Serving]:
        async with Watcher() as watcher, background(answer(watcher, listener)):
            yield Serving()

    return serve


SMALL = DemoOptions(connections=5, size=64, seconds=0.2)


def corrupt(count: int, data: bytes) -> bytes:
    return data[:12] + bytes([data[12] ^ 1]) + data[13:] if count == 3 else data


FAULTS = {  # in the answer to one of the first messages, of which each connection sends one
    "one byte is wrong": (corrupt, r"connection \d, message \d+: byte 12 came back as 0x"),
    "one byte too many": (lambda n, data: data + b"!" * (n == 3), "more? came back than"),
    "a connection closed": (lambda n, data: data * (n != 3), "closed it, 64 bytes before"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_demo_notices_when(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fault, complaint = FAULTS[name]
    assert demo.run(SMALL, {"good": watcher_server("auto"), "bad": faulty(fault)}) == 1
    shown = capsys.readouterr().out
    assert cells(shown, "errors") == ["0", "1"]
    assert "FAILED" in shown and re.search(rf"^  bad: .*{complaint}", shown, re.M), shown


def test_demo_notices_answers_of_another_connection(capsys: pytest.CaptureFixture[str]) -> None:
    """What comes back are bytes that were sent, but not as this message."""
    held: list[bytes] = []

    def swap(count: int, data: bytes) -> bytes:
        held.append(data)
        return held[0] if count == 2 else data

    assert demo.run(SMALL, {"bad": faulty(swap)}) == 1
    assert cells(capsys.readouterr().out, "errors") == ["1"]


def test_demo_notices_a_connection_that_is_never_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.asynccontextmanager
    async def deaf(listener: socket.socket) -> AsyncIterator[Serving]:
        yield Serving()

    assert demo.run(SMALL, {"deaf": deaf}) == 1
    shown = capsys.readouterr().out
    assert cells(shown, "connections served") == ["0 of 5"]
    assert "5 connections had no round trip" in shown


def test_demo_says_when_the_clients_cannot_connect() -> None:
    @contextlib.asynccontextmanager
    async def gone(listener: socket.socket) -> AsyncIterator[Serving]:
        listener.close()
        yield Serving()

    with pytest.raises(Failure, match="cannot connect: Connection refused"):
        demo.run(SMALL, {"gone": gone})


def test_demo_raises_what_the_server_died_of() -> None:
    def fail(count: int, data: bytes) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        demo.run(SMALL, {"bad": faulty(fail)})


def children(process: subprocess.Popen[str]) -> list[int]:
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listing.read_text().split()]


def is_gone(pid: int) -> bool:
    """It ended, though nobody may have waited for it: init of a container may be careless."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
def test_demo_interrupted_ends_with_status_130_and_leaves_no_process(loop: str) -> None:
    with started("demo", "--connections", "10", "--seconds", "20", "--loop", loop) as process:
        line_of(process, " trips ")
        (clients,) = children(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, complaint = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert one_line(complaint) == "interrupted"
        wait_until(lambda: is_gone(clients))


def test_demo_killed_leaves_no_process() -> None:
    with started("demo", "--connections", "10", "--seconds", "20") as process:
        line_of(process, " trips ")
        (clients,) = children(process)
        process.kill()
        wait_until(lambda: is_gone(clients))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("serve",), "'serve'"),
        (("demo", "--connections", "0"), "'0' is not a whole number of 1 or more"),
        (("demo", "--size", "many"), "'many' is not a whole number of 1 or more"),
        (("demo", "--seconds", "nan"), "'nan' is not a number of seconds above 0"),
        (("demo", "--seconds", "-1"), "seconds above 0"),
        (("demo", "--loop", "trio"), "'trio'"),
        (("demo", "--poller", "kqueue"), "'kqueue'"),
        (("demo", "--size", "1000000000"), "use less of one"),
        (("demo", "--speed", "9"), "--speed"),
        (("echo", "--port", "65536"), "'65536' is not a whole number of 0 to 65535"),
    ],
)
def test_wrong_arguments_get_one_line(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    shown = capsys.readouterr()
    assert shown.out == "" and complaint in one_line(shown.err)


def test_wrong_arguments_end_the_process_with_status_2_and_one_line() -> None:
    done = aiogaio("demo", "--size", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr).startswith("python -m aiogaio demo: argument --size: '0' is not")


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for told in ("usage: ", "--version", "demo ", "echo ", "info "):
        assert told in shown.err


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What ``--help`` prints, on one line."""
    with pytest.raises(SystemExit, match="0"):
        main((*command, "--help"))
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["demo", "echo", "info"])
def test_help_tells_of_every_option_what_it_is_and_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, options = help_of(capsys, command).split("show this help message and exit")
    told = [option for option in options.split(" --") if option]
    assert len(told) == {"demo": 5, "echo": 4, "info": 2}[command]
    for option in told:
        assert re.fullmatch(r"[a-z]+ ([A-Z]+|\{\S+\}) [^()]+ \(default: \S+\)", option), option


def test_help_of_demo_tells_how_long_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs for twice --seconds: about 7 s by default" in help_of(capsys, "demo")


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(("--version",))
    assert capsys.readouterr().out == f"aiogaio {__version__}\n"


def test_echo_on_a_host_that_does_not_exist_gets_one_line() -> None:
    done = aiogaio("echo", "--host", "no such host", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot listen on no such host:0" in one_line(done.stderr)


def test_demo_raises_the_soft_limit_of_open_files() -> None:
    done = aiogaio("demo", "--connections", "120", "--seconds", "0.1", shell="ulimit -Sn 100")
    assert (done.returncode, done.stderr) == (0, "")


def test_demo_says_what_to_do_about_the_hard_limit() -> None:
    done = aiogaio("demo", "--connections", "120", shell="ulimit -n 100")
    assert done.returncode == 2
    complaint = one_line(done.stderr)
    assert "use --connections 36 or less, " in complaint
    assert "raise the hard limit (as root: ulimit -Hn 100000)" in complaint


def test_without_uvloop_it_says_how_to_install_it() -> None:
    hide = "import sys, runpy; sys.modules['uvloop'] = None; runpy.run_module('aiogaio', "
    hide += "run_name='__main__')"
    for command in ("demo", "echo", "info"):
        done = subprocess.run(
            [sys.executable, "-c", hide, command, "--loop", "uvloop"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 2
        assert one_line(done.stderr).endswith("uvloop is not installed: pip install uvloop")


# echo


def address_in(line: str) -> tuple[str, int]:
    found = re.search(r"echo on (?:\[(.*)\]|([\d.]+)):(\d+) ", line)
    assert found is not None, line
    return found[1] or found[2], int(found[3])


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_echo_serves_until_signalled_then_closes_in_order(loop: str, number: int) -> None:
    with started("echo", "--port", "0", "--loop", loop) as process:
        address = address_in(line_of(process, "echo on"))
        with socket.create_connection(address, timeout=LIMIT) as client:
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            with socket.create_connection(address, timeout=LIMIT) as other:
                other.sendall(b"bye")
                assert other.recv(3, socket.MSG_WAITALL) == b"bye"
            process.send_signal(number)
            assert client.recv(1) == b"", "the connection is closed"
        output, complaint = process.communicate(timeout=LIMIT)
        assert (process.returncode, complaint) == (0, "")
        assert re.fullmatch(
            r"closed after \d+\.\d s: 2 connections served .*, 8 bytes sent back", one_line(output)
        )
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=LIMIT)


@needs_ipv6
def test_echo_on_ipv6() -> None:
    with started("echo", "--host", "::1", "--port", "0") as process:
        address = address_in(line_of(process, r"echo on \[::1\]:\d+ "))
        with socket.create_connection(address, timeout=LIMIT) as client:
            client.sendall(b"six")
            assert client.recv(3, socket.MSG_WAITALL) == b"six"


def test_echo_on_an_address_in_use_gets_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = aiogaio("echo", "--port", str(port))
    assert done.returncode == 1
    complaint = one_line(done.stderr)
    assert complaint.endswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_echo_survives_a_shortage_of_descriptors() -> None:
    with subprocess.Popen(
        ["sh", "-c", f"ulimit -n 40; exec {sys.executable} -m aiogaio echo --port 0"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = address_in(line_of(process, "echo on"))
        clients = [socket.create_connection(address, timeout=LIMIT) for _ in range(60)]
        try:
            assert process.stderr is not None
            assert "cannot accept for now: Too many open files" in process.stderr.readline()
            first, *_, last = clients
            first.sendall(b"still")
            assert first.recv(5, socket.MSG_WAITALL) == b"still"
            for client in clients[1:-1]:
                client.close()
            last.sendall(b"served")
            assert last.recv(6, socket.MSG_WAITALL) == b"served"
        finally:
            process.terminate()
            for client in clients:
                client.close()
            process.communicate(timeout=LIMIT)
    assert process.returncode == 0


async def test_echo_tells_once_of_each_shortage(capsys: pytest.CaptureFixture[str]) -> None:
    shortage = OSError(errno.EMFILE, "")
    failed = SimpleNamespace(type=OpType.ACCEPT, error=shortage, more=True)
    accepted = SimpleNamespace(type=OpType.ACCEPT, error=None, accepted=None)

    class Scripted:
        """A watcher as far as the server needs one."""

        def delegate(self, listener: object) -> object:
            return listener

        def accept(self, listener: object, *, multishot: bool) -> None: ...

        def read(self, conn: object) -> None: ...

        async def __aiter__(self) -> AsyncIterator[list[SimpleNamespace]]:
            for op in (failed, failed, failed, accepted, failed, failed):
                yield [op]

    watcher: Any = Scripted()
    with socket.socket() as listener:
        await EchoServer(watcher, listener).run()
    told = capsys.readouterr().err
    assert told.splitlines() == ["cannot accept for now: Too many open files"] * 2


# info


def facts(output: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in output.splitlines())


def test_info_names_versions_loop_poller_and_limits() -> None:
    done = aiogaio("info", shell="ulimit -Sn 500; ulimit -Hn 600")
    assert (done.returncode, done.stderr) == (0, "")
    told = facts(done.stdout)
    assert sys.version.split()[0] in told["Python"]
    assert "SelectorEventLoop" in told["loop"]
    assert told["open files"] == "soft limit 500, hard limit 600"
    assert re.match(r"about 436 in one process; about 536 once", told["connections"])
    expected = "epoll: this system has epoll" if hasattr(select, "epoll") else "loop: "
    assert told["poller"].startswith(expected)


@needs_uvloop
def test_info_says_what_was_asked_for() -> None:
    told = facts(aiogaio("info", "--loop", "uvloop", "--poller", "loop").stdout)
    assert told["poller"] == "loop: as asked for"
    assert told["loop"].startswith("uvloop")


def test_info_says_how_to_get_a_higher_hard_limit() -> None:
    told = facts(aiogaio("info", shell="ulimit -n 500").stdout)["connections"]
    assert told.endswith("more needs a higher hard limit (as root: ulimit -Hn 100000)")


@pytest.mark.parametrize("buffering", ["unset PYTHONUNBUFFERED", "export PYTHONUNBUFFERED=1"])
@pytest.mark.parametrize("command", ["demo", "echo", "info"])
def test_output_that_cannot_be_written_gets_one_line(command: str, buffering: str) -> None:
    arguments = (command, "--port", "0") if command == "echo" else (command,)
    done = aiogaio(*arguments, shell=f"{buffering}; exec > /dev/full")
    assert done.returncode == 1
    assert one_line(done.stderr) == "python -m aiogaio: No space left on device"


@pytest.mark.parametrize("arguments", [("info",), ("demo", "--seconds", "20")])
def test_output_that_nobody_reads_any_more_ends_it_quietly(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "aiogaio", *arguments],
            env=environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


# the summary


def measured(name: str, *, rate: float, errors: int = 0, served: int = 2) -> Measurement:
    report = Report(
        connections=2,
        served=served,
        round_trips=int(rate),
        seconds=1.0,
        p50=0.001,
        p99=0.002,
        bytes_checked=10,
        errors=errors,
        complaints=["connection 1: went astray"] * errors,
    )
    return Measurement(name, None, None, report, cpu_seconds=0.5)


def test_summary_aligns_its_columns_and_takes_ratios() -> None:
    table = summary([measured("mine", rate=300_000), measured("theirs", rate=100_000)])
    header, *rows = table.splitlines()
    assert header.split() == ["mine", "theirs", "ratio"]
    edge = header.index("mine") + len("mine")
    assert all(row[edge - 1] != " " and row[edge : edge + 2].strip() == "" for row in rows)
    assert cells(table, "round trips per second") == ["300,000", "100,000", "3.00"]


def test_summary_of_a_server_that_did_nothing_divides_by_nothing() -> None:
    summary([measured("mine", rate=5), measured("theirs", rate=0)])


def test_verdict_fails_on_errors_and_on_a_connection_without_a_round_trip() -> None:
    good = measured("good", rate=5)
    assert "FAILED" not in verdict([good])
    assert "bad: connection 1: went astray" in verdict([good, measured("bad", rate=5, errors=1)])
    idle = measured("idle", rate=5, served=1)
    assert not idle.report.right and "1 connections had no" in verdict([good, idle])


def test_batches_know_their_mean_and_maximum() -> None:
    batches = Batches()
    assert batches.mean == 0
    for size in (1, 5, 3):
        batches.add(size)
    assert (batches.mean, batches.largest) == (3, 5)


def test_streams_server_is_measured_by_the_same_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(SMALL, {"asyncio streams": streams_server}) == 0
    assert cells(capsys.readouterr().out, "connections served") == ["5 of 5"]


async def test_streams_server_closes_what_is_open_when_it_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with streams_server(listener):
            client = socket.create_connection(listener.getsockname())
            client.sendall(b"served")
            assert await receive(client, 6) == b"served"
        with client:
            assert await drained(client) == b""
