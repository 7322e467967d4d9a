"""Max- and average-pooling, as functions of tensors: 1-D ones are 2-D ones of height 1."""

from __future__ import annotations

import functools

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float
from treepie.autodiff.tensor import TensorLike

from .conv import Padding, Pairs, Sizes, flat, margins, sizes

Shape = tuple[int, ...]


def _geometry(
    name: str,
    axes: int,
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
) -> tuple[Tensor, Shape, Shape, Shape, Pairs, Pairs]:
    """Return x with four axes, the window's size, stride, dilation, the padding, and it with ceil_mode's."""
    t = as_float(name, x)
    if t.ndim != axes + 2:
        expected = "(n, channels, length)" if axes == 1 else "(n, channels, h, w)"
        raise ValueError(f"{name}: x has shape {t.shape}, expected {expected}")
    kernel = sizes(name, "kernel_size", kernel_size, axes)
    step = kernel if stride is None else sizes(name, "stride", stride, axes)
    spread = sizes(name, "dilation", dilation, axes)
    pairs = margins(name, padding, t.shape[2:], kernel, step, spread)
    extra: list[int] = []
    for n, (before, after), k, s, d in zip(t.shape[2:], pairs, kernel, step, spread, strict=True):
        reach, whole = (k - 1) * d, n + before + after
        if n == 0 or whole <= reach or max(before, after) > reach:
            raise ValueError(
                f"{name}: x has shape {t.shape} and padding is {pairs}, expected at least the window's size, "
                f"{kernel} with dilation {spread}, after padding, and padding less than that size"
            )
        more = -(whole - reach - 1) % s if ceil_mode else 0
        # As in PyTorch, a last window that would begin in the padding behind is left out.
        extra.append(more if (whole - reach - 1 + more) < n + before else 0)
    if axes == 1:
        t = ops.expand_dims(t, 2)
        kernel, step, spread, pairs, extra = (
            (1, *kernel),
            (1, *step),
            (1, *spread),
            ((0, 0), *pairs),
            [0, *extra],
        )
    ends = tuple((b, a + e) for (b, a), e in zip(pairs, extra, strict=True))
    return t, kernel, step, spread, pairs, ends


def _max(name: str, axes: int, x: TensorLike, *geometry: object) -> Tensor:
    t, kernel, step, spread, _, ends = _geometry(name, axes, x, *geometry)  # type: ignore[arg-type]
    out, _ = ops.max_pool(t, kernel, step, spread, flat(ends))
    return ops.squeeze(out, 2) if axes == 1 else out


@functools.lru_cache(maxsize=1000)
def _counts(
    size: Shape,
    kernel: Shape,
    step: Shape,
    spread: Shape,
    pairs: Pairs,
    ends: Pairs,
    include: bool,
    dtype: str,
) -> Tensor:
    """Return how many elements each window has: of the image, or of its padding too."""
    ways = []
    for n, k, s, d, (before, after), (_, end) in zip(size, kernel, step, spread, pairs, ends, strict=True):
        count = (n + before + end - (k - 1) * d - 1) // s + 1
        places = np.arange(count)[:, None] * s - before + np.arange(k) * d
        low, high = (-before, n + after) if include else (0, n)
        ways.append(((places >= low) & (places < high)).sum(1))
    return Tensor(np.multiply.outer(ways[0], ways[1]).astype(dtype))


def _average(name: str, axes: int, x: TensorLike, include: bool, *geometry: object) -> Tensor:
    t, kernel, step, spread, pairs, ends = _geometry(name, axes, x, *geometry)  # type: ignore[arg-type]
    # Ones, so that what a window sums is exact where the sum is, and the division rounds once.
    ones = Tensor(np.ones((t.shape[1], 1, *kernel), t.dtype))
    total = ops.convolution(t, ones, step, spread, flat(ends), t.shape[1])
    counts = _counts(t.shape[2:], kernel, step, spread, pairs, ends, bool(include), t.dtype.name)
    out = ops.div(total, counts)
    return ops.squeeze(out, 2) if axes == 1 else out


def max_pool1d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the largest element of each window of x (n, channels, length); see `max_pool2d`."""
    return _max("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the largest element of each window of images; NaN if any is. Of equals the first counts.

    x: (n, channels, h, w).  stride: the window's size by default.
    padding: "valid", "same", an int, or for each axis an int or a pair (before, after); never the largest.
    ceil_mode: whether a last window may reach beyond the end.
    """
    return _max("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of x (n, channels, length); see `avg_pool2d`."""
    return _average("avg_pool1d", 1, x, count_include_pad, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of images.

    x: (n, channels, h, w).  stride: the window's size by default.
    padding: as for `max_pool2d`.  ceil_mode: whether a last window may reach beyond the end.
    count_include_pad: whether padding counts as zeros in the mean, as in PyTorch and Flax; what `ceil_mode`
        adds never counts.
    """
    return _average("avg_pool2d", 2, x, count_include_pad, kernel_size, stride, padding, dilation, ceil_mode)
