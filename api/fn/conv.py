"""Convolutions, as functions of tensors: 1-D ones are 2-D ones of height 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_tensor, integer, same_float_dtype
from treepie.autodiff.tensor import TensorLike

#: A size for each axis of a window, or one for all.
Sizes = int | Sequence[int]
#: "same", "valid", "causal" (1-D), zeros on both sides of each axis, or pairs (before, after).
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]


def sizes(name: str, argument: str, value: Sizes, axes: int, least: int = 1) -> tuple[int, ...]:
    """Return a size for each axis, each at least `least`."""
    given = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(given) != axes:
        raise ValueError(f"{name}: {argument} is {value!r}, expected an int or {axes} of them")
    found = tuple(integer(name, argument, v) for v in given)
    if min(found) < least:
        raise ValueError(f"{name}: {argument} is {value!r}, expected at least {least}")
    return found


def margins(
    name: str,
    padding: Padding,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """Return how many zeros stand before and after each axis.

    "same" makes ceil(size / stride) results, with the odd zero at the end, as JAX and TensorFlow do;
    "causal" puts all zeros before, so that a result depends on no later element.
    """
    axes = len(size)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * axes
        if padding == "causal" and axes == 1:
            return tuple((r, 0) for r in reach)
        if padding == "same":
            totals = [
                max((-(-n // s) - 1) * s + r + 1 - n, 0) for n, s, r in zip(size, stride, reach, strict=True)
            ]
            return tuple((t // 2, t - t // 2) for t in totals)
        names = "'same', 'valid', 'causal'" if axes == 1 else "'same', 'valid'"
        raise ValueError(f"{name}: padding is {padding!r}, expected {names}, ints or pairs of ints")
    given: list[Any] = list(padding) if isinstance(padding, tuple | list) else [padding] * axes
    if axes == 1 and len(given) == 2 and not isinstance(given[0], tuple | list):
        given = [tuple(given)]
    if len(given) != axes:
        raise ValueError(f"{name}: padding is {padding!r}, expected an entry for each of {axes} axes")
    return tuple(_pair(name, padding, p) for p in given)


def _pair(name: str, padding: Padding, given: Any) -> tuple[int, int]:
    pair = sizes(name, "padding", given, 2, 0)
    return pair[0], pair[1]


def flat(pairs: Pairs) -> tuple[int, int, int, int]:
    """Return the margins above, below, left and right."""
    (top, bottom), (left, right) = pairs if len(pairs) == 2 else ((0, 0), pairs[0])
    return top, bottom, left, right


def _conv(
    name: str,
    axes: int,
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None,
    stride: Sizes,
    dilation: Sizes,
    padding: Padding,
    groups: int,
) -> Tensor:
    t, w = as_tensor(x), as_tensor(weight)
    step, spread = sizes(name, "stride", stride, axes), sizes(name, "dilation", dilation, axes)
    count = sizes(name, "groups", groups, 1)[0]
    shape = "length" if axes == 1 else "h, w"
    window = "k" if axes == 1 else "kh, kw"
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
    pairs = margins(name, padding, t.shape[2:], w.shape[2:], step, spread)
    for n, p, k, d in zip(t.shape[2:], pairs, w.shape[2:], spread, strict=True):
        if n == 0 or n + p[0] + p[1] < (k - 1) * d + 1:
            raise ValueError(
                f"{name}: x has shape {t.shape}, expected at least the window's size, {w.shape[2:]} with "
                f"dilation {spread}, after padding {pairs}"
            )
    if axes == 1:
        t, w = ops.expand_dims(t, 2), ops.expand_dims(w, 2)
        step, spread = (1, *step), (1, *spread)
    args = (step, spread, flat(pairs), count)
    if bias is None:
        out = ops.convolution(t, w, *args)
    else:
        b = as_tensor(bias)
        same_float_dtype(name, weight=w, bias=b)
        if b.shape != w.shape[:1]:
            raise ValueError(f"{name}: bias has shape {b.shape}, expected {w.shape[:1]}")
        out = ops.convolution_bias(t, w, b, *args)
    return ops.squeeze(out, 2) if axes == 1 else out


def conv1d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding = "same",
    groups: int = 1,
) -> Tensor:
    """Return the sums over windows of x, by weights (a cross-correlation, as in PyTorch), plus bias.

    x: (n, in, length).  weight: (out, in / groups, k).  bias: (out,).  All of one float dtype.
    padding: "same" (ceil(length / stride) results), "valid", "causal", an int, or a pair (before, after).
    groups: channels of x and of the result are cut into so many, and only those of a group meet.
    """
    return _conv("conv1d", 1, x, weight, bias, stride, dilation, padding, groups)


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding = "same",
    groups: int = 1,
) -> Tensor:
    """Return the sums over windows of images, by weights (a cross-correlation, as in PyTorch), plus bias.

    x: (n, in, h, w).  weight: (out, in / groups, kh, kw).  bias: (out,).  All of one float dtype.
    padding: "same" (ceil(h / stride) rows, the odd zero at the end), "valid", an int, or for each axis an
        int or a pair (before, after).
    groups: channels of x and of the result are cut into so many, and only those of a group meet.
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
    """Return the gradient of the input of a `conv2d` whose result's gradient is x, plus bias; as PyTorch's.

    x: (n, in, h, w).  weight: (in, out / groups, kh, kw).  bias: (out,).  All of one float dtype. The result
    has (h - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1 rows, and columns likewise.
    """
    name = "conv_transpose2d"
    t, w = as_tensor(x), as_tensor(weight)
    step, spread = sizes(name, "stride", stride, 2), sizes(name, "dilation", dilation, 2)
    pad, extra = sizes(name, "padding", padding, 2, 0), sizes(name, "output_padding", output_padding, 2, 0)
    count = sizes(name, "groups", groups, 1)[0]
    if t.ndim != 4 or w.ndim != 4 or w.size == 0 or t.shape[1] != w.shape[0] or w.shape[0] % count:
        raise ValueError(
            f"{name}: x has shape {t.shape} and weight {w.shape} with groups {count}, expected x "
            "(n, in, h, w) and weight (in, out / groups, kh, kw), groups dividing in"
        )
    same_float_dtype(name, x=t, weight=w)
    for k in (0, 1):
        if extra[k] >= max(step[k], spread[k]):
            raise ValueError(
                f"{name}: output_padding is {output_padding!r}, expected less than the stride or the dilation"
            )
    size = tuple(
        (t.shape[2 + k] - 1) * step[k] - 2 * pad[k] + spread[k] * (w.shape[2 + k] - 1) + extra[k] + 1
        for k in (0, 1)
    )
    if min(size) < 1:
        raise ValueError(
            f"{name}: x has shape {t.shape}, which gives a result of {size}, expected at least 1"
        )
    # As many windows as x has elements: what output_padding adds lies beyond the last one.
    around = tuple((pad[k], pad[k] - extra[k]) for k in (0, 1))
    out = ops.convolution_input(t, w, (size[0], size[1]), step, spread, flat(around), count)
    if bias is None:
        return out
    b = as_tensor(bias)
    same_float_dtype(name, weight=w, bias=b)
    if b.shape != (w.shape[1] * count,):
        raise ValueError(f"{name}: bias has shape {b.shape}, expected {(w.shape[1] * count,)}")
    return out + ops.reshape(b, (-1, 1, 1))
