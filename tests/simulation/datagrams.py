"""Datagrams: udp(7). What does not fit into the receiver's buffer is lost."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simulation.description import ERROR, READABLE, WRITABLE, Description, failure

if TYPE_CHECKING:
    from tests.simulation.network import Network

_LARGEST = 65507


class Datagrams(Description):
    """A UDP socket, bound on its way into life."""

    family = socket.AF_INET
    type = socket.SOCK_DGRAM
    proto = socket.IPPROTO_UDP

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.sockname = network.bind(self)
        self.arrived: deque[tuple[bytes, Any]] = deque()

    def mask(self) -> int:
        return WRITABLE | (READABLE if self.arrived else 0) | (ERROR if self.error else 0)

    def receive(self, room: int, *, peek: bool = False) -> tuple[bytes, bool, Any]:
        self.check_error()
        if not self.arrived:
            raise failure(errno.EAGAIN)
        data, sender = self.arrived[0] if peek else self.arrived.popleft()
        return data[:room], len(data) > room, sender

    def send(self, data: bytes, address: Any = None) -> int:
        self.check_error()
        target = address or self.peername
        if target is None:
            raise failure(errno.EDESTADDRREQ)
        if len(data) > _LARGEST:
            raise failure(errno.EMSGSIZE)
        self.network.after(self.network.latency, lambda: self._arrive_at(target, bytes(data)))
        return len(data)

    def _arrive_at(self, target: Any, data: bytes) -> None:
        receiver = self.network.bound.get(target)
        if receiver is None:
            if self.peername is not None and not self.closed:  # ICMP: nobody is there
                self.error = errno.ECONNREFUSED
                self.wake(READABLE | WRITABLE | ERROR)
        elif receiver.peername in (None, self.sockname):
            held = sum(len(waiting) + 256 for waiting, _ in receiver.arrived)
            if held + len(data) <= self.network.capacity:
                receiver.arrived.append((data, self.sockname))
                receiver.wake(READABLE)

    def connect(self, address: Any) -> int:
        self.peername = address
        return 0

    def release(self) -> None:
        self.network.bound.pop(self.sockname, None)
