"""Joint requests: those that occupy several queues at once, connect and relay.

Such a request has a gate in each of its queues. It begins when all of them are the first there,
and what stands behind a gate waits, without knowing what for, until the gate is taken away.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from aiogaio import attempts
from aiogaio.core import SEND_REST, again, chain
from aiogaio.operation import Connect, Gate, Joint, Operation, Relay, start
from aiogaio.writes import Writes, behind_torn

if TYPE_CHECKING:
    from aiogaio.connection import Connection, Record


class Joints(Writes):
    """What a watcher does for requests that occupy several queues."""

    __slots__ = ()

    def _submit_joint(self, joint: Joint, due: float | None) -> None:
        """From the loop's thread: behind what is in the inbox."""
        self._submit(joint, partial(self._enter_joint, joint, due))

    def _enter_joint(self, joint: Joint, due: float | None) -> None:
        """Accept the request: begin if nothing is before it, else queue it."""
        self._submitted += 1
        if self._instrument is not None:
            self._instrument.submitted(joint)
        if not all(self._admit_gate(joint, gate) for gate in joint.gates):
            joint.gates = []
            return
        for gate in joint.gates:
            record = gate.conn._record
            if gate.for_reads:
                record.append_read(gate)
            else:
                record.append_write(gate)
        self._advance_joint(joint)
        if not joint.completed and due is not None:
            if due <= self._loop.time():
                self._expire(joint)
            else:
                self._add_deadline(joint, due)
        self._settle()

    def _admit_gate(self, joint: Joint, gate: Gate) -> bool:
        """False, and the request completed, if there is no place for it in this queue."""
        record = gate.conn._record
        if not self._admit(record, joint):
            return False
        if record.torn is not None and not gate.for_reads:
            self._finish(joint, behind_torn(record.torn))
            self._settle()
            return False
        return True

    def _advance_joint(self, joint: Joint) -> None:
        """Carry it on, if all its gates are the first of their queues."""
        if joint.completed:
            return
        first = [gate for gate in joint.gates if _is_first(gate)]
        begins = len(first) == len(joint.gates)
        for gate in first:  # until it begins no event is of use, and would come again and again
            _pause(gate, paused=not begins)
        if not begins:
            return
        try:
            if isinstance(joint, Relay):
                self._relay(joint)
            else:
                assert isinstance(joint, Connect)
                self._connect(joint)
        except (OSError, OverflowError, TypeError, ValueError) as error:
            if isinstance(joint, Relay) and getattr(error, "errno", 0) in attempts.SHORTAGE:
                self._let_rest(joint)
            else:
                self._end_joint(joint, error)

    def _end_joint(self, joint: Joint, error: Exception | None) -> None:
        """Complete it, take its gates away, and let go on what stood behind them."""
        if joint.completed:
            return
        if isinstance(joint, Relay):
            self._account(joint)
            for way in joint.ways:
                way.close()
        behind = [deque(chain(gate._next)) for gate in joint.gates]
        records = _leave(joint)
        self._finish(joint, error)
        if error is not None and isinstance(joint, Connect):
            self._refuse(joint, error)
            self._fail_behind(joint.conn._record, behind, error)
        for record in records:
            self._go_on(record)

    def _refuse(self, joint: Connect, error: Exception) -> None:
        """Until the program knows that it failed, what it submits is meant to stand behind it."""
        record = joint.conn._record
        record.torn = record.refusal = error
        record.plan()
        self._torn.append((joint, record))

    def _fail_behind(
        self, record: Record, queues: list[deque[Operation]], error: Exception
    ) -> None:
        """Complete what stands behind a connect that failed, each queue in its order."""
        while any(queues):
            for queue in queues:
                while queue and not isinstance(queue[0], Gate):
                    operation = queue.popleft()
                    if not operation.completed:
                        self._withdraw(operation, again(error))
            joints = [queue[0].joint for queue in queues if queue and isinstance(queue[0], Gate)]
            if not joints:
                break
            joint = joints[0]
            records = _leave(joint)
            if not joint.completed:
                self._finish(joint, again(error))
            for other in records:
                if other is not record:  # the other side of a relay is not to blame
                    self._go_on(other)
            for queue in queues:
                if queue and isinstance(queue[0], Gate) and queue[0].joint is joint:
                    queue.popleft()
        if record.hangups is not None:
            self._finish_hangups(record, error)

    def _go_on(self, record: Record) -> None:
        """What stands in the queues now has not been attempted."""
        if record.open and (record.reads is not None or record.writes is not None):
            record.readable = record.writable = True
            self._put_off(record)
            self._schedule_turn()
        if record.hangups is not None and record.open:
            self._look_for_hangup(record)

    # --- Connect -------------------------------------------------------------------------------

    def _connect(self, joint: Connect) -> None:
        record = joint.conn._record
        try:
            if attempts.connect(record, joint.address):
                self._connected(record)
                self._end_joint(joint, None)
            elif not record.write_watched:
                self._watch_writes(record)
        except BlockingIOError:  # a Unix listener's queue is full; no event tells when it is not
            record.write_paused = True
            self._loop.call_later(SEND_REST, self._retry_writes, record)
        except OSError as error:
            record.latch(error, final=True)
            raise

    def _connected(self, record: Record) -> None:
        # Before it was connected there were events of a hang-up: they do not count, unless there
        # is one already.
        record.short_is_empty = record.is_tcp and not attempts.is_uncertain(record)
        record.latched = None  # of an attempt before this one

    # --- Relay ---------------------------------------------------------------------------------

    def _relay(self, relay: Relay) -> None:
        before = sum(way.sent for way in relay.ways)
        for way in relay.ways:
            if way.move(2 * self._attempts):  # it could go on
                self._put_off(way.target if way.sends else way.source)
        self._account(relay)
        if relay.size != before and relay._timer is not None:
            self._restart_silence(relay)
        if all(way.done for way in relay.ways):
            self._end_joint(relay, None)
            return
        for way in relay.ways:
            # An event that has nothing to serve would come again and again (loop poller).
            way.source.read_paused = not way.receives
            way.target.write_paused = not way.sends
            if way.receives and not way.source.readable and not way.source.read_watched:
                self._watch_reads(way.source)
            if way.sends and not way.target.writable and not way.target.write_watched:
                self._watch_writes(way.target)

    def _let_rest(self, relay: Relay) -> None:
        """The system is short of memory: no event tells when it has some again."""
        self._account(relay)
        for gate in relay.gates:
            _pause(gate, paused=True)
        self._loop.call_later(SEND_REST, self._go_on_with, relay)

    def _go_on_with(self, relay: Relay) -> None:
        for gate in relay.gates:  # none, if it has ended meanwhile
            _pause(gate, paused=False)
        for record in _records_of(relay.gates):
            self._go_on(record)

    def _break(self, joint: Joint, record: Record) -> None:
        """There is an error, and nobody reads at the moment who would find it."""
        if not isinstance(joint, Relay) or not all(map(_is_first, joint.gates)):
            return
        try:
            number = record.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:  # no socket: the next attempt will tell
            return
        if number:
            error = OSError(number, os.strerror(number))
            record.latch(error)
            self._end_joint(joint, error)

    def _account(self, relay: Relay) -> None:
        """Write down how much has been moved."""
        sizes = relay.ways[0].sent, relay.ways[1].sent
        moved = sum(sizes) - relay.size
        relay.sizes = sizes
        relay.size += moved
        self._bytes_read += moved
        self._bytes_written += moved


