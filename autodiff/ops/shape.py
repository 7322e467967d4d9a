"""Ops that only move elements: views, permutations, slices, and joining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels.copy import copy, strides
from treepie.kernels.elementwise import cast, fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, integer, one_axis, shape_of, some_axes
from ..elementwise import promoted, sum_to
from ..table import BoundArguments, Case, Shape, op
from ..tensor import Axis, DType, Tensor, TensorLike, check_dtype


def _resolved(x: Tensor, shape: int | Sequence[int]) -> Shape:
    given = shape if isinstance(shape, tuple | list) else (shape,)
    sizes = [integer("reshape", "shape", n) for n in given]
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        if known and x.size % known == 0:
            sizes[sizes.index(-1)] = x.size // known
    if (sizes and min(sizes) < 0) or math.prod(sizes) != x.size:
        raise ValueError(
            f"reshape: shape is {tuple(given)}, expected sizes for the {x.size} elements of {x.shape}"
        )
    return tuple(sizes)


@op(
    signature="(...)->(...)",
    infer=lambda x, shape: [Spec(shape, x.dtype)],
    view=lambda array, shape: array.reshape(shape),
    vjp=lambda g, y, x, shape: reshape(g, x.shape),
    oracle=lambda x, shape: np.reshape(x, shape),
    cases=[Case(((2, 6),), {"shape": (3, 4)}), Case(((0, 3),), {"shape": (3, 0)})],
    wrong=Case(((2, 3),), {"shape": (4, 2)}),
    ulp=0,
)
def reshape(x: TensorLike, shape: int | Sequence[int]) -> BoundArguments:
    """Same elements in the same order under another shape; one size may be -1."""
    t = as_tensor(x)
    return (t,), {"shape": _resolved(t, shape)}


@op(
    signature="(...)->(...)",
    infer=lambda x: [Spec(x.shape, x.dtype)],
    view=lambda array: array,
    vjp=(None,),
    oracle=np.asarray,
    cases=[Case(((3, 5),)), Case(((),)), Case(((0, 2),))],
    ulp=0,
)
def stop_gradient(x: TensorLike) -> BoundArguments:
    """x as a constant: no gradient passes through."""
    return (as_tensor(x),), {}


@op(
    signature="(n)->(...)",
    infer=lambda x, start, shape: [Spec(shape, x.dtype)],
    view=lambda array, start, shape: array.reshape(-1)[start : start + math.prod(shape)].reshape(shape),
    offset=lambda x, start, shape: start,
    vjp=lambda g, y, x, start, shape: reshape(embed(reshape(g, (-1,)), (x.size,), (start,), (1,)), x.shape),
    oracle=lambda x, start, shape: np.reshape(np.ravel(x)[start : start + math.prod(shape)], shape),
    cases=[Case(((12,),), {"start": 3, "shape": (2, 4)}), Case(((5,),), {"start": 5, "shape": (0, 3)})],
    wrong=Case(((5,),), {"start": 2, "shape": (2, 2)}),
    ulp=0,
)
def part(x: TensorLike, start: int, shape: Shape) -> BoundArguments:
    """Elements in a row, from one on, under a shape: without a copy."""
    t = as_tensor(x)
    if not 0 <= start <= start + math.prod(shape) <= t.size:
        raise ValueError(f"part: start is {start} and shape {shape}, expected elements of {t.shape}")
    return (t,), {"start": start, "shape": tuple(shape)}


def ravel(x: TensorLike) -> Tensor:
    """Return all elements on one axis."""
    return reshape(x, (-1,))


def expand_dims(x: TensorLike, axis: int | tuple[int, ...]) -> Tensor:
    """Insert axes of size 1, at positions in the result."""
    t = as_tensor(x)
    count = len(axis) if isinstance(axis, tuple) else 1
    where = some_axes("expand_dims", axis, t.ndim + count)
    sizes = iter(t.shape)
    return reshape(t, tuple(1 if k in where else next(sizes) for k in range(t.ndim + count)))


def squeeze(x: TensorLike, axis: Axis = None) -> Tensor:
    """Drop axes of size 1, all of them by default."""
    t = as_tensor(x)
    if axis is None:
        drop = tuple(k for k, n in enumerate(t.shape) if n == 1)
    else:
        drop = some_axes("squeeze", axis, t.ndim)
        if any(t.shape[k] != 1 for k in drop):
            raise ValueError(f"squeeze: axis is {axis} of shape {t.shape}, expected axes of size 1")
    return reshape(t, tuple(n for k, n in enumerate(t.shape) if k not in drop))


def _plan_transpose(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axes: tuple[int, ...]
) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    steps = strides(x.shape)
    return [copy(x, out, out.shape, tuple(steps[a] for a in axes), strides(out.shape))]


def _transposed(x: Spec, axes: tuple[int, ...]) -> list[Spec]:
    return [Spec(tuple(x.shape[a] for a in axes), x.dtype)]


@op(
    signature="(...)->(...)",
    infer=_transposed,
    plan=_plan_transpose,
    vjp=lambda g, y, x, axes: transpose(g, tuple(int(k) for k in np.argsort(axes))),
    oracle=lambda x, axes=None: np.transpose(x, axes),
    cases=[
        Case(((3, 4),)),
        Case(((2, 3, 4),), {"axes": (1, 2, 0)}),
        Case(((40, 50),), {"axes": (1, 0)}),
        Case(((2, 1, 3, 4),), {"axes": (0, 2, 1, 3)}),
        Case(((0, 3),)),
        Case(((),)),
    ],
    wrong=Case(((2, 3),), {"axes": (0, 1, 2)}),
    large=Case(((1000, 1000),)),
    ulp=0,
)
def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> BoundArguments:
    """Permute the axes, by default reverse them."""
    t = as_tensor(x)
    order = tuple(reversed(range(t.ndim))) if axes is None else tuple(axes)
    wrapped = tuple(a + t.ndim if a < 0 else a for a in order)
    if sorted(wrapped) != list(range(t.ndim)):
        raise ValueError(f"transpose: axes is {order}, expected each axis of shape {t.shape} once")
    return (t,), {"axes": wrapped}


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """Exchange two axes."""
    t = as_tensor(x)
    order = list(range(t.ndim))
    a, b = (one_axis("swapaxes", k, t.ndim) for k in (axis1, axis2))
    order[a], order[b] = b, a
    return transpose(t, order)


def _plan_broadcast(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, shape: Shape
) -> list[Launch]:
    return [cast(inputs[0], outputs[0])]


@op(
    signature="(...)->(...)",
    infer=lambda x, shape: [Spec(shape, x.dtype)],
    plan=_plan_broadcast,
    vjp=lambda g, y, x, shape: sum_to(g, x.shape),
    oracle=lambda x, shape: np.broadcast_to(x, shape),
    cases=[Case(((3, 1),), {"shape": (2, 3, 4)}), Case(((),), {"shape": (0, 3)})],
    wrong=Case(((2, 3),), {"shape": (3, 2)}),
    large=Case(((1000, 1),), {"shape": (1000, 1000)}),
    ulp=0,
)
def broadcast_to(x: TensorLike, shape: int | Sequence[int]) -> BoundArguments:
    """Repeat axes of size 1, and new leading axes, up to a shape."""
    t, sizes = as_tensor(x), shape_of("broadcast_to", shape)
    extra = len(sizes) - t.ndim
    if extra < 0 or any(n not in (1, m) for n, m in zip(t.shape, sizes[extra:], strict=True)):
        raise ValueError(f"broadcast_to: x has shape {t.shape}, expected one that broadcasts to {sizes}")
    return (t,), {"shape": sizes}


def _plan_cast(inputs: list[Operand], outputs: list[Operand], scratch: Any, dtype: np.dtype) -> list[Launch]:
    return [cast(inputs[0], outputs[0])]


@op(
    name="astype",
    signature="(...)->(...)",
    infer=lambda x, dtype: [Spec(x.shape, dtype)],
    plan=_plan_cast,
    vjp=lambda g, y, x, dtype: astype(g, x.dtype),
    oracle=lambda x, dtype: np.asarray(x).astype(dtype),
    cases=[Case(((3, 5),), {"dtype": np.dtype("float64")})],
    large=Case(((1000, 1000),), {"dtype": np.dtype("float64")}),
    ulp=0,
)
def _astype(x: TensorLike, dtype: DType) -> BoundArguments:
    """Convert to another dtype; a float that an integer dtype can not hold gives its least value."""
    return (as_tensor(x),), {"dtype": check_dtype("astype", dtype)}


def astype(x: TensorLike, dtype: DType) -> Tensor:
    """Convert to another dtype; a float that an integer dtype can not hold gives its least value."""
    t = as_tensor(x)
    if t._data.dtype is dtype:
        return t
    return t if t.dtype == check_dtype("astype", dtype) else _astype(t, dtype)


def copied(x: Tensor) -> Tensor:
    """Return the same elements in memory of their own."""
    return _astype(x, x.dtype)


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
    vjp=lambda g, y, x, starts, steps, sizes: embed(g, x.shape, starts, steps),
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
    """Elements `start + step * k`, k < size, of every axis; steps may be negative."""
    t = as_tensor(x)
    _fits("strided_slice", t.shape, starts, steps, sizes)
    return (t,), {"starts": tuple(starts), "steps": tuple(steps), "sizes": tuple(sizes)}


def _plan_embed(
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
    plan=_plan_embed,
    vjp=lambda g, y, x, shape, starts, steps: strided_slice(g, starts, steps, x.shape),
    oracle=lambda x, shape, starts, steps: write_region_oracle(np.zeros(shape, x.dtype), x, starts, steps),
    cases=[
        Case(((3, 4),), {"shape": (5, 9), "starts": (1, 8), "steps": (1, -2)}),
        Case(((0,),), {"shape": (4,), "starts": (0,), "steps": (1,)}),
    ],
    wrong=Case(((3, 4),), {"shape": (5, 4), "starts": (1, 1), "steps": (1, 1)}),
    ulp=0,
)
def embed(x: TensorLike, shape: Shape, starts: Shape, steps: Shape) -> BoundArguments:
    """Zeros of a shape, but for x at `start + step * k` of every axis: the adjoint of strided_slice."""
    t = as_tensor(x)
    _fits("embed", shape, starts, steps, t.shape)
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
    """Join tensors along an axis."""
    made = promoted("concatenate", tuple(xs))
    k = one_axis("concatenate", axis, made[0].ndim)
    for i, t in enumerate(made):
        same = t.ndim == made[0].ndim and all(
            a == k or n == m for a, (n, m) in enumerate(zip(t.shape, made[0].shape, strict=False))
        )
        if not same:
            raise ValueError(
                f"concatenate: operand {i} has shape {t.shape}, expected {made[0].shape} but for axis {k}"
            )
    return made, {"axis": k}


def concatenate(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors along an axis; the other axes must agree."""
    if not len(xs):
        raise ValueError("concatenate: xs is empty, expected at least one tensor")
    return _concatenate(*xs, axis=axis)


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis."""
    if not len(xs):
        raise ValueError("stack: xs is empty, expected at least one tensor")
    return concatenate([expand_dims(x, axis) for x in xs], axis)
