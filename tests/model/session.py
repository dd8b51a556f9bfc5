"""Sessions: steps on a watcher and on the other ends, and the ledger of what comes of them.

Each step is a method with whole numbers as its arguments, so that a failure can be written down
as a list, shrunk and repeated. A number chooses among what there is at the moment.
"""

from __future__ import annotations

import asyncio
import errno
import sys
import tempfile
import warnings
from contextlib import ExitStack
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from aiogaio import Operation, OpType, Watcher, WatcherClosedError
from tests.model.lines import Line
from tests.model.requests import ASIDE, READS, WRITES, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.worlds import World

_READABLE, _WRITABLE, _GONE = 0x001, 0x004, 0x2018

#: Seconds of a timeout: short, so long that a session may see its end, and longer than any.
_SHORT, _LONG, _NEVER = 0.003, 0.25, 3600.0

_KINDS = ("tcp", "tcp", "unix", "udp")
_READS = ("read", "into", "full", "until", "until", "message", "many", "many messages")
_WRITES = ("write", "write", "buffer", "silent", "silent", "vector", "silent vector", "file")
_SIZES = (1, 7, 100, 3000, 5000, 20_000)

#: Seconds after which an operation on a virtual clock is late.
_LATE = 0.002

_SHORTAGES = (
    ("send", errno.ENOBUFS),
    ("send", errno.ENOMEM),
    ("accept", errno.EMFILE),
    ("accept", errno.ENFILE),
    ("accept", errno.ECONNABORTED),
)