def gates_of(joint: Joint, *connections: Connection) -> list[Gate]:
    """A gate for each direction of these connections."""
    gates = []
    for connection in connections:
        for for_reads in (True, False):
            gate = start(Gate(), joint.type, connection, None)
            gate.joint, gate.for_reads = joint, for_reads
            gates.append(gate)
    return gates


def _is_first(gate: Gate) -> bool:
    record = gate.conn._record
    return (record.reads if gate.for_reads else record.writes) is gate


def _pause(gate: Gate, *, paused: bool) -> None:
    record = gate.conn._record
    if gate.for_reads:
        record.read_paused = paused
    else:
        record.write_paused = paused


def _leave(joint: Joint) -> list[Record]:
    """Take its gates away, from it as well, so that no cycle is left; the records they were of."""
    gates, joint.gates = joint.gates, []
    for gate in gates:
        _take_away(gate)
    return _records_of(gates)


def _records_of(gates: list[Gate]) -> list[Record]:
    """The connections that the gates stand on, each once."""
    return list({id(gate.conn): gate.conn._record for gate in gates}.values())


def _take_away(gate: Gate) -> None:
    record = gate.conn._record
    if gate.for_reads:
        record.remove_read(gate)
    else:
        if record.writes is gate:
            _pause(gate, paused=False)
        record.remove_write(gate)
