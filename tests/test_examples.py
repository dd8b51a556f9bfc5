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


def test_echo_server_takes_its_arguments() -> None:
    ECHO.assert_takes_its_arguments()


def test_all_examples_can_run_beside_each_other() -> None:
    """Each has a port of its own by default."""
    examples = [one for one in ECHO.path.parent.glob("*.py") if "add_argument" in one.read_text()]
    ports = [
        port
        for example in examples
        for port in re.findall(r'default=(\d+), help="[^"]*0: any"', example.read_text())
    ]
    assert len(examples) == 10 and len(ports) == 11  # embedded.py has two
    assert len(set(ports)) == len(ports)


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
