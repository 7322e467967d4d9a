"""Matrix multiplication: tiles of C by the micro-kernel of `gemm.py`, A and B packed where that pays."""

import functools
import math
from typing import Any

from . import config, gemm, threads
from .compiled import device
from .copy import copy
from .epilogue import Epilogue
from .intrinsics import call_address
from .kernel import A1, A3, Words, kernel
from .program import Launch, Operand, Spec
from .tiling import Tiling, tiling

#: Elements of a transposed A from which on a high C is computed transposed.
_TURNED = 1 << 19

#: Words of a plan: terms of the sum, terms of a block, rows of a strip of A, columns of a panel of B, chunks
#: along m and along n, rows of the last tile, whether A is packed, and so padded, and whether a chunk goes
#: from strip to strip, or from panel to panel.
_TERMS, _BLOCK, _HIGH, _WIDE, _CHUNKS_M, _CHUNKS_N, _LOW, _PACKED_A, _BY_STRIPS = range(9)
#: Words of steps, in bytes: in A from row to row, term to term, strip to strip, matrix to matrix; in B from
#: term to term, panel to panel, matrix to matrix, and the step that packing a panel takes.
_ROW_A, _TERM_A, _STRIP_A, _MATRIX_A, _TERM_B, _PANEL_B, _MATRIX_B, _PACK_STEP = range(8)
#: Words of functions, by address: a tile, the last tile, packing and epilogue, or 0. Where the last word is
#: `_INLINE`, two more are functions of tiles that apply the epilogue, for the last terms.
_TILE, _LAST_TILE, _PACK, _EPILOGUE, _FINAL, _FINAL_LAST = range(6)
_INLINE = 1


