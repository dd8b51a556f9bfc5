"""Messages of one to all: --members connections, of which each in turn says something.

--depth messages are under way. Every member gets every message, byte for byte; a message that
one gets is one delivered.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import time
from dataclasses import dataclass

from bench.applications.loads import PATIENCE, Stopwatch, arguments, fail, raise_file_limit

TEXT = b"What one says, all the others hear; and none may miss a word ..."
MASK = bytes([0x37, 0xFA, 0x21, 0x3D])
AT_ONCE = 256  # members that join together: fewer than any backlog
SPARE = 100  # descriptors besides those of the members


@dataclass(frozen=True, slots=True)
class Language:
    """How the server is talked to."""

    hello: bytes  # of a member
    welcome: bytes  # the end of the answer
    said: bytes  # a message, as a member sends it
    heard: bytes  # as all get it


PUSH = Language(b"STAT\n", b"\n", b"PUB " + TEXT + b"\n", TEXT + b"\n")
CHAT = Language(
    b"GET /ws/room HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"\r\n\r\n",
    # A whole text message (RFC 6455, section 5.2): a client's is masked, a server's is not.
    bytes([0x81, 0x80 | len(TEXT)])
    + MASK
    + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(TEXT)),
    bytes([0x81, len(TEXT)]) + TEXT,
)
LANGUAGES = {"push": PUSH, "chat": CHAT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("language", choices=LANGUAGES)
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--depth", type=int, default=2)
    options = arguments(parser)
    raise_file_limit(options.members + SPARE)
    language = LANGUAGES[options.language]
    try:
        members: list[socket.socket] = []
        while (missing := options.members - len(members)) > 0:
            members += join(options.port, language, min(missing, AT_ONCE))
        exchange(members, language, options)
    except OSError as error:
        fail(str(error))


def join(port: int, language: Language, count: int) -> list[socket.socket]:
    """So many members more, whom the server knows when this returns."""
    members = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(count)]
    for sock in members:
        sock.sendall(language.hello)
    for sock in members:
        answer = b""
        while not answer.endswith(language.welcome):
            data = sock.recv(4096)
            if not data:
                fail(f"the server did not welcome a member: {answer[:80]!r}")
            answer += data
    return members


def exchange(members: list[socket.socket], language: Language, options: argparse.Namespace) -> None:
    epoll = select.epoll()
    for sock in members:
        epoll.register(sock, select.EPOLLIN)
    heard, read = language.heard, os.read
    stream = heard * (4096 // len(heard) + 2)
    begun: dict[int, int] = {}  # how much of its next message a member has; if some, but not all
    watch = Stopwatch(options)
    said = delivered = 0
    while time.monotonic() < watch.end:
        while said * len(members) < delivered + options.depth * len(members):
            members[said % len(members)].sendall(language.said)
            said += 1
        events = epoll.poll(PATIENCE)
        if not events:
            fail(f"{said * len(members) - delivered} messages are not delivered, of {said} to all")
        for fd, _ in events:
            data = read(fd, 4096)
            if data == heard and fd not in begun:  # as it mostly is
                delivered += 1
                continue
            start = begun.pop(fd, 0)
            if not data or data != stream[start : start + len(data)]:
                fail("a member got wrong bytes, or was dropped")
            whole, rest = divmod(start + len(data), len(heard))
            delivered += whole
            if rest:
                begun[fd] = rest
    watch.report(delivered)


if __name__ == "__main__":
    main()
