"""The matrix of the contract suite, and the fixtures every test shares.

An async test runs on stock asyncio and on uvloop. A test that asks for ``poller`` (or for
``watcher``, which is made with it) runs over {epoll, loop} x {debug off, debug on} as well.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import pytest_asyncio

from aiogaio import Watcher

try:
    import uvloop
except ImportError:  # uvloop has no wheel for this interpreter: stock asyncio alone is tested
    uvloop = None

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
if uvloop is not None:
    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_configure(config: pytest.Config) -> None:
    """Programs that are interrupted here must not inherit that SIGINT is ignored.

    It is in all that a shell script starts in the background (POSIX, "Asynchronous Lists").
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest_asyncio.fixture(
    params=[("epoll", False), ("epoll", True), ("loop", False), ("loop", True)],
    ids=["epoll", "epoll-debug", "loop", "loop-debug"],
)
async def poller(request: pytest.FixtureRequest) -> str:
    """The name of a poller; the running loop's debug mode is set as the parameter says."""
    name, debug = request.param
    asyncio.get_running_loop().set_debug(debug)
    return name


@pytest_asyncio.fixture
async def watcher(poller: str) -> AsyncIterator[Watcher]:
    async with Watcher(poller=poller) as watcher:
        yield watcher


@pytest_asyncio.fixture
async def unlimited(poller: str) -> AsyncIterator[Watcher]:
    """A watcher whose connections may have any number of requests pending."""
    async with Watcher(poller=poller, max_pending=None) as watcher:
        yield watcher


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Every test ends with no descriptor more than it began with.

    It is set up first and torn down last; the event loop's own descriptors are opened by a
    fixture that may come before or after it, so what is compared leaves those out.
    """

    def sockets() -> int:
        count = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            count += target.startswith("socket:")
        return count

    before = sockets()
    yield
    after = sockets()
    if after > before:
        gc.collect()
        after = sockets()
    assert after <= before, f"{after - before} sockets were left open"


@pytest.fixture
def no_errors_in_callbacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception that a callback of the loop lets out is logged, and seen by nobody else."""
    yield
    records = caplog.get_records("setup") + caplog.get_records("call")
    assert not [r for r in records if r.name == "asyncio" and r.levelname == "ERROR"]
