"""Looks at sockets, loops and memory from outside the watcher, for the tests that need them."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

from aiogaio import Connection, Watcher
from tests.support import settle

try:
    import uvloop
except ImportError:  # uvloop has no wheel for this interpreter: stock asyncio alone is tested
    uvloop = None

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop
}
if uvloop is not None:
    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop


# --- waiting -----------------------------------------------------------------------------------


async def until(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Let the loop run until ``condition`` holds; a bound, not a pace."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0)


async def receive(peer: socket.socket, count: int, *, within: float = 10.0) -> bytes:
    """Exactly ``count`` bytes from the other end, with the loop running meanwhile."""
    peer.setblocking(False)
    received = bytearray()
    async with asyncio.timeout(within):
        while len(received) < count:
            try:
                part = peer.recv(min(count - len(received), 1 << 20))
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert part, f"the stream ended after {len(received)} of {count} bytes"
            received += part
    return bytes(received)


async def drained(peer: socket.socket, *, within: float = 10.0) -> bytes:
    """All that still comes from the other end, up to its end (a reset is an end as well)."""
    peer.setblocking(False)
    received = bytearray()
    async with asyncio.timeout(within):
        while True:
            try:
                part = peer.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            except ConnectionResetError:
                part = b""
            if not part:
                return bytes(received)
            received += part


# --- what the system knows ----------------------------------------------------------------------


def unread(sock: socket.socket | Connection) -> int:
    """Bytes that have arrived and that nobody has received (FIONREAD)."""
    answer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def ready(sock: socket.socket | Connection, event: int = select.POLLIN) -> None:
    """Return when poll(2) says so of the socket; the loop does not run meanwhile.

    Loopback takes its time: what one end has sent need not be at the other end at once.
    """
    poll = select.poll()
    poll.register(sock.fileno(), event)
    assert poll.poll(10_000), "no event"


def arrived(sock: socket.socket | Connection, count: int = 1) -> None:
    """The same, for so many bytes that wait in the socket (FIONREAD)."""
    give_up = time.monotonic() + 10
    while unread(sock) < count:
        assert time.monotonic() < give_up, f"{unread(sock)} of {count} bytes arrived"


def has_urgent_data(pair: Callable[[], Any]) -> bool:
    """Whether the system has it for this kind (of Unix sockets it need not: unix(7))."""
    one, other = pair()
    with one, other:
        try:
            return bool(one.send(b"!", socket.MSG_OOB))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False


def events(sock: socket.socket | Connection) -> int:
    """What poll(2) says of the socket now; looking consumes nothing."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    ready = poll.poll(0)
    return ready[0][1] if ready else 0


def half_closed(sock: socket.socket | Connection) -> bool:
    return bool(events(sock) & select.POLLRDHUP)


def hung_up(sock: socket.socket | Connection) -> bool:
    return bool(events(sock) & select.POLLHUP)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def identity(fd: int) -> tuple[int, int]:
    """What an open descriptor refers to, whatever its number."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_descriptors() -> set[int]:
    # The directory itself is open while it is listed, and closed when the list is looked at.
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd)}


def is_epoll(fd: int) -> bool:
    return "eventpoll" in os.readlink(f"/proc/self/fd/{fd}")


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; how much it took."""
    sock.setblocking(False)
    sent = 0
    for size in (1 << 16, 1):
        try:
            while True:
                sent += sock.send(bytes(size))
        except BlockingIOError:
            continue
    return sent


def small_pair() -> tuple[socket.socket, socket.socket]:
    """A Unix stream pair that takes only some KiB: a longer write stays pending for sure."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    peer.settimeout(10)
    return ours, peer


LONG = 1 << 20
"""More bytes than a small pair takes without its other end receiving."""


# --- what the loop is asked for -----------------------------------------------------------------


class LoopCalls:
    """Counts what is asked of a loop's descriptor hooks, and hands everything on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.calls: list[tuple[str, int]] = []
        self.on_closed_descriptor: list[tuple[str, int]] = []
        self.threads: set[int] = set()
        for name in ("add_reader", "remove_reader", "add_writer", "remove_writer"):
            setattr(loop, name, self._recorded(name, getattr(loop, name)))

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(fd: Any, *args: Any) -> Any:
            number = fd if isinstance(fd, int) else fd.fileno()
            self.calls.append((name, number))
            self.threads.add(threading.get_ident())
            if not is_open(number):
                self.on_closed_descriptor.append((name, number))
            return call(fd, *args)

        return recorded

    def count(self, name: str, fd: int | None = None) -> int:
        return sum(n == name and fd in (None, number) for n, number in self.calls)

    def armed(self, kind: str) -> set[int]:
        """The descriptors that have a ``reader`` or a ``writer`` now."""
        armed = set()
        for name, number in self.calls:
            if name == f"add_{kind}":
                armed.add(number)
            elif name == f"remove_{kind}":
                armed.discard(number)
        return armed


