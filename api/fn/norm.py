"""Normalization as functions of tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float64, ones, ops, stop_gradient, zeros
from treepie.autodiff.arguments import as_float, as_tensor, integer
from treepie.autodiff.ops import batch_normalization as batch, normalization as rows, rsqrt
from treepie.autodiff.tensor import TensorLike

#: Arguments that multiply: by default ones, the others zeros.
_ONES = ("gamma", "scale")


def _per_channel(name: str, x: Tensor, axis: int, **arguments: TensorLike | None) -> list[Tensor]:
    """Return arguments as tensors with one number per channel of x."""
    shape, tensors = (x.shape[axis],), []
    for argument, value in arguments.items():
        if value is None:
            tensors.append(ones(shape, x.dtype) if argument in _ONES else zeros(shape, x.dtype))
            continue
        t = as_tensor(value)
        if t.shape != shape or t.dtype != x.dtype:
            raise (ValueError if t.shape != shape else TypeError)(
                f"{name}: {argument} has shape {t.shape} and dtype {t.dtype.name}, expected {shape} and "
                f"{x.dtype.name}, for x of shape {x.shape}"
            )
        tensors.append(t)
    return tensors


def check_eps(name: str, eps: float) -> float:
    """Raise ValueError for an eps that is negative or not finite."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name}: eps is {eps}, expected a number of 0 or more")
    return float(eps)


def _floats(name: str, x: TensorLike, scale: TensorLike | None) -> Tensor:
    """Return x as floats; integers and bools get the dtype of a scale."""
    return as_float(name, x, like=None if scale is None else as_tensor(scale))


def _features(name: str, x: TensorLike, scale: TensorLike | None) -> Tensor:
    t = _floats(name, x, scale)
    if t.ndim == 0 or t.shape[-1] == 0:
        raise ValueError(f"{name}: x has shape {t.shape}, expected (..., features) with at least one feature")
    return t


