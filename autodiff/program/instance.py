"""Memory that runs of programs use: arenas, and instances of a program."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import LaunchTable

from ..tensor import address_of

_BYTE = np.dtype(np.uint8)

#: C types that Python numbers are stored as, with NumPy's conversions.
_C: dict[np.dtype, Any] = {
    np.dtype("float32"): ctypes.c_float,
    np.dtype("float64"): ctypes.c_double,
    np.dtype("int32"): ctypes.c_int32,
    np.dtype("int64"): ctypes.c_int64,
    np.dtype("bool"): ctypes.c_bool,
}


class Arena:
    """Memory for the intermediate results of one run at a time."""

    __slots__ = ("address", "memory")

    def __init__(self, size: int) -> None:
        try:
            self.memory = memory.aligned((max(size, config.ALIGNED_LEAST),), _BYTE)
        except (MemoryError, ValueError, OverflowError):  # their sum may be more than an address can count
            raise memory.too_large("program, intermediate results", size) from None
        self.address = address_of(self.memory)


class Arenas:
    """A pool of arenas, shared by programs that seldom run at once; arenas grow to the largest program."""

    def __init__(self) -> None:
        self._free: deque[Arena] = deque()

    def acquire(self, size: int) -> Arena:
        """Return an arena of at least `size` bytes that no other run uses."""
        try:
            arena = self._free.pop()
        except IndexError:
            return Arena(size)
        return arena if arena.memory.nbytes >= size else Arena(size)

    def release(self, arena: Arena) -> None:
        """Return an arena to the pool."""
        self._free.append(arena)

    def clear(self) -> None:
        """Free the memory of the pool."""
        self._free.clear()


class NumberRows:
    """Memory for the numbers of runs, a row for each.

    size: bytes of a row, a multiple of 8.  arrays: the memory as an array of each dtype.
    """

    __slots__ = ("address", "arrays", "memory", "size")

    def __init__(self, size: int, count: int) -> None:
        self.size = max(size, 8)
        total = self.size * count
        self.memory = np.zeros(total, _BYTE)
        self.address = address_of(self.memory)
        self.arrays = {d: (c * (total // d.itemsize + 1)).from_address(self.address) for d, c in _C.items()}


class Instance:
    """A program's launch table bound to addresses, and the memory of its numbers; one run uses it at a time.

    addresses: of all buffers.  scalars: the buffer of the numbers.  size: its bytes.
    """

    __slots__ = ("addresses", "bound", "numbers")

    def __init__(self, table: LaunchTable, addresses: Sequence[int], scalars: int, size: int) -> None:
        self.numbers = NumberRows(size, 1)
        own = list(addresses)
        own[scalars] = self.numbers.address
        self.bound = table.bound(own)
        self.addresses = self.bound.addresses
