"""A Watcher beside uvicorn on one loop, run as a process.

Run as a program, this file is a load on it: ``KIND HOST PORT CONNECTIONS RATE SECONDS``, where the
kind is ``web`` or ``lines`` and the rate is in questions per second over all connections. It prints
how many answers have come, and the percentiles of the time that they took.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.programs import (
    LIMIT,
    Address,
    Example,
    address_in,
    connect,
    environment,
    loops,
    open_sockets,
    questions,
    receive_all,
    stopped,
    wait_until,
)

EXAMPLE = Example("embedded.py")

TARGET = 2.0  # times as long as alone, at most, may the web application's slowest hundredth take


# --- the load ------------------------------------------------------------------------------------


async def ask(kind: str, address: Address, pause: float, end: float, took: list[float]) -> None:
    """One connection: a question, its answer, and a pause, until the end."""
    reader, writer = await asyncio.open_connection(*address)
    question = b"hello\n" if kind == "lines" else b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    await asyncio.sleep(random.uniform(0, pause))
    while (began := time.perf_counter()) < end:
        writer.write(question)
        if kind == "lines":
            assert await reader.readline() == b"HELLO\n"
        else:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"transfer-encoding: chunked" in head
            await reader.readuntil(b"0\r\n\r\n")
        took.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, pause - took[-1]))
    writer.close()
    await writer.wait_closed()


async def load(
    kind: str, host: str, port: str, connections: str, rate: str, seconds: str
) -> dict[str, Any]:
    took: list[float] = []
    pause = int(connections) / float(rate)
    end = time.perf_counter() + float(seconds)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(int(connections)):
            tasks.create_task(ask(kind, (host, int(port)), pause, end, took))
    cuts = statistics.quantiles(took, n=100)
    return {"answers": len(took), "p50": cuts[49], "p99": cuts[98]}


def loading(kind: str, address: Address, *numbers: float) -> subprocess.Popen[str]:
    host, port = address
    return subprocess.Popen(
        [sys.executable, __file__, kind, host, str(port), *map(str, numbers)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=LIMIT * 2)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


# --- tests ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Address, Address]]:
    """The process, where its web application is, and where its lines are."""
    pytest.importorskip("uvicorn")
    with EXAMPLE.started("--port", "0", "--lines", "0", *arguments) as process:
        try:
            assert process.stdout is not None
            web, lines = process.stdout.readline(), process.stdout.readline()
            assert web.startswith("web on http://") and lines.startswith("lines on ")
            yield process, address_in(web), address_in(lines)
        finally:
            process.kill()


def get(web: Address, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(*web, timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.load(response)


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_servers_in_order(loop: str, by: signal.Signals) -> None:
    with (
        running("--loop", loop) as (process, web, lines),
        socket.create_connection(lines, timeout=LIMIT) as client,
    ):
        client.sendall(b"last\n")
        assert client.recv(100) == b"LAST\n"
        before = open_sockets(process)
        with socket.create_connection(web, timeout=LIMIT) as idle:
            wait_until(lambda: open_sockets(process) > before)  # else the system resets it
            assert stopped(process, by) == ""
            assert client.recv(1) == idle.recv(1) == b""


@pytest.mark.parametrize("loop", loops())
def test_a_signal_ends_it_in_order_while_it_has_lines_to_answer(loop: str) -> None:
    with contextlib.ExitStack() as stack:
        process, _, lines = stack.enter_context(running("--loop", loop))
        clients = [stack.enter_context(connect(lines)) for _ in range(6)]
        stack.enter_context(questions(clients, b"hello\n" * 20))
        assert stopped(process) == ""


@pytest.mark.parametrize("loop", loops())
def test_both_answer_at_once(loop: str) -> None:
    """The lines go on while the web application is asked, and the other way round."""
    answered = 0
    stop = threading.Event()

    def talk(address: Address) -> None:
        nonlocal answered
        with (
            socket.create_connection(address, timeout=LIMIT) as client,
            client.makefile("rb") as answers,
        ):
            while not stop.is_set():
                client.sendall(b"to and fro\n" * 10)
                assert answers.read(110) == b"TO AND FRO\n" * 10
                answered += 10

    with running("--loop", loop) as (process, web, lines):
        talking = threading.Thread(target=talk, args=(lines,))
        talking.start()
        try:
            for number in range(20):
                before = answered
                assert get(web, "/")[0] == 200
                assert get(web, f"/ask/word{number}") == (200, {"answer": f"WORD{number}"})
                end = time.monotonic() + LIMIT
                while answered == before and time.monotonic() < end:
                    time.sleep(0.001)
                assert answered > before
        finally:
            stop.set()
            talking.join()
        status, counters = get(web, "/")
        assert (status, counters["requests"]) == (200, 41)
        assert counters["lines"] == answered + 20
        stopped(process)


def test_many_handlers_await_their_own_operation_at_once() -> None:
    with running() as (process, web, _):
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda n: get(web, f"/ask/w{n}"), range(200)))
        assert answers == [(200, {"answer": f"W{n}"}) for n in range(200)]
        stopped(process)


@contextlib.contextmanager
def upstream(answer: bytes | None) -> Iterator[Address]:
    """A service that answers so to each line, and hangs up; or, with ``None``, says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as kept:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = kept.enter_context(listener.accept()[0])
                    if answer is not None:
                        client.recv(100)
                        client.sendall(answer)
                        client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_what_becomes_of_the_operation_reaches_its_handler() -> None:
    for answer, expected in ((b"yes\r\n", 200), (b"", 502), (b"no end", 502)):
        with (
            upstream(answer) as (host, port),
            running("--ask", f"{host}:{port}") as (process, web, _),
        ):
            status, found = get(web, "/ask/x")
            assert status == expected, found
            assert found["answer"] == "yes" if expected == 200 else found["error"]
            assert get(web, "/")[1]["connections"] == 0  # the handler has let go of its own
            stopped(process)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    with running("--ask", f"{host}:{port}") as (process, web, _):
        status, found = get(web, "/ask/x")
        assert status == 502 and "Connection refused" in found["error"]
        assert get(web, "/ask/")[0] == get(web, "/ask/a%0Ab")[0] == get(web, "/x")[0] == 404
        assert get(web, "/")[1]["connections"] == 0
        stopped(process)


