"""Memory for results: on the boundaries of cache lines, and for optimizers given out again.

A vector of 64 bytes that lies across two lines costs two accesses: of NumPy's arrays, which begin 16 bytes
after one, every vector does. In aligned memory relu of 10^6 took 54 us instead of 90, a product of depth 64
a fifth less.

An array fresh from the system costs a page fault for every 4 kB: an Adam update of 10^6 parameters took
2.4 ms with them, 0.5 ms without. An array is free when this module holds the only reference to it, since
every view of it, in NumPy or in another library, holds one too.
"""

import ctypes
import math
import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import config

#: Bytes -> the arrays of that size, those given out longest ago first.
_kept: dict[int, deque[NDArray[np.uint8]]] = {}
_total = 0

#: How many arrays of a size are looked at. The oldest are free first; an optimizer with two moments has six.
_LOOKS = 8


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    """Return a fresh C-contiguous array with whatever elements its memory has; a large one is aligned."""
    size = math.prod(shape) * dtype.itemsize
    return _view(_bytes(size), shape, dtype) if size >= config.ALIGNED_LEAST else np.empty(shape, dtype)


def _bytes(size: int) -> NDArray[np.uint8]:
    """Return memory that an aligned array of `size` bytes fits in."""
    return np.empty(size + config.LINE, np.uint8)


def _view(memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))  # type: ignore[arg-type]
    return np.ndarray(shape, dtype, memory, -address % config.LINE)


def recycled(shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    """Return an aligned array as `aligned` does, perhaps in memory that was given out before."""
    size = math.prod(shape) * dtype.itemsize
    if size < config.KEPT_LEAST:
        return np.empty(shape, dtype)
    arrays = _kept.get(size)
    if arrays is None:
        arrays = _kept[size] = deque()
    for _ in range(_LOOKS):
        # An array that is taken out of the deque, which is one step, is no other thread's.
        try:
            memory = arrays.popleft()
        except IndexError:
            break
        free = sys.getrefcount(memory) == 2  # this name, and the argument
        found: NDArray[Any] | None = _view(memory, shape, dtype) if free else None
        arrays.append(memory)
        if found is not None:
            return found
    return _fresh(shape, dtype, size, arrays)


def exclusive(arrays: list[NDArray[Any]]) -> bool:
    """Whether nobody but a list holds arrays that this module made, or views of them."""
    for a in arrays:
        if sys.getrefcount(a) > 3:  # the list, this name, and the argument
            return False
        owner = a.base
        if owner is None:
            continue
        kept = any(owner is m for m in tuple(_kept.get(owner.nbytes - config.LINE, ())))
        if sys.getrefcount(owner) > 3 + kept:  # the array, this name, the argument
            return False
    return True


def _fresh(
    shape: tuple[int, ...], dtype: np.dtype, size: int, arrays: deque[NDArray[np.uint8]]
) -> NDArray[Any]:
    global _total
    if _total + size > config.KEPT_MOST:
        release()
        arrays = _kept.setdefault(size, deque())
    memory = _bytes(size)
    found = _view(memory, shape, dtype)
    arrays.append(memory)
    _total += size
    return found


def release() -> None:
    """Let go of all arrays; those in use are freed when their users are done."""
    global _total
    _kept.clear()
    _total = 0
