"""How a matrix product is cut into chunks and tiles, and which of its operands are packed."""

import math
from dataclasses import dataclass

from . import config, gemm

#: Terms of a block of the sum at most: the first-level cache holds a strip of A of 12 x 512 float32, 24 kB.
DEPTH = 512

#: With AVX-512, B is read in place for one or two strips of A, or for at most `_MANY` rows where the
#: last-level cache holds B: packing it took 20 % of the time of 32 x 784 x 512, and 5 % of 128 x 784 x 512;
#: it saved 30 % of that of 32 x 2048 x 2048, which comes from memory.
_FEW_STRIPS, _MANY, _CACHED = 2, 192, 8 << 20

#: It is also read in place if a block takes at most this part of the second-level cache, and stays there:
#: packing it cost 2 to 5 %, and a chunk can go from strip to strip.
_NEAR = 1 / 2

#: But it is packed for this many strips or more where it is larger than the second-level cache, which a block
#: of it spans, in rows a multiple of so many bytes apart: a panel is then in few sets of that cache, and each
#: strip reads it from farther away. With weights that come from memory, 128 x 512 x 2048 took 0.83 of the
#: time, 128 x 2048 x 512 0.8; with weights in the last-level cache as long as before.
_FAR, _SETS = 8, 2048

#: Lower tiles ask for B more often. Without AVX-512, packing pays for this many strips where B is larger than
#: the second-level cache: of the time in place, 8 x 784 x 512 took 0.74, 32 x 1000 x 500 0.4. Of smaller ones
#: it pays for a number that depends on whether the last panel is masked, where a block takes more than a part
#: of the cache (masked 16 x 300 x 300 0.88, 96 x 300 x 300 0.64; others 32 x 256 x 256 1.04, 64 x 256 x 256
#: 0.92, 128 x 512 x 256 0.85), and where it takes less (masked 16 x 100 x 100 1.06, 100 x 100 x 100 0.92;
#: others 64 x 128 x 128 1.05, 256 x 64 x 64 1.0, 1024 x 32 x 256 0.8).
_PAYS_FAR, _PAYS_NEAR, _PAYS_SMALL = 2, {True: 3, False: 8}, {True: 8, False: 32}
_SMALL_BLOCK = 1 / 8

#: Part of the second-level cache that holds a block of A, which a chunk reads again for every panel of B.
_STAYS = 3 / 4

#: Strips of A and panels of B in a chunk of a large product; strips that pay for packing a panel in each
#: chunk, and for the way to it: chunks of 3 strips lost 5 % on those of 11 at 256 x 256 x 256.
_CHUNK, _PAYS, _FEWEST = (16, 4), 32, 8

#: A is packed if B has more panels than this, and A's rows are a multiple of this many bytes apart: a strip's
#: terms are then in one set of the first-level cache, which has room for 8 of its 12 rows. Otherwise packing
#: costs: of 128 x 784 x 512, 10 to 40 % with the launch. A chunk that copies each strip instead is no faster:
#: it reads rows that far apart slowly, and 128 x 2048 x 512 took 5 % longer. A transposed A, of which each
#: term of a strip is in another row, is packed without AVX-512 if it takes more than this part of the
#: second-level cache: 256 x 1024 x 256 took 0.85 of the time, 784 x 128 x 512 0.86, 128 x 128 x 128 1.1. With
#: AVX-512 that was not tried.
_FEW_PANELS, _WAY, _SMALL = 4, 4096, 1 / 4


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: rows and columns of a tile, terms of a block, chunks along m and n, packing."""

    high: int
    wide: int
    block: int
    chunks_m: int
    chunks_n: int
    packs_a: bool
    packs_b: str  # "no", "before" all tiles, or "inside" of a chunk

    @property
    def chunks(self) -> int:
        """Chunks of a matrix."""
        return self.chunks_m * self.chunks_n


def tiling(
    m: int, k: int, n: int, batch: int, transpose_a: bool, transpose_b: bool, dtype: str, team: int
) -> Tiling:
    """Cut a product for a team of threads. Every element of C has the same bits however it is cut."""
    high, wide, itemsize = gemm.within(m), gemm.panel(dtype, n), 4 if dtype == "float32" else 8
    strips, panels = -(-m // high), -(-n // wide)
    block = -(-k // -(-k // DEPTH))
    wider = config.isa() == "avx512"
    cache, size, span = config.second_level_cache(), k * n * itemsize, block * n * itemsize
    scattered = not wider and m * k * itemsize > _SMALL * cache
    packs_a = panels > _FEW_PANELS and (scattered if transpose_a else k * itemsize % _WAY == 0)
    masks = n % wide and config.isa() == "generic"  # which has no masked loads
    near = wider and span <= _NEAR * cache
    if wider:
        few = strips <= _FEW_STRIPS or (m <= _MANY and size <= _CACHED)
        far = strips >= _FAR and size > cache <= span and n * itemsize % _SETS == 0
        in_place = near or (few and not far)
    else:
        pays = (_PAYS_NEAR if span > _SMALL_BLOCK * cache else _PAYS_SMALL)[n % wide != 0]
        in_place = strips < (_PAYS_FAR if size > cache else pays)
    if not transpose_b and not masks and in_place:
        packs_b = "no"
    else:
        packs_b = "inside" if near or m * block * itemsize <= _STAYS * cache else "before"
    if batch >= 4 * team:
        return Tiling(high, wide, block, 1, 1, packs_a, packs_b.replace("before", "inside"))
    least = -(-4 * team // batch)
    fewest = _PAYS if packs_b == "inside" else max(1, min(_FEWEST, strips // 2))
    if packs_b != "before" and (chunks := _even_chunks(strips, panels, fewest, least, team)):
        return Tiling(high, wide, block, *chunks, packs_a, packs_b)
    chunks = chunks_of(strips, panels, batch, team)
    return Tiling(high, wide, block, *chunks, packs_a, packs_b.replace("inside", "before"))


def chunks_of(strips: int, panels: int, batch: int, team: int) -> tuple[int, int]:
    """Return how many chunks along m and n a large product has."""
    per_m, per_n = _CHUNK
    while per_m * per_n > 1 and batch * -(-strips // per_m) * -(-panels // per_n) < 4 * team:
        per_m, per_n = (per_m // 2, per_n) if per_m >= per_n else (per_m, per_n // 2)
    return -(-strips // per_m), -(-panels // per_n)


def _even_chunks(strips: int, panels: int, fewest: int, least: int, team: int) -> tuple[int, int] | None:
    """Return how many chunks along m and n, at least `least` together, are even work for the team.

    A chunk is as wide as C where that is even to 3 %: threads that write next to each other in the same rows
    cost 6 % at 2048 x 128 x 128. It has at least `fewest` strips, or all.
    """
    best, chosen = math.inf, None
    for columns in (*(1 << i for i in range((panels - 1).bit_length())), panels):
        rows = min(-(-least // columns), max(strips // fewest, 1))
        chunks, wide = rows * columns, -(-panels // columns)
        longest = -(-(strips * panels * -(-chunks // team)) // (chunks * wide)) * wide
        if chunks >= least and longest < 0.97 * best:
            best, chosen = longest, (rows, columns)
    return chosen
