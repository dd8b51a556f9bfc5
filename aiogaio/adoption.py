"""Adoption: a connection taken from an asyncio transport, with all that asyncio has read of it.

Nothing but public names of asyncio is used, so it works on every loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from aiogaio.errors import UnsupportedConnectionError


def transport_of(source: Any, reader: asyncio.StreamReader | None) -> Any:
    """The transport of a writer, or itself; raises if it cannot be adopted."""
    transport = getattr(source, "transport", source)  # a writer has one
    if isinstance(transport, asyncio.DatagramTransport):
        raise UnsupportedConnectionError("cannot adopt a datagram transport: it is no stream")
    if not hasattr(transport, "get_extra_info") or not hasattr(transport, "pause_reading"):
        raise TypeError(f"adopt() takes a transport or a StreamWriter, not {source!r}")
    if source is not transport and reader is None:
        raise TypeError("pass the reader, too: it may hold bytes that came already")
    if reader is not None and not isinstance(reader, asyncio.StreamReader):
        raise TypeError(f"reader must be a StreamReader, not {reader!r}")
    if any(transport.get_extra_info(name) is not None for name in ("ssl_object", "sslcontext")):
        raise UnsupportedConnectionError(
            "cannot adopt a TLS transport: its bytes are not the application's"
        )
    if transport.is_closing():
        raise UnsupportedConnectionError("cannot adopt a transport that is closing")
    if transport.get_extra_info("socket") is None:
        raise UnsupportedConnectionError("cannot adopt a transport that has no socket")
    try:
        unsent = transport.get_write_buffer_size()
    except (AttributeError, NotImplementedError):  # a pipe to read from
        raise UnsupportedConnectionError("cannot adopt a transport that only reads") from None
    if unsent:
        raise UnsupportedConnectionError(
            f"cannot adopt a transport with {unsent} bytes to send: wait until they are gone, "
            "with transport.set_write_buffer_limits(0) and await writer.drain()"
        )
    return transport


def socket_of(transport: Any) -> socket.socket:
    """A socket object of its own for a duplicate of the transport's descriptor."""
    duplicate = os.dup(transport.get_extra_info("socket").fileno())
    try:
        sock = socket.socket(fileno=duplicate)
    except OSError:  # a pipe
        os.close(duplicate)
        raise UnsupportedConnectionError("cannot adopt a transport that has no socket") from None
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise UnsupportedConnectionError("cannot adopt what is no stream")
    return sock


def drained(reader: asyncio.StreamReader | None) -> bytes:
    """All that a stream's reader holds.

    ``read()`` returns at once if there is something, and else begins to wait: then it is dropped.
    """
    if reader is None:
        return b""
    if (error := reader.exception()) is not None:
        raise UnsupportedConnectionError(f"cannot adopt a stream that failed: {error}")
    reading = reader.read(1 << 30)
    try:
        reading.send(None)
    except StopIteration as result:
        received: bytes = result.value
        return received
    except RuntimeError as error:
        raise UnsupportedConnectionError(
            f"cannot adopt a stream that a task is reading ({error}): cancel it first"
        ) from None
    reading.close()
    return b""
