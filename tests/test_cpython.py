"""CPython's own tests of the loop's socket calls, on a loop that serves these by a Watcher.

They come with the interpreter; of ``test.test_asyncio``, ``test_sock_lowlevel`` and
``test_sendfile`` are run, all of whose cases hold.
"""

from __future__ import annotations

import asyncio
import select
import socket
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.probes import collecting_by_hand, events, until
from tests.support import reset, settle, tcp_pair, unix_pair
from tests.watcher_loop import WatcherEventLoop

NO_PACKAGE = (
    "this interpreter came without CPython's tests: for Debian's python3.11 they are in the "
    "package libpython3.11-testsuite, and so on; interpreters built by pyenv have them"
)


def of_cpython(name: str) -> Any:
    return pytest.importorskip(f"test.test_asyncio.{name}", reason=NO_PACKAGE, exc_type=ImportError)


MIXINS: dict[str, Any] = {
    "test_sock_lowlevel": of_cpython("test_sock_lowlevel").BaseSockTestsMixin,
    "test_sendfile": of_cpython("test_sendfile").SendfileTestsBase,
}
utils = of_cpython("utils")

CASES = [
    pytest.param(module, name, id=f"{module}-{name}")
    for module, mixin in MIXINS.items()
    for name in unittest.defaultTestLoader.getTestCaseNames(mixin)
    if "ssl" not in name  # a transport's TLS, which has no use for the loop's socket calls
]

BESIDE_THE_WATCHER = {
    "test_sendfile_fallback_close_peer_in_the_middle_of_receiving": "replaces the loop's sendfile",
    "test_sendfile_for_closing_transp": "is refused before",
    "test_sendfile_force_fallback": "replaces the loop's sendfile",
    "test_sendfile_force_unsupported_native": "replaces the loop's sendfile",
    "test_sendfile_no_fallback_for_fallback_transport": "is refused before",
    "test_sendfile_not_supported": "is refused before",
}
"""Cases that pass without a call that a watcher serves, and why; all others make some."""


def run(mixin: Any, name: str, poller: str) -> WatcherEventLoop:
    """Run one case as unittest does, and raise what it found; the loop that it was run on."""
    loops: list[WatcherEventLoop] = []

    class Case(mixin, utils.TestCase):
        def create_event_loop(self) -> WatcherEventLoop:
            loops.append(WatcherEventLoop(poller=poller))
            return loops[-1]

    result = unittest.TestResult()
    with collecting_by_hand():  # each case collects thrice, and the suite has many objects
        unittest.TestSuite([Case(name)]).run(result)
    for _, trace in result.failures + result.errors:
        pytest.fail(trace, pytrace=False)
    assert (result.testsRun, result.skipped) == (1, [])
    (loop,) = loops
    return loop


# The cases do what asyncio has deprecated. Their ResourceWarnings, and ours, stay errors.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("no_errors_in_callbacks")
@pytest.mark.parametrize("poller", ["epoll", "loop"])
@pytest.mark.parametrize(("module", "name"), CASES)
def test_P1_a_case_of_CPython_passes_on_a_watcher(
    module: str, name: str, poller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the cases leave files where they are
    loop = run(MIXINS[module], name, poller)
    assert loop.is_closed()
    assert (loop.watcher is None) == (name in BESIDE_THE_WATCHER)
    if loop.watcher is not None:
        figures = loop.watcher.statistics()
        assert figures.poller == poller
        assert figures.submitted > 0
        assert figures.pending == 0


def test_the_cases_beside_the_watcher_are_all_of_CPython() -> None:
    assert set(BESIDE_THE_WATCHER) <= {case.values[1] for case in CASES}


# --- the loop that they are run on ----------------------------------------------------------------


class OnTheLoop:
    """A test's coroutine on a loop of its own, which is closed with nothing open or pending."""

    def __init__(self, poller: str) -> None:
        self._loop = WatcherEventLoop(poller=poller)

    def __call__(self, test: Callable[[WatcherEventLoop], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(10):
                await test(self._loop)
            assert self._loop.watcher is not None
            figures = self._loop.watcher.statistics()
            assert (figures.pending, figures.connections) == (0, 0)

        try:
            self._loop.run_until_complete(bounded())
        finally:
            self._loop.close()


@pytest.fixture(params=["epoll", "loop"])
def on_the_loop(request: pytest.FixtureRequest, no_errors_in_callbacks: None) -> OnTheLoop:
    return OnTheLoop(request.param)


async def cancelled(call: Awaitable[Any]) -> None:
    """Start a call, cancel it while it waits, and see that it ends so."""
    task = asyncio.ensure_future(call)
    await settle(3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_call_takes_nothing_from_the_next(on_the_loop: OnTheLoop) -> None:
    async def test(loop: WatcherEventLoop) -> None:
        ours, peer = unix_pair()
        with ours, peer:
            ours.setblocking(False)
            await cancelled(loop.sock_recv(ours, 10))
            peer.sendall(b"data")
            assert await loop.sock_recv(ours, 10) == b"data"

    on_the_loop(test)


def test_the_socket_stays_its_owners(on_the_loop: OnTheLoop) -> None:
    async def test(loop: WatcherEventLoop) -> None:
        ours, peer = unix_pair()
        with ours, peer:
            ours.setblocking(False)
            await loop.sock_sendall(ours, b"by the watcher")
            assert ours.send(b", by itself") == 11
            peer.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(ours, 10) == b""
            assert await loop.sock_recv(ours, 10) == b""
            assert peer.recv(100) == b"by the watcher, by itself"

    on_the_loop(test)


def test_a_connection_accepted_for_a_cancelled_call_is_closed(on_the_loop: OnTheLoop) -> None:
    async def test(loop: WatcherEventLoop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            with socket.create_connection(listener.getsockname()) as client:
                await until(lambda: bool(events(listener) & select.POLLIN))
                task = asyncio.ensure_future(loop.sock_accept(listener))
                await asyncio.sleep(0)  # it accepts at the call; nobody has collected it yet
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert client.recv(1) == b""

    on_the_loop(test)


def test_an_error_is_the_calls(on_the_loop: OnTheLoop) -> None:
    async def test(loop: WatcherEventLoop) -> None:
        ours, peer = tcp_pair()
        with ours:
            ours.setblocking(False)
            reset(peer)
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(ours, 10)

    on_the_loop(test)
