"""A simulated network, and an event loop on a virtual clock: tests of servers without sockets.

    with Network(latency=0.001) as network:
        network.run(main(network))

Inside, ``network.socketpair()``, ``network.create_server()`` and ``network.socket()`` give sockets
that a :class:`aiogaio.Watcher` takes as it takes real ones. Nothing waits: when all that can run
has run, the clock jumps to the next moment at which something happens, an hour of silence takes
no time, and two runs of one program are equal, system call for system call.

What is simulated is Linux, as far as it shows in the results of system calls: streams (TCP and
Unix) with buffers that fill up, ends, half-closes and resets; listeners, connects that are
refused or never answered; datagrams; edge-triggered epoll(7). ``tests/test_simulation.py`` makes
the same calls on simulated and on real sockets and compares.

- :mod:`network`: the network as a whole: its clock, its descriptors, its faults.
- :mod:`streams`, :mod:`datagrams`, :mod:`listeners`: what is behind a descriptor.
- :mod:`readiness`: epoll and poll.
- :mod:`sockets`: the calls of a socket, for programs and for the watcher.
- :mod:`loop`: the event loop.
- :mod:`system`: puts all of this in the place of the system calls that the watcher makes.
"""

from tests.simulation.loop import StalledError, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.sockets import SimulatedSocket

__all__ = ["Network", "SimulatedSocket", "StalledError", "VirtualLoop"]
