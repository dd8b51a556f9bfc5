"""Requests with odd arguments: less is known of what they do, and none may do harm."""

from __future__ import annotations

import dataclasses

from aiogaio import AioGaioError
from tests.model.requests import Request

#: What an operation may end with that had such arguments.
_POSSIBLE = (AioGaioError, OSError, TypeError, ValueError, BufferError)


@dataclasses.dataclass(eq=False)
class OddRequest(Request):
    """A request that the watcher accepted, whatever was passed to it."""

    spoiled: bool = False  # its buffer was resized or closed meanwhile

    def check_error(self, error: BaseException | None, now: float) -> None:
        if self.cancelled and not self.posted:
            super().check_error(error, now)
        assert error is None or isinstance(error, _POSSIBLE), error
