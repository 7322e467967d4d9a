"""Max-pooling, with the positions of the maxima, and its gradient; average pooling is a convolution."""

from llvmlite import ir

from . import config, native
from .intrinsics import call_address
from .kernel import A1, A2, Status, Words, kernel
from .loops import I32, I64, Loop, bytes_of, n64
from .program import Launch, Operand
from .strided import below, ints, kind, strided
from .vector import Value, select, vector_type

#: Words of a plan: sizes of a plane of x, and of a plane of results; planes of a chunk.
_HEIGHT, _WIDTH, _ROWS, _COLUMNS, _CHUNK_PLANES = range(5)
#: The window's size, stride and dilation, and the padding before; of rows, then of columns.
_TAPS_Y, _STRIDE_Y, _DILATION_Y, _TOP, _TAPS_X, _STRIDE_X, _DILATION_X, _LEFT = range(5, 13)


def _row(dtype: str, step: int) -> int:
    """Return the address of the function of a row of results, for windows `step` apart.

    row(x, line, position, line_step, rows, taps, dilation, start, width, out, positions, count, step): x is
    the window's first row inside of the plane, which starts at element `position` of the plane; the next row
    starts `line` bytes and line_step elements later. The window has `rows` such rows and `taps` columns,
    `dilation` apart; that of result k starts at column start + k * step of `width`.
    """
    symbol = f"max_pool_{dtype}_{kind(step)}"
    return native.load(symbol, lambda: _build(symbol, dtype, kind(step)))


def _build(symbol: str, dtype: str, apart: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 13), [dtype])
    b, size, lanes = loop.builder, bytes_of(dtype), loop.lanes
    x, line, position, line_step, rows, taps, dilation, start, width, out, positions, count, step = (
        loop.function.args
    )
    iota, wide = Value(b, "int32", lanes, loop.iota(I32)), ints(loop, width)
    steps = iota * ints(loop, step)

    def vector(q: ir.Value) -> list[ir.Value]:
        begin = b.add(start, b.mul(q, step))
        mask = loop.mask(b.sub(count, q))

        def row(i: ir.Value, *carried: ir.Value) -> list[ir.Value]:
            top, first = b.add(x, b.mul(i, line)), ints(loop, b.add(position, b.mul(i, line_step)))

            def tap(t: ir.Value, *carried: ir.Value) -> list[ir.Value]:
                largest, at = Value(b, dtype, lanes, carried[0]), Value(b, "int32", lanes, carried[1])
                column = b.add(begin, b.mul(t, dilation))
                columns = ints(loop, column) + steps
                inside = b.and_(below(columns, wide), mask)
                address = b.add(top, b.mul(column, n64(size)))
                value = strided(loop, dtype, address, columns, wide, inside, apart)
                nan = (value != value) & (largest == largest)
                better = ((at < 0) | (value > largest) | nan) & Value(b, "bool", lanes, inside)
                return [select(better, value, largest).ir, select(better, first + columns, at).ir]

            return loop.loop(n64(0), taps, 1, tap, list(carried))

        nothing = [ir.Constant(vector_type(dtype, lanes), None), (iota * 0 - 1).ir]
        largest, at = loop.loop(n64(0), rows, 1, row, nothing)
        loop.store(Value(b, dtype, lanes, largest), b.add(out, b.mul(q, n64(size))), mask)
        loop.store(Value(b, "int32", lanes, at), b.add(positions, b.mul(q, n64(4))), mask)
        return []

    loop.loop(n64(0), count, lanes, vector)
    b.ret_void()
    return str(module)


@kernel
def _max_pool(lo: int, hi: int, x: A1, out: A1, positions: A1, plan: Words, row: int) -> None:
    height, width, rows, columns = plan[_HEIGHT], plan[_WIDTH], plan[_ROWS], plan[_COLUMNS]
    per, dilation, size = plan[_CHUNK_PLANES], plan[_DILATION_Y], x.itemsize
    planes = out.size // (rows * columns)
    for plane in range(lo * per, min(hi * per, planes)):
        for t in range(rows):
            y = t * plan[_STRIDE_Y] - plan[_TOP]
            skipped = max(0, (dilation - 1 - y) // dilation)
            end = min(plan[_TAPS_Y], (height - 1 - y) // dilation + 1)
            first = y + skipped * dilation
            to = (plane * rows + t) * columns
            call_address(
                row,
                x.ctypes.data + (plane * height + first) * width * size,
                dilation * width * size,
                first * width,
                dilation * width,
                end - skipped,
                plan[_TAPS_X],
                plan[_DILATION_X],
                -plan[_LEFT],
                width,
                out.ctypes.data + to * size,
                positions.ctypes.data + to * 4,
                columns,
                plan[_STRIDE_X],
            )


@kernel
def _add_at_maxima(lo: int, hi: int, g: A2, positions: A2, out: A2, per: int, status: Status) -> None:
    for plane in range(lo * per, min(hi * per, g.shape[0])):
        row, values, at = out[plane], g[plane], positions[plane]
        row[:] = 0
        for k in range(values.size):
            if at[k] < 0 or at[k] >= row.size:
                status[0] = 1
                return
            row[at[k]] += values[k]


def max_pool(
    x: Operand,
    out: Operand,
    positions: Operand,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, int, int, int],
) -> Launch:
    """Plan the largest element of each window of x (n, c, h, w), and its position in its plane, int32.

    NaN is larger than any number; of equal elements the first is taken. padding: above, below, left, right;
    it is never the largest, and every window has an element of the plane.
    """
    height, width = x.shape[2:]
    rows, columns = out.shape[2:]
    planes, before = out.size // (rows * columns), (padding[0], padding[2])
    per = max(1, config.ELEMENTWISE_CHUNK // (height * width))
    axes = tuple(v for k in (0, 1) for v in (kernel[k], stride[k], dilation[k], before[k]))
    row = _row(x.dtype.name, stride[1])
    work = out.size * kernel[0] * kernel[1] * 0.3
    flat = [t.reshaped(t.size) for t in (x, out, positions)]
    return _max_pool(-(-planes // per), work, *flat, (height, width, rows, columns, per, *axes), row)


def add_at_maxima(g: Operand, positions: Operand, out: Operand) -> Launch:
    """Plan out (planes, n) = zeros, plus g (planes, m) at `positions`, in order: the gradient of max_pool."""
    per = max(1, config.ELEMENTWISE_CHUNK // max(1, out.shape[1]))
    work = g.size * 1.5 + out.spec.nbytes * config.BYTE_NS
    return _add_at_maxima(-(-out.shape[0] // per), work, g, positions, out, per)
