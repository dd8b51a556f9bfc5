"""The demo's clients: many connections, one message in flight on each, every byte compared.

A process of its own (``python -m aiogaio.cli.load``), so that it takes nothing from the server it
measures; a bare selector loop, so that it keeps ahead of that server. It talks to the demo in
lines: JSON on its standard output, and ``go`` on its standard input, whose end stops it; so no
clients outlive a demo that was killed.

Messages are slices of one random text, each from another place in it: an answer that belongs to
another connection, or to an earlier message of the same one, does not compare equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import socket
import sys
import time
from array import array
from dataclasses import asdict
from typing import NoReturn

from aiogaio.cli.failure import reason
from aiogaio.cli.limits import raise_open_files
from aiogaio.cli.measurement import Report

CONNECT_TIMEOUT = 10.0
PATIENCE = 3.0  # how long answers may be awaited after the last message was sent
PROGRESS_INTERVAL = 0.2
LARGEST_RECEIVE = 65536
COMPLAINTS = 5

VARIETY = 1 << 20  # as many different messages, before the first comes again
STRIDE = 7919  # a prime, so that stepping through the text by it visits every place

STDIN = 0


class Client:
    """One connection and the message it waits to get back."""

    __slots__ = ("message", "number", "received", "round_trips", "sent_at", "sock", "unsent")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number: int = number
        self.sock: socket.socket = sock
        self.message: bytes = b""
        self.received: int = 0
        self.unsent: memoryview | None = None
        self.sent_at: float = 0.0
        self.round_trips: int = 0


class Load:
    """All the clients, and the figures they add up to."""

    def __init__(self, address: tuple[str, int], connections: int, size: int) -> None:
        self._size = size
        self._room = min(size + 1, LARGEST_RECEIVE)  # one more: to see what nobody sent
        self._text = random.randbytes(VARIETY + size)
        self._place = 0
        self._selector = selectors.DefaultSelector()
        self._waiting = 0  # clients with a message in flight
        self._sending = False
        self._latencies = array("d")
        self._bytes_checked = 0
        self._errors = 0
        self._complaints: list[str] = []
        self._clients = [Client(number, _connect(address)) for number in range(connections)]

    def run(self, seconds: float) -> Report:
        """Send and compare for that long, then wait for the answers that are still due."""
        self._selector.register(STDIN, selectors.EVENT_READ)
        self._sending = True
        began = time.perf_counter()
        for client in self._clients:
            client.sock.setblocking(False)
            self._selector.register(client.sock, selectors.EVENT_READ, client)
            self._waiting += 1
            self._send_next(client, time.perf_counter())
        self._serve_until(began, began + seconds)
        self._sending = False
        self._serve_until(began, began + seconds + PATIENCE)
        ended = time.perf_counter()
        self._miss_answers(ended - began)
        return self._report(ended - began)

    def close(self) -> None:
        for client in self._clients:
            client.sock.close()
        self._selector.close()

    def _serve_until(self, began: float, end: float) -> None:
        """Serve what is ready until ``end``, or until nobody waits for an answer any more."""
        now = time.perf_counter()
        tell_at = now + PROGRESS_INTERVAL
        while now < end and self._waiting:
            for key, mask in self._selector.select(min(end, tell_at) - now):
                client = key.data
                if client is None:
                    raise SystemExit(1)  # the demo is gone
                self._serve(client, mask)
            now = time.perf_counter()
            if now >= tell_at:
                tell_at = now + PROGRESS_INTERVAL
                tell(round_trips=len(self._latencies), seconds=now - began, errors=self._errors)

    def _serve(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._send_rest(client)
            if mask & selectors.EVENT_READ:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(client, reason(error))

    def _receive(self, client: Client) -> None:
        data = client.sock.recv(self._room)
        if not client.message.startswith(data, client.received) or not data:
            self._lose(client, _difference(client, data))
            return
        self._bytes_checked += len(data)
        client.received += len(data)
        if client.received == self._size:
            now = time.perf_counter()
            self._latencies.append(now - client.sent_at)
            client.round_trips += 1
            if self._sending:
                self._send_next(client, now)
            else:
                self._waiting -= 1

    def _send_next(self, client: Client, now: float) -> None:
        place = self._place
        self._place = (place + STRIDE) % VARIETY
        client.message = message = self._text[place : place + self._size]
        client.received = 0
        client.sent_at = now
        sent = client.sock.send(message)
        if sent < self._size:
            client.unsent = memoryview(message)[sent:]
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(client.sock, both, client)

    def _send_rest(self, client: Client) -> None:
        if client.unsent is not None:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
            if not client.unsent:
                client.unsent = None
                self._selector.modify(client.sock, selectors.EVENT_READ, client)

    def _lose(self, client: Client, why: str) -> None:
        self._selector.unregister(client.sock)
        client.sock.close()
        self._waiting -= 1
        self._complain(f"connection {client.number}, message {client.round_trips + 1}: {why}")

    def _miss_answers(self, seconds: float) -> None:
        if self._waiting:
            self._complain(
                f"{self._waiting} connections still had no whole answer after {seconds:.1f} s",
                errors=self._waiting,
            )

    def _complain(self, what: str, *, errors: int = 1) -> None:
        self._errors += errors
        if len(self._complaints) < COMPLAINTS:
            self._complaints.append(what)

    def _report(self, seconds: float) -> Report:
        latencies = sorted(self._latencies)
        return Report(
            connections=len(self._clients),
            served=sum(client.round_trips > 0 for client in self._clients),
            round_trips=len(latencies),
            seconds=seconds,
            p50=_percentile(latencies, 0.50),
            p99=_percentile(latencies, 0.99),
            bytes_checked=self._bytes_checked,
            errors=self._errors,
            complaints=self._complaints,
        )


def tell(**what: object) -> None:
    """One line to the demo."""
    print(json.dumps(what), flush=True)


def _connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=CONNECT_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _difference(client: Client, data: bytes) -> str:
    """Where the answer departs from the message, in words."""
    expected = client.message[client.received :]
    if not data:
        return f"the server closed it, {len(expected)} bytes before the end of the answer"
    for index, (got, sent) in enumerate(zip(data, expected, strict=False)):
        if got != sent:
            return f"byte {client.received + index} came back as {got:#04x}, was {sent:#04x}"
    return f"{len(data) - len(expected)} bytes or more came back than were sent"


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aiogaio.cli.load")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--core", type=int)
    return parser.parse_args()


def main() -> NoReturn:
    options = _parse()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    raise_open_files()
    try:
        load = Load((options.host, options.port), options.connections, options.size)
    except OSError as error:
        tell(failed=f"the clients cannot connect: {reason(error)}")
        sys.exit(1)
    tell(connected=options.connections)
    if not os.read(STDIN, 64):
        sys.exit(1)  # the demo is gone
    report = load.run(options.seconds)
    tell(report=asdict(report))
    load.close()
    sys.exit(0 if report.right else 1)


if __name__ == "__main__":
    main()
