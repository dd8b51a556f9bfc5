"""The push server, run as it is: as a process, with subscribers in another one.

Run as a program, this file is those subscribers: plain blocking sockets and one epoll, told by JSON
objects on standard input, one a line, each answered by one on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiogaio import Connection, EndOfStreamError, Watcher
from tests.programs import LIMIT, Example, connect, environment, loops, questions, stopped

EXAMPLE = Example("push_server.py")
running, load = EXAMPLE.running, EXAMPLE.load

SOURCES = [f"127.0.0.{host}" for host in range(2, 66)]  # no shortage of ephemeral ports
NO_NOISE = ("--interval", "0", "--report", "0")


# --- subscribers ---------------------------------------------------------------------------------


class Subscribers:
    """The subscribers in their own process. Those with an odd lot are deaf: they never receive."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, dict):
            raise AssertionError(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Program:
    """The other side of :class:`Subscribers`; its public methods are what they may be told."""

    def __init__(self) -> None:
        self._ears: dict[int, socket.socket] = {}
        self._deaf: list[socket.socket] = []
        self._epoll = select.epoll()

    def connect(self, address: list[Any], count: int, *, deaf: bool = False) -> int:
        for _ in range(count):
            source = SOURCES[(len(self._ears) + len(self._deaf)) % len(SOURCES)]
            sock = socket.socket()
            sock.settimeout(LIMIT)
            if deaf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind((source, 0))
            sock.connect((address[0], address[1]))
            # A close sends a RST, not a FIN: no TIME_WAIT stays behind.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if deaf:
                self._deaf.append(sock)
            else:
                sock.setblocking(False)
                self._ears[sock.fileno()] = sock
                self._epoll.register(sock, select.EPOLLIN)
        return count

    def hear(self, line: str, within: float) -> int:
        """Wait until every one that hears has received just this line; how many they are."""
        missing = dict.fromkeys(self._ears, line.encode() + b"\n")
        end = time.monotonic() + within
        while missing:
            events = self._epoll.poll(max(0.0, end - time.monotonic()))
            if not events:
                raise TimeoutError(f"{len(missing)} of {len(self._ears)} have not received it")
            for fd, _ in events:
                expected = missing.get(fd, b"")
                got = self._ears[fd].recv(1 << 20)
                if not got or not expected.startswith(got):
                    raise ValueError(f"not what was sent: {got[:80]!r}")
                missing[fd] = expected[len(got) :]
                if not missing[fd]:
                    del missing[fd]
        return len(self._ears)

    def leave(self, count: int) -> int:
        for fd in list(self._ears)[:count]:
            self._ears.pop(fd).close()
        return count


def program() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    those = Program()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(those, arguments.pop("do"))(**arguments)
        except (OSError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


@pytest.fixture
def subscribers() -> Iterator[Subscribers]:
    those = Subscribers()
    yield those
    those.close()


class Publisher:
    """A subscriber that says things. What it is pushed in between, it passes over."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address, timeout=LIMIT)
        self._lines = self._sock.makefile("r")

    def say(self, text: str) -> None:
        self._sock.sendall(f"PUB {text}\n".encode())
        self.hear(text)

    def hear(self, text: str) -> None:
        while (line := self._lines.readline()) != text + "\n":
            assert line, "the server has hung up"

    def status(self) -> dict[str, int]:
        self._sock.sendall(b"STAT\n")
        while "subscribers=" not in (line := self._lines.readline()):
            assert line, "the server has hung up"
        return parsed(line)

    def wait_for(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        end = time.monotonic() + LIMIT
        while not condition(status := self.status()):
            assert time.monotonic() < end, f"it did not come to pass: {status}"
            time.sleep(0.01)
        return status

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


@contextlib.contextmanager
def publisher(address: tuple[str, int]) -> Iterator[Publisher]:
    with contextlib.closing(Publisher(address)) as that:
        yield that


def parsed(status: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", status)}


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_with_its_status(loop: str, by: signal.Signals) -> None:
    with (
        running("--loop", loop, *NO_NOISE) as (process, address),
        socket.create_connection(address, timeout=LIMIT) as client,
        publisher(address) as source,
    ):
        source.wait_for(lambda status: status["subscribers"] == 2)
        assert parsed(stopped(process, by))["subscribers"] == 2
        assert client.recv(1) == b""


@pytest.mark.parametrize("loop", loops())
def test_a_signal_ends_it_in_order_while_it_has_questions_to_answer(loop: str) -> None:
    with contextlib.ExitStack() as stack:
        process, address = stack.enter_context(running("--loop", loop, *NO_NOISE))
        clients = [stack.enter_context(connect(address)) for _ in range(16)]
        stack.enter_context(questions(clients, b"STAT\n" * 20))
        assert parsed(stopped(process))["subscribers"] <= len(clients)


def test_everybody_gets_the_time_whoever_else_is_connected() -> None:
    arguments = ("--interval", "0.2", "--report", "0")
    with (
        running(*arguments) as (process, address),
        contextlib.ExitStack() as stack,
    ):
        reader, _deaf, leaving = (
            stack.enter_context(socket.create_connection(address, timeout=LIMIT)) for _ in range(3)
        )
        source = stack.enter_context(publisher(address))
        source.wait_for(lambda status: status["subscribers"] == 4)
        leaving.close()
        source.wait_for(lambda status: status["subscribers"] == 3)
        ticks = stack.enter_context(reader.makefile("r"))
        for tick in [ticks.readline() for _ in range(3)]:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", tick)
        assert source.status()["dropped"] == 0  # who leaves was not too slow
        stopped(process)


def test_it_prints_its_status_line_now_and_again() -> None:
    arguments = ("--interval", "0", "--report", "0.05")
    with running(*arguments) as (process, address), publisher(address):
        assert process.stdout is not None
        for line in iter(process.stdout.readline, ""):
            if parsed(line)["subscribers"] == 1:
                break
        assert re.fullmatch(r"subscribers=1 messages=0 sent=0 missed=0 dropped=0\n", line)
        stopped(process)


def test_a_line_that_is_no_command_is_answered_and_one_too_long_ends_the_connection() -> None:
    with running(*NO_NOISE) as (process, address):
        with socket.create_connection(address, timeout=LIMIT) as client:
            client.sendall(b"HELLO\r\nSTAT\r\n")
            with client.makefile("rb") as lines:
                assert lines.readline() == b"? PUB text, or STAT\n"
                assert lines.readline().startswith(b"subscribers=1 ")
        with socket.create_connection(address, timeout=LIMIT) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x" * 200_000)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        stopped(process)


def broadcast(
    subscribers: Subscribers,
    hearing: int,
    deaf: int,
    *,
    size: int = 60_000,
    patience: float = 2,
    within: float = LIMIT,
) -> None:
    """Every one that reads gets every message; the deaf are dropped by their deadline, and counted.

    The messages are more than what the system holds for a deaf one.
    """
    messages = 250_000 // size
    arguments = ("--patience", str(patience), *NO_NOISE)
    with running(*arguments) as (process, address), publisher(address) as source:
        subscribers.ask("connect", address=address, count=hearing)
        subscribers.ask("connect", address=address, count=deaf, deaf=True)
        everybody = hearing + deaf + 1
        source.wait_for(lambda status: status["subscribers"] == everybody)
        for number in range(messages):
            text = f"{number} " + "x" * size
            source.say(text)
            assert subscribers.ask("hear", line=text, within=within) == hearing
        status = source.wait_for(lambda status: status["dropped"] == deaf)
        assert status["subscribers"] == hearing + 1
        assert status["messages"] == messages
        assert status["sent"] >= messages * (hearing + 1)
        assert (status["missed"] > 0) == (deaf > 0)
        subscribers.ask("leave", count=hearing // 2)
        source.wait_for(lambda status: status["subscribers"] == hearing - hearing // 2 + 1)
        source.say("the last")
        assert subscribers.ask("hear", line="the last", within=within) == hearing - hearing // 2
        assert parsed(stopped(process))["dropped"] == deaf


def test_a_broadcast_reaches_all_that_read_and_drops_those_that_do_not(
    subscribers: Subscribers,
) -> None:
    broadcast(subscribers, hearing=300, deaf=20)


def test_nobody_misses_anything_where_all_read(subscribers: Subscribers) -> None:
    broadcast(subscribers, hearing=100, deaf=0)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_broadcast_to_ten_thousand(subscribers: Subscribers) -> None:
    broadcast(subscribers, hearing=9_900, deaf=100, size=8_000, patience=20, within=90)


async def test_one_write_waits_for_who_does_not_read_whatever_comes(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that read get all of it meanwhile, in order; then the deaf one is dropped."""
    push_server = load()
    monkeypatch.setattr(push_server, "KERNEL", 16384)
    listener = push_server.listen("127.0.0.1", 0)
    address = listener.getsockname()
    feed = push_server.Feed(watcher, patience=0.5)
    tasks = [asyncio.create_task(feed.serve(listener)), asyncio.create_task(feed.broadcast())]
    reader, writer = await asyncio.open_connection(*address)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(address)
    try:
        async with asyncio.timeout(LIMIT):
            while len(feed.subscribers) < 2:
                await asyncio.sleep(0)
            number = 0
            while feed.dropped == 0:
                message = b"%d " % number + b"x" * 50_000 + b"\n"
                feed.queue.put_nowait((message, None))
                assert await reader.readexactly(len(message)) == message
                number += 1
                # the accept, and a read and at most one write for each of the two
                assert watcher.statistics().pending <= 5
        assert len(feed.subscribers) == 1
        assert feed.missed >= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        deaf.close()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_messages_in_one_burst_are_missed_by_nobody_who_could_take_them(
    watcher: Watcher,
) -> None:
    """The broadcast goes by what is sent, not by which results were collected since."""
    push_server = load()
    listener = push_server.listen("127.0.0.1", 0)
    feed = push_server.Feed(watcher, patience=5)
    for number in range(50):
        feed.queue.put_nowait((b"%d\n" % number, None))
    serving = asyncio.create_task(feed.serve(listener))
    reader, writer = await asyncio.open_connection(*listener_address(watcher, listener))
    try:
        async with asyncio.timeout(LIMIT):
            while not feed.subscribers:
                await asyncio.sleep(0)
            task = asyncio.create_task(feed.broadcast())
            assert await reader.readexactly(140) == b"".join(b"%d\n" % n for n in range(50))
            task.cancel()
            await asyncio.wait([task])
        assert (feed.messages, feed.missed) == (50, 0)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_who_leaves_while_a_broadcast_is_under_way_does_not_end_it(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_server = load()
    monkeypatch.setattr(push_server, "SLICE", 1)
    listener = push_server.listen("127.0.0.1", 0)
    feed = push_server.Feed(watcher, patience=5)
    tasks = [asyncio.create_task(feed.serve(listener))]
    pairs = []
    try:
        async with asyncio.timeout(LIMIT):
            for number in range(3):
                address = listener_address(watcher, listener)
                pairs.append(await asyncio.open_connection(*address))
                while len(feed.subscribers) <= number:
                    await asyncio.sleep(0)
            feed.queue.put_nowait((b"first\n", None))
            tasks.append(asyncio.create_task(feed.broadcast()))
            while feed.messages == 0:
                await asyncio.sleep(0)
            *_, last = feed.subscribers  # whose turn has not come yet
            assert feed.subscribers[last] is None
            feed.leave(last, EndOfStreamError())
            feed.queue.put_nowait((b"second\n", None))
            for reader, _ in pairs[:2]:
                assert await reader.readexactly(13) == b"first\nsecond\n"
            assert await pairs[2][0].read() == b""
        assert (len(feed.subscribers), feed.dropped) == (2, 0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for _, writer in pairs:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def listener_address(watcher: Watcher, listener: socket.socket) -> Any:
    connection: Connection = watcher.delegate(listener)
    return connection.sockname


if __name__ == "__main__":
    program()
