"""Sums over the channels of (n, channels, inner) arrays, by formulas in LLVM IR.

A chunk is a run of memory: a piece of the examples, or some channels of one. A channel's sum over a piece is
one float64; pieces are added in order, so that the bits depend on the shape alone.

Totals are float64. A narrow formula adds in the arrays' dtype over at most eight vectors, and only the sums
of those are widened: terms of float32 in 0.31 cycles an element instead of 0.8, for an error of at most eight
roundings of the terms' magnitudes.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from . import config, native
from .loops import I32, I64, Loop, bytes_of, n64
from .program import HEADER, Address, Launch, Operand, make_launch
from .vector import Value, constant, select

#: (totals, elements of the arrays, the channel's numbers) -> totals with their terms.
Terms = Callable[..., tuple[Value, ...]]

#: Vectors that a narrow formula adds before the sums are widened.
_BLOCK = 8

#: Words before the addresses: sizes of the arrays, examples of a piece, channels of a chunk.
_N, _CHANNELS, _INNER, _ROWS, _COUNT = range(HEADER, HEADER + 5)
_ADDRESSES = HEADER + 5


@dataclass(frozen=True)
class Cut:
    """How an array is cut: examples of a piece, pieces, channels of a chunk, chunks."""

    rows: int
    pieces: int
    channels: int
    chunks: int


def cut(shape: tuple[int, ...]) -> Cut:
    """Cut (n, channels, inner) into chunks of about `ELEMENTWISE_CHUNK` neighbours."""
    n, channels, inner = shape
    rows = max(1, config.ELEMENTWISE_CHUNK // (channels * inner))
    pieces = -(-n // rows)
    count = min(channels, max(1, config.ELEMENTWISE_CHUNK // inner))
    return Cut(rows, pieces, count, pieces * -(-channels // count))


def channel_sums(
    name: str,
    terms: Terms,
    arrays: Sequence[Operand],
    numbers: Sequence[tuple[Operand, bool]],
    partial: Operand,
    narrow: bool,
    flops: float,
) -> Launch:
    """Plan the sums of `terms` over each piece and channel: partial (pieces, sums, channels) float64.

    name: unique to the terms; part of the compiled function's name.  arrays: (n, channels, inner).
    numbers: an operand with a number for each channel: (channels,), or the first of each channel's elements
        in (n, channels, inner) where the flag says so.
    narrow: whether totals within a block have the arrays' dtype.  flops: operations per element.
    """
    n, channels, inner = arrays[0].shape
    parts = cut(arrays[0].shape)
    entry = _entry(
        name,
        terms,
        (*(x.dtype.name for x in arrays), *(v.dtype.name for v, _ in numbers)),
        (len(arrays), tuple(strided for _, strided in numbers)),
        partial.shape[1],
        (narrow, inner > 1),
    )
    addresses = [Address(o) for o in (*arrays, *(v for v, _ in numbers), partial)]
    sizes = [n, channels, inner, parts.rows, parts.channels]
    work = arrays[0].size * flops * config.FLOP_NS + sum(x.spec.nbytes for x in arrays) * config.BYTE_NS
    return make_launch(entry, parts.chunks, work, [*sizes, *addresses])


@functools.cache
def _entry(
    name: str,
    terms: Terms,
    dtypes: tuple[str, ...],
    layout: tuple[int, tuple[bool, ...]],
    sums: int,
    form: tuple[bool, bool],
) -> int:
    text = _Writer("sums", terms, dtypes, layout, sums, form).write()
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    symbol = "_".join(["channel_sums", name, dtypes[0], digest])
    return native.load(symbol, lambda: text.replace('@"sums"', f'@"{symbol}"'))


class _Writer:
    """Writes `void symbol(block, lo, hi)` for some terms.

    layout: the number of arrays; whether each number is a channel's first element.
    form: whether totals are narrow; whether lanes are along the inner axis, or else the channels.
    """

    def __init__(
        self,
        symbol: str,
        terms: Terms,
        dtypes: tuple[str, ...],
        layout: tuple[int, tuple[bool, ...]],
        sums: int,
        form: tuple[bool, bool],
    ) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        self.loop = loop = Loop(ir.Module(symbol), symbol, kind, [dtypes[0]])
        self.terms, self.dtypes, self.sums = terms, dtypes, sums
        self.arrays, self.strided = layout
        self.narrow, self.inwards = form
        self.n, self.channels, self.inner = (loop.word(w) for w in (_N, _CHANNELS, _INNER))
        self.rows, self.count = loop.word(_ROWS), loop.word(_COUNT)
        self.bases = [loop.word(_ADDRESSES + k) for k in range(len(dtypes) + 1)]

    def write(self) -> str:
        """Write the loop over chunks, and over the channels of each."""
        loop, b = self.loop, self.loop.builder
        across = b.udiv(b.add(self.channels, b.sub(self.count, n64(1))), self.count)

        def chunk(k: ir.Value) -> list[ir.Value]:
            piece = b.udiv(k, across)
            first = b.mul(b.urem(k, across), self.count)
            top, start = b.mul(piece, self.rows), b.mul(piece, b.mul(self.channels, n64(self.sums)))
            bottom, end = loop.least(b.add(top, self.rows), self.n), b.add(first, self.count)
            end = loop.least(end, self.channels)
            step = 1 if self.inwards else loop.lanes
            loop.loop(first, end, step, lambda c: self.channel(c, top, bottom, start))
            return []

        loop.loop(loop.function.args[1], loop.function.args[2], 1, chunk)
        b.ret_void()
        return str(loop.module)

    def channel(self, c: ir.Value, top: ir.Value, bottom: ir.Value, start: ir.Value) -> list[ir.Value]:
        """Write the sums of a channel, or of as many as there are lanes, over the examples of a piece."""
        loop, b = self.loop, self.loop.builder
        mask = None if self.inwards else loop.mask(b.sub(self.channels, c))
        numbers = self.numbers(c, mask)
        zeros = [constant("float64", loop.lanes, 0)] * self.sums
        line = b.mul(self.channels, self.inner)
        if mask is None:

            def example(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
                at = b.add(b.mul(i, line), b.mul(c, self.inner))
                return self.run(at, self.inner, n64(1), None, numbers, totals)

            totals = loop.loop(top, bottom, 1, example, zeros)
        else:
            at = b.add(b.mul(top, line), c)
            totals = self.run(at, b.sub(bottom, top), line, mask, numbers, zeros)
        for k, total in enumerate(totals):
            at = b.add(b.add(start, b.mul(self.channels, n64(k))), c)
            to = b.add(self.bases[-1], b.mul(at, n64(8)))
            if mask is None:
                b.store(self.across(total), b.inttoptr(to, ir.DoubleType().as_pointer()))
            else:
                loop.store(Value(b, "float64", loop.lanes, total), to, mask)
        return []

    def numbers(self, c: ir.Value, mask: ir.Value | None) -> list[Value]:
        """Load the channel's numbers into all lanes, or those of the channels from c on."""
        loop, b = self.loop, self.loop.builder
        values = []
        for strided, dtype, base in zip(
            self.strided, self.dtypes[self.arrays :], self.bases[self.arrays :], strict=False
        ):
            apart = self.inner if strided else n64(1)
            at = b.add(base, b.mul(b.mul(c, apart), n64(bytes_of(dtype))))
            values.append(loop.load_one(dtype, at) if mask is None else loop.load(dtype, at, mask))
        return values

    def run(
        self,
        at: ir.Value,
        count: ir.Value,
        step: ir.Value,
        mask: ir.Value | None,
        numbers: list[Value],
        totals: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """Write totals plus the terms of a run.

        at: its first element.  count: its elements, or its rows of lanes that `mask` keeps, `step` elements
        from one to the next.
        """
        loop, b = self.loop, self.loop.builder
        lanes = loop.lanes if mask is None else 1
        position, out = n64(0), list(totals)
        for size in (_BLOCK, _BLOCK // 2, 1):
            end = b.sub(count, b.urem(count, n64(size * lanes)))

            def block(q: ir.Value, *totals: ir.Value, size: int = size) -> list[ir.Value]:
                first = [b.add(at, b.mul(b.add(q, n64(k * lanes)), step)) for k in range(size)]
                return self.block(first, mask, numbers, totals)

            out = loop.loop(position, end, size * lanes, block, out)
            position = end
        if mask is None:
            rest = b.sub(count, position)

            def tail() -> list[ir.Value]:
                return self.block([b.add(at, position)], loop.mask(rest), numbers, out)

            out = loop.when(b.icmp_signed(">", rest, n64(0)), tail, out)
        return out

    def block(
        self, first: list[ir.Value], mask: ir.Value | None, numbers: list[Value], totals: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Write totals plus the terms of some vectors, whose first elements are at `first`."""
        loop, b = self.loop, self.loop.builder
        wide = [Value(b, "float64", loop.lanes, t) for t in totals]
        dtype = self.dtypes[0] if self.narrow else "float64"
        zero = Value(b, dtype, loop.lanes, constant(dtype, loop.lanes, 0))
        sums = [zero] * self.sums if self.narrow else wide
        for at in first:
            values = [
                loop.load(d, b.add(base, b.mul(at, n64(bytes_of(d)))), mask)
                for d, base in zip(self.dtypes[: self.arrays], self.bases, strict=False)
            ]
            added = self.terms(sums, *values, *numbers)
            if mask is not None:
                kept = Value(b, "bool", loop.lanes, mask)
                added = tuple(select(kept, new, old) for new, old in zip(added, sums, strict=True))
            sums = list(added)
        if self.narrow:
            sums = [t + s.astype("float64") for t, s in zip(wide, sums, strict=True)]
        return [s.ir for s in sums]

    def across(self, total: ir.Value) -> ir.Value:
        """Return the sum of a vector's lanes, one half to the other until one is left."""
        b, lanes = self.loop.builder, self.loop.lanes
        while lanes > 1:
            lanes //= 2
            halves = [
                b.shuffle_vector(
                    total, total, ir.Constant(ir.VectorType(I32, lanes), list(range(s, s + lanes)))
                )
                for s in (0, lanes)
            ]
            total = b.fadd(*halves)
        return b.extract_element(total, ir.Constant(I32, 0))
