"""An echo server on 127.0.0.1. Ctrl-C ends it."""

import argparse
import asyncio
import contextlib
import socket
import sys

from aiogaio import OpType, Watcher


async def main(listener: socket.socket) -> None:
    print("echo on {}:{}".format(*listener.getsockname()), flush=True)
    async with Watcher() as watcher:
        watcher.accept(listener, multishot=True)  # delegates the listener
        async for results in watcher:
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        watcher.read(op.accepted)  # no buffer: data comes as bytes
                elif op.error is not None:  # the end of the stream, a reset, ...
                    watcher.free(op.conn)
                elif op.type is OpType.READ:
                    watcher.write(op.conn, op.data)
                else:  # read again once the write is done: back-pressure reaches the peer
                    watcher.read(op.conn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", nargs="?", type=int, default=9000, help="default: 9000; 0: any")
    try:
        server = socket.create_server(("127.0.0.1", parser.parse_args().port))
    except (OSError, OverflowError) as error:  # the port is in use, or no port at all
        sys.exit(f"cannot listen: {error}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(server))
