"""Launch tables: kernel launches that one native call runs in order.

A launch is (entry point, argument block). An entry point is a C function `void(block, lo, hi)` that computes
the chunks lo..hi-1. The number of chunks, and what each covers, depend on the shapes alone, so the bits of a
result do not depend on how chunks are distributed over threads.

An argument block is a run of 64-bit words: the header below, then the kernel's arguments: an address and a
shape for an array, the bits of a number for a scalar. A launch table is one buffer: rows of (entry point,
distance of the block in bytes), then the blocks. It holds no address of data until it runs, so one table
serves every call with the same shapes: an eager op has one or two launches, a training step hundreds, and
both run through `LaunchTable.run`.

A host call is a launch without an entry point: the native call returns there, a Python function runs in the
caller's thread on arrays of the operands, and a second native call runs the rest. So an exception of the
function, or of a signal's handler, is raised to the caller, which a callback from native code can not do.
"""

import ctypes
import functools
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native, threads
from .atomics import load, store
from .compiled import c_function, device
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
    """One kernel call: its entry point, its number of chunks, its arguments in words.

    host: the Python function of a host call, whose entry point is 0.
    """

    entry: int
    chunks: int
    work_ns: float
    words: tuple[int, ...]
    slots: tuple[tuple[int, Operand], ...]  # word of `words` -> the array whose address goes there
    host: Callable[..., None] | None = None


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


def host_call(function: Callable[..., None], *operands: Operand) -> Launch:
    """Plan function(*arrays) in Python, on arrays that are valid during the call."""
    return replace(make_launch(0, 1, 0.0, operands), host=function)


class LaunchTable:
    """Launches in order, over numbered buffers."""

    def __init__(self, launches: Sequence[Launch], spinning: bool = False) -> None:
        """Lay out a table. spinning: see `threads.team_size`."""
        self._count = len(launches)
        words: list[int] = [0] * (2 * self._count)
        self._slots: list[tuple[int, int, int]] = []
        self._shared = False
        #: Row of a host call -> its function, and the words of its operands' addresses with their specs.
        self._host_calls: dict[int, tuple[Callable[..., None], list[tuple[int, Spec]]]] = {}
        teams = [threads.team_size(launch.chunks, launch.work_ns, spinning) for launch in launches]
        if not threads.worth_waking([x.work_ns for x, team in zip(launches, teams, strict=True) if team > 1]):
            teams = [1] * self._count
        for row, (launch, team) in enumerate(zip(launches, teams, strict=True)):
            words[2 * row : 2 * row + 2] = launch.entry, 8 * (len(words) - 2 * row)
            self._shared |= team > 1
            words += [0, launch.chunks, max(round(launch.work_ns), 1) if team > 1 else 0]
            for word, operand in launch.slots:
                self._slots.append((len(words) + word, operand.buffer, operand.offset))
            if launch.host is not None:
                operands = [(len(words) + word, operand.spec) for word, operand in launch.slots]
                self._host_calls[row] = launch.host, operands
            words += launch.words
        self._template = array("q", words)
        if not self.alone:
            runner()  # compiled now, not in the middle of a run; eager ops of few elements never need it

    @property
    def native(self) -> bool:
        """Whether no launch is a host call, so that native code may run several of it in turn."""
        return not self._host_calls

    @property
    def alone(self) -> bool:
        """Whether its launches run in the caller's thread alone, without a host call."""
        return self.native and not self._shared

    @property
    def layout(self) -> tuple[list[tuple[int, int, int]], "array[int]"]:
        """The slots of addresses, as (word, buffer, offset), and the words without addresses."""
        return self._slots, self._template

    def bound(self, addresses: Sequence[int]) -> "BoundTable":
        """Return the table with its buffers at addresses, where they stay until `rebind` moves one."""
        words = self._template[:]
        slots: list[list[tuple[int, int]]] = [[] for _ in addresses]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
            slots[buffer].append((word, offset))
        return BoundTable(self, words, slots, list(addresses))

    def run(self, addresses: Sequence[int]) -> int:
        """Run all launches over the buffers at `addresses`.

        Returns -1, or the number of the first launch that reported an error; later ones did not run.
        """
        words = self._template[:]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
        return self.walk(words, words.buffer_info()[0])

    def walk(self, words: "array[int]", address: int) -> int:
        """Run the launches of a table with addresses; returns as `run` does. address: of the words."""
        team = threads.team() if self._shared else 0
        row: int = runner()(address, self._count, team, 0, 0, 0)
        return self._continue(words, row, team) if self._host_calls else row

    def _continue(self, words: "array[int]", row: int, team: int) -> int:
        """Run the host call at a row, and all launches after it; return as `run` does."""
        while row in self._host_calls:
            function, operands = self._host_calls[row]
            function(*[_array(words[word], spec) for word, spec in operands])
            first = row + 1
            row = int(runner()(words.buffer_info()[0] + 16 * first, self._count - first, team, 0, 0, 0))
            row = row if row < 0 else first + row
        return row


