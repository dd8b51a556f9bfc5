"""Programs: the examples as processes, seen from outside, and plain clients that talk to them."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
LIMIT = 30.0  # seconds that nothing here may take

Address = tuple[str, int]


def environment() -> dict[str, str]:
    """A program that forgets to close something writes a warning, where nothing is expected."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "default,always::ResourceWarning",
    }


def loops() -> list[str]:
    return ["asyncio"] + ["uvloop"] * (importlib.util.find_spec("uvloop") is not None)


# --- A process -----------------------------------------------------------------------------------


@dataclass
class Served:
    """A server that runs."""

    process: subprocess.Popen[str]
    address: Address
    at_rest: int  # sockets open without a client

    def has_no_client(self) -> bool:
        return open_sockets(self.process) == self.at_rest


class Example:
    """One of the examples."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / "examples" / name

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.path), *arguments]

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
        """The example on a free port, and the address it printed."""
        with self.started("--port", "0", *arguments) as process:
            try:
                assert process.stdout is not None
                yield process, address_in(process.stdout.readline())
            finally:
                process.kill()

    @contextlib.contextmanager
    def serving(self, *arguments: str, by: signal.Signals = signal.SIGTERM) -> Iterator[Served]:
        """The same; at its end it has to stop in order, and without a word."""
        with self.running(*arguments) as (process, address):
            yield Served(process, address, open_sockets(process))
            assert stopped(process, by) == ""

    def ended(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The example, started with these arguments, to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def load(self) -> ModuleType:
        """The example as a module, to call a part of it."""
        spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def assert_refuses(self, *arguments: str, complaint: str) -> None:
        """It ends at once, and says in its last line why; without a traceback."""
        done = self.ended(*arguments)
        assert done.returncode in {1, 2} and done.stdout == "", arguments
        assert complaint in done.stderr.splitlines()[-1], arguments
        assert "Traceback" not in done.stderr


def address_in(line: str) -> Address:
    """The address that an example has printed."""
    found = re.search(r"(\[[\da-f:]+\]|[\d.]+):(\d+)", line)
    assert found is not None, f"no address in {line!r}"
    return found[1].strip("[]"), int(found[2])


def stopped(
    process: subprocess.Popen[str], by: signal.Signals = signal.SIGTERM, *, complaint: str = ""
) -> str:
    """What it still prints once the signal has ended it, in good order."""
    process.send_signal(by)
    output, complaints = process.communicate(timeout=LIMIT)
    assert (process.returncode, complaints) == (0, complaint), output
    return output


def open_sockets(process: subprocess.Popen[str]) -> int:
    count = 0
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes of it that are in memory."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


# --- A client ------------------------------------------------------------------------------------


def connect(address: Address) -> socket.socket:
    client = socket.create_connection(address, timeout=LIMIT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes: MSG_WAITALL does not wait on a socket that has a time-out."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, data
        data += more
    return data


def receive_all(client: socket.socket) -> bytes:
    """Everything until the server's end."""
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def talk(address: Address, *parts: bytes) -> bytes:
    """What the server says to these parts, and to our end behind them."""
    with connect(address) as client:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


@contextlib.contextmanager
def questions(clients: list[socket.socket], question: bytes) -> Iterator[None]:
    """The clients ask and ask, each in a thread of its own, until they are let go."""
    answered = threading.Barrier(len(clients) + 1, timeout=LIMIT)

    def ask(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.sendall(question)
            client.recv(1 << 20)
            answered.wait()
            while True:
                client.sendall(question)
                if not client.recv(1 << 20):
                    break

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        answered.wait()
        yield
    finally:
        for client in clients:
            with contextlib.suppress(OSError):  # it has no peer any more
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def web_server(directory: Path) -> Iterator[Address]:
    """The files of a directory by HTTP, at the address returned."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server.server_address[:2]  # type: ignore[misc]
        finally:
            server.shutdown()
            thread.join()
