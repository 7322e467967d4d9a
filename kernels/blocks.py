"""Pieces of attention that work on a block: a few queries by a few keys, in cache.

A block of scores is stored as (QUERIES_A_BLOCK, KEYS_A_BLOCK), also where fewer are used. Its products are
tiles of the micro-kernel of `gemm.py`; causal attention skips tiles, and terms of sums, that no query attends
to.
"""

import math
from typing import Any

from .compiled import device
from .formulas import exp_normal, log
from .intrinsics import Array, call_address, rows_at
from .random import uniform32
from .rounding import ONE
from .rows import row_map, row_reduce
from .vector import Formula, Value, select

#: Queries and keys of a block: multiples of the micro-kernel's rows, and of its panels' columns. Two blocks
#: of float32 are 72 kB, a small part of the second-level cache.
QUERIES_A_BLOCK, KEYS_A_BLOCK = 48, 192

#: Words of a plan: sizes, tiles and packers, strides of the mask, offsets in scratch, addresses of arrays.
DIM, DIM_V, QUERIES, KEYS, GROUP, HEADS, BATCH, TASKS, CHUNKS = range(9)
#: How many parts queries, backward keys too, are cut into; queries of the longest part; keys of a strip;
#: backward the number of the launch.
PARTS, SPAN, STRIP, PHASE = range(9, 13)
ITEMSIZE, CAUSAL, DROPPED, SEQ_FIRST = range(13, 17)
HIGH, WIDE, WIDE_K, WIDE_V, TILE, TILE_K, TILE_V, PACK = range(17, 25)
MASK_BATCH, MASK_HEAD, MASK_QUERY, CHUNK_BYTES = range(25, 29)
#: The fields of a `Rounding`, and the bits of the scale.
SHIFT, ALONG, ACROSS, PACKED, SCALE = range(29, 34)
OFFSETS = 34

_add: Formula = lambda a, b: a + b
#: The maximum of a row without its NaNs: their exponentials, and so their sum, are NaN whatever it is.
row_max = row_reduce("row_max_of_numbers", lambda x: x, lambda a, b: select(a > b, a, b), -math.inf)
row_dot = row_reduce("row_dot", lambda x, y: x.astype("float64") * y.astype("float64"), _add, -0.0)
row_times = row_map("row_times_own", lambda x, factor: x * factor)
row_fill = row_map("row_fill", lambda value: value)
#: exp_normal(x - top), stored, and the sum of it.
exp_sum = row_reduce("row_exp_sum", lambda x, top: exp_normal(x - top), _add, -0.0, stored=True)


def _rescale(top: Value, largest: Value, total: Value) -> tuple[Value, Value, Value, Value]:
    new = select(top >= largest, top, largest)
    shift = select(new == -math.inf, 0.0, new)  # -inf - -inf would be NaN
    factor = exp_normal(top - shift)
    return new, shift, factor, total * factor


#: From running maxima, maxima of a block, and running sums: new maxima, numbers to subtract from the block's
#: scores, factors of the sums so far, and these sums times the factors.
rescale = row_map("row_rescale", _rescale, outs=4)
_mask = row_map("row_mask", lambda x, kept: select(kept, x, -math.inf))


def _finish(top: Value, total: Value) -> tuple[Value, Value]:
    nothing = total == 0.0  # all keys are masked; the sum of NaNs is NaN
    return select(nothing, 0.0, top + log(total)), select(nothing, 1.0, 1.0 / total)


#: From maxima and sums of rows: logarithms of sums of exponentials, and factors that normalize exponentials.
finish = row_map("row_finish", _finish, outs=2)


def _score_gradients(x: Value, dp: Value, lse: Value, delta: Value) -> tuple[Value, Value]:
    p = exp_normal(x - lse)
    return p, p * (dp - delta)


#: From scores and the gradients of probabilities: probabilities, and the gradients of scores.
score_gradients = row_map("row_score_gradients", _score_gradients, outs=2)


def _drop(x: Value, column: Value, key0: Value, key1: Value, first: Value, keep: Value) -> Value:
    kept = uniform32(key0, key1, column + first) < keep.astype("float32")
    return select(kept, x * (1.0 / keep).astype(x.dtype), 0.0)


#: Dropout of a row whose first element has the index `first` in the global array, as `fn.dropout` draws it.
drop = row_map("row_drop", _drop)


# Attention takes memory as addresses, and rows of it as arrays: slices take Numba a third longer to compile.


