"""Tasks of a convolution: a few images, or a band of rows of one, by a group of channels.

The source of a task is copied into a frame, surrounded by zeros. Where the stride is more than 1, the frame
has the columns sorted by their remainder, so that a vector of the result reads neighbours at every tap. Where
rows are whole vectors and there is no padding, the source is read in place.

Rows of results are cut into segments of a vector, or of a half or a quarter of one where rows are short: two
rows of 7 float32 fill 14 of 16 lanes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from . import conv_frame, gemm
from .compiled import device
from .intrinsics import call_address
from .kernel import A1, A2, Words
from .program import Spec

#: Elements of a frame that fit into the second-level cache beside the weights: 256 kB of float32.
_FRAME = 1 << 16

#: Least number of results of a channel in a task, where there are enough images: they share the fixed cost
#: of a tile.
LEAST = 1536

#: Most chunks of a launch, and least where possible. Each has a frame, and perhaps a partial sum.
MOST_CHUNKS, LEAST_CHUNKS = 32, 8

#: Most phases of a stride of which each has launches.
_MOST_PHASES = 32

#: Words of a plan that `begin` reads. Sizes: planes of a group (channels, or pairs of them), images, bands of
#: an image, images and rows of results of a task, rows of the source and of all results, their stride, the
#: padding above, rows of a frame.
GROUPS, PLANES, IMAGES, BANDS, TASK_IMAGES, TASK_ROWS, HEIGHT, ROWS, STRIDE, BEFORE, FRAME_ROWS = range(11)
#: Columns of results, their stride, the padding left, columns of a frame for each remainder, whether there is
#: a frame, elements of a segment, and the address of the function that fills a frame.
COLUMNS, STEP, LEFT, FRAME_COLUMNS, FRAMED, LANES, COPY = range(11, 18)
#: Channels of a group, those of a plane, bytes of an element of the source as tiles read it.
CHANNELS, PER_PLANE, SIZE = range(18, 21)
#: Remainders of columns that a frame has: all, or 0 alone where every tap is a multiple of the stride. The
#: rows of the source from a frame's row to the next: 1, or in that case the stride.
REMAINDERS, ROW_STEP = range(21, 23)
#: Number of these words.
TASK_WORDS = 23

#: Words of a segment in a task's table: where it reads, where it writes (or reads gradients), how many
#: elements.
SEGMENT_WORDS = 3


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: `count` sums over a window that moves by `stride` along `size` elements.

    before: zeros before the first element; negative where elements are left out.
    taps: distances of the window's elements from its first.
    out, step: sum k is element k * step of `out`, or in a later phase one after it.
    """

    size: int
    count: int
    stride: int
    before: int
    taps: tuple[int, ...]
    out: int
    step: int = 1

    @property
    def reach(self) -> int:
        """The distance from the window's first element to its last."""
        return max(self.taps, default=0)

    def length(self, count: int) -> int:
        """Return the number of elements from the first to the last that `count` sums read."""
        return (count - 1) * self.stride + self.reach + 1


def has_all_phases(axis: Axis) -> bool:
    """Whether `phases` returns those without taps too: a launch for each, instead of one that fills zeros."""
    return axis.stride <= _MOST_PHASES


