"""The linear layer and dropout, as functions of tensors."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops, zeros
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.ops.random import dropout as dropout_row
from treepie.autodiff.tensor import TensorLike


def linear(
    x: TensorLike, weight: TensorLike, bias: TensorLike | None = None, activation: str | None = None
) -> Tensor:
    """Return activation(x @ weight + bias), in one pass over memory.

    x: (..., in).  weight: (in, out).  bias: (out,).  All of one float dtype.
    activation: None, "relu", "tanh", "sigmoid", "gelu" or "silu".
    """
    w = as_tensor(weight)
    b = zeros(w.shape[1:], w.dtype) if bias is None else bias
    made = ops.linear(x, w, b, activation)
    return made[0] if isinstance(made, tuple) else made


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
