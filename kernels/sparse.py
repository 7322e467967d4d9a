"""Sums of gradients of lookups by row of a table, and writes of some rows of a table.

A set of rows is an array of their numbers, ascending, and an array of their elements. Both have room for the
largest set of the shapes: the row numbers of unused room, at the end, are -1, and its elements zeros.
"""

from . import config, sort
from .index import position
from .kernel import A1, A2, Kernel, Status, Words, kernel
from .program import Launch, Operand
from .rows import row_map, row_reduce

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)
_square = row_reduce(
    "row_square", lambda x: x.astype("float64") * x.astype("float64"), lambda a, b: a + b, 0.0
)
_any = row_reduce("row_any", lambda x: x != 0, lambda a, b: a | b, 0.0)

#: Rows whose squares are summed in one chunk, whatever the room of the set: unused rows at its end, which add
#: zeros, do not change the bits of a norm.
_NORM_ROWS = 64

#: Elements of a chunk of a copied table: large, since there is often nothing to copy.
_COPY_CHUNK = 1 << 17


@kernel
def _positions(lo: int, hi: int, indices: A1, keys: A1, n: int, group: int, status: Status) -> None:
    for k in range(lo * group, min(hi * group, indices.size)):
        at = position(indices[k], n)
        if at < 0:
            status[0] = 1
            return
        keys[k] = at


@kernel
def _runs(lo: int, hi: int, keys: A1, order: A1, starts: A1) -> None:
    # starts[r]: where the r-th distinct key begins in `order`; then the end; the last is the number of keys.
    count, m = 0, order.size
    for k in range(m):
        if k == 0 or keys[order[k]] != keys[order[k - 1]]:
            starts[count] = k
            count += 1
    starts[count] = m
    starts[starts.size - 1] = count


@kernel
def _sum_runs(
    lo: int, hi: int, keys: A1, order: A1, starts: A1, g: A2, sums: A2, part: A2, rows: A1, bounds: Words
) -> None:
    # bounds: the rows of a chunk, then where each lookup ends in g.
    group, count = bounds[0], starts[starts.size - 1]
    for r in range(lo * group, min(hi * group, rows.size)):
        total = sums[r]
        total[:] = 0
        rows[r] = -1
        if r >= count:
            continue
        rows[r] = keys[order[starts[r]]]
        # Each lookup is summed by itself, as `scatter_add` does, and then added to those before it.
        into, lookups, end, b = total, 0, 0, 1
        for k in range(starts[r], starts[r + 1]):
            p = order[k]
            if p >= end:
                while p >= bounds[b]:
                    b += 1
                end = bounds[b]
                if lookups > 1:
                    _add_to(total, total, into)
                if lookups:
                    into = part[r]
                    into[:] = 0
                lookups += 1
            _add_to(into, into, g[p])
        if lookups > 1:
            _add_to(total, total, into)


@kernel
def _pack(lo: int, hi: int, sums: A2, rows: A1) -> None:
    # Rows of zeros move to the end. One thread looks at the rows, which are in cache.
    to = 0
    for r in range(rows.size):
        if rows[r] < 0:
            break
        if _any(sums[r]):
            if to < r:
                rows[to] = rows[r]
                _copy(sums[to], sums[r])
            to += 1
        if to <= r:
            rows[r] = -1
            sums[r][:] = 0


@kernel
def _mark(lo: int, hi: int, x: A2, marks: A1, group: int) -> None:
    for r in range(lo * group, min(hi * group, marks.size)):
        marks[r] = 1 if _any(x[r]) else 0


@kernel
def _list_marked(lo: int, hi: int, marks: A1, rows: A1) -> None:
    count = 0
    for r in range(marks.size):
        if marks[r]:
            rows[count] = r
            count += 1
    for r in range(count, rows.size):
        rows[r] = -1


@kernel
def _pick(lo: int, hi: int, x: A2, rows: A1, out: A2, group: int) -> None:
    for r in range(lo * group, min(hi * group, rows.size)):
        if rows[r] < 0:
            out[r][:] = 0
        else:
            _copy(out[r], x[rows[r]])


@kernel
def _squares(lo: int, hi: int, x: A2, sums: A1, group: int) -> None:
    for chunk in range(lo, hi):
        total = 0.0
        for r in range(chunk * group, min(chunk * group + group, x.shape[0])):
            total += _square(x[r])
        sums[chunk] = total


