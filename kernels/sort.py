"""Stable sorting of lines by a radix sort that carries indices. Arrays are viewed as (outer, n, inner)."""

import numpy as np

from . import config
from .kernel import A2, A3, kernel
from .program import Launch, Operand

#: Values of the digit that one pass orders by: 8 bits, so that the lines being written to stay in the
#: first-level cache and its TLB.
_DIGITS = 256

#: Lines up to this length are sorted by insertion: a radix sort clears and sums 256 counts a pass.
_SHORT = 32


@kernel
def _argsort(
    lo: int, hi: int, x: A3, order: A3, keys: A2, positions: A2, counts: A2, group: int, flags: int
) -> None:
    # keys and positions have room for two lines: each pass moves a line from one half to the other.
    # flags: bits of a key, + 1 for floats, + 2 to sort the largest first.
    n, inner = x.shape[1], x.shape[2]
    floats, flip = flags & 1, -(flags >> 1 & 1)
    bits = flags & ~3
    sign = 1 << (bits - 1)
    for cell in range(lo * group, min(hi * group, x.shape[0] * inner)):
        o, j = cell // inner, cell % inner
        key, position, count = keys[cell], positions[cell], counts[cell // group]
        for i in range(n):
            k = int(x[o, i, j])
            if floats:
                magnitude = k & (sign - 1)
                # The bits of infinity: 8 or 11 ones above 23 or 52 zeros.
                infinity = 2139095040 if bits == 32 else 9218868437227405312
                if magnitude > infinity:
                    k = sign - 1  # every NaN sorts last, as in NumPy
                elif magnitude == 0:
                    k = 0  # -0.0 is equal to 0.0
                elif k < 0:
                    k = ~magnitude
            key[i] = k ^ flip
            position[i] = i
        source = 0
        if n <= _SHORT:
            for i in range(1, n):
                k, at = key[i], i
                while at > 0 and key[at - 1] > k:
                    key[at], position[at] = key[at - 1], position[at - 1]
                    at -= 1
                key[at], position[at] = k, i
        else:
            for digit in range(0, bits, 8):
                # The top digit holds the sign: adding half its range orders negative keys first.
                high = 128 if digit == bits - 8 else 0
                for d in range(_DIGITS):
                    count[d] = 0
                for i in range(n):
                    count[(key[source + i] >> digit & 255) ^ high] += 1
                if count[(key[source] >> digit & 255) ^ high] == n:
                    continue
                total = 0
                for d in range(_DIGITS):
                    total, count[d] = total + count[d], total
                for i in range(n):
                    k = key[source + i]
                    d = (k >> digit & 255) ^ high
                    at = n - source + count[d]
                    key[at], position[at] = k, position[source + i]
                    count[d] += 1
                source = n - source
        for i in range(n):
            order[o, i, j] = position[source + i]


def scratch(x: Operand) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes, of int64, of the keys and positions of all lines, and of the counts."""
    outer, n, inner = x.shape
    lines, group = outer * inner, _group(n)
    return (lines, 2 * n), (-(-lines // group), _DIGITS)


def _group(n: int) -> int:
    return max(1, config.ELEMENTWISE_CHUNK // max(n, 1))


def argsort(
    x: Operand, order: Operand, keys: Operand, positions: Operand, counts: Operand, descending: bool
) -> Launch:
    """Plan order (outer, n, inner), int64 = the positions of the elements of x over n, sorted.

    x: float32, float64, int32 or int64.  keys, positions, counts: int64, of the shapes of `scratch`.
    Equal elements keep their order, either way; NaN is larger than any number. A line is sorted by one
    thread, 2 to 4 ns an element and byte of its dtype.
    """
    n, bits = x.shape[1], 8 * x.dtype.itemsize
    flags = bits + (x.dtype.kind == "f") + 2 * descending
    lines = x.viewed(np.dtype(f"int{bits}"))
    group = _group(n)
    chunks = -(-x.shape[0] * x.shape[2] // group)
    return _argsort(chunks, 1.0 * bits * x.size, lines, order, keys, positions, counts, group, flags)
