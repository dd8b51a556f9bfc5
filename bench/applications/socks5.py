"""`socks5_proxy.py` beside a SOCKS5 proxy on asyncio's streams: a connection, an exchange, an end.

The backend, an echo in C, shares the load's core.
"""

from __future__ import annotations

from bench.applications.model import Application, Load, ours, rivals
from bench.applications.tools import ECHO, own, per_second

APPLICATION = Application(
    "socks5",
    ours("socks5_proxy"),
    rivals("streams", "socks5"),
    [
        Load(
            "socks5, 16 at a time, 64 B each", "connections/s",
            own("socks5", "--connections", "16", backend=True), per_second, beside=ECHO,
        )
    ],
)  # fmt: skip
