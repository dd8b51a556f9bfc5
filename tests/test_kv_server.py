"""examples/kv_server.py: as a process with real clients, and its connections byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.programs import (
    LIMIT,
    Address,
    Example,
    Served,
    connect,
    receive_all,
    resident,
    talk,
    wait_until,
)
from tests.support import reset

hiredis = pytest.importorskip("hiredis")

EXAMPLE = Example("kv_server.py")
running, load = EXAMPLE.serving, EXAMPLE.load


keys = (f"key-{number}" for number in itertools.count())  # no test meets another's


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    with running("--loop", request.param) as served:
        yield served


@pytest.fixture
def address(server: Served) -> Address:
    return server.address


def pack(*words: str | bytes | int) -> bytes:
    """A command as clients send it."""
    packed: bytes = hiredis.pack_command(words)
    return packed


def ask(address: Address, *words: str | bytes | int) -> bytes:
    return talk(address, pack(*words))


# --- Commands and replies ------------------------------------------------------------------------

NO_INTEGER = b"-ERR value is not an integer or out of range\r\n"
SYNTAX = b"-ERR syntax error\r\n"
WRONG = b"-ERR wrong number of arguments for '%b' command\r\n"
INVALID = b"-ERR invalid expire time in '%b' command\r\n"

# Each line is a conversation: commands, and the replies to them, as redis-server 7.0 gives them.
CONVERSATIONS: list[tuple[list[str], list[bytes]]] = [
    (["PING", "PING hello", "ping"], [b"+PONG\r\n", b"$5\r\nhello\r\n", b"+PONG\r\n"]),
    (["PING a b", "ECHO a", "ECHO"], [WRONG % b"ping", b"$1\r\na\r\n", WRONG % b"echo"]),
    (["GET k", "SET k v", "gEt k"], [b"$-1\r\n", b"+OK\r\n", b"$1\r\nv\r\n"]),
    (["SET k v", "SET k w", "GET k"], [b"+OK\r\n", b"+OK\r\n", b"$1\r\nw\r\n"]),
    (["SET k", "GET", "GET a b"], [WRONG % b"set", WRONG % b"get", WRONG % b"get"]),
    (["SET k v XX", "SET k v NX", "SET k w NX"], [b"$-1\r\n", b"+OK\r\n", b"$-1\r\n"]),
    (["SET k v", "SET k w XX", "GET k"], [b"+OK\r\n", b"+OK\r\n", b"$1\r\nw\r\n"]),
    (["SET k v EX 100", "TTL k", "GET k"], [b"+OK\r\n", b":100\r\n", b"$1\r\nv\r\n"]),
    (["SET k v px 100000 nx", "TTL k"], [b"+OK\r\n", b":100\r\n"]),
    (["SET k v EX 100", "SET k v", "TTL k"], [b"+OK\r\n", b"+OK\r\n", b":-1\r\n"]),
    (["SET k v EX 100", "MSET k v", "TTL k"], [b"+OK\r\n", b"+OK\r\n", b":-1\r\n"]),
    (["SET k v NX XX", "SET k v EX 1 PX 1", "SET k v EX", "SET k v NO"], [SYNTAX] * 4),
    (["SET k v EX x", "SET k v EX 1.5", "SET k v PX +1"], [NO_INTEGER] * 3),
    (["SET k v EX 0", "SET k v EX -1", "SET k v EX 99999999999999999"], [INVALID % b"set"] * 3),
    (["GET k", "EXPIRE k 9", "TTL k"], [b"$-1\r\n", b":0\r\n", b":-2\r\n"]),
    (["SET k v", "EXPIRE k 9", "TTL k"], [b"+OK\r\n", b":1\r\n", b":9\r\n"]),
    (["SET k v", "EXPIRE k 0", "GET k"], [b"+OK\r\n", b":1\r\n", b"$-1\r\n"]),
    (["SET k v", "EXPIRE k -5", "TTL k"], [b"+OK\r\n", b":1\r\n", b":-2\r\n"]),
    (["EXPIRE k x", "EXPIRE k"], [NO_INTEGER, WRONG % b"expire"]),
    (["EXPIRE k 99999999999999999"], [INVALID % b"expire"]),
    (["INCR k", "INCR k", "GET k"], [b":1\r\n", b":2\r\n", b"$1\r\n2\r\n"]),
    (["SET k -1", "INCR k", "INCR k"], [b"+OK\r\n", b":0\r\n", b":1\r\n"]),
    (["SET k 9223372036854775806", "INCR k"], [b"+OK\r\n", b":9223372036854775807\r\n"]),
    (
        ["SET k 9223372036854775807", "INCR k"],
        [b"+OK\r\n", b"-ERR increment or decrement would overflow\r\n"],
    ),
    (["SET k 9223372036854775808", "INCR k"], [b"+OK\r\n", NO_INTEGER]),
    (["SET k v", "INCR k", "SET k 01", "INCR k"], [b"+OK\r\n", NO_INTEGER] * 2),
    (["INCRBY k 5", "INCRBY k -7", "INCR k x"], [b":5\r\n", b":-2\r\n", WRONG % b"incr"]),
    (["INCRBY k", "INCRBY k x", "GET k"], [WRONG % b"incrby", NO_INTEGER, b"$-1\r\n"]),
    (
        ["SET k -9223372036854775808", "INCRBY k -1"],
        [b"+OK\r\n", b"-ERR increment or decrement would overflow\r\n"],
    ),
    (["SET k 1 EX 9", "INCR k", "TTL k"], [b"+OK\r\n", b":2\r\n", b":9\r\n"]),
    (["MSET k v l w", "MGET l x k"], [b"+OK\r\n", b"*3\r\n$1\r\nw\r\n$-1\r\n$1\r\nv\r\n"]),
    (["MSET k", "MSET k v l", "MGET"], [WRONG % b"mset", WRONG % b"mset", WRONG % b"mget"]),
    (["MSET k v l w", "DEL k l k x", "GET l"], [b"+OK\r\n", b":2\r\n", b"$-1\r\n"]),
    (["SET k v EX 9", "DEL k", "INCR k", "TTL k"], [b"+OK\r\n", b":1\r\n", b":1\r\n", b":-1\r\n"]),
    (["NO a b"], [b"-ERR unknown command 'NO', with args beginning with: 'a' 'b' \r\n"]),
    (["CONFIG GET appendonly"], [b"*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"]),
    (["CONFIG GET no-such"], [b"*0\r\n"]),
]  # fmt: skip


@pytest.mark.parametrize("asked", CONVERSATIONS, ids=lambda pair: ", ".join(pair[0]))
def test_replies_are_those_of_redis(address: Address, asked: tuple[list[str], list[bytes]]) -> None:
    commands, replies = asked
    own = {name: next(keys) for name in ("k", "l", "x")}
    packed = [pack(*(own.get(word, word) for word in line.split())) for line in commands]
    # In one piece: whole seconds are told of a time-to-live, and a pause in between would count.
    assert talk(address, b"".join(packed)) == b"".join(replies)


def test_values_of_any_bytes_and_size(address: Address) -> None:
    for value in (b"", b"\r\n", b"\0\xff", b"*1\r\n$4\r\nPING\r\n", os.urandom(3_000_000)):
        key = next(keys)
        data = talk(address, pack("SET", key, value) + pack("GET", key))
        assert data == b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value)
    assert talk(address, pack("SET", b"", b"v") + pack("GET", b"")) == b"+OK\r\n$1\r\nv\r\n"


def test_expired_key_is_gone_for_every_command(address: Address) -> None:
    several = [next(keys) for _ in range(6)]
    for key in several:
        assert ask(address, "SET", key, "5", "PX", 1) == b"+OK\r\n"
    time.sleep(0.01)  # it is the time that ends them
    get, incr, ttl, delete, nx, xx = several
    assert ask(address, "GET", get) == b"$-1\r\n"
    assert ask(address, "INCR", incr) == b":1\r\n"
    assert ask(address, "TTL", ttl) == b":-2\r\n"
    assert ask(address, "DEL", delete) == b":0\r\n"
    assert ask(address, "SET", nx, "v", "NX") == b"+OK\r\n"
    assert ask(address, "SET", xx, "v", "XX") == b"$-1\r\n"


def test_expired_keys_go_although_nobody_asks_for_them() -> None:
    with running() as served:
        address = served.address
        talk(address, *(pack("SET", f"key-{n}", "v", "PX", 1 + n) for n in range(100)))
        ask(address, "SET", "stays", "v")
        wait_until(lambda: b"db0:keys=1,expires=0" in ask(address, "INFO"))


def test_info_and_command_can_be_parsed(address: Address) -> None:
    reader = hiredis.Reader()
    reader.feed(talk(address, pack("INFO"), pack("COMMAND"), pack("COMMAND", "COUNT")))
    info, commands, count = reader.gets(), reader.gets(), reader.gets()
    assert re.search(rb"^redis_version:7\.", info, re.M)
    assert len(commands) == count
    arities = {name: arity for name, arity, *_ in commands}
    assert (arities[b"get"], arities[b"set"], arities[b"ping"]) == (2, -3, -1)


def test_hello_agrees_on_a_protocol(address: Address) -> None:
    reader = hiredis.Reader()
    reader.feed(talk(address, pack("HELLO"), pack("HELLO", 3), pack("HELLO", 4)))
    plain, mapped, error = reader.gets(), reader.gets(), reader.gets()
    assert dict(zip(plain[::2], plain[1::2], strict=True)) == mapped | {b"proto": 2}
    assert (mapped[b"proto"], mapped[b"version"]) == (3, b"7.0.0")
    assert str(error).startswith("NOPROTO ")


def test_commands_do_not_break_the_protocol_by_their_names(address: Address) -> None:
    (data, rest) = talk(address, pack("a\r\nb", "c\r\n+d")).split(b"\r\n")
    assert data == b"-ERR unknown command 'a  b', with args beginning with: 'c  +d' "
    assert rest == b""


# --- How bytes arrive, and leave -----------------------------------------------------------------

PIPELINED = (
    pack("SET", "p", "one") + pack("GET", "p") + pack("MGET", "p", "q") + pack("NO")
    + pack("ECHO", "\r\n") + pack("PING") + pack("QUIT") + pack("PING")
)  # fmt: skip
REPLIES = (
    b"+OK\r\n$3\r\none\r\n*2\r\n$3\r\none\r\n$-1\r\n"
    b"-ERR unknown command 'NO', with args beginning with: \r\n"
    b"$2\r\n\r\n\r\n+PONG\r\n+OK\r\n"
)


def test_pipelined_commands_split_in_two_anywhere(address: Address) -> None:
    for split in range(1, len(PIPELINED)):
        assert talk(address, PIPELINED[:split], PIPELINED[split:]) == REPLIES, split


class Recorder:
    """In place of a watcher: what is asked of it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ends = 0

    def write(self, _conn: object, data: bytes, *, silent: bool) -> None:
        assert silent
        self.writes.append(data)

    def read(self, _conn: object, *, multishot: bool) -> object:
        assert multishot
        return object()

    def shutdown(self, _conn: object, *, timeout: float) -> None:
        assert timeout > 0
        self.ends += 1


