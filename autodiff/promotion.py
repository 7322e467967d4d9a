"""Numbers and tensors as operands of one dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from treepie.kernels.program import Spec

from .convert import tensor
from .tensor import Tensor, TensorLike, float64
from .trace import active
from .trace.number import Number, does_not_fit, fitting

Accepts = Literal["any", "number", "signed", "float", "bool"]

_NUMBERS = bool | int | float | np.generic | Number
_KINDS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float}
_constants: dict[tuple[float, np.dtype], Tensor] = {}


def constant(number: float | int | bool | Number, dtype: np.dtype, name: str = "tensor") -> Tensor:
    """Return a number as a tensor of shape (); numbers of traced user code are inputs of its program.

    name: of the function, for the ValueError where the dtype can not hold the number.
    """
    trace = active.state.trace
    if trace is not None and not trace.closed:
        if type(number) is Number:
            return number.operand(dtype, name)
        if trace.user and dtype.kind == "f":
            return trace.number(fitting(number, dtype, name), dtype)
    elif type(number) is Number:
        number = number.sample
    return stored_constant(number, dtype, name)


def stored_constant(number: Any, dtype: np.dtype, name: str = "tensor") -> Tensor:
    """Return a constant from a cache."""
    negative_zero = not number and math.copysign(1.0, number) < 0  # equal to 0.0 as a key
    stored = _constants.get((number, dtype))
    if stored is not None and not negative_zero:
        return stored
    try:
        with np.errstate(over="ignore"):
            created = Tensor(np.array(number, dtype), None)
    except OverflowError:
        raise does_not_fit(name, number, dtype) from None
    if len(_constants) < 4096 and not negative_zero:
        _constants[number, dtype] = created
    return created


def promoted(name: str, args: tuple[TensorLike, ...], accepts: Accepts = "any") -> tuple[Tensor, ...]:
    """Return operands as tensors of one dtype, promoted as NumPy does; numbers beside tensors are weak.

    NumPy's scalars are numbers like Python's: np.sqrt(8) divides a float32 tensor in float32.

    accepts: "any", "number" (bools become int64), "signed" (no bools), "float" (other dtypes become float64)
        or "bool".
    """
    dtype = _common_dtype(args)
    if dtype is not None and accepts != "bool" and (accepts == "any" or dtype.kind == "f"):
        return tuple(a if type(a) is Tensor else constant(a, dtype, name) for a in args)  # type: ignore[arg-type]
    operands: list[Any] = [a if isinstance(a, Tensor | _NUMBERS) else tensor(a) for a in args]
    if any(isinstance(a, Tensor) for a in operands):
        operands = [_plain(a) if isinstance(a, np.generic) else a for a in operands]
    else:  # numbers alone: converted as by `tensor`
        operands = [tensor(a) for a in operands]
    try:
        dtype = np.result_type(*[_promoting(a) for a in operands])
    except (TypeError, OverflowError) as error:
        raise TypeError(f"{name}: operands do not have a common dtype ({error})") from None
    if accepts == "float" and dtype.kind != "f":
        dtype = float64
    elif accepts == "signed" and dtype.kind == "b":
        raise TypeError(f"{name}: operands are bools, expected numbers (use logical_not, !=, or astype)")
    elif accepts == "number" and dtype.kind == "b":
        dtype = np.dtype("int64")
    elif accepts == "bool" and dtype.kind != "b":
        raise TypeError(f"{name}: an operand has dtype {dtype.name}, expected bool")
    return tuple(_as(a, dtype, name) for a in operands)


def _promoting(a: Any) -> Any:
    """Return the dtype or number that NumPy promotes for an operand."""
    if isinstance(a, Tensor):
        return a.dtype
    number = a.sample if type(a) is Number else a
    return _plain(number) if isinstance(number, np.generic) else number


def _plain(scalar: np.generic) -> Any:
    """Return a scalar of NumPy as a Python number, as exact as that can be; others as `tensor` does."""
    kind = _KINDS.get(scalar.dtype.kind)
    return tensor(scalar) if kind is None else kind(scalar)


def _common_dtype(args: Sequence[Any]) -> np.dtype | None:
    """Return the dtype of tensors of one dtype and weak numbers, the usual case, else None."""
    dtype, number = None, None
    for a in args:
        if type(a) is Tensor:
            if dtype is None:
                dtype = a._data.dtype
            elif a._data.dtype is not dtype:
                return None
        elif type(a) is float or type(a) is int or (type(a) is Number and type(a.sample) in (float, int)):
            number = a
        else:
            return None
    return dtype if number is None or (dtype is not None and dtype.kind == "f") else None


def _as(a: Any, dtype: np.dtype, name: str) -> Tensor:
    if not isinstance(a, Tensor):
        return constant(a, dtype, name)
    return a if a._data.dtype == dtype else a.astype(dtype)


def broadcast(name: str, specs: Sequence[Spec]) -> tuple[int, ...]:
    """Return the shape that operands broadcast to, or raise ValueError naming them."""
    first = specs[0].shape
    if all(s.shape == first for s in specs):
        return first
    try:
        return np.broadcast_shapes(*[s.shape for s in specs])
    except ValueError:
        shapes = " and ".join(str(s.shape) for s in specs)
        raise ValueError(
            f"{name}: operands have shapes {shapes}, expected shapes that broadcast: from the last "
            "axis on, equal sizes or 1"
        ) from None
