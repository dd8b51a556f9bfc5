"""Delegation: take a socket over, so that the watcher alone owns its descriptor."""

from __future__ import annotations

import socket
import sys

from aiogaio.connection import Record
from aiogaio.errors import UnsupportedConnectionError

_SERVED = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW)


def check_supported(sock: object) -> socket.socket:
    """Return ``sock`` if it can be delegated; else raise :exc:`UnsupportedConnectionError`."""
    if not isinstance(sock, socket.socket):
        if is_of_asyncio(sock):
            hint = "an asyncio transport goes on reading it; pass a socket that no transport owns"
        else:
            hint = "pass a Connection or a socket.socket; other descriptors to delegate() first"
        raise UnsupportedConnectionError(f"cannot delegate {_name(sock)}: {hint}")
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(sock, ssl.SSLSocket):
        raise UnsupportedConnectionError(
            "cannot delegate an SSLSocket: its bytes are not the application's; "
            "use ssl.MemoryBIO over a plain connection"
        )
    if sock.fileno() < 0:
        raise UnsupportedConnectionError(
            "cannot delegate a socket that is closed, detached, or was delegated elsewhere; "
            "pass an open one"
        )
    if sock.type not in _SERVED:
        raise UnsupportedConnectionError(f"cannot delegate a socket of type {sock.type!r}")
    return sock


def is_of_asyncio(value: object) -> bool:
    """Whether it is a transport, a stream, or the socket that these show."""
    return hasattr(value, "get_extra_info") or type(value).__name__ in (
        "PseudoSocket",
        "TransportSocket",
    )


def is_listening(sock: socket.socket) -> bool:
    """Whether ``sock`` accepts connections, rather than being one (SO_ACCEPTCONN, socket(7))."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def take_over(sock: socket.socket, *, listening: bool) -> Record:
    """Make a record of the descriptor of ``sock``, which still has it, too: see :func:`spend`."""
    record = Record(sock.family, sock.type, sock.proto, sock.fileno(), listening=listening)
    try:
        _prepare(record)
    except OSError:
        give_back(sock, record)
        raise
    return record


def spend(sock: socket.socket) -> None:
    """Part ``sock`` from its descriptor: from here on it belongs to the record alone."""
    sock.detach()


def give_back(sock: socket.socket, record: Record) -> None:
    """Undo :func:`take_over`: ``sock`` is what it was."""
    record.open = False
    record.detach()
    sock.settimeout(sock.gettimeout())  # blocking again, if it was


def take_accepted(fd: int, listener: Record) -> Record:
    """Make a record of a descriptor that ``listener`` has accepted; on failure it is closed."""
    try:
        record = Record(listener.family, listener.type, listener.proto, fd, listening=False)
    except OSError:
        socket.close(fd)
        raise
    try:
        _prepare(record)
    except OSError:
        record.open = False
        record.close()
        raise
    return record


def _prepare(record: Record) -> None:
    """Non-blocking, and without Nagle's delay, as asyncio and uvloop do."""
    record.setblocking(False)
    if record.short_is_empty and not record.listening:
        try:
            record.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # the peer has reset it already: the first read will tell
            pass


def _name(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__!r} object"
