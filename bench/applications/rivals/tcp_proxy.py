"""A TCP proxy on asyncio's streams."""

from __future__ import annotations

import argparse
import asyncio
from asyncio import StreamReader, StreamWriter

from bench.applications.rivals import BACKLOG, run
from bench.applications.rivals.relay import relay


async def main(options: argparse.Namespace) -> None:
    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", options.to)
        except OSError:
            writer.close()
            return
        await relay((reader, writer), upstream)

    server = await asyncio.start_server(handle, "127.0.0.1", options.port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    run(main)
