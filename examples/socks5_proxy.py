"""A SOCKS5 proxy (RFC 1928): CONNECT, by IPv4, IPv6 or host name. SIGINT or SIGTERM ends it.

It asks nobody who they are: keep it on the loopback, or behind a firewall. It refuses to connect to
itself: nested in one another, such connections would take all descriptors. Each handshake is a
short task that awaits single operations; then the two connections are one relay, without a task.
"""

import argparse
import asyncio
import contextlib
import enum
import errno
import importlib
import ipaddress
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from aiogaio import AioGaioError, Connection, Operation, OpType, Watcher

VERSION = 5
NO_AUTHENTICATION, NOTHING_ACCEPTABLE = 0, 0xFF
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4  # the types of an address
LENGTHS = {IPV4: 4, IPV6: 16}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a RST
FAREWELL = 2.0  # seconds for a client to take a refusal


class Reply(enum.IntEnum):
    """What the client is told (RFC 1928, section 6)."""

    SUCCEEDED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


REASONS = {
    errno.ECONNREFUSED: Reply.REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reply.NETWORK_UNREACHABLE,  # IPv6, where there is none
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
}


class Refusal(Exception):  # noqa: N818
    """The bytes that tell the client no, before its connection ends."""


class Proxy:
    """Handshakes, each in a task of its own; and relays, which need none."""

    def __init__(self, watcher: Watcher, patience: float, idle: float):
        self.watcher, self.patience, self.idle = watcher, patience, idle
        self.relayed = self.refused = 0

    async def serve(self, listener: socket.socket) -> None:
        """Until it is cancelled."""
        self.own = endpoint(listener.getsockname())
        self.watcher.accept(listener, multishot=True)
        async with asyncio.TaskGroup() as tasks:
            async for results in self.watcher:
                for op in results:
                    if isinstance(op.context, asyncio.Future):  # somebody awaits it, or gave up
                        if not op.context.done():
                            op.context.set_result(op)
                    elif op.type is OpType.RELAY:
                        for conn in op.context:
                            close(conn, op.error)
                    elif op.type is OpType.ACCEPT and op.error is None:
                        tasks.create_task(self.welcome(op.accepted))
                    elif op.type is OpType.ACCEPT:  # no descriptor is left; it goes on later
                        print(f"cannot accept: {op.error}", file=sys.stderr, flush=True)

    async def welcome(self, client: Connection) -> None:
        """One client, until it is relayed or gone."""
        try:
            async with asyncio.timeout(self.patience):
                host, number = await self.handshake(client)
            upstream = await self.connect(host, number)
        except Refusal as refusal:
            self.refused += 1
            await self.refuse(client, refusal.args[0])
        except (OSError, AioGaioError) as error:  # it left, is slow, or talks something else
            self.refused += 1
            close(client, error)
        else:
            self.relayed += 1
            self.watcher.write(client, reply(Reply.SUCCEEDED, upstream), silent=True)
            both = client, upstream
            self.watcher.relay(*both, timeout=self.idle, context=both)

    async def handshake(self, client: Connection) -> tuple[bytes, int]:
        """Where the client wants to go."""
        version, count = await self.take(client, 2)
        check_version(version)
        if NO_AUTHENTICATION not in await self.take(client, count):
            raise Refusal(bytes([VERSION, NOTHING_ACCEPTABLE]))
        self.watcher.write(client, bytes([VERSION, NO_AUTHENTICATION]), silent=True)
        version, command, _, kind = await self.take(client, 4)
        check_version(version)
        if kind == NAME:
            (length,) = await self.take(client, 1)
        elif kind in LENGTHS:
            length = LENGTHS[kind]
        else:  # nobody knows how long it is
            raise Refusal(reply(Reply.ADDRESS_NOT_SUPPORTED))
        rest = await self.take(client, length + 2)
        host, number = rest[:length], int.from_bytes(rest[length:])
        if kind != NAME:
            host = str(ipaddress.ip_address(host)).encode()
        if command != CONNECT:
            raise Refusal(reply(Reply.COMMAND_NOT_SUPPORTED))
        return host, number

    async def connect(self, host: bytes, number: int) -> Connection:
        """To the first of its addresses that answers."""
        if not host or not all(0x20 < byte < 0x7F for byte in host):  # the system stops at a NUL
            raise Refusal(reply(Reply.FAILED))
        outcome = Reply.HOST_UNREACHABLE
        with contextlib.suppress(socket.gaierror, TimeoutError):
            async with asyncio.timeout(self.patience):
                for family, address in await look_up(host, number):
                    try:
                        return await self.connect_to(family, address)
                    except OSError as error:
                        outcome = REASONS.get(error.errno or 0, Reply.FAILED)
        raise Refusal(reply(outcome))

    async def connect_to(self, family: int, address: Any) -> Connection:
        """A connection to that address, or an :exc:`OSError`; none to this proxy."""
        upstream = self.watcher.delegate(socket.socket(family, socket.SOCK_STREAM))
        try:
            await self.perform(self.watcher.connect, upstream, address)
            if self.is_own(upstream):
                raise Refusal(reply(Reply.NOT_ALLOWED))
        except BaseException:
            upstream.close()
            raise
        return upstream

    def is_own(self, upstream: Connection) -> bool:
        """Whether a connection has come out at our own listener."""
        (host, number), (own, own_number) = endpoint(upstream.peername), self.own
        own_host = host == own or (own.is_unspecified and is_local(upstream.peername))
        return own_host and number == own_number

    async def refuse(self, client: Connection, answer: bytes) -> None:
        """Say no, and wait for its end: to close with bytes unread may overtake the answer."""
        try:
            async with asyncio.timeout(FAREWELL):
                self.watcher.write(client, answer, silent=True)
                await self.perform(self.watcher.shutdown, client)
                while True:
                    await self.perform(self.watcher.read, client)
        except (OSError, AioGaioError):  # it has ended, or takes its time
            pass
        finally:
            client.close()

    async def take(self, client: Connection, count: int) -> bytes:
        """So many bytes and not one more: what comes behind the handshake is not ours."""
        if count == 0:
            return b""
        return bytes((await self.perform(self.watcher.read_full, client, bytearray(count))).data)

    async def perform(self, request: Callable[..., Operation], *args: Any) -> Operation:
        """One operation, awaited; its error is raised."""
        future: asyncio.Future[Operation] = asyncio.get_running_loop().create_future()
        request(*args, context=future)
        op = await future
        if op.error is not None:
            raise op.error
        return op


