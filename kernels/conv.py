"""Convolution and the gradient of its input, over segments of rows of the result (see `conv_tile.py`).

The gradient of the input is a convolution of the result's gradient with the flipped weights, one for each
phase of the stride. `conv_weight.py` has the gradient of the weights.

A chunk runs its tasks (see `conv_task.py`) in order, in scratch that no other chunk uses.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import config, conv_tile, gemm
from .compiled import device
from .conv_task import (
    CHANNELS,
    COLUMNS,
    GROUPS,
    MOST_CHUNKS,
    SEGMENT_WORDS,
    TASK_IMAGES,
    TASK_ROWS,
    TASK_WORDS,
    Axis,
    begin,
    cut,
)
from .intrinsics import Array, call_address
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

#: Words of the steps of `_pack`: elements from a group, a row, a channel of the weights to the next; rows and
#: channels of a group, rows of a strip, whether there is a bias.
_GROUP_STEP, _ROW_STEP, _CHANNEL_STEP, _PACK_M, _PACK_CHANNELS, _PACK_HIGH, _BIASED = range(7)

#: Words of a plan after those that `begin` reads: tasks (or blocks of images), those of a chunk, channels of
#: the result in a group, channels and segments of a tile, elements of a plane of the result.
_TASKS, _CHUNK_TASKS, _M, _HIGH, _WIDE, _AREA = range(TASK_WORDS, TASK_WORDS + 6)
#: Of `_convolve`: channels of a block of the sum, columns of a plane of the result; start and step of the
#: rows and of the columns that are written; where the stage starts in a region, or -1.
_BLOCK, _WIDTH, _START_ROW, _STEP_ROW, _START_COLUMN, _STEP_COLUMN, _STAGE = range(
    TASK_WORDS + 6, TASK_WORDS + 13
)


@dataclass(frozen=True)
class Weights:
    """Strides of weights, in elements: of groups, rows and channels; and an offset for each tap."""

    group: int
    row: int
    channel: int
    taps: tuple[int, ...]


@kernel
def _pack(lo: int, hi: int, w: A1, bias: A1, out: A1, taps: Words, steps: Words) -> None:
    # A strip is (1 + channels * taps, high): the biases of its rows, then their weights.
    m, channels, high = steps[_PACK_M], steps[_PACK_CHANNELS], steps[_PACK_HIGH]
    channel_step = steps[_CHANNEL_STEP]
    strips = (m + high - 1) // high
    size = (1 + channels * taps.size) * high
    for chunk in range(lo, hi):
        group, top = chunk // strips, chunk % strips * high
        strip = out[chunk * size : (chunk + 1) * size]
        strip[:] = 0
        for r in range(min(high, m - top)):
            if steps[_BIASED]:
                strip[r] = bias[group * m + top + r]
            row = w[group * steps[_GROUP_STEP] + (top + r) * steps[_ROW_STEP] :]
            at = high + r
            for c in range(channels):
                for t in range(taps.size):
                    strip[at] = row[c * channel_step + taps[t]]
                    at += high


@device
def _tiles(
    tile: int,
    source: int,
    plane: int,
    packed: int,
    target: int,
    channel: int,
    count: int,
    size: int,
    table: Array,
    taps: Words,
    plan: Words,
) -> None:
    """Compute a task's results, tile by tile.

    packed: the address of the group's strips.  target, channel: the address of the results, and elements from
    a channel of them to the next.  count: segments.  size: bytes of an element.
    """
    channels, m, high, wide, depth = plan[CHANNELS], plan[_M], plan[_HIGH], plan[_WIDE], plan[_BLOCK]
    length, strips = taps.size * high * size, (m + high - 1) // high
    for block in range((channels + depth - 1) // depth):
        c = block * depth
        for j in range((count + wide - 1) // wide):
            for s in range(strips):
                bias = packed + s * (high * size + channels * length)
                call_address(
                    tile,
                    min(depth, channels - c),
                    taps.size,
                    taps.ctypes.data,
                    plane,
                    bias + high * size + c * length,
                    source + c * plane,
                    table.ctypes.data + 8 * SEGMENT_WORDS * j * wide,
                    target + s * high * channel * size,
                    channel * size,
                    min(high, m - s * high),
                    0 if c else bias,
                )


@device
def _unstage(region: Array, out: Array, at: int, used: int, rows: int, plan: Words) -> None:
    """Write a stage's rows to every `_STEP_COLUMN`-th column of the result, from element `at` on."""
    m, most, columns, width = plan[_M], plan[TASK_ROWS], plan[COLUMNS], plan[_WIDTH]
    step_row, step_column = plan[_STEP_ROW], plan[_STEP_COLUMN]
    for n in range(used):
        for o in range(m):
            for t in range(rows):
                start = plan[_STAGE] + ((n * m + o) * most + t) * columns
                row = region[start : start + columns]
                to = out[at + (n * plan[GROUPS] * m + o) * plan[_AREA] + t * step_row * width :]
                for k in range(columns):
                    to[k * step_column] = row[k]


