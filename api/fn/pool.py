"""Max- and average-pooling, as functions of tensors: 1-D pooling is 2-D pooling of height 1."""

from __future__ import annotations

import functools
import math

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, filled
from treepie.autodiff.limits import check_total, out_of_memory
from treepie.autodiff.tensor import TensorLike

from .geometry import (
    MOST_PADDED,
    Geometry,
    Padding1d,
    Padding2d,
    Pairs,
    Shape,
    Sizes,
    pad_pairs,
    sizes,
    window_geometry,
    with_height,
    without_height,
)


def _prepare(
    name: str,
    axes: int,
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding1d,
    dilation: Sizes,
    ceil_mode: bool,
) -> tuple[Tensor, Geometry, Geometry]:
    """Return x, the geometry over images, and the geometry with the padding that `ceil_mode` adds."""
    t = as_float(name, x)
    if t.ndim != axes + 2:
        expected = "(n, channels, length)" if axes == 1 else "(n, channels, h, w)"
        raise ValueError(f"{name}: x has shape {t.shape}, expected {expected}")
    kernel = sizes(name, "kernel_size", kernel_size, axes)
    steps = kernel if stride is None else sizes(name, "stride", stride, axes)
    dilations = sizes(name, "dilation", dilation, axes)
    pairs = pad_pairs(name, padding, t.shape[2:], kernel, steps, dilations)
    geometry = window_geometry(name, t.shape[2:], kernel, steps, dilations, pairs)
    ends: list[tuple[int, int]] = []
    for n, (before, after), reach, s in zip(t.shape[2:], pairs, geometry.reach, geometry.stride, strict=True):
        whole = n + before + after
        extra = -(whole - reach - 1) % s if ceil_mode else 0
        if n == 0 or whole + extra <= reach or max(before, after) > reach:
            raise ValueError(
                f"{name}: x has shape {t.shape} and padding is {pairs}, expected at least the window's size, "
                f"{kernel} with dilation {dilations}, after padding, and padding less than that size"
            )
        # As in PyTorch, a last window that would begin in the padding behind is left out.
        ends.append((before, after + (extra if (whole - reach - 1 + extra) < n + before else 0)))
    return t, geometry.as_2d(), geometry._replace(padding=tuple(ends)).as_2d()


def _max(name: str, axes: int, x: TensorLike, *arguments: object) -> Tensor:
    t, _, padded = _prepare(name, axes, x, *arguments)  # type: ignore[arg-type]
    if math.prod(t.shape[2:]) > MOST_PADDED:
        raise ValueError(f"{name}: x has shape {t.shape}, expected at most 2**31 - 1 elements in a channel")
    out, _ = ops.max_pool(with_height(t), padded.kernel, padded.stride, padded.dilation, padded.margins)
    return without_height(out, t.ndim)


