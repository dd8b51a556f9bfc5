"""One figure, run in a process of its own: ``python -m tests.soak.child JSON``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

from tests.soak.budget import Budget, raise_descriptor_limit
from tests.soak.figures import FIGURES
from tests.soak.result import Result
from tests.soak.variant import Variant


def measure(figure: str, loop: str, poller: str, **budget: Any) -> Result:
    """Run the figure as often as the budget says; the first result with a fault, or the last."""
    plan = Budget(Variant(loop, poller), **budget)
    run = FIGURES[figure]
    begin = time.monotonic()
    for number in range(1, plan.repeats + 1):
        result: Result = plan.variant.run(lambda: run.figure(plan))
        result.seconds = time.monotonic() - begin
        result.ran += f", {number} times" if number > 1 else ""
        if not result.kept:
            break
    result.figure, result.variant, result.asked = run.name, str(plan.variant), run.asked
    return result


if __name__ == "__main__":
    raise_descriptor_limit()
    print(json.dumps(dataclasses.asdict(measure(**json.loads(sys.argv[1])))))