class Session:
    """A watcher, up to six lines, and every request there was."""

    def __init__(self, world: World, poller: str) -> None:
        self.world, self._poller = world, poller
        self.lines: list[Line] = []
        self._count = 0  # of requests, and of lines
        self._waiter: asyncio.Task[list[Operation]] | None = None
        self._opened = ExitStack()
        self._dialed: dict[Any, Any] = {}
        self._faults = False
        self.deliveries = 0
        self.watcher = self._new_watcher(0)

    def _new_watcher(self, config: int) -> Watcher:
        options: dict[str, Any] = {
            "batch_size": (128, 4, 1)[config % 3],
            "buffer_size": (65536, 64)[config // 3 % 2],
        }
        if config // 6 % 2:  # the longer way of each request
            options["max_pending"] = 10_000

        async def make() -> Watcher:
            return Watcher(poller=self._poller, **options)  # type: ignore[arg-type]

        return self.world.loop.run_until_complete(make())

    @cached_property
    def _file(self) -> IO[bytes]:
        """What is sent by sendfile."""
        return self._opened.enter_context(tempfile.TemporaryFile())

    # --- Choosing --------------------------------------------------------------------------------

    def _line(self, which: int, *, listens: bool = False) -> Line | None:
        lines = [line for line in self.lines if line.streams is not listens]
        return lines[which % len(lines)] if lines else None

    def pending(self) -> list[Request]:
        """The requests that have not completed, line by line."""
        return [one for line in self.lines for one in line.requests if not one.completed]

    def _time(self, request: Request, timing: int) -> dict[str, float]:
        """A timeout or a deadline, or none, for a request."""
        now = self.world.now
        match timing:
            case 1 | 2 | 3:
                seconds = (_SHORT, _LONG, _NEVER)[timing - 1]
                request.due = now + seconds
                request.silence = seconds if request.multishot or request.kind == "relay" else None
                return {"timeout": seconds}
            case 4:
                request.due = now
                return {"timeout": 0}
            case 5:
                request.due = now + _SHORT
                return {"deadline": request.due}
            case 6:
                request.due = max(0.0, now - 1)
                return {"deadline": request.due}
        return {}

    def _submit(self, request: Request, call: Callable[[], Operation | None]) -> None:
        """Enter a request into the ledger and make it."""
        request.number = self._count = self._count + 1
        for line in request.lines:
            line.add(request)
        request.op = call()
        if not request.silent:
            assert request.op is not None
        if request.op is not None:
            assert request.op.context is request
        if self.watcher._inbox.waiting:  # then it went there, too
            request.posted = True

    @property
    def waits(self) -> bool:
        """Whether a task waits for results."""
        return self._waiter is not None

    # --- Steps: connections ----------------------------------------------------------------------

    def open(self, kind: int) -> None:
        """A connected pair, one end of which is delegated."""
        if len(self.lines) >= 6:
            return
        name = _KINDS[kind % len(_KINDS)]
        if name == "udp":
            ours, peer = self.world.socket("udp"), self.world.socket("udp")
            for sock, other in ((ours, peer), (peer, ours)):
                sock.connect(other.getsockname())
        else:
            ours, peer = self.world.pair(name)
        self._add_line(ours, peer, name)

    def _add_line(self, ours: Any, peer: Any, kind: str) -> Line:
        self._count += 1
        conn = ours if hasattr(ours, "watcher") else self.watcher.delegate(ours)
        line = Line(self._count, conn, peer, kind)
        self.lines.append(line)
        return line

    def listen(self) -> None:
        if self._line(0, listens=True) is None:
            self._add_line(self.world.server(), None, "listener")

    def dial(self) -> None:
        """Somebody connects to the listener."""
        listener = self._line(0, listens=True)
        if listener is not None and listener.alive and len(self._dialed) < 4:
            peer = self.world.dial(listener.conn.sockname)
            self._dialed[peer.getsockname()] = peer

    def accept(self, multishot: int, timing: int) -> None:
        line = self._line(0, listens=True)
        if line is not None:
            request = Request("accept", (line,), READS, multishot=bool(multishot % 2))
            when = self._time(request, timing)
            self._submit(
                request,
                lambda: self.watcher.accept(
                    line.conn, multishot=request.multishot, context=request, **when
                ),
            )

    def connect(self, target: int, timing: int) -> None:
        """A socket of its own, to somebody who listens, to nobody, or into the void."""
        if len(self.lines) >= 6:
            return
        where = ("listening", "listening", "refused", "void")[target % 4]
        if where == "void" and not self.world.virtual:
            where = "refused"
        address = {
            "listening": self.world.listener.getsockname(),
            "refused": ("127.0.0.1", 1),
            "void": ("192.0.2.1", 9),
        }[where]
        line = self._add_line(self.world.socket(), None, "tcp")
        line.refused = where == "refused"
        line.lost = True  # until it is connected
        request = Request("connect", (line,), ASIDE)
        when = self._time(request, timing)
        self._submit(
            request,
            lambda: self.watcher.connect(line.conn, address, context=request, **when),
        )

    def free(self, which: int) -> None:
        line = self.lines[which % len(self.lines)] if self.lines else None
        if line is None:
            return
        inbox_waits = self.watcher._inbox.waiting
        was_alive, line.freed = line.alive, line.freed or line.alive
        assert self.watcher.free(line.conn) == was_alive
        assert line.conn.closed
        if not inbox_waits:
            assert all(request.completed for request in line.requests)

    def forget(self, which: int) -> None:
        """Let go of a connection on which nothing is pending, or that is freed and settled."""
        line = self.lines[which % len(self.lines)] if self.lines else None
        if line is None or not all(request.settled for request in line.requests):
            return
        self.lines.remove(line)
        for request in line.requests:
            request.op = None  # which holds the connection
        line.requests.clear()
        for name in (READS, WRITES, ASIDE):
            line.queue(name).clear()
        if line.peer is not None:
            line.peer.close()
        fd, lines = line.conn.fileno(), self.lines
        if fd >= 0 and any(fd == other.conn.fileno() for other in lines):
            raise AssertionError("two connections of one number")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del line.conn
        assert fd < 0 or not self._still_serves(fd)

    def _still_serves(self, fd: int) -> bool:
        records = self.watcher._records
        return fd < len(records) and records[fd] is not None

    # --- Steps: requests -------------------------------------------------------------------------

    def read(self, which: int, how: int, size: int, timing: int) -> None:
        line = self._line(which)
        if line is None:
            return
        kind = _READS[how % len(_READS)]
        if kind in ("until", "full") and line.kind == "udp":
            kind = "into"
        count = _SIZES[size % len(_SIZES)]
        request = Request(kind, (line,), READS, bytes(count), multishot=kind.startswith("many"))
        options: dict[str, Any] = {"context": request, **self._time(request, timing)}
        watcher, conn = self.watcher, line.conn
        match kind:
            case "read":
                self._submit(request, lambda: watcher.read(conn, **options))
            case "into":
                self._submit(request, lambda: watcher.read(conn, bytearray(count), **options))
            case "full":
                self._submit(request, lambda: watcher.read_full(conn, bytearray(count), **options))
            case "until":
                request.separator = (b"\n", b"\xff")[size % 2]
                options["limit"] = 200
                self._submit(
                    request, lambda: watcher.read_until(conn, request.separator, **options)
                )
            case "message":
                self._submit(request, lambda: watcher.recvmsg(conn, **options))
            case "many":
                self._submit(request, lambda: watcher.read(conn, multishot=True, **options))
            case "many messages":
                self._submit(request, lambda: watcher.recvmsg(conn, multishot=True, **options))

    def write(self, which: int, how: int, size: int, timing: int) -> None:
        line = self._line(which)
        if line is None:
            return
        kind = _WRITES[how % len(_WRITES)]
        count = _SIZES[size % len(_SIZES)]
        if kind == "file" and line.kind == "udp":
            kind = "vector"
        data = line.queued_data(count)
        request = Request(kind, (line,), WRITES, data, silent=kind.startswith("silent"))
        options: dict[str, Any] = {"context": request, **self._time(request, timing)}
        watcher, conn = self.watcher, line.conn
        buffer = bytearray(data)
        match kind:
            case "write":
                self._submit(request, lambda: watcher.write(conn, data, **options))
            case "buffer":
                self._submit(request, lambda: watcher.write(conn, buffer, **options))
            case "silent":
                self._submit(request, lambda: watcher.write(conn, buffer, silent=True, **options))
                buffer[:] = bytes(count)  # which the program may do at once (S5)
            case "vector" | "silent vector":
                half = memoryview(buffer)[: count // 2], memoryview(buffer)[count // 2 :]
                options["silent"] = request.silent
                self._submit(request, lambda: watcher.writev(conn, half, **options))
                if request.silent:
                    buffer[:] = bytes(count)
            case "file":
                offset = self._file.seek(0, 2)
                self._file.write(data)
                self._file.flush()
                self._submit(
                    request,
                    lambda: watcher.sendfile(
                        conn, self._file, offset=offset, count=count, **options
                    ),
                )

    def post(self, which: int, how: int, size: int, timing: int) -> None:
        """The same by way of the inbox, as another thread would."""
        line = self._line(which)
        if line is None:
            return
        kind = ("read", "full", "many", "write", "silent")[how % 5]
        if kind == "full" and line.kind == "udp":
            kind = "read"
        count = _SIZES[size % len(_SIZES)]
        writes = kind in ("write", "silent")
        data = line.queued_data(count) if writes else bytes(count)
        request = Request(
            kind,
            (line,),
            WRITES if writes else READS,
            data,
            silent=kind == "silent",
            multishot=kind == "many",
            posted=True,
        )
        options: dict[str, Any] = {"context": request, **self._time(request, timing)}
        safe, conn = self.watcher.threadsafe, line.conn
        match kind:
            case "read" | "many":
                options["multishot"] = request.multishot
                self._submit(request, lambda: safe.read(conn, **options))
            case "full":
                self._submit(request, lambda: safe.read_full(conn, bytearray(count), **options))
            case "write" | "silent":
                options["silent"] = request.silent
                self._submit(request, lambda: safe.write(conn, data, **options))

    def shutdown(self, which: int) -> None:
        line = self._line(which)
        if line is not None and line.kind != "udp":
            line.shut = True
            request = Request("shutdown", (line,), WRITES)
            self._submit(request, lambda: self.watcher.shutdown(line.conn, context=request))

    def hangup(self, which: int, timing: int) -> None:
        line = self._line(which)
        if line is not None and line.kind != "udp":
            request = Request("hangup", (line,), ASIDE)
            when = self._time(request, timing)
            self._submit(
                request,
                lambda: self.watcher.notify_hangup(line.conn, context=request, **when),
            )

    def relay(self, one: int, other: int, timing: int) -> None:
        first, second = self._line(one), self._line(other)
        if first is None or second is None or first is second or "udp" in (first.kind, second.kind):
            return
        request = Request("relay", (first, second), ASIDE)
        first.shut = second.shut = True  # it passes an end on
        when = self._time(request, timing)
        self._submit(
            request,
            lambda: self.watcher.relay(first.conn, second.conn, context=request, **when),
        )

    def cancel(self, which: int, posts: int) -> None:
        pending = self.pending()
        if not pending:
            return
        request = pending[which % len(pending)]
        assert request.op is not None
        if posts % 4 == 0:
            self.watcher.threadsafe.cancel(request.op)
            request.cancelled = request.posted = True
            return
        inbox_waited = self.watcher._inbox.waiting  # it comes first, and may complete any
        cancelled = self.watcher.cancel(request.op)
        assert cancelled or inbox_waited
        request.cancelled = request.cancelled or cancelled
        assert request.completed
        assert not self.watcher.cancel(request.op)

    def cancel_completed(self, which: int) -> None:
        """A result stays what it is."""
        done = [
            one
            for line in self.lines
            for one in line.requests
            if one.op is not None and one.op.completed
        ]
        if done:
            op = done[which % len(done)].op
            assert op is not None
            error = op.error
            assert self.watcher.cancel(op) is False
            assert op.error is error

    # --- Steps: the other ends -------------------------------------------------------------------

    def peer_sends(self, which: int, size: int) -> None:
        line = self._line(which)
        if line is not None:
            line.peer_sends(_SIZES[size % len(_SIZES)])

    def peer_receives(self, which: int, size: int) -> None:
        line = self._line(which)
        if line is not None:
            line.peer_receives(_SIZES[size % len(_SIZES)])

    def peer_ends(self, which: int) -> None:
        line = self._line(which)
        if line is not None and line.kind != "udp":
            line.peer_ends()

    def peer_closes(self, which: int, resets: int) -> None:
        line = self._line(which)
        if line is not None:
            line.peer_closes(resets=bool(resets % 2))

    # --- Steps: time and the consumer ------------------------------------------------------------

    def turn(self, times: int) -> None:
        for _ in range(times % 3 + 1):
            self.world.turn()

    def pass_time(self, how_long: int) -> None:
        self.world.pass_time((0.001, 0.004, 0.02, 0.3, 1.5)[how_long % 5])

    def jump(self) -> None:
        """A timeout is over before the loop turns again; on a virtual clock only."""
        self.world.jump(_LONG)

    def wait(self, how: int) -> None:
        """A task begins to wait for results."""
        if self._waiter is None:
            wait = (Watcher.wait_io, _wait_for, _wait_with_timeout)[how % 3]
            self._waiter = self.world.loop.create_task(wait(self.watcher))

    def cancel_wait(self) -> None:
        """In whatever tick it is."""
        if self._waiter is not None:
            self._waiter.cancel()

    def collect(self) -> None:
        self.reap()
        self._deliver(self.watcher.poll_io())

    def fail(self, which: int, after: int) -> None:
        """The system will be short of something, or a connection gone before it is accepted."""
        call, number = _SHORTAGES[which % len(_SHORTAGES)]
        self.world.fail(call, number, after % 3)
        self._faults = True

    def close_watcher(self, config: int) -> None:
        """In whatever state it is. Then there is another one."""
        self.finish_watcher()
        self.watcher = self._new_watcher(config)

    def quiesce(self) -> None:
        """Let everything happen that can; nobody may wait for what is there."""
        self.world.repair()
        for _ in range(10_000):
            self.world.settle()
            if self._faults:  # until what was short of something has rested
                self.world.pass_time(0.3)
                self.world.settle()
            self.reap()
            before = self.deliveries
            self.collect()
            if self.deliveries == before:
                break
            assert not (self.waits and self.world.virtual), "nobody woke the task that waits"
        else:
            raise AssertionError("results without end")
        self._faults = False
        self._check_nobody_waits_in_vain()

    # --- The ledger ------------------------------------------------------------------------------

    def reap(self) -> None:
        """What the waiting task has brought, if it is done."""
        if self._waiter is not None and self._waiter.done():
            waiter, self._waiter = self._waiter, None
            if waiter.cancelled():
                return
            error = waiter.exception()
            if error is None:
                batch = waiter.result()
                assert batch, "an empty list of results"
                self._deliver(batch)
            else:
                assert isinstance(error, TimeoutError | WatcherClosedError), error

    def _deliver(self, batch: list[Operation]) -> None:
        for op in batch:
            self.deliveries += 1
            request: Request = op.context
            assert op.completed
            assert not request.delivered, "delivered twice"
            assert op.conn is request.line.conn
            if op.more:
                assert request.multishot
                assert op is not request.op
                assert op.error is None or op.type is OpType.ACCEPT
            else:
                assert op is request.op
                request.delivered = True
                request.check_error(op.error, self.world.now)
            self._enter_bytes(request, op)
            request.line.check_order(request)
            if request.silence is not None:
                request.due = max(request.due or 0, self.world.now)
            if request.torn:
                request.swept = self._count
            if op.accepted is not None and not op.more:
                request.op = None  # it would hold the connection that it has brought

    def _enter_bytes(self, request: Request, op: Operation) -> None:
        line = request.line
        if request.kind == "relay":
            for each in request.lines:
                each.end_relay(request, op)
        elif request.queue == READS and op.size:
            assert op.size == len(op.data)
            line.take(bytes(op.data))
        elif op.type is OpType.ACCEPT and op.error is None:
            self._add_line(op.accepted, self._dialed.pop(op.address), "tcp")
        elif request.kind == "connect":
            if op.error is None:
                line.lost = False
                if line.alive and not line.conn.closed:
                    line.peer = self.world.peer_of(line.conn)
                    line.peer.setblocking(False)
            else:
                line.failure = op.error

    def _check_nobody_waits_in_vain(self) -> None:
        now = self.world.now
        for line in self.lines:
            if line.freed:
                assert all(request.settled for request in line.requests), "freed, and unsettled"
                continue
            bits = self.world.readiness(line.conn)
            for request in line.requests:
                late = request.due is not None and now > request.due + _LATE
                if late and request.silence is None and self.world.virtual:
                    assert request.completed, "a deadline has passed"
            joint = [one for one in line.requests if one.kind in ("relay", "connect")]
            if any(not one.completed for one in joint):
                self._check_joint(line, bits)
                continue
            if line.pending(READS):
                assert not bits & (_READABLE | _GONE), "a read waits for what is there"
            if line.pending(WRITES):
                assert not bits & (_WRITABLE | 0x18), "a write waits for room that is there"
            if any(not one.completed for one in line.queue(ASIDE)) and self._would_see(line):
                assert not bits & _GONE, "nobody was told of a hang-up"

    def _would_see(self, line: Line) -> bool:
        """The loop poller sees a hang-up once the data before it has been read."""
        return self._poller == "epoll" or (line.known and line.got == line.sent)

    def _check_joint(self, line: Line, bits: int) -> None:
        first = [*line.pending(READS), *line.pending(WRITES)]
        if first and all(one.kind == "connect" for one in first[:1]):
            assert not bits & _WRITABLE, "a connect waits for what is there"

    def finish_watcher(self) -> None:
        """Close it: all that was pending completes, and all of it can be collected (D4)."""
        self.reap()
        for line in self.lines:
            line.closed = True
        self.watcher.close()
        self.watcher.close()
        assert not self.pending()
        self.world.turn()
        if self._waiter is not None:
            self.world.settle()
            self.reap()
        while batch := self.watcher.poll_io():
            self._deliver(batch)
        for line in self.lines:
            assert all(request.settled for request in line.requests), "a request was lost"
            while line.peer_receives(65536):
                pass
            line.check_written()
            if line.peer is not None:
                line.peer.close()
        figures = self.watcher.statistics()
        assert figures.pending == figures.connections == 0
        assert figures.submitted == figures.completed
        self.lines.clear()
        for peer in self._dialed.values():
            peer.close()
        self._dialed.clear()

    def close(self) -> None:
        """The end of the session: everything once more."""
        self.quiesce()
        self.finish_watcher()
        self._opened.close()

    def abandon(self) -> None:
        """After a failure: close all, and assert nothing."""
        self._opened.close()
        self.watcher.close()
        if self._waiter is not None:
            self._waiter.cancel()
            self.world.loop.run_until_complete(asyncio.wait([self._waiter]))
            if not self._waiter.cancelled():
                self._waiter.exception()
        for line in self.lines:
            if line.peer is not None:
                line.peer.close()


async def _wait_for(watcher: Watcher) -> list[Operation]:
    if sys.version_info < (3, 12):  # there it waits in a task of its own, and who collects
        return await watcher.wait_io()  # meanwhile is before it, though its results are older
    return await asyncio.wait_for(watcher.wait_io(), _SHORT)


async def _wait_with_timeout(watcher: Watcher) -> list[Operation]:
    async with asyncio.timeout(_SHORT):
        return await watcher.wait_io()
