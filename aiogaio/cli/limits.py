"""The limit on open files, which is the limit on connections."""

from __future__ import annotations

import contextlib
import os
import resource

from aiogaio.cli.failure import Failure

RESERVED = 64  # for what a process has open beside its connections
PLENTY = 100_000


def open_files() -> tuple[int | None, int | None]:
    """The soft and the hard limit; ``None`` where there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft), _finite(hard)


def room(limit: int | None) -> int | None:
    """How many connections one process may hold under that limit."""
    return None if limit is None else max(0, limit - RESERVED)


def raise_open_files() -> None:
    """Lift the soft limit to the hard one, as any process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems cap it below a hard limit of "unlimited": then the soft one stays.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def higher_hard_limit(files: int) -> str:
    """How to have a hard limit of so many open files, or of a good many."""
    return f"as root: ulimit -Hn {max(files, PLENTY)}"


def require_connections(count: int) -> None:
    """
    :raises Failure: even the raised limit has no room for so many connections.
    """
    raise_open_files()
    limit, _ = open_files()
    available = room(limit)
    if available is not None and count > available:
        raise Failure(
            f"--connections {count} does not fit into this process's limit of {limit} open files: "
            f"use --connections {available} or less, "
            f"or raise the hard limit ({higher_hard_limit(count + RESERVED)})",
            status=2,
        )


def cores() -> list[int]:
    """The cores this process may run on; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit
