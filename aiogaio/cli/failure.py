"""Failure: what a command says in one line before it ends."""

from __future__ import annotations


class Failure(Exception):
    """The command cannot go on; ``str()`` of it is the line to print, ``status`` the exit status."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def reason(error: BaseException) -> str:
    """The bare reason of an error, without ``[Errno 98]`` before it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
