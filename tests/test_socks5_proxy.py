"""The SOCKS5 proxy, run as it is: as a process, byte by byte, and by curl."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiogaio import Connection, Watcher
from tests.programs import LIMIT, Example, open_sockets, receive, stopped, wait_until, web_server
from tests.support import reset

EXAMPLE = Example("socks5_proxy.py")
running, load = EXAMPLE.running, EXAMPLE.load


GREETING = b"\x05\x01\x00"
WELCOME = b"\x05\x00"
IPV4, NAME, IPV6 = 1, 3, 4
BEHIND = b"and what comes behind it"


def request(host: str | bytes, port: int, *, command: int = 1) -> bytes:
    """A request to connect (RFC 1928, section 4); a name is given as bytes."""
    if isinstance(host, bytes):
        where = bytes([NAME, len(host)]) + host
    else:
        address = ipaddress.ip_address(host)
        where = bytes([IPV4 if address.version == 4 else IPV6]) + address.packed
    return bytes([5, command, 0]) + where + port.to_bytes(2)


def receive_reply(sock: socket.socket) -> tuple[int, str, int]:
    """The code of an answer, and the address in it."""
    version, code, reserved, kind = receive(sock, 4)
    assert (version, reserved) == (5, 0)
    host = str(ipaddress.ip_address(receive(sock, {IPV4: 4, IPV6: 16}[kind])))
    return code, host, int.from_bytes(receive(sock, 2))


def answer(address: tuple[str, int], sent: bytes) -> tuple[int, str, int]:
    """The answer to a greeting and this request, behind which the connection ends."""
    with socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(GREETING + sent)
        assert receive(client, 2) == WELCOME
        reply = receive_reply(client)
        assert client.recv(1) == b""
        return reply


@contextlib.contextmanager
def nobody_listening() -> Iterator[tuple[str, int]]:
    """An address that the system gives to nobody else."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(LIMIT)
        yield listener


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Of a proxy that all tests share which do not stop it."""
    with running("--patience", "20") as (process, address):
        yield address
        stopped(process)


# --- Connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clients_are_connected_and_let_go_of(loop: str) -> None:
    with listening() as listener, running("--loop", loop) as (process, address):
        at_first = open_sockets(process)
        for host in ("127.0.0.1", b"127.0.0.1", b"localhost"):
            with socket.create_connection(address, timeout=LIMIT) as client:
                client.sendall(GREETING)
                assert receive(client, 2) == WELCOME
                client.sendall(request(host, listener.getsockname()[1]))
                server, peer = listener.accept()
                with server:
                    server.settimeout(LIMIT)
                    assert receive_reply(client) == (0, *peer)
                    client.sendall(b"question")
                    assert receive(server, 8) == b"question"
                    client.shutdown(socket.SHUT_WR)
                    assert server.recv(1) == b""
                    server.sendall(b"answer")
                    assert receive(client, 6) == b"answer"
        wait_until(lambda: open_sockets(process) == at_first)
        said = stopped(process, by=signal.SIGINT)
        assert said == "closed: 3 connections relayed, 0 refused\n"


def test_it_connects_to_ipv6(address: tuple[str, int]) -> None:
    with (
        listening("::1") as listener,
        socket.create_connection(address, timeout=LIMIT) as client,
    ):
        client.sendall(GREETING + request("::1", listener.getsockname()[1]))
        server, peer = listener.accept()
        with server:
            assert receive(client, 2) == WELCOME
            assert receive_reply(client) == (0, *peer[:2])
            server.sendall(b"welcome")
            assert receive(client, 7) == b"welcome"


def test_no_authentication_is_found_among_other_methods(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(bytes([5, 255, *range(255, 0, -1)][:-1]) + b"\x00")
        assert receive(client, 2) == WELCOME


def test_a_reset_of_the_server_reaches_the_client_as_a_reset(address: tuple[str, int]) -> None:
    with listening() as listener, socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(GREETING + request(*listener.getsockname()))
        server, _ = listener.accept()
        assert receive(client, 2) == WELCOME
        assert receive_reply(client)[0] == 0
        reset(server)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# --- Refusals -------------------------------------------------------------------------------------


def test_a_port_where_nobody_listens_is_reply_5_and_nothing_stays_open() -> None:
    with nobody_listening() as (host, port), running() as (process, address):
        at_first = open_sockets(process)
        for _ in range(5):
            assert answer(address, request(host, port)) == (5, "0.0.0.0", 0)
        wait_until(lambda: open_sockets(process) == at_first)
        assert stopped(process) == "closed: 0 connections relayed, 5 refused\n"


@pytest.mark.parametrize("command", [0, 2, 3, 255])
def test_another_command_than_connect_is_reply_7(address: tuple[str, int], command: int) -> None:
    assert answer(address, request(b"localhost", 1, command=command)) == (7, "0.0.0.0", 0)


@pytest.mark.parametrize("kind", [0, 2, 5, 255])
def test_another_type_of_address_is_reply_8(address: tuple[str, int], kind: int) -> None:
    assert answer(address, bytes([5, 1, 0, kind]) + b"what is it?")[0] == 8


@pytest.mark.parametrize("name", [b"", b"localhost\x00.example", b"local host", b"l\xc3\xb6we"])
def test_what_is_no_name_is_reply_1(address: tuple[str, int], name: bytes) -> None:
    assert answer(address, request(name, 1))[0] == 1


def test_a_name_that_nobody_knows_is_reply_4(address: tuple[str, int]) -> None:
    assert answer(address, request(b"x" * 255, 1))[0] == 4


@pytest.mark.parametrize(
    ("own", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1", b"localhost", "0.0.0.0", "::ffff:127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1", b"localhost", "0.0.0.0", "127.0.0.2", "::ffff:127.0.0.2"]),
        ("::1", ["::1", "::"]),
        ("::", ["::1", "::"]),
    ],
)
def test_to_connect_to_itself_is_reply_2_and_nothing_stays_open(
    own: str, hosts: list[str | bytes]
) -> None:
    with running("--host", own) as (process, address):
        at_first = open_sockets(process)
        for host in hosts:
            assert answer(address, request(host, address[1])) == (2, "0.0.0.0", 0)
        wait_until(lambda: open_sockets(process) == at_first)
        assert stopped(process).startswith("closed: 0 connections relayed, ")


def test_a_server_of_the_same_port_at_another_address_of_the_machine_is_not_itself() -> None:
    with (
        running() as (process, address),
        socket.create_server(("127.0.0.2", address[1])) as listener,
        socket.create_connection(address, timeout=LIMIT) as client,
    ):
        client.sendall(GREETING + request(*listener.getsockname()))
        assert receive(client, 2) == WELCOME
        assert receive_reply(client)[0] == 0
        stopped(process)


@pytest.mark.parametrize("methods", [b"", b"\x02", b"\x01\x02\x80\xff"])
def test_without_an_acceptable_method_it_says_so_and_ends(
    address: tuple[str, int], methods: bytes
) -> None:
    with socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(bytes([5, len(methods)]) + methods)
        assert receive(client, 2) == b"\x05\xff"
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "sent", [b"\x04\x01", b"GET / HTTP/1.1\r\n", GREETING + b"\x04\x01\x00\x01"]
)
def test_another_protocol_is_reset(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(sent)
        if sent.startswith(GREETING):
            assert receive(client, 2) == WELCOME
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_refusal_is_not_overtaken_by_a_reset_however_much_the_client_sends(
    address: tuple[str, int],
) -> None:
    with socket.create_connection(address, timeout=LIMIT) as client:
        client.sendall(GREETING + request("127.0.0.1", 1, command=2) + bytes(1 << 20))
        assert receive(client, 2) == WELCOME
        assert receive_reply(client)[0] == 7
        assert client.recv(1) == b""


def test_a_client_that_takes_too_long_is_reset_and_one_that_leaves_is_forgotten() -> None:
    with running("--patience", "2") as (process, address):
        at_first = open_sockets(process)
        said = [b"", GREETING[:1], GREETING, GREETING + request(b"localhost", 1)[:-1]]
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            slow = [stack.enter_context(socket.create_connection(address)) for _ in said]
            for sent in said:
                with socket.create_connection(address, timeout=LIMIT) as leaving:
                    leaving.sendall(sent)
            for client, sent in zip(slow, said, strict=True):
                client.settimeout(LIMIT)
                client.sendall(sent)
            for client, sent in zip(slow, said, strict=True):
                if sent.startswith(GREETING):
                    assert receive(client, 2) == WELCOME
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert time.monotonic() - began >= 1.9
            wait_until(lambda: open_sockets(process) == at_first)
        assert stopped(process) == "closed: 0 connections relayed, 8 refused\n"


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, int]]:
    """An address that does not answer: its backlog is full, and the system drops what comes."""
    with listening() as full, contextlib.ExitStack() as stack:
        full.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


def test_a_destination_that_does_not_answer_in_time_is_reply_4_and_is_given_up() -> None:
    with silent() as (host, port), running("--patience", "2") as (process, address):
        at_first = open_sockets(process)
        assert answer(address, request(host, port))[0] == 4
        wait_until(lambda: open_sockets(process) == at_first)
        stopped(process)


def test_stopping_in_the_middle_of_handshakes_leaves_in_order() -> None:
    with silent() as (host, port), running() as (process, address), contextlib.ExitStack() as stack:
        at_first = open_sockets(process)
        for sent in (b"", GREETING, GREETING + b"\x05\x01", GREETING + request(host, port)):
            client = stack.enter_context(socket.create_connection(address, timeout=LIMIT))
            client.sendall(sent)
            if sent:
                assert receive(client, 2) == WELCOME
        wait_until(lambda: open_sockets(process) == at_first + 5)  # one of them goes on from there
        assert stopped(process) == "closed: 0 connections relayed, 0 refused\n"


# --- In the test's own process --------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(watcher: Watcher) -> AsyncIterator[tuple[Any, tuple[str, int]]]:
    """The proxy on this watcher, and its address."""
    proxy = load().Proxy(watcher, 10.0, 10.0)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    task = asyncio.create_task(proxy.serve(listener))
    try:
        yield proxy, address
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@contextlib.asynccontextmanager
async def connected(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(LIMIT):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
async def test_a_handshake_may_come_in_pieces_of_any_size(watcher: Watcher, size: int) -> None:
    with listening() as listener:
        sent = GREETING + request(b"localhost", listener.getsockname()[1]) + BEHIND
        async with serving(watcher) as (_, address), connected(address) as (reader, writer):
            for start in range(0, len(sent), size):
                writer.write(sent[start : start + size])
                arrived = min(start + size, len(sent) - len(BEHIND))  # the rest is the relay's
                while watcher.statistics().bytes_read < arrived:
                    await asyncio.sleep(0.001)
            port = await peer_of(listener, BEHIND)
            expected = WELCOME + b"\x05\x00\x00\x01\x7f\x00\x00\x01" + port
            assert await reader.readexactly(len(expected)) == expected


async def peer_of(listener: socket.socket, expected: bytes) -> bytes:
    """The port that the listener's next client has, who says what is expected."""
    server, (_, port) = await asyncio.to_thread(listener.accept)
    with server:
        server.settimeout(LIMIT)
        assert await asyncio.to_thread(receive, server, len(expected)) == expected
    return port.to_bytes(2)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENETUNREACH, 3),
        (errno.EHOSTUNREACH, 4),
        (errno.ETIMEDOUT, 4),
        (errno.ECONNREFUSED, 5),
        (errno.EACCES, 1),
        (errno.EMFILE, 1),
    ],
)
async def test_the_reply_says_why_there_is_no_connection(number: int, code: int) -> None:
    async def fail(*_: object) -> Connection:
        raise OSError(number, os.strerror(number))

    async with (
        Watcher() as watcher,
        serving(watcher) as (proxy, address),
        connected(address) as (reader, writer),
    ):
        proxy.connect_to = fail
        writer.write(GREETING + request("192.0.2.1", 1))
        expected = WELCOME + bytes([5, code, 0, 1]) + bytes(6)
        assert await reader.readexactly(len(expected)) == expected
        assert await reader.read() == b""


