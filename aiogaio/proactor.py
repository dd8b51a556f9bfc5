"""Proactor: the machine behind a watcher. Readiness goes in, completed operations come out.

It owns the records of all connections, lets the poller say which are ready, makes the attempts
that their queues ask for, keeps deadlines, and puts what has completed into the queue of
completions. It has no public name and checks no argument: the modules above it do.

One read and one write, on the way that nearly all of them take (epoll poller):

- a request finds its queue empty; a write is sent at once, a read that the readiness bit says is
  not there yet is put into the record. No look-up, one object: the operation.
- a turn takes up to ``batch_size`` events in one ``epoll_wait``; each finds its record by one
  index into a list, receives once, and appends the operation to the ready list.
- the consumer gets that list. System calls for a round trip: one recv, one send, and a share of
  one epoll_wait.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

from aiogaio import attempts
from aiogaio.core import BURST_BYTES, TURN_BYTES, WORK_SLICE, again, chain
from aiogaio.errors import (
    ConnectionFreedError,
    DeadlineExceededError,
    OperationCancelledError,
    WatcherClosedError,
)
from aiogaio.joints import Joints
from aiogaio.operation import (
    Armed,
    Fence,
    Gate,
    Joint,
    Operation,
    OpType,
    Shutdown,
    Write,
)
from aiogaio.pollers import open_poller
from aiogaio.pollers.base import ERROR, FOR_READS, FOR_WRITES, READABLE, UNCERTAIN, URGENT
from aiogaio.writes import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogaio.connection import Record
    from aiogaio.instruments import Instrument
    from aiogaio.limits import Limits

#: Bytes that a turn should receive: they fit into a core's cache.
_BATCH_BYTES: Final = 256 * 1024


class Proactor(Joints):
    """All of a watcher but its public calls: turns, and the life of connections."""

    __slots__ = ()

    def __init__(
        self,
        *,
        buffer_size: int,
        poller: str,
        batch_size: int,
        limits: Limits | None,
        instrument: Instrument | None,
    ) -> None:
        super().__init__(
            buffer_size=buffer_size, batch_size=batch_size, limits=limits, instrument=instrument
        )
        self._poller = open_poller(poller, self._loop, self)
        self._closed = False
        _proactors.add(self)

    # --- Turns ---------------------------------------------------------------------------------

    def _look(self) -> bool:
        """One turn: take what is ready and make the attempts. False once closed."""
        if self._closed:
            return False
        if not self._busy:
            try:
                self._undisturbed(self._make_turn)
            finally:
                self._settle()
        return True

    def _make_turn(self) -> None:
        if self._closed:  # since the caller looked, by a signal handler
            return
        bytes_read = self._bytes_read
        self._read_limit = self._bytes_read + BURST_BYTES
        self._write_limit = self._bytes_written + BURST_BYTES
        self._turn_limit = self._bytes_read + self._bytes_written + TURN_BYTES
        if self._backlog:
            self._serve_backlog()
        try:
            self._take(self._poller.poll(self._events))
        except BaseException:
            for record in self._records:
                if record is not None:
                    self._poller.tell_again(record)
            raise
        if self._hungry:
            self._feed()
        # Large messages in small batches: what is received has to be in the processor's cache still
        # when the program sends it on.
        bytes_read = self._bytes_read - bytes_read
        if bytes_read > _BATCH_BYTES:
            self._events = self._events // 2 or 1
        elif self._events < self._most_events and bytes_read < _BATCH_BYTES // 3:
            self._events = min(2 * self._events, self._most_events)

    def _take(self, events: Sequence[tuple[int, int]]) -> None:
        """Make the attempts that these events, ``(descriptor, bits)``, allow.

        The hot path. The two common cases, one plain read or one armed read pending, are written
        out in the loop, which saves two calls for each message.
        """
        records, room, batch_size = self._records, self._buffer_size, self._batch_size
        ready, deliver, hungry = self._ready, self._deliver, self._hungry
        receive, receive_shot = attempts.receive, attempts.receive_shot
        bytes_read = shots = 0
        record = None
        try:
            for fd, bits in events:
                record = records[fd]
                if record is None:  # freed since the event was taken
                    continue
                if bits & UNCERTAIN:
                    if bits & URGENT:
                        attempts.expect_marks(record)
                    record.short_is_empty = False
                    if record.hangups is not None:
                        self._look_for_hangup(record)
                    if bits & ERROR and record.read_paused and type(record.writes) is Gate:
                        self._break(record.writes.joint, record)
                if bits & FOR_READS:
                    record.readable = True
                    operation = record.reads
                    if operation is None:
                        pass
                    elif type(operation) is Operation and operation._next is None and record.plain:
                        if receive(record, operation, room):
                            if operation._timer is not None:
                                self._deadlines.discard(operation)
                            record.reads = None
                            operation.completed = True
                            bytes_read += operation.size
                            deliver(operation)
                    elif type(operation) is not Armed:
                        if self._tired():
                            self._put_off(record)
                        elif hungry and isinstance(operation, Armed):
                            self._queue_up(record)
                        else:
                            self._advance_reads(record)
                    elif hungry or len(ready) >= batch_size:
                        self._queue_up(record)
                    elif operation._next is not None or not record.plain:
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
        except BaseException as error:
            if record is not None:
                self._break_off(record, error)
            raise
        finally:
            self._bytes_read += bytes_read
            self._shots += shots

    def _take_read(self, fd: int) -> bool:
        """The loop says that this one descriptor is readable; false if no read waits for it.

        `_take` with no turn around it: the same two cases are written out, which saves a tenth of
        the time of a message on the loop poller.
        """
        record = self._records[fd]
        if record is not None and record.hangups is not None:
            self._undisturbed(partial(self._look_for_hangup, record))
        if record is None or record.reads is None or record.read_paused:
            return False
        if self._bytes_read >= self._read_limit:  # enough for this turn
            record.readable = True
            self._put_off(record)
            self._schedule_turn()
            return True
        operation = record.reads
        if type(operation) is Armed:
            at_once = not self._hungry and len(self._ready) < self._batch_size
        else:
            at_once = type(operation) is Operation
        if not (at_once and self._direct and operation._next is None and record.plain):
            self._take_one(fd, READABLE)
            return True
        self._busy, self._direct = True, False
        record.readable = True
        try:
            if isinstance(operation, Armed):
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
            elif attempts.receive(record, operation, self._buffer_size):
                record.reads = None
                self._bytes_read += operation.size
                self._finish(operation)
        except BaseException as error:
            self._break_off(record, error, operation)
            raise
        finally:
            self._busy, self._direct = False, self._fast and not self._inbox.waiting
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
            if self._tired():  # who has had no turn stands before those who had one
                break
            record = backlog.popleft()
            try:
                record.in_backlog = False
                if record.reads is not None and record.readable:
                    if self._hungry and isinstance(record.reads, Armed):
                        self._queue_up(record)
                    else:
                        self._advance_reads(record)
                if record.writes is not None and (record.writable or record.doomed is not None):
                    self._advance_writes(record)
            except BaseException as error:
                self._break_off(record, error)
                raise

    # --- Completions -----------------------------------------------------------------------------

    def _cancel(self, operation: Operation) -> bool:
        if operation.completed:
            return False
        if self._busy:
            self._post_quietly(lambda: self._cancel(operation))
            return True
        error = OperationCancelledError("the operation was cancelled")
        self._undisturbed(partial(self._withdraw, operation, error))
        self._signal.wake()
        return True

    def _has_come(self, operation: Operation) -> bool:
        """Whether an operation is in its queue, or over, and not on its way from another thread."""
        if operation.completed:
            return True
        one = operation.gates[0] if isinstance(operation, Joint) else operation
        record = one.conn._record
        first = one is record.reads or one is record.writes or one._previous is not None
        return first or one in (record.hangups or ())

    def _withdraw(self, operation: Operation, error: Exception) -> None:
        """Complete a pending operation, wherever it stands in its queue."""
        if operation.completed:  # by a finalizer or signal handler, since the caller looked
            return
        if isinstance(operation, Joint):
            self._end_joint(operation, error)
            return
        record = operation.conn._record
        if isinstance(operation, Write | Shutdown | Fence):
            self._withdraw_write(record, operation, error)
            if type(record.writes) in AT_ONCE:
                record.writable = True
        elif operation.type is OpType.HANGUP:
            self._remove_hangup(record, operation)
            self._finish(operation, error)
        else:
            record.remove_read(operation)
            self._finish(operation, error)
            if type(record.reads) is Gate:
                record.readable = True
        if (record.reads is not None and record.readable) or (
            record.writes is not None and record.writable
        ):  # what stood behind it can go on
            self._put_off(record)
            self._schedule_turn()

    def _collect(self, limit: int) -> list[Operation]:
        """Hand completed operations over to the consumer."""
        if self._torn and self._inbox.waiting and not self._busy:
            self._run_inbox()  # what was asked for before the torn write is known stands behind it
        batch = self._completions.take(limit)
        if batch:
            self._batches += 1
            self._collected += len(batch)
            if self._instrument is not None:
                self._instrument.batch(batch)
        if self._torn:
            waiting = {id(operation) for operation in self._ready}
            for operation, record in self._torn:
                if id(operation) not in waiting:
                    record.torn = None
                    if record.refusal is not None:
                        record.refusal = None
                        record.plan()
            self._torn = [entry for entry in self._torn if id(entry[0]) in waiting]
        if self._hungry and not self._closed:
            self._schedule_turn()
        return batch

    # --- Deadlines -------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        """Expire what is due, for a few milliseconds at most, and set the next timer."""
        now = self._loop.time()
        stop = time.monotonic() + WORK_SLICE
        expired = 0
        operation = None
        try:
            while (operation := self._deadlines.pop_expired(now)) is not None:
                expired += 1
                silence = operation.silence if isinstance(operation, Armed) else None
                if silence is not None and operation.conn._record.read_paused:
                    self._deadlines.add(operation, now + silence)  # the peer was not silent
                else:
                    self._undisturbed(partial(self._expire, operation))
                if expired % 64 == 0 and time.monotonic() > stop:
                    break
        except BaseException as error:
            if operation is not None and operation._timer is None:
                self._break_off(operation.conn._record, error, operation)
            raise
        finally:
            earliest = self._deadlines.earliest()
            if earliest is not None:
                # uvloop's timers count whole milliseconds and may come up to half of one early.
                self._timer.set(earliest if expired else max(earliest, now + 0.001))
            if self._ready:
                self._signal.wake()

    def _expire(self, operation: Operation) -> None:
        self._withdraw(operation, DeadlineExceededError("the operation's deadline has passed"))

    # --- Connections -----------------------------------------------------------------------------

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

    def _pending(self, record: Record) -> int:
        """Requests of a connection that have not completed."""
        waiting = [*chain(record.reads), *(record.hangups or ()), *chain(record.writes)]
        kept = {id(one.joint if isinstance(one, Gate) else one) for one in waiting}
        return len(kept) - sum(isinstance(one, Fence) for one in waiting)

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
            error = ConnectionFreedError("the connection was freed")
            self._undisturbed(partial(self._release, record, error))
        return True

    def _release(self, record: Record, error: Exception) -> None:
        """Complete all that is pending on a connection, reads first, and close it now."""
        fd = record.fileno()
        record.open = record.plain = record.readable = record.writable = False
        pending = _pending_in_order(record)
        record.hangups = None
        raised: list[BaseException] = []
        self._complete_all(pending, error, raised)
        record.reads = record.reads_tail = record.writes = record.writes_tail = None
        record.doomed = record.rest = None
        record.behind = 0
        self._count_bytes(record, -record.queued_bytes)
        if self._instrument is not None:
            self._instrument.connection_closed(fd)
        if fd < len(self._records) and self._records[fd] is record:
            self._records[fd] = None
            if self._poller.unregister(record):
                if not (record.listening or record.shared):
                    attempts.forgo_linger(record)
                record.close()
            else:  # the number is somebody else's by now, and not ours to close
                record.detach()
        else:
            record.close()
        if self._ready:
            self._signal.wake()
        _raise_first(raised)

    def _complete_all(
        self, pending: list[Operation], error: Exception, raised: list[BaseException]
    ) -> None:
        """Complete what was pending on a connection; what is raised in between is noted."""
        for operation in pending:
            for _ in range(2):  # once more, if it is interrupted
                try:
                    if isinstance(operation, Gate):
                        self._end_joint(operation.joint, again(error))
                    elif not operation.completed:
                        operation._next = operation._previous = None
                        self._drop(operation, again(error))
                    break
                except BaseException as interruption:
                    raised.append(interruption)

    def _release_orphan(self, record: Record) -> None:
        """Close a connection that nobody holds. Called by a finalizer, in any thread."""
        if threading.get_native_id() == self._thread or self._loop.is_closed():
            self._free(record)
            return
        try:
            self._post(lambda: self._free(record))
        except WatcherClosedError:
            self._free(record)

    def _close_from_finalizer(self) -> None:
        """Close a watcher that nobody holds, in the thread that the loop allows it in."""
        if threading.get_native_id() == self._thread or self._loop.is_closed():
            self._close()
            return
        try:
            self._loop.call_soon_threadsafe(self._close)
        except RuntimeError:  # closed meanwhile
            self._close()

    # --- The end ---------------------------------------------------------------------------------

    def _close(self) -> None:
        if self._busy:
            self._post_quietly(self._close)
            return
        if not self._inbox.close():
            return
        self._closed = True
        self._backlog.clear()
        self._hungry.clear()
        raised: list[BaseException] = []
        try:
            self._undisturbed(partial(self._release_all, raised))
            left = len(self._inbox)
            while left:
                try:
                    self._run_inbox()
                except BaseException as error:
                    raised.append(error)
                    if len(self._inbox) == left:  # it cannot be run: the stack is full, say
                        break
                left = len(self._inbox)
        finally:
            self._let_go()
        _raise_first(raised)

    def _release_all(self, raised: list[BaseException]) -> None:
        for record in self._records:
            if record is not None:
                try:
                    self._release(record, WatcherClosedError("the watcher was closed"))
                except BaseException as error:  # the others are released all the same
                    raised.append(error)

    def _let_go(self) -> None:
        """Close what belongs to the watcher itself."""
        self._timer.cancel()
        if self._pipes is not None:
            self._pipes.close()
        self._poller.close()
        _proactors.discard(self)
        self._signal.wake()

    def _abandon(self) -> None:
        """In the child of a fork: close our copies and leave alone what the parent shares."""
        self._closed = True
        self._inbox.abandon()
        if self._pipes is not None:
            self._pipes.close()
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


def _pending_in_order(record: Record) -> list[Operation]:
    """What is pending on a connection, reads first.

    Before a request that occupies both directions come the writes that stand before it, too.
    """
    operations: list[Operation] = []
    writes = chain(record.writes)
    for read in chain(record.reads):
        if isinstance(read, Gate):
            joints = [write.joint if isinstance(write, Gate) else None for write in writes]
            before = joints.index(read.joint) if read.joint in joints else 0
            operations += writes[:before]
            del writes[:before]
        operations.append(read)
    return [*operations, *(record.hangups or ()), *writes]


def _raise_first(raised: list[BaseException]) -> None:
    """Raise the first of these, if any; before all one that is no `Exception`."""
    try:
        if raised:
            raise next((one for one in raised if not isinstance(one, Exception)), raised[0])
    finally:
        raised.clear()  # they know the frames that know the list


_proactors: weakref.WeakSet[Proactor] = weakref.WeakSet()


def _abandon_all() -> None:
    for proactor in list(_proactors):
        proactor._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
