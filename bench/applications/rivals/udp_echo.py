"""A UDP echo: a DatagramProtocol."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from bench.applications.rivals import run


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


async def main(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", options.port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(main)
