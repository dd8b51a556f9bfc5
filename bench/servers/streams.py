"""asyncio's streams, on whichever loop runs."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter

from bench.servers import BACKLOG, BUFFER_SIZE


async def serve(listener: socket.socket, role: str = "echo") -> None:
    handler = {"echo": _echo, "relay": _Relay().handle, "push": _Push().handle}[role]
    server = await asyncio.start_server(handler, sock=listener, backlog=BACKLOG)
    await server.serve_forever()


async def _pipe(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        while data := await reader.read(BUFFER_SIZE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _echo(reader: StreamReader, writer: StreamWriter) -> None:
    await _pipe(reader, writer)


class _Relay:
    def __init__(self) -> None:
        self.waiting: tuple[StreamReader, StreamWriter] | None = None

    async def handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self.waiting is None:
            self.waiting = reader, writer
            return
        (first_reader, first_writer), self.waiting = self.waiting, None
        await asyncio.gather(_pipe(first_reader, writer), _pipe(reader, first_writer))


class _Push:
    def __init__(self) -> None:
        self.writers: list[StreamWriter] = []

    async def handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.writers.append(writer)
        if self.writers[0] is not writer:
            await _pipe(reader, writer)
            return
        while data := await reader.read(BUFFER_SIZE):
            for client in self.writers:
                client.write(data)
        writer.close()
