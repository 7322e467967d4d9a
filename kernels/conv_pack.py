"""Weights of a convolution, packed into strips in the order in which tiles read them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import conv_frame, conv_tile
from .intrinsics import call_address
from .kernel import A1, Words, kernel
from .program import Launch, Operand

#: Elements of pairs in a chunk of `_pair`, at least.
_PAIR_BLOCK = 1 << 12

#: Words of the steps of `_pack`: elements from a group, a row, a plane of the weights to the next; rows and
#: planes of a group, rows of a strip, strips of a phase, whether there is a bias. Then for each phase its
#: first tap, and the number of taps.
_GROUP_STEP, _ROW_STEP, _PLANE_STEP, _PACK_M, _PACK_PLANES, _PACK_HIGH, _STRIPS, _BIASED = range(8)
_PACK_PHASES = 8

Scratch = Callable[[tuple[int, ...], object], Operand]


@dataclass(frozen=True)
class Phase:
    """Results that are sums over the same taps: every step-th row and column, from a first one on.

    taps: distances of the source (rows, columns).  offsets: of the weights, in elements.
    """

    row: int
    column: int
    taps: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """Strides of weights, in elements: of groups, rows and channels; and the phases, columns fastest."""

    group: int
    row: int
    channel: int
    phases: tuple[Phase, ...]


@kernel
def _pack(lo: int, hi: int, w: A1, bias: A1, out: A1, taps: Words, steps: Words) -> None:
    # A strip is (1 + planes * taps, high): the biases of its rows, then their weights.
    m, planes, high, strips = steps[_PACK_M], steps[_PACK_PLANES], steps[_PACK_HIGH], steps[_STRIPS]
    plane_step, of_group = steps[_PLANE_STEP], (m + high - 1) // high
    for chunk in range(lo, hi):
        phase, within = chunk // strips, chunk % strips
        group, top = within // of_group, within % of_group * high
        first, count = steps[_PACK_PHASES + 2 * phase], steps[_PACK_PHASES + 2 * phase + 1]
        size = (1 + planes * count) * high
        start = strips * high * (phase + planes * first) + within * size
        strip = out[start : start + size]
        strip[:] = 0
        for r in range(min(high, m - top)):
            if steps[_BIASED]:
                strip[r] = bias[group * m + top + r]
            row = w[group * steps[_GROUP_STEP] + (top + r) * steps[_ROW_STEP] :]
            at = high + r
            for c in range(planes):
                for t in range(first, first + count):
                    strip[at] = row[c * plane_step + taps[t]]
                    at += high


@kernel
def _pair(lo: int, hi: int, w: A1, out: A1, count: int, run: int, block: int, pair: int) -> None:
    # w: (outer, count, run).  out: (outer, ceil(count / 2), run), of pairs in bfloat16.
    planes, size = (count + 1) // 2, w.itemsize
    blocks = (planes + block - 1) // block
    for chunk in range(lo, hi):
        first = chunk % blocks * block
        last = min(first + block, planes)
        source = w.ctypes.data + (chunk // blocks * count + 2 * first) * run * size
        to = out.ctypes.data + (chunk // blocks * planes + first) * run * size
        whole = min(last, count // 2) - first
        call_address(pair, whole, source, 2 * run * size, to, run, 1, 1, 0, run, run * size)
        if 2 * last > count:
            at = whole * run * size
            call_address(pair, 1, source + 2 * at, 0, to + at, run, 1, 1, 0, run, 0)


def _flat(x: Operand) -> Operand:
    return x.reshaped(x.size)


def paired(w: Operand, weights: Weights, channels: int, scratch: Scratch) -> tuple[Launch, Operand, Weights]:
    """Plan weights rounded to bfloat16, in pairs of channels; return the launch, them and their strides."""
    run, planes = weights.channel, -(-channels // 2)
    outer = w.size // (channels * run)
    out = scratch((outer * planes * run,), w.dtype)
    block = max(1, _PAIR_BLOCK // run)
    chunks, pair = outer * -(-planes // block), conv_frame.frame(w.dtype.name, 1, conv_frame.PAIRS)
    launch = _pair(chunks, w.size * 0.5, _flat(w), out, channels, run, block, pair)

    def step(elements: int) -> int:
        return elements // channels * planes if elements >= channels * run else elements

    return launch, out, replace(weights, group=step(weights.group), row=step(weights.row))


def packed_weights(
    w: Operand, bias: Operand | None, weights: Weights, m: int, planes: int, groups: int, scratch: Scratch
) -> tuple[Launch, Operand]:
    """Plan the strips of weights, for m channels of the result in a group; return the launch and them."""
    high, _ = conv_tile.tile_shape(m)
    numbers = [len(phase.taps) for phase in weights.phases]
    strips, total = groups * -(-m // high), len(numbers) + planes * sum(numbers)
    packed = scratch((strips * high * total,), w.dtype)
    steps = (
        *(weights.group, weights.row, weights.channel, m, planes, high, strips, int(bias is not None)),
        *itertools.chain(*zip(first_taps(weights), numbers, strict=True)),
    )
    offsets = tuple(offset for phase in weights.phases for offset in phase.offsets)
    arrays = (_flat(w), _flat(bias or w), packed)
    return _pack(strips * len(numbers), 1.5 * packed.size, *arrays, offsets, steps), packed


def first_taps(weights: Weights) -> list[int]:
    """Return the number of each phase's first tap."""
    numbers = [len(phase.taps) for phase in weights.phases]
    return [sum(numbers[:k]) for k in range(len(numbers))]
