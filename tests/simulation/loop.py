"""The event loop: asyncio's own, on a selector and a clock that are the network's."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

from tests.simulation.description import PEER_HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from tests.simulation.network import Network


class StalledError(RuntimeError):
    """Everybody waits, no timer is set and nothing is on its way: it would be for ever."""


class _NetworkSelector(selectors.SelectSelector):
    """Level-triggered. What it waits for comes by the clock, which jumps there."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        network = self._network
        network.run_due()
        ready = self._look()
        if ready or (timeout is not None and timeout <= 0):
            return ready
        moments = [] if timeout is None else [network.now + timeout]
        if network.next_event is not None:
            moments.append(network.next_event)
        if not moments:
            raise StalledError("nothing can happen any more, and the program waits")
        network.now = max(network.now, min(moments))
        network.run_due()
        return self._look()

    def _look(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = []
        for fd, key in list(self.get_map().items()):
            if not self._network.has(fd):
                continue  # the loop's own pair, by which other threads wake it
            bits = self._network.description(fd).mask() & ~PEER_HANGUP  # nobody asks for it
            events = 0
            if bits & ~WRITABLE and key.events & selectors.EVENT_READ:
                events |= selectors.EVENT_READ
            if bits & ~READABLE and key.events & selectors.EVENT_WRITE:
                events |= selectors.EVENT_WRITE
            if events:
                ready.append((key, events))
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in whose time nothing waits. Its ``time()`` is the network's ``now``.

    Raises :exc:`StalledError` out of ``run_forever()`` if nothing can happen any more.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(_NetworkSelector(network))
        self._network = network

    def time(self) -> float:
        return self._network.now

    def turn(self) -> None:
        """One iteration: what is ready now runs, nothing is waited for."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self, most: int = 10_000) -> None:
        """Turn until nothing is left to do at this moment; raises if that does not come: a spin."""
        for _ in range(most):
            self.turn()
            if not self._busy():
                return
        raise RuntimeError(f"there is something to do in each of {most} turns: it spins")

    def _busy(self) -> bool:
        state: Any = self
        due = state._scheduled and state._scheduled[0].when() <= self.time()
        return bool(state._ready or due or self._selector.select(0))  # type: ignore[attr-defined]
