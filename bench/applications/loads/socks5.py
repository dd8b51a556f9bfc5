"""Connections through a SOCKS5 proxy (RFC 1928), one after another, --connections at a time.

Each greets, asks for the echo at --to, sends one message, gets it back, and ends.
"""

from __future__ import annotations

import argparse
import select
import socket
import time

from bench.applications.loads import PATIENCE, Stopwatch, arguments, fail

MESSAGE = bytes(range(64))


class Conversation:
    """One connection, from its beginning to its end."""

    def __init__(self, port: int, steps: list[tuple[bytes, bytes, int]]) -> None:
        self.steps = iter(steps)
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.go_on()

    def go_on(self) -> bool:
        """Send the next; whether there is one."""
        step = next(self.steps, None)
        if step is not None:
            request, self.expected, self.missing = step
            self.sock.send(request)
        return step is not None

    def receive(self) -> bool:
        """Take what has come; whether this was all."""
        data = self.sock.recv(self.missing)
        known = self.expected[: len(data)]
        if not data:
            fail("the proxy ended a connection")
        if data[: len(known)] != known:
            fail(f"the proxy answered {data[:16].hex(' ')}")
        self.expected = self.expected[len(data) :]
        self.missing -= len(data)
        return self.missing == 0 and not self.go_on()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, required=True, help="the port of the echo")
    parser.add_argument("--connections", type=int, default=16)
    options = arguments(parser)
    request = bytes([5, 1, 0, 1, 127, 0, 0, 1]) + options.to.to_bytes(2)
    steps = [  # what is sent, how the answer begins, and how long it is
        (bytes([5, 1, 0]), bytes([5, 0]), 2),
        (request, bytes([5, 0, 0, 1]), 10),
        (MESSAGE, MESSAGE, len(MESSAGE)),
    ]
    try:
        exchange(options, steps)
    except OSError as error:
        fail(str(error))


def exchange(options: argparse.Namespace, steps: list[tuple[bytes, bytes, int]]) -> None:
    epoll = select.epoll()
    conversations: dict[int, Conversation] = {}

    def another() -> None:
        conversation = Conversation(options.port, steps)
        conversations[conversation.sock.fileno()] = conversation
        epoll.register(conversation.sock, select.EPOLLIN)

    for _ in range(options.connections):
        another()
    watch = Stopwatch(options)
    count = 0
    while time.monotonic() < watch.end:
        events = epoll.poll(PATIENCE)
        if not events:
            fail(f"no answer within {PATIENCE} s")
        for fd, _ in events:
            if conversations[fd].receive():
                conversations.pop(fd).sock.close()
                count += 1
                another()
    watch.report(count)


if __name__ == "__main__":
    main()
