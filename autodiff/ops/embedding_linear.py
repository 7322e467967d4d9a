"""A linear layer of an embedding: products with the rows of a table, of which there are fewer than tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import index as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..precision import FLOAT32, attribute
from ..table import BoundArguments, Case, op, pick
from ..tensor import Tensor, TensorLike
from .arithmetic import where
from .indexing import index_range, integers, out_of_range, scatter_add, take
from .linalg import batch_matmul, plan_linear
from .reduction import sum
from .shape import expand_dims, reshape

#: An element of the result is moved in the time of a product of this depth: copied in the forward pass, read
#: again and added to its row of the table in the backward pass, both out of cache.
_MOVE = 64


def by_table(rows: int, depth: int, tokens: int) -> bool:
    """Return whether products with all rows of a table are faster than products with each token's row."""
    return depth * (tokens - rows) >= _MOVE * tokens


def _plan(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, precision: str = FLOAT32
) -> list[Launch]:
    (table, indices, w, bias), (out,) = inputs, outputs
    (rows, depth), n, m = table.shape, w.shape[1], indices.size
    if by_table(rows, depth, m):
        products = scratch((rows, n), out.dtype)
        launches = plan_linear([table, w, bias], [products], scratch, None, precision)
        source, target = products.reshaped(1, rows, n), out.reshaped(1, m, n)
        return [*launches, kernels.take(source, indices.reshaped(m), target)]
    x = scratch((m, depth), out.dtype)
    lookup = kernels.take(table.reshaped(1, rows, depth), indices.reshaped(m), x.reshaped(1, m, depth))
    return [lookup, *plan_linear([x, w, bias], [out.reshaped(m, n)], scratch, None, precision)]


def _vjp(
    g: Tensor,
    y: Tensor,
    table: Tensor,
    indices: Tensor,
    w: Tensor,
    bias: Tensor,
    precision: str = FLOAT32,
) -> tuple[Tensor, ...]:
    rows, m, flat = table.shape[0], indices.size, reshape(indices, (-1,))
    g = reshape(g, (m, w.shape[1]))
    if not by_table(rows, table.shape[1], m):
        x = take(table, flat, 0)
        g_table = scatter_add(batch_matmul(g, w, False, True, precision), flat, 0, rows)
        return g_table, g, batch_matmul(x, g, True, False, precision), sum(g, 0)
    g = scatter_add(g, flat, 0, rows)
    # A row that no token has is not multiplied: it may be infinite or NaN.
    counts = scatter_add(Tensor(np.ones(m, table.dtype), None), flat, 0, rows)
    used = where(expand_dims(counts, 1) > 0, table, 0.0)
    g_w = batch_matmul(used, g, True, False, precision)
    return batch_matmul(g, w, False, True, precision), g, g_w, sum(g, 0)


def _oracle(table: Any, indices: Any, w: Any, bias: Any) -> Any:
    return table[indices] @ w + bias


@op(
    signature="(v,k),(...),(k,n),(n)->(...,n)",
    infer=lambda table, i, w, bias, precision=FLOAT32: [Spec((*i.shape, w.shape[1]), table.dtype)],
    plan=_plan,
    shared=_vjp,
    vjp=(pick(0), None, pick(2), pick(3)),
    oracle=_oracle,
    magnitude=lambda table, i, w, bias: _oracle(np.abs(table), i, np.abs(w), np.abs(bias)),
    cases=[
        Case(((5, 3), (4,), (3, 4), (4,)), {}, {1: 5}),
        Case(((3, 70), (5, 8), (70, 4), (4,)), {}, {1: 3}),
        Case(((3, 200), (2, 3, 6), (200, 33), (33,)), {}, {1: 2}),
        Case(((4, 3), (0,), (3, 2), (2,)), {}, {1: 4}),
        Case(((4, 3), (), (3, 2), (2,)), {}, {1: 4}),
        Case(((4, 0), (6,), (0, 2), (2,)), {}, {1: 4}),
    ],
    failure=lambda table, i, w, bias, precision=FLOAT32: out_of_range("embedding", i, table.shape[0]),
    checked=lambda table, i, w, bias, precision=FLOAT32: [index_range(1, table.shape[0])],
    wrong=Case(((5, 3), (4,), (4, 3), (3,)), {}, {1: 5}),
    large=Case(((64, 256), (64, 64), (256, 1024), (1024,)), {}, {1: 64}),
    ulp=16,
    recycled=True,
)
def embedding_linear(
    table: TensorLike, indices: TensorLike, weight: TensorLike, bias: TensorLike
) -> BoundArguments:
    """Return `table[indices] @ weight + bias`; of few rows, products of the table, gathered."""
    t, i, w, b = as_tensor(table), integers("embedding", indices), as_tensor(weight), as_tensor(bias)
    if t.ndim != 2 or w.ndim != 2 or t.shape[1] != w.shape[0] or b.shape != w.shape[1:]:
        raise ValueError(
            f"embedding_linear: table has shape {t.shape}, weight {w.shape} and bias {b.shape}, expected "
            "(v, k), (k, n) and (n,)"
        )
    same_float_dtype("embedding_linear", table=t, weight=w, bias=b)
    return (t, i, w, b), attribute(t, None)
