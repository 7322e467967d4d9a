"""Batch normalisation: the channels of a tensor, axis 1, at mean 0 and variance 1 over all other axes.

One row for a process alone; where the statistics are those of several ranks, three that the sums over ranks
connect, whose gradients are written in each other.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from treepie.kernels import batch_norm as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_float
from ..elementwise import elementwise
from ..table import Attributes, BoundArguments, Case, Shape, op, pick
from ..tensor import DType, Tensor, TensorLike, float64
from ..transform import by_formula
from .arithmetic import add, div, mul, square, sub
from .elementary import rsqrt
from .normalization import check_operands
from .reduction import mean, sum
from .shape import astype, reshape
from .slicing import flat_slice


def _channels(x: Operand) -> Operand:
    return x.reshaped(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def _plan_batch_backward(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, eps: float
) -> list[Launch]:
    (g, x, *others), (dx, dw, db) = inputs, outputs
    gradients = [_channels(dx), dw, db]
    return kernels.batch_norm_backward([_channels(g), _channels(x), *others], gradients, scratch, eps)


def batch_axes(ndim: int) -> tuple[int, ...]:
    """Return the axes that a channel's statistics are taken over: all axes except 1."""
    return (0, *range(2, ndim))


def per_channel(v: Any, ndim: int) -> Any:
    """Return one number per channel, (c,), in a shape that broadcasts over the other axes."""
    return reshape(v, (-1, *(1,) * (ndim - 2))) if ndim > 2 else v


def _batch_oracle(x: Any, w: Any, b: Any, eps: float) -> Any:
    axes, shape = batch_axes(x.ndim), (-1, *(1,) * (x.ndim - 2))
    m, v = x.mean(axes), x.var(axes)
    h = (x - m.reshape(shape)) / np.sqrt(v.reshape(shape) + eps)
    return h * w.reshape(shape) + b.reshape(shape), m, v


def _batch_backward_oracle(g: Any, x: Any, w: Any, origin: Any, eps: float) -> Any:
    axes, shape = batch_axes(x.ndim), (-1, *(1,) * (x.ndim - 2))
    r = 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    h = (x - x.mean(axes, keepdims=True)) * r
    along_h = h * (g * h).mean(axes, keepdims=True)
    dx = w.reshape(shape) * r * (g - g.mean(axes, keepdims=True) - along_h)
    return dx, (g * h).sum(axes), g.sum(axes)


def _terms(g: Any, x: Any, w: Any, origin: Any, eps: float) -> Any:
    """Return the size of the terms of dx, which cancel: with two values per channel, up to eps.

    Moments about an origin cancel too, by the square of its distance from the mean in deviations.
    """
    axes = batch_axes(x.ndim)
    far = 1 + ((x.mean(axes) - origin) ** 2 / (x.var(axes) + eps)).max()
    gradients = _batch_backward_oracle(np.abs(g), x, w, origin, eps)
    scale = np.abs(w).max() / np.sqrt(x.var(batch_axes(x.ndim)).min() + eps)
    return far * max(scale * np.abs(g).max(), *(np.abs(m).max() for m in gradients))


