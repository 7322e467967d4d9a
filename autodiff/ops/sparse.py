"""Sets of rows of a table: sums of the gradients of lookups, and updates that leave other rows as they are.

A set is (rows, values): row numbers (room,) int64, ascending, and values (room, dim). Unused room is at the
end: row numbers of -1, values of zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import sparse as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor
from ..table import BoundArguments, Case, op
from ..tensor import DType, Tensor, TensorLike, float64, int32, int64
from .indexing import index_range, integers, out_of_range

_Set = tuple[Tensor, Tensor]


def _plan_sum(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, size: int, ends: tuple[int, ...]
) -> list[Launch]:
    (g, indices), (rows, sums) = inputs, outputs
    m = indices.size
    keys = scratch((m,), int32 if size < 1 << 31 else int64)
    line = keys.reshaped(1, m, 1)
    lines, counts = kernels.sort_scratch(line)
    part = scratch(sums.shape, sums.dtype) if len(ends) > 1 else sums
    memory = (
        keys, scratch((m,), int64), scratch((rows.size + 2,), int64), part,
        scratch(lines, int64), scratch(lines, int64), scratch(counts, int64),
    )  # fmt: skip
    return kernels.sum_rows(indices, g, rows, sums, memory, size, ends)


def _infer_sum(g: Spec, i: Spec, size: int, ends: tuple[int, ...]) -> list[Spec]:
    room = min(i.size, size)
    return [Spec((room,), int64), Spec((room, g.shape[1]), g.dtype)]


def _sum_oracle(g: Any, i: Any, size: int, ends: tuple[int, ...]) -> Any:
    table = np.zeros((size, g.shape[1]), g.dtype)
    np.add.at(table, i, g)
    return _set_oracle(table, min(i.size, size))


def _set_oracle(table: Any, room: int) -> Any:
    """Return the set of the rows of a table that are not zeros."""
    chosen = np.flatnonzero((table != 0).any(axis=1))
    rows, values = np.full(room, -1), np.zeros((room, table.shape[1]), table.dtype)
    rows[: chosen.size], values[: chosen.size] = chosen, table[chosen]
    return rows, values


@op(
    signature="(m,dim),(m)->(room),(room,dim)",
    infer=_infer_sum,
    plan=_plan_sum,
    nondifferentiable=True,
    oracle=_sum_oracle,
    cases=[
        Case(((7, 3), (7,)), {"size": 5, "ends": (7,)}, {1: 5}),
        Case(((60, 40), (60,)), {"size": 9, "ends": (20, 20, 45, 60)}, {1: 9}),
        Case(((300, 1), (300,)), {"size": 90000, "ends": (100, 300)}, {1: 90000}),
        Case(((0, 3), (0,)), {"size": 5, "ends": (0,)}, {1: 5}),
    ],
    failure=lambda g, i, size, ends: out_of_range("sum_rows", i, size),
    checked=lambda g, i, size, ends: [index_range(1, size)],
    wrong=Case(((3, 2), (4,)), {"size": 5, "ends": (4,)}, {1: 5}),
    large=Case(((20000, 64), (20000,)), {"size": 1000000, "ends": (20000,)}, {1: 1000000}),
    magnitude=lambda g, i, size, ends: _sum_oracle(np.abs(g), i, size, ends)[1],
    ulp=8,
    returns=_Set,
)
def sum_rows(g: TensorLike, indices: TensorLike, size: int, ends: tuple[int, ...]) -> BoundArguments:
    """Return the set of rows of a table of `size`, nonzero sums of the rows of g with one index.

    ends: where each lookup ends in g. Lookups are summed one by one, as `scatter_add` and then `add` do it.
    """
    i, t = integers("sum_rows", indices), as_tensor(g)
    if i.ndim != 1 or t.ndim != 2 or t.shape[0] != i.size or (ends and ends[-1]) != i.size:
        raise ValueError(
            f"sum_rows: g has shape {t.shape}, indices {i.shape}, expected (m, dim) and (m,), and lookups "
            f"that end at {ends}"
        )
    return (t, i), {"size": size, "ends": tuple(ends)}


def _plan_nonzero(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    return kernels.nonzero_rows(inputs[0], scratch((inputs[0].shape[0],), np.bool_), *outputs)


@op(
    signature="(n,dim)->(n),(n,dim)",
    infer=lambda g: [Spec((g.shape[0],), int64), Spec(g.shape, g.dtype)],
    plan=_plan_nonzero,
    nondifferentiable=True,
    oracle=lambda g: _set_oracle(g, g.shape[0]),
    cases=[Case(((5, 3),)), Case(((700, 40),)), Case(((0, 3),))],
    wrong=Case(((5,),)),
    large=Case(((20000, 64),)),
    ulp=0,
    returns=_Set,
)
def nonzero_rows(g: TensorLike) -> BoundArguments:
    """Return the set of the rows of g that are not zeros."""
    t = as_tensor(g)
    if t.ndim != 2:
        raise ValueError(f"nonzero_rows: g has shape {t.shape}, expected (rows, dim)")
    return (t,), {}


def _plan_norm(inputs: list[Operand], outputs: list[Operand], scratch: Any, dtype: DType) -> list[Launch]:
    sums = scratch((kernels.norm_chunks(inputs[0].shape[0]),), dtype)
    return kernels.norm(inputs[0], sums, outputs[0])


@op(
    signature="(room,dim)->()",
    infer=lambda x, dtype: [Spec((), dtype)],
    plan=_plan_norm,
    nondifferentiable=True,
    oracle=lambda x, dtype: np.sqrt(np.sum(x * x)),
    cases=[Case(s, {"dtype": float64}) for s in (((5, 3),), ((300, 40),), ((0, 3),))],
    wrong=Case(((5,),), {"dtype": float64}),
    large=Case(((20000, 64),), {"dtype": float64}),
    ulp=32,
)
def rows_norm(values: TensorLike, dtype: DType) -> BoundArguments:
    """Return the L2 norm of a set's values; its bits do not depend on the unused room. dtype: float64."""
    t = as_tensor(values)
    if t.ndim != 2:
        raise ValueError(f"rows_norm: values have shape {t.shape}, expected (room, dim)")
    return (t,), {"dtype": np.dtype(dtype)}


