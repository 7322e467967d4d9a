"""Max-pooling with the places of the maxima, and its adjoint; average pooling is a convolution with ones."""

from llvmlite import ir

from . import config, native
from .intrinsics import call_address
from .kernel import A1, A2, Status, Words, kernel
from .loops import I32, I64, Loop, bytes_of, n64
from .program import Launch, Operand
from .strided import below, ints, kind, strided
from .vector import Value, select, vector_type


def _row(dtype: str, step: int) -> int:
    """Return the address of the function of a row of results, for windows `step` apart.

    row(x, line, place, line_place, rows, taps, spread, start, width, out, places, count, step): x is the
    window's first row that lies in the plane, `line` bytes before the next, and begins at element `place` of
    the plane; the next, line_place elements further. The window has `rows` such rows and `taps` columns,
    `spread` apart; that of result k begins at column start + k * step of `width`.
    """
    symbol = f"max_pool_{dtype}_{kind(step)}"
    return native.load(symbol, lambda: _build(symbol, dtype, kind(step)))


def _build(symbol: str, dtype: str, apart: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 13), [dtype])
    b, size, lanes = loop.builder, bytes_of(dtype), loop.lanes
    x, line, place, line_place, rows, taps, spread, start, width, out, places, count, step = (
        loop.function.args
    )
    iota, wide = Value(b, "int32", lanes, loop.iota(I32)), ints(loop, width)
    steps = iota * ints(loop, step)

    def some(q: ir.Value) -> list[ir.Value]:
        begin = b.add(start, b.mul(q, step))
        mask = loop.mask(b.sub(count, q))

        def row(i: ir.Value, *found: ir.Value) -> list[ir.Value]:
            top, first = b.add(x, b.mul(i, line)), ints(loop, b.add(place, b.mul(i, line_place)))

            def tap(t: ir.Value, *found: ir.Value) -> list[ir.Value]:
                best, at = Value(b, dtype, lanes, found[0]), Value(b, "int32", lanes, found[1])
                column = b.add(begin, b.mul(t, spread))
                columns = ints(loop, column) + steps
                inside = b.and_(below(columns, wide), mask)
                address = b.add(top, b.mul(column, n64(size)))
                value = strided(loop, dtype, address, columns, wide, inside, apart)
                nan = (value != value) & (best == best)
                better = ((at < 0) | (value > best) | nan) & Value(b, "bool", lanes, inside)
                return [select(better, value, best).ir, select(better, first + columns, at).ir]

            return loop.loop(n64(0), taps, 1, tap, list(found))

        nothing = [ir.Constant(vector_type(dtype, lanes), None), (iota * 0 - 1).ir]
        best, at = loop.loop(n64(0), rows, 1, row, nothing)
        loop.store(Value(b, dtype, lanes, best), b.add(out, b.mul(q, n64(size))), mask)
        loop.store(Value(b, "int32", lanes, at), b.add(places, b.mul(q, n64(4))), mask)
        return []

    loop.loop(n64(0), count, lanes, some)
    b.ret_void()
    return str(module)


@kernel
def _max_pool(lo: int, hi: int, x: A1, out: A1, places: A1, plan: Words, row: int) -> None:
    height, width, rows, columns, per = plan[0], plan[1], plan[2], plan[3], plan[4]
    taps_y, stride_y, spread_y, top = plan[5], plan[6], plan[7], plan[8]
    taps_x, stride_x, spread_x, left = plan[9], plan[10], plan[11], plan[12]
    size = x.itemsize
    planes = out.size // (rows * columns)
    for plane in range(lo * per, min(hi * per, planes)):
        for t in range(rows):
            y = t * stride_y - top
            skipped = max(0, (spread_y - 1 - y) // spread_y)
            end = min(taps_y, (height - 1 - y) // spread_y + 1)
            first = y + skipped * spread_y
            to = (plane * rows + t) * columns
            call_address(
                row,
                x.ctypes.data + (plane * height + first) * width * size,
                spread_y * width * size,
                first * width,
                spread_y * width,
                end - skipped,
                taps_x,
                spread_x,
                -left,
                width,
                out.ctypes.data + to * size,
                places.ctypes.data + to * 4,
                columns,
                stride_x,
            )


@kernel
def _spread(lo: int, hi: int, g: A2, places: A2, out: A2, per: int, status: Status) -> None:
    for plane in range(lo * per, min(hi * per, g.shape[0])):
        row, values, at = out[plane], g[plane], places[plane]
        row[:] = 0
        for k in range(values.size):
            if at[k] < 0 or at[k] >= row.size:
                status[0] = 1
                return
            row[at[k]] += values[k]


def max_pool(
    x: Operand,
    out: Operand,
    places: Operand,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
) -> Launch:
    """Plan the largest element of each window of x (n, c, h, w), and its place in its plane, int32.

    NaN is larger than any number; of equal elements the first is taken. padding: above and left; what lies
    outside of the plane is not looked at, and every window has an element inside.
    """
    height, width = x.shape[2:]
    rows, columns = out.shape[2:]
    planes = out.size // (rows * columns)
    per = max(1, config.ELEMENTWISE_CHUNK // (height * width))
    axes = tuple(v for k in (0, 1) for v in (kernel[k], stride[k], dilation[k], padding[k]))
    row = _row(x.dtype.name, stride[1])
    work = out.size * kernel[0] * kernel[1] * 0.3
    flat = [t.reshaped(t.size) for t in (x, out, places)]
    return _max_pool(-(-planes // per), work, *flat, (height, width, rows, columns, per, *axes), row)


def spread(g: Operand, places: Operand, out: Operand) -> Launch:
    """Plan out (planes, n) = zeros, to which g (planes, m) is added at `places`, in order."""
    per = max(1, config.ELEMENTWISE_CHUNK // max(1, out.shape[1]))
    work = g.size * 1.5 + out.spec.nbytes * config.BYTE_NS
    return _spread(-(-out.shape[0] // per), work, g, places, out, per)
