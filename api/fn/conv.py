"""Convolutions, as functions of tensors: a 1-D one is a 2-D one of height 1."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor, same_float_dtype
from treepie.autodiff.tensor import TensorLike

from .geometry import (
    Padding1d,
    Padding2d,
    Shape,
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
        raise ValueError(
            f"{name}: x has shape {t.shape} and weight {w.shape} with groups {count}, expected x "
            f"(n, in, {shape}) and weight (out, in / groups, {window}), groups dividing out"
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


def _conv_transpose(
    name: str,
    axes: int,
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Tensor:
    """Return the transposed convolution of x (n, in, *size) over `axes` spatial axes."""
    w = as_tensor(weight)
    t = as_float(name, x, like=w)
    steps, dilations = sizes(name, "stride", stride, axes), sizes(name, "dilation", dilation, axes)
    pad = sizes(name, "padding", padding, axes, 0)
    extra = sizes(name, "output_padding", output_padding, axes, 0)
    count = sizes(name, "groups", groups, 1)[0]
    shape, window = ("length", "k") if axes == 1 else ("h, w", "kh, kw")
    if (
        t.ndim != axes + 2
        or w.ndim != axes + 2
        or w.size == 0
        or t.shape[1] != w.shape[0]
        or w.shape[0] % count
    ):
        raise ValueError(
            f"{name}: x has shape {t.shape} and weight {w.shape} with groups {count}, expected x "
            f"(n, in, {shape}) and weight (in, out / groups, {window}), groups dividing in"
        )
    same_float_dtype(name, x=t, weight=w)
    check_output_padding(name, output_padding, extra, steps, dilations)
    kernel = w.shape[2:]
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, k, s, p, d, e in zip(t.shape[2:], kernel, steps, pad, dilations, extra, strict=True)
    )
    if min(size) < 1:
        raise ValueError(
            f"{name}: x has shape {t.shape}, which gives a result of {size}, expected at least 1"
        )
    # As many windows as x has elements: the elements of output_padding are beyond the last one.
    pairs = tuple((p, p - e) for p, e in zip(pad, extra, strict=True))
    images = window_geometry(name, size, kernel, steps, dilations, pairs).as_2d()
    out = ops.convolution_input(
        with_height(t),
        with_height(w),
        (1, *size)[-2:],
        images.stride,
        images.dilation,
        images.margins,
        count,
    )
    if bias is not None:
        out = out + ops.reshape(_bias(name, bias, w, w.shape[1] * count), (-1, 1, 1))
    return without_height(out, t.ndim)


def check_output_padding(name: str, argument: Sizes, extra: Shape, stride: Shape, dilation: Shape) -> None:
    """Raise ValueError unless the output's padding is less than the stride or the dilation."""
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(
            f"{name}: output_padding is {argument!r}, expected less than the stride or the dilation"
        )


def conv_transpose1d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Return the transposed convolution of sequences, plus bias, with PyTorch's arguments.

    x: (n, in, length).  weight: (in, out / groups, k).  bias: (out,).  The rest is as for `conv_transpose2d`.

    Returns (n, out, results), where results = (length - 1) * stride - 2 * padding + dilation * (k - 1)
    + output_padding + 1.

    >>> import treepie as tp
    >>> tp.fn.conv_transpose1d([[[1.0, 2.0]]], [[[1.0, 10.0]]], stride=2).tolist()
    [[[1.0, 10.0, 2.0, 20.0]]]
    """
    return _conv_transpose(
        "conv_transpose1d", 1, x, weight, bias, stride, padding, output_padding, groups, dilation
    )


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
    return _conv_transpose(
        "conv_transpose2d", 2, x, weight, bias, stride, padding, output_padding, groups, dilation
    )
