"""The largest sizes: what 64 bits count, and what the machine's memory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from treepie.kernels import memory

#: The largest integer of 64 bits: kernels count bytes and positions in these.
LARGEST = 2**63 - 1
#: The most elements of a tensor: their bytes, of 8 bytes each, are an integer of 64 bits.
MOST_ELEMENTS = LARGEST // 8
#: The most axes of a NumPy array.
MOST_AXES = 64


def shown(number: int) -> str:
    """Return an integer for a message: digits, a large one as "2**70" or by its number of bits."""
    if abs(number) < 10**9:
        return str(number)
    sign, n = "-" * (number < 0), abs(number)
    bits = n.bit_length()
    if n == 1 << (bits - 1):
        return f"{sign}2**{bits - 1}"
    if n == (1 << bits) - 1:
        return f"{sign}(2**{bits} - 1)" if sign else f"2**{bits} - 1"
    return f"{sign}{n}" if bits <= 128 else f"an integer of {bits} bits"


def check_total(name: str, shape: Sequence[int]) -> None:
    """Refuse a shape whose bytes an address can not count; as in NumPy, sizes of 0 do not make it fit."""
    total = math.prod(shape) or math.prod([n for n in shape if n])
    if total > MOST_ELEMENTS or len(shape) > MOST_AXES:
        listed = ", ".join(map(shown, shape))
        raise ValueError(
            f"{name}: the shape ({listed}) has {shown(total)} elements on {len(shape)} axes, expected at "
            f"most {shown(MOST_ELEMENTS)} on {MOST_AXES}"
        )


def out_of_memory(name: str, shape: Sequence[int], dtype: np.dtype) -> MemoryError:
    """Return the error for an array that the machine's memory can not hold."""
    error = memory.too_large(name, math.prod(shape) * dtype.itemsize)
    return MemoryError(f"{error}, shape {tuple(shape)} of {dtype.name}")
