"""Rounds: every scenario and server once per round, so that drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.machine import Cores, choose_cores, facts
from bench.process import RunError
from bench.progress import Progress
from bench.results import Results, Row
from bench.scenarios import Scenario
from bench.servers import SERVERS


def run_rounds(
    scenarios: list[Scenario],
    rounds: int,
    progress: Progress,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Measure, and ``keep`` what there is after every round.

    A server that cannot run, or fails once, is named in the results. An interrupt ends the run
    early with what there is.
    """
    cores = choose_cores()
    results = Results(facts(cores), rounds)
    plan = _plan(scenarios, results)
    started = time.monotonic()
    progress.start(rounds * len(plan))
    try:
        for number in range(rounds):
            # Another order each round: nobody always follows the same neighbour.
            shift = number * len(plan) // rounds
            for scenario, row in plan[shift:] + plan[:shift]:
                progress.step(f"round {number + 1}/{rounds}  {row.scenario}  {row.server}")
                _sample(scenario, row, cores, progress)
            results.machine["seconds"] = round(time.monotonic() - started)
            keep(results)
    except KeyboardInterrupt:
        results.interrupted = True
        progress.note("interrupted: here is what has been measured")
    progress.finish()
    return results


def _sample(scenario: Scenario, row: Row, cores: Cores, progress: Progress) -> None:
    if row.error is not None:
        return
    try:
        row.add(scenario.measure(row.server, cores))
    except RunError as error:
        row.error = str(error)
        progress.note(f"{row.server}, {row.scenario}: {error}")


def _plan(scenarios: list[Scenario], results: Results) -> list[tuple[Scenario, Row]]:
    plan = []
    for scenario in scenarios:
        for name in scenario.servers:
            if name in SERVERS and (reason := SERVERS[name].missing()):
                results.missing[name] = reason
                continue
            row = Row(
                scenario.name, name, scenario.metric, scenario.unit, scenario.higher_is_better
            )
            results.rows.append(row)
            plan.append((scenario, row))
    return plan
