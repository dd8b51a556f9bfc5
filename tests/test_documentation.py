"""The documentation: its examples run, and nothing public is without one.

The convention of the docstrings: an example is a ``>>>`` block at the end. It runs inside an event
loop, ``await`` at its top level included. Its names are those of :mod:`aiogaio` and
:mod:`aiogaio.instruments`, the modules in ``MODULES``, and three objects: ``watcher``, a Watcher;
``conn``, a connection delegated to it; and ``peer``, the plain socket at its other end. What an
example opens and keeps under a name is closed after it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import traceback
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

import aiogaio
from aiogaio import Watcher, completions, core, instruments
from aiogaio.attempts import streams
from tests.probes import arrived
from tests.support import reset, settle, tcp_pair

ROOT = Path(__file__).parent.parent
MODULES = (asyncio, logging, os, prometheus_client, socket, sys)
PUBLIC = [getattr(place, name) for place in (aiogaio, instruments) for name in place.__all__]
LIMIT = 10  # seconds that no example takes


# --- The examples --------------------------------------------------------------------------------


def documented() -> list[doctest.DocTest]:
    """The examples of every module that a public class, or one it derives from, is made in."""
    modules = {base.__module__ for one in PUBLIC for base in one.__mro__}
    ours = {name for name in modules if name.split(".")[0] == "aiogaio"}
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        example
        for name in sorted({"aiogaio", "aiogaio.instruments"} | ours)
        for example in finder.find(sys.modules[name], name)
        if example.examples
    ]


EXAMPLES = documented()


@contextlib.contextmanager
def names(watcher: Watcher) -> Iterator[dict[str, Any]]:
    """The names that an example finds; what it has opened is closed."""
    ours, peer = socket.socketpair()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", LIMIT, 0))
    conn = watcher.delegate(ours)
    known = {one.__name__: one for one in (*MODULES, *PUBLIC)}
    known |= {"watcher": watcher, "conn": conn, "peer": peer}
    try:
        yield known
    finally:
        for value in (watcher, peer, *known.values()):
            if isinstance(value, Watcher | socket.socket):
                value.close()


async def execute(example: doctest.Example, known: dict[str, Any]) -> None:
    """Print what Python's prompt prints for one statement: its output, its value or its error."""
    code = compile(example.source, "<docstring>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        async with asyncio.timeout(LIMIT):
            value = eval(code, known)
            if inspect.isawaitable(value):
                await value
    except Exception as error:
        if example.exc_msg is None:
            raise
        print("".join(traceback.format_exception_only(error)), end="")


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value is printed, and not kept in ``builtins._`` beyond its test."""
    monkeypatch.setattr(sys, "displayhook", lambda value: value is None or print(repr(value)))


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.name)
async def test_example_of_the_docstring_prints_what_it_says(
    text: doctest.DocTest, prompt: None
) -> None:
    checker = doctest.OutputChecker()
    with names(Watcher()) as known, contextlib.redirect_stdout(io.StringIO()) as output:
        for example in text.examples:
            before = len(output.getvalue())
            await execute(example, known)
            got, wanted = output.getvalue()[before:], example.exc_msg or example.want
            assert checker.check_output(wanted, got, doctest.ELLIPSIS), (
                f"{text.filename}, {text.name}: {example.source!r} prints {got!r}, not {wanted!r}"
            )


# --- That nothing is without one -----------------------------------------------------------------


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public members of a class that this package defines, inherited ones among them."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "aiogaio":
            for name, member in vars(base).items():
                if not name.startswith("_"):
                    yield name, member


def is_call(member: Any) -> bool:
    """Whether it has a docstring of its own: fields are told of in that of their class."""
    return inspect.isfunction(member) or isinstance(member, property)


def has_example(one: Any) -> bool:
    """Whether its docstring has an example."""
    return ">>> " in (one.__doc__ or "")


def test_everything_public_has_an_example() -> None:
    instrument = {name for name, _ in members(instruments.Instrument)}
    missing = []
    for cls in PUBLIC:
        wanted = {name: member for name, member in members(cls) if is_call(member)}
        if cls is not instruments.Instrument and instrument <= wanted.keys():
            for name in instrument:  # which nobody calls but the watcher: the protocol shows them
                del wanted[name]
        if not has_example(cls):
            missing.append(cls.__qualname__)
        missing += [
            f"{cls.__qualname__}.{name}" for name in wanted if not has_example(wanted[name])
        ]
    assert missing == [], "a docstring without an example"


def test_every_field_is_shown_in_an_example() -> None:
    shown = "".join(one.source + one.want for text in EXAMPLES for one in text.examples)
    fields = {
        f"{cls.__qualname__}.{name}": name
        for cls in PUBLIC
        for name, member in members(cls)
        if not is_call(member)
    }
    assert [field for field, name in fields.items() if not re.search(rf"[.']{name}\b", shown)] == []


def test_reader_of_the_reference_is_told_what_the_names_of_the_examples_are() -> None:
    told = aiogaio.__doc__
    assert told is not None
    assert all(f"``{name}``" in told for name in ("watcher", "conn", "peer"))


def test_reference_is_built_without_a_warning_and_has_all_that_is_public(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="it comes with the extra `docs`")
    command = [sys.executable, "-W", "error", "docs/reference.py", str(tmp_path)]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=here, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "aiogaio.html").read_text()
    page += (tmp_path / "aiogaio" / "instruments.html").read_text()
    assert re.findall(r":\w+:(?:`|<code>)|:(?:param|raises?) ", page) == [], (
        "shown as it is written"
    )
    public = {f"{cls.__name__}.{name}" for cls in PUBLIC for name, _ in members(cls)}
    public |= {cls.__name__ for cls in PUBLIC}
    assert public - set(re.findall(r'id="([\w.]+)"', page)) == set()


# --- The pages -----------------------------------------------------------------------------------

PAGES = (ROOT / "README.md", ROOT / "docs" / "how-it-works.md", ROOT / "docs" / "migration.md")


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """The Python blocks of a page: the line that each begins at, the heading above it, its text."""
    found, heading, begin = [], "", 0
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if line == "```python":
            begin = number
        elif line == "```" and begin:
            found.append((begin, heading, "\n".join(lines[begin : number - 1])))
            begin = 0
        elif line.startswith("#") and not begin:
            heading = line.lstrip("# ")
    return found


def names_defined(text: str) -> set[str]:
    """The functions and classes at the top of a block."""
    kinds = (ast.AsyncFunctionDef, ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(text).body if isinstance(node, kinds)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page_compiles(page: Path) -> None:
    assert blocks(page)
    for line, _, text in blocks(page):
        where = "\n" * line + text  # so that an error names the page's line
        compile(where, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_points_to_files_that_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [name for name in targets if not (page.parent / name).exists()] == []


def test_program_that_shows_how_it_works_runs() -> None:
    [(_, _, text)] = blocks(ROOT / "docs" / "how-it-works.md")
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BATCH_SIZE = inspect.signature(Watcher).parameters["batch_size"].default


@pytest.mark.parametrize(
    ("told", "constant"),
    [
        ("up to `batch_size` events, {} if", BATCH_SIZE),
        ("After {} MiB sent", core.BURST_BYTES >> 20),
        ("{} MiB in one turn", core.TURN_BYTES >> 20),
        ("({} attempts", core._ATTEMPTS),
        ("at most {} KiB", streams.CHUNK >> 10),
        ("more than {} KiB", streams.CHUNK >> 10),
        ("up to {} results", completions.BATCH_LIMIT),
        ("every {} ms", round(completions.SLICE * 1000)),
        ("for {} ms at most", round(core.WORK_SLICE * 1000)),
    ],
)
def test_page_tells_the_limits_that_the_code_has(told: str, constant: int) -> None:
    page = " ".join((ROOT / "docs" / "how-it-works.md").read_text().split())
    assert told.format(constant) in page


# --- The migration guide: both sides of each pair, driven alike ----------------------------------

GUIDE = blocks(ROOT / "docs" / "migration.md")
Function = Callable[..., Coroutine[Any, Any, Any]]


async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a blocking client, in a thread, makes of it."""
    async with asyncio.timeout(LIMIT):
        return await asyncio.to_thread(function, *arguments)


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@contextlib.asynccontextmanager
async def running(function: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(function)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=LIMIT)


async def serve(function: Function) -> None:
    def talk(address: tuple[str, int]) -> list[bytes]:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(address, timeout=LIMIT))
                for _ in range(3)
            ]
            for number, client in enumerate(clients):
                client.sendall(b"%d" % number * 100_000)
                client.shutdown(socket.SHUT_WR)
            return [receive_all(client) for client in clients]

    with listening() as listener:
        address = listener.getsockname()
        async with running(function(listener)):
            assert await aside(talk, address) == [b"%d" % n * 100_000 for n in range(3)]


