"""Proactor: the machine behind a watcher. Readiness goes in, completed operations come out.

It owns the records of all connections, lets the poller say which are ready, makes the attempts
that their queues ask for, keeps deadlines, and puts what has completed into the queue of
completions. It has no public name and checks no argument: :mod:`aiogaio.watcher` does, above it.

One read and one write, on the way that nearly all of them take (epoll poller):

- a request finds its queue empty; a write is sent at once, a read that the readiness bit says is
  not there yet is put into the record. No look-up, one object: the operation.
- a turn takes up to ``batch_size`` events in one ``epoll_wait``; each finds its record by one
  index into a list, receives once, and appends the operation to the ready list.
- the consumer gets that list. System calls for a round trip: one recv, one send, and a share of
  one epoll_wait.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from aiogaio import attempts
from aiogaio.completions import Completions, Signal
from aiogaio.connection import Connection, Record
from aiogaio.deadlines import Deadlines
from aiogaio.delegation import take_accepted
from aiogaio.errors import (
    ConnectionFreedError,
    DeadlineExceededError,
    OperationCancelledError,
    UnsupportedLoopError,
    WatcherClosedError,
)
from aiogaio.inbox import Inbox
from aiogaio.operation import (
    Accept,
    Armed,
    Operation,
    OpType,
    ReadFull,
    ReadInto,
    Write,
    octets_of,
    start,
)
from aiogaio.pollers import open_poller
from aiogaio.pollers.base import FOR_READS, FOR_WRITES, READABLE, UNCERTAIN
from aiogaio.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Attempts that one connection and direction gets in a turn, before the others have theirs; never
#: more than a sixteenth of `batch_size`, so that one cannot fill a batch turn after turn.
_ATTEMPTS: Final = 8
#: Bytes to move in one turn: about 2 ms. What is ready beyond it waits for the next turn.
_TURN_BYTES: Final = 4 * 1024 * 1024
#: Bytes that writes send at the call, until the loop has run: about 8 ms of large messages.
_BURST_BYTES: Final = 16 * 1024 * 1024
#: Bytes that a turn should receive: they fit into a core's cache.
_BATCH_BYTES: Final = 256 * 1024
#: Bytes of all results together that the allocator is prepared for.
_LARGEST_BATCH: Final = 8 * 1024 * 1024
#: Seconds of expiring deadlines, and of requests from other threads, in one go.
_WORK_SLICE: Final = 0.003
#: Writes behind a torn one that are cancelled in one go.
_DOOMED: Final = 1024
#: Seconds until a send that met a shortage of memory is tried again, and an accept.
_SEND_REST: Final = 0.01
_ACCEPT_REST: Final = 0.25


class Proactor:
    """All of a watcher but its public calls."""

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_backlog",
        "_batch_size",
        "_batches",
        "_buffer_size",
        "_busy",
        "_bytes_read",
        "_bytes_written",
        "_clock",
        "_closed",
        "_collected",
        "_completions",
        "_deadlines",
        "_deliver",
        "_direct",
        "_events",
        "_hungry",
        "_inbox",
        "_loop",
        "_most_events",
        "_poller",
        "_read_limit",
        "_ready",
        "_records",
        "_shots",
        "_signal",
        "_silent",
        "_silent_at_once",
        "_submitted",
        "_thread",
        "_timer",
        "_torn",
        "_turn_limit",
        "_turn_scheduled",
        "_write_limit",
    )

    def __init__(self, *, buffer_size: int, poller: str, batch_size: int) -> None:
        self._closed = True  # until it is made: a finalizer may find a half-made one
        try:
            self._loop = loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UnsupportedLoopError(
                "a Watcher is bound to the running event loop and there is none: "
                "create it inside a coroutine, for example under asyncio.run(main())"
            ) from None
        self._thread = threading.get_native_id()
        self._clock = _clock_of(loop)
        self._buffer_size = buffer_size
        self._batch_size = batch_size
        self._attempts = max(1, min(_ATTEMPTS, batch_size // 16))

        self._completions = Completions(loop)
        self._signal: Signal = self._completions.signal
        self._ready = self._completions.ready
        self._deliver = self._ready.append

        self._records: list[Record | None] = []  # by descriptor; numbers are small and dense
        self._deadlines = Deadlines()
        self._timer = Timer(loop, self._on_timer)

        # Records that can go on without an event, and whether the loop will come for them.
        self._backlog: deque[Record] = deque()
        self._turn_scheduled = False
        # Records whose multishot request waits for the consumer to collect, in their order.
        self._hungry: deque[Record] = deque()
        # Torn writes whose results have not been handed over.
        self._torn: list[tuple[Operation, Record]] = []
        self._inbox = Inbox(loop)

        self._submitted = self._collected = self._shots = 0
        self._silent = self._silent_at_once = 0  # silent writes that delivered nothing
        self._batches: int = 0
        self._bytes_read = self._bytes_written = 0
        # Readiness events to take in the next turn: see `_make_turn`.
        # In one of nothing but full reads they move no more than the bytes of a turn.
        most = max(1, min(batch_size, 2 * _TURN_BYTES // buffer_size))
        self._events: int = most
        self._most_events: int = most
        _warm_up(batch_size * buffer_size)
        # Bytes after which requests are queued, not attempted at the call, until the next turn.
        self._read_limit: int = _BURST_BYTES
        self._write_limit = _BURST_BYTES
        # The same of both together, after which a turn leaves what is ready to the next.
        self._turn_limit = _TURN_BYTES

        # Attempts are being made. What a finalizer or a signal handler asks for in between must not
        # change what they stand on: it goes through the inbox.
        self._busy = False
        # Requests may take the short way: nothing is being attempted, and the inbox is empty.
        self._direct = True

        self._poller = open_poller(poller, loop, self)
        self._closed = False
        _proactors.add(self)

    # --- Turns ---------------------------------------------------------------------------------

    def _look(self) -> bool:
        """One turn: take what is ready and make the attempts. False once closed."""
        if self._closed:
            return False
        if not self._busy:
            self._undisturbed(self._make_turn)
            self._settle()
        return True

    def _make_turn(self) -> None:
        bytes_read = self._bytes_read
        self._read_limit = self._bytes_read + _BURST_BYTES
        self._write_limit = self._bytes_written + _BURST_BYTES
        self._turn_limit = self._bytes_read + self._bytes_written + _TURN_BYTES
        events = self._poller.poll(self._events)
        if self._backlog:
            self._serve_backlog()
        self._take(events)
        if self._hungry:
            self._feed()
        # Large messages in small batches: what is received has to be in the processor's cache still
        # when the program sends it on.
        bytes_read = self._bytes_read - bytes_read
        if bytes_read > _BATCH_BYTES:
            self._events = self._events // 2 or 1
        elif self._events < self._most_events and bytes_read < _BATCH_BYTES // 3:
            self._events = min(2 * self._events, self._most_events)

    def _undisturbed(self, work: Callable[[], None]) -> None:
        """Work on the queues with finalizers and signal handlers kept from them."""
        if self._busy:
            work()
            return
        self._busy, self._direct = True, False
        try:
            work()
        finally:
            self._busy, self._direct = False, not self._inbox.waiting

    def _take(self, events: Sequence[tuple[int, int]]) -> None:
        """Make the attempts that these events, ``(descriptor, bits)``, allow.

        The hot path. The two common cases, one plain read or one armed read pending, are written
        out in the loop, which saves two calls for each message.
        """
        records, room, batch_size = self._records, self._buffer_size, self._batch_size
        ready, deliver, hungry = self._ready, self._deliver, self._hungry
        receive, receive_shot = attempts.receive, attempts.receive_shot
        bytes_read = shots = 0
        try:
            for fd, bits in events:
                record = records[fd]
                if record is None:  # freed since the event was taken
                    continue
                if bits & UNCERTAIN:
                    record.short_is_empty = False
                if bits & FOR_READS:
                    record.readable = True
                    operation = record.reads
                    if operation is None:
                        pass
                    elif type(operation) is Operation and operation._next is None:
                        if receive(record, operation, room):
                            record.reads = None
                            operation.completed = True
                            bytes_read += operation.size
                            if operation._timer is not None:
                                self._deadlines.discard(operation)
                            deliver(operation)
                    elif type(operation) is not Armed:
                        if self._tired():
                            self._put_off(record)
                        else:
                            self._advance_reads(record)
                    elif hungry or len(ready) >= batch_size:
                        self._queue_up(record)
                    elif record.listening or operation._next is not None:
                        self._advance_reads(record)
                    else:
                        shot = receive_shot(record, operation, room)
                        if shot is operation:
                            record.reads = None
                            self._finish(operation)
                        elif shot is not None:
                            bytes_read += shot.size
                            shots += 1
                            if operation._timer is not None:
                                self._restart_silence(operation)
                            deliver(shot)
                            if record.readable:
                                self._advance_reads(record)
                if bits & FOR_WRITES:
                    record.writable = True
                    if record.writes is None or record.write_paused:
                        pass
                    elif self._tired():
                        self._put_off(record)
                    else:
                        self._advance_writes(record)
        finally:
            self._bytes_read += bytes_read
            self._shots += shots

    def _take_read(self, fd: int) -> bool:
        """The loop says that this one descriptor is readable; false if no read waits for it.

        `_take` with no turn around it: the same two cases are written out, which saves a tenth of
        the time of a message on the loop poller.
        """
        record = self._records[fd]
        if record is None or record.reads is None or record.read_paused:
            return False
        if self._bytes_read >= self._read_limit:  # enough for this turn
            record.readable = True
            self._put_off(record)
            self._schedule_turn()
            return True
        operation = record.reads
        if not self._direct or operation._next is not None:
            self._take_one(fd, READABLE)
            return True
        if type(operation) is Armed:
            if record.listening or self._hungry or len(self._ready) >= self._batch_size:
                self._take_one(fd, READABLE)
                return True
            self._busy, self._direct = True, False
            record.readable = True
            try:
                shot = attempts.receive_shot(record, operation, self._buffer_size)
                if shot is operation:
                    record.reads = None
                    self._finish(operation)
                elif shot is not None:
                    self._bytes_read += shot.size
                    self._shots += 1
                    if operation._timer is not None:
                        self._restart_silence(operation)
                    self._deliver(shot)
                    if record.readable:
                        self._advance_reads(record)
            finally:
                self._busy, self._direct = False, not self._inbox.waiting
        elif type(operation) is Operation:
            self._busy, self._direct = True, False
            record.readable = True
            try:
                if attempts.receive(record, operation, self._buffer_size):
                    record.reads = None
                    self._bytes_read += operation.size
                    self._finish(operation)
            finally:
                self._busy, self._direct = False, not self._inbox.waiting
        else:
            self._take_one(fd, READABLE)
            return True
        if self._backlog:
            self._schedule_turn()
        if self._signal.future is not None and self._ready:
            self._signal.wake()
        return True

    def _take_one(self, fd: int, bits: int) -> None:
        """The loop says that this one descriptor is ready."""
        self._undisturbed(partial(self._take, ((fd, bits),)))
        self._settle()

    def _tired(self) -> bool:
        """Whether enough has been moved since the turn began."""
        return self._bytes_read + self._bytes_written >= self._turn_limit

    def _serve_backlog(self) -> None:
        """Let each connection that can go on do so once, as far as a turn's bytes reach."""
        backlog = self._backlog
        for _ in range(min(len(backlog), self._batch_size)):
            record = backlog.popleft()
            record.in_backlog = False
            if self._tired():
                self._put_off(record)
                continue
            if record.reads is not None and record.readable:
                if self._hungry and isinstance(record.reads, Armed):
                    self._queue_up(record)
                else:
                    self._advance_reads(record)
            if record.writes is not None and (record.writable or record.doomed is not None):
                self._advance_writes(record)

    def _put_off(self, record: Record) -> None:
        """Go on with this connection in a later turn, though no event will tell."""
        if not record.in_backlog and record.open:
            record.in_backlog = True
            self._backlog.append(record)

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._loop.is_closed():
            self._turn_scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._look()

    # --- Reads ---------------------------------------------------------------------------------

    def _submit_read(self, record: Record, operation: Operation, due: float | None) -> None:
        """A read or an accept from the loop's thread: behind what is in the inbox."""
        if self._busy or self._inbox.waiting:
            self._post(lambda: self._enter_read(record, operation, due))
        else:
            self._direct = True
            self._enter_read(record, operation, due)

    def _enter_read(self, record: Record, operation: Operation, due: float | None) -> None:
        """Accept a read or an accept: attempt it if nothing is before it, else queue it."""
        self._submitted += 1
        if not self._admit(record, operation):
            return
        first = record.reads is None
        overdue = due is not None and due <= self._loop.time()
        record.append_read(operation)
        if first and (record.readable or overdue):
            record.readable = True
            if self._bytes_read < self._read_limit or overdue:
                self._undisturbed(partial(self._advance_reads, record))
            else:
                self._put_off(record)
        if not operation.completed:
            if overdue:
                self._expire(operation)
            else:
                if due is not None:
                    self._add_deadline(operation, due)
                if not record.read_watched and not record.readable and not record.read_paused:
                    self._watch_reads(record)
        self._settle()

    def _advance_reads(self, record: Record) -> None:
        """Attempt the pending reads in their order, until one has to wait."""
        for _ in range(self._attempts):
            operation = record.reads
            if operation is None or not record.readable or record.read_paused:
                break
            before = operation.size
            if type(operation) is Operation:
                done = attempts.receive(record, operation, self._buffer_size)
            elif isinstance(operation, ReadFull):
                done = attempts.receive_full(record, operation)
            elif isinstance(operation, ReadInto):
                done = attempts.receive_into(record, operation)
            elif record.listening:
                done = self._accept(record, operation)
                if not done:
                    break
            else:
                assert isinstance(operation, Armed)
                done = self._receive_shot(record, operation)
            self._bytes_read += operation.size - before
            if done:
                record.remove_read(operation)
                self._finish(operation)
            if record.reads is None:
                return
        if record.read_paused:
            return
        if record.readable:
            self._put_off(record)
        elif not record.read_watched:
            self._watch_reads(record)

    def _receive_shot(self, record: Record, armed: Armed) -> bool:
        """Receive once for an armed read and deliver it; true if that was the end."""
        if len(self._ready) >= self._batch_size:
            self._queue_up(record)
            return False
        shot = attempts.receive_shot(record, armed, self._buffer_size)
        if shot is None or shot is armed:
            return shot is armed
        self._bytes_read += shot.size
        self._deliver_shot(shot, armed)
        return False

    def _accept(self, record: Record, operation: Operation) -> bool:
        """Accept what is waiting: one connection, or many for an armed accept."""
        armed = operation if isinstance(operation, Armed) else None
        for _ in range(2 * self._attempts):
            if armed is None:
                shot = operation
            elif len(self._ready) >= self._batch_size:
                self._queue_up(record)
                return False
            else:
                shot = start(Accept(), OpType.ACCEPT, operation.conn, operation.context)
            try:
                accepted = attempts.accept(record)
                if accepted is None:
                    return False
                fd, shot.address = accepted
                shot.accepted = self._enrol_accepted(take_accepted(fd, record))
            except OSError as error:
                shot.error = error.with_traceback(None)
                if armed is not None and error.errno not in attempts.ACCEPT_SHORTAGE:
                    armed.error = error
                    return True
            if armed is None:
                return True
            shot.more = shot.completed = True
            self._deliver_shot(shot, armed)
            if shot.error is not None:  # the system is short of something: let it rest
                record.read_paused = True
                self._loop.call_later(_ACCEPT_REST, self._resume, record)
                return False
        return False

    def _deliver_shot(self, shot: Operation, armed: Armed) -> None:
        """Deliver one completion of a request that stays armed (`_take` has this written out)."""
        self._shots += 1
        if armed._timer is not None:
            self._restart_silence(armed)
        self._deliver(shot)

    def _queue_up(self, record: Record) -> None:
        """Let an armed request take nothing until the consumer has collected, and its turn comes.

        One queue for all: a connection that is ready again at once stands behind those that wait.
        """
        if not record.read_paused:
            record.read_paused = True
            self._hungry.append(record)

    def _feed(self) -> None:
        """Let armed requests take, in the order of their queue, as far as there is room."""
        hungry, ready = self._hungry, self._ready
        for _ in range(len(hungry)):
            if len(ready) >= self._batch_size:
                return
            record = hungry.popleft()
            record.read_paused = False
            if record.reads is not None and record.readable:
                self._advance_reads(record)

    def _resume(self, record: Record) -> None:
        """Let an armed request take again."""
        record.read_paused = False
        if record.open and record.reads is not None:
            self._put_off(record)
            self._schedule_turn()

    def _watch_reads(self, record: Record) -> None:
        """Have the poller report the descriptor; if it cannot, no pending read can complete."""
        try:
            self._undisturbed(partial(self._poller.watch_reads, record))
        except (OSError, RuntimeError, ValueError) as error:
            while (operation := record.reads) is not None:
                record.remove_read(operation)
                self._finish(operation, _again(error))
            self._signal.wake()

    # --- Writes --------------------------------------------------------------------------------

    def _submit_write(self, record: Record, operation: Write, due: float | None) -> None:
        """A write from the loop's thread: behind what is in the inbox."""
        if self._busy or self._inbox.waiting:
            if operation.silent:
                _keep_rest(operation)
            self._post(lambda: self._enter_write(record, operation, due))
        else:
            self._direct = True
            self._enter_write(record, operation, due)

    def _enter_write(self, record: Record, operation: Write, due: float | None) -> None:
        """Accept a write: send at once if nothing is before it, else queue it."""
        self._submitted += 1
        if not self._admit(record, operation):
            return
        if record.torn is not None:
            record.append_write(operation)
            if operation.silent:
                _keep_rest(operation)
            record.doomed = operation, record.torn
            self._cancel_doomed(record)
            self._settle()
            return
        first = record.writes is None
        overdue = due is not None and due <= self._loop.time()
        record.append_write(operation)
        if first and (record.writable or overdue):
            record.writable = True
            if self._bytes_written < self._write_limit or overdue:
                self._undisturbed(partial(self._advance_writes, record))
            else:
                self._put_off(record)
        if not operation.completed:
            if overdue:
                self._expire(operation)
            else:
                if operation.silent:
                    _keep_rest(operation)
                if due is not None:
                    self._add_deadline(operation, due)
                if not record.write_watched and not record.writable and not record.write_paused:
                    self._watch_writes(record)
        self._settle()

    def _advance_writes(self, record: Record) -> None:
        """Attempt the pending writes in their order, until one has to wait."""
        if record.doomed is not None:
            self._cancel_doomed(record)
            if record.doomed is not None:
                return
        for _ in range(self._attempts):
            operation = record.writes
            if operation is None or not record.writable or record.write_paused:
                break
            assert isinstance(operation, Write)
            before = operation.size
            try:
                done = attempts.send(record, operation)
            except OSError as error:
                record.remove_write(operation)
                self._send_failed(record, operation, error)
                continue
            self._bytes_written += operation.size - before
            if done:
                record.remove_write(operation)
                self._finish_write(record, operation, operation.error)
        if record.writes is None or record.write_paused:
            return
        if record.writable:
            self._put_off(record)
        elif not record.write_watched:
            self._watch_writes(record)

    def _watch_writes(self, record: Record) -> None:
        """The same for writes."""
        try:
            self._undisturbed(partial(self._poller.watch_writes, record))
        except (OSError, RuntimeError, ValueError) as error:
            while (operation := record.writes) is not None:
                record.remove_write(operation)
                self._finish_write(record, operation, _again(error))
            self._signal.wake()

    def _send_failed(self, record: Record, operation: Write, error: OSError) -> None:
        """Complete a write whose attempt failed; or let it wait, if the system is only short."""
        record.latch(error)
        if error.errno not in attempts.SHORTAGE:
            self._finish_write(record, operation, error)
            self._settle()
            return
        # No event will tell when the system has memory again. The write goes back to its place.
        record.write_paused = True
        record.prepend_write(operation)
        if operation.silent and not operation.skipped:
            _keep_rest(operation)
        self._loop.call_later(_SEND_REST, self._retry_writes, record)

    def _retry_writes(self, record: Record) -> None:
        record.write_paused = False
        if record.open and record.writes is not None:
            record.writable = True
            self._put_off(record)
            self._schedule_turn()

    def _finish_write(self, record: Record, operation: Operation, error: Exception | None) -> None:
        """Complete a write that was taken out of its queue.

        If it was cut after a part of it was sent, what stands behind it must not follow on the
        wire: it is cancelled too, and so is all that comes before the program knows.
        """
        if error is None and isinstance(operation, Write) and operation.silent:
            operation.completed = True
            self._silent += 1
            self._deadlines.discard(operation)
            return
        self._finish(operation, error)
        if error is not None and operation.size:
            record.torn = error
            self._torn.append((operation, record))
            last = record.writes_tail or record.writes
            if last is not None:
                record.doomed = last, error
                self._cancel_doomed(record)

    def _cancel_doomed(self, record: Record) -> None:
        """Cancel the writes behind a torn one, not too many in one turn."""
        for _ in range(_DOOMED):
            doomed, follower = record.doomed, record.writes
            if doomed is None or follower is None:
                return
            record.remove_write(follower)
            self._finish(follower, _behind_torn(doomed[1]))
        self._put_off(record)

    # --- Completions ---------------------------------------------------------------------------

    def _finish(self, operation: Operation, error: Exception | None = None) -> None:
        """Complete an operation that is in no queue any more, and deliver it."""
        if error is not None:
            operation.error = error.with_traceback(None)
        operation.completed = True
        if operation._timer is not None:
            self._deadlines.discard(operation)
        self._deliver(operation)

    def _cancel(self, operation: Operation) -> bool:
        if operation.completed:
            return False
        if self._busy:
            self._post_quietly(lambda: self._cancel(operation))
            return True
        self._withdraw(operation, OperationCancelledError("the operation was cancelled"))
        self._signal.wake()
        return True

    def _withdraw(self, operation: Operation, error: Exception) -> None:
        """Complete a pending operation, wherever it stands in its queue."""
        record = operation.conn._record
        if isinstance(operation, Write):
            record.remove_write(operation)
            self._finish_write(record, operation, error)
        else:
            record.remove_read(operation)
            self._finish(operation, error)
        if (record.reads is not None and record.readable) or (
            record.writes is not None and record.writable
        ):  # what stood behind it can go on
            self._put_off(record)
            self._schedule_turn()

    def _collect(self, limit: int) -> list[Operation]:
        """Hand completed operations over to the consumer."""
        batch = self._completions.take(limit)
        if batch:
            self._batches += 1
            self._collected += len(batch)
        if self._torn:
            waiting = {id(operation) for operation in self._ready}
            for operation, record in self._torn:
                if id(operation) not in waiting:
                    record.torn = None
            self._torn = [entry for entry in self._torn if id(entry[0]) in waiting]
        if self._hungry and not self._closed:
            self._schedule_turn()
        return batch

    def _settle(self) -> None:
        """See to it that the loop comes back for what can go on, and the consumer for results."""
        if self._backlog:
            self._schedule_turn()
        if self._ready and self._signal.future is not None:
            self._signal.wake()

    def _admit(self, record: Record, operation: Operation) -> bool:
        """False, and the operation completed, if the connection is closed."""
        if record.open:
            return True
        if self._closed:  # it was submitted by another thread and close() came first
            error: Exception = WatcherClosedError("the watcher was closed before the request came")
        else:
            error = ConnectionFreedError("the connection was freed before the request")
        self._finish(operation, error)
        self._signal.wake()
        return False

    # --- Deadlines -----------------------------------------------------------------------------

    def _add_deadline(self, operation: Operation, due: float) -> None:
        self._deadlines.add(operation, due)
        self._timer.set(due)

    def _on_timer(self) -> None:
        """Expire what is due, for a few milliseconds at most, and set the next timer."""
        now = self._loop.time()
        stop = time.monotonic() + _WORK_SLICE
        expired = 0
        while (operation := self._deadlines.pop_expired(now)) is not None:
            expired += 1
            silence = operation.silence if isinstance(operation, Armed) else None
            if silence is not None and operation.conn._record.read_paused:
                self._deadlines.add(operation, now + silence)  # it is not the peer that was silent
            else:
                self._expire(operation)
            if expired % 64 == 0 and time.monotonic() > stop:
                break
        earliest = self._deadlines.earliest()
        if earliest is not None:
            # uvloop's timers count whole milliseconds and may come up to half of one early.
            self._timer.set(earliest if expired else max(earliest, now + 0.001))
        if self._ready:
            self._signal.wake()

    def _restart_silence(self, armed: Armed) -> None:
        """A multishot request with a deadline of either kind has completed once more."""
        if armed.silence is not None:
            armed.due = self._clock() + armed.silence

    def _expire(self, operation: Operation) -> None:
        self._withdraw(operation, DeadlineExceededError("the operation's deadline has passed"))

    # --- Connections ---------------------------------------------------------------------------

    def _enrol_accepted(self, record: Record) -> Connection:
        """Begin to serve an accepted descriptor; on failure it is closed and the error raised."""
        try:
            self._register(record)
        except BaseException:
            record.open = False
            record.close()
            raise
        return Connection(self, record)  # type: ignore[arg-type]  # every Proactor is a Watcher

    def _register(self, record: Record) -> None:
        """Have the poller report a descriptor, and know it by its number."""
        fd = record.fileno()
        records = self._records
        if fd >= len(records):
            records.extend([None] * (fd + 256 - len(records)))
        stale = records[fd]
        if stale is not None:  # somebody else has closed its descriptor: the number is given again
            self._release(stale, OSError(errno.EBADF, os.strerror(errno.EBADF)))
        records[fd] = record  # before its first event may come: it is told once
        try:
            self._poller.register(record)
        except BaseException:
            records[fd] = None
            raise

    def _serves(self, fd: int) -> bool:
        """Whether the descriptor ``fd`` is one of ours, and not another of the same number."""
        record = self._records[fd] if fd < len(self._records) else None
        return record is not None and self._poller.holds(record)

    def _count_connections(self) -> int:
        return len(self._records) - self._records.count(None)

    def _free(self, record: Record) -> bool:
        if not record.open:
            return False
        if self._busy:
            self._post_quietly(lambda: self._free(record))
        else:
            self._release(record, ConnectionFreedError("the connection was freed"))
        return True

    def _release(self, record: Record, error: Exception) -> None:
        """Complete all that is pending on a connection, reads first, and close it now."""
        fd = record.fileno()
        record.open = record.readable = record.writable = False
        for operation in (*_chain(record.reads), *_chain(record.writes)):
            operation._next = operation._previous = None
            self._finish(operation, _again(error))
        record.reads = record.reads_tail = record.writes = record.writes_tail = None
        record.doomed = None
        if fd < len(self._records) and self._records[fd] is record:
            self._records[fd] = None
            if self._poller.unregister(record):
                record.close()
            else:  # the number is somebody else's by now, and not ours to close
                record.detach()
        else:
            record.close()
        if self._ready:
            self._signal.wake()

    def _release_orphan(self, record: Record) -> None:
        """Close a connection that nobody holds. Called by a finalizer, in any thread."""
        if threading.get_native_id() == self._thread or self._loop.is_closed():
            self._free(record)
            return
        try:
            self._post(lambda: self._free(record))
        except WatcherClosedError:
            self._free(record)

    # --- Other threads -------------------------------------------------------------------------

    def _post(self, action: Callable[[], object]) -> None:
        """Have ``action`` run in the loop's thread; it runs also if the watcher closes first."""
        self._inbox.post(action, self._on_inbox)
        self._direct = False

    def _post_quietly(self, action: Callable[[], object]) -> None:
        """Post what the watcher's close makes unnecessary."""
        try:
            self._post(action)
        except WatcherClosedError:
            pass

    def _on_inbox(self) -> None:
        """The loop comes for what other threads have posted."""
        if not self._inbox.come(_WORK_SLICE) and not self._loop.is_closed():
            self._loop.call_soon(self._on_inbox)
        self._direct = not self._inbox.waiting
        self._settle()

    def _run_inbox(self) -> None:
        """Do not wait for the loop to come."""
        self._inbox.empty()
        self._direct = True
        self._settle()

    def _close_from_finalizer(self) -> None:
        """Close a watcher that nobody holds, in the thread that the loop allows it in."""
        if threading.get_native_id() == self._thread or self._loop.is_closed():
            self._close()
            return
        try:
            self._loop.call_soon_threadsafe(self._close)
        except RuntimeError:  # closed meanwhile
            self._close()

    # --- The end -------------------------------------------------------------------------------

    def _close(self) -> None:
        if self._busy:
            self._post_quietly(self._close)
            return
        if not self._inbox.close():
            return
        self._closed = True
        self._backlog.clear()
        self._hungry.clear()
        for record in self._records:
            if record is not None:
                self._release(record, WatcherClosedError("the watcher was closed"))
        self._run_inbox()
        self._timer.cancel()
        self._poller.close()
        _proactors.discard(self)
        self._signal.wake()

    def _abandon(self) -> None:
        """In the child of a fork: close our copies and leave alone what the parent shares."""
        self._closed = True
        self._inbox.abandon()
        ours = self._poller.abandon()
        for record in self._records:
            if record is not None:
                record.open = record.readable = record.writable = False
                if record.fileno() in ours:
                    record.close()
                else:
                    record.detach()
        self._records[:] = [None] * len(self._records)  # the loop may still call for one
        self._ready.clear()


