"""Loads that no tool at hand makes, on plain sockets: ``python -m bench.applications.loads.NAME``.

Each opens what it needs first, then measures for --seconds, itself and the server's CPU time, and
prints one JSON object. A wrong byte, a lost connection or datagram ends it with a line on standard
error and status 2.

They are Python, and cost less for each message than the servers do: they need no protocol, no
loop and no buffers. The table says how busy they were, so that a reader can see if one was not.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import signal
import sys
import time
from typing import NoReturn

from bench.applications.cpu import cpu_seconds

PATIENCE = 5  # seconds for an answer
LIMIT = 60  # seconds for all but the measuring, after which the process is ended


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What every load is told; and it ends by itself, whatever happens."""
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--server-pid", type=int, required=True)
    options = parser.parse_args()
    signal.alarm(math.ceil(options.seconds) + LIMIT)
    return options


def raise_file_limit(least: int) -> None:
    """As many descriptors as there are; it ends if those are too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < least:
        fail(f"{least} descriptors are needed, and {most} may be open (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


class Stopwatch:
    """From its making on: the time, and the server's CPU time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pid = options.server_pid
        self.used = cpu_seconds(self.pid)
        self.began = time.monotonic()
        self.end = self.began + options.seconds

    def report(self, count: int, **more: float) -> None:
        """Print what has been done since."""
        seconds = time.monotonic() - self.began
        busy = (cpu_seconds(self.pid) - self.used) / seconds
        print(json.dumps({"per_second": count / seconds, "server_busy": busy, **more}))
