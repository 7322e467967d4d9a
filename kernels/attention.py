"""Attention without the matrix of scores: blocks of queries by blocks of keys (Dao et al. 2022).

Forward, a query keeps a running maximum and sum of its softmax, and its output is rescaled when a block of
keys raises the maximum; only the logarithm of the sum of exponentials of each row is returned besides.
Backward, the scores of a block are recomputed from it.

A strip of keys, a few blocks, is copied to scratch in the layouts of the products, and stays in the
second-level cache while all queries of a part pass by. Scratch is small, whatever the sequence's length.

A task is one head of keys and values with the queries that read it, or a part of them; backward, a part of
the keys with a part of the queries. There, parts that share keys or queries add to the same gradients: they
are computed one after another, in `parts` launches. Launch t pairs part i of the keys with part
(t - i) mod `parts` of the queries. So each gradient is summed in a fixed order without copies of it, and of
causal attention, where half of the pairs are empty, every launch has half.

Tasks are divided among chunks, whose number depends on the shapes alone; each chunk has separate scratch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import config, gemm
from .attention_backward import attention_backward
from .attention_forward import attention
from .attention_scratch import OF_COLUMNS, counts_of, offsets_of
from .blocks import KEYS_A_BLOCK, QUERIES_A_BLOCK
from .kernel import Kernel
from .program import Address, Launch, Operand
from .rounding import rounding

#: Most chunks of a launch: the scratch of more would not stay in cache (64 chunks took 1.08 of the time of 32
#: or 16, backward for 64 heads of 128 x 32).
_CHUNKS = 32

#: Heads are cut into parts, for at least that many tasks, if parts have at least as many queries or keys.
_TASKS, _PART_FORWARD, _PART_BACKWARD = 16, 64, 256

#: Bytes of a strip in scratch, about.
_STRIP = 1 << 18


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
        return self._launches(attention, (*inputs[:3], *outputs), inputs[3:], scratch)

    def backward(
        self, inputs: Sequence[Operand], others: Sequence[Operand], scratch: Callable[..., Operand]
    ) -> list[Launch]:
        """Plan the gradients of q, k and v.

        inputs: as for `forward`.  others: out, lse, gradients of out and lse, and those of q, k and v.
        """
        return self._launches(attention_backward, (*inputs[:3], *others), inputs[3:], scratch)

    def _launches(
        self,
        kernel: Kernel,
        arrays: Sequence[Operand],
        mask_and_key: Sequence[Operand],
        scratch: Callable[..., Operand],
    ) -> list[Launch]:
        q, k, v, (mask, key) = *arrays[:3], mask_and_key
        (heads, queries), (kv_heads, keys) = (sizes_of(x.shape, self.seq_first) for x in (q, k))
        batch, dim, dim_v, backward = q.shape[0], q.shape[3], v.shape[3], kernel is attention_backward
        dtype, itemsize, group = q.dtype.name, q.dtype.itemsize, heads // kv_heads
        how = rounding(self.precision)
        wide = [gemm.panel(dtype, n) for n in (keys, dim, dim_v)]
        tiles = [gemm.micro_kernel(dtype, w, pairs=how.pairs) for w in wide]
        parts = self._parts(batch * kv_heads, queries, keys, backward)
        span = _longest(queries, QUERIES_A_BLOCK, parts)
        strip = _longest(keys, KEYS_A_BLOCK, parts if backward else 1)
        a_block = KEYS_A_BLOCK * itemsize * (3 * dim + 2 * dim_v if backward else dim + dim_v)
        strip = min(strip, max(1, _STRIP // a_block) * KEYS_A_BLOCK)
        counts = counts_of(dim, dim_v, strip, group * span, wide, how.term, backward)
        counts[OF_COLUMNS] = KEYS_A_BLOCK * 8 // itemsize * (self.dropout > 0)
        offsets, size = offsets_of(counts, itemsize, how.pairs)
        tasks = batch * kv_heads * parts
        chunks = min(tasks, _CHUNKS)
        masks = mask.shape if mask.size else (1, 1, 1, 1)
        strides = [int(n > 1) * math.prod(masks[a + 1 : 3]) for a, n in enumerate(masks[:3])]
        sizes = (dim, dim_v, queries, keys, group, heads, batch, tasks, chunks, parts, span, strip)
        flags = (itemsize, int(self.is_causal), int(self.dropout > 0), int(self.seq_first))
        pack = gemm.packer(dtype, wide[0], True, pairs=how.pairs)
        words: tuple[int | Address, ...] = (*flags, gemm.rows(), *wide, *tiles, pack, *strides, size)
        round_words = how.shift, how.along, how.across, how.packed, _bits(self.scale)
        rest = (*words, *round_words, *offsets, *(Address(a) for a in arrays))
        rows = mask.reshaped(math.prod(masks[:3]) if mask.size else 0, masks[3])
        work = scratch((chunks * size // itemsize + 64,), q.dtype)
        scores = batch * heads * queries * keys / (2 if self.is_causal else 1)
        products = 5 if backward else 2
        flops = scores * (products * (dim + dim_v) + 40 + 150 * (self.dropout > 0))
        phases = parts if backward else 1
        work_ns, others = flops * config.FLOP_NS / phases, (work, rows, key, self.scale, self.dropout)
        return [kernel(chunks, work_ns, *others, (*sizes, phase, *rest)) for phase in range(phases)]

    def _parts(self, heads: int, queries: int, keys: int, backward: bool) -> int:
        """Return how many parts the queries of each head are cut into, backward the keys too."""
        most = min(queries, keys) // _PART_BACKWARD if backward else queries // _PART_FORWARD
        return max(1, min(most, -(-_TASKS // heads)))


def _longest(n: int, block: int, parts: int) -> int:
    """Return the rows of the longest part, padded to whole blocks; see `cut`."""
    blocks = -(-n // block)
    return -(-blocks // parts) * block


def sizes_of(shape: Sequence[int], seq_first: bool) -> tuple[int, int]:
    """Return how many heads and rows an array of heads has."""
    return (shape[2], shape[1]) if seq_first else (shape[1], shape[2])


def _bits(number: float) -> int:
    """Return the bits of a number in float32."""
    with np.errstate(over="ignore"):
        return int(np.float32(number).view(np.uint32))
