"""Layers without parameters of their own, as functions of tensors."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops, rng
from treepie.autodiff.arguments import as_float, as_tensor, one_axis
from treepie.autodiff.ops import (
    gelu,
    log_softmax,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from treepie.autodiff.tensor import TensorLike

# fmt: off
__all__ = [
    "dropout", "elu", "gelu", "glu", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "relu",
    "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]
# fmt: on

swish = silu


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """Return x @ weight + bias.

    x: (..., in).  weight: (in, out).  bias: (out,).  All of one float dtype.
    """
    t, w = as_tensor(x), as_tensor(weight)
    if w.ndim != 2 or t.ndim == 0 or t.shape[-1] != w.shape[0]:
        given = f"x has shape {t.shape} and weight {w.shape}"
        expected = f"(..., {w.shape[0]})" if w.ndim == 2 else "(..., in) and (in, out)"
        raise ValueError(f"linear: {given}, expected {expected}")
    if t.dtype != w.dtype:
        raise TypeError(f"linear: x is {t.dtype.name}, expected {w.dtype.name} as the weight is")
    out = ops.matmul(t, w)
    if bias is None:
        return out
    b = as_tensor(bias)
    if b.shape != w.shape[1:]:
        raise ValueError(f"linear: bias has shape {b.shape}, expected {w.shape[1:]}")
    return out + b


def dropout(x: TensorLike, rate: float, rngs: Tensor) -> Tensor:
    """Return x with each element set to 0 with probability `rate`, the others divided by 1 - rate.

    rngs: a key.  Srivastava et al. 2014, scaled in training so that evaluation needs no change.
    """
    check_rate(rate)
    t = as_float("dropout", x)
    if rate == 0:
        return t
    kept = rng.bernoulli(rngs, 1.0 - rate, t.shape)
    return ops.where(kept, t * (1.0 / (1.0 - rate)), 0.0)


def check_rate(rate: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected 0 <= rate < 1")


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """Return x where it is positive, negative_slope * x elsewhere."""
    t = as_float("leaky_relu", x)
    return ops.where(t > 0, t, t * negative_slope)


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """Return x where it is positive, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016)."""
    t = as_float("elu", x)
    # The branch that is not taken must not overflow: its gradient would be inf * 0.
    return ops.where(t > 0, t, ops.expm1(ops.minimum(t, 0.0)) * alpha)


def softsign(x: TensorLike) -> Tensor:
    """Return x / (1 + |x|)."""
    t = as_float("softsign", x)
    return t / (1.0 + abs(t))


def log_sigmoid(x: TensorLike) -> Tensor:
    """Return log(sigmoid(x)), without overflow."""
    return -softplus(-as_float("log_sigmoid", x))


def glu(x: TensorLike, axis: int = -1) -> Tensor:
    """Return a * sigmoid(b), a and b the two halves of x along an axis (Dauphin et al. 2017)."""
    t = as_float("glu", x)
    k = one_axis("glu", axis, t.ndim)
    half, odd = divmod(t.shape[k], 2)
    if odd:
        raise ValueError(f"glu: x has shape {t.shape}, expected an even size of axis {axis}")
    before = (slice(None),) * k
    return t[(*before, slice(None, half))] * sigmoid(t[(*before, slice(half, None))])
