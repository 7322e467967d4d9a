"""Layer, RMS and group normalization: (row - mean) / deviation, times a weight, plus a bias.

x is (rows, channels, inner). The statistics of a row are sums over its channels * inner elements, in float64,
of distances from the row's first element: one pass, without the cancellation of a sum of squares (RMS
normalization takes the distances from 0). Row r belongs to group r % groups, and its channels have the
weights and biases from (r % groups) * channels on. Layer normalization has one group and inner 1.

The backward pass recomputes the statistics: the row is in cache, and nothing has to be stored. Elementwise
arithmetic is in the dtype of x, twice as fast in float32; the mean is a sum of two numbers, so that no digits
are lost where it is large.
"""

from typing import Any

from . import config, reduce
from .compiled import device
from .elementwise import fill
from .intrinsics import scalar
from .kernel import A1, A3, Words, kernel
from .program import Launch, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Formula, Value, fma, sqrt

#: Rows of a chunk of the backward pass. It sums their gradients of weight and bias in the dtype of x; the
#: chunks' sums are then added in float64. They are 2 % of the memory that a chunk moves.
_ROWS = 32

#: Words of a plan: groups of channels, whether the mean is subtracted, rows of a forward chunk.
_GROUPS, _CENTERED, _CHUNK_ROWS = range(3)


def wide(x: Value) -> Value:
    """Return a value in float64."""
    return x.astype("float64")


def moments(x: Value, origin: Value) -> tuple[Value, Value]:
    """Return the terms of the first two moments of x about an origin."""
    d = wide(x) - wide(origin)
    return d, d * d


def joint_moments(g: Value, x: Value, origin: Value) -> tuple[Value, Value, Value, Value]:
    """Return the terms of the moments of x about an origin, and of those of g: by itself, and with x."""
    d, upstream = wide(x) - wide(origin), wide(g)
    return d, d * d, upstream, upstream * d


def affine(x: Value, high: Value, low: Value, scale: Value, shift: Value) -> Value:
    """Return (x - mean) * scale + shift, the mean being high + low."""
    return fma((x - high) - low, scale, shift)


def gradient(g: Value, x: Value, high: Value, low: Value, scale: Value, c1: Value, c2: Value) -> Value:
    """Return (g - c1 - (x - mean) * c2) * scale."""
    return fma(-((x - high) - low), c2, g - c1) * scale


def _gradients(
    g: Value, x: Value, w: Value, dw: Value, db: Value,
    high: Value, low: Value, scale: Value, c1: Value, c2: Value,
) -> tuple[Value, Value, Value]:  # fmt: skip
    d = (x - high) - low
    return fma(-d, c2, g * w - c1) * scale, fma(g, d * scale, dw), db + g


_add: Formula = lambda a, b: a + b
row_moments = row_reduce("row_moments", moments, _add, 0.0)
row_joint_moments = row_reduce("row_joint_moments", joint_moments, _add, 0.0)
_weighted_moments = row_reduce(
    "row_weighted_moments", lambda g, w, x, origin: joint_moments(g * w, x, origin), _add, 0.0
)
row_affine = row_map("row_affine", affine)
_weighted = row_map("row_weighted", lambda x, w, b, high, low, scale: fma(((x - high) - low) * scale, w, b))
_channel_gradient = row_map(
    "row_channel_gradient",
    lambda g, x, w, high, low, scale, c1, c2: gradient(g * w, x, high, low, scale, c1, c2),
)
_row_gradients = row_map("row_norm_gradients", _gradients, outs=3)
root = scalar(sqrt)


@device
def statistics(first: float, second: float, n: int, eps: float) -> tuple[float, float]:
    """Return the mean about the origin, and the reciprocal of the deviation, from sums of the moments."""
    mean = first / n
    return mean, 1.0 / root(second / n - mean * mean + eps)


