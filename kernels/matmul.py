"""Matrix multiplication: B, and A where it pays, packed once; then tiles of C by the micro-kernel."""

from . import config, gemm
from .kernel import A1, A3, Words, call_address, kernel
from .loops import bytes_of
from .program import Launch, Operand, Spec

#: Multiply-adds below which packing costs more than it saves.
SMALL = 10_000

#: Depth of a block of the sum: a panel of B of 384 x 32 float32 is 48 kB, and stays in cache.
_DEPTH = 384

#: A is read where it is if B has few panels; else if it is transposed and has few terms, or if its rows are
#: this near to each other, in bytes.
_FEW_PANELS, _LONG, _FAR = 4, 1024, 2048

#: Panels of B that one unit of work covers at most.
_UNIT_PANELS = 4


@kernel
def _small(
    lo: int,
    hi: int,
    a: A3,
    b: A3,
    c: A3,
    transpose_a: int,
    transpose_b: int,
    step_a: int,
    step_b: int,
) -> None:
    m, n = c.shape[1], c.shape[2]
    depth = a.shape[1] if transpose_a else a.shape[2]
    for batch in range(lo, hi):
        left, right, out = a[batch * step_a], b[batch * step_b], c[batch]
        for i in range(m):
            row = out[i]
            for j in range(n):
                row[j] = 0
            for p in range(depth):
                factor = left[p, i] if transpose_a else left[i, p]
                if transpose_b:
                    for j in range(n):
                        row[j] += factor * right[j, p]
                else:
                    other = right[p]
                    for j in range(n):
                        row[j] += factor * other[j]


