"""The chat server as a process, with clients that this project did not write.

They are the ``websockets`` library, and where ``clients`` are asked for a Redis server, and
Chromium, which is steered by its DevTools protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import (
    LIMIT,
    Address,
    Example,
    address_in,
    loops,
    open_sockets,
    questions,
    stopped,
    wait_until,
)
from tests.support import reset

pytest.importorskip("wsproto")
pytest.importorskip("websockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

EXAMPLE = Example("chat_server.py")
running, started, ended = EXAMPLE.running, EXAMPLE.started, EXAMPLE.ended
load = EXAMPLE.load

PICTURES = os.environ.get("CHAT_PICTURES")  # a directory for what the browser has shown


def member(address: Address, room: str = "a", **options: Any) -> ClientConnection:
    """One that is in the room once this returns: the server answers after it has entered."""
    client: ClientConnection = connect(
        f"ws://{address[0]}:{address[1]}/ws/{room}", proxy=None, open_timeout=LIMIT, **options
    )
    return client


def heard(client: ClientConnection) -> str:
    message = client.recv(timeout=LIMIT)
    assert isinstance(message, str)
    return message


def close_code(client: ClientConnection) -> int:
    """The code with which the server ends the connection."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            client.recv(timeout=LIMIT)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def get(address: Address, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer, which ends the connection."""
    connection = http.client.HTTPConnection(*address, timeout=LIMIT)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def stat(address: Address) -> dict[str, int]:
    found: dict[str, int] = json.loads(get(address, "/stat")[2])
    return found


def wait_for_stat(address: Address, **expected: int) -> None:
    end = time.monotonic() + LIMIT
    while not expected.items() <= (found := stat(address)).items():
        assert time.monotonic() < end, f"it did not come to pass: {found}"
        time.sleep(0.01)


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": base64.b64encode(bytes(16)).decode(),
}


def upgrade() -> bytes:
    """The request of a member."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in HANDSHAKE.items()]
    return "\r\n".join(["GET /ws/a HTTP/1.1", "Host: here", *lines, "", ""]).encode()


def raw_member(address: Address, more: bytes = b"", receive_buffer: int = 0) -> socket.socket:
    """A member that does nothing by itself; ``more`` is sent in one go with its request."""
    sock = socket.socket()
    sock.settimeout(LIMIT)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(address)
    sock.sendall(upgrade() + more)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return sock


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A short frame as a client sends it, with a mask that changes nothing."""
    assert len(payload) < 126
    head = bytes([opcode | fin << 7, len(payload) | masked << 7])
    return head + bytes(4) * masked + payload


def to_the_end(sock: socket.socket) -> bytes:
    """All that still comes, up to the end; a reset is none."""
    received = b""
    while part := sock.recv(65536):
        received += part
    return received


def closed_with(code: int, received: bytes) -> bool:
    """Whether a close frame of this code is the last that has come."""
    found = re.search(rb"\x88([\x02-\x7d])(..)[^\x88]*\Z", received, re.S)
    return found is not None and struct.unpack("!H", found[2])[0] == code


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    """One server for all tests that need nothing special; its end is in order as well."""
    with running("--longest", "1000") as (process, address):
        yield address
        stopped(process)


# --- the program ---------------------------------------------------------------------------------


