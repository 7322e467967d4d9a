"""Gathers slices of an axis by integer indices, and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import index as kernels, scatter
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import allocated, as_tensor, check_total, integer, one_axis
from ..table import BoundArguments, Case, Shape, op
from ..tensor import DType, Tensor, TensorLike, check_dtype, float32
from .check_range import check_range
from .compare import equal
from .shape import astype, expand_dims, reshape


def outer_n_inner(shape: Shape, axis: int) -> tuple[int, int, int]:
    """Return a shape as (outer, n, inner): sizes of the axes before `axis`, of `axis`, of those after it."""
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    return outer, shape[axis], inner


def integers(name: str, indices: TensorLike) -> Tensor:
    """Return integer indices as a tensor, or raise TypeError; an empty tensor of any dtype is accepted."""
    t = as_tensor(indices)
    if t.size == 0:
        t = astype(t, "int32")
    if t.dtype.kind != "i":
        raise no_indices(name, t)
    return t


def no_indices(name: str, t: Tensor) -> TypeError:
    """Return the error for indices that are no integers."""
    return TypeError(
        f"{name}: indices have dtype {t.dtype.name}, expected int32 or int64 (x.astype(tp.int32))"
    )


def index_range(operand: int, size: int) -> tuple[int, int, int]:
    """Return the range of an operand's integers that index an axis of a size."""
    return operand, -size, size - 1


def out_of_range(name: str, indices: Tensor, size: int) -> IndexError:
    """Return the error for an index outside of an axis of a size."""
    wrong = indices.array[(indices.array < -size) | (indices.array >= size)]
    return IndexError(f"{name}: an index is {wrong.flat[0]}, expected {-size} to {size - 1}")


def _plan_take(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, function: str
) -> list[Launch]:
    (x, indices), (out,) = inputs, outputs
    outer, n, inner = outer_n_inner(x.shape, axis)
    m = indices.size
    target = out.reshaped(outer, m, inner)
    return [kernels.take(x.reshaped(outer, n, inner), indices.reshaped(m), target)]


@op(
    name="take",
    signature="(...),(...)->(...)",
    infer=lambda x, i, axis, function: [Spec(x.shape[:axis] + i.shape + x.shape[axis + 1 :], x.dtype)],
    plan=_plan_take,
    vjp=(lambda g, y, x, i, axis, function: scatter_add(g, i, axis, x.shape[axis]), None),
    oracle=lambda x, i, axis: np.take(x, i, axis),
    cases=[
        Case(((5, 3), (4,)), {"axis": 0}, {1: 5}),
        Case(((2, 5, 3), (2, 2)), {"axis": 1}, {1: 5}),
        Case(((4, 6), (9,)), {"axis": -1}, {1: 6}),
        Case(((4, 3), (0,)), {"axis": 0}, {1: 4}),
        Case(((4,), ()), {"axis": 0}, {1: 4}),
    ],
    failure=lambda x, i, axis, function: out_of_range(function, i, x.shape[axis]),
    checked=lambda x, i, axis, function: [index_range(1, x.shape[axis])],
    wrong=Case(((5, 3), (4,)), {"axis": 2}, {1: 5}),
    large=Case(((10000, 64), (20000,)), {"axis": 0}, {1: 10000}),
    ulp=0,
)
def take_axis(x: TensorLike, indices: TensorLike, axis: int, function: str = "take") -> BoundArguments:
    """Return slices of an axis at integer indices. function: the name in errors."""
    t, i = as_tensor(x), integers(function, indices)
    return (t, i), {"axis": one_axis(function, axis, t.ndim), "function": function}


def take(x: TensorLike, indices: TensorLike, axis: int | None = None) -> Tensor:
    """Return slices of an axis at integer indices, by default of the flattened tensor.

    x: of any dtype.  indices: integers of any shape, which replaces the axis; negative ones count from the
    end.  axis: an axis, or None. The rules are those of `numpy.take`.

    Raises IndexError for an index outside of the axis, TypeError for indices that are not integers.

    >>> import treepie as tp
    >>> tp.take(tp.tensor([[1, 2], [3, 4]]), tp.tensor([1, 0]), axis=0).tolist()
    [[3, 4], [1, 2]]
    """
    return take_axis(reshape(x, (-1,)), indices, 0) if axis is None else take_axis(x, indices, axis)


def _plan_scatter(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, size: int
) -> list[Launch]:
    (g, indices), (out,) = inputs, outputs
    outer, n, inner = outer_n_inner(out.shape, axis)
    m = indices.size
    target = out.reshaped(outer, n, inner)
    return scatter.scatter_add(indices.reshaped(m), g.reshaped(outer, m, inner), target)


def _infer_scatter_add(g: Spec, i: Spec, axis: int, size: int) -> list[Spec]:
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
    infer=_infer_scatter_add,
    plan=_plan_scatter,
    vjp=(lambda h, y, g, i, axis, size: take(h, i, axis), None),
    oracle=_scatter_oracle,
    cases=[
        Case(((4, 3), (4,)), {"axis": 0, "size": 5}, {1: 5}),
        Case(((2, 2, 2, 3), (2, 2)), {"axis": 1, "size": 3}, {1: 3}),
        Case(((3, 200), (3,)), {"axis": 0, "size": 2}, {1: 2}),
        Case(((0, 3), (0,)), {"axis": 0, "size": 2}, {1: 2}),
    ],
    failure=lambda g, i, axis, size: out_of_range("scatter_add", i, size),
    checked=lambda g, i, axis, size: [index_range(1, size)],
    wrong=Case(((4, 3), (5,)), {"axis": 0, "size": 5}, {1: 5}),
    large=Case(((20000, 64), (20000,)), {"axis": 0, "size": 10000}, {1: 10000}),
)
def scatter_add(g: TensorLike, indices: TensorLike, axis: int, size: int) -> BoundArguments:
    """Return zeros with an axis of `size`, slices of g added at indices: the adjoint of take."""
    t, i = as_tensor(g), integers("scatter_add", indices)
    k = integer("scatter_add", "axis", axis)
    if not 0 <= k <= t.ndim - i.ndim or t.shape[k : k + i.ndim] != i.shape:
        raise ValueError(
            f"scatter_add: g has shape {t.shape} and indices {i.shape}, expected those axes of g "
            f"from axis {axis} on"
        )
    return (t, i), {"axis": k, "size": integer("scatter_add", "size", size)}


def one_hot(indices: TensorLike, size: int, dtype: DType = float32) -> Tensor:
    """Return 1 at each index and 0 elsewhere, on a new last axis.

    indices: (...) integers in [0, size).  size: of the new axis.  dtype: of the result, (..., size).

    Raises ValueError for an index outside of [0, size), also a negative one, and TypeError for indices that
    are not integers.

    >>> import treepie as tp
    >>> tp.one_hot(tp.tensor([0, 2]), 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    t = integers("one_hot", indices)
    count = integer("one_hot", "size", size, least=0, most=np.iinfo(t.dtype).max)
    check_total("one_hot", (*t.shape, count))
    message = f"one_hot: an index is {{}}, expected 0 to {count - 1} for size {count}"
    return equal_to_classes(check_range(t, 0, count - 1, message), count, check_dtype("one_hot", dtype))


def equal_to_classes(t: Tensor, count: int, dtype: DType) -> Tensor:
    """Return `one_hot` of integers, with zeros for those that are no class."""
    classes = Tensor(allocated("one_hot", (count,), t.dtype, lambda: np.arange(count, dtype=t.dtype)), None)
    return astype(equal(expand_dims(t, -1), classes), dtype)
