"""Attention without the matrix of scores: blocks of queries by blocks of keys (Dao et al. 2022).

Forward, a block of queries keeps a running maximum and sum of its softmax, and rescales its output when a
block of keys raises the maximum; only the logarithm of the sum of exponentials of each row is returned
besides. Backward, the scores of a block are recomputed from it.

A task is one head of keys and values with the queries that read it, or a part of them. Tasks are divided
among chunks, whose number depends on the shapes alone; each chunk has separate scratch, linear in the
sequence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import config, gemm
from .attention_scratch import (
    ARRAYS,
    OF_COLUMNS,
    OF_DELTAS,
    OF_DK,
    OF_DP,
    OF_DP_ROWS,
    OF_DV,
    OF_G,
    OF_G_ROWS,
    OF_K,
    OF_KT,
    OF_O,
    OF_P,
    OF_Q,
    OF_Q_ROWS,
    OF_SUMS,
    OF_TOPS,
    OF_V,
    counts_of,
    offsets_of,
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
    QUERIES,
    QUERIES_A_BLOCK,
    SCALE,
    TASKS,
    apply_mask,
    by_keys,
    by_queries,
    clear,
    clear_rest,
    copy_rows,
    drop,
    exp_sum,
    finish,
    first_row,
    heads_at,
    mask_row,
    multiply,
    pack_transposed_at,
    round_block,
    row_at,
    row_dot,
    row_fill,
    row_max,
    row_times,
    score_gradients,
    store_rows,
    visible_keys,
)
from .compiled import device
from .formulas import exp
from .intrinsics import Array, scalar
from .kernel import A1, A2, Kernel, Words, kernel
from .program import Address, Launch, Operand
from .rounding import ONE, rounding

#: Most chunks of a launch: the scratch of more would not stay in cache (64 chunks took 1.08 of the time of 32
#: or 16, backward for 64 heads of 128 x 32).
_CHUNKS = 32

#: Queries of few heads are cut into parts, for at least the first number of tasks. Each part packs all keys:
#: there are more parts than the second number only while the keys they pack are below the third, in bytes.
_TASKS, _PARTS, _PACKED = 16, 4, 1 << 24

_exp = scalar(exp)

#: Addresses of the arrays.
_AT_Q, _AT_K, _AT_V, _AT_OUT, _AT_LSE, _AT_G, _AT_G_LSE, _AT_DQ, _AT_DK, _AT_DV = range(ARRAYS, ARRAYS + 10)


@device
def _count(base: int, key: Array, plan: Array) -> None:
    """Write 0, 1, 2, ... to scratch: the counters of a row's random numbers."""
    columns = row_at(base + plan[OF_COLUMNS], KEYS_A_BLOCK * plan[DROPPED], key)
    for j in range(columns.size):
        columns[j] = j


@device
def _drop(p: Array, base: int, key: Array, row: int, start: int, rate: float, plan: Array) -> None:
    """Drop probabilities of a row, an index in (batch, heads, queries), for keys from `start` on."""
    columns = row_at(base + plan[OF_COLUMNS], p.size, key)
    index = (first_row(key, plan) + row) * plan[KEYS] + start
    drop(p, p, columns, key[0], key[1], index, 1.0 - rate)


@device
def _soften(
    base: int, row: int, extent: Any, mask: Array, key: Array, rate: float, like: Array, plan: Array
) -> None:
    """Replace a block of scores by exponentials, and rescale the running sums and output to their maximum."""
    (first, rows, start, stop), dim_v = extent, plan[DIM_V]
    tops, sums = row_at(base + plan[OF_TOPS], rows, like), row_at(base + plan[OF_SUMS], rows, like)
    for i in range(rows):
        visible = visible_keys(plan, first + i, start, stop)
        at = base + plan[OF_P] + i * KEYS_A_BLOCK * plan[ITEMSIZE]
        if visible > 0:
            p, before = row_at(at, visible, like), tops[i]
            if mask.size:
                apply_mask(p, mask, mask_row(row + i, plan), start)
            top = row_max(p)
            if before >= top:  # not of a NaN
                top = before
            if top == -math.inf:  # all keys so far are masked
                clear(p)
            else:
                total = exp_sum(p, p, top)
                if before != -math.inf and before != top:
                    factor = _exp(before - top)
                    o = row_at(base + plan[OF_O] + i * dim_v * plan[ITEMSIZE], dim_v, like)
                    row_times(o, o, factor)
                    sums[i] *= factor
                tops[i] = top
                sums[i] += total
                if plan[DROPPED]:
                    _drop(p, base, key, row + i, start, rate, plan)
            clear_rest(at, visible, stop - start, like, plan)


