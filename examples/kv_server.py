"""A key-value store in memory that speaks Redis' protocol, with hiredis. Ctrl-C ends it.

Strings and their expiry: PING, ECHO, GET, SET, DEL, INCR, INCRBY, EXPIRE, TTL, MGET, MSET, INFO,
COMMAND, CONFIG GET, HELLO, QUIT; no commands as plain lines. The replies to all commands of one
chunk go out in one write; a client that does not read them is served no further, so memory stays
flat. No authentication: it trusts whom it lets connect. (hiredis makes room for as many words as a
command announces, be it 2,000,000,000: strangers must not reach it.)
"""

import argparse
import asyncio
import contextlib
import heapq
import importlib
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from aiogaio import (
    Connection,
    EndOfStreamError,
    Operation,
    OperationCancelledError,
    OpType,
    Watcher,
)

try:
    import hiredis
except ImportError:
    sys.exit("hiredis is not installed: pip install hiredis")

CHUNK = 16384  # bytes received at once: bounds the commands for which others have to wait
LIMIT = 16 << 20  # bytes of a command; it may be over by what comes in one chunk
GATHER = 1 << 18  # bytes of replies that are gathered for one write; and one reply more
LONGEST = 64 << 20  # bytes of values in one reply: a short command can ask for one value many times
PATIENCE = 60.0  # seconds for a client to take its replies
LINGER = 2.0  # seconds for a client to see our end and to send its own
OK, NIL, LARGEST = b"+OK\r\n", b"$-1\r\n", (1 << 63) - 1
VERSION = b"7.0.0"  # whose words and errors these are
INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
SETTINGS = {b"save": b"", b"appendonly": b"no"}  # redis-benchmark asks for them

Command = list[bytes]  # its name and its arguments


class RefusedError(Exception):
    """A command is not carried out, and why."""


