"""The backward pass of attention: a part of the queries of a head by a part of its keys."""

from typing import Any

from .attention_forward import count_columns, drop_row
from .attention_scratch import (
    ARRAYS,
    OF_DELTAS,
    OF_DK,
    OF_DP,
    OF_DP_ROWS,
    OF_DV,
    OF_G,
    OF_G_ROWS,
    OF_K,
    OF_KT,
    OF_P,
    OF_Q,
    OF_Q_ROWS,
    OF_V,
)
from .blocks import (
    ACROSS,
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
    PHASE,
    QUERIES,
    QUERIES_A_BLOCK,
    SCALE,
    SPAN,
    STRIP,
    TASKS,
    apply_mask,
    by_keys,
    by_queries,
    clear,
    clear_rest,
    copy_rows,
    cut,
    heads_at,
    mask_row,
    multiply,
    pack_transposed_at,
    round_block,
    row_at,
    row_dot,
    row_times,
    score_gradients,
    store_rows,
    terms,
    visible_keys,
)
from .compiled import device
from .intrinsics import Array
from .kernel import A1, A2, Words, kernel
from .rounding import ONE

#: Addresses of the arrays.
_AT_Q, _AT_K, _AT_V, _AT_OUT, _AT_LSE, _AT_G, _AT_G_LSE, _AT_DQ, _AT_DK, _AT_DV = range(ARRAYS, ARRAYS + 10)


@device
def _to_gradients(
    base: int, row: int, extent: Any, deltas: Array, mask: Array, key: Array, rate: float, plan: Array
) -> None:
    """Replace a block of scores by probabilities, and gradients of probabilities by gradients of scores."""
    (first, rows, start, stop), step = extent, KEYS_A_BLOCK * plan[ITEMSIZE]
    block, gradients = base + plan[OF_P], base + plan[OF_DP]
    lse = row_at(plan[_AT_LSE] + row * plan[ITEMSIZE], rows, deltas)
    for i in range(rows):
        visible = visible_keys(plan, first + i, start, stop)
        at_p, at_dp = block + i * step, gradients + i * step
        if visible > 0:
            p, dp = row_at(at_p, visible, deltas), row_at(at_dp, visible, deltas)
            if mask.size:
                apply_mask(p, mask, mask_row(row + i, plan), start)
            if plan[DROPPED]:
                drop_row(dp, base, key, row + i, start, rate, plan)
            score_gradients(p, dp, p, dp, lse[i], deltas[i])
            if plan[DROPPED]:
                drop_row(p, base, key, row + i, start, rate, plan)
            if visible < stop - start:
                clear_rest(at_p, visible, stop - start, deltas, plan)
                clear_rest(at_dp, visible, stop - start, deltas, plan)


@device
def _write_deltas(deltas: Array, row: int, at: int, step: int, plan: Array) -> None:
    """Write the sum that the softmax's gradient subtracts from a row's gradients.

    at: offset of the first row in the output and its gradient, in bytes.  step: from a row to the next.
    """
    dim_v, out, gradient = plan[DIM_V], plan[_AT_OUT] + at, plan[_AT_G] + at
    g_lse = row_at(plan[_AT_G_LSE] + row * plan[ITEMSIZE], deltas.size, deltas)
    for i in range(deltas.size):
        g, o = row_at(gradient + i * step, dim_v, deltas), row_at(out + i * step, dim_v, deltas)
        deltas[i] = row_dot(g, o) - g_lse[i]


