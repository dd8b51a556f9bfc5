"""An echo server: python examples/echo_server.py [port]. Ctrl-C ends it."""

import asyncio
import contextlib
import socket
import sys

from aiogaio import OpType, Watcher


async def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
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
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9000))
