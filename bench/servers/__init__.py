"""The servers that are measured: every rival as its experts would write it.

``python -m bench.servers NAME --port 0`` prints the port and serves until SIGTERM. All of them
listen with the same backlog, set TCP_NODELAY, read up to 64 KiB at once and stop reading from a
peer that does not read, where their programming model knows how.

Roles: ``echo`` (all); ``relay`` couples the first connection with the second, the third with the
fourth, ...; ``push`` sends whatever the first connection sends to all, and echoes the others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

BACKLOG = 4096
BUFFER_SIZE = 65536

_COUPLED = ("echo", "relay", "push")


@dataclass(frozen=True, slots=True)
class Server:
    """One way to write the server: which loop runs which coroutine function."""

    name: str
    loop: str  # a key of bench.servers.__main__.RUNNERS
    program: str  # "module:function", below this package
    needs: tuple[str, ...] = ()  # distributions
    roles: tuple[str, ...] = ("echo",)

    def missing(self) -> str | None:
        """Why it cannot run here, or ``None``."""
        absent = [need for need in self.needs if importlib.util.find_spec(need) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def versions(self) -> dict[str, str]:
        return {need: importlib.metadata.version(need) for need in self.needs}


def _all() -> list[Server]:
    servers = [Server("floor", "native", "", roles=("echo", "relay"))]
    for loop, needs in (("asyncio", ()), ("uvloop", ("uvloop",))):
        servers += [
            Server(f"aiogaio-rw-{loop}-epoll", loop, "proactor:completions_epoll", needs),
            Server(f"aiogaio-rw-{loop}-loop", loop, "proactor:completions_loop", needs),
            Server(f"aiogaio-ms-{loop}-epoll", loop, "proactor:multishot_epoll", needs, _COUPLED),
            Server(f"aiogaio-ms-{loop}-loop", loop, "proactor:multishot_loop", needs, _COUPLED),
            Server(
                f"aiogaio-splice-{loop}-epoll", loop, "proactor:spliced_epoll", needs, ("relay",)
            ),
            Server(f"aiogaio-splice-{loop}-loop", loop, "proactor:spliced_loop", needs, ("relay",)),
            Server(f"{loop}-streams", loop, "streams:serve", needs, _COUPLED),
            Server(f"{loop}-protocol", loop, "protocol:serve", needs, _COUPLED),
            Server(f"{loop}-buffered", loop, f"buffered:serve_{loop}", needs),
            Server(f"{loop}-sock", loop, "sock:serve", needs),
            Server(f"aiofastnet-{loop}", loop, "buffered:serve_aiofastnet", (*needs, "aiofastnet")),
        ]
    servers += [
        Server("rloop-protocol", "rloop", "protocol:serve", ("rloop",)),
        Server("trio-sockets", "trio", "trio_sockets:serve", ("trio",)),
        Server("anyio-sockets", "asyncio", "anyio_sockets:serve", ("anyio",)),
    ]
    return servers


SERVERS: dict[str, Server] = {server.name: server for server in _all()}
