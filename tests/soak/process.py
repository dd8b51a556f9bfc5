"""The children: figures, and their peers. Each is a process group that ends with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any

PEERS = "tests.soak.peers"
CHILD = "tests.soak.child"


class ChildError(Exception):
    """A child that failed, in one line; its own words are in ``output``."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output


def run_child(arguments: dict[str, Any], within: float) -> dict[str, Any]:
    """Run one figure in a process of its own; returns what it printed."""
    command = [sys.executable, "-m", CHILD, json.dumps(arguments)]
    pipe = subprocess.PIPE
    # A session of its own, so that it can be ended together with its peers.
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        output, errors = child.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        raise ChildError(f"not done within {within:.0f} s") from None
    finally:
        _end_group(child)
    if child.returncode:
        last = errors.strip().splitlines()[-1:] or ["no word"]
        raise ChildError(f"the process ended with {child.returncode}: {last[0]}", errors)
    answer: dict[str, Any] = json.loads(output)
    return answer


def _end_group(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


class PeerProcess:
    """Peers in a process of their own: commands go out and answers come back as lines of JSON."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", PEERS]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Have a command carried out, with the loop running meanwhile."""
        return await asyncio.to_thread(self._ask, {"do": command, **arguments})

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise ChildError(f"the peers' {command['do']}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._child.kill()
        with self._child:
            pass
