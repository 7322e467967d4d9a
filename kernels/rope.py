"""Rotary position embedding: pairs of elements of a row, turned by an angle (Su et al. 2021)."""

from . import config
from .kernel import A2, kernel
from .program import Launch, Operand
from .rows import row_map

_turn = row_map("row_turn", lambda a, b, cos, sin: a * cos - b * sin)
_turn_other = row_map("row_turn_other", lambda a, b, cos, sin: b * cos + a * sin)


@kernel
def _rope(lo: int, hi: int, x: A2, cos: A2, sin: A2, out: A2, group: int) -> None:
    steps, half = cos.shape
    for i in range(lo * group, min(hi * group, x.shape[0])):
        a, b, t = x[i, :half], x[i, half:], i % steps
        _turn(out[i, :half], a, b, cos[t], sin[t])
        _turn_other(out[i, half:], a, b, cos[t], sin[t])


def rope(x: Operand, cos: Operand, sin: Operand, out: Operand) -> Launch:
    """Plan elements k and k + d/2 of rows of x (n, d) turned by angles; row i has those of i modulo steps.

    cos, sin: (steps, d/2).
    """
    n, d = x.shape
    group = max(1, config.ELEMENTWISE_UNIT // d)
    return _rope(-(-n // group), x.spec.nbytes * 2 * config.BYTE_NS, x, cos, sin, out, group)
