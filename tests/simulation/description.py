"""What a descriptor refers to, whatever it is: an open file description (open(2))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.network import Network
    from tests.simulation.readiness import Interest

READABLE, WRITABLE, ERROR, HANGUP, PEER_HANGUP = 0x001, 0x004, 0x008, 0x010, 0x2000


def failure(number: int) -> OSError:
    """The exception of an errno, of the subclass that it has."""
    return OSError(number, os.strerror(number))


class Description:
    """One end of something, and who waits for it to become ready."""

    family: int = socket.AF_UNSPEC
    type: int = 0
    proto: int = 0

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inode = network.next_inode()
        self.interests: list[Interest] = []
        self.error = 0  # SO_ERROR: told once
        self.lingers = True  # false: a close resets (SO_LINGER of 0 seconds)
        self.closed = False
        self.options: dict[tuple[int, int], Any] = {}
        self.sockname: Any = ""
        self.peername: Any = None

    # What the others answer

    def mask(self) -> int:
        """The readiness bits of epoll(7) at this moment."""
        raise NotImplementedError

    def receive(self, room: int, *, peek: bool = False) -> tuple[bytes, bool, Any]:
        """Up to ``room`` bytes, whether there were more of this message, and who sent them."""
        raise failure(errno.ENOTCONN)

    def send(self, data: bytes, address: Any = None) -> int:
        raise failure(errno.ENOTCONN)

    def accept(self) -> Description:
        raise failure(errno.EINVAL)

    def connect(self, address: Any) -> int:
        """The errno of connect(2), 0 if it is connected."""
        return errno.EISCONN

    def shutdown(self, how: int) -> None:
        raise failure(errno.ENOTCONN)

    def release(self) -> None:
        """The last descriptor of it was closed."""

    # What is the same for all

    def wake(self, bits: int) -> None:
        """Some of these bits have come: an edge."""
        for interest in list(self.interests):
            interest.wake(bits)

    def take_error(self) -> int:
        """SO_ERROR: the pending error, which is gone then."""
        number, self.error = self.error, 0
        return number

    def check_error(self) -> None:
        """Raise the pending error, once."""
        if self.error:
            raise failure(self.take_error())

    def getsockopt(self, level: int, option: int) -> Any:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self.take_error()
        return self.options.get((level, option), 0)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            on, seconds = struct.unpack("ii", value)
            self.lingers = not on or bool(seconds)
        self.options[level, option] = value

    def drop(self) -> None:
        """Its last descriptor is closed."""
        self.closed = True
        for interest in list(self.interests):
            # The system would forget it silently. A loop, or uvloop, would not: a rule is broken.
            self.network.violations.append(f"descriptor {interest.fd} was closed while watched")
            interest.remove()
        self.release()


def joined(parts: Sequence[Any]) -> bytes:
    """The bytes of several buffers, at most what one call of Linux takes."""
    if len(parts) > 1024:
        raise failure(errno.EMSGSIZE)
    return b"".join(bytes(part) for part in parts)
