"""Slices of tensors, their adjoints, and joining: ops that copy regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels.copy import copy, strides
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis
from ..promotion import promoted
from ..table import BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike
from .shape import expand_dims, reshape


def _flat_slice_vjp(g: Tensor, y: Tensor, x: Tensor, start: int, shape: Shape) -> Tensor:
    return reshape(strided_slice_grad(reshape(g, (-1,)), (x.size,), (start,), (1,)), x.shape)


@op(
    signature="(n)->(...)",
    infer=lambda x, start, shape: [Spec(shape, x.dtype)],
    view=lambda array, start, shape: array.reshape(-1)[start : start + math.prod(shape)].reshape(shape),
    offset=lambda x, start, shape: start,
    vjp=_flat_slice_vjp,
    oracle=lambda x, start, shape: np.reshape(np.ravel(x)[start : start + math.prod(shape)], shape),
    cases=[Case(((12,),), {"start": 3, "shape": (2, 4)}), Case(((5,),), {"start": 5, "shape": (0, 3)})],
    wrong=Case(((5,),), {"start": 2, "shape": (2, 2)}),
    ulp=0,
)
def flat_slice(x: TensorLike, start: int, shape: Shape) -> BoundArguments:
    """Return consecutive elements under a shape, without a copy."""
    t = as_tensor(x)
    if not 0 <= start <= start + math.prod(shape) <= t.size:
        raise ValueError(f"flat_slice: start is {start} and shape {shape}, expected elements of {t.shape}")
    return (t,), {"start": start, "shape": tuple(shape)}


def region(shape: Shape, starts: Shape, steps: Shape) -> tuple[Shape, int]:
    """Return the strides of a strided slice of an array, in elements, and its first element."""
    moves = strides(shape)
    jumps = tuple(s * m for s, m in zip(steps, moves, strict=True))
    return jumps, sum(s * m for s, m in zip(starts, moves, strict=True))


def _plan_slice(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, starts: Shape, steps: Shape, sizes: Shape
) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    jumps, first = region(x.shape, starts, steps)
    return [copy(x, out, sizes, jumps, strides(out.shape), first)]


def _indices(starts: Shape, steps: Shape, sizes: Shape) -> tuple[Any, ...]:
    return tuple(s + t * np.arange(n) for s, t, n in zip(starts, steps, sizes, strict=True))


def _fits(name: str, shape: Shape, starts: Shape, steps: Shape, sizes: Shape) -> None:
    ends = [s + t * (n - 1) for s, t, n in zip(starts, steps, sizes, strict=True)]
    inside = all(
        not n or (0 <= s < m and 0 <= e < m) for s, e, n, m in zip(starts, ends, sizes, shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"{name}: starts {starts}, steps {steps} and sizes {sizes} reach outside, expected "
            f"elements of shape {shape}"
        )


@op(
    signature="(...)->(...)",
    infer=lambda x, starts, steps, sizes: [Spec(sizes, x.dtype)],
    plan=_plan_slice,
    vjp=lambda g, y, x, starts, steps, sizes: strided_slice_grad(g, x.shape, starts, steps),
    oracle=lambda x, starts, steps, sizes: x[np.ix_(*_indices(starts, steps, sizes))],
    cases=[
        Case(((5, 7),), {"starts": (1, 6), "steps": (1, -2), "sizes": (3, 4)}),
        Case(((4,),), {"starts": (0,), "steps": (1,), "sizes": (0,)}),
        Case(((3, 4, 5),), {"starts": (0, 0, 2), "steps": (2, 1, 1), "sizes": (2, 4, 3)}),
    ],
    wrong=Case(((5, 7),), {"starts": (1, 5), "steps": (1, 1), "sizes": (3, 4)}),
    ulp=0,
)
def strided_slice(x: TensorLike, starts: Shape, steps: Shape, sizes: Shape) -> BoundArguments:
    """Return elements `start + step * k`, k < size, of every axis; steps may be negative."""
    t = as_tensor(x)
    _fits("strided_slice", t.shape, starts, steps, sizes)
    return (t,), {"starts": tuple(starts), "steps": tuple(steps), "sizes": tuple(sizes)}


def _plan_grad(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, shape: Shape, starts: Shape, steps: Shape
) -> list[Launch]:
    return write_region(inputs[0], outputs[0], fill(outputs[0], 0), starts, steps)


def write_region(v: Operand, out: Operand, before: Launch, starts: Shape, steps: Shape) -> list[Launch]:
    """Plan `before`, which writes all of `out`, then a copy of v to a strided slice of it."""
    jumps, first = region(out.shape, starts, steps)
    return [before, copy(v, out, v.shape, strides(v.shape), jumps, 0, first)] if v.size else [before]


def write_region_oracle(out: Any, v: Any, starts: Shape, steps: Shape) -> Any:
    """Return an array after v was written to a strided slice of it, in NumPy."""
    out[np.ix_(*_indices(starts, steps, v.shape))] = v
    return out


@op(
    signature="(...)->(...)",
    infer=lambda x, shape, starts, steps: [Spec(shape, x.dtype)],
    plan=_plan_grad,
    vjp=lambda g, y, x, shape, starts, steps: strided_slice(g, starts, steps, x.shape),
    oracle=lambda x, shape, starts, steps: write_region_oracle(np.zeros(shape, x.dtype), x, starts, steps),
    cases=[
        Case(((3, 4),), {"shape": (5, 9), "starts": (1, 8), "steps": (1, -2)}),
        Case(((0,),), {"shape": (4,), "starts": (0,), "steps": (1,)}),
    ],
    wrong=Case(((3, 4),), {"shape": (5, 4), "starts": (1, 1), "steps": (1, 1)}),
    ulp=0,
)
def strided_slice_grad(x: TensorLike, shape: Shape, starts: Shape, steps: Shape) -> BoundArguments:
    """Return zeros of a shape with x at `start + step * k` of every axis: the adjoint of strided_slice."""
    t = as_tensor(x)
    _fits("strided_slice_grad", shape, starts, steps, t.shape)
    return (t,), {"shape": tuple(shape), "starts": tuple(starts), "steps": tuple(steps)}


def _plan_concatenate(inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int) -> list[Launch]:
    (out,) = outputs
    moves, first, launches = strides(out.shape), 0, []
    for x in inputs:
        if x.size:
            launches.append(copy(x, out, x.shape, strides(x.shape), moves, 0, first))
        first += x.shape[axis] * moves[axis]
    return launches


def _infer_concatenate(*xs: Spec, axis: int) -> list[Spec]:
    sizes = list(xs[0].shape)
    sizes[axis] = sum(x.shape[axis] for x in xs)
    return [Spec(tuple(sizes), xs[0].dtype)]


def _concatenate_vjp(g: Tensor, y: Tensor, *xs: Tensor, axis: int, argument: int) -> Tensor:
    starts = [0] * g.ndim
    starts[axis] = sum(x.shape[axis] for x in xs[:argument])
    return strided_slice(g, tuple(starts), (1,) * g.ndim, xs[argument].shape)


@op(
    name="concatenate",
    signature="(...),...->(...)",
    variadic=True,
    infer=_infer_concatenate,
    plan=_plan_concatenate,
    joins=lambda *xs, axis: math.prod(xs[0].shape[:axis]) == 1,
    vjp=_concatenate_vjp,
    oracle=lambda *xs, axis: np.concatenate(xs, axis),
    cases=[
        Case(((2, 3), (2, 1), (2, 4)), {"axis": 1}),
        Case(((2, 3), (0, 3)), {"axis": 0}),
        Case(((4,),), {"axis": 0}),
    ],
    wrong=Case(((2, 3), (3, 3)), {"axis": 1}),
    large=Case(((500, 1000), (500, 1000)), {"axis": 0}),
    ulp=0,
)
def _concatenate(*xs: TensorLike, axis: int) -> BoundArguments:
    """Return tensors joined along an axis."""
    tensors = promoted("concatenate", tuple(xs))
    first = tensors[0]
    k = one_axis("concatenate", axis, first.ndim)
    for i, t in enumerate(tensors):
        fits = t.ndim == first.ndim and all(
            a == k or n == m for a, (n, m) in enumerate(zip(t.shape, first.shape, strict=False))
        )
        if not fits:
            raise ValueError(
                f"concatenate: operand {i} has shape {t.shape}, expected {first.shape} except for axis {k}"
            )
    return tensors, {"axis": k}


def _check_tensors(name: str, xs: Any) -> None:
    if not hasattr(xs, "__len__"):
        raise TypeError(f"{name}: xs is {xs!r}, expected a sequence of tensors")
    if not len(xs):
        raise ValueError(f"{name}: xs is empty, expected at least one tensor")


def concatenate(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Return tensors joined along an axis.

    xs: at least one tensor; they promote to one dtype, and have equal shapes except for the axis.

    Raises ValueError for no tensors, or shapes that do not fit.

    >>> import treepie as tp
    >>> tp.concatenate([tp.tensor([1, 2]), tp.tensor([3])]).tolist()
    [1, 2, 3]
    """
    _check_tensors("concatenate", xs)
    return _concatenate(*xs, axis=axis)


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Return tensors of one shape joined along a new axis.

    xs: at least one tensor; they promote to one dtype.  axis: position of the new axis in the result.

    Raises ValueError for no tensors, or different shapes.

    >>> import treepie as tp
    >>> tp.stack([tp.tensor([1, 2]), tp.tensor([3, 4])], axis=1).tolist()
    [[1, 3], [2, 4]]
    """
    _check_tensors("stack", xs)
    tensors = [as_tensor(x) for x in xs]
    shapes = sorted({t.shape for t in tensors})
    if len(shapes) > 1:
        raise ValueError(f"stack: xs have shapes {' and '.join(map(str, shapes))}, expected one shape")
    return concatenate([expand_dims(t, axis) for t in tensors], axis)
