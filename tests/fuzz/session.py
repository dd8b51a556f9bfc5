"""Sessions: the steps of the model, and those that only a wrong or a strange program makes."""

from __future__ import annotations

import array
import asyncio
import errno
import gc
import inspect
import math
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any

from aiogaio import (
    AioGaioError,
    Connection,
    Operation,
    OpType,
    QueueFullError,
    Watcher,
    WatcherClosedError,
)
from tests.fuzz.requests import OddRequest
from tests.fuzz.values import ODD
from tests.model.lines import Line
from tests.model.requests import ASIDE, READS, WRITES, Request
from tests.model.session import _KINDS as _MODEL_KINDS
from tests.model.session import Session
from tests.model.worlds import SimulatedWorld

#: What a call may raise, whatever it was given.
DOCUMENTED = (AioGaioError, TypeError, ValueError)

#: The calls, and the queue of each that makes a request; ``None`` for the others.
_CALLS: dict[str, str | None] = {
    "read": READS,
    "read_full": READS,
    "read_until": READS,
    "recvfrom": READS,
    "recvmsg": READS,
    "accept": READS,
    "write": WRITES,
    "writev": WRITES,
    "sendto": WRITES,
    "sendmsg": WRITES,
    "sendfile": WRITES,
    "shutdown": WRITES,
    "connect": ASIDE,
    "notify_hangup": ASIDE,
    "relay": ASIDE,
    "delegate": None,
    "free": None,
    "pending": None,
    "cancel": None,
    "adopt": None,
    "set_affinity": None,
}
_BY_THREADS = ("read", "read_full", "write", "accept", "cancel", "free")
_CONNECTIONS = ("conn", "sock", "listener", "a", "b")
_KINDS = {"relay": "relay", "connect": "connect", "accept": "accept", "notify_hangup": "hangup"}

#: How many, for those who choose by number.
CALLS = len(_CALLS)

_FRESH = ("tcp", "unix", "udp", "listener", "unconnected")
_OTHERS = ("listens", "spent", "closed", "closed for real", "foreign", "foreign and spent")

VALUES = len(_FRESH) + len(_OTHERS) + len(ODD)

#: Faults that the model does not have: of any of these calls, the peers' among them.
_FAULTS = (
    ("recv", errno.ECONNRESET),
    ("recv", errno.ENOMEM),
    ("recv", errno.ETIMEDOUT),
    ("send", errno.EPIPE),
    ("send", errno.ECONNRESET),
    ("send", errno.EMSGSIZE),
    ("accept", errno.EPROTO),
    ("accept", errno.ENOBUFS),
    ("connect", errno.ENETUNREACH),
    ("connect", errno.EADDRNOTAVAIL),
    ("shutdown", errno.ENOTCONN),
)

_LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"max_pending": (3, 8)},
    {"max_queued_bytes": (4000, 9000)},
    {"max_pending": 10_000},
)