@kernel
def _convolve(
    lo: int, hi: int, x: A2, packed: A1, out: A1, regions: A2, tables: A2, plan: Words, taps: Words, tile: int
) -> None:
    groups, columns, m, high, wide = plan[GROUPS], plan[COLUMNS], plan[_M], plan[_HIGH], plan[_WIDE]
    tasks, area, width, stage = plan[_CHUNK_TASKS], plan[_AREA], plan[_WIDTH], plan[_STAGE]
    size = x.itemsize
    group_size = (m + high - 1) // high * high * (1 + plan[CHANNELS] * taps.size) * size
    # Where the columns written are not neighbours, rows go to a stage at the end of the region first.
    channel, line = (plan[TASK_ROWS] * columns, columns) if stage >= 0 else (area, width * plan[_STEP_ROW])
    next_image = m * channel if stage >= 0 else groups * m * channel
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        for task in range(chunk * tasks, min((chunk + 1) * tasks, plan[_TASKS])):
            source, plane, count, image, used, row, rows = begin(
                x, region, table, plan, task, next_image, line, count
            )
            table[SEGMENT_WORDS * count : SEGMENT_WORDS * (count + wide)] = 0
            group = task % groups
            corner = (plan[_START_ROW] + row * plan[_STEP_ROW]) * width + plan[_START_COLUMN]
            at = (image * groups + group) * m * area + corner
            target = out.ctypes.data + at * size if stage < 0 else region.ctypes.data + stage * size
            strips = packed.ctypes.data + group * group_size
            _tiles(tile, source, plane, strips, target, channel, count, size, table, taps, plan)
            if stage >= 0:
                _unstage(region, out, at, used, rows, plan)


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
    m, dtype, channels = out.shape[1] // groups, x.dtype, x.shape[1] // groups
    high, vectors = conv_tile.tile_shape(m)
    parts = conv_tile.parts(dtype.name, columns.count)
    wide = vectors * parts
    cuts = cut(x.spec, groups, rows, columns, gemm.lanes(dtype.name) // parts, wide)
    taps, strips = len(cuts.taps), -(-m // high)
    packed = scratch((groups * strips * high * (1 + channels * taps),), dtype)
    steps = (weights.group, weights.row, weights.channel, m, channels, high, int(bias is not None))
    pack = _pack(groups * strips, 1.5 * packed.size, _flat(w), _flat(bias or w), packed, weights.taps, steps)
    tasks = cuts.blocks * groups
    chunk_tasks = -(-tasks // MOST_CHUNKS)
    chunks = -(-tasks // chunk_tasks)
    stage = cuts.frame if columns.step > 1 else -1
    size = cuts.frame
    if stage >= 0:
        size += cuts.words[TASK_IMAGES] * m * cuts.words[TASK_ROWS] * columns.count
    tables = scratch((chunks, SEGMENT_WORDS * (cuts.segments + wide)), _I64)
    regions = scratch((chunks, size), dtype)
    depth = max(1, _DEPTH // max(1, taps))
    plan = (
        *(*cuts.words, tasks, chunk_tasks, m, high, wide, rows.out * columns.out),
        *(depth, columns.out, rows.start, rows.step, columns.start, columns.step, stage),
    )
    flops = 2.0 * x.shape[0] * out.shape[1] * channels * taps * rows.count * columns.count
    work = flops * config.FLOP_NS + (x.size + out.size) * 0.2
    lines = x.reshaped(x.size // columns.size, columns.size)
    tile = conv_tile.tile(dtype.name, high, vectors, parts)
    return [pack, _convolve(chunks, work, lines, packed, _flat(out), regions, tables, plan, cuts.taps, tile)]
