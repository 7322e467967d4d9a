"""Gradient of a convolution's weights: products of the result's gradient and the source, summed over images.

Lanes are channels of the result, where there are enough to fill vectors: a task's gradients are transposed
to (results, channels), and rows of any length take the time of their results. Otherwise lanes are neighbours
in a row, and each weight's sum is over the lanes too.

A chunk is a split of the tasks, a group, and some channels of the result; splits are added in order.
"""

import itertools
from collections.abc import Callable

import numpy as np

from . import config, conv_frame, conv_tile, gemm
from .compiled import device
from .conv_task import (
    COLUMNS,
    GROUPS,
    LEAST_CHUNKS,
    MOST_CHUNKS,
    SEGMENT_WORDS,
    TASK_WORDS,
    Axis,
    Tasks,
    begin,
    cut,
)
from .intrinsics import Array, call_address
from .kernel import A1, A2, A3, Words, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)

#: Elements of all partial sums of the weights together, at most: 8 MB of float32.
_PARTIALS = 1 << 21

#: Results of a task whose gradients are transposed: 32 channels of them are 64 kB of float32.
_LEAST = 512

#: Terms of a block that `_combine_turned` transposes.
_BLOCK = 16

_I64 = np.dtype("int64")

#: Words of a plan after those that `begin` reads: blocks of images, those of a chunk, channels of the result
#: in a group and in a chunk, channels (or vectors of them) and weights of a tile, elements of a plane of the
#: result, weights of a channel, the address of the tile's function.
_BLOCKS, _CHUNK_BLOCKS, _M, _PART, _HIGH, _WIDE, _AREA, _TERMS, _TILE = range(TASK_WORDS, TASK_WORDS + 9)
#: Of `_correlate_turned`: elements of a vector, elements of a row of sums, where transposed gradients start
#: in a region, the address of the function that transposes, results of a row of transposed gradients.
_LANES, _LINE, _TURNED, _TRANSPOSE, _PER_ROW = range(TASK_WORDS + 9, TASK_WORDS + 14)

Scratch = Callable[[tuple[int, ...], object], Operand]


@device
def _distances(table: Array, terms: int, plane: int, plan: Words, taps: Words) -> Array:
    """Write the distances of all weights of a channel to the end of a table, and return them."""
    distances = table[table.size - terms - plan[_WIDE] :]
    for k in range(terms):
        distances[k] = k // taps.size * plane + taps[k % taps.size]
    distances[terms:] = 0
    return distances


