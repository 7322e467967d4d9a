"""The micro-kernels of convolution, in LLVM IR: direct convolution, without a matrix of patches.

A vector holds a segment: neighbours in one row of the result. In a padded image, every tap of the window is
at a fixed distance from every segment, so a short table of distances takes the place of patches. Segments are
in a table too, of three words each: bytes from the first image to the segment's first source, bytes from the
first result to its first element, and its number of elements. The order in which an element of the result is
summed does not depend on the tiles.
"""

from llvmlite import ir

from . import config, native
from .loops import I32, I64, Loop, bytes_of, n64
from .strided import below, ints, kind, strided
from .vector import Value, constant, fma, select

#: Channels of the result in a tile -> segments, by vector width in bytes: 24 accumulators of AVX-512's 32
#: registers, 12 of AVX2's 16. Eight rows divide most numbers of channels; one is for depthwise convolution.
_TILES = {64: {1: 8, 4: 6, 8: 3}, 32: {1: 8, 4: 3}, 16: {1: 8, 4: 2}}

#: The same of a tile of the weights' gradient: channels of the result -> weights.
_DOTS = {64: {1: 12, 4: 6}, 32: {1: 8, 2: 4}, 16: {1: 8, 2: 4}}


def tile_shape(m: int) -> tuple[int, int]:
    """Return how many rows and segments a tile has for m channels of the result."""
    return _smallest(_TILES[config.vector_bytes()], m)


def dot_shape(m: int) -> tuple[int, int]:
    """Return how many rows and weights a tile of the weights' gradient has for m channels."""
    return _smallest(_DOTS[config.vector_bytes()], m)


def _smallest(shapes: dict[int, int], m: int) -> tuple[int, int]:
    rows = min((r for r in shapes if r >= m), default=max(shapes))
    return rows, shapes[rows]


def tile(dtype: str, rows: int, segments: int) -> int:
    """Return the address of the tile's function.

    tile(channels, taps, distances, plane, a, x, table, c, row_c, used, bias): sums a (channels, taps, rows)
    times x over channels and taps, starting from bias (rows,), or from c where bias is 0, into c.
    distances: (taps,) words, bytes from a segment to its sources. plane: bytes from a channel of x to the
        next.
    table: as many segments as the tile has. row_c: bytes from a row of c to the next; `used` are written.
    """
    symbol = f"conv_{dtype}_{rows}x{segments}"
    return native.load(symbol, lambda: _build_tile(symbol, dtype, rows, segments))


def dot(dtype: str, rows: int, weights: int) -> int:
    """Return the address of the function of a tile of the weights' gradient.

    dot(count, table, g, row_g, x, distances, out, row_out, used, columns, first): adds to out (used,
    columns), or stores there if `first`, the products of g and x, summed over `count` segments.
    row_g: bytes from a channel of g to the next; the table's second word leads to g. distances: (weights,)
    words, bytes from a segment to its source for each weight. row_out: bytes, as row_g.
    """
    symbol = f"conv_dot_{dtype}_{rows}x{weights}"
    return native.load(symbol, lambda: _build_dot(symbol, dtype, rows, weights))


def frame(dtype: str, step: int) -> int:
    """Return the address of the function that copies rows of an image into a frame, columns sorted by phase.

    frame(rows, x, line, target, wide, step, left, width): a row of x, `line` bytes after the last, becomes
    `step` rows of `wide` elements of target. Element q of row p is column q * step + p - left, or 0 outside
    of the `width` columns. Up to a vector less one element after the last row is overwritten.
    """
    symbol = f"conv_frame_{dtype}_{kind(step)}"
    return native.load(symbol, lambda: _build_frame(symbol, dtype, kind(step)))


