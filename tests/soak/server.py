"""Servers: one end of the loads. Every request of theirs is entered in the ledger."""

from __future__ import annotations

import socket
from typing import Any

from aiogaio import Connection, Operation, OpType
from tests.soak.process import PeerProcess
from tests.soak.stage import Stage

BUFFERS = 16 * 1024
"""Of the system, for each socket: ten thousand busy ones must fit into its memory."""


class Server:
    """An echo server; others override what happens to a connection."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ledger = stage.ledger
        self.accepted = self.ended = 0
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERS)
        self.address = sock.getsockname()
        listener = stage.watcher.delegate(sock)
        self.ledger.open(listener, self)
        self.ledger.accept(listener)

    async def welcome(self, peers: PeerProcess, count: int) -> None:
        """Have so many more peers connect, and accept them."""
        accepted = self.accepted + count
        await peers.ask("open", address=self.address, count=count)
        await self.stage.until(lambda: self.accepted == accepted, "all are accepted")

    async def dismiss(self, peers: PeerProcess) -> None:
        """Have all peers close, and see it."""
        await peers.ask("close")
        await self.stage.until(lambda: self.open == 0, "the server sees all ends")

    @property
    def open(self) -> int:
        return self.accepted - self.ended

    def take(self, op: Operation) -> None:
        if op.type is OpType.ACCEPT:
            if op.error is None:
                self.accepted += 1
                self.ledger.open(op.accepted, self, self.state())
                self.begin(op.accepted)
        elif op.error is not None:
            self.end(op)
        elif op.type is OpType.READ:
            self.received(op)
        else:
            self.sent(op)

    def state(self) -> Any:
        """What is kept about a new connection."""

    def begin(self, conn: Connection) -> None:
        self.ledger.read(conn)

    def received(self, op: Operation) -> None:
        self.ledger.write(op.conn, op.data)

    def sent(self, op: Operation) -> None:
        self.ledger.read(op.conn)

    def end(self, op: Operation) -> None:
        """A connection has ended, one way or another; there is one request at a time."""
        self.drop(op.conn)

    def drop(self, conn: Connection) -> None:
        self.ended += 1
        self.ledger.free(conn)
