"""Convolution of images and its two gradients: three bilinear ops, each the gradient of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import conv as kernels
from treepie.kernels.conv_pack import Phase, Weights
from treepie.kernels.conv_task import Axis, has_all_phases, phases
from treepie.kernels.conv_weight import can_pair, correlate
from treepie.kernels.elementwise import fill
from treepie.kernels.epilogue import Epilogue
from treepie.kernels.matmul_bfloat16 import rounded
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..precision import BFLOAT16, FLOAT32, attribute
from ..table import Attributes, BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike
from . import conv_oracle as oracle
from .conv_oracle import Margins as Margins, Pair as Pair, counts as counts
from .reduction import sum


def _axes(
    size: Shape, kernel: Shape, out: Shape, stride: Pair, dilation: Pair, padding: Margins
) -> tuple[Axis, Axis]:
    before = (padding[0], padding[2])
    taps = [tuple(range(0, k * d, d)) for k, d in zip(kernel, dilation, strict=True)]
    a, b = (Axis(size[k], out[k], stride[k], before[k], taps[k], out[k]) for k in (0, 1))
    return a, b


def _check(
    name: str, x: Spec | Tensor, w: Spec | Tensor, g: Shape | None, groups: int, **geometry: Any
) -> None:
    """Raise ValueError for an image, weights and (unless None) a result's shape that do not fit together."""
    n, m = x.shape[0], w.shape[0]
    if w.size == 0 or m % groups or x.shape[1] != w.shape[1] * groups:
        raise ValueError(
            f"{name}: x has shape {x.shape} and weight {w.shape} with groups {groups}, expected x "
            "(n, in, h, w) and weight (out, in / groups, kh, kw), groups dividing out"
        )
    out = counts(x.shape[2:], w.shape[2:], **geometry)
    if min(out) < 1 or 0 in x.shape[2:]:
        raise ValueError(
            f"{name}: x has shape {x.shape}, expected at least the window's size, {w.shape[2:]} with "
            f"dilation {geometry['dilation']}, after padding {geometry['padding']}"
        )
    if g is not None and g != (n, m, *out):
        raise ValueError(f"{name}: g has shape {g}, expected {(n, m, *out)}")


def _check_images(name: str, **operands: Tensor) -> None:
    """Raise ValueError or TypeError for operands without four axes, or not of one float dtype."""
    for argument, t in operands.items():
        if t.ndim != 4:
            raise ValueError(f"{name}: {argument} has shape {t.shape}, expected four axes")
    same_float_dtype(name, **operands)


def _infer(
    x: Spec, w: Spec, *bias: Spec, groups: int, precision: str = FLOAT32, **geometry: Any
) -> list[Spec]:
    return [Spec((x.shape[0], w.shape[0], *counts(x.shape[2:], w.shape[2:], **geometry)), x.dtype)]


