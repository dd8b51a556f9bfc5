"""examples/http_server.py: as a process with real clients, and its connections byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.programs import (
    LIMIT,
    Address,
    Example,
    Served,
    connect,
    receive_all,
    resident,
    talk,
    wait_until,
)
from tests.support import reset

pytest.importorskip("httptools")

EXAMPLE = Example("http_server.py")
running, load = EXAMPLE.serving, EXAMPLE.load

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
JSON = b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
NONE = b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
TEXT = b"Hello, world!"


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    with running("--loop", request.param) as served:
        yield served


@pytest.fixture
def address(server: Served) -> Address:
    return server.address


def parse(data: bytes, *, heads: tuple[int, ...] = ()) -> list[tuple[int, dict[str, str], bytes]]:
    """All answers in it: status, headers, body; those numbered in `heads` have no body."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if len(answers) in heads else int(headers["content-length"])
        assert len(data) >= length, "an answer is cut"
        answers.append((int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return answers


def statuses(data: bytes, *, heads: tuple[int, ...] = ()) -> list[int]:
    return [status for status, _, _ in parse(data, heads=heads)]


def flood(client: socket.socket) -> int:
    """Send requests until no more are taken; how many bytes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.setblocking(False)
    batch, sent = GET * 1000, 0
    while select.select([], [client], [], 1.0)[1]:
        try:
            sent += client.send(batch[sent % len(GET) :])
        except BlockingIOError:
            continue
        except ConnectionError:  # the server has had enough
            break
        assert sent < 64 << 20, "it reads on and on"
    client.settimeout(LIMIT)
    return sent


# --- Requests and answers ------------------------------------------------------------------------


def test_text_json_and_404_over_one_connection(address: Address) -> None:
    with connect(address) as client:
        for request, status, kind, body in [
            (GET, 200, "text/plain; charset=utf-8", TEXT),
            (JSON, 200, "application/json", b'{"message": "Hello, world!"}'),
            (NONE, 404, "text/plain", b"Not found\n"),
            (GET, 200, "text/plain; charset=utf-8", TEXT),
        ]:
            client.sendall(request)
            data = b""
            while not data.endswith(body):
                part = client.recv(65536)
                assert part, data
                data += part
            ((answered, headers, received),) = parse(data)
            assert (answered, headers["content-type"], received) == (status, kind, body)
            assert headers["connection"] == "keep-alive"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])


def test_head_has_the_headers_of_get_and_no_body(address: Address) -> None:
    head, get = parse(talk(address, HEAD + GET), heads=(0,))
    assert (head[0], get[0]) == (200, 200)
    for name in ("content-length", "content-type", "connection"):
        assert head[1][name] == get[1][name]
    assert get[2] == TEXT
    assert statuses(talk(address, NONE.replace(b"GET", b"HEAD") + GET), heads=(0,)) == [404, 200]


@pytest.mark.parametrize("url", [b"/?a=1", b"http://example.org/", b"/?", b"http://example.org"])
def test_page_is_found_by_its_path_alone(address: Address, url: bytes) -> None:
    ((status, _, body),) = parse(talk(address, GET.replace(b" / ", b" %b " % url)))
    assert (status, body) == (200, TEXT)


@pytest.mark.parametrize(
    "request_",
    [
        CLOSE,
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    ],
    ids=["close", "1.0", "upgrade"],
)
def test_last_request_is_answered_and_nothing_after_it(address: Address, request_: bytes) -> None:
    with connect(address) as client:
        client.sendall(GET + request_ + JSON)
        first, last = parse(receive_all(client))  # which ends although we have not
    assert first[1]["connection"] == "keep-alive"
    assert (last[0], last[1]["connection"], last[2]) == (200, "close", TEXT)


def test_http_1_0_may_keep_alive(address: Address) -> None:
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answers = parse(talk(address, request * 2))
    assert [headers["connection"] for _, headers, _ in answers] == ["keep-alive"] * 2


@pytest.mark.parametrize(
    "post",
    [
        POST,
        b"PUT /json HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16000\r\n\r\n" + b"x" * 16000,
    ],
    ids=["length", "chunked", "none", "large"],
)
def test_other_methods_get_405_and_the_connection_goes_on(address: Address, post: bytes) -> None:
    refused, after = parse(talk(address, post + GET))
    assert (refused[0], refused[1]["allow"], after[0]) == (405, "GET, HEAD", 200)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
    ids=["tls", "short", "version", "space", "http2", "smuggled", "lengths"],
)
def test_bad_request_gets_400_behind_the_good_ones(address: Address, bad: bytes) -> None:
    with connect(address) as client:
        client.sendall(GET + JSON + bad)
        answers = parse(receive_all(client))
    assert [status for status, _, _ in answers] == [200, 200, 400]
    assert answers[-1][1]["connection"] == "close"


def test_head_of_the_limit_is_taken_and_an_endless_one_gets_431(address: Address) -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    fits = start + b"x" * (16384 - len(start) - 4) + b"\r\n\r\n"
    assert statuses(talk(address, GET + fits + GET)) == [200] * 3
    with connect(address) as client:
        client.sendall(GET + start + b"x" * 33000)
        assert statuses(receive_all(client)) == [200, 431]
    with connect(address) as client:
        client.sendall(b"GET /" + b"x" * 33000)
        assert statuses(receive_all(client)) == [431]


@pytest.mark.parametrize("framing", [b"Content-Length: 1048576", b"Transfer-Encoding: chunked"])
def test_body_over_the_limit_gets_413_that_a_sending_client_can_read(
    address: Address, framing: bytes
) -> None:
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing)
        client.sendall(b"100000\r\n" * framing.endswith(b"chunked") + b"x" * 1_000_000)
        assert statuses(receive_all(client)) == [413]  # and no reset


# --- How bytes arrive, and leave -----------------------------------------------------------------

PIPELINED = GET + JSON + HEAD + POST + NONE + GET + CLOSE
ANSWERED = [200, 200, 200, 405, 404, 200, 200]


def test_pipelined_requests_split_in_two_anywhere(address: Address) -> None:
    for split in range(1, len(PIPELINED)):
        data = talk(address, PIPELINED[:split], PIPELINED[split:])
        assert statuses(data, heads=(2,)) == ANSWERED, split


class Recorder:
    """In place of a watcher: what is asked of it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ends = 0

    def write(self, _conn: object, data: bytes, *, silent: bool) -> None:
        assert silent
        self.writes.append(data)

    def read(self, _conn: object, *, multishot: bool) -> object:
        assert multishot
        return object()

    def shutdown(self, _conn: object) -> None:
        self.ends += 1


def session(module: ModuleType) -> tuple[Recorder, Any]:
    recorder = Recorder()
    server = module.Server(recorder, None, 30)
    server.answers |= {url: module.answer(b"GET", url, keep=True) for url in module.PAGES}
    return recorder, module.Session(server, SimpleNamespace())


def test_answers_of_one_chunk_are_one_write() -> None:
    recorder, one = session(load())
    one.receive(PIPELINED)
    (data,) = recorder.writes
    assert statuses(data, heads=(2,)) == ANSWERED
    assert recorder.ends == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 64])
