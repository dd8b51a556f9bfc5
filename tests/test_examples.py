"""The examples, run as they are: as processes, with real clients."""

from __future__ import annotations

import contextlib
import re
import signal
import socket

import pytest

from tests.programs import (
    LIMIT,
    Example,
    open_sockets,
    receive,
    stopped,
    wait_until,
)

ECHO = Example("echo_server.py")

#: The examples, and the arguments that each needs.
EXAMPLES: dict[str, list[str]] = {
    "chat_server": [],
    "echo_server": [],
    "embedded": [],
    "http_server": [],
    "kv_server": [],
    "multicore_server": [],
    "push_server": [],
    "socks5_proxy": [],
    "tcp_proxy": ["--to", "127.0.0.1:1"],
    "udp_echo": [],
}
#: What an example imports that not everybody has.
MODULES = {
    "chat_server": "wsproto",
    "embedded": "uvicorn",
    "http_server": "httptools",
    "kv_server": "hiredis",
}

#: Wrong for all of them.
WRONG = {
    "--port http": "argument --port: invalid ",
    "--port 70000": "argument --port: must be 0-65535, not 70000",
    "--port -1": "argument --port: must be 0-65535, not -1",
    "--loop fruit": "argument --loop: invalid choice: 'fruit'",
    "--host no.such.host.invalid --port 0": "cannot l",  # listen, or look up
    f"--host {'a' * 100} --port 0": "cannot l",
    "--host 192.0.2.1 --port 0": "cannot listen: ",
    "--no-such-option": "unrecognized arguments: --no-such-option",
}
#: Wrong for one.
WRONG_OF_ONE = {
    "chat_server --idle 0": "argument --idle: must be 0.01-86400, not 0",
    "chat_server --idle nan": "argument --idle: must be 0.01-86400, not nan",
    "chat_server --patience inf": "argument --patience: must be 0.01-86400, not inf",
    "chat_server --longest soon": "argument --longest: invalid whole number value: 'soon'",
    "embedded --lines 70000": "argument --lines: must be 0-65535, not 70000",
    "embedded --ask nowhere": "argument --ask: must be HOST:PORT, not 'nowhere'",
    "embedded --ask 127.0.0.1:": "argument --ask: must be HOST:PORT, not '127.0.0.1:'",
    "embedded --ask 127.0.0.1:0": "argument --ask: must be 1-65535, not 0",
    "embedded --ask 127.0.0.1:70000": "argument --ask: must be 1-65535, not 70000",
    "embedded --ask no.such.invalid:1": "argument --ask: ",
    "http_server --idle 0": "argument --idle: must be 1-86400, not 0",
    "http_server --idle soon": "argument --idle: invalid whole number value: 'soon'",
    "multicore_server --workers 0": "argument --workers: must be 1-1024, not 0",
    "push_server --patience -1": "argument --patience: must be 0-86400, not -1",
    "push_server --patience nan": "argument --patience: must be 0-86400, not nan",
    "push_server --interval 1e-9": "argument --interval: must be 0, or 0.001-86400, not 1e-09",
    "socks5_proxy --patience 0": "argument --patience: must be 0.01-86400, not 0",
    "tcp_proxy": "the following arguments are required: --to",
    "tcp_proxy --to 9000": "must be HOST:PORT, or [IPV6]:PORT, not '9000'",
    "tcp_proxy --to [::1]:70000": "argument --to: must be 0-65535, not 70000",
    "tcp_proxy --to no.such.invalid:1 --port 0": "cannot look up no.such.invalid: ",
    "tcp_proxy --to 127.0.0.1:1 --idle nan": "argument --idle: must be 0.01-86400, not nan",
    "udp_echo --size 0": "argument --size: must be 1-65535, not 0",
}


def example(name: str) -> Example:
    if name in MODULES:
        pytest.importorskip(MODULES[name])
    return Example(f"{name}.py")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_help_with_its_defaults(name: str) -> None:
    done = example(name).ended("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--host HOST", "--port PORT", "--loop {asyncio,uvloop}"):
        assert option in done.stdout
    assert re.search(r"--port PORT\s+[^-]*default: \d+; 0: any", done.stdout)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_on_a_port_in_use_says_so_in_one_line(name: str) -> None:
    kind = socket.SOCK_DGRAM if name == "udp_echo" else socket.SOCK_STREAM
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        done = example(name).ended(*EXAMPLES[name], "--port", str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"cannot listen: .*Address already in use.*\n", done.stderr)


@pytest.mark.parametrize(("wrong", "complaint"), WRONG.items())
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_of_a_wrong_argument_what_is_wrong(
    name: str, wrong: str, complaint: str
) -> None:
    example(name).assert_refuses(*EXAMPLES[name], *wrong.split(), complaint=complaint)


@pytest.mark.parametrize(("command", "complaint"), WRONG_OF_ONE.items())
def test_an_example_says_of_an_argument_of_its_own_what_is_wrong(
    command: str, complaint: str
) -> None:
    name, *arguments = command.split()
    example(name).assert_refuses(*arguments, complaint=complaint)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_in_order_when_nobody_reads_its_output(name: str) -> None:
    """As with `| tee` and Ctrl-C, which ends tee first."""
    with example(name).running(*EXAMPLES[name]) as (process, _):
        assert process.stdout is not None
        process.stdout.close()
        assert stopped(process, signal.SIGINT) == ""


def test_all_examples_can_run_beside_each_other() -> None:
    """Each has a port of its own by default."""
    ports = [
        port
        for name in EXAMPLES
        for port in re.findall(
            r'default=(\d+), help="[^"]*0: any"', Example(f"{name}.py").path.read_text()
        )
    ]
    assert len(ports) == len(EXAMPLES) + 1  # embedded.py has two
    assert len(set(ports)) == len(ports)


def test_no_example_is_left_out_here() -> None:
    programs = [path for path in ECHO.path.parent.glob("*.py") if "__main__" in path.read_text()]
    assert {path.stem for path in programs} == EXAMPLES.keys()


def test_example_is_short_enough_for_a_screen() -> None:
    assert len(ECHO.path.read_text().splitlines()) < 60


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_echo_server_echoes_to_many_and_lets_go_of_those_who_leave(
    loop: str, by: signal.Signals
) -> None:
    with ECHO.running("--loop", loop) as (process, address), contextlib.ExitStack() as stack:
        at_first = open_sockets(process)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=LIMIT)) for _ in range(20)
        ]
        for number, client in enumerate(clients):
            client.sendall(b"message %d" % number * 1000)
        for number, client in enumerate(clients):
            expected = b"message %d" % number * 1000
            assert receive(client, len(expected)) == expected
        assert open_sockets(process) == at_first + 20
        for client in clients[:10]:
            client.close()
        wait_until(lambda: open_sockets(process) == at_first + 10)
        assert stopped(process, by) == ""
        assert clients[-1].recv(1) == b""
