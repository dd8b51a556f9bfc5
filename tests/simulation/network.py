"""The network: its clock, its descriptors, what is on its way, and faults on demand."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import socket
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Self

from tests.simulation.datagrams import Datagrams
from tests.simulation.description import Description, failure
from tests.simulation.listeners import Listener
from tests.simulation.loop import VirtualLoop
from tests.simulation.sockets import SimulatedSocket
from tests.simulation.streams import Stream
from tests.simulation.system import Replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

#: Simulated descriptors have numbers that no real one has.
FIRST_DESCRIPTOR = 1000


class Network:
    """A network of sockets that exist in this process only.

    :param latency: seconds that bytes, ends, resets and connects take to the other side.
    :param capacity: bytes that a direction of a connection holds before a send finds no room.
    :param cost: seconds that a system call takes.

    As a context manager it stands in for the system: watchers made meanwhile take its sockets.
    """

    def __init__(self, *, latency: float = 0.0, capacity: int = 65536, cost: float = 0.0) -> None:
        self.latency, self.capacity, self.cost = latency, capacity, cost
        self.now = 1.0
        self.calls: Counter[str] = Counter()
        self.violations: list[str] = []  # rules that the program under test has broken
        self.listeners: dict[Any, Listener] = {}
        self.bound: dict[Any, Datagrams] = {}
        self.unreachable: set[Any] = set()  # addresses that never answer
        self._descriptions: dict[int, Description] = {}
        self._free: list[int] = []
        self._numbers = itertools.count(FIRST_DESCRIPTOR)
        self._inodes = itertools.count(1)
        self._ports = itertools.count(40_000)
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._faults: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._replaced = Replaced(self)

    # --- For programs ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._replaced.put_in_place()
        return self

    def __exit__(self, *_: object) -> None:
        self._replaced.take_back()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on a loop of this network, as :func:`asyncio.run` does."""
        with asyncio.Runner(loop_factory=self.new_event_loop) as runner:
            return runner.run(main)

    def new_event_loop(self) -> VirtualLoop:
        return VirtualLoop(self)

    def socketpair(self, kind: str = "tcp") -> tuple[SimulatedSocket, SimulatedSocket]:
        """Two connected streams, of ``"tcp"`` or ``"unix"``."""
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        ours, theirs = Stream(self, family), Stream(self, family)
        ours.join(theirs)
        if kind == "tcp":
            ours.sockname = theirs.peername = self._new_address()
            theirs.sockname = ours.peername = self._new_address()
            ours.announced = theirs.announced = True
        return self._socket_of(ours), self._socket_of(theirs)

    def socket(self, kind: str = "tcp") -> SimulatedSocket:
        """A stream that is not connected, or a bound ``"udp"`` socket."""
        if kind == "udp":
            return self._socket_of(Datagrams(self))
        return self._socket_of(Stream(self, socket.AF_INET if kind == "tcp" else socket.AF_UNIX))

    def create_server(self, address: Any = None, *, backlog: int = 128) -> SimulatedSocket:
        """A listener; an address that is a path makes it a Unix one."""
        address = self._new_address() if address is None else address
        if address in self.listeners:
            raise failure(errno.EADDRINUSE)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.listeners[address] = listener = Listener(self, family, address, backlog)
        return self._socket_of(listener)

    def create_connection(self, address: Any) -> SimulatedSocket:
        """A stream that connects to a listener; with a latency it is not connected yet."""
        sock = self.socket("unix" if isinstance(address, str) else "tcp")
        number = sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            raise failure(number)
        if not self.latency:
            self.run_due()
        return sock

    def fail(self, call: str, number: int, *, after: int = 0, times: int = 1) -> None:
        """Let a system call fail with an errno: ``recv``, ``send``, ``accept``, ``connect``,
        ``shutdown``, ``epoll_ctl`` or ``epoll_wait``; not the next ``after`` calls, but those then.
        """
        first = self.calls[call] + after + 1
        self._faults[call].update(dict.fromkeys(range(first, first + times), number))

    def repair(self) -> None:
        """Let no call fail that has not failed yet."""
        self._faults.clear()

    @property
    def open_descriptors(self) -> int:
        return len(self._descriptions)

    # --- Time ------------------------------------------------------------------------------------

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in a while, or at once; what falls on one moment keeps its order."""
        if seconds <= 0:
            action()
        else:
            heapq.heappush(self._coming, (self.now + seconds, next(self._order), action))

    def soon(self, action: Callable[[], None]) -> None:
        """Do something before anybody looks again, but not yet."""
        heapq.heappush(self._coming, (self.now + self.latency, next(self._order), action))

    def run_due(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            heapq.heappop(self._coming)[2]()

    @property
    def next_event(self) -> float | None:
        """When something happens by itself; ``None`` for never."""
        return self._coming[0][0] if self._coming else None

    # --- For what is behind descriptors ----------------------------------------------------------

    def call(self, name: str, description: Description) -> None:
        """A system call is made: count it, let it take its time, and fail if it shall."""
        self.calls[name] += 1
        self.now += self.cost
        number = self._faults[name].pop(self.calls[name], 0)
        if number:
            raise failure(number)

    def next_inode(self) -> int:
        return next(self._inodes)

    def open(self, description: Description) -> int:
        """The lowest number that is free, as POSIX wants it."""
        number = heapq.heappop(self._free) if self._free else next(self._numbers)
        self._descriptions[number] = description
        return number

    def description(self, number: int) -> Description:
        try:
            return self._descriptions[number]
        except KeyError:
            raise failure(errno.EBADF) from None

    def has(self, number: int) -> bool:
        return number in self._descriptions

    def close(self, number: int) -> None:
        description = self.description(number)
        del self._descriptions[number]
        heapq.heappush(self._free, number)
        description.drop()

    def bind(self, datagrams: Datagrams) -> Any:
        address = self._new_address()
        self.bound[address] = datagrams
        return address

    def dial(self, stream: Stream, address: Any) -> int:
        """Begin to connect; the errno that connect(2) returns."""
        if not stream.is_tcp:
            listener = self.listeners.get(address)
            if listener is None:
                return errno.ECONNREFUSED
            if listener.full:
                return errno.EAGAIN
            self._accept(stream, listener)
            return 0
        stream.state = "connecting"
        stream.receives = stream.sends = True
        stream.sockname = self._new_address()
        if address not in self.unreachable:
            self.soon(lambda: self._answer(stream, address))
        return errno.EINPROGRESS

    def _answer(self, stream: Stream, address: Any) -> None:
        listener = self.listeners.get(address)
        if stream.closed or stream.state != "connecting":
            return
        if listener is None:
            stream.refused(errno.ECONNREFUSED)
        elif listener.full:  # the system tries again
            self.after(max(self.latency, 1.0), lambda: self._answer(stream, address))
        else:
            self._accept(stream, listener)

    def _accept(self, stream: Stream, listener: Listener) -> None:
        other = Stream(self, stream.family)
        other.sockname, other.peername = listener.sockname, stream.sockname
        other.announced = True
        stream.established(other, listener.sockname)
        listener.arrive(other)

    def _new_address(self) -> tuple[str, int]:
        return "127.0.0.1", next(self._ports)

    def _socket_of(self, description: Description) -> SimulatedSocket:
        return SimulatedSocket(self, self.open(description))
