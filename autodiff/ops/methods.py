"""The operators and methods of tensors: ops, bound to the class after it is defined.

`Tensor` declares their types and imports no op; the docstrings are those of the ops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from ..calls import explain_calls
from ..tensor import Index, Tensor, TensorLike
from . import advanced, arithmetic, compare, linalg, minmax, rearrange, reduction, scan, shape as shapes
from .indexing import take
from .slicing import stack
from .sort import argsort, sort


def _reflected(op: Callable[[TensorLike, TensorLike], Tensor]) -> Callable[[Tensor, TensorLike], Tensor]:
    def method(self: Tensor, other: TensorLike) -> Tensor:
        return op(other, self)

    method.__doc__ = op.__doc__
    return method


def _setitem(self: Tensor, index: Index, value: TensorLike) -> None:
    """Raise TypeError: a tensor is immutable."""
    raise TypeError("tensor: elements can not be assigned, expected x = x.at[index].set(value)")


def _deepcopy(self: Tensor, memo: Any) -> Tensor:
    """Return a copy in separate memory."""
    return shapes.copied(self)


def _getitem(self: Tensor, index: Index) -> Tensor:
    """Select as NumPy does: by integers, slices, None, an ellipsis, integer arrays, bool masks."""
    return advanced.getitem(self, index)


def _reshape(self: Tensor, *shape: int | Sequence[int]) -> Tensor:
    """Return the same elements in the same order under another shape; one size may be -1.

    shape: sizes, or one tuple of them. Raises ValueError for a shape of another number of elements.

    >>> import treepie as tp
    >>> tp.arange(4).reshape(2, -1).tolist()
    [[0, 1], [2, 3]]
    """
    return shapes.reshape(self, shape[0] if len(shape) == 1 else shape)  # type: ignore[arg-type]


def _transpose(self: Tensor, *axes: int | Sequence[int] | None) -> Tensor:
    """Return the tensor with its axes permuted, by default reversed.

    axes: each axis once, or one tuple of them. Raises ValueError for axes that are not such an order.

    >>> import treepie as tp
    >>> tp.zeros((2, 3, 4)).transpose(1, 2, 0).shape
    (3, 4, 2)
    """
    return shapes.transpose(self, (axes[0] if len(axes) == 1 else axes) or None)  # type: ignore[arg-type]


#: Functions of NumPy that call the method of their name, with arguments that a tensor's does not have.
_REDUCTIONS = {np.all, np.any, np.max, np.mean, np.min, np.prod, np.std, np.sum, np.var}


def _array_function(
    self: Tensor,
    func: Callable[..., Any],
    types: Iterable[type],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call a function of NumPy as without this method, but a reduction with an array instead of a tensor."""
    if any(t is not Tensor and t is not np.ndarray and hasattr(t, "__array_function__") for t in types):
        return NotImplemented
    if func in _REDUCTIONS:
        args = [np.asarray(x) if isinstance(x, Tensor) else x for x in args]
        kwargs = {k: np.asarray(x) if isinstance(x, Tensor) else x for k, x in kwargs.items()}
    return func._implementation(*args, **kwargs)  # type: ignore[attr-defined]


_BINARY = {
    "add": arithmetic.add,
    "sub": arithmetic.sub,
    "mul": arithmetic.mul,
    "truediv": arithmetic.div,
    "pow": arithmetic.pow,
    "matmul": linalg.matmul,
}

METHODS: dict[str, Any] = {
    **{f"__{name}__": op for name, op in _BINARY.items()},
    **{f"__r{name}__": _reflected(op) for name, op in _BINARY.items()},
    "__neg__": arithmetic.neg,
    "__abs__": arithmetic.abs,
    "__invert__": compare.logical_not,
    "__and__": compare.logical_and,
    "__or__": compare.logical_or,
    "__lt__": compare.less,
    "__le__": compare.less_equal,
    "__gt__": compare.greater,
    "__ge__": compare.greater_equal,
    "__eq__": compare.equal,
    "__ne__": compare.not_equal,
    "__getitem__": _getitem,
    "__deepcopy__": _deepcopy,
    "_stack": staticmethod(stack),
    "at": property(advanced.At, doc=advanced.At.__doc__),
    "T": property(shapes.transpose, doc="The tensor with its axes reversed."),
    "astype": shapes.astype,
    "reshape": _reshape,
    "transpose": _transpose,
    "ravel": shapes.ravel,
    "flatten": shapes.ravel,
    "squeeze": shapes.squeeze,
    "swapaxes": shapes.swapaxes,
    "repeat": rearrange.repeat,
    "take": take,
    "sort": sort,
    "argsort": argsort,
    "clip": arithmetic.clip,
    "round": arithmetic.round,
    "sum": reduction.sum,
    "mean": reduction.mean,
    "prod": reduction.prod,
    "var": reduction.var,
    "std": reduction.std,
    "cumsum": scan.cumsum,
    "all": minmax.all,
    "any": minmax.any,
    "max": minmax.max,
    "min": minmax.min,
    "argmax": minmax.argmax,
    "argmin": minmax.argmin,
}


def bind() -> None:
    """Give the class of tensors its operators and methods."""
    for name, method in METHODS.items():
        axes = isinstance(method, FunctionType) and "axis" in inspect.signature(method).parameters
        explains = not axes or getattr(method, "explained", False)
        setattr(Tensor, name, method if explains else explain_calls(method, name))
    # Not in the table, so that type checkers know that tensors are immutable.
    setattr(Tensor, "__setitem__", _setitem)  # noqa: B010
    # Nor of the protocols of NumPy, which are its affair.
    setattr(Tensor, "__array_function__", _array_function)  # noqa: B010