@device
def _dots(
    source: int,
    other: int,
    target: int,
    channels: int,
    count: int,
    size: int,
    table: Array,
    distances: Array,
    new: bool,
    plan: Words,
) -> None:
    """Add a task's products to the gradient of the weights of some channels, with results in lanes.

    other: the address of the first channel of the result's gradient.  target: of the weights'.
    count: segments.  size: bytes of an element.  new: whether sums are stored instead of added.
    """
    high, wide, area, terms = plan[_HIGH], plan[_WIDE], plan[_AREA], plan[_TERMS]
    for strip in range((channels + high - 1) // high):
        r = strip * high
        for j in range((terms + wide - 1) // wide):
            k = j * wide
            call_address(
                plan[_TILE],
                count,
                table.ctypes.data,
                other + r * area * size,
                area * size,
                source,
                distances.ctypes.data + 8 * k,
                target + (r * terms + k) * size,
                terms * size,
                min(high, channels - r),
                min(wide, terms - k),
                new,
            )


@kernel
def _correlate(
    lo: int, hi: int, x: A2, g: A1, out: A1, regions: A2, tables: A2, plan: Words, taps: Words
) -> None:
    # out is (splits, groups, m, channels * taps).
    groups, columns, m, area = plan[GROUPS], plan[COLUMNS], plan[_M], plan[_AREA]
    blocks, part, size, terms = plan[_CHUNK_BLOCKS], plan[_PART], x.itemsize, plan[_TERMS]
    parts = (m + part - 1) // part
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        split, group, first = chunk // parts // groups, chunk // parts % groups, chunk % parts * part
        target = out.ctypes.data + ((split * groups + group) * m + first) * terms * size
        for block in range(split * blocks, min((split + 1) * blocks, plan[_BLOCKS])):
            source, plane, count, image, _, row, _ = begin(
                x, region, table, plan, block * groups + group, groups * m * area, columns, count
            )
            distances = _distances(table, terms, plane, plan, taps)
            other = (
                g.ctypes.data + ((image * groups + group) * m + first) * area * size + row * columns * size
            )
            channels, new = min(m - first, part), block == split * blocks
            _dots(source, other, target, channels, count, size, table, distances, new, plan)


@kernel
def _correlate_turned(
    lo: int, hi: int, x: A2, g: A1, out: A1, regions: A2, tables: A2, plan: Words, taps: Words
) -> None:
    # out is (splits, groups, channels * taps, line).
    groups, columns, m, area, size = plan[GROUPS], plan[COLUMNS], plan[_M], plan[_AREA], x.itemsize
    part, wide, terms, line = plan[_PART], plan[_WIDE], plan[_TERMS], plan[_LINE]
    parts, step, per = (m + part - 1) // part, plan[_HIGH] * plan[_LANES], plan[_PER_ROW]
    across = (columns + per - 1) // per
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        split, group, first = chunk // parts // groups, chunk // parts % groups, chunk % parts * part
        sums = out.ctypes.data + (split * groups + group) * terms * line * size
        turned = region.ctypes.data + plan[_TURNED] * size
        first_block = split * plan[_CHUNK_BLOCKS]
        for block in range(first_block, min(first_block + plan[_CHUNK_BLOCKS], plan[_BLOCKS])):
            source, plane, count, image, used, row, rows = begin(
                x, region, table, plan, block * groups + group, 0, 0, count
            )
            distances = _distances(table, terms, plane, plan, taps)
            for strip in range((min(part, m - first) + step - 1) // step):
                c = first + strip * step
                at = ((image * groups + group) * m + c) * area + row * columns
                for n in range(used):
                    other = g.ctypes.data + (at + n * groups * m * area) * size
                    # All rows at once, unless pairs would be of two rows.
                    lines = rows if columns % per else 1
                    results, to = rows // lines * columns, turned + n * rows * across * step * size
                    for t in range(lines):
                        start = other + t * columns * size
                        target = to + t * across * step * size
                        call_address(plan[_TRANSPOSE], start, area * size, results, min(step, m - c), target)
                for j in range((terms + wide - 1) // wide):
                    k = j * wide
                    call_address(
                        plan[_TILE],
                        count,
                        table.ctypes.data,
                        turned,
                        source,
                        distances.ctypes.data + 8 * k,
                        sums + (k * line + c) * size,
                        line * size,
                        min(wide, terms - k),
                        block == first_block,
                    )


@kernel
def _combine(lo: int, hi: int, partial: A2, out: A1, block: int) -> None:
    for chunk in range(lo, hi):
        piece = out[chunk * block : (chunk + 1) * block]
        _copy(piece, partial[0, chunk * block :])
        for k in range(1, partial.shape[0]):
            _add_to(piece, piece, partial[k, chunk * block :])


@kernel
def _combine_turned(lo: int, hi: int, partial: A3, out: A3) -> None:
    # partial: (splits, groups * terms, line).  out: (groups, m, terms).
    splits, (_, m, terms) = partial.shape[0], out.shape
    blocks = (terms + _BLOCK - 1) // _BLOCK
    for chunk in range(lo, hi):
        group, first = chunk // blocks, chunk % blocks * _BLOCK
        end = min(first + _BLOCK, terms)
        for k in range(first, end):
            total = partial[0, group * terms + k]
            for split in range(1, splits):
                _add_to(total, total, partial[split, group * terms + k])
        for o in range(m):
            for k in range(first, end):
                out[group, o, k] = partial[0, group * terms + k, o]


def _idle(used: int, size: int) -> float:
    """Return how many lanes there are for each that is used, where `used` elements take whole `size`s."""
    return -(-used // size) * size / used


def can_pair(m: int) -> bool:
    """Whether `correlate` has pairs for m channels of the result in a group: half a vector or more."""
    return 2 * m >= gemm.lanes("float32")


def correlate(
    x: Operand,
    g: Operand,
    out: Operand,
    axes: tuple[Axis, Axis],
    groups: int,
    scratch: Scratch,
    pairs: bool = False,
) -> list[Launch]:
    """Plan out (groups * m, channels, taps...) = sums over images, rows and columns of g times x.

    x: (n, groups * channels, y, z).  g: (n, groups * m, rows, columns).
    pairs: whether x and g, of float32, are rounded to bfloat16, in pairs of neighbours in a row of results.
    """
    m, lanes = g.shape[1] // groups, gemm.lanes(x.dtype.name)
    if pairs or _idle(m, lanes) <= 1.1 * _idle(axes[1].count, lanes):
        return _turned(x, g, out, axes, groups, scratch, pairs)
    rows, columns = axes
    cuts = cut(x.spec, groups, rows, columns, lanes)
    high, wide = conv_tile.dot_shape(m)
    splits, chunk_blocks, part, chunks = _chunks(cuts.blocks, groups, m, high, out.size)
    terms = out.size // (groups * m)
    regions = scratch((chunks, cuts.frame), x.dtype)
    tables = scratch((chunks, SEGMENT_WORDS * cuts.segments + terms + wide), _I64)
    tile = conv_tile.dot(x.dtype.name, high, wide)
    plan = (
        *cuts.words,
        cuts.blocks,
        chunk_blocks,
        m,
        part,
        high,
        wide,
        rows.count * columns.count,
        terms,
        tile,
    )
    partial = scratch((splits, out.size), x.dtype) if splits > 1 else out.reshaped(1, out.size)
    arrays = (_lines(x), g.reshaped(g.size), partial.reshaped(partial.size), regions, tables)
    launches = [_correlate(chunks, _work(x, g, terms), *arrays, plan, _taps(cuts, axes))]
    if splits > 1:
        block = config.REDUCE_CHUNK
        moved = partial.spec.nbytes * config.BYTE_NS * 2
        launches.append(_combine(-(-out.size // block), moved, partial, out.reshaped(out.size), block))
    return launches


def _turned(
    x: Operand,
    g: Operand,
    out: Operand,
    axes: tuple[Axis, Axis],
    groups: int,
    scratch: Scratch,
    pairs: bool,
) -> list[Launch]:
    """Plan `correlate` with channels in lanes."""
    rows, columns = axes
    m, name = g.shape[1] // groups, x.dtype.name
    lanes = gemm.lanes(name)
    form, per = (conv_frame.HALVES, 2) if pairs else (conv_frame.PLAIN, 1)
    cuts = cut(x.spec, groups, rows, columns, columns.count, least=_LEAST, form=form)
    high, wide = conv_tile.outer_shape(-(-m // lanes))
    step, line = high * lanes, -(-m // lanes) * lanes
    terms = out.size // (groups * m)
    splits, chunk_blocks, part, chunks = _chunks(cuts.blocks, groups, m, step, groups * terms * line)
    regions = scratch((chunks, cuts.frame + cuts.segments * -(-columns.count // per) * step), x.dtype)
    tables = scratch((chunks, SEGMENT_WORDS * cuts.segments + terms + wide), _I64)
    plan = (
        *(*cuts.words, cuts.blocks, chunk_blocks, m, part, high, wide, rows.count * columns.count, terms),
        *(conv_tile.outer(name, high, wide, pairs), lanes, line, cuts.frame),
        *(gemm.packer(name, step, True, pairs), per),
    )
    partial = scratch((splits, groups * terms, line), x.dtype)
    arrays = (_lines(x), g.reshaped(g.size), partial.reshaped(partial.size), regions, tables)
    combined = partial.spec.nbytes * config.BYTE_NS + out.size * 1.0
    return [
        _correlate_turned(chunks, _work(x, g, terms) / per, *arrays, plan, _taps(cuts, axes)),
        _combine_turned(groups * -(-terms // _BLOCK), combined, partial, out.reshaped(groups, m, terms)),
    ]


def _chunks(blocks: int, groups: int, m: int, step: int, size: int) -> tuple[int, int, int, int]:
    """Return the number of splits, the blocks of each, the channels of a chunk, and the number of chunks.

    step: channels that a tile computes.  size: elements of a partial sum.
    """
    splits = max(1, min(blocks, -(-MOST_CHUNKS // (2 * groups)), _PARTIALS // size))
    chunk_blocks = -(-blocks // splits)
    splits = -(-blocks // chunk_blocks)
    parts = min(-(-m // step), max(1, LEAST_CHUNKS // (splits * groups)))
    part = -(-m // (parts * step)) * step
    return splits, chunk_blocks, part, splits * groups * -(-m // part)


def _taps(cuts: Tasks, axes: tuple[Axis, Axis]) -> tuple[int, ...]:
    return cuts.distances(itertools.product(axes[0].taps, axes[1].taps))


def _lines(x: Operand) -> Operand:
    return x.reshaped(x.size // x.shape[-1], x.shape[-1])


def _work(x: Operand, g: Operand, terms: int) -> float:
    return 2.0 * g.size * terms * config.FLOP_NS + (x.size + g.size) * 0.2
