"""Matrix multiplication: tiles of C by the micro-kernel, B packed for them where that pays."""

import math
from dataclasses import dataclass

from . import config, gemm, threads
from .copy import copy
from .epilogue import Epilogue
from .intrinsics import call_address
from .kernel import A1, A3, Words, kernel
from .program import Launch, Operand, Spec

#: Terms of a block of the sum at most: the first-level cache holds a strip of A of 12 x 512 float32, 24 kB.
_DEPTH = 512

#: B is read where it is if so few strips of A use it, or if a block of it has at most so many bytes: half of
#: the second-level cache holds it, packing it cost 2 to 5 %, and a chunk can go from strip to strip.
_FEW_STRIPS, _NEAR = 2, 512 << 10

#: Bytes of a block of A that a chunk of work goes over for every panel of B: the second-level cache holds it.
_STAYS = 768 << 10

#: Strips of A and panels of B in a chunk of a large product; strips that pay for packing a panel in each
#: chunk, and for the way to it: chunks of 3 strips lost 5 % on those of 11 at 256 x 256 x 256.
_CHUNK, _PAYS, _FEWEST = (16, 4), 32, 8

#: Elements of a transposed A from which on a high C is made transposed.
_TURNED = 1 << 19

#: A is packed if B has more panels than this, and A's rows are a multiple of so many bytes apart: a strip's
#: terms are then in one set of the first-level cache, which has room for 8 of its 12 rows. Else it costs: of
#: 128 x 784 x 512, 10 to 40 % with the launch.
_FEW_PANELS, _WAY = 4, 4096


@kernel
def _pack(lo: int, hi: int, x: A3, out: A1, across: int, width: int, pack: int) -> None:
    # A panel is `width` neighbours of one axis by all of the other. `across`: of the last one.
    count = x.shape[2] if across else x.shape[1]
    depth = x.shape[1] if across else x.shape[2]
    row, item = x.shape[2] * x.itemsize, x.itemsize
    panels = (count + width - 1) // width
    for chunk in range(lo, hi):
        first = chunk % panels * width
        source = x.ctypes.data + chunk // panels * x.shape[1] * row + first * (item if across else row)
        target = out.ctypes.data + chunk * depth * width * item
        call_address(pack, source, row, depth, min(width, count - first), target)


