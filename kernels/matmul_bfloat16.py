"""Matrix multiplication in bfloat16: operands are rounded as they are packed, in pairs of terms of the sum.

A pair takes the memory of a float32, so that the tiles are cut as those of float32 with half of the terms.
"""

from . import bfloat16, config, gemm, threads
from .elementwise import elementwise
from .epilogue import Epilogue
from .intrinsics import call_address
from .kernel import A1, A3, kernel
from .matmul import DEPTH, chunks_of, tiles
from .program import Launch, Operand, Spec

#: Rows of B, or of a transposed A, that are packed at a time.
_ROWS = 32


@kernel
def _pack_rows(lo: int, hi: int, x: A3, out: A1, width: int, pack: int) -> None:
    # Panels of the last axis, a block of rows after another: rows are read contiguously, where those of a
    # panel are apart. Of (2048, 512) that took 0.65 of the time.
    depth, count, itemsize = x.shape[1], x.shape[2], x.itemsize
    terms, row = (depth + 1) // 2, count * itemsize
    blocks, panels = (depth + _ROWS - 1) // _ROWS, (count + width - 1) // width
    for chunk in range(lo, hi):
        matrix, first = chunk // blocks, chunk % blocks * _ROWS
        rows = min(_ROWS, depth - first)
        source = x.ctypes.data + (matrix * depth + first) * row
        for panel in range(panels):
            at = panel * width
            to = out.ctypes.data + ((matrix * panels + panel) * terms + first // 2) * width * itemsize
            call_address(pack, source + at * itemsize, row, rows, min(width, count - at), to)


@kernel
def _pack_panels(lo: int, hi: int, x: A3, out: A1, width: int, pack: int) -> None:
    # Panels of the axis before the last, each of whole rows.
    count, depth, itemsize = x.shape[1], x.shape[2], x.itemsize
    terms, row, panels = (depth + 1) // 2, depth * itemsize, (count + width - 1) // width
    for chunk in range(lo, hi):
        first = chunk % panels * width
        source = x.ctypes.data + (chunk // panels * count + first) * row
        call_address(
            pack,
            source,
            row,
            depth,
            min(width, count - first),
            out.ctypes.data + chunk * terms * width * itemsize,
        )


def scratch(m: int, k: int, n: int, batch_a: int, batch_b: int) -> tuple[int, int]:
    """Return how many elements of 32 bits the packed A and the packed B take."""
    if n == 1 < m:
        return scratch(1, k, m, batch_b, batch_a)
    high, wide, terms = gemm.within(m), gemm.panel("float32", n), (k + 1) // 2
    return batch_a * -(-m // high) * high * terms, batch_b * -(-n // wide) * wide * terms


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
        row = b.reshaped(b.shape[0], 1, k)
        of_row = epilogue.of_row() if epilogue else None
        return plan(row, a, c.reshaped(batch, 1, m), False, not transpose_a, packed, of_row)
    terms, high, wide = (k + 1) // 2, gemm.within(m), gemm.panel("float32", n)
    block = -(-terms // -(-terms // DEPTH))
    strips, panels = -(-m // high), -(-n // wide)
    chunks_m, chunks_n = chunks_of(strips, panels, batch, threads.get_num_threads())
    specs = [Spec((size,), c.dtype) for size in scratch(m, k, n, a.shape[0], b.shape[0])]
    left, right = (Operand(number, spec) for number, spec in zip(packed, specs, strict=True))
    low = gemm.height(m % high)
    tile, last = (gemm.micro_kernel("float32", wide, h, pairs=True) for h in (high, low))
    after, words = epilogue.lower(c) if epilogue else (0, ())
    flops = batch * m * n * (1.0 * k + (epilogue.flops if epilogue else 0.0))
    steps_a = (1, high, high * terms, strips * high * terms * (a.shape[0] > 1))
    steps_b = (wide, wide * terms, panels * wide * terms * (b.shape[0] > 1), 0)
    launch = tiles(
        batch * chunks_m * chunks_n,
        flops * config.FLOP_NS,
        left,
        right,
        right,
        c,
        (terms, block, high, wide, chunks_m, chunks_n, low, 1, 0),
        tuple(4 * step for step in (*steps_a, *steps_b)),
        (tile, last, 0, after),
        words,
    )
    return [_packed(a, left, transpose_a, high), _packed(b, right, not transpose_b, wide), launch]


def _packed(x: Operand, out: Operand, across: bool, width: int) -> Launch:
    """Plan the packing of panels of `width` columns (across) or rows."""
    batch, rows = x.shape[:2]
    pack = gemm.packer(x.dtype.name, width, not across, pairs=True)
    work = x.spec.nbytes * config.BYTE_NS * 5
    if across:
        return _pack_rows(batch * -(-rows // _ROWS), work, x, out, width, pack)
    return _pack_panels(batch * -(-rows // width), work, x, out, width, pack)


def rounded(x: Operand, out: Operand) -> Launch:
    """Plan out = x, rounded to bfloat16."""
    return elementwise("rounded_to_bfloat16", bfloat16.rounded, [x], [out], flops=8)
