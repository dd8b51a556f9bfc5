"""Questions at a steady rate, and how long the answers take; to a web server, or one of lines.

Each connection asks, takes the answer, and asks again when its time has come, which is never before
the answer. With --background it makes way for the load that measures, on its core, and ends with a
complaint if it gets less than half of its rate: what is measured then is not what it is called.
"""

from __future__ import annotations

import argparse
import heapq
import os
import select
import socket
import statistics
import time

from bench.applications.loads import PATIENCE, Stopwatch, arguments, fail

NICE = 10  # a tenth of the core if another wants all of it (sched(7))
FIRST = 1.0  # seconds until a background load must have its rate
KINDS = {  # the question; how the answer begins, and ends
    "web": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 200 ", b"\r\n0\r\n\r\n"),
    "lines": (b"hello\n", b"HELLO\n", b"\n"),
}


class Asker:
    """One connection."""

    def __init__(self, port: int, kind: str) -> None:
        self.question, self.beginning, self.end = KINDS[kind]
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.answer = b""
        self.asked_at = 0.0

    def ask(self) -> None:
        self.answer = b""
        self.asked_at = time.perf_counter()
        self.sock.sendall(self.question)

    def receive(self) -> bool:
        """Take what has come; whether this was all."""
        data = self.sock.recv(4096)
        if not data:
            fail("the server ended a connection")
        self.answer += data
        whole = self.answer.endswith(self.end)
        if whole and not self.answer.startswith(self.beginning):
            fail(f"wrong answer: {self.answer[:80]!r}")
        return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="questions a second, of all")
    parser.add_argument("--background", action="store_true")
    options = arguments(parser)
    if options.background:
        os.nice(NICE)
    try:
        exchange([Asker(options.port, options.kind) for _ in range(options.connections)], options)
    except OSError as error:
        fail(str(error))


def exchange(askers: list[Asker], options: argparse.Namespace) -> None:
    epoll = select.epoll()
    by_fd = {asker.sock.fileno(): asker for asker in askers}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    pause = len(askers) / options.rate
    watch = Stopwatch(options)
    turn = {fd: watch.began + pause * i / len(askers) for i, fd in enumerate(by_fd)}
    due = [(when, fd) for fd, when in turn.items()]  # a heap
    took: list[float] = []
    while (now := time.monotonic()) < watch.end:
        while due and due[0][0] <= now:
            by_fd[heapq.heappop(due)[1]].ask()
        for fd, _ in epoll.poll(max(0.0, min(due[0][0] if due else watch.end, watch.end) - now)):
            if by_fd[fd].receive():
                took.append(time.perf_counter() - by_fd[fd].asked_at)
                turn[fd] = max(turn[fd] + pause, time.monotonic())
                heapq.heappush(due, (turn[fd], fd))
        if options.background and now > watch.began + FIRST:
            rate = len(took) / (now - watch.began)
            if rate < options.rate / 2:
                fail(f"{rate:,.0f} of {options.rate:,.0f} questions a second were answered")
    if len(took) < 2:
        fail("there were no answers")
    cuts = statistics.quantiles(took, n=100)
    watch.report(len(took), p50=cuts[49], p99=cuts[98])


if __name__ == "__main__":
    main()
