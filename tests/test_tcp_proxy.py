"""The TCP proxy, run as it is: as a process, between sockets, and by curl and iperf3."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aiogaio import Watcher
from tests.programs import LIMIT, Example, open_sockets, receive, stopped, wait_until, web_server
from tests.support import reset

EXAMPLE = Example("tcp_proxy.py")
running, load = EXAMPLE.running, EXAMPLE.load


@contextlib.contextmanager
def upstream() -> Iterator[tuple[socket.socket, str]]:
    """A listener that nobody serves but the test, and its address for ``--to``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener, "{}:{}".format(*listener.getsockname())


@contextlib.contextmanager
def through(address: tuple[str, int], listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Both ends of a connection through the proxy: the client's, and the server's."""
    with socket.create_connection(address, timeout=LIMIT) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(LIMIT)
            yield [client, server]


def all_of(sock: socket.socket) -> bytes:
    """What comes until the end."""
    with sock.makefile("rb") as stream:
        return stream.read()


@contextlib.contextmanager
def reserved() -> Iterator[tuple[str, int]]:
    """An address on which nobody listens, and that the system gives to nobody else."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_bytes_and_the_end_of_each_side_are_passed_on(loop: str) -> None:
    question, answer = random.randbytes(1 << 20), random.randbytes(3 << 20)
    with upstream() as (listener, to), running("--to", to, "--loop", loop) as (process, address):
        at_first = open_sockets(process)
        with through(address, listener) as (client, server):
            sender = threading.Thread(target=client.sendall, args=[question])
            sender.start()
            got = bytearray()
            while len(got) < len(question):
                got += server.recv(1 << 16)
            sender.join(LIMIT)
            assert got == question
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""  # the end has come, and the other way is open
            answerer = threading.Thread(target=server.sendall, args=[answer])
            answerer.start()
            got = bytearray()
            while len(got) < len(answer):
                got += client.recv(1 << 16)
            answerer.join(LIMIT)
            assert got == answer
            server.close()
            assert client.recv(1) == b""
        wait_until(lambda: open_sockets(process) == at_first)
        assert stopped(process) == (
            f"closed: 1 connections relayed, {len(question)} bytes there and "
            f"{len(answer)} back; 0 not connected\n"
        )


def test_many_connections_are_kept_apart_and_let_go_of() -> None:
    with upstream() as (listener, to), running("--to", to) as (process, address):
        at_first = open_sockets(process)
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(through(address, listener)) for _ in range(30)]
            for number, (client, server) in enumerate(pairs):
                client.sendall(b"question %d" % number)
                server.sendall(b"answer %d" % number)
            for number, (client, server) in enumerate(pairs):
                expected = b"question %d" % number
                assert receive(server, len(expected)) == expected
                expected = b"answer %d" % number
                assert receive(client, len(expected)) == expected
        wait_until(lambda: open_sockets(process) == at_first)
        assert stopped(process, by=signal.SIGINT).startswith("closed: 30 connections relayed, ")


def test_a_reset_is_passed_on_as_a_reset_and_not_as_an_end() -> None:
    with upstream() as (listener, to), running("--to", to) as (process, address):
        with through(address, listener) as (client, server):
            server.sendall(b"half of")
            assert receive(client, 7) == b"half of"
            reset(server)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with through(address, listener) as (client, server):
            client.sendall(b"half of")
            assert receive(server, 7) == b"half of"
            reset(client)
            with pytest.raises(ConnectionResetError):
                server.recv(1)
        stopped(process)


def test_a_client_whose_upstream_refuses_is_reset_and_the_others_go_on() -> None:
    with reserved() as (host, port), running("--to", f"{host}:{port}") as (process, address):
        listener = socket.create_server((host, port))
        listener.settimeout(LIMIT)
        with through(address, listener) as (client, server):
            listener.close()
            with (
                socket.create_connection(address, timeout=LIMIT) as unlucky,
                pytest.raises(ConnectionResetError),
            ):
                unlucky.recv(1)
            client.sendall(b"still here")
            assert receive(server, 10) == b"still here"
        said = stopped(process, complaint="cannot connect: [Errno 111] Connection refused\n")
        assert said.endswith("; 1 not connected\n")


def test_a_connection_on_which_nothing_moves_is_reset_after_the_idle_time() -> None:
    with (
        upstream() as (listener, to),
        running("--to", to, "--idle", "1.5") as (process, address),
        through(address, listener) as (client, server),
    ):
        began = time.monotonic()
        last = began
        while last < began + 2:  # more than the idle time, never silent for all of it
            last = time.monotonic()
            client.sendall(b".")
            assert server.recv(1) == b"."
            time.sleep(0.02)
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert time.monotonic() - last >= 1.5
        stopped(process)


