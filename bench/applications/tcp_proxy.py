"""`tcp_proxy.py` beside a proxy on asyncio's streams.

The proxy has the server's core. The backend shares the load's core with the load: for messages an
echo in C, the least that a backend can cost; for bulk ``iperf3 --server``. By the proxy's CPU time
is what tells the proxies apart where that core is the full one.
"""

from __future__ import annotations

from bench.applications.model import (
    COMPILER,
    LOOPS,
    Application,
    Load,
    Place,
    Sample,
    Server,
    example,
    needed,
    rivals,
)
from bench.applications.tools import ECHO, load_c, per_second, read_json
from bench.process import RunError

IPERF3 = Server(
    "iperf3",
    lambda place: ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(place.second)],
    programs=("iperf3",),
)


def ours(loop: str) -> Server:
    def command(place: Place) -> list[str]:
        to = f"127.0.0.1:{place.second}"
        return example("tcp_proxy.py", "--to", to, "--loop", loop)(place)

    return Server(f"tcp_proxy-{loop}", command, needed(loop))


def iperf3(place: Place, seconds: float) -> list[str]:
    return [
        "iperf3", "--client", "127.0.0.1", "--port", str(place.port),
        "--time", str(max(1, round(seconds))), "--json",  # whole seconds; 0 is for ever
    ]  # fmt: skip


def gigabits(output: str) -> Sample:
    """What iperf3's server has received."""
    found = read_json(output)
    try:
        bits = float(found["end"]["sum_received"]["bits_per_second"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise RunError(f"iperf3: {found.get('error', 'no rate')}") from None
    if not bits > 0:
        raise RunError("iperf3 received nothing")
    return Sample(bits / 1e9)


APPLICATION = Application(
    "tcp_proxy",
    [ours(loop) for loop in LOOPS],
    rivals("streams", "tcp_proxy"),
    [
        Load(
            "tcp_proxy, 64 x 128 B", "round trips/s", load_c(64, 128), per_second,
            (COMPILER,), beside=ECHO,
        ),
        Load("tcp_proxy, bulk", "Gbit/s", iperf3, gigabits, ("iperf3",), beside=IPERF3),
    ],
)  # fmt: skip
