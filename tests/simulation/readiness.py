"""Who waits for descriptors: epoll(7), edge-triggered or not, and poll(2)."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

from tests.simulation.description import ERROR, HANGUP, READABLE, Description, failure

if TYPE_CHECKING:
    from tests.simulation.network import Network

_ALWAYS = ERROR | HANGUP


class Interest:
    """One descriptor in one epoll."""

    def __init__(self, epoll: SimulatedEpoll, fd: int, description: Description, bits: int) -> None:
        self.epoll, self.fd, self.description = epoll, fd, description
        self.set(bits)
        description.interests.append(self)

    def set(self, bits: int) -> None:
        self.bits = bits | _ALWAYS
        self.edges = bool(bits & select.EPOLLET)
        if self.description.mask() & self.bits:
            self.epoll.is_ready(self)

    def wake(self, bits: int) -> None:
        if bits & self.bits:
            self.epoll.is_ready(self)

    def remove(self) -> None:
        self.description.interests.remove(self)
        self.epoll.forget(self)


class SimulatedEpoll(Description):
    """In the place of ``select.epoll()``."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._interests: dict[int, Interest] = {}
        self._ready: dict[Interest, None] = {}  # in the order of their edges
        self._fd = network.open(self)

    def is_ready(self, interest: Interest) -> None:
        self._ready[interest] = None
        self.wake(READABLE)

    def forget(self, interest: Interest) -> None:
        self._ready.pop(interest, None)
        self._interests.pop(interest.fd, None)

    def mask(self) -> int:
        for interest in list(self._ready):
            if interest.description.mask() & interest.bits:
                return READABLE
            del self._ready[interest]  # nothing is left of what woke it
        return 0

    # As select.epoll has them

    def fileno(self) -> int:
        return self._fd

    def register(self, fd: int, bits: int) -> None:
        self.network.call("epoll_ctl", self)
        if fd in self._interests:
            raise failure(errno.EEXIST)
        self._interests[fd] = Interest(self, fd, self.network.description(fd), bits)

    def modify(self, fd: int, bits: int) -> None:
        self.network.call("epoll_ctl", self)
        self._find(fd).set(bits)

    def unregister(self, fd: int) -> None:
        self.network.call("epoll_ctl", self)
        self._find(fd).remove()

    def poll(self, timeout: float = 0, limit: int = 512) -> list[tuple[int, int]]:
        self.network.call("epoll_wait", self)
        events = []
        for interest in list(self._ready):
            if len(events) == limit:
                break
            del self._ready[interest]
            bits = interest.description.mask() & interest.bits
            if bits:
                events.append((interest.fd, bits))
                if not interest.edges:
                    self._ready[interest] = None
        return events

    def close(self) -> None:
        if not self.closed:
            self.network.close(self._fd)

    def release(self) -> None:
        for interest in list(self._interests.values()):
            interest.remove()

    def _find(self, fd: int) -> Interest:
        self.network.description(fd)  # EBADF
        if fd not in self._interests:
            raise failure(errno.ENOENT)
        return self._interests[fd]


class SimulatedPoll:
    """In the place of ``select.poll()``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._asked: list[tuple[int, int]] = []

    def register(self, fd: int, bits: int) -> None:
        self._asked.append((fd, bits | _ALWAYS))

    def poll(self, timeout: float = 0) -> list[tuple[int, int]]:
        found = [(fd, self._network.description(fd).mask() & bits) for fd, bits in self._asked]
        return [(fd, bits) for fd, bits in found if bits]
