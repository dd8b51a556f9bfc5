"""The examples, run as they are: as processes, with real clients."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ["echo_server.py"]
LIMIT = 30.0  # seconds that nothing here may take


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def running(example: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """The example on a free port, and the address it printed."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / example), "0"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            host, port = process.stdout.readline().split()[-1].split(":")
            yield process, (host, int(port))
        finally:
            process.kill()


def assert_interrupt_ends_cleanly(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    output, complaint = process.communicate(timeout=LIMIT)
    assert (process.returncode, output, complaint) == (0, "", "")


def open_sockets(process: subprocess.Popen[str]) -> int:
    count = 0
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def ended(example: str, argument: str) -> subprocess.CompletedProcess[str]:
    """The example, started with that argument, to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), argument],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_has_help(example: str) -> None:
    done = ended(example, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  port  +default: \d+; 0: any$", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_on_a_port_in_use_says_so_in_one_line(example: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ended(example, str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"cannot listen: .*Address already in use.*\n", done.stderr)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_example_on_a_bad_port_says_so_without_a_traceback(example: str, port: str) -> None:
    done = ended(example, port)
    assert done.returncode in {1, 2} and done.stdout == ""
    complaint = "invalid int value: 'http'" if port == "http" else "port must be 0-65535"
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_short_enough_for_a_screen(example: str) -> None:
    assert len((ROOT / "examples" / example).read_text().splitlines()) < 60


def test_echo_server_echoes_to_many_and_lets_go_of_those_who_leave() -> None:
    with running("echo_server.py") as (process, address), contextlib.ExitStack() as stack:
        at_first = open_sockets(process)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=LIMIT)) for _ in range(20)
        ]
        for number, client in enumerate(clients):
            client.sendall(b"message %d" % number * 1000)
        for number, client in enumerate(clients):
            expected = b"message %d" % number * 1000
            assert client.recv(len(expected), socket.MSG_WAITALL) == expected
        assert open_sockets(process) == at_first + 20
        for client in clients[:10]:
            client.close()
        wait_until(lambda: open_sockets(process) == at_first + 10)
        assert_interrupt_ends_cleanly(process)
        assert clients[-1].recv(1) == b""
