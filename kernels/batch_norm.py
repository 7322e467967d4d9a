"""Batch normalisation: each channel less its mean, over its deviation, then its weight and its bias.

x is (n, channels, inner), and a unit of work is a channel. Where inner is 1 the elements of a channel lie
apart, and a unit is `_COLUMNS` channels, added up row by row. Statistics are by two passes in float64.
"""

from typing import Any

from .kernel import A1, A2, A3, kernel
from .norm import root, row_affine, row_moment, row_squares, row_sum, wide
from .program import Launch, Operand
from .rows import row_map
from .vector import sqrt

#: Channels of a unit where inner is 1: lines of 128 bytes of float32.
_COLUMNS = 32

_spread = row_map(
    "row_batch_gradient", lambda g, x, mean, scale, c1, c2: scale * (wide(g) - c1 - (wide(x) - mean) * c2)
)
_add_to = row_map("row_total", lambda total, x: total + wide(x))
_add_square = row_map("row_total_square", lambda total, x, mean: total + (wide(x) - mean) * (wide(x) - mean))
_add_moments = row_map(
    "row_total_moments",
    lambda total, moment, g, x, mean: (total + wide(g), moment + wide(g) * (wide(x) - mean)),
    outs=2,
)
_over = row_map("row_over", lambda x, n: wide(x) / n)
_scale = row_map("row_scale", lambda var, w, eps: wide(w) / sqrt(var + eps))


@kernel
def _batch_norm(lo: int, hi: int, x: A3, w: A1, b: A1, y: A3, mean: A1, var: A1, eps: float) -> None:
    n, count = x.shape[0], x.shape[0] * x.shape[2]
    for c in range(lo, hi):
        total, square = 0.0, 0.0
        for i in range(n):
            total += row_sum(x[i, c])
        center = total / count
        for i in range(n):
            square += row_squares(x[i, c], center)
        mean[c], var[c] = center, square / count
        scale = w[c] / root(square / count + eps)
        for i in range(n):
            row_affine(y[i, c], x[i, c], center, scale, b[c])


@kernel
def _batch_norm_backward(lo: int, hi: int, g: A3, x: A3, w: A1, dx: A3, dw: A1, db: A1, eps: float) -> None:
    n, count = x.shape[0], x.shape[0] * x.shape[2]
    for c in range(lo, hi):
        total, square, sum_g, moment = 0.0, 0.0, 0.0, 0.0
        for i in range(n):
            total += row_sum(x[i, c])
            sum_g += row_sum(g[i, c])
        center = total / count
        for i in range(n):
            square += row_squares(x[i, c], center)
            moment += row_moment(g[i, c], x[i, c], center)
        inverse = 1.0 / root(square / count + eps)
        dw[c], db[c] = moment * inverse, sum_g
        c1, c2 = sum_g / count, moment / count * inverse * inverse
        for i in range(n):
            _spread(dx[i, c], g[i, c], x[i, c], center, inverse * w[c], c1, c2)


@kernel
def _columns(
    lo: int, hi: int, x: A2, w: A1, b: A1, y: A2, means: A1, variances: A1, sums: A2, eps: float
) -> None:
    n, channels = x.shape
    for unit in range(lo, hi):
        at, end = unit * _COLUMNS, min((unit + 1) * _COLUMNS, channels)
        mean, var = sums[0, at:end], sums[1, at:end]
        mean[:] = 0.0
        var[:] = 0.0
        for i in range(n):
            _add_to(mean, mean, x[i, at:end])
        _over(mean, mean, float(n))
        for i in range(n):
            _add_square(var, var, x[i, at:end], mean)
        _over(var, var, float(n))
        _over(means[at:end], mean, 1.0)
        _over(variances[at:end], var, 1.0)
        _scale(var, var, w[at:end], eps)
        for i in range(n):
            row_affine(y[i, at:end], x[i, at:end], mean, var, b[at:end])


@kernel
def _columns_backward(
    lo: int, hi: int, g: A2, x: A2, w: A1, dx: A2, dw: A1, db: A1, sums: A2, eps: float
) -> None:
    n, channels = x.shape
    for unit in range(lo, hi):
        at, end = unit * _COLUMNS, min((unit + 1) * _COLUMNS, channels)
        mean, var, total, moment = sums[0, at:end], sums[1, at:end], sums[2, at:end], sums[3, at:end]
        for k in range(4):
            sums[k, at:end] = 0.0
        for i in range(n):
            _add_to(mean, mean, x[i, at:end])
        _over(mean, mean, float(n))
        for i in range(n):
            _add_square(var, var, x[i, at:end], mean)
            _add_moments(total, moment, total, moment, g[i, at:end], x[i, at:end], mean)
        for c in range(at, end):
            k = c - at
            inverse = 1.0 / root(var[k] / n + eps)
            dw[c], db[c] = moment[k] * inverse, total[k]
            var[k] = inverse * w[c]
            total[k] /= n
            moment[k] *= inverse * inverse / n
        for i in range(n):
            _spread(dx[i, at:end], g[i, at:end], x[i, at:end], mean, var, total, moment)


def batch_norm(inputs: list[Operand], outputs: list[Operand], scratch: Any, eps: float) -> list[Launch]:
    """Plan (y, mean, var) of (x, w, b): y = (x - mean) / sqrt(var + eps) * w + b.

    x, y: (n, channels, inner).  The others: (channels,); var is the mean squared distance from the mean.
    """
    (x, w, b), (y, mean, var) = inputs, outputs
    n, channels, inner = x.shape
    if inner > 1:
        return [_batch_norm(channels, 0.5 * x.size, x, w, b, y, mean, var, eps)]
    sums = scratch((2, channels), "float64")
    units, flat = -(-channels // _COLUMNS), (n, channels)
    return [_columns(units, 0.7 * x.size, x.reshaped(*flat), w, b, y.reshaped(*flat), mean, var, sums, eps)]


def batch_norm_backward(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, eps: float
) -> list[Launch]:
    """Plan the gradients (dx, dw, db) of `batch_norm` from (g, x, w); g, x, dx (n, channels, inner)."""
    (g, x, w), (dx, dw, db) = inputs, outputs
    n, channels, inner = x.shape
    if inner > 1:
        return [_batch_norm_backward(channels, 1.0 * x.size, g, x, w, dx, dw, db, eps)]
    sums = scratch((4, channels), "float64")
    units, flat = -(-channels // _COLUMNS), (n, channels)
    flats = [t.reshaped(*flat) for t in (g, x, dx)]
    work = 1.4 * x.size
    return [_columns_backward(units, work, flats[0], flats[1], w, flats[2], dw, db, sums, eps)]
