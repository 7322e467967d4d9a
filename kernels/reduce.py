"""Reductions: sum, product, norm, maximum, minimum, any, all, argmax and argmin.

An array is viewed as (outer, n, inner), reduced over n. Partial results of fixed pieces of n go to scratch,
and
are then combined in order: a result has the same bits at any number of threads. Partial sums and products are
float64 or int64, so a float32 sum of 10^7 elements is as exact as its rounding; maxima and minima of floats
keep their dtype, which is twice as many float32 to a vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import config
from .compiled import device
from .intrinsics import scalar
from .kernel import A1, A2, A3, Kernel
from .program import Launch, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Formula, Value, maximum, minimum, sqrt


@dataclass(frozen=True)
class Reduction:
    """The kernels of one reduction, and the dtype of its partial results for each dtype."""

    rows: Kernel
    columns: Kernel
    combine: Kernel
    accumulator: Callable[[np.dtype], np.dtype]

    def plan(self, x: Operand, out: Operand, scratch: int, divisor: float = 1.0) -> list[Launch]:
        """Reduce x (outer, n, inner), n >= 1, to out (outer, inner); `mean` divides by `divisor`.

        scratch: number of a buffer of `partials(x.shape)` elements of 8 bytes.
        """
        outer, _, inner = x.shape
        first, partial = self.plan_partial(x, scratch)
        small = partial.spec.nbytes * config.BYTE_NS
        return [first, self.combine(1, small, partial, out.reshaped(outer, inner), divisor)]

    def plan_partial(self, x: Operand, scratch: int) -> tuple[Launch, Operand]:
        """Plan the first step alone; return it and the partial results (outer, pieces, inner)."""
        outer, n, inner = x.shape
        size = piece(n, inner)
        pieces = -(-n // size)
        partial = Operand(scratch, Spec((outer, pieces, inner), self.accumulator(x.dtype)))
        work = x.spec.nbytes * config.BYTE_NS + x.size * config.FLOP_NS
        if inner > 1:
            return self.columns(outer * pieces, work, x, partial, size), partial
        cells = outer * pieces
        group = max(1, config.ELEMENTWISE_CHUNK // min(n, size))
        flat = partial.reshaped(cells)
        return self.rows(-(-cells // group), work, x.reshaped(outer, n), flat, size, group), partial


def piece(n: int, inner: int) -> int:
    """Return how many elements of n a partial result covers.

    Columns are added up row by row, so a piece of them is short, so that rounding errors stay small: 6000
    rows of a float64 sum of 10^6 were off by 10 units in the last place, 1024 by less than 3.
    """
    return config.REDUCE_CHUNK if inner == 1 else max(1, min(1024, 16 * config.REDUCE_CHUNK // inner))


def partials(shape: tuple[int, ...]) -> int:
    """Return how many partial results an array (outer, n, inner) needs."""
    outer, n, inner = shape
    return outer * inner * -(-n // piece(n, inner))


def _wide(x: Value) -> Value:
    return x.astype("float64" if x.is_float else "int64")


def _wide_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype("float64" if dtype.kind == "f" else "int64")


def _keep_float(x: Value) -> Value:
    return x if x.is_float else x.astype("int64")


def _keep_float_dtype(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "f" else np.dtype("int64")


def _rows(name: str, reduce: Callable[..., Any]) -> Kernel:
    def rows(lo: int, hi: int, x: A2, partial: A1, piece: int, group: int) -> None:
        n = x.shape[1]
        pieces = (n + piece - 1) // piece
        for cell in range(lo * group, min(hi * group, partial.size)):
            start = cell % pieces * piece
            partial[cell] = reduce(x[cell // pieces, start : min(n, start + piece)])

    return Kernel(rows, f"{name}_rows")


def _columns(name: str, formula: Formula, prepare: Formula) -> Kernel:
    first = row_map(f"row_{name}_first", lambda x: prepare(x))
    merge = row_map(f"row_{name}_into", lambda total, x: formula(total, prepare(x)))

    def columns(lo: int, hi: int, x: A3, partial: A3, piece: int) -> None:
        n, pieces = x.shape[1], partial.shape[1]
        for chunk in range(lo, hi):
            outer, k = chunk // pieces, chunk % pieces
            total = partial[outer, k]
            first(total, x[outer, k * piece])
            for i in range(k * piece + 1, min(n, (k + 1) * piece)):
                merge(total, total, x[outer, i])

    return Kernel(columns, f"{name}_columns")


@device
def _unchanged(total: Any, divisor: float) -> Any:
    return total


@device
def _divided(total: Any, divisor: float) -> Any:
    return total / divisor


_sqrt = scalar(sqrt)


@device
def _root(total: Any, divisor: float) -> Any:
    return _sqrt(total)


def _combine(name: str, formula: Formula, finish: Callable[..., Any] = _unchanged) -> Kernel:
    combine = scalar(formula)

    def combined(lo: int, hi: int, partial: A3, out: A2, divisor: float) -> None:
        for o in range(partial.shape[0]):
            for j in range(partial.shape[2]):
                total = partial[o, 0, j]
                for k in range(1, partial.shape[1]):
                    total = combine(total, partial[o, k, j])
                out[o, j] = finish(total, divisor)

    return Kernel(combined, f"{name}_combine")


def _combine_sums(name: str, finish: Callable[..., Any] = _unchanged) -> Kernel:
    """Add partial sums by compensated summation (Neumaier 1974): 10^7 elements would lose 3 bits without."""

    def combined(lo: int, hi: int, partial: A3, out: A2, divisor: float) -> None:
        for o in range(partial.shape[0]):
            for j in range(partial.shape[2]):
                total = partial[o, 0, j]
                rest = total - total
                for k in range(1, partial.shape[1]):
                    value = partial[o, k, j]
                    after = total + value
                    share = after - total
                    rest += (total - (after - share)) + (value - share)
                    total = after
                # The rest is NaN where a sum is infinite, and would turn -0.0 into 0.0 where it is 0.
                if rest == rest and rest != 0:
                    total += rest
                out[o, j] = finish(total, divisor)

    return Kernel(combined, f"{name}_combine")


_add: Formula = lambda a, b: a + b
_times: Formula = lambda a, b: a * b
_square: Formula = lambda x: _wide(x) * _wide(x)

# -0.0, since 0.0 would turn a sum of -0.0 into 0.0.
_sum_rows = _rows("sum", row_reduce("row_sum", _wide, _add, -0.0, 0))
_sum_columns = _columns("sum", _add, _wide)
total = Reduction(_sum_rows, _sum_columns, _combine_sums("sum"), _wide_dtype)
mean = Reduction(_sum_rows, _sum_columns, _combine_sums("mean", _divided), _wide_dtype)
product = Reduction(
    _rows("prod", row_reduce("row_prod", _wide, _times, 1.0, 1)),
    _columns("prod", _times, _wide),
    _combine("prod", _times),
    _wide_dtype,
)
norm = Reduction(
    _rows("norm", row_reduce("row_square", _square, _add, 0.0)),
    _columns("norm", _add, _square),
    _combine_sums("norm", _root),
    _wide_dtype,
)


def _min_max(name: str, formula: Formula, start: float, start_int: int) -> Reduction:
    return Reduction(
        _rows(name, row_reduce(f"row_{name}", _keep_float, formula, start, start_int)),
        _columns(name, formula, _keep_float),
        _combine(name, formula),
        _keep_float_dtype,
    )


_LEAST = -(2**63)
largest = _min_max("max", maximum, -math.inf, _LEAST)
smallest = _min_max("min", minimum, math.inf, -_LEAST - 1)

#: A row is searched for a value in blocks of this many elements, then in the one block that has it.
_BLOCK = 64
_is: Formula = lambda x, top: (_keep_float(x) == top) | (_keep_float(x) != _keep_float(x))
_contains = row_reduce("row_contains", _is, lambda a, b: a | b, 0.0)


def _position(name: str, better: Callable[[Any, Any], bool]) -> Kernel:
    def positions(lo: int, hi: int, x: A1, partial: A3, out: A2, n: int, piece: int, group: int) -> None:
        pieces, inner = partial.shape[1], partial.shape[2]
        for cell in range(lo * group, min(hi * group, out.size)):
            o, j = cell // inner, cell % inner
            top, chosen = partial[o, 0, j], 0
            for k in range(1, pieces):
                value = partial[o, k, j]
                # The first NaN wins, as in NumPy; among equals the first.
                if top == top and (better(value, top) or value != value):
                    top, chosen = value, k
            at, end = chosen * piece, min(n, (chosen + 1) * piece)
            start = (o * n + at) * inner + j
            if inner == 1:
                row = x[start : start + end - at]
                i = 0
                while i + _BLOCK < row.size and not _contains(row[i : i + _BLOCK], top):
                    i += _BLOCK
                while row[i] == row[i] and row[i] != top:
                    i += 1
                out[o, j] = at + i
            else:
                value = x[start]
                while value == value and value != top:
                    at += 1
                    start += inner
                    value = x[start]
                out[o, j] = at

    return Kernel(positions, name)


@device
def _greater(a: Any, b: Any) -> bool:
    return bool(a > b)


@device
def _less(a: Any, b: Any) -> bool:
    return bool(a < b)


_argmax = _position("argmax", _greater)
_argmin = _position("argmin", _less)


def arg_reduce(maximal: bool, x: Operand, out: Operand, scratch: int) -> list[Launch]:
    """Plan the position of the largest or smallest of x (outer, n, inner) over n, int64 (outer, inner).

    scratch: number of a buffer of `partials(x.shape)` elements of 8 bytes. The piece of n with the
    largest or smallest element is chosen from the partial results, and searched for the position.
    """
    outer, n, inner = x.shape
    first, partial = (largest if maximal else smallest).plan_partial(x, scratch)
    size = piece(n, inner)
    # Columns are searched an element at a time, half a piece on average.
    cost = 20.0 + min(n, size) * (0.1 if inner == 1 else 1.0)
    group = max(1, config.ELEMENTWISE_CHUNK // min(n, size))
    chunks, cells = -(-outer * inner // group), outer * inner
    positions = _argmax if maximal else _argmin
    flat, target = x.reshaped(x.size), out.reshaped(outer, inner)
    return [first, positions(chunks, cells * cost, flat, partial, target, n, size, group)]


class Truth:
    """The kernels of `any` (value True) and `all` (False): whether an element's truth is `value`."""

    def __init__(self, name: str, value: bool) -> None:
        hit: Formula = lambda x: (x != 0) if value else (x == 0)
        hits = row_reduce(f"row_{name}", hit, lambda a, b: a | b, 0.0)
        into = row_map(f"row_{name}_into", lambda truth, x: (truth | hit(x)) if value else (truth & ~hit(x)))

        # Threads that find a hit all write the same byte, so a race between them changes nothing.
        def rows(lo: int, hi: int, x: A2, out: A1, piece: int, group: int) -> None:
            n = x.shape[1]
            pieces = (n + piece - 1) // piece
            for cell in range(lo * group, min(hi * group, x.shape[0] * pieces)):
                o, start = cell // pieces, cell % pieces * piece
                if out[o] != value and hits(x[o, start : min(n, start + piece)]):
                    out[o] = value

        def columns(lo: int, hi: int, x: A3, out: A2, width: int) -> None:
            inner = x.shape[2]
            blocks = (inner + width - 1) // width
            for chunk in range(lo, hi):
                o, start = chunk // blocks, chunk % blocks * width
                stop = min(inner, start + width)
                target = out[o, start:stop]
                for i in range(x.shape[1]):
                    into(target, target, x[o, i, start:stop])

        self.value = value
        self.rows, self.columns = Kernel(rows, f"{name}_rows"), Kernel(columns, f"{name}_columns")

    def plan(self, x: Operand, out: Operand) -> Launch:
        """Reduce x (outer, n, inner) to out (outer, inner), which holds `not value`."""
        outer, n, inner = x.shape
        work = x.spec.nbytes * config.BYTE_NS
        if inner > 1:
            return self.columns(outer * -(-inner // 256), work, x, out.reshaped(outer, inner), 256)
        cells = outer * -(-n // config.REDUCE_CHUNK)
        group = max(1, config.ELEMENTWISE_CHUNK // min(n, config.REDUCE_CHUNK))
        flat = out.reshaped(outer)
        return self.rows(-(-cells // group), work, x.reshaped(outer, n), flat, config.REDUCE_CHUNK, group)


any_true = Truth("any", True)
all_true = Truth("all", False)
