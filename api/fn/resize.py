"""Enlarging images and sequences, as functions of tensors."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float
from treepie.autodiff.tensor import TensorLike

from .geometry import Sizes, sizes

Mode = Literal["nearest", "linear", "bilinear"]
#: Number of x's axes for the modes that interpolate.
_AXES = {"linear": 3, "bilinear": 4}


def check_mode(name: str, mode: str) -> None:
    """Raise ValueError for an unknown mode."""
    if mode not in get_args(Mode):
        raise ValueError(f"{name}: mode is {mode!r}, expected 'nearest', 'linear' or 'bilinear'")


def upsample(x: TensorLike, scale: Sizes, mode: Mode = "nearest") -> Tensor:
    """Return images or sequences, `scale` times as large.

    x: (batch, channels, length) or (batch, channels, h, w), float.
    scale: an int, or one for each spatial axis, of 1 or more.
    mode: "nearest" repeats each element; "linear" for sequences and "bilinear" for images interpolate between
        the centres of elements, as PyTorch does with align_corners=False, and TensorFlow and JAX.

    Raises ValueError for other shapes, scales and modes.

    >>> import treepie as tp
    >>> tp.fn.upsample([[[1.0, 3.0]]], 2).tolist()
    [[[1.0, 1.0, 3.0, 3.0]]]
    >>> tp.fn.upsample([[[1.0, 3.0]]], 2, mode="linear").tolist()
    [[[1.0, 1.5, 2.5, 3.0]]]
    """
    t = as_float("upsample", x)
    check_mode("upsample", mode)
    if t.ndim not in (3, 4) or t.ndim != _AXES.get(mode, t.ndim) or 0 in t.shape[2:]:
        expected = "(batch, channels, length)" if mode != "bilinear" else ""
        expected += " or " if mode == "nearest" else ""
        expected += "(batch, channels, h, w)" if mode != "linear" else ""
        raise ValueError(
            f"upsample: x has shape {t.shape} and mode is {mode!r}, expected {expected}, not empty"
        )
    factors = sizes("upsample", "scale", scale, t.ndim - 2)
    for axis, factor in enumerate(factors, 2):
        if factor > 1:
            t = _repeated(t, axis, factor) if mode == "nearest" else _interpolated(t, axis, factor)
    return t


def _repeated(t: Tensor, axis: int, factor: int) -> Tensor:
    """Return each element along an axis `factor` times: a broadcast, whose gradient is a sum."""
    before, n, after = t.shape[:axis], t.shape[axis], t.shape[axis + 1 :]
    columns = ops.reshape(t, (*before, n, 1, *after))
    return ops.reshape(ops.broadcast_to(columns, (*before, n, factor, *after)), (*before, n * factor, *after))


def _interpolated(t: Tensor, axis: int, factor: int) -> Tensor:
    first, second, share = _neighbours(t.shape[axis], factor, t.dtype.name)
    weight = ops.reshape(share, (-1,) + (1,) * (t.ndim - axis - 1))
    left, right = (ops.take(t, k, axis) for k in (first, second))
    return left * (1 - weight) + right * weight


@functools.lru_cache(maxsize=100)
def _neighbours(n: int, factor: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two elements next to each result's centre, and the second one's share."""
    position = np.maximum((np.arange(n * factor) + 0.5) / factor - 0.5, 0)
    first = position.astype(np.int64)
    second = np.minimum(first + 1, n - 1)
    return Tensor(first, None), Tensor(second, None), Tensor((position - first).astype(dtype), None)
