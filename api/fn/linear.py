"""The linear layer and dropout, as functions of tensors."""

from __future__ import annotations

from typing import Literal

from treepie.autodiff import Tensor, ones, ops, zeros
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.ops.random import dropout as dropout_row
from treepie.autodiff.tensor import TensorLike

Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu"]


def linear(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """Return activation(x @ weight + bias), fused: bias and activation are the product's epilogue.

    x: (..., in).  weight: (in, out).  bias: (out,), by default zeros.  All of one float dtype; integers and
        bools of x are cast to it.
    activation: None, "relu", "tanh", "sigmoid", "gelu" or "silu".  Result: (..., out).

    Raises ValueError for shapes that do not fit, TypeError for mixed dtypes.

    >>> import treepie as tp
    >>> tp.fn.linear([[1.0, 2.0]], [[1.0], [-1.0]], [0.5], "relu").tolist()
    [[0.0]]
    """
    w = as_tensor(weight)
    b = zeros(w.shape[1:], w.dtype) if bias is None else bias
    out = ops.linear(as_float("linear", x, like=w), w, b, activation)
    return out[0] if isinstance(out, tuple) else out


def dropout(x: TensorLike, rate: float, rngs: Tensor) -> Tensor:
    """Return x with each element set to 0 with probability `rate`, the others divided by 1 - rate.

    x: any shape, float.  rate: in [0, 1), else ValueError.
    rngs: a key. Element i is kept if its uniform float32 number (see `treepie.kernels.random`) is at least
        `rate`, in both dtypes; the backward pass recomputes it.

    Srivastava et al. 2014, scaled in training so that evaluation is the identity.

    >>> import treepie as tp
    >>> y = tp.fn.dropout(tp.ones(1000), 0.5, tp.rng.key(0))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    check_rate(rate)
    t = as_float("dropout", x)
    return dropout_row(t, rngs, rate) if rate else t


def dropout2d(x: TensorLike, rate: float, rngs: Tensor) -> Tensor:
    """Return x with each channel set to 0 with probability `rate`, the others divided by 1 - rate.

    x: (batch, channels, ...), float: sequences or images.  rate: in [0, 1), else ValueError.  rngs: a key.

    Neighbours in a channel are alike, so that single elements hold little information (Tompson et al. 2015).

    >>> import treepie as tp
    >>> y = tp.fn.dropout2d(tp.ones((4, 100, 5, 5)), 0.5, tp.rng.key(0))
    >>> sorted(set(y.mean(axis=(2, 3)).ravel().tolist()))
    [0.0, 2.0]
    """
    check_rate(rate)
    t = as_float("dropout2d", x)
    if t.ndim < 2:
        raise ValueError(f"dropout2d: x has shape {t.shape}, expected (batch, channels, ...)")
    shape = t.shape[:2] + (1,) * (t.ndim - 2)
    factors = dropout(ones(shape, t.dtype), rate, rngs)
    # An infinite element of a channel that is dropped would be NaN.
    return ops.where(factors > 0, t * factors, 0.0) if rate else t


def check_rate(rate: float) -> None:
    """Raise ValueError for a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected 0 <= rate < 1")
