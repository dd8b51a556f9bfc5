"""Requests: what was asked of the watcher, and whether what came of it is allowed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from aiogaio import (
    ConnectionFreedError,
    DeadlineExceededError,
    EndOfStreamError,
    LimitExceededError,
    Operation,
    OperationCancelledError,
    WatcherClosedError,
)

if TYPE_CHECKING:
    from tests.model.lines import Line

#: The two queues of a connection, and what stands in neither.
READS, WRITES, ASIDE = "reads", "writes", "aside"

#: An accept may meet a shortage, a shutdown a connection that is over on both sides.
_MAY_FAIL = ("accept", "shutdown")


@dataclasses.dataclass(eq=False)
class Request:
    """One request; it is also the context of its operation."""

    kind: str
    lines: tuple[Line, ...]
    queue: str
    data: bytes = b""  # to be sent, or of the length to be received
    number: int = 0  # in the order of all requests
    due: float | None = None  # not before this moment it may expire
    silence: float | None = None  # a deadline that begins anew with each completion
    silent: bool = False
    multishot: bool = False
    posted: bool = False  # it travels through the inbox: not known to be queued at the call
    separator: bytes = b""
    op: Operation | None = None
    cancelled: bool = False
    delivered: bool = False
    moved: dict[Line, bytes] = dataclasses.field(default_factory=dict)  # by a relay, to each
    swept: int = 0  # a torn write: the number of the last request before it was handed over

    @property
    def line(self) -> Line:
        return self.lines[0]

    @property
    def completed(self) -> bool:
        """A silent write that was taken at once has no operation."""
        return self.op is None or self.op.completed

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come of it: a silent write that succeeds delivers nothing."""
        if self.delivered or self.op is None:
            return True
        return self.silent and self.op.completed and self.op.error is None

    def sent_on(self, line: Line) -> bytes:
        """What of its bytes is on the wire of a line, as far as it is known."""
        if self.kind == "relay":
            return self.moved.get(line, b"")
        return self.data if self.op is None else self.data[: self.op.size]

    @property
    def torn(self) -> bool:
        """A write that was cut in its middle. What stands behind a relay goes on all the same."""
        op = self.op
        return self.queue == WRITES and op is not None and op.error is not None and op.size > 0

    @property
    def withdrawn(self) -> bool:
        """Only these may leave their queue out of order."""
        error = None if self.op is None else self.op.error
        return isinstance(error, OperationCancelledError | DeadlineExceededError)

    def check_error(self, error: BaseException | None, now: float) -> None:
        """An error needs a cause, and some causes need their error."""
        lines = self.lines
        if any(type(line.failure) is type(error) for line in lines if line.failure):
            return  # it stood behind a connect that failed
        if self.cancelled and not self.posted:
            assert isinstance(error, OperationCancelledError), error
            assert error.__cause__ is None
            return
        match error:
            case None:
                self._check_success()
            case OperationCancelledError(__cause__=None):
                assert self.cancelled
            case OperationCancelledError(__cause__=cause):
                self._check_swept(cause)
            case DeadlineExceededError():
                assert self.due is not None
                assert now >= self.due, (now, self.due)
            case ConnectionFreedError():
                assert any(line.freed for line in lines)
            case WatcherClosedError():
                assert any(line.closed for line in lines)
            case EndOfStreamError():
                assert self.queue == READS
                assert self.line.ended, "a stream that did not end shows an end"
            case LimitExceededError():
                assert self.separator not in (b"", b"\n")
            case BrokenPipeError():
                assert any(line.shut or line.broken or line.lost for line in lines)
            case ConnectionRefusedError():
                assert any(line.refused or (line.lost and line.kind == "udp") for line in lines), (
                    error
                )
            case ConnectionError():
                assert any(line.broken or line.lost for line in lines), error
            case OSError():  # never connected, or a shortage
                assert any(line.lost for line in lines) or self.kind in _MAY_FAIL, error
            case _:
                raise AssertionError(error)

    def _check_success(self) -> None:
        op = self.op
        assert op is not None
        assert not self.silent
        assert not self.multishot or op.more
        if self.queue == WRITES or self.kind == "full":
            assert op.size == len(self.data)
        if self.queue == WRITES:
            for before in self.line.queue(WRITES):
                if before.torn and before.number < self.number:
                    assert before.swept and self.number > before.swept, "it follows a torn write"
        if self.separator:
            assert op.data.endswith(self.separator)
            assert op.data.count(self.separator) == 1
        if self.kind == "connect":
            assert not self.line.refused
        if self.kind == "hangup":
            assert self.line.ended or self.line.broken or self.line.lost

    def _check_swept(self, cause: BaseException) -> None:
        """It stood behind a torn write, before that was handed over (T3)."""
        torn = [
            write
            for line in self.lines
            for write in line.queue(WRITES)
            if write.op is not None and write.op.error is cause
        ]
        assert len(torn) == 1, "cancelled, but not behind a torn write"
        assert torn[0].torn
        assert torn[0].number < self.number
        assert not torn[0].swept or self.number <= torn[0].swept
        assert self.op is not None
        assert self.op.size == 0
