"""Activations that are not rows of the op table: made of those that are."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, one_axis
from treepie.autodiff.ops import sigmoid, silu, softplus
from treepie.autodiff.tensor import TensorLike

swish = silu


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
