"""The oracles of convolution in NumPy: one tap of the window at a time, over all images and channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..precision import FLOAT32
from ..table import Shape

#: A number of rows and one of columns.
Pair = Shape
#: Zeros above, below, left and right of an image; negative where rows or columns are left out.
Margins = tuple[int, int, int, int]


def counts(size: Shape, kernel: Shape, stride: Pair, dilation: Pair, padding: Margins) -> Pair:
    """Return how many windows fit, each way; 0 or less where none does."""
    padded = (size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3])
    a, b = ((padded[k] - (kernel[k] - 1) * dilation[k] - 1) // stride[k] + 1 for k in (0, 1))
    return a, b


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


def convolution(x: Any, w: Any, *bias: Any, groups: int, precision: str = FLOAT32, **geometry: Any) -> Any:
    """Return the sums of products, plus a bias unless there is none."""
    m, channels, kh, kw = w.shape
    out = counts(x.shape[2:], (kh, kw), **geometry)
    y = np.zeros((x.shape[0], groups, m // groups, *out), x.dtype)
    grouped_w = w.reshape(groups, m // groups, channels, kh, kw)
    for a, b, (elements, *_) in _taps(x, (kh, kw), out, **geometry):
        y += np.einsum("ngchw,gmc->ngmhw", _grouped(elements, groups), grouped_w[..., a, b])
    y = y.reshape(x.shape[0], m, *out)
    return y + bias[0][:, None, None] if bias else y


def input_gradient(g: Any, w: Any, size: Pair, groups: int, precision: str = FLOAT32, **geometry: Any) -> Any:
    """Return the gradient of an input of spatial size `size`."""
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


def weight_gradient(
    x: Any, g: Any, kernel: Pair, groups: int, precision: str = FLOAT32, **geometry: Any
) -> Any:
    """Return the gradient of weights whose window has the size `kernel`."""
    m, channels = g.shape[1], x.shape[1] // groups
    w = np.zeros((groups, m // groups, channels, *kernel), x.dtype)
    for a, b, (elements, *_) in _taps(x, kernel, g.shape[2:], **geometry):
        w[..., a, b] = np.einsum("ngmhw,ngchw->gmc", _grouped(g, groups), _grouped(elements, groups))
    return w.reshape(m, channels, *kernel)
