"""trio's sockets: a task per connection."""

from __future__ import annotations

import socket

import trio

from bench.servers import BUFFER_SIZE


async def serve(listener: socket.socket) -> None:
    accepting = trio.socket.from_stdlib_socket(listener)
    async with trio.open_nursery() as nursery:
        while True:
            client, _ = await accepting.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            nursery.start_soon(_echo, client)


async def _echo(client: trio.socket.SocketType) -> None:
    with client:
        try:
            while data := await client.recv(BUFFER_SIZE):
                sent = await client.send(data)
                while sent < len(data):
                    sent += await client.send(memoryview(data)[sent:])
        except OSError:
            pass