@kernel
def _pack(lo: int, hi: int, x: A3, out: A1, across: int, width: int, per: int, pack: int) -> None:
    # A panel is `width` neighbours of one axis by all of the other, `per` of its elements in one of the
    # result. `across`: of the last axis.
    count = x.shape[2] if across else x.shape[1]
    depth = x.shape[1] if across else x.shape[2]
    row, itemsize = x.shape[2] * x.itemsize, x.itemsize
    panels = (count + width - 1) // width
    for chunk in range(lo, hi):
        first = chunk % panels * width
        source = x.ctypes.data + chunk // panels * x.shape[1] * row + first * (itemsize if across else row)
        target = out.ctypes.data + chunk * ((depth + per - 1) // per) * width * itemsize
        call_address(pack, source, row, depth, min(width, count - first), target)


@device
def compute_tile(
    strip: int,
    panel: int,
    step: int,
    index: Any,
    terms: Any,
    c: A3,
    plan: Words,
    steps: Words,
    functions: Words,
    epilogue: Words,
) -> None:
    """Compute one tile of C, for some terms of its sum.

    strip, panel: addresses in A and B.  step: bytes from a term of B to the next.  index: the matrix, the
    strip, the panel.  terms: the first, and their number.
    """
    (batch, i, j), (start, k), m, n, itemsize = index, terms, c.shape[1], c.shape[2], c.itemsize
    high, wide = plan[_HIGH], plan[_WIDE]
    row, used = i * high, min(wide, n - j * wide)
    ends = functions[_EPILOGUE] != 0 and start + k == plan[_TERMS]
    inline = ends and functions[_EPILOGUE] == _INLINE
    tile, first, last = functions[_FINAL if inline else _TILE], 0, high
    if m - row < high:
        tile, last = functions[_FINAL_LAST if inline else _LAST_TILE], m - row
        if not plan[_PACKED_A]:
            # The last tile starts earlier, lest it read past the end of A.
            first, last = plan[_LOW] - last, plan[_LOW]
            row, strip = row - first, strip - first * steps[_ROW_A]
    row_a, term_a, row_c = steps[_ROW_A], steps[_TERM_A], n * itemsize
    row += batch * m
    out, words = c.ctypes.data + (row * n + j * wide) * itemsize, epilogue.ctypes.data
    if inline:
        call_address(
            tile,
            k,
            strip,
            row_a,
            term_a,
            panel,
            step,
            out,
            row_c,
            first,
            last,
            used,
            start,
            words,
            row,
            j * wide,
        )
        return
    call_address(tile, k, strip, row_a, term_a, panel, step, out, row_c, first, last, used, start)
    if ends:
        call_address(functions[_EPILOGUE], words, row + first, row + last, j * wide, used)


@device
def part_of(part: int, m: int, n: int, plan: Words) -> tuple[int, int, int, int, int]:
    """Return a part's matrix, its first strip of A, the one after its last, and the same of panels of B."""
    panels_a, panels_b = (m + plan[_HIGH] - 1) // plan[_HIGH], (n + plan[_WIDE] - 1) // plan[_WIDE]
    chunks_m, chunks_n = plan[_CHUNKS_M], plan[_CHUNKS_N]
    batch, down, across = part // (chunks_m * chunks_n), part // chunks_n % chunks_m, part % chunks_n
    top, bottom = down * panels_a // chunks_m, (down + 1) * panels_a // chunks_m
    return batch, top, bottom, across * panels_b // chunks_n, (across + 1) * panels_b // chunks_n


@kernel
def tiles(
    lo: int,
    hi: int,
    a: A1,
    b: A1,
    scratch: A1,
    c: A3,
    plan: Words,
    steps: Words,
    functions: Words,
    epilogue: Words,
) -> None:
    """Compute chunks of C, each of some strips of A by some panels of B."""
    m, n, itemsize = c.shape[1], c.shape[2], c.itemsize
    depth, block, wide = plan[_TERMS], plan[_BLOCK], plan[_WIDE]
    for chunk in range(lo, hi):
        batch, top, bottom, left, right = part_of(chunk, m, n, plan)
        strips, panels = bottom - top, right - left
        matrix_a, matrix_b = (
            a.ctypes.data + batch * steps[_MATRIX_A],
            b.ctypes.data + batch * steps[_MATRIX_B],
        )
        outers, inners = (strips, panels) if plan[_BY_STRIPS] else (panels, strips)
        packed = scratch.ctypes.data + chunk * block * wide * itemsize
        for piece in range((depth + block - 1) // block):  # a step that is no constant could raise
            start = piece * block
            k = min(block, depth - start)
            for outer in range(outers):
                for inner in range(inners):
                    i, j = top + inner, left + outer
                    if plan[_BY_STRIPS]:
                        i, j = top + outer, left + inner
                    panel, step = matrix_b + start * steps[_TERM_B] + j * steps[_PANEL_B], steps[_TERM_B]
                    if functions[_PACK] and inner == 0:
                        used = min(wide, n - j * wide)
                        call_address(functions[_PACK], panel, steps[_PACK_STEP], k, used, packed)
                    if functions[_PACK]:
                        panel, step = packed, wide * itemsize
                    strip = matrix_a + i * steps[_STRIP_A] + start * steps[_TERM_A]
                    compute_tile(
                        strip, panel, step, (batch, i, j), (start, k), c, plan, steps, functions, epilogue
                    )


def _tiling(shape: tuple[int, int, int], batch: int, ta: bool, tb: bool, dtype: str) -> Tiling:
    return tiling(*shape, batch, ta, tb, dtype, threads.get_num_threads())


def _turns(m: int, k: int, n: int, batch: int, transpose_a: bool, transpose_b: bool) -> bool:
    """Whether C = A' B is computed as (B' A)': rows of a long A are then read contiguously, not columns.

    (512, 2048) (2048, 128) took 0.8 of the time, 2 % of a step of a small GPT.
    """
    return batch == 1 and transpose_a and not transpose_b and m >= 2 * n > 2 and m * k >= _TURNED


def scratch(
    m: int,
    k: int,
    n: int,
    batch_a: int,
    batch_b: int,
    transpose_a: bool,
    transpose_b: bool,
    dtype: str,
) -> tuple[int, int]:
    """Return how many elements the packed A and the packed B take; 0 where nothing is packed."""
    if n == 1 < m:
        return scratch(1, k, m, batch_b, batch_a, False, not transpose_a, dtype)
    batch = max(batch_a, batch_b)
    if _turns(m, k, n, batch, transpose_a, transpose_b):
        size_a, size_b = scratch(n, k, m, 1, 1, True, False, dtype)
        return size_a + m * n, size_b
    cut = _tiling((m, k, n), batch, transpose_a, transpose_b, dtype)
    size_a = batch_a * -(-m // cut.high) * cut.high * k if cut.packs_a else 0
    size_b = {
        "no": 0,
        "before": batch_b * -(-n // cut.wide) * cut.wide * k,
        "inside": batch * cut.chunks * cut.block * cut.wide,
    }[cut.packs_b]
    return size_a, size_b


def as_row(b: Operand, c: Operand, epilogue: Epilogue | None) -> tuple[Operand, Operand, Epilogue | None]:
    """Return B, C and the epilogue of a product of one column as those of b' a', one row.

    A column is a row in memory: of b' a' every lane of a vector is used, of a b one.
    """
    row = b.reshaped(b.shape[0], 1, b.size // b.shape[0])
    return row, c.reshaped(c.shape[0], 1, c.shape[1]), epilogue.of_row() if epilogue else None


def plan(
    a: Operand,
    b: Operand,
    c: Operand,
    transpose_a: bool,
    transpose_b: bool,
    packed: tuple[int, int],
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    """Plan c (batch, m, n) = a b, each matrix transposed on request, k >= 1.

    a: (batch or 1, m, k), or (..., k, m) when transposed.  b: (batch or 1, k, n), or (..., n, k).
    packed: numbers of two buffers with `scratch` elements.
    epilogue: formulas applied to each tile of C while it is in cache.
    """
    batch, m, n = c.shape
    k = a.shape[1] if transpose_a else a.shape[2]
    if n == 1 < m:
        row, of_row, epilogue = as_row(b, c, epilogue)
        return plan(row, a, of_row, False, not transpose_a, packed, epilogue)
    if _turns(m, k, n, batch, transpose_a, transpose_b):
        start = scratch(n, k, m, 1, 1, True, False, c.dtype.name)[0] * c.dtype.itemsize
        transposed_c = Operand(packed[0], Spec((1, n, m), c.dtype), start)
        launches = plan(b, a, transposed_c, True, False, packed)
        launches.append(copy(transposed_c, c, (m, n), (1, m), (n, 1)))
        return [*launches, epilogue.alone(c)] if epilogue else launches
    return _plan_tiles(a, b, c, transpose_a, transpose_b, packed, epilogue)


def _plan_tiles(
    a: Operand,
    b: Operand,
    c: Operand,
    transpose_a: bool,
    transpose_b: bool,
    packed: tuple[int, int],
    epilogue: Epilogue | None,
) -> list[Launch]:
    (batch, m, n), dtype = c.shape, c.dtype.name
    k = a.shape[1] if transpose_a else a.shape[2]
    cut = _tiling((m, k, n), batch, transpose_a, transpose_b, dtype)
    sizes = scratch(m, k, n, a.shape[0], b.shape[0], transpose_a, transpose_b, dtype)
    buffers = [Operand(number, Spec((size,), c.dtype)) for number, size in zip(packed, sizes, strict=True)]
    pack_a, left, steps_a = _left(a, buffers[0], cut, transpose_a)
    pack_b, right, steps_b = _right(b, buffers[1], cut, transpose_b)
    pack = gemm.packer(dtype, cut.wide, transpose_b) if cut.packs_b == "inside" else 0
    low, masked = gemm.height(m % cut.high), cut.packs_b == "no" and n % cut.wide != 0
    tiles_of = functools.partial(gemm.micro_kernel, dtype, cut.wide, masked=masked)
    functions = [tiles_of(cut.high), tiles_of(low), pack]
    operands = [x.reshaped(x.size) for x in (left, right, buffers[1] if pack else right)]
    if epilogue and (inline := epilogue.write_back(c)):
        functions += [_INLINE, tiles_of(cut.high, epilogue=inline), tiles_of(low, epilogue=inline)]
        words = epilogue.words(c)
    else:
        after, words = epilogue.lower(c) if epilogue else (0, ())
        functions.append(after)
    flops = batch * m * n * (2.0 * k + (epilogue.flops if epilogue else 0.0))
    flags = (int(cut.packs_a), int(cut.packs_b == "no"))
    launch = tiles(
        batch * cut.chunks,
        flops * config.FLOP_NS,
        *operands,
        c,
        (k, cut.block, cut.high, cut.wide, cut.chunks_m, cut.chunks_n, low, *flags),
        tuple(c.dtype.itemsize * step for step in (*steps_a, *steps_b)),
        tuple(functions),
        words,
    )
    return [*pack_a, *pack_b, launch]


def _left(
    a: Operand, buffer: Operand, cut: Tiling, transposed: bool
) -> tuple[list[Launch], Operand, tuple[int, ...]]:
    """Return launches that pack A, where it is packed; what tiles read, and its steps in elements."""
    (batch, m, k), high = a.shape, cut.high
    if transposed:
        m, k = k, m
    if cut.packs_a:
        steps = (1, high, high * k, -(-m // high) * high * k * (batch > 1))
        return [pack_panels(a, buffer, transposed, high)], buffer, steps
    row, term = (1, m) if transposed else (k, 1)
    return [], a, (row, term, high * row, m * k * (batch > 1))


def _right(
    b: Operand, buffer: Operand, cut: Tiling, transposed: bool
) -> tuple[list[Launch], Operand, tuple[int, ...]]:
    """Return the same of B; it is packed here if it is packed before all tiles."""
    (batch, k, n), wide = b.shape, cut.wide
    if transposed:
        k, n = n, k
    if cut.packs_b == "before":
        steps = (wide, wide * k, -(-n // wide) * wide * k * (batch > 1), 0)
        return [pack_panels(b, buffer, not transposed, wide)], buffer, steps
    term, panel = (1, wide * k) if transposed else (n, wide)
    return [], b, (term, panel, k * n * (batch > 1), k if transposed else n)


def pack_panels(x: Operand, out: Operand, across: bool, width: int, pairs: bool = False) -> Launch:
    """Plan packing x (batch, rows, columns) in panels of `width` columns, of rows if not `across`.

    pairs: whether two terms are rounded to bfloat16 and take the memory of one.
    out: panels (depth, width) one after another; those of a matrix are padded to whole ones.
    """
    batch, rows, columns = x.shape
    count = columns if across else rows
    pack = gemm.packer(x.dtype.name, width, not across, pairs=pairs)
    work = x.spec.nbytes * config.BYTE_NS * 5
    return _pack(batch * math.ceil(count / width), work, x, out, int(across), width, 1 + pairs, pack)
