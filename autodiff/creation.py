"""Tensors created from sizes and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arguments import LARGEST, allocated, as_tensor, filled, integer, real, shape_of, shown
from .convert import fits_int32, tensor
from .promotion import stored_constant
from .table import Shape
from .tensor import DType, Tensor, TensorLike, check_dtype, float32, float64, int32, int64
from .trace.number import Number


def zeros(shape: int | Shape, dtype: DType = float32) -> Tensor:
    """Return a tensor of zeros.

    shape: sizes, or one for a vector.

    Raises ValueError for a negative size, TypeError for an unsupported dtype.

    >>> import treepie as tp
    >>> tp.zeros((2, 2)).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    return Tensor(filled("zeros", shape_of("zeros", shape), check_dtype("zeros", dtype)), None)


def ones(shape: int | Shape, dtype: DType = float32) -> Tensor:
    """Return a tensor of ones.

    shape: sizes, or one for a vector.

    Raises ValueError for a negative size, TypeError for an unsupported dtype.

    >>> import treepie as tp
    >>> tp.ones(2, tp.int32).tolist()
    [1, 1]
    """
    return Tensor(filled("ones", shape_of("ones", shape), check_dtype("ones", dtype), 1), None)


def full(shape: int | Shape, fill_value: float | int | bool, dtype: DType | None = None) -> Tensor:
    """Return a tensor of one number.

    shape: sizes, or one for a vector.  dtype: by default the one of `tensor(fill_value)`.

    Raises ValueError for a negative size, or a number that the dtype can not hold.

    >>> import treepie as tp
    >>> tp.full((2,), 7).tolist()
    [7, 7]
    """
    if isinstance(fill_value, Tensor | Number):
        from .ops import broadcast_to

        return broadcast_to(tensor(fill_value, dtype), shape_of("full", shape))
    sizes = shape_of("full", shape)
    try:
        kind = tensor(fill_value).dtype if dtype is None else check_dtype("full", dtype)
        constant = stored_constant(fill_value, kind).array
    except ValueError:
        text = shown(fill_value) if isinstance(fill_value, int) else f"{fill_value}"
        raise ValueError(f"full: fill_value is {text}, expected a number that the dtype can hold") from None
    return Tensor(filled("full", sizes, kind, constant), None)


def zeros_like(x: TensorLike, dtype: DType | None = None) -> Tensor:
    """Return zeros with the shape of x, and its dtype unless one is passed.

    Raises TypeError for an unsupported dtype.

    >>> import treepie as tp
    >>> tp.zeros_like(tp.tensor([1.0, 2.0])).tolist()
    [0.0, 0.0]
    """
    t = as_tensor(x)
    return zeros(t.shape, t.dtype if dtype is None else dtype)


def ones_like(x: TensorLike, dtype: DType | None = None) -> Tensor:
    """Return ones with the shape of x, and its dtype unless one is passed.

    Raises TypeError for an unsupported dtype.

    >>> import treepie as tp
    >>> tp.ones_like(tp.tensor([1.0, 2.0])).tolist()
    [1.0, 1.0]
    """
    t = as_tensor(x)
    return ones(t.shape, t.dtype if dtype is None else dtype)


def full_like(x: TensorLike, fill_value: float | int | bool, dtype: DType | None = None) -> Tensor:
    """Return a tensor of one number with the shape of x, and its dtype unless one is passed.

    Raises TypeError for an unsupported dtype, ValueError for a number that the dtype can not hold.

    >>> import treepie as tp
    >>> tp.full_like(tp.tensor([1.0, 2.0]), 7).tolist()
    [7.0, 7.0]
    """
    t = as_tensor(x)
    return full(t.shape, fill_value, t.dtype if dtype is None else dtype)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: DType | None = None) -> Tensor:
    """Return start, start + step, ... below stop; with one argument, 0, 1, ... below it.

    start, stop, step: numbers.  dtype: by default int32 for integers (int64 where needed), else float32.

    Raises ValueError for a step of 0.

    >>> import treepie as tp
    >>> tp.arange(1, 7, 2).tolist()
    [1, 3, 5]
    """
    if step == 0:
        raise ValueError("arange: step is 0, expected another number")
    first, last = (0, start) if stop is None else (start, stop)
    numbers: dict[str, Any] = {"start": first, "stop": last, "step": step}
    if all(isinstance(n, int | np.integer) for n in numbers.values()):
        first, last, step = (integer("arange", argument, n) for argument, n in numbers.items())
        count = max(0, -(-(last - first) // step))
        kind = int64
    else:
        try:
            count = max(0, math.ceil((last - first) / step))
        except (OverflowError, ValueError):
            count = LARGEST  # infinitely many, or a NaN
        kind = float64
    array = allocated("arange", (count,), kind, lambda: np.arange(first, last, step))
    if dtype is None and array.dtype.kind == "f":
        return tensor(array, float32)
    return tensor(array, int32 if dtype is None and fits_int32(array) else dtype)


def linspace(start: float, stop: float, num: int = 50, dtype: DType = float32) -> Tensor:
    """Return `num` evenly spaced numbers from start to stop, both included.

    start, stop: numbers.  num: how many, 0 or more.

    Raises ValueError for a negative num.

    >>> import treepie as tp
    >>> tp.linspace(0.0, 1.0, 5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    kind, count = check_dtype("linspace", dtype), integer("linspace", "num", num, least=0)
    first, last = (
        real("linspace", argument, end) if type(end) is int else end
        for argument, end in (("start", start), ("stop", stop))
    )
    return tensor(allocated("linspace", (count,), float64, lambda: np.linspace(first, last, count)), kind)


def eye(n: int, m: int | None = None, dtype: DType = float32) -> Tensor:
    """Return an n by m matrix with ones on its diagonal.

    n, m: rows and columns; m is n by default.

    Raises ValueError for a negative size.

    >>> import treepie as tp
    >>> tp.eye(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows, columns = shape_of("eye", (n, n if m is None else m))
    kind = check_dtype("eye", dtype)
    return Tensor(allocated("eye", (rows, columns), kind, lambda: np.eye(rows, columns, dtype=kind)), None)
