"""aiogaio: read + write completions, and multishot reads + silent writes, on both pollers."""

from __future__ import annotations

import socket
from functools import partial
from typing import Literal

from aiogaio import OpType, Watcher

Poller = Literal["epoll", "loop"]


async def _completions(poller: Poller, listener: socket.socket) -> None:
    """Reads again once the echo is written: back-pressure reaches the peer."""
    READ, WRITE = OpType.READ, OpType.WRITE
    async with Watcher(poller=poller) as watcher:
        read, write = watcher.read, watcher.write
        watcher.accept(listener, multishot=True)
        async for results in watcher:
            for op in results:
                kind = op.type
                if op.error is not None:
                    if kind is READ or kind is WRITE:
                        watcher.free(op.conn)
                elif kind is READ:
                    write(op.conn, op.data)
                elif kind is WRITE:
                    read(op.conn)
                else:
                    read(op.accepted)


async def _multishot(poller: Poller, listener: socket.socket, role: str = "echo") -> None:
    """One read request per connection for all its life; only failed writes are delivered."""
    serve = {"echo": _echo, "relay": _relay, "push": _push}[role]
    async with Watcher(poller=poller) as watcher:
        watcher.accept(listener, multishot=True)
        await serve(watcher)


async def _echo(watcher: Watcher) -> None:
    READ = OpType.READ
    write = watcher.write
    async for results in watcher:
        for op in results:
            kind = op.type
            if op.error is None:
                if kind is READ:
                    write(op.conn, op.data, silent=True)
                else:
                    watcher.read(op.accepted, multishot=True)
            elif kind is not OpType.ACCEPT:
                watcher.free(op.conn)


async def _relay(watcher: Watcher) -> None:
    """A connection's context is its partner."""
    waiting = None
    async for results in watcher:
        for op in results:
            if op.error is not None:
                if op.type is not OpType.ACCEPT:
                    watcher.free(op.conn)
            elif op.type is OpType.READ:
                watcher.write(op.context, op.data, silent=True)
            elif waiting is None:
                waiting = op.accepted
            else:
                first, second, waiting = waiting, op.accepted, None
                first.context, second.context = second, first
                watcher.read(first, multishot=True)
                watcher.read(second, multishot=True)


async def _push(watcher: Watcher) -> None:
    """The first connection is the publisher."""
    clients = []
    async for results in watcher:
        for op in results:
            if op.error is not None:
                if op.type is not OpType.ACCEPT:
                    watcher.free(op.conn)
            elif op.type is OpType.ACCEPT:
                clients.append(op.accepted)
                watcher.read(op.accepted, multishot=True)
            elif op.conn is clients[0]:
                for client in clients:
                    watcher.write(client, op.data, silent=True)
            else:
                watcher.write(op.conn, op.data, silent=True)


async def _spliced(poller: Poller, listener: socket.socket, role: str = "relay") -> None:
    """One relay request for each pair of connections: nothing passes through the program."""
    waiting = None
    async with Watcher(poller=poller) as watcher:
        watcher.accept(listener, multishot=True)
        async for results in watcher:
            for op in results:
                if op.type is OpType.RELAY:
                    for conn in op.context:
                        watcher.free(conn)
                elif op.error is None and waiting is None:
                    waiting = op.accepted
                elif op.error is None:
                    watcher.relay(waiting, op.accepted, context=(waiting, op.accepted))
                    waiting = None


completions_epoll = partial(_completions, "epoll")
completions_loop = partial(_completions, "loop")
multishot_epoll = partial(_multishot, "epoll")
multishot_loop = partial(_multishot, "loop")
spliced_epoll = partial(_spliced, "epoll")
spliced_loop = partial(_spliced, "loop")
