"""Batch normalization: (channel - mean) / deviation, times a weight, plus a bias.

x is (n, channels, inner). Moments are summed in float64 about the channel's first element, over pieces of n
whose size depends on the shape alone. `_finish` adds the pieces' sums and computes the coefficients of the
formulas of `norm.py` for each channel: the mean as a sum of two numbers, the scale, and c1 and c2 of the
gradient.
"""

from typing import Any

from .channel_sums import channel_sums, cut
from .elementwise import elementwise
from .epilogue import CHANNEL, Epilogue
from .kernel import A1, A2, A3, kernel
from .norm import affine, gradient, statistics, wide
from .program import Launch, Operand, Spec
from .rows import row_map
from .vector import Value, fma


def _moments(totals: list[Value], x: Value, origin: Value) -> tuple[Value, ...]:
    first, second = totals
    d = wide(x - origin)
    return first + d, fma(d, d, second)


def _joint_moments(totals: list[Value], g: Value, x: Value, origin: Value) -> tuple[Value, ...]:
    first, second, total, product = totals
    d = x - origin
    return first + d, fma(d, d, second), total + g, fma(g, d, product)


def _moments_about(totals: list[Value], x: Value, origin: Value) -> tuple[Value, ...]:
    first, second = totals
    d = wide(x) - origin
    return first + d, fma(d, d, second)


def _products_about(totals: list[Value], g: Value, x: Value, origin: Value) -> tuple[Value, ...]:
    total, product = totals
    return total + wide(g), fma(wide(g), wide(x) - origin, product)


_add_to = row_map("row_add_to", lambda total, x: total + x)


@kernel
def _finish(
    lo: int, hi: int, x: A3, partial: A3, w: A1, coefficients: A2, mean: A1, var: A1, eps: float
) -> None:
    count, own = x.shape[0] * x.shape[2], x.dtype.type
    sums = partial[0]
    for p in range(1, partial.shape[0]):
        _add_to(sums, sums, partial[p])
    for c in range(w.size):
        first, second = sums[0, c], sums[1, c]
        distance, scale = statistics(first, second, count, eps)
        center = x[0, c, 0] + distance
        mean[c], var[c] = center, second / count - distance * distance
        coefficients[0, c] = own(center)
        coefficients[1, c], coefficients[2, c] = center - coefficients[0, c], scale * w[c]


@kernel
def _finish_backward(
    lo: int, hi: int, origin: A1, partial: A3, w: A1, coefficients: A2, dw: A1, db: A1, count: int, eps: float
) -> None:
    own = origin.dtype.type
    sums = partial[0]
    for p in range(1, partial.shape[0]):
        _add_to(sums, sums, partial[p])
    for c in range(w.size):
        total = sums[2, c]
        distance, scale = statistics(sums[0, c], sums[1, c], count, eps)
        center, product = origin[c] + distance, sums[3, c] - distance * total
        dw[c], db[c] = product * scale, total
        coefficients[0, c] = own(center)
        coefficients[1, c], coefficients[2, c] = center - coefficients[0, c], scale * w[c]
        coefficients[3, c], coefficients[4, c] = total / count, product / count * scale * scale


@kernel
def _finish_sums(lo: int, hi: int, partial: A3, sums: A2) -> None:
    total = partial[0]
    for p in range(1, partial.shape[0]):
        _add_to(total, total, partial[p])
    for c in range(sums.shape[1]):
        sums[0, c], sums[1, c] = total[0, c], total[1, c]


@kernel
def _rounded(lo: int, hi: int, origin: A1, distance: A1, scale: A1, shift: A1, coefficients: A2) -> None:
    own = coefficients.dtype.type
    for c in range(origin.size):
        center = origin[c] + distance[c]
        coefficients[0, c] = own(center)
        coefficients[1, c] = center - coefficients[0, c]
        coefficients[2, c], coefficients[3, c] = scale[c], shift[c]


