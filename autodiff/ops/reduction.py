"""Sums and products over axes, with NumPy's rules for `axis` and `keepdims`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from treepie.kernels import reduce as kernels
from treepie.kernels.copy import copy, strides
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, some_axes
from ..table import BoundArguments, Case, Decorator, Shape, composite, op
from ..tensor import Axis, DType, Tensor, TensorLike, float64, int64
from .arithmetic import div, mul, square, sub, where
from .compare import equal
from .shape import astype, broadcast_to, reshape, transpose
from .slicing import concatenate, strided_slice

AXES = (
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
EMPTY = Case(((0, 3),), {"axis": 0})
WRONG = Case(((2, 3),), {"axis": 2})
LARGE = Case(((1000, 1000),))


def reduced(shape: Shape, axis: tuple[int, ...], keepdims: bool) -> Shape:
    """Return the shape of a reduction's result."""
    if keepdims:
        return tuple(1 if k in axis else n for k, n in enumerate(shape))
    return tuple(n for k, n in enumerate(shape) if k not in axis)


def as_outer_n_inner(x: Operand, axis: tuple[int, ...], scratch: Any) -> tuple[Operand, list[Launch]]:
    """Return x as (outer, n, inner), n over the reduced axes, transposed first unless adjacent."""
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


def planner(kernel: kernels.Reduction, empty: float) -> Callable[..., list[Launch]]:
    """Return the plan of a row; `empty` is the result for a group of no elements."""

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
        x, before = as_outer_n_inner(x, axis, scratch)
        partial = scratch((kernels.partials(x.shape),), float64)
        return [*before, *kernel.plan(x, out, partial.buffer, float(x.shape[1]))]

    return plan


def expand_to(g: Tensor, x: Tensor, axis: tuple[int, ...]) -> Tensor:
    """Return a value per reduced group broadcast to its elements, in the shape of x."""
    return broadcast_to(reshape(g, reduced(x.shape, axis, True)), x.shape)


