"""Reads: requests that receive or accept, in their queue."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from aiogaio import attempts
from aiogaio.connection import Connection
from aiogaio.core import Core, again, chain
from aiogaio.delegation import take_accepted
from aiogaio.operation import (
    Accept,
    Armed,
    ArmedMessage,
    Connect,
    Gate,
    Message,
    Operation,
    OpType,
    ReadFull,
    ReadInto,
    ReadUntil,
    start,
)

if TYPE_CHECKING:
    from aiogaio.connection import Record

#: Seconds until an accept that met a shortage is tried again.
_ACCEPT_REST: Final = 0.25


class Reads(Core):
    """What a watcher does for one direction of its connections."""

    __slots__ = ()

    def _submit_read(self, record: Record, operation: Operation, due: float | None) -> None:
        """A read or an accept from the loop's thread: behind what is in the inbox."""
        self._submit(operation, partial(self._enter_read, record, operation, due))

    def _enter_read(self, record: Record, operation: Operation, due: float | None) -> None:
        """Accept a read or an accept: attempt it if nothing is before it, else queue it.

        This, and all that enters, runs undisturbed.
        """
        self._submitted += 1
        if self._instrument is not None:
            self._instrument.submitted(operation)
        if not self._admit(record, operation):
            return
        first = record.reads is None
        overdue = due is not None and due <= self._loop.time()
        record.append_read(operation)
        if first and (record.readable or overdue or record.rest is not None):
            record.readable = True
            if self._bytes_read < self._read_limit or overdue:
                self._advance_reads(record)
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
        if record.hangups is not None and not record.read_watched:
            self._watch_reads(record)  # the read may have emptied the socket
        self._settle()

    def _advance_reads(self, record: Record) -> None:
        """Attempt the pending reads in their order, until one has to wait."""
        for _ in range(self._attempts):
            operation = record.reads
            if operation is None or record.read_paused:
                break
            if type(operation) is Gate:
                self._advance_joint(operation.joint)
                return
            if not record.readable:
                break
            before = operation.size
            if isinstance(operation, Armed):
                done = (self._accept if record.listening else self._shoot)(record, operation)
            elif record.rest is not None and type(operation) is not ReadUntil:
                done = attempts.receive_rest(record, operation, self._buffer_size)
            elif type(operation) is Operation:
                done = attempts.receive(record, operation, self._buffer_size)
            elif isinstance(operation, ReadFull):
                done = attempts.receive_full(record, operation)
            elif isinstance(operation, ReadInto):
                done = attempts.receive_into(record, operation)
            elif isinstance(operation, ReadUntil):
                done = attempts.receive_until(record, operation, self._buffer_size)
            elif isinstance(operation, Message):
                done = attempts.receive_message(record, operation, self._buffer_size)
            else:
                done = self._accept(record, operation)
            if record.listening and not done:
                break
            self._bytes_read += operation.size - before
            if done:
                record.remove_read(operation)
                self._finish(operation)
            if record.reads is None:
                if record.hangups is not None and not record.read_watched:
                    self._watch_reads(record)  # as in _enter_read()
                return
        if record.read_paused:
            return
        if type(record.reads) is Gate:
            record.readable = True
        if record.readable:
            self._put_off(record)
        elif not record.read_watched:
            self._watch_reads(record)

    def _shoot(self, record: Record, armed: Armed) -> bool:
        """Receive once for an armed read and deliver it; true if that was the end."""
        if len(self._ready) >= self._batch_size:
            self._queue_up(record)
            return False
        if record.rest is not None:
            shot: Operation | None = attempts.rest_shot(record, armed, self._buffer_size)
        elif isinstance(armed, ArmedMessage):
            shot = attempts.message_shot(record, armed, self._buffer_size)
        else:
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

    def _enrol_accepted(self, record: Record) -> Connection:
        """Begin to serve an accepted descriptor; on failure it is closed and the error raised."""
        try:
            self._register(record)
        except BaseException:
            record.open = False
            record.close()
            raise
        connection = Connection(self, record)  # type: ignore[arg-type]  # each is a Watcher
        if self._instrument is not None:
            self._instrument.connection_opened(connection)
        return connection

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
            try:
                record.read_paused = False
                if record.reads is not None and record.readable:
                    self._advance_reads(record)
            except BaseException as error:
                self._break_off(record, error)
                raise

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
            self._undisturbed(partial(self._fail_reads, record, error))
            self._signal.wake()

    def _fail_reads(self, record: Record, error: Exception) -> None:
        while (operation := record.reads) is not None:
            record.remove_read(operation)
            self._drop(operation, again(error))
        self._finish_hangups(record, error)

    # --- Hang-ups, which wait in no queue ------------------------------------------------------

    def _submit_hangup(self, record: Record, operation: Operation, due: float | None) -> None:
        """A request to be told when the peer hangs up, from the loop's thread."""
        self._submit(operation, partial(self._enter_hangup, record, operation, due))

    def _enter_hangup(self, record: Record, operation: Operation, due: float | None) -> None:
        self._submitted += 1
        if self._instrument is not None:
            self._instrument.submitted(operation)
        if not self._admit(record, operation):
            return
        record.hangups = [*(record.hangups or ()), operation]
        self._look_for_hangup(record)
        if not operation.completed:
            record.plan()
            if due is not None and due <= self._loop.time():
                self._expire(operation)
            elif due is not None:
                self._add_deadline(operation, due)
            if not record.read_watched and record.hangups is not None:
                self._watch_reads(record)
        self._settle()

    def _look_for_hangup(self, record: Record) -> None:
        """Something has happened to the connection: see if it is what these requests wait for."""
        if not _is_connecting(record) and attempts.hung_up(record):
            self._finish_hangups(record, None)

    def _finish_hangups(self, record: Record, error: Exception | None) -> None:
        waiting, record.hangups = record.hangups or (), None
        record.plan()
        for operation in waiting:
            self._finish(operation, None if error is None else again(error))
        self._settle()

    def _remove_hangup(self, record: Record, operation: Operation) -> None:
        record.hangups = [one for one in record.hangups or () if one is not operation] or None
        record.plan()


def _is_connecting(record: Record) -> bool:
    """Whether a connect is pending: until it is done, there is no peer to hang up."""
    gates = [one for one in chain(record.reads) if isinstance(one, Gate)]
    return any(isinstance(gate.joint, Connect) for gate in gates)
