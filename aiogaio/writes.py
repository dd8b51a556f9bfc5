"""Writes: requests that send, in their queue, and what becomes of it when one is torn."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from aiogaio import attempts
from aiogaio.core import SEND_REST, again
from aiogaio.errors import OperationCancelledError
from aiogaio.operation import (
    Fence,
    Gate,
    Operation,
    OpType,
    SendFile,
    SendMessage,
    Shutdown,
    Write,
    WriteV,
    start,
)
from aiogaio.reads import Reads

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiogaio.connection import Record

#: Writes behind a torn one that are cancelled in one go.
_DOOMED: Final = 1024
#: What need not wait until the socket is writable.
AT_ONCE: Final = frozenset({Fence, Gate, Shutdown})


class Writes(Reads):
    """What a watcher does for the other direction."""

    __slots__ = ()

    def _submit_write(self, record: Record, operation: Operation, due: float | None) -> None:
        """A write, or a shutdown, from the loop's thread: behind what is in the inbox."""
        enter = partial(self._enter_write, record, operation, due)
        if self._busy or self._inbox.waiting:
            if isinstance(operation, Write) and operation.silent:
                attempts.keep_rest(operation)
            self._post_request(operation, enter, bytes_left(operation))
        else:
            self._enter(operation, enter)

    def _enter_write(self, record: Record, operation: Operation, due: float | None) -> None:
        """Accept a write: send at once if nothing is before it, else queue it."""
        self._submitted += 1
        if self._instrument is not None:
            self._instrument.submitted(operation)
        if not self._admit(record, operation):
            return
        silent = isinstance(operation, Write) and operation.silent
        first = record.writes is None
        record.append_write(operation)
        self._count_bytes(record, bytes_left(operation))
        if record.torn is not None:
            record.doomed = operation, record.torn
            self._cancel_doomed(record)
            if silent and not operation.completed:
                attempts.keep_rest(operation)  # type: ignore[arg-type]
            self._settle()
            return
        overdue = due is not None and due <= self._loop.time()
        if first and (record.writable or overdue or type(operation) in AT_ONCE):
            record.writable = True
            if self._bytes_written < self._write_limit or overdue:
                self._advance_writes(record)
            else:
                self._put_off(record)
        if not operation.completed:
            if overdue:
                self._expire(operation)
            else:
                if silent:
                    attempts.keep_rest(operation)  # type: ignore[arg-type]
                if due is not None:
                    self._add_deadline(operation, due)
                if not record.write_watched and not record.writable and not record.write_paused:
                    self._watch_writes(record)
        self._settle()

    def _count_bytes(self, record: Record, count: int) -> None:
        """Bytes have come to the queue of writes, or left it."""
        record.queued_bytes += count
        self._queued_bytes += count

    def _fence(self, record: Record, reached: Callable[[], None]) -> Fence:
        """Call ``reached`` when all writes that are queued now have completed."""
        assert record.writes is not None
        fence = start(Fence(), OpType.WRITE, record.writes.conn, None)
        fence.reached = reached
        record.append_write(fence)
        return fence

    def _advance_writes(self, record: Record) -> None:
        """Attempt the pending writes in their order, until one has to wait."""
        if record.doomed is not None:
            self._cancel_doomed(record)
            if record.doomed is not None:
                return
        for _ in range(self._attempts):
            operation = record.writes
            if operation is None or record.write_paused:
                break
            kind = type(operation)
            if kind in AT_ONCE:
                if isinstance(operation, Gate):
                    self._advance_joint(operation.joint)
                    return
                record.remove_write(operation)
                if isinstance(operation, Fence):
                    operation.reach()
                else:
                    self._finish(operation, attempts.shut_down(record))
                continue
            if not record.writable:
                break
            assert isinstance(operation, Write)
            before = operation.size
            try:
                if kind is Write:
                    if type(operation._next) is Write and self._send_together(record, operation):
                        continue
                    done = attempts.send(record, operation)
                elif isinstance(operation, SendFile):
                    done = attempts.send_file(record, operation)
                elif isinstance(operation, SendMessage):
                    done = attempts.send_message(record, operation)
                else:
                    assert isinstance(operation, WriteV)
                    done = attempts.send_parts(record, operation)
            except OSError as error:
                record.remove_write(operation)
                self._send_failed(record, operation, error)
                continue
            except (OverflowError, TypeError, ValueError) as error:  # an address, most likely
                record.remove_write(operation)
                self._finish_write(record, operation, error)
                continue
            self._count_sent(record, operation, operation.size - before)
            if done:
                record.remove_write(operation)
                self._finish_write(record, operation, operation.error)
        if record.writes is None or record.write_paused:
            return
        if type(record.writes) in AT_ONCE:
            record.writable = True
        if record.writable:
            self._put_off(record)
        elif not record.write_watched:
            self._watch_writes(record)

    def _send_together(self, record: Record, first: Write) -> bool:
        """Send small writes in one go; false if there is only one that can be sent so."""
        sent = attempts.send_queued(record, first)
        if sent is None:
            return False
        total, finished = sent
        self._bytes_written += total
        self._count_bytes(record, -total)
        if finished:
            record.remove_first_writes(finished)
            for operation in finished:
                operation._next = operation._previous = None
                if operation.silent:
                    self._finish_write(record, operation, None)
                    continue
                operation.completed = True
                if operation._timer is not None:
                    self._deadlines.discard(operation)
                self._deliver(operation)
        return True

    def _count_sent(self, record: Record, operation: Write, count: int) -> None:
        self._bytes_written += count
        if type(operation) is not SendFile:
            self._count_bytes(record, -count)

    def _watch_writes(self, record: Record) -> None:
        """The same for writes."""
        try:
            self._undisturbed(partial(self._poller.watch_writes, record))
        except (OSError, RuntimeError, ValueError) as error:
            self._undisturbed(partial(self._fail_writes, record, error))
            self._signal.wake()

    def _fail_writes(self, record: Record, error: Exception) -> None:
        while (operation := record.writes) is not None:
            record.remove_write(operation)
            self._finish_write(record, operation, again(error))

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
            attempts.keep_rest(operation)
        self._loop.call_later(SEND_REST, self._retry_writes, record)

    def _fail_at_call(
        self, record: Record, operation: Write, error: OSError, due: float | None
    ) -> None:
        """The same for a write that was attempted before it was in the queue, nor counted."""
        self._submitted += 1
        self._count_bytes(record, operation.length)
        self._send_failed(record, operation, error)
        if due is not None and not operation.completed:  # it rests
            self._add_deadline(operation, due)

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
        self._count_bytes(record, -bytes_left(operation))
        if error is None and isinstance(operation, Write) and operation.silent:
            operation.completed = True
            self._silent += 1
            self._deadlines.discard(operation)
            if self._instrument is not None:
                self._instrument.completed(operation)
            return
        if error is None:
            self._finish(operation)
            return
        self._drop(operation, error)
        if operation.size:
            record.torn = error
            self._torn.append((operation, record))
            last = record.writes_tail or record.writes
            if last is not None:
                record.doomed = last, error
                self._cancel_doomed(record)

    def _withdraw_write(self, record: Record, operation: Operation, error: Exception) -> None:
        """Complete a write, or a shutdown, wherever it stands in its queue."""
        record.remove_write(operation)
        self._finish_write(record, operation, error)

    def _cancel_doomed(self, record: Record) -> None:
        """Cancel the writes behind a torn one, not too many in one turn."""
        for _ in range(_DOOMED):
            doomed, follower = record.doomed, record.writes
            if doomed is None or follower is None:
                return
            record.remove_write(follower)
            self._count_bytes(record, -bytes_left(follower))
            self._drop(follower, behind_torn(doomed[1]))
        self._put_off(record)
        self._schedule_turn()  # it may be that nobody else makes one


def behind_torn(cause: Exception) -> OperationCancelledError:
    """The error of a write that stands behind a torn one."""
    error = OperationCancelledError(
        "a write before this one was cut after a part of it was sent; nothing may follow it"
    )
    error.__cause__ = cause
    return error


def bytes_left(operation: Operation) -> int:
    """Bytes of the caller's, or copied from them, that are still to be sent."""
    if isinstance(operation, Write) and type(operation) is not SendFile:
        return operation.length - operation.size + operation.skipped
    return 0
