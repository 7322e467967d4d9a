"""Pieces of attention that work on a block: a few queries by a few keys, in cache.

A block of scores is (QUERIES, KEYS), whatever part of it is used. Its products are tiles of the micro-kernel
of `gemm.py`; in causal attention the tiles, and the terms of sums, that no query may see are left out.
"""

import math

from .formulas import exp
from .kernel import Array, call_address, device
from .random import uniform32
from .rows import row_map, row_reduce
from .vector import Formula, Value, maximum, select

#: Queries and keys of a block: multiples of the micro-kernel's rows, and of its panels' columns. Two blocks
#: of float32 are 72 kB, a small part of the second-level cache.
QUERIES_A_BLOCK, KEYS_A_BLOCK = 48, 192

#: Words of a plan: sizes, tiles and packers, strides of the mask, places in scratch, addresses of arrays.
DIM, DIM_V, QUERIES, KEYS, GROUP, HEADS, CHUNKS, TASKS, UNITS, CAUSAL, DROPPED = range(11)
HIGH, WIDE, WIDE_K, WIDE_V, TILE, TILE_K, TILE_V = range(11, 18)
PACK_KT, PACK_K, PACK_V = range(18, 21)
MASK_BATCH, MASK_HEAD, MASK_QUERY, UNIT_BYTES = range(21, 25)
PLACES = 25

_add: Formula = lambda a, b: a + b
row_max = row_reduce("row_max", lambda x: x, maximum, -math.inf)
row_sum = row_reduce("row_sum_own", lambda x: x, _add, -0.0)
row_dot = row_reduce("row_dot", lambda x, y: x.astype("float64") * y.astype("float64"), _add, -0.0)
row_times = row_map("row_times_own", lambda x, factor: x * factor)
exp_minus = row_map("row_exp_minus", lambda x, top: exp(x - top))
slope = row_map("row_slope", lambda p, dp, delta: p * (dp - delta))
_hide = row_map("row_hide", lambda x, kept: select(kept, x, -math.inf))


def _dropped(x: Value, column: Value, key0: Value, key1: Value, first: Value, keep: Value) -> Value:
    kept = uniform32(key0, key1, column + first) < keep.astype("float32")
    return select(kept, x * (1.0 / keep).astype(x.dtype), 0.0)


#: What `fn.dropout` makes of a row whose first element has the index `first` in the whole.
drop = row_map("row_drop", _dropped)


@device
def pack_transposed(pack: int, panels: int, x: Array, wide: int) -> None:
    """Pack x (n, depth) in panels of `wide` rows, (depth, wide) each, by a packer that transposes."""
    item, (n, depth) = x.itemsize, x.shape
    for at in range((n + wide - 1) // wide):
        start, used = at * wide * depth * item, min(wide, n - at * wide)
        call_address(pack, x.ctypes.data + start, depth * item, depth, used, panels + start)


@device
def pack_panels(pack: int, panels: int, x: Array, wide: int, depth: int) -> None:
    """Pack x (n, m) in panels of `wide` columns, (depth, wide) each, of which n rows are used."""
    item, (n, m) = x.itemsize, x.shape
    for at in range((m + wide - 1) // wide):
        j = at * wide
        panel = panels + j * depth * item
        call_address(pack, x.ctypes.data + j * item, x.strides[0], n, min(wide, m - j), panel)


@device
def multiply(
    tile: int, a: Array, panels: int, block: Array, start: int, stop: int, first: int, plan: Array
) -> None:
    """Set block to a (queries, depth) times keys start to stop - 1 of panels (depth, wide) of keys."""
    item, (rows, depth) = a.itemsize, a.shape
    high, wide = plan[HIGH], plan[WIDE]
    for column in range((stop - start + wide - 1) // wide):
        j = start + column * wide
        b, used = panels + j * depth * item, min(wide, stop - j)
        for strip in range((rows + high - 1) // high):
            i = strip * high
            if not plan[CAUSAL] or j < first + i + high:
                left, c = a.ctypes.data + i * depth * item, block[i, j - start :].ctypes.data
                step_c, last = KEYS_A_BLOCK * item, min(high, rows - i)
                call_address(
                    tile, depth, left, depth * item, item, b, wide * item, c, step_c, 0, last, used, 0
                )


@device
def by_keys(
    kind: int, block: Array, panels: int, out: Array, start: int, stop: int, first: int, plan: Array
) -> None:
    """Add block times panels (keys, wide) to out (queries, width), or set it at the first keys.

    kind: 0 for panels of what is `DIM` wide, 1 for `DIM_V`.
    """
    item, (rows, width) = out.itemsize, out.shape
    high, wide, tile = plan[HIGH], plan[WIDE_K + kind], plan[TILE_K + kind]
    step_a, step_c = KEYS_A_BLOCK * item, width * item
    for strip in range((rows + high - 1) // high):
        i = strip * high
        depth = (min(stop, first + i + high) if plan[CAUSAL] else stop) - start
        if depth > 0:
            for column in range((width + wide - 1) // wide):
                j = column * wide
                b = panels + (j * plan[KEYS] + start * wide) * item
                a, c = block[i].ctypes.data, out[i, j:].ctypes.data
                last, used = min(high, rows - i), min(wide, width - j)
                call_address(tile, depth, a, step_a, item, b, wide * item, c, step_c, 0, last, used, start)


@device
def by_queries(
    kind: int, block: Array, panels: int, out: Array, rows: int, start: int, first: int, plan: Array
) -> None:
    """Add block transposed, of `rows` queries, times panels (queries, wide) to out (keys, width).

    out: the keys of the block, from `start` on.  kind: as in `by_keys`.
    """
    item, (keys, width) = out.itemsize, out.shape
    high, wide, tile = plan[HIGH], plan[WIDE_K + kind], plan[TILE_K + kind]
    step_a, step_c = KEYS_A_BLOCK * item, width * item
    for strip in range((keys + high - 1) // high):
        i = strip * high
        skip = max(0, start + i - first) if plan[CAUSAL] else 0
        if skip < rows:
            for column in range((width + wide - 1) // wide):
                j = column * wide
                b = panels + (j * QUERIES_A_BLOCK + skip * wide) * item
                a, c = block[skip, i:].ctypes.data, out[i, j:].ctypes.data
                last, used = min(high, keys - i), min(wide, width - j)
                call_address(tile, rows - skip, a, item, step_a, b, wide * item, c, step_c, 0, last, used, 1)


@device
def hide(row: Array, mask: Array, at: int, start: int) -> None:
    """Set the scores of keys from `start` on to -inf where row `at` of the mask is false."""
    if mask.shape[1] > 1:
        _hide(row, row, mask[at, start : start + row.size])
    elif not mask[at, 0]:
        for j in range(row.size):
            row[j] = -math.inf


@device
def clear(row: Array) -> None:
    """Set a row to zero."""
    for j in range(row.size):
        row[j] = 0
