"""Writing and adding rows and elements at indices, and flat indices from those of several axes."""

from collections.abc import Callable

import numpy as np

from . import config
from .compiled import device
from .elementwise import cast, fill
from .index import position
from .intrinsics import Array
from .kernel import A1, A3, Kernel, Status, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)

#: Columns of a chunk at least, and chunks of wide rows. Chunks write disjoint elements, and each element is
#: written in index order. 4096 rows of 512 took 282 us in chunks of 64 columns, 217 of 128; of 2048, which
#: are not in cache, 6 ms of 64, 3.6 of 256.
_LEAST_COLUMNS, _MOST_CHUNKS = 128, 8


@device
def _add_row(row: Array, values: Array) -> None:
    _add_to(row, row, values)


def _at_rows(name: str, write: Callable[..., None]) -> Kernel:
    """Return the kernel that calls `write(out[:, indices[k]], v[:, k])` for each k in order."""

    def at_rows(lo: int, hi: int, indices: A1, v: A3, out: A3, columns: int, status: Status) -> None:
        n, inner = out.shape[1], out.shape[2]
        blocks = (inner + columns - 1) // columns
        for chunk in range(lo, hi):
            o, first = chunk // blocks, chunk % blocks * columns
            last = min(first + columns, inner)
            for k in range(indices.size):
                at = position(indices[k], n)
                if at < 0:
                    status[0] = 1
                    return
                write(out[o, at, first:last], v[o, k, first:last])

    return Kernel(at_rows, name)


_scatter, _add_at = _at_rows("scatter", _copy), _at_rows("add_at", _add_row)


@kernel
def _add_along(lo: int, hi: int, indices: A3, v: A3, out: A3, columns: int, status: Status) -> None:
    n, inner = out.shape[1], out.shape[2]
    blocks = (inner + columns - 1) // columns
    for chunk in range(lo, hi):
        o, first = chunk // blocks, chunk % blocks * columns
        last = min(first + columns, inner)
        for k in range(indices.shape[1]):
            for j in range(first, last):
                at = position(indices[o, k, j], n)
                if at < 0:
                    status[0] = 1
                    return
                out[o, at, j] += v[o, k, j]


@kernel
def _join(lo: int, hi: int, indices: A1, out: A1, n: int, group: int, status: Status) -> None:
    for k in range(lo * group, min(hi * group, out.size)):
        at = position(indices[k], n)
        if at < 0:
            status[0] = 1
            return
        out[k] = out[k] * n + at


def _bits(x: Operand) -> Operand:
    """Return an array as integers of the same itemsize: one compiled kernel serves all dtypes of a size."""
    return x.viewed(np.dtype({1: "bool", 4: "int32", 8: "int64"}[x.dtype.itemsize]))


def _work(v: Operand, indices: Operand, out: Operand) -> tuple[int, float, int]:
    """Return the number of chunks, their work, and the columns of each."""
    outer, _, inner = out.shape
    columns = max(_LEAST_COLUMNS, -(-inner // _MOST_CHUNKS // 64) * 64)
    work = v.spec.nbytes * 3 * config.BYTE_NS + 2.0 * indices.size
    return outer * -(-inner // columns), work, columns


def scatter(x: Operand, indices: Operand, v: Operand, out: Operand) -> list[Launch]:
    """Plan out = x (outer, n, inner), then out[:, indices] = v (outer, m, inner): the last wins."""
    chunks, work, columns = _work(v, indices, out)
    return [cast(x, out), _scatter(chunks, work, indices, _bits(v), _bits(out), columns)]


def add_at(x: Operand, indices: Operand, v: Operand, out: Operand) -> list[Launch]:
    """Plan out = x (outer, n, inner), then out[:, indices] += v (outer, m, inner), in index order."""
    chunks, work, columns = _work(v, indices, out)
    return [cast(x, out), _add_at(chunks, work, indices, v, out, columns)]


def scatter_add(indices: Operand, v: Operand, out: Operand) -> list[Launch]:
    """Plan out = zeros (outer, n, inner), then out[:, indices] += v (outer, m, inner), in index order."""
    chunks, work, columns = _work(v, indices, out)
    return [fill(out, 0), _add_at(chunks, work, indices, v, out, columns)]


def add_along(indices: Operand, v: Operand, out: Operand) -> list[Launch]:
    """Plan out = zeros (outer, n, inner), then out[o, indices[o, k, j], j] += v[o, k, j], in order of k."""
    chunks, work, columns = _work(v, indices, out)
    return [fill(out, 0), _add_along(chunks, work, indices, v, out, columns)]


def join(indices: list[Operand], sizes: tuple[int, ...], out: Operand) -> list[Launch]:
    """Plan out (m,) = flat indices into an array of shape `sizes`, from the indices on each axis."""
    group = config.ELEMENTWISE_CHUNK
    launches = [fill(out, 0)]
    for index, n in zip(indices, sizes, strict=True):
        launches.append(_join(-(-out.size // group), 3.0 * out.size, index, out, n, group))
    return launches