@functools.lru_cache(maxsize=1000)
def _counts(size: Shape, geometry: Geometry, ends: Pairs, include_pad: bool, dtype: str) -> Tensor:
    """Return the number of elements in each window: of the image, or of its padding too."""
    counts = []
    for n, k, s, d, (before, after), (_, end) in zip(size, *geometry, ends, strict=True):
        results = (n + before + end - (k - 1) * d - 1) // s + 1
        starts = np.arange(results) * s - before
        low, high = (-before, n + after) if include_pad else (0, n)
        # Of the elements start + t * d of a window, t < k, the first inside and the first beyond the end.
        first, end = (np.clip(-((starts - bound) // d), 0, k) for bound in (low, high))
        counts.append(end - first)
    return Tensor(np.multiply.outer(counts[0], counts[1]).astype(dtype), None)


def _average(name: str, axes: int, x: TensorLike, include_pad: bool, *arguments: object) -> Tensor:
    t, geometry, padded = _prepare(name, axes, x, *arguments)  # type: ignore[arg-type]
    images, channels = with_height(t), t.shape[1]
    # A convolution with ones: a window's sum is exact where its terms allow it, and the division rounds once.
    ones = Tensor(filled(name, (channels, 1, *geometry.kernel), t.dtype, 1), None)
    total = ops.convolution(images, ones, padded.stride, padded.dilation, padded.margins, channels, "float32")
    counts = _counts(images.shape[2:], geometry, padded.padding, bool(include_pad), t.dtype.name)
    return without_height(ops.div(total, counts), t.ndim)


def max_pool1d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding1d = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the largest element of each window of x (n, channels, length).

    padding: "valid", "same", "causal", an int or a pair (before, after).  The rest is as for `max_pool2d`.

    >>> import treepie as tp
    >>> tp.fn.max_pool1d(tp.tensor([[[1.0, 3.0, 2.0, 0.0]]]), 2).tolist()
    [[[3.0, 2.0]]]
    """
    return _max("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding2d = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the largest element of each window of images; NaN if the window has one.

    x: (n, channels, h, w), float.  kernel_size, dilation: an int, or a pair (rows, columns).
    stride: likewise; the window's size by default.
    padding: "valid", "same", an int, or for each axis an int or a pair (before, after), less than the
        window's size. Padding is never the largest element.
    ceil_mode: whether a last window may reach beyond the end.

    Returns (n, channels, rows, columns). Of equal elements, the first gets the gradient.

    Raises ValueError for an x that is smaller than the window, and for padding as large as it.

    >>> import treepie as tp
    >>> tp.fn.max_pool2d(tp.arange(16.0).reshape((1, 1, 4, 4)), 2).tolist()
    [[[[5.0, 7.0], [13.0, 15.0]]]]
    """
    return _max("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding1d = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of x (n, channels, length).

    padding: "valid", "same", "causal", an int or a pair (before, after).  The rest is as for `avg_pool2d`.

    >>> import treepie as tp
    >>> tp.fn.avg_pool1d(tp.tensor([[[1.0, 3.0, 2.0, 0.0]]]), 2).tolist()
    [[[2.0, 1.0]]]
    """
    return _average("avg_pool1d", 1, x, count_include_pad, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    x: TensorLike,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding2d = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window of images.

    x, kernel_size, stride, padding, dilation, ceil_mode: as for `max_pool2d`.
    count_include_pad: whether padding counts as zeros in the mean, as in PyTorch and Flax; the elements that
        `ceil_mode` adds never count.

    Returns (n, channels, rows, columns).

    Raises ValueError as `max_pool2d` does.

    >>> import treepie as tp
    >>> tp.fn.avg_pool2d(tp.arange(16.0).reshape((1, 1, 4, 4)), 2).tolist()
    [[[[2.5, 4.5], [10.5, 12.5]]]]
    """
    return _average("avg_pool2d", 2, x, count_include_pad, kernel_size, stride, padding, dilation, ceil_mode)


def _spatial(name: str, x: TensorLike) -> Tensor:
    """Return x (n, channels, ...), flattened to (n, channels, elements)."""
    t = as_float(name, x)
    if t.ndim < 3 or 0 in t.shape[2:]:
        raise ValueError(
            f"{name}: x has shape {t.shape}, expected (n, channels, ...) with spatial axes, not empty"
        )
    return t.reshape((*t.shape[:2], math.prod(t.shape[2:])))


def global_avg_pool(x: TensorLike) -> Tensor:
    """Return the mean of each channel over all spatial axes: (n, channels, ...) to (n, channels).

    Raises ValueError for an x without spatial axes, or with empty ones.

    >>> import treepie as tp
    >>> tp.fn.global_avg_pool([[[1.0, 2.0, 6.0]]]).tolist()
    [[3.0]]
    """
    return _spatial("global_avg_pool", x).mean(axis=2)


def global_max_pool(x: TensorLike) -> Tensor:
    """Return the largest element of each channel over all spatial axes: (n, channels, ...) to (n, channels).

    Raises ValueError for an x without spatial axes, or with empty ones.

    >>> import treepie as tp
    >>> tp.fn.global_max_pool([[[1.0, 2.0, 6.0]]]).tolist()
    [[6.0]]
    """
    return _spatial("global_max_pool", x).max(axis=2)


def adaptive_avg_pool2d(x: TensorLike, output_size: Sizes) -> Tensor:
    """Return the means of windows of images, of such sizes that the result has `output_size`.

    x: (n, channels, h, w), float.  output_size: an int, or a pair (rows, columns), of 1 or more.

    Window i of m along an axis of n elements is floor(i n / m) to ceil((i + 1) n / m) - 1, as in PyTorch.
    Raises ValueError for other shapes and sizes.

    >>> import treepie as tp
    >>> tp.fn.adaptive_avg_pool2d([[[[1.0, 2.0, 6.0]]]], (1, 2)).tolist()
    [[[[1.5, 4.0]]]]
    """
    name = "adaptive_avg_pool2d"
    t = as_float(name, x)
    if t.ndim != 4 or 0 in t.shape[2:]:
        raise ValueError(f"{name}: x has shape {t.shape}, expected (n, channels, h, w), not empty")
    size = sizes(name, "output_size", output_size, 2)
    check_total(name, (*t.shape[:2], *size))
    for axis, results in enumerate(size, 2):
        t = _means(t, axis, results)
    return t


def _means(t: Tensor, axis: int, results: int) -> Tensor:
    """Return the means of `results` windows along an axis."""
    n, before, after = t.shape[axis], t.shape[:axis], t.shape[axis + 1 :]
    if n % results == 0:
        return t.reshape((*before, results, n // results, *after)).mean(axis=axis + 1)
    try:
        elements, inside, counts = _windows(n, results, t.dtype.name)
    except MemoryError:
        raise out_of_memory("adaptive_avg_pool2d", (results,), t.dtype) from None
    ones = (1,) * len(after)
    windows = ops.take(t, elements, axis)
    # Windows have the size of the largest; what is beyond a window's end counts as 0.
    kept = ops.where(inside.reshape((*inside.shape, *ones)), windows, 0.0)
    return ops.div(kept.sum(axis=axis + 1), counts.reshape((results, *ones)))


@functools.lru_cache(maxsize=100)
def _windows(n: int, results: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices of each window's elements, whether they are inside, and their numbers."""
    window = np.arange(results)
    starts, ends = window * n // results, -(-(window + 1) * n // results)
    elements = starts[:, None] + np.arange((ends - starts).max())
    inside = elements < ends[:, None]
    parts = np.minimum(elements, n - 1), inside, (ends - starts).astype(dtype)
    return Tensor(parts[0], None), Tensor(parts[1], None), Tensor(parts[2], None)