def _again(error: Exception) -> Exception:
    """The same error once more: each operation has its own, since a program may raise it."""
    return type(error)(*error.args)


def _chain(operation: Operation | None) -> list[Operation]:
    """The operations of a queue, first to last."""
    chain = []
    while operation is not None:
        chain.append(operation)
        operation = operation._next
    return chain


def _behind_torn(cause: Exception) -> OperationCancelledError:
    error = OperationCancelledError(
        "a write before this one was cut after a part of it was sent; nothing may follow it"
    )
    error.__cause__ = cause
    return error


def _keep_rest(operation: Write) -> None:
    """Copy what the socket has not taken of a silent write: the caller may reuse the data."""
    with octets_of(operation.buffer) as octets:
        operation.buffer = rest = octets[operation.size - operation.skipped :].tobytes()
    operation.skipped = operation.size
    operation.length = len(rest)


def _warm_up(size: int) -> None:
    """Tell the allocator that blocks of so many bytes in all come and go.

    glibc returns what is free at the end of its heap to the system beyond a threshold of 128 KiB,
    and takes it back, page by page, for the next batch; the threshold grows with the largest block
    ever freed (mallopt(3), M_TRIM_THRESHOLD). The block here is never touched: it costs no memory.
    With messages of 16 KiB it is worth a quarter of the speed.
    """
    bytearray(min(size, _LARGEST_BATCH))


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock, to begin a timeout at the moment of the call.

    uvloop's ``time()`` is the time at which the iteration of the loop began, in whole
    milliseconds of CLOCK_MONOTONIC; a timeout that began with it would be over too early.
    """
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


_proactors: weakref.WeakSet[Proactor] = weakref.WeakSet()


def _abandon_all() -> None:
    for proactor in list(_proactors):
        proactor._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
