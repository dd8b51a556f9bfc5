"""How long importing a library takes: ``python -m bench.imports NAME``.

Counted from an interpreter that has asyncio already, with everything compiled and in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

SUBJECTS = ("aiogaio", "uvloop", "aiofastnet", "trio")
TIMED = """
import asyncio, time
start = time.perf_counter()
import {name}
print(time.perf_counter() - start)
"""


def import_seconds(name: str) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", TIMED.format(name=name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.strip().rpartition("\n")[2])
    return float(done.stdout)


if __name__ == "__main__":
    import_seconds(sys.argv[1])  # compile
    print(json.dumps({"ms": min(import_seconds(sys.argv[1]) for _ in range(5)) * 1e3}))
