"""Conversion of numbers, lists and arrays to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import memory

from .tensor import (
    TENSOR_DTYPES,
    DType,
    Tensor,
    TensorLike,
    bool_,
    check_dtype,
    conversion,
    copied,
    float32,
    float64,
    int32,
    int64,
)
from .trace.number import Number

_BY_KIND = {"b": bool_, "i": int64, "u": int64, "f": float64}
_EXACT = {np.dtype("int8"): int32, np.dtype("int16"): int32, np.dtype("uint8"): int32}
_EXACT |= {np.dtype("uint16"): int32, np.dtype("float16"): float32}


def tensor(data: TensorLike, dtype: DType | None = None) -> Tensor:
    """Return a tensor with a copy of numbers, nested lists or an array.

    data: numbers, nested lists of numbers or tensors, a NumPy array, or a tensor, which is not copied.
    dtype: float32, float64, int32, int64 or bool. By default Python floats become float32, ints int32 (int64
    where needed), bools bool; arrays keep their dtype (float16 becomes float32, small integers int32).

    Raises TypeError for data that are no numbers or bools, ValueError for lists that are not rectangular, and
    for integers that the dtype cannot represent.

    >>> import treepie as tp
    >>> tp.tensor([[0.0, 1.0], [2.0, 3.0]])
    tensor([[0., 1.],
            [2., 3.]], dtype=float32)
    """
    target = None if dtype is None else check_dtype("tensor", dtype)
    if type(data) is np.ndarray:  # the usual case, in a third of the time
        own = TENSOR_DTYPES.get(data.dtype)
        if own is not None and (target is None or target is own):
            return copied(data)
    if isinstance(data, Tensor):
        return data.astype(target) if target is not None and target != data.dtype else data
    if isinstance(data, list | tuple) and _holds_tensors(data):
        # By an op, through which gradients pass.
        return tensor(Tensor._stack([tensor(x) for x in data]), target)
    if isinstance(data, Number):
        sample = np.asarray(data.sample)
        native = isinstance(data.sample, np.generic)
        converted = data.operand(sample.dtype if target and not native else _default(sample, native))
        return converted.astype(target) if target is not None and target != converted.dtype else converted
    native = isinstance(data, np.ndarray | np.generic) or hasattr(data, "__array__")
    check_not_masked("tensor", data)
    try:
        array = np.asarray(data)
    except (ValueError, TypeError) as error:
        reason = _ragged(data) or f" ({error})"
        raise type(error)(f"tensor: data is not a rectangular array of numbers{reason}") from None
    if array.dtype.kind not in _BY_KIND:
        raise _no_numbers(data, array)
    if target is None:
        target = _default(array, native)
    _check_range(array, target)
    copy = memory.aligned(array.shape, target)
    # A float beyond float32's range becomes inf, as everywhere in the library.
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(copy, array, casting="unsafe")
    return Tensor(copy, None)


conversion.append(tensor)


def check_not_masked(function: str, x: Any) -> None:
    """Raise ValueError for a masked array with masked elements, which NumPy's conversion would unmask."""
    if not type(x).__module__.startswith("numpy.ma"):  # `np.ma` is imported by who uses it
        return
    count = int(np.ma.getmaskarray(x).sum())
    if count:
        raise ValueError(
            f"{function}: data is a masked array with {count} of {x.size} elements masked, expected none: "
            "replace them by data.filled(value)"
        )


def _ragged(data: Any, path: str = "data") -> str:
    """Return where nested lists differ in length, "" where they do not."""
    if not isinstance(data, list | tuple) or not all(isinstance(x, list | tuple) for x in data):
        return ""
    for k, x in enumerate(data):
        if len(x) != len(data[0]):
            return f": {path}[{k}] has length {len(x)} and {path}[0] {len(data[0])}, expected one length"
    return next(filter(None, (_ragged(x, f"{path}[{k}]") for k, x in enumerate(data))), "")


