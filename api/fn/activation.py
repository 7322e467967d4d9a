"""Activations: ops of the table, with defaults and checks of their arguments."""

from __future__ import annotations

import math

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_float, as_tensor, one_axis, same_float_dtype
from treepie.autodiff.ops import activation as rows, relu, sigmoid, silu
from treepie.autodiff.ops.activation import (
    gelu_approx,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    log_sigmoid,
    mish,
    relu6,
    selu,
    softsign,
    sparse_plus,
    sparse_sigmoid,
)
from treepie.autodiff.tensor import TensorLike

swish = silu
hard_swish = hard_silu

# fmt: off
__all__ = [
    "celu", "elu", "gelu_approx", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu",
    "log_sigmoid", "mish", "prelu", "relu6", "selu", "softsign", "sparse_plus", "sparse_sigmoid",
    "squareplus", "swish",
]
# fmt: on


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """Return x where it is positive, negative_slope * x elsewhere; the derivative at 0 is negative_slope.

    x: any shape, float. Maas et al. 2013.

    >>> import treepie as tp
    >>> tp.fn.leaky_relu([-2.0, 3.0], 0.5).tolist()
    [-1.0, 3.0]
    """
    return rows.leaky_relu(x, negative_slope)


def prelu(x: TensorLike, weight: TensorLike) -> Tensor:
    """Return x where it is positive, weight * x elsewhere, with a learned weight (He et al. 2015).

    x: (batch, channels, ...) or any shape.  weight: one element, or (channels,) for axis 1 of x, else
        ValueError; of x's dtype.

    >>> import treepie as tp
    >>> tp.fn.prelu([[-2.0, -2.0]], [0.5, 0.25]).tolist()
    [[-1.0, -0.5]]
    """
    w = as_tensor(weight)
    t = as_float("prelu", x, like=w)
    same_float_dtype("prelu", x=t, weight=w)
    if w.size == 1 and w.ndim <= 1:
        return rows.leaky_relu(t, w.reshape(()))
    if t.ndim < 2 or w.shape != (t.shape[1],):
        raise ValueError(
            f"prelu: weight has shape {w.shape} and x {t.shape}, expected one element, or as many as x has "
            "channels on axis 1"
        )
    return rows.leaky_relu(t, w.reshape((-1,) + (1,) * (t.ndim - 2)))


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """Return x where it is positive, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016).

    >>> import treepie as tp
    >>> tp.fn.elu([0.0, 2.0]).tolist()
    [0.0, 2.0]
    """
    return rows.elu(x, alpha)


def celu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """Return x where it is positive, alpha * (exp(x / alpha) - 1) elsewhere (Barron 2017).

    alpha: not 0, else ValueError.

    >>> import treepie as tp
    >>> tp.fn.celu([0.0, 2.0], alpha=2.0).tolist()
    [0.0, 2.0]
    """
    if isinstance(alpha, int | float) and alpha == 0:
        raise ValueError("celu: alpha is 0, expected another number")
    return rows.celu(x, alpha)


def squareplus(x: TensorLike, b: float = 4.0) -> Tensor:
    """Return (x + sqrt(x^2 + b)) / 2, a smooth relu (Barron 2021).

    b: 0 or more, else ValueError; 0 gives relu.

    >>> import treepie as tp
    >>> tp.fn.squareplus([0.0]).tolist()
    [1.0]
    """
    if not 0 <= b < math.inf:
        raise ValueError(f"squareplus: b is {b}, expected a number of 0 or more")
    if b == 4:
        return rows.squareplus(x)
    scale = math.sqrt(b) / 2
    return (
        rows.squareplus(as_float("squareplus", x) / scale) * scale if b else relu(as_float("squareplus", x))
    )


def glu(x: TensorLike, axis: int = -1) -> Tensor:
    """Return a * sigmoid(b), a and b the two halves of x along an axis (Dauphin et al. 2017).

    x: of an even size along the axis, else ValueError.

    >>> import treepie as tp
    >>> tp.fn.glu([4.0, 0.0]).tolist()
    [2.0]
    """
    t = as_float("glu", x)
    k = one_axis("glu", axis, t.ndim)
    half, odd = divmod(t.shape[k], 2)
    if odd:
        raise ValueError(f"glu: x has shape {t.shape}, expected an even size of axis {axis}")
    before = (slice(None),) * k
    return t[(*before, slice(None, half))] * sigmoid(t[(*before, slice(half, None))])
