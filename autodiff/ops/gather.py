"""Gathers elements by an index for each element of the result, and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import index as kernels, scatter
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, integer, one_axis
from ..table import BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike
from .indexing import index_range, integers, out_of_range, outer_n_inner
from .shape import broadcast_to
from .slicing import strided_slice


def _others(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int) -> list[Launch]:
    operands = [t.reshaped(*outer_n_inner(t.shape, axis)) for t in (*inputs, *outputs)]
    return [kernels.take_along(*operands)]


@op(
    name="take_along_axis",
    signature="(...),(...)->(...)",
    infer=lambda x, i, axis: [Spec(i.shape, x.dtype)],
    plan=_plan,
    vjp=(lambda g, y, x, i, axis: scatter_add_along_axis(g, i, axis, x.shape[axis]), None),
    oracle=lambda x, i, axis: np.take_along_axis(x, i, axis),
    cases=[
        Case(((3, 5), (3, 4)), {"axis": 1}, {1: 5}),
        Case(((3, 5), (2, 5)), {"axis": 0}, {1: 3}),
        Case(((2, 5, 3), (2, 7, 3)), {"axis": -2}, {1: 5}),
        Case(((4, 3), (0, 3)), {"axis": 0}, {1: 4}),
        Case(((4,), (1,)), {"axis": 0}, {1: 4}),
    ],
    failure=lambda x, i, axis: out_of_range("take_along_axis", i, x.shape[axis]),
    checked=lambda x, i, axis: [index_range(1, x.shape[axis])],
    wrong=Case(((3, 5), (2, 4)), {"axis": 1}, {1: 5}),
    large=Case(((1000, 1000), (1000, 1000)), {"axis": 1}, {1: 1000}),
    dtypes=("float32", "float64", "int32", "int64", "bool"),
    ulp=0,
)
def _take_along_axis(x: TensorLike, indices: TensorLike, axis: int) -> BoundArguments:
    """Return elements of an axis by an integer index for each element of the result, as NumPy's."""
    t, i = as_tensor(x), integers("take_along_axis", indices)
    k = one_axis("take_along_axis", axis, t.ndim)
    if i.ndim != t.ndim or _others(i.shape, k) != _others(t.shape, k):
        raise ValueError(
            f"take_along_axis: indices have shape {i.shape}, expected that of x, {t.shape}, except axis {k}"
        )
    return (t, i), {"axis": k}


def take_along_axis(x: TensorLike, indices: TensorLike, axis: int = -1) -> Tensor:
    """Return elements of an axis, by an integer index for each element of the result.

    x: of any dtype.  indices: as many axes as x, of sizes that broadcast with those of x except for `axis`;
    negative ones count from the end. The rules are those of `numpy.take_along_axis`.

    Raises IndexError for an index outside of the axis, ValueError for shapes that do not fit.

    >>> import treepie as tp
    >>> tp.take_along_axis(tp.tensor([[1, 2], [3, 4]]), tp.tensor([[1], [0]]), axis=1).tolist()
    [[2], [3]]
    """
    t, i = as_tensor(x), integers("take_along_axis", indices)
    k = one_axis("take_along_axis", axis, t.ndim)
    if i.ndim == t.ndim and _others(i.shape, k) != _others(t.shape, k):
        try:
            sizes = list(np.broadcast_shapes(_others(t.shape, k), _others(i.shape, k)))
        except ValueError:
            return _take_along_axis(t, i, axis)  # its error says which shapes
        t = broadcast_to(t, (*sizes[:k], t.shape[k], *sizes[k:]))
        i = broadcast_to(i, (*sizes[:k], i.shape[k], *sizes[k:]))
    return _take_along_axis(t, i, axis=k)


def gather(x: TensorLike, indices: TensorLike, axis: int) -> Tensor:
    """Return elements of an axis, by an integer index for each element of the result.

    x: of any dtype.  indices: as many axes as x, none except `axis` longer than that of x, whose first
    elements are read; negative ones count from the end. The rules are those of `torch.gather`.

    Raises IndexError for an index outside of the axis, ValueError for shapes that do not fit.

    >>> import treepie as tp
    >>> tp.gather(tp.tensor([[1, 2], [3, 4]]), tp.tensor([[1, 1, 0]]), axis=1).tolist()
    [[2, 2, 1]]
    """
    t, i = as_tensor(x), integers("gather", indices)
    k = one_axis("gather", axis, t.ndim)
    if i.ndim != t.ndim or any(m > n for m, n in zip(_others(i.shape, k), _others(t.shape, k), strict=True)):
        raise ValueError(
            f"gather: indices have shape {i.shape}, expected {t.ndim} axes, none but axis {k} longer than "
            f"those of x, {t.shape}"
        )
    sizes = (*i.shape[:k], t.shape[k], *i.shape[k + 1 :])
    if sizes != t.shape:
        t = strided_slice(t, (0,) * t.ndim, (1,) * t.ndim, sizes)
    try:
        return _take_along_axis(t, i, axis=k)
    except IndexError:
        raise out_of_range("gather", i, t.shape[k]) from None


def _plan_add(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, size: int
) -> list[Launch]:
    g, indices, out = (t.reshaped(*outer_n_inner(t.shape, axis)) for t in (*inputs, *outputs))
    return scatter.add_along(indices, g, out)


def _add_oracle(g: Any, i: Any, axis: int, size: int) -> Any:
    out = np.zeros((*g.shape[:axis], size, *g.shape[axis + 1 :]), g.dtype)
    positions = list(np.indices(g.shape))
    positions[axis] = i
    np.add.at(out, tuple(positions), g)
    return out


@op(
    signature="(...),(...)->(...)",
    infer=lambda g, i, axis, size: [Spec((*g.shape[:axis], size, *g.shape[axis + 1 :]), g.dtype)],
    plan=_plan_add,
    vjp=(lambda h, y, g, i, axis, size: _take_along_axis(h, i, axis=axis), None),
    oracle=_add_oracle,
    cases=[
        Case(((3, 4), (3, 4)), {"axis": 1, "size": 5}, {1: 5}),
        Case(((2, 7, 70), (2, 7, 70)), {"axis": 1, "size": 3}, {1: 3}),
        Case(((0, 3), (0, 3)), {"axis": 0, "size": 2}, {1: 2}),
    ],
    failure=lambda g, i, axis, size: out_of_range("scatter_add_along_axis", i, size),
    checked=lambda g, i, axis, size: [index_range(1, size)],
    wrong=Case(((3, 4), (3, 5)), {"axis": 1, "size": 5}, {1: 5}),
    large=Case(((1000, 1000), (1000, 1000)), {"axis": 1, "size": 1000}, {1: 1000}),
    magnitude=lambda g, i, axis, size: _add_oracle(np.abs(g), i, axis, size),
    ulp=8,
)
def scatter_add_along_axis(g: TensorLike, indices: TensorLike, axis: int, size: int) -> BoundArguments:
    """Return zeros with an axis of `size`, elements of g added at indices: the adjoint of take_along_axis."""
    t, i = as_tensor(g), integers("scatter_add_along_axis", indices)
    k = one_axis("scatter_add_along_axis", axis, t.ndim)
    if i.shape != t.shape:
        raise ValueError(
            f"scatter_add_along_axis: indices have shape {i.shape}, expected that of g, {t.shape}"
        )
    return (t, i), {"axis": k, "size": integer("scatter_add_along_axis", "size", size)}
