"""A push server: python examples/push_server.py [port] sends the time to every client each second.

A client that never reads costs one pending write: it misses ticks while that waits for room, and
is dropped when it has waited for too long. It never holds up the others.
"""

import asyncio
import contextlib
import socket
import sys
import time

from aiogaio import Connection, OpType, Watcher

INTERVAL = 1.0
PATIENCE = 10.0  # seconds that a client may leave one tick unread


def tick() -> bytes:
    return time.strftime("%Y-%m-%d %H:%M:%S\n").encode()


async def push(watcher: Watcher, ready: set[Connection]) -> None:
    """Send each tick to those who have taken the one before."""
    while True:
        await asyncio.sleep(INTERVAL)
        now = tick()
        for conn in ready:
            watcher.write(conn, now, timeout=PATIENCE)
        ready.clear()


async def serve(watcher: Watcher, ready: set[Connection]) -> None:
    async for results in watcher:
        for op in results:
            if op.type is OpType.ACCEPT:
                if op.error is None:
                    ready.add(op.accepted)
                    watcher.read(op.accepted, multishot=True)  # to notice when it hangs up
            elif op.error is not None:  # it hung up, or a write ran out of patience
                ready.discard(op.conn)
                watcher.free(op.conn)
            elif op.type is OpType.WRITE:
                ready.add(op.conn)


async def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    print("pushing on {}:{}".format(*listener.getsockname()), flush=True)
    ready: set[Connection] = set()
    async with Watcher() as watcher, asyncio.TaskGroup() as tasks:
        watcher.accept(listener, multishot=True)
        tasks.create_task(push(watcher, ready))
        tasks.create_task(serve(watcher, ready))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