def _batch_formula_backward(
    g: Tensor, x: Tensor, w: Tensor, origin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = batch_axes(x.ndim)
    d = sub(x, mean(x, axes, True))
    r = rsqrt(add(mean(square(d), axes, True), eps))
    h = mul(d, r)
    rest = sub(sub(g, mean(g, axes, True)), mul(h, mean(mul(g, h), axes, True)))
    return mul(mul(per_channel(w, x.ndim), r), rest), sum(mul(g, h), axes), sum(g, axes)


def _batch_vjp(g: Any, ans: Any, x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor | None, ...]:
    """Return the gradients from those of (y, mean, var); the last two are seldom asked for."""
    (gy, gm, gv), n = g, x.size // x.shape[1]
    dx, dw, db = (None, None, None) if gy is None else batch_norm_backward(gy, x, w, ans[1], eps)
    terms = [] if dx is None else [dx]
    if gm is not None:
        terms.append(mul(per_channel(div(gm, float(n)), x.ndim), Tensor(np.ones(x.shape, x.dtype), None)))
    if gv is not None:
        distance = sub(x, per_channel(ans[1], x.ndim))
        terms.append(mul(per_channel(mul(gv, 2.0 / n), x.ndim), distance))
    return functools.reduce(add, terms), dw, db


_BATCH: list[tuple[Shape, int]] = [
    ((6, 3), 3), ((2, 3, 5), 3), ((3, 2, 4, 5), 2), ((70, 33), 33), ((2, 1, 1), 1), ((4, 2, 17), 2),
    ((1, 2, 1, 3), 2),
]  # fmt: skip
_EPS: Attributes = {"eps": 1e-5}


def _check(x: Tensor, like: Tensor, *weights: Tensor) -> None:
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, expected (batch, channels, ...), none of them 0"
        )
    check_operands("batch_norm", x, 1, 1, like, *weights)


@op(
    signature="(n,c,...),(n,c,...),(c),(c)->(n,c,...),(c),(c)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g, x, w, origin, eps: [
        Spec(x.shape, x.dtype),
        Spec(w.shape, x.dtype),
        Spec(w.shape, x.dtype),
    ],
    plan=_plan_batch_backward,
    shared=by_formula(_batch_formula_backward),
    vjp=(*map(pick, range(3)), None),
    oracle=_batch_backward_oracle,
    cases=[Case((s, s, (c,), (c,)), _EPS) for s, c in _BATCH],
    wrong=Case(((3, 5), (3, 4), (5,), (5,)), _EPS),
    large=Case(((64, 32, 14, 14), (64, 32, 14, 14), (32,), (32,)), _EPS),
    magnitude=_terms,
    ulp=16,
    recycled=True,
)
def batch_norm_backward(
    g: TensorLike, x: TensorLike, weight: TensorLike, origin: TensorLike, eps: float
) -> BoundArguments:
    """Return gradients of batch_norm: of x, of the weight, of the bias.

    origin: (c,), the means of x as `batch_norm` returns them. Other numbers lose digits, by the square of
        their distance from the means in deviations.
    """
    upstream, t, w, o = (as_float("batch_norm", a) for a in (g, x, weight, origin))
    _check(t, upstream, w, o)
    return (upstream, t, w, o), {"eps": eps}


@op(
    signature="(n,c,...),(c),(c)->(n,c,...),(c),(c)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda x, w, b, eps: [Spec(x.shape, x.dtype), Spec(w.shape, x.dtype), Spec(w.shape, x.dtype)],
    plan=kernels.batch_norm,
    epilogue=True,
    shared=_batch_vjp,
    vjp=tuple(map(pick, range(3))),
    oracle=_batch_oracle,
    cases=[Case((s, (c,), (c,)), _EPS) for s, c in _BATCH],
    wrong=Case(((3, 5), (4,), (4,)), _EPS),
    large=Case(((64, 32, 14, 14), (32,), (32,)), _EPS),
    # The variance of float64: moments about the first element lose 4 bits where that is the farthest one.
    ulp=32,
    recycled=True,
)
def batch_norm(x: TensorLike, weight: TensorLike, bias: TensorLike, eps: float) -> BoundArguments:
    """Return channels (axis 1) at mean 0, variance 1, times weight, plus bias; means, biased variances."""
    t, w, b = (as_float("batch_norm", a) for a in (x, weight, bias))
    _check(t, t, w, b)
    return (t, w, b), {"eps": eps}


