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
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from . import native, threads
from .vector import declare

#: Whether a table holds the threads: one at a time, since the workqueue layer ends the process on concurrent
#: launches, and a second table would find every core busy. What `walk` returns then, and seconds to wait.
_LOCK = array("q", [0])
_LOCK_ADDRESS = _LOCK.buffer_info()[0]
_BUSY, _POLL = -2, 5e-5

#: Words of a block's header: error status, chunks, threads to use, the next chunk that a thread takes.
STATUS, CHUNKS, THREADS, NEXT = range(4)
HEADER = 4


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
        """Lay out a table. spinning: see `threads.team`."""
        self._count = len(launches)
        words: list[int] = [0] * (2 * self._count)
        self._slots: list[tuple[int, int, int]] = []
        self._parallel = False
        for row, launch in enumerate(launches):
            words[2 * row : 2 * row + 2] = launch.entry, 8 * len(words)
            team = threads.team(launch.chunks, launch.work_ns, spinning)
            self._parallel |= team > 1
            words += [0, launch.chunks, team, 0]
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
        base = words.buffer_info()[0]
        driver = threads.driver() if self._parallel else 0
        while True:
            row: int = self._run(base, self._count, driver, _LOCK_ADDRESS if driver else 0)
            if row != _BUSY:
                return row
            time.sleep(_POLL)  # another thread's table has the cores


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
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(native.load("walk", _run_ir))


_I64, _VOID = ir.IntType(64), ir.VoidType()
_ENTRY = ir.FunctionType(_VOID, [_I64] * 3)
_DRIVER = ir.FunctionType(_VOID, [_I64] * 4)


def _number(n: int) -> ir.Constant:
    return ir.Constant(_I64, n)


def _word(b: ir.IRBuilder, address: ir.Value, index: int) -> ir.Value:
    """Return a pointer to a word from an address on."""
    return b.inttoptr(b.add(address, _number(8 * index)), _I64.as_pointer())


def _call(b: ir.IRBuilder, address: ir.Value, kind: ir.FunctionType, *args: ir.Value) -> None:
    b.call(b.inttoptr(address, kind.as_pointer()), args)


def _run_ir() -> str:
    """Return the LLVM IR of `int64 walk(base, count, driver, lock)`, which runs a table's launches.

    It returns -1, the row of a launch that reported an error, or -2 at once if another table holds the lock.
    The lock is taken and released here, where no Python exception can intervene.

    A block with THREADS > 1 goes to `driver(worker, entry, block, threads)`, which calls
    `worker(entry, block)` on every thread; workers take chunks one at a time, so a slow core gets fewer.
    """
    module = ir.Module("run")
    worker = _worker(module)
    run = declare(module, "walk", _I64, [_I64] * 4)
    base, count, driver, lock = run.args
    start = run.append_basic_block("start")
    names = ("take", "head", "step", "serial", "parallel", "after", "end", "release", "out", "busy")
    take, head, step, serial, parallel, after, end, release, out, busy = map(run.append_basic_block, names)
    b = ir.IRBuilder(start)
    locked = b.icmp_signed("!=", lock, _number(0))
    b.cbranch(locked, take, head)
    b.position_at_end(take)
    held = b.cmpxchg(_word(b, lock, 0), _number(0), _number(1), "acquire", "monotonic")
    b.cbranch(b.extract_value(held, 1), head, busy)
    b.position_at_end(busy)
    b.ret(_number(_BUSY))
    b.position_at_end(head)
    row = b.phi(_I64)
    row.add_incoming(_number(0), start)
    row.add_incoming(_number(0), take)
    b.cbranch(b.icmp_signed("<", row, count), step, end)
    b.position_at_end(step)
    at = b.add(base, b.mul(row, _number(16)))
    entry, block = b.load(_word(b, at, 0)), b.add(base, b.load(_word(b, at, 1)))
    b.store(_number(0), _word(b, block, STATUS))  # a table may be walked many times
    b.store(_number(0), _word(b, block, NEXT))
    team = b.load(_word(b, block, THREADS))
    many = b.and_(b.icmp_signed(">", team, _number(1)), b.icmp_signed("!=", driver, _number(0)))
    b.cbranch(many, parallel, serial)
    b.position_at_end(serial)
    _call(b, entry, _ENTRY, block, _number(0), b.load(_word(b, block, CHUNKS)))
    b.branch(after)
    b.position_at_end(parallel)
    _call(b, driver, _DRIVER, b.ptrtoint(worker, _I64), entry, block, team)
    b.branch(after)
    b.position_at_end(after)
    row.add_incoming(b.add(row, _number(1)), after)
    b.cbranch(b.icmp_signed("!=", b.load(_word(b, block, STATUS)), _number(0)), end, head)
    b.position_at_end(end)
    result = b.phi(_I64)
    result.add_incoming(_number(-1), head)
    result.add_incoming(row, after)
    b.cbranch(locked, release, out)
    b.position_at_end(release)
    b.store_atomic(_number(0), _word(b, lock, 0), "release", 8)
    b.branch(out)
    b.position_at_end(out)
    b.ret(result)
    return str(module)


def _worker(module: ir.Module) -> ir.Function:
    """Define `worker(entry, block)`: compute chunks until none is left."""
    worker = declare(module, "worker", _VOID, [_I64] * 2)
    entry, block = worker.args
    b = ir.IRBuilder(worker.append_basic_block("entry"))
    loop, work, done = (worker.append_basic_block(s) for s in ("loop", "work", "done"))
    chunks = b.load(_word(b, block, CHUNKS))
    b.branch(loop)
    b.position_at_end(loop)
    chunk = b.atomic_rmw("add", _word(b, block, NEXT), _number(1), "monotonic")
    b.cbranch(b.icmp_signed("<", chunk, chunks), work, done)
    b.position_at_end(work)
    _call(b, entry, _ENTRY, block, chunk, b.add(chunk, _number(1)))
    b.branch(loop)
    b.position_at_end(done)
    b.ret_void()
    return worker
