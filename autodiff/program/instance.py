"""Memory that runs of programs use: arenas, and instances of a program with buffers at addresses."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import LaunchTable

from ..tensor import address_of

#: Memory that is used again, and whether nobody else uses it.
allocate, exclusive = memory.recycled, memory.exclusive

_BYTE = np.dtype(np.uint8)

#: C types that numbers are written by, which convert as NumPy does.
_C: dict[np.dtype, Any] = {
    np.dtype("float32"): ctypes.c_float,
    np.dtype("float64"): ctypes.c_double,
    np.dtype("int32"): ctypes.c_int32,
    np.dtype("int64"): ctypes.c_int64,
    np.dtype("bool"): ctypes.c_bool,
}


class Arena:
    """Memory for intermediate results."""

    __slots__ = ("address", "memory")

    def __init__(self, size: int) -> None:
        self.memory = memory.aligned((max(size, config.ALIGNED_LEAST),), _BYTE)
        self.address = address_of(self.memory)


class Arenas:
    """Arenas that programs share which seldom run at once; they grow to what the largest needs."""

    def __init__(self) -> None:
        self._free: deque[Arena] = deque()

    def take(self, size: int) -> Arena:
        """Return an arena of at least so many bytes, which is nobody else's."""
        try:
            found = self._free.pop()
        except IndexError:
            return Arena(size)
        return found if found.memory.nbytes >= size else Arena(size)

    def give(self, arena: Arena) -> None:
        """Let others use an arena."""
        self._free.append(arena)

    def release(self) -> None:
        """Give the memory back; later runs take new."""
        self._free.clear()


class Instance:
    """A program with its buffers at addresses."""

    __slots__ = ("addresses", "arrays", "bound", "memory")

    def __init__(self, table: LaunchTable, addresses: Sequence[int], scalars: int, size: int) -> None:
        self.memory = np.zeros(max(size, 8), _BYTE)
        self.addresses = list(addresses)
        self.addresses[scalars] = address_of(self.memory)
        self.bound = table.bound(self.addresses)
        self.arrays = {
            d: (c * (size // d.itemsize + 1)).from_address(self.addresses[scalars]) for d, c in _C.items()
        }

    def move(self, buffer: int, address: int) -> None:
        """Put a buffer at an address."""
        if self.addresses[buffer] != address:
            self.bound.rebind(buffer, address)
            self.addresses[buffer] = address