@device
def _backward_block(
    base: int, row: int, extent: Any, target: Any, mask: Array, key: Array, rate: float, plan: Array
) -> None:
    """Compute the queries whose rows and gradients are in scratch by the keys of a strip.

    extent: as for `_forward_block`.
    target: deltas of the queries, the address of their gradient, bytes from a row to the next.
    """
    (first, rows, origin, end), (deltas, dq, step) = extent, target
    size, size_v = plan[DIM] * plan[ITEMSIZE], plan[DIM_V] * plan[ITEMSIZE]
    kt = base + plan[OF_KT] - origin * terms(plan[DIM], plan) * plan[ITEMSIZE]
    vt = base + plan[OF_V] - origin * terms(plan[DIM_V], plan) * plan[ITEMSIZE]
    k = base + plan[OF_K] - terms(origin, plan) * size
    dk, dv = base + plan[OF_DK] - origin * size, base + plan[OF_DV] - origin * size_v
    reach = min(end, first + rows) if plan[CAUSAL] else end
    for start in range(origin, reach, KEYS_A_BLOCK):
        block = first, rows, start, min(reach, start + KEYS_A_BLOCK)
        multiply(base + plan[OF_Q], plan[DIM], kt, base + plan[OF_P], block, plan)
        multiply(base + plan[OF_G], plan[DIM_V], vt, base + plan[OF_DP], block, plan)
        _to_gradients(base, row, block, deltas, mask, key, rate, plan)
        round_block(ACROSS, base + plan[OF_P], base + plan[OF_P], block, plan)
        round_block(ACROSS, base + plan[OF_DP_ROWS], base + plan[OF_DP], block, plan)
        round_block(ALONG, base + plan[OF_DP], base + plan[OF_DP], block, plan)
        by_keys(0, base + plan[OF_DP], k, (dq, step, 1), block, plan)
        by_queries(0, base + plan[OF_DP_ROWS], base + plan[OF_Q_ROWS], dk, block, plan)
        by_queries(1, base + plan[OF_P], base + plan[OF_G_ROWS], dv, block, plan)


