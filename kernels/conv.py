"""Convolution and its two gradients, over segments of rows of the result (see `conv_tile.py`).

`convolve` serves the convolution and the gradient of its input, which is one too: of the result's gradient,
with the weights turned round, once for each phase of the stride. `correlate` is the gradient of the weights.

A chunk of work goes through its items (see `conv_item.py`) in order, in a frame of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import config, conv_tile
from .conv_item import LEAST_CHUNKS, MOST_CHUNKS, Axis, begin, layout
from .intrinsics import call_address
from .kernel import A1, A2, Words, kernel
from .program import Launch, Operand
from .rows import row_map

_copy = row_map("row_copy", lambda x: x)
_add_to = row_map("row_add_to", lambda total, x: total + x)

#: Terms of a sum between two visits to the result: 384 rows of 8 weights are 12 kB of float32, and stay in
#: cache.
_DEPTH = 384

#: Elements of all partial sums of the weights together, at most: 16 MB of float32.
_PARTIALS = 1 << 22

_I64 = np.dtype("int64")


@dataclass(frozen=True)
class Weights:
    """Where the weights of a sum are: elements from a group, row and channel to the next; a place a tap."""

    group: int
    row: int
    channel: int
    places: tuple[int, ...]


@kernel
def _pack(lo: int, hi: int, w: A1, bias: A1, out: A1, places: Words, steps: Words) -> None:
    # A strip is (1 + channels * taps, high): the biases of its rows, then their weights.
    group_step, row_step, channel_step = steps[0], steps[1], steps[2]
    m, channels, high, biased = steps[3], steps[4], steps[5], steps[6]
    strips = (m + high - 1) // high
    size = (1 + channels * places.size) * high
    for chunk in range(lo, hi):
        group, top = chunk // strips, chunk % strips * high
        strip = out[chunk * size : (chunk + 1) * size]
        strip[:] = 0
        for r in range(min(high, m - top)):
            if biased:
                strip[r] = bias[group * m + top + r]
            row = w[group * group_step + (top + r) * row_step :]
            at = high + r
            for c in range(channels):
                for t in range(places.size):
                    strip[at] = row[c * channel_step + places[t]]
                    at += high


@kernel
def _convolve(
    lo: int, hi: int, x: A2, packed: A1, out: A1, regions: A2, tables: A2, plan: Words, taps: Words, tile: int
) -> None:
    # plan: what `begin` reads, then the sizes of a tile, and where the results go.
    groups, channels, most, columns = plan[0], plan[1], plan[5], plan[11]
    last, items, m, high, wide, depth = plan[18], plan[19], plan[20], plan[21], plan[22], plan[23]
    area, width, start_row, step_row = plan[24], plan[25], plan[26], plan[27]
    start_column, step_column, stage = plan[28], plan[29], plan[30]
    size, strips = x.itemsize, (m + high - 1) // high
    length = taps.size * high * size
    # Where columns are not neighbours, rows go to a stage at the end of the region first.
    channel, line = (most * columns, columns) if stage >= 0 else (area, width * step_row)
    next_image = m * channel if stage >= 0 else groups * m * channel
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        for item in range(chunk * items, min((chunk + 1) * items, last)):
            source, plane, count, image, used, row, rows = begin(
                x, region, table, plan, item, next_image, line, count
            )
            table[3 * count : 3 * (count + wide)] = 0
            group = item % groups
            corner = (start_row + row * step_row) * width + start_column
            at = (image * groups + group) * m * area + corner
            target = out.ctypes.data + at * size if stage < 0 else region.ctypes.data + stage * size
            for block in range((channels + depth - 1) // depth):
                c = block * depth
                for j in range((count + wide - 1) // wide):
                    for s in range(strips):
                        bias = packed.ctypes.data + (group * strips + s) * (high * size + channels * length)
                        call_address(
                            tile,
                            min(depth, channels - c),
                            taps.size,
                            taps.ctypes.data,
                            plane,
                            bias + high * size + c * length,
                            source + c * plane,
                            table.ctypes.data + 24 * j * wide,
                            target + s * high * channel * size,
                            channel * size,
                            min(high, m - s * high),
                            0 if c else bias,
                        )
            if stage >= 0:
                for n in range(used):
                    for o in range(m):
                        for t in range(rows):
                            start = stage + ((n * m + o) * most + t) * columns
                            made = region[start : start + columns]
                            to = out[at + (n * groups * m + o) * area + t * step_row * width :]
                            for k in range(columns):
                                to[k * step_column] = made[k]


@kernel
def _correlate(
    lo: int, hi: int, x: A2, g: A1, out: A1, regions: A2, tables: A2, plan: Words, taps: Words, dot: int
) -> None:
    # plan: what `begin` reads, then the sizes of a tile. A chunk is a split of the blocks of images, a group,
    # and some channels of the result; out is (splits, groups, m, channels * taps).
    groups, channels, columns = plan[0], plan[1], plan[11]
    last, items, m, high, wide, some, area = (
        plan[18],
        plan[19],
        plan[20],
        plan[21],
        plan[22],
        plan[23],
        plan[24],
    )
    size, terms, parts = x.itemsize, channels * taps.size, (m + some - 1) // some
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        split, group, top = chunk // parts // groups, chunk // parts % groups, chunk % parts * some
        end = min(m, top + some)
        distances = table[table.size - terms - wide :]
        for block in range(split * items, min((split + 1) * items, last)):
            source, plane, count, image, _, row, _ = begin(
                x, region, table, plan, block * groups + group, groups * m * area, columns, count
            )
            for k in range(terms):
                distances[k] = k // taps.size * plane + taps[k % taps.size]
            distances[terms:] = 0
            other = g.ctypes.data + ((image * groups + group) * m * area + row * columns) * size
            target = out.ctypes.data + (split * groups + group) * m * terms * size
            for strip in range((end - top + high - 1) // high):
                r = top + strip * high
                for j in range((terms + wide - 1) // wide):
                    k = j * wide
                    call_address(
                        dot,
                        count,
                        table.ctypes.data,
                        other + r * area * size,
                        area * size,
                        source,
                        distances.ctypes.data + 8 * k,
                        target + (r * terms + k) * size,
                        terms * size,
                        min(high, end - r),
                        min(wide, terms - k),
                        block == split * items,
                    )


@kernel
def _combine(lo: int, hi: int, partial: A2, out: A1, block: int) -> None:
    for chunk in range(lo, hi):
        piece = out[chunk * block : (chunk + 1) * block]
        _copy(piece, partial[0, chunk * block :])
        for k in range(1, partial.shape[0]):
            _add_to(piece, piece, partial[k, chunk * block :])


Scratch = Callable[[tuple[int, ...], object], Operand]


def _flat(x: Operand) -> Operand:
    return x.reshaped(x.size)


def convolve(
    x: Operand,
    w: Operand,
    bias: Operand | None,
    out: Operand,
    axes: tuple[Axis, Axis],
    weights: Weights,
    groups: int,
    scratch: Scratch,
) -> list[Launch]:
    """Plan out (n, groups * m, h, w) = sums of x (n, groups * channels, y, z) times weights, plus bias."""
    rows, columns = axes
    m, dtype = out.shape[1] // groups, x.dtype
    high, wide = conv_tile.tile_shape(m)
    lay = layout(x.spec, groups, rows, columns, wide)
    per, most, channels, taps = lay.words[4], lay.words[5], lay.words[1], len(lay.taps)
    strips = -(-m // high)
    packed = scratch((groups * strips * high * (1 + channels * taps),), dtype)
    steps = (weights.group, weights.row, weights.channel, m, channels, high, int(bias is not None))
    pack = _pack(
        groups * strips, 1.5 * packed.size, _flat(w), _flat(bias or w), packed, weights.places, steps
    )
    items = lay.blocks * groups
    each = -(-items // MOST_CHUNKS)
    chunks = -(-items // each)
    stage = lay.frame if columns.step > 1 else -1
    size = lay.frame + (per * m * most * columns.count if stage >= 0 else 0)
    regions, tables = scratch((chunks, size), dtype), scratch((chunks, 3 * (lay.segments + wide)), _I64)
    depth = max(1, _DEPTH // max(1, taps))
    plan = (*lay.words, items, each, m, high, wide, depth, rows.out * columns.out, columns.out)
    plan += (rows.start, rows.step, columns.start, columns.step, stage)
    flops = 2.0 * x.shape[0] * out.shape[1] * channels * taps * rows.count * columns.count
    work = flops * config.FLOP_NS + (x.size + out.size) * 0.2
    seen = x.reshaped(x.size // columns.size, columns.size)
    tile = conv_tile.tile(dtype.name, high, wide)
    return [pack, _convolve(chunks, work, seen, packed, _flat(out), regions, tables, plan, lay.taps, tile)]


def correlate(
    x: Operand, g: Operand, out: Operand, axes: tuple[Axis, Axis], groups: int, scratch: Scratch
) -> list[Launch]:
    """Plan out (groups * m, channels, taps...) = sums over images, rows and columns of g times x.

    x: (n, groups * channels, y, z).  g: (n, groups * m, rows, columns).
    """
    rows, columns = axes
    m, dtype = g.shape[1] // groups, x.dtype
    lay = layout(x.spec, groups, rows, columns, 1)
    high, wide = conv_tile.dot_shape(m)
    splits = max(1, min(lay.blocks, -(-MOST_CHUNKS // (2 * groups)), _PARTIALS // out.size))
    each = -(-lay.blocks // splits)
    splits = -(-lay.blocks // each)
    parts = min(-(-m // high), max(1, LEAST_CHUNKS // (splits * groups)))
    some = -(-m // (parts * high)) * high
    chunks = splits * groups * -(-m // some)
    words = 3 * lay.segments + lay.words[1] * len(lay.taps) + wide
    regions, tables = scratch((chunks, lay.frame), dtype), scratch((chunks, words), _I64)
    plan = (*lay.words, lay.blocks, each, m, high, wide, some, rows.count * columns.count)
    partial = scratch((splits, out.size), dtype) if splits > 1 else out.reshaped(1, out.size)
    flops = 2.0 * g.size * lay.words[1] * len(lay.taps)
    work = flops * config.FLOP_NS + (x.size + g.size) * 0.2
    seen = x.reshaped(x.size // columns.size, columns.size)
    dot = conv_tile.dot(dtype.name, high, wide)
    launches = [
        _correlate(chunks, work, seen, _flat(g), _flat(partial), regions, tables, plan, lay.taps, dot)
    ]
    if splits > 1:
        block = config.REDUCE_CHUNK
        moved = partial.spec.nbytes * config.BYTE_NS * 2
        launches.append(_combine(-(-out.size // block), moved, partial, _flat(out), block))
    return launches
