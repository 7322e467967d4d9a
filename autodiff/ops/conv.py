"""Convolution of images and its two gradients: three bilinear ops, each the gradient of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import conv as kernels
from treepie.kernels.conv import Phase, Weights
from treepie.kernels.conv_task import Axis, has_all_phases, phases
from treepie.kernels.conv_weight import correlate
from treepie.kernels.elementwise import fill
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..table import Attributes, BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike
from .reduction import sum

#: A number of rows and one of columns.
Pair = Shape
#: Zeros above, below, left and right of an image; negative where rows or columns are left out.
Margins = tuple[int, int, int, int]


def counts(size: Shape, kernel: Shape, stride: Pair, dilation: Pair, padding: Margins) -> Pair:
    """Return how many windows fit, each way; 0 or less where none does."""
    padded = (size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3])
    a, b = ((padded[k] - (kernel[k] - 1) * dilation[k] - 1) // stride[k] + 1 for k in (0, 1))
    return a, b


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


def _infer(x: Spec, w: Spec, *bias: Spec, groups: int, **geometry: Any) -> list[Spec]:
    return [Spec((x.shape[0], w.shape[0], *counts(x.shape[2:], w.shape[2:], **geometry)), x.dtype)]


def _plan(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, groups: int, **geometry: Any
) -> list[Launch]:
    (x, w, *bias), (out,) = inputs, outputs
    m, channels, kh, kw = w.shape
    area = kh * kw
    axes = _axes(x.shape[2:], (kh, kw), out.shape[2:], **geometry)
    taps = tuple(itertools.product(axes[0].taps, axes[1].taps))
    phase = Phase(0, 0, taps, tuple(range(area)))
    weights = Weights(m // groups * channels * area, channels * area, area, (phase,))
    return kernels.convolve(x, w, bias[0] if bias else None, out, axes, weights, groups, scratch)


def _plan_input(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, size: Pair, groups: int, **geometry: Any
) -> list[Launch]:
    (g, w), (out,) = inputs, outputs
    m, channels, kh, kw = w.shape
    area = kh * kw
    axes = _axes(size, (kh, kw), g.shape[2:], **geometry)
    launches = [] if all(map(has_all_phases, axes)) else [fill(out, 0)]
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
        launches += kernels.convolve(g, w, None, out, (rows, columns), weights, groups, scratch)
    return launches


def _plan_weight(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, kernel: Pair, groups: int, **geometry: Any
) -> list[Launch]:
    (x, g), (out,) = inputs, outputs
    if not g.size:
        return [fill(out, 0)]
    axes = _axes(x.shape[2:], kernel, g.shape[2:], **geometry)
    return correlate(x, g, out, axes, groups, scratch)


# ---- oracles: one tap of the window at a time, over all images and channels
def _taps(x: Any, kernel: Shape, out: Shape, stride: Pair, dilation: Pair, padding: Margins) -> Any:
    """Yield (a, b, the elements of the padded x that tap (a, b) meets, the padded x, its top, its left)."""
    top, bottom, left, right = (max(p, 0) for p in padding)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y, z = max(-padding[0], 0), max(-padding[2], 0)
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            rows = slice(y + a * dilation[0], y + a * dilation[0] + (out[0] - 1) * stride[0] + 1, stride[0])
            cols = slice(z + b * dilation[1], z + b * dilation[1] + (out[1] - 1) * stride[1] + 1, stride[1])
            yield a, b, (padded[:, :, rows, cols], padded, top, left)


def _grouped(x: Any, groups: int) -> Any:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _oracle(x: Any, w: Any, *bias: Any, groups: int, **geometry: Any) -> Any:
    m, channels, kh, kw = w.shape
    out = counts(x.shape[2:], (kh, kw), **geometry)
    y = np.zeros((x.shape[0], groups, m // groups, *out), x.dtype)
    grouped_w = w.reshape(groups, m // groups, channels, kh, kw)
    for a, b, (elements, *_) in _taps(x, (kh, kw), out, **geometry):
        y += np.einsum("ngchw,gmc->ngmhw", _grouped(elements, groups), grouped_w[..., a, b])
    y = y.reshape(x.shape[0], m, *out)
    return y + bias[0][:, None, None] if bias else y


def _oracle_input(g: Any, w: Any, size: Pair, groups: int, **geometry: Any) -> Any:
    m, channels, kh, kw = w.shape
    x = np.zeros((g.shape[0], groups * channels, *size), g.dtype)
    grouped_w = w.reshape(groups, m // groups, channels, kh, kw)
    total = np.zeros_like(x)
    for a, b, (elements, padded, top, left) in _taps(x, (kh, kw), g.shape[2:], **geometry):
        terms = np.einsum("ngmhw,gmc->ngchw", _grouped(g, groups), grouped_w[..., a, b])
        elements[...] = terms.reshape(elements.shape)
        total += padded[:, :, top : top + size[0], left : left + size[1]]
        elements[...] = 0
    return total


def _oracle_weight(x: Any, g: Any, kernel: Pair, groups: int, **geometry: Any) -> Any:
    m, channels = g.shape[1], x.shape[1] // groups
    w = np.zeros((groups, m // groups, channels, *kernel), x.dtype)
    for a, b, (elements, *_) in _taps(x, kernel, g.shape[2:], **geometry):
        w[..., a, b] = np.einsum("ngmhw,ngchw->gmc", _grouped(g, groups), _grouped(elements, groups))
    return w.reshape(m, channels, *kernel)


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
    vjp=(
        lambda g, y, x, w, **attributes: convolution_input(g, w, size=x.shape[2:], **attributes),
        lambda g, y, x, w, **attributes: convolution_weight(x, g, kernel=w.shape[2:], **attributes),
    ),
    oracle=_oracle,
    magnitude=lambda x, w, **attributes: _oracle(np.abs(x), np.abs(w), **attributes),
    cases=[_forward(*c) for c in (*_CASES, _EMPTY)],
    wrong=_forward(*_WRONG),
    large=_forward(*_LARGE),
    ulp=16,
    recycled=True,
)
def convolution(
    x: TensorLike, weight: TensorLike, stride: Pair, dilation: Pair, padding: Margins, groups: int
) -> BoundArguments:
    """Convolution of images (a cross-correlation): each result is a sum of in / groups * kh * kw products."""
    t, w = as_tensor(x), as_tensor(weight)
    _check_images("convolution", x=t, weight=w)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    _check("convolution", t, w, None, **attributes)
    return (t, w), attributes


@op(
    signature="(n,i,h,w),(o,i/groups,a,b),(o)->(n,o,y,z)",
    infer=_infer,
    plan=_plan,
    vjp=(
        lambda g, y, x, w, bias, **attributes: convolution_input(g, w, size=x.shape[2:], **attributes),
        lambda g, y, x, w, bias, **attributes: convolution_weight(x, g, kernel=w.shape[2:], **attributes),
        lambda g, y, x, w, bias, **attributes: sum(g, (0, 2, 3)),
    ),
    oracle=_oracle,
    magnitude=lambda x, w, bias, **attributes: _oracle(np.abs(x), np.abs(w), np.abs(bias), **attributes),
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
) -> BoundArguments:
    """Convolution, plus a bias for each channel of the result."""
    t, w, b = as_tensor(x), as_tensor(weight), as_tensor(bias)
    _check_images("convolution", x=t, weight=w)
    same_float_dtype("convolution", weight=w, bias=b)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    _check("convolution", t, w, None, **attributes)
    if b.shape != w.shape[:1]:
        raise ValueError(f"convolution: bias has shape {b.shape}, expected {w.shape[:1]}")
    return (t, w, b), attributes


@op(
    signature="(n,o,y,z),(o,i/groups,a,b)->(n,i,h,w)",
    infer=lambda g, w, size, groups, **attributes: [Spec((g.shape[0], w.shape[1] * groups, *size), g.dtype)],
    plan=_plan_input,
    vjp=(
        lambda h, x, g, w, size, **attributes: convolution(h, w, **attributes),
        lambda h, x, g, w, size, **attributes: convolution_weight(h, g, kernel=w.shape[2:], **attributes),
    ),
    oracle=_oracle_input,
    magnitude=lambda g, w, **attributes: _oracle_input(np.abs(g), np.abs(w), **attributes),
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
) -> BoundArguments:
    """Gradient of convolution's input, of spatial size `size`: the transposed convolution of g."""
    t, w = as_tensor(g), as_tensor(weight)
    _check_images("convolution_input", g=t, weight=w)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    x = Spec((t.shape[0], w.shape[1] * groups, *size), t.dtype)
    _check("convolution_input", x, w, t.shape, **attributes)
    return (t, w), {"size": size, **attributes}


@op(
    signature="(n,i,h,w),(n,o,y,z)->(o,i/groups,a,b)",
    infer=lambda x, g, kernel, groups, **attributes: [
        Spec((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)
    ],
    plan=_plan_weight,
    vjp=(
        lambda h, w, x, g, kernel, **attributes: convolution_input(g, h, size=x.shape[2:], **attributes),
        lambda h, w, x, g, kernel, **attributes: convolution(x, h, **attributes),
    ),
    oracle=_oracle_weight,
    magnitude=lambda x, g, **attributes: _oracle_weight(np.abs(x), np.abs(g), **attributes),
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
) -> BoundArguments:
    """Gradient of convolution's weight, whose window has the size `kernel`."""
    t, u = as_tensor(x), as_tensor(g)
    _check_images("convolution_weight", x=t, g=u)
    attributes: Attributes = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    w = Spec((u.shape[1], t.shape[1] // groups, *kernel), t.dtype)
    _check("convolution_weight", t, w, u.shape, **attributes)
    return (t, u), {"kernel": kernel, **attributes}
