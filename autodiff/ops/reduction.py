"""Reductions over axes, with NumPy's rules for `axis` and `keepdims`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import reduce as kernels
from treepie.kernels.copy import copy, strides
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis, some_axes
from ..table import Case, Meta, Shape, composite, op
from ..tensor import Axis, Tensor, TensorLike, float64, int64
from .arithmetic import div, square, sub, where
from .compare import equal
from .shape import broadcast_to, reshape

Bound = tuple[tuple[Tensor, ...], Meta]

_AXES = (
    Case(((3, 5),)),
    Case(((3, 5),), {"axis": 0}),
    Case(((3, 5),), {"axis": -1, "keepdims": True}),
    Case(((2, 3, 4),), {"axis": 1}),
    Case(((2, 3, 4, 2),), {"axis": (0, 2)}),
    Case(((),)),
    Case(((1, 1),), {"axis": 1}),
    Case(((3, 9000),), {"axis": 1}),
    Case(((9000, 9),), {"axis": 0}),
    Case(((0, 3),), {"axis": 1}),
)
_EMPTY = Case(((0, 3),), {"axis": 0})
_WRONG = Case(((2, 3),), {"axis": 2})
_LARGE = Case(((1000, 1000),))


def _reduced(shape: Shape, axis: tuple[int, ...], keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if k in axis else n for k, n in enumerate(shape))
    return tuple(n for k, n in enumerate(shape) if k not in axis)


def _seen(x: Operand, axis: tuple[int, ...], scratch: Any) -> tuple[Operand, list[Launch]]:
    """Return x as (outer, n, inner), n over the reduced axes, transposed first where they are apart."""
    sizes = x.shape
    first, last = (axis[0], axis[-1] + 1) if axis else (len(sizes), len(sizes))
    if not axis or axis == tuple(range(first, last)):
        outer, n, inner = (int(np.prod(s)) for s in (sizes[:first], sizes[first:last], sizes[last:]))
        return x.reshaped(outer, n, inner), []
    kept = tuple(k for k in range(len(sizes)) if k not in axis)
    order = kept + axis
    moved = scratch(tuple(sizes[k] for k in order), x.dtype)
    moves = strides(sizes)
    launch = copy(x, moved, moved.shape, tuple(moves[k] for k in order), strides(moved.shape))
    n = int(np.prod([sizes[k] for k in axis]))
    return moved.reshaped(x.size // n if n else 0, n, 1), [launch]


def _planner(kernel: kernels.Reduction, empty: float, mean: bool = False) -> Callable[..., list[Launch]]:
    def plan(
        inputs: list[Operand],
        outputs: list[Operand],
        scratch: Any,
        axis: tuple[int, ...],
        keepdims: bool,
    ) -> list[Launch]:
        (x,), (out,) = inputs, outputs
        if not x.size:
            return [fill(out, empty)]
        seen, before = _seen(x, axis, scratch)
        partial = scratch((kernels.partials(seen.shape),), float64)
        divisor = float(seen.shape[1]) if mean else 1.0
        return [*before, *kernel.plan(seen, out, partial.buffer, divisor)]

    return plan


def _spread(g: Tensor, x: Tensor, axis: tuple[int, ...]) -> Tensor:
    """Return what is one for each reduced group as one for each element."""
    return broadcast_to(reshape(g, _reduced(x.shape, axis, True)), x.shape)


def _same(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    return [Spec(_reduced(x.shape, axis, keepdims), x.dtype)]


def _wide(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    dtype = x.dtype if x.dtype.kind == "f" else int64
    return [Spec(_reduced(x.shape, axis, keepdims), dtype)]


def _bind(name: str, x: TensorLike, axis: Axis, keepdims: bool) -> Bound:
    t = as_tensor(x)
    return (t,), {"axis": some_axes(name, axis, t.ndim), "keepdims": bool(keepdims)}


@op(
    signature="(...)->(...)",
    infer=_wide,
    plan=_planner(kernels.total, 0),
    vjp=lambda g, y, x, axis, keepdims: _spread(g, x, axis),
    oracle=np.sum,
    magnitude=lambda x, **meta: np.sum(np.abs(x), **meta),
    cases=[*_AXES, _EMPTY],
    wrong=_WRONG,
    large=_LARGE,
)
def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Bound:
    """Sum over axes, in float64 inside; integers and bools give int64."""
    return _bind("sum", x, axis, keepdims)


def _count(x: Tensor, axis: tuple[int, ...]) -> int:
    return int(np.prod([x.shape[k] for k in axis]))


@op(
    signature="(...)->(...)",
    infer=_same,
    plan=_planner(kernels.total, float("nan"), mean=True),
    vjp=lambda g, y, x, axis, keepdims: _spread(div(g, float(_count(x, axis))), x, axis),
    oracle=np.mean,
    magnitude=lambda x, **meta: np.mean(np.abs(x), **meta),
    cases=_AXES,
    wrong=_WRONG,
    large=_LARGE,
)
def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Bound:
    """Mean over axes, in float64 inside; integers and bools give float64; of nothing, NaN."""
    t = as_tensor(x)
    return _bind("mean", t if t.dtype.kind == "f" else t.astype(float64), axis, keepdims)


def _extreme_vjp(g: Tensor, y: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    hit = equal(x, _spread(y, x, axis))
    ties = sum(hit.astype(x.dtype), axis, keepdims)
    return where(hit, _spread(div(g, ties), x, axis), 0.0)


def _bind_extreme(name: str, x: TensorLike, axis: Axis, keepdims: bool) -> Bound:
    bound = _bind(name, x, axis, keepdims)
    (t,), meta = bound
    if t.size == 0 and _count(t, meta["axis"]) == 0:
        raise ValueError(f"{name}: x has shape {t.shape}, expected at least one element over axis {axis}")
    return bound


@op(
    signature="(...)->(...)",
    infer=_same,
    plan=_planner(kernels.largest, 0),
    vjp=_extreme_vjp,
    oracle=np.max,
    distinct=True,
    cases=_AXES,
    wrong=_EMPTY,
    large=_LARGE,
    ulp=0,
)
def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Bound:
    """Largest over axes; NaN if any is. Elements that tie share the gradient equally."""
    return _bind_extreme("max", x, axis, keepdims)


@op(
    signature="(...)->(...)",
    infer=_same,
    plan=_planner(kernels.smallest, 0),
    vjp=_extreme_vjp,
    oracle=np.min,
    distinct=True,
    cases=_AXES,
    wrong=_EMPTY,
    large=_LARGE,
    ulp=0,
)
def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Bound:
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
        seen, before = _seen(inputs[0], axis, scratch)
        return [*before, kernels.arg_reduce(maximal, seen, outputs[0])]

    return plan


def _positions(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    return [Spec(_reduced(x.shape, axis, keepdims), int64)]


def _bind_position(name: str, x: TensorLike, axis: int | None, keepdims: bool) -> Bound:
    if axis is not None:
        axis = one_axis(name, axis, as_tensor(x).ndim)
    return _bind_extreme(name, x, axis, keepdims)


_ONE_AXIS = tuple(c for c in _AXES if not isinstance(c.meta.get("axis"), tuple))


@op(
    signature="(...)->(...)",
    infer=_positions,
    plan=_arg_planner(True),
    nondifferentiable=True,
    oracle=np.argmax,
    cases=_ONE_AXIS,
    wrong=_EMPTY,
    large=_LARGE,
)
def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Bound:
    """Position of the largest, int64: of the first NaN if there is one, of the first among equals."""
    return _bind_position("argmax", x, axis, keepdims)


@op(
    signature="(...)->(...)",
    infer=_positions,
    plan=_arg_planner(False),
    nondifferentiable=True,
    oracle=np.argmin,
    cases=_ONE_AXIS,
    wrong=_EMPTY,
    large=_LARGE,
)
def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Bound:
    """Position of the smallest, int64: of the first NaN if there is one, of the first among equals."""
    return _bind_position("argmin", x, axis, keepdims)


@composite(oracle=np.var, cases=_AXES, wrong=_WRONG, large=_LARGE, ulp=16)
def var(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the mean squared distance from the mean, over axes (two passes, no cancellation)."""
    t = as_tensor(x)
    axes = some_axes("var", axis, t.ndim)
    return mean(square(sub(t, mean(t, axes, True))), axes, keepdims)
