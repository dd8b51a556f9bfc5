"""Every system call of a scripted session fails, one at a time, with every errno that it can.

Whatever it is, the session comes to its end: no request is lost or delivered twice, an error has a
cause, a reset is never shown as an end in order, nothing spins, nothing stays open, nothing is
logged. Positions are counted in a run without a fault; each scene is a session of its own, with
one more scene behind it that must be as if nothing had been.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import gc
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiogaio import Operation, OpType, Watcher
from aiogaio.errors import EndOfStreamError
from tests.faults import Fault, injecting
from tests.probes import open_kinds
from tests.scripted_session import (
    HOST,
    SCENES,
    STREAM_ERRORS,
    Puppets,
    Report,
    Scene,
    Session,
    leaving_much_behind,
    relaying,
    run,
    writing,
)
from tests.support import collect, one, settle, tcp_pair

pytestmark = pytest.mark.filterwarnings("error")

BUFFER = 16 * 1024
WITHIN = 10.0
"""Seconds that a session has; it takes some hundredths of one."""
SHARE = 3
"""The default run makes one in so many of all variants."""
LASTS = 0.03
"""Seconds of a shortage that lasts; what meets it rests for a third of that."""
OF_ONE = {"recv", "recv_into", "recvmsg", "recvmsg_into", "send", "sendmsg", "_accept"}
"""Calls that concern the connection on which they are made, and no other."""


class Outcome(enum.Enum):
    """What the program may see of a fault."""

    UNSEEN = "no request fails"
    SHOWN = "a request fails with it, and none but those of its connection"
    EITHER = "one or the other: it depends on who made the call"
    LOUD = "the call raises, or the loop's handler is told"


@dataclass(frozen=True)
class Row:
    """System calls that may fail with these errnos, what comes of it, and why."""

    calls: str
    errnos: str
    outcome: Outcome
    reason: str
    times: int = 1  # so many of them in a row
    lasts: float = 0.0  # all of them for so many seconds

    def outcome_for(self, scene: Scene, number: int) -> Outcome:
        """A relay asks the program nothing: it rests, and goes on."""
        if self.calls in {RECEIVES, SENDS, "splice"} and number in {errno.ENOBUFS, errno.ENOMEM}:
            if scene is relaying:
                return Outcome.UNSEEN
            if scene is leaving_much_behind:  # of which one part is a relay
                return Outcome.EITHER
        return self.outcome


RECEIVES = "recv recv_into recvmsg recvmsg_into"
SENDS = "send sendmsg"

TABLE = (
    Row(RECEIVES, "EAGAIN", Outcome.UNSEEN, "there was an event, and nothing behind it"),
    Row(RECEIVES, "EAGAIN", Outcome.UNSEEN, "again and again", times=9),
    Row(RECEIVES, "ECONNRESET ETIMEDOUT", Outcome.SHOWN, "the stream is over, and not in order"),
    Row(RECEIVES, "ENOBUFS ENOMEM", Outcome.SHOWN, "the program may ask again"),
    Row(RECEIVES, "ENOMEM", Outcome.SHOWN, "and find the same", times=3),
    Row(RECEIVES, "ENOTCONN EBADF EPIPE", Outcome.SHOWN, "nobody else can know what to do"),
    Row(RECEIVES, "EINTR", Outcome.SHOWN, "Python has tried again already (PEP 475)"),
    Row(SENDS, "EAGAIN", Outcome.UNSEEN, "the socket was writable, and had no memory"),
    Row(SENDS, "EAGAIN", Outcome.UNSEEN, "again and again", times=9),
    Row(SENDS, "ENOBUFS ENOMEM", Outcome.UNSEEN, "sent again a little later"),
    Row(SENDS, "ENOBUFS", Outcome.UNSEEN, "and later still", lasts=LASTS),
    Row(SENDS, "EPIPE ENOTCONN EBADF", Outcome.SHOWN, "the write fails; reads go on"),
    Row(SENDS, "ECONNRESET ETIMEDOUT", Outcome.SHOWN, "the reads learn of it, too"),
    Row(SENDS, "EINTR", Outcome.SHOWN, "Python has tried again already (PEP 475)"),
    Row("_accept", "EAGAIN", Outcome.UNSEEN, "the arrival has gone again"),
    Row("_accept", "EAGAIN", Outcome.UNSEEN, "again and again", times=9),
    Row("_accept", "ECONNABORTED EPROTO EPERM ENETDOWN", Outcome.UNSEEN, "of one arrival only"),
    Row("_accept", "ECONNABORTED", Outcome.UNSEEN, "many of them", times=20),
    Row("_accept", "EMFILE ENFILE ENOBUFS ENOMEM", Outcome.SHOWN, "told, and tried again"),
    Row("_accept", "EMFILE", Outcome.SHOWN, "told each time", lasts=LASTS),
    Row("_accept", "EBADF EINVAL EINTR", Outcome.SHOWN, "the listener is of no use"),
    Row("connect_ex", "EAGAIN", Outcome.UNSEEN, "a queue is full: tried again later"),
    Row("connect_ex", "EAGAIN", Outcome.UNSEEN, "and later still", lasts=LASTS),
    Row("connect_ex", "EINTR", Outcome.UNSEEN, "it goes on in the background (connect(2))"),
    Row(
        "connect_ex",
        "ECONNREFUSED ECONNRESET ENETUNREACH ETIMEDOUT ENOBUFS EADDRNOTAVAIL EBADF",
        Outcome.SHOWN,
        "there will be no connection",
    ),
    Row("register", "ENOMEM ENOSPC EBADF EPERM", Outcome.SHOWN, "it cannot be served"),
    Row("add_reader add_writer", "ENOMEM ENOSPC EBADF", Outcome.SHOWN, "it cannot be served"),
    Row("unregister", "EBADF ENOENT", Outcome.UNSEEN, "the descriptor is another's by now"),
    Row("remove_reader remove_writer", "ENOENT EBADF", Outcome.UNSEEN, "the loop knew no more"),
    Row("modify", "ENOENT", Outcome.UNSEEN, "it is not the descriptor that was registered"),
    Row("poll", "EBADF EINVAL", Outcome.LOUD, "an epoll that fails is broken; nothing is lost"),
    Row("splice", "EAGAIN EINVAL ENOSYS", Outcome.UNSEEN, "copied instead, or tried again"),
    Row("splice", "ECONNRESET EPIPE ENOMEM EBADF", Outcome.SHOWN, "it ends the relay"),
    Row("pipe2", "EMFILE ENFILE", Outcome.UNSEEN, "copied instead"),
    Row("sendfile", "EAGAIN EINVAL ENOSYS ENOBUFS ENOMEM", Outcome.UNSEEN, "as send; or copied"),
    Row("sendfile", "EPIPE ECONNRESET EIO EBADF", Outcome.SHOWN, "of the connection, or the file"),
    Row("shutdown", "ENOTCONN EBADF", Outcome.EITHER, "a relay finds out otherwise"),
    Row("setsockopt", "EINVAL ENOBUFS", Outcome.UNSEEN, "the delay is no reason to fail"),
)


@dataclass
class Run:
    """What there is to be judged."""

    fault: Fault
    report: Report
    told: list[dict[str, Any]]  # to the loop's exception handler
    faults: list[str]

    @property
    def errnos(self) -> set[int]:
        """Those of all errors delivered or raised."""
        return {
            error.errno
            for error in (*self.report.errors, *self.report.raised)
            if isinstance(error, OSError) and error.errno is not None
        }


async def play(poller: str, fault: Fault, *scenes: Scene) -> Run:
    """One session, from its watcher's construction to the last descriptor."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    before = open_kinds()
    puppets = Puppets()
    faults: list[str] = []
    with injecting(fault):
        watcher = Watcher(poller=poller, buffer_size=BUFFER)  # type: ignore[arg-type]
        session = Session(watcher, puppets.tell, puppets.address, puppets.datagram_address)
        try:
            async with asyncio.timeout(WITHIN):
                await run(session, scenes)
        except TimeoutError:
            faults.append(f"hangs, with {session.missing()}")
        except Exception as error:
            faults.append(f"broken off by {error!r}")
        finally:
            session.abandon()
        faults += await puppets.finish()
    await settle(2)
    left = open_kinds() - before
    if left:
        faults.append(f"left open: {dict(left)}")
    asyncio.get_running_loop().set_exception_handler(None)
    return Run(fault, session.report, told, faults + session.report.faults)


