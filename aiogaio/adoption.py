"""Adoption: a connection taken from an asyncio transport, with all that asyncio has read of it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from aiogaio.errors import UnsupportedConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable


def take_from(
    source: Any, reader: asyncio.StreamReader | None
) -> tuple[socket.socket, bytes, Callable[[], None]]:
    """A socket of its own, the bytes read already, and what makes the transport let go.

    Nothing but public names of asyncio is used, so it works on every loop. Until the last is
    called, the transport has stopped reading, but is still whole.
    """
    transport = getattr(source, "transport", source)  # a writer has one
    if not hasattr(transport, "get_extra_info") or not hasattr(transport, "pause_reading"):
        raise TypeError(f"adopt() takes a transport or a StreamWriter, not {source!r}")
    if source is not transport and reader is None:
        raise TypeError("pass the reader, too: it may hold bytes that came already")
    if reader is not None and not isinstance(reader, asyncio.StreamReader):
        raise TypeError(f"reader must be a StreamReader, not {reader!r}")
    if transport.get_extra_info("ssl_object") is not None or (
        transport.get_extra_info("sslcontext") is not None
    ):
        raise UnsupportedConnectionError(
            "cannot adopt a TLS transport: its bytes are not the application's"
        )
    if transport.is_closing():
        raise UnsupportedConnectionError("cannot adopt a transport that is closing")
    unsent = transport.get_write_buffer_size()
    if unsent:
        raise UnsupportedConnectionError(
            f"cannot adopt a transport with {unsent} bytes to send: wait until they are gone, "
            "with transport.set_write_buffer_limits(0) and await writer.drain()"
        )
    sock = transport.get_extra_info("socket")
    if sock is None:
        raise UnsupportedConnectionError("cannot adopt a transport that has no socket")
    own = socket.socket(fileno=os.dup(sock.fileno()))
    try:
        received = b"" if reader is None else _drain(reader)
    except BaseException:
        own.close()
        raise
    transport.pause_reading()
    return own, received, transport.close


def _drain(reader: asyncio.StreamReader) -> bytes:
    """All that a stream's reader holds.

    ``read()`` returns at once if there is something, and else begins to wait: then it is dropped.
    """
    if (error := reader.exception()) is not None:
        raise UnsupportedConnectionError(f"cannot adopt a stream that failed: {error}")
    reading = reader.read(1 << 30)
    try:
        reading.send(None)
    except StopIteration as result:
        received: bytes = result.value
        return received
    reading.close()
    return b""
