"""Rooms over WebSocket with the library ``websockets`` and its ``broadcast()``, no compression."""

from __future__ import annotations

import argparse
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.applications.rivals import BACKLOG, run

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def handle(member: ServerConnection) -> None:
    assert member.request is not None
    room = rooms[member.request.path]
    room.add(member)
    try:
        async for message in member:
            broadcast(room, message)
    finally:
        room.discard(member)


async def main(options: argparse.Namespace) -> None:
    async with serve(
        handle, "127.0.0.1", options.port, compression=None, backlog=BACKLOG
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    run(main)
