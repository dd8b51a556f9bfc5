"""Push lines to all subscribers, on asyncio's streams: write without drain, drop who is too slow.

"PUB text" of anybody goes to all; any other line is answered with the number of subscribers.
"""

from __future__ import annotations

import argparse
import asyncio
from asyncio import StreamReader, StreamWriter

from bench.applications.rivals import BACKLOG, run

QUEUE = 1 << 16  # bytes that may wait for one subscriber


class Feed:
    def __init__(self) -> None:
        self.subscribers: set[StreamWriter] = set()

    async def handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.subscribers.add(writer)
        try:
            while line := await reader.readline():
                if line.startswith(b"PUB "):
                    self.broadcast(line[4:])
                else:
                    writer.write(b"subscribers=%d\n" % len(self.subscribers))
        except (OSError, ValueError):  # it hung up, or sent a line without an end
            pass
        finally:
            self.subscribers.discard(writer)
            writer.close()

    def broadcast(self, message: bytes) -> None:
        for writer in list(self.subscribers):
            if writer.transport.get_write_buffer_size() > QUEUE:
                self.subscribers.discard(writer)
                writer.transport.abort()
            else:
                writer.write(message)


async def main(options: argparse.Namespace) -> None:
    feed = Feed()
    server = await asyncio.start_server(feed.handle, "127.0.0.1", options.port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    run(main)
