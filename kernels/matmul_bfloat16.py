"""Matrix multiplication in bfloat16: operands are rounded as they are packed, in pairs of terms of the sum.

A pair takes the memory of a float32. A is packed in rows of pairs, B in panels of columns, (terms, width)
each, as AVX512-BF16, AMX and NEON read them. A chunk packs what it multiplies, into memory that no other
chunk uses: of 256 x 256 x 256, packing by two threads for both took 10 us, and the product, which then reads
what another core has written, 140 instead of 78.
"""

import functools
import itertools
import math
from typing import Any

from . import amx, bfloat16, bfmmla, config, gemm, threads
from .atomics import store
from .compiled import device
from .elementwise import elementwise
from .epilogue import Epilogue
from .intrinsics import call_address
from .kernel import A1, A3, Words, kernel
from .matmul import as_row, compute_tile, part_of
from .program import Launch, Operand, Spec
from .tiling import DEPTH

#: Bytes of a block of A at most, for the second-level cache of 1 MB: of 1024 x 1024 x 1024 blocks twice as
#: high, or chunks that are as high as their block and pack B for each, took 3 and 7 % longer.
_STAYS = 384 << 10

#: Bytes of the packed panels of a chunk at most, for its part of the last-level cache.
_PANELS = 4 << 20

#: Chunks of a launch for each thread, at most.
_MOST = 16

#: Estimated ns of a pair's product, of packing a pair of A and of B among products, and of a chunk. Alone,
#: packing 1024 x 1024 takes half of that.
_PRODUCT_NS, _PACK_NS, _CHUNK_NS = 0.024, (0.3, 0.6), 300.0

#: Words of a plan, of steps, of functions; the first are those of `matmul.compute_tile`. Steps are in bytes:
#: in packed A from row to row; in A and B from stored row to row, from row of A or column of B to the next,
#: from term to term of the sum, from matrix to matrix; a chunk's block of A, and its memory.
_TERMS, _BLOCK, _HIGH, _WIDE, _CHUNKS_M, _CHUNKS_N = range(6)
_DEPTH, _PAD, _COUNT, _STRIPS = 8, 9, 10, 11
_ROW_A = 0
_STORED_A, _LINE_A, _TERM_A, _MATRIX_A, _STORED_B, _LINE_B, _TERM_B, _MATRIX_B, _LEFT, _CHUNK, _PANEL = range(
    2, 13
)
_PACK_A, _PACK_B = 4, 5


@device
def _depth(start: int, terms: int, plan: Words) -> int:
    """Return how many elements pairs have: the last one may have one."""
    return min(2 * terms, plan[_DEPTH] - 2 * start)  # type: ignore[no-any-return]