class BoundTable:
    """A launch table whose buffers have addresses: a run writes no word of it."""

    def __init__(
        self,
        table: "LaunchTable",
        words: "array[int]",
        slots: list[list[tuple[int, int]]],
        addresses: list[int],
    ) -> None:
        """Take a table, its words with addresses, where each buffer's address is, and the addresses."""
        self._table, self._words, self._slots, self.addresses = table, words, slots, addresses
        self._address = words.buffer_info()[0]
        #: Runs all launches; returns as `LaunchTable.run` does. A step of 10 us feels another Python call.
        self.run = functools.partial(table.walk, words, self._address)

    def rebind(self, buffer: int, address: int) -> None:
        """Move a buffer."""
        words = self._words
        self.addresses[buffer] = 0  # an interrupt leaves some of the words at the old address
        for word, offset in self._slots[buffer]:
            words[word] = address + offset
        self.addresses[buffer] = address

    def run_each(self, moves: "array[int]", addresses: int, runs: int) -> int:
        """Run all launches several times, each with buffers at other addresses.

        The table is without host calls.  moves: as `moving` returns them.
        addresses: the address of (1 + runs, buffers): of the buffers after all runs, and in each of them.
        Returns the number of runs before the first launch that reported an error, which is the last to run.
        """
        table = self._table
        team = threads.team() if table._shared else 0
        base, at = self._address, moves.buffer_info()[0]
        ended = int(runner()(base, table._count, team, at, addresses, runs))
        return runs if ended < 0 else ended >> 32

    def moving(self, buffers: Sequence[int]) -> "array[int]":
        """Return the words that hold addresses of some buffers, as `move` reads them."""
        first = self._address
        slots = [(column, slot) for column, b in enumerate(buffers) for slot in self._slots[b]]
        words = [(first + 8 * word, column, offset) for column, (word, offset) in slots]
        return array("q", [len(words), len(buffers), *[n for row in words for n in row]])

    def block(self) -> int:
        """Return the address of the argument block of the first launch."""
        return self._address + self._words[1]

    @property
    def rows(self) -> tuple[int, int]:
        """The address of the first launch, and the number of launches."""
        return self._address, self._table._count


class TableSequence:
    """Bound tables that one native call runs in turn."""

    def __init__(self, tables: Sequence[BoundTable]) -> None:
        """Take tables without host calls."""
        self._words = array("q", [word for table in tables for word in table.rows])
        self._count = len(tables)
        self._shared = any(table._table._shared for table in tables)

    def run(self, table: int = 0, row: int = 0) -> tuple[int, int]:
        """Run all launches from a row of a table on; return where one reported an error, (-1, -1) if none."""
        team = threads.team() if self._shared else 0
        ended = int(_c_walk_in_turn()(self._words.buffer_info()[0], self._count, table, row, team))
        return (ended >> 32, ended & 0xFFFFFFFF) if ended >= 0 else (-1, -1)


def _array(address: int, spec: Spec) -> NDArray[Any]:
    """Return the memory at an address as an array."""
    memory = (ctypes.c_char * spec.nbytes).from_address(address)
    return np.ndarray(spec.shape, spec.dtype, memory)  # type: ignore[arg-type]


@functools.cache
def runner() -> "ctypes._FuncPointer":
    """Return the loop over launches, compiled."""
    address = native.load("walk", lambda: c_function("walk", walk_each, 6, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)(address)


@functools.cache
def _c_walk_in_turn() -> "ctypes._FuncPointer":
    address = native.load("walk_in_turn", lambda: c_function("walk_in_turn", walk_in_turn, 5, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)(address)


def walk_each(base: int, count: int, team: int, moves: int, addresses: int, runs: int) -> int:
    """Run the launches of a table several times, each with buffers at other addresses.

    base, count, team: as for `walk`.  moves: as for `move`; 0 runs the table once, as it is.
    addresses: (1 + runs, buffers) of the buffers that move: after all runs, and in each of them.

    Returns -1, or where it ended: the number of runs before it times 2^32, plus the row.
    """
    if moves == 0:
        return walk(base, count, team)
    ended = -1
    for k in range(runs):
        move(moves, addresses, 1 + k)
        row = walk(base, count, team)
        if row >= 0:
            ended = k * 4294967296 + row
            break
    move(moves, addresses, 0)
    return ended


@device
def move(moves: int, addresses: int, row: int) -> None:
    """Move buffers to a row of addresses.

    moves: the address of their words: the number of words, that of buffers, and for each word its address,
        its buffer's column of `addresses`, and its distance from there.
    """
    first = addresses + 8 * row * load(moves + 8)
    for k in range(load(moves)):
        at = moves + 16 + 24 * k
        store(load(at), load(first + 8 * load(at + 8)) + load(at + 16))


def walk_in_turn(tables: int, count: int, table: int, row: int, team: int) -> int:
    """Run the launches of tables, from a row of one on.

    tables: the address of (address of the first row, number of rows) of each.

    Returns -1, or where it ended: the table's number times 2^32, plus the row.
    """
    for k in range(table, count):
        at = tables + 16 * k
        first = row if k == table else 0
        ended = walk(load(at) + 16 * first, load(at + 8) - first, team)
        if ended >= 0:
            return k * 4294967296 + first + ended
    return -1


@device
def walk(base: int, count: int, team: int) -> int:
    """Run the launches of a table from the row at address `base` on; share those marked so with a team.

    team: its address, or 0 for none.

    Returns -1, or the row, counted from `base`, where it ended: of a launch that reported an error, or of a
    host call, which the caller runs.
    """
    for row in range(count):
        at = base + 16 * row
        entry, block = load(at), at + load(at + 8)
        if entry == 0:
            return row
        store(block + STATUS, 0)  # a table may be run many times
        chunks = load(block + CHUNKS)
        shared = load(block + SHARED)
        if team == 0 or shared == 0 or not share(team, entry, block, chunks, shared):
            call_address(entry, block, 0, chunks)
        if load(block + STATUS) != 0:
            return row
    return -1
