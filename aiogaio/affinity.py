"""Affinity: pin a thread to a core."""

from __future__ import annotations

import os


def pin_thread(thread: int, cpu: int) -> None:
    """Let the thread with the native id ``thread`` run on the core ``cpu`` alone.

    :raises ValueError: there is no such core, or this process may not run on it.
    :raises NotImplementedError: the system has no sched_setaffinity(2).
    """
    if isinstance(cpu, bool) or not isinstance(cpu, int):
        raise TypeError(f"cpu must be an int, not {type(cpu).__name__!r}")
    if not hasattr(os, "sched_setaffinity"):
        raise NotImplementedError("this system cannot pin a thread to a core")
    cores = os.cpu_count() or 1
    try:
        if cpu < 0:
            raise OSError
        os.sched_setaffinity(thread, {cpu})
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"there is no core {cpu} that this process may use: it has {cores}, from 0 on"
        ) from error
