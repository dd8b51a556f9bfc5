"""Values: what programs pass that they should not, or seldom."""

from __future__ import annotations

import array
import ctypes
import decimal
import io
import math
import mmap
from collections.abc import Callable
from typing import Any


class _Index:
    """A number for ``operator.index``, and no int."""

    def __index__(self) -> int:
        return 1


class _Descriptor:
    """Says that it has a descriptor, which nobody has."""

    def fileno(self) -> int:
        return 1 << 30


def _released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


#: Made anew for each use, as some of them are used up.
ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: 1,
    lambda: -1,
    lambda: 70_000,
    lambda: 1 << 31,
    lambda: 1 << 63,
    lambda: 10**400,
    lambda: -(10**400),
    lambda: 0.5,
    lambda: -0.5,
    lambda: -0.0,
    lambda: 5e-324,
    lambda: 1e308,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -math.inf,
    lambda: decimal.Decimal(1),
    lambda: 1j,
    _Index,
    lambda: "text",
    lambda: "",
    lambda: b"",
    lambda: b"\n",
    lambda: b"12345678" * 1000,
    bytearray,
    lambda: bytearray(1),
    lambda: bytearray(3000),
    lambda: memoryview(b"12345678"),
    lambda: memoryview(bytearray(8))[::2],
    lambda: memoryview(bytearray(8))[::-1],
    lambda: memoryview(bytearray(24)).cast("I"),
    lambda: memoryview(bytearray(24)).cast("B", (4, 6)),
    lambda: memoryview(bytearray(8)).cast("d", ()),
    lambda: memoryview(bytearray(8))[8:],
    _released,
    lambda: array.array("I"),
    lambda: array.array("d", [1.0] * 100),
    ctypes.c_char * 9,
    ctypes.c_short * 3 * 5,
    ctypes.c_int,
    lambda: mmap.mmap(-1, 5000),
    list,
    lambda: [b""],
    lambda: [b"", bytearray(3), memoryview(b"12345678").cast("I")],
    lambda: [b"x"] * 2000,
    lambda: [b"x", "x"],
    lambda: [bytearray(3000)] * 3,
    lambda: iter([b"a", b"b"]),
    lambda: {b"a": 1},
    lambda: [(1, 1, b"x")],
    lambda: [(1, 1)],
    lambda: [(1 << 40, 1, b"x")],
    lambda: [(1, 2.0, b"x")],
    lambda: ("127.0.0.1", 1),
    lambda: ("127.0.0.1", -1),
    lambda: ("127.0.0.1", 10**400),
    lambda: ("localhost", 80),
    lambda: ("", 80),
    lambda: ("127.0.0.1", True),
    lambda: ("\0", 80),
    lambda: ("::1", 80, 0, 0),
    lambda: ("\ud800", 80),
    lambda: "/" + "x" * 200,
    lambda: "\0abstract",
    lambda: "\ud800",
    object,
    lambda: object,
    lambda: io.BytesIO(b"12345678" * 1000),
    io.BytesIO,
    _closed,
    lambda: io.StringIO("text"),
    _Descriptor,
)
