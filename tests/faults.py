"""Faults: the n-th system call of some kind fails with an errno of our choice, and truly so.

The watcher must not be told what the system never says. After EAGAIN there is an edge once more
when there was something after all; a descriptor that epoll does not know any more is indeed
somebody else's; a connect(2) that was interrupted goes on.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import aiogaio.attempts.files
import aiogaio.attempts.splices
import aiogaio.delegation
import aiogaio.descriptor
import aiogaio.pollers.epoll
import aiogaio.proactor
import aiogaio.reads
from aiogaio.connection import Record
from aiogaio.descriptor import FileRecord
from aiogaio.proactor import Proactor

OF_RECORDS = (
    "recv",
    "recv_into",
    "recvmsg",
    "recvmsg_into",
    "send",
    "sendmsg",
    "_accept",
    "shutdown",
    "setblocking",
    "setsockopt",
    "getsockopt",
)
TURNS = ("_look", "_take_read", "_take_one")


@dataclass
class Fault:
    """The call ``name`` fails with ``number`` when it is made for the ``at``-th time.

    And the next times, too: ``times`` in all, or as long as it ``lasts``, in seconds.
    """

    name: str = ""
    number: int = 0
    at: int = 0
    times: int = 1
    lasts: float = 0.0
    made: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    hits: int = 0
    victims: list[Any] = field(default_factory=list)  # weakly: a record lost is to be closed
    foreign: list[int] = field(default_factory=list)
    edge: Callable[[int], None] | None = None
    _over: float = 0.0

    def strike(self, name: str, victim: Any, *descriptors: int) -> None:
        """Raise, if it is the turn of this call."""
        if self.due(name, victim):
            if self.number == errno.EAGAIN and self.edge is not None:
                for descriptor in descriptors:
                    self.edge(descriptor)
            raise self.error()

    def due(self, name: str, victim: Any) -> bool:
        self.made[name] += 1
        if name != self.name or self.made[name] < self.at:
            return False
        if not self.hits:
            self._over = time.monotonic() + self.lasts
        if self.made[name] >= self.at + self.times and time.monotonic() >= self._over:
            return False
        self.hits += 1
        self.victims.append(weakref.ref(victim) if isinstance(victim, Record) else victim)
        return True

    def struck(self, record: Record) -> bool:
        """Whether a call of this very connection has failed."""
        return any(isinstance(v, weakref.ref) and v() is record for v in self.victims)

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def let_go(self) -> None:
        """Close what took the place of descriptors that were lost; it has to be there still."""
        for descriptor in self.foreign:
            os.close(descriptor)


@contextmanager
def injecting(fault: Fault, *, accept_rest: float = 0.01) -> Iterator[Fault]:
    """Watchers made in here meet the fault. Also counts their calls, and their turns."""
    with ExitStack() as stack:
        for target, name, new in (
            (aiogaio.delegation, "Record", _faulty_record(Record, fault)),
            (aiogaio.descriptor, "FileRecord", _faulty_record(FileRecord, fault)),
            (aiogaio.pollers.epoll, "select", _Select(fault)),
            (aiogaio.attempts.files, "os", _System(fault)),
            (aiogaio.attempts.splices, "os", _System(fault)),
            (aiogaio.proactor, "open_poller", _opener(fault)),
            (aiogaio.reads, "_ACCEPT_REST", accept_rest),
        ):
            stack.enter_context(patch.object(target, name, new))
        for name in TURNS:
            stack.enter_context(patch.object(Proactor, name, _counted(name, fault)))
        stack.callback(fault.let_go)
        yield fault


def is_lost(record: Record) -> bool:
    """Whether it has had its error, after which no call on it has to wait for anything."""
    poll = select.poll()
    poll.register(record.fileno(), 0)
    return any(bits & (select.POLLERR | select.POLLHUP) for _, bits in poll.poll(0))


def _faulty_record(base: type[Record], fault: Fault) -> type[Record]:
    """The class of records whose system calls may fail."""

    def faulty(name: str) -> Callable[..., Any]:
        call = getattr(base, name)

        def method(self: Record, *args: Any) -> Any:
            if fault.number != errno.EAGAIN or not is_lost(self):
                fault.strike(name, self, self.fileno())
            return call(self, *args)

        return method

    def connect_ex(self: Record, address: Any) -> int:
        first = self not in asked
        asked.add(self)
        if not fault.due("connect_ex", self):
            return base.connect_ex(self, address)
        if fault.number == errno.EINTR:
            if first:
                base.connect_ex(self, address)
            elif fault.edge is not None:
                fault.edge(self.fileno())
        return fault.number

    asked: weakref.WeakSet[Record] = weakref.WeakSet()
    methods = {name: faulty(name) for name in OF_RECORDS}
    return type(base.__name__, (base,), {"__slots__": (), "connect_ex": connect_ex, **methods})


class _Epoll:
    """A select.epoll that may fail."""

    def __init__(self, fault: Fault) -> None:
        self._epoll = select.epoll()
        self._fault = fault
        self._masks: dict[int, int] = {}
        fault.edge = self._edge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def _edge(self, fd: int) -> None:
        """Tell once more of what is there."""
        if fd in self._masks:
            self._epoll.modify(fd, self._masks[fd])

    def register(self, fd: int, mask: int) -> None:
        self._fault.strike("register", fd)
        self._epoll.register(fd, mask)
        self._masks[fd] = mask

    def modify(self, fd: int, mask: int) -> None:
        self._fault.strike("modify", fd)
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        self._masks.pop(fd, None)
        if self._fault.due("unregister", fd):  # somebody has closed it behind our back
            os.close(fd)
            if self._fault.number == errno.ENOENT:  # and the number is another's
                with socket.socket() as other:
                    if other.fileno() != fd:
                        os.dup2(other.fileno(), fd)
                    else:
                        other.detach()
                self._fault.foreign.append(fd)
        self._epoll.unregister(fd)

    def poll(self, timeout: float, limit: int) -> list[tuple[int, int]]:
        self._fault.strike("poll", None)
        return self._epoll.poll(timeout, limit)


class _Select:
    """What the epoll poller knows of the module ``select``."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def epoll(self) -> _Epoll:
        return _Epoll(self._fault)


