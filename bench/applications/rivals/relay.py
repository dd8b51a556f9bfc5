"""Two streams as one: what comes on either goes to the other, and its end, too."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter

from bench.applications.rivals import BUFFER_SIZE

Pair = tuple[StreamReader, StreamWriter]


async def relay(client: Pair, upstream: Pair) -> None:
    """Until both have ended, or one has failed."""
    try:
        await asyncio.gather(pipe(client[0], upstream[1]), pipe(upstream[0], client[1]))
    except OSError:
        pass
    finally:
        client[1].close()
        upstream[1].close()


async def pipe(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(BUFFER_SIZE):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # it has left altogether
        writer.write_eof()