def session(module: ModuleType) -> tuple[Recorder, Any]:
    recorder = Recorder()
    return recorder, module.Session(recorder, None, module.Store(), SimpleNamespace())


def test_replies_of_one_chunk_are_one_write() -> None:
    recorder, one = session(load())
    one.receive(PIPELINED)
    assert (recorder.writes, recorder.ends) == ([REPLIES], 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 64])
def test_replies_do_not_depend_on_the_chunks(size: int) -> None:
    recorder, one = session(load())
    for start in range(0, len(PIPELINED), size):
        one.receive(PIPELINED[start : start + size])
    assert (b"".join(recorder.writes), recorder.ends) == (REPLIES, 1)


def test_large_replies_to_one_chunk_are_not_gathered_without_end() -> None:
    module = load()
    recorder, one = session(module)
    one.receive(pack("SET", "k", b"x" * 100_000))
    one.receive(pack("GET", "k") * 100)
    _, *writes = recorder.writes
    assert sum(map(len, writes)) == 100 * len(b"$100000\r\n\r\n") + 100 * 100_000
    assert max(map(len, writes)) < module.GATHER + 100_100


def test_short_command_cannot_ask_for_more_than_fits_into_memory(server: Served) -> None:
    key, value = next(keys), b"x" * (1 << 20)
    most = load().LONGEST // len(value)
    assert ask(server.address, "SET", key, value) == b"+OK\r\n"
    try:
        one = b"$%d\r\n%b\r\n" % (len(value), value)
        assert ask(server.address, "MGET", *[key] * most) == b"*%d\r\n" % most + one * most
        before = resident(server.process)
        too_many = [key] * 100_000  # a command of 1.5 MB, a reply of 100 GB
        assert ask(server.address, "MGET", *too_many) == b"-ERR the reply is too long\r\n"
        assert resident(server.process) - before < 64 << 20
    finally:
        ask(server.address, "DEL", key)


