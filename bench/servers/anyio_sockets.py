"""anyio's socket streams, on its asyncio backend: a task per connection."""

from __future__ import annotations

import socket

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from bench.servers import BUFFER_SIZE


async def serve(listener: socket.socket) -> None:
    async with await SocketListener.from_socket(listener) as accepting:
        await accepting.serve(_echo)


async def _echo(client: SocketStream) -> None:
    client.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with client:
        try:
            while True:
                await client.send(await client.receive(BUFFER_SIZE))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
