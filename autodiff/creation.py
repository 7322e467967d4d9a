"""Tensors made from sizes and numbers."""

from __future__ import annotations

import numpy as np

from .arguments import as_tensor, shape_of
from .convert import tensor
from .elementwise import stored_constant
from .table import Shape
from .tensor import DType, Tensor, TensorLike, check_dtype, float32
from .trace.number import Number


def zeros(shape: int | Shape, dtype: DType = float32) -> Tensor:
    """Return a tensor of zeros."""
    return Tensor(np.zeros(shape_of("zeros", shape), check_dtype("zeros", dtype)))


def ones(shape: int | Shape, dtype: DType = float32) -> Tensor:
    """Return a tensor of ones."""
    return Tensor(np.ones(shape_of("ones", shape), check_dtype("ones", dtype)))


def full(shape: int | Shape, fill_value: float | int | bool, dtype: DType | None = None) -> Tensor:
    """Return a tensor of one number; without a dtype, the one that `tensor(fill_value)` has."""
    if isinstance(fill_value, Tensor | Number):
        from .ops import broadcast_to

        return broadcast_to(tensor(fill_value, dtype), shape_of("full", shape))
    kind = tensor(fill_value).dtype if dtype is None else check_dtype("full", dtype)
    return Tensor(np.full(shape_of("full", shape), stored_constant(fill_value, kind).array))


def zeros_like(x: TensorLike, dtype: DType | None = None) -> Tensor:
    """Return zeros with the shape of x, and its dtype unless another is given."""
    t = as_tensor(x)
    return zeros(t.shape, t.dtype if dtype is None else dtype)


def ones_like(x: TensorLike, dtype: DType | None = None) -> Tensor:
    """Return ones with the shape of x, and its dtype unless another is given."""
    t = as_tensor(x)
    return ones(t.shape, t.dtype if dtype is None else dtype)


def full_like(x: TensorLike, fill_value: float | int | bool, dtype: DType | None = None) -> Tensor:
    """Return a tensor of one number with the shape of x, and its dtype unless another is given."""
    t = as_tensor(x)
    return full(t.shape, fill_value, t.dtype if dtype is None else dtype)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: DType | None = None) -> Tensor:
    """Return start, start + step, ... below stop; with one argument, 0, 1, ... below it.

    Integers give int32 (int64 where they need it), floats float32.
    """
    if step == 0:
        raise ValueError("arange: step is 0, expected another number")
    first, last = (0, start) if stop is None else (start, stop)
    return tensor(np.arange(first, last, step).tolist(), dtype) if first != last else _empty(start, dtype)


def _empty(sample: float, dtype: DType | None) -> Tensor:
    return zeros((0,), tensor(sample).dtype if dtype is None else dtype)


def linspace(start: float, stop: float, num: int = 50, dtype: DType = float32) -> Tensor:
    """Return `num` numbers from start to stop, both included."""
    if num < 0:
        raise ValueError(f"linspace: num is {num}, expected 0 or more")
    return tensor(np.linspace(start, stop, num), dtype)


def eye(n: int, m: int | None = None, dtype: DType = float32) -> Tensor:
    """Return an n by m matrix (n by n by default) with ones on its diagonal."""
    rows, columns = shape_of("eye", (n, n if m is None else m))
    return Tensor(np.eye(rows, columns, dtype=check_dtype("eye", dtype)))
