"""An echo server on all cores: a process for each, supervised. SIGINT (Ctrl-C) or SIGTERM ends it;
what is queued is sent first, for up to 5 seconds.

The supervisor opens a listener for each worker, all on one port (SO_REUSEPORT), and the system
spreads the connections over them. A listener outlives its worker: who connects while a worker
starts waits for it, and is not refused. A worker that dies is started again, after a delay that
grows while it goes on dying.

SIGHUP restarts the workers, from the code that is there now: new ones first; if they start, the
old ones accept no more and serve those they have, for up to --grace seconds. If they do not start,
the old ones stay.
"""

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from subprocess import PIPE
from typing import Any

from aiogaio import Operation, OpType, Watcher

MEASURE = """What more cores bring: put the same load on it with --workers 1 and with --workers 2.
An echo costs a load generator as much as the server: give each message some work (--rounds), or
take another machine for the load."""
SHORTEST, LONGEST = 0.1, 10.0  # seconds until a dead worker is started again
HEALTHY = 10.0  # seconds that a worker lives if it does not die of its start
START = 10.0  # seconds that it may take to be ready
STOP = 5.0  # seconds to send what is queued, when all of it ends


# --- A worker: a process, a Watcher ---------------------------------------------------------------


class Worker:
    """Echoes until it is told to leave, or its supervisor is gone."""

    def __init__(self, watcher: Watcher, rounds: int) -> None:
        self.watcher, self.rounds, self.clients = watcher, rounds, 0

    async def serve(self, listener: socket.socket, grace: float) -> None:
        """Until SIGHUP and the last client has left or grace is over; or standard input ends."""
        accepting = self.watcher.accept(listener, multishot=True)
        supervisor = self.watcher.read(self.watcher.delegate(sys.stdin))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.watcher.free, accepting.conn)
        print("ready", flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                async for results in self.watcher:
                    for op in results:
                        if op is accepting:
                            limit.reschedule(loop.time() + grace)
                        elif op is not supervisor:
                            self.handle(op)
                    if supervisor.completed or (accepting.completed and not self.clients):
                        break
        self.watcher.free(supervisor.conn)

    def handle(self, op: Operation) -> None:
        """As echo_server.py, and some work for each message if you like."""
        if op.type is OpType.ACCEPT:
            if op.error is None:
                self.clients += 1
                self.watcher.read(op.accepted)
        elif op.error is not None:
            self.clients -= 1
            self.watcher.free(op.conn)
        elif op.type is OpType.READ:
            for _ in range(self.rounds):
                hashlib.sha256(op.data).digest()
            self.watcher.write(op.conn, op.data)
        else:
            self.watcher.read(op.conn)


async def work(options: argparse.Namespace) -> None:
    async with Watcher() as watcher:
        if options.pin:
            cores = sorted(os.sched_getaffinity(0))
            watcher.set_affinity(cores[options.worker % len(cores)])
        listener = socket.socket(fileno=options.listener)
        await Worker(watcher, options.rounds).serve(listener, options.grace)
        await watcher.aclose(STOP)  # drains: what is queued is sent


# --- The supervisor -------------------------------------------------------------------------------

Process = asyncio.subprocess.Process


class Supervisor:
    """One worker on each listener, always."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self.listeners = listeners
        self.restarts = [asyncio.Event() for _ in listeners]
        self.exits: dict[Process, asyncio.Task[None]] = {}  # of the processes that live

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(self.listeners)):
                    tasks.create_task(self.keep(number))
        finally:
            await self.stop()

    def restart(self) -> None:
        """All workers, gracefully."""
        say("restarting")
        for event in self.restarts:
            event.set()

    async def keep(self, number: int) -> None:
        """A worker; another one if it dies, or if a restart is wished for."""
        clock, restart, delay = asyncio.get_running_loop().time, self.restarts[number], SHORTEST
        while True:
            began = clock()
            process = await self.start(number)
            while process in self.exits:
                wish = asyncio.create_task(restart.wait())
                await asyncio.wait([wish, self.exits[process]], return_when="FIRST_COMPLETED")
                wish.cancel()
                if restart.is_set():
                    restart.clear()
                    process = await self.replace(number, process)
            delay = SHORTEST if clock() - began > HEALTHY else delay
            say(f"worker {number} starts again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST)

    async def start(self, number: int) -> Process | None:
        """A worker that is ready; or none."""
        fd = self.listeners[number].fileno()
        own = "--worker", str(number), "--listener", str(fd)
        command = sys.executable, __file__, *sys.argv[1:], *own
        try:  # in a session of its own: the Ctrl-C of a terminal is for the supervisor alone
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, pass_fds=[fd], start_new_session=True
            )
        except OSError as error:  # the system has no room for a process
            say(f"worker {number} does not start: {error}")
            return None
        self.exits[process] = exited = asyncio.create_task(self.watch(number, process))
        assert process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START):
                if await process.stdout.readline():
                    say(f"worker {number} (pid {process.pid}) is ready")
                    return process
                await asyncio.wait([exited])  # it ends by itself: killed, its status might be lost
        if process in self.exits:
            process.kill()
            await asyncio.wait([exited])
        return None

    async def watch(self, number: int, process: Process) -> None:
        """Say how it ended."""
        code = await process.wait()
        del self.exits[process]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        say(f"worker {number} (pid {process.pid}) ended: {how}")

    async def replace(self, number: int, old: Process) -> Process:
        """The new worker, with the old one told to leave; or the old one."""
        new = await self.start(number)
        if new is None:
            say(f"worker {number} (pid {old.pid}) stays")
            return old
        with contextlib.suppress(ProcessLookupError):
            old.send_signal(signal.SIGHUP)
            say(f"worker {number} (pid {old.pid}) drains")
        return new

    async def stop(self) -> None:
        """An end of its standard input tells a worker to send what is queued, and to end."""
        say("stopping")
        for process in self.exits:
            assert process.stdin is not None
            process.stdin.close()
        if self.exits:
            await asyncio.wait(self.exits.values(), timeout=STOP + 1)
        for process in self.exits:
            process.kill()
        if self.exits:
            await asyncio.wait(self.exits.values())
        for listener in self.listeners:
            listener.close()
        say("stopped")


async def supervise(listeners: list[socket.socket]) -> None:
    task, loop, supervisor = (
        asyncio.current_task(),
        asyncio.get_running_loop(),
        Supervisor(listeners),
    )
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    loop.add_signal_handler(signal.SIGHUP, supervisor.restart)
    say(f"{len(listeners)} workers on {printable(listeners[0].getsockname())}")
    with contextlib.suppress(asyncio.CancelledError):
        await supervisor.run()


def say(event: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: no reason to end
        print(event, flush=True)


def printable(address: Any) -> str:
    host, number = address[:2]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address, family=family) as alone:  # nobody else has it?
            address = alone.getsockname()
        return [
            socket.create_server(address, family=family, backlog=1024, reuse_port=True)
            for _ in range(count)
        ]
    except (OSError, UnicodeError) as error:
        sys.exit(f"cannot listen: {error}")


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=MEASURE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("--host", default="127.0.0.1", help="default: 127.0.0.1")
    add("--port", type=within(int, 0, 65535), default=9004, help="default: 9004; 0: any")
    add("--workers", type=within(int, 1, 1024), default=cores, help=f"default: the cores, {cores}")
    add("--grace", type=within(int, 0, 86400), default=30, help="seconds of a restart; default: 30")
    add("--rounds", type=within(int, 0, 10**9), default=0, help="of SHA-256 a message; default: 0")
    add("--pin", action="store_true", help="each worker to a core of its own")
    add("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="of the workers")
    add("--worker", type=int, help=argparse.SUPPRESS)  # these two are the supervisor's
    add("--listener", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    factory = loop_factory(options.loop)
    if options.listener is None:
        asyncio.run(supervise(listen(options.host, options.port, options.workers)))
    else:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work(options))
