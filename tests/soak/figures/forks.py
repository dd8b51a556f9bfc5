"""Forks of a process with a live watcher: the child closes all it has, the parent goes on."""

from __future__ import annotations

import asyncio
import socket

from aiogaio import Connection, Operation
from tests.probes import in_a_child, receive
from tests.soak.budget import Budget
from tests.soak.result import Result
from tests.soak.stage import Stage, stage

ASKED = "100 forks with a live watcher, the parent undisturbed"
COST = 8.0
LINES = 20


class Echoes:
    """Connections that echo, each with a read pending whenever it is looked at."""

    def __init__(self, stage: Stage) -> None:
        self.ledger = stage.ledger
        self.peers: list[socket.socket] = []
        self.conns: list[Connection] = []
        for _ in range(LINES):
            ours, peer = socket.socketpair()
            self.peers.append(peer)
            self.conns.append(stage.watcher.delegate(ours))
            self.ledger.open(self.conns[-1], self)
            self.ledger.read(self.conns[-1], timeout=3600)

    def take(self, op: Operation) -> None:
        if op.error is None and op.type.name == "READ":
            self.ledger.write(op.conn, op.data)
            self.ledger.read(op.conn, timeout=3600)


async def figure(budget: Budget) -> Result:
    count = budget.count(100, least=10)
    async with stage(budget) as one:
        echoes = Echoes(one)

        def meddle() -> None:
            """In the child: whatever a program might do with what it has inherited."""
            for conn in echoes.conns:
                one.watcher.free(conn)
            one.watcher.close()
            assert one.watcher.poll_io() == []

        for number in range(count):
            data = number.to_bytes(4, "big")
            for peer in echoes.peers[::2]:
                peer.sendall(data)  # half of them have something on its way
            in_a_child(meddle)
            for peer in echoes.peers[1::2]:
                peer.sendall(data)
            for peer in echoes.peers:
                equal = await receive(peer, 4) == data
                one.ledger.expect(equal, "echoes with other bytes than those sent")
                peer.setblocking(True)
            await asyncio.sleep(0)
        for peer, conn in zip(echoes.peers, echoes.conns, strict=True):
            one.ledger.free(conn)
            peer.close()
        one.result.ran = f"{count} forks, {LINES} connections"
        one.result.measured = f"{count * LINES:,} echoes after them"
        echoes.conns.clear()
        del conn
    return one.result
