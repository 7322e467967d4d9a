"""Copies between strided views: transposition, slices, padding, concatenation."""

import numpy as np

from . import config
from .kernel import A1, Words, kernel
from .program import Launch, Operand
from .rows import row_map

#: Side of the square that a transposition copies at a time: 32 lines of 64 bytes on either side.
_TILE = 32

_copy_row = row_map("row_copy", lambda x: x)


#: Words of `starts`: the first element of either view, and the rows of a chunk.
_SOURCE, _TARGET, _ROWS = range(3)


@kernel
def _copy(lo: int, hi: int, source: A1, target: A1, plan: Words, starts: Words) -> None:
    # plan: sizes, source strides, target strides, each of the same count, in elements.
    count = plan.size // 3
    rows, columns = plan[count - 2], plan[count - 1]
    row_from, column_from = plan[2 * count - 2], plan[2 * count - 1]
    row_to, column_to = plan[3 * count - 2], plan[3 * count - 1]
    height = starts[_ROWS]
    tiles = (rows + height - 1) // height
    for chunk in range(lo, hi):
        first = chunk % tiles * height
        last = min(first + height, rows)
        rest, at_from, at_to = chunk // tiles, starts[_SOURCE], starts[_TARGET]
        for axis in range(count - 3, -1, -1):
            index = rest % plan[axis]
            rest //= plan[axis]
            at_from += index * plan[count + axis]
            at_to += index * plan[2 * count + axis]
        if column_from == 1 and column_to == 1:
            for i in range(first, last):
                s, t = at_from + i * row_from, at_to + i * row_to
                _copy_row(target[t : t + columns], source[s : s + columns])
        else:
            for left in range(0, columns, _TILE):
                right = min(left + _TILE, columns)
                for i in range(first, last):
                    s, t = at_from + i * row_from, at_to + i * row_to
                    for j in range(left, right):
                        target[t + j * column_to] = source[s + j * column_from]


def copy(
    source: Operand,
    target: Operand,
    sizes: tuple[int, ...],
    source_strides: tuple[int, ...],
    target_strides: tuple[int, ...],
    source_start: int = 0,
    target_start: int = 0,
) -> Launch:
    """Plan target[view] = source[view]; each view has a start and strides in elements, maybe negative.

    Neither view may have two indices for one element of the target.
    """
    axes = [(size, source_strides[k], target_strides[k]) for k, size in enumerate(sizes) if size != 1]
    # The axis along which the target is contiguous goes innermost, the source's next to it: either both are
    # the same, or a transposition copies square tiles. The order of the others only has to be fixed.
    axes.sort(key=lambda a: -abs(a[2]))
    if len(axes) > 2:
        inner = min(axes[:-1], key=lambda a: abs(a[1]))
        axes.remove(inner)
        axes.insert(len(axes) - 1, inner)
    axes = _joined(axes)
    axes = [(1, 0, 0)] * (2 - len(axes)) + axes
    contiguous = axes[-1][1:] == (1, 1)
    # Rows that are copied whole may be long: 32 of a slice of a recurrent layer's states were one chunk.
    height = max(1, min(_TILE, config.ELEMENTWISE_CHUNK // max(axes[-1][0], 1))) if contiguous else _TILE
    chunks = -(-axes[-2][0] // height)
    for size, _, _ in axes[:-2]:
        chunks *= size
    total = int(np.prod([a[0] for a in axes]))
    flat_source, flat_target = _bits(source), _bits(target)
    plan = tuple(v for column in zip(*axes, strict=True) for v in column)
    work = total * 8 * target.dtype.itemsize * config.BYTE_NS  # transpositions wait for cache lines
    chunks = chunks if total else 0
    return _copy(chunks, work, flat_source, flat_target, plan, (source_start, target_start, height))


def _joined(axes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Join neighbouring axes that are one axis in both views."""
    out: list[tuple[int, int, int]] = []
    for size, s, t in axes:
        if out and out[-1][1] == s * size and out[-1][2] == t * size:
            out[-1] = (out[-1][0] * size, s, t)
        else:
            out.append((size, s, t))
    return out


def _bits(x: Operand) -> Operand:
    """Return an array as flat integers of its item size: one compiled copy serves all dtypes of a size."""
    bits = np.dtype({1: "bool", 4: "int32", 8: "int64"}[x.dtype.itemsize])
    return x.reshaped(x.size).viewed(bits)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a C-contiguous array, in elements.

    >>> strides((2, 3, 4))
    (12, 4, 1)
    """
    out, step = [], 1
    for size in reversed(shape):
        out.append(step)
        step *= size
    return tuple(reversed(out))