@device
def _begin_strip(base: int, shared: int, extent: Any, work: Array, plan: Array) -> None:
    """Copy a strip of keys and values to scratch, and their gradients so far.  extent: start, stop."""
    (origin, stop), dim, dim_v, one = extent, plan[DIM], plan[DIM_V], (work.dtype.type(1), ONE)
    size, size_v, rows = dim * plan[ITEMSIZE], dim_v * plan[ITEMSIZE], stop - origin
    at, apart = heads_at(shared, origin, plan[HEADS] // plan[GROUP], plan[KEYS], plan)
    k, v = plan[_AT_K] + at * dim, plan[_AT_V] + at * dim_v
    store_rows(0, base + plan[OF_K], k, apart * dim, (rows, dim), one, work, plan)
    if plan[ALONG]:
        pack_transposed_at(base + plan[OF_KT], k, apart * dim, (rows, dim), plan)
    else:
        pack_transposed_at(base + plan[OF_KT], base + plan[OF_K], size, (rows, dim), plan)
    pack_transposed_at(base + plan[OF_V], v, apart * dim_v, (rows, dim_v), plan)
    if plan[PHASE] == 0:
        clear(row_at(base + plan[OF_DK], rows * dim, work))
        clear(row_at(base + plan[OF_DV], rows * dim_v, work))
    else:
        dk, dv = plan[_AT_DK] + at * dim, plan[_AT_DV] + at * dim_v
        copy_rows(base + plan[OF_DK], size, dk, apart * dim, (rows, dim), one[0], work)
        copy_rows(base + plan[OF_DV], size_v, dv, apart * dim_v, (rows, dim_v), one[0], work)


@device
def _end_strip(base: int, shared: int, extent: Any, work: Array, plan: Array) -> None:
    """Copy the gradients of a strip from scratch."""
    (origin, stop), dim, dim_v, one = extent, plan[DIM], plan[DIM_V], work.dtype.type(1)
    at, apart = heads_at(shared, origin, plan[HEADS] // plan[GROUP], plan[KEYS], plan)
    dk, dv, rows = plan[_AT_DK] + at * dim, plan[_AT_DV] + at * dim_v, stop - origin
    copy_rows(dk, apart * dim, base + plan[OF_DK], dim * plan[ITEMSIZE], (rows, dim), one, work)
    copy_rows(dv, apart * dim_v, base + plan[OF_DV], dim_v * plan[ITEMSIZE], (rows, dim_v), one, work)


@device
def _clear_rest_of_keys(shared: int, start: int, work: Array, plan: Array) -> None:
    """Clear the gradients of keys from `start` on, which no query attends to."""
    at, apart = heads_at(shared, 0, plan[HEADS] // plan[GROUP], plan[KEYS], plan)
    for j in range(start, plan[KEYS]):
        at_dim, at_dim_v = (at + j * apart) * plan[DIM], (at + j * apart) * plan[DIM_V]
        clear(row_at(plan[_AT_DK] + at_dim, plan[DIM], work))
        clear(row_at(plan[_AT_DV] + at_dim_v, plan[DIM_V], work))


@device
def _scale_rows(shared: int, extent: Any, factor: Any, work: Array, plan: Array) -> None:
    """Multiply gradients of queries by a number, or clear them if it is 0.  extent: start, stop in a head."""
    begin, end = extent
    for head in range(shared * plan[GROUP], (shared + 1) * plan[GROUP]):
        at, apart = heads_at(head, begin, plan[HEADS], plan[QUERIES], plan)
        for i in range(end - begin):
            dq = row_at(plan[_AT_DQ] + (at + i * apart) * plan[DIM], plan[DIM], work)
            if factor[1]:
                row_times(dq, dq, factor[0])
            else:
                clear(dq)


@device
def _strip(
    base: int, shared: int, extent: Any, mask: Array, key: Array, factor: Any, work: Array, plan: Array
) -> None:
    """Compute a strip of keys by a part of the queries of the heads that share them.

    extent: start and stop of the keys, start and stop of the queries, whether it is the task's first strip.
    factor: of scores, its bits, and the rate of dropout.
    """
    (origin, stop, begin, end, new), dim, dim_v = extent, plan[DIM], plan[DIM_V]
    one, high = (work.dtype.type(1), ONE), QUERIES_A_BLOCK
    # Blocks of queries that attend to the strip.
    start = max(begin, origin // high * high) if plan[CAUSAL] else begin
    for head in range(shared * plan[GROUP], (shared + 1) * plan[GROUP]):
        for first in range(start, end, high):
            row, rows = head * plan[QUERIES] + first, min(high, end - first)
            at, apart = heads_at(head, first, plan[HEADS], plan[QUERIES], plan)
            (at, step), (at_v, step_v) = (at * dim, apart * dim), (at * dim_v, apart * dim_v)
            q, q_rows = base + plan[OF_Q], base + plan[OF_Q_ROWS]
            store_rows(q, q_rows, plan[_AT_Q] + at, step, (rows, dim), factor[:2], work, plan)
            g, g_rows = base + plan[OF_G], base + plan[OF_G_ROWS]
            store_rows(g, g_rows, plan[_AT_G] + at_v, step_v, (rows, dim_v), one, work, plan)
            index = (head - shared * plan[GROUP]) * plan[SPAN] + first - begin
            deltas = row_at(base + plan[OF_DELTAS] + index * plan[ITEMSIZE], rows, work)
            if new:
                _write_deltas(deltas, row, at_v, step_v, plan)
            block, target = (first, rows, origin, stop), (deltas, plan[_AT_DQ] + at, step)
            _backward_block(base, row, block, target, mask, key, factor[2], plan)


@kernel
def attention_backward(
    lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words
) -> None:
    """Add to the gradients those of a launch's pairs of parts; the first launch sets them."""
    keys, queries, parts, phase = plan[KEYS], plan[QUERIES], plan[PARTS], plan[PHASE]
    reach = min(keys, queries) if plan[CAUSAL] else keys
    factor, nothing = (work.dtype.type(scale), plan[SCALE], rate), (work.dtype.type(0), 0)
    for chunk in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + chunk * plan[CHUNK_BYTES]
        count_columns(base, key, plan)
        for task in range(chunk * plan[TASKS] // plan[CHUNKS], (chunk + 1) * plan[TASKS] // plan[CHUNKS]):
            shared, part = task // parts, task % parts
            begin, end = cut(queries, QUERIES_A_BLOCK, (phase - part) % parts, parts)
            start, stop = cut(reach, KEYS_A_BLOCK, part, parts)
            if phase == 0:
                _scale_rows(shared, (begin, end), nothing, work, plan)
                if part == parts - 1:
                    _clear_rest_of_keys(shared, reach, work, plan)
            for strip in range((stop - start + plan[STRIP] - 1) // plan[STRIP]):
                origin = start + strip * plan[STRIP]
                extent = origin, min(stop, origin + plan[STRIP])
                if phase == 0 or end > origin or not plan[CAUSAL]:
                    _begin_strip(base, shared, extent, work, plan)
                    both = origin, extent[1], begin, end, strip == 0
                    _strip(base, shared, both, mask, key, factor, work, plan)
                    _end_strip(base, shared, extent, work, plan)
            if phase == parts - 1:
                _scale_rows(shared, (begin, end), (factor[0], 1), work, plan)