@kernel
def _tiles(
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
    # plan: depth, terms of a block, rows of a strip of A, columns of a panel of B, chunks along m and
    # along n, rows of the last tile, whether A is packed, and so padded, and whether a chunk goes from
    # strip to strip, or from panel to panel. steps, in bytes: in A from row to row, term to term, strip to
    # strip, matrix to matrix; in B from term to term, panel to panel, matrix to matrix, and what `pack` is
    # given. functions: the tile, the last tile, pack, epilogue; or 0.
    m, n, item = c.shape[1], c.shape[2], c.itemsize
    depth, block, high, wide, low = plan[0], plan[1], plan[2], plan[3], plan[6]
    panels_a, panels_b = (m + high - 1) // high, (n + wide - 1) // wide
    chunks_m, chunks_n = plan[4], plan[5]
    for chunk in range(lo, hi):
        batch, down, across = chunk // (chunks_m * chunks_n), chunk // chunks_n % chunks_m, chunk % chunks_n
        top, left = down * panels_a // chunks_m, across * panels_b // chunks_n
        strips, panels = (down + 1) * panels_a // chunks_m - top, (across + 1) * panels_b // chunks_n - left
        matrix_a, matrix_b = a.ctypes.data + batch * steps[3], b.ctypes.data + batch * steps[6]
        for piece in range((depth + block - 1) // block):
            start = piece * block
            k = min(block, depth - start)
            for outer in range(strips if plan[8] else panels):
                for inner in range(panels if plan[8] else strips):
                    i, j = top + inner, left + outer
                    if plan[8]:
                        i, j = top + outer, left + inner
                    panel, step = matrix_b + start * steps[4] + j * steps[5], steps[4]
                    used = min(wide, n - j * wide)
                    if functions[2]:
                        mine = scratch.ctypes.data + chunk * block * wide * item
                        if inner == 0:
                            call_address(functions[2], panel, steps[7], k, used, mine)
                        panel, step = mine, wide * item
                    strip, row = matrix_a + i * steps[2] + start * steps[1], i * high
                    tile, first, last = functions[0], 0, high
                    if m - row < high:
                        tile, last = functions[1], m - row
                        if not plan[7]:
                            # The last tile begins earlier, lest it read past the end of A.
                            first, last = low - last, low
                            row, strip = row - first, strip - first * steps[0]
                    out = c.ctypes.data + ((batch * m + row) * n + j * wide) * item
                    call_address(
                        tile,
                        k,
                        strip,
                        steps[0],
                        steps[1],
                        panel,
                        step,
                        out,
                        n * item,
                        first,
                        last,
                        used,
                        start,
                    )
                    if functions[3] and start + k == depth:
                        row += batch * m
                        words = epilogue.ctypes.data
                        call_address(functions[3], words, row + first, row + last, j * wide, used)


@dataclass(frozen=True)
class Grid:
    """How a product is cut: the tile, terms of a block, chunks along m and n, what is packed."""

    high: int
    wide: int
    block: int
    chunks_m: int
    chunks_n: int
    packs_a: bool
    packs_b: str  # "no", "before" all tiles, or "inside" of a chunk


def grid(
    m: int, k: int, n: int, batch: int, transpose_a: bool, transpose_b: bool, dtype: str, team: int
) -> Grid:
    """Cut a product for a team of threads. Every element of C has the same bits however it is cut."""
    high, wide, item = gemm.within(m), gemm.panel(dtype, n), 4 if dtype == "float32" else 8
    strips, panels = -(-m // high), -(-n // wide)
    block = -(-k // -(-k // _DEPTH))
    packs_a = panels > _FEW_PANELS and not transpose_a and k * item % _WAY == 0
    masks = n % wide and config.isa() == "generic"  # which has no masked loads
    near = block * n * item <= _NEAR
    if not transpose_b and not masks and (strips <= _FEW_STRIPS or near):
        packs_b = "no"
    else:
        packs_b = "inside" if near or m * block * item <= _STAYS else "before"
    if batch >= 4 * team:
        return Grid(high, wide, block, 1, 1, packs_a, packs_b.replace("before", "inside"))
    least = -(-4 * team // batch)
    fewest = _PAYS if packs_b == "inside" else max(1, min(_FEWEST, strips // 2))
    if packs_b != "before" and (chunks := _cut(strips, panels, fewest, least, team)):
        return Grid(high, wide, block, *chunks, packs_a, packs_b)
    per_m, per_n = _CHUNK
    while per_m * per_n > 1 and -(-strips // per_m) * -(-panels // per_n) < least:
        per_m, per_n = (per_m // 2, per_n) if per_m >= per_n else (per_m, per_n // 2)
    chunks = -(-strips // per_m), -(-panels // per_n)
    return Grid(high, wide, block, *chunks, packs_a, packs_b.replace("inside", "before"))


def _cut(strips: int, panels: int, fewest: int, least: int, team: int) -> tuple[int, int] | None:
    """Return how many chunks along m and n, at least `least` together, are even work for the team.

    A chunk is as wide as C where that is even to 3 %: threads that write next to each other in the same rows
    cost 6 % at 2048 x 128 x 128. It has at least `fewest` strips, or all.
    """
    best, found = math.inf, None
    for columns in (*(1 << i for i in range((panels - 1).bit_length())), panels):
        rows = min(-(-least // columns), max(strips // fewest, 1))
        chunks, wide = rows * columns, -(-panels // columns)
        longest = -(-(strips * panels * -(-chunks // team)) // (chunks * wide)) * wide
        if chunks >= least and longest < 0.97 * best:
            best, found = longest, (rows, columns)
    return found


def _grid(shape: tuple[int, int, int], batch: int, ta: bool, tb: bool, dtype: str) -> Grid:
    return grid(*shape, batch, ta, tb, dtype, threads.get_num_threads())


def _turns(m: int, k: int, n: int, batch: int, transpose_a: bool, transpose_b: bool) -> bool:
    """Whether C = A' B is made as (B' A)': of a long A, rows are read as they lie, not strips of its columns.

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
    cut = _grid((m, k, n), batch, transpose_a, transpose_b, dtype)
    size_a = batch_a * -(-m // cut.high) * cut.high * k if cut.packs_a else 0
    size_b = {
        "no": 0,
        "before": batch_b * -(-n // cut.wide) * cut.wide * k,
        "inside": batch * cut.chunks_m * cut.chunks_n * cut.block * cut.wide,
    }[cut.packs_b]
    return size_a, size_b


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
    epilogue: what becomes of each tile of C while it is in cache.
    """
    batch, m, n = c.shape
    k = a.shape[1] if transpose_a else a.shape[2]
    if n == 1 < m:
        # A column is a row in memory: of b' a' every lane of a vector is used, of a b one. 75 us became 14.
        row = b.reshaped(b.shape[0], 1, k)
        turned = epilogue.of_row() if epilogue else None
        return plan(row, a, c.reshaped(batch, 1, m), False, not transpose_a, packed, turned)
    dtype, item = c.dtype.name, c.dtype.itemsize
    if epilogue is None and _turns(m, k, n, batch, transpose_a, transpose_b):
        turned_c = Operand(
            packed[0], Spec((1, n, m), c.dtype), scratch(n, k, m, 1, 1, True, False, dtype)[0] * item
        )
        launches = plan(b, a, turned_c, True, False, packed)
        return [*launches, copy(turned_c, c, (m, n), (1, m), (n, 1))]
    cut = _grid((m, k, n), batch, transpose_a, transpose_b, dtype)
    high, wide = cut.high, cut.wide
    sizes = scratch(m, k, n, a.shape[0], b.shape[0], transpose_a, transpose_b, dtype)
    room = [Operand(number, Spec((size,), c.dtype)) for number, size in zip(packed, sizes, strict=True)]
    launches, panels, low = [], -(-n // wide), gemm.height(m % high)
    row_a, step_a = (1, m) if transpose_a else (k, 1)
    steps_a = (row_a, step_a, high * row_a, m * k * (a.shape[0] > 1))
    if cut.packs_a:
        launches.append(_packed(a, room[0], False, high))
        steps_a = (1, high, high * k, -(-m // high) * high * k * (a.shape[0] > 1))
    term_b, next_b = (1, wide * k) if transpose_b else (n, wide)
    steps_b, source = (term_b, next_b, k * n * (b.shape[0] > 1), k if transpose_b else n), b
    pack = gemm.packer(dtype, wide, transpose_b) if cut.packs_b == "inside" else 0
    if cut.packs_b == "before":
        launches.append(_packed(b, room[1], not transpose_b, wide))
        steps_b, source = (wide, wide * k, panels * wide * k * (b.shape[0] > 1), 0), room[1]
    masked = cut.packs_b == "no" and n % wide != 0
    tile, last = (gemm.micro_kernel(dtype, wide, h, masked) for h in (high, low))
    left = room[0] if cut.packs_a else a
    scratch_b = room[1] if pack else source
    operands = [x.reshaped(x.size) for x in (left, source, scratch_b)]
    after, words = epilogue.bound(c) if epilogue else (0, ())
    cost = 2.0 * k + (epilogue.flops if epilogue else 0.0)
    flags = (int(cut.packs_a), int(cut.packs_b == "no"))
    numbers = (k, cut.block, high, wide, cut.chunks_m, cut.chunks_n, low, *flags)
    launches.append(
        _tiles(
            batch * cut.chunks_m * cut.chunks_n,
            batch * m * n * cost * config.FLOP_NS,
            *operands,
            c,
            numbers,
            tuple(item * step for step in (*steps_a, *steps_b)),
            (tile, last, pack, after),
            words,
        )
    )
    return launches


def _packed(x: Operand, out: Operand, across: bool, width: int) -> Launch:
    batch, rows, columns = x.shape
    count = columns if across else rows
    pack = gemm.packer(x.dtype.name, width, not across)
    work = x.spec.nbytes * config.BYTE_NS * 5
    return _pack(batch * math.ceil(count / width), work, x, out, int(across), width, pack)
