"""Send the time to every client each second; drop who does not read. Ctrl-C ends it."""

import argparse
import asyncio
import contextlib
import socket
import sys
import time

from aiogaio import Connection, OpType, Watcher

INTERVAL = 1.0
PATIENCE = 10.0  # seconds that a client may leave one tick unread


async def push(watcher: Watcher, ready: set[Connection]) -> None:
    """To those who have taken the tick before: who never reads costs one pending write."""
    while True:
        await asyncio.sleep(INTERVAL)
        tick = time.strftime("%Y-%m-%d %H:%M:%S\n").encode()
        for conn in ready:
            watcher.write(conn, tick, timeout=PATIENCE)
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


async def main(listener: socket.socket) -> None:
    print("pushing on {}:{}".format(*listener.getsockname()), flush=True)
    ready: set[Connection] = set()
    async with Watcher() as watcher, asyncio.TaskGroup() as tasks:
        watcher.accept(listener, multishot=True)
        tasks.create_task(push(watcher, ready))
        tasks.create_task(serve(watcher, ready))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", nargs="?", type=int, default=9001, help="default: 9001; 0: any")
    try:
        server = socket.create_server(("127.0.0.1", parser.parse_args().port))
    except (OSError, OverflowError) as error:  # the port is in use, or no port at all
        sys.exit(f"cannot listen: {error}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(server))
