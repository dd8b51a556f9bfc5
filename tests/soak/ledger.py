"""Ledger: each request is entered when it is made, and each result when it is delivered.

A request's context is its ticket, a connection's context is its account. The ledger trusts no
counter of the watcher, and compares them with its own at the end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from aiogaio import (
    Connection,
    DeadlineExceededError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
)

READS, WRITES = 0, 1


class Account:
    """One connection's requests, by direction, and whatever its server keeps about it.

    Only one thread at a time makes requests on a connection.
    """

    __slots__ = ("asked", "last", "owner", "state")

    def __init__(self, owner: Any, state: Any = None) -> None:
        self.asked = [0, 0]
        self.last = [-1, -1]  # the number of the last result
        self.owner = owner
        self.state = state


class Ticket:
    """One request: whose, and which in the order of its direction."""

    __slots__ = ("account", "direction", "number", "settled")

    def __init__(self, account: Account, direction: int) -> None:
        self.account = account
        self.direction = direction
        self.number = account.asked[direction]
        account.asked[direction] += 1
        self.settled = False


class Ledger:
    """All requests of one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.accounts: set[Account] = set()
        self.submitted_before = 0  # on connections that were freed
        self.settled = 0
        self.shots = 0  # results of requests that stay armed
        self.wrong: Counter[str] = Counter()

    # What is entered

    def open(self, conn: Connection, owner: Any, state: Any = None) -> Account:
        conn.context = account = Account(owner, state)
        self.accounts.add(account)
        return account

    def read(self, conn: Connection, *args: Any, **options: Any) -> Operation:
        return self.watcher.read(conn, *args, context=Ticket(conn.context, READS), **options)

    def read_full(self, conn: Connection, buffer: bytearray, **options: Any) -> Operation:
        ticket = Ticket(conn.context, READS)
        return self.watcher.read_full(conn, buffer, context=ticket, **options)

    def write(self, conn: Connection, data: bytes) -> Operation:
        return self.watcher.write(conn, data, context=Ticket(conn.context, WRITES))

    def accept(self, listener: Connection) -> Operation:
        return self.watcher.accept(
            listener, context=Ticket(listener.context, READS), multishot=True
        )

    def free(self, conn: Connection) -> None:
        """Nothing more is asked on this connection: keep the account's sum only."""
        self.watcher.free(conn)
        self.accounts.discard(conn.context)
        self.submitted_before += sum(conn.context.asked)

    def settle(self, op: Operation) -> Account:
        """Enter a result; returns the account that it concerns."""
        ticket: Ticket = op.context
        account = ticket.account
        if ticket.settled:
            self.wrong["delivered twice"] += 1
            return account
        if not op.completed:
            self.wrong["delivered before completion"] += 1
        if (account is not op.conn.context) or (
            ticket.direction != (op.type in (OpType.WRITE, OpType.SHUTDOWN))
        ):
            self.wrong["delivered for another connection or direction"] += 1
        if op.more:
            self.shots += 1
            return account
        ticket.settled = True
        self.settled += 1
        # Only a cancel or a deadline takes a request out of the middle.
        if not isinstance(op.error, OperationCancelledError | DeadlineExceededError):
            if ticket.number < account.last[ticket.direction]:
                self.wrong["delivered out of order"] += 1
            account.last[ticket.direction] = ticket.number
        return account

    # What is found

    @property
    def submitted(self) -> int:
        return self.submitted_before + sum(sum(account.asked) for account in self.accounts)

    def expect(self, kept: bool, text: str) -> None:
        """Enter what a server found wrong with the bytes that it got."""
        if not kept:
            self.wrong[text] += 1

    def faults(self) -> list[str]:
        """What is wrong, once the watcher is closed and all results are entered."""
        found = [f"{count:,} {text}" for text, count in self.wrong.items()]
        if lost := self.submitted - self.settled:
            found.append(f"{lost:,} of {self.submitted:,} requests never completed")
        figures = self.watcher.statistics()
        if (figures.submitted, figures.completed) != (self.submitted, self.settled):
            found.append(
                f"the watcher counts {figures.submitted:,} submitted and {figures.completed:,} "
                f"completed, the ledger {self.submitted:,} and {self.settled:,}"
            )
        return found
