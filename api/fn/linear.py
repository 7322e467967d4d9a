"""The linear layer and dropout, as functions of tensors."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.ops.random import dropout as dropout_row
from treepie.autodiff.tensor import TensorLike


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

    rngs: a key. Element i is kept where the uniform number of float32 that the key gives it (see
    `treepie.kernels.random`) is at least `rate`, in both dtypes; the backward pass draws it again.
    Srivastava et al. 2014, scaled in training so that evaluation needs no change.
    """
    check_rate(rate)
    t = as_float("dropout", x)
    return dropout_row(t, rngs, rate) if rate else t


def check_rate(rate: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected 0 <= rate < 1")
