"""Scaled dot-product attention that never stores the matrix of scores, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treepie.kernels.attention import Attention, sizes_of
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..precision import FLOAT32, attribute
from ..rng import bernoulli
from ..table import OPS, BoundArguments, Case, op, pick
from ..tensor import Tensor, TensorLike
from ..transform import or_zeros, vjp
from .arithmetic import where
from .compare import logical_and, not_equal
from .elementary import exp
from .linalg import batch_matmul
from .random import check_key, high_halves, uniform_oracle
from .reduction import sum
from .shape import broadcast_to, expand_dims, reshape, swapaxes


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, **attributes: Any) -> list[Launch]:
    if not inputs[1].size:
        return [fill(out, 0) for out in outputs]
    return Attention(**attributes).forward(inputs, outputs, scratch)


def _plan_backward(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, **attributes: Any
) -> list[Launch]:
    g, g_lse, q, k, _, _, _, out, lse = inputs
    if not k.size or not q.size:
        return [fill(gradient, 0) for gradient in outputs if gradient.size]
    return Attention(**attributes).backward(inputs[2:7], (out, lse, g, g_lse, *outputs), scratch)


def _rows(q: Spec | Tensor, seq_first: bool) -> tuple[int, ...]:
    """Return (batch, heads, seq_q)."""
    return (q.shape[0], *sizes_of(q.shape, seq_first))


def _heads_first(oracle: Callable[..., Any], arrays: Sequence[int], results: Sequence[int]) -> Any:
    """Make an oracle that takes `seq_first`: it swaps axes 1 and 2 of the numbered arrays and results."""

    def call(*arguments: Any, seq_first: bool = False, **attributes: Any) -> Any:
        if not seq_first:
            return oracle(*arguments, **attributes)
        swapped = [np.swapaxes(x, 1, 2) if k in arrays else x for k, x in enumerate(arguments)]
        outputs = oracle(*swapped, **attributes)
        return tuple(np.swapaxes(x, 1, 2) if k in results else x for k, x in enumerate(outputs))

    return call


def _visible(mask: Any, shape: Any, is_causal: bool) -> Any:
    """Return which scores the masks keep, in NumPy; dropout is not included."""
    keep = np.ones(shape, bool)
    if is_causal:
        keep &= np.tril(keep[0, 0])
    return keep & (np.asarray(mask) != 0) if np.size(mask) else keep


def _scores_oracle(
    q: Any, k: Any, mask: Any, key: Any, scale: float, is_causal: bool, dropout: float
) -> tuple[Any, Any]:
    """Return scores, -inf where they are masked, and the factors of dropout."""
    group = q.shape[1] // k.shape[1]
    scores = q @ np.swapaxes(np.repeat(k, group, 1), -1, -2) * scale
    scores = np.where(_visible(mask, scores.shape, is_causal), scores, -np.inf)
    factors = 1.0
    if dropout:
        keep = np.float32(1 - dropout)
        factors = (uniform_oracle(key, scores.shape, np.float32) < keep) / (1 - dropout)
    return scores, factors


def _oracle(
    q: Any, k: Any, v: Any, mask: Any, key: Any, scale: float, is_causal: bool = False, dropout: float = 0.0
) -> Any:
    scores, factors = _scores_oracle(q, k, mask, key, scale, is_causal, dropout)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        e = np.where(scores == -np.inf, 0.0, np.exp(scores - top))
        total = e.sum(-1, keepdims=True)
        p = np.where(total == 0, 0.0, e / total)
        lse = np.where(total == 0, 0.0, np.log(total) + np.where(total == 0, 0.0, top))[..., 0]
    return (p * factors) @ np.repeat(v, q.shape[1] // v.shape[1], 1), lse


def _backward_oracle(
    g: Any,
    g_lse: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    key: Any,
    out: Any,
    lse: Any,
    scale: float,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Any:
    scores, factors = _scores_oracle(q, k, mask, key, scale, is_causal, dropout)
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, 1), np.repeat(v, group, 1)
    p = np.exp(scores - lse[..., None])
    dp = g @ np.swapaxes(values, -1, -2) * factors
    ds = p * (dp - (g * out).sum(-1)[..., None] + g_lse[..., None]) * scale

    def sum_groups(x: Any) -> Any:
        return x.reshape(*k.shape[:2], group, *x.shape[2:]).sum(2)

    dk = sum_groups(np.swapaxes(ds, -1, -2) @ q)
    return ds @ keys, dk, sum_groups(np.swapaxes(p * factors, -1, -2) @ g)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """Split the heads: (batch, heads, n, d) -> (batch, kv_heads, group, n, d)."""
    return reshape(x, (x.shape[0], kv_heads, x.shape[1] // kv_heads, *x.shape[2:]))


def _backward_in_ops(
    g: Tensor,
    g_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    key: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    is_causal: bool,
    dropout: float,
    seq_first: bool,
    precision: str = FLOAT32,
) -> tuple[Tensor, ...]:
    """Compute `attention_backward` in plain ops, with the matrix of scores: for second derivatives."""

    def product(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
        return batch_matmul(a, b, transpose_a, transpose_b, precision)

    if seq_first:
        g, q, k, v, out = (swapaxes(t, 1, 2) for t in (g, q, k, v, out))
    shape = (*q.shape[:3], k.shape[2])
    every = np.ones((1, 1, *shape[2:]), bool)
    keep = Tensor(np.tril(every) if is_causal else every, None)
    if mask.size:
        keep = logical_and(keep, mask)
    keep = broadcast_to(keep, shape)
    heads = k.shape[1]
    factors: Tensor | float = 1.0
    if dropout:
        ones = bernoulli(key, 1 - dropout, shape).astype(q.dtype)
        factors = _grouped(ones * (1 / (1 - dropout)), heads)
    g, q, out = (_grouped(t, heads) for t in (g, q, out))
    k, v = expand_dims(k, 2), expand_dims(v, 2)
    rest = _grouped(expand_dims(g_lse, -1), heads) - sum(g * out, -1, True)
    scores = where(_grouped(keep, heads), product(q, k, False, True) * scale, -math.inf)
    p = exp(scores - _grouped(expand_dims(lse, -1), heads))
    ds = p * (product(g, v, False, True) * factors + rest) * scale
    dq = product(ds, k)
    dk, dv = sum(product(ds, q, True), 2), sum(product(p * factors, g, True), 2)
    gradients = reshape(dq, (*shape[:3], k.shape[-1])), dk, dv
    return tuple(swapaxes(t, 1, 2) for t in gradients) if seq_first else gradients


def _filled(cotangents: Any, results: Any) -> list[Tensor]:
    """Return cotangents, zeros in place of None."""
    return [or_zeros(c, y) for c, y in zip(cotangents, results, strict=True)]


def _backward_vjp(h: Any, result: Any, *arguments: Tensor, **attributes: Any) -> Any:
    mask, key = arguments[5:7]

    def of_floats(*floats: Tensor) -> tuple[Tensor, ...]:
        g, g_lse, q, k, v, out, lse = floats
        return _backward_in_ops(g, g_lse, q, k, v, mask, key, out, lse, **attributes)

    results, pullback = vjp(of_floats, *arguments[:5], *arguments[7:])
    gradients = pullback(tuple(_filled(h, results)))
    return (*gradients[:5], None, None, *gradients[5:])


def _vjp(g: Any, result: Any, *arguments: Tensor, **attributes: Any) -> Any:
    g_out, g_lse = _filled(g, result)
    q, k, v, mask, key = arguments
    attributes = {"precision": FLOAT32, **attributes}  # not that of the block where gradients are taken
    dq, dk, dv = attention_backward(g_out, g_lse, q, k, v, mask, key, *result, **attributes)
    return dq, dk, dv


_ATTRIBUTES = {"scale": 0.5, "is_causal": False, "dropout": 0.0, "seq_first": False}
_INTEGERS = {3: 2, 4: 2**32}


def _case(
    q: tuple[int, ...],
    k: tuple[int, ...],
    dim_v: int,
    mask: tuple[int, ...] = (0,),
    rows: tuple[int, int] = (0, 0),
    **attributes: Any,
) -> Case:
    shapes = q, k, (*k[:3], dim_v), mask, (2,)
    return Case(shapes, {**_ATTRIBUTES, **attributes}, _INTEGERS, {4: high_halves(*rows)})


_CASES = [
    _case((2, 4, 9, 5), (2, 2, 7, 5), 3, (2, 1, 1, 7), is_causal=True, dropout=0.25),
    _case((1, 1, 1, 1), (1, 1, 1, 1), 1),
    _case((1, 2, 50, 8), (1, 1, 200, 8), 33, (1, 2, 50, 200)),
    _case((2, 1, 65, 32), (2, 1, 65, 32), 32, is_causal=True),
    _case((1, 2, 3, 20), (1, 2, 195, 20), 4, (1, 1, 3, 1), dropout=0.5),
    _case((1, 2, 0, 4), (1, 2, 3, 4), 4),
    _case((1, 2, 3, 4), (1, 2, 0, 4), 4),
    _case((2, 9, 4, 5), (2, 7, 2, 5), 3, (2, 1, 1, 7), is_causal=True, dropout=0.25, seq_first=True),
    _case((1, 50, 2, 8), (1, 200, 1, 8), 33, (1, 2, 50, 200), seq_first=True),
    _case((1, 3, 2, 4), (1, 0, 2, 4), 4, seq_first=True),
    _case((2, 4, 60, 5), (2, 2, 200, 5), 3, rows=(2**31 - 3, 2), dropout=0.5),
    _case((2, 9, 4, 5), (2, 7, 2, 5), 3, rows=(7, 2), is_causal=True, dropout=0.25, seq_first=True),
    _case((2, 2, 9, 5), (2, 2, 7, 5), 3, rows=(7, 3), dropout=0.25),
]


def _backward_case(case: Case) -> Case:
    q, v = case.shapes[0], case.shapes[2]
    out, rows = (*q[:3], v[3]), (q[0], *sizes_of(q, case.attributes["seq_first"]))
    shapes = out, rows, *case.shapes, out, rows
    return Case(shapes, case.attributes, {5: 2, 6: 2**32}, {6: case.added[4]})


@op(
    name="attention_backward",
    signature="(b,h,q,e),(b,h,q),(b,h,q,d),(b,g,k,d),(b,g,k,e),(...),(2),(b,h,q,e),(b,h,q)->...",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g, g_lse, q, k, v, mask, key, out, lse, **attributes: [q, k, v],
    plan=_plan_backward,
    vjp=tuple(None if k in (5, 6) else pick(k) for k in range(9)),
    shared=_backward_vjp,
    oracle=_heads_first(_backward_oracle, (0, 2, 3, 4, 7), (0, 1, 2)),
    cases=[_backward_case(c) for c in _CASES],
    wrong=Case(
        (
            (1, 2, 3, 4),
            (1, 2, 3),
            (1, 2, 3, 5),
            (1, 2, 3, 4),
            (1, 2, 3, 4),
            (0,),
            (2,),
            (1, 2, 3, 4),
            (1, 2, 3),
        ),
        _ATTRIBUTES,
        {5: 2, 6: 2**32},
    ),
    large=_backward_case(_case((4, 4, 512, 64), (4, 4, 512, 64), 64, is_causal=True)),
    domain=(-1.0, 1.0),
    ulp=64,
    recycled=True,
)
def attention_backward(
    g: TensorLike,
    g_lse: TensorLike,
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    mask: TensorLike,
    key: TensorLike,
    out: TensorLike,
    lse: TensorLike,
    *,
    scale: float,
    is_causal: bool,
    dropout: float,
    seq_first: bool = False,
    precision: str | None = None,
) -> BoundArguments:
    """Return gradients of attention with respect to q, k and v."""
    options = {"scale": scale, "is_causal": is_causal, "dropout": dropout}
    inputs, attributes = OPS["attention"].bind(
        q, k, v, mask, key, **options, seq_first=seq_first, precision=precision
    )
    others = [as_tensor(t) for t in (g, g_lse, out, lse)]
    same_float_dtype("attention", q=inputs[0], g=others[0], g_lse=others[1], out=others[2], lse=others[3])
    rows = _rows(inputs[0], seq_first)
    whole = (*inputs[0].shape[:3], inputs[2].shape[3])
    for t, shape in zip(others, (whole, rows, whole, rows), strict=True):
        if t.shape != shape:
            raise ValueError(f"attention: a result or its gradient has shape {t.shape}, expected {shape}")
    return (others[0], others[1], *inputs, others[2], others[3]), attributes


@op(
    name="attention",
    signature="(b,h,q,d),(b,g,k,d),(b,g,k,e),(...),(2)->(b,h,q,e),(b,h,q)",
    returns=tuple[Tensor, Tensor],
    infer=lambda q, k, v, mask, key, *, seq_first, **attributes: [
        Spec((*q.shape[:3], v.shape[3]), q.dtype),
        Spec(_rows(q, seq_first), q.dtype),
    ],
    plan=_plan,
    vjp=(pick(0), pick(1), pick(2), None, None),
    shared=_vjp,
    oracle=_heads_first(_oracle, (0, 1, 2), (0,)),
    cases=_CASES,
    wrong=Case(((1, 3, 4, 5), (1, 2, 4, 5), (1, 2, 4, 5), (0,), (2,)), _ATTRIBUTES, _INTEGERS),
    large=_case((4, 4, 512, 64), (4, 4, 512, 64), 64, is_causal=True),
    ulp=64,
    recycled=True,
)
def attention(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    mask: TensorLike,
    key: TensorLike,
    *,
    scale: float,
    is_causal: bool,
    dropout: float,
    seq_first: bool = False,
    precision: str | None = None,
) -> BoundArguments:
    """Return softmax(scale q k') v over heads, and the logarithms of the softmax's sums.

    mask: nonzero keeps; broadcasts to (batch, heads, seq_q, seq_k), or (0,) for none.  key: of dropout.
    seq_first: q, k, v and the result are (batch, seq, heads, d) instead of (batch, heads, seq, d); the
    logarithms are (batch, heads, seq_q) in either order.
    precision: None for that of the block; see `tp.precision`.
    Both results are 0 for a query whose keys are all masked.
    """
    tensors = [as_tensor(t) for t in (q, k, v)]
    same_float_dtype("attention", q=tensors[0], k=tensors[1], v=tensors[2])
    a, b, c = (t.shape for t in tensors)
    fits = len(a) == len(b) == len(c) == 4 and a[0] == b[0] and b[:3] == c[:3] and a[3] == b[3]
    (heads, queries), (kv_heads, keys) = (sizes_of(x, seq_first) if fits else (0, 0) for x in (a, b))
    if min(heads, kv_heads) < 1 or min(a[3], c[3]) < 1 or heads % kv_heads:
        of_queries, of_keys = (
            ("seq_q, heads", "seq_k, kv_heads") if seq_first else ("heads, seq_q", "kv_heads, seq_k")
        )
        raise ValueError(
            f"attention: q has shape {a}, k {b} and v {c}, expected (batch, {of_queries}, d), "
            f"(batch, {of_keys}, d) and (batch, {of_keys}, d_v), kv_heads a divisor of heads"
        )
    keep = as_tensor(mask)
    if keep.dtype.kind == "f":
        raise TypeError(f"attention: mask has dtype {keep.dtype.name}, expected bool or an integer dtype")
    scores = (a[0], heads, queries, keys)
    if keep.size == 0:
        keep = reshape(keep, (0, 0, 0, 0))
    elif keep.ndim != 4 or any(n not in (1, m) for n, m in zip(keep.shape, scores, strict=True)):
        raise ValueError(f"attention: mask has shape {keep.shape}, expected one that broadcasts to {scores}")
    if keep.dtype.kind != "b":
        keep = not_equal(keep, 0)
    dropout_key = check_key("attention", as_tensor(key)) if dropout else as_tensor(np.zeros(2, np.int64))
    attributes = {
        "scale": float(scale),
        "is_causal": bool(is_causal),
        "dropout": float(dropout),
        "seq_first": bool(seq_first),
    }
    return (*tensors, keep, dropout_key), attributes | attribute(tensors[0], precision)
