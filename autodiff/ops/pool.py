"""Max-pooling of images: the largest element of each window, and the gradient of choosing it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from treepie.kernels import pool as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor, same_float_dtype
from ..table import Attributes, BoundArguments, Case, Shape, op
from ..tensor import Tensor, TensorLike, int32
from .conv import Margins, Pair, counts
from .gather import take_along_axis
from .shape import reshape


def _as_planes(x: Tensor) -> Tensor:
    return reshape(x, (x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]))


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, **geometry: Any) -> list[Launch]:
    return [kernels.max_pool(inputs[0], outputs[0], outputs[1], **geometry)]


def _infer(x: Spec, **geometry: Any) -> list[Spec]:
    shape = (*x.shape[:2], *counts(x.shape[2:], **geometry))
    return [Spec(shape, x.dtype), Spec(shape, int32)]


def _oracle(x: Any, kernel: Pair, stride: Pair, dilation: Pair, padding: Margins) -> Any:
    n, c, h, w = x.shape
    out = counts((h, w), kernel, stride, dilation, padding)
    largest, positions = np.zeros((n, c, *out), x.dtype), np.zeros((n, c, *out), np.int32)
    for y in range(out[0]):
        for z in range(out[1]):
            rows = [
                a for k in range(kernel[0]) if 0 <= (a := y * stride[0] - padding[0] + k * dilation[0]) < h
            ]
            cols = [
                b for k in range(kernel[1]) if 0 <= (b := z * stride[1] - padding[2] + k * dilation[1]) < w
            ]
            window = x[:, :, rows][:, :, :, cols].reshape(n, c, len(rows) * len(cols))
            which = window.argmax(-1)  # the first NaN, else the first of the largest
            largest[:, :, y, z] = np.take_along_axis(window, which[..., None], -1)[..., 0]
            positions[:, :, y, z] = np.array([a * w + b for a in rows for b in cols])[which]
    return largest, positions


def _attributes(
    kernel: Pair, stride: Pair, dilation: Pair = (1, 1), padding: Margins = (0, 0, 0, 0)
) -> Attributes:
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}


@functools.lru_cache(maxsize=1000)
def _fits(size: Shape, kernel: Pair, stride: Pair, dilation: Pair, padding: Margins) -> bool:
    """Whether there are windows, each with an element of the image."""
    results = counts(size, kernel, stride, dilation, padding)
    for n, count, k, s, d, before in zip(size, results, kernel, stride, dilation, padding[::2], strict=True):
        starts = [i * s - before for i in range(count)]
        if not starts or not all(any(0 <= start + t * d < n for t in range(k)) for start in starts):
            return False
    return True


@op(
    signature="(n,c,h,w)->(n,c,y,z),(n,c,y,z)",
    infer=_infer,
    plan=_plan,
    vjp=lambda g, y, x, **attributes: max_pool_backward(g[0], y[1], size=x.shape[2:]),
    oracle=_oracle,
    cases=[
        Case(((2, 3, 5, 6),), _attributes((2, 2), (2, 2))),
        Case(((2, 1, 7, 40),), _attributes((3, 3), (2, 2), padding=(1, 1, 1, 1))),
        Case(((1, 2, 9, 35),), _attributes((2, 3), (1, 1), (2, 1), (1, 0, 2, 1))),
        Case(((1, 2, 11, 70),), _attributes((3, 2), (3, 3), (1, 2), (0, 2, 0, 2))),
        Case(((1, 1, 1, 1),), _attributes((1, 1), (1, 1))),
        Case(((0, 1, 4, 4),), _attributes((2, 2), (2, 2))),
    ],
    wrong=Case(((2, 3, 1, 6),), _attributes((2, 2), (2, 2))),
    large=Case(((64, 16, 28, 28),), _attributes((2, 2), (2, 2))),
    distinct=True,
    ulp=0,
    recycled=True,
)
def max_pool(x: TensorLike, kernel: Pair, stride: Pair, dilation: Pair, padding: Margins) -> BoundArguments:
    """Largest element (or NaN) of each window of images, and the position of the first such in its plane."""
    t = as_tensor(x)
    same_float_dtype("max_pool", x=t)
    if (
        t.ndim != 4
        or t.shape[2] * t.shape[3] >= 2**31
        or not _fits(t.shape[2:], kernel, stride, dilation, padding)
    ):
        raise ValueError(
            f"max_pool: x has shape {t.shape}, expected (n, c, h, w), and an element in each window of size "
            f"{kernel} with stride {stride} and dilation {dilation} after padding {padding}"
        )
    return (t,), _attributes(kernel, stride, dilation, padding)


def _plan_backward(inputs: list[Operand], outputs: list[Operand], scratch: Any, size: Pair) -> list[Launch]:
    planes = outputs[0].shape[0] * outputs[0].shape[1]
    return [
        kernels.add_at_maxima(*(t.reshaped(planes, t.shape[2] * t.shape[3]) for t in (*inputs, *outputs)))
    ]


def _oracle_backward(g: Any, positions: Any, size: Shape) -> Any:
    n, c = g.shape[:2]
    out = np.zeros((n * c, size[0] * size[1]), g.dtype)
    flat = positions.reshape(n * c, positions.shape[2] * positions.shape[3])
    np.add.at(out, (np.arange(n * c)[:, None], flat), g.reshape(flat.shape))
    return out.reshape(n, c, *size)


@op(
    signature="(n,c,y,z),(n,c,y,z)->(n,c,h,w)",
    infer=lambda g, positions, size: [Spec((*g.shape[:2], *size), g.dtype)],
    plan=_plan_backward,
    vjp=(
        lambda h, x, g, positions, size: reshape(
            take_along_axis(_as_planes(h), _as_planes(positions), 1), g.shape
        ),
        None,
    ),
    oracle=_oracle_backward,
    cases=[
        Case(((2, 3, 2, 3), (2, 3, 2, 3)), {"size": (4, 6)}, {1: 24}),
        Case(((2, 3, 7, 9), (2, 3, 7, 9)), {"size": (1, 2)}, {1: 2}),
        Case(((0, 3, 2, 3), (0, 3, 2, 3)), {"size": (4, 6)}, {1: 24}),
    ],
    magnitude=lambda g, positions, size: _oracle_backward(np.abs(g), positions, size),
    failure=lambda g, positions, size: IndexError(
        f"max_pool_backward: a position is outside, expected 0 to {size[0] * size[1] - 1} for {size}"
    ),
    wrong=Case(((2, 3, 2, 3), (2, 3, 2, 4)), {"size": (4, 6)}, {1: 24}),
    large=Case(((64, 16, 14, 14), (64, 16, 14, 14)), {"size": (28, 28)}, {1: 784}),
    ulp=8,
    recycled=True,
)
def max_pool_backward(g: TensorLike, positions: TensorLike, size: Pair) -> BoundArguments:
    """Zeros of spatial size `size`, plus g at positions of each plane: the gradient of max_pool."""
    t, i = as_tensor(g), as_tensor(positions)
    same_float_dtype("max_pool_backward", g=t)
    if t.ndim != 4 or i.shape != t.shape or i.dtype.kind != "i":
        raise ValueError(
            f"max_pool_backward: positions have shape {i.shape} and dtype {i.dtype.name}, expected integers, "
            f"and the four axes of g, {t.shape}"
        )
    return (t, i), {"size": size}
