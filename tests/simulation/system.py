"""In the place of the system calls that the watcher makes: the network's, for its descriptors."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from aiogaio import completions, connection, delegation, inbox, proactor
from aiogaio.attempts import files, splices
from aiogaio.connection import Record
from aiogaio.pollers import epoll, loop
from tests.simulation.readiness import SimulatedEpoll, SimulatedPoll
from tests.simulation.sockets import record_of
from tests.simulation.streams import Stream

if TYPE_CHECKING:
    from types import ModuleType

    from tests.simulation.network import Network


class _Over:
    """A module, with some of its names replaced."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Replaced:
    """The names that the watcher's modules look up, for as long as a network is in place."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._stack = ExitStack()

    def put_in_place(self) -> None:
        network = self._network
        clock = _Over(time, monotonic=lambda: network.now)
        for module, name, value in (
            (delegation, "Record", self._record),
            (delegation, "socket", _Over(socket, close=self._close)),
            (connection, "select", _Over(select, poll=self._poll)),
            (epoll, "select", _Over(select, epoll=lambda: SimulatedEpoll(network))),
            (loop, "os", _Over(os, fstat=self._fstat)),
            (splices, "os", _Over(os, splice=self._splice)),
            (files, "os", _Over(os, sendfile=self._sendfile)),
            (completions, "time", clock),
            (proactor, "time", clock),
            (inbox, "time", clock),
        ):
            self._stack.enter_context(patch.object(module, name, value))

    def take_back(self) -> None:
        self._stack.close()

    def _record(self, family: int, kind: int, proto: int, fd: int, *, listening: bool) -> Record:
        if self._network.has(fd):
            return record_of(self._network, fd, listening=listening)
        return Record(family, kind, proto, fd, listening=listening)

    def _close(self, fd: int) -> None:
        if self._network.has(fd):
            self._network.close(fd)
        else:
            socket.close(fd)

    def _poll(self) -> Any:
        return SimulatedPoll(self._network)

    def _fstat(self, fd: int) -> Any:
        if self._network.has(fd):
            return SimpleNamespace(st_ino=self._network.description(fd).inode)
        return os.fstat(fd)

    def _splice(self, source: int, target: int, count: int, **options: Any) -> int:
        """Between a simulated socket and a real pipe, as the relay has them."""
        network = self._network
        if network.has(source):
            network.call("recv", network.description(source))
            data = network.description(source).receive(count, peek=True)[0]
            moved = os.write(target, data) if data else 0
            network.description(source).receive(moved)
            return moved
        network.call("send", network.description(target))
        stream = network.description(target)
        assert isinstance(stream, Stream)
        data = os.read(source, min(count, stream.room)) if stream.room else b"\0"
        return stream.send(data)  # with no room it takes nothing, and says why

    def _sendfile(self, target: int, source: int, offset: int, count: int) -> int:
        network = self._network
        if not network.has(target):
            return os.sendfile(target, source, offset, count)
        network.call("send", network.description(target))
        data = os.pread(source, count, offset)
        return network.description(target).send(data) if data else 0
