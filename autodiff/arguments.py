"""Checks of arguments that many ops share. A message names the function, the value and what is expected."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .convert import tensor
from .limits import LARGEST as LARGEST, check_total as check_total, out_of_memory, shown as shown
from .tensor import Axis, Tensor, TensorLike, float32, float64


def as_tensor(x: TensorLike) -> Tensor:
    """Return x as a tensor, copied unless it is one."""
    return x if isinstance(x, Tensor) else tensor(x)


def as_float(name: str, x: TensorLike, like: Tensor | None = None) -> Tensor:
    """Return x as a float tensor; integers and bools become float32 from Python, float64 from arrays.

    like: weights; integers and bools get their dtype instead.
    """
    t = as_tensor(x)
    if t._data.dtype.kind == "f":
        return t
    if like is not None and like.dtype.kind == "f":
        return t.astype(like.dtype)
    return t.astype(float64 if isinstance(x, Tensor | np.ndarray) else float32)


def index(name: str, argument: str, value: Any) -> int:
    """Return a Python integer of any size, or raise TypeError; the caller checks its range."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {argument} is {value!r}, expected an int") from None


def integer(name: str, argument: str, value: Any, least: int = -(2**63), most: int = LARGEST) -> int:
    """Return a Python integer of `least` to `most`, by default what int64 holds; TypeError, ValueError."""
    number = index(name, argument, value)
    if not least <= number <= most:
        limit = f"at least {shown(least)}" if number < least else f"at most {shown(most)}"
        raise ValueError(f"{name}: {argument} is {shown(number)}, expected {limit}")
    return number


def real(name: str, argument: str, value: int) -> float:
    """Return an integer as a float, or raise ValueError for one beyond float64's range."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: {argument} is {shown(value)}, expected a number of float64") from None


def one_axis(name: str, axis: int, ndim: int) -> int:
    """Return an axis as 0..ndim-1, or raise ValueError."""
    k = index(name, "axis", axis)
    if not -ndim <= k < ndim:
        raise ValueError(f"{name}: axis is {k}, expected {-ndim} to {ndim - 1} for {ndim} axes")
    return k % ndim


def some_axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return axes in ascending order, all of them for None, or raise ValueError."""
    if axis is None:
        return tuple(range(ndim))
    listed = axis if isinstance(axis, tuple | list) else (axis,)
    axes = sorted(one_axis(name, a, ndim) for a in listed)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name}: axis is {axis}, expected each axis once")
    return tuple(axes)


def shape_of(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of sizes, an int as one axis."""
    if isinstance(shape, tuple | list):
        sizes = tuple([index(name, "shape", n) for n in shape])
    else:
        sizes = (index(name, "shape", shape),)
    if sizes and min(sizes) < 0:
        raise ValueError(f"{name}: shape is {shape}, expected sizes of 0 or more")
    check_total(name, sizes)
    return sizes


def filled(name: str, shape: Sequence[int], dtype: np.dtype, value: Any = None) -> NDArray[Any]:
    """Return an array of one number, by default zeros; MemoryError where the machine can not hold it."""
    try:
        return np.zeros(shape, dtype) if value is None else np.full(shape, value, dtype)
    except MemoryError:
        raise out_of_memory(name, shape, dtype) from None


def allocated(
    name: str, shape: Sequence[int], dtype: np.dtype, create: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return an array that NumPy creates, of the shape and dtype, with the same checks of its size."""
    check_total(name, shape)
    try:
        return create()
    except MemoryError:
        raise out_of_memory(name, shape, dtype) from None


def same_float_dtype(name: str, **operands: Tensor) -> None:
    """Refuse operands that are not floats of one dtype."""
    first = None
    for t in operands.values():
        if t._data.dtype is not first:
            if first is not None:
                break
            first = t._data.dtype
    else:
        if first is not None and first.kind == "f":
            return  # the usual case, in a tenth of the time
    dtypes = {k: t.dtype for k, t in operands.items()}
    kinds = set(dtypes.values())
    if len(kinds) > 1 or kinds.pop().kind != "f":
        text = ", ".join(f"{k} is {d.name}" for k, d in dtypes.items())
        raise TypeError(f"{name}: {text}; expected one float dtype, float32 or float64 (see astype)")