def test_a_bus_that_is_none_is_told_in_one_line() -> None:
    pytest.importorskip("redis")
    done = ended("--port", "0", "--bus", "http://127.0.0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"--bus http://127.0.0.1: Redis URL must specify .*\n", done.stderr)


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_the_members_are_told(loop: str, by: signal.Signals) -> None:
    with (
        running("--loop", loop) as (process, address),
        member(address) as one,
        member(address, "b") as other,
    ):
        before = open_sockets(process)
        with socket.create_connection(address, timeout=LIMIT) as silent:
            wait_until(lambda: open_sockets(process) > before)  # else the system resets it
            assert stopped(process, by) == ""
            assert close_code(one) == close_code(other) == 1001
            assert silent.recv(1) == b""


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("opcode", [9, 1], ids=["pings", "messages"])
def test_a_signal_ends_it_in_order_while_it_has_plenty_to_do(loop: str, opcode: int) -> None:
    with contextlib.ExitStack() as stack:
        process, address = stack.enter_context(running("--loop", loop))
        members = [stack.enter_context(raw_member(address)) for _ in range(6)]
        stack.enter_context(questions(members, frame(opcode, b"?") * 1000))
        assert stopped(process) == ""


# --- HTTP ----------------------------------------------------------------------------------------


def test_the_page_is_served_and_names_nothing_from_elsewhere(server: Address) -> None:
    status, headers, body = get(server, "/?room=x")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert body.startswith(b"<!doctype html>")
    assert not re.search(rb"(src|href)=.?https?:", body)


def test_what_is_no_page_is_refused(server: Address) -> None:
    assert get(server, "/elsewhere")[0] == 404
    assert get(server, "/ws/no%20room", **HANDSHAKE)[0] == 404
    assert get(server, f"/ws/{'x' * 65}", **HANDSHAKE)[0] == 404
    status, headers, _ = get(server, "/", "POST")
    assert (status, headers["Allow"]) == (405, "GET")
    assert get(server, "/", padding="x" * 20_000)[0] == 431


@pytest.mark.parametrize("missing", list(HANDSHAKE))
def test_a_handshake_without_one_of_its_headers_is_a_bad_request(
    server: Address, missing: str
) -> None:
    headers = {name: value for name, value in HANDSHAKE.items() if name != missing}
    assert get(server, "/ws/a", **headers)[0] == 400


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without a host
        b"GET /ws/a HTTP/1.1\r\nHost: a..b\xff\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_no_request_is_a_bad_one(server: Address, request_bytes: bytes) -> None:
    with socket.create_connection(server, timeout=LIMIT) as client:
        client.sendall(request_bytes)
        assert to_the_end(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_another_version_of_the_protocol_is_told_which_is_spoken(server: Address) -> None:
    status, headers, _ = get(server, "/ws/a", **HANDSHAKE | {"Sec_WebSocket_Version": "8"})
    assert (status, headers["Sec-WebSocket-Version"]) == (426, "13")
    with pytest.raises(InvalidStatus):
        member(server, "not/a/room")


def test_who_sends_no_request_is_let_go() -> None:
    with (
        running("--patience", "0.1") as (process, address),
        socket.create_connection(address, timeout=LIMIT) as client,
    ):
        client.sendall(b"GET / HT")
        assert client.recv(1) == b""
        stopped(process)


# --- rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", loops())
def test_all_of_a_room_hear_what_is_said_and_nobody_else(loop: str) -> None:
    with (
        running("--loop", loop) as (process, address),
        contextlib.ExitStack() as all_,
    ):
        here = [all_.enter_context(member(address, "here")) for _ in range(10)]
        there = all_.enter_context(member(address, "there"))
        assert stat(address)["rooms"] == 2
        for number in range(50):
            here[number % 2].send(f"grüße {number}")
            for one in here:
                assert heard(one) == f"grüße {number}"
        there.send("alone")
        assert heard(there) == "alone"
        found = stat(address)
        assert (found["members"], found["messages"]) == (11, 51)
        stopped(process)


def test_a_member_that_leaves_or_breaks_off_leaves_the_room(server: Address) -> None:
    with member(server, "leaving") as stays:
        before = stat(server)["members"]
        with member(server, "leaving") as leaves:
            leaves.send("bye")
            assert heard(leaves) == heard(stays) == "bye"
        wait_for_stat(server, members=before)
        reset(raw_member(server))
        wait_for_stat(server, members=before)
        stays.send("alone")
        assert heard(stays) == "alone"
    wait_for_stat(server, rooms=0)


def test_a_message_in_parts_is_said_whole_with_its_characters_torn(server: Address) -> None:
    whole = "grüße 🙂".encode()
    parts = [whole[at : at + 1] for at in range(len(whole))]
    with member(server) as client, raw_member(server) as torn:
        client.send(["a", "", "b"])
        assert heard(client) == "ab"
        for number, part in enumerate(parts):
            opcode = 0 if number else 1
            torn.sendall(frame(opcode, part, fin=number == len(parts) - 1))
            torn.sendall(frame(9, b"in between"))
        assert heard(client) == whole.decode()


def test_frames_that_come_with_the_request_are_not_lost(server: Address) -> None:
    with (
        member(server) as client,
        raw_member(server, frame(1, b"at once") + frame(1, b"and again")),
    ):
        assert [heard(client), heard(client)] == ["at once", "and again"]


def test_no_compression_is_agreed_on(server: Address) -> None:
    with member(server, compression="deflate") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


def test_a_ping_is_answered(server: Address) -> None:
    with member(server) as client:
        assert client.ping("anybody?").wait(LIMIT)


# --- floods --------------------------------------------------------------------------------------


class FakeConnection:
    """What the chat needs of one."""

    closed = False
    context: Any

    def __init__(self) -> None:
        self.heard: list[str] = []


class Recorder:
    """In place of a watcher: who was sent what, and who is read."""

    def __init__(self) -> None:
        self.reads: list[FakeConnection] = []

    def write(self, conn: FakeConnection, data: bytes, **_: Any) -> None:
        if data.startswith(b"\x81"):  # a short text message
            conn.heard.append(data[2:].decode())

    def read(self, conn: FakeConnection, **_: Any) -> None:
        self.reads.append(conn)


async def test_a_flood_is_handled_in_shares_between_which_others_have_their_turn() -> None:
    module = load()
    share = module.AT_ONCE
    assert f"at most {share} frames of a member" in (module.__doc__ or "")
    watcher = Recorder()
    chat = module.Chat(watcher, argparse.Namespace(patience=1, idle=1, longest=1000), None)
    one, two, other = members = [FakeConnection() for _ in range(3)]
    for conn in members:
        conn.context = module.Client()
        chat.received(conn, conn.context, upgrade())
    watcher.reads.clear()
    said = {name: [f"{name}{number}" for number in range(10 * share)] for name in "ab"}
    for conn, texts in zip((one, two), said.values(), strict=True):
        chat.received(conn, conn.context, b"".join(frame(1, text.encode()) for text in texts))
    assert 0 < len(other.heard) <= 2 * share
    assert watcher.reads == []
    task = asyncio.create_task(chat.catch_up())
    try:
        turns = 0
        while len(watcher.reads) < 3:
            before = len(other.heard)
            await asyncio.sleep(0)
            assert len(other.heard) - before <= share
            turns += 1
            if turns == 5:
                chat.received(other, other.context, frame(1, b"now"))
            assert turns < 100, "they are not read again"
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert other.heard.index("now") < 7 * share  # two shares at once, and one in each turn
    for name, texts in said.items():
        assert [text for text in other.heard if text.startswith(name)] == texts
    assert set(watcher.reads) == set(members)
    assert len(other.heard) == 20 * share + 1


@pytest.mark.parametrize("loop", loops())
def test_of_a_flood_nothing_is_lost_and_what_is_empty_is_not_said(loop: str) -> None:
    said = [str(number) for number in range(2000)]
    empty = frame(1, b"") + frame(1, b"", fin=False) + frame(0, b"")
    flood = b"".join(empty + frame(1, text.encode()) for text in said)
    with (
        running("--loop", loop) as (process, address),
        member(address) as client,
        raw_member(address, flood),
    ):
        assert [heard(client) for _ in said] == said
        assert stat(address)["messages"] == len(said)
        stopped(process)


# --- what is not allowed -------------------------------------------------------------------------


def test_a_message_that_is_too_long_is_refused_whole_or_in_parts(server: Address) -> None:
    with member(server) as client:
        client.send("ü" * 500)  # as long as may be
        assert heard(client) == "ü" * 500
        client.send("x" * 1001)
        assert close_code(client) == 1009
    for text in (["x" * 400] * 3, "x" * 1_000_000):  # in parts; and more than is looked at
        with member(server) as client:
            with contextlib.suppress(ConnectionClosed):  # refused before it is all sent
                client.send(text)
            assert close_code(client) == 1009


def test_the_reason_reaches_who_first_sends_all_and_then_listens(server: Address) -> None:
    """A connection that is closed with bytes unread is reset, and what was sent last is lost."""
    with raw_member(server) as client:
        client.sendall(b"\x81\xff" + struct.pack("!Q", 5_000_000) + bytes(4))
        for _ in range(50):
            client.sendall(b"x" * 100_000)
        assert closed_with(1009, to_the_end(client))


def test_what_is_no_text_is_refused(server: Address) -> None:
    with member(server) as client:
        client.send(b"\x00\x01")
        assert close_code(client) == 1003


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(1, b"\xff"), 1007),
        (frame(1, "ü".encode()[:1], fin=False) + frame(0, b"x"), 1007),
        (frame(1, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(0, b"x"), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(8, b"\x03\xe8\xff"), 1007),
        (frame(8, b"x"), 1002),
        (frame(8, struct.pack("!H", 1000)), 1000),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_frame_that_ends_the_connection_has_its_code(
    server: Address, frames: bytes, code: int
) -> None:
    with raw_member(server) as client, member(server) as other:
        client.sendall(frames + frame(1, b"too late"))
        assert closed_with(code, to_the_end(client))
        other.send("next")
        assert heard(other) == "next"


def test_who_asks_and_asks_and_takes_no_answers_is_dropped() -> None:
    flood = frame(9, b"x" * 100) * 1000
    with (
        running("--patience", "0.5") as (process, address),
        raw_member(address, receive_buffer=4096) as client,
    ):
        with pytest.raises(ConnectionError):
            for _ in range(1000):  # 100 MB
                client.sendall(flood)
        wait_for_stat(address, members=0, slow=1)
        stopped(process)


# --- deadlines -----------------------------------------------------------------------------------


def test_who_is_silent_is_asked_and_without_an_answer_dropped() -> None:
    with (
        running("--idle", "1") as (process, address),
        member(address, ping_interval=None) as alive,  # the library answers pings by itself
        raw_member(address) as dead,
    ):
        assert to_the_end(dead) == b"\x89\x00"  # one ping
        wait_for_stat(address, members=1, silent=1)
        time.sleep(2.5)  # longer than anybody may be silent, with the ping that asks why
        alive.send("still here")
        assert heard(alive) == "still here"
        assert stat(address)["silent"] == 1
        stopped(process)


def test_a_slow_reader_is_dropped_and_the_others_do_not_wait_for_it() -> None:
    text = "x" * 60_000
    with (
        running("--patience", "1") as (process, address),
        member(address) as client,
        raw_member(address, receive_buffer=4096),
        member(address) as other,
    ):
        for _ in range(10):  # more than the system holds for the slow one, less than its queue
            client.send(text)
            assert heard(client) == heard(other) == text
        wait_for_stat(address, slow=1, members=2)
        client.send("on")
        assert heard(other) == "on"
        stopped(process)


def test_a_reader_for_whom_too_much_waits_is_dropped_before_its_deadline() -> None:
    text = "x" * 60_000
    with (
        running("--patience", "1000") as (process, address),
        member(address) as client,
        raw_member(address, receive_buffer=4096),
    ):
        for _ in range(30):
            client.send(text)
            assert heard(client) == text
        wait_for_stat(address, slow=1, members=1)
        stopped(process)


# --- the bus -------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is not installed"
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextlib.contextmanager
def riding(bus: str, loop: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    arguments = ("--port", "0", "--loop", loop, "--bus", bus)
    with started(*arguments) as process:
        try:
            yield process, address_in(line(process))
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def connected(process: subprocess.Popen[str]) -> None:
    """The bus is there; perhaps it came later than the server."""
    while (told := line(process)) != "bus: connected\n":
        assert told, "the server has ended"


@pytest.mark.clients
@pytest.mark.parametrize("loop", loops())
def test_rooms_of_several_processes_are_one_and_outlive_the_bus(loop: str) -> None:
    pytest.importorskip("redis")
    port = free_port()
    bus = f"redis://127.0.0.1:{port}"
    lost = r"bus: .*; rooms are local, next try each 2 s\n"
    with (
        riding(bus, loop) as (first, here),
        riding(bus, loop) as (second, there),
        member(here) as one,
        member(there) as other,
    ):
        assert re.fullmatch(lost, line(first)) and re.fullmatch(lost, line(second))
        one.send("local")  # before there is a bus
        assert heard(one) == "local"
        for _ in range(2):
            with redis_server(port):
                assert line(first) == line(second) == "bus: connected\n"
                assert stat(here)["bus"] is stat(there)["bus"] is True
                for number in range(100):
                    (one, other)[number % 2].send(f"grüße {number}")
                    assert heard(one) == heard(other) == f"grüße {number}"
            assert re.fullmatch(lost, line(first)) and re.fullmatch(lost, line(second))
            one.send("apart")
            other.send("as well")
            assert (heard(one), heard(other)) == ("apart", "as well")
        assert stopped(first) == stopped(second) == ""


@pytest.mark.clients
def test_a_burst_goes_over_the_bus_whole_and_in_order() -> None:
    pytest.importorskip("redis")
    port = free_port()
    bus = f"redis://127.0.0.1:{port}"
    with (
        redis_server(port),
        riding(bus, "asyncio") as (first, here),
        riding(bus, "asyncio") as (second, there),
    ):
        connected(first)
        connected(second)
        with member(here) as one, member(there) as other:
            for number in range(2000):
                one.send(str(number))
            for client in (other, one):
                assert [heard(client) for _ in range(2000)] == [str(n) for n in range(2000)]
        stopped(first)
        stopped(second)


@pytest.mark.clients
def test_what_a_frozen_bus_does_not_take_is_said_in_the_room_at_least() -> None:
    pytest.importorskip("redis")
    port = free_port()
    with (
        redis_server(port) as bus,
        riding(f"redis://127.0.0.1:{port}", "asyncio") as (process, address),
    ):
        connected(process)
        with member(address) as client:
            bus.send_signal(signal.SIGSTOP)
            client.send("anybody?")
            assert heard(client) == "anybody?"
            assert "Timeout" in line(process)
            bus.send_signal(signal.SIGCONT)
            assert line(process) == "bus: connected\n"
            client.send("together")
            while heard(client) != "together":  # what was thawed may come again
                pass
            stopped(process)


# --- the page ------------------------------------------------------------------------------------


class Browser:
    """Chromium without a window, by the DevTools protocol."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._numbers = itertools.count(1)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": params}
        self._devtools.send(json.dumps(request | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self._devtools.recv(timeout=LIMIT))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def page(self, url: str, *, dark: bool = False, width: int = 760, height: int = 640) -> Page:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        target = target["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Page.navigate", session, url=url)
        return Page(self, session)


class Page:
    """One page, in a profile of its own."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def evaluate(self, expression: str) -> Any:
        answer = self._browser.call(
            "Runtime.evaluate", self._session, expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, what: str, value: Any) -> None:
        end = time.monotonic() + LIMIT
        while getattr(self, what) != value:
            assert time.monotonic() < end, self.evaluate("document.body?.innerText")
            time.sleep(0.02)

    @property
    def state(self) -> Any:
        return self.evaluate("document.getElementById('state')?.textContent")

    @property
    def said(self) -> Any:
        return self.evaluate("[...document.querySelectorAll('#log p')].map(p => p.textContent)")

    @property
    def heads(self) -> list[str]:
        heads = "[...document.querySelectorAll('#log small')].map(e => e.textContent)"
        return [head.split(" ·")[0] for head in self.evaluate(heads)]

    def say(self, name: str, text: str) -> None:
        """As a person does: by the keys."""
        for field, value in (("name", name), ("text", text)):
            self.evaluate(f"document.getElementById('{field}').focus()")
            self.evaluate(f"document.getElementById('{field}').select()")
            self._browser.call("Input.insertText", self._session, text=value)
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self._browser.call("Input.dispatchKeyEvent", self._session, type=kind, **key)

    def picture(self, name: str) -> None:
        shot = self._browser.call("Page.captureScreenshot", self._session)["data"]
        if PICTURES:
            Path(PICTURES, name).write_bytes(base64.b64decode(shot))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "chromium is not installed"
    arguments = (
        "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-port=0 "
        f"--user-data-dir={tmp_path} about:blank"
    )
    with subprocess.Popen(
        [program, *arguments.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            told = tmp_path / "DevToolsActivePort"
            end = time.monotonic() + LIMIT
            while not told.exists() or len(told.read_text().split()) < 2:
                assert process.poll() is None and time.monotonic() < end, "it does not come up"
                time.sleep(0.02)
            port, path = told.read_text().split()
            url = f"ws://127.0.0.1:{port}{path}"
            with connect(url, proxy=None, max_size=None, compression=None) as devtools:
                browser = Browser(devtools)
                yield browser
                browser.call("Browser.close")
            process.wait(LIMIT)
        finally:
            process.kill()


@pytest.mark.clients
def test_two_pages_in_a_browser_talk_with_one_another(browser: Browser) -> None:
    hostile = "<img src=x onerror='document.title=1'> & <b>so on</b>"
    with running() as (process, address):
        url = "http://{}:{}/?room=tea".format(*address)
        ada, ben = browser.page(url), browser.page(url, dark=True, width=420)
        for page in (ada, ben):
            page.wait_for("state", "connected")
        ben.picture("empty.png")
        said: list[str] = []
        for page, name, text in (
            (ada, "Ada", "Good morning! Is anybody here?"),
            (ben, "Ben", "I am. Tea is ready."),
            (ben, "Ben", "And there is cake, if you like some, a good reason to come."),
            (ada, "Ada", "On my way"),
            (ada, "Ada", hostile),
        ):
            page.say(name, text)
            said.append(text)
            ada.wait_for("said", said)
            ben.wait_for("said", said)
        with member(address, "tea") as program:
            program.send("plain text")
        said.append("plain text")
        for page in (ada, ben):
            page.wait_for("said", said)
            assert page.evaluate("document.title") == "#tea"
            assert page.evaluate("document.querySelectorAll('#log img').length") == 0
        assert ada.heads == ["you", "Ben", "you", "somebody"]
        assert ben.heads == ["Ada", "you", "Ada", "somebody"]
        ada.picture("chat.png")
        ben.picture("chat-dark.png")
        stopped(process)
        for page in (ada, ben):
            page.wait_for("state", "reconnecting")
        with started("--port", str(address[1])) as successor:
            line(successor)
            for page in (ada, ben):
                page.wait_for("state", "connected")
            stopped(successor)
