"""Batches of images (batch, channels, height, width): windows of each, and boxes of another in each."""

import numpy as np

from . import config
from .compiled import device
from .intrinsics import Array
from .kernel import A1, A2, A4, kernel
from .program import Launch, Operand


@device
def _inside(start: int, size: int, length: int) -> tuple[int, int]:
    """Return the elements of a window, from `start` on and `size` long, that are inside of 0..length-1."""
    first = min(max(-start, 0), size)
    return first, max(min(length - start, size), first)


@device
def _fill(row: Array, fill: int) -> None:
    for k in range(row.size):
        row[k] = fill


@kernel
def _windows(lo: int, hi: int, x: A4, windows: A2, out: A4, fill: int, group: int) -> None:
    # A window: its first row, its first column, whether to flip the image's rows before, and the columns.
    channels, height, width = x.shape[1], x.shape[2], x.shape[3]
    for plane in range(lo * group, min(hi * group, x.shape[0] * channels)):
        i, c = plane // channels, plane % channels
        top, left, upside_down, mirrored = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        first, last = _inside(left, out.shape[3], width)
        for y in range(out.shape[2]):
            row, target = top + y, out[i, c, y]
            if row < 0 or row >= height:
                _fill(target, fill)
                continue
            source = x[i, c, height - 1 - row if upside_down else row]
            _fill(target[:first], fill)
            _fill(target[last:], fill)
            inner = target[first:last]
            if mirrored:
                start = width - 1 - left - first
                for k in range(inner.size):
                    inner[k] = source[np.uint64(start - k)]
            else:
                inner_source = source[left + first :]
                for k in range(inner.size):
                    inner[k] = inner_source[k]


@kernel
def _boxes(lo: int, hi: int, x: A4, other: A1, boxes: A2, out: A4, group: int) -> None:
    # A box: its first row and the one after its last, and the same for columns.
    channels, width = x.shape[1], x.shape[3]
    size = x.shape[2] * width
    for plane in range(lo * group, min(hi * group, x.shape[0] * channels)):
        i, c = plane // channels, plane % channels
        top, bottom = boxes[i, 0], boxes[i, 1]
        left, right = min(max(boxes[i, 2], 0), width), min(boxes[i, 3], width)
        for y in range(x.shape[2]):
            source, target = x[i, c, y], out[i, c, y]
            for k in range(width):
                target[k] = source[k]
            if y < top or y >= bottom or right <= left:
                continue
            inner = target[left:right]
            if other.size == 1:
                _fill(inner, other[0])
            else:
                start = plane * size + y * width + left
                for k in range(inner.size):
                    inner[k] = other[start + k]


def _bits(x: Operand) -> Operand:
    """Return an array as integers of its item size: one compiled kernel serves all dtypes of a size."""
    return x.viewed(np.dtype({1: "bool", 4: "int32", 8: "int64"}[x.dtype.itemsize]))


def _word(fill: float, dtype: np.dtype) -> int:
    """Return the bits of a number of a dtype as an integer."""
    with np.errstate(over="ignore"):  # beyond float32's range is inf
        return int(np.array([fill]).astype(dtype).view(f"i{dtype.itemsize}")[0])


def _planes(out: Operand) -> tuple[int, int, float]:
    """Return the number of chunks, the planes of each, and the estimated time in ns."""
    planes, size = out.shape[0] * out.shape[1], out.shape[2] * out.shape[3]
    group = max(1, config.ELEMENTWISE_CHUNK // max(size, 1))
    return -(-planes // group), group, 2 * out.spec.nbytes * config.BYTE_NS


def windows(x: Operand, places: Operand, out: Operand, fill: float) -> Launch:
    """Plan out (n, c, h, w) = a window of each image of x (n, c, height, width), `fill` outside of it.

    places: (n, 4) int64: the first row and column of the window, which may be outside; whether to flip the
    order of the image's rows before, and of its columns.
    """
    chunks, group, work_ns = _planes(out)
    return _windows(chunks, work_ns, _bits(x), places, _bits(out), _word(fill, x.dtype), group)


def boxes(x: Operand, other: Operand, places: Operand, out: Operand) -> Launch:
    """Plan out = x (n, c, h, w), and inside of a box of each image that of `other`.

    other: as x, or one element, which fills the boxes.  places: (n, 4) int64 in the image: the first row and
    the one after the last, the first column and the one after the last.
    """
    chunks, group, work_ns = _planes(out)
    flat = _bits(other.reshaped(other.size))
    return _boxes(chunks, work_ns, _bits(x), flat, places, _bits(out), group)
