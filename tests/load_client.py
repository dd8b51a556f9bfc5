"""The clients of the load tests, in a process of their own.

They share no code with the package under test: plain non-blocking sockets and one epoll, so that
what they find is an outside check, and so that the open-file limit counts for each end alone.

Every line on the standard input is a command, a JSON object; every command is answered by one
JSON object on one line of the standard output, ``{"error": ...}`` if it failed. The end of the
input ends the process.

``{"do": "connect", "address": [host, port], "count": n}``
    opens ``n`` more connections; answers how many there are now.
``{"do": "echo", "size": n}``
    sends ``n`` random bytes on every connection, all at once, and compares every byte that comes
    back; answers how many bytes were compared.
``{"do": "reset"}``
    closes every connection; answers how many.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

# One source address has some 28,000 ephemeral ports: more addresses, no shortage when repeated.
SOURCES = [f"127.0.0.{host}" for host in range(2, 66)]
PATIENCE = 90.0
CHUNK = 262144


class Client:
    """One connection and its share of an echo: what it sends must come back, byte for byte."""

    __slots__ = ("data", "received", "sent", "sock")

    def __init__(self, address: tuple[str, int], source: str) -> None:
        self.sock = socket.create_connection(address, PATIENCE, (source, 0))
        self.sock.setblocking(False)
        # A close sends a RST, not a FIN: no TIME_WAIT stays behind (SO_LINGER of zero, tcp(7)).
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.data = b""
        self.sent = 0
        self.received = 0

    def begin(self, data: bytes) -> None:
        self.data = data
        self.sent = 0
        self.received = 0

    def advance(self) -> bool:
        """Send and receive until the socket has no more; whether the echo is complete."""
        self._send()
        self._receive()
        return self.received == len(self.data)

    def _send(self) -> None:
        try:
            while self.sent < len(self.data):
                self.sent += self.sock.send(self.data[self.sent : self.sent + CHUNK])
        except BlockingIOError:
            pass

    def _receive(self) -> None:
        """Receive until there is no more: edges are reported once, and a surplus is an error."""
        try:
            while chunk := self.sock.recv(CHUNK):
                begin, self.received = self.received, self.received + len(chunk)
                if chunk != self.data[begin : self.received]:
                    raise ValueError(f"bytes {begin} to {self.received} are not those sent")
        except BlockingIOError:
            return
        raise EOFError(f"the server closed after {self.received} of {len(self.data)} bytes")


class Load:
    """All connections; its public methods are the commands."""

    def __init__(self) -> None:
        self._clients: dict[int, Client] = {}
        self._epoll = select.epoll()

    def connect(self, address: list[Any], count: int) -> dict[str, int]:
        for _ in range(count):
            source = SOURCES[len(self._clients) % len(SOURCES)]
            client = Client((address[0], address[1]), source)
            self._clients[client.sock.fileno()] = client
            events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
            self._epoll.register(client.sock, events)
        return {"connections": len(self._clients)}

    def echo(self, size: int) -> dict[str, int]:
        for client in self._clients.values():
            client.begin(os.urandom(size))
        unfinished = {fd for fd, client in self._clients.items() if not client.advance()}
        give_up = time.monotonic() + PATIENCE
        while unfinished:
            events = self._epoll.poll(max(0.0, give_up - time.monotonic()))
            if not events:
                raise TimeoutError(f"{len(unfinished)} echoes are not complete")
            for fd, _ in events:
                if self._clients[fd].advance():
                    unfinished.discard(fd)
        return {"bytes": sum(client.received for client in self._clients.values())}

    def reset(self) -> dict[str, int]:
        count = len(self._clients)
        for client in self._clients.values():
            client.advance()  # an echo that brought too much does not go unseen
            client.sock.close()
        self._clients.clear()
        return {"connections": count}


def raise_open_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    raise_open_file_limit()
    load = Load()
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "connect": load.connect,
        "echo": load.echo,
        "reset": load.reset,
    }
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = commands[arguments.pop("do")](**arguments)
        except (OSError, EOFError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
