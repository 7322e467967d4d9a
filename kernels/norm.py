"""Layer, RMS and group normalisation: a row less its mean, over its deviation, then a weight and a bias.

x is (rows, channels, inner). The statistics of a row are over its channels * inner elements, by two passes
in float64 (RMS normalisation takes the mean to be 0). Row r belongs to group r % groups, and its channels
have the weights and biases from (r % groups) * channels on. Layer normalisation has one group and inner 1.

The backward pass computes the statistics again: the row is in cache, and nothing has to be kept.
"""

from typing import Any

from . import config, reduce
from .elementwise import fill
from .kernel import A1, A3, Words, device, kernel, scalar
from .program import Launch, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Formula, Value, sqrt

#: Rows of which a unit of the backward pass adds up the gradients of weight and bias, at the least: the
#: sums of a unit, 16 bytes a channel in float64, are then 4 % of the memory that it moves.
_LEAST_ROWS = 32


def wide(x: Value) -> Value:
    """Return a value in float64."""
    return x.astype("float64")


_add: Formula = lambda a, b: a + b
row_sum = row_reduce("row_sum", wide, _add, -0.0)
row_squares = row_reduce("row_squares", lambda x, mean: (wide(x) - mean) * (wide(x) - mean), _add, 0.0)
row_moment = row_reduce("row_moment", lambda g, x, mean: wide(g) * (wide(x) - mean), _add, 0.0)
row_affine = row_map("row_affine", lambda x, mean, scale, shift: (wide(x) - mean) * scale + wide(shift))
_weighted = row_map("row_weighted", lambda x, w, b, mean, scale: (wide(x) - mean) * scale * wide(w) + wide(b))
_dot = row_reduce("row_dot", lambda g, w: wide(g) * wide(w), _add, 0.0)
_weighted_moment = row_reduce(
    "row_weighted_moment", lambda g, w, x, mean: wide(g) * wide(w) * (wide(x) - mean), _add, 0.0
)


def _gradient(g: Value, x: Value, w: Value, mean: Value, scale: Value, c1: Value, c2: Value) -> Value:
    return scale * (wide(g) * wide(w) - c1 - (wide(x) - mean) * scale * c2)


def _gradients(
    g: Value, x: Value, w: Value, dw: Value, db: Value, mean: Value, scale: Value, c1: Value, c2: Value
) -> tuple[Value, Value, Value]:
    dx = _gradient(g, x, w, mean, scale, c1, c2)
    return dx, dw + wide(g) * ((wide(x) - mean) * scale), db + wide(g)


root = scalar(sqrt)
_row_gradient = row_map("row_norm_gradient", _gradient)
_row_gradients = row_map("row_norm_gradients", _gradients, outs=3)


@device
def _statistics(row: Any, eps: float, centered: int) -> tuple[float, float]:
    """Return the mean and the reciprocal of the deviation."""
    mean = row_sum(row) / row.size if centered else 0.0
    return mean, 1.0 / root(row_squares(row, mean) / row.size + eps)


@kernel
def _normalize(lo: int, hi: int, x: A3, w: A1, b: A1, y: A3, eps: float, plan: Words) -> None:
    group, groups, centered = plan[0], plan[1], plan[2]
    rows, channels, inner = x.shape
    for r in range(lo * group, min(hi * group, rows)):
        first = r % groups * channels
        mean, scale = _statistics(x[r], eps, centered)
        if inner == 1:
            _weighted(y[r], x[r], w[first : first + channels], b[first : first + channels], mean, scale)
        else:
            for k in range(channels):
                row_affine(y[r, k], x[r, k], mean, scale * w[first + k], b[first + k])


@kernel
def _normalize_backward(
    lo: int, hi: int, g: A3, x: A3, w: A1, dx: A3, partial: A3, eps: float, plan: Words
) -> None:
    group, groups, centered = plan[0], plan[1], plan[2]
    rows, channels, inner = x.shape
    n = channels * inner
    for unit in range(lo, hi):
        partial[0, unit, :] = 0.0
        partial[1, unit, :] = 0.0
        for r in range(unit * group, min((unit + 1) * group, rows)):
            first = r % groups * channels
            weight = w[first : first + channels]
            dw = partial[0, unit, first : first + channels]
            db = partial[1, unit, first : first + channels]
            mean, scale = _statistics(x[r], eps, centered)
            if inner == 1:
                c1 = _dot(g[r], weight) / n if centered else 0.0
                c2 = _weighted_moment(g[r], weight, x[r], mean) * scale / n
                _row_gradients(dx[r], dw, db, g[r], x[r], weight, dw, db, mean, scale, c1, c2)
                continue
            c1, c2 = 0.0, 0.0
            for k in range(channels):
                total, moment = row_sum(g[r, k]), row_moment(g[r, k], x[r, k], mean) * scale
                dw[k] += moment
                db[k] += total
                c1 += weight[k] * total
                c2 += weight[k] * moment
            c1, c2 = c1 / n if centered else 0.0, c2 / n
            for k in range(channels):
                _row_gradient(dx[r, k], g[r, k], x[r, k], weight[k], mean, scale, c1, c2)


def normalize(
    x: Operand, w: Operand, b: Operand, y: Operand, groups: int, eps: float, centered: bool
) -> list[Launch]:
    """Plan y = (x - mean) / sqrt(var + eps) * w + b over rows (rows, channels, inner).

    w, b: (groups * channels,).
    """
    rows, channels, inner = x.shape
    group = max(1, config.ELEMENTWISE_UNIT // (channels * inner))
    plan = (group, groups, int(centered))
    return [_normalize(-(-rows // group), 0.5 * x.size, x, w, b, y, eps, plan)]


def backward_units(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many units the backward pass of x (rows, channels, inner) has, and their rows."""
    rows, channels, inner = shape
    group = max(_LEAST_ROWS, config.ELEMENTWISE_UNIT // (channels * inner))
    return -(-rows // group), group


def normalize_backward(
    operands: tuple[Operand, Operand, Operand],
    outputs: tuple[Operand, Operand, Operand],
    scratch: Any,
    groups: int,
    eps: float,
    centered: bool,
) -> list[Launch]:
    """Plan the gradients (dx, dw, db) of `normalize` from (g, x, w); g, x, dx (rows, channels, inner)."""
    (g, x, w), (dx, dw, db) = operands, outputs
    if not x.size:
        return [fill(out, 0) for out in outputs]
    units, group = backward_units(x.shape)
    partial = scratch((2, units, w.size), "float64")
    plan = (group, groups, int(centered))
    launches = [_normalize_backward(units, 1.0 * x.size, g, x, w, dx, partial, eps, plan)]
    for k, out in enumerate((dw, db)):
        half = Operand(partial.buffer, Spec((1, units, w.size), partial.dtype), k * partial.spec.nbytes // 2)
        sums = scratch((reduce.partials(half.shape),), "float64")
        launches += reduce.total.plan(half, out, sums.buffer)
    return launches
