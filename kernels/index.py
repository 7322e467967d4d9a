"""Gathering rows and elements by index. Arrays are viewed as (outer, n, inner), indexed over n."""

from . import config
from .compiled import device
from .kernel import A1, A3, Status, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)


@device
def position(at: int, n: int) -> int:
    """Return the position of an index on an axis of n, negative ones counted from the end; -1 for outside."""
    if at < 0:
        at += n
    return at if 0 <= at < n else -1


@kernel
def _take(lo: int, hi: int, x: A3, indices: A1, out: A3, group: int, status: Status) -> None:
    n, m, inner = x.shape[1], indices.size, x.shape[2]
    first, last = lo * group, min(hi * group, out.shape[0] * m)
    o, i = first // m, first % m
    for _ in range(first, last):
        at = position(indices[i], n)
        if at < 0:
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
def _take_along(lo: int, hi: int, x: A3, indices: A3, out: A3, group: int, status: Status) -> None:
    n, m, inner = x.shape[1], indices.shape[1], x.shape[2]
    for cell in range(lo * group, min(hi * group, x.shape[0] * m)):
        o, i = cell // m, cell % m
        for j in range(inner):
            at = position(indices[o, i, j], n)
            if at < 0:
                status[0] = 1
                return
            out[o, i, j] = x[o, at, j]


def take(x: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, m, inner) = x (outer, n, inner) at indices (m,), negative ones from the end.

    Reports an error when an index is outside [-n, n).
    """
    outer, _, inner = x.shape
    group = max(1, config.ELEMENTWISE_CHUNK // max(inner, 1))
    cells = outer * indices.size
    # Measured: 3 ns for a single element, 16 ns for a row of 32 floats in cache, 60 ns out of it.
    work = 2 * out.spec.nbytes * config.BYTE_NS + (2.0 if inner == 1 else 12.0) * cells
    return _take(-(-cells // group), work, x, indices, out, group)


def take_along(x: Operand, indices: Operand, out: Operand) -> Launch:
    """Plan out (outer, m, inner) = x (outer, n, inner) at indices of the same shape over n.

    Reports an error when an index is outside [-n, n).
    """
    outer, m, inner = indices.shape
    group = max(1, config.ELEMENTWISE_CHUNK // max(inner, 1))
    return _take_along(-(-outer * m // group), 2.0 * out.size, x, indices, out, group)
