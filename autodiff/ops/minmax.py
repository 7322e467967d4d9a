"""Extremes over axes, their positions, and whether any or all elements are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import reduce as kernels
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis
from ..table import BoundArguments, op
from ..tensor import Axis, Tensor, TensorLike, bool_, float64, int64
from .arithmetic import div, where
from .compare import equal
from .reduction import (
    AXES,
    EMPTY,
    LARGE,
    WRONG,
    bind_axes,
    count,
    planner,
    reduced,
    same_dtype,
    seen_as,
    spread,
    sum,
)


def _extreme_vjp(g: Tensor, y: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    hit = equal(x, spread(y, x, axis))
    ties = sum(hit.astype(x.dtype), axis, keepdims)
    return where(hit, spread(div(g, ties), x, axis), 0.0)


def _bind_extreme(name: str, x: TensorLike, axis: Axis, keepdims: bool) -> BoundArguments:
    bound = bind_axes(name, x, axis, keepdims)
    (t,), attributes = bound
    if t.size == 0 and count(t, attributes["axis"]) == 0:
        raise ValueError(f"{name}: x has shape {t.shape}, expected at least one element over axis {axis}")
    return bound


@op(
    signature="(...)->(...)",
    infer=same_dtype,
    plan=planner(kernels.largest, 0),
    vjp=_extreme_vjp,
    oracle=np.max,
    distinct=True,
    cases=AXES,
    wrong=EMPTY,
    large=LARGE,
    ulp=0,
)
def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Largest over axes; NaN if any is. Elements that tie share the gradient equally."""
    return _bind_extreme("max", x, axis, keepdims)


@op(
    signature="(...)->(...)",
    infer=same_dtype,
    plan=planner(kernels.smallest, 0),
    vjp=_extreme_vjp,
    oracle=np.min,
    distinct=True,
    cases=AXES,
    wrong=EMPTY,
    large=LARGE,
    ulp=0,
)
def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Smallest over axes; NaN if any is. Elements that tie share the gradient equally."""
    return _bind_extreme("min", x, axis, keepdims)


def _arg_planner(maximal: bool) -> Callable[..., list[Launch]]:
    def plan(
        inputs: list[Operand],
        outputs: list[Operand],
        scratch: Any,
        axis: tuple[int, ...],
        keepdims: bool,
    ) -> list[Launch]:
        seen, before = seen_as(inputs[0], axis, scratch)
        partial = scratch((kernels.partials(seen.shape),), float64)
        return [*before, *kernels.arg_reduce(maximal, seen, outputs[0], partial.buffer)]

    return plan


def _positions(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    return [Spec(reduced(x.shape, axis, keepdims), int64)]


def _bind_position(name: str, x: TensorLike, axis: int | None, keepdims: bool) -> BoundArguments:
    if axis is not None:
        axis = one_axis(name, axis, as_tensor(x).ndim)
    return _bind_extreme(name, x, axis, keepdims)


_ONE_AXIS = tuple(c for c in AXES if not isinstance(c.attributes.get("axis"), tuple))


@op(
    signature="(...)->(...)",
    infer=_positions,
    plan=_arg_planner(True),
    nondifferentiable=True,
    oracle=np.argmax,
    cases=_ONE_AXIS,
    wrong=EMPTY,
    large=LARGE,
)
def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> BoundArguments:
    """Position of the largest, int64: of the first NaN if there is one, of the first among equals."""
    return _bind_position("argmax", x, axis, keepdims)


@op(
    signature="(...)->(...)",
    infer=_positions,
    plan=_arg_planner(False),
    nondifferentiable=True,
    oracle=np.argmin,
    cases=_ONE_AXIS,
    wrong=EMPTY,
    large=LARGE,
)
def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> BoundArguments:
    """Position of the smallest, int64: of the first NaN if there is one, of the first among equals."""
    return _bind_position("argmin", x, axis, keepdims)


def _truth_planner(kernel: kernels.Truth) -> Callable[..., list[Launch]]:
    def plan(
        inputs: list[Operand],
        outputs: list[Operand],
        scratch: Any,
        axis: tuple[int, ...],
        keepdims: bool,
    ) -> list[Launch]:
        start = fill(outputs[0], not kernel.value)
        if not inputs[0].size:
            return [start]
        seen, before = seen_as(inputs[0], axis, scratch)
        return [*before, start, kernel.plan(seen, outputs[0])]

    return plan


def _truths(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    return [Spec(reduced(x.shape, axis, keepdims), bool_)]


@op(
    signature="(...)->(...)",
    infer=_truths,
    plan=_truth_planner(kernels.any_true),
    nondifferentiable=True,
    oracle=np.any,
    cases=[*AXES, EMPTY],
    wrong=WRONG,
    large=LARGE,
    dtypes=("float32", "float64", "bool"),
)
def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Whether any element over axes is true: not zero, NaN included; of nothing, False."""
    return bind_axes("any", x, axis, keepdims)


@op(
    signature="(...)->(...)",
    infer=_truths,
    plan=_truth_planner(kernels.all_true),
    nondifferentiable=True,
    oracle=np.all,
    cases=[*AXES, EMPTY],
    wrong=WRONG,
    large=LARGE,
    dtypes=("float32", "float64", "bool"),
)
def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Whether all elements over axes are true: not zero, NaN included; of nothing, True."""
    return bind_axes("all", x, axis, keepdims)