@elementwise(
    oracle=lambda x, mean, scale, shift: (x - mean) * scale + shift,
    vjp=(
        lambda g, y, x, mean, scale, shift: g * scale,
        lambda g, y, x, mean, scale, shift: -(g * scale),
        lambda g, y, x, mean, scale, shift: g * (x - mean),
        lambda g, y, x, mean, scale, shift: g,
    ),
    accepts="float",
    magnitude=lambda x, mean, scale, shift: (np.abs(x) + np.abs(mean)) * np.abs(scale) + np.abs(shift),
    flops=3,
    ulp=2,
)
def scale_shift(x: Any, mean: Any, scale: Any, shift: Any) -> Any:
    """Return (x - mean) * scale + shift in one pass: normalisation by fixed statistics, moving averages."""
    return (x - mean) * scale + shift


# ---- statistics of several ranks: sums in float64 that the ranks add up
def _wide(x: TensorLike) -> Tensor:
    return astype(as_float("batch_norm", x), float64)


def rows_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two rows of sums (2, c), in float64."""
    flat, channels = reshape(_wide(sums), (-1,)), sums.shape[1]
    return flat_slice(flat, 0, (channels,)), flat_slice(flat, channels, (channels,))


def _spread(v: Tensor, x: Tensor) -> Tensor:
    """Return a number for each channel, in the dtype of x and a shape that broadcasts to it."""
    return per_channel(astype(v, x.dtype), x.ndim)  # type: ignore[no-any-return]


def _affine(x: Tensor, origin: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return (x - origin) * scale + shift."""
    return channel_affine(x, origin, Tensor(np.zeros(origin.shape), None), scale, shift)


def check_channels(x: Tensor, *numbers: Tensor) -> None:
    """Raise ValueError where x has no elements, or there is not a number for each channel."""
    _check(x, x)
    for v in numbers:
        if v.shape != x.shape[1:2]:
            raise ValueError(
                f"batch_norm: x has shape {x.shape} and its channels {v.shape} numbers, expected one each"
            )


