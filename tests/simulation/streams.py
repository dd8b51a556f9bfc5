"""Streams, TCP and Unix: tcp(7), unix(7), and what Linux does beyond them.

The pending error and the end behave as in Linux: an error is told once, by whichever call comes
first; data that has arrived is received before it; after a FIN a receive says "the end" whatever
comes later; a send after the peer has closed succeeds once on TCP and brings a reset.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from tests.simulation.description import (
    ERROR,
    HANGUP,
    PEER_HANGUP,
    READABLE,
    WRITABLE,
    Description,
    failure,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.network import Network


class Stream(Description):
    """One end of a stream, connected or not."""

    type = socket.SOCK_STREAM

    def __init__(self, network: Network, family: int) -> None:
        super().__init__(network)
        self.family = family
        self.proto = socket.IPPROTO_TCP if family != socket.AF_UNIX else 0
        self.peer: Stream | None = None
        self.state = "new"  # then "connecting", "connected", "over"
        self.arrived = bytearray()
        self.flying = 0  # bytes on their way to this end
        self.ended = False  # the peer's FIN is here
        self.receives = True  # no end, no reset
        self.sends = True  # no shutdown, no reset
        self.short_of_space = False  # a send found no room
        self.announced = False  # connect(2) has said that it is connected

    @property
    def is_tcp(self) -> bool:
        return self.family != socket.AF_UNIX

    def join(self, peer: Stream) -> None:
        """Connected, both of them."""
        self.peer, peer.peer = peer, self
        self.state = peer.state = "connected"

    # --- Readiness -------------------------------------------------------------------------------

    def mask(self) -> int:
        bits = ERROR if self.error else 0
        if self.state == "connecting":
            return bits
        if self.state in ("new", "over") or not (self.receives or self.sends):
            bits |= HANGUP
        if not self.receives:
            bits |= READABLE | PEER_HANGUP
        if self.arrived:
            bits |= READABLE
        if (not self.sends and self.is_tcp) or self._has_space():
            bits |= WRITABLE
        else:
            self.short_of_space = True
        return bits

    @property
    def _queued(self) -> int:
        """Bytes sent that the peer has not received."""
        return 0 if self.peer is None else len(self.peer.arrived) + self.peer.flying

    @property
    def room(self) -> int:
        """Bytes that a send could take now."""
        return max(0, self.network.capacity - self._queued)

    def _has_space(self) -> bool:
        capacity = self.network.capacity
        return 3 * self._queued <= (2 * capacity if self.is_tcp else capacity)

    # --- Calls -----------------------------------------------------------------------------------

    def receive(self, room: int, *, peek: bool = False) -> tuple[bytes, bool, Any]:
        if self.arrived:
            data = bytes(self.arrived[:room])
            if not peek:
                del self.arrived[:room]
                self._made_space()
            return data, False, None
        if self.ended and self.is_tcp:
            return b"", False, None
        self.check_error()
        if not self.receives:
            return b"", False, None
        if self.state in ("new", "connecting"):
            raise failure(errno.ENOTCONN if self.is_tcp else errno.EINVAL)
        raise failure(errno.EAGAIN)

    def _made_space(self) -> None:
        sender = self.peer
        if sender is not None and sender.short_of_space and sender._has_space():
            sender.short_of_space = False
            sender.wake(WRITABLE)

    def send(self, data: bytes, address: Any = None) -> int:
        if self.state == "connecting":
            raise failure(errno.EAGAIN)
        if self.state == "new":
            raise failure(errno.EPIPE if self.is_tcp else errno.ENOTCONN)
        if self.is_tcp:
            self.check_error()
        if not self.sends:
            raise failure(errno.EPIPE)
        peer = self.peer
        assert peer is not None
        if not self.is_tcp and (peer.closed or not peer.receives):
            raise failure(errno.EPIPE)
        part = bytes(data[: self.room])
        if not part:
            self.short_of_space = True
            raise failure(errno.EAGAIN)
        if len(part) < len(data):
            self.short_of_space = True
        peer.flying += len(part)
        self._travel(lambda: peer.arrive(part))
        return len(part)

    def connect(self, address: Any) -> int:
        if self.state == "connected":
            if self.announced:
                return errno.EISCONN
            self.announced = True
            return 0
        if self.state == "connecting":
            return errno.EALREADY
        if self.error:
            return self.take_error()
        return self.network.dial(self, address)

    def shutdown(self, how: int) -> None:
        if self.state != "connected":
            raise failure(errno.ENOTCONN)
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.receives = False
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and self.sends:
            self.sends = False
            self._send_end()
            if self.is_tcp and self.ended:
                self.state = "over"
        self.wake(READABLE | WRITABLE | HANGUP)

    def release(self) -> None:
        peer, unread = self.peer, bool(self.arrived)
        if peer is None or self.state != "connected":
            return
        self.state = "over"
        if not self.is_tcp:
            peer.gone(errno.ECONNRESET if unread else 0)
        elif unread or not self.lingers:
            self._travel(peer.reset)
        elif self.sends:
            self._send_end()

    def _send_end(self) -> None:
        peer = self.peer
        assert peer is not None
        self._travel(peer.end)

    def _travel(self, arrive: Callable[[], None]) -> None:
        """What is sent arrives in its order, after the network's latency; on Unix at once."""
        self.network.after(self.network.latency if self.is_tcp else 0, arrive)

    # --- What arrives ----------------------------------------------------------------------------

    def arrive(self, data: bytes) -> None:
        self.flying -= len(data)
        if self.closed:
            if self.is_tcp and self.peer is not None:
                self._travel(self.peer.reset)
        elif self.state != "over":
            self.arrived += data
            self.wake(READABLE)

    def end(self) -> None:
        """The peer's FIN."""
        if self.closed or self.state == "over":
            return
        self.ended, self.receives = True, False
        if self.is_tcp and not self.sends:
            self.state = "over"
        self.wake(READABLE | PEER_HANGUP | (0 if self.sends else HANGUP))

    def gone(self, number: int) -> None:
        """The other end of a Unix pair was closed."""
        if self.closed:
            return
        self.error = number
        self.receives = self.sends = False
        self.wake(READABLE | WRITABLE | PEER_HANGUP | HANGUP)

    def reset(self) -> None:
        """The peer's RST."""
        if self.closed or self.state == "over":
            return
        self.error = errno.EPIPE if self.ended else errno.ECONNRESET
        self.state = "over"
        self.receives = self.sends = False
        self.wake(READABLE | WRITABLE | ERROR | PEER_HANGUP | HANGUP)

    def refused(self, number: int) -> None:
        """Nobody listens where it wanted to connect."""
        if self.closed:
            return
        self.state, self.error = "new", number
        self.receives = self.sends = False
        self.wake(READABLE | WRITABLE | ERROR | PEER_HANGUP | HANGUP)

    def established(self, peer: Stream, address: Any) -> None:
        self.join(peer)
        self.peername = address
        self.wake(WRITABLE)
