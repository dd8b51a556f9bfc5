"""Addresses: numeric ones. Looking up a name takes time, and belongs to the loop's resolver."""

from __future__ import annotations

import socket
from typing import Any


def check_address(family: int, address: Any) -> Any:
    """Return the address if it is one of the family, and numeric.

    :raises TypeError: not of the form that the family has.
    :raises ValueError: a host name, or a port out of range.
    """
    if family == socket.AF_INET:
        return _check_internet(family, address, (2, 2), "(host, port)")
    if family == socket.AF_INET6:
        return _check_internet(family, address, (2, 4), "(host, port[, flowinfo[, scope_id]])")
    if family == getattr(socket, "AF_UNIX", None) and not isinstance(address, str | bytes):
        raise TypeError(f"the address of a Unix socket is a path, not {address!r}")
    return address


def _check_internet(family: int, address: Any, lengths: tuple[int, int], form: str) -> Any:
    least, most = lengths
    if not isinstance(address, tuple) or not least <= len(address) <= most:
        raise TypeError(f"the address must be {form}, not {address!r}")
    host, port, *others = address
    if not isinstance(host, str):
        raise TypeError(f"the host must be a str, not {host!r}")
    if not all(isinstance(number, int) for number in (port, *others)):
        raise TypeError(f"the port must be an int, not {port!r}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"the port must be from 0 to 65535, not {port}")
    if any(not 0 <= number < 1 << 32 for number in others):
        raise ValueError(f"flowinfo and scope_id must be of 32 bits: {address!r}")
    if not host or (family == socket.AF_INET and host == "<broadcast>"):
        return address  # as the socket module has it
    try:
        socket.inet_pton(family, host.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(
            f"{host!r} is not a numeric address of this socket's family: look names up first, "
            "with await loop.getaddrinfo(...)"
        ) from None
    return address
