"""Rows of float32 rounded to bfloat16 in the layouts that products inside of a kernel read.

The instruction multiplies pairs, two terms of a sum, each pair in the 32 bits of a float32. The pairs of a
left operand are neighbours in its rows; those of a right operand, and of a left one that is transposed, are
elements of two rows. Emulated, rows stay float32, so that kernels of float32 multiply them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from . import bfloat16, native
from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Value

_FLOAT, _SIZE = "float32", bytes_of("float32")

#: The bits of 1 in float32.
ONE = 0x3F800000


@dataclass(frozen=True)
class Rounding:
    """How a kernel rounds the operands of its products.

    term: elements of a term of a sum, 2 for pairs.
    along, across: addresses of functions (to, to_step, source, step, rows, width, factor) that store rows
        times a factor, the bits of a float32, rounded: as pairs of neighbours, ceil(width / 2) a row, and as
        pairs of two rows, ceil(rows / 2) rows. Steps are bytes from a row to the next. An odd last element
        or row is paired with 0. 0 for float32. `to` may be the source, with the same step.
    packed: such a function for panels that were packed in float32; 0 where the packing rounds, or nothing.
    """

    term: int
    along: int
    across: int
    packed: int

    @property
    def pairs(self) -> bool:
        """Whether a term is a pair."""
        return self.term == 2

    @property
    def shift(self) -> int:
        """The shift from elements to terms: kernels count terms for each tile, and a division is slow."""
        return self.term - 1

    def terms(self, depth: int) -> int:
        """Return how many terms a sum over `depth` elements has."""
        return -(-depth // self.term)


def rounding(precision: str) -> Rounding:
    """Return the rounding of a precision: "float32", "bfloat16" or "bfloat16_emulated"."""
    if precision == "bfloat16":
        along, across = (_rounding_rows(f"round_rows_{w.__name__}", w) for w in (_along, _across))
        return Rounding(2, along, across, 0)
    if precision == "bfloat16_emulated":
        emulated = _rounding_rows("round_rows_emulated", _emulated)
        return Rounding(1, emulated, emulated, emulated)
    return Rounding(1, 0, 0, 0)


class _Rows:
    """The function under construction: its arguments, and loads of elements times the factor."""

    def __init__(self, symbol: str) -> None:
        self.loop = Loop(ir.Module(symbol), symbol, ir.FunctionType(ir.VoidType(), [I64] * 7), [_FLOAT])
        b = self.loop.builder
        self.to, self.to_step, self.source, self.step, self.rows, self.width, bits = self.loop.function.args
        scalar = b.bitcast(b.trunc(bits, I32), ir.FloatType())
        self.factor = Value(b, _FLOAT, self.loop.lanes, self.loop.splat(scalar))

    def load(self, row: ir.Value, column: ir.Value, mask: ir.Value | None) -> Value:
        b = self.loop.builder
        at = b.add(b.add(self.source, b.mul(row, self.step)), b.mul(column, n64(_SIZE)))
        return self.loop.load(_FLOAT, at, mask) * self.factor

    def store(self, value: Value, row: ir.Value, column: ir.Value, mask: ir.Value | None) -> None:
        b = self.loop.builder
        at = b.add(b.add(self.to, b.mul(row, self.to_step)), b.mul(column, n64(_SIZE)))
        self.loop.store(value, at, mask)

    def columns(self, count: int, body: Callable[[ir.Value, ir.Value | None], object]) -> None:
        """Write body(column, rest) for every `count` columns; rest: how many the last ones are, else None."""
        b = self.loop.builder
        whole = b.and_(self.width, n64(-count))
        rest = b.sub(self.width, whole)

        def last() -> list[ir.Value]:
            body(whole, rest)
            return []

        self.loop.loop(n64(0), whole, count, lambda column: body(column, None))
        self.loop.when(b.icmp_signed(">", rest, n64(0)), last, [])


@functools.cache
def _rounding_rows(symbol: str, write: Callable[[_Rows], None]) -> int:
    def build() -> str:
        rows = _Rows(symbol)
        write(rows)
        rows.loop.builder.ret_void()
        return str(rows.loop.module)

    return native.load(symbol, build)


def _along(x: _Rows) -> None:
    loop, b, count = x.loop, x.loop.builder, x.loop.lanes

    def pairs(row: ir.Value, column: ir.Value, rest: ir.Value | None) -> None:
        masks = [None if rest is None else loop.mask(b.sub(rest, n64(k * count))) for k in range(2)]
        halves = [x.load(row, b.add(column, n64(k * count)), mask) for k, mask in enumerate(masks)]
        used = None if rest is None else loop.mask(b.lshr(b.add(rest, n64(1)), n64(1)))
        x.store(bfloat16.neighbours(*halves), row, b.lshr(column, n64(1)), used)

    loop.loop(n64(0), x.rows, 1, lambda row: x.columns(2 * count, functools.partial(pairs, row)))


def _across(x: _Rows) -> None:
    loop, b = x.loop, x.loop.builder

    def line(row: ir.Value, second: bool) -> list[ir.Value]:
        """Store the pairs of rows 2 `row` and the next one, or of zeros."""
        first = b.shl(row, n64(1))

        def pairs(column: ir.Value, rest: ir.Value | None) -> None:
            mask = None if rest is None else loop.mask(rest)
            other = x.load(b.add(first, n64(1)), column, mask) if second else None
            x.store(bfloat16.pairs_of(x.load(first, column, mask), other), row, column, mask)

        x.columns(loop.lanes, pairs)
        return []

    half = b.lshr(x.rows, n64(1))
    loop.loop(n64(0), half, 1, lambda row: line(row, True))
    odd = b.icmp_signed("!=", b.and_(x.rows, n64(1)), n64(0))
    loop.when(odd, lambda: line(half, False), [])


def _emulated(x: _Rows) -> None:
    loop = x.loop

    def line(row: ir.Value, column: ir.Value, rest: ir.Value | None) -> None:
        mask = None if rest is None else loop.mask(rest)
        x.store(bfloat16.rounded(x.load(row, column, mask)), row, column, mask)

    loop.loop(n64(0), x.rows, 1, lambda row: x.columns(loop.lanes, functools.partial(line, row)))
