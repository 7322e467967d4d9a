"""Sums over ranks that share memory, and waiting for words that other processes write."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np

from . import config, native
from .atomics import load, pause, store, ticks
from .compiled import c_function
from .helpers import ticks_per_ns
from .intrinsics import rows_at
from .kernel import A1, Words, kernel
from .program import Address, LaunchTable, Operand, Spec
from .rows import row_map

#: Elements of a chunk: its running sum stays in the first-level cache while rank after rank is added.
_CHUNK = 4096

_add = row_map("rank_add", lambda a, b: a + b)
_copy = row_map("rank_copy", lambda a: a)


@kernel
def _sum(lo: int, hi: int, like: A1, sources: Words, targets: Words) -> None:
    size = like.size
    for chunk in range(lo, hi):
        first = chunk * _CHUNK
        count = min(_CHUNK, size - first)
        skip = first * like.itemsize
        out = rows_at(targets[0] + skip, 1, count, like)[0]
        x = rows_at(sources[0] + skip, 1, count, like)[0]
        if sources.size == 1:
            _copy(out, x)
        for r in range(1, sources.size):
            y = rows_at(sources[r] + skip, 1, count, like)[0]
            if r == 1:
                _add(out, x, y)
            else:
                _add(out, out, y)
        for r in range(1, targets.size):
            _copy(rows_at(targets[r] + skip, 1, count, like)[0], out)


@functools.lru_cache(64)
def _table(size: int, dtype: np.dtype, sources: int, targets: int) -> LaunchTable:
    spec = Spec((size,), dtype)
    addresses = [Address(Operand(k, spec)) for k in range(sources + targets)]
    work_ns = (sources + targets) * spec.nbytes * config.BYTE_NS
    launch = _sum(
        -(-size // _CHUNK), work_ns, Operand(0, spec), tuple(addresses[:sources]), tuple(addresses[sources:])
    )
    return LaunchTable([launch])


def sum_arrays(size: int, dtype: np.dtype, sources: Sequence[int], targets: Sequence[int]) -> None:
    """Add up arrays at addresses, in their order, and store the sum at other addresses.

    Targets may be among the sources; the first target may be none of them but the first two, since the sum is
    built up there.
    """
    if size:
        _table(size, dtype, len(sources), len(targets)).run([*sources, *targets])


def wait(words: int, stride: int, count: int, value: int, limit: int) -> int:
    """Wait until words have at least a value; return -1, or after `limit` ticks which has not."""
    until = ticks() + limit
    for k in range(count):
        while load(words + k * stride) < value:
            if ticks() > until:
                return k
            pause()
    return -1


def publish(address: int, value: int) -> int:
    """Set a word, after which others see what was stored before."""
    return store(address, value)


@functools.cache
def _c(name: str, arguments: int) -> "ctypes._FuncPointer":
    functions: dict[str, Callable[..., int]] = {"wait_words": wait, "publish_word": publish}
    function = functions[name]
    address = native.load(name, lambda: c_function(name, function, arguments, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(address)


def first_below(words: int, stride: int, count: int, value: int, ns: float = 0) -> int:
    """Return which of some words is below a value, or -1 when none is; wait actively for so many ns."""
    return int(_c("wait_words", 5)(words, stride, count, value, round(ns * ticks_per_ns())))


def set_word(address: int, value: int) -> None:
    """Set a word that other processes wait for, after all that was stored before."""
    _c("publish_word", 2)(address, value)
