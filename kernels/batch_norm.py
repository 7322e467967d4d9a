"""Batch normalization: (channel - mean) / deviation, times a weight, plus a bias.

x is (n, channels, inner). Moments are summed in float64 about the channel's first element, over pieces of n
whose size depends on the shape alone. `_finish` adds the pieces' sums and computes the coefficients of the
formulas of `norm.py` for each channel: the mean as a sum of two numbers, the scale, and c1 and c2 of the
gradient.
"""

from typing import Any

from . import config
from .elementwise import elementwise
from .epilogue import CHANNEL, Epilogue
from .kernel import A1, A2, A3, kernel
from .norm import affine, gradient, joint_moments, moments, row_joint_moments, row_moments, statistics, wide
from .program import Launch, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Value


def _more_moments(first: Value, second: Value, x: Value, origin: Value) -> tuple[Value, Value]:
    d, square = moments(x, origin)
    return first + d, second + square


def _more_joint_moments(
    first: Value, second: Value, total: Value, product: Value, g: Value, x: Value, origin: Value
) -> tuple[Value, Value, Value, Value]:
    d, square, upstream, both = joint_moments(g, x, origin)
    return first + d, second + square, total + upstream, product + both


def _products(g: Value, x: Value, origin: Value) -> tuple[Value, Value]:
    upstream = wide(g)
    return upstream, upstream * (wide(x) - origin)


def _more_products(first: Value, second: Value, g: Value, x: Value, origin: Value) -> tuple[Value, Value]:
    total, product = _products(g, x, origin)
    return first + total, second + product


row_products = row_reduce("row_products", _products, lambda a, b: a + b, 0.0)
_add_products = row_map("row_add_products", _more_products, outs=2)
_add_moments = row_map("row_add_moments", _more_moments, outs=2)
_add_joint_moments = row_map("row_add_joint_moments", _more_joint_moments, outs=4)
_add_to = row_map("row_add_to", lambda total, x: total + x)

# A chunk is a piece of n in one channel; where inner is 1, a piece of n in all channels, row by row.


@kernel
def _moments(lo: int, hi: int, x: A3, partial: A3, rows: int) -> None:
    n, channels, inner = x.shape
    for chunk in range(lo, hi):
        if inner == 1:
            first, second = partial[chunk, 0], partial[chunk, 1]
            first[:] = 0.0
            second[:] = 0.0
            for i in range(chunk * rows, min((chunk + 1) * rows, n)):
                _add_moments(first, second, first, second, x[i], x[0])
            continue
        piece, c = chunk // channels, chunk % channels
        s1, s2 = 0.0, 0.0
        for i in range(piece * rows, min((piece + 1) * rows, n)):
            t1, t2 = row_moments(x[i, c], x[0, c, 0])
            s1 += t1
            s2 += t2
        partial[piece, 0, c], partial[piece, 1, c] = s1, s2


@kernel
def _joint_moments(lo: int, hi: int, g: A3, x: A3, partial: A3, rows: int) -> None:
    n, channels, inner = x.shape
    for chunk in range(lo, hi):
        if inner == 1:
            p = partial[chunk]
            p[:, :] = 0.0
            for i in range(chunk * rows, min((chunk + 1) * rows, n)):
                _add_joint_moments(p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3], g[i], x[i], x[0])
            continue
        piece, c = chunk // channels, chunk % channels
        s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
        for i in range(piece * rows, min((piece + 1) * rows, n)):
            t1, t2, t3, t4 = row_joint_moments(g[i, c], x[i, c], x[0, c, 0])
            s1 += t1
            s2 += t2
            s3 += t3
            s4 += t4
        p = partial[piece]
        p[0, c], p[1, c], p[2, c], p[3, c] = s1, s2, s3, s4


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
    lo: int, hi: int, x: A3, partial: A3, w: A1, coefficients: A2, dw: A1, db: A1, eps: float
) -> None:
    count, own = x.shape[0] * x.shape[2], x.dtype.type
    sums = partial[0]
    for p in range(1, partial.shape[0]):
        _add_to(sums, sums, partial[p])
    for c in range(w.size):
        total = sums[2, c]
        distance, scale = statistics(sums[0, c], sums[1, c], count, eps)
        center, product = x[0, c, 0] + distance, sums[3, c] - distance * total
        dw[c], db[c] = product * scale, total
        coefficients[0, c] = own(center)
        coefficients[1, c], coefficients[2, c] = center - coefficients[0, c], scale * w[c]
        coefficients[3, c], coefficients[4, c] = total / count, product / count * scale * scale


