"""An echo server. SIGINT (Ctrl-C) or SIGTERM ends it."""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys

from aiogaio import OpType, Watcher


async def main(listener: socket.socket) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    host, at, *_ = listener.getsockname()
    print(f"echo on [{host}]:{at}" if ":" in host else f"echo on {host}:{at}", flush=True)
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


def port(text: str) -> int:
    if not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0-65535, not {text}")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=port, default=9000, help="default: 9000; 0: any")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    arguments, run = parser.parse_args(), asyncio.run
    if arguments.loop == "uvloop":
        try:
            from uvloop import run
        except ImportError:
            sys.exit("uvloop is not installed: pip install uvloop")
    try:
        family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
        server = socket.create_server((arguments.host, arguments.port), family=family)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")
    with contextlib.suppress(asyncio.CancelledError):
        run(main(server))
