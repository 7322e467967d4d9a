"""Rows of the op table for batches of images, (batch, channels, height, width), which augmentation uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.kernels import images as kernels
from treepie.kernels.elementwise import elementwise as plan_elementwise
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..table import BoundArguments, Case, op
from ..tensor import Tensor, TensorLike, int64

_ALL = ("float32", "float64", "int32", "int64", "bool")


def _check(name: str, x: Tensor, places: Tensor) -> None:
    if x.ndim != 4 or places.shape != (len(x), 4):
        raise ValueError(
            f"{name}: x has shape {x.shape} and places {places.shape}, expected (batch, channels, height, "
            "width) and (batch, 4)"
        )
    if places.dtype != int64:
        raise TypeError(f"{name}: places have dtype {places.dtype.name}, expected int64")


def _windows_oracle(x: Any, places: Any, size: tuple[int, int], fill: float) -> Any:
    n, channels, height, width = x.shape
    out = np.full((n, channels, *size), fill, x.dtype)
    for i, (top, left, upside_down, mirrored) in enumerate(places):
        image = x[i, :, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
        for y in range(max(0, -top), min(size[0], height - top)):
            for k in range(max(0, -left), min(size[1], width - left)):
                out[i, :, y, k] = image[:, top + y, left + k]
    return out


def _plan_windows(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, size: tuple[int, int], fill: float
) -> list[Launch]:
    x, places = inputs
    return [kernels.windows(x, places, outputs[0], fill)]


#: Added to test operands of 0 to 8: windows that begin before the image, and both ways to flip.
_BEFORE: dict[int, tuple[int, ...]] = {1: (-4, -4, 0, -1)}


@op(
    signature="(n,c,h,w),(n,4)->(n,c,*size)",
    infer=lambda x, places, size, fill: [Spec((*x.shape[:2], *size), x.dtype)],
    plan=_plan_windows,
    nondifferentiable=True,
    oracle=_windows_oracle,
    cases=[
        Case(((7, 3, 5, 6), (7, 4)), {"size": (4, 4), "fill": 0.0}, {1: 2}, {1: (-1, -1, 0, 0)}),
        Case(((9, 2, 5, 6), (9, 4)), {"size": (6, 9), "fill": 1.0}, {1: 9}, _BEFORE),
        Case(((3, 1, 40, 70), (3, 4)), {"size": (40, 70), "fill": 0.0}, {1: 2}),
        Case(((3, 1, 2, 2), (3, 4)), {"size": (2, 3), "fill": 1.0}, {1: 100}, {1: (-50, -50, 0, 0)}),
        Case(((4, 1, 1, 1), (4, 4)), {"size": (1, 1), "fill": 1.0}, {1: 2}),
        Case(((2, 3, 0, 4), (2, 4)), {"size": (2, 2), "fill": 1.0}, {1: 2}),
        Case(((0, 3, 4, 4), (0, 4)), {"size": (2, 2), "fill": 0.0}, {1: 2}),
        Case(((2, 3, 4, 4), (2, 4)), {"size": (0, 2), "fill": 0.0}, {1: 2}),
    ],
    wrong=Case(((2, 3, 4, 4), (3, 4)), {"size": (2, 2), "fill": 0.0}, {1: 2}),
    large=Case(((128, 3, 32, 32), (128, 4)), {"size": (32, 32), "fill": 0.0}, {1: 9}, _BEFORE),
    dtypes=_ALL,
    ulp=0,
)
def image_windows(x: TensorLike, places: TensorLike, size: tuple[int, int], fill: float) -> BoundArguments:
    """Return a window of each image, which may be flipped before; `fill` where the window is outside of it.

    places: (n, 4) int64: first row, first column, whether to flip the order of rows, and of columns.
    """
    t, at = as_tensor(x), as_tensor(places)
    _check("image_windows", t, at)
    return (t, at), {"size": size, "fill": float(fill)}


def _boxes_oracle(x: Any, other: Any, places: Any) -> Any:
    out = x.copy()
    other = np.broadcast_to(other, x.shape)
    for i, (top, bottom, left, right) in enumerate(places):
        out[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
    return out


def _plan_boxes(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    x, other, places = inputs
    return [kernels.boxes(x, other, places, *outputs)]


@op(
    signature="(n,c,h,w),(n,c,h,w),(n,4)->(n,c,h,w)",
    infer=lambda x, other, places: [Spec(x.shape, x.dtype)],
    plan=_plan_boxes,
    nondifferentiable=True,
    oracle=_boxes_oracle,
    cases=[
        Case(((7, 3, 5, 6), (7, 3, 5, 6), (7, 4)), {}, {2: 7}),
        Case(((7, 3, 5, 6), (), (7, 4)), {}, {2: 3}, {2: (0, 3, 0, 3)}),
        Case(((2, 1, 40, 70), (2, 1, 40, 70), (2, 4)), {}, {2: 30}, {2: (0, 10, 0, 30)}),
        Case(((4, 1, 1, 1), (4, 1, 1, 1), (4, 4)), {}, {2: 2}),
        Case(((0, 3, 4, 4), (), (0, 4)), {}, {2: 4}),
        Case(((2, 3, 0, 4), (2, 3, 0, 4), (2, 4)), {}, {2: 4}),
    ],
    wrong=Case(((2, 3, 4, 4), (2, 3, 4, 5), (2, 4)), {}, {2: 4}),
    large=Case(((128, 3, 32, 32), (128, 3, 32, 32), (128, 4)), {}, {2: 16}, {2: (0, 16, 0, 16)}),
    dtypes=_ALL,
    ulp=0,
)
def image_boxes(x: TensorLike, other: TensorLike, places: TensorLike) -> BoundArguments:
    """Return x, and inside of a box of each image the elements of `other`, images as x or a number.

    places: (n, 4) int64, from 0: first row, the one after the last, first column, the one after the last.
    """
    t, o, at = as_tensor(x), as_tensor(other), as_tensor(places)
    _check("image_boxes", t, at)
    if o.shape not in (t.shape, ()) or o.dtype != t.dtype:
        raise ValueError(
            f"image_boxes: other is {o.dtype.name} of shape {o.shape}, expected {t.dtype.name} of shape "
            f"{t.shape} or ()"
        )
    return (t, o, at), {}


def _blended(x: Any, other: Any, weight: Any) -> Any:
    return weight * x + (1.0 - weight) * other


def _plan_blend(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
    return [plan_elementwise("blend_rows", _blended, inputs, outputs, 4)]


@op(
    signature="(n,m),(n,m),(n,1)->(n,m)",
    infer=lambda x, other, weight: [Spec(x.shape, x.dtype)],
    plan=_plan_blend,
    nondifferentiable=True,
    oracle=_blended,
    cases=[Case((s, s, (s[0], 1))) for s in ((7, 5), (3, 100), (1, 1), (0, 4), (4, 0))],
    wrong=Case(((3, 5), (3, 5), (3, 5))),
    large=Case(((128, 3072), (128, 3072), (128, 1))),
    domain={2: (0.0, 1.0)},
    magnitude=lambda x, other, weight: np.abs(x) + np.abs(other),
)
def blend_rows(x: TensorLike, other: TensorLike, weight: TensorLike) -> BoundArguments:
    """Return weight * x + (1 - weight) * other, with a weight for each row, in [0, 1]."""
    a, b, w = as_tensor(x), as_tensor(other), as_tensor(weight)
    same_float_dtype("blend_rows", x=a, other=b, weight=w)
    if a.ndim != 2 or b.shape != a.shape or w.shape != (len(a), 1):
        raise ValueError(
            f"blend_rows: x has shape {a.shape}, other {b.shape} and weight {w.shape}, expected (n, m) twice "
            "and (n, 1)"
        )
    return (a, b, w), {}
