"""The server on all cores, run as it is: its workers die, are restarted, and are told to leave."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.programs import LIMIT, Example, environment

EXAMPLE = Example("multicore_server.py")
ended = EXAMPLE.ended

READY = r"worker (\d) \(pid (\d+)\) is ready"


class Server:
    """The supervisor's process, and the lines it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        (first,) = self.wait_for(r"\d+ workers on (.*):(\d+)")
        self.address = first[1], int(first[2])

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """The lines of this form, once there are so many; no more of them."""
        end = time.monotonic() + LIMIT
        while True:
            found = [match for line in self.lines if (match := re.fullmatch(pattern, line))]
            if len(found) >= count:
                assert len(found) == count, self.lines
                return found
            assert time.monotonic() < end, (pattern, self.lines)
            assert self.reader.is_alive() or not self.unread(), self.lines
            time.sleep(0.01)

    def unread(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, count: int) -> list[int]:
        """The process ids of all workers that were ever ready, once there are so many."""
        return [int(match[2]) for match in self.wait_for(READY, count)]

    def stop(self, by: int = signal.SIGTERM) -> None:
        self.process.send_signal(by)
        assert self.process.wait(LIMIT) == 0
        self.reader.join(LIMIT)
        assert self.lines[-1] == "stopped"
        assert self.process.stderr is not None
        assert self.process.stderr.read() == ""


@contextlib.contextmanager
def running(*arguments: str, example: Path = EXAMPLE.path) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, str(example), "--port", "0", "--workers", "2", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        server = None
        try:
            server = Server(process)
            yield server
        finally:
            process.kill()  # the workers follow
            process.wait(LIMIT)
            if server is not None:
                server.reader.join(LIMIT)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(server.address, timeout=LIMIT)


def echoes(sock: socket.socket, text: bytes = b"hello") -> bool:
    sock.sendall(text)
    got = b""
    while len(got) < len(text) and (more := sock.recv(len(text) - len(got))):
        got += more
    return got == text


def connections(pid: int) -> int:
    """How many clients a worker has."""
    found = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED for one in found)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_workers_share_the_connections(loop: str) -> None:
    with running("--loop", loop, "--pin", "--rounds", "1") as server:
        workers = server.wait_until_ready(2)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(server)) for _ in range(64)]
            assert all(echoes(client) for client in clients)
            counts = [connections(pid) for pid in workers]
            assert sum(counts) == 64 and min(counts) > 0, counts
            pinned = [os.sched_getaffinity(pid) for pid in workers]
            assert all(len(cores) == 1 for cores in pinned)
            assert len(set.union(*pinned)) == min(2, len(os.sched_getaffinity(0)))
            server.stop(signal.SIGINT)
            for client in clients:
                assert client.recv(1) == b""


def test_a_worker_that_dies_is_started_again_after_a_delay_that_grows() -> None:
    with running() as server:
        (healthy,) = [m[2] for m in server.wait_for(READY, 2) if m[1] == "0"]
        for number, delay in enumerate(["0.1", "0.2", "0.4"]):
            (victim,) = [m[2] for m in server.wait_for(READY, 2 + number) if m[1] == "1"][-1:]
            began = time.monotonic()
            os.kill(int(victim), signal.SIGKILL)
            server.wait_for(rf"worker 1 \(pid {victim}\) ended: signal SIGKILL")
            server.wait_for(rf"worker 1 starts again in {delay} s")
            server.wait_until_ready(3 + number)
            assert time.monotonic() - began >= float(delay)
        assert psutil.pid_exists(int(healthy))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(server)) for _ in range(20)]
            assert all(echoes(client) for client in clients)
            server.stop()


def test_who_connects_while_a_worker_is_away_waits_for_the_next_one() -> None:
    with running() as server, contextlib.ExitStack() as stack:
        for pid in server.wait_until_ready(2):
            os.kill(pid, signal.SIGKILL)
        server.wait_for(r"worker \d \(pid \d+\) ended: signal SIGKILL", 2)
        clients = [stack.enter_context(connect(server)) for _ in range(20)]
        assert all(echoes(client) for client in clients)
        server.wait_until_ready(4)
        server.stop()


