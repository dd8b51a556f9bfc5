"""Core: what all parts of a watcher work on. Its state, how an operation ends, when a turn is due.

The parts are one class in the end, since a call more for each message would show; they are files
of their own, each on top of the one before: :mod:`core`, :mod:`reads`, :mod:`writes`,
:mod:`joints`, :mod:`proactor`. Nothing here makes an attempt.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from aiogaio.completions import Completions, Drained, Signal
from aiogaio.deadlines import Deadlines
from aiogaio.errors import (
    ConnectionFreedError,
    UnsupportedLoopError,
    WatcherClosedError,
)
from aiogaio.inbox import Inbox
from aiogaio.instruments.guard import guarded
from aiogaio.operation import Fence, Gate
from aiogaio.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiogaio.attempts.splices import Pipes
    from aiogaio.connection import Record
    from aiogaio.instruments import Instrument
    from aiogaio.limits import Limits
    from aiogaio.operation import Joint, Lasting, Operation
    from aiogaio.pollers.base import Poller

#: Attempts that one connection and direction gets in a turn, before the others have theirs; never
#: more than a sixteenth of `batch_size`, so that one cannot fill a batch turn after turn.
_ATTEMPTS: Final = 8
#: Bytes to move in one turn: about 2 ms. What is ready beyond it waits for the next turn.
TURN_BYTES: Final = 4 * 1024 * 1024
#: Bytes that writes send at the call, until the loop has run: about 8 ms of large messages.
BURST_BYTES: Final = 16 * 1024 * 1024
#: Bytes of all results together that the allocator is prepared for.
_LARGEST_BATCH: Final = 8 * 1024 * 1024
#: Bytes from which a write on its way from another thread is counted, also if limits are not exact.
_COUNTED: Final = 4096
#: Seconds of expiring deadlines, and of requests from other threads, in one go.
WORK_SLICE: Final = 0.003
#: Seconds until a send that met a shortage of memory is tried again.
SEND_REST: Final = 0.01


class Core:
    """The state of a watcher."""

    _poller: Poller  # opened when all the rest is there

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
        "_exact",
        "_fast",
        "_hungry",
        "_inbox",
        "_instrument",
        "_limits",
        "_loop",
        "_most_events",
        "_pipes",
        "_poller",
        "_posted",
        "_queued_bytes",
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

    def __init__(
        self,
        *,
        buffer_size: int,
        batch_size: int,
        limits: Limits | None,
        instrument: Instrument | None,
    ) -> None:
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
        self._instrument = instrument = guarded(instrument, loop)
        if instrument is None:
            self._deliver: Callable[[Operation], None] = self._ready.append
        else:
            self._deliver = _delivery(self._ready, instrument)
        self._limits = limits
        # Whether every request has to be counted, wherever it is.
        self._exact = limits is not None and not limits.by_default
        # Whether there is a short way at all: nobody counts what meets an empty queue, or looks on.
        self._fast = (limits is None or limits.spare_the_first) and instrument is None

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
        # Requests in it, and their bytes: all if limits are to be exact, else large writes.
        self._posted: dict[Record, tuple[int, int]] = {}

        self._submitted = self._collected = self._shots = 0
        self._silent = self._silent_at_once = 0  # silent writes that delivered nothing
        self._batches: int = 0
        self._bytes_read = self._bytes_written = 0
        self._queued_bytes: int = 0  # of writes that wait, on all connections
        self._pipes: Pipes | None = None  # for relays
        # Readiness events to take in the next turn: see `_make_turn`.
        # In one of nothing but full reads they move no more than the bytes of a turn.
        most = max(1, min(batch_size, 2 * TURN_BYTES // buffer_size))
        self._events: int = most
        self._most_events: int = most
        _warm_up(batch_size * buffer_size)
        # Bytes after which requests are queued, not attempted at the call, until the next turn.
        self._read_limit: int = BURST_BYTES
        self._write_limit = BURST_BYTES
        # The same of both together, after which a turn leaves what is ready to the next.
        self._turn_limit = TURN_BYTES

        # Attempts are being made. What a finalizer or a signal handler asks for in between must not
        # change what they stand on: it goes through the inbox.
        self._busy = False
        # Requests may take the short way: nothing is being attempted, and the inbox is empty.
        self._direct = self._fast

    # What the parts on top provide.

    def _look(self) -> bool:
        """Make a turn."""
        raise NotImplementedError

    def _on_timer(self) -> None:
        """Expire what is due."""
        raise NotImplementedError

    def _expire(self, operation: Operation) -> None:
        """Complete an operation whose time is over."""
        raise NotImplementedError

    def _withdraw(self, operation: Operation, error: Exception) -> None:
        """Complete a pending operation, wherever it stands in its queue."""
        raise NotImplementedError

    def _register(self, record: Record) -> None:
        """Have the poller report a descriptor, and know it by its number."""
        raise NotImplementedError

    def _release(self, record: Record, error: Exception) -> None:
        """Complete all that is pending on a connection, reads first, and close it now."""
        raise NotImplementedError

    def _advance_joint(self, joint: Joint) -> None:
        """Carry a joint request on, if all its gates are the first of their queues."""
        raise NotImplementedError

    def _end_joint(self, joint: Joint, error: Exception | None) -> None:
        """Complete a joint request and take its gates away."""
        raise NotImplementedError

    def _undisturbed(self, work: Callable[[], None]) -> None:
        """Work on the queues with finalizers and signal handlers kept from them."""
        if self._busy:
            work()
            return
        self._busy, self._direct = True, False
        try:
            work()
        finally:
            self._busy, self._direct = False, self._fast and not self._inbox.waiting

    def _put_off(self, record: Record) -> None:
        """Go on with this connection in a later turn, though no event will tell."""
        if not record.in_backlog and record.open:
            record.in_backlog = True
            self._backlog.append(record)

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._loop.is_closed():
            self._turn_scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _drop(self, operation: Operation, error: Exception) -> None:
        """Complete an operation of any kind that was taken out of its queue."""
        if isinstance(operation, Gate):
            self._end_joint(operation.joint, error)
        elif isinstance(operation, Fence):
            operation.reach()
        else:
            self._finish(operation, error)

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._look()

    def _finish(self, operation: Operation, error: Exception | None = None) -> None:
        """Complete an operation that is in no queue any more, and deliver it."""
        if error is not None:
            operation.error = error.with_traceback(None)
        if operation._timer is not None:
            self._deadlines.discard(operation)
        operation.completed = True
        self._deliver(operation)

    def _settle(self) -> None:
        """See to it that the loop comes back for what can go on, and the consumer for results."""
        if self._backlog:
            self._schedule_turn()
        if self._ready and self._signal.future is not None:
            self._signal.wake()

    def _admit(self, record: Record, operation: Operation) -> bool:
        """False, and the operation completed, if the connection is closed, or never came to be."""
        if record.open:
            if record.refusal is None:
                return True
            error = again(record.refusal)
        elif self._closed:  # it was submitted by another thread and close() came first
            error = WatcherClosedError("the watcher was closed before the request came")
        else:
            error = ConnectionFreedError("the connection was freed before the request")
        self._finish(operation, error)
        self._signal.wake()
        return False

    def _add_deadline(self, operation: Operation, due: float) -> None:
        self._deadlines.add(operation, due)
        self._timer.set(due)

    def _restart_silence(self, operation: Lasting) -> None:
        """A lasting request with a deadline of either kind has moved bytes once more."""
        if operation.silence is not None:
            operation.due = self._clock() + operation.silence

    def _submit(self, operation: Operation, enter: Callable[[], None]) -> None:
        """Enter a request from the loop's thread: behind what is in the inbox."""
        if self._busy or self._inbox.waiting:
            self._post_request(operation, enter)
        else:
            self._enter(operation, enter)

    def _enter(self, operation: Operation, enter: Callable[[], None]) -> None:
        """Have a request enter; it comes to its end also if something is raised meanwhile."""
        try:
            self._undisturbed(enter)
        except BaseException as error:
            self._break_off(operation.conn._record, error, operation)
            raise

    def _break_off(
        self, record: Record, error: BaseException, operation: Operation | None = None
    ) -> None:
        """Something was raised in the middle: by a signal handler, or there was no memory.

        Nobody knows whether the system call was made, and what of it was written down. To go on
        might send bytes twice, or leave some out: the connection is freed. A listener goes on.
        """
        reason = ConnectionFreedError(f"the connection was freed: {error!r} broke an attempt off")
        if record.open and record.listening:
            record.readable = True
            self._put_off(record)
            self._schedule_turn()
        elif record.open:
            self._undisturbed(partial(self._release, record, reason))
        if operation is not None:  # which may be in no queue
            self._undisturbed(partial(self._withdraw, operation, reason))
        self._signal.wake()

    def _post(self, action: Callable[[], object]) -> None:
        """Have ``action`` run in the loop's thread; it runs also if the watcher closes first."""
        self._inbox.post(action, self._on_inbox)
        self._direct = False

    def _post_request(
        self, operation: Operation, enter: Callable[[], None], count: int = 0
    ) -> None:
        """Post a request of ``count`` bytes, so that it is counted."""
        if not self._exact and (count < _COUNTED or self._limits is None):
            self._post(partial(self._enter, operation, enter))
            return
        record = operation.conn._record

        def enter_counted() -> None:
            with self._inbox.lock:  # else a thread that looks meanwhile would find it nowhere
                self._count_posted(record, -1, -count)
                self._enter(operation, enter)

        with self._inbox.lock:
            self._post(enter_counted)
            self._count_posted(record, 1, count)

    def _count_posted(self, record: Record, requests: int, count: int) -> None:
        before = self._posted.get(record, (0, 0))
        after = before[0] + requests, before[1] + count
        if after[0]:
            self._posted[record] = after
        else:
            self._posted.pop(record, None)

    def _post_quietly(self, action: Callable[[], object]) -> None:
        """Post what the watcher's close makes unnecessary."""
        try:
            self._post(action)
        except WatcherClosedError:
            pass

    def _on_inbox(self) -> None:
        """The loop comes for what other threads have posted."""
        done = False
        try:
            done = self._inbox.come(WORK_SLICE)
        finally:  # also if an action was interrupted
            if not done and not self._loop.is_closed():
                self._loop.call_soon(self._on_inbox)
            self._direct = self._fast and not self._inbox.waiting
            self._settle()

    def _run_inbox(self, until: Callable[[], bool] = lambda: False) -> None:
        """Do not wait for the loop to come: run what is there now, or as much as is needed."""
        try:
            self._inbox.empty(until=until)
        finally:
            self._direct = self._fast and not self._inbox.waiting
            self._settle()

    async def _inbox_emptied(self) -> None:
        """Wait until what is in the inbox now has been run, as the loop comes to it."""
        emptied = Drained(self._loop)
        emptied.expect()
        self._post_quietly(emptied.reached)
        if self._inbox.waiting:
            await emptied.wait()


def again(error: Exception) -> Exception:
    """The same error once more: each operation has its own, since a program may raise it."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def chain(operation: Operation | None) -> list[Operation]:
    """The operations of a queue, first to last."""
    operations = []
    while operation is not None:
        operations.append(operation)
        operation = operation._next
    return operations


def _delivery(ready: list[Operation], instrument: Instrument) -> Callable[[Operation], None]:
    """What puts an operation among the results, and tells the instrument.

    A closure: a bound method would hold the watcher that nobody else may hold.
    """

    def deliver(operation: Operation) -> None:
        ready.append(operation)
        instrument.completed(operation)

    return deliver


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
