"""Normalisation as functions of tensors."""

from __future__ import annotations

import math

from treepie.autodiff import Tensor, ones, zeros
from treepie.autodiff.arguments import as_float, as_tensor, integer
from treepie.autodiff.ops import batch_normalization as batch, normalization as rows, rsqrt
from treepie.autodiff.tensor import TensorLike

#: Arguments that multiply.
_ONES = ("gamma", "scale")


def _per_channel(name: str, x: Tensor, axis: int, **given: TensorLike | None) -> list[Tensor]:
    """Return arguments with one number a channel, by default ones if they multiply, else zeros."""
    shape, made = (x.shape[axis],), []
    for argument, value in given.items():
        if value is None:
            made.append(ones(shape, x.dtype) if argument in _ONES else zeros(shape, x.dtype))
            continue
        t = as_tensor(value)
        if t.shape != shape or t.dtype != x.dtype:
            raise (ValueError if t.shape != shape else TypeError)(
                f"{name}: {argument} has shape {t.shape} and dtype {t.dtype.name}, expected {shape} and "
                f"{x.dtype.name}, for x of shape {x.shape}"
            )
        made.append(t)
    return made


def check_eps(name: str, eps: float) -> float:
    """Refuse an eps that is negative or not a number."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name}: eps is {eps}, expected a number of 0 or more")
    return float(eps)


def _features(name: str, x: TensorLike) -> Tensor:
    t = as_float(name, x)
    if t.ndim == 0 or t.shape[-1] == 0:
        raise ValueError(f"{name}: x has shape {t.shape}, expected (..., features) with at least one feature")
    return t


def layer_norm(
    x: TensorLike, gamma: TensorLike | None = None, beta: TensorLike | None = None, eps: float = 1e-5
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * gamma + beta, mean and variance over the last axis.

    x: (..., features).  gamma, beta: (features,), by default 1 and 0. The variance is the biased one.
    Ba et al. 2016.
    """
    t = _features("layer_norm", x)
    w, b = _per_channel("layer_norm", t, -1, gamma=gamma, beta=beta)
    return rows.normalize(t, w, b, t.ndim - 1, 1, check_eps("layer_norm", eps), True)


def rms_norm(x: TensorLike, scale: TensorLike | None = None, eps: float = 1e-6) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * scale, the mean over the last axis.

    x: (..., features).  scale: (features,), by default 1.  Zhang & Sennrich 2019.
    """
    t = _features("rms_norm", x)
    w, b = _per_channel("rms_norm", t, -1, scale=scale, bias=None)
    return rows.normalize(t, w, b, t.ndim - 1, 1, check_eps("rms_norm", eps), False)


def group_norm(
    x: TensorLike,
    num_groups: int,
    scale: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return x normalised over each group of channels of an example, times scale, plus bias.

    x: (batch, channels, ...).  num_groups: divides channels.  scale, bias: (channels,), by default 1 and 0.
    Wu & He 2018; one group is layer normalisation, as many as channels instance normalisation.
    """
    t, groups = as_float("group_norm", x), integer("group_norm", "num_groups", num_groups)
    if t.ndim < 2 or groups < 1 or t.shape[1] % groups:
        raise ValueError(
            f"group_norm: x has shape {t.shape} and num_groups is {groups}, expected (batch, channels, ...) "
            "with channels that it divides"
        )
    w, b = _per_channel("group_norm", t, 1, scale=scale, bias=bias)
    return rows.normalize(t, w, b, 1, groups, check_eps("group_norm", eps), True)


def batch_norm(
    x: TensorLike,
    scale: TensorLike | None = None,
    bias: TensorLike | None = None,
    mean: TensorLike | None = None,
    var: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * scale + bias, one mean and variance a channel.

    x: (batch, channels, ...).  scale, bias, mean, var: (channels,). Without mean and var, those of the batch
    over all axes but channels, the variance being the biased one. Ioffe & Szegedy 2015.
    """
    if (mean is None) != (var is None):
        raise ValueError("batch_norm: one of mean and var is None, expected both or neither")
    t = as_float("batch_norm", x)
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
    """Return x normalised by its own statistics, its channels' means and their biased variances."""
    if x.ndim >= 2 and 0 < x.size == x.shape[1]:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, one value a channel, expected more: its variance would be 0"
        )
    return batch.batch_norm(x, scale, bias, eps)
