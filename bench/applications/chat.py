"""`chat_server.py` beside the library ``websockets`` and its ``broadcast()``: a room of 100.

Neither compresses: the example does not know how, and the library is told not to. A message that
one member gets is one delivered.
"""

from __future__ import annotations

from bench.applications.model import Application, Load, ours, rivals
from bench.applications.tools import own, per_second

APPLICATION = Application(
    "chat",
    ours("chat_server", "wsproto"),
    rivals("websockets", "chat", "websockets"),
    [
        Load(
            "chat, a room of 100", "delivered/s",
            own("fanout", "chat", "--members", "100"), per_second,
        )
    ],
)  # fmt: skip