def same_dtype(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    """Infer a result of the dtype of x."""
    return [Spec(reduced(x.shape, axis, keepdims), x.dtype)]


def sum_dtype(x: Spec, axis: tuple[int, ...], keepdims: bool) -> list[Spec]:
    """Infer a result of the dtype of x, int64 for integers and bools."""
    dtype = x.dtype if x.dtype.kind == "f" else int64
    return [Spec(reduced(x.shape, axis, keepdims), dtype)]


def reduction(
    *, infer: Callable[..., list[Spec]] = same_dtype, cases: Sequence[Case] = AXES, **options: Any
) -> Decorator:
    """Make a row of a reduction over axes; see `op`."""
    options = {"wrong": WRONG, **options}
    return cast(Decorator, op(signature="(...)->(...)", infer=infer, cases=cases, large=LARGE, **options))


def bind_axes(name: str, x: TensorLike, axis: Axis, keepdims: bool) -> BoundArguments:
    """Return the operand and attributes of a reduction."""
    t = as_tensor(x)
    return (t,), {"axis": some_axes(name, axis, t.ndim), "keepdims": bool(keepdims)}


@reduction(
    infer=sum_dtype,
    plan=planner(kernels.total, 0),
    vjp=lambda g, y, x, axis, keepdims: expand_to(g, x, axis),
    oracle=np.sum,
    magnitude=lambda x, **attributes: np.sum(np.abs(x), **attributes),
    cases=[*AXES, EMPTY],
)
def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the sum over axes; integers and bools give int64.

    x: of any dtype.  axis: an axis, several, or None for all.  keepdims: keep reduced axes, of size 1.
    Floats are accumulated in float64.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.sum(tp.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1).tolist()
    [3.0, 7.0]
    """
    return bind_axes("sum", x, axis, keepdims)


def count(x: Tensor, axis: tuple[int, ...]) -> int:
    """Return the number of elements in a reduced group."""
    return math.prod([x.shape[k] for k in axis])


@reduction(
    plan=planner(kernels.mean, float("nan")),
    vjp=lambda g, y, x, axis, keepdims: expand_to(div(g, float(count(x, axis))), x, axis),
    oracle=np.mean,
    magnitude=lambda x, **attributes: np.mean(np.abs(x), **attributes),
)
def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the mean over axes; NaN for no elements.

    x: float; integers and bools become float64.  axis: an axis, several, or None for all.  keepdims: keep
    reduced axes, of size 1. Sums are accumulated in float64.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.mean(tp.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).tolist()
    [2.0, 3.0]
    """
    t = as_tensor(x)
    return bind_axes("mean", t if t.dtype.kind == "f" else t.astype(float64), axis, keepdims)


def _flat_groups(x: Tensor, axis: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Return x as (groups, elements of a group), and the permutation of axes that this took."""
    order = tuple(k for k in range(x.ndim) if k not in axis) + axis
    n = count(x, axis)
    return reshape(transpose(x, order), (x.size // n, n)), order


def _half(x: Tensor, start: int, size: int) -> Tensor:
    return strided_slice(x, (0, start), (1, 1), (x.shape[0], size))


def _prod_vjp(g: Tensor, y: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return g times the product of all other elements, of which any may be zero.

    Up a tree of products of halves, then down it, each half times the product of the other: 5 passes over
    the elements in 2 log2(n) multiplications, and no division. It is written in ops, so it has gradients.
    """
    if not x.size:
        return x
    level, order = _flat_groups(x, axis)
    halves = []
    while level.shape[1] > 1:
        n = level.shape[1]
        left, right = _half(level, 0, n - n // 2), _half(level, n - n // 2, n // 2)
        if n % 2:
            ones = Tensor(np.ones((level.shape[0], 1), x.dtype), None)
            right = concatenate([right, ones], 1)
        halves.append((left, right, n))
        level = mul(left, right)
    down = reshape(g, (level.shape[0], 1))
    for left, right, n in reversed(halves):
        down = _half(concatenate([mul(down, right), mul(down, left)], 1), 0, n)
    moved = reshape(down, tuple(x.shape[k] for k in order))
    return transpose(moved, tuple(int(k) for k in np.argsort(order)))


def _rounding_of_prod(x: Any, **attributes: Any) -> Any:
    """Return the magnitude of the rounding: n factors in float64, for float32 one rounding at the end."""
    return np.abs(np.prod(x, **attributes)) * np.sqrt(x.size)


@reduction(
    infer=sum_dtype,
    plan=planner(kernels.product, 1),
    vjp=_prod_vjp,
    oracle=np.prod,
    magnitude=_rounding_of_prod,
    domain=(0.95, 1.05),
    cases=[*AXES, EMPTY],
)
def prod(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the product over axes; integers and bools give int64.

    x: of any dtype.  axis: an axis, several, or None for all.  keepdims: keep reduced axes, of size 1.
    Floats are multiplied in float64. The gradient is right where elements are 0; no elements give 1.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.prod(tp.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1).tolist()
    [2.0, 12.0]
    """
    return bind_axes("prod", x, axis, keepdims)


def _norm_vjp(g: Tensor, y: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    safe = where(equal(y, 0.0), 1.0, y)
    # The quotient first: it is at most 1, where g / y can overflow.
    return mul(expand_to(g, x, axis), div(x, expand_to(safe, x, axis)))


@reduction(
    plan=planner(kernels.norm, 0),
    vjp=_norm_vjp,
    oracle=lambda x, axis=None, keepdims=False: np.sqrt(np.sum(x * x, axis, keepdims=keepdims)),
    cases=[*AXES, EMPTY],
    # Sums of 9000 float64 squares, ours and the oracle's, are off by about sqrt(9000) roundings.
    ulp=32,
)
def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> BoundArguments:
    """Return the root of the sum of squares over axes (L2).

    x: float; integers and bools become float64.  axis: an axis, several, or None for all.  keepdims: keep
    reduced axes, of size 1. Squares are accumulated in float64: a float32 result overflows only where the
    norm itself does. The gradient is x / norm, and 0 where the norm is 0, the shortest subgradient.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.norm(tp.tensor([3.0, 4.0])).item()
    5.0
    """
    t = as_tensor(x)
    return bind_axes("norm", t if t.dtype.kind == "f" else t.astype(float64), axis, keepdims)


def _vector_norm_vjp(g: Tensor, y: Tensor, x: Tensor, dtype: np.dtype) -> Tensor:
    safe = where(equal(y, 0.0), 1.0, y)
    return mul(astype(g, x.dtype), astype(div(astype(x, dtype), safe), x.dtype))


@op(
    signature="(...)->()",
    infer=lambda x, dtype: [Spec((), dtype)],
    plan=lambda inputs, outputs, scratch, dtype: planner(kernels.norm, 0)(
        inputs, outputs, scratch, tuple(range(len(inputs[0].shape))), False
    ),
    vjp=_vector_norm_vjp,
    oracle=lambda x, dtype: np.sqrt(np.sum(x * x)),
    cases=[Case(s, {"dtype": float64}) for s in (((3, 5),), ((),), ((0, 3),), ((9000,),))],
    large=Case(((1000, 1000),), {"dtype": float64}),
    ulp=32,
)
def vector_norm(x: TensorLike, dtype: DType) -> BoundArguments:
    """Return the root of the sum of squares of all elements (L2), in another float dtype."""
    return (as_tensor(x),), {"dtype": np.dtype(dtype)}


@composite(oracle=np.var, cases=AXES, wrong=WRONG, large=LARGE, ulp=16)
def var(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the variance over axes, the mean squared distance from the mean.

    x: float; integers become float64.  axis: an axis, several, or None for all.  keepdims: keep reduced
    axes, of size 1. Two passes avoid cancellation.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.var(tp.tensor([1.0, 3.0])).item()
    1.0
    """
    t = as_tensor(x)
    axes = some_axes("var", axis, t.ndim)
    return mean(square(sub(t, mean(t, axes, True))), axes, keepdims)


@composite(oracle=np.std, cases=AXES, wrong=WRONG, large=LARGE, ulp=32)
def std(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the standard deviation over axes, the root of the variance.

    x: float; integers become float64.  axis: an axis, several, or None for all.  keepdims: keep reduced
    axes, of size 1. The gradient is 0 where all elements are equal.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.std(tp.tensor([1.0, 3.0])).item()
    1.0
    """
    t = as_tensor(x)
    axes = some_axes("std", axis, t.ndim)
    # By the norm, which has a gradient at 0: a root of 0 would give NaN.
    return div(norm(sub(t, mean(t, axes, True)), axes, keepdims), math.sqrt(count(t, axes)))