def judge(run: Run, dry: Run, outcome: Outcome, number: int) -> Iterator[str]:
    """What is wrong with it."""
    fault, report = run.fault, run.report
    yield from run.faults
    if sum(fault.made.values()) > 3 * sum(dry.fault.made.values()) + 100:
        yield f"spins: {sum(fault.made.values())} system calls"
    if fault.turns > 3 * dry.fault.turns + 100:
        yield f"spins: {fault.turns} turns"
    if fault.lasts and fault.hits > 20:
        yield f"spins: {fault.hits} times in vain"
    if (report.setbacks or report.raised) and not fault.hits:
        yield f"fails without a fault: {report.setbacks or report.raised}"
    if run.errnos - dry.errnos - {number}:
        yield f"errors of other kinds: {report.errors} {report.raised}"
    for operation in report.setbacks:
        if _cause(operation.error) != number:
            yield f"fails for another reason: {operation!r}"
        of_one = fault.name in OF_ONE and operation.type is not OpType.RELAY
        if of_one and not fault.struck(operation.conn._record):
            yield f"fails on another connection: {operation!r}"
    if outcome is Outcome.LOUD:
        if len(report.raised) + len(run.told) != fault.hits:
            yield f"not told once: {report.raised} {run.told}"
    elif run.told:
        yield f"logged: {run.told}"
    if outcome is Outcome.UNSEEN and (report.setbacks or report.raised):
        yield f"seen: {report.setbacks} {report.raised}"
    if outcome is Outcome.SHOWN and fault.hits and number not in run.errnos:
        yield "swallowed"
    for operation, end in report.autopsies:
        if not _ends_rightly(operation, end, fault, dry.errnos):
            yield f"after {operation!r} comes {end!r}"


