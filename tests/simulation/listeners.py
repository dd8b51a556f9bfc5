"""Listeners: connections that wait to be accepted."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simulation.description import READABLE, Description, failure

if TYPE_CHECKING:
    from tests.simulation.network import Network
    from tests.simulation.streams import Stream


class Listener(Description):
    """A listening socket at an address of the network."""

    type = socket.SOCK_STREAM

    def __init__(self, network: Network, family: int, address: Any, backlog: int) -> None:
        super().__init__(network)
        self.family, self.sockname, self.backlog = family, address, backlog
        self.proto = socket.IPPROTO_TCP if family != socket.AF_UNIX else 0
        self.waiting: deque[Stream] = deque()

    @property
    def full(self) -> bool:
        return len(self.waiting) > self.backlog

    def mask(self) -> int:
        return READABLE if self.waiting else 0

    def arrive(self, stream: Stream) -> None:
        self.waiting.append(stream)
        self.wake(READABLE)

    def accept(self) -> Stream:
        if not self.waiting:
            raise failure(errno.EAGAIN)
        return self.waiting.popleft()

    def getsockopt(self, level: int, option: int) -> Any:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return 1
        return super().getsockopt(level, option)

    def release(self) -> None:
        self.network.listeners.pop(self.sockname, None)
        while self.waiting:  # nobody will ever accept them
            stream = self.waiting.popleft()
            if stream.peer is not None:
                stream.peer.reset()
