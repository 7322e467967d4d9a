"""Checks of arguments that many ops share. A message names the function, the value and what is expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import memory

from .convert import tensor
from .tensor import Axis, Tensor, TensorLike, float32, float64

#: The largest integer of 64 bits: kernels count bytes and positions in these.
LARGEST = 2**63 - 1
#: The most elements of a tensor: their bytes, of 8 bytes each, are an integer of 64 bits.
MOST_ELEMENTS = LARGEST // 8
#: The most axes of a NumPy array.
MOST_AXES = 64


def as_tensor(x: TensorLike) -> Tensor:
    """Return x as a tensor, copied unless it is one."""
    return x if isinstance(x, Tensor) else tensor(x)


def as_float(name: str, x: TensorLike) -> Tensor:
    """Return x as a float tensor; integers and bools become float32 from Python, float64 from arrays."""
    t = as_tensor(x)
    if t.dtype.kind == "f":
        return t
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


def shown(number: int) -> str:
    """Return an integer for a message: digits, a large one as "2**70" or by its number of bits."""
    if abs(number) < 10**9:
        return str(number)
    sign, n = "-" * (number < 0), abs(number)
    bits = n.bit_length()
    if n == 1 << (bits - 1):
        return f"{sign}2**{bits - 1}"
    if n == (1 << bits) - 1:
        return f"{sign}(2**{bits} - 1)" if sign else f"2**{bits} - 1"
    return f"{sign}{n}" if bits <= 128 else f"an integer of {bits} bits"


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


def check_total(name: str, shape: Sequence[int]) -> None:
    """Refuse a shape whose bytes an address can not count; as in NumPy, sizes of 0 do not make it fit."""
    total = math.prod(shape) or math.prod([n for n in shape if n])
    if total > MOST_ELEMENTS or len(shape) > MOST_AXES:
        listed = ", ".join(map(shown, shape))
        raise ValueError(
            f"{name}: the shape ({listed}) has {shown(total)} elements on {len(shape)} axes, expected at "
            f"most {shown(MOST_ELEMENTS)} on {MOST_AXES}"
        )


def out_of_memory(name: str, shape: Sequence[int], dtype: np.dtype) -> MemoryError:
    """Return the error for an array that the machine's memory can not hold."""
    error = memory.too_large(name, math.prod(shape) * dtype.itemsize)
    return MemoryError(f"{error}, shape {tuple(shape)} of {dtype.name}")


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
