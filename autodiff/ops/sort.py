"""Sorting. All sorts are stable, and NaN is larger than any number, as in NumPy.

Equal elements keep their order, ascending or descending, and each gets the gradient of the position
it moved to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import sort as kernels
from treepie.kernels.elementwise import cast
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, index, one_axis
from ..table import BoundArguments, Case, composite, op
from ..tensor import Tensor, TensorLike, int32, int64
from .gather import take_along_axis
from .indexing import outer_n_inner
from .rearrange import slice_axis
from .shape import reshape

_ALL = ("float32", "float64", "int32", "int64", "bool")


def _plan(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, descending: bool
) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    view = outer_n_inner(x.shape, axis)
    launches = []
    if x.dtype.kind == "b":
        integers = scratch(x.shape, int32)
        launches.append(cast(x, integers))
        x = integers
    x = x.reshaped(*view)
    lines, sums = kernels.scratch(x)
    keys, positions, counts = (scratch(shape, int64) for shape in (lines, lines, sums))
    return [*launches, kernels.argsort(x, out.reshaped(*view), keys, positions, counts, descending)]


def _argsort_oracle(x: Any, axis: int, descending: bool = False) -> Any:
    if not descending:
        return np.argsort(x, axis, kind="stable")
    # Stable and descending: the last of the reversed, ascending order, counted from the other end.
    back = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return x.shape[axis] - 1 - back


@op(
    name="argsort",
    signature="(...)->(...)",
    infer=lambda x, axis, descending: [Spec(x.shape, int64)],
    plan=_plan,
    nondifferentiable=True,
    oracle=_argsort_oracle,
    cases=[
        Case(((3, 5),), {"axis": 1}),
        Case(((3, 5),), {"axis": 0, "descending": True}),
        Case(((2, 40, 3),), {"axis": 1}),
        Case(((2, 300),), {"axis": -1, "descending": True}),
        Case(((0, 3),), {"axis": 0}),
        Case(((1,),), {"axis": 0}),
    ],
    wrong=Case(((2, 3),), {"axis": 2}),
    large=Case(((1000, 1000),), {"axis": 1}),
    dtypes=_ALL,
)
def _argsort(x: TensorLike, axis: int, descending: bool = False) -> BoundArguments:
    """Return the positions of the elements in sorted order."""
    t = as_tensor(x)
    return (t,), {"axis": one_axis("argsort", axis, t.ndim), "descending": bool(descending)}


def argsort(x: TensorLike, axis: int | None = -1, descending: bool = False) -> Tensor:
    """Return the positions of the elements along an axis in sorted order, int64.

    x: of any dtype; NaN is the largest.  axis: an axis, or None for the flattened tensor.
    descending: largest first. Equal elements keep their order either way.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.argsort(tp.tensor([3.0, 1.0, 2.0])).tolist()
    [1, 2, 0]
    """
    t = as_tensor(x)
    return _argsort(reshape(t, (-1,)), 0, descending) if axis is None else _argsort(t, axis, descending)


@composite(
    oracle=lambda x, axis: np.sort(x, axis),
    cases=[
        Case(((3, 5),), {"axis": 1}),
        Case(((2, 40, 3),), {"axis": -2}),
        Case(((0, 3),), {"axis": 0}),
    ],
    wrong=Case(((2, 3),), {"axis": 2}),
    large=Case(((1000, 1000),), {"axis": 1}),
    dtypes=_ALL,
    distinct=True,
    ulp=0,
)
def sort(x: TensorLike, axis: int | None = -1, descending: bool = False) -> Tensor:
    """Return the elements sorted along an axis, ascending by default.

    x: of any dtype; NaN is the largest.  axis: an axis, or None for the flattened tensor.
    descending: largest first. The sort is stable, and the gradient goes back along it.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.sort(tp.tensor([3.0, 1.0, 2.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    t = as_tensor(x)
    if axis is None:
        t, axis = reshape(t, (-1,)), 0
    k = one_axis("sort", axis, t.ndim)
    return take_along_axis(t, _argsort(t, k, descending), k)


@composite(
    oracle=lambda x, k, axis=-1: (
        np.take(np.flip(np.sort(x, axis), axis), range(k), axis),
        np.take(_argsort_oracle(x, axis, True), range(k), axis),
    ),
    cases=[
        Case(((3, 5),), {"k": 2}),
        Case(((4, 3),), {"k": 3, "axis": 0}),
        Case(((40,),), {"k": 0}),
        Case(((2, 100),), {"k": 7}),
    ],
    wrong=Case(((2, 3),), {"k": 4}),
    large=Case(((1000, 1000),), {"k": 5}),
    dtypes=_ALL,
    distinct=True,
    ulp=0,
)
def top_k(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Return the k largest elements along an axis, largest first, and their positions.

    x: of any dtype; NaN is the largest.  k: how many, up to the size of the axis. Of equal elements the
    first come first, and get the gradient. Positions are int64.

    Raises ValueError for a k or an axis outside of its range.

    >>> import treepie as tp
    >>> [y.tolist() for y in tp.top_k(tp.tensor([3.0, 1.0, 2.0]), 2)]
    [[3.0, 2.0], [0, 2]]
    """
    t, count = as_tensor(x), index("top_k", "k", k)
    at = one_axis("top_k", axis, t.ndim)
    if not 0 <= count <= t.shape[at]:
        raise ValueError(f"top_k: k is {k}, expected 0 to {t.shape[at]} for axis {at} of shape {t.shape}")
    positions = slice_axis(_argsort(t, at, True), at, 0, count)
    return take_along_axis(t, positions, at), positions
