"""Running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import scan as kernels
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis
from ..table import BoundArguments, Case, op
from ..tensor import Tensor, TensorLike, float64, int64
from .indexing import outer_n_inner
from .rearrange import flip
from .shape import reshape


def _wide(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "f" else int64


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    shape = outer_n_inner(x.shape, axis)
    zero = scratch((1,), float64 if x.dtype.kind == "f" else int64)
    return [fill(zero, 0), kernels.cumsum(x.reshaped(*shape), out.reshaped(*shape), zero)]


@op(
    name="cumsum",
    signature="(...)->(...)",
    infer=lambda x, axis: [Spec(x.shape, _wide(x.dtype))],
    plan=_plan,
    vjp=lambda g, y, x, axis: flip(_cumsum(flip(g, axis), axis), axis),
    oracle=np.cumsum,
    magnitude=lambda x, axis: np.cumsum(np.abs(x), axis),
    cases=[
        Case(((3, 5),), {"axis": 1}),
        Case(((3, 5),), {"axis": 0}),
        Case(((2, 3, 4),), {"axis": -2}),
        Case(((0, 3),), {"axis": 0}),
        Case(((1,),), {"axis": 0}),
        Case(((2, 9000),), {"axis": 1}),
    ],
    wrong=Case(((2, 3),), {"axis": 2}),
    large=Case(((1000, 1000),), {"axis": 1}),
    ulp=16,
)
def _cumsum(x: TensorLike, axis: int) -> BoundArguments:
    """Return running sums along an axis."""
    t = as_tensor(x)
    return (t,), {"axis": one_axis("cumsum", axis, t.ndim)}


def cumsum(x: TensorLike, axis: int | None = None) -> Tensor:
    """Return running sums along an axis, by default of the flattened tensor.

    x: of any dtype; integers and bools give int64, floats are accumulated in float64.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.cumsum(tp.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 3.0, 6.0]
    """
    t = as_tensor(x)
    return _cumsum(reshape(t, (-1,)), 0) if axis is None else _cumsum(t, axis)
