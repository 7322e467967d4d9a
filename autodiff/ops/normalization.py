"""Layer, RMS and group normalisation: rows of a tensor at mean 0 and variance 1.

The gradients of all arguments come from one kernel, which has a row; that row's gradient is that of the
same formula written in ops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from treepie.kernels import norm as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_float, same_float_dtype
from ..table import Attributes, BoundArguments, Case, Shape, op, pick
from ..tensor import Tensor, TensorLike
from ..transform import by_formula
from .arithmetic import add, mul, square, sub
from .elementary import rsqrt
from .reduction import mean, sum
from .shape import reshape


def _rows_channels_inner(shape: Shape, axis: int, groups: int) -> tuple[int, int, int]:
    """Return a shape as (rows, channels of a row, inner)."""
    rows, inner = math.prod(shape[:axis]) * groups, math.prod(shape[axis + 1 :])
    return rows, shape[axis] // groups, inner


def _plan(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, groups: int, **options: Any
) -> list[Launch]:
    (x, w, b), (y,) = inputs, outputs
    shape = _rows_channels_inner(x.shape, axis, groups)
    return kernels.normalize(x.reshaped(*shape), w, b, y.reshaped(*shape), groups, **options)


def _plan_backward(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axis: int, groups: int, **options: Any
) -> list[Launch]:
    (g, x, w), (dx, dw, db) = inputs, outputs
    shape = _rows_channels_inner(x.shape, axis, groups)
    operands = g.reshaped(*shape), x.reshaped(*shape), w
    gradients = dx.reshaped(*shape), dw, db
    return kernels.normalize_backward(operands, gradients, scratch, groups, **options)


def _oracle(x: Any, w: Any, b: Any, axis: int, groups: int, eps: float, centered: bool) -> Any:
    _, channels, inner = _rows_channels_inner(x.shape, axis, groups)
    t = x.reshape(-1, groups, channels, inner)
    d = t - t.mean((2, 3), keepdims=True) if centered else t
    h = d / np.sqrt((d * d).mean((2, 3), keepdims=True) + eps)
    return (h * w.reshape(groups, channels, 1) + b.reshape(groups, channels, 1)).reshape(x.shape)


def _backward_oracle(g: Any, x: Any, w: Any, axis: int, groups: int, eps: float, centered: bool) -> Any:
    _, channels, inner = _rows_channels_inner(x.shape, axis, groups)
    g, t = (a.reshape(-1, groups, channels, inner) for a in (g, x))
    d = t - t.mean((2, 3), keepdims=True) if centered else t
    r = 1 / np.sqrt((d * d).mean((2, 3), keepdims=True) + eps)
    gw, h = g * w.reshape(groups, channels, 1), d * r
    shift = gw.mean((2, 3), keepdims=True) if centered else 0.0
    dx = r * (gw - shift - h * (gw * h).mean((2, 3), keepdims=True))
    return dx.reshape(x.shape), (g * h).sum((0, 3)).ravel(), g.sum((0, 3)).ravel()


def _formula_backward(
    g: Tensor, x: Tensor, w: Tensor, axis: int, groups: int, eps: float, centered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _, channels, inner = _rows_channels_inner(x.shape, axis, groups)
    upstream, t = (reshape(a, (-1 if a.size else 0, groups, channels, inner)) for a in (g, x))
    d = sub(t, mean(t, (2, 3), True)) if centered else t
    r = rsqrt(add(mean(square(d), (2, 3), True), eps))
    gw, h = mul(upstream, reshape(w, (groups, channels, 1))), mul(d, r)
    rest = sub(gw, mean(gw, (2, 3), True)) if centered else gw
    dx = mul(r, sub(rest, mul(h, mean(mul(gw, h), (2, 3), True))))
    dw, db = (reshape(sum(a, (0, 3)), w.shape) for a in (mul(upstream, h), upstream))
    return reshape(dx, x.shape), dw, db


def _attributes(axis: int, groups: int, eps: float = 1e-5, centered: bool = True) -> Attributes:
    return {"axis": axis, "groups": groups, "eps": eps, "centered": centered}


#: Shapes of x and of the weight, attributes: layer and RMS normalisation, then group normalisation.
_SHAPES: list[tuple[Shape, int, Attributes]] = [
    ((3, 5), 5, _attributes(1, 1)),
    ((2, 3, 40), 40, _attributes(2, 1, 1e-6, False)),
    ((2, 6, 3, 2), 6, _attributes(1, 3)),
    ((70, 33), 33, _attributes(1, 1)),
    ((3, 4, 19), 4, _attributes(1, 2, 0.1, False)),
    ((2, 6), 6, _attributes(1, 2)),
    ((4,), 4, _attributes(0, 1)),
    ((2, 3, 1), 1, _attributes(2, 1)),
    ((0, 3), 3, _attributes(1, 1)),
]


def check_operands(name: str, x: Tensor, axis: int, groups: int, like: Tensor, *weights: Tensor) -> None:
    """Check that `like` has the shape of x, weights an element a channel, and all one float dtype."""
    shape, dtype = x._data.shape, x._data.dtype
    channels = shape[axis] if 0 <= axis < len(shape) else 0
    fits = channels > 0 and channels % groups == 0 and 0 not in shape[axis:] and like._data.shape == shape
    floats = dtype.kind == "f" and like._data.dtype == dtype
    if fits and floats and all(w._data.shape == (channels,) and w._data.dtype == dtype for w in weights):
        return
    others = {f"operand {k}": t for k, t in enumerate((like, *weights), 1) if t is not x}
    same_float_dtype(name, x=x, **others)
    shapes = " and ".join(str(t.shape) for t in (x, *others.values()))
    raise ValueError(
        f"{name}: shapes are {shapes}, expected channels on axis {axis}, in {groups} groups, a weight for "
        "each, and at least one element a channel"
    )


@op(
    signature="(...),(...),(c)->(...),(c),(c)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g, x, w, **attributes: [
        Spec(x.shape, x.dtype),
        Spec(w.shape, x.dtype),
        Spec(w.shape, x.dtype),
    ],
    plan=_plan_backward,
    shared=by_formula(_formula_backward),
    vjp=tuple(map(pick, range(3))),
    oracle=_backward_oracle,
    cases=[Case((s, s, (c,)), m) for s, c, m in _SHAPES],
    wrong=Case(((3, 5), (3, 4), (5,)), _attributes(1, 1)),
    large=Case(((2048, 1024), (2048, 1024), (1024,)), _attributes(1, 1)),
    ulp=16,
    recycled=True,
)
def normalize_backward(
    g: TensorLike, x: TensorLike, weight: TensorLike, axis: int, groups: int, eps: float, centered: bool
) -> BoundArguments:
    """Return gradients of normalize: of x, of the weight, of the bias."""
    upstream, t, w = (as_float("normalize", a) for a in (g, x, weight))
    check_operands("normalize", t, axis, groups, upstream, w)
    return (upstream, t, w), _attributes(axis, groups, eps, centered)


@op(
    signature="(...),(c),(c)->(...)",
    infer=lambda x, w, b, **attributes: [Spec(x.shape, x.dtype)],
    plan=_plan,
    shared=lambda g, y, x, w, b, **attributes: normalize_backward(g, x, w, **attributes),
    vjp=tuple(map(pick, range(3))),
    oracle=_oracle,
    cases=[Case((s, (c,), (c,)), m) for s, c, m in _SHAPES],
    wrong=Case(((3, 5), (4,), (4,)), _attributes(1, 1)),
    large=Case(((2048, 1024), (1024,), (1024,)), _attributes(1, 1)),
    ulp=16,
    recycled=True,
)
def normalize(
    x: TensorLike, weight: TensorLike, bias: TensorLike, axis: int, groups: int, eps: float, centered: bool
) -> BoundArguments:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over groups of channels and all axes after them."""
    t, w, b = (as_float("normalize", a) for a in (x, weight, bias))
    check_operands("normalize", t, axis, groups, t, w, b)
    return (t, w, b), _attributes(axis, groups, eps, centered)