def test_expiry_that_is_set_anew_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load()
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    store = module.Store()
    for number in range(100_000):
        assert (
            module.execute(store, [b"SET", b"k", b"v", b"EX", b"%d" % (number + 10)]) == b"+OK\r\n"
        )
    assert len(store.heap) < 2000
    now += 100_008
    assert module.execute(store, [b"TTL", b"k"]) == b":1\r\n"
    now += 1.5
    assert module.execute(store, [b"GET", b"k"]) == b"$-1\r\n"
    assert not store.values
    assert not store.dues


async def test_timer_lets_go_of_the_expired_alone_and_leaves_the_loop_to_others() -> None:
    module = load()
    store = module.Store()
    for number in range(300):
        module.execute(store, [b"SET", b"old-%d" % number, b"v", b"PX", b"1"])
        module.execute(store, [b"SET", b"new-%d" % number, b"v", b"EX", b"100"])
        module.execute(store, [b"SET", b"old-%d" % number, b"v"] if number < 100 else [b"PING"])
    task = asyncio.create_task(store.expire_all())
    turns = 0
    async with asyncio.timeout(LIMIT):
        while len(store.values) > 400:
            turns += 1
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert turns >= 100
    assert (len(store.values), len(store.dues)) == (400, 300)


@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_half_close_gets_all_replies_and_then_the_end(address: Address, count: int) -> None:
    assert talk(address, pack("PING") * count) == b"+PONG\r\n" * count


