"""The forward pass of attention: a part of the queries of a head by all of its keys."""

import math
from typing import Any

from .attention_scratch import (
    ARRAYS,
    OF_COLUMNS,
    OF_FACTORS,
    OF_KT,
    OF_P,
    OF_Q,
    OF_SHIFTS,
    OF_SUMS,
    OF_TOPS,
    OF_V,
)
from .blocks import (
    ALONG,
    CAUSAL,
    CHUNK_BYTES,
    CHUNKS,
    DIM,
    DIM_V,
    DROPPED,
    GROUP,
    HEADS,
    ITEMSIZE,
    KEYS,
    KEYS_A_BLOCK,
    PARTS,
    QUERIES,
    QUERIES_A_BLOCK,
    SCALE,
    SPAN,
    STRIP,
    TASKS,
    apply_mask,
    by_keys,
    clear,
    clear_rest,
    cut,
    drop,
    exp_sum,
    finish,
    first_row,
    heads_at,
    mask_row,
    multiply,
    pack_transposed_at,
    rescale,
    round_block,
    row_at,
    row_fill,
    row_max,
    row_times,
    store_rows,
    terms,
    visible_keys,
)
from .compiled import device
from .intrinsics import Array
from .kernel import A1, A2, Words, kernel
from .rounding import ONE

#: Addresses of the arrays.
_AT_Q, _AT_K, _AT_V, _AT_OUT, _AT_LSE = range(ARRAYS, ARRAYS + 5)


@device
def count_columns(base: int, key: Array, plan: Array) -> None:
    """Write 0, 1, 2, ... to scratch: the counters of a row's random numbers."""
    columns = row_at(base + plan[OF_COLUMNS], KEYS_A_BLOCK * plan[DROPPED], key)
    for j in range(columns.size):
        columns[j] = j


@device
def drop_row(p: Array, base: int, key: Array, row: int, start: int, rate: float, plan: Array) -> None:
    """Drop probabilities of a row, an index in (batch, heads, queries), for keys from `start` on."""
    columns = row_at(base + plan[OF_COLUMNS], p.size, key)
    index = (first_row(key, plan) + row) * plan[KEYS] + start
    drop(p, p, columns, key[0], key[1], index, 1.0 - rate)


@device
def _soften(
    base: int, row: int, extent: Any, state: Any, mask: Array, key: Array, rate: float, plan: Array
) -> None:
    """Replace a block of scores by exponentials, and rescale the running sums and output to their maximum."""
    (first, rows, start, stop), (tops, sums, out, step) = extent, state
    shifts = row_at(base + plan[OF_SHIFTS], rows, tops)
    factors = row_at(base + plan[OF_FACTORS], rows, tops)
    # All maxima come first: each takes several steps that wait for another, which rows do side by side.
    for i in range(rows):
        visible = visible_keys(plan, first + i, start, stop)
        p = row_at(base + plan[OF_P] + i * KEYS_A_BLOCK * plan[ITEMSIZE], visible, tops)
        if mask.size:
            apply_mask(p, mask, mask_row(row + i, plan), start)
        shifts[i] = row_max(p)
    rescale(tops, shifts, factors, sums, tops, shifts, sums)
    for i in range(rows):
        visible = visible_keys(plan, first + i, start, stop)
        at = base + plan[OF_P] + i * KEYS_A_BLOCK * plan[ITEMSIZE]
        p = row_at(at, visible, tops)
        sums[i] += exp_sum(p, p, shifts[i])
        if start and factors[i] != 1.0:
            o = row_at(out + i * step, plan[DIM_V], tops)
            row_times(o, o, factors[i])
        if plan[DROPPED]:
            drop_row(p, base, key, row + i, start, rate, plan)
        if visible < stop - start:
            clear_rest(at, visible, stop - start, tops, plan)


@device
def _forward_block(
    base: int, row: int, extent: Any, state: Any, mask: Array, key: Array, rate: float, plan: Array
) -> None:
    """Compute the queries whose rows are in scratch by the keys of a strip.

    extent: the first query in its head, their number, and the strip's keys.
    state: running maxima and sums of the queries, the address of their output, bytes from a row to the next.
    """
    first, rows, origin, end = extent
    kt = base + plan[OF_KT] - origin * terms(plan[DIM], plan) * plan[ITEMSIZE]
    v = base + plan[OF_V] - terms(origin, plan) * plan[DIM_V] * plan[ITEMSIZE]
    reach = min(end, first + rows) if plan[CAUSAL] else end
    for start in range(origin, reach, KEYS_A_BLOCK):
        block = first, rows, start, min(reach, start + KEYS_A_BLOCK)
        multiply(base + plan[OF_Q], plan[DIM], kt, base + plan[OF_P], block, plan)
        _soften(base, row, block, state, mask, key, rate, plan)
        round_block(ALONG, base + plan[OF_P], base + plan[OF_P], block, plan)
        by_keys(1, base + plan[OF_P], v, (state[2], state[3], start), block, plan)


