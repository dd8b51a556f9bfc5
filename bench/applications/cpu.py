"""CPU time of processes."""

from __future__ import annotations

import os
from pathlib import Path

from bench.process import RunError


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, with its threads and all its living descendants.

    Good to a tick, 10 ms as a rule (proc_pid_stat(5), proc_pid_task(5)).

    :raises RunError: there is no such process.
    """
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        children = [path.read_text() for path in process.glob("task/*/children")]
    except OSError:
        raise RunError("the server ended") from None
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in " ".join(children).split())