@kernel
def _moments_about(lo: int, hi: int, x: A3, origin: A1, partial: A3, rows: int) -> None:
    n, channels, inner = x.shape
    for chunk in range(lo, hi):
        if inner == 1:
            first, second = partial[chunk, 0], partial[chunk, 1]
            first[:] = 0.0
            second[:] = 0.0
            for i in range(chunk * rows, min((chunk + 1) * rows, n)):
                _add_moments(first, second, first, second, x[i], origin)
            continue
        piece, c = chunk // channels, chunk % channels
        s1, s2 = 0.0, 0.0
        for i in range(piece * rows, min((piece + 1) * rows, n)):
            t1, t2 = row_moments(x[i, c], origin[c])
            s1 += t1
            s2 += t2
        partial[piece, 0, c], partial[piece, 1, c] = s1, s2


@kernel
def _products_about(lo: int, hi: int, g: A3, x: A3, origin: A1, partial: A3, rows: int) -> None:
    n, channels, inner = x.shape
    for chunk in range(lo, hi):
        if inner == 1:
            first, second = partial[chunk, 0], partial[chunk, 1]
            first[:] = 0.0
            second[:] = 0.0
            for i in range(chunk * rows, min((chunk + 1) * rows, n)):
                _add_products(first, second, first, second, g[i], x[i], origin)
            continue
        piece, c = chunk // channels, chunk % channels
        s1, s2 = 0.0, 0.0
        for i in range(piece * rows, min((piece + 1) * rows, n)):
            t1, t2 = row_products(g[i, c], x[i, c], origin[c])
            s1 += t1
            s2 += t2
        partial[piece, 0, c], partial[piece, 1, c] = s1, s2


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


def _cut(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of examples in a piece, of pieces, and of chunks."""
    n, channels, inner = shape
    rows = max(1, config.ELEMENTWISE_CHUNK // (inner if inner > 1 else channels))
    pieces = -(-n // rows)
    return rows, pieces, pieces * (channels if inner > 1 else 1)


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
    rows, pieces, chunks = _cut(x.shape)
    partial, coefficients = scratch((pieces, 2, w.size), "float64"), scratch((3, w.size), x.dtype)
    return [
        _moments(chunks, 0.3 * x.size, x, partial, rows),
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
    """Plan the gradients (dx, dw, db) of `batch_norm` from (g, x, w); g, x, dx (n, channels, inner)."""
    (g, x, w), (dx, dw, db) = inputs, outputs
    rows, pieces, chunks = _cut(x.shape)
    partial, coefficients = scratch((pieces, 4, w.size), "float64"), scratch((5, w.size), x.dtype)
    return [
        _joint_moments(chunks, 0.6 * x.size, g, x, partial, rows),
        _finish_backward(1, 0.0, x, partial, w, coefficients, dw, db, eps),
        elementwise("norm_gradient", gradient, [g, x, *_channel_rows(coefficients, 5)], [dx], 8),
    ]


def channel_moments(x: Operand, origin: Operand, sums: Operand, scratch: Any) -> list[Launch]:
    """Plan the sums (2, channels) of x - origin and of its square; x: (n, channels, inner)."""
    rows, pieces, chunks = _cut(x.shape)
    partial = scratch((pieces, *sums.shape), "float64")
    return [
        _moments_about(chunks, 0.3 * x.size, x, origin, partial, rows),
        _finish_sums(1, 0.0, partial, sums),
    ]


def channel_products(g: Operand, x: Operand, origin: Operand, sums: Operand, scratch: Any) -> list[Launch]:
    """Plan the sums (2, channels) of g and of g * (x - origin); g, x: (n, channels, inner)."""
    rows, pieces, chunks = _cut(x.shape)
    partial = scratch((pieces, *sums.shape), "float64")
    return [
        _products_about(chunks, 0.4 * x.size, g, x, origin, partial, rows),
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