def _cause(error: BaseException | None) -> int | None:
    """The errno of an error, or of what it goes back to."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return None if error is None else error.errno


def _ends_rightly(operation: Operation, end: Exception, fault: Fault, genuine: set[int]) -> bool:
    """A stream that was lost stays so; one on which something else failed ends in order."""
    cause = _cause(operation.error)
    in_order = isinstance(end, EndOfStreamError)
    lost = _cause(end) in {cause, *genuine}
    if cause not in STREAM_ERRORS:
        return in_order or lost
    if operation.type is OpType.RELAY and not fault.struck(operation.conn._record):
        return in_order or lost  # it may have been the other one
    return lost


def variants(dry: Run) -> Iterator[tuple[Row, str, int, int]]:
    """All that may happen in a session: a row of the table, a call, its position, its errno."""
    for row in TABLE:
        for name in row.calls.split():
            for errno_name in row.errnos.split():
                for position in range(1, dry.fault.made[name] + 1):
                    yield row, name, position, getattr(errno, errno_name)


async def check(poller: str, scene: Scene, share: int) -> None:
    """One in ``share`` of the variants of a scene."""
    dry = await play(poller, Fault(), scene)
    assert not list(judge(dry, dry, Outcome.UNSEEN, 0))
    behind = () if scene is leaving_much_behind else (writing,)
    whole = await play(poller, Fault(), scene, *behind)
    assert not list(judge(whole, whole, Outcome.UNSEEN, 0))
    wrong, hits, made = [], 0, 0
    for count, (row, name, position, number) in enumerate(variants(dry)):
        if count % share:
            continue
        fault = Fault(name, number, position, row.times, row.lasts)
        played = await play(poller, fault, scene, *behind)
        made += 1
        hits += bool(fault.hits)
        outcome = row.outcome_for(scene, number)
        told = list(judge(played, whole, outcome, number))
        if told:
            many = f"for {row.lasts} s" if row.lasts else f"{row.times} times"
            what = f"{errno.errorcode[number]} {many}, from {name} number {position} on"
            wrong.append(f"{what} ({outcome.value}: {row.reason}): " + "; ".join(told))
        if len(wrong) == 8:
            break
    assert not wrong, "\n".join(wrong)
    assert hits > 0.9 * made  # what comes to pass in a run is much the same each time


@pytest.mark.parametrize("poller", ["epoll", "loop"])
async def test_a_session_without_a_fault(poller: str) -> None:
    """What it makes is enough to fail at."""
    whole = await play(poller, Fault(), *SCENES)
    assert not list(judge(whole, whole, Outcome.UNSEEN, 0))
    unused = {"modify", "getsockopt"}  # made for what no session does
    unused |= {"add_reader", "add_writer", "remove_reader", "remove_writer"}
    if poller == "loop":
        unused ^= {"register", "unregister", "poll"} | unused - {"modify", "getsockopt"}
    calls = {name for row in TABLE for name in row.calls.split()}
    assert calls - set(whole.fault.made) <= unused


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("poller", ["epoll", "loop"])
async def test_a_session_survives_the_failure_of_any_system_call(poller: str, scene: Scene) -> None:
    await check(poller, scene, SHARE)


@pytest.mark.heavy
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("poller", ["epoll", "loop"])
async def test_a_session_survives_every_failure_of_any_system_call(
    poller: str, scene: Scene
) -> None:
    await check(poller, scene, 1)


# --- Before there is anything to lose -------------------------------------------------------------


@pytest.mark.parametrize("name", ["register", "setblocking"])
async def test_O1_a_socket_that_cannot_be_delegated_stays_the_programs(name: str) -> None:
    ours, peer = tcp_pair()
    with ours, peer, injecting(Fault(name, errno.EBADF, 1)) as fault:
        async with Watcher(poller="epoll") as watcher:
            with pytest.raises(OSError, match="Bad file descriptor"):
                watcher.delegate(ours)
            gc.collect()
            assert watcher.statistics().connections == 0
            ours.sendall(b"still mine")
            assert peer.recv(100) == b"still mine"
            conn = watcher.delegate(ours)  # and may be delegated after all
            watcher.write(conn, b"the watcher's")
            assert peer.recv(100) == b"the watcher's"
            watcher.free(conn)
    assert fault.hits == 1


@pytest.mark.parametrize("name", ["register", "setblocking"])
async def test_an_accepted_connection_that_cannot_be_served_is_closed(name: str) -> None:
    with injecting(Fault(name, errno.EBADF, 2)), socket.create_server((HOST, 0)) as sock:
        address = sock.getsockname()
        async with Watcher(poller="epoll") as watcher:
            accept = watcher.accept(sock, multishot=True)
            with socket.create_connection(address) as peer:
                peer.settimeout(10)
                assert await one(watcher) is accept
                assert isinstance(accept.error, OSError)
                assert accept.error.errno == errno.EBADF
                gc.collect()
                with suppress(ConnectionResetError):
                    assert await asyncio.to_thread(peer.recv, 1) == b""
            assert watcher.statistics().connections == 1  # the listener


async def test_a_connect_that_fails_at_once_fails_what_follows_it(
    watcher: Watcher, tmp_path: Path
) -> None:
    """As one that fails later does."""
    with socket.socket(socket.AF_UNIX) as sock:
        connect = watcher.connect(sock, str(tmp_path / "nobody"))
        read, write = watcher.read(sock), watcher.write(sock, b"never sent")
        results = await collect(watcher, 3)
        assert results[0] is connect
        for op in (connect, read, write):
            assert type(op.error) is FileNotFoundError
        watcher.free(sock)
