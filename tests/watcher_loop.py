"""An asyncio event loop whose ``sock_*`` calls go through a Watcher, to run outside code on it.

Each call makes one request, on a duplicate of the socket's descriptor that is freed when the call
ends or is cancelled: the socket itself stays its owner's, as asyncio has it.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

from aiogaio import Connection, EndOfStreamError, Operation, Watcher

Submit = Callable[[Watcher, Connection, asyncio.Future[Operation]], Operation | None]


class WatcherEventLoop(asyncio.SelectorEventLoop):
    """A selector event loop with one watcher, and one task that collects from it."""

    def __init__(
        self, selector: selectors.BaseSelector | None = None, *, poller: str = "auto"
    ) -> None:
        super().__init__(selector)
        self.watcher: Watcher | None = None  # made at the first call: it needs the loop to run
        self._poller_name = poller
        self._collector: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._collector is not None and not self.is_closed():
            assert self.watcher is not None
            self.watcher.close()
            self.run_until_complete(self._collector)  # and raise what it raised
        super().close()

    # --- asyncio's calls, each a request ---------------------------------------------------------

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        buffer = bytearray(n)
        size = await self.sock_recv_into(sock, buffer)
        return bytes(memoryview(buffer)[:size])

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        try:
            return (await self._result(sock, lambda w, c, f: w.read(c, buf, context=f))).size
        except EndOfStreamError:
            return 0

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        result = await self._result(sock, lambda w, c, f: w.recvfrom(c, context=f))
        return result.data[:bufsize], result.address

    async def sock_recvfrom_into(
        self, sock: socket.socket, buf: Any, nbytes: int = 0
    ) -> tuple[int, Any]:
        with memoryview(buf) as view:
            data, address = await self.sock_recvfrom(sock, nbytes or len(view))
            view[: len(data)] = data
        return len(data), address

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        await self._result(sock, lambda w, c, f: w.write(c, data, context=f))

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        result = await self._result(sock, lambda w, c, f: w.sendto(c, data, address, context=f))
        return result.size

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        result = await self._result(sock, lambda w, c, f: w.accept(c, context=f))
        try:
            accepted = _duplicate(result.accepted)
        finally:
            result.accepted.close()
        accepted.setblocking(False)
        return accepted, result.address

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        self._check(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):  # a watcher does not look names up
            found = await self._ensure_resolved(  # type: ignore[attr-defined]
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = found[0][4]
        await self._result(sock, lambda w, c, f: w.connect(c, address, context=f))

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        """What ``sock_sendfile`` and ``sendfile`` come down to once their arguments are checked."""
        result = await self._request(
            sock, lambda w, c, f: w.sendfile(c, file, offset, count, context=f)
        )
        if result.size:
            file.seek(offset + result.size)
        if result.error is not None and not isinstance(result.error, EndOfStreamError):
            raise result.error
        return result.size

    # --- the watcher -----------------------------------------------------------------------------

    async def _result(self, sock: socket.socket, submit: Submit) -> Operation:
        """The completed operation of one request; its error is raised."""
        result = await self._request(sock, submit)
        if result.error is not None:
            raise result.error
        return result

    async def _request(self, sock: socket.socket, submit: Submit) -> Operation:
        """The completed operation of one request, with or without an error."""
        self._check(sock)
        watcher = self._started()
        future: asyncio.Future[Operation] = self.create_future()
        conn = watcher.delegate(_duplicate(sock))
        operation = None
        try:
            operation = submit(watcher, conn, future)
            return await future
        except asyncio.CancelledError:
            if operation is not None:
                watcher.cancel(operation)
                if operation.accepted is not None:  # it came in the same turn
                    operation.accepted.close()
            raise
        finally:
            watcher.free(conn)

    def _started(self) -> Watcher:
        if self.watcher is None:
            self.watcher = Watcher(poller=self._poller_name)
            self._collector = self.create_task(_collect(self.watcher))
        return self.watcher

    def _check(self, sock: socket.socket) -> None:
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")  # asyncio's own words


async def _collect(watcher: Watcher) -> None:
    """Hand each result to the call that waits for it; a second result for one raises here."""
    async for results in watcher:
        for result in results:
            future = result.context
            if not future.cancelled():
                future.set_result(result)


def _duplicate(sock: socket.socket | Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(sock.fileno()))
