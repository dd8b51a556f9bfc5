"""The figures: what is asked of the library, and the load that finds out. One file each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.soak.budget import Budget
from tests.soak.result import Result


@dataclass(frozen=True)
class Figure:
    name: str
    asked: str
    cost: float  # seconds that the full counts take, about
    figure: Callable[[Budget], Coroutine[Any, Any, Result]]


def _load() -> dict[str, Figure]:
    """Each module has ``ASKED``, ``COST`` and ``figure``, and is named by what it is about."""
    figures = {}
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        name = found.name.replace("_", "-")
        figures[name] = Figure(name, module.ASKED, module.COST, module.figure)
    return figures


FIGURES = _load()
