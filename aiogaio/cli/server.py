"""The echo servers: on a Watcher, and their peer on asyncio streams that the demo measures beside.

For the demo a server is a function that takes a listening socket and returns an async context
manager: it serves within the block, and the block's value says what can be told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiogaio import OpType, Watcher
from aiogaio.cli.failure import reason
from aiogaio.cli.loops import Poller
from aiogaio.cli.measurement import Batches

BACKLOG = 1024
READ_SIZE = 65536  # the watcher's default; the streams read as much at a time


@dataclass(frozen=True, slots=True)
class Serving:
    poller: str | None = None
    batches: Batches | None = None


Serve = Callable[[socket.socket], AbstractAsyncContextManager[Serving]]


class EchoServer:
    """Sends back what it receives. It reads on when that is written: back-pressure."""

    def __init__(self, watcher: Watcher, listener: socket.socket) -> None:
        self.batches: Batches = Batches()
        self.served: int = 0
        self._watcher = watcher
        self._listener = watcher.delegate(listener)
        self._short = False  # of what an accept takes, since the last one that worked

    async def run(self) -> None:
        """Serve until cancelled."""
        watcher = self._watcher
        watcher.accept(self._listener, multishot=True)
        async for results in watcher:
            self.batches.add(len(results))
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is not None:
                        self._accept_failed(op.error, more=op.more)
                    else:
                        self._short = False
                        self.served += 1
                        watcher.read(op.accepted)
                elif op.error is not None:
                    watcher.free(op.conn)
                elif op.type is OpType.READ:
                    watcher.write(op.conn, op.data)
                else:
                    watcher.read(op.conn)

    def stop_accepting(self) -> None:
        self._watcher.free(self._listener)

    def _accept_failed(self, error: BaseException, *, more: bool) -> None:
        if not more:
            raise error
        # Out of descriptors or memory: those who are connected are served on meanwhile. The watcher
        # tries again and again; once is enough to be told of it.
        if not self._short:
            print(f"cannot accept for now: {reason(error)}", file=sys.stderr)
        self._short = True


def watcher_server(poller: Poller) -> Serve:
    @contextlib.asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[Serving]:
        async with Watcher(poller=poller, buffer_size=READ_SIZE) as watcher:
            server = EchoServer(watcher, listener)
            async with background(server.run()):
                yield Serving(watcher.statistics().poller, server.batches)

    return serve


@contextlib.asynccontextmanager
async def streams_server(listener: socket.socket) -> AsyncIterator[Serving]:
    """What most would write with asyncio alone."""
    handlers: set[asyncio.Task[None]] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while data := await reader.read(READ_SIZE):
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.close()
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # As for a watcher's; asyncio does it only where the socket names its protocol.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler = asyncio.create_task(echo(reader, writer))
        handlers.add(handler)
        handler.add_done_callback(handlers.discard)

    server = await asyncio.start_server(connected, sock=listener, backlog=BACKLOG)
    try:
        yield Serving()
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


@contextlib.asynccontextmanager
async def background(job: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a job beside the block, which ends it; a job that fails ends the block."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(job)
            yield
            task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
