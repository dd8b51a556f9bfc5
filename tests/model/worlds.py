"""Worlds: what a session runs on. The simulated network, and the real one."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

from tests.probes import events, ready
from tests.simulation import Network
from tests.simulation.network import FIRST_DESCRIPTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiogaio import Connection


class World:
    """A loop that is turned by hand, and sockets on it."""

    loop: asyncio.AbstractEventLoop
    listener: Any  # for those who connect

    #: Whether the clock is the session's: then any time may pass, and nothing is ever late.
    virtual: bool

    def __init__(self) -> None:
        self._arrived: dict[Any, Any] = {}  # peers of those who have connected, by their address

    @property
    def now(self) -> float:
        return self.loop.time()

    def turn(self) -> None:
        """One iteration of the loop, without waiting."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def peer_of(self, conn: Connection) -> Any:
        """The other end of a connection that was made to ``listener``."""
        while True:
            try:
                peer, address = self.listener.accept()
            except BlockingIOError:
                return self._arrived.pop(conn.sockname)
            except OSError:  # a fault that was meant for the watcher
                continue
            self._arrived[address] = peer

    def close(self) -> None:
        for peer in self._arrived.values():
            peer.close()
        self.listener.close()
        self.loop.close()


class SimulatedWorld(World):
    """A network of its own, with buffers that are soon full."""

    virtual = True

    def __init__(self, *, latency: float = 0.0, cost: float = 0.0) -> None:
        super().__init__()
        self.network = Network(latency=latency, capacity=4096, cost=cost)
        self.network.__enter__()
        self.loop = self._loop = self.network.new_event_loop()
        self.listener = self.network.create_server()
        self.network.unreachable.add(("192.0.2.1", 9))
        self.loop.set_exception_handler(self._note)

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the watcher has raised: the loop would only log it."""
        self.network.violations.append(f"{context['message']}: {context.get('exception')!r}")

    def pair(self, kind: str) -> tuple[Any, Any]:
        return self.network.socketpair(kind)

    def server(self) -> Any:
        return self.network.create_server()

    def dial(self, address: Any) -> Any:
        return self.network.create_connection(address)

    def socket(self, kind: str = "tcp") -> Any:
        return self.network.socket(kind)

    def settle(self) -> None:
        self._loop.settle()

    @property
    def busy(self) -> bool:
        """Whether a turn of the loop would do anything."""
        return self._loop._busy()

    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def jump(self, seconds: float) -> None:
        """Let time pass in which the loop does not turn."""
        self.network.now += seconds

    def readiness(self, conn: Connection) -> int:
        return self.network.description(conn.fileno()).mask()

    def fail(self, call: str, number: int, after: int) -> None:
        self.network.fail(call, number, after=after)

    def repair(self) -> None:
        self.network.repair()

    def close(self) -> None:
        watched = [fd for fd in self._loop._selector.get_map() if fd >= FIRST_DESCRIPTOR]
        try:
            super().close()
        finally:
            self.network.__exit__()
        assert watched == [], "the loop watches descriptors that are closed"
        assert self.network.violations == []
        assert self.network.open_descriptors == 0, "descriptors are left open"


class RealWorld(World):
    """Sockets of this machine, with small buffers, on a loop of either kind."""

    virtual = False

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        super().__init__()
        self.loop = new_loop()
        self.listener = self.server()

    def pair(self, kind: str) -> tuple[Any, Any]:
        if kind == "unix":
            pair = socket.socketpair()
            for sock in pair:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return pair
        peer = self.dial(self.listener.getsockname())
        return self._arrival(peer.getsockname()), peer

    def peer_of(self, conn: Connection) -> Any:
        return self._arrival(conn.sockname)

    def _arrival(self, name: Any) -> Any:
        """Who has connected from there. Loopback takes its time: the listener may know later."""
        while name not in self._arrived:
            ready(self.listener)
            peer, address = self.listener.accept()
            self._arrived[address] = peer
        return self._arrived.pop(name)

    def server(self) -> Any:
        listener = _small_socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        return listener

    def dial(self, address: Any) -> Any:
        peer = self.socket()
        peer.setblocking(True)
        peer.connect(address)
        peer.setblocking(False)
        return peer

    def socket(self, kind: str = "tcp") -> Any:
        if kind == "udp":
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
        else:
            sock = _small_socket()
        sock.setblocking(False)
        return sock

    def settle(self) -> None:
        for _ in range(10):
            self.turn()

    def pass_time(self, seconds: float) -> None:
        stop = time.monotonic() + min(seconds, 0.005)
        self.loop.run_until_complete(asyncio.sleep(stop - time.monotonic()))
        while self.now < stop:  # the time of uvloop stands still between its iterations
            self.turn()

    def readiness(self, conn: Connection) -> int:
        return events(conn)

    def fail(self, call: str, number: int, after: int) -> None:
        """Real system calls are not made to fail here."""

    def repair(self) -> None:
        """So none need be repaired."""


def _small_socket() -> socket.socket:
    """Of TCP, with buffers that are soon full; what a listener accepts has them, too."""
    sock = socket.socket()
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 4096)
    return sock