@device
def _finish(row: int, state: Any, plan: Array) -> None:
    """Write the logarithms of the sums of exponentials, and normalize the output of a block of queries."""
    tops, sums, out, step = state
    finish(row_at(plan[_AT_LSE] + row * plan[ITEMSIZE], sums.size, sums), sums, tops, sums)
    for i in range(sums.size):
        o = row_at(out + i * step, plan[DIM_V], sums)
        row_times(o, o, sums[i])


@device
def _forward_heads(
    base: int, heads: Any, strip: Any, work: A1, mask: Array, key: Array, numbers: Any, plan: Array
) -> None:
    """Compute some queries of heads that share keys and values by the keys of a strip.

    heads: the first head, their number, the first query of the part, the first that attends to the strip, and
    the end.  strip: the first key and the end.  numbers: the factor of the queries, the rate of dropout.
    """
    (head, group, begin, start, end), (origin, stop) = heads, strip
    queries, dim, itemsize, (factor, rate) = plan[QUERIES], plan[DIM], plan[ITEMSIZE], numbers
    for k in range(group):
        for first in range(start, end, QUERIES_A_BLOCK):
            rows, row = min(QUERIES_A_BLOCK, end - first), (head + k) * queries + first
            at, apart = heads_at(head + k, first, plan[HEADS], queries, plan)
            q, shape = plan[_AT_Q] + at * dim, (rows, dim)
            store_rows(base + plan[OF_Q], 0, q, apart * dim, shape, factor, work, plan)
            index = (k * plan[SPAN] + first - begin) * itemsize
            tops = row_at(base + plan[OF_TOPS] + index, rows, work)
            sums = row_at(base + plan[OF_SUMS] + index, rows, work)
            if origin == 0:
                row_fill(tops, work.dtype.type(-math.inf))
                clear(sums)
            state = tops, sums, plan[_AT_OUT] + at * plan[DIM_V], apart * plan[DIM_V]
            _forward_block(base, row, (first, rows, origin, stop), state, mask, key, rate, plan)
            if stop == plan[KEYS] or (plan[CAUSAL] and first + rows <= stop):
                _finish(row, state, plan)


@kernel
def attention(lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words) -> None:
    """Compute the output and the logarithms of the sums of exponentials."""
    dim, dim_v, keys, queries, parts = plan[DIM], plan[DIM_V], plan[KEYS], plan[QUERIES], plan[PARTS]
    group, high = plan[GROUP], QUERIES_A_BLOCK
    one, factor = (work.dtype.type(1), ONE), (work.dtype.type(scale), plan[SCALE])
    for chunk in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + chunk * plan[CHUNK_BYTES]
        count_columns(base, key, plan)
        for task in range(chunk * plan[TASKS] // plan[CHUNKS], (chunk + 1) * plan[TASKS] // plan[CHUNKS]):
            # In causal attention the last part takes longest: it is taken first.
            shared, (begin, end) = task // parts, cut(queries, high, parts - 1 - task % parts, parts)
            reach = min(keys, end) if plan[CAUSAL] else keys
            for strip in range((reach + plan[STRIP] - 1) // plan[STRIP]):
                origin, stop = strip * plan[STRIP], min(reach, (strip + 1) * plan[STRIP])
                at, apart = heads_at(shared, origin, plan[HEADS] // group, keys, plan)
                k, v = plan[_AT_K] + at * dim, plan[_AT_V] + at * dim_v
                pack_transposed_at(base + plan[OF_KT], k, apart * dim, (stop - origin, dim), plan)
                shape = stop - origin, dim_v
                store_rows(0, base + plan[OF_V], v, apart * dim_v, shape, one, work, plan)
                # Blocks of queries that attend to the strip.
                start = max(begin, origin // high * high) if plan[CAUSAL] else begin
                heads = shared * group, group, begin, start, end
                _forward_heads(base, heads, (origin, stop), work, mask, key, (factor, rate), plan)