@device
def row_at(address: int, n: int, like: Array) -> Any:
    """Return n elements at an address as an array."""
    return rows_at(address, 1, n, like)[0]


@device
def cut(n: int, block: int, part: int, parts: int) -> Any:
    """Return the start and stop of a part of n rows: as many whole blocks as the other parts, or one more."""
    blocks = (n + block - 1) // block
    return part * blocks // parts * block, min(n, (part + 1) * blocks // parts * block)


@device
def heads_at(head: int, first: int, heads: int, count: int, plan: Array) -> Any:
    """Return the offset of a head's row in an array and the distance to the next, in bytes over the width.

    head: its index in (batch, heads), flat.  first: the row's index in its head.  count: rows of a head.
    """
    if plan[SEQ_FIRST]:
        index, apart = (head // heads * count + first) * heads + head % heads, heads
    else:
        index, apart = head * count + first, 1
    return index * plan[ITEMSIZE], apart * plan[ITEMSIZE]


@device
def first_row(key: Array, plan: Array) -> Any:
    """Return the row in the global array (batch, heads, queries) of the first row of this process."""
    return (key[0] >> 32) * plan[HEADS] * plan[QUERIES] if key[1] >> 32 == plan[BATCH] else 0


@device
def copy_rows(to: int, to_step: int, source: int, step: int, shape: Any, factor: Any, like: Array) -> None:
    """Copy rows, times a factor: from `step` bytes apart to `to_step` bytes apart.

    Tiles work on copies in scratch: they read whole strips of rows, and rows that are far apart compete for
    few sets of the first-level cache (without copies, the backward pass of 8 heads of 512 x 128, with rows 4
    kB apart, took 1.25 of the time).
    """
    rows, width = shape
    for i in range(rows):
        row_times(row_at(to + i * to_step, width, like), row_at(source + i * step, width, like), factor)


@device
def store_rows(
    along: int, across: int, source: int, step: int, shape: Any, factor: Any, like: Array, plan: Array
) -> None:
    """Copy rows, `step` bytes apart, times a factor to scratch, rounded as the plan says.

    along, across: where pairs of neighbours and pairs of rows are stored; 0 for nowhere. In float32 both are
    the rows.  factor: the number, and its bits in float32.
    """
    (rows, width), itemsize, (number, bits) = shape, plan[ITEMSIZE], factor
    if not plan[ALONG]:
        copy_rows(max(along, across), width * itemsize, source, step, shape, number, like)
        return
    if along:
        call_address(plan[ALONG], along, terms(width, plan) * itemsize, source, step, rows, width, bits)
    if across:
        call_address(plan[ACROSS], across, width * itemsize, source, step, rows, width, bits)


@device
def round_block(function: int, to: int, block: int, extent: Any, plan: Array) -> None:
    """Round a block for a product; in float32 it stays what it is.  function: word of the plan."""
    (_, rows, start, stop), step = extent, KEYS_A_BLOCK * plan[ITEMSIZE]
    if plan[function]:
        call_address(plan[function], to, step, block, step, rows, stop - start, ONE)


@device
def terms(depth: int, plan: Array) -> Any:
    """Return how many terms a sum over `depth` elements has."""
    return (depth + plan[SHIFT]) >> plan[SHIFT]


@device
def pack_transposed_at(panels: int, source: int, step: int, shape: Any, plan: Array) -> None:
    """Pack rows (n, depth), `step` bytes apart, in panels of WIDE rows, (terms of depth, WIDE) each."""
    (n, depth), wide = shape, plan[WIDE]
    size, count = terms(depth, plan) * plan[ITEMSIZE], (n + wide - 1) // wide
    for at in range(count):
        i = at * wide
        call_address(plan[PACK], source + i * step, step, depth, min(wide, n - i), panels + i * size)
    if plan[PACKED]:
        call_address(plan[PACKED], panels, 0, panels, 0, 1, count * wide * depth, ONE)


# The extent of a block: its first query in the head, its number of queries, the start and stop of its keys.


@device
def multiply(a: int, depth: int, panels: int, block: int, extent: Any, plan: Array) -> None:
    """Set a block to rows (queries, depth) times its keys, of panels (depth, wide) of all keys."""
    (first, rows, start, stop), itemsize = extent, plan[ITEMSIZE]
    high, wide, tile = plan[HIGH], plan[WIDE], plan[TILE]
    count = terms(depth, plan)
    step, step_c = count * itemsize, KEYS_A_BLOCK * itemsize
    for column in range((stop - start + wide - 1) // wide):
        j = start + column * wide
        # In causal attention, from the strip on whose last query attends to key j.
        skip = max(0, j - first) // high if plan[CAUSAL] else 0
        for strip in range(skip, (rows + high - 1) // high):
            i = strip * high
            row, b, c = a + i * step, panels + j * step, block + i * step_c + (j - start) * itemsize
            last, used = min(high, rows - i), min(wide, stop - j)
            call_address(tile, count, row, step, itemsize, b, wide * itemsize, c, step_c, 0, last, used, 0)


@device
def by_keys(kind: int, block: int, right: int, target: Any, extent: Any, plan: Array) -> None:
    """Add a block times rows of keys to rows of its queries, or store it there.

    kind: 0 for rows that are `DIM` wide, 1 for `DIM_V`.  right: the rows of all keys, or pairs of them.
    target: address of the first row, bytes from a row to the next, and 0 to store.
    """
    (first, rows, start, stop), itemsize, width = extent, plan[ITEMSIZE], plan[DIM + kind]
    out, step_c, adds = target
    high, wide, tile, step = plan[HIGH], plan[WIDE_K + kind], plan[TILE_K + kind], width * plan[ITEMSIZE]
    for strip in range((rows + high - 1) // high):
        i = strip * high
        depth = (min(stop, first + i + high) if plan[CAUSAL] else stop) - start
        if depth > 0:
            step_a, last, count = KEYS_A_BLOCK * itemsize, min(high, rows - i), terms(depth, plan)
            a = block + i * step_a
            for column in range((width + wide - 1) // wide):
                j = column * wide
                used = min(wide, width - j)
                b, c = right + (start >> plan[SHIFT]) * step + j * itemsize, out + i * step_c + j * itemsize
                call_address(tile, count, a, step_a, itemsize, b, step, c, step_c, 0, last, used, adds)


@device
def by_queries(kind: int, block: int, right: int, out: int, extent: Any, plan: Array) -> None:
    """Add a block transposed, times rows of its queries, to rows of its keys.

    kind: as in `by_keys`.  block, right: rows of its queries, or pairs of them.  out: the rows of all keys.
    """
    (first, rows, start, stop), itemsize, width = extent, plan[ITEMSIZE], plan[DIM + kind]
    high, wide, tile, step = plan[HIGH], plan[WIDE_K + kind], plan[TILE_K + kind], width * plan[ITEMSIZE]
    for strip in range((stop - start + high - 1) // high):
        i = start + strip * high
        skip = max(0, i - first) >> plan[SHIFT] if plan[CAUSAL] else 0
        count, last = terms(rows, plan) - skip, min(high, stop - i)
        if count > 0:
            a, step_a = block + (skip * KEYS_A_BLOCK + i - start) * itemsize, KEYS_A_BLOCK * itemsize
            for column in range((width + wide - 1) // wide):
                j = column * wide
                used = min(wide, width - j)
                b, c = right + skip * step + j * itemsize, out + i * step + j * itemsize
                call_address(tile, count, a, itemsize, step_a, b, step, c, step, 0, last, used, 1)


@device
def visible_keys(plan: Array, query: int, start: int, stop: int) -> Any:
    """Return how many keys from `start` to stop - 1 a query attends to."""
    return max(0, min(stop, query + 1) - start) if plan[CAUSAL] else stop - start


@device
def clear_rest(row: int, visible: int, keys: int, like: Array, plan: Array) -> None:
    """Clear the elements after a row's last visible key that tiles on the diagonal read."""
    clear(row_at(row + visible * plan[ITEMSIZE], min(plan[HIGH], keys - visible), like))


@device
def mask_row(row: int, plan: Array) -> Any:
    """Return the row of the mask for a row of the queries, an index in (batch, heads, queries), flat."""
    head, query = row // plan[QUERIES], row % plan[QUERIES]
    batch = head // plan[HEADS]
    return batch * plan[MASK_BATCH] + head % plan[HEADS] * plan[MASK_HEAD] + query * plan[MASK_QUERY]


@device
def apply_mask(row: Array, mask: Array, at: int, start: int) -> None:
    """Set the scores of keys from `start` on to -inf where row `at` of the mask is false."""
    if mask.shape[1] > 1:
        _mask(row, row, mask[at, start : start + row.size])
    elif not mask[at, 0]:
        row_fill(row, row.dtype.type(-math.inf))


@device
def clear(row: Array) -> None:
    """Set a row to zero."""
    row_fill(row, row.dtype.type(0))
