"""``loop.sock_recv_into`` and ``loop.sock_sendall``: a task and a buffer per connection."""

from __future__ import annotations

import asyncio
import socket

from bench.servers import BUFFER_SIZE


async def serve(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        client, _ = await loop.sock_accept(listener)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(_echo(loop, client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _echo(loop: asyncio.AbstractEventLoop, client: socket.socket) -> None:
    view = memoryview(bytearray(BUFFER_SIZE))
    with client:
        try:
            while size := await loop.sock_recv_into(client, view):
                await loop.sock_sendall(client, view[:size])
        except ConnectionError:
            pass