class _Counter:
    """An instrument that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def submitted(self, _: object) -> None:
        self.calls += 1

    completed = batch = connection_opened = connection_closed = submitted


class FuzzSession(Session):
    """A session of the model that also makes mistakes."""

    world: SimulatedWorld

    def __init__(self, world: SimulatedWorld, poller: str, config: int = 0) -> None:
        self._first = config
        self._drains: list[asyncio.Task[None]] = []
        self._fresh: list[tuple[Any, Any, str]] = []  # sockets made for the call in hand
        self._troubled = False  # any call may have failed
        super().__init__(world, poller)
        self._stranger = super()._new_watcher(0)
        ours, self._strange_peer = world.pair("tcp")
        self._strange_socket = ours
        self._strange_pending = self._stranger.read(ours)
        self._closed = super()._new_watcher(0)
        self._closed.close()

    def _new_watcher(self, config: int) -> Watcher:
        config += self._first
        options: dict[str, Any] = {
            "batch_size": (128, 4, 1)[config % 3],
            "buffer_size": (65536, 64)[config // 3 % 2],
            **_LIMITS[config // 6 % len(_LIMITS)],
        }
        if config // 24 % 2:
            options["instrument"] = _Counter()

        async def make() -> Watcher:
            return Watcher(poller=self._poller, **options)  # type: ignore[arg-type]

        return self.world.loop.run_until_complete(make())

    # --- What the model's own steps meet here ----------------------------------------------------

    def _submit(self, request: Request, call: Callable[[], Operation | None]) -> None:
        try:
            super()._submit(request, call)
        except QueueFullError:  # it was never made
            assert request.op is None
            for line in request.lines:
                line.requests.remove(request)
                for name in (READS, WRITES, ASIDE):
                    if request in line.queue(name):
                        line.queue(name).remove(request)

    def _add_line(self, ours: Any, peer: Any, kind: str) -> Line:
        line = super()._add_line(ours, peer, kind)
        line.lost = line.lost or self._troubled
        return line

    def open(self, kind: int) -> None:
        if not (self._troubled and _MODEL_KINDS[kind % len(_MODEL_KINDS)] == "udp"):
            super().open(kind)  # else its connect may fail

    def forget(self, which: int) -> None:
        if not self._drains:  # which hold their connections
            super().forget(which)

    def dial(self) -> None:
        try:
            super().dial()
        except OSError:
            assert self._troubled

    def quiesce(self) -> None:
        super().quiesce()
        self._troubled = False

    def reap(self) -> None:
        super().reap()
        for drain in [one for one in self._drains if one.done()]:
            self._drains.remove(drain)
            if not drain.cancelled():
                assert drain.exception() is None

    def _enter_bytes(self, request: Request, op: Operation) -> None:
        if not isinstance(request, OddRequest):
            super()._enter_bytes(request, op)
            for line in request.lines:
                line.lost = line.lost or self._troubled
        elif op.type is OpType.ACCEPT and op.error is None:
            self._add_line(op.accepted, self._dialed.pop(op.address), "tcp")
        elif op.type is OpType.CONNECT and op.error is not None:
            request.line.failure = op.error
        elif op.type is OpType.READ and not request.spoiled:
            assert op.size == len(op.data)

    def finish_watcher(self) -> None:
        super().finish_watcher()
        self.world.settle()
        self.reap()
        assert not self._drains, "somebody waits for the writes of a closed watcher"

    def close(self) -> None:
        super().close()
        assert self._stranger.poll_io() == [], "another watcher was disturbed"
        self._close_strangers()

    def abandon(self) -> None:
        for drain in self._drains:
            drain.cancel()
        self._close_strangers()
        super().abandon()
        self.world.turn()  # in which the tasks end

    def _close_strangers(self) -> None:
        self._stranger.close()
        self._strange_peer.close()

    # --- Steps: calls with odd arguments ---------------------------------------------------------

    def call(self, which: int, how: int, line: int, name: int, value: int) -> None:
        """One of a call's arguments is odd, the others are as they should be."""
        self._call(which, how, line, [(name, value)])

    def call_with_two(
        self, which: int, how: int, line: int, name: int, value: int, other: int, another: int
    ) -> None:
        """Two are odd, or odd together."""
        self._call(which, how, line, [(name, value), (other, another)])

    def make_watcher(self, name: int, value: int) -> None:
        """Another watcher, whose options are odd."""
        options = ("buffer_size", "batch_size", "poller", "max_pending", "instrument")
        given = {options[name % len(options)]: ODD[value % len(ODD)]()}

        async def make() -> None:
            Watcher(**given).close()

        try:
            self.world.loop.run_until_complete(make())
        except DOCUMENTED:
            pass

    def _call(self, which: int, how: int, number: int, odd: list[tuple[int, int]]) -> None:
        name = list(_CALLS)[which % len(_CALLS)]
        watcher = self._closed if how % 8 == 7 else self.watcher
        posts = how % 2 == 1 and name in _BY_THREADS
        bound = getattr(watcher.threadsafe if posts else watcher, name)
        names = [one for one in inspect.signature(bound).parameters if one != "context"]
        arguments = self._usual(bound, name, number)
        for at, value in odd:
            given = names[at % len(names)]
            arguments[given] = self._odd(given, value)
        if arguments.get("cpu") in range(os.cpu_count() or 1):
            arguments["cpu"] = -1  # this process is not to be pinned
        before = self._snapshot(watcher)
        request = OddRequest(_KINDS.get(name, "odd"), (), _CALLS[name] or ASIDE, posted=posts)
        request.multishot = bool(arguments.get("multishot"))
        request.silent = bool(arguments.get("silent"))
        request.number = self._count = self._count + 1
        if _CALLS[name]:
            arguments["context"] = request
        ours = [one for one in self.lines if any(one.conn is arguments.get(a) for a in names)]
        frees = [line for line in ours if name == "free" and line.alive]
        for line in frees:
            line.freed = True
        try:
            result = bound(**arguments)
        except DOCUMENTED:
            for line in frees:  # as by a watcher that is closed, or not the line's
                line.freed = False
            fresh, self._fresh = self._fresh, []
            for sock, peer, _ in fresh:
                assert sock.fileno() >= 0, "a call that failed has taken a socket over"
                for each in filter(None, (sock, peer)):
                    each.close()
            assert self._snapshot(watcher) == before, "a call that failed has left something"
            return
        assert watcher is not self._closed or _CALLS[name] is None, "a closed watcher serves"
        self._check_accepted(arguments)
        self._enter_fresh()
        if _CALLS[name]:
            self._enter(request, result, arguments)
        elif name == "free" and posts:
            self.world.turn()  # it is on its way

    def _usual(self, bound: Any, name: str, number: int) -> dict[str, Any]:
        """What a call cannot do without, as it should be."""
        line = self._line(number, listens=name == "accept")
        usual: dict[str, Any] = {
            "buffer": bytearray(100),
            "data": b"12345678",
            "buffers": [b"1234", b"5678"],
            "separator": b"\n",
            "file": self._file,
            "address": self.world.listener.getsockname(),
            "op": self._strange_pending,
            "transport": None,
            "cpu": -1,
        }
        arguments = {}
        for given, parameter in inspect.signature(bound).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                continue
            if given not in _CONNECTIONS:
                arguments[given] = usual[given]
            elif given == "b" or line is None or name == "free":
                arguments[given] = self._odd(given, number % 2)
            else:
                arguments[given] = line.conn
        return arguments

    def _odd(self, name: str, value: int) -> Any:
        if name in ("multishot", "silent"):
            return value % 2 == 0
        if name not in _CONNECTIONS:
            return ODD[value % len(ODD)]()
        kinds = len(_FRESH) + len(_OTHERS)
        value %= kinds + len(ODD)
        if value >= kinds:
            odd = ODD[value - kinds]()
            if type(odd) is int and odd in (0, 1):  # descriptors that this process has
                odd = -1
            return odd
        if value < len(_FRESH):
            return self._make_fresh(_FRESH[value])
        match _OTHERS[value - len(_FRESH)]:
            case "listens":
                line = self._line(0, listens=True)
                return None if line is None else line.conn
            case "spent":
                lines = [line.conn for line in self.lines]
                spent = [sock for sock, conn in self.watcher._spent.items() if conn in lines]
                return spent[0] if spent else None
            case "closed":
                sock = self.world.socket()
                sock.close()
                return sock
            case "closed for real":
                with socket.socket() as sock:
                    pass
                return sock
            case "foreign":
                return self._strange_pending.conn
        return self._strange_socket

    def _make_fresh(self, kind: str) -> Any:
        peer = None
        if kind in ("tcp", "unix"):
            sock, peer = self.world.pair(kind)
        elif kind == "listener":
            sock = self.world.server()
        else:
            sock = self.world.socket("udp" if kind == "udp" else "tcp")
        self._fresh.append((sock, peer, "tcp" if kind == "unconnected" else kind))
        return sock

    def _snapshot(self, watcher: Watcher) -> tuple[object, ...]:
        """What a call that raises must not change; what came from elsewhere may still move it."""
        figures = watcher.statistics()
        return figures.submitted, figures.connections, [one.closed for one in self._conns()]

    def _conns(self) -> list[Connection]:
        return [*(line.conn for line in self.lines), self._strange_pending.conn]

    def _check_accepted(self, arguments: dict[str, Any]) -> None:
        """Some arguments no call may take."""
        for name, value in arguments.items():
            if name in ("timeout", "deadline"):
                assert value is None or value >= 0, f"{name}={value!r} was accepted"
                assert not isinstance(value, float) or not math.isnan(value)
            elif name in _CONNECTIONS:
                assert isinstance(value, Connection | socket.socket), f"{value!r} was accepted"
                assert value is not self._strange_pending.conn, "a foreign one was accepted"
        assert arguments.get("op") is not self._strange_pending, "a foreign one was cancelled"

    def _enter_fresh(self) -> None:
        """Sockets that a call has taken over are lines now."""
        fresh, self._fresh = self._fresh, []
        for sock, peer, kind in fresh:
            conn = self.watcher._spent.get(sock)
            if conn is not None:
                line = self._add_line(conn, peer, kind)
                line.lost = line.lost or peer is None
                continue
            for each in filter(None, (sock, peer)):  # it was given up, or was not needed
                each.close()

    def _enter(self, request: OddRequest, op: Operation | None, given: dict[str, Any]) -> None:
        """It was accepted: once only it has to be delivered."""
        conns = [self.watcher._delegated(given[name]) for name in _CONNECTIONS if name in given]
        lines = tuple(line for conn in conns for line in self.lines if line.conn is conn)
        assert len(lines) == len(conns)
        for line in lines:
            line.known = line.verifiable = False
            # It may have been sent, or connected, to somebody who is not there.
            line.lost = line.lost or line.kind == "udp" or request.kind in ("relay", "connect")
            line.shut = line.shut or (op is not None and op.type in (OpType.SHUTDOWN, OpType.RELAY))
        if op is None:
            assert request.silent
            return
        assert op.context is request
        request.lines, request.op = lines, op
        for line in lines:
            line.add(request)

    # --- Steps: what else a program may do -------------------------------------------------------

    def spoil(self, which: int, how: int) -> None:
        """Resize or close the buffer of a request that is pending."""
        pending = [one for one in self.pending() if isinstance(one, OddRequest)]
        if not pending:
            return
        request = pending[which % len(pending)]
        assert request.op is not None
        buffer = request.op.buffer
        match buffer:
            case bytearray():
                (buffer.clear, lambda: buffer.append(0), lambda: buffer.extend(b"x" * 9))[how % 3]()
            case array.array():
                (buffer.pop if how % 2 else lambda: buffer.append(0))()
            case mmap.mmap():
                buffer.close()
            case memoryview():
                buffer.release()
            case _:
                return
        request.spoiled = True

    def give_up_wait(self) -> None:
        """Somebody waits as well, and gives up: in the middle, or as soon as he is refused."""
        waiting = self.watcher.wait_io()
        try:
            waiting.send(None)
        except StopIteration as done:
            self._deliver(done.value)
        except RuntimeError:
            assert self._waiter is not None
        except WatcherClosedError as error:
            raise AssertionError("it is not closed") from error
        else:
            waiting.close()

    def look(self, which: int, what: int) -> None:
        """Ask for all that can be asked for."""
        texts = [repr(self.watcher), repr(self.watcher.statistics()), repr(self._closed)]
        if self.lines:
            line = self.lines[which % len(self.lines)]
            conn = line.conn
            texts += [repr(conn), repr(conn.peername), repr(conn.sockname), repr(conn.family)]
            texts += [repr(conn.type), repr(self.watcher.pending(conn))]
            texts += [repr(one.op) for one in line.requests]
            assert conn.watcher is self.watcher
            assert conn.closed is (conn.fileno() < 0)
            try:
                conn.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE if what % 4 else socket.SO_ERROR)
            except OSError:
                assert conn.closed
        assert all(texts)

    def drain(self, which: int) -> None:
        """A task waits for the writes of a connection, or of all."""
        conn = self.lines[which % len(self.lines)].conn if self.lines and which % 4 else None
        if len(self._drains) < 4:
            self._drains.append(self.world.loop.create_task(self.watcher.drain(conn)))

    def cancel_drain(self) -> None:
        """In whatever tick it is."""
        if self._drains:
            self._drains[0].cancel()

    def close_in_order(self, grace: int, config: int) -> None:
        """As ``close_watcher``, but what is written may be sent first."""
        for line in self.lines:
            line.closed = True
        seconds = (0, 0.001, 0.3)[grace % 3]
        self.world.loop.run_until_complete(self.watcher.aclose(seconds))
        self.close_watcher(config)

    def collect_garbage(self) -> None:
        """In whatever state it is."""
        gc.collect()

    def fail_with(self, which: int, after: int) -> None:
        """A system call will fail, so that no error of the system is a surprise for a while."""
        call, number = _FAULTS[which % len(_FAULTS)]
        self.world.fail(call, number, after % 8)
        self._faults = self._troubled = True
        for line in self.lines:
            line.lost = True
