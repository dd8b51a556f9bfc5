"""What became faster or slower between two runs, beyond their noise."""

from __future__ import annotations

from bench.report import number, table
from bench.results import Results, Row

SAME = ("cpu", "cores", "kernel", "python", "versions", "server_core", "load_core")


def compare(before: Results, after: Results) -> str:
    """Markdown: a change counts if the two runs' ranges do not overlap."""
    lines, quiet = [], 0
    for new in after.rows:
        old = before.find(new.scenario, new.server)
        if old is None or not new.measured:
            continue
        verdict = _verdict(old, new)
        if verdict:
            lines.append([new.scenario, new.server, *_change(old, new), verdict])
        else:
            quiet += 1
    head = ["scenario", "server", "before", "after", "change", ""]
    text = table(head, lines) if lines else "No change beyond the noise.\n"
    return f"{_warnings(before, after)}{text}\n{quiet} figures changed no more than their noise.\n"


def _verdict(old: Row, new: Row) -> str:
    a, b = old.spread(), new.spread()
    if a.low <= b.high and b.low <= a.high:
        return ""
    return "better" if (b.median > a.median) == new.higher_is_better else "worse"


def _change(old: Row, new: Row) -> list[str]:
    a, b = old.median(), new.median()
    return [number(a), number(b), f"{b / a - 1:+.1%}" if a else "-"]


def _warnings(before: Results, after: Results) -> str:
    different = [key for key in SAME if before.machine.get(key) != after.machine.get(key)]
    return f"Not the same: {', '.join(different)}. Read on with care.\n\n" if different else ""
