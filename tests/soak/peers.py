"""Peers: the other end of the loads, in a process of their own.

They share no code with the library: plain sockets and one epoll, so that what they find is a
check from outside, and so that the limit of open files counts for each end alone.

Every line of the standard input is a command, a JSON object: ``{"do": name, ...}``, answered by
one on the standard output, ``{"error": ...}`` if it failed. The end of the input ends the process.
"""

from __future__ import annotations

import itertools
import json
import random
import select
import socket
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from tests.soak.budget import raise_descriptor_limit
from tests.soak.fates import END, FATES, RESET, fate_of
from tests.support import reset

# One source address has some 28,000 ephemeral ports: more addresses, no shortage when repeated.
SOURCES = [f"127.0.0.{host}" for host in range(2, 66)]
PATIENCE = 60.0
CHUNK = 256 * 1024
BUFFERS = 16 * 1024  # of the system: see server.BUFFERS
# Bytes that are sent before they come back. More would fill the receiver's window; and once it has
# been full, the loopback, whose segments are as large as a window, opens it with a probe only, up
# to 200 ms later (RFC 9293, 3.8.6.2).
AHEAD = 32 * 1024
POOL = 1 << 24
NUMBER = struct.Struct("!I")
MESSAGE = struct.Struct("!QQ")  # 16 bytes: which connection, and the time or the number


class Content:
    """What each connection sends: a part of one random pool, from a place of its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pool = random.Random(size).randbytes(POOL + size)
        self.view = memoryview(self.pool)

    def place(self, index: int) -> int:
        return index * 4099 % POOL

    def matches(self, index: int, position: int, data: bytes) -> bool:
        """Whether ``data`` is what stands at ``position``; compares without a copy."""
        return position + len(data) <= self.size and self.pool.startswith(
            data, self.place(index) + position
        )


class Echo:
    """One connection's content on its way out and back."""

    def __init__(self, sock: socket.socket, index: int, content: Content) -> None:
        self.sock = sock
        self.index = index
        self.content = content
        self.begin = content.place(index)
        self.sent = self.received = 0
        sock.sendall(NUMBER.pack(index))

    def advance(self) -> bool:
        """Send and receive until the socket has no more; whether it is complete."""
        size = self.content.size
        while True:
            self._send()
            try:
                data = self.sock.recv(CHUNK)
            except BlockingIOError:
                return self.received == size
            if not data:
                raise EOFError(f"the server ended after {self.received} of {size} bytes")
            if not self.content.matches(self.index, self.received, data):
                raise ValueError(f"byte {self.received} and on are not those sent")
            self.received += len(data)

    def _send(self) -> None:
        most = min(self.received + AHEAD, self.content.size)
        try:
            while self.sent < most:
                part = self.content.view[self.begin + self.sent : self.begin + most]
                self.sent += self.sock.send(part)
        except BlockingIOError:
            pass