def layer_norm(
    x: TensorLike, gamma: TensorLike | None = None, beta: TensorLike | None = None, eps: float = 1e-5
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * gamma + beta, mean and variance over the last axis.

    x: (..., features), at least one.  gamma, beta: (features,), by default 1 and 0.  eps: 0 or more.
    The variance is the biased one. Ba et al. 2016.

    Raises ValueError for shapes that do not fit and for a negative eps, TypeError for mixed dtypes.

    >>> import treepie as tp
    >>> tp.fn.layer_norm([[1.0, 3.0]], eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    t = _features("layer_norm", x, gamma)
    w, b = _per_channel("layer_norm", t, -1, gamma=gamma, beta=beta)
    return rows.normalize(t, w, b, t.ndim - 1, 1, check_eps("layer_norm", eps), True)


def rms_norm(x: TensorLike, scale: TensorLike | None = None, eps: float = 1e-6) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * scale, the mean over the last axis.

    x: (..., features), at least one.  scale: (features,), by default 1.  eps: 0 or more. Errors as of
    `layer_norm`. Zhang & Sennrich 2019.

    >>> import treepie as tp
    >>> tp.fn.rms_norm([[3.0, 3.0]], eps=0.0).tolist()
    [[1.0, 1.0]]
    """
    t = _features("rms_norm", x, scale)
    w, b = _per_channel("rms_norm", t, -1, scale=scale, bias=None)
    return rows.normalize(t, w, b, t.ndim - 1, 1, check_eps("rms_norm", eps), False)


def group_norm(
    x: TensorLike,
    num_groups: int,
    scale: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return x normalized over each group of channels of an example, times scale, plus bias.

    x: (batch, channels, ...).  num_groups: a divisor of channels.  scale, bias: (channels,), by default 1
    and 0.  eps: 0 or more. Errors as of `layer_norm`.

    Wu & He 2018; one group is layer normalization, one group per channel instance normalization.

    >>> import treepie as tp
    >>> tp.fn.group_norm([[1.0, 3.0, 10.0, 30.0]], num_groups=2, eps=0.0).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    t, groups = _floats("group_norm", x, scale), integer("group_norm", "num_groups", num_groups)
    if t.ndim < 2 or groups < 1 or t.shape[1] % groups:
        raise ValueError(
            f"group_norm: x has shape {t.shape} and num_groups is {groups}, expected (batch, channels, ...) "
            "with channels that it divides"
        )
    w, b = _per_channel("group_norm", t, 1, scale=scale, bias=bias)
    return rows.normalize(t, w, b, 1, groups, check_eps("group_norm", eps), True)


def instance_norm(
    x: TensorLike, scale: TensorLike | None = None, bias: TensorLike | None = None, eps: float = 1e-5
) -> Tensor:
    """Return x normalized over the spatial axes, for each channel of each example, times scale, plus bias.

    x: (batch, channels, ...), with more than one element a channel.  scale, bias: (channels,), by default 1
    and 0.  eps: 0 or more. Errors as of `layer_norm`. Ulyanov et al. 2016.

    >>> import treepie as tp
    >>> tp.fn.instance_norm([[[1.0, 3.0], [10.0, 30.0]]], eps=0.0).tolist()
    [[[-1.0, 1.0], [-1.0, 1.0]]]
    """
    t = as_float("instance_norm", x)
    if t.ndim < 3 or 0 in t.shape[1:] or math.prod(t.shape[2:]) == 1:
        raise ValueError(
            f"instance_norm: x has shape {t.shape}, expected (batch, channels, ...) with more than one "
            "element a channel: its variance would be 0"
        )
    w, b = _per_channel("instance_norm", t, 1, scale=scale, bias=bias)
    return rows.normalize(t, w, b, 1, t.shape[1], check_eps("instance_norm", eps), True)


def batch_norm(
    x: TensorLike,
    scale: TensorLike | None = None,
    bias: TensorLike | None = None,
    mean: TensorLike | None = None,
    var: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * scale + bias, with a mean and variance for each channel.

    x: (batch, channels, ...).  scale, bias: (channels,), by default 1 and 0.  eps: 0 or more.
    mean, var: (channels,), by default those of the batch over all other axes, the variance biased.

    Raises ValueError for shapes that do not fit, for one of mean and var without the other, and for a batch
    with one value per channel; TypeError for mixed dtypes. Ioffe & Szegedy 2015.

    >>> import treepie as tp
    >>> tp.fn.batch_norm([[1.0, 5.0], [3.0, 7.0]], eps=0.0).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    if (mean is None) != (var is None):
        raise ValueError("batch_norm: one of mean and var is None, expected both or neither")
    t = _floats("batch_norm", x, scale)
    if t.ndim < 2:
        raise ValueError(f"batch_norm: x has shape {t.shape}, expected (batch, channels, ...)")
    w, b = _per_channel("batch_norm", t, 1, scale=scale, bias=bias)
    check_eps("batch_norm", eps)
    if mean is None or var is None:
        return batch_statistics(t, w, b, eps)[0]
    m, v = _per_channel("batch_norm", t, 1, mean=mean, var=var)
    factor = w * rsqrt(v + eps)
    return batch.scale_shift(t, *(batch.per_channel(p, t.ndim) for p in (m, factor, b)))


def batch_statistics(x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalized by its own statistics, and the mean and biased variance of each channel."""
    if x.ndim >= 2 and 0 < x.size == x.shape[1]:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, one value a channel, expected more: its variance would be 0"
        )
    return batch.batch_norm(x, scale, bias, eps)


def rank_statistics(
    x: Tensor, scale: Tensor, bias: Tensor, eps: float, comm: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x normalized by the statistics of all ranks' rows, those, and the number of values a channel.

    The mean, the biased variance and the number are float64. Ranks sum distances from the mean of their first
    values, as precise as about a value of the batch, and merged without rounding the means of ranks (compare
    Chan et al. 1979). Two sums over ranks, of 1 + c and 2 c numbers, and one of 2 c in the backward pass.
    """
    batch.check_channels(x, scale, bias)
    channels = x.shape[1]
    w, b = (ops.astype(p, float64) for p in (scale, bias))
    # Any origin gives the same statistics, so no gradient passes through it.
    rows = ops.reshape(stop_gradient(x), (x.shape[0], channels, -1))
    first = ops.strided_slice(rows, (0, 0, 0), (1, 1, 1), (1, channels, 1))
    number = as_tensor(np.array([x.size / channels]))
    weighted = ops.mul(ops.reshape(ops.astype(first, float64), (channels,)), number)
    total = ops.rank_sum(ops.concatenate([weighted, number]), comm)
    count = ops.flat_slice(total, channels, ())
    origin = ops.div(ops.flat_slice(total, 0, (channels,)), count)
    sums = ops.rank_sum(batch.channel_moments(x, origin, float64), comm)
    distance, square = (ops.div(v, count) for v in batch.rows_of(sums))
    var = ops.sub(square, ops.square(distance))
    y = batch.channel_affine(x, origin, distance, ops.mul(rsqrt(ops.add(var, eps)), w), b)
    return y, ops.add(origin, distance), var, count
