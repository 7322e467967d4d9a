"""The elementwise engine: formulas over vectors, with broadcasting, in a loop that LLVM compiles.

A formula takes 20 to 40 ms to compile; a Numba kernel takes 0.3 s or more, and does not vectorise `exp` and
the like. Inputs are C-contiguous and broadcast by NumPy's rules. Outputs are C-contiguous; one may share the
memory of an input of the same shape. A chunk is `ELEMENTWISE_CHUNK` elements.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from . import config, native
from .loops import I64, Loop, bytes_of, n64
from .program import HEADER, Address, Argument, Launch, Operand, make_launch
from .vector import BITS, Formula, Value, constant

#: Words of the arguments before the operands' addresses: elements, length of the inner dimension,
#: number of outer dimensions; with an offset of the index its numbers and the address of its operand. After
#: the addresses: the outer dimensions' sizes, then each input's strides over them, in bytes.
_TOTAL, _COLUMNS, _OUTER, _OFFSET = range(HEADER, HEADER + 4)


@dataclass(frozen=True)
class IndexOffset:
    """A number that is added to a formula's `index`: formula(*elements of an operand, *numbers).

    formula: of scalars, int64; each call of the loop computes it once.  operand: int64.
    numbers: arguments of the launch, so that other numbers compile nothing.
    """

    formula: Formula
    operand: Operand
    numbers: tuple[int, ...]

    @property
    def key(self) -> tuple[Formula, int, int]:
        """What the compiled loop depends on."""
        return self.formula, self.operand.size, len(self.numbers)


@dataclass(frozen=True)
class Broadcast:
    """How inputs broadcast to an output, with adjacent dimensions joined where all inputs agree.

    columns: size of the inner dimension.  outer: sizes of the others.
    moves: whether each input moves along the inner dimension; otherwise its one element is repeated.
    strides: of each input along the outer dimensions, in elements.
    """

    columns: int
    outer: tuple[int, ...]
    moves: tuple[bool, ...]
    strides: tuple[tuple[int, ...], ...]


def broadcast(shape: tuple[int, ...], inputs: Sequence[tuple[int, ...]]) -> Broadcast:
    """Join dimensions: `(8, 9, 10)` with `(10,)` becomes 72 rows of 10.

    >>> broadcast((8, 9, 10), [(8, 9, 10), (10,)])
    Broadcast(columns=10, outer=(72,), moves=(True, True), strides=((10,), (0,)))
    """
    padded = [(1,) * (len(shape) - len(s)) + tuple(s) for s in inputs]
    joined: list[tuple[int, tuple[bool, ...]]] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        moves = tuple(s[axis] == size for s in padded)
        if joined and joined[-1][1] == moves:
            joined[-1] = (joined[-1][0] * size, moves)
        else:
            joined.append((size, moves))
    if not joined:
        return Broadcast(1, (), (True,) * len(inputs), ((),) * len(inputs))
    strides = []
    for k in range(len(inputs)):
        step, steps = 1, []
        for size, moves in reversed(joined):
            steps.append(step if moves[k] else 0)
            step *= size if moves[k] else 1
        strides.append(tuple(reversed(steps[1:])))
    columns, moves = joined[-1]
    return Broadcast(columns, tuple(s for s, _ in joined[:-1]), moves, tuple(strides))


def elementwise(
    name: str,
    formula: Formula,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    flops: float = 1,
    offset: IndexOffset | None = None,
) -> Launch:
    """Plan `outputs = formula(*inputs)`.

    name: unique to the formula; part of the compiled function's name.
    formula: takes values, returns one value or a tuple; its parameter `index`, if it has one, is the flat
        position in the output, int64.
    flops: operations per element, to choose between serial and parallel.
    offset: what is added to `index`.
    """
    shape = outputs[0].shape
    plan = broadcast(shape, [i.shape for i in inputs])
    dtypes = [i.dtype.name for i in inputs]
    results = [o.dtype.name for o in outputs]
    entry = _entry(name, formula, tuple(dtypes), tuple(results), plan.moves, offset.key if offset else None)
    total = outputs[0].size
    strides = [s * i.dtype.itemsize for i, steps in zip(inputs, plan.strides, strict=True) for s in steps]
    arguments: list[Argument] = [total, plan.columns, len(plan.outer)]
    if offset:
        arguments += [*offset.numbers, Address(offset.operand)]
    start = make_launch(entry, 0, 0.0, arguments)
    words, operands = start.words, (*inputs, *outputs)
    slots = [*start.slots, *((len(words) + k, operand) for k, operand in enumerate(operands))]
    moved = sum(o.spec.nbytes for o in operands)
    return Launch(
        entry,
        -(-total // config.ELEMENTWISE_CHUNK),
        moved * config.BYTE_NS + total * flops * config.FLOP_NS,
        (*words, *[0] * len(operands), *plan.outer, *strides),
        tuple(slots),
    )


@functools.cache
def _entry(
    name: str,
    formula: Formula,
    dtypes: tuple[str, ...],
    results: tuple[str, ...],
    moves: tuple[bool, ...],
    offset: tuple[Formula, int, int] | None,
) -> int:
    """Return the address of a formula's compiled loop.

    Formulas come from anywhere, so the cache's key does not cover their sources; instead the name contains a
    digest of the LLVM IR, which takes 1 to 3 ms to write and 20 to 40 ms to compile.
    """
    text = _build("loop", formula, list(dtypes), list(results), moves, offset)
    types = (d[0] + str(BITS[d]) for d in (*dtypes, *results))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    symbol = "_".join([name, *types, "".join("v" if m else "s" for m in moves), digest])
    return native.load(symbol, lambda: text.replace('@"loop"', f'@"{symbol}"'))


def fill(out: Operand, number: float) -> Launch:
    """Plan `out = number` everywhere."""
    return elementwise("fill", _constant_formula(out.dtype.name, number), [], [out])


def cast(x: Operand, out: Operand) -> Launch:
    """Plan `out = x`, broadcast and converted to the dtype of `out`."""
    return elementwise("cast", _cast_formula(out.dtype.name), [x], [out])


@functools.cache
def _constant_formula(dtype: str, number: float) -> Formula:
    def formula(index: Value) -> Value:
        return index.like(constant(dtype, index.lanes, number), dtype)

    return formula


@functools.cache
def _cast_formula(dtype: str) -> Formula:
    return lambda x: x.astype(dtype)


def _build(
    symbol: str,
    formula: Formula,
    dtypes: list[str],
    results: list[str],
    moves: Sequence[bool],
    offset: tuple[Formula, int, int] | None = None,
) -> str:
    """Return the LLVM IR of `void symbol(block, lo, hi)` for a formula."""
    return _Writer(symbol, formula, dtypes, results, moves, offset).write()


class _Writer:
    """Writes the loop of one formula."""

    def __init__(
        self,
        symbol: str,
        formula: Formula,
        dtypes: list[str],
        results: list[str],
        moves: Sequence[bool],
        offset: tuple[Formula, int, int] | None,
    ) -> None:
        self.module = ir.Module(symbol)
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        self.loop = loop = Loop(self.module, symbol, kind, [*dtypes, *results])
        self.formula, self.moves = formula, moves
        self.dtypes, self.results = dtypes, results
        self.sizes = [bytes_of(d) for d in (*dtypes, *results)]
        names = formula.__code__.co_varnames[: formula.__code__.co_argcount]
        self.indexed = "index" in names
        self.total, self.columns, self.outer = (loop.word(w) for w in (_TOTAL, _COLUMNS, _OUTER))
        self.offset = self.index_offset(*offset) if offset else None
        self.addresses = _OFFSET + (offset[2] + 1 if offset else 0)
        self.bases = [loop.word(self.addresses + k) for k in range(len(self.sizes))]

    def index_offset(self, formula: Formula, elements: int, numbers: int) -> ir.Value:
        """Compute the number that is added to `index`."""
        b, loop = self.loop.builder, self.loop
        words = [loop.word(_OFFSET + k) for k in range(numbers)]
        base = b.inttoptr(loop.word(_OFFSET + numbers), I64.as_pointer())
        scalars = [*(b.load(b.gep(base, [n64(k)])) for k in range(elements)), *words]
        return formula(*(Value(b, "int64", 1, s) for s in scalars)).ir

    def write(self) -> str:
        """Write the function: a loop from the first chunk's first element to the last chunk's last."""
        b = self.loop.builder
        chunk = n64(config.ELEMENTWISE_CHUNK)
        first = b.mul(self.loop.function.args[1], chunk)
        end = b.mul(self.loop.function.args[2], chunk)
        last = self.loop.least(end, self.total)
        self.loop.loop(first, last, None, lambda position: self.segment(position, last))
        b.ret_void()
        return str(self.module)

    def segment(self, position: ir.Value, last: ir.Value) -> ir.Value:
        """Write the elements from `position` to the end of its row or of the work; return that end."""
        b, loop, inputs = self.loop.builder, self.loop, len(self.dtypes)
        row = b.udiv(position, self.columns)
        column = b.sub(position, b.mul(row, self.columns))
        left, todo = b.sub(self.columns, column), b.sub(last, position)
        count = loop.least(left, todo)
        starts = []
        for k, offset in enumerate(self.offsets(row)):
            start = b.add(self.bases[k], offset)
            moved = b.add(start, b.mul(column, n64(self.sizes[k])))
            starts.append(moved if self.moves[k] else start)
        for k in range(inputs, len(self.sizes)):
            starts.append(b.add(self.bases[k], b.mul(position, n64(self.sizes[k]))))
        fixed = {k: loop.load_one(self.dtypes[k], starts[k]) for k in range(inputs) if not self.moves[k]}

        def step(i: ir.Value, mask: ir.Value | None = None) -> list[ir.Value]:
            self.elements(b.add(position, i), i, starts, fixed, mask)
            return []

        whole = b.and_(count, n64(-loop.lanes))
        loop.loop(n64(0), whole, loop.lanes, step)
        rest = b.sub(count, whole)
        loop.when(b.icmp_signed(">", rest, n64(0)), lambda: step(whole, loop.mask(rest)), [])
        return b.add(position, count)

    def offsets(self, row: ir.Value) -> list[ir.Value]:
        """Return each input's offset in a row, in bytes: the row's number is divided by the outer sizes."""
        b, loop = self.loop.builder, self.loop
        dims = b.add(self.outer, n64(self.addresses + len(self.sizes) - 1))

        def step(k: ir.Value, rest: ir.Value, *totals: ir.Value) -> list[ir.Value]:
            at = b.sub(dims, k)  # the last outer dimension first
            size = loop.word(at)
            position = b.urem(rest, size)
            moved = []
            for total in totals:
                at = b.add(at, self.outer)
                moved.append(b.add(total, b.mul(position, loop.word(at))))
            return [b.udiv(rest, size), *moved]

        return loop.loop(n64(0), self.outer, 1, step, [row, *[n64(0)] * len(self.dtypes)])[1:]

    def elements(
        self,
        position: ir.Value,
        i: ir.Value,
        starts: list[ir.Value],
        fixed: dict[int, Value],
        mask: ir.Value | None,
    ) -> None:
        """Write one vector: elements i, i + 1, ... of a segment, at `position` in the output."""
        b, loop, inputs = self.loop.builder, self.loop, len(self.dtypes)
        at = [b.add(s, b.mul(i, n64(z))) for s, z in zip(starts, self.sizes, strict=True)]
        values = [fixed[k] if k in fixed else loop.load(self.dtypes[k], at[k], mask) for k in range(inputs)]
        if self.indexed:
            first = position if self.offset is None else b.add(position, self.offset)
            flat = b.add(loop.splat(first), loop.iota(I64))
            values.append(Value(b, "int64", loop.lanes, flat))
        computed = self.formula(*values)
        for k, value in enumerate(computed if isinstance(computed, tuple) else (computed,)):
            if value.dtype != self.results[k]:
                raise TypeError(f"{self.module.name}: the formula gives {value.dtype}, not {self.results[k]}")
            loop.store(value, at[inputs + k], mask, rest=True)
