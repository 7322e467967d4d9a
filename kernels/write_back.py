"""Epilogues of matrix products that a tile's function applies to its registers, before it stores them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .loops import Loop, bytes_of, n64
from .vector import Formula, Value

#: Kinds of an epilogue's operands.
MATRIX, ROW, COLUMN, SCALAR = "m", "r", "c", "s"


@dataclass(frozen=True)
class WriteBack:
    """An epilogue that the function of a tile applies to its registers before it stores them.

    name: unique to the formula and the operands.
    """

    name: str
    formula: Formula
    dtypes: tuple[str, ...]
    kinds: tuple[str, ...]
    results: int

    def rows(
        self, loop: Loop, dtype: str, words: ir.Value, first: ir.Value, left: ir.Value
    ) -> Callable[[int, int, Value, ir.Value], Value]:
        """Return a function of (row of the tile, column, C's elements, mask) -> C's final elements.

        It writes the further results.  words: the address of the words.  first, left: of the tile.
        """
        b = loop.builder
        dtypes, kinds = [*self.dtypes, *[dtype] * self.results], [*self.kinds, *[MATRIX] * self.results]
        sizes = [bytes_of(d) for d in dtypes]
        n = loop.word(0, words)
        bases = [loop.word(2 + k, words) for k in range(len(dtypes))]
        flat = b.add(b.mul(first, n), left)

        def finish(i: int, j: int, c: Value, mask: ir.Value) -> Value:
            matrix = b.add(flat, b.add(b.mul(n, n64(i)), n64(j)))
            starts = {MATRIX: matrix, ROW: b.add(left, n64(j)), COLUMN: b.add(first, n64(i)), SCALAR: n64(0)}
            at = [
                b.add(base, b.mul(starts[kind], n64(size)))
                for base, kind, size in zip(bases, kinds, sizes, strict=True)
            ]
            count = len(self.dtypes)
            operands = [
                loop.load_one(d, a) if kind in (COLUMN, SCALAR) else loop.load(d, a, mask)
                for d, kind, a in zip(self.dtypes, self.kinds, at[:count], strict=True)
            ]
            last: Value
            last, *others = as_tuple(self.formula(c, *operands))
            for value, target in zip(others, at[count:], strict=True):
                loop.store(value, target, mask)
            return last

        return finish


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Return the results of a formula as a tuple."""
    return results if isinstance(results, tuple) else (results,)