def test_a_receiver_that_stops_reading_stops_its_sender_and_memory_stays_flat() -> None:
    with (
        upstream() as (listener, to),
        running("--to", to) as (process, address),
        through(address, listener) as (client, server),
    ):
        client.sendall(b"warm")
        assert receive(server, 4) == b"warm"
        memory = psutil.Process(process.pid).memory_info
        at_first = memory().rss
        block, sent = random.randbytes(1 << 16), 0
        summed = hashlib.sha256()
        client.settimeout(2)  # nobody makes room for so long, though the machine may pause
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                count = client.send(block)
                summed.update(block[:count])
                sent += count
        assert 1 << 18 < sent < 64 << 20  # what the system's buffers hold, and a pipe
        assert memory().rss - at_first < 2 << 20
        client.settimeout(LIMIT)
        client.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(all_of(server)).digest() == summed.digest()  # and nothing is lost
        assert memory().rss - at_first < 2 << 20
        stopped(process)


def test_stopping_closes_the_connections_and_leaves_in_order() -> None:
    with (
        upstream() as (listener, to),
        running("--to", to) as (process, address),
        through(address, listener) as (client, server),
    ):
        assert stopped(process).startswith("closed: 0 connections relayed")
        assert client.recv(1) == server.recv(1) == b""


async def test_all_addresses_of_a_name_are_tried(watcher: Watcher) -> None:
    proxy_module = load()
    with upstream() as (listener, _), reserved() as nobody:
        refused = (socket.AF_INET, nobody)
        no_family = (socket.AF_INET6, ("::1", listener.getsockname()[1], 0, 0))
        targets = [refused, no_family, (socket.AF_INET, listener.getsockname())]
        proxy = proxy_module.Proxy(watcher, targets, 5.0, 5.0)
        entrance = socket.create_server(("127.0.0.1", 0))
        address = entrance.getsockname()
        serving = asyncio.create_task(proxy.serve(entrance))
        reader, writer = await asyncio.open_connection(*address)
        server, _ = await asyncio.to_thread(listener.accept)
        with server:
            server.sendall(b"found")
            assert await asyncio.wait_for(reader.readexactly(5), LIMIT) == b"found"
            serving.cancel()
            await asyncio.wait([serving])
            assert serving.cancelled() and proxy.failed == 0
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


# --- By clients that others wrote -----------------------------------------------------------------


@pytest.mark.clients
def test_curl_fetches_files_through_it(tmp_path: Path) -> None:
    content = random.randbytes(20 << 20)
    (tmp_path / "file").write_bytes(content)
    with (
        web_server(tmp_path) as web,
        running("--to", "{}:{}".format(*web)) as (process, address),
    ):
        url = "http://{}:{}/file".format(*address)
        fetched = [tmp_path / f"fetched{number}" for number in range(4)]
        outputs = [word for path in fetched for word in (url, "-o", str(path))]
        subprocess.run(["curl", "-sSf", "-Z", *outputs], check=True, timeout=LIMIT)
        for path in fetched:
            assert path.read_bytes() == content
        stopped(process)


@pytest.mark.clients
@pytest.mark.parametrize("direction", [[], ["--reverse"], ["--bidir"]])
def test_iperf3_runs_through_it(direction: list[str]) -> None:
    with (
        reserved() as (host, port),
        subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", host, "-p", str(port), "--forceflush"],
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            while "Server listening" not in (line := server.stdout.readline()):
                assert line, "iperf3 has ended"
            with running("--to", f"{host}:{port}") as (process, address):
                at_first = open_sockets(process)
                done = subprocess.run(
                    ["iperf3", "-J", "-c", address[0], "-p", str(address[1]), "-t", "1", "-P", "2"]
                    + direction,
                    capture_output=True,
                    text=True,
                    timeout=LIMIT,
                    check=False,
                )
                assert done.returncode == 0, done.stdout
                end = json.loads(done.stdout)["end"]
                assert end["sum_received"]["bytes"] > 1 << 20
                wait_until(lambda: open_sockets(process) == at_first)
                said = stopped(process)
                there, back = map(int, re.findall(r"(\d+) (?:bytes there|back)", said))
                assert (back if direction == ["--reverse"] else there) > 1 << 20
        finally:
            server.kill()