@kernel
def _root(lo: int, hi: int, sums: A1, out: A1) -> None:
    total = 0.0
    for chunk in range(sums.size):
        total += sums[chunk]
    out[0] = total**0.5


@kernel
def _copy_other(lo: int, hi: int, x: A1, out: A1, group: int) -> None:
    # In place there is nothing to copy: a table of 1,000,000 rows would cost 20 ms.
    if x.ctypes.data != out.ctypes.data:
        first, last = lo * group, min(hi * group, x.size)
        _copy(out[first:last], x[first:last])


@kernel
def _write(lo: int, hi: int, rows: A1, values: A2, out: A2, group: int) -> None:
    for r in range(lo * group, min(hi * group, rows.size)):
        if rows[r] >= 0:
            _copy(out[rows[r]], values[r])


def _by_rows(kernel: Kernel, count: int, x: Operand, *arguments: Operand) -> Launch:
    """Plan a kernel that works on `count` rows like those of x (n, dim) independently."""
    dim = x.shape[1]
    group = max(1, config.ELEMENTWISE_CHUNK // max(dim, 1))
    work = (3.0 * x.dtype.itemsize * dim * config.BYTE_NS + 12.0) * count
    return kernel(-(-count // group), work, *arguments, group)


def sum_rows(
    indices: Operand,
    g: Operand,
    rows: Operand,
    sums: Operand,
    scratch: tuple[Operand, ...],
    size: int,
    ends: tuple[int, ...],
) -> list[Launch]:
    """Plan the set (rows, sums) of the nonzero sums of the rows of g (m, dim) that have the same index (m,).

    ends: where each lookup ends in g. The sums have the bits of those that `scatter_add` computes for each
    lookup, added up in order.  scratch: of `sum_scratch`.  size: of the table.
    Reports an error when an index is outside of [-size, size).
    """
    keys, order, starts, part, sorted_keys, positions, counts = scratch
    m, room, dim = indices.size, rows.size, g.shape[1]
    group = config.ELEMENTWISE_CHUNK
    lines = keys.reshaped(1, m, 1), order.reshaped(1, m, 1), sorted_keys, positions, counts
    rows_each = max(1, group // max(dim, 1))
    work = 3.0 * g.spec.nbytes * config.BYTE_NS + 12.0 * m
    return [
        _positions(-(-m // group), 1.0 * m, indices, keys, size, group),
        sort.argsort(*lines, descending=False),
        _runs(1, 2.0 * m, keys, order, starts),
        _sum_runs(-(-room // rows_each), work, keys, order, starts, g, sums, part, rows, (rows_each, *ends)),
        _pack(1, 3.0 * room, sums, rows),
    ]


def sort_scratch(line: Operand) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes, of int64, of the last three operands of the scratch of `sum_rows`."""
    return sort.scratch(line)


def nonzero_rows(g: Operand, marks: Operand, rows: Operand, values: Operand) -> list[Launch]:
    """Plan the set (rows (n,), values (n, dim)) of the rows of g (n, dim) that are not zeros. marks: (n,)."""
    n = g.shape[0]
    return [
        _by_rows(_mark, n, g, g, marks),
        _list_marked(1, 2.0 * n, marks, rows),
        _by_rows(_pick, n, g, g, rows, values),
    ]


def norm(values: Operand, sums: Operand, out: Operand) -> list[Launch]:
    """Plan out (), float64 = the L2 norm of a set's rows. sums: (norm_chunks,), float64."""
    chunks = norm_chunks(values.shape[0])
    return [
        _squares(chunks, 1.0 * values.size, values, sums, _NORM_ROWS),
        _root(1, 1.0 * chunks, sums, out.reshaped(1)),
    ]


def norm_chunks(room: int) -> int:
    """Return the number of partial sums of `norm` for a set with room for so many rows."""
    return -(-room // _NORM_ROWS)


def write_rows(x: Operand, rows: Operand, values: Operand, out: Operand) -> list[Launch]:
    """Plan out = x (n, dim) with a set's rows replaced by values. In place, only these rows are written."""
    group, flat = _COPY_CHUNK, x.reshaped(x.size)
    work = 2.0 * x.spec.nbytes * config.BYTE_NS
    copy = _copy_other(-(-x.size // group), work, flat, out.reshaped(x.size), group)
    return [copy, _by_rows(_write, rows.size, x, rows, values, out)]
