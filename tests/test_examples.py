"""The examples, run as they are: as processes, with real clients."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.programs import (
    LIMIT,
    Address,
    Example,
    address_in,
    open_sockets,
    receive,
    stopped,
    wait_until,
)

ECHO = Example("echo_server.py")


@contextlib.contextmanager
def running(loop: str = "asyncio") -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """The echo server, which takes its port by place, and the address it printed."""
    with ECHO.started("0", "--loop", loop) as process:
        try:
            assert process.stdout is not None
            yield process, address_in(process.stdout.readline())
        finally:
            process.kill()


def test_example_has_help() -> None:
    done = ECHO.ended("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  port  +default: \d+; 0: any$", done.stdout, re.M), done.stdout


def test_example_on_a_port_in_use_says_so_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ECHO.ended(str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"cannot listen: .*Address already in use.*\n", done.stderr)


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_example_on_a_bad_port_says_so_without_a_traceback(port: str) -> None:
    done = ECHO.ended(port)
    assert done.returncode in {1, 2} and done.stdout == ""
    complaint = "invalid int value: 'http'" if port == "http" else "port must be 0-65535"
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_example_is_short_enough_for_a_screen() -> None:
    assert len(ECHO.path.read_text().splitlines()) < 60


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_echo_server_echoes_to_many_and_lets_go_of_those_who_leave(
    loop: str, by: signal.Signals
) -> None:
    with running(loop) as (process, address), contextlib.ExitStack() as stack:
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