async def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        pytest.skip("its resolver cannot be replaced")
    with listening() as listener, nobody_listening() as refused:
        found = [(socket.AF_INET, 1, 6, "", where) for where in (refused, listener.getsockname())]
        async with (
            Watcher() as watcher,
            serving(watcher) as (_, address),
            connected(address) as (reader, writer),
        ):
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            writer.write(GREETING + request(b"two.example", 1) + b"hello")
            await peer_of(listener, b"hello")
            assert (await reader.readexactly(4))[3] == 0


# --- By a client that others wrote ----------------------------------------------------------------


@pytest.mark.clients
@pytest.mark.parametrize("option", ["--socks5-hostname", "--socks5"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_curl_fetches_a_file_through_it(
    address: tuple[str, int], tmp_path: Path, option: str, host: str
) -> None:
    content = random.randbytes(5 << 20)
    (tmp_path / "file").write_bytes(content)
    with web_server(tmp_path) as (_, port):
        done = subprocess.run(
            ["curl", "-4sSf", option, "{}:{}".format(*address), f"http://{host}:{port}/file"],
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == content


@pytest.mark.clients
def test_curl_is_told_that_nobody_listens_there(address: tuple[str, int]) -> None:
    with nobody_listening() as (host, port):
        proxy, url = "{}:{}".format(*address), f"http://{host}:{port}/"
        done = subprocess.run(
            ["curl", "-sS", "--socks5-hostname", proxy, url],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 97
    assert "(5)" in done.stderr
