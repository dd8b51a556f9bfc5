"""`multicore_server.py`: what a second worker brings.

One worker has the server's core, with the load on the other. Two workers have both cores, so the
second one shares its core with the load: what the load takes there (its CPU is in the table) is
not the server's, and the ratio stays below 2 by as much. Each message costs some hashes
of SHA-256, so that the load takes little.
"""

from __future__ import annotations

from bench.applications.model import (
    COMPILER,
    LOOPS,
    Application,
    Load,
    Sample,
    Server,
    example,
    needed,
)
from bench.applications.tools import load_c, per_second

HASHES = 200  # a message


def workers(name: str, loop: str, count: int) -> Server:
    return Server(
        f"{name}-{loop}",
        example(
            "multicore_server.py", "--loop", loop, "--workers", str(count), "--pin",
            "--rounds", str(HASHES),
        ),
        needed(loop),
        spread=count > 1,
    )  # fmt: skip


def of_all_workers(output: str) -> Sample:
    """Without the CPU time that the load has found: it looks at the supervisor alone."""
    return Sample(per_second(output).figure)


APPLICATION = Application(
    "multicore",
    [workers("multicore_server", loop, 2) for loop in LOOPS],
    [workers("one worker", loop, 1) for loop in LOOPS],
    [
        Load(
            f"multicore, 2 workers, 64 x 128 B, {HASHES} hashes each", "round trips/s",
            load_c(64, 128), of_all_workers, (COMPILER,),
        )
    ],
    loop_by_loop=True,
)  # fmt: skip