def test_half_close_inside_a_command_gets_the_replies_before_it(address: Address) -> None:
    assert talk(address, pack("PING") + pack("PING")[:-1]) == b"+PONG\r\n"


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (b"*1\r\n:1\r\n", b"expected '$'"),
        (b"*2\r\n$4\r\nECHO\r\n*1\r\n$1\r\na\r\n", b"expected '$'"),
        (b"*1\r\n$-1\r\n", b"expected '$'"),
        (b":1\r\n", b"expected '*'"),
        (b"+PING\r\n", b"expected '*'"),
        (b"-ERR\r\n", b"expected '*'"),
        (b"#t\r\n", b"expected '*'"),
        (b"%1\r\n+a\r\n+b\r\n", b"expected '*'"),
        (b"%1\r\n*0\r\n+a\r\n", b"unhashable"),
        (b"*x\r\n", b"Bad"),
        (b"*-2\r\n", b"Multi-bulk"),
        (b"GET / HTTP/1.1\r\n\r\n", b'got "G"'),
        (b"\x16\x03\x01", b"got"),
    ],
)
def test_protocol_error_is_answered_behind_the_good_ones_and_ends(
    address: Address, bad: bytes, complaint: bytes
) -> None:
    with connect(address) as client:
        client.sendall(pack("PING") + bad + pack("PING"))
        pong, error, rest = receive_all(client).split(b"\r\n")  # which ends although we have not
    assert (pong, rest) == (b"+PONG", b"")
    assert error.startswith(b"-ERR Protocol error: ")
    assert complaint in error


def test_empty_commands_are_passed_over(address: Address) -> None:
    assert talk(address, b"*0\r\n" + pack("PING") + b"*0\r\n") == b"+PONG\r\n"


def test_endless_command_is_refused_and_the_client_can_read_it(address: Address) -> None:
    with connect(address) as client:
        client.sendall(b"*2\r\n$4\r\nECHO\r\n$1000000000\r\n")
        for _ in range(20):
            client.sendall(b"x" * (1 << 20))
        assert receive_all(client) == b"-ERR Protocol error: too big request\r\n"


