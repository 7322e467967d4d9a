"""Kernels of one's own: plain functions over a range of rows, compiled by Numba as they stand.

    def scale(rows, x, out, *, factor):
        for i in rows:
            ...

The rows are cut into chunks, whose number depends on their number alone, and the function runs once for each
chunk, on whatever thread: results have the same bits at any number of threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import config, native
from .compiled import c_function
from .digest import digest
from .kernel import arguments_intrinsic
from .own_code import (
    KernelError,
    compilable_with_calls,
    declare_formulas_to_numba,
    positional,
    reachable,
    where,
    with_constants,
    without_raising,
)
from .program import Launch, Operand, make_launch

#: Functions of the C library that a kernel may call: what Numba makes of `math.exp` and `np.exp`.
_LIBM = frozenset(
    name + suffix
    for line in (
        "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs",
        "floor fmod frexp hypot ldexp lgamma log log10 log1p log2 pow round sin sinh sqrt tan tanh tgamma",
        "trunc",
    )
    for name in line.split()
    for suffix in ("", "f")
)

#: Beginnings of lines of Numba's messages that say how it came to an error.
_NOISE = ("Failed in", "During:", "This ", "For more", "To see", "- Resolution", "File ", "def ")

#: Chunks of a kernel at most: enough for every core, few enough that each has work.
_MOST_CHUNKS = 256

Constant = str | bool | None
Static = Constant | int | float


class OwnKernel:
    """A function `(rows, *arrays, *, statics)`, and its entry points, one for each set of dtypes.

    readonly: how many of the arrays, the first ones, are inputs.  fastmath: Numba's option of that name.

    An exception sets the status of the launch; its text stays in Python.
    """

    def __init__(self, function: Callable[..., None], readonly: int, fastmath: bool | frozenset[str]) -> None:
        code = function.__code__
        self._fastmath = fastmath if isinstance(fastmath, bool) else set(fastmath)
        self.function, self._readonly = function, readonly
        self.name = function.__name__
        self.arrays = code.co_varnames[1 : code.co_argcount]
        self.statics = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        self._entries: dict[Any, int] = {}

    def launch(
        self, rows: int, work_ns: float, arrays: Sequence[Operand], statics: Mapping[str, Static]
    ) -> Launch:
        """Plan a launch. work_ns: an estimate of its time on one thread."""
        size = max(-(-rows // _MOST_CHUNKS), 1)
        numbers = [statics[n] for n in self.statics if not _is_constant(statics[n])]
        constants = {n: statics[n] for n in self.statics if _is_constant(statics[n])}
        kinds = tuple([(a.dtype, len(a.shape)) for a in arrays]), tuple(map(type, numbers))
        key = kinds, tuple(constants.items())
        if key not in self._entries:
            self._entries[key] = self._entry(*kinds, constants)
        return make_launch(
            self._entries[key], -(-rows // size), work_ns, [rows, size, *arrays, *map(_word, numbers)]
        )

    def _entry(
        self, arrays: tuple[tuple[np.dtype, int], ...], numbers: tuple[type, ...], constants: dict[str, Any]
    ) -> int:
        names = "_".join(f"{d.kind}{d.itemsize}x{n}" for d, n in arrays)
        kinds = [type_.__name__ for type_ in numbers], self._readonly, self._fastmath, constants
        symbol = "_".join(["own", _plain(self.name), names, digest(self.function, *kinds)])
        try:
            return native.load(symbol, lambda: self._build(symbol, arrays, numbers, constants), _LIBM)
        except native.ForbiddenCall as error:
            raise KernelError(
                f"{where(self.function)} allocates memory, as an array expression does, or calls "
                "Python, which kernels may not: write a loop, or name the memory in scratch="
            ) from error
        except Exception as error:
            if not type(error).__module__.startswith("numba."):
                raise
            raise KernelError(
                f"{where(self.function)} is not what Numba compiles: {_told(self.function, error)}"
            ) from None

    def _build(
        self,
        symbol: str,
        arrays: tuple[tuple[np.dtype, int], ...],
        numbers: tuple[type, ...],
        constants: dict[str, Any],
    ) -> str:
        """Compile with Numba, and return the LLVM IR of `void symbol(block, lo, hi)`."""
        from numba import from_dtype, types

        declare_formulas_to_numba()
        body = compilable_with_calls(positional(with_constants(self.function, constants)), self._fastmath)
        kinds: list[Any] = []
        for k, (dtype, ndim) in enumerate(arrays):
            kinds.append(types.Array(from_dtype(dtype), ndim, "C", readonly=k < self._readonly))
        # A float is as wide as the arrays, as Python's are beside tensors.
        wide = next((d for d, _ in arrays if d.kind == "f"), np.dtype("float64"))
        kinds += [from_dtype(wide) if number is float else types.int64 for number in numbers]
        run = without_raising(body, tuple(kinds))
        arguments = arguments_intrinsic(["status", types.int64, types.int64, *kinds])

        def entry(block, lo, hi):  # type: ignore[no-untyped-def]
            found = arguments(block)
            status, rows, size = found[0], found[1], found[2]
            for chunk in range(lo, hi):
                first = chunk * size
                if run(range(first, min(first + size, rows)), *found[3:]):
                    status[0] = 1
                    return

        return c_function(symbol, entry, 3)


def _is_constant(value: Static) -> bool:
    """Whether a value is compiled into the kernel; numbers are passed to it."""
    return value is None or isinstance(value, str | bool)


def _word(number: Any) -> int | float:
    return float(number) if isinstance(number, float) else int(number)


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _told(function: Callable[..., Any], error: Exception) -> str:
    """Return what Numba says, and the line of a user's that it says it about."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    reasons = [line.strip() for line in lines if not line.strip().startswith(_NOISE)]
    files = {Path(code.co_filename).name for code in reachable(function)}
    places = re.findall(r'File "([^"]*)", line (\d+)|at ([^\s]*) \((\d+)\)', str(error))
    found = [(Path(a or c).name, b or d) for a, b, c, d in places if Path(a or c).name in files]
    at = f" in line {found[0][1]} of {found[0][0]}" if found else ""
    return f"{reasons[0] if reasons else type(error).__name__}{at}"


def work_ns(arrays: Sequence[Operand], flops: float) -> float:
    """Estimate the time of a kernel on one thread. flops: of each element of its largest array."""
    largest = max((a.size for a in arrays), default=0)
    moved = sum(a.spec.nbytes for a in arrays)
    return math.fsum((moved * config.BYTE_NS, largest * flops * config.FLOP_NS))
