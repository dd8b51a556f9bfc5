"""``asyncio.Protocol``, on whichever loop runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from bench.servers import BACKLOG


class Echo(asyncio.Protocol):
    """Stops reading while the transport's write buffer is above its high-water mark."""

    __slots__ = ("transport", "write")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self.write: Callable[[bytes], None] = self.transport.write

    def data_received(self, data: bytes) -> None:
        self.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Relay(Echo):
    """Writes to its partner's transport; the partner's write buffer stops our reading."""

    __slots__ = ("early", "partner")
    waiting: Relay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.partner: Relay | None = None
        self.early: list[bytes] = []  # what came before the partner did
        first = Relay.waiting
        if first is None:
            self.write = self.early.append
            Relay.waiting = self
            return
        Relay.waiting = None
        self.partner, first.partner = first, self
        self.write, first.write = first.transport.write, self.transport.write
        self.transport.writelines(first.early)

    def pause_writing(self) -> None:
        if self.partner is not None:
            self.partner.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.partner is not None:
            self.partner.transport.resume_reading()


class Push(Echo):
    __slots__ = ()
    clients: list[Push] = []  # noqa: RUF012 - one list for the whole server is what is meant

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.clients.append(self)
        if len(self.clients) == 1:
            self.write = self._publish

    def _publish(self, data: bytes) -> None:
        for client in self.clients:
            client.transport.write(data)

    def pause_writing(self) -> None:
        """One slow client does not stop the publisher."""

    def resume_writing(self) -> None:
        pass


async def serve(listener: socket.socket, role: str = "echo") -> None:
    factories: dict[str, Callable[[], Echo]] = {"echo": Echo, "relay": Relay, "push": Push}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        factories[role],
        sock=listener,
        backlog=BACKLOG,
        start_serving=False,  # serve_forever does, and rloop does not survive a second start
    )
    await server.serve_forever()
