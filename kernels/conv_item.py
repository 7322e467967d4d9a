"""What a chunk of a convolution works on: a few images, or a band of rows of one, and a group of channels.

The source of an item is copied into a frame: with zeros around, and where the stride is more than 1 with its
columns dealt out by their remainder, so that what a vector of the result meets at a tap are neighbours. Where
rows are whole vectors and there is no margin, the source is read where it is.

Rows of results are cut into whole vectors each: of 14 float32, 2 in 16 lanes idle, of 7 more than half do.
"""

from dataclasses import dataclass

from . import conv_tile, gemm
from .intrinsics import call_address
from .kernel import A1, A2, Words, device
from .program import Spec

#: Elements of a frame that fit into the second-level cache beside the weights: 256 kB of float32.
_FRAME = 1 << 16

#: Segments of an item at least, where there are images enough: they share what a tile costs once.
_SEGMENTS = 96

#: Units of work, each with a frame and maybe a partial sum of its own: at most, and where possible at least.
MOST_CHUNKS, LEAST_CHUNKS = 32, 8


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: `count` sums over a window that moves by `stride` along `size` elements.

    before: zeros before the first element; negative where elements are left out.
    taps: distances of the window's elements from its first.
    out, start, step: sum k is element start + k * step of `out`.
    """

    size: int
    count: int
    stride: int
    before: int
    taps: tuple[int, ...]
    out: int
    start: int = 0
    step: int = 1

    @property
    def reach(self) -> int:
        """The distance from the window's first element to its last."""
        return max(self.taps, default=0)

    def length(self, count: int) -> int:
        """Return how many elements `count` sums meet, from the first to the last."""
        return (count - 1) * self.stride + self.reach + 1


def phases(axis: Axis) -> list[tuple[Axis, tuple[int, ...]]]:
    """Return the axes of the gradient of the input: from `axis.count` elements to `axis.size`.

    There is one for each phase of the stride, with the window's elements that meet it, by their numbers.
    """
    found = []
    for phase in range(min(axis.stride, axis.size)):
        hits = [
            (k, (phase + axis.before - tap) // axis.stride)
            for k, tap in enumerate(axis.taps)
            if (phase + axis.before - tap) % axis.stride == 0
        ]
        first = min((d for _, d in hits), default=0)
        count = -(-(axis.size - phase) // axis.stride)
        taps = tuple(d - first for _, d in hits)
        back = Axis(axis.count, count, 1, -first, taps, axis.size, phase, axis.stride)
        found.append((back, tuple(k for k, _ in hits)))
    return found


@dataclass(frozen=True)
class Layout:
    """How a source is cut into items: the words that `begin` reads, and what they need."""

    words: tuple[int, ...]
    taps: tuple[int, ...]  # bytes from a segment to its source at each tap, columns fastest
    blocks: int  # items of one group
    segments: int  # of an item, at most
    frame: int  # elements


def layout(x: Spec, groups: int, rows: Axis, columns: Axis, tile: int) -> Layout:
    """Cut a source (n, groups * channels, h, w) into items, of whole tiles of `tile` segments if possible."""
    images, channels, lanes = x.shape[0], x.shape[1] // groups, gemm.lanes(x.dtype.name)
    step = columns.stride
    framed = not (
        rows.before == columns.before == 0
        and step == 1
        and rows.length(rows.count) <= rows.size
        and columns.length(columns.count) <= columns.size
        and columns.count % lanes == 0
    )
    wide = -(-columns.length(columns.count) // step) if framed else columns.size
    across, line = -(-columns.count // lanes), step * wide
    most = rows.count
    # Bands of an image whose frame is large, or to have chunks enough; else several images.
    while most > 1 and channels * rows.length(most) * line > 2 * _FRAME:
        most = -(-most // 2)
    bands = max(-(-rows.count // most), min(rows.count, LEAST_CHUNKS // (images * groups)))
    most = -(-rows.count // bands)
    bands, high = -(-rows.count // most), rows.length(most)
    frame = channels * high * line
    per = 1
    if bands == 1:
        part = most * across
        top = min(-(-_SEGMENTS // part), _FRAME // frame, images * groups // (2 * LEAST_CHUNKS), images)
        # Whole tiles, then many images: 3 of 14 segments each make 14 tiles of 3.
        per = max(range(1, max(1, top) + 1), key=lambda n: (n * part / -(-n * part // tile), n))
    words: tuple[int, ...] = (
        groups,
        channels,
        images,
        bands,
        per,
        most,
        rows.size,
        rows.count,
        rows.stride,
        rows.before,
        high,
    )
    words += (columns.count, step, columns.before, wide, int(framed), lanes)
    words += (conv_tile.frame(x.dtype.name, step) if framed else 0,)
    taps = tuple(
        (y * line + (z % step * wide + z // step if framed else z)) * x.dtype.itemsize
        for y in rows.taps
        for z in columns.taps
    )
    # A vector may reach beyond the end of the frame.
    frame = (per * frame + lanes) if framed else 0
    return Layout(words, taps, -(-images // per) * bands, per * most * across, frame)


@device
def begin(
    x: A2, region: A1, table: A1, plan: Words, item: int, next_other: int, line_other: int, done: int
) -> tuple[int, int, int, int, int, int, int]:
    """Prepare an item: its frame, and its table of segments.

    next_other, line_other: elements from an image to the next and from a row to the next, in the array that
    the table's second words lead to.  done: how many segments the table has, of the chunk's last item.
    Returns the address of the source, bytes from a channel of it to the next, how many segments there are;
    the item's first image, how many images it has, its first row, how many rows.
    """
    groups, channels, images, bands, per, most = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
    height, all_rows, stride, before, high = plan[6], plan[7], plan[8], plan[9], plan[10]
    columns, step, left, wide, framed, lanes = plan[11], plan[12], plan[13], plan[14], plan[15], plan[16]
    copy = plan[17]
    group, block, size = item % groups, item // groups, x.itemsize
    image, row = block // bands * per, block % bands * most
    used, rows, line = min(per, images - image), min(most, all_rows - row), step * wide
    first, total = (image * groups + group) * channels, groups * channels
    if framed:
        plane, source, next_image = high * line, region.ctypes.data, channels * high * line
        top = row * stride - before
        above = min(max(-top, 0), high)
        met = max(0, min(height, top + high) - max(top, 0))
        below, width = high - above - met, x.shape[1]
        base, pitch = x.ctypes.data, x.shape[1] * size
        for n in range(used):
            for c in range(channels):
                to = source + (n * channels + c) * plane * size
                at = base + ((first + n * total + c) * height + max(top, 0)) * pitch
                call_address(copy, above, base, 0, to, wide, step, left, 0)
                call_address(copy, met, at, pitch, to + above * line * size, wide, step, left, width)
                call_address(copy, below, base, 0, to + (above + met) * line * size, wide, step, left, 0)
    else:
        plane, next_image = height * line, total * height * line
        source = x.ctypes.data + (first * height + row * stride) * line * size
    pieces = (columns + lanes - 1) // lanes
    count = used * rows * pieces
    if count != done:  # else the table is there: all whole items have the same
        k = 0
        for n in range(used):
            for t in range(rows):
                for piece in range(pieces):
                    q = piece * lanes
                    table[k] = (n * next_image + t * stride * line + q) * size
                    table[k + 1] = (n * next_other + t * line_other + q) * size
                    table[k + 2] = min(lanes, columns - q)
                    k += 3
    return source, plane * size, count, image, used, row, rows
