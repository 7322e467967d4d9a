"""Indexing: basic indexing, gathering by integers, and the adjoint of gathering."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import index as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, integer, one_axis
from ..table import Case, Meta, Shape, op
from ..tensor import Index, Tensor, TensorLike, check_dtype, float32
from .compare import equal
from .shape import astype, expand_dims, reshape, strided_slice, transpose

Bound = tuple[tuple[Tensor, ...], Meta]


def _around(shape: Shape, axis: int) -> tuple[int, int, int]:
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    return outer, shape[axis], inner


def _integers(name: str, indices: TensorLike) -> Tensor:
    t = as_tensor(indices)
    if t.size == 0:
        t = astype(t, "int32")
    if t.dtype.kind != "i":
        raise TypeError(f"{name}: indices have dtype {t.dtype.name}, expected int32 or int64")
    return t


def _out_of_range(name: str, indices: Tensor, size: int) -> IndexError:
    wrong = indices.array[(indices.array < -size) | (indices.array >= size)]
    return IndexError(f"{name}: an index is {wrong.flat[0]}, expected {-size} to {size - 1}")


def _plan_take(inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int) -> list[Launch]:
    (x, indices), (out,) = inputs, outputs
    outer, n, inner = _around(x.shape, axis)
    m = indices.size
    target = out.reshaped(outer, m, inner)
    return [kernels.take(x.reshaped(outer, n, inner), indices.reshaped(m), target)]


@op(
    signature="(...),(...)->(...)",
    infer=lambda x, i, axis: [Spec(x.shape[:axis] + i.shape + x.shape[axis + 1 :], x.dtype)],
    plan=_plan_take,
    vjp=(lambda g, y, x, i, axis: scatter_add(g, i, axis, x.shape[axis]), None),
    oracle=lambda x, i, axis=0: np.take(x, i, axis),
    cases=[
        Case(((5, 3), (4,)), {"axis": 0}, {1: 5}),
        Case(((2, 5, 3), (2, 2)), {"axis": 1}, {1: 5}),
        Case(((4, 6), (9,)), {"axis": -1}, {1: 6}),
        Case(((4, 3), (0,)), {"axis": 0}, {1: 4}),
        Case(((4,), ()), {"axis": 0}, {1: 4}),
    ],
    failure=lambda x, i, axis: _out_of_range("take", i, x.shape[axis]),
    wrong=Case(((5, 3), (4,)), {"axis": 2}, {1: 5}),
    large=Case(((10000, 64), (20000,)), {"axis": 0}, {1: 10000}),
    ulp=0,
)
def take(x: TensorLike, indices: TensorLike, axis: int = 0) -> Bound:
    """Slices of an axis by integer indices, negative ones from the end; outside is an IndexError."""
    t = as_tensor(x)
    return (t, _integers("take", indices)), {"axis": one_axis("take", axis, t.ndim)}


def _plan_scatter(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, size: int
) -> list[Launch]:
    (g, indices), (out,) = inputs, outputs
    outer, n, inner = _around(out.shape, axis)
    m = indices.size
    target = out.reshaped(outer, n, inner)
    return [kernels.scatter_add(g.reshaped(outer, m, inner), indices.reshaped(m), target)]


def _scattered(g: Spec, i: Spec, axis: int, size: int) -> list[Spec]:
    rank = len(i.shape)
    return [Spec((*g.shape[:axis], size, *g.shape[axis + rank :]), g.dtype)]


def _scatter_oracle(g: Any, i: Any, axis: int, size: int) -> Any:
    flat = np.reshape(g, (*g.shape[:axis], i.size, *g.shape[axis + i.ndim :]))
    moved = np.moveaxis(flat, axis, 0)
    out = np.zeros((size, *moved.shape[1:]), g.dtype)
    np.add.at(out, i.ravel(), moved)
    return np.moveaxis(out, 0, axis)


@op(
    signature="(...),(...)->(...)",
    infer=_scattered,
    plan=_plan_scatter,
    vjp=(lambda h, y, g, i, axis, size: take(h, i, axis), None),
    oracle=_scatter_oracle,
    cases=[
        Case(((4, 3), (4,)), {"axis": 0, "size": 5}, {1: 5}),
        Case(((2, 2, 2, 3), (2, 2)), {"axis": 1, "size": 3}, {1: 3}),
        Case(((3, 200), (3,)), {"axis": 0, "size": 2}, {1: 2}),
        Case(((0, 3), (0,)), {"axis": 0, "size": 2}, {1: 2}),
    ],
    failure=lambda g, i, axis, size: _out_of_range("scatter_add", i, size),
    wrong=Case(((4, 3), (5,)), {"axis": 0, "size": 5}, {1: 5}),
    large=Case(((20000, 64), (20000,)), {"axis": 0, "size": 10000}, {1: 10000}),
)
def scatter_add(g: TensorLike, indices: TensorLike, axis: int, size: int) -> Bound:
    """Zeros with an axis of `size`, to which slices of g are added at indices: the adjoint of take."""
    t, i = as_tensor(g), _integers("scatter_add", indices)
    k = integer("scatter_add", "axis", axis)
    if not 0 <= k <= t.ndim - i.ndim or t.shape[k : k + i.ndim] != i.shape:
        raise ValueError(
            f"scatter_add: g has shape {t.shape} and indices {i.shape}, expected those axes of g "
            f"from axis {axis} on"
        )
    return (t, i), {"axis": k, "size": integer("scatter_add", "size", size)}


def one_hot(indices: TensorLike, size: int, dtype: Any = float32) -> Tensor:
    """Return 1 at each index and 0 elsewhere, on a new last axis; an index outside gives zeros."""
    t = _integers("one_hot", indices)
    places = Tensor(np.arange(size, dtype=t.dtype))
    return astype(equal(expand_dims(t, -1), places), check_dtype("one_hot", dtype))


def getitem(x: Tensor, index: Index) -> Tensor:
    """Return x[index]: integers, slices, None, an ellipsis, and an integer array on one axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for p in parts if p is not None and p is not Ellipsis)
    if sum(1 for p in parts if p is Ellipsis) > 1:
        raise IndexError("index: only one ellipsis can be used")
    if used > x.ndim:
        raise IndexError(f"index: {used} indices for shape {x.shape}")
    if Ellipsis not in [p for p in parts if p is None or p is Ellipsis]:
        parts.append(Ellipsis)
    at = next(k for k, p in enumerate(parts) if p is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (x.ndim - used)
    return _selected(x, parts)


def _selected(x: Tensor, parts: list[Any]) -> Tensor:
    starts: list[int] = []
    steps: list[int] = []
    sizes: list[int] = []
    shape: list[int] = []
    gathered: tuple[int, Tensor] | None = None
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        n = x.shape[len(sizes)]
        if isinstance(part, slice):
            start, stop, step = part.indices(n)
            size = len(range(start, stop, step))
            shape.append(size)
        elif _is_integer(part):
            if not -n <= part < n:
                raise IndexError(f"index: {part} is outside of axis {len(sizes)} of shape {x.shape}")
            start, step, size = int(part) % n, 1, 1
        else:
            indices = _integers("index", part)
            if gathered is not None:
                raise IndexError("index: integer arrays on more than one axis are not supported")
            gathered = (len(shape), indices)
            start, step, size = 0, 1, n
            shape.append(n)
        starts.append(start if size else 0)
        steps.append(step)
        sizes.append(size)
    whole = tuple(sizes) == x.shape and all(s == 1 for s in steps)
    out = x if whole else strided_slice(x, tuple(starts), tuple(steps), tuple(sizes))
    out = reshape(out, tuple(shape))
    if gathered is None:
        return out
    axis, indices = gathered
    out = take(out, indices, axis)
    return _first(out, axis, indices.ndim) if _apart(parts) else out


def _is_integer(part: Any) -> bool:
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def _apart(parts: list[Any]) -> bool:
    """Whether integers and arrays among the indices have a slice or None between them."""
    where = [k for k, p in enumerate(parts) if not (p is None or isinstance(p, slice))]
    return where[-1] - where[0] >= len(where)


def _first(x: Tensor, axis: int, count: int) -> Tensor:
    """Move the axes of an indexing array to the front: NumPy's rule where indices are apart."""
    order = [*range(axis, axis + count), *range(axis), *range(axis + count, x.ndim)]
    return transpose(x, order)
