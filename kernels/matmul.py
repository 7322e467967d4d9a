"""Matrix multiplication: operands packed once into panels, then tiles of C by the micro-kernel."""

from . import config, gemm
from .kernel import A1, A3, Words, call_address, kernel
from .program import Launch, Operand, Spec

#: Multiply-adds below which packing costs more than it saves.
SMALL = 10_000

#: Depth of a block of the sum: a panel of B of 384 x 32 float32 is 48 kB, and stays in cache.
_DEPTH = 384

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
def _tiles(lo: int, hi: int, packed_a: A1, packed_b: A1, c: A3, plan: Words, tile: int) -> None:
    # plan: depth, rows of a panel of A, columns of a panel of B, units along n, panels of A and of B
    # in a unit, whether A and B have a matrix for each of the batch.
    m, n, item = c.shape[1], c.shape[2], c.itemsize
    depth, high, wide, units_n, per_a, per_b = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
    panels_a, panels_b = (m + high - 1) // high, (n + wide - 1) // wide
    units = (panels_a + per_a - 1) // per_a * units_n
    at_a, at_b, at_c = packed_a.ctypes.data, packed_b.ctypes.data, c.ctypes.data
    for unit in range(lo, hi):
        batch, place = unit // units, unit % units
        top, left = place // units_n * per_a, place % units_n * per_b
        matrix_a = at_a + batch * plan[6] * panels_a * depth * high * item
        matrix_b = at_b + batch * plan[7] * panels_b * depth * wide * item
        matrix_c = at_c + batch * m * n * item
        for start in range(0, depth, _DEPTH):
            k = min(_DEPTH, depth - start)
            for j in range(left, min(left + per_b, panels_b)):
                b = matrix_b + (j * depth + start) * wide * item
                for i in range(top, min(top + per_a, panels_a)):
                    a = matrix_a + (i * depth + start) * high * item
                    row, column = i * high, j * wide
                    out = matrix_c + (row * n + column) * item
                    used_m, used_n = min(high, m - row), min(wide, n - column)
                    call_address(tile, k, a, b, out, n * item, used_m, used_n, start)


def scratch(m: int, k: int, n: int, batch_a: int, batch_b: int, dtype: str) -> tuple[int, int]:
    """Return how many elements the packed A and the packed B take; 0 where nothing is packed."""
    if m * n * k <= SMALL:
        return 0, 0
    high, wide = gemm.rows(), gemm.panel(dtype, n)
    return batch_a * -(-m // high) * high * k, batch_b * -(-n // wide) * wide * k


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
    size_a, size_b = scratch(m, k, n, batch_a, batch_b, dtype)
    packed_a = Operand(packed[0], Spec((size_a,), c.dtype))
    packed_b = Operand(packed[1], Spec((size_b,), c.dtype))
    panels_a, panels_b = -(-m // high), -(-n // wide)
    moved = config.BYTE_NS * 10  # an element at a time
    per_m, per_n = _unit(panels_a, panels_b)
    units_n = -(-panels_b // per_n)
    units = batch * -(-panels_a // per_m) * units_n
    sizes = (k, high, wide, units_n, per_m, per_n, int(batch_a > 1), int(batch_b > 1))
    tile = gemm.micro_kernel(dtype, wide)
    return [
        _pack(batch_a * panels_a, a.spec.nbytes * moved, a, packed_a, int(transpose_a), high),
        _pack(batch_b * panels_b, b.spec.nbytes * moved, b, packed_b, int(not transpose_b), wide),
        _tiles(units, flops * config.FLOP_NS, packed_a, packed_b, c, sizes, tile),
    ]


def _unit(panels_a: int, panels_b: int) -> tuple[int, int]:
    """Return how many panels of A and of B a unit of work covers: at least 4 by 2 units where C allows."""
    return max(1, min(8, panels_a // 4)), max(1, min(_UNIT_PANELS, panels_b // 2))
