"""Gathering rows by index, and its adjoint. Arrays are seen as (outer, n, inner), indexed over n."""

from . import config
from .kernel import A1, A3, Status, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)

#: Columns that one unit of a sum owns: no two threads write one element.
_COLUMNS = 64


@kernel
def _take(lo: int, hi: int, x: A3, indices: A1, out: A3, group: int, status: Status) -> None:
    n, m, inner = x.shape[1], indices.size, x.shape[2]
    first, last = lo * group, min(hi * group, out.shape[0] * m)
    o, i = first // m, first % m
    for _ in range(first, last):
        at = indices[i]
        if at < 0:
            at += n
        if at < 0 or at >= n:
            status[0] = 1
            return
        if inner == 1:
            out[o, i, 0] = x[o, at, 0]
        else:
            _copy(out[o, i], x[o, at])
        i += 1
        if i == m:
            o, i = o + 1, 0


@kernel
def _scatter_add(lo: int, hi: int, g: A3, indices: A1, out: A3, columns: int, status: Status) -> None:
    n, inner = out.shape[1], out.shape[2]
    blocks = (inner + columns - 1) // columns
    for unit in range(lo, hi):
        o, first = unit // blocks, unit % blocks * columns
        last = min(first + columns, inner)
        for i in range(n):
            for j in range(first, last):
                out[o, i, j] = 0
        for k in range(indices.size):
            at = indices[k]
            if at < 0:
                at += n
            if at < 0 or at >= n:
                status[0] = 1
                return
            row = out[o, at, first:last]
            _add_to(row, row, g[o, k, first:last])


@kernel
def _take_along(lo: int, hi: int, x: A3, indices: A3, out: A3, group: int, status: Status) -> None:
    n, m, inner = x.shape[1], indices.shape[1], x.shape[2]
    for cell in range(lo * group, min(hi * group, x.shape[0] * m)):
        o, i = cell // m, cell % m
        for j in range(inner):
            at = indices[o, i, j]
            if at < 0:
                at += n
            if at < 0 or at >= n:
                status[0] = 1
                return
            out[o, i, j] = x[o, at, j]


@kernel
def _add_along(lo: int, hi: int, g: A3, indices: A3, out: A3, columns: int, status: Status) -> None:
    n, inner = out.shape[1], out.shape[2]
    blocks = (inner + columns - 1) // columns
    for unit in range(lo, hi):
        o, first = unit // blocks, unit % blocks * columns
        last = min(first + columns, inner)
        for i in range(n):
            for j in range(first, last):
                out[o, i, j] = 0
        for k in range(indices.shape[1]):
            for j in range(first, last):
                at = indices[o, k, j]
                if at < 0:
                    at += n
                if at < 0 or at >= n:
                    status[0] = 1
                    return
                out[o, at, j] += g[o, k, j]


def take(x: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, m, inner) = x (outer, n, inner) at indices (m,), negative ones from the end.

    Reports an error when an index is outside [-n, n).
    """
    outer, _, inner = x.shape
    group = max(1, config.ELEMENTWISE_UNIT // max(inner, 1))
    cells = outer * indices.size
    # Measured: 3 ns for a single element, 16 ns for a row of 32 floats in cache, 60 ns out of it.
    work = 2 * out.spec.nbytes * config.BYTE_NS + (2.0 if inner == 1 else 12.0) * cells
    return _take(-(-cells // group), work, x, indices, out, group)


def scatter_add(g: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, n, inner) = zeros, then out[:, indices] += g (outer, m, inner), in index order.

    A unit owns some columns of `out` and passes over all indices: no two threads write one element,
    and each element is summed in the order of the indices.
    """
    outer, _, inner = out.shape
    units = outer * -(-inner // _COLUMNS)
    work = (g.spec.nbytes * 3 + out.spec.nbytes) * config.BYTE_NS + 2.0 * indices.size
    return _scatter_add(units, work, g, indices, out, _COLUMNS)


def take_along(x: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, m, inner) = x (outer, n, inner) where its indices, of the same shape, say over n.

    Reports an error when an index is outside [-n, n).
    """
    outer, m, inner = indices.shape
    group = max(1, config.ELEMENTWISE_UNIT // max(inner, 1))
    return _take_along(-(-outer * m // group), 2.0 * out.size, x, indices, out, group)


def add_along(g: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, n, inner) = zeros, then g (outer, m, inner) added where its indices say over n.

    Each element is summed in the order of the indices, by one thread.
    """
    outer, _, inner = out.shape
    units = outer * -(-inner // _COLUMNS)
    return _add_along(units, 2.0 * (g.size + out.size), g, indices, out, _COLUMNS)