async def look_up(host: bytes, number: int) -> list[tuple[int, Any]]:
    """Families and addresses of a host. A numeric one is its own, and needs no thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host.decode())
            return [(family, (host.decode(), number))]
    found = await asyncio.get_running_loop().getaddrinfo(host, number, type=socket.SOCK_STREAM)
    return [(family, address) for family, *_, address in found]


def endpoint(address: Any) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Host and port, an IPv4 host always as one (not as ::ffff:127.0.0.1)."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    return getattr(host, "ipv4_mapped", None) or host, address[1]


def is_local(address: Any) -> bool:
    """Whether its host is this machine: no other can be bound (EADDRNOTAVAIL, bind(2))."""
    host, _, *scope = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
        sock.bind((host, 0, *scope))
        return True
    return False


def check_version(version: int) -> None:
    if version != VERSION:
        raise ConnectionError("it does not speak SOCKS5")


def reply(outcome: Reply, upstream: Connection | None = None) -> bytes:
    """The answer to a request, with the address that the proxy is seen at."""
    host, number = upstream.sockname[:2] if upstream is not None else ("0.0.0.0", 0)
    address = ipaddress.ip_address(host.partition("%")[0])
    kind = IPV4 if address.version == 4 else IPV6
    return bytes([VERSION, outcome, 0, kind]) + address.packed + number.to_bytes(2)


def close(conn: Connection, error: Exception | None) -> None:
    if error is not None:
        with contextlib.suppress(OSError):  # it is broken already
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    conn.close()


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(text, flush=True)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def main(listener: socket.socket, patience: float, idle: float) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    async with Watcher() as watcher:
        proxy = Proxy(watcher, patience, idle)
        say(f"SOCKS5 on {printable(listener.getsockname())}")
        with contextlib.suppress(asyncio.CancelledError):
            await proxy.serve(listener)
    say(f"closed: {proxy.relayed} connections relayed, {proxy.refused} refused")


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least}-{most}, not {text}")
        return kind(text)

    number.__name__ = "whole number" if kind is int else "number"
    return number


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        return None if name == "asyncio" else importlib.import_module(name).new_event_loop
    except ImportError:
        sys.exit(f"{name} is not installed: pip install {name}")


def listen(host: str, number: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        sys.exit(f"cannot listen: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, seconds = parser.add_argument, within(float, 0.01, 86400)
    add("--host", default="127.0.0.1", help="default: 127.0.0.1")
    add("--port", type=within(int, 0, 65535), default=1080, help="default: 1080; 0: any")
    add(
        "--patience", type=seconds, default=10, help="for handshake and connect; default: 10 s each"
    )
    add("--idle", type=seconds, default=300, help="seconds without a byte; default: 300")
    add("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    server = listen(options.host, options.port)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each client, and pipes
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        runner.run(main(server, options.patience, options.idle))
