"""The micro-kernels of convolution, in LLVM IR: direct convolution, without a matrix of patches.

A vector holds one segment or several: neighbours in a row of the result, so that short rows fill vectors too.
In a padded image, every tap of the window is at a fixed distance from every segment, so a short table of
distances takes the place of patches. Segments are in a table too, of three words each: bytes from the first
image to the segment's first source, bytes from the first result to its first element, and its number of
elements. The order in which an element of the result is summed does not depend on the tiles.
"""

import copy
import functools
from collections.abc import Sequence

from llvmlite import ir

from . import bfloat16, config, native
from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Value, constant, fma, select

#: Channels of the result in a tile -> vectors, by vector width in bytes: 24 accumulators of AVX-512's 32
#: registers, 12 of AVX2's 16. Eight rows divide most numbers of channels; one is for depthwise convolution.
_TILES = {64: {1: 8, 4: 6, 8: 3}, 32: {1: 8, 4: 3}, 16: {1: 8, 4: 2}}

#: Most vectors of a tile.
MOST_VECTORS = max(v for shapes in _TILES.values() for v in shapes.values())

#: The same of a tile of the weights' gradient: channels of the result -> weights.
_DOTS = {64: {1: 12, 4: 6}, 32: {1: 8, 2: 4}, 16: {1: 8, 2: 4}}


#: Least bytes of a segment: the part of a vector that one instruction inserts. Its relative cost in time by
#: segments of a vector: loads of the parts take as long as the multiply-adds for 4 of them.
_LEAST_SEGMENT = 16
_COST = {1: 1.0, 2: 1.05, 4: 1.25}


#: Vectors of channels in a tile of the weights' gradient -> weights: a weight takes a register for its
#: address, a vector one for its value.
_OUTERS = {64: {1: 12, 2: 12, 4: 6}, 32: {1: 8, 2: 6}, 16: {1: 8, 2: 4}}


