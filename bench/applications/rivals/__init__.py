"""The usual way to do what an example does: small servers on asyncio's own means, on either loop.

Each is what a good programmer writes first, as short as it can be and do the same under the load:
``python -m bench.applications.rivals.NAME --port PORT``. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import resource
from collections.abc import Awaitable, Callable
from typing import Any

BACKLOG = 4096
BUFFER_SIZE = 65536


def run(main: Callable[[argparse.Namespace], Awaitable[Any]]) -> None:
    """Run it on the loop that is asked for, with all the descriptors that it may have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, help="the port of the backend, for who needs one")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    factory = importlib.import_module("uvloop").new_event_loop if options.loop == "uvloop" else None

    async def program() -> None:
        await main(options)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(program())
