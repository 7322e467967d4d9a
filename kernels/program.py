"""Programs: tables of kernel launches that one native call walks.

A launch is (entry point, argument block). An entry point is a C function `void(block, lo, hi)` that
does the units of work lo..hi-1; how many units there are, and what each covers, depends on the shapes
alone, so the bits of a result do not depend on how units are dealt to threads.

An argument block is a run of 64-bit words: the header below, then what the kernel takes: an address and
a shape for an array, the bits of a number for a scalar. A program is one buffer: a table of
(entry point, byte offset of the block), then the blocks. It holds no address of data until it runs,
so one program serves every call with the same shapes: an eager op is a program of one or two
launches, a captured step one of hundreds, and both run through `Program.run`.
"""

import ctypes
import functools
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from . import native, threads
from .vector import declare

#: Words of a block's header: error status, units of work, threads to use, next unit to deal out.
STATUS, UNITS, THREADS, NEXT = range(4)
HEADER = 4


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that a program reads or writes."""

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
    """A C-contiguous array in a program: buffer number `buffer`, from byte `offset` on."""

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
    """One kernel call: its entry point, its units of work, its arguments in words."""

    entry: int
    units: int
    work_ns: float
    words: tuple[int, ...]
    slots: tuple[tuple[int, Operand], ...]  # word of `words` -> the array whose address goes there


def launch(entry: int, units: int, work_ns: float, arguments: Sequence[Argument]) -> Launch:
    """Lay out a launch: arrays become (address, shape...), numbers one word each.

    `work_ns` estimates the serial time; it decides between serial and parallel, never the result.
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
    return Launch(entry, units, work_ns, tuple(words), tuple(slots))


class Program:
    """Launches in order, over numbered buffers."""

    def __init__(self, launches: Sequence[Launch], spinning: bool = False) -> None:
        """Lay out a table. spinning: see `threads.team`."""
        self._count = len(launches)
        words: list[int] = [0] * (2 * self._count)
        self._slots: list[tuple[int, int, int]] = []
        self._parallel = False
        for row, item in enumerate(launches):
            words[2 * row : 2 * row + 2] = item.entry, 8 * len(words)
            team = threads.team(item.units, item.work_ns, spinning)
            self._parallel |= team > 1
            words += [0, item.units, team, 0]
            for word, operand in item.slots:
                self._slots.append((len(words) + word, operand.buffer, operand.offset))
            words += item.words
        self._template = array("q", words)
        self._run = _runner()

    def bound(self, addresses: Sequence[int]) -> "Bound":
        """Return the program with its buffers at addresses, where they stay unless told."""
        words = self._template[:]
        slots: list[list[tuple[int, int]]] = [[] for _ in addresses]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
            slots[buffer].append((word, offset))
        return Bound(self, words, slots)

    def run(self, addresses: Sequence[int]) -> int:
        """Run all launches over the buffers at `addresses`.

        Returns -1, or the number of the first launch that reported an error; later ones did not run.
        """
        words = self._template[:]
        for word, buffer, offset in self._slots:
            words[word] = addresses[buffer] + offset
        return self.walk(words)

    def walk(self, words: "array[int]") -> int:
        """Run over a filled table."""
        base = words.buffer_info()[0]
        if self._parallel:
            with threads.region() as driver:
                return self._run(base, self._count, driver)  # type: ignore[no-any-return]
        return self._run(base, self._count, 0)  # type: ignore[no-any-return]


class Bound:
    """A program whose buffers have addresses: a run patches none of its words."""

    def __init__(self, program: Program, words: "array[int]", slots: list[list[tuple[int, int]]]) -> None:
        self._program, self._words, self._slots = program, words, slots

    def rebind(self, buffer: int, address: int) -> None:
        """Move a buffer."""
        for word, offset in self._slots[buffer]:
            self._words[word] = address + offset

    def run(self) -> int:
        """Run all launches; returns as `Program.run` does."""
        return self._program.walk(self._words)


@functools.cache
def _runner() -> "ctypes._FuncPointer":
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(native.load("run", _run_ir))


def _run_ir() -> str:
    """`int64 run(base, count, driver)`: walk a program's table.

    A block with THREADS > 1 goes to `driver(worker, entry, block, threads)`, which calls
    `worker(entry, block)` on every thread; workers take units one at a time, so a slow core gets fewer.
    """
    i64, void = ir.IntType(64), ir.VoidType()
    entry_type = ir.FunctionType(void, [i64] * 3)
    module = ir.Module("run")

    def number(n: int) -> ir.Constant:
        return ir.Constant(i64, n)

    def word(b: ir.IRBuilder, address: ir.Value, index: int) -> ir.Value:
        return b.inttoptr(b.add(address, number(8 * index)), i64.as_pointer())

    def call(b: ir.IRBuilder, address: ir.Value, kind: ir.FunctionType, *args: ir.Value) -> None:
        b.call(b.inttoptr(address, kind.as_pointer()), args)

    worker = declare(module, "worker", void, [i64, i64])
    entry, block = worker.args
    b = ir.IRBuilder(worker.append_basic_block("entry"))
    loop, work, done = (worker.append_basic_block(s) for s in ("loop", "work", "done"))
    units = b.load(word(b, block, UNITS))
    b.branch(loop)
    b.position_at_end(loop)
    unit = b.atomic_rmw("add", word(b, block, NEXT), number(1), "monotonic")
    b.cbranch(b.icmp_signed("<", unit, units), work, done)
    b.position_at_end(work)
    call(b, entry, entry_type, block, unit, b.add(unit, number(1)))
    b.branch(loop)
    b.position_at_end(done)
    b.ret_void()

    run = declare(module, "run", i64, [i64, i64, i64])
    base, count, driver = run.args
    start = run.append_basic_block("start")
    head, step, serial, parallel, after, ok, failed = (
        run.append_basic_block(s) for s in ("head", "step", "serial", "parallel", "after", "ok", "failed")
    )
    b = ir.IRBuilder(start)
    b.branch(head)
    b.position_at_end(head)
    row = b.phi(i64)
    row.add_incoming(number(0), start)
    b.cbranch(b.icmp_signed("<", row, count), step, ok)
    b.position_at_end(step)
    at = b.add(base, b.mul(row, number(16)))
    entry, block = b.load(word(b, at, 0)), b.add(base, b.load(word(b, at, 1)))
    b.store(number(0), word(b, block, STATUS))  # a table may be walked many times
    b.store(number(0), word(b, block, NEXT))
    team = b.load(word(b, block, THREADS))
    many = b.and_(b.icmp_signed(">", team, number(1)), b.icmp_signed("!=", driver, number(0)))
    b.cbranch(many, parallel, serial)
    b.position_at_end(serial)
    call(b, entry, entry_type, block, number(0), b.load(word(b, block, UNITS)))
    b.branch(after)
    b.position_at_end(parallel)
    driver_type = ir.FunctionType(void, [i64] * 4)
    call(b, driver, driver_type, b.ptrtoint(worker, i64), entry, block, team)
    b.branch(after)
    b.position_at_end(after)
    row.add_incoming(b.add(row, number(1)), after)
    b.cbranch(b.icmp_signed("!=", b.load(word(b, block, STATUS)), number(0)), failed, head)
    b.position_at_end(failed)
    b.ret(row)
    b.position_at_end(ok)
    b.ret(number(-1))
    return str(module)
