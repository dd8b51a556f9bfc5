"""Breaks: what is done to a watcher on purpose, to see that it is found."""

from __future__ import annotations

from typing import Any

import pytest

from aiogaio import Watcher


def deliver_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first result of each batch comes a second time."""
    collect = Watcher._collect

    def doubled(self: Any, limit: int) -> Any:
        batch = collect(self, limit)
        return [*batch, *batch[:1]]

    monkeypatch.setattr(Watcher, "_collect", doubled)