def test_the_end_does_not_wait_for_a_handler_that_waits_for_ever() -> None:
    with (
        upstream(None) as (host, port),
        running("--ask", f"{host}:{port}") as (process, web, _),
        socket.create_connection(web, timeout=LIMIT) as client,
    ):
        client.sendall(b"GET /ask/x HTTP/1.1\r\nHost: here\r\n\r\n")
        end = time.monotonic() + LIMIT
        while get(web, "/")[1]["connections"] == 0 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert b" 502 " not in receive_all(client)  # so it says when its own five seconds are over
        assert process.wait(LIMIT) == 0


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("loop", loops())
def test_the_web_application_is_not_much_slower_beside_a_busy_watcher(
    loop: str, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the ratio of the 99th percentiles; a machine with other work to do tells little."""
    ratios, text = [], ""
    with running("--loop", loop) as (process, web, lines):
        for _ in range(5):
            alone = result(loading("web", web, 8, 400, 3))
            busy = loading("lines", lines, 64, 3000, 4)
            beside = result(loading("web", web, 8, 400, 3))
            answers = result(busy)["answers"]
            assert answers > 1000 and beside["answers"] > alone["answers"] / 2
            ratios.append(beside["p99"] / alone["p99"])
            text += "{:.2f} ms alone, {:.2f} ms beside {} lines/s; ".format(
                alone["p99"] * 1e3, beside["p99"] * 1e3, answers // 4
            )
        stopped(process)
    ratio = statistics.median(ratios)
    record_property("p99_ratio", ratio)
    with capsys.disabled():
        print(f"\n{loop}: web p99 {ratio:.2f} x alone (target {TARGET:g}): {text}")
    assert ratio < 3 * TARGET


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(*sys.argv[1:]))))
