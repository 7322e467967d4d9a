"""Convolution and the gradient of its input, over segments of rows of the result (see `conv_tile.py`).

The gradient of the input is a convolution of the result's gradient with the flipped weights, one for each
phase of the stride. `conv_weight.py` has the gradient of the weights.

A chunk runs its tasks (see `conv_task.py`) in order, in scratch that no other chunk uses.
"""

import itertools

import numpy as np

from . import config, conv_frame, conv_tile, gemm
from .compiled import device
from .conv_pack import Scratch, Weights, first_taps, packed_weights, paired
from .conv_task import (
    COLUMNS,
    GROUPS,
    LEAST,
    MOST_CHUNKS,
    PLANES,
    SEGMENT_WORDS,
    TASK_IMAGES,
    TASK_ROWS,
    TASK_WORDS,
    Axis,
    Tasks,
    begin,
    cut,
)
from .epilogue import Epilogue
from .intrinsics import Array, call_address
from .kernel import A1, A2, Words, kernel
from .program import Address, Launch, Operand
from .write_back import COLUMN, ROW

#: Terms of a sum between two visits to the result: 384 rows of 8 weights are 12 kB of float32, and stay in
#: cache.
_DEPTH = 384

_I64 = np.dtype("int64")

#: Results of a channel in a task whose results are staged: of 64 channels, two phases are 200 kB of float32.
_LEAST_STAGED = 384

#: Words of a plan after those that `begin` reads: tasks, those of a chunk, channels of the result in a group,
#: channels and segments of a tile, elements of a plane of the result; planes of a block of the sum, columns
#: of a plane of the result; the step of the rows and of the columns that are written; where the stage starts
#: in a region, or -1; its elements of a phase; phases of columns, phases; the address of the function that
#: interleaves two phases of columns, or 0; segments of a vector; the address of the epilogue's function, or
#: 0, and the columns of the matrix that it sees; the addresses of tiles of 1, 2, ... vectors.
_TASKS, _CHUNK_TASKS, _M, _HIGH, _WIDE, _AREA, _BLOCK, _WIDTH = range(TASK_WORDS, TASK_WORDS + 8)
_STEP_ROW, _STEP_COLUMN, _STAGE, _STAGE_SIZE, _COLUMN_PHASES, _PHASES, _INTERLEAVE, _PARTS = range(
    TASK_WORDS + 8, TASK_WORDS + 16
)
_EPILOGUE, _LINE, _TILE = range(TASK_WORDS + 16, TASK_WORDS + 19)
#: Then for each phase: its first row and column, its first tap, the number of its taps.
_PHASE = _TILE + conv_tile.MOST_VECTORS


