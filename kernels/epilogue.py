"""Epilogues: formulas over the tiles of a matrix product, while they are in cache.

`C = act(A B + bias)` then takes one pass over C instead of one for each step. An epilogue changes C in place
and may write more matrices of C's shape; its operands are matrices of C's shape, rows (a number for each
column), columns, or single numbers.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir

from . import config, native
from .elementwise import elementwise
from .loops import I64, Loop, bytes_of, n64
from .program import Address, Launch, Operand
from .vector import BITS, Formula, Value

MATRIX, ROW, COLUMN, SCALAR = "m", "r", "c", "s"

#: Operations for each element from which on an epilogue is a pass over tiles, and not a part of their function,
#: which has the formula for each register.
_FEW = 8.0


@dataclass(frozen=True)
class Epilogue:
    """C, and further results, = formula(C, *operands).

    name: unique to the formula; part of the compiled function's name.
    kinds: for each operand MATRIX (rows, n), ROW (n,), COLUMN (rows,), rows counted over all of a batch, or
        SCALAR: one number.
    results: matrices that are written besides C, of C's dtype.
    flops: operations per element.
    """

    name: str
    formula: Formula
    operands: tuple[Operand, ...] = ()
    kinds: tuple[str, ...] = ()
    results: tuple[Operand, ...] = ()
    flops: float = 1.0

    def of_row(self) -> "Epilogue":
        """Return the epilogue of a product of one column that is computed as one row."""
        kinds = tuple({ROW: SCALAR, COLUMN: MATRIX}.get(kind, kind) for kind in self.kinds)
        return replace(self, kinds=kinds)

    def then(self, other: "Epilogue | None") -> "Epilogue":
        """Return this epilogue followed by another, which takes the C that this one returns."""
        if other is None:
            return self
        return Epilogue(
            f"{self.name}_{other.name}",
            _both(self.formula, len(self.operands), other.formula),
            (*self.operands, *other.operands),
            (*self.kinds, *other.kinds),
            (*self.results, *other.results),
            self.flops + other.flops,
        )

    def alone(self, c: Operand) -> Launch:
        """Plan the epilogue as a separate launch, for a C that no product computes."""
        rows, n = c.size // c.shape[-1], c.shape[-1]
        shapes = {MATRIX: (rows, n), ROW: (n,), COLUMN: (rows, 1), SCALAR: ()}
        read = [o.reshaped(*shapes[kind]) for o, kind in zip(self.operands, self.kinds, strict=True)]
        written = [o.reshaped(rows, n) for o in (c, *self.results)]
        return elementwise(self.name, self.formula, [written[0], *read], written, self.flops)

    def lower(self, c: Operand) -> tuple[int, tuple[int | Address, ...]]:
        """Return the address of the compiled function for a product C, and the words of its arguments."""
        dtypes = tuple(o.dtype.name for o in self.operands)
        entry = _entry(self.name, self.formula, c.dtype.name, dtypes, self.kinds, len(self.results))
        return entry, self.words(c)

    def words(self, c: Operand) -> tuple[int | Address, ...]:
        """Return the words of the function's arguments for a product C."""
        return (c.shape[-1], *(Address(o) for o in (c, *self.operands, *self.results)))

    def written_by_tiles(self, c: Operand) -> "Inline | None":
        """Return the epilogue as a part of a tile's function, or None where a pass over tiles is better."""
        dtypes = tuple(o.dtype.name for o in self.operands)
        wide = max(bytes_of(d) for d in dtypes) > c.dtype.itemsize if dtypes else False
        if self.flops > _FEW or wide or config.isa() == "generic":
            return None
        text = _build("loop", self.formula, c.dtype.name, dtypes, self.kinds, len(self.results))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Inline(f"{self.name}_{digest}", self.formula, dtypes, self.kinds, len(self.results))