async def ask(function: Function) -> None:
    def answer(listener: socket.socket) -> bytes:
        with listener.accept()[0] as client:
            question = client.recv(100)
            client.sendall(b"fine, ")
            client.sendall(b"thanks\nand more")
            return question

    with listening() as listener:
        asking = asyncio.create_task(function(listener.getsockname(), b"how are you?\n", LIMIT))
        assert await aside(answer, listener) == b"how are you?\n"
        assert await asking == b"fine, thanks\n"
        with pytest.raises(TimeoutError):
            await function(listener.getsockname(), b"anybody?\n", 0.01)


async def receive(function: Function) -> None:
    ours, peer = tcp_pair()
    with peer:
        peer.sendall(b"5\nhelloand more")
        assert await function(ours) == (b"5\n", b"hello")


async def send_all(function: Function) -> None:
    ours, peer = tcp_pair()
    made = 0

    def pieces() -> Iterator[bytes]:
        nonlocal made
        while made < 64:
            made += 1
            yield b"x" * 262_144

    with peer:
        task = asyncio.create_task(function(ours, pieces()))
        await settle(100)
        assert made < 64, "what the peer does not take, nobody makes"
        assert len(await aside(receive_all, peer)) == 64 * 262_144
        await task


async def broadcast(function: Function) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening())
        address = listener.getsockname()
        async with running(function(listener, queue)) as task:
            clients = [socket.create_connection(address, timeout=LIMIT) for _ in range(3)]
            for client in clients:
                stack.enter_context(client)
                assert await aside(client.recv, 100) == b"welcome\n"
            for message in (b"one\n", b"two\n", None):
                queue.put_nowait(message)
            assert [await aside(receive_all, client) for client in clients] == [b"one\ntwo\n"] * 3
            await task


