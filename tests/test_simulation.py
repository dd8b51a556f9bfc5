"""The simulated network against the real one: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiogaio import DeadlineExceededError, OpType, Watcher
from tests.probes import unread
from tests.simulation import Network, SimulatedSocket, StalledError
from tests.simulation.readiness import SimulatedEpoll, SimulatedPoll
from tests.support import tcp_pair, unix_pair

_BITS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP
_RESETS = struct.pack("ii", 1, 0)

CALLS = ("send", "recv", "peek", "end", "reset", "close", "error")
Step = tuple[int, str]
_ENDING = {4, 9, 11}  # TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING (netinet/tcp.h)


def _call(sock: Any, name: str) -> Any:
    """What a call on an open socket returns, or the number of its error."""
    try:
        match name:
            case "send":
                return sock.send(b"12345678")
            case "recv":
                return sock.recv(5)
            case "peek":
                return sock.recv(100, socket.MSG_PEEK)
            case "end":
                return sock.shutdown(socket.SHUT_WR)
            case "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
                return sock.close()
            case "close":
                return sock.close()
            case "error":
                return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Observed:
    """A pair of sockets, and an edge-triggered epoll that watches both."""

    def __init__(self, pair: tuple[Any, Any], epoll: Any, poll: Any) -> None:
        self.pair, self.epoll, self._poll = pair, epoll, poll
        self.open = [True, True]
        for sock in pair:
            epoll.register(sock.fileno(), _BITS | select.EPOLLET)

    def do(self, side: int, name: str) -> Any:
        sock = self.pair[side]
        if name in ("close", "reset"):
            self.epoll.unregister(sock.fileno())
            self.open[side] = False
        return _call(sock, name)

    def masks(self) -> list[int]:
        """What poll(2) says of each side that is open."""
        found = []
        for sock, is_open in zip(self.pair, self.open, strict=True):
            poll = self._poll()
            if is_open:
                poll.register(sock.fileno(), _BITS)
                found.append(dict(poll.poll(0)).get(sock.fileno(), 0))
        return found

    def waiting(self) -> list[int]:
        """Bytes that have arrived at each side that is open (FIONREAD)."""
        return [
            sock.unread if isinstance(sock, SimulatedSocket) else unread(sock)
            for sock, is_open in zip(self.pair, self.open, strict=True)
            if is_open
        ]

    def ending(self) -> bool:
        """Whether the acknowledgement of an end is on its way to a real socket."""
        states = [
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            for sock, is_open in zip(self.pair, self.open, strict=True)
            if is_open and sock.family == socket.AF_INET
        ]
        return not _ENDING.isdisjoint(states)

    def under_way(self) -> int:
        """How many segments the first side has sent that are not acknowledged yet (tcp(7))."""
        sock = self.pair[0]
        if isinstance(sock, SimulatedSocket) or sock.family != socket.AF_INET:
            return 0
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:], sys.byteorder)  # tcpi_unacked

    def edges(self) -> dict[int, int]:
        """The events of each side since they were asked for last."""
        sides = {self.pair[side].fileno(): side for side in (0, 1) if self.open[side]}
        return {sides[fd]: bits for fd, bits in self.epoll.poll(0, 10)}

    def close(self) -> None:
        for sock, is_open in zip(self.pair, self.open, strict=True):
            if is_open:
                self.epoll.unregister(sock.fileno())
                sock.close()
        self.epoll.close()


@contextlib.contextmanager
def both(kind: str) -> Iterator[tuple[Observed, Observed]]:
    pair = tcp_pair() if kind == "tcp" else unix_pair()
    for sock in pair:
        sock.setblocking(False)
    network = Network()
    real = Observed(pair, select.epoll(), select.poll)
    simulated = Observed(
        network.socketpair(kind), SimulatedEpoll(network), lambda: SimulatedPoll(network)
    )
    try:
        yield real, simulated
    finally:
        real.close()
        simulated.close()
    assert network.open_descriptors == 0
    assert network.violations == []


def agree(real: Observed, simulated: Observed) -> None:
    """Loopback takes its time: wait until both have the same to read and poll(2) says the same."""
    expected = simulated.masks(), simulated.waiting()
    stop = time.monotonic() + 10
    while real.ending() or (real.masks(), real.waiting()) != expected:
        assert time.monotonic() < stop, (real.masks(), real.waiting(), expected)
        time.sleep(0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from(CALLS)), max_size=12))
def test_any_calls_on_a_simulated_stream_answer_as_on_a_real_one(
    kind: str, steps: list[Step]
) -> None:
    with both(kind) as (real, simulated):
        agree(real, simulated)
        for side, name in steps:
            if not real.open[side] or (kind == "unix" and name == "reset"):
                continue
            assert simulated.do(side, name) == real.do(side, name), (side, name)
            agree(real, simulated)
        edges = simulated.edges()
        assert real.edges() == edges
        assert simulated.edges() == {}  # told once
        # So is the real one, unless an acknowledgement that has taken its time comes just now.
        assert real.edges().items() <= edges.items()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_full_direction_takes_no_more_until_the_peer_has_received(kind: str) -> None:
    with both(kind) as (real, simulated):
        for observed in (real, simulated):
            ours, peer = observed.pair
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            observed.edges()
            last = 0
            while True:
                at_rest = not observed.under_way()
                try:
                    last = ours.send(bytes(100_000))
                except BlockingIOError:
                    if at_rest:  # else an acknowledgement makes room
                        break
            assert last < 100_000
            assert not observed.masks()[0] & select.EPOLLOUT
            assert not observed.edges().get(0, 0) & select.EPOLLOUT
            stop = time.monotonic() + 10
            while not observed.edges().get(0, 0) & select.EPOLLOUT:
                assert time.monotonic() < stop, "the room is not told of"
                with contextlib.suppress(BlockingIOError):
                    peer.recv(1 << 20)
            assert observed.masks()[0] & select.EPOLLOUT


def connecting(sock: Any, address: Any, poll: Any) -> list[Any]:
    """What a connect says, is when it is done, and says then."""
    first = sock.connect_ex(address)
    asked = poll()
    asked.register(sock.fileno(), _BITS)
    bits = asked.poll(2000)
    return [first, [mask for _, mask in bits], sock.connect_ex(address), sock.connect_ex(address)]


@pytest.mark.parametrize("listens", [True, False])
def test_a_simulated_connect_answers_as_a_real_one(listens: bool) -> None:
    network = Network()
    with (
        socket.create_server(("127.0.0.1", 0)) as real_listener,
        socket.socket() as real,
        socket.socket() as unused,
    ):
        unused.bind(("127.0.0.1", 0))
        real.setblocking(False)
        address = (real_listener if listens else unused).getsockname()
        expected = connecting(real, address, select.poll)
        simulated = network.socket()
        listener = network.create_server()
        address = listener.getsockname() if listens else ("127.0.0.1", 1)

        class Poll:
            def __init__(self) -> None:
                self.numbers: list[int] = []

            def register(self, number: int, _: int) -> None:
                self.numbers.append(number)

            def poll(self, _: int) -> list[tuple[int, int]]:
                network.run_due()
                return [(n, network.description(n).mask() & ~0x2) for n in self.numbers]

        assert connecting(simulated, address, Poll) == expected


def test_datagrams_are_kept_apart_and_lost_where_nobody_is() -> None:
    network = Network()
    ours, theirs = network.socket("udp"), network.socket("udp")
    ours.sendto(b"one", theirs.getsockname())
    ours.sendto(b"two", theirs.getsockname())
    assert theirs.recvmsg(2) == (b"on", [], socket.MSG_TRUNC, ours.getsockname())
    assert theirs.recvmsg(9) == (b"two", [], 0, ours.getsockname())
    gone = theirs.getsockname()
    theirs.close()
    ours.sendto(b"to nobody", gone)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    ours.connect(gone)
    ours.send(b"to nobody")
    with pytest.raises(ConnectionRefusedError):
        ours.recv(1)


# --- The clock, and the watcher on top ----------------------------------------------------------


@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_an_hour_of_silence_takes_no_time_and_bytes_take_the_latency(poller: Any) -> None:
    async def main(network: Network) -> list[float]:
        ours, peer = network.socketpair()
        moments = []
        async with Watcher(poller=poller) as watcher:
            conn = watcher.delegate(ours)
            watcher.read(conn, timeout=3600)
            (op,) = await watcher.wait_io()
            assert isinstance(op.error, DeadlineExceededError)
            moments.append(network.now)
            peer.send(b"at last")
            watcher.read(conn)
            (op,) = await watcher.wait_io()
            assert op.data == b"at last"
            moments.append(network.now)
        peer.close()
        return moments

    began = time.monotonic()
    with Network(latency=0.5) as network:
        start = network.now
        expired, arrived = network.run(main(network))
    assert start + 3600 <= expired < start + 3600.01
    assert arrived == pytest.approx(expired + 0.5)
    assert network.open_descriptors == 0
    assert network.violations == []
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("poller", ["epoll", "loop"])
def test_an_echo_server_runs_on_it_unchanged_and_twice_the_same(poller: Any) -> None:
    async def serve(listener: SimulatedSocket) -> None:
        async with Watcher(poller=poller) as watcher:
            watcher.accept(listener, multishot=True)
            async for results in watcher:
                for op in results:
                    if op.type is OpType.ACCEPT:
                        if op.error is None:
                            watcher.read(op.accepted)
                    elif op.error is not None:
                        watcher.free(op.conn)
                    elif op.type is OpType.READ:
                        watcher.write(op.conn, op.data)
                    else:
                        watcher.read(op.conn)

    async def main(network: Network) -> bytes:
        listener = network.create_server()
        address = listener.getsockname()
        server = asyncio.create_task(serve(listener))
        client = network.create_connection(address)
        await asyncio.sleep(1)
        for part in (b"first ", b"second"):
            client.send(part)
            await asyncio.sleep(1)
        answer = client.recv(100)
        client.close()
        await asyncio.sleep(1)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        return answer

    def run() -> dict[str, int]:
        with Network(latency=0.01, capacity=4096) as network:
            assert network.run(main(network)) == b"first second"
        assert network.open_descriptors == 0
        return dict(network.calls)

    assert run() == run()


def test_a_program_that_waits_for_nothing_is_told_so() -> None:
    async def main(network: Network) -> None:
        async with Watcher() as watcher:
            ours, _peer = network.socketpair()
            watcher.read(ours)
            await watcher.wait_io()

    with Network() as network, pytest.raises(StalledError):
        network.run(main(network))


def test_a_descriptor_that_is_closed_while_it_is_watched_is_a_violation() -> None:
    network = Network()
    ours, _peer = network.socketpair()
    epoll = SimulatedEpoll(network)
    epoll.register(ours.fileno(), _BITS)
    ours.close()
    assert len(network.violations) == 1


@pytest.mark.parametrize(("after", "times"), [(0, 1), (2, 3)])
def test_a_call_fails_when_it_was_asked_to(after: int, times: int) -> None:
    network = Network()
    ours, peer = network.socketpair()
    network.fail("send", errno.ENOBUFS, after=after, times=times)
    outcomes = [_call(ours, "send") for _ in range(after + times + 1)]
    assert outcomes == [8] * after + ["ENOBUFS"] * times + [8]
    assert peer.unread == 8 * (after + 1)


def test_the_system_is_back_in_its_place_afterwards() -> None:
    with Network():
        pass
    ours, peer = tcp_pair()

    async def main() -> bytes:
        async with Watcher() as watcher:
            watcher.read(ours)
            peer.send(b"real")
            (op,) = await watcher.wait_io()
            return op.data

    assert asyncio.run(main()) == b"real"
    peer.close()


# --- Deadlines of what is tried at the call -------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "writev"])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("by", ["timeout", "deadline"])
def test_a_write_that_rests_since_the_system_is_short_of_memory_expires(
    poller: Any, call: str, silent: bool, by: str
) -> None:
    async def main(network: Network) -> None:
        loop = asyncio.get_running_loop()
        async with Watcher(poller=poller) as watcher:
            ours, _ = network.socketpair()
            conn = watcher.delegate(ours)
            network.fail("send", errno.ENOBUFS, times=1_000_000)
            began = loop.time()
            times = {by: 0.5 if by == "timeout" else began + 0.5}
            data: Any = b"data" if call == "write" else [b"da", b"ta"]
            op = getattr(watcher, call)(conn, data, silent=silent, **times)
            assert await watcher.wait_io() == [op]
            assert isinstance(op.error, DeadlineExceededError)
            assert op.size == 0
            assert loop.time() - began == pytest.approx(0.5, abs=0.01)

    with Network() as network:
        network.run(main(network))


@pytest.mark.parametrize("by", ["timeout", "deadline"])
def test_T2_a_write_of_which_a_part_was_taken_at_the_call_expires_with_its_size(
    poller: Any, by: str
) -> None:
    async def main(network: Network) -> None:
        loop = asyncio.get_running_loop()
        async with Watcher(poller=poller) as watcher:
            ours, peer = network.socketpair()
            conn = watcher.delegate(ours)
            began = loop.time()
            op = watcher.write(conn, bytes(200_000), **{by: 2 if by == "timeout" else began + 2})
            assert await watcher.wait_io() == [op]
            assert isinstance(op.error, DeadlineExceededError)
            assert 0 < op.size == peer.unread < 200_000
            assert loop.time() - began == pytest.approx(2, abs=0.01)

    with Network(capacity=65536) as network:
        network.run(main(network))


def test_T1_reads_expire_when_they_should_and_not_before(poller: Any) -> None:
    async def main(network: Network) -> None:
        loop = asyncio.get_running_loop()
        async with Watcher(poller=poller) as watcher:
            conns = [watcher.delegate(network.socketpair()[0]) for _ in range(4)]
            for conn in conns:  # proves that nothing is there, so that the next one only waits
                watcher.cancel(watcher.read(conn))
            assert len(await watcher.wait_io()) == 4
            began = loop.time()
            times: list[dict[str, float]] = [
                {"timeout": 0},
                {"deadline": began - 1},
                {"timeout": 3},
                {"deadline": began + 7},
            ]
            ops = [watcher.read(conn, **limit) for conn, limit in zip(conns, times, strict=True)]
            assert await watcher.wait_io() == ops[:2]
            assert loop.time() - began == pytest.approx(0, abs=0.01)
            for op, after in zip(ops[2:], (3, 7), strict=True):
                assert await watcher.wait_io() == [op]
                assert loop.time() - began == pytest.approx(after, abs=0.01)
            assert all(isinstance(op.error, DeadlineExceededError) for op in ops)

    with Network() as network:
        network.run(main(network))