def _moments_vjp(g: Tensor, y: Tensor, x: Tensor, origin: Tensor, dtype: DType) -> tuple[Tensor, Tensor]:
    (first, second), (total, _) = rows_of(g), rows_of(y)
    twice, count = mul(second, 2.0), float(x.size // x.shape[1])
    return _affine(x, origin, twice, first), mul(add(mul(first, count), mul(twice, total)), -1.0)


def _products_vjp(
    h: Tensor, y: Tensor, g: Tensor, x: Tensor, origin: Tensor, dtype: DType
) -> tuple[Tensor, Tensor, Tensor]:
    (first, second), (total, _) = rows_of(h), rows_of(y)
    upstream = mul(mul(second, total), -1.0)
    return _affine(x, origin, second, first), mul(g, _spread(second, g)), upstream


def _column(v: Any, x: Any) -> Any:
    return np.reshape(v, (-1, *(1,) * (x.ndim - 2)))


def _products_oracle(g: Any, x: Any, origin: Any, dtype: Any) -> Any:
    axes = batch_axes(x.ndim)
    return np.stack([g.sum(axes), (g * (x - _column(origin, x))).sum(axes)])


def _moments_oracle(x: Any, origin: Any, dtype: Any) -> Any:
    d = x - _column(origin, x)
    return np.stack([d.sum(batch_axes(x.ndim)), (d * d).sum(batch_axes(x.ndim))])


_SUMS: Attributes = {"dtype": float64}
_LARGE: Shape = (64, 32, 14, 14)


@op(
    signature="(n,c,...),(c)->(2,c)",
    infer=lambda x, origin, dtype: [Spec((2, x.shape[1]), dtype)],
    plan=lambda inputs, outputs, scratch, dtype: kernels.channel_moments(
        _channels(inputs[0]), inputs[1], outputs[0], scratch
    ),
    shared=_moments_vjp,
    vjp=tuple(map(pick, range(2))),
    oracle=_moments_oracle,
    cases=[Case((s, (c,)), _SUMS) for s, c in _BATCH],
    wrong=Case(((3, 5), (4,)), _SUMS),
    large=Case((_LARGE, (32,)), _SUMS),
    magnitude=lambda x, origin, dtype: _moments_oracle(np.abs(x), -np.abs(origin), dtype).max(),
    ulp=8,
    recycled=True,
)
def channel_moments(x: TensorLike, origin: TensorLike, dtype: DType) -> BoundArguments:
    """Return the sums over channels (axis 1) of x - origin and of its square, computed in float64.

    origin: (c,), near the mean, so that no digits cancel.  dtype: of the sums.
    """
    t, o = as_float("batch_norm", x), _wide(origin)
    check_channels(t, o)
    return (t, o), {"dtype": np.dtype(dtype)}


@op(
    signature="(n,c,...),(n,c,...),(c)->(2,c)",
    infer=lambda g, x, origin, dtype: [Spec((2, x.shape[1]), dtype)],
    plan=lambda inputs, outputs, scratch, dtype: kernels.channel_products(
        _channels(inputs[0]), _channels(inputs[1]), inputs[2], outputs[0], scratch
    ),
    shared=_products_vjp,
    vjp=tuple(map(pick, range(3))),
    oracle=_products_oracle,
    cases=[Case((s, s, (c,)), _SUMS) for s, c in _BATCH],
    wrong=Case(((3, 5), (3, 4), (5,)), _SUMS),
    large=Case((_LARGE, _LARGE, (32,)), _SUMS),
    magnitude=lambda g, x, origin, dtype: _products_oracle(
        np.abs(g), np.abs(x), -np.abs(origin), dtype
    ).max(),
    ulp=8,
    recycled=True,
)
def channel_products(g: TensorLike, x: TensorLike, origin: TensorLike, dtype: DType) -> BoundArguments:
    """Return the sums over channels (axis 1) of g and of g * (x - origin), computed in float64."""
    upstream, t, o = as_float("batch_norm", g), as_float("batch_norm", x), _wide(origin)
    _check(t, upstream)
    check_channels(t, o)
    return (upstream, t, o), {"dtype": np.dtype(dtype)}


def _channel_affine_vjp(
    g: Tensor, y: Tensor, x: Tensor, origin: Tensor, distance: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, ...]:
    # About the origin: where the mean is large, origin + distance is rounded by more than a product may be.
    total, product = rows_of(channel_products(g, x, origin, float64))
    center = mul(mul(scale, total), -1.0)
    return mul(g, _spread(scale, g)), center, center, sub(product, mul(distance, total)), total


def _channel_affine_oracle(x: Any, *numbers: Any) -> Any:
    origin, distance, scale, shift = (_column(v, x) for v in numbers)
    return (x - origin - distance) * scale + shift


@op(
    signature="(n,c,...),(c),(c),(c),(c)->(n,c,...)",
    infer=lambda x, *numbers: [Spec(x.shape, x.dtype)],
    plan=lambda inputs, outputs, scratch: kernels.channel_affine(
        [_channels(inputs[0]), *inputs[1:]], _channels(outputs[0]), scratch
    ),
    shared=_channel_affine_vjp,
    vjp=tuple(map(pick, range(5))),
    oracle=_channel_affine_oracle,
    cases=[Case((s, (c,), (c,), (c,), (c,))) for s, c in _BATCH],
    wrong=Case(((3, 5), (5,), (4,), (5,), (5,))),
    large=Case((_LARGE, (32,), (32,), (32,), (32,))),
    magnitude=lambda x, origin, distance, scale, shift: _channel_affine_oracle(
        np.abs(x), -np.abs(origin), -np.abs(distance), np.abs(scale), np.abs(shift)
    ).max(),
    ulp=2,
    recycled=True,
)
def channel_affine(
    x: TensorLike, origin: TensorLike, distance: TensorLike, scale: TensorLike, shift: TensorLike
) -> BoundArguments:
    """Return (x - origin - distance) * scale + shift, with float64 numbers for each channel (axis 1)."""
    t, *numbers = as_float("batch_norm", x), *map(_wide, (origin, distance, scale, shift))
    check_channels(t, *numbers)
    return (t, *numbers), {}