@device
def _tiles(
    source: int,
    plane: int,
    packed: int,
    target: int,
    channel: int,
    count: int,
    size: int,
    table: Array,
    distances: int,
    taps: int,
    plan: Words,
) -> None:
    """Compute the results of a task in one phase, tile by tile.

    packed: the address of the group's strips.  target, channel: the address of the results, and elements from
    a channel of them to the next.  count: segments.  size: bytes of an element.  distances: their address.
    """
    planes, m, high, wide, depth = plan[PLANES], plan[_M], plan[_HIGH], plan[_WIDE], plan[_BLOCK]
    length, strips = taps * high * size, (m + high - 1) // high
    for block in range((planes + depth - 1) // depth):
        c = block * depth
        for j in range((count + wide - 1) // wide):
            # The last tile is narrower: 16 segments in tiles of 3 took the time of 18.
            vectors = (min(wide, count - j * wide) + plan[_PARTS] - 1) // plan[_PARTS]
            tile = plan[_TILE + vectors - 1]
            for s in range(strips):
                bias = packed + s * (high * size + planes * length)
                call_address(
                    tile,
                    min(depth, planes - c) if taps else 0,
                    taps,
                    distances,
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
def _unstage(
    region: Array, out: Array, image: int, group: int, used: int, row: int, rows: int, phase: int, plan: Words
) -> None:
    """Write a stage to every `_STEP_ROW`-th row of the result: the phases of columns from `phase` on."""
    m, most, columns, width = plan[_M], plan[TASK_ROWS], plan[COLUMNS], plan[_WIDTH]
    step_row, step_column, apart = plan[_STEP_ROW], plan[_STEP_COLUMN], plan[_STAGE_SIZE]
    top = plan[_PHASE + 4 * phase] + row * step_row
    height, size = plan[_AREA] // width, out.itemsize
    inside = max(0, min(rows, (height - top + step_row - 1) // step_row))
    for plane in range(used * m):
        start = plan[_STAGE] + plane * most * columns
        n, o = plane // m, plane % m
        to = (((image + n) * plan[GROUPS] + group) * m + o) * plan[_AREA] + top * width
        if plan[_INTERLEAVE]:
            call_address(
                plan[_INTERLEAVE],
                inside,
                region.ctypes.data + start * size,
                apart * size,
                columns * size,
                out.ctypes.data + to * size,
                step_row * width * size,
                width,
            )
            continue
        for p in range(plan[_COLUMN_PHASES]):
            first = plan[_PHASE + 4 * (phase + p) + 1]
            for t in range(inside):
                line = region[start + p * apart + t * columns :]
                target = out[to + t * step_row * width + first :]
                for k in range(min(columns, (width - first + step_column - 1) // step_column)):
                    target[k * step_column] = line[k]


@device
def _apply_epilogue(image: int, group: int, used: int, row: int, rows: int, plan: Words, words: int) -> None:
    """Apply the epilogue to a task's results, while they are in cache. words: the address of its words."""
    m, groups, width, line, function = plan[_M], plan[GROUPS], plan[_WIDTH], plan[_LINE], plan[_EPILOGUE]
    height = plan[_AREA] // width
    top, bottom = row * plan[_STEP_ROW], min(height, (row + rows) * plan[_STEP_ROW])
    for n in range(used):
        plane = ((image + n) * groups + group) * m
        if line == width:
            for o in range(plane, plane + m):
                call_address(function, words, o * height + top, o * height + bottom, 0, width)
        else:
            call_address(function, words, plane, plane + m, top * width, (bottom - top) * width)


@kernel
def _convolve(
    lo: int,
    hi: int,
    x: A2,
    packed: A1,
    out: A1,
    regions: A2,
    tables: A2,
    plan: Words,
    taps: Words,
    epilogue: Words,
) -> None:
    groups, columns, m, high, wide = plan[GROUPS], plan[COLUMNS], plan[_M], plan[_HIGH], plan[_WIDE]
    tasks, area, stage, size, across = (
        plan[_CHUNK_TASKS],
        plan[_AREA],
        plan[_STAGE],
        x.itemsize,
        plan[_COLUMN_PHASES],
    )
    strips = groups * ((m + high - 1) // high) * high
    # Phases go to a stage at the end of the region first.
    channel = plan[TASK_ROWS] * columns if stage >= 0 else area
    next_image = m * channel if stage >= 0 else groups * m * channel
    for chunk in range(lo, hi):
        region, table, count = regions[chunk], tables[chunk], 0
        for task in range(chunk * tasks, min((chunk + 1) * tasks, plan[_TASKS])):
            source, plane, count, image, used, row, rows = begin(
                x, region, table, plan, task, next_image, columns, count
            )
            table[SEGMENT_WORDS * count : SEGMENT_WORDS * (count + wide)] = 0
            group = task % groups
            at = (image * groups + group) * m * area + row * columns
            for phase in range(plan[_PHASES]):
                first, number = plan[_PHASE + 4 * phase + 2], plan[_PHASE + 4 * phase + 3]
                staged = region.ctypes.data + (stage + phase % across * plan[_STAGE_SIZE]) * size
                target = out.ctypes.data + at * size if stage < 0 else staged
                group_size = strips // groups * (1 + plan[PLANES] * number)
                weights = strips * (phase + plan[PLANES] * first) + group * group_size
                _tiles(
                    source,
                    plane,
                    packed.ctypes.data + weights * size,
                    target,
                    channel,
                    count,
                    size,
                    table,
                    taps.ctypes.data + 8 * first,
                    number,
                    plan,
                )
                if stage >= 0 and phase % across == across - 1:
                    _unstage(region, out, image, group, used, row, rows, phase - across + 1, plan)
            if plan[_EPILOGUE]:
                _apply_epilogue(image, group, used, row, rows, plan, epilogue.ctypes.data)


def convolve(
    x: Operand,
    w: Operand,
    bias: Operand | None,
    out: Operand,
    axes: tuple[Axis, Axis],
    weights: Weights,
    groups: int,
    scratch: Scratch,
    pairs: bool = False,
    epilogue: Epilogue | None = None,
) -> list[Launch]:
    """Plan out (n, groups * m, h, w) = sums of x (n, groups * channels, y, z) times weights, plus bias.

    pairs: whether x and the weights, of float32, are rounded to bfloat16, in pairs of channels.
    epilogue: formulas applied to a task's results; the weights have all phases then.
    """
    rows, columns = axes
    m, name, channels = out.shape[1] // groups, x.dtype.name, x.shape[1] // groups
    high, vectors = conv_tile.tile_shape(m)
    parts = conv_tile.parts(name, columns.count)
    wide, across = vectors * parts, len({phase.column for phase in weights.phases})
    staged = len(weights.phases) > 1 or rows.step * columns.step > 1
    least = _LEAST_STAGED if staged else LEAST
    form = conv_frame.PAIRS if pairs else conv_frame.PLAIN
    cuts = cut(x.spec, groups, rows, columns, gemm.lanes(name) // parts, wide, least, form)
    launches = []
    if pairs:
        launch, w, weights = paired(w, weights, channels, scratch)
        launches.append(launch)
    planes = cuts.words[PLANES]
    pack, packed = packed_weights(w, bias, weights, m, planes, groups, scratch)
    firsts, numbers = first_taps(weights), [len(phase.taps) for phase in weights.phases]
    tasks = cuts.blocks * groups
    chunk_tasks = -(-tasks // MOST_CHUNKS)
    chunks = -(-tasks // chunk_tasks)
    apart = cuts.words[TASK_IMAGES] * m * cuts.words[TASK_ROWS] * columns.count if staged else 0
    tables = scratch((chunks, SEGMENT_WORDS * (cuts.segments + wide)), _I64)
    regions = scratch((chunks, cuts.frame + across * apart + gemm.lanes(name)), x.dtype)
    interleaved = staged and columns.step == across == 2
    after, line, after_words = _lowered(epilogue, out)
    plan = (
        *(*cuts.words, tasks, chunk_tasks, m, high, wide, rows.out * columns.out),
        *(max(1, _DEPTH // max(1, *numbers)), columns.out, rows.step, columns.step),
        *(cuts.frame if staged else -1, apart, across, len(numbers)),
        *(conv_frame.interleave(name) if interleaved else 0, parts, after, line),
        *_tiles_of(cuts, name, high, vectors, parts, pairs),
        *itertools.chain(
            *((p.row, p.column, f, n) for p, f, n in zip(weights.phases, firsts, numbers, strict=True))
        ),
    )
    flops = 2.0 * x.shape[0] * out.shape[1] * planes * sum(numbers) * rows.count * columns.count
    flops += out.size * epilogue.flops if epilogue else 0.0
    work = flops * config.FLOP_NS + (x.size + out.size) * 0.2
    lines = x.reshaped(x.size // columns.size, columns.size)
    taps = cuts.distances(tap for phase in weights.phases for tap in phase.taps)
    arrays = (lines, packed, out.reshaped(out.size), regions, tables)
    return [*launches, pack, _convolve(chunks, work, *arrays, plan, taps, after_words)]


def _lowered(epilogue: Epilogue | None, out: Operand) -> tuple[int, int, tuple[int | Address, ...]]:
    """Return the address of an epilogue's function, the columns of the matrix that it sees, and its words."""
    if epilogue is None:
        return 0, 0, ()
    width = out.shape[3]
    # Planes are longer than rows, which may be shorter than a vector.
    line = width if {ROW, COLUMN} & {*epilogue.kinds} else out.shape[2] * width
    function, words = epilogue.lower(out.reshaped(out.size // line, line), prefetch=False)
    return function, line, words


def _tiles_of(cuts: Tasks, name: str, high: int, vectors: int, parts: int, pairs: bool) -> list[int]:
    """Return the addresses of tiles of 1, 2, ... vectors; 0 for those that no task has."""
    used = {-(-((count - 1) % (vectors * parts) + 1) // parts) for count in cuts.counts} | {vectors}
    return [
        conv_tile.tile(name, high, v, parts, pairs) if v in used else 0
        for v in range(1, conv_tile.MOST_VECTORS + 1)
    ]
