"""Windows of convolution and pooling in one dimension or two: sizes, strides, dilations, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import integer, shown

Shape = tuple[int, ...]
#: (before, after) for each axis.
Pairs = tuple[tuple[int, int], ...]
#: An int for each axis of a window, or one for all.
Sizes = int | Sequence[int]
#: A name, zeros on both sides of each axis, or pairs (before, after).
Padding2d = Literal["same", "valid"] | int | Sequence[int] | Sequence[tuple[int, int]]
Padding1d = Literal["causal"] | Padding2d


class Geometry(NamedTuple):
    """A window and how it moves; an entry for each spatial axis."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    padding: Pairs

    @property
    def reach(self) -> Shape:
        """Distances from the window's first element to its last."""
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))

    def as_2d(self) -> Geometry:
        """Return the geometry over images; in one dimension, of height 1."""
        if len(self.kernel) == 2:
            return self
        return Geometry((1, *self.kernel), (1, *self.stride), (1, *self.dilation), ((0, 0), *self.padding))

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Padding above, below, left and right, in two dimensions."""
        (top, bottom), (left, right) = self.padding
        return top, bottom, left, right


def with_height(x: Tensor) -> Tensor:
    """Return (n, channels, length) as images of height 1; images as they are."""
    return ops.expand_dims(x, 2) if x.ndim == 3 else x


def without_height(x: Tensor, ndim: int) -> Tensor:
    """Undo `with_height` for a result whose input had `ndim` axes."""
    return ops.squeeze(x, 2) if ndim == 3 else x


#: The most elements of an axis of an image with its padding: kernels count columns in int32.
MOST_PADDED = 2**31 - 1


def window_geometry(
    name: str, size: Shape, kernel: Shape, stride: Shape, dilation: Shape, padding: Pairs
) -> Geometry:
    """Return the geometry of windows over axes of `size`; ValueError for padded axes that are too long.

    A stride beyond the padded axis is cut to it, which leaves one window either way: scratch memory grows
    with the stride. So is the dilation of a window of one element.
    """
    strides, dilations = [], []
    for n, k, s, d, (before, after) in zip(size, kernel, stride, dilation, padding, strict=True):
        padded = n + before + after
        if padded > MOST_PADDED:
            raise ValueError(
                f"{name}: an axis of {n} has {shown(before)} and {shown(after)} elements of padding, with "
                f"kernel size {shown(k)} and dilation {shown(d)}; expected at most 2**31 - 1 in all"
            )
        # With `ceil_mode` a window may be longer than the padded axis.
        longest = max(padded, (k - 1) * d + 1)
        strides.append(min(s, longest))
        dilations.append(d if k > 1 else min(d, longest))
    return Geometry(kernel, tuple(strides), tuple(dilations), padding)


def sizes(name: str, argument: str, value: Sizes, axes: int, least: int = 1) -> Shape:
    """Return a size for each axis, each at least `least`."""
    entries = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(entries) != axes:
        raise ValueError(f"{name}: {argument} is {value!r}, expected an int or {axes} of them")
    checked = tuple([integer(name, argument, v) for v in entries])
    if min(checked) < least:
        raise ValueError(f"{name}: {argument} is {value!r}, expected at least {least}")
    return checked


def pad_pairs(
    name: str, padding: Padding1d, size: Shape, kernel: Shape, stride: Shape, dilation: Shape
) -> Pairs:
    """Return the number of zeros before and after each axis.

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
    entries: list[Any] = list(padding) if isinstance(padding, tuple | list) else [padding] * axes
    if axes == 1 and len(entries) == 2 and not isinstance(entries[0], tuple | list):
        entries = [tuple(entries)]
    if len(entries) != axes:
        raise ValueError(f"{name}: padding is {padding!r}, expected an entry for each of {axes} axes")
    pairs = (sizes(name, "padding", entry, 2, 0) for entry in entries)
    return tuple((before, after) for before, after in pairs)
