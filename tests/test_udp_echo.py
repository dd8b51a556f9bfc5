"""The UDP echo, run as it is: as a process, with IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from aiogaio import QueueFullError, Watcher
from tests.programs import LIMIT, Example, stopped

EXAMPLE = Example("udp_echo.py")
running, load = EXAMPLE.running, EXAMPLE.load


@contextlib.contextmanager
def client(address: tuple[str, int]) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT)
        sock.connect(address)
        yield sock


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_datagram_goes_back_to_its_sender(host: str, loop: str) -> None:
    sizes = [1, 0, 100, 1472, 7]
    with running("--host", host, "--loop", loop) as (process, address):
        assert address[0] == host
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client(address)) for _ in range(10)]
            for size in sizes:
                sent = [random.randbytes(size) for _ in clients]
                for sock, data in zip(clients, sent, strict=True):
                    sock.send(data)
                for sock, data in zip(clients, sent, strict=True):
                    assert sock.recv(1 << 16) == data
            clients[0].send(bytes(65507))  # the longest that IPv4 has; more at once may get lost
            assert clients[0].recv(1 << 16) == bytes(65507)
        assert stopped(process) == (
            "51 datagrams received: 0 were too long, 0 dropped, 0 not sendable\n"
        )


def test_one_that_is_too_long_is_counted_and_no_part_of_it_is_sent() -> None:
    with running("--size", "100") as (process, address), client(address) as sock:
        for size in (101, 100, 5000, 1):
            sock.send(bytes(size))
        assert len(sock.recv(1 << 16)) == 100  # it is one socket: they come in order
        assert len(sock.recv(1 << 16)) == 1
        assert stopped(process, by=signal.SIGINT) == (
            "4 datagrams received: 2 were too long, 0 dropped, 0 not sendable\n"
        )


class Failing:
    """A watcher on which sending fails as it is told, once for each entry; and then works."""

    def __init__(self, watcher: Watcher, failures: list[Any]) -> None:
        self.watcher, self.failures = watcher, failures
        self.recvfrom = watcher.recvfrom

    def __aiter__(self) -> Watcher:
        return self.watcher

    def sendto(self, sock: Any, data: bytes, address: Any, *, silent: bool) -> None:
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            address = failure
        self.watcher.sendto(sock, data, address, silent=silent)


async def test_what_cannot_be_sent_is_counted_and_the_others_go_on(watcher: Watcher) -> None:
    echo = load().Echo()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    failing = Failing(watcher, [QueueFullError("full"), ("127.0.0.1", 0)])  # EINVAL: no port
    serving = asyncio.create_task(echo.serve(failing, sock))
    with client(address) as asking:
        for text in (b"dropped", b"not sendable", b"sent"):
            asking.send(text)
        assert await asyncio.to_thread(asking.recv, 100) == b"sent"
        async with asyncio.timeout(LIMIT):
            while not echo.failed:
                await asyncio.sleep(0.001)
    serving.cancel()
    await asyncio.wait([serving])
    assert (echo.received, echo.truncated, echo.dropped, echo.failed) == (3, 0, 1, 1)