def phases(axis: Axis) -> tuple[Axis, list[tuple[int, tuple[int, ...], tuple[int, ...]]]]:
    """Return the axis of the input's gradient, from `axis.count` elements to `axis.size`, and its phases.

    A phase is the number of its first element, the numbers of the taps that contribute to it, and their
    distances. Of a stride with many phases, those without taps are left out: their elements are zeros. The
    last sums of a phase may be beyond the end.
    """
    every = range(min(axis.stride, axis.size))
    hit = {(tap - axis.before) % axis.stride for tap in axis.taps}
    starts = every if has_all_phases(axis) else sorted(p for p in hit if p < axis.size)
    hits = [
        [
            (k, (start + axis.before - tap) // axis.stride)
            for k, tap in enumerate(axis.taps)
            if (start + axis.before - tap) % axis.stride == 0
        ]
        for start in starts
    ]
    first = min((d for phase in hits for _, d in phase), default=0)
    taps = [tuple(d - first for _, d in phase) for phase in hits]
    union = tuple(sorted({t for phase in taps for t in phase}))
    count = -(-axis.size // axis.stride)
    back = Axis(axis.count, count, 1, -first, union, axis.size, axis.stride)
    numbers = [tuple(k for k, _ in phase) for phase in hits]
    return back, list(zip(starts, numbers, taps, strict=True))


@dataclass(frozen=True)
class Tasks:
    """How a source is cut into tasks: the words that `begin` reads, and the sizes that a plan needs."""

    words: tuple[int, ...]
    size: int  # bytes of an element as tiles read it
    blocks: int  # tasks of one group
    counts: tuple[int, ...]  # segments of a task: of the most images and rows first, then of the last ones
    frame: int  # elements of the source's dtype

    @property
    def segments(self) -> int:
        """The number of segments of a task, at most."""
        return self.counts[0]

    def distances(self, taps: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Return the bytes from a segment to its source at each tap (rows, columns)."""
        step, wide, framed = (self.words[k] for k in (STEP, FRAME_COLUMNS, FRAMED))
        line, row_step = self.words[REMAINDERS] * wide, self.words[ROW_STEP]
        return tuple(
            (y // row_step * line + (z % step * wide + z // step if framed else z)) * self.size
            for y, z in taps
        )


def _skip(axis: Axis) -> int:
    """Return the distance between elements that are read: the stride, or 1 where taps are between them."""
    return 1 if any(tap % axis.stride for tap in axis.taps) else axis.stride


def _in_place(x: Spec, rows: Axis, columns: Axis, lanes: int) -> bool:
    """Whether the source can be read without a frame."""
    return (
        rows.before == columns.before == 0
        and columns.stride == 1
        and rows.length(rows.count) <= rows.size
        and columns.length(columns.count) <= columns.size
        and columns.count % lanes == 0
    )


def cut(
    x: Spec,
    groups: int,
    rows: Axis,
    columns: Axis,
    lanes: int,
    tile: int = 1,
    least: int = LEAST,
    form: str = conv_frame.PLAIN,
) -> Tasks:
    """Cut a source (n, groups * channels, h, w) into tasks, of `least` results of a channel where possible.

    lanes: elements of a segment.  tile: segments of a tile; tasks have whole ones if possible.
    form: of the frame's elements, see `conv_frame.py`.
    """
    images, channels = x.shape[0], x.shape[1] // groups
    step, framed = columns.stride, form != conv_frame.PLAIN or not _in_place(x, rows, columns, lanes)
    per_plane = 2 if form == conv_frame.PAIRS else 1
    size = 2 if form == conv_frame.HALVES else x.dtype.itemsize
    planes, most_frame = -(-channels // per_plane), _FRAME * 2 if form == conv_frame.HALVES else _FRAME
    wide = -(-columns.length(columns.count) // step) if framed else columns.size
    remainders, row_step = (_skip(columns), _skip(rows)) if framed else (1, 1)
    remainders = step // remainders
    across, line = -(-columns.count // lanes), remainders * wide

    def frame_rows(count: int) -> int:
        return (rows.length(count) - 1) // row_step + 1

    most = rows.count
    # Bands of an image with a large frame, or for enough chunks; otherwise several images.
    while most > 1 and planes * frame_rows(most) * line > 2 * most_frame:
        most = -(-most // 2)
    bands = max(-(-rows.count // most), min(rows.count, LEAST_CHUNKS // (images * groups)))
    most = -(-rows.count // bands)
    bands, high = -(-rows.count // most), frame_rows(most)
    frame = planes * high * line
    per = 1
    if bands == 1:
        part = most * across
        top = min(
            -(-least // (part * lanes)), most_frame // frame, images * groups // (2 * LEAST_CHUNKS), images
        )
        # Whole tiles, then many images: 3 of 14 segments each make 14 tiles of 3.
        per = max(range(1, max(1, top) + 1), key=lambda n: (n * part / -(-n * part // tile), n))
    words = (
        *(groups, planes, images, bands, per, most, rows.size, rows.count, rows.stride, rows.before, high),
        *(columns.count, step, columns.before, wide, int(framed), lanes),
        *(conv_frame.frame(x.dtype.name, step, form) if framed else 0, channels, per_plane, size),
        *(remainders, row_step),
    )
    # A vector may reach beyond the end of the frame.
    frame = (-(-per * frame * size // x.dtype.itemsize) + gemm.lanes(x.dtype.name)) if framed else 0
    some = [(total - 1) % each + 1 for total, each in ((images, per), (rows.count, most))]
    counts = tuple(n * rows_of * across for n in (per, some[0]) for rows_of in (most, some[1]))
    return Tasks(words, size, -(-images // per) * bands, counts, frame)


@device
def _fill_frame(x: A2, region: A1, plan: Words, image: int, used: int, group: int, row: int) -> None:
    """Copy the source of `used` images, from result row `row` on, to a frame at the start of a region."""
    groups, channels, height, high = plan[GROUPS], plan[CHANNELS], plan[HEIGHT], plan[FRAME_ROWS]
    copy, wide, step, left = plan[COPY], plan[FRAME_COLUMNS], plan[STEP], plan[LEFT]
    planes, per, width, remainders, row_step = (
        plan[PLANES],
        plan[PER_PLANE],
        x.shape[1],
        plan[REMAINDERS],
        plan[ROW_STEP],
    )
    line = remainders * wide * plan[SIZE]
    top = row * plan[STRIDE] - plan[BEFORE]
    above = min((max(-top, 0) + row_step - 1) // row_step, high)
    top += above * row_step
    inside = max(0, min(high - above, (height - top + row_step - 1) // row_step))
    below = high - above - inside
    first, total = (image * groups + group) * channels, groups * channels
    base, pitch, frame = x.ctypes.data, width * x.itemsize, region.ctypes.data
    for n in range(used):
        for p in range(planes):
            c, to = p * per, frame + (n * planes + p) * high * line
            at = base + ((first + n * total + c) * height + max(top, 0)) * pitch
            next_row = pitch * row_step
            other = height * pitch if per == 2 and c + 1 < channels else 0
            call_address(copy, above, base, 0, to, wide, step, remainders, left, 0, 0)
            middle, end = to + above * line, to + (above + inside) * line
            call_address(copy, inside, at, next_row, middle, wide, step, remainders, left, width, other)
            call_address(copy, below, base, 0, end, wide, step, remainders, left, 0, 0)


@device
def begin(
    x: A2, region: A1, table: A1, plan: Words, task: int, next_other: int, line_other: int, done: int
) -> tuple[int, int, int, int, int, int, int]:
    """Prepare a task: its frame, and its table of segments.

    next_other, line_other: elements from an image to the next and from a row to the next, in the array that
    the table's second words point into.  done: the number of segments in the table, from the chunk's last
    task.

    Returns the address of the source, bytes from a plane of it to the next, the number of segments; the
    task's first image, its number of images, its first row, its number of rows.
    """
    groups, planes, bands = plan[GROUPS], plan[PLANES], plan[BANDS]
    group, block, size = task % groups, task // groups, plan[SIZE]
    image, row = block // bands * plan[TASK_IMAGES], block % bands * plan[TASK_ROWS]
    used, rows = min(plan[TASK_IMAGES], plan[IMAGES] - image), min(plan[TASK_ROWS], plan[ROWS] - row)
    columns, lanes, line = plan[COLUMNS], plan[LANES], plan[REMAINDERS] * plan[FRAME_COLUMNS]
    stride = plan[STRIDE] // plan[ROW_STEP]
    if plan[FRAMED]:
        _fill_frame(x, region, plan, image, used, group, row)
        plane, source = plan[FRAME_ROWS] * line, region.ctypes.data
        next_image = planes * plane
    else:
        plane = plan[HEIGHT] * line
        next_image = groups * planes * plane
        first = (image * groups + group) * planes
        source = x.ctypes.data + (first * plan[HEIGHT] + row * stride) * line * size
    pieces = (columns + lanes - 1) // lanes
    count = used * rows * pieces
    if count != done:  # otherwise the table is there: all whole tasks have the same
        k = 0
        for n in range(used):
            for t in range(rows):
                for piece in range(pieces):
                    q = piece * lanes
                    table[k] = (n * next_image + t * stride * line + q) * size
                    table[k + 1] = (n * next_other + t * line_other + q) * x.itemsize
                    table[k + 2] = min(lanes, columns - q)
                    k += SEGMENT_WORDS
    return source, plane * size, count, image, used, row, rows