def _channel_rows(coefficients: Operand, count: int) -> list[Operand]:
    """Return the rows of a (count, channels) array, each as (channels, 1), which broadcasts to x."""
    channels, size = coefficients.shape[1], coefficients.dtype.itemsize
    return [
        Operand(coefficients.buffer, Spec((channels, 1), coefficients.dtype), k * channels * size)
        for k in range(count)
    ]


def batch_norm(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    eps: float,
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    """Plan (y, mean, var) of (x, w, b): y = (x - mean) / sqrt(var + eps) * w + b.

    x, y: (n, channels, ...).  The others: (channels,); var is the mean squared distance from the mean.
    epilogue: formulas applied to y as it is computed.
    """
    (full, w, b), (y, mean, var) = inputs, outputs
    x = full.reshaped(full.shape[0], w.size, full.size // (full.shape[0] * w.size))
    partial = scratch((cut(x.shape).pieces, 2, w.size), "float64")
    coefficients = scratch((3, w.size), x.dtype)
    return [
        channel_sums("moments", _moments, [x], [(x, True)], partial, False, 4),
        _finish(1, 0.0, x, partial, w, coefficients, mean, var, eps),
        _affine(full, [*_channel_rows(coefficients, 3), b], y, epilogue),
    ]


def _affine(x: Operand, numbers: list[Operand], y: Operand, epilogue: Epilogue | None) -> Launch:
    """Plan y = (x - high - low) * scale + shift, then an epilogue. numbers: one for each channel."""
    columns = [v.reshaped(v.size, *(1,) * (len(x.shape) - 2)) for v in numbers]
    start = Epilogue("norm_affine", affine, tuple(columns), (CHANNEL,) * len(columns), flops=5.0)
    return start.then(epilogue).over(x, y)


def batch_norm_backward(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, eps: float
) -> list[Launch]:
    """Plan the gradients (dx, dw, db) of `batch_norm` from (g, x, w, origin); g, x, dx (n, channels, inner).

    origin: (channels,), near the means of x: sums of float32 about it lose no digits.
    """
    (g, x, w, origin), (dx, dw, db) = inputs, outputs
    partial = scratch((cut(x.shape).pieces, 4, w.size), "float64")
    coefficients = scratch((5, w.size), x.dtype)
    count = x.size // w.size
    return [
        channel_sums("joint_moments", _joint_moments, [g, x], [(origin, False)], partial, True, 8),
        _finish_backward(1, 0.0, origin, partial, w, coefficients, dw, db, count, eps),
        elementwise("norm_gradient", gradient, [g, x, *_channel_rows(coefficients, 5)], [dx], 8),
    ]


def channel_moments(x: Operand, origin: Operand, sums: Operand, scratch: Any) -> list[Launch]:
    """Plan the sums (2, channels) of x - origin and of its square; x: (n, channels, inner)."""
    partial = scratch((cut(x.shape).pieces, *sums.shape), "float64")
    return [
        channel_sums("moments_about", _moments_about, [x], [(origin, False)], partial, False, 4),
        _finish_sums(1, 0.0, partial, sums),
    ]


def channel_products(g: Operand, x: Operand, origin: Operand, sums: Operand, scratch: Any) -> list[Launch]:
    """Plan the sums (2, channels) of g and of g * (x - origin); g, x: (n, channels, inner)."""
    partial = scratch((cut(x.shape).pieces, *sums.shape), "float64")
    return [
        channel_sums("products_about", _products_about, [g, x], [(origin, False)], partial, False, 5),
        _finish_sums(1, 0.0, partial, sums),
    ]


def channel_affine(inputs: list[Operand], y: Operand, scratch: Any) -> list[Launch]:
    """Plan y = (x - origin - distance) * scale + shift; x, y: (n, channels, inner).

    inputs: x, and origin, distance, scale and shift, each (channels,) float64.
    """
    x, *numbers = inputs
    coefficients = scratch((4, numbers[0].size), x.dtype)
    return [
        _rounded(1, 0.0, *numbers, coefficients),
        elementwise("norm_affine", affine, [x, *_channel_rows(coefficients, 4)], [y], 5),
    ]
