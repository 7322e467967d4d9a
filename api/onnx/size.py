"""Sizes that depend on the batch: traces at several batch sizes show how, as a linear function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Nonlinear(Exception):
    """A value differs between batch sizes, and is no integer that is a linear function of them."""


@dataclass(frozen=True)
class BatchSize:
    """The size factor * batch + offset; the factor is not 0."""

    factor: int
    offset: int = 0

    def __add__(self, other: Size) -> Size:
        """Return the sum with an int or another such size."""
        factor, offset = _parts(other)
        return _size(self.factor + factor, self.offset + offset)

    def __mul__(self, other: int) -> Size:
        """Return the product with an int."""
        return _size(self.factor * other, self.offset * other)

    def __neg__(self) -> Size:
        """Return the negative size."""
        return self * -1

    def __sub__(self, other: Size) -> Size:
        """Return the difference to an int or another such size."""
        return self + -other

    def __rsub__(self, other: int) -> Size:
        """Return the difference of an int to it."""
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def __str__(self) -> str:
        """Return the name of the size in the file: "batch", "4*batch", "batch+1"."""
        text = "batch" if self.factor == 1 else f"{self.factor}*batch"
        return text + (f"{self.offset:+}" if self.offset else "")


#: A size, or another integer, such as where a slice begins.
Size = int | BatchSize
Sizes = tuple[Size, ...]


def _parts(size: Size) -> tuple[int, int]:
    return (size.factor, size.offset) if isinstance(size, BatchSize) else (0, size)


def _size(factor: int, offset: int) -> Size:
    return BatchSize(factor, offset) if factor else offset


def merged(values: Sequence[Any], batches: Sequence[int]) -> Any:
    """Return a value of which there is one for each batch size: itself, or with sizes in it.

    Raises Nonlinear for values that differ in another way.
    """
    first = values[0]
    kind = type(first)
    if any(type(v) is not kind for v in values):
        raise Nonlinear
    if all(v is first or v == first or repr(v) == repr(first) for v in values):
        return first
    if isinstance(first, tuple | list):
        if any(len(v) != len(first) for v in values):
            raise Nonlinear
        return tuple(merged(parts, batches) for parts in zip(*values, strict=True))
    if kind is not int:
        raise Nonlinear
    factor, rest = divmod(values[1] - first, batches[1] - batches[0])
    offset = first - factor * batches[0]
    if rest or any(v != factor * n + offset for v, n in zip(values, batches, strict=True)):
        raise Nonlinear
    return _size(factor, offset)
