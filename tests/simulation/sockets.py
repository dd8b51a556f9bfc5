"""The calls of a socket, on a simulated descriptor: for programs, and for the watcher."""

from __future__ import annotations

import _socket
import errno
import socket
from typing import TYPE_CHECKING, Any

from aiogaio.connection import Record
from tests.simulation.description import failure, joined
from tests.simulation.streams import Stream

if TYPE_CHECKING:
    from tests.simulation.network import Network


class Calls(_socket.socket):
    """What :class:`socket.socket` can do, without blocking, answered by a network."""

    __slots__ = ()

    _network: Network
    _number: int
    _kind: tuple[int, int, int]  # family, type, protocol: known also when it is closed

    def __init__(self, *_: Any) -> None:
        """Ask the system for nothing."""

    def _open(self, network: Network, fd: int) -> None:
        self._network, self._number = network, fd
        description = network.description(fd)
        self._kind = description.family, description.type, description.proto

    def _call(self, name: str) -> Any:
        """What the descriptor refers to, if this system call does not fail by a fault."""
        description = self._network.description(self._number)
        self._network.call(name, description)
        return description

    @property
    def _description(self) -> Any:
        return self._network.description(self._number)

    @property
    def family(self) -> int:  # type: ignore[override]
        return self._kind[0]

    @property
    def type(self) -> int:  # type: ignore[override]
        return self._kind[1]

    @property
    def proto(self) -> int:  # type: ignore[override]
        return self._kind[2]

    @property
    def timeout(self) -> float | None:  # type: ignore[override]
        return 0.0

    def fileno(self) -> int:
        return self._number

    def detach(self) -> int:
        number, self._number = self._number, -1
        return number

    def close(self) -> None:
        number = self.detach()
        if number >= 0:
            self._network.close(number)

    def setblocking(self, flag: bool, /) -> None:
        if flag:
            raise ValueError("nothing blocks on a simulated network")

    def settimeout(self, value: float | None, /) -> None:
        self.setblocking(value != 0)

    def gettimeout(self) -> float | None:
        return 0.0

    # --- Bytes -----------------------------------------------------------------------------------

    def recv(self, room: int, flags: int = 0, /) -> bytes:
        return bytes(self._call("recv").receive(room, peek=bool(flags & socket.MSG_PEEK))[0])

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        with memoryview(buffer).cast("B") as view:
            data = self._call("recv").receive(nbytes or view.nbytes)[0]
            view[: len(data)] = data
        return len(data)

    def recvmsg(self, room: int, ancillary: int = 0, flags: int = 0, /) -> Any:
        data, cut, sender = self._call("recv").receive(room)
        return data, [], socket.MSG_TRUNC if cut else 0, sender

    def recvmsg_into(self, buffers: Any, ancillary: int = 0, flags: int = 0, /) -> Any:
        (buffer,) = buffers
        with memoryview(buffer).cast("B") as view:
            data, cut, sender = self._call("recv").receive(view.nbytes)
            view[: len(data)] = data
        return len(data), [], socket.MSG_TRUNC if cut else 0, sender

    def send(self, data: Any, flags: int = 0, /) -> int:
        with memoryview(data) as view:
            return int(self._call("send").send(view.tobytes()))

    def sendto(self, data: Any, address: Any, /) -> int:  # type: ignore[override]
        return int(self._call("send").send(bytes(data), address))

    def sendmsg(
        self, parts: Any, ancillary: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        return int(self._call("send").send(joined(list(parts)), address))

    # --- Connections -----------------------------------------------------------------------------

    def _accept(self) -> tuple[int, Any]:
        stream = self._call("accept").accept()
        return self._network.open(stream), stream.peername

    def connect_ex(self, address: Any, /) -> int:
        try:
            return int(self._call("connect").connect(address))
        except OSError as error:
            return error.errno or errno.EIO

    def shutdown(self, how: int, /) -> None:
        self._call("shutdown").shutdown(how)

    def getsockopt(self, level: int, option: int, length: int = 0, /) -> Any:
        value = self._description.getsockopt(level, option)
        return int(value).to_bytes(length, "little") if length else value

    def setsockopt(self, level: int, option: int, value: Any = None, length: int = 0, /) -> None:
        self._description.setsockopt(level, option, value)

    def getsockname(self) -> Any:
        return self._description.sockname

    def getpeername(self) -> Any:
        description = self._description
        if isinstance(description, Stream) and description.state != "connected":
            raise failure(errno.ENOTCONN)
        return description.peername


class SimulatedSocket(Calls, socket.socket):
    """A socket of a program. It never blocks."""

    __slots__ = ("_kind", "_network", "_number")

    def __init__(self, network: Network, fd: int) -> None:
        # Not socket.socket.__init__, which asks the system for a descriptor.
        self._io_refs, self._closed = 0, False
        self._open(network, fd)

    def detach(self) -> int:
        self._closed = True
        return Calls.detach(self)

    def close(self) -> None:
        self._closed = True
        Calls.close(self)

    def connect(self, address: Any, /) -> None:
        number = self.connect_ex(address)
        if number:
            raise failure(number)

    def accept(self) -> tuple[SimulatedSocket, Any]:
        fd, address = self._accept()
        return SimulatedSocket(self._network, fd), address

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if self.send(data) != len(memoryview(data).cast("B")):
            raise failure(errno.EAGAIN)

    @property
    def unread(self) -> int:
        """Bytes of a stream that have arrived and wait to be received (FIONREAD)."""
        return len(self._description.arrived)

    def __repr__(self) -> str:
        return f"<SimulatedSocket fd={self._number}>"


class SimulatedRecord(Record, Calls):
    """The watcher's side of a simulated connection."""

    __slots__ = ("_kind", "_network", "_number")


def record_of(network: Network, fd: int, *, listening: bool) -> Record:
    """A record of a simulated descriptor, made by the code that makes the real ones."""
    record = SimulatedRecord.__new__(SimulatedRecord)
    record._open(network, fd)
    Record.__init__(record, *record._kind, fd, listening=listening)
    return record
