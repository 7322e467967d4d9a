"""Rotary position embedding: pairs of elements of a row, turned by an angle (Su et al. 2021)."""

from . import config
from .kernel import A2, kernel
from .program import Launch, Operand
from .rows import row_map

_turn = row_map("row_turn", lambda a, b, cos, sin: (a * cos - b * sin, b * cos + a * sin), outs=2)

#: Estimated cost of a row besides its bytes: 32768 rows of 32 took 49 us, where the bytes alone say 21.
_ROW_NS = 1.0


@kernel
def _rope(lo: int, hi: int, x: A2, cos: A2, sin: A2, out: A2, heads: int, group: int) -> None:
    steps, half = cos.shape
    for position in range(lo * group, min(hi * group, x.shape[0] // heads)):
        t = position % steps
        for i in range(position * heads, position * heads + heads):
            _turn(out[i, :half], out[i, half:], x[i, :half], x[i, half:], cos[t], sin[t])


def rope(x: Operand, cos: Operand, sin: Operand, out: Operand, heads: int) -> Launch:
    """Plan elements k and k + d/2 of rows of x (n, d) turned by angles.

    cos, sin: (steps, d/2). Row i has the angles of i // heads modulo steps.
    """
    n, d = x.shape
    group = max(1, config.ELEMENTWISE_CHUNK // (d * heads))
    work_ns = n * _ROW_NS + x.spec.nbytes * 2 * config.BYTE_NS
    return _rope(-(-n // (heads * group)), work_ns, x, cos, sin, out, heads, group)