class Store:
    """The keys with their values and expiry."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.dues: dict[bytes, float] = {}  # of the keys that expire
        self.heap: list[tuple[float, bytes]] = []  # the same in order, and some that were changed

    def find(self, key: bytes) -> bytes | None:
        """The value, if it has one whose time is not over."""
        if key in self.dues and self.dues[key] <= time.monotonic():
            del self.dues[key], self.values[key]
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set it, for ever."""
        self.values[key] = value
        if key in self.dues:
            del self.dues[key]

    def expire(self, key: bytes, due: float) -> None:
        """Let a key that there is end at that time."""
        self.dues[key] = due
        heapq.heappush(self.heap, (due, key))
        if len(self.heap) > 2 * len(self.dues) + 1000:
            self.heap = [(due, key) for key, due in self.dues.items()]
            heapq.heapify(self.heap)

    async def expire_all(self) -> None:
        """Let go also of those that nobody asks for: one in each turn of the loop."""
        while True:
            overdue = self.heap and self.heap[0][0] <= time.monotonic()
            if overdue:
                self.find(heapq.heappop(self.heap)[1])
            await asyncio.sleep(0 if overdue else 0.1)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(items: list[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def integer(text: bytes) -> int:
    if INTEGER.fullmatch(text) and -LARGEST - 1 <= (value := int(text)) <= LARGEST:
        return value
    raise RefusedError(b"value is not an integer or out of range")


def due_in(count: int, per_second: int, command: bytes) -> float:
    if abs(count) > LARGEST // 10**6 or (count <= 0 and command == b"set"):
        raise RefusedError(b"invalid expire time in '%b' command" % command)
    return time.monotonic() + count / per_second


def ping(store: Store, command: Command) -> bytes:
    return bulk(command[1]) if len(command) > 1 else b"+PONG\r\n"


def echo(store: Store, command: Command) -> bytes:
    return bulk(command[1])


def get(store: Store, command: Command) -> bytes:
    value = store.find(command[1])
    return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def set_(store: Store, command: Command) -> bytes:
    key, count, unit, wanted = command[1], None, b"", b""
    options = iter(command[3:])
    for option in map(bytes.upper, options):
        if option in {b"EX", b"PX"} and count is None:
            unit, count = option, next(options, None)
        elif option in {b"NX", b"XX"} and wanted in {b"", option}:
            wanted = option
        else:
            raise RefusedError(b"syntax error")
    if unit and count is None:
        raise RefusedError(b"syntax error")
    due = None if count is None else due_in(integer(count), 1000 if unit == b"PX" else 1, b"set")
    if wanted and (store.find(key) is not None) != (wanted == b"XX"):
        return NIL
    store.put(key, command[2])
    if due is not None:
        store.expire(key, due)
    return OK


def delete(store: Store, command: Command) -> bytes:
    found = {key for key in command[1:] if store.find(key) is not None}
    for key in found:
        del store.values[key]
        store.dues.pop(key, None)
    return b":%d\r\n" % len(found)


def incr(store: Store, command: Command) -> bytes:
    amount = integer(command[2]) if len(command) > 2 else 1  # INCRBY
    found = store.find(command[1])
    value = amount + (0 if found is None else integer(found))
    if abs(value) > LARGEST and value != -LARGEST - 1:
        raise RefusedError(b"increment or decrement would overflow")
    store.values[command[1]] = b"%d" % value  # it expires as before
    return b":%d\r\n" % value


def expire(store: Store, command: Command) -> bytes:
    key, due = command[1], due_in(integer(command[2]), 1, b"expire")
    if store.find(key) is None:
        return b":0\r\n"
    store.expire(key, due)
    return b":1\r\n"


def ttl(store: Store, command: Command) -> bytes:
    if store.find(command[1]) is None:
        return b":-2\r\n"
    due = store.dues.get(command[1])
    return b":-1\r\n" if due is None else b":%d\r\n" % round(due - time.monotonic())


def mget(store: Store, command: Command) -> bytes:
    values = [store.find(key) for key in command[1:]]
    if sum(len(value) for value in values if value is not None) > LONGEST:
        raise RefusedError(b"the reply is too long")
    return array([NIL if value is None else bulk(value) for value in values])


def mset(store: Store, command: Command) -> bytes:
    if len(command) % 2 == 0:
        raise RefusedError(b"wrong number of arguments for 'mset' command")
    for key, value in zip(command[1::2], command[2::2], strict=True):
        store.put(key, value)
    return OK


def info(store: Store, command: Command) -> bytes:
    return bulk(
        b"# Server\r\nredis_version:%b\r\nserver_name:aiogaio\r\n\r\n"
        b"# Keyspace\r\ndb0:keys=%d,expires=%d\r\n" % (VERSION, len(store.values), len(store.dues))
    )


def describe(store: Store, command: Command) -> bytes:
    if command[1:] and command[1].upper() == b"COUNT":
        return b":%d\r\n" % len(COMMANDS)
    if command[1:]:
        return b"*0\r\n"  # of DOCS and the like there is nothing
    items = []
    for name, (_, least, most) in COMMANDS.items():
        arity = least if least == most else -least
        items.append(b"*6\r\n%b:%d\r\n*0\r\n:0\r\n:0\r\n:0\r\n" % (bulk(name.lower()), arity))
    return array(items)


def config(store: Store, command: Command) -> bytes:
    if command[1].upper() != b"GET":
        raise RefusedError(b"unknown subcommand '%b'" % command[1][:128])
    found = [name for name in map(bytes.lower, command[2:]) if name in SETTINGS]
    return array([bulk(word) for name in found for word in (name, SETTINGS[name])])


def hello(store: Store, command: Command) -> bytes:
    version = command[1] if len(command) > 1 else b"2"
    if version not in {b"2", b"3"}:
        return b"-NOPROTO unsupported protocol version\r\n"
    words = b"server", b"aiogaio", b"version", VERSION, b"mode", b"standalone", b"role", b"master"
    fields = b"".join(map(bulk, words)) + bulk(b"proto") + b":%b\r\n" % version
    # The third version has types for maps and for none; those who speak it read the old ones, too.
    return (b"*10\r\n" if version == b"2" else b"%5\r\n") + fields


def quit_(store: Store, command: Command) -> bytes:
    return BYE


BYE = bytes(bytearray(OK))  # equal to OK, but not the same: the last reply
ANY = sys.maxsize
COMMANDS: dict[bytes, tuple[Callable[[Store, Command], bytes], int, int]] = {
    b"PING": (ping, 1, 2),  # with this many words, its name among them
    b"ECHO": (echo, 2, 2),
    b"GET": (get, 2, 2),
    b"SET": (set_, 3, ANY),
    b"DEL": (delete, 2, ANY),
    b"INCR": (incr, 2, 2),
    b"INCRBY": (incr, 3, 3),
    b"EXPIRE": (expire, 3, 3),
    b"TTL": (ttl, 2, 2),
    b"MGET": (mget, 2, ANY),
    b"MSET": (mset, 3, ANY),
    b"INFO": (info, 1, ANY),
    b"COMMAND": (describe, 1, ANY),
    b"CONFIG": (config, 3, ANY),
    b"HELLO": (hello, 1, 2),
    b"QUIT": (quit_, 1, ANY),
}


def execute(store: Store, command: Command) -> bytes:
    """The reply to a command."""
    if command.__class__ is not list:
        raise hiredis.ProtocolError("expected '*'")
    for word in command:
        if word.__class__ is not bytes:
            raise hiredis.ProtocolError("expected '$'")
    if not command:
        return b""
    known = COMMANDS.get(command[0]) or COMMANDS.get(command[0].upper())
    try:
        if known is None:
            words = b"".join(b"'%b' " % word[:128] for word in command[1:9])
            text = b"unknown command '%b', with args beginning with: %b"
            raise RefusedError(text % (command[0][:128], words))
        carry_out, least, most = known
        if not least <= len(command) <= most:
            name = command[0].lower()
            raise RefusedError(b"wrong number of arguments for '%b' command" % name)
        return carry_out(store, command)
    except RefusedError as error:
        return b"-ERR %b\r\n" % error.args[0].replace(b"\r", b" ").replace(b"\n", b" ")


class Session:
    """One connection."""

    def __init__(
        self, watcher: Watcher, tasks: asyncio.TaskGroup, store: Store, conn: Connection
    ) -> None:
        self.watcher, self.tasks, self.store, self.conn = watcher, tasks, store, conn
        self.reader = hiredis.Reader()
        self.unfinished = 0  # bytes since a command was completed
        self.open = True  # takes commands; else it is paused or leaving
        self.leaving = self.received_end = self.sent_end = False
        self.lingering: asyncio.TimerHandle | None = None
        conn.context = self  # and so of all requests on it
        self.reading = watcher.read(conn, multishot=True)

    def receive(self, data: bytes) -> None:
        """Take what has come."""
        if not self.leaving:
            self.reader.feed(data)
            self.unfinished += len(data)
        if self.open:
            self.serve()

    def serve(self) -> None:
        """Carry out what has come, as long as the client takes the replies."""
        gets, store = self.reader.gets, self.store
        command: Any = None
        while self.open and command is not False:
            replies: list[bytes] = []
            size = 0
            try:
                while size < GATHER and (command := gets()) is not False:
                    reply = execute(store, command)
                    replies.append(reply)
                    size += len(reply)
                    if reply is BYE:
                        self.leaving = True
                        break
                if replies:
                    self.unfinished = 0
                elif self.unfinished > LIMIT:
                    raise hiredis.ProtocolError("too big request")
            # A TypeError is hiredis', too: of a map whose key is a list.
            except (hiredis.ProtocolError, MemoryError, TypeError) as error:
                reason = str(error).removeprefix("Protocol error, ").encode()
                replies.append(b"-ERR Protocol error: %b\r\n" % reason)
                self.leaving = True
            self.send(b"".join(replies))

    def send(self, data: bytes) -> None:
        """Send replies; if the client does not take them, pause."""
        taken = not data or self.watcher.write(self.conn, data, silent=True) is None
        if self.leaving:
            self.finish()
        elif not taken:
            self.open = False
            self.watcher.cancel(self.reading)
            self.tasks.create_task(self.resume())

    async def resume(self) -> None:
        """Go on once the client has taken its replies."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.watcher.drain(self.conn)
        except TimeoutError:
            self.free()
        if self.conn.closed:
            return
        self.open = True
        self.serve()
        if self.open and self.received_end:
            self.finish()
        elif (self.open or self.leaving) and not self.received_end:
            self.reading = self.watcher.read(self.conn, multishot=True)

    def finish(self) -> None:
        """Send our end behind the replies. To close with data unread would destroy them."""
        self.open, self.leaving = False, True
        self.watcher.shutdown(self.conn, timeout=PATIENCE)

    def shut(self) -> None:
        """All replies and our end are sent."""
        self.sent_end = True
        if self.received_end:
            self.free()
        else:
            self.lingering = asyncio.get_running_loop().call_later(LINGER, self.free)

    def failed(self, op: Operation) -> None:
        """An operation has ended with an error, be it the end of the stream."""
        if op.type is OpType.READ and isinstance(op.error, OperationCancelledError):
            return  # paused
        if op.type is not OpType.READ or not isinstance(op.error, EndOfStreamError):
            self.free()
            return
        self.received_end = True
        if self.open:
            self.finish()
        elif self.sent_end:
            self.free()

    def free(self) -> None:
        """Close it now."""
        self.open, self.leaving = False, True
        if self.lingering is not None:
            self.lingering.cancel()
        self.watcher.free(self.conn)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(listener: socket.socket) -> None:
    loop, task, store = asyncio.get_running_loop(), asyncio.current_task(), Store()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    print(f"kv on {printable(listener.getsockname())}", flush=True)
    async with Watcher(buffer_size=CHUNK) as watcher, asyncio.TaskGroup() as tasks:
        tasks.create_task(store.expire_all())
        watcher.accept(listener, multishot=True)
        async for results in watcher:
            for op in results:
                if op.type is OpType.ACCEPT:
                    if op.error is None:
                        Session(watcher, tasks, store, op.accepted)
                elif op.error is not None:
                    op.context.failed(op)
                elif op.type is OpType.READ:
                    op.context.receive(op.data)
                else:
                    op.context.shut()


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        return None if name == "asyncio" else importlib.import_module(name).new_event_loop
    except ImportError:
        sys.exit(f"{name} is not installed: pip install {name}")


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # in use; no name
        sys.exit(f"cannot listen: {error}")


if __name__ == "__main__":
    port = within(int, 0, 65535)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=port, default=6380, help="default: %(default)s; 0: any")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    server = listen(options.host, options.port)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each client
    runner = asyncio.Runner(loop_factory=loop_factory(options.loop))
    with contextlib.suppress(asyncio.CancelledError), runner:
        runner.run(main(server))
