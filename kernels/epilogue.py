"""Epilogues: formulas over the tiles of a matrix product, while they are in cache.

`C = act(A B + bias)` then takes one pass over C instead of one for each step. An epilogue changes C in place
and may write more matrices of C's shape; its operands are matrices of C's shape, rows (a number for each
column), columns, or single numbers.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir

from . import config, native
from .elementwise import elementwise
from .loops import I64, Loop, bytes_of, n64
from .program import Address, Launch, Operand
from .vector import BITS, Formula
from .write_back import COLUMN, MATRIX, ROW, SCALAR, WriteBack, as_tuple

#: An epilogue of more operations for each element is a pass over tiles: in their function, the formula would
#: be repeated for each register.
_FEW = 8.0

#: An operand that broadcasts to C as it is, in an epilogue that runs by `over` alone.
CHANNEL = "h"


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

    def over(self, x: Operand, c: Operand) -> Launch:
        """Plan C, of any number of axes, and further results = formula(x, *operands) as one launch."""
        shapes = {MATRIX: x.shape, ROW: x.shape[-1:], COLUMN: (*x.shape[:-1], 1), SCALAR: ()}
        read = [
            o if kind == CHANNEL else o.reshaped(*shapes[kind])
            for o, kind in zip(self.operands, self.kinds, strict=True)
        ]
        written = [c, *(o.reshaped(*c.shape) for o in self.results)]
        return elementwise(self.name, self.formula, [x, *read], written, self.flops)

    def lower(self, c: Operand, prefetch: bool = True) -> tuple[int, tuple[int | Address, ...]]:
        """Return the address of the compiled function for a product C, and the words of its arguments.

        prefetch: whether matrices are prefetched for the tile below: not where a tile is half of a cache.
        """
        dtypes = tuple(o.dtype.name for o in self.operands)
        entry = _entry(self.name, self.formula, c.dtype.name, dtypes, self.kinds, len(self.results), prefetch)
        return entry, self.words(c)

    def words(self, c: Operand) -> tuple[int | Address, ...]:
        """Return the words of the function's arguments for a product C."""
        return (c.shape[-1], *(Address(o) for o in (c, *self.operands, *self.results)))

    def write_back(self, c: Operand) -> WriteBack | None:
        """Return the epilogue as a part of a tile's function, or None where a pass over tiles is better."""
        dtypes = tuple(o.dtype.name for o in self.operands)
        wide = any(bytes_of(d) > c.dtype.itemsize for d in dtypes)
        if self.flops > _FEW or wide or config.isa() == "generic":
            return None
        return _write_back(self.name, self.formula, c.dtype.name, dtypes, self.kinds, len(self.results))


@functools.cache
def _both(first: Formula, count: int, second: Formula) -> Formula:
    """Return second(first(c, *the first `count` operands), *the others); further results follow C."""

    def formula(c: Any, *operands: Any) -> tuple[Any, ...]:
        results, rest = as_tuple(first(c, *operands[:count])), operands[count:]
        last = as_tuple(second(results[0], *rest))
        return (last[0], *results[1:], *last[1:])

    return formula


@functools.cache
def _write_back(
    name: str, formula: Formula, dtype: str, dtypes: tuple[str, ...], kinds: tuple[str, ...], results: int
) -> WriteBack:
    text = _build("loop", formula, dtype, dtypes, kinds, results, False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return WriteBack(f"{name}_{digest}", formula, dtypes, kinds, results)


@functools.cache
def _entry(
    name: str,
    formula: Formula,
    dtype: str,
    dtypes: tuple[str, ...],
    kinds: tuple[str, ...],
    results: int,
    prefetch: bool,
) -> int:
    text = _build("loop", formula, dtype, dtypes, kinds, results, prefetch)
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
    prefetch: bool,
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
                if prefetch and all_kinds[k] == MATRIX:
                    loop.prefetch(b.add(addresses[k], b.mul(below, n64(sizes[k]))))
            targets = [addresses[0], *addresses[len(inputs) :]]
            for value, target in zip(as_tuple(formula(*values)), targets, strict=True):
                loop.store(value, target, mask, rest=True)
            return []

        whole = b.and_(columns, n64(-loop.lanes))
        loop.loop(n64(0), whole, loop.lanes, step)
        rest = b.sub(columns, whole)
        loop.when(b.icmp_signed(">", rest, n64(0)), lambda: step(whole, loop.mask(rest)), [])
        return []

    loop.loop(first, last, 1, row)
    b.ret_void()
    return str(loop.module)
