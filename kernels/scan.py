"""Running sums. Arrays are viewed as (outer, n, inner), summed along n."""

from . import config
from .kernel import A1, A3, kernel
from .program import Launch, Operand


@kernel
def _cumsum(lo: int, hi: int, x: A3, out: A3, start: A1, group: int) -> None:
    n, inner = x.shape[1], x.shape[2]
    for cell in range(lo * group, min(hi * group, x.shape[0] * inner)):
        o, j = cell // inner, cell % inner
        total = start[0]
        for i in range(n):
            total += x[o, i, j]
            out[o, i, j] = total


def cumsum(x: Operand, out: Operand, zero: Operand) -> Launch:
    """Plan out = running sums of x (outer, n, inner) over n, summed in the dtype of zero (1,), which is 0.

    A line is summed in order by one thread: 1 ns an element, and the same bits for any number of threads.
    """
    outer, n, inner = x.shape
    group = max(1, config.ELEMENTWISE_CHUNK // max(n, 1))
    return _cumsum(-(-outer * inner // group), x.size * 1.0, x, out, zero, group)
