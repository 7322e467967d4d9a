"""Attention without the matrix of scores: blocks of queries meet blocks of keys (Dao et al. 2022).

Forward, a block of queries keeps the maximum and the sum of its softmax so far, and rescales its output when
a block of keys raises the maximum; of a row only the logarithm of its sum of exponentials is kept. Backward,
the scores of a block are computed again from it.

A task is one head of keys and values with the queries that read it, or a chunk of them. Tasks are dealt to
units whose number depends on the shapes alone; each unit has scratch of its own, linear in the sequence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import config, gemm
from .blocks import (
    CAUSAL,
    CHUNKS,
    DIM,
    DIM_V,
    DROPPED,
    GROUP,
    HEADS,
    KEYS,
    KEYS_A_BLOCK,
    MASK_BATCH,
    MASK_HEAD,
    MASK_QUERY,
    PACK_K,
    PACK_KT,
    PACK_V,
    PLACES,
    QUERIES,
    QUERIES_A_BLOCK,
    TASKS,
    TILE,
    UNIT_BYTES,
    UNITS,
    WIDE,
    WIDE_K,
    WIDE_V,
    by_keys,
    by_queries,
    clear,
    drop,
    exp_minus,
    hide,
    multiply,
    pack_panels,
    pack_transposed,
    row_dot,
    row_max,
    row_sum,
    row_times,
    slope,
)
from .formulas import exp, log
from .kernel import A1, A2, Array, Kernel, Words, device, kernel, rows_at, scalar
from .program import Address, Launch, Operand

#: A launch has as many units as tasks, unless their scratch were more than so many bytes and so many units.
_SCRATCH, _UNITS = 1 << 24, 16

#: Chunks that the queries of few heads are cut into, at least where there are so many: each packs all keys.
_CHUNKS = 4

_exp, _log = scalar(exp), scalar(log)

#: Places in a unit's scratch: K transposed; V, backward transposed; the queries; the block of scores; 0, 1,
#: 2, ... for dropout; a number or two for each query. Backward also K, the gradient's rows, these and the
#: queries in panels, and the block of the scores' gradients.
_KT, _V, _Q, _P, _COLUMNS, _STATE = range(PLACES, PLACES + 6)
_K, _G, _QP, _GP, _DP = range(PLACES + 6, PLACES + 11)
#: Addresses of the arrays.
_ARRAYS = PLACES + 11
_AT_Q, _AT_K, _AT_V, _AT_OUT, _AT_LSE, _AT_G, _AT_G_LSE, _AT_DQ, _AT_DK, _AT_DV = range(_ARRAYS, _ARRAYS + 10)


@device
def _seen(plan: Array, query: int, start: int, stop: int) -> Any:
    """Return how many keys from `start` to stop - 1 a query sees."""
    return max(0, min(stop, query + 1) - start) if plan[CAUSAL] else stop - start


@device
def _mask_row(row: int, plan: Array) -> Any:
    """Return the row of the mask for a row of the queries, (batch, heads, queries) in one."""
    head, query = row // plan[QUERIES], row % plan[QUERIES]
    batch = head // plan[HEADS]
    return batch * plan[MASK_BATCH] + head % plan[HEADS] * plan[MASK_HEAD] + query * plan[MASK_QUERY]


@device
def _count(base: int, key: Array, plan: Array) -> None:
    """Write 0, 1, 2, ... to scratch, which the draws of a row count from."""
    columns = rows_at(base + plan[_COLUMNS], 1, KEYS_A_BLOCK * plan[DROPPED], key)[0]
    for j in range(columns.size):
        columns[j] = j


@device
def _drop(row: Array, base: int, key: Array, index: int, rate: float, plan: Array) -> None:
    columns = rows_at(base + plan[_COLUMNS], 1, row.size, key)[0]
    drop(row, row, columns, key[0], key[1], index, 1.0 - rate)


@device
def _gather(made: int, source: int, row: int, shape: Any, factor: Any, like: Array) -> Any:
    """Copy rows of an array, times a factor, to scratch: a tile reads whole strips of them."""
    rows, width = shape
    given = rows_at(source + row * width * like.itemsize, rows, width, like)
    copy = rows_at(made, rows, width, like)
    for i in range(rows):
        row_times(copy[i], given[i], factor)
    return copy


@device
def _soften(row: Array, out: Array, tops: Array, sums: Array, i: int) -> None:
    """Make exponentials of a row of scores, and bring what there was before to their scale."""
    before, top = tops[i], row_max(row)
    if before >= top:  # not of a NaN
        top = before
    if top == -math.inf:  # nothing is kept so far
        clear(row)
        return
    exp_minus(row, row, top)
    factor = _exp(before - top)
    if before != -math.inf and factor != 1:
        row_times(out, out, factor)
    tops[i], sums[i] = top, sums[i] * factor + row_sum(row)


@device
def _forward_block(base: int, row: int, q: Array, mask: Array, key: Array, rate: float, plan: Array) -> None:
    item, (rows, _), first = q.itemsize, q.shape, row % plan[QUERIES]
    block = rows_at(base + plan[_P], rows, KEYS_A_BLOCK, q)
    state = rows_at(base + plan[_STATE], 2, QUERIES_A_BLOCK, q)
    out = rows_at(plan[_AT_OUT] + row * plan[DIM_V] * item, rows, plan[DIM_V], q)
    lse = rows_at(plan[_AT_LSE] + row * item, 1, rows, q)[0]
    for i in range(rows):
        state[0, i], state[1, i] = -math.inf, 0
    reach = min(plan[KEYS], first + rows) if plan[CAUSAL] else plan[KEYS]
    for start in range(0, reach, KEYS_A_BLOCK):
        stop = min(reach, start + KEYS_A_BLOCK)
        multiply(plan[TILE], q, base + plan[_KT], block, start, stop, first, plan)
        for i in range(rows):
            seen = _seen(plan, first + i, start, stop)
            clear(block[i, seen : stop - start])
            if seen > 0:
                scores = block[i, :seen]
                if mask.size:
                    hide(scores, mask, _mask_row(row + i, plan), start)
                _soften(scores, out[i], state[0], state[1], i)
                if plan[DROPPED]:
                    _drop(scores, base, key, (row + i) * plan[KEYS] + start, rate, plan)
        by_keys(1, block, base + plan[_V], out, start, stop, first, plan)
    for i in range(rows):
        lse[i] = 0
        if state[0, i] != -math.inf:
            lse[i] = state[0, i] + _log(state[1, i])
            row_times(out[i], out[i], q.dtype.type(1) / state[1, i])


@kernel
def _attention(lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words) -> None:
    item, dim, dim_v, keys = work.itemsize, plan[DIM], plan[DIM_V], plan[KEYS]
    queries, chunks, units = plan[QUERIES], plan[CHUNKS], plan[UNITS]
    total = (queries + QUERIES_A_BLOCK - 1) // QUERIES_A_BLOCK
    for unit in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + unit * plan[UNIT_BYTES]
        _count(base, key, plan)
        for task in range(unit * plan[TASKS] // units, (unit + 1) * plan[TASKS] // units):
            head, chunk = task // chunks, task % chunks
            begin = chunk * total // chunks * QUERIES_A_BLOCK
            end = min(queries, (chunk + 1) * total // chunks * QUERIES_A_BLOCK)
            reach = min(keys, end) if plan[CAUSAL] else keys
            k = rows_at(plan[_AT_K] + head * keys * dim * item, reach, dim, work)
            v = rows_at(plan[_AT_V] + head * keys * dim_v * item, reach, dim_v, work)
            pack_transposed(plan[PACK_KT], base + plan[_KT], k, plan[WIDE])
            pack_panels(plan[PACK_V], base + plan[_V], v, plan[WIDE_V], keys)
            for member in range(plan[GROUP]):
                for first in range(begin, end, QUERIES_A_BLOCK):
                    row = (head * plan[GROUP] + member) * queries + first
                    shape = (min(QUERIES_A_BLOCK, end - first), dim)
                    q = _gather(base + plan[_Q], plan[_AT_Q], row, shape, work.dtype.type(scale), work)
                    _forward_block(base, row, q, mask, key, rate, plan)


@device
def _slopes(
    block: Array,
    slopes: Array,
    base: int,
    row: int,
    window: Any,
    mask: Array,
    key: Array,
    rate: float,
    plan: Array,
) -> None:
    """Make probabilities of a block of scores, and the gradients of scores of those of probabilities."""
    item, rows, (start, stop) = block.itemsize, block.shape[0], window
    deltas = rows_at(base + plan[_STATE], 1, rows, block)[0]
    lse = rows_at(plan[_AT_LSE] + row * item, 1, rows, block)[0]
    for i in range(rows):
        seen = _seen(plan, row % plan[QUERIES] + i, start, stop)
        clear(block[i, seen : stop - start])
        clear(slopes[i, seen : stop - start])
        if seen > 0:
            p, dp, index = block[i, :seen], slopes[i, :seen], (row + i) * plan[KEYS] + start
            if mask.size:
                hide(p, mask, _mask_row(row + i, plan), start)
            exp_minus(p, p, lse[i])
            if plan[DROPPED]:
                _drop(dp, base, key, index, rate, plan)
            slope(dp, p, dp, deltas[i])
            if plan[DROPPED]:
                _drop(p, base, key, index, rate, plan)


@device
def _backward_block(
    base: int,
    row: int,
    rows: int,
    like: Array,
    mask: Array,
    key: Array,
    scale: float,
    rate: float,
    plan: Array,
) -> None:
    item, dim, dim_v, keys = like.itemsize, plan[DIM], plan[DIM_V], plan[KEYS]
    head, first = row // (plan[QUERIES] * plan[GROUP]), row % plan[QUERIES]
    factor, one = like.dtype.type(scale), like.dtype.type(1)
    q = _gather(base + plan[_Q], plan[_AT_Q], row, (rows, dim), factor, like)
    g = _gather(base + plan[_G], plan[_AT_G], row, (rows, dim_v), one, like)
    pack_panels(plan[PACK_K], base + plan[_QP], q, plan[WIDE_K], QUERIES_A_BLOCK)
    pack_panels(plan[PACK_V], base + plan[_GP], g, plan[WIDE_V], QUERIES_A_BLOCK)
    out = rows_at(plan[_AT_OUT] + row * dim_v * item, rows, dim_v, like)
    deltas = rows_at(base + plan[_STATE], 1, rows, like)[0]
    g_lse = rows_at(plan[_AT_G_LSE] + row * item, 1, rows, like)[0]
    for i in range(rows):
        deltas[i] = row_dot(g[i], out[i]) - g_lse[i]
    block = rows_at(base + plan[_P], rows, KEYS_A_BLOCK, like)
    slopes = rows_at(base + plan[_DP], rows, KEYS_A_BLOCK, like)
    dq = rows_at(plan[_AT_DQ] + row * dim * item, rows, dim, like)
    dk = rows_at(plan[_AT_DK] + head * keys * dim * item, keys, dim, like)
    dv = rows_at(plan[_AT_DV] + head * keys * dim_v * item, keys, dim_v, like)
    reach = min(keys, first + rows) if plan[CAUSAL] else keys
    for start in range(0, reach, KEYS_A_BLOCK):
        stop = min(reach, start + KEYS_A_BLOCK)
        multiply(plan[TILE], q, base + plan[_KT], block, start, stop, first, plan)
        multiply(plan[TILE], g, base + plan[_V], slopes, start, stop, first, plan)
        _slopes(block, slopes, base, row, (start, stop), mask, key, rate, plan)
        by_keys(0, slopes, base + plan[_K], dq, start, stop, first, plan)
        by_queries(0, slopes, base + plan[_QP], dk[start:stop], rows, start, first, plan)
        by_queries(1, block, base + plan[_GP], dv[start:stop], rows, start, first, plan)
    for i in range(rows):
        row_times(dq[i], dq[i], factor)


@kernel
def _attention_backward(
    lo: int, hi: int, work: A1, mask: A2, key: A1, scale: float, rate: float, plan: Words
) -> None:
    item, dim, dim_v, keys = work.itemsize, plan[DIM], plan[DIM_V], plan[KEYS]
    queries, units = plan[QUERIES], plan[UNITS]
    reach = min(keys, queries) if plan[CAUSAL] else keys
    for unit in range(lo, hi):
        base = (work.ctypes.data + 63) // 64 * 64 + unit * plan[UNIT_BYTES]
        _count(base, key, plan)
        for head in range(unit * plan[TASKS] // units, (unit + 1) * plan[TASKS] // units):
            k = rows_at(plan[_AT_K] + head * keys * dim * item, reach, dim, work)
            v = rows_at(plan[_AT_V] + head * keys * dim_v * item, reach, dim_v, work)
            clear(rows_at(plan[_AT_DK] + head * keys * dim * item, 1, keys * dim, work)[0])
            clear(rows_at(plan[_AT_DV] + head * keys * dim_v * item, 1, keys * dim_v, work)[0])
            pack_transposed(plan[PACK_KT], base + plan[_KT], k, plan[WIDE])
            pack_transposed(plan[PACK_KT], base + plan[_V], v, plan[WIDE])
            pack_panels(plan[PACK_K], base + plan[_K], k, plan[WIDE_K], keys)
            for member in range(plan[GROUP]):
                for first in range(0, queries, QUERIES_A_BLOCK):
                    row = (head * plan[GROUP] + member) * queries + first
                    rows = min(QUERIES_A_BLOCK, queries - first)
                    _backward_block(base, row, rows, work, mask, key, scale, rate, plan)


@dataclass(frozen=True)
class Attention:
    """Plans attention of one kind.

    scale: factor of the scores.  is_causal: query i sees keys 0 to i.  dropout: a rate.
    mask: (batch or 1, heads or 1, queries or 1, keys or 1) bool, or of no elements.  key: (2,), of dropout.
    """

    scale: float
    is_causal: bool
    dropout: float

    def forward(
        self, given: Sequence[Operand], made: Sequence[Operand], scratch: Callable[..., Operand]
    ) -> list[Launch]:
        """Plan out (batch, heads, queries, d_v) and lse (batch, heads, queries).

        given: q (batch, heads, queries, d), k (batch, kv_heads, keys, d), v (batch, kv_heads, keys, d_v), at
        least one key; mask; key. lse: logarithm of the sum of the exponentials of the scores; 0 where no key
        is seen. scratch: (shape, dtype) -> operand.
        """
        q, k = given[:2]
        blocks, heads = -(-q.shape[2] // QUERIES_A_BLOCK), k.shape[0] * k.shape[1]
        chunks = min(blocks, -(-_UNITS // heads), max(_CHUNKS, _SCRATCH // k.spec.nbytes))
        return [self._launch(_attention, (*given[:3], *made), given[3:], chunks, 2, scratch)]

    def backward(
        self, given: Sequence[Operand], others: Sequence[Operand], scratch: Callable[..., Operand]
    ) -> list[Launch]:
        """Plan the gradients of q, k and v.

        given: as for `forward`.  others: out, lse, gradients of out and lse, and those of q, k and v.
        """
        return [self._launch(_attention_backward, (*given[:3], *others), given[3:], 1, 5, scratch)]

    def _launch(
        self,
        kernel: Kernel,
        arrays: Sequence[Operand],
        mask_and_key: Sequence[Operand],
        chunks: int,
        products: int,
        scratch: Callable[..., Operand],
    ) -> Launch:
        q, v, (mask, key) = arrays[0], arrays[2], mask_and_key
        (batch, heads, queries, dim), (_, kv_heads, keys, dim_v) = q.shape, v.shape
        dtype = q.dtype.name
        wide = [gemm.panel(dtype, n) for n in (keys, dim, dim_v)]
        tiles = [gemm.micro_kernel(dtype, w) for w in wide]
        packers = [gemm.packer(dtype, w, k == 0) for k, w in enumerate(wide)]
        places, size = _places(dim, dim_v, keys, wide, q.dtype.itemsize, self.dropout > 0, products > 2)
        tasks = batch * kv_heads * chunks
        units = min(tasks, max(_UNITS, _SCRATCH // size))
        masks = mask.shape if mask.size else (1, 1, 1, 1)
        strides = [int(n > 1) * math.prod(masks[a + 1 : 3]) for a, n in enumerate(masks[:3])]
        sizes = (dim, dim_v, queries, keys, heads // kv_heads, heads, chunks, tasks, units)
        flags = (int(self.is_causal), int(self.dropout > 0))
        words = (*sizes, *flags, gemm.rows(), *wide, *tiles, *packers, *strides, size, *places)
        addresses = [Address(a) for a in arrays]
        rows = mask.reshaped(math.prod(masks[:3]) if mask.size else 0, masks[3])
        work = scratch((units * size // q.dtype.itemsize + 64,), q.dtype)
        scores = batch * heads * queries * keys / (2 if self.is_causal else 1)
        flops = scores * (products * (dim + dim_v) + 40 + 150 * (self.dropout > 0))
        return kernel(
            units, flops * config.FLOP_NS, work, rows, key, self.scale, self.dropout, (*words, *addresses)
        )


def _places(
    dim: int, dim_v: int, keys: int, wide: Sequence[int], item: int, dropped: bool, backward: bool
) -> tuple[list[int], int]:
    """Return where in a unit's scratch each of its places is, and the bytes of all of them."""
    block, padded = QUERIES_A_BLOCK * KEYS_A_BLOCK, -(-keys // wide[0]) * wide[0]
    wide_k, wide_v = (-(-n // w) * w for n, w in zip((dim, dim_v), wide[1:], strict=True))
    counts = {
        _KT: padded * dim,
        _V: padded * dim_v if backward else keys * wide_v,
        _Q: QUERIES_A_BLOCK * dim,
        _P: block,
        _COLUMNS: KEYS_A_BLOCK * 8 // item * dropped,
        _STATE: 2 * QUERIES_A_BLOCK,
        _K: keys * wide_k * backward,
        _G: QUERIES_A_BLOCK * dim_v * backward,
        _QP: QUERIES_A_BLOCK * wide_k * backward,
        _GP: QUERIES_A_BLOCK * wide_v * backward,
        _DP: block * backward,
    }
    places, size = [], 0
    for place in range(PLACES, _ARRAYS):
        places.append(size)
        size += -(-counts[place] * item // 64) * 64
    return places, size