def test_a_restart_refuses_nobody_and_the_old_workers_serve_those_they_have() -> None:
    with running() as server, contextlib.ExitStack() as stack:
        old = server.wait_until_ready(2)
        staying = [stack.enter_context(connect(server)) for _ in range(20)]
        assert all(echoes(client) for client in staying)
        done, failures, served = threading.Event(), [], 0

        def come_and_go() -> None:
            nonlocal served
            while not done.is_set():
                try:
                    with connect(server) as sock:
                        assert echoes(sock)
                    served += 1
                except (OSError, AssertionError) as error:
                    failures.append(error)

        storm = threading.Thread(target=come_and_go)
        storm.start()
        try:
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(r"worker \d \(pid \d+\) drains", 2)
            new = server.wait_until_ready(4)[2:]
            before = served
            while served < before + 50 and not failures:
                time.sleep(0.01)
        finally:
            done.set()
            storm.join(LIMIT)
        assert not failures and served
        for number in "01":  # the new one is ready before the old one is told
            lines = [line for line in server.lines if line.startswith(f"worker {number} ")]
            assert re.sub(r"\d{2,}", "N", "; ".join(lines)) == (
                f"worker {number} (pid N) is ready; worker {number} (pid N) is ready; "
                f"worker {number} (pid N) drains"
            )
        assert all(echoes(client, b"still here") for client in staying)
        assert sum(connections(pid) for pid in old) == 20
        for client in staying:
            client.close()
        server.wait_for(r"worker \d \(pid \d+\) ended: status 0", 2)
        assert not set(old) & set(new) and all(psutil.pid_exists(pid) for pid in new)
        server.stop()


def test_an_old_worker_leaves_its_clients_when_the_grace_is_over() -> None:
    with running("--grace", "3") as server, connect(server) as client:
        server.wait_until_ready(2)
        assert echoes(client)
        began = time.monotonic()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"worker \d \(pid \d+\) drains", 2)
        assert echoes(client)
        assert client.recv(1) == b""
        assert time.monotonic() - began >= 3
        server.wait_for(r"worker \d \(pid \d+\) ended: status 0", 2)
        server.stop()


def test_a_restart_with_code_that_does_not_start_keeps_the_old_workers(tmp_path: Path) -> None:
    copy = Path(shutil.copy(EXAMPLE.path, tmp_path))
    with running(example=copy) as server, connect(server) as client:
        old = server.wait_until_ready(2)
        copy.write_text("raise SystemExit(3)\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"worker \d \(pid \d+\) ended: status 3", 2)
        stays = server.wait_for(r"worker \d \(pid (\d+)\) stays", 2)
        assert {int(match[1]) for match in stays} == set(old)
        with connect(server) as another:
            assert echoes(client) and echoes(another)
        server.stop()


def queued(sock: socket.socket, server: Server) -> tuple[int, int]:
    """The bytes of this client that the worker has not read, and those it has sent (proc(5))."""
    unread = sent = 0
    near, far = f":{sock.getsockname()[1]:04X}", f":{server.address[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        to_send, to_read = (int(number, 16) for number in queues.split(":"))
        if local.endswith(far) and remote.endswith(near):
            unread, sent = unread + to_read, sent + to_send
        elif local.endswith(near) and remote.endswith(far):
            unread, sent = unread + to_send, sent + to_read
    return unread, sent


def stuck(sock: socket.socket, server: Server, size: int) -> bool:
    """Whether the worker has read all of it, and cannot send all of it; for a while."""
    end = time.monotonic() + LIMIT
    while queued(sock, server)[0]:
        assert time.monotonic() < end
    for _ in range(20):
        if queued(sock, server)[1] == size:
            return False
        time.sleep(0.01)
    return True


def test_what_a_worker_has_read_it_still_sends_when_the_server_stops() -> None:
    with running("--workers", "1") as server, connect(server) as client:
        server.wait_until_ready(1)
        block, size = bytes(range(250)) * 240, 0  # one segment: the worker reads it whole
        while size == 0 or not stuck(client, server, size):  # nobody reads the echo
            client.sendall(block)
            size += len(block)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        with client.makefile("rb") as stream:
            got = stream.read()
        assert len(got) == size and got == block * (size // len(block))
        assert server.process.wait(LIMIT) == 0
        server.wait_for(r"worker 0 \(pid \d+\) ended: status 0")


def test_no_worker_outlives_its_supervisor() -> None:
    with running() as server, connect(server) as client:
        workers = server.wait_until_ready(2)
        assert echoes(client)
        server.process.kill()
        assert client.recv(1) == b""
        for pid in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
        socket.create_server(server.address).close()  # the port is free


def test_a_second_server_does_not_share_the_port_unasked() -> None:
    with running() as server:
        server.wait_until_ready(2)
        done = ended("--port", str(server.address[1]))
        assert (done.returncode, done.stdout) == (1, "")
        assert re.match(r"cannot listen: .*Address already in use", done.stderr)
        server.stop()


def test_help_does_not_tell_what_is_between_the_supervisor_and_its_workers() -> None:
    done = ended("--help")
    assert done.returncode == 0
    assert "--workers" in done.stdout and "--listener" not in done.stdout
