"""`push_server.py` beside asyncio's streams: a write without drain for each, slow ones dropped.

Each message goes to all subscribers; one that one subscriber gets is one delivered.
"""

from __future__ import annotations

from bench.applications.model import LOOPS, Application, Load, Server, example, needed, rivals
from bench.applications.tools import own, per_second


def ours(loop: str) -> Server:
    quiet = "--interval", "0", "--report", "0"  # the load has all there is to say
    return Server(
        f"push_server-{loop}", example("push_server.py", "--loop", loop, *quiet), needed(loop)
    )


APPLICATION = Application(
    "push",
    [ours(loop) for loop in LOOPS],
    rivals("streams", "push"),
    [
        Load(
            f"push, {members:,} subscribers", "delivered/s",
            own("fanout", "push", "--members", str(members)), per_second,
        )
        for members in (1_000, 10_000)
    ],
)  # fmt: skip
