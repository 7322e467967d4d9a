"""Launch tables: kernel launches that one native call runs in order.

A launch is (entry point, argument block). An entry point is a C function `void(block, lo, hi)` that computes
the chunks lo..hi-1. The number of chunks, and what each covers, depend on the shapes alone, so the bits of a
result do not depend on how chunks are distributed over threads.

An argument block is a run of 64-bit words: the header below, then the kernel's arguments: an address and a
shape for an array, the bits of a number for a scalar. A launch table is one buffer: rows of (entry point,
byte offset of the block), then the blocks. It holds no address of data until it runs, so one table serves
every call with the same shapes: an eager op has one or two launches, a training step hundreds, and both run
through `LaunchTable.run`.
"""

import ctypes
import functools
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import native, threads
from .atomics import load, store
from .compiled import c_function
from .intrinsics import call_address
from .team import share

#: Bytes of a block's header: error status, number of chunks, estimated time in ns if threads share them;
#: and its words.
STATUS, CHUNKS, SHARED = range(0, 24, 8)
HEADER = 3


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that a launch reads or writes."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Operand:
    """A C-contiguous array in numbered buffers: in buffer `buffer`, from byte `offset` on."""

    buffer: int
    spec: Spec
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the array."""
        return self.spec.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.spec.size

    def reshaped(self, *shape: int) -> "Operand":
        """Return the same memory under another shape of the same size."""
        return Operand(self.buffer, Spec(shape, self.dtype), self.offset)

    def viewed(self, dtype: np.dtype) -> "Operand":
        """Return the same memory read as another dtype of the same item size."""
        return Operand(self.buffer, Spec(self.shape, dtype), self.offset)


@dataclass(frozen=True)
class Address:
    """The address of an array alone, as an argument of a launch."""

    of: Operand


Argument = Operand | Address | int | float


@dataclass(frozen=True)
class Launch:
    """One kernel call: its entry point, its number of chunks, its arguments in words."""

    entry: int
    chunks: int
    work_ns: float
    words: tuple[int, ...]
    slots: tuple[tuple[int, Operand], ...]  # word of `words` -> the array whose address goes there


def make_launch(entry: int, chunks: int, work_ns: float, arguments: Sequence[Argument]) -> Launch:
    """Make a launch: arrays become (address, shape...), numbers one word each.

    work_ns: an estimate of the serial time; it decides between serial and parallel, never the result.
    """
    words: list[int] = []
    slots = []
    for argument in arguments:
        if isinstance(argument, Operand):
            slots.append((len(words), argument))
            words += [0, *argument.shape]
        elif isinstance(argument, Address):
            slots.append((len(words), argument.of))
            words.append(0)
        elif isinstance(argument, float):
            words.append(struct.unpack("q", struct.pack("d", argument))[0])
        else:
            words.append(argument)
    return Launch(entry, chunks, work_ns, tuple(words), tuple(slots))


class LaunchTable:
    """Launches in order, over numbered buffers."""

    def __init__(self, launches: Sequence[Launch], spinning: bool = False) -> None:
        """Lay out a table. spinning: see `threads.team_size`."""
        self._count = len(launches)
        words: list[int] = [0] * (2 * self._count)
        self._slots: list[tuple[int, int, int]] = []
        self._shared = False
        for row, launch in enumerate(launches):
            words[2 * row : 2 * row + 2] = launch.entry, 8 * len(words)
            team = threads.team_size(launch.chunks, launch.work_ns, spinning)
            self._shared |= team > 1
            words += [0, launch.chunks, max(round(launch.work_ns), 1) if team > 1 else 0]
            for word, operand in launch.slots:
                self._slots.append((len(words) + word, operand.buffer, operand.offset))
            words += launch.words
        self._template = array("q", words)
        self._run = _runner()

    def bound(self, addresses: Sequence[int]) -> "BoundTable":
        """Return the table with its buffers at addresses, where they stay until `rebind` moves one."""
        words = self._template[:]
        slots: list[list[tuple[int, int]]] = [[] for _ in addresses]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
            slots[buffer].append((word, offset))
        return BoundTable(self, words, slots)

    def run(self, addresses: Sequence[int]) -> int:
        """Run all launches over the buffers at `addresses`.

        Returns -1, or the number of the first launch that reported an error; later ones did not run.
        """
        words = self._template[:]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
        return self.walk(words)

    def walk(self, words: "array[int]") -> int:
        """Run the launches of a table with addresses; returns as `run` does."""
        team = threads.team() if self._shared else 0
        return int(self._run(words.buffer_info()[0], self._count, team))


class BoundTable:
    """A launch table whose buffers have addresses: a run writes no word of it."""

    def __init__(self, table: "LaunchTable", words: "array[int]", slots: list[list[tuple[int, int]]]) -> None:
        self._table, self._words, self._slots = table, words, slots

    def rebind(self, buffer: int, address: int) -> None:
        """Move a buffer."""
        for word, offset in self._slots[buffer]:
            self._words[word] = address + offset

    def run(self) -> int:
        """Run all launches; returns as `LaunchTable.run` does."""
        return self._table.walk(self._words)


@functools.cache
def _runner() -> "ctypes._FuncPointer":
    address = native.load("walk", lambda: c_function("walk", walk, 3, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(address)


def walk(base: int, count: int, team: int) -> int:
    """Run the launches of a table at address `base`; share those marked so with a team, unless `team` is 0.

    Returns -1, or the row of a launch that reported an error, which is the last that ran.
    """
    for row in range(count):
        at = base + 16 * row
        entry, block = load(at), base + load(at + 8)
        store(block + STATUS, 0)  # a table may be run many times
        chunks = load(block + CHUNKS)
        shared = load(block + SHARED)
        if team == 0 or shared == 0 or not share(team, entry, block, chunks, shared):
            call_address(entry, block, 0, chunks)
        if load(block + STATUS) != 0:
            return row
    return -1
