"""Minima and maxima over axes, their positions, and whether any or all elements are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import reduce as kernels
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis
from ..table import BoundArguments, Decorator
from ..tensor import Axis, Tensor, TensorLike, bool_, float64, int64
from .arithmetic import div, where
from .compare import equal
from .reduction import (
    AXES,
    EMPTY,
    as_outer_n_inner,
    bind_axes,
    count,
    expand_to,
    planner,
    reduced,
    reduction,
    sum,
)
from .shape import reshape


def _tie_vjp(g: Tensor, y: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    """Share the gradient equally among the elements that tie; NaN for all of them where the result is NaN."""
    hit = equal(x, expand_to(y, x, axis))
    ties = sum(hit.astype(x.dtype), axis, keepdims)
    others = reshape(where(equal(y, y), 0.0, y), reduced(x.shape, axis, True))
    return where(hit, expand_to(div(g, ties), x, axis), others)


def _minmax(kernel: kernels.Reduction, oracle: Callable[..., Any]) -> Decorator:
    """Make the row of a minimum or a maximum."""
    options: dict[str, Any] = {"wrong": EMPTY, "distinct": True, "ulp": 0}
    return reduction(plan=planner(kernel, 0), vjp=_tie_vjp, oracle=oracle, **options)


def _bind_nonempty(name: str, x: TensorLike, axis: Axis, keepdims: bool) -> BoundArguments:
    """Refuse to reduce no elements: they have no minimum."""
    bound = bind_axes(name, x, axis, keepdims)
    (t,), attributes = bound
    if t.size == 0 and count(t, attributes["axis"]) == 0:
        raise ValueError(f"{name}: x has shape {t.shape}, expected at least one element over axis {axis}")
    return bound


@_minmax(kernels.largest, np.max)
def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the largest element over axes; NaN if any is.

    x: of any dtype.  axis: an axis, several, or None for all.  keepdims: keep reduced axes, of size 1.
    Elements that tie share the gradient equally; all of them get NaN where the result is NaN.

    Raises ValueError where no element is reduced, or an axis is outside of x.

    >>> import treepie as tp
    >>> tp.max(tp.tensor([[1.0, 5.0], [3.0, 2.0]]), axis=1).tolist()
    [5.0, 3.0]
    """
    return _bind_nonempty("max", x, axis, keepdims)


@_minmax(kernels.smallest, np.min)
def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the smallest element over axes; NaN if any is.

    x: of any dtype.  axis: an axis, several, or None for all.  keepdims: keep reduced axes, of size 1.
    Elements that tie share the gradient equally; all of them get NaN where the result is NaN.

    Raises ValueError where no element is reduced, or an axis is outside of x.

    >>> import treepie as tp
    >>> tp.min(tp.tensor([[1.0, 5.0], [3.0, 2.0]]), axis=1).tolist()
    [1.0, 2.0]
    """
    return _bind_nonempty("min", x, axis, keepdims)


def _position(maximal: bool, oracle: Callable[..., Any]) -> Decorator:
    """Make the row of the position of a minimum or a maximum."""

    def infer(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
        return [Spec(reduced(x.shape, axis, keepdims), int64)]

    def plan(
        inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: tuple[int, ...], keepdims: bool
    ) -> list[Launch]:
        x, before = as_outer_n_inner(inputs[0], axis, scratch)
        partial = scratch((kernels.partials(x.shape),), float64)
        return [*before, *kernels.arg_reduce(maximal, x, outputs[0], partial.buffer)]

    cases = tuple(c for c in AXES if not isinstance(c.attributes.get("axis"), tuple))
    options: dict[str, Any] = {"wrong": EMPTY, "nondifferentiable": True}
    return reduction(infer=infer, plan=plan, oracle=oracle, cases=cases, **options)


def _bind_position(name: str, x: TensorLike, axis: int | None, keepdims: bool) -> BoundArguments:
    if axis is not None:
        axis = one_axis(name, axis, as_tensor(x).ndim)
    return _bind_nonempty(name, x, axis, keepdims)


@_position(True, np.argmax)
def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> BoundArguments:
    """Return the position of the largest element, int64.

    x: of any dtype.  axis: an axis, or None for the flattened tensor.  keepdims: keep the axis, of size 1.
    The first NaN is the largest if there is one, and the first of equal elements counts.

    Raises ValueError where there is no element, or the axis is outside of x.

    >>> import treepie as tp
    >>> tp.argmax(tp.tensor([[1.0, 5.0], [3.0, 2.0]]), axis=1).tolist()
    [1, 0]
    """
    return _bind_position("argmax", x, axis, keepdims)


@_position(False, np.argmin)
def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> BoundArguments:
    """Return the position of the smallest element, int64.

    x: of any dtype.  axis: an axis, or None for the flattened tensor.  keepdims: keep the axis, of size 1.
    The first NaN is the smallest if there is one, and the first of equal elements counts.

    Raises ValueError where there is no element, or the axis is outside of x.

    >>> import treepie as tp
    >>> tp.argmin(tp.tensor([[1.0, 5.0], [3.0, 2.0]]), axis=1).tolist()
    [0, 1]
    """
    return _bind_position("argmin", x, axis, keepdims)


def _truth(kernel: kernels.Truth, oracle: Callable[..., Any]) -> Decorator:
    """Make the row of whether any or all elements are true."""

    def infer(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
        return [Spec(reduced(x.shape, axis, keepdims), bool_)]

    def plan(
        inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: tuple[int, ...], keepdims: bool
    ) -> list[Launch]:
        start = fill(outputs[0], not kernel.value)
        if not inputs[0].size:
            return [start]
        x, before = as_outer_n_inner(inputs[0], axis, scratch)
        return [*before, start, kernel.plan(x, outputs[0])]

    options: dict[str, Any] = {"nondifferentiable": True, "dtypes": ("float32", "float64", "bool")}
    return reduction(infer=infer, plan=plan, oracle=oracle, cases=[*AXES, EMPTY], **options)


@_truth(kernels.any_true, np.any)
def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return whether any element over axes is true; False for no elements.

    x: of any dtype; what is not zero is true, NaN included.  axis: an axis, several, or None for all.
    keepdims: keep reduced axes, of size 1.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.any(tp.tensor([[True, False], [False, False]]), axis=1).tolist()
    [True, False]
    """
    return bind_axes("any", x, axis, keepdims)


@_truth(kernels.all_true, np.all)
def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return whether all elements over axes are true; True for no elements.

    x: of any dtype; what is not zero is true, NaN included.  axis: an axis, several, or None for all.
    keepdims: keep reduced axes, of size 1.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.all(tp.tensor([[True, False], [True, True]]), axis=1).tolist()
    [False, True]
    """
    return bind_axes("all", x, axis, keepdims)