class LoopTimers:
    """Counts the loop's timers that are neither fired nor cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timers: dict[int, tuple[asyncio.TimerHandle, list[bool]]] = {}
        for name in ("call_later", "call_at"):
            setattr(loop, name, self._recorded(getattr(loop, name)))

    def _recorded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(when: float, callback: Callable[..., Any], *args: Any, **more: Any) -> Any:
            fired: list[bool] = []

            def fire(*args: Any) -> None:
                fired.append(True)
                callback(*args)

            timer = call(when, fire, *args, **more)
            # call_later may be built on call_at: the outer record of a timer replaces the inner.
            self._timers[id(timer)] = timer, fired
            return timer

        return recorded

    @property
    def live(self) -> int:
        return sum(not fired and not timer.cancelled() for timer, fired in self._timers.values())


@asynccontextmanager
async def no_loop_errors() -> AsyncIterator[None]:
    """Nothing may reach the loop's exception handler meanwhile."""
    loop = asyncio.get_running_loop()
    seen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: seen.append(context))
    try:
        yield
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert not seen, seen


@contextmanager
def recorded_warnings() -> Iterator[list[tuple[type[Warning], str]]]:
    """Collects warnings, from finalizers as well, in place of raising them.

    As text: a record of the warnings module holds the object that the warning is about.
    """
    caught: list[tuple[type[Warning], str]] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        caught.append((category, str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield caught


def resource_warnings(caught: list[tuple[type[Warning], str]]) -> list[str]:
    return [text for category, text in caught if issubclass(category, ResourceWarning)]


@contextmanager
def collecting_by_hand() -> Iterator[None]:
    """``gc.collect()`` looks at what is made in here, and nobody else collects it.

    So it is certain in which thread a finalizer runs, and a collection takes no time.
    """
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Gives how many bytes Python has allocated since, and not freed."""
    with collecting_by_hand():
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]

            def grown() -> int:
                gc.collect()
                return tracemalloc.get_traced_memory()[0] - before

            yield grown
        finally:
            tracemalloc.stop()


async def bounded(awaitable: Awaitable[Any], within: float = 10.0) -> Any:
    async with asyncio.timeout(within):
        return await awaitable


# --- forks -----------------------------------------------------------------------------------


def in_a_child(action: Callable[[], None]) -> None:
    """Run ``action`` in a fork of this process and raise here what it raises there."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads may be about
        pid = os.fork()
    if pid == 0:
        report = b"ok"
        try:
            action()
        except BaseException:
            report = traceback.format_exc().encode()
        finally:
            with suppress(OSError):
                os.write(write_end, report)
            os._exit(0)
    os.close(write_end)
    report = b""
    try:
        while select.select([read_end], [], [], 20)[0]:
            part = os.read(read_end, 65536)
            if not part:
                break
            report += part
        else:
            os.kill(pid, signal.SIGKILL)
            report = b"the child hangs"
    finally:
        os.close(read_end)
        os.waitpid(pid, 0)
    assert report == b"ok", report.decode()


def open_kinds() -> Counter[str]:
    """What is open, by kind: uvloop opens its pair for signals anew now and then.

    libuv keeps /dev/null in reserve, from its first transport on.
    """
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors()]
    return Counter(name.partition(":")[0] for name in names if name != "/dev/null")


@asynccontextmanager
async def sealed(poller: str) -> AsyncIterator[Watcher]:
    """A watcher that ends with nothing pending, and leaves no descriptor of any kind behind."""
    before = open_kinds()
    async with Watcher(poller=poller) as watcher:
        yield watcher
    watcher.poll_io()
    figures = watcher.statistics()
    assert (figures.pending, figures.connections) == (0, 0)
    await settle(3)
    assert open_kinds() <= before


Pair = tuple[Connection, socket.socket]
Pairs = Callable[..., Pair]


@contextmanager
def delegating() -> Iterator[Pairs]:
    """Delegates one end of a pair that takes little; the other is closed after the test."""
    with ExitStack() as stack:

        def make(watcher: Watcher, kind: Callable[[], Any] = small_pair) -> Pair:
            ours, peer = kind()
            stack.enter_context(peer)
            return watcher.delegate(ours), peer

        yield make