def test_announced_size_costs_nothing(server: Served) -> None:
    process, address = server.process, server.address
    before = resident(process)
    with contextlib.ExitStack() as stack:
        for announced in (b"*1000000\r\n", b"*2\r\n$4\r\nECHO\r\n$500000000\r\n"):
            for _ in range(10):
                client = stack.enter_context(connect(address))
                client.sendall(pack("PING") + announced)
                assert client.recv(64) == b"+PONG\r\n"
        assert resident(process) - before < 16 << 20


def test_client_that_does_not_read_is_served_no_further_and_then_loses_nothing(
    server: Served,
) -> None:
    process, address = server.process, server.address
    key, value = next(keys), b"x" * 1000
    ask(address, "SET", key, value)
    request, reply = pack("GET", key), b"$1000\r\n%b\r\n" % value
    talk(address, request * 1000)
    before = resident(process)
    with connect(address) as client:
        client.setblocking(False)
        batch, sent = request * 1000, 0
        while select.select([], [client], [], 1.0)[1]:  # no more is taken
            with contextlib.suppress(BlockingIOError):
                sent += client.send(batch[sent % len(request) :])
            assert sent < 64 << 20, "it reads on and on"
        grown = resident(process) - before
        assert grown < 16 << 20, grown  # the replies to all that was sent are many times more
        client.settimeout(LIMIT)
        whole, rest = divmod(sent, len(request))
        missing, tail = whole * len(reply), b""
        while missing:
            data = client.recv(min(missing, 1 << 20))
            assert data
            missing -= len(data)
            tail = (tail + data)[-len(reply) :]
        assert tail == reply
        client.sendall(request[rest:])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == reply


def test_resets_and_ends_cost_the_others_nothing(
    server: Served,
) -> None:
    address = server.address
    with connect(address) as other:
        for part in (b"", pack("PING"), pack("PING")[:5], b"garbage", pack("QUIT")):
            client = connect(address)
            client.sendall(part)
            reset(client)
            with connect(address) as client:
                client.sendall(part)
        other.sendall(pack("QUIT"))
        assert receive_all(other) == b"+OK\r\n"
    wait_until(server.has_no_client)


def test_connection_that_quit_ends_even_if_the_client_does_not(
    server: Served,
) -> None:
    address = server.address
    with connect(address) as client:
        client.sendall(pack("QUIT"))
        assert receive_all(client) == b"+OK\r\n"
        wait_until(server.has_no_client)


async def test_a_flood_is_handled_in_chunks_between_which_others_have_their_turn() -> None:
    module = load()
    chunks: list[int] = []

    class Session(module.Session):  # type: ignore[name-defined, misc]
        def receive(self, data: bytes) -> None:
            chunks.append(len(data))
            super().receive(data)

    module.Session = Session  # type: ignore[attr-defined]
    flood = pack("PING") * 10_000
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    serving = asyncio.create_task(module.main(listener))
    try:
        answers = await asyncio.wait_for(asyncio.to_thread(talk, address, flood), LIMIT)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    assert answers.count(b"+PONG\r\n") == 10_000
    assert sum(chunks) == len(flood)
    assert max(chunks) <= module.CHUNK < len(flood)


# --- The program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_signal_ends_it_cleanly_with_clients_connected(loop: str, number: signal.Signals) -> None:
    pytest.importorskip(loop)
    with running("--loop", loop, by=number) as served, contextlib.ExitStack() as stack:
        idle, inside, deaf = (stack.enter_context(connect(served.address)) for _ in range(3))
        inside.sendall(pack("PING")[:5])
        ask(served.address, "SET", "k", b"x" * 100_000)
        deaf.sendall(pack("GET", "k") * 1000)
        assert deaf.recv(1)
        idle.sendall(pack("PING"))
        assert idle.recv(64) == b"+PONG\r\n"


# --- Clients that others wrote -------------------------------------------------------------------


