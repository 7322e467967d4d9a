"""Checks of values, reported in the launch's status word."""

from . import config
from .kernel import A1, Status, kernel
from .program import Launch, Operand


@kernel
def _within(
    lo: int, hi: int, x: A1, out: A1, low: float, high: float, finite: int, group: int, status: Status
) -> None:
    for i in range(lo * group, min(hi * group, x.size)):
        value = x[i]
        if value < low or value > high or (finite and value != value):
            status[0] = 1
            return
        out[i] = value


def within(x: Operand, out: Operand, low: float, high: float, finite: bool) -> Launch:
    """Plan out = x. Reports an error when an element is outside [low, high]; NaN passes, unless `finite`."""
    group = config.ELEMENTWISE_CHUNK
    flat = (o.reshaped(o.size) for o in (x, out))
    return _within(-(-x.size // group), float(x.size), *flat, float(low), float(high), int(finite), group)