def parts(dtype: str, columns: int) -> int:
    """Return how many segments a vector holds, for rows of `columns` elements."""
    lanes = config.vector_bytes() // bytes_of(dtype)
    counts = [n for n in _COST if config.vector_bytes() // n >= _LEAST_SEGMENT]
    return min(counts, key=lambda n: -(-columns // (lanes // n)) * (lanes // n) * _COST[n])


def tile_shape(m: int) -> tuple[int, int]:
    """Return how many rows and vectors a tile has for m channels of the result."""
    return _smallest(_TILES[config.vector_bytes()], m)


def dot_shape(m: int) -> tuple[int, int]:
    """Return how many rows and weights a tile of the weights' gradient has for m channels."""
    return _smallest(_DOTS[config.vector_bytes()], m)


def outer_shape(vectors: int) -> tuple[int, int]:
    """Return how many vectors and weights a tile has for so many vectors of channels."""
    shapes = _OUTERS[config.vector_bytes()]
    most = max(v for v in shapes if vectors % v == 0)
    return most, shapes[most]


def _smallest(shapes: dict[int, int], m: int) -> tuple[int, int]:
    rows = min((r for r in shapes if r >= m), default=max(shapes))
    return rows, shapes[rows]


def tile(dtype: str, rows: int, vectors: int, parts: int, pairs: bool = False) -> int:
    """Return the address of the tile's function.

    tile(channels, taps, distances, plane, a, x, table, c, row_c, used, bias): sums a (channels, taps, rows)
    times x over channels and taps, starting from bias (rows,), or from c where bias is 0, into c.
    distances: (taps,) words, bytes from a segment to its sources. plane: bytes from a channel of x to the
        next.
    table: `vectors` * `parts` segments. row_c: bytes from a row of c to the next; `used` are written.
    pairs: whether elements of a and x are pairs in bfloat16, of two channels, for those of float32.
    """
    symbol = f"conv_{dtype}_{rows}x{vectors}_{parts}{'_pairs' if pairs else ''}"
    return native.load(symbol, lambda: _build_tile(symbol, dtype, rows, vectors, parts, pairs))


def dot(dtype: str, rows: int, weights: int) -> int:
    """Return the address of the function of a tile of the weights' gradient.

    dot(count, table, g, row_g, x, distances, out, row_out, used, columns, first): adds to out (used,
    columns), or stores there if `first`, the products of g and x, summed over `count` segments of a vector.
    row_g: bytes from a channel of g to the next; the table's second word leads to g. distances: (weights,)
    words, bytes from a segment to its source for each weight. row_out: bytes, as row_g.
    """
    symbol = f"conv_dot_{dtype}_{rows}x{weights}"
    return native.load(symbol, lambda: _build_dot(symbol, dtype, rows, weights))


def outer(dtype: str, vectors: int, weights: int, pairs: bool = False) -> int:
    """Return the address of the function of a tile of the weights' gradient, with channels in lanes.

    outer(count, table, g, x, distances, out, row_out, used, first): adds to `used` rows of out, or stores
    there if `first`, the products of g and x, summed over `count` rows of results. Rows of out and of g have
    `vectors` vectors of channels; a row of out is of a weight, a row of g of a result.
    g: rows in the order of the table's segments, which are whole rows of results. distances: (weights,)
    words, bytes from a segment to its source for each weight. row_out: bytes from a row to the next.
    pairs: whether a row of g is of two neighbouring results, in pairs in bfloat16, and of one and zeros at
        the end of an odd row of results; x is in bfloat16, of 16 bits.
    """
    symbol = f"conv_outer_{dtype}_{vectors}x{weights}{'_pairs' if pairs else ''}"
    return native.load(symbol, lambda: _build_outer(symbol, dtype, vectors, weights, pairs))


def _word(loop: Loop, address: ir.Value, index: int) -> ir.Value:
    """Load a word of a table."""
    b = loop.builder
    return b.load(b.inttoptr(b.add(address, n64(8 * index)), I64.as_pointer()))


def _segments(loop: Loop, parts: int) -> Loop:
    """Return a loop that writes at the same position, on a part of its lanes: those of a segment."""
    segment = copy.copy(loop)
    segment.lanes //= parts
    return segment


def _joined(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Return vectors as one, the first one's lanes first."""
    while len(parts) > 1:
        order = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(*pair, order) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _split(value: Value, parts: int) -> list[Value]:
    """Return the parts of a vector, each with the same number of lanes."""
    b, lanes = value.builder, value.lanes // parts
    if parts == 1:
        return [value]
    orders = (list(range(k * lanes, (k + 1) * lanes)) for k in range(parts))
    return [
        Value(
            b,
            value.dtype,
            lanes,
            b.shuffle_vector(value.ir, value.ir, ir.Constant(ir.VectorType(I32, lanes), o)),
        )
        for o in orders
    ]


def _build_tile(symbol: str, dtype: str, rows: int, vectors: int, parts: int, pairs: bool) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 11), [dtype])
    segment = _segments(loop, parts)
    b, size = loop.builder, bytes_of(dtype)
    channels, taps, distances, plane, a, x, table, c, row_c, used, bias = loop.function.args
    segments = range(vectors * parts)
    sources = [b.add(x, _word(loop, table, 3 * v)) for v in segments]
    targets = [b.add(c, _word(loop, table, 3 * v + 1)) for v in segments]
    masks = [segment.mask(_word(loop, table, 3 * v + 2)) for v in segments]
    zero = constant(dtype, loop.lanes, 0)

    load = functools.partial(_load, loop, segment, dtype, parts)

    def from_bias() -> list[ir.Value]:
        starts = [loop.load_one(dtype, b.add(bias, n64(r * size))).ir for r in range(rows)]
        return [s for s in starts for _ in range(vectors)]

    def from_c() -> list[ir.Value]:
        def row_of_c(r: int) -> list[ir.Value]:
            return [v.ir for v in load([b.add(p, b.mul(row_c, n64(r))) for p in targets], masks)]

        out: list[ir.Value] = []
        for r in range(rows):
            out += loop.when(
                b.icmp_signed("<", n64(r), used), functools.partial(row_of_c, r), [zero] * vectors
            )
        return out

    fresh = b.icmp_signed("!=", bias, n64(0))
    start = loop.when(fresh, from_bias, [zero] * (rows * vectors))
    start = loop.when(b.not_(fresh), from_c, start)

    def channel(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        at = [b.add(s, b.mul(i, plane)) for s in sources]
        at_a = b.add(a, b.mul(b.mul(i, taps), n64(rows * size)))

        def tap(t: ir.Value, *totals: ir.Value) -> list[ir.Value]:
            distance = b.load(b.inttoptr(b.add(distances, b.mul(t, n64(8))), I64.as_pointer()))
            values = load([b.add(p, distance) for p in at], None)
            factors = b.add(at_a, b.mul(t, n64(rows * size)))
            return _add_products(loop, dtype, factors, values, totals, pairs)

        return loop.loop(n64(0), taps, 1, tap, list(totals))

    totals = loop.loop(n64(0), channels, 1, channel, start)

    def store(r: int) -> list[ir.Value]:
        values = [Value(b, dtype, loop.lanes, t) for t in totals[r * vectors : (r + 1) * vectors]]
        at = [b.add(target, b.mul(row_c, n64(r))) for target in targets]
        _store(segment, values, parts, at, masks)
        return []

    for r in range(rows):
        loop.when(b.icmp_signed("<", n64(r), used), functools.partial(store, r), [])
    b.ret_void()
    return str(module)


def _add_products(
    loop: Loop, dtype: str, factors: ir.Value, values: list[Value], totals: Sequence[ir.Value], pairs: bool
) -> list[ir.Value]:
    """Return totals, of rows of vectors, plus the products of a factor for each row and the vectors."""
    out: list[ir.Value] = []
    for r in range(len(totals) // len(values)):
        factor = loop.load_one(dtype, loop.builder.add(factors, n64(r * bytes_of(dtype))))
        for v, value in enumerate(values):
            total = Value(loop.builder, dtype, loop.lanes, totals[r * len(values) + v])
            out.append(_added(loop, total, factor, value, pairs).ir)
    return out


def _added(loop: Loop, total: Value, factor: Value, value: Value, pairs: bool) -> Value:
    """Return a sum with one more term, or both of a pair."""
    return bfloat16.add_products(loop.module, total, factor, value) if pairs else fma(factor, value, total)


def _store(
    segment: Loop, values: list[Value], parts: int, addresses: list[ir.Value], masks: list[ir.Value]
) -> None:
    """Store vectors at the addresses of their segments."""
    pieces = [piece for value in values for piece in _split(value, parts)]
    for piece, address, mask in zip(pieces, addresses, masks, strict=True):
        segment.store(piece, address, mask)


def _load(
    loop: Loop, segment: Loop, dtype: str, parts: int, addresses: list[ir.Value], masks: list[ir.Value] | None
) -> list[Value]:
    """Load vectors from the addresses of their segments."""
    every = masks or [None] * len(addresses)
    loaded = [segment.load(dtype, at, mask).ir for at, mask in zip(addresses, every, strict=True)]
    starts = range(0, len(loaded), parts)
    return [
        Value(loop.builder, dtype, loop.lanes, _joined(loop.builder, loaded[k : k + parts])) for k in starts
    ]


def _build_dot(symbol: str, dtype: str, rows: int, weights: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 11), [dtype])
    b, size = loop.builder, bytes_of(dtype)
    count, table, g, row_g, x, distances, out, row_out, used, columns, first = loop.function.args
    zero = constant(dtype, loop.lanes, 0)
    # Rows beyond the last read the last one again; their sums are not stored.
    last = b.sub(used, n64(1))
    tops = []
    for r in range(rows):
        row = loop.least(n64(r), last)
        tops.append(b.add(g, b.mul(row, row_g)))
    sources = [b.add(x, _word(loop, distances, k)) for k in range(weights)]

    def segment(s: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        entry = b.add(table, b.mul(s, n64(24)))
        at_x, at_g = _word(loop, entry, 0), _word(loop, entry, 1)
        mask = loop.mask(_word(loop, entry, 2))
        mine = [loop.load(dtype, b.add(t, at_g), mask) for t in tops]
        kept = Value(b, "bool", loop.lanes, mask)
        out = list(totals)
        for k in range(weights):
            # Elements beyond the segment may be NaN, which a product with 0 would keep.
            value = select(kept, loop.load(dtype, b.add(sources[k], at_x)), 0)
            for r in range(rows):
                total = Value(b, dtype, loop.lanes, totals[r * weights + k])
                out[r * weights + k] = fma(mine[r], value, total).ir
        return out

    totals = loop.loop(n64(0), count, 1, segment, [zero] * (rows * weights))
    for r in range(rows):
        for start in range(0, weights, loop.lanes):
            some = totals[r * weights + start : r * weights + min(start + loop.lanes, weights)]
            total = _sums([Value(b, dtype, loop.lanes, t) for t in some])
            at = b.add(b.add(out, b.mul(row_out, n64(r))), n64(start * size))
            mask = b.and_(loop.mask(b.sub(columns, n64(start))), loop.mask(n64(len(some))))

            def write(total: Value = total, at: ir.Value = at, mask: ir.Value = mask) -> list[ir.Value]:
                again = b.icmp_signed("==", first, n64(0))
                old = loop.when(again, lambda: [loop.load(dtype, at, mask).ir], [zero])[0]
                loop.store(total + total.like(old), at, mask)
                return []

            loop.when(b.icmp_signed("<", n64(r), used), write, [])
    b.ret_void()
    return str(module)


def _build_outer(symbol: str, dtype: str, vectors: int, weights: int, pairs: bool) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 9), [dtype])
    b, size = loop.builder, bytes_of(dtype)
    count, table, g, x, distances, out, row_out, used, first = loop.function.args
    wide = vectors * loop.lanes * size
    zero = constant(dtype, loop.lanes, 0)
    sources = [b.add(x, _word(loop, distances, k)) for k in range(weights)]

    def row(r: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        entry = b.add(table, b.mul(r, n64(24)))
        start, length = _word(loop, entry, 0), _word(loop, entry, 2)
        mine, *totals = carried
        tops = [b.add(s, start) for s in sources]

        def position(last: bool, i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
            """Add the products of a row of g: of one result and zeros, if it is the last of an odd number."""
            at = b.add(mine, b.mul(i, n64(wide)))
            values = [loop.load(dtype, b.add(at, n64(v * loop.lanes * size))) for v in range(vectors)]
            out = []
            for k in range(weights):
                source = b.add(tops[k], b.mul(i, n64(size)))
                # What follows the last one may be NaN, which a product with 0 would keep.
                factor = bfloat16.load_pair(loop, source, last) if pairs else loop.load_one(dtype, source)
                for v in range(vectors):
                    total = Value(b, dtype, loop.lanes, totals[k * vectors + v])
                    out.append(_added(loop, total, factor, values[v], pairs).ir)
            return out

        whole = b.lshr(length, n64(1)) if pairs else length
        totals = loop.loop(n64(0), whole, 1, functools.partial(position, False), totals)
        if pairs:
            odd = b.icmp_signed("!=", b.and_(length, n64(1)), n64(0))
            totals = loop.when(odd, functools.partial(position, True, whole, *totals), totals)
            whole = b.lshr(b.add(length, n64(1)), n64(1))
        return [b.add(mine, b.mul(whole, n64(wide))), *totals]

    totals = loop.loop(n64(0), count, 1, row, [g, *[zero] * (weights * vectors)])[1:]
    for k in range(weights):
        line = b.add(out, b.mul(row_out, n64(k)))

        def write(k: int = k, line: ir.Value = line) -> list[ir.Value]:
            for v in range(vectors):
                total = Value(b, dtype, loop.lanes, totals[k * vectors + v])
                at = b.add(line, n64(v * loop.lanes * size))
                again = b.icmp_signed("==", first, n64(0))
                old = loop.when(again, lambda at=at: [loop.load(dtype, at).ir], [zero])[0]  # type: ignore[misc]
                loop.store(total + total.like(old), at)
            return []

        loop.when(b.icmp_signed("<", n64(k), used), write, [])
    b.ret_void()
    return str(module)


def _sums(values: list[Value]) -> Value:
    """Return a vector of the sums of the lanes of vectors, of no more than it has lanes.

    Neighbouring lanes are added, of two vectors at a time, until each has one lane left.
    """
    b, lanes = values[0].builder, values[0].lanes
    while lanes > 1:
        lanes //= 2
        pairs = list(zip(values[::2], values[1::2] + values[-1:], strict=False))
        values = []
        for left, right in pairs:
            halves = []
            for k in (0, 1):
                chosen = ir.Constant(ir.VectorType(I32, left.lanes), list(range(k, 2 * left.lanes, 2)))
                halves.append(left.like(b.shuffle_vector(left.ir, right.ir, chosen)))
            values.append(halves[0] + halves[1])
    return values[0]