@kernel
def _normalize(lo: int, hi: int, x: A3, w: A1, b: A1, y: A3, eps: float, plan: Words) -> None:
    group, groups, centered = plan[_CHUNK_ROWS], plan[_GROUPS], plan[_CENTERED]
    rows, channels, inner = x.shape
    own = x.dtype.type
    for r in range(lo * group, min(hi * group, rows)):
        at = r % groups * channels
        origin = x[r, 0, 0] if centered else own(0)
        first, second = row_moments(x[r], origin)
        distance, scale = statistics(first if centered else 0.0, second, channels * inner, eps)
        mean = float(origin) + distance
        high = own(mean)
        low = own(mean - high)
        if inner == 1:
            end = at + channels
            _weighted(y[r], x[r], w[at:end], b[at:end], high, low, own(scale))
        else:
            for k in range(channels):
                row_affine(y[r, k], x[r, k], high, low, own(scale * w[at + k]), b[at + k])


@kernel
def _normalize_backward(
    lo: int, hi: int, g: A3, x: A3, w: A1, dx: A3, partial: A3, eps: float, plan: Words
) -> None:
    groups, centered = plan[_GROUPS], plan[_CENTERED]
    rows, channels, inner = x.shape
    n, own = channels * inner, x.dtype.type
    for chunk in range(lo, hi):
        partial[0, chunk, :] = 0.0
        partial[1, chunk, :] = 0.0
        for r in range(chunk * _ROWS, min((chunk + 1) * _ROWS, rows)):
            at = r % groups * channels
            weight = w[at : at + channels]
            dw, db = partial[0, chunk, at : at + channels], partial[1, chunk, at : at + channels]
            origin = x[r, 0, 0] if centered else own(0)
            if inner == 1:
                first, second, total, product = _weighted_moments(g[r], weight, x[r], origin)
            else:
                first, second, total, product = 0.0, 0.0, 0.0, 0.0
                for k in range(channels):
                    s1, s2, s3, s4 = row_joint_moments(g[r, k], x[r, k], origin)
                    first += s1
                    second += s2
                    total += s3 * weight[k]
                    product += s4 * weight[k]
                    partial[2, chunk, at + k], partial[3, chunk, at + k] = s3, s4
            distance, scale = statistics(first if centered else 0.0, second, n, eps)
            mean = float(origin) + distance
            high = own(mean)
            low = own(mean - high)
            c1 = own(total / n if centered else 0.0)
            c2 = own((product - distance * total) / n * scale * scale)
            if inner == 1:
                _row_gradients(dx[r], dw, db, g[r], x[r], weight, dw, db, high, low, own(scale), c1, c2)
                continue
            for k in range(channels):
                s3, s4 = partial[2, chunk, at + k], partial[3, chunk, at + k]
                dw[k] += own((s4 - distance * s3) * scale)
                db[k] += s3
                _channel_gradient(dx[r, k], g[r, k], x[r, k], weight[k], high, low, own(scale), c1, c2)


def normalize(
    x: Operand, w: Operand, b: Operand, y: Operand, groups: int, eps: float, centered: bool
) -> list[Launch]:
    """Plan y = (x - mean) / sqrt(var + eps) * w + b over rows (rows, channels, inner).

    w, b: (groups * channels,).
    """
    rows, channels, inner = x.shape
    group = max(1, config.ELEMENTWISE_CHUNK // (channels * inner))
    plan = (groups, int(centered), group)
    return [_normalize(-(-rows // group), 0.5 * x.size, x, w, b, y, eps, plan)]


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
    chunks = -(-x.shape[0] // _ROWS)
    partial = scratch((4, chunks, w.size), x.dtype)  # the last two hold sums of a row, where inner is above 1
    plan = (groups, int(centered))
    launches = [_normalize_backward(chunks, 1.0 * x.size, g, x, w, dx, partial, eps, plan)]
    for k, out in enumerate((dw, db)):
        half = Operand(partial.buffer, Spec((1, chunks, w.size), partial.dtype), k * partial.spec.nbytes // 4)
        sums = scratch((reduce.partials(half.shape),), "float64")
        launches += reduce.total.plan(half, out, sums.buffer)
    return launches
