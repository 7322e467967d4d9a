"""Updates of copies: of strided slices, and at indices of an axis, which `x.at[index]` is built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from treepie.kernels import scatter as kernels
from treepie.kernels.elementwise import cast as convert
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, one_axis
from ..table import BoundArguments, Case, Decorator, Shape, op
from ..tensor import Tensor, TensorLike, int64
from ..transform import zeros_of
from .arithmetic import where
from .compare import equal
from .indexing import index_range, no_indices, out_of_range, outer_n_inner, take
from .shape import astype, broadcast_to, reshape
from .slicing import strided_slice, write_region, write_region_oracle

_ALL = ("float32", "float64", "int32", "int64", "bool")


def _plan_update(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, starts: Shape, steps: Shape
) -> list[Launch]:
    (x, v), (out,) = inputs, outputs
    return write_region(v, out, convert(x, out), starts, steps)


@op(
    signature="(...),(...)->(...)",
    infer=lambda x, v, starts, steps: [Spec(x.shape, x.dtype)],
    plan=_plan_update,
    vjp=(
        lambda g, y, x, v, starts, steps: strided_slice_update(g, zeros_of(v), starts, steps),
        lambda g, y, x, v, starts, steps: strided_slice(g, starts, steps, v.shape),
    ),
    oracle=lambda x, v, starts, steps: write_region_oracle(x.copy(), v, starts, steps),
    cases=[
        Case(((5, 9), (3, 4)), {"starts": (1, 8), "steps": (1, -2)}),
        Case(((4,), (0,)), {"starts": (0,), "steps": (1,)}),
        Case(((1, 3), (1, 1)), {"starts": (0, 2), "steps": (1, 1)}),
    ],
    wrong=Case(((5, 4), (3, 4)), {"starts": (1, 1), "steps": (1, 1)}),
    large=Case(((1000, 1000), (500, 900)), {"starts": (0, 50), "steps": (2, 1)}),
    dtypes=_ALL,
    ulp=0,
)
def strided_slice_update(x: TensorLike, v: TensorLike, starts: Shape, steps: Shape) -> BoundArguments:
    """Return x with v at `start + step * k` of every axis; steps may be negative."""
    t, u = as_tensor(x), as_tensor(v)
    ends = [s + p * (n - 1) for s, p, n in zip(starts, steps, u.shape, strict=True)]
    inside = all(0 <= s < n and 0 <= e < n for s, e, n in zip(starts, ends, t.shape, strict=True))
    if t.dtype != u.dtype or (u.size and not inside):
        raise ValueError(
            f"strided_slice_update: v has shape {u.shape} and dtype {u.dtype.name} with starts {starts} and "
            f"steps {steps}, expected elements of x, of shape {t.shape} and dtype {t.dtype.name}"
        )
    return (t, u), {"starts": tuple(starts), "steps": tuple(steps)}


def _bind_scatter(name: str, x: TensorLike, indices: TensorLike, v: TensorLike, axis: int) -> BoundArguments:
    t, i, u = as_tensor(x), as_tensor(indices), as_tensor(v)
    k = one_axis(name, axis, t.ndim)
    shape = t.shape[:k] + i.shape + t.shape[k + 1 :]
    if i.dtype.kind != "i":
        raise no_indices(name, i)
    if u.shape != shape or u.dtype != t.dtype:
        raise ValueError(
            f"{name}: v has shape {u.shape} and dtype {u.dtype.name}, expected {shape} and {t.dtype.name}, "
            f"for x of shape {t.shape} and indices of shape {i.shape}"
        )
    return (t, i, u), {"axis": k}


def _reshaped(inputs: list[Operand], out: Operand, axis: int) -> tuple[Operand, Operand, Operand, Operand]:
    """Return x as (outer, n, inner), indices as (m,), v as (outer, m, inner), the result as x."""
    x, i, v = inputs
    outer, _, inner = shape = outer_n_inner(x.shape, axis)
    return x.reshaped(*shape), i.reshaped(i.size), v.reshaped(outer, i.size, inner), out.reshaped(*shape)


def _axis_first(x: Any, i: Any, v: Any, axis: int) -> tuple[Any, Any, Any]:
    """Return arrays with the indexed axis first, for the oracles."""
    k = axis % x.ndim
    moved = v.reshape((*v.shape[:k], i.size, *v.shape[k + i.ndim :]))
    return np.moveaxis(x.copy(), k, 0), i.ravel(), np.moveaxis(moved, k, 0)


def _scatter_oracle(x: Any, i: Any, v: Any, axis: int) -> Any:
    out, indices, values = _axis_first(x, i, v, axis)
    for at, value in zip(indices, values, strict=True):
        out[at] = value
    return np.moveaxis(out, 0, axis)


def _add_oracle(x: Any, i: Any, v: Any, axis: int) -> Any:
    out, indices, values = _axis_first(x, i, v, axis)
    np.add.at(out, indices, values)
    return np.moveaxis(out, 0, axis)


def _winners(h: Tensor, i: Tensor, axis: int, size: int) -> Tensor:
    """Return h at the indices, with 0 for an index that a later one overwrites."""
    order = Tensor(np.arange(i.size).reshape(i.shape), None)
    last = scatter(Tensor(np.zeros(size, np.int64), None), i, order, 0)
    wins = equal(take(last, i, 0), order)
    return where(reshape(wins, (*i.shape, *(1,) * (h.ndim - 1 - axis))), take(h, i, axis), 0.0)


_CASES = (
    Case(((5, 3), (4,), (4, 3)), {"axis": 0}, {1: 5}),
    Case(((2, 3, 3), (2, 2), (2, 2, 2, 3)), {"axis": 1}, {1: 3}),
    Case(((2, 200), (3,), (3, 200)), {"axis": 0}, {1: 2}),
    Case(((2, 1), (3,), (2, 3)), {"axis": -1}, {1: 1}),
    Case(((3,), (), ()), {"axis": 0}, {1: 3}),
    Case(((2, 3), (0,), (0, 3)), {"axis": 0}, {1: 2}),
)
_WRONG = Case(((5, 3), (4,), (5, 3)), {"axis": 0}, {1: 5})
_LARGE = Case(((10000, 64), (20000,), (20000, 64)), {"axis": 0}, {1: 10000})


def _row(name: str, kernel: Callable[..., list[Launch]], **options: Any) -> Decorator:
    """Make a row that writes slices v of an axis of x at indices."""
    row = op(
        name=name,
        signature="(...),(...),(...)->(...)",
        infer=lambda x, i, v, axis: [Spec(x.shape, x.dtype)],
        plan=lambda inputs, outputs, scratch, axis: kernel(*_reshaped(inputs, outputs[0], axis)),
        cases=_CASES,
        failure=lambda x, i, v, axis: out_of_range(name, i, x.shape[axis]),
        checked=lambda x, i, v, axis: [index_range(1, x.shape[axis])],
        wrong=_WRONG,
        large=_LARGE,
        **options,
    )
    return cast(Decorator, row)


@_row(
    "scatter",
    kernels.scatter,
    vjp=(
        lambda g, y, x, i, v, axis: scatter(g, i, zeros_of(v), axis),
        None,
        lambda g, y, x, i, v, axis: _winners(g, i, axis, x.shape[axis]),
    ),
    oracle=_scatter_oracle,
    dtypes=_ALL,
    ulp=0,
)
def scatter(x: TensorLike, indices: TensorLike, v: TensorLike, axis: int) -> BoundArguments:
    """Return x with slices v of an axis at integer indices; of equal indices, the last wins."""
    return _bind_scatter("scatter", x, indices, v, axis)


@_row(
    "add_at",
    kernels.add_at,
    vjp=(lambda g, y, x, i, v, axis: g, None, lambda g, y, x, i, v, axis: take(g, i, axis)),
    oracle=_add_oracle,
    dtypes=_ALL[:4],
    magnitude=lambda x, i, v, axis: _add_oracle(np.abs(x), i, np.abs(v), axis),
    ulp=8,
)
def add_at(x: TensorLike, indices: TensorLike, v: TensorLike, axis: int) -> BoundArguments:
    """Return x with slices v of an axis added at integer indices, in their order."""
    return _bind_scatter("add_at", x, indices, v, axis)


def _index_failure(*indices: Tensor, shape: Shape) -> IndexError:
    wrong = [
        k
        for k, (i, n) in enumerate(zip(indices, shape, strict=True))
        if i.size and (i.array.min() < -n or i.array.max() >= n)
    ]
    k = wrong[0]
    return out_of_range(f"ravel_multi_index: axis {k} of shape {shape}", indices[k], shape[k])


@op(
    signature="(...),...->(...)",
    variadic=True,
    infer=lambda *indices, shape: [Spec(indices[0].shape, int64)],
    plan=lambda inputs, outputs, scratch, shape: kernels.join(
        [i.reshaped(i.size) for i in inputs], shape, outputs[0].reshaped(outputs[0].size)
    ),
    nondifferentiable=True,
    oracle=lambda *indices, shape: np.ravel_multi_index(
        [i % n for i, n in zip(np.broadcast_arrays(*indices), shape, strict=True)], shape
    ),
    cases=[
        Case(((4,), (3, 1)), {"shape": (3, 5)}, {0: 3, 1: 5}),
        Case(((), (), ()), {"shape": (3, 1, 2)}, {0: 3, 1: 1, 2: 2}),
        Case(((0,), (1,)), {"shape": (3, 5)}, {0: 3, 1: 5}),
    ],
    failure=_index_failure,
    checked=lambda *indices, shape: [index_range(k, n) for k, n in enumerate(shape)],
    wrong=Case(((4,), (3,)), {"shape": (3, 5)}, {0: 3, 1: 5}),
    large=Case(((1000, 1000), (1000, 1000)), {"shape": (300, 500)}, {0: 300, 1: 500}),
)
def ravel_multi_index(*indices: TensorLike, shape: Shape) -> BoundArguments:
    """Return the positions, in a flattened array of `shape`, of elements at indices on each axis."""
    tensors = [astype(i, int64) for i in indices]
    try:
        sizes = np.broadcast_shapes(*[i.shape for i in tensors])
    except ValueError:
        shapes = " and ".join(str(i.shape) for i in tensors)
        raise ValueError(
            f"ravel_multi_index: indices have shapes {shapes}, expected shapes that broadcast"
        ) from None
    return tuple(i if i.shape == sizes else broadcast_to(i, sizes) for i in tensors), {"shape": tuple(shape)}
