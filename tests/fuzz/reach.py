"""Reach: which lines and branches of aiogaio have run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import aiogaio

_ROOT = Path(aiogaio.__file__).parent
_ASIDE = ("cli", "__main__.py")  # a program on top; nothing below knows it

#: A line, or a branch with its way: of a file by its name, and numbers.
Place = tuple[str, int] | tuple[str, int, int]


def all_lines() -> set[Place]:
    """The lines in functions of aiogaio, by their code."""
    lines: set[Place] = set()
    for path in sorted(_ROOT.rglob("*.py")):
        if path.relative_to(_ROOT).parts[0] not in _ASIDE:
            lines.update(_lines_of(compile(path.read_bytes(), str(path), "exec")))
    return lines


def _lines_of(code: CodeType) -> Iterator[Place]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines_of(constant)
    if code.co_flags & inspect.CO_OPTIMIZED:  # not a module's or a class's own
        for _, _, line in code.co_lines():
            if line is not None and line != code.co_firstlineno:
                yield code.co_filename, line


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(str(_ROOT)) and bool(code.co_flags & inspect.CO_OPTIMIZED)


class _Monitored:
    """By sys.monitoring: a place costs something until it has been seen, and nothing after."""

    def __init__(self) -> None:
        self.seen: set[Place] = set()

    def __enter__(self) -> Self:
        monitoring = sys.monitoring
        self._tool = next(n for n in range(6) if monitoring.get_tool(n) is None)
        monitoring.use_tool_id(self._tool, "tests.fuzz")
        events = monitoring.events
        self._calls = {events.LINE: self._line}
        for name in ("BRANCH_LEFT", "BRANCH_RIGHT") if sys.version_info >= (3, 14) else ("BRANCH",):
            self._calls[getattr(events, name)] = self._branch
        for event, call in self._calls.items():
            monitoring.register_callback(self._tool, event, call)
        monitoring.set_events(self._tool, sum(self._calls))
        monitoring.restart_events()
        return self

    def __exit__(self, *_: object) -> None:
        sys.monitoring.set_events(self._tool, 0)
        for event in self._calls:
            sys.monitoring.register_callback(self._tool, event, None)
        sys.monitoring.free_tool_id(self._tool)

    def _line(self, code: CodeType, line: int) -> Any:
        if _is_ours(code) and line != code.co_firstlineno:
            self.seen.add((code.co_filename, line))
        return sys.monitoring.DISABLE

    def _branch(self, code: CodeType, source: int, target: int) -> Any:
        if not _is_ours(code):
            return sys.monitoring.DISABLE
        way = code.co_filename, code.co_firstlineno * 100_000 + source, target
        if way in self.seen and sys.version_info >= (3, 14):
            return sys.monitoring.DISABLE
        self.seen.add(way)  # to disable it would hide the other way (before 3.14)
        return None


class _Traced:
    """By sys.settrace, for Python 3.11: lines only, and slowly."""

    def __init__(self) -> None:
        self.seen: set[Place] = set()

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, _: object) -> Any:
        return self._line if _is_ours(frame.f_code) else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and frame.f_lineno != frame.f_code.co_firstlineno:
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


#: A context manager in which ``seen`` grows.
Reach = _Monitored if sys.version_info >= (3, 12) else _Traced
