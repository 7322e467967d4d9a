"""Convolutions, as functions of tensors: a 1-D one is a 2-D one of height 1."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor, same_float_dtype
from treepie.autodiff.tensor import TensorLike

from .geometry import (
    Padding1d,
    Padding2d,
    Sizes,
    pad_pairs,
    sizes,
    window_geometry,
    with_height,
    without_height,
)


def _bias(name: str, bias: TensorLike, weight: Tensor, channels: int) -> Tensor:
    """Return the bias of `channels` channels, or raise ValueError."""
    b = as_tensor(bias)
    same_float_dtype(name, weight=weight, bias=b)
    if b.shape != (channels,):
        raise ValueError(f"{name}: bias has shape {b.shape}, expected {(channels,)}")
    return b


def _conv(
    name: str,
    axes: int,
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None,
    stride: Sizes,
    dilation: Sizes,
    padding: Padding1d,
    groups: int,
) -> Tensor:
    """Return the convolution of x (n, in, *size) over `axes` spatial axes."""
    w = as_tensor(weight)
    t = as_float(name, x, like=w)
    steps, dilations = sizes(name, "stride", stride, axes), sizes(name, "dilation", dilation, axes)
    count = sizes(name, "groups", groups, 1)[0]
    shape, window = ("length", "k") if axes == 1 else ("h, w", "kh, kw")
    if (
        t.ndim != axes + 2
        or w.ndim != axes + 2
        or w.size == 0
        or w.shape[0] % count
        or t.shape[1] != w.shape[1] * count
    ):
        shapes = f"{name}: x has shape {t.shape} and weight {w.shape} with groups {count}"
        if w.ndim == axes + 2 and w.size and not w.shape[0] % count:
            channels = w.shape[1] * count
            raise ValueError(f"{shapes}, expected x (n, {channels}, {shape}){_axes_hint(t, axes, channels)}")
        raise ValueError(
            f"{shapes}, expected x (n, in, {shape}) and weight (out, in / groups, {window}), groups dividing "
            "out"
        )
    same_float_dtype(name, x=t, weight=w)
    size, kernel = t.shape[2:], w.shape[2:]
    pairs = pad_pairs(name, padding, size, kernel, steps, dilations)
    geometry = window_geometry(name, size, kernel, steps, dilations, pairs)
    for n, (before, after), reach in zip(size, geometry.padding, geometry.reach, strict=True):
        if n == 0 or n + before + after < reach + 1:
            raise ValueError(
                f"{name}: x has shape {t.shape}, expected at least the window's size, {kernel} with "
                f"dilation {dilations}, after padding {geometry.padding}"
            )
    images = geometry.as_2d()
    attributes = (images.stride, images.dilation, images.margins, count)
    if bias is None:
        out = ops.convolution(with_height(t), with_height(w), *attributes)
    else:
        b = _bias(name, bias, w, w.shape[0])
        out = ops.convolution_bias(with_height(t), with_height(w), b, *attributes)
    return without_height(out, t.ndim)


def _axes_hint(x: Tensor, axes: int, channels: int) -> str:
    """Return what to do about an input whose channels are its last axis, or that has no batch axis."""
    if x.ndim == axes + 2 and x.shape[-1] == channels:
        return "; channels come before the spatial axes: tp.moveaxis(x, -1, 1)"
    if x.ndim == axes + 1 and x.shape[0] == channels:
        return "; for a single example, add the batch axis: x[None]"
    if x.ndim == axes + 1 and channels == 1:
        return "; add the axis of channels: x[:, None]"
    return ""


def conv1d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding1d = "same",
    groups: int = 1,
) -> Tensor:
    """Return the 1-D convolution of x with weight (a cross-correlation, as in PyTorch), plus bias.

    x: (n, in, length).  weight: (out, in / groups, k).  bias: (out,).  All of one float dtype.
    stride, dilation: elements from one window to the next, and between the elements of a window.
    padding: "same" (ceil(length / stride) results, the odd zero at the end), "valid" (none), "causal" (all
        zeros before, so that a result depends on no later element), an int for both ends, or a pair
        (before, after).
    groups: the channels of x and of the result are divided into `groups` groups; a result depends on the
        channels of its own group.

    Returns (n, out, results).

    Raises ValueError where shapes, groups or padding do not fit together, TypeError for other dtypes.

    >>> import treepie as tp
    >>> x = tp.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    >>> tp.fn.conv1d(x, tp.ones((1, 1, 2)), padding="causal").tolist()
    [[[1.0, 3.0, 5.0, 7.0]]]
    """
    return _conv("conv1d", 1, x, weight, bias, stride, dilation, padding, groups)


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding2d = "same",
    groups: int = 1,
) -> Tensor:
    """Return the 2-D convolution of images with weight (a cross-correlation, as in PyTorch), plus bias.

    x: (n, in, h, w).  weight: (out, in / groups, kh, kw).  bias: (out,).  All of one float dtype.
    stride, dilation: an int, or a pair (rows, columns).
    padding: "same" (ceil(h / stride) rows, the odd zero at the end), "valid" (none), an int, or for each axis
        an int or a pair (before, after).
    groups: the channels of x and of the result are divided into `groups` groups; a result depends on the
        channels of its own group.

    Returns (n, out, rows, columns).

    Raises ValueError where shapes, groups or padding do not fit together, TypeError for other dtypes.

    >>> import treepie as tp
    >>> tp.fn.conv2d(tp.ones((1, 3, 8, 8)), tp.ones((16, 3, 3, 3)), stride=2).shape
    (1, 16, 4, 4)
    """
    return _conv("conv2d", 2, x, weight, bias, stride, dilation, padding, groups)


def conv_transpose2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Return the transposed convolution of images, plus bias, with PyTorch's arguments.

    It is the gradient of `conv2d` with respect to its input, for a result's gradient x.

    x: (n, in, h, w).  weight: (in, out / groups, kh, kw).  bias: (out,).  All of one float dtype.
    stride, padding, output_padding, dilation: an int, or a pair (rows, columns).
    output_padding: rows and columns added at the bottom and right; less than the stride or the dilation.
    groups: as for `conv2d`.

    Returns (n, out, rows, columns), where rows = (h - 1) * stride - 2 * padding + dilation * (kh - 1)
    + output_padding + 1, and columns likewise.

    Raises ValueError where shapes, groups or padding do not fit together, TypeError for other dtypes.

    >>> import treepie as tp
    >>> tp.fn.conv_transpose2d(tp.ones((1, 8, 4, 4)), tp.ones((8, 3, 2, 2)), stride=2).shape
    (1, 3, 8, 8)
    """
    name = "conv_transpose2d"
    w = as_tensor(weight)
    t = as_float(name, x, like=w)
    steps, dilations = sizes(name, "stride", stride, 2), sizes(name, "dilation", dilation, 2)
    pad, extra = sizes(name, "padding", padding, 2, 0), sizes(name, "output_padding", output_padding, 2, 0)
    count = sizes(name, "groups", groups, 1)[0]
    if t.ndim != 4 or w.ndim != 4 or w.size == 0 or t.shape[1] != w.shape[0] or w.shape[0] % count:
        raise ValueError(
            f"{name}: x has shape {t.shape} and weight {w.shape} with groups {count}, expected x "
            "(n, in, h, w) and weight (in, out / groups, kh, kw), groups dividing in"
        )
    same_float_dtype(name, x=t, weight=w)
    for k in (0, 1):
        if extra[k] >= max(steps[k], dilations[k]):
            raise ValueError(
                f"{name}: output_padding is {output_padding!r}, expected less than the stride or the dilation"
            )
    size = tuple(
        (t.shape[2 + k] - 1) * steps[k] - 2 * pad[k] + dilations[k] * (w.shape[2 + k] - 1) + extra[k] + 1
        for k in (0, 1)
    )
    if min(size) < 1:
        raise ValueError(
            f"{name}: x has shape {t.shape}, which gives a result of {size}, expected at least 1"
        )
    # As many windows as x has elements: the rows and columns of output_padding are beyond the last one.
    pairs = tuple((p, p - e) for p, e in zip(pad, extra, strict=True))
    geometry = window_geometry(name, size, w.shape[2:], steps, dilations, pairs)
    out = ops.convolution_input(t, w, size, geometry.stride, geometry.dilation, geometry.margins, count)
    if bias is None:
        return out
    return out + ops.reshape(_bias(name, bias, w, w.shape[1] * count), (-1, 1, 1))