def _write_oracle(x: Any, values: Any, rows: Any) -> Any:
    out, used = x.copy(), rows >= 0
    out[rows[used]] = values[used]
    return out


@op(
    signature="(n,dim),(room,dim),(room)->(n,dim)",
    infer=lambda x, values, rows: [Spec(x.shape, x.dtype)],
    plan=lambda inputs, outputs, scratch: kernels.write_rows(inputs[0], inputs[2], inputs[1], outputs[0]),
    nondifferentiable=True,
    oracle=_write_oracle,
    cases=[
        Case(((5, 3), (3, 3), (3,)), {}, {2: 1}, {2: (1, 4, -1)}),
        Case(((900, 40), (2, 40), (2,)), {}, {2: 1}, {2: (0, 899)}),
        Case(((5, 3), (0, 3), (0,)), {}, {2: 5}),
    ],
    wrong=Case(((5, 3), (3, 3), (2,)), {}, {2: 5}),
    large=Case(((10000, 64), (1, 64), (1,)), {}, {2: 10000}),
    recycled=True,
    ulp=0,
)
def write_rows(x: TensorLike, values: TensorLike, rows: TensorLike) -> BoundArguments:
    """Return x (n, dim) with the rows of a set replaced by its values.

    In place, when the result's buffer is that of x: only the set's rows are written.
    """
    t, i, v = as_tensor(x), integers("write_rows", rows), as_tensor(values)
    if t.ndim != 2 or i.ndim != 1 or v.shape != (i.size, t.shape[1]) or v.dtype != t.dtype:
        raise ValueError(
            f"write_rows: x has shape {t.shape}, rows {i.shape} and values {v.shape} of dtype "
            f"{v.dtype.name}, expected (n, dim), (room,) and (room, dim) of dtype {t.dtype.name}"
        )
    return (t, v, i), {}
