"""``asyncio.BufferedProtocol``: received straight into a buffer that all connections share."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from bench.servers import BACKLOG, BUFFER_SIZE


class _Echo(asyncio.BufferedProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class EchoView(_Echo):
    """For transports that send at once and copy what they must keep (aiofastnet)."""

    view = memoryview(bytearray(BUFFER_SIZE))

    def get_buffer(self, sizehint: int) -> memoryview:
        return EchoView.view

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(EchoView.view[:nbytes])


class EchoLent(EchoView):
    """For transports that send at once and refer to what they keep (asyncio since 3.12)."""

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(EchoView.view[:nbytes])
        if self.transport.get_write_buffer_size():  # leave the buffer to it
            EchoView.view = memoryview(bytearray(BUFFER_SIZE))


class EchoCopy(EchoView):
    """For transports that send at the end of the loop's turn (uvloop)."""

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(EchoView.view[:nbytes]))


async def _serve(factory: type[_Echo], listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, sock=listener, backlog=BACKLOG)
    await server.serve_forever()


async def serve_asyncio(listener: socket.socket) -> None:
    await _serve(EchoLent, listener)


async def serve_uvloop(listener: socket.socket) -> None:
    await _serve(EchoCopy, listener)


async def serve_aiofastnet(listener: socket.socket) -> None:
    import aiofastnet

    loop = asyncio.get_running_loop()
    server = await aiofastnet.create_server(loop, EchoView, sock=listener, backlog=BACKLOG)
    await server.serve_forever()