def test_answers_do_not_depend_on_the_chunks(size: int) -> None:
    recorder, one = session(load())
    for start in range(0, len(PIPELINED), size):
        one.receive(PIPELINED[start : start + size])
    assert statuses(b"".join(recorder.writes), heads=(2,)) == ANSWERED
    assert recorder.ends == 1


def test_request_is_answered_with_its_last_byte_and_not_before() -> None:
    recorder, one = session(load())
    for byte in GET[:-1]:
        one.receive(bytes([byte]))
    assert recorder.writes == []
    one.receive(GET[-1:])
    assert statuses(b"".join(recorder.writes)) == [200]


def test_many_requests_byte_by_byte_do_not_add_up_to_the_limit() -> None:
    recorder, one = session(load())
    for _ in range(1000):  # 27,000 bytes
        for byte in GET:
            one.receive(bytes([byte]))
    assert statuses(b"".join(recorder.writes)) == [200] * 1000


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_half_close_gets_all_answers_and_then_the_end(address: Address, count: int) -> None:
    assert statuses(talk(address, GET * count)) == [200] * count


def test_half_close_inside_a_request_gets_the_answers_before_it(address: Address) -> None:
    assert statuses(talk(address, GET + GET[:-1])) == [200]


def test_client_that_does_not_read_is_read_no_further_and_then_loses_nothing(
    server: Served,
) -> None:
    process, address = server.process, server.address
    talk(address, GET * 1000)
    before = resident(process)
    with connect(address) as client:
        sent = flood(client)
        grown = resident(process) - before
        assert grown < 8 << 20, grown  # the answers to all that was sent are more
        answered, whole, rest = 0, sent // len(GET), b""
        while answered < whole:
            received = client.recv(1 << 20)
            assert received
            rest += received
            complete = rest.rfind(TEXT) + len(TEXT)
            answered += rest[:complete].count(b"HTTP/1.1 200 OK")
            rest = rest[complete:]
        client.sendall(GET[sent % len(GET) :] if sent % len(GET) else GET)
        client.shutdown(socket.SHUT_WR)
        assert statuses(rest + receive_all(client)) == [200]


def test_reset_and_silent_ends_cost_the_others_nothing(
    server: Served,
) -> None:
    address = server.address
    with connect(address) as other:
        for part in (b"", GET, GET[:10], b"garbage\r\n\r\n", CLOSE):
            client = connect(address)
            client.sendall(part)
            reset(client)
            with connect(address) as client:
                client.sendall(part)
        other.sendall(CLOSE)
        assert statuses(receive_all(other)) == [200]
    wait_until(server.has_no_client)