async def read_all(function: Function) -> None:
    ours, peer = tcp_pair()
    peer.sendall(b"all of it")
    peer.close()
    assert await function(ours) == (b"all of it", "end")
    ours, peer = tcp_pair()
    reset(peer)
    assert await function(ours) == (b"", "reset")


async def take_leave(function: Function) -> None:
    ours, peer = tcp_pair()
    with peer:
        leaving = asyncio.create_task(function(ours, b"x" * 4_000_000))
        assert len(await aside(receive_all, peer)) == 4_000_000
        await leaving


async def read_for(function: Function) -> None:
    ours, peer = tcp_pair()
    with peer:
        peer.sendall(b"half")
        arrived(ours, 4)
        assert await function(ours, 8, 0.5) == b"half"
    ours, peer = tcp_pair()
    with peer:
        peer.sendall(b"all of it")
        assert await function(ours, 8, LIMIT) == b"all of i"


async def change_mind(function: Function) -> None:
    def answer(peer: socket.socket) -> None:
        assert peer.recv(100) == b"go on\n"
        peer.sendall(b"gone on\n")

    ours, peer = tcp_pair()
    with peer:
        task = asyncio.create_task(function(ours))
        await aside(answer, peer)
        assert await task == b"gone on\n"


async def converse(function: Function) -> None:
    def answer(peer: socket.socket) -> None:
        for _ in range(2):
            peer.sendall(peer.recv(100).upper())

    ours, peer = tcp_pair()
    with peer:
        task = asyncio.create_task(function(ours, [b"one\n", b"two\n"]))
        await aside(answer, peer)
        assert await task == [b"ONE\n", b"TWO\n"]


DRIVERS = {
    one.__name__: one
    for one in (
        *(serve, ask, receive, send_all, broadcast, read_all),
        *(take_leave, read_for, change_mind, converse),
    )
}


def test_each_task_of_the_guide_is_there_in_asyncio_and_with_a_watcher() -> None:
    tasks: dict[str, list[str]] = {}
    for _, heading, text in GUIDE:
        tasks.setdefault(heading, []).append(text)
    for heading, texts in tasks.items():
        assert [("aiogaio" in text) for text in texts] == [False] * (len(texts) - 1) + [True]
        common = set.intersection(*map(names_defined, texts))
        assert len(common & DRIVERS.keys()) == 1, heading
    assert len(tasks) == len(DRIVERS)


@pytest.mark.parametrize(
    "text",
    [text for _, _, text in GUIDE],
    ids=[f"{heading}-{line}" for line, heading, _ in GUIDE],
)
async def test_program_of_the_guide_does_its_task(text: str) -> None:
    [name] = names_defined(text) & DRIVERS.keys()
    module = types.ModuleType("guide")
    exec(compile(text, "migration.md", "exec"), module.__dict__)
    async with asyncio.timeout(3 * LIMIT):
        await DRIVERS[name](getattr(module, name))
    await settle()  # transports close in the loop's next iterations
