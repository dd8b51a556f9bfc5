"""Addresses: numeric ones. Looking up a name takes time, and belongs to the loop's resolver."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

_LONGEST_PATH: Final = 108  # unix(7)


def check_address(family: int, address: Any) -> Any:
    """Return the address if it is one of the family, and numeric.

    :raises TypeError: not of the form that the family has.
    :raises ValueError: a host name, or a port out of range.
    """
    if family == socket.AF_INET:
        if _is_plainly_right(address):
            return address
        return _check_internet(family, address, (2, 2), "(host, port)")
    if family == socket.AF_INET6:
        return _check_internet(family, address, (2, 4), "(host, port[, flowinfo[, scope_id]])")
    if family == getattr(socket, "AF_UNIX", None) and not isinstance(address, str | bytes):
        raise TypeError(f"the address of a Unix socket is a path, not {address!r}")
    if isinstance(address, str | bytes) and len(os.fsencode(address)) > _LONGEST_PATH:
        raise ValueError(f"the path of a Unix socket has at most {_LONGEST_PATH} bytes")
    return address


def _is_plainly_right(address: Any) -> bool:
    """The quick answer for what nearly all of them are, ``("127.0.0.1", 80)``."""
    if type(address) is not tuple or len(address) != 2:
        return False
    host, port = address
    if type(host) is not str or type(port) is not int or not 0 <= port <= 0xFFFF:
        return False
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


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
    for number, bits, name in zip(others, (20, 32), ("flowinfo", "scope_id"), strict=False):
        if not 0 <= number < 1 << bits:
            raise ValueError(f"{name} must be a number of {bits} bits, not {number}")
    if not host or (family == socket.AF_INET and host == "<broadcast>"):
        return address  # as the socket module has it
    try:
        socket.inet_pton(family, host.partition("%")[0] if family == socket.AF_INET6 else host)
    except (OSError, ValueError):
        raise ValueError(
            f"{host!r} is not a numeric address of this socket's family: look names up first, "
            "with await loop.getaddrinfo(...)"
        ) from None
    return address