def test_deadline_is_for_the_silent_and_the_slow_and_not_for_the_busy() -> None:
    with running("--idle", "2") as served, contextlib.ExitStack() as stack:
        began = time.monotonic()
        silent, slow, busy = (stack.enter_context(connect(served.address)) for _ in range(3))
        ended: dict[socket.socket, float] = {}
        slow.sendall(GET[:5])
        while len(ended) < 2:
            assert time.monotonic() < began + LIMIT
            readable, _, _ = select.select({silent, slow} - ended.keys(), [], [], 0.1)
            for client in readable:
                ended[client] = time.monotonic() - began
            if slow not in ended:
                slow.sendall(b"x")
            busy.sendall(GET)
            assert statuses(busy.recv(65536)) == [200]
        assert receive_all(silent) == b""
        assert statuses(receive_all(slow)) == [408]
        assert all(2 <= seconds < 10 for seconds in ended.values()), ended


def test_client_that_never_reads_has_to_leave_after_the_deadline() -> None:
    with running("--idle", "1") as server, connect(server.address) as client:
        flood(client)
        wait_until(server.has_no_client)


def test_connection_that_is_closed_by_us_ends_even_if_the_client_does_not(
    server: Served,
) -> None:
    address = server.address
    with connect(address) as client:
        client.sendall(CLOSE)
        assert statuses(receive_all(client)) == [200]
        wait_until(server.has_no_client)


async def test_a_flood_is_handled_in_chunks_between_which_others_have_their_turn() -> None:
    module = load()
    chunks: list[int] = []

    class Session(module.Session):  # type: ignore[name-defined, misc]
        def receive(self, data: bytes) -> None:
            chunks.append(len(data))
            super().receive(data)

    module.Session = Session  # type: ignore[attr-defined]
    flood = GET * 1000
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    serving = asyncio.create_task(module.main(listener, 30))
    try:
        answers = await asyncio.wait_for(asyncio.to_thread(talk, address, flood), LIMIT)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    assert answers.count(TEXT) == 1000
    assert sum(chunks) == len(flood)
    assert max(chunks) <= module.CHUNK < len(flood)


# --- The program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_signal_ends_it_cleanly_with_clients_connected(loop: str, number: signal.Signals) -> None:
    pytest.importorskip(loop)
    with running("--loop", loop, by=number) as served, contextlib.ExitStack() as stack:
        idle, inside, deaf = (stack.enter_context(connect(served.address)) for _ in range(3))
        inside.sendall(GET[:9])
        flood(deaf)
        idle.sendall(GET)
        assert statuses(idle.recv(65536)) == [200]


# --- Clients that others wrote -------------------------------------------------------------------


def client(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.clients
def test_curl_gets_the_pages(address: Address) -> None:
    url = "http://{}:{}".format(*address)
    assert client("curl", "-sS", f"{url}/") == TEXT.decode()
    assert client("curl", "-sS", f"{url}/json") == '{"message": "Hello, world!"}'
    status = ("curl", "-sS", "-o", os.devnull, "-w", "%{http_code} %{num_connects}\n")
    assert client(*status, f"{url}/none") == "404 1\n"
    assert client(*status, "-I", f"{url}/") == "200 1\n"
    assert client(*status, "--http1.0", f"{url}/") == "200 1\n"
    assert client(*status, "--http2", f"{url}/") == "200 1\n"  # asks for h2c; gets HTTP/1.1
    assert client(*status, "-d", "name=value", f"{url}/") == "405 1\n"
    assert client(*status, "-H", "X: " + "x" * 40_000, f"{url}/") == "431 1\n"


@pytest.mark.clients
def test_curl_keeps_one_connection_for_several_pages(address: Address) -> None:
    url = "http://{}:{}".format(*address)
    more = [word for _ in range(3) for word in ("-o", os.devnull, f"{url}/json")]
    assert client("curl", "-sS", "-w", "%{num_connects}", *more) == "100"


@pytest.mark.clients
def test_curl_that_uploads_too_much_sees_413(address: Address, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    status = ("curl", "-sS", "-o", os.devnull, "-w", "%{http_code}")
    url = "http://{}:{}/".format(*address)
    assert client(*status, "-H", "Expect:", "--data-binary", f"@{big}", url) == "413"


@pytest.mark.clients
@pytest.mark.parametrize("pipelined", [False, True])
def test_wrk_finds_no_error(address: Address, pipelined: bool, tmp_path: Path) -> None:
    script = tmp_path / "pipeline.lua"
    script.write_text(
        "init = function() batch = string.rep(wrk.format(), 16) end\n"
        "request = function() return batch end\n"
    )
    more = ("-s", str(script)) if pipelined else ()
    output = client(
        "wrk", "-t1", "-c50", "-d1s", *more, "http://{}:{}/json".format(*address)
    )  # fmt: skip
    found = re.search(r"(\d+) requests in", output)
    assert found is not None, output
    assert int(found[1]) > 100
    assert "Non-2xx" not in output
    assert "Socket errors" not in output
