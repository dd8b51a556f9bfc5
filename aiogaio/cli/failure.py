"""Failure: what a command says in one line before it ends."""

from __future__ import annotations

import errno
import os


class Failure(Exception):
    """The command cannot go on. ``str()`` of it is the line to print; ``status``: to exit with."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def reason(error: BaseException) -> str:
    """The bare reason of an error: no ``[Errno 98]`` before it, no address behind it."""
    match error:
        case OSError(errno=int(number)) if number in errno.errorcode:
            return os.strerror(number)
        case OSError(strerror=str(text)):  # a name that did not resolve, for one
            return text
        case _:
            return str(error) or type(error).__name__