@device
def _forward_block(
    base: int, row: int, extent: Any, mask: Array, key: Array, rate: float, like: Array, plan: Array
) -> None:
    """Compute the queries whose rows are in scratch.  extent: the first in its head, and their number."""
    (first, rows), keys = extent, plan[KEYS]
    tops, sums = row_at(base + plan[OF_TOPS], rows, like), row_at(base + plan[OF_SUMS], rows, like)
    row_fill(tops, like.dtype.type(-math.inf))
    clear(sums)
    reach = min(keys, first + rows) if plan[CAUSAL] else keys
    for start in range(0, reach, KEYS_A_BLOCK):
        block = first, rows, start, min(reach, start + KEYS_A_BLOCK)
        multiply(base + plan[OF_Q], plan[DIM], base + plan[OF_KT], base + plan[OF_P], block, plan)
        _soften(base, row, block, mask, key, rate, like, plan)
        round_block(ALONG, base + plan[OF_P], base + plan[OF_P], block, plan)
        by_keys(1, base + plan[OF_P], base + plan[OF_V], base + plan[OF_O], block, plan)
    finish(row_at(plan[_AT_LSE] + row * plan[ITEMSIZE], rows, like), sums, tops, sums)


@kernel
def _attention(lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words) -> None:
    dim, dim_v, keys, queries, parts = plan[DIM], plan[DIM_V], plan[KEYS], plan[QUERIES], plan[PARTS]
    blocks, group, size_v = (
        (queries + QUERIES_A_BLOCK - 1) // QUERIES_A_BLOCK,
        plan[GROUP],
        dim_v * plan[ITEMSIZE],
    )
    one, factor = (work.dtype.type(1), ONE), (work.dtype.type(scale), plan[SCALE])
    for chunk in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + chunk * plan[CHUNK_BYTES]
        _count(base, key, plan)
        sums = row_at(base + plan[OF_SUMS], QUERIES_A_BLOCK, work)
        for task in range(chunk * plan[TASKS] // plan[CHUNKS], (chunk + 1) * plan[TASKS] // plan[CHUNKS]):
            shared, part = task // parts, task % parts
            begin = part * blocks // parts * QUERIES_A_BLOCK
            end = min(queries, (part + 1) * blocks // parts * QUERIES_A_BLOCK)
            reach = min(keys, end) if plan[CAUSAL] else keys
            at, apart = heads_at(shared, 0, plan[HEADS] // group, keys, plan)
            k, v = plan[_AT_K] + at * dim, plan[_AT_V] + at * dim_v
            pack_transposed_at(base + plan[OF_KT], k, apart * dim, (reach, dim), plan)
            store_rows(0, base + plan[OF_V], v, apart * dim_v, (reach, dim_v), one, work, plan)
            for head in range(shared * group, shared * group + group):
                for first in range(begin, end, QUERIES_A_BLOCK):
                    extent = first, min(QUERIES_A_BLOCK, end - first)
                    at, apart = heads_at(head, first, plan[HEADS], queries, plan)
                    q, shape = plan[_AT_Q] + at * dim, (extent[1], dim)
                    store_rows(base + plan[OF_Q], 0, q, apart * dim, shape, factor, work, plan)
                    _forward_block(base, head * queries + first, extent, mask, key, rate, work, plan)
                    out, step = plan[_AT_OUT] + at * dim_v, apart * dim_v
                    for i in range(extent[1]):
                        o = row_at(base + plan[OF_O] + i * size_v, dim_v, work)
                        row_times(row_at(out + i * step, dim_v, work), o, sums[i])


@device
def _to_gradients(
    base: int, row: int, extent: Any, mask: Array, key: Array, rate: float, like: Array, plan: Array
) -> None:
    """Replace a block of scores by probabilities, and gradients of probabilities by gradients of scores."""
    (first, rows, start, stop), step = extent, KEYS_A_BLOCK * plan[ITEMSIZE]
    block, gradients = base + plan[OF_P], base + plan[OF_DP]
    deltas = row_at(base + plan[OF_DELTAS], rows, like)
    lse = row_at(plan[_AT_LSE] + row * plan[ITEMSIZE], rows, like)
    for i in range(rows):
        visible = visible_keys(plan, first + i, start, stop)
        at_p, at_dp = block + i * step, gradients + i * step
        if visible > 0:
            p, dp = row_at(at_p, visible, like), row_at(at_dp, visible, like)
            if mask.size:
                apply_mask(p, mask, mask_row(row + i, plan), start)
            if plan[DROPPED]:
                _drop(dp, base, key, row + i, start, rate, plan)
            score_gradients(p, dp, p, dp, lse[i], deltas[i])
            if plan[DROPPED]:
                _drop(p, base, key, row + i, start, rate, plan)
            clear_rest(at_p, visible, stop - start, like, plan)
            clear_rest(at_dp, visible, stop - start, like, plan)


@device
def _deltas(base: int, row: int, rows: int, at: int, step: int, like: Array, plan: Array) -> None:
    """Write to scratch the sum that the softmax's gradient subtracts from a row's gradients.

    at: offset of the first row in the output and its gradient, in bytes.  step: from a row to the next.
    """
    dim_v, out, gradient = plan[DIM_V], plan[_AT_OUT] + at, plan[_AT_G] + at
    deltas = row_at(base + plan[OF_DELTAS], rows, like)
    g_lse = row_at(plan[_AT_G_LSE] + row * plan[ITEMSIZE], rows, like)
    for i in range(rows):
        g, o = row_at(gradient + i * step, dim_v, like), row_at(out + i * step, dim_v, like)
        deltas[i] = row_dot(g, o) - g_lse[i]


@device
def _backward_block(
    base: int, row: int, extent: Any, mask: Array, key: Array, rate: float, like: Array, plan: Array
) -> None:
    """Compute the queries whose rows and gradients are in scratch.  extent: as for `_forward_block`."""
    first, rows = extent
    reach = min(plan[KEYS], first + rows) if plan[CAUSAL] else plan[KEYS]
    for start in range(0, reach, KEYS_A_BLOCK):
        block = first, rows, start, min(reach, start + KEYS_A_BLOCK)
        multiply(base + plan[OF_Q], plan[DIM], base + plan[OF_KT], base + plan[OF_P], block, plan)
        multiply(base + plan[OF_G], plan[DIM_V], base + plan[OF_V], base + plan[OF_DP], block, plan)
        _to_gradients(base, row, block, mask, key, rate, like, plan)
        round_block(ACROSS, base + plan[OF_P], base + plan[OF_P], block, plan)
        round_block(ACROSS, base + plan[OF_DP_ROWS], base + plan[OF_DP], block, plan)
        round_block(ALONG, base + plan[OF_DP], base + plan[OF_DP], block, plan)
        by_keys(0, base + plan[OF_DP], base + plan[OF_K], base + plan[OF_O], block, plan)
        by_queries(0, base + plan[OF_DP_ROWS], base + plan[OF_Q_ROWS], base + plan[OF_DK], block, plan)
        by_queries(1, base + plan[OF_P], base + plan[OF_G_ROWS], base + plan[OF_DV], block, plan)


@kernel
def _attention_backward(
    lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words
) -> None:
    dim, dim_v, keys, queries, group = plan[DIM], plan[DIM_V], plan[KEYS], plan[QUERIES], plan[GROUP]
    reach = min(keys, queries) if plan[CAUSAL] else keys
    size, size_v = dim * plan[ITEMSIZE], dim_v * plan[ITEMSIZE]
    one, factor = (work.dtype.type(1), ONE), (work.dtype.type(scale), plan[SCALE])
    for chunk in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + chunk * plan[CHUNK_BYTES]
        _count(base, key, plan)
        for shared in range(chunk * plan[TASKS] // plan[CHUNKS], (chunk + 1) * plan[TASKS] // plan[CHUNKS]):
            at_keys, between = heads_at(shared, 0, plan[HEADS] // group, keys, plan)
            k, v = plan[_AT_K] + at_keys * dim, plan[_AT_V] + at_keys * dim_v
            store_rows(0, base + plan[OF_K], k, between * dim, (reach, dim), one, work, plan)
            if plan[ALONG]:
                pack_transposed_at(base + plan[OF_KT], k, between * dim, (reach, dim), plan)
            else:
                pack_transposed_at(base + plan[OF_KT], base + plan[OF_K], size, (reach, dim), plan)
            pack_transposed_at(base + plan[OF_V], v, between * dim_v, (reach, dim_v), plan)
            clear(row_at(base + plan[OF_DK], keys * dim, work))
            clear(row_at(base + plan[OF_DV], keys * dim_v, work))
            for head in range(shared * group, shared * group + group):
                for first in range(0, queries, QUERIES_A_BLOCK):
                    row, rows = head * queries + first, min(QUERIES_A_BLOCK, queries - first)
                    at, apart = heads_at(head, first, plan[HEADS], queries, plan)
                    (at, step), (at_v, step_v) = (at * dim, apart * dim), (at * dim_v, apart * dim_v)
                    q, q_rows, q_at = base + plan[OF_Q], base + plan[OF_Q_ROWS], plan[_AT_Q] + at
                    store_rows(q, q_rows, q_at, step, (rows, dim), factor, work, plan)
                    g, g_rows, g_at = base + plan[OF_G], base + plan[OF_G_ROWS], plan[_AT_G] + at_v
                    store_rows(g, g_rows, g_at, step_v, (rows, dim_v), one, work, plan)
                    _deltas(base, row, rows, at_v, step_v, work, plan)
                    _backward_block(base, row, (first, rows), mask, key, rate, work, plan)
                    copy_rows(plan[_AT_DQ] + at, step, base + plan[OF_O], size, (rows, dim), factor[0], work)
            dk, dv = plan[_AT_DK] + at_keys * dim, plan[_AT_DV] + at_keys * dim_v
            copy_rows(dk, between * dim, base + plan[OF_DK], size, (keys, dim), one[0], work)
            copy_rows(dv, between * dim_v, base + plan[OF_DV], size_v, (keys, dim_v), one[0], work)


@dataclass(frozen=True)
class Attention:
    """Attention with fixed attributes; it plans the launches of both passes.

    scale: factor of the scores.  is_causal: query i attends to keys 0 to i.  dropout: a rate.
    seq_first: arrays of heads are (batch, n, heads, d) instead of (batch, heads, n, d).
    mask: (batch or 1, heads or 1, queries or 1, keys or 1) bool, or empty.  key: (2,), of dropout.
    precision: of products: "float32", or "bfloat16" or "bfloat16_emulated", where scale q, k, v, the
        exponentials or probabilities after dropout, and backward the gradients of the result and of the
        scores are rounded; sums and the softmax are float32.
    """

    scale: float
    is_causal: bool
    dropout: float
    seq_first: bool
    precision: str = "float32"

    def forward(
        self, inputs: Sequence[Operand], outputs: Sequence[Operand], scratch: Callable[..., Operand]
    ) -> list[Launch]:
        """Plan out (batch, heads, queries, d_v) and lse (batch, heads, queries).

        inputs: q (batch, heads, queries, d), k (batch, kv_heads, keys, d), v (batch, kv_heads, keys, d_v), at
        least one key; mask; key. lse: logarithm of the sum of the exponentials of the scores; 0 where all
        keys are masked; in this order of axes always. scratch: (shape, dtype) -> operand.
        """
        return [self._launch(_attention, (*inputs[:3], *outputs), inputs[3:], 2, scratch)]

    def backward(
        self, inputs: Sequence[Operand], others: Sequence[Operand], scratch: Callable[..., Operand]
    ) -> list[Launch]:
        """Plan the gradients of q, k and v.

        inputs: as for `forward`.  others: out, lse, gradients of out and lse, and those of q, k and v.
        """
        return [self._launch(_attention_backward, (*inputs[:3], *others), inputs[3:], 5, scratch)]

    def _launch(
        self,
        kernel: Kernel,
        arrays: Sequence[Operand],
        mask_and_key: Sequence[Operand],
        products: int,
        scratch: Callable[..., Operand],
    ) -> Launch:
        q, k, v, (mask, key) = *arrays[:3], mask_and_key
        (heads, queries), (kv_heads, keys) = (sizes_of(x.shape, self.seq_first) for x in (q, k))
        batch, dim, dim_v = q.shape[0], q.shape[3], v.shape[3]
        dtype, itemsize = q.dtype.name, q.dtype.itemsize
        how = rounding(self.precision)
        wide = [gemm.panel(dtype, n) for n in (keys, dim, dim_v)]
        tiles = [gemm.micro_kernel(dtype, w, pairs=how.pairs) for w in wide]
        counts = counts_of(dim, dim_v, keys, wide, how.term, products > 2)
        counts[OF_COLUMNS] = KEYS_A_BLOCK * 8 // itemsize * (self.dropout > 0)
        offsets, size = offsets_of(counts, itemsize, how.pairs)
        parts = 1
        if products == 2:
            most = max(_PARTS, _PACKED // k.spec.nbytes)
            parts = min(-(-queries // QUERIES_A_BLOCK), -(-_TASKS // (batch * kv_heads)), most)
        tasks = batch * kv_heads * parts
        chunks = min(tasks, _CHUNKS)
        masks = mask.shape if mask.size else (1, 1, 1, 1)
        strides = [int(n > 1) * math.prod(masks[a + 1 : 3]) for a, n in enumerate(masks[:3])]
        sizes = (dim, dim_v, queries, keys, heads // kv_heads, heads, batch, parts, tasks, chunks)
        flags = (itemsize, int(self.is_causal), int(self.dropout > 0), int(self.seq_first))
        pack = gemm.packer(dtype, wide[0], True, pairs=how.pairs)
        words = (*sizes, *flags, gemm.rows(), *wide, *tiles, pack, *strides, size)
        round_words = how.shift, how.along, how.across, how.packed, _bits(self.scale)
        rows = mask.reshaped(math.prod(masks[:3]) if mask.size else 0, masks[3])
        work = scratch((chunks * size // itemsize + 64,), q.dtype)
        scores = batch * heads * queries * keys / (2 if self.is_causal else 1)
        flops = scores * (products * (dim + dim_v) + 40 + 150 * (self.dropout > 0))
        plan: tuple[int | Address, ...] = (*words, *round_words, *offsets, *(Address(a) for a in arrays))
        return kernel(chunks, flops * config.FLOP_NS, work, rows, key, self.scale, self.dropout, plan)


def sizes_of(shape: Sequence[int], seq_first: bool) -> tuple[int, int]:
    """Return how many heads and rows an array of heads has."""
    return (shape[2], shape[1]) if seq_first else (shape[1], shape[2])


def _bits(number: float) -> int:
    """Return the bits of a number in float32."""
    with np.errstate(over="ignore"):
        return int(np.float32(number).view(np.uint32))
