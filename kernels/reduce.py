"""Reductions: sum, maximum, minimum, and the positions of the latter two.

An array is seen as (outer, n, inner), reduced over n. Partial results of fixed pieces of n go to scratch,
in float64 or int64, and are then combined in order: a result has the same bits at any number of threads,
and a float32 sum of 10^7 elements is as exact as its rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import config
from .kernel import A1, A2, A3, Kernel, device, scalar
from .program import Launch, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Formula, Value, maximum, minimum


@dataclass(frozen=True)
class Reduction:
    """The kernels of one reduction."""

    rows: Kernel
    columns: Kernel
    combine: Kernel

    def plan(self, x: Operand, out: Operand, scratch: int, divisor: float = 1.0) -> list[Launch]:
        """Reduce x (outer, n, inner), n >= 1, to out (outer, inner); floats are divided by `divisor`.

        scratch: number of a buffer of `partials(x.shape)` elements of 8 bytes.
        """
        outer, n, inner = x.shape
        piece = _piece(n, inner)
        pieces = -(-n // piece)
        partial = Operand(scratch, Spec((outer, pieces, inner), accumulator(x.dtype)))
        work = x.spec.nbytes * config.BYTE_NS + x.size * config.FLOP_NS
        if inner == 1:
            cells = outer * pieces
            group = max(1, config.ELEMENTWISE_UNIT // min(n, piece))
            units = -(-cells // group)
            flat = partial.reshaped(cells)
            first = self.rows(units, work, x.reshaped(outer, n), flat, piece, group)
        else:
            first = self.columns(outer * pieces, work, x, partial, piece)
        small = partial.spec.nbytes * config.BYTE_NS
        return [first, self.combine(1, small, partial, out.reshaped(outer, inner), float(divisor))]


def accumulator(dtype: np.dtype) -> np.dtype:
    """Return the dtype that partial results have: float64, or int64 for integers and bools."""
    return np.dtype("float64" if dtype.kind == "f" else "int64")


def _piece(n: int, inner: int) -> int:
    """Return how much of n one partial result covers."""
    return config.REDUCE_UNIT if inner == 1 else max(1, 16 * config.REDUCE_UNIT // inner)


def partials(shape: tuple[int, ...]) -> int:
    """Return how many partial results an array (outer, n, inner) needs."""
    outer, n, inner = shape
    return outer * inner * -(-n // _piece(n, inner))


def _wide(x: Value) -> Value:
    return x.astype("float64" if x.is_float else "int64")


def _reduction(name: str, formula: Formula, start: float, start_int: int) -> Reduction:
    reduce = row_reduce(f"row_{name}", _wide, formula, start, start_int)
    copy = row_map("row_copy", lambda x: x)
    merge = row_map(f"row_{name}_into", lambda total, x: formula(total, _wide(x)))
    combine = scalar(formula)

    def rows(lo: int, hi: int, x: A2, partial: A1, piece: int, group: int) -> None:
        n = x.shape[1]
        pieces = (n + piece - 1) // piece
        for cell in range(lo * group, min(hi * group, partial.size)):
            start = cell % pieces * piece
            part = x[cell // pieces, start : min(n, start + piece)]
            partial[cell] = reduce(part)

    def columns(lo: int, hi: int, x: A3, partial: A3, piece: int) -> None:
        n, pieces = x.shape[1], partial.shape[1]
        for unit in range(lo, hi):
            outer, k = unit // pieces, unit % pieces
            total = partial[outer, k]
            copy(total, x[outer, k * piece])
            for i in range(k * piece + 1, min(n, (k + 1) * piece)):
                merge(total, total, x[outer, i])

    def combined(lo: int, hi: int, partial: A3, out: A2, divisor: float) -> None:
        for o in range(partial.shape[0]):
            for j in range(partial.shape[2]):
                total = partial[o, 0, j]
                for k in range(1, partial.shape[1]):
                    total = combine(total, partial[o, k, j])
                out[o, j] = total / divisor if divisor != 1.0 else total

    return Reduction(
        Kernel(rows, f"{name}_rows"),
        Kernel(columns, f"{name}_columns"),
        Kernel(combined, f"{name}_combine"),
    )


_LEAST = -(2**63)
total = _reduction("sum", lambda a, b: a + b, -0.0, 0)  # 0.0 would turn a sum of -0.0 into 0.0
largest = _reduction("max", maximum, -math.inf, _LEAST)
smallest = _reduction("min", minimum, math.inf, -_LEAST - 1)


def _position(name: str, better: Callable[[Any, Any], bool]) -> Kernel:
    def positions(lo: int, hi: int, x: A3, out: A2, group: int) -> None:
        n, inner = x.shape[1], x.shape[2]
        for cell in range(lo * group, min(hi * group, out.size)):
            o, j = cell // inner, cell % inner
            best, found = x[o, 0, j], 0
            for i in range(1, n):
                value = x[o, i, j]
                # The first NaN wins, as in NumPy; among equals the first.
                if best == best and (better(value, best) or value != value):
                    best, found = value, i
            out[o, j] = found

    return Kernel(positions, name)


@device
def _greater(a: Any, b: Any) -> bool:
    return bool(a > b)


@device
def _less(a: Any, b: Any) -> bool:
    return bool(a < b)


_argmax = _position("argmax", _greater)
_argmin = _position("argmin", _less)


def arg_reduce(maximal: bool, x: Operand, out: Operand) -> Launch:
    """Plan the position of the largest or smallest of x (outer, n, inner) over n, int64 (outer, inner)."""
    outer, n, inner = x.shape
    group = max(1, config.ELEMENTWISE_UNIT // n)
    units = -(-outer * inner // group)
    found = _argmax if maximal else _argmin
    return found(units, x.size * 1.0, x, out.reshaped(outer, inner), group)
