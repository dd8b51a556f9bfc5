"""`udp_echo.py` beside a DatagramProtocol, which is asyncio's only way."""

from __future__ import annotations

from bench.applications.model import COMPILER, Application, Load, ours, rivals
from bench.applications.tools import datagrams, per_second

APPLICATION = Application(
    "udp_echo",
    ours("udp_echo", udp=True),
    rivals("protocol", "udp_echo", udp=True),
    [
        Load(
            "udp_echo, 64 B, 32 under way", "datagrams/s", datagrams(32), per_second,
            (COMPILER,),
        )
    ],
)  # fmt: skip