def client(*arguments: str, within: float = LIMIT) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=within, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.clients
def test_redis_cli_talks_to_it(address: Address) -> None:
    cli = ("redis-cli", "-h", address[0], "-p", str(address[1]))
    key = next(keys)
    assert client(*cli, "PING") == "PONG\n"
    assert client(*cli, "SET", key, "41") == "OK\n"
    assert client(*cli, "INCR", key) == "42\n"
    assert client(*cli, "MGET", key, "no-such") == "42\n\n"
    assert client(*cli, "EXPIRE", key, "100") == "1\n"
    assert client(*cli, "TTL", key) == "100\n"
    assert client(*cli, "DEL", key) == "1\n"
    assert client(*cli, "LPUSH", key, "v").startswith("ERR unknown command 'LPUSH'")
    assert "redis_version:7" in client(*cli, "INFO")


@pytest.mark.clients
@pytest.mark.parametrize("protocol", [None, 2])
def test_redis_library_talks_to_it(address: Address, protocol: int | None) -> None:
    redis = pytest.importorskip("redis")
    options = {} if protocol is None else {"protocol": protocol}
    key, other = next(keys), next(keys)
    with redis.Redis(*address, **options) as store:
        assert store.ping()
        assert store.echo("hello") == b"hello"
        assert store.set(key, "1", ex=100) is True
        assert store.set(key, "1", nx=True) is None
        assert store.ttl(key) == 100
        assert store.incr(key) == 2
        assert store.mset({key: "a", other: "b"})
        assert store.mget([key, "no-such", other]) == [b"a", None, b"b"]
        assert store.expire(other, 50)
        assert store.info()["redis_version"] == "7.0.0"
        assert store.command_count() == len(store.command())
        with store.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.set(f"{key}-{number}", number).get(f"{key}-{number}")
            assert pipeline.execute()[1::2] == [b"%d" % number for number in range(1000)]
        with pytest.raises(redis.ResponseError, match="not an integer"):
            store.incr(key)
        assert store.delete(key, other) == 2


@pytest.mark.clients
@pytest.mark.parametrize("depth", ["1", "16"])
def test_redis_benchmark_runs_through(address: Address, depth: str) -> None:
    output = client(
        "redis-benchmark", "-h", address[0], "-p", str(address[1]), "-n", "20000", "-P", depth,
        "-t", "ping_mbulk,set,get,incr,mset", "--csv",
    )  # fmt: skip
    rates = [float(line.split(",")[1].strip('"')) for line in output.splitlines()[1:]]
    assert len(rates) == 5
    assert all(rate > 0 for rate in rates)
    assert "WARN" not in output


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with subprocess.Popen(
        ["redis-server", "--port", str(address[1]), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    ) as process:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return ask(address, "PING") == b"+PONG\r\n"
            return False

        try:
            wait_until(answers)
            yield address
        finally:
            process.terminate()


@pytest.mark.clients
def test_any_conversation_goes_as_with_redis_itself(address: Address, tmp_path: Path) -> None:
    chance = random.Random(7)
    names = [next(keys) for _ in range(4)]
    words = ["NX", "xx", "EX", "px", "100", "0", "-1", "x", "", "9223372036854775807", *names]
    verbs = [
        "GET",
        "SET",
        "DEL",
        "INCR",
        "INCRBY",
        "EXPIRE",
        "TTL",
        "MGET",
        "MSET",
        "ECHO",
        "PING",
        "NO",
    ]

    def some() -> list[str]:
        first = [chance.choice(verbs), chance.choice(names)][: chance.choice((1, 2, 2, 2, 2))]
        return first + chance.choices(words, k=chance.choice((0, 0, 1, 1, 2, 3, 4)))

    commands = [some() for _ in range(3000)]
    # Options that the example does not have: EXPIRE's, and of SET none that is a word above.
    commands = [line for line in commands if line[0] != "EXPIRE" or len(line) < 4]
    with redis_server(tmp_path) as original, connect(original) as theirs, connect(address) as ours:
        readers = hiredis.Reader(), hiredis.Reader()
        ask(address, "DEL", *words)  # what other tests have left
        for line in commands:
            replies = []
            for conn, reader in zip((theirs, ours), readers, strict=True):
                conn.sendall(pack(*line))
                while (reply := reader.gets()) is False:
                    reader.feed(conn.recv(65536))
                replies.append(repr(reply))
            assert replies[0] == replies[1], line
