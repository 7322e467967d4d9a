"""Gathering rows by index, and its adjoint. Arrays are seen as (outer, n, inner), indexed over n."""

from . import config
from .kernel import A1, A3, Status, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)


@kernel
def _take(lo: int, hi: int, x: A3, indices: A1, out: A3, group: int, status: Status) -> None:
    n, m = x.shape[1], indices.size
    for cell in range(lo * group, min(hi * group, out.shape[0] * m)):
        at = indices[cell % m]
        if at < 0:
            at += n
        if at < 0 or at >= n:
            status[0] = 1
            return
        _copy(out[cell // m, cell % m], x[cell // m, at])


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


def take(x: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, m, inner) = x (outer, n, inner) at indices (m,), negative ones from the end.

    Reports an error when an index is outside [-n, n).
    """
    outer, _, inner = x.shape
    group = max(1, config.ELEMENTWISE_UNIT // max(inner, 1))
    units = -(-outer * indices.size // group)
    return _take(units, 2 * out.spec.nbytes * config.BYTE_NS + 2.0 * indices.size, x, indices, out, group)


def scatter_add(g: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, n, inner) = zeros, then out[:, indices] += g (outer, m, inner), in index order.

    A unit owns some columns of `out` and passes over all indices: no two threads write one element,
    and each element is summed in the order of the indices.
    """
    outer, _, inner = out.shape
    columns = 64
    units = outer * -(-inner // columns)
    work = (g.spec.nbytes * 3 + out.spec.nbytes) * config.BYTE_NS + 2.0 * indices.size
    return _scatter_add(units, work, g, indices, out, columns)
