"""A SOCKS5 proxy (RFC 1928) on asyncio's streams: CONNECT, by IPv4, IPv6 or name."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from asyncio import StreamReader, StreamWriter

from bench.applications.rivals import BACKLOG, run
from bench.applications.rivals.relay import relay

LENGTHS = {1: 4, 4: 16}  # of the address, by its type; 3 is a name, which tells its own
REFUSED = bytes([5, 1, 0, 1, 0, 0, 0, 0, 0, 0])


async def handle(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        host, port = await handshake(reader, writer)
        upstream = await asyncio.open_connection(host, port)
    except (OSError, ValueError, EOFError):
        writer.write(REFUSED)
        writer.close()
        return
    address, port = upstream[1].get_extra_info("sockname")[:2]
    packed = ipaddress.ip_address(address).packed
    writer.write(bytes([5, 0, 0, 1 if len(packed) == 4 else 4]) + packed + port.to_bytes(2))
    await relay((reader, writer), upstream)


async def handshake(reader: StreamReader, writer: StreamWriter) -> tuple[str, int]:
    """Where the client wants to go."""
    version, count = await reader.readexactly(2)
    if version != 5 or 0 not in await reader.readexactly(count):
        raise ValueError("no SOCKS5 without a password")
    writer.write(bytes([5, 0]))
    version, command, _, kind = await reader.readexactly(4)
    if (version, command) != (5, 1):
        raise ValueError("no CONNECT")
    if kind == 3:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
    else:
        host = str(ipaddress.ip_address(await reader.readexactly(LENGTHS[kind])))
    return host, int.from_bytes(await reader.readexactly(2))


async def main(options: argparse.Namespace) -> None:
    server = await asyncio.start_server(handle, "127.0.0.1", options.port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    run(main)
