"""Lines: one connection of a session, the bytes of both its directions, and its other end."""

from __future__ import annotations

import contextlib
import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tests.model.requests import ASIDE, READS, WRITES, Request
from tests.probes import unread
from tests.simulation import SimulatedSocket
from tests.support import reset

if TYPE_CHECKING:
    from aiogaio import Connection, Operation

_WORD = 8
#: Datagrams begin at multiples of it.
_STEP = 64


@lru_cache(maxsize=256)
def content(tag: int, start: int, count: int) -> bytes:
    """The bytes of a stream from an offset on: each word says whose it is and where it stands."""
    first = start // _WORD
    words = (
        b"%03d%04d\n" % (tag % 1000, word % 10_000)
        for word in range(first, (start + count) // _WORD + 1)
    )
    return b"".join(words)[start % _WORD :][:count]


class Line:
    """One connection. Its peer is a socket that the session holds."""

    def __init__(self, number: int, conn: Connection, peer: Any, kind: str) -> None:
        self.number, self.conn, self.peer, self.kind = number, conn, peer, kind
        self.requests: list[Request] = []
        self._queues: dict[str, list[Request]] = {READS: [], WRITES: [], ASIDE: []}
        self._last = {READS: -1, WRITES: -1}
        # Bytes the peer has sent, and of these the ones that were delivered.
        self.sent = 0
        self.got = 0
        self.known = True  # whether `got` is: not after a relay that failed
        self.verifiable = True  # whether it is known what the peer has to receive
        # Bytes the peer has received, and what it must be: the writes that are over, in order.
        self.received = bytearray()
        self._written = bytearray()
        self._over = 0  # writes that are in `_written`
        # What has happened to it.
        self.ended = False  # the peer has sent its FIN
        self.broken = False  # the peer has, or may have, sent a RST
        self.shut = False  # our own FIN was asked for
        self.refused = False  # nobody listens where it wanted to connect
        self.lost = False  # nobody is at the other end any more, or never was
        self.failure: Exception | None = None  # of its connect
        self.freed = False
        self.closed = False  # the watcher was
        if peer is not None:
            peer.setblocking(False)

    @property
    def tag(self) -> int:
        return 2 * self.number

    @property
    def alive(self) -> bool:
        return not (self.freed or self.closed)

    @property
    def streams(self) -> bool:
        return self.kind != "listener"

    def queue(self, name: str) -> list[Request]:
        return self._queues[name]

    def pending(self, name: str) -> list[Request]:
        """The requests of a queue that have not completed, first to last."""
        return [one for one in self._queues[name] if not one.completed]

    def add(self, request: Request) -> None:
        self.requests.append(request)
        if request.kind in ("relay", "connect"):  # they stand in both queues
            self._queues[READS].append(request)
            self._queues[WRITES].append(request)
        else:
            self._queues[request.queue].append(request)

    def queued_data(self, count: int) -> bytes:
        """Data for a write that no other write of this line has."""
        return content(self.tag + 1, _WORD * 7 * len(self._queues[WRITES]), count)

    # --- The other end ---------------------------------------------------------------------------

    def peer_sends(self, count: int) -> None:
        if self.peer is None or self.ended or self.broken:
            return
        with contextlib.suppress(OSError):
            if self.kind == "udp":
                self.peer.send(content(self.tag, self.sent, min(count, 1000)))
                self.sent += _STEP
            else:
                self.sent += self.peer.send(content(self.tag, self.sent, count))

    def peer_receives(self, most: int) -> bool:
        """Receive once; false if there is nothing more to come now."""
        if self.peer is None:
            return False
        try:
            data = self.peer.recv(most)
        except OSError:
            return False
        if self.kind != "udp":
            self.received += data
            self.check_written()
        return bool(data)

    def peer_ends(self) -> None:
        if self.peer is None or self.ended or self.broken:
            return
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)
            self.ended = True

    def peer_closes(self, *, resets: bool) -> None:
        if self.peer is None:
            return
        if resets and self.kind != "unix":
            reset(self.peer)
            self.broken = True
        elif self._peer_has_unread():
            self.broken = True
        else:
            self.ended = True
        # What is still under way to it, or comes later, brings a RST.
        self.lost = True
        self.peer.close()
        self.peer = None

    def _peer_has_unread(self) -> bool:
        if isinstance(self.peer, SimulatedSocket):
            return self.peer.unread > 0
        return unread(self.peer) > 0

    # --- What is delivered -----------------------------------------------------------------------

    def check_order(self, request: Request) -> None:
        """Per connection and direction as submitted; only what is withdrawn leaves early (S3)."""
        if request.queue == ASIDE or request.withdrawn:
            return
        for name in (READS, WRITES) if request.kind in ("relay", "connect") else (request.queue,):
            assert request.number >= self._last[name], "completed out of order"
            self._last[name] = request.number

    def take(self, data: bytes) -> None:
        """What a read has brought is what the peer has sent, from where the last one ended."""
        if self.kind == "udp":
            self._take_datagram(data)
        elif self.known and data:
            assert data == content(self.tag, self.got, len(data)), "not the bytes that were sent"
            self.got += len(data)
            assert self.got <= self.sent

    def _take_datagram(self, data: bytes) -> None:
        """One that was sent after all that came before it: some may be lost."""
        if len(data) >= _WORD:
            start = int(data[3:7]) * _WORD
            assert start >= self.got
            assert start % _STEP == 0
            assert data == content(self.tag, start, len(data))
            self.got = start + _STEP

    def check_written(self, *, all_of_it: bool = False) -> None:
        """The peer has received what was sent, in the order of the writes."""
        if not self.verifiable or self.kind == "udp":
            return
        writes = self._queues[WRITES]
        while self._over < len(writes) and self._is_over(writes[self._over]):
            self._written += writes[self._over].sent_on(self)
            self._over += 1
        expected = self._written
        waiting = writes[self._over] if self._over < len(writes) else None
        if waiting is not None and waiting.kind != "relay":
            expected = self._written + waiting.sent_on(self)
        common = min(len(expected), len(self.received))
        assert self.received[:common] == expected[:common], "not the bytes that were written"
        if waiting is None or waiting.kind != "relay":
            assert len(self.received) <= len(expected), "more bytes than were written"
        if all_of_it:
            assert len(self.received) == len(expected), "bytes are missing"

    @staticmethod
    def _is_over(write: Request) -> bool:
        return write.delivered if write.kind == "relay" else write.completed

    def end_relay(self, request: Request, op: Operation) -> None:
        """The bytes that went through it have left this line for the other."""
        index = request.lines.index(self)
        other = request.lines[1 - index]
        if self.known:
            request.moved[other] = content(self.tag, self.got, op.sizes[index])
            self.got += op.sizes[index]
            self.known = op.error is None
        else:
            other.verifiable = False