@kernel
def _pack(lo: int, hi: int, x: A3, out: A1, across: int, width: int) -> None:
    # A panel is `width` neighbours of one axis by all of the other: (depth, width), padded with zeros.
    # `across`: the panels' axis is the last one of x, so that a row of the panel is a piece of a row.
    count = x.shape[2] if across else x.shape[1]
    depth = x.shape[1] if across else x.shape[2]
    panels = (count + width - 1) // width
    for unit in range(lo, hi):
        matrix, first = x[unit // panels], unit % panels * width
        used = min(width, count - first)
        target = out[unit * depth * width : (unit + 1) * depth * width]
        if across:
            for p in range(depth):
                source, row = matrix[p, first : first + used], target[p * width : (p + 1) * width]
                for j in range(used):
                    row[j] = source[j]
                for j in range(used, width):
                    row[j] = 0
        else:
            for start in range(0, depth, 16):
                for j in range(used):
                    line = matrix[first + j]
                    for p in range(start, min(start + 16, depth)):
                        target[p * width + j] = line[p]
            for p in range(depth):
                for j in range(used, width):
                    target[p * width + j] = 0


@kernel
def _tiles(lo: int, hi: int, a: A1, packed_b: A1, c: A3, plan: Words, strides: Words, tile: int) -> None:
    # plan: depth, rows of a strip of A, columns of a panel of B, units along n, strips of A and panels of B
    # in a unit. strides, in elements: from row to row and term to term of A, from strip to strip, from
    # matrix to matrix of A and of B; whether A is packed, and so padded.
    m, n, item = c.shape[1], c.shape[2], c.itemsize
    depth, high, wide, units_n, per_a, per_b = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
    panels_a, panels_b = (m + high - 1) // high, (n + wide - 1) // wide
    units = (panels_a + per_a - 1) // per_a * units_n
    at_a, at_b, at_c = a.ctypes.data, packed_b.ctypes.data, c.ctypes.data
    row_a, step_a = strides[0] * item, strides[1] * item
    for unit in range(lo, hi):
        batch, place = unit // units, unit % units
        top, left = place // units_n * per_a, place % units_n * per_b
        matrix_a = at_a + batch * strides[3] * item
        matrix_b = at_b + batch * strides[4] * item
        matrix_c = at_c + batch * m * n * item
        for start in range(0, depth, _DEPTH):
            k = min(_DEPTH, depth - start)
            for j in range(left, min(left + per_b, panels_b)):
                b = matrix_b + (j * depth + start) * wide * item
                for i in range(top, min(top + per_a, panels_a)):
                    strip = matrix_a + i * strides[2] * item + start * step_a
                    row, column = i * high, j * wide
                    last, first = min(high, m - row), 0
                    if last < high and not strides[5]:
                        # The last strip begins earlier, lest it read past the end of A.
                        first = high - last
                        last, row, strip = high, row - first, strip - first * row_a
                    out = matrix_c + (row * n + column) * item
                    used_n = min(wide, n - column)
                    call_address(tile, k, strip, row_a, step_a, b, out, n * item, first, last, used_n, start)


def packs_a(m: int, k: int, n: int, transpose_a: bool, dtype: str) -> bool:
    """Whether A is packed: where its rows are fewer than a strip's, or it is read so often that it pays.

    The terms of a strip lie in lines of the cache that are a row apart. Rows that are far apart fall
    into few of its sets, and a long transposed A into many pages.
    """
    if m < gemm.rows():
        return True
    panels = -(-n // gemm.panel(dtype, n))
    if panels <= _FEW_PANELS:
        return False
    return k > _LONG if transpose_a else k * bytes_of(dtype) > _FAR


def scratch(
    m: int, k: int, n: int, batch_a: int, batch_b: int, transpose_a: bool, dtype: str
) -> tuple[int, int]:
    """Return how many elements the packed A and the packed B take; 0 where nothing is packed."""
    if m * n * k <= SMALL:
        return 0, 0
    high, wide = gemm.rows(), gemm.panel(dtype, n)
    size_a = batch_a * -(-m // high) * high * k if packs_a(m, k, n, transpose_a, dtype) else 0
    return size_a, batch_b * -(-n // wide) * wide * k


def plan(
    a: Operand,
    b: Operand,
    c: Operand,
    transpose_a: bool,
    transpose_b: bool,
    packed: tuple[int, int],
) -> list[Launch]:
    """Plan c (batch, m, n) = a b, each matrix transposed on request, k >= 1.

    a: (batch or 1, m, k), or (..., k, m) when transposed.  b: (batch or 1, k, n), or (..., n, k).
    packed: numbers of two buffers with `scratch` elements.
    """
    batch, m, n = c.shape
    k = a.shape[1] if transpose_a else a.shape[2]
    batch_a, batch_b = a.shape[0], b.shape[0]
    dtype = c.dtype.name
    flops = 2.0 * batch * m * n * k
    if m * n * k <= SMALL:
        steps = [int(batch_a > 1), int(batch_b > 1)]
        work = flops * 0.5
        return [_small(batch, work, a, b, c, int(transpose_a), int(transpose_b), *steps)]
    high, wide = gemm.rows(), gemm.panel(dtype, n)
    size_a, size_b = scratch(m, k, n, batch_a, batch_b, transpose_a, dtype)
    packed_b = Operand(packed[1], Spec((size_b,), c.dtype))
    panels_a, panels_b = -(-m // high), -(-n // wide)
    moved = config.BYTE_NS * 10  # an element at a time
    launches = [_pack(batch_b * panels_b, b.spec.nbytes * moved, b, packed_b, int(not transpose_b), wide)]
    if size_a:
        strips = Operand(packed[0], Spec((size_a,), c.dtype))
        launches.append(_pack(batch_a * panels_a, a.spec.nbytes * moved, a, strips, int(transpose_a), high))
        strides = (1, high, high * k, panels_a * high * k)
    else:
        strips = a.reshaped(a.size)
        row_a, step_a = (1, m) if transpose_a else (k, 1)
        strides = (row_a, step_a, high * row_a, m * k)
    per_m, per_n = _unit(panels_a, panels_b)
    units_n = -(-panels_b // per_n)
    units = batch * -(-panels_a // per_m) * units_n
    sizes = (k, high, wide, units_n, per_m, per_n)
    ways = (*strides[:3], strides[3] * (batch_a > 1), panels_b * wide * k * (batch_b > 1), int(size_a > 0))
    tile = gemm.micro_kernel(dtype, wide)
    return [*launches, _tiles(units, flops * config.FLOP_NS, strips, packed_b, c, sizes, ways, tile)]


def _unit(panels_a: int, panels_b: int) -> tuple[int, int]:
    """Return how many strips of A and panels of B a unit covers: at least 4 by 2 units where C allows."""
    return max(1, min(8, panels_a // 4)), max(1, min(_UNIT_PANELS, panels_b // 2))