@dataclass(frozen=True)
class Inline:
    """An epilogue that the function of a tile applies to its registers before it stores them.

    name: unique to the formula and the operands.
    """

    name: str
    formula: Formula
    dtypes: tuple[str, ...]
    kinds: tuple[str, ...]
    results: int

    def rows(
        self, loop: Loop, dtype: str, words: ir.Value, first: ir.Value, left: ir.Value
    ) -> Callable[[int, int, Value, ir.Value], Value]:
        """Return a function of (row of the tile, column, C's elements, mask) -> C's final elements.

        It writes the further results.  words: the address of the words.  first, left: of the tile.
        """
        b, lanes = loop.builder, loop.lanes
        dtypes, kinds = [*self.dtypes, *[dtype] * self.results], [*self.kinds, *[MATRIX] * self.results]
        sizes = [bytes_of(d) for d in dtypes]
        n = loop.word(0, words)
        bases = [loop.word(2 + k, words) for k in range(len(dtypes))]
        flat = b.add(b.mul(first, n), left)

        def finish(i: int, j: int, c: Value, mask: ir.Value) -> Value:
            matrix = b.add(flat, b.add(b.mul(n, n64(i)), n64(j)))
            starts = {MATRIX: matrix, ROW: b.add(left, n64(j)), COLUMN: b.add(first, n64(i)), SCALAR: n64(0)}
            at = [
                b.add(base, b.mul(starts[kind], n64(size)))
                for base, kind, size in zip(bases, kinds, sizes, strict=True)
            ]
            count = len(self.dtypes)
            operands = [
                loop.load_one(d, a) if kind in (COLUMN, SCALAR) else loop.load(d, a, mask)
                for d, kind, a in zip(self.dtypes, self.kinds, at[:count], strict=True)
            ]
            last, *others = _as_tuple(self.formula(c, *operands))
            for value, target in zip(others, at[count:], strict=True):
                loop.store(value, target, mask)
            return last

        return finish


@functools.cache
def _both(first: Formula, count: int, second: Formula) -> Formula:
    """Return second(first(c, *the first `count` operands), *the others); further results follow C."""

    def formula(c: Any, *operands: Any) -> tuple[Any, ...]:
        results, rest = _as_tuple(first(c, *operands[:count])), operands[count:]
        last = _as_tuple(second(results[0], *rest))
        return (last[0], *results[1:], *last[1:])

    return formula


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


@functools.cache
def _entry(
    name: str, formula: Formula, dtype: str, dtypes: tuple[str, ...], kinds: tuple[str, ...], results: int
) -> int:
    text = _build("loop", formula, dtype, dtypes, kinds, results)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    letters = (f"{d[0]}{BITS[d]}{kind}" for d, kind in zip(dtypes, kinds, strict=True))
    symbol = "_".join(["epilogue", name, dtype, *letters, digest])
    return native.load(symbol, lambda: text.replace('@"loop"', f'@"{symbol}"'))


def _build(
    symbol: str,
    formula: Formula,
    dtype: str,
    dtypes: Sequence[str],
    kinds: Sequence[str],
    results: int,
) -> str:
    """Return the LLVM IR of `void symbol(words, first row, last row, first column, columns)`."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 5)
    loop = Loop(ir.Module(symbol), symbol, kind, [dtype, *dtypes])
    b = loop.builder
    _, first, last, left, columns = loop.function.args
    all_dtypes, all_kinds = [dtype, *dtypes, *[dtype] * results], [MATRIX, *kinds, *[MATRIX] * results]
    sizes = [bytes_of(d) for d in all_dtypes]
    n = loop.word(0)
    below = b.mul(b.sub(last, first), n)  # elements from this tile to the likely next one
    bases = [loop.word(1 + k) for k in range(len(sizes))]
    inputs = range(1 + len(dtypes))

    def row(i: ir.Value) -> list[ir.Value]:
        flat = b.add(b.mul(i, n), left)
        starts = {MATRIX: flat, ROW: left, COLUMN: i, SCALAR: n64(0)}
        at = [
            b.add(base, b.mul(starts[kind], n64(size)))
            for base, kind, size in zip(bases, all_kinds, sizes, strict=True)
        ]
        fixed = {k: loop.load_one(all_dtypes[k], at[k]) for k in inputs if all_kinds[k] in (COLUMN, SCALAR)}

        def step(j: ir.Value, mask: ir.Value | None = None) -> list[ir.Value]:
            addresses = [b.add(a, b.mul(j, n64(size))) for a, size in zip(at, sizes, strict=True)]
            values = [
                fixed[k] if k in fixed else loop.load(all_dtypes[k], addresses[k], mask) for k in inputs
            ]
            for k in inputs[1:]:
                if all_kinds[k] == MATRIX:
                    loop.prefetch(b.add(addresses[k], b.mul(below, n64(sizes[k]))))
            targets = [addresses[0], *addresses[len(inputs) :]]
            for value, target in zip(_as_tuple(formula(*values)), targets, strict=True):
                loop.store(value, target, mask)
            return []

        whole = b.and_(columns, n64(-loop.lanes))
        loop.loop(n64(0), whole, loop.lanes, step)
        rest = b.sub(columns, whole)
        loop.when(b.icmp_signed(">", rest, n64(0)), lambda: step(whole, loop.mask(rest)), [])
        return []

    loop.loop(first, last, 1, row)
    b.ret_void()
    return str(loop.module)
