"""The benchmark of the examples: what it reads from its loads, and what it makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from bench import native
from bench.applications import embedded, http, kv, multicore, tcp_proxy, tools
from bench.applications.__main__ import known
from bench.applications.cpu import cpu_seconds
from bench.applications.model import Application, Load, Place, Row, Sample, Server, Target
from bench.applications.report import markdown, table, verdict
from bench.applications.runner import is_open, measure
from bench.machine import choose_cores
from bench.process import ROOT, RunError
from bench.progress import PlainProgress

LIMIT = 30.0  # seconds for what takes one on an idle machine
SPOILT = [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-1] + b"\0\0"]

with_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)
with_taskset = pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")


# --- What the tools print -------------------------------------------------------------------------

WRK = (
    "Running 1s test\n  5 requests in 1.00s, 1KB read\n{}Requests/sec:   4823.07\nTransfer/sec: 1\n"
)


def test_wrk_is_read() -> None:
    assert http.read_wrk(WRK.format("")) == Sample(4823.07)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "unable to connect to 127.0.0.1:1 Connection refused\n",
        WRK.format("  Non-2xx or 3xx responses: 7\n"),
        WRK.format("  Socket errors: connect 0, read 3, write 0, timeout 0\n"),
    ],
)
def test_a_run_of_wrk_that_was_not_all_right_is_no_rate(output: str) -> None:
    with pytest.raises(RunError):
        http.read_wrk(output)


def test_redis_benchmark_is_read() -> None:
    head = '"test","rps","avg_latency_ms","min_latency_ms"\n'
    assert kv.read(head + '"GET","9976.72","4.1","0.3"\n') == Sample(9976.72)
    for wrong in ("", head, "Could not connect to Redis at 127.0.0.1:1: Connection refused\n"):
        with pytest.raises(RunError):
            kv.read(wrong)


def test_iperf3_is_read_at_the_receiver() -> None:
    both = {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 7.3e9}}
    assert tcp_proxy.gigabits(json.dumps({"end": both})) == Sample(7.3)


@pytest.mark.parametrize(
    "found",
    [
        {"end": {}, "error": "unable to connect"},
        {"end": {"sum_received": {"bits_per_second": 0}}},
        {"end": {"sum_received": {"bits_per_second": None}}},
        {},
        [],
        "",
    ],
)
def test_a_run_of_iperf3_without_a_rate_is_none(found: object) -> None:
    with pytest.raises(RunError):
        tcp_proxy.gigabits(json.dumps(found))


def test_what_our_own_loads_print_is_read() -> None:
    output = json.dumps({"per_second": 5000.0, "server_busy": 0.5, "p99": 0.002})
    assert tools.per_second(output) == Sample(5000.0, server_busy=0.5)
    assert embedded.p99(output) == Sample(2.0)
    # load.c looks at one process, the supervisor: the workers' time it cannot know.
    assert multicore.of_all_workers(output) == Sample(5000.0, server_busy=None)


@pytest.mark.parametrize("read", [tools.per_second, embedded.p99, multicore.of_all_workers])
@pytest.mark.parametrize("output", ["", "7", "{", "{}", '{"per_second": 0, "server_busy": 0}'])
def test_a_run_of_our_own_loads_without_a_figure_is_none(
    read: Callable[[str], Sample], output: str
) -> None:
    with pytest.raises(RunError):
        read(output)


# --- Our own loads, and servers that lie ----------------------------------------------------------


def load(name: str, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A short run of one of them; this process passes for the server's."""
    command = [sys.executable, "-m", f"bench.applications.loads.{name}"]
    if name == "datagrams":
        (native.BUILD / "applications").mkdir(parents=True, exist_ok=True)
        command = [str(native.build("applications/datagrams"))]
    seconds = () if "--seconds" in arguments else ("--seconds", "1")
    place = "--port", str(port), "--server-pid", str(os.getpid())
    return subprocess.run(
        [*command, *arguments, *seconds, *place],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@contextlib.contextmanager
def datagrams(answer: Callable[[int, bytes], list[bytes]]) -> Iterator[int]:
    """A UDP server that answers so, given the number of a datagram; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            for number in itertools.count():
                data, address = sock.recvfrom(100)
                if not data:
                    return
                for each in answer(number, data):
                    sock.sendto(each, address)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", sock.getsockname())
            thread.join(LIMIT)


@with_compiler
def test_the_load_of_datagrams_accepts_a_faithful_echo_in_any_order() -> None:
    kept: list[bytes] = []

    def swap(number: int, data: bytes) -> list[bytes]:
        kept.append(data)
        return [] if number % 2 == 0 else [kept.pop(), kept.pop()]

    with datagrams(swap) as port:
        done = load("datagrams", port, "--window", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert tools.per_second(done.stdout).figure > 0


@with_compiler
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda number, data: [SPOILT[0](data) if number == 50 else data], "changed, or twice"),
        (lambda number, data: [SPOILT[1](data) if number == 50 else data], "changed, or twice"),
        (lambda number, data: [data] * (1 + (number == 50)), "changed, or twice"),
        (lambda number, data: [] if number == 50 else [data], "did not come back, others did"),
    ],
    ids=["one wrong bit", "one byte more", "twice", "lost"],
)
def test_the_load_of_datagrams_notices(
    answer: Callable[[int, bytes], list[bytes]], complaint: str
) -> None:
    with datagrams(answer) as port:
        done = load("datagrams", port, "--window", "8", "--seconds", "5")
    assert done.returncode == 2
    assert complaint in done.stderr and done.stdout == ""


@contextlib.contextmanager
def lines(answer: Callable[[int, bytes], list[bytes]]) -> Iterator[int]:
    """A server of lines: each is answered so, to whoever has connected; its port."""
    clients: list[socket.socket] = []
    threads: list[threading.Thread] = []
    numbers = itertools.count()
    lock = threading.Lock()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as asked:
            for line in asked:
                with lock:
                    if line == b"STAT\n":
                        client.sendall(b"here you are\n")
                        continue
                    data = answer(next(numbers), line)
                    for other in clients if line.startswith(b"PUB ") else [client]:
                        for each in data:
                            other.sendall(each)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                with lock:
                    clients.append(client)
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(LIMIT)
            for thread in threads:
                thread.join(LIMIT)


def test_the_load_of_one_to_all_counts_what_each_one_gets() -> None:
    with lines(lambda number, line: [line[4:]]) as port:
        done = load("fanout", port, "push", "--members", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert tools.per_second(done.stdout).figure > 0


@pytest.mark.parametrize("spoil", SPOILT, ids=["one wrong bit", "one byte more"])
def test_the_load_of_one_to_all_notices_a_wrong_byte(spoil: Callable[[bytes], bytes]) -> None:
    with lines(lambda number, line: [(spoil if number == 5 else bytes)(line[4:])]) as port:
        done = load("fanout", port, "push", "--members", "3", "--seconds", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert "wrong bytes" in done.stderr


def test_the_load_of_questions_times_the_answers() -> None:
    with lines(lambda number, line: [line.upper()]) as port:
        done = load("questions", port, "lines", "--connections", "2", "--rate", "200")
    assert (done.returncode, done.stderr) == (0, "")
    assert embedded.p99(done.stdout).figure > 0


def test_the_load_of_questions_notices_a_wrong_answer() -> None:
    with lines(lambda number, line: [line]) as port:
        done = load("questions", port, "lines", "--connections", "2", "--rate", "200")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "wrong answer: b'hello\\n'\n"


def test_a_load_in_the_background_ends_if_it_is_less_than_it_claims() -> None:
    with lines(lambda number, line: [line.upper()]) as port:
        options = "lines", "--connections", "1", "--rate", "1e9", "--background", "--seconds", "20"
        done = load("questions", port, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "of 1,000,000,000 questions a second were answered" in done.stderr


def test_the_load_of_socks5_notices_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with listener.accept()[0] as client:
                client.sendall(bytes([5, 0xFF]))
                client.recv(1)
                with contextlib.suppress(OSError):
                    client.recv(100)

        thread = threading.Thread(target=refuse)
        thread.start()
        port = listener.getsockname()[1]
        done = load("socks5", port, "--to", "1", "--connections", "1")
        thread.join(LIMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the proxy answered 05 ff\n"


# --- A run ----------------------------------------------------------------------------------------


def run(application: Application) -> Row:
    """The only row of it."""
    (row,), whole = measure([application], 1, 1.0, choose_cores(), PlainProgress())
    assert whole
    return row


@with_taskset
@with_compiler
@pytest.mark.parametrize("name", ["chat", "socks5", "udp_echo"])
def test_a_rival_does_what_its_load_expects(name: str) -> None:
    application = known()[name]
    if importlib.util.find_spec("websockets") is None and name == "chat":
        pytest.skip("needs websockets")
    row = run(dataclasses.replace(application, ours=[], rivals=application.rivals[:1]))
    assert row.error is None
    (rate,), (cpu_rate,), (load_busy,) = row.rates, row.cpu_rates, row.load_busy
    assert rate > 0 and load_busy > 0
    assert cpu_rate >= rate * 0.5  # a server that has one thread does not use two cores


def nothing() -> Load:
    return Load("nothing", "-", lambda place, seconds: ["true"], lambda output: Sample(1.0))


def test_what_is_not_installed_is_named_and_not_started() -> None:
    server = Server("any", lambda place: pytest.fail("started"), ("no_such_module",), ("no-such",))
    row = run(Application("any", [server], [], [nothing()]))
    assert row.error == "not installed: no_such_module, no-such"


@with_taskset
def test_a_server_that_does_not_start_gives_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the reason')"]
    row = run(Application("any", [Server("any", lambda place: command)], [], [nothing()]))
    assert (row.error, row.rates) == ("the server did not start: the reason", [])


@with_taskset
def test_a_server_that_ends_under_its_load_is_the_error_and_not_the_load() -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit('the reason')"]
    failing = dataclasses.replace(nothing(), command=lambda place, seconds: ["false"])
    server = Server("any", lambda place: command, protocol="")
    row = run(Application("any", [server], [], [failing]))
    assert row.error == "the server ended: the reason"


@with_taskset
def test_a_load_that_fails_is_an_error() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    failing = dataclasses.replace(
        nothing(), command=lambda place, seconds: ["sh", "-c", "echo the reason >&2; exit 3"]
    )
    server = Server("any", lambda place: command, protocol="")
    row = run(Application("any", [server], [], [failing]))
    assert (row.error, row.rates) == ("sh: the reason", [])


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))"
LISTEN = (
    "import socket, sys, time; "
    "listener = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"
)


@with_taskset
def test_what_a_load_has_beside_it_is_there_unless_the_server_is_alone_and_ends_with_it() -> None:
    ports: list[int] = []

    def connect(place: Place, seconds: float) -> list[str]:
        ports.extend(place[:2])
        return [sys.executable, "-c", CONNECT, str(place.second)]

    server = Server("any", lambda place: [sys.executable, "-c", LISTEN, str(place.port)])
    backend = Server("back", lambda place: [sys.executable, "-c", LISTEN, str(place.second)])
    load = dataclasses.replace(nothing(), command=connect, beside=backend)
    assert run(Application("any", [server], [], [load])).error is None
    row = run(Application("any", [dataclasses.replace(server, alone=True)], [], [load]))
    assert row.error is not None and "Connection refused" in row.error
    assert len(set(ports)) == 4 and not any(is_open("tcp", port) for port in ports)


def test_the_cpu_time_of_a_server_is_that_of_its_workers_too() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert cpu_seconds(process.pid) > 0.25
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its own, and nobody else is in it
    with pytest.raises(RunError):
        cpu_seconds(process.pid)


def test_an_open_port_is_seen_and_a_closed_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert is_open("tcp", port)
    assert not is_open("tcp", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert is_open("udp", port) and not is_open("tcp", port)
    assert not is_open("udp", port)


# --- What is measured, and what is said of it -----------------------------------------------------


def test_every_example_is_measured_on_both_loops_beside_another_way() -> None:
    programs = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"chat_bus"}
    applications = known().values()
    assert {a.ours[0].name.removesuffix("-asyncio") for a in applications} == programs
    for application in applications:
        (on_asyncio, on_uvloop), rivals = application.ours, application.rivals
        assert on_asyncio.name.replace("-asyncio", "-uvloop") == on_uvloop.name
        assert "uvloop" in on_uvloop.modules and "uvloop" not in on_asyncio.modules
        assert rivals and application.loads
        assert len({server.name for server in application.servers}) == len(application.servers)
        loads = {load.name for load in application.loads}
        assert all(name.startswith(f"{application.name}, ") for name in loads)
        for target in application.targets:
            servers = {server.name for server in application.servers}
            assert target.load in loads and {target.server, target.rival} <= servers


def row(server: str, *rates: float, lower: bool = False, load: str = "any, load") -> Row:
    cpu_rates = [] if lower else [2 * rate for rate in rates]
    busy = [0.5 for _ in rates]
    return Row("any", load, server, "x/s", lower, [*rates], cpu_rates, busy, None)


def test_a_target_is_reached_by_the_median_of_the_rounds_ratios() -> None:
    rows = [row("ours", 30, 10, 20), row("its", 10, 10, 10)]
    assert verdict(Target("any, load", "ours", "its", 2), rows).startswith("ok ")
    line = verdict(Target("any, load", "ours", "its", 2.1), rows)
    assert line.startswith("MISS") and ">= 2.10   2.00 (1.00 .. 3.00)   2.00 by CPU" in line


def test_a_target_is_a_ceiling_where_lower_is_better() -> None:
    rows = [row("ours", 3, lower=True), row("its", 2, lower=True)]
    line = verdict(Target("any, load", "ours", "its", 2), rows)
    assert line.startswith("ok ") and line.endswith("<= 2.00   1.50 (1.50 .. 1.50)")
    assert verdict(Target("any, load", "ours", "its", 1.4), rows).startswith("MISS")


def test_a_target_without_figures_is_not_measured() -> None:
    rows = [row("ours", 3), row("its")]
    assert verdict(Target("any, load", "ours", "its", 2), rows).endswith("not measured")


def test_the_table_has_each_figure_or_why_there_is_none() -> None:
    rows = [row("ours", 30, 10, 20), row("late", 0.123, lower=True)]
    rows.append(Row("any", "any, load", "absent", "x/s", error="not installed: a"))
    head, ours, lower, none = (" ".join(line.split()) for line in table(rows))
    assert head == "any, load, x/s median by CPU load CPU"
    assert ours == "ours 20.0 40.0 50% (10.0 .. 30.0)"
    assert lower == "late 0.123 - 50% (0.123 .. 0.123)"
    assert none == "absent - not installed: a"


def application(*, loop_by_loop: bool) -> Application:
    def servers(name: str) -> list[Server]:
        return [Server(f"{name}-{loop}", lambda place: []) for loop in ("asyncio", "uvloop")]

    load = dataclasses.replace(nothing(), name="any, load")
    return Application("any", servers("ex"), servers("usual"), [load], loop_by_loop=loop_by_loop)


def test_the_short_table_compares_with_the_best_rival() -> None:
    rows = [row("ex-asyncio", 30), row("ex-uvloop", 60)]
    rows += [row("usual-asyncio", 20), row("usual-uvloop", 15)]
    *_, line = markdown([application(loop_by_loop=False)], rows)
    expected = "`ex.py` | load, x/s | 30.0 | 60.0 | usual-asyncio: 20.0 | 1.50 / 3.00 | 1.50 / 3.00"
    assert line == f"| {expected} |"
    for each in rows:  # the best is the lowest now
        each.lower_is_better, each.cpu_rates = True, []
    *_, line = markdown([application(loop_by_loop=False)], rows)
    assert "| usual-uvloop: 15.0 | 2.00 / 4.00 | - / - |" in line


def test_the_short_table_compares_loop_by_loop_if_asked_to() -> None:
    rows = [row("ex-asyncio", 30), row("ex-uvloop", 60), row("usual-asyncio", 20)]
    rows.append(row("usual-uvloop", 15))
    *_, line = markdown([application(loop_by_loop=True)], rows)
    assert "| usual: 20.0 / 15.0 | 1.50 / 4.00 |" in line


def test_the_short_table_has_what_there_is() -> None:
    rows = [row("ex-asyncio", 30), row("ex-uvloop"), row("usual-asyncio"), row("usual-uvloop")]
    *_, line = markdown([application(loop_by_loop=False)], rows)
    assert line == "| `ex.py` | load, x/s | 30.0 | - | usual-asyncio: - | - / - | - / - |"
