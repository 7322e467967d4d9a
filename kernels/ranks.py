"""Sums over ranks that share memory, and phases to which all of them come."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import config, native
from .atomics import load, pause, store, ticks
from .compiled import c_function
from .helpers import ticks_per_ns
from .intrinsics import rows_at
from .kernel import A1, Words, kernel
from .memory import address_of
from .program import Address, LaunchTable, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Value

#: Elements of a chunk: its running sum stays in the first-level cache while rank after rank is added.
_CHUNK = 4096


def _square(x: Value) -> Value:
    wide = x.astype("float64")
    return wide * wide


_add = row_map("rank_add", lambda a, b: a + b)
_copy = row_map("rank_copy", lambda a: a)
_squares = row_reduce("rank_squares", _square, lambda a, b: a + b, -0.0)


@kernel
def _sum(lo: int, hi: int, like: A1, squares: A1, sources: Words, targets: Words) -> None:
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
        if squares.size:
            squares[chunk] = _squares(out)
        for r in range(1, targets.size):
            _copy(rows_at(targets[r] + skip, 1, count, like)[0], out)


@functools.lru_cache(64)
def _table(size: int, dtype: np.dtype, sources: int, targets: int, squares: bool) -> LaunchTable:
    spec = Spec((size,), dtype)
    addresses = [Address(Operand(k, spec)) for k in range(sources + targets)]
    work_ns = (sources + targets) * spec.nbytes * config.BYTE_NS
    chunks = chunk_count(size)
    partial = Operand(sources + targets, Spec((chunks if squares else 0,), np.dtype("float64")))
    from_, to = tuple(addresses[:sources]), tuple(addresses[sources:])
    return LaunchTable([_sum(chunks, work_ns, Operand(0, spec), partial, from_, to)])


def chunk_count(size: int) -> int:
    """Return into how many chunks `sum_arrays` cuts arrays of a size."""
    return -(-size // _CHUNK)


def sum_arrays(
    size: int,
    dtype: np.dtype,
    sources: Sequence[int],
    targets: Sequence[int],
    squares: NDArray[np.float64] | None = None,
) -> None:
    """Add up arrays at addresses, in their order, and store the sum at other addresses.

    Targets may be among the sources; the first target may be none of them but the first two, since the sum is
    built up there. squares: of `chunk_count(size)` elements, for the sum of squares of each chunk.
    """
    if size:
        table = _table(size, dtype, len(sources), len(targets), squares is not None)
        table.run([*sources, *targets, 0 if squares is None else address_of(squares)])


def meet(words: int, stride: int, own: int, count: int, phase: int, at: int, value: int, limit: int) -> int:
    """Come to a phase, and wait for the first `count` ranks to come to it too; then compare a word of theirs.

    words: the address of the phase of the first rank; those of the others follow by a stride.
    own: this rank's number.  at: the offset of the word that is compared.  value: this rank's.

    Returns -1, the number of a rank with another value, or, after `limit` ticks, `count` + that of one that
    has not come. It may be called again for the same phase.
    """
    mine = words + own * stride
    store(mine + at, value)
    store(mine, phase)
    until = ticks() + limit
    for k in range(count):
        while load(words + k * stride) < phase:
            if ticks() > until:
                return count + k
            pause()
    for k in range(count):
        if load(words + k * stride + at) != value:
            return k
    return -1


def publish(address: int, value: int) -> int:
    """Set a word, after which others see what was stored before."""
    return store(address, value)


@functools.cache
def _c(name: str, arguments: int) -> "ctypes._FuncPointer":
    functions: dict[str, Callable[..., int]] = {"meet_ranks": meet, "publish_word": publish}
    function = functions[name]
    address = native.load(name, lambda: c_function(name, function, arguments, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(address)


def come(*place: int, ns: float = 0) -> int:
    """Run `meet`, and wait actively for so many ns. place: its arguments but the last."""
    return _c("meet_ranks", 8)(*place, round(ns * ticks_per_ns()))  # type: ignore[no-any-return]


def set_word(address: int, value: int) -> None:
    """Set a word that other processes wait for, after all that was stored before."""
    _c("publish_word", 2)(address, value)