@device
def _pack_panel(panel: int, index: Any, b: A3, n: int, plan: Words, steps: Words, functions: Words) -> None:
    """Pack a panel of B, and fill it with zeros to a multiple of `_PAD` terms.

    panel: an address.  index: the matrix, the panel, the first term and their number.
    """
    (batch, j, start, terms), wide, pad = index, plan[_WIDE], plan[_PAD]
    source = b.ctypes.data + batch * steps[_MATRIX_B] + j * wide * steps[_LINE_B] + start * steps[_TERM_B]
    depth, used = _depth(start, terms, plan), min(wide, n - j * wide)
    call_address(functions[_PACK_B], source, steps[_STORED_B], depth, used, panel)
    for byte in range(terms * wide * 4, (terms + pad - 1) // pad * pad * wide * 4, 8):
        store(panel + byte, 0)


@kernel
def _chunks(
    lo: int,
    hi: int,
    a: A3,
    b: A3,
    scratch: A1,
    c: A3,
    plan: Words,
    steps: Words,
    functions: Words,
    epilogue: Words,
) -> None:
    # Parts of C, each of some strips of A by some panels of B. A thread uses the memory of one chunk for all.
    # Where a part has several blocks of A, all panels are kept, so that each is packed once.
    m, n = c.shape[1], c.shape[2]
    block, high, wide = plan[_BLOCK], plan[_HIGH], plan[_WIDE]
    parts = c.shape[0] * plan[_CHUNKS_M] * plan[_CHUNKS_N]
    packed = scratch.ctypes.data + lo * steps[_CHUNK]
    panels = packed + steps[_LEFT]
    for part in range(lo * parts // plan[_COUNT], hi * parts // plan[_COUNT]):
        batch, top, bottom, left, right = part_of(part, m, n, plan)
        blocks = (bottom - top + plan[_STRIPS] - 1) // plan[_STRIPS]
        for turn in range((plan[_TERMS] + block - 1) // block * blocks):
            start, first = turn // blocks * block, top + turn % blocks * plan[_STRIPS]
            terms, last = min(block, plan[_TERMS] - start), min(first + plan[_STRIPS], bottom)
            depth = _depth(start, terms, plan)
            source = a.ctypes.data + batch * steps[_MATRIX_A] + first * high * steps[_LINE_A]
            source += start * steps[_TERM_A]
            used = min(last * high, m) - first * high
            call_address(functions[_PACK_A], source, steps[_STORED_A], depth, used, packed, steps[_ROW_A])
            for j in range(left, right):
                panel = panels + (j - left) * steps[_PANEL]
                if first == top:
                    _pack_panel(panel, (batch, j, start, terms), b, n, plan, steps, functions)
                for i in range(first, last):
                    strip = packed + (i - first) * high * steps[_ROW_A]
                    index = batch, i, j
                    compute_tile(
                        strip, panel, 4 * wide, index, (start, terms), c, plan, steps, functions, epilogue
                    )


@functools.lru_cache(maxsize=1024)
def _cut(
    strips: int, panels: int, batch: int, sizes: tuple[int, int, int], product_ns: float, team: int
) -> tuple[int, int]:
    """Return how many chunks along m and n are the fastest: each packs its rows of A and columns of B."""
    (high, wide, block), best, chosen = sizes, math.inf, (strips, panels)
    for chunks_m, chunks_n in itertools.product(_parts(strips), _parts(panels)):
        rows, columns = -(-strips // chunks_m) * high, -(-panels // chunks_n) * wide
        if columns * block * 4 > _PANELS and chunks_n < panels:
            continue
        chunks = batch * chunks_m * chunks_n
        work = rows * columns * product_ns + rows * _PACK_NS[0] + columns * _PACK_NS[1]
        # A thread that comes late delays all by a part of a chunk. With 0.25 for it, 256 x 256 x 256 had 8
        # chunks instead of 2, and took 7 % longer; with 0.03, 2048 x 2048 x 2048 4, and took 2.5 % longer.
        turns = chunks if team == 1 else -(-chunks // team) + 0.02
        if (time := turns * (work * block + _CHUNK_NS)) < best:
            best, chosen = time, (chunks_m, chunks_n)
    return chosen


def _parts(count: int) -> list[int]:
    """Return numbers of parts to cut `count` into."""
    parts = {p * 2**i for p in (2, 3) for i in range(count.bit_length())}
    return sorted({1, count, *(p for p in parts if p < count)})


class _Tiling:
    """How a product is cut, and the bytes of its steps."""

    def __init__(self, m: int, k: int, n: int, batch: int) -> None:
        self.high, self.wide, self.terms = gemm.within(m), gemm.panel("float32", n), (k + 1) // 2
        self.low, self.pad, product = gemm.height(m % self.high), 1, _PRODUCT_NS
        self.by_amx = m >= amx.LEAST_ROWS and amx.usable()
        if self.by_amx:
            self.high = amx.height(m)
            self.low, self.pad, product = amx.height(m % self.high), amx.SIDE, product / 8
        self.by_squares = m >= bfmmla.LEAST_ROWS and bfmmla.usable()
        if self.by_squares:
            self.low, self.pad = max(self.low, bfmmla.LEAST_ROWS), bfmmla.TERMS
        pieces = -(-self.terms // DEPTH)
        self.block = -(-self.terms // (pieces * self.pad)) * self.pad
        strips, panels = -(-m // self.high), -(-n // self.wide)
        sizes = self.high, self.wide, self.block
        self.chunks_m, self.chunks_n = _cut(strips, panels, batch, sizes, product, threads.get_num_threads())
        # Rows are a multiple of a vector apart, and no multiple of what puts them into one set of the cache.
        lines = -(-4 * self.block // config.LINE)
        self.row = (lines + (lines % 2 == 0)) * config.LINE
        rows, columns = -(-strips // self.chunks_m), -(-panels // self.chunks_n)
        blocks = -(-rows * self.high * self.row // _STAYS)
        self.strips = -(-rows // blocks)
        self.left = self.strips * self.high * self.row
        self.panel = self.block * self.wide * 4
        self.bytes = self.left + self.panel * (columns if blocks > 1 else 1)
        self.panel *= blocks > 1
        # Parts that are small share a chunk, and its memory.
        self.chunks = min(batch * self.chunks_m * self.chunks_n, _MOST * threads.get_num_threads())

    def tile(self, high: int) -> int:
        """Return the address of the function of a tile of C."""
        if self.by_amx:
            return amx.micro_kernel(self.wide, high)
        if self.by_squares:
            return bfmmla.micro_kernel(self.wide, high)
        return gemm.micro_kernel("float32", self.wide, high, pairs=True)


def scratch(m: int, k: int, n: int, batch_a: int, batch_b: int) -> tuple[int, int]:
    """Return how many elements of 32 bits two buffers have: packed operands of all chunks, and none."""
    if n == 1 < m:
        return scratch(1, k, m, batch_b, batch_a)
    cut = _Tiling(m, k, n, max(batch_a, batch_b))
    return cut.chunks * cut.bytes // 4, 0


def plan(
    a: Operand,
    b: Operand,
    c: Operand,
    transpose_a: bool,
    transpose_b: bool,
    packed: tuple[int, int],
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    """Plan c = a b in float32, of operands rounded to bfloat16; for the arguments see `matmul.plan`.

    packed: numbers of two buffers with `scratch` elements.
    """
    batch, m, n = c.shape
    k = a.shape[1] if transpose_a else a.shape[2]
    if n == 1 < m:
        row, of_row, epilogue = as_row(b, c, epilogue)
        return plan(row, a, of_row, False, not transpose_a, packed, epilogue)
    cut = _Tiling(m, k, n, batch)
    after, words = epilogue.lower(c) if epilogue else (0, ())
    flops = batch * m * n * (1.0 * k + (epilogue.flops if epilogue else 0.0))
    pack_a = gemm.row_packer(transpose_a)
    pack_b = gemm.packer("float32", cut.wide, transpose_b, pairs=True)
    launch = _chunks(
        cut.chunks,
        flops * config.FLOP_NS,
        a,
        b,
        Operand(packed[0], Spec((cut.chunks * cut.bytes // 4,), c.dtype)),
        c,
        (
            cut.terms,
            cut.block,
            cut.high,
            cut.wide,
            cut.chunks_m,
            cut.chunks_n,
            cut.low,
            1,
            k,
            cut.pad,
            cut.chunks,
            cut.strips,
        ),
        (cut.row, 4, *_steps(a, transpose_a), *_steps(b, not transpose_b), cut.left, cut.bytes, cut.panel),
        (cut.tile(cut.high), cut.tile(cut.low), 0, after, pack_a, pack_b),
        words,
    )
    return [launch]


def _steps(x: Operand, across: bool) -> tuple[int, ...]:
    """Return an operand's steps in bytes. across: whether terms of the sum are rows."""
    batch, rows, columns = x.shape
    row = 4 * columns
    line, element = (4, row) if across else (row, 4)
    return row, line, 2 * element, rows * row * (batch > 1)


def rounded(x: Operand, out: Operand) -> Launch:
    """Plan out = x, rounded to bfloat16."""
    return elementwise("rounded_to_bfloat16", bfloat16.rounded, [x], [out], flops=8)
