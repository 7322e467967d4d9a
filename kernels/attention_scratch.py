"""The parts of the scratch of a chunk of attention: their offsets in a plan, and their sizes."""

from collections.abc import Sequence

from .blocks import KEYS_A_BLOCK, OFFSETS, QUERIES_A_BLOCK

#: Words of a plan with the offsets: of a strip of keys K transposed, and V, backward transposed; queries; the
#: block of scores; 0, 1, 2, ... for dropout; of each query of a part the running maximum and sum; of each of
#: a block the number to subtract from its scores, and the factor of its sums so far. Backward also the
#: strip's K and the gradients of K and V, rows of the output's gradient, the block of the scores' gradients,
#: and a number for each query of a part.
OF_KT, OF_V, OF_Q, OF_P, OF_COLUMNS, OF_TOPS, OF_SUMS, OF_SHIFTS, OF_FACTORS = range(OFFSETS, OFFSETS + 9)
OF_K, OF_G, OF_DP, OF_DK, OF_DV, OF_DELTAS = range(OFFSETS + 9, OFFSETS + 15)
#: Backward: pairs of rows of the queries, of the output's gradient and of the scores' gradients. Where
#: products have no pairs, the offsets are those of the rows themselves.
OF_Q_ROWS, OF_G_ROWS, OF_DP_ROWS = range(OFFSETS + 15, OFFSETS + 18)
_ROWS = {OF_Q_ROWS: OF_Q, OF_G_ROWS: OF_G, OF_DP_ROWS: OF_DP}
#: The first word after the offsets.
ARRAYS = OFFSETS + 18


def counts_of(
    dim: int, dim_v: int, strip: int, queries: int, wide: Sequence[int], term: int, backward: bool
) -> dict[int, int]:
    """Return how many elements each part has, except for dropout's.

    strip: keys of a strip.  queries: those of a part, of all heads that share keys.
    wide: columns of panels of `keys`, `dim` and `dim_v`.  term: elements of a term, which takes one's memory.
    """
    block, padded, rows = QUERIES_A_BLOCK * KEYS_A_BLOCK, -(-strip // wide[0]) * wide[0], -(-strip // term)
    # A tile reads whole vectors, also after the last row.
    queries_q, queries_v = QUERIES_A_BLOCK * dim + wide[1], QUERIES_A_BLOCK * dim_v + wide[2]
    return {
        OF_KT: padded * -(-dim // term),
        OF_V: padded * -(-dim_v // term) if backward else rows * dim_v + wide[2],
        OF_Q: queries_q,
        OF_P: block,
        **dict.fromkeys((OF_TOPS, OF_SUMS), queries * (not backward)),
        **dict.fromkeys((OF_SHIFTS, OF_FACTORS), QUERIES_A_BLOCK * (not backward)),
        OF_DELTAS: queries * backward,
        OF_K: (rows * dim + wide[1]) * backward,
        OF_G: queries_v * backward,
        OF_DP: block * backward,
        OF_DK: strip * dim * backward,
        OF_DV: strip * dim_v * backward,
        OF_Q_ROWS: queries_q * backward,
        OF_G_ROWS: queries_v * backward,
        OF_DP_ROWS: block // 2 * backward,
    }


def offsets_of(counts: dict[int, int], itemsize: int, pairs: bool) -> tuple[list[int], int]:
    """Return the offsets of all parts in order, and the size of the scratch, in bytes."""
    offsets, size = dict[int, int](), 0
    for part in range(OFFSETS, ARRAYS):
        if part in _ROWS and not pairs:
            offsets[part] = offsets[_ROWS[part]]
            continue
        offsets[part] = size
        size += -(-counts[part] * itemsize // 64) * 64
    return list(offsets.values()), size