class _System:
    """The module ``os``, of which some functions may fail."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def splice(self, source: int, target: int, *args: Any, **options: Any) -> int:
        self._fault.strike("splice", (source, target), source, target)
        return os.splice(source, target, *args, **options)

    def sendfile(self, target: int, *args: Any) -> int:
        self._fault.strike("sendfile", target, target)
        return os.sendfile(target, *args)

    def pipe2(self, flags: int) -> tuple[int, int]:
        self._fault.strike("pipe2", None)
        return os.pipe2(flags)


class _Loop:
    """The loop as a poller sees it: its hooks may fail."""

    def __init__(self, loop: Any, fault: Fault) -> None:
        self._loop = loop
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, fd: int, *args: Any) -> None:
        self._fault.strike("add_reader", fd)
        self._loop.add_reader(fd, *args)

    def add_writer(self, fd: int, *args: Any) -> None:
        self._fault.strike("add_writer", fd)
        self._loop.add_writer(fd, *args)

    def remove_reader(self, fd: int) -> Any:
        return self._remove("remove_reader", fd)

    def remove_writer(self, fd: int) -> Any:
        return self._remove("remove_writer", fd)

    def _remove(self, name: str, fd: int) -> Any:
        removed = getattr(self._loop, name)(fd)
        if self._fault.due(name, fd):  # it forgets the callback, and says that it could not
            raise self._fault.error()
        return removed


def _opener(fault: Fault) -> Callable[..., Any]:
    open_poller = aiogaio.proactor.open_poller

    def opened(name: str, loop: Any, target: Any) -> Any:
        poller: Any = open_poller(name, loop, target)
        if name == "loop":  # the other asks it for one descriptor, that nobody can take away
            poller._loop = _Loop(loop, fault)
        return poller

    return opened


def _counted(name: str, fault: Fault) -> Callable[..., Any]:
    call = getattr(Proactor, name)

    def counted(*args: Any) -> Any:
        fault.turns += 1
        return call(*args)

    return counted