def _no_numbers(data: Any, array: NDArray[Any]) -> Exception:
    """Return the error for data that NumPy does not take for numbers: a table's names the columns."""
    objects = array.dtype.kind == "O"
    if objects and array.size and all(isinstance(n, int) for n in array.flat):
        bits = max(int(n).bit_length() for n in array.flat)
        if bits > 63:
            return ValueError(f"tensor: data has an integer of {bits} bits, expected -2**63 to 2**63 - 1")
    # A column of a table has `dtypes` too, which is a single one.
    table = hasattr(data, "columns") and hasattr(data, "dtypes")
    pairs = zip(data.columns, data.dtypes, strict=False) if table else ()
    texts = [f"{c!r} ({d})" for c, d in pairs if _kind(d) not in _BY_KIND]
    if texts:
        listed = ", ".join(texts[:5]) + ", ..." * (len(texts) > 5)
        return TypeError(
            f"tensor: data has columns that are no numbers: {listed}; drop them, or encode them as numbers "
            "(pandas.get_dummies)"
        )
    if objects and not array.ndim:
        kind = type(data).__name__
        hint = "list(data) is a list of its elements" if hasattr(data, "__next__") else ""
        hint = getattr(type(data), "_tensor_hint", hint)
        expected = "expected numbers or bools, lists of them, or an array"
        return TypeError(f"tensor: data is a {kind}, {expected}" + f" ({hint})" * bool(hint))
    name = f"column {data.name!r} of data" if isinstance(getattr(data, "name", None), str) else "data"
    message = f"tensor: {name} has dtype {array.dtype}, expected numbers or bools"
    if objects:
        others = [x for x in array.flat if not isinstance(x, int | float | np.number | np.bool_)]
        message += f"; an element is {_cut(repr(others[0]))}" if others else ": data.astype(np.float32)"
    if array.dtype.kind in "UST" or (objects and any(isinstance(x, str) for x in array.flat)):
        message += "; for labels, names, codes = np.unique(labels, return_inverse=True)"
    return TypeError(message)


def _cut(text: str) -> str:
    """Return the beginning of a long text, its first line at most."""
    line = text.split("\n", 1)[0][:60]
    return line if line == text else f"{line}..."


def _kind(dtype: Any) -> str:
    """Return the kind of a table's dtype, "O" where it has none."""
    return str(getattr(dtype, "kind", "O"))


def _check_range(array: NDArray[Any], dtype: np.dtype) -> None:
    """Refuse integers that an integer dtype cannot represent; NumPy's conversion would wrap them."""
    if array.dtype.kind not in "iu" or dtype.kind != "i" or not array.size:
        return
    if np.can_cast(array.dtype, dtype):
        return
    limits = np.iinfo(dtype)
    for value in (int(array.min()), int(array.max())):
        if not limits.min <= value <= limits.max:
            raise ValueError(
                f"tensor: data has the integer {value}, expected {limits.min} to {limits.max} ({dtype.name})"
            )


def _holds_tensors(data: list[Any] | tuple[Any, ...]) -> bool:
    kinds = set(map(type, data))  # a tenth of the time of a loop over many numbers
    if Tensor in kinds:
        return True
    return not kinds.isdisjoint((list, tuple)) and any(
        _holds_tensors(x) for x in data if isinstance(x, list | tuple)
    )


def _default(array: NDArray[Any], native: bool) -> np.dtype:
    dtype = array.dtype.newbyteorder("=")
    if native:
        return TENSOR_DTYPES.get(dtype) or _EXACT.get(dtype, _BY_KIND[dtype.kind])
    if dtype.kind == "f":
        return float32
    if dtype.kind in "iu":
        return int32 if fits_int32(array) else int64
    return bool_


def fits_int32(array: NDArray[Any]) -> bool:
    """Whether int32 can hold all elements of an array of integers."""
    return bool(array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31))
