"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import rope as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..elementwise import sum_to
from ..table import BoundArguments, Case, op
from ..tensor import Tensor, TensorLike
from .reduction import sum


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, seq_first: bool) -> list[Launch]:
    (x, cos, sin), d = inputs, inputs[0].shape[-1]
    rows, heads = (x.size // d, d), x.shape[-2] if seq_first else 1
    return [kernels.rope(x.reshaped(*rows), cos, sin, outputs[0].reshaped(*rows), heads)]


def _halves(x: Any) -> tuple[Any, Any]:
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _oracle(x: Any, cos: Any, sin: Any, seq_first: bool = False) -> Any:
    a, b = _halves(x)
    if seq_first:
        cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _vjp_cos(g: Tensor, y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, *, seq_first: bool) -> Tensor:
    (ga, gb), (a, b) = _halves(g), _halves(x)
    return _angle_gradient(ga * a + gb * b, cos, seq_first)


def _vjp_sin(g: Tensor, y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, *, seq_first: bool) -> Tensor:
    (ga, gb), (a, b) = _halves(g), _halves(x)
    return _angle_gradient(gb * a - ga * b, sin, seq_first)


def _angle_gradient(g: Tensor, table: Tensor, seq_first: bool) -> Tensor:
    return sum_to(sum(g, -2) if seq_first else g, table.shape)


@op(
    signature="(...,s,d),(s,d/2),(s,d/2)->(...,s,d)",
    infer=lambda x, cos, sin, **attributes: [Spec(x.shape, x.dtype)],
    plan=_plan,
    vjp=(lambda g, y, x, cos, sin, **attributes: rope(g, cos, -sin, **attributes), _vjp_cos, _vjp_sin),
    oracle=_oracle,
    cases=[
        Case(((2, 3, 8), (3, 4), (3, 4))),
        Case(((1, 2), (1, 1), (1, 1))),
        Case(((2, 3, 5, 70), (5, 35), (5, 35))),
        Case(((0, 5, 4), (5, 2), (5, 2))),
        Case(((2, 3, 5, 8), (3, 4), (3, 4)), {"seq_first": True}),
    ],
    wrong=Case(((2, 3, 8), (3, 3), (3, 3))),
    large=Case(((16, 4, 128, 64), (128, 32), (128, 32))),
    magnitude=lambda x, cos, sin, **attributes: np.abs(x).max(initial=0) * 4,
)
def rope(x: TensorLike, cos: TensorLike, sin: TensorLike, *, seq_first: bool = False) -> BoundArguments:
    """Return elements k and k + d/2 of the last axis rotated as pairs, by angles with these cos and sin.

    seq_first: x is (..., s, heads, d) instead of (..., s, d).
    """
    t, c, s = as_tensor(x), as_tensor(cos), as_tensor(sin)
    same_float_dtype("rope", x=t, cos=c, sin=s)
    axes = 3 if seq_first else 2
    table = (t.shape[-axes], t.shape[-1] // 2) if t.ndim >= axes else None
    if table is None or not t.shape[-1] or t.shape[-1] % 2 or c.shape != table or s.shape != table:
        raise ValueError(
            f"rope: x has shape {t.shape}, cos {c.shape} and sin {s.shape}, expected "
            f"(..., steps, {'heads, ' * seq_first}d) with an even d, and (steps, d/2) twice"
        )
    return (t, c, s), {"seq_first": bool(seq_first)}