def _build_frame(symbol: str, dtype: str, apart: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 8), [dtype])
    b, size, lanes = loop.builder, bytes_of(dtype), loop.lanes
    rows, x, line, target, wide, step, left, width = loop.function.args
    columns_all = ints(loop, width)
    steps = Value(b, "int32", lanes, loop.iota(I32)) * ints(loop, step)

    def row(r: ir.Value) -> list[ir.Value]:
        source = b.add(x, b.mul(r, line))

        def phase(p: ir.Value) -> list[ir.Value]:
            to = b.add(target, b.mul(b.mul(b.add(b.mul(r, step), p), wide), n64(size)))

            def piece(q: ir.Value) -> list[ir.Value]:
                first = b.sub(b.add(b.mul(q, step), p), left)
                columns = ints(loop, first) + steps
                inside = below(columns, columns_all)
                address = b.add(source, b.mul(first, n64(size)))
                value = strided(loop, dtype, address, columns, columns_all, inside, apart)
                inside_or_zero = select(Value(b, "bool", lanes, inside), value, 0)
                loop.store(inside_or_zero, b.add(to, b.mul(q, n64(size))))
                return []

            loop.loop(n64(0), wide, lanes, piece)
            return []

        loop.loop(n64(0), step, 1, phase)
        return []

    loop.loop(n64(0), rows, 1, row)
    b.ret_void()
    return str(module)


def _word(loop: Loop, address: ir.Value, index: int) -> ir.Value:
    """Load a word of a table."""
    b = loop.builder
    return b.load(b.inttoptr(b.add(address, n64(8 * index)), I64.as_pointer()))


def _build_tile(symbol: str, dtype: str, rows: int, segments: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 11), [dtype])
    b, size = loop.builder, bytes_of(dtype)
    channels, taps, distances, plane, a, x, table, c, row_c, used, bias = loop.function.args
    sources = [b.add(x, _word(loop, table, 3 * v)) for v in range(segments)]
    targets = [b.add(c, _word(loop, table, 3 * v + 1)) for v in range(segments)]
    masks = [loop.mask(_word(loop, table, 3 * v + 2)) for v in range(segments)]
    zero = constant(dtype, loop.lanes, 0)

    def from_bias() -> list[ir.Value]:
        starts = [loop.load_one(dtype, b.add(bias, n64(r * size))).ir for r in range(rows)]
        return [s for s in starts for _ in range(segments)]

    def from_c() -> list[ir.Value]:
        out: list[ir.Value] = []
        for r in range(rows):
            row = b.mul(row_c, n64(r))

            def load(row: ir.Value = row) -> list[ir.Value]:
                return [loop.load(dtype, b.add(p, row), m).ir for p, m in zip(targets, masks, strict=True)]

            out += loop.when(b.icmp_signed("<", n64(r), used), load, [zero] * segments)
        return out

    fresh = b.icmp_signed("!=", bias, n64(0))
    start = loop.when(fresh, from_bias, [zero] * (rows * segments))
    start = loop.when(b.not_(fresh), from_c, start)

    def channel(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        at = [b.add(s, b.mul(i, plane)) for s in sources]
        at_a = b.add(a, b.mul(b.mul(i, taps), n64(rows * size)))

        def tap(t: ir.Value, *totals: ir.Value) -> list[ir.Value]:
            distance = b.load(b.inttoptr(b.add(distances, b.mul(t, n64(8))), I64.as_pointer()))
            values = [loop.load(dtype, b.add(p, distance)) for p in at]
            factors = b.add(at_a, b.mul(t, n64(rows * size)))
            out = []
            for r in range(rows):
                factor = loop.load_one(dtype, b.add(factors, n64(r * size)))
                for v in range(segments):
                    total = Value(b, dtype, loop.lanes, totals[r * segments + v])
                    out.append(fma(factor, values[v], total).ir)
            return out

        return loop.loop(n64(0), taps, 1, tap, list(totals))

    totals = loop.loop(n64(0), channels, 1, channel, start)
    for r in range(rows):
        row = b.mul(row_c, n64(r))

        def store(r: int = r, row: ir.Value = row) -> list[ir.Value]:
            for v in range(segments):
                value = Value(b, dtype, loop.lanes, totals[r * segments + v])
                loop.store(value, b.add(targets[v], row), masks[v])
            return []

        loop.when(b.icmp_signed("<", n64(r), used), store, [])
    b.ret_void()
    return str(module)


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
        row = b.select(b.icmp_signed("<", n64(r), last), n64(r), last)
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