def _plan(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    groups: int,
    precision: str = FLOAT32,
    epilogue: Epilogue | None = None,
    **geometry: Any,
) -> list[Launch]:
    (x, w, *bias), (out,) = inputs, outputs
    m, channels, kh, kw = w.shape
    pairs = precision == BFLOAT16 and channels > 1
    launches, (x, w) = _rounded(precision, pairs, scratch, x, w)
    area = kh * kw
    axes = _axes(x.shape[2:], (kh, kw), out.shape[2:], **geometry)
    taps = tuple(itertools.product(axes[0].taps, axes[1].taps))
    phase = Phase(0, 0, taps, tuple(range(area)))
    weights = Weights(m // groups * channels * area, channels * area, area, (phase,))
    bias_or_none = bias[0] if bias else None
    operands = x, w, bias_or_none, out, axes, weights
    return [*launches, *kernels.convolve(*operands, groups, scratch, pairs, epilogue)]


def _plan_input(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    size: Pair,
    groups: int,
    precision: str = FLOAT32,
    epilogue: Epilogue | None = None,
    **geometry: Any,
) -> list[Launch]:
    (g, w), (out,) = inputs, outputs
    m, channels, kh, kw = w.shape
    area = kh * kw
    pairs = precision == BFLOAT16 and m > groups
    launches, (g, w) = _rounded(precision, pairs, scratch, g, w)
    axes = _axes(size, (kh, kw), g.shape[2:], **geometry)
    complete = all(map(has_all_phases, axes))
    launches += [] if complete else [fill(out, 0)]
    (rows, row_phases), (columns, column_phases) = map(phases, axes)
    every = tuple(
        Phase(
            *(row, column),
            tuple(itertools.product(row_taps, column_taps)),
            tuple(a * kw + b for a in row_numbers for b in column_numbers),
        )
        for row, row_numbers, row_taps in row_phases
        for column, column_numbers, column_taps in column_phases
    )
    if every:
        weights = Weights(m // groups * channels * area, area, channels * area, every)
        operands = g, w, None, out, (rows, columns), weights
        launches += kernels.convolve(*operands, groups, scratch, pairs, epilogue if complete else None)
    return launches if complete or epilogue is None else [*launches, epilogue.alone(out)]


def _plan_weight(
    inputs: list[Operand],
    outputs: list[Operand],
    scratch: Any,
    kernel: Pair,
    groups: int,
    precision: str = FLOAT32,
    **geometry: Any,
) -> list[Launch]:
    (x, g), (out,) = inputs, outputs
    if not g.size:
        return [fill(out, 0)]
    pairs = precision == BFLOAT16 and can_pair(out.shape[0] // groups)
    launches, (x, g) = _rounded(precision, pairs, scratch, x, g)
    axes = _axes(x.shape[2:], kernel, g.shape[2:], **geometry)
    return [*launches, *correlate(x, g, out, axes, groups, scratch, pairs)]


def _rounded(
    precision: str, pairs: bool, scratch: Any, *operands: Operand
) -> tuple[list[Launch], list[Operand]]:
    """Plan operands rounded to bfloat16 for kernels of float32, unless these round pairs themselves.

    Sums over one channel have no pairs; of so few channels that half of a vector would be empty, gradients of
    weights in pairs are no faster.
    """
    if precision == FLOAT32 or pairs:
        return [], list(operands)
    copies = [scratch(x.shape, x.dtype) for x in operands]
    return [rounded(x, y) for x, y in zip(operands, copies, strict=True)], copies


def _explicit(attributes: Attributes) -> Attributes:
    """Return attributes that name float32 too: the precision of gradients is not that of the block."""
    return {"precision": FLOAT32, **attributes}


# ---- cases
def _attributes(
    stride: Any = 1, dilation: Any = 1, padding: Margins = (0, 0, 0, 0), groups: int = 1
) -> Attributes:
    pair: Callable[[Any], Pair] = lambda v: v if isinstance(v, tuple) else (v, v)
    return {"stride": pair(stride), "dilation": pair(dilation), "padding": padding, "groups": groups}


#: (x, weight, geometry): one of each kind, then sizes around those of the tiles.
_CASES: list[tuple[Shape, Shape, Attributes]] = [
    ((2, 3, 5, 6), (4, 3, 3, 2), _attributes(padding=(1, 0, 2, 1))),
    ((1, 1, 1, 1), (1, 1, 1, 1), _attributes()),
    ((2, 4, 7, 9), (6, 2, 3, 3), _attributes((2, 3), (1, 2), (1, 1, 2, 2), 2)),
    ((3, 5, 6, 17), (5, 1, 3, 3), _attributes(padding=(1, 1, 1, 1), groups=5)),
    ((2, 3, 8, 8), (9, 3, 1, 1), _attributes(3)),
    ((2, 3, 2, 32), (17, 3, 1, 1), _attributes()),
    ((1, 2, 1, 40), (3, 2, 1, 5), _attributes((1, 2), (1, 3), (0, 0, 12, 0))),
    ((2, 2, 9, 8), (3, 2, 2, 3), _attributes(2, padding=(-1, -2, 1, -1))),
    ((5, 13, 15, 31), (25, 13, 3, 3), _attributes(padding=(1, 1, 1, 1))),
    ((1, 8, 60, 50), (4, 8, 2, 2), _attributes(2)),
    # Two or four rows in a vector, channels in lanes, odd sizes of strided gradients.
    ((3, 5, 8, 8), (17, 5, 3, 3), _attributes(padding=(1, 1, 1, 1))),
    ((9, 3, 4, 4), (16, 3, 3, 3), _attributes(padding=(1, 1, 1, 1))),
    ((3, 4, 15, 13), (32, 2, 4, 4), _attributes(2, padding=(1, 1, 1, 1), groups=2)),
    ((2, 33, 7, 37), (64, 33, 1, 1), _attributes(2)),
    # Rows and columns of the source that no tap reads.
    ((2, 3, 7, 9), (16, 3, 3, 1), _attributes((2, 3), (4, 1), (5, 2, 4, 1))),
]
_EMPTY = ((0, 3, 5, 6), (4, 3, 3, 2), _attributes())
_WRONG = ((2, 3, 5, 6), (4, 2, 3, 3), _attributes())
_LARGE = ((16, 64, 32, 32), (64, 64, 3, 3), _attributes(padding=(1, 1, 1, 1)))


def _result(x: Shape, w: Shape, attributes: Attributes) -> Shape:
    geometry = {name: value for name, value in attributes.items() if name != "groups"}
    return (x[0], w[0], *counts(x[2:], w[2:], **geometry))


def _forward(x: Shape, w: Shape, attributes: Attributes) -> Case:
    return Case((x, w), attributes)


def _backward(x: Shape, w: Shape, attributes: Attributes) -> Case:
    return Case((_result(x, w, attributes), w), {"size": x[2:], **attributes})


def _weights(x: Shape, w: Shape, attributes: Attributes) -> Case:
    return Case((x, _result(x, w, attributes)), {"kernel": w[2:], **attributes})


@op(
    signature="(n,i,h,w),(o,i/groups,a,b)->(n,o,y,z)",
    infer=_infer,
    plan=_plan,
    epilogue=True,
    vjp=(
        lambda g, y, x, w, **attributes: convolution_input(g, w, size=x.shape[2:], **_explicit(attributes)),
        lambda g, y, x, w, **attributes: convolution_weight(
            x, g, kernel=w.shape[2:], **_explicit(attributes)
        ),
    ),
    oracle=oracle.convolution,
    magnitude=lambda *operands, **attributes: oracle.convolution(*map(np.abs, operands), **attributes),
    cases=[_forward(*c) for c in (*_CASES, _EMPTY)],
    wrong=_forward(*_WRONG),
    large=_forward(*_LARGE),
    ulp=16,
    recycled=True,
)
def convolution(
    x: TensorLike,
    weight: TensorLike,
    stride: Pair,
    dilation: Pair,
    padding: Margins,
    groups: int,
    precision: str | None = None,
) -> BoundArguments:
    """Convolution of images (a cross-correlation): each result is a sum of in / groups * kh * kw products.

    precision: None for that of the block; see `tp.precision`.
    """
    t, w = as_tensor(x), as_tensor(weight)
    _check_images("convolution", x=t, weight=w)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    _check("convolution", t, w, None, **attributes)
    return (t, w), attributes | attribute(t, precision)


@op(
    signature="(n,i,h,w),(o,i/groups,a,b),(o)->(n,o,y,z)",
    infer=_infer,
    plan=_plan,
    epilogue=True,
    vjp=(
        lambda g, y, x, w, bias, **attributes: convolution_input(
            g, w, size=x.shape[2:], **_explicit(attributes)
        ),
        lambda g, y, x, w, bias, **attributes: convolution_weight(
            x, g, kernel=w.shape[2:], **_explicit(attributes)
        ),
        lambda g, y, x, w, bias, **attributes: sum(g, (0, 2, 3)),
    ),
    oracle=oracle.convolution,
    magnitude=lambda x, w, bias, **attributes: oracle.convolution(
        np.abs(x), np.abs(w), np.abs(bias), **attributes
    ),
    cases=[Case((x, w, (w[0],)), attributes) for x, w, attributes in (*_CASES[:5], _CASES[8], _EMPTY)],
    wrong=Case((*_CASES[0][:2], (3,)), _CASES[0][2]),
    large=Case((*_LARGE[:2], (64,)), _LARGE[2]),
    ulp=16,
    recycled=True,
)
def convolution_bias(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike,
    stride: Pair,
    dilation: Pair,
    padding: Margins,
    groups: int,
    precision: str | None = None,
) -> BoundArguments:
    """Convolution, plus a bias for each channel of the result."""
    t, w, b = as_tensor(x), as_tensor(weight), as_tensor(bias)
    _check_images("convolution", x=t, weight=w)
    same_float_dtype("convolution", weight=w, bias=b)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    _check("convolution", t, w, None, **attributes)
    if b.shape != w.shape[:1]:
        raise ValueError(f"convolution: bias has shape {b.shape}, expected {w.shape[:1]}")
    return (t, w, b), attributes | attribute(t, precision)


@op(
    signature="(n,o,y,z),(o,i/groups,a,b)->(n,i,h,w)",
    infer=lambda g, w, size, groups, **attributes: [Spec((g.shape[0], w.shape[1] * groups, *size), g.dtype)],
    plan=_plan_input,
    epilogue=True,
    vjp=(
        lambda h, x, g, w, size, **attributes: convolution(h, w, **_explicit(attributes)),
        lambda h, x, g, w, size, **attributes: convolution_weight(
            h, g, kernel=w.shape[2:], **_explicit(attributes)
        ),
    ),
    oracle=oracle.input_gradient,
    magnitude=lambda g, w, **attributes: oracle.input_gradient(np.abs(g), np.abs(w), **attributes),
    cases=[_backward(*c) for c in (*_CASES, _EMPTY)],
    wrong=Case(((2, 4, 3, 7), (4, 3, 3, 2)), {"size": (5, 6), **_CASES[0][2]}),
    large=_backward(*_LARGE),
    ulp=16,
    recycled=True,
)
def convolution_input(
    g: TensorLike,
    weight: TensorLike,
    size: Pair,
    stride: Pair,
    dilation: Pair,
    padding: Margins,
    groups: int,
    precision: str | None = None,
) -> BoundArguments:
    """Gradient of convolution's input, of spatial size `size`: the transposed convolution of g."""
    t, w = as_tensor(g), as_tensor(weight)
    _check_images("convolution_input", g=t, weight=w)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    x = Spec((t.shape[0], w.shape[1] * groups, *size), t.dtype)
    _check("convolution_input", x, w, t.shape, **attributes)
    return (t, w), {"size": size, **attributes} | attribute(t, precision)


@op(
    signature="(n,i,h,w),(n,o,y,z)->(o,i/groups,a,b)",
    infer=lambda x, g, kernel, groups, **attributes: [
        Spec((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)
    ],
    plan=_plan_weight,
    vjp=(
        lambda h, w, x, g, kernel, **attributes: convolution_input(
            g, h, size=x.shape[2:], **_explicit(attributes)
        ),
        lambda h, w, x, g, kernel, **attributes: convolution(x, h, **_explicit(attributes)),
    ),
    oracle=oracle.weight_gradient,
    magnitude=lambda x, g, **attributes: oracle.weight_gradient(np.abs(x), np.abs(g), **attributes),
    cases=[_weights(*c) for c in (*_CASES, _EMPTY)],
    wrong=Case(((2, 3, 5, 6), (2, 4, 3, 7)), {"kernel": (3, 2), **_CASES[0][2]}),
    large=_weights(*_LARGE),
    ulp=16,
    recycled=True,
)
def convolution_weight(
    x: TensorLike,
    g: TensorLike,
    kernel: Pair,
    stride: Pair,
    dilation: Pair,
    padding: Margins,
    groups: int,
    precision: str | None = None,
) -> BoundArguments:
    """Gradient of convolution's weight, whose window has the size `kernel`."""
    t, u = as_tensor(x), as_tensor(g)
    _check_images("convolution_weight", x=t, g=u)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    w = Spec((u.shape[1], t.shape[1] // groups, *kernel), t.dtype)
    _check("convolution_weight", t, w, u.shape, **attributes)
    return (t, u), {"kernel": kernel, **attributes} | attribute(t, precision)