class Peers:
    """All connections of this process; the public methods are the commands."""

    def __init__(self) -> None:
        self._socks: list[socket.socket] = []
        self._sources = itertools.cycle(SOURCES)

    def _connect(self, address: list[Any], *, buffers: int = BUFFERS) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((next(self._sources), 0))
        sock.connect((address[0], address[1]))
        return sock

    def open(self, address: list[Any], count: int) -> dict[str, Any]:
        """Open so many more connections."""
        self._socks += [self._connect(address) for _ in range(count)]
        return {"open": len(self._socks)}

    def close(self) -> dict[str, Any]:
        """Close all, every other one with a reset."""
        for index, sock in enumerate(self._socks):
            reset(sock) if index % 2 else sock.close()
        self._socks.clear()
        return {"open": 0}

    def exact(self, size: int) -> dict[str, Any]:
        """On all connections at once: send so many bytes and compare those that come back."""
        content = Content(size)
        echoes = {}
        epoll = select.epoll()
        for index, sock in enumerate(self._socks):
            echoes[sock.fileno()] = Echo(sock, index, content)
            sock.setblocking(False)
            epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        with epoll:
            complete = 0
            for fd in self._ready(epoll):
                if fd in echoes and echoes[fd].advance():
                    complete += 1
                    del echoes[fd]
                    if not echoes:
                        break
        return {"complete": complete, "bytes": complete * size}

    def _ready(self, epoll: select.epoll) -> Iterator[int]:
        while True:
            events = epoll.poll(PATIENCE)
            if not events:
                raise TimeoutError(f"nothing moves for {PATIENCE:.0f} s")
            for fd, _ in events:
                yield fd

    def trips(self, count: int) -> dict[str, Any]:
        """So many round trips of 16 bytes, one at a time on each connection."""
        started = done = 0
        expected: dict[int, tuple[socket.socket, bytes]] = {}

        def start(sock: socket.socket) -> None:
            nonlocal started
            data = MESSAGE.pack(sock.fileno(), started)
            started += 1
            expected[sock.fileno()] = sock, data
            sock.sendall(data)

        with select.epoll() as epoll:
            for sock in self._socks[:count]:
                epoll.register(sock, select.EPOLLIN)
                start(sock)
            for fd in self._ready(epoll):
                sock, data = expected[fd]
                if sock.recv(64) != data:
                    raise ValueError(f"round trip {done} brought other bytes than those sent")
                done += 1
                if started < count:
                    start(sock)
                elif done == count:
                    break
        return {"trips": done}

    def ping(self, seconds: float, rate: int) -> dict[str, Any]:
        """Ping at a steady rate, on one connection after the other; times in milliseconds."""
        times: list[float] = []
        on_the_way = 0
        now = begin = time.monotonic()
        socks = itertools.cycle(self._socks)
        found = {sock.fileno(): sock for sock in self._socks}
        with select.epoll() as epoll:
            for sock in self._socks:
                epoll.register(sock, select.EPOLLIN)
            while now < begin + seconds or on_the_way:
                due = begin + (len(times) + on_the_way) / rate
                while due <= now < begin + seconds:
                    sock = next(socks)
                    # From when it was due: a late sender must not hide a slow server.
                    sock.sendall(MESSAGE.pack(sock.fileno(), int(due * 1e9)))
                    on_the_way += 1
                    due = begin + (len(times) + on_the_way) / rate
                events = epoll.poll(max(0.0, due - now) if now < begin + seconds else PATIENCE)
                now = time.monotonic()
                if not events and now > begin + seconds + PATIENCE:
                    raise TimeoutError(f"{on_the_way} pings did not come back")
                for fd, _ in events:
                    # Several, if the server has been slower than the turn of this connection.
                    for who, sent in MESSAGE.iter_unpack(found[fd].recv(64 * MESSAGE.size)):
                        if who != fd:
                            raise ValueError("a ping came back to another connection")
                        on_the_way -= 1
                        times.append((now - sent / 1e9) * 1e3)
        times.sort()
        return {
            "pings": len(times),
            "p50": times[len(times) // 2],
            "p99": times[-len(times) // 100],
        }

    def flood(self, address: list[Any], seconds: float) -> dict[str, Any]:
        """One connection that sends as fast as it can; how much, and its checksum."""
        data = random.Random(1).randbytes(CHUNK)
        sent = checksum = 0
        stop = time.monotonic() + seconds
        with self._connect(address, buffers=CHUNK) as sock:
            while time.monotonic() < stop:
                sock.sendall(data)
                sent += len(data)
                checksum = zlib.crc32(data, checksum)
        return {"bytes": sent, "checksum": checksum}

    def drip(self, seconds: float) -> dict[str, Any]:
        """Slow loris: on each connection a byte per second, and never the end of a line."""
        begin = now = time.monotonic()
        dripped = 0
        socks = itertools.cycle(self._socks)
        while now < begin + seconds:
            while dripped < (now - begin) * len(self._socks):
                self._drip(next(socks))
                dripped += 1
            time.sleep(0.005)
            now = time.monotonic()
        return {"bytes": dripped}

    def _drip(self, sock: socket.socket) -> None:
        try:
            sock.send(b"x")
        except ConnectionError:  # the server has lost patience, as it should
            pass

    def churn(self, address: list[Any], count: int) -> dict[str, Any]:
        """Open and close so many, with one round trip each, every other one with a reset."""
        living: deque[tuple[socket.socket, bytes]] = deque()
        for number in range(count + 64):
            if number < count:
                sock, data = self._connect(address), MESSAGE.pack(number, 0)
                sock.sendall(data)
                living.append((sock, data))
            if number >= 64 and living:
                sock, data = living.popleft()
                if sock.recv(64) != data:
                    raise ValueError(f"connection {number} got other bytes than those sent")
                reset(sock) if number % 2 else sock.close()
        while living:
            living.popleft()[0].close()
        return {"connections": count}

    def meet_fates(self, address: list[Any], count: int) -> dict[str, Any]:
        """Open so many; each says its number, sends a part of a message, and meets its fate."""
        for index in range(count):
            sock = self._connect(address)
            fate, size = fate_of(index)
            sock.sendall(NUMBER.pack(index) + bytes(size))
            if fate == RESET:
                reset(sock)
                continue
            if fate == END:
                sock.shutdown(socket.SHUT_WR)
            self._socks.append(sock)  # those that are silent stay so
        return {"fates": FATES}

    def farewells(self) -> dict[str, Any]:
        """How many connections got the server's last word, and its end, and no reset."""
        heard = 0
        for sock in self._socks:
            heard += sock.recv(64, socket.MSG_WAITALL) == b"bye"
            sock.close()
        self._socks.clear()
        return {"heard": heard}


def main() -> None:
    raise_descriptor_limit()
    peers = Peers()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(peers, arguments.pop("do"))(**arguments)
        except (OSError, EOFError, ValueError, struct.error) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
