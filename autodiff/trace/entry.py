"""Entries of traces, and the values that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from ..tape import Node
    from ..tensor import Tensor
    from .trace import Trace

Shape = tuple[int, ...]
Output = tuple[Shape, np.dtype]


class Row(Protocol):
    """What an entry needs of its op."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def failure(self) -> Any:
        """Whether its kernel reports errors."""

    def fails(self, inputs: Sequence[Any], attributes: dict[str, Any]) -> bool:
        """Whether elements of arrays are outside of their range."""

    def error(self, inputs: Sequence[Tensor], attributes: dict[str, Any]) -> Exception:
        """Return the error of such elements."""

    def outputs(self, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Output]:
        """Return shapes and dtypes of its results."""

    def run(self, inputs: tuple[Tensor, ...], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        """Run it eagerly where no trace is active."""

    def pull_back(
        self, node: Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of a node's inputs, where needed."""


class Symbol:
    """The elements of a symbolic tensor: a shape and a dtype, and a value once the trace was run."""

    __slots__ = ("dtype", "number", "shape", "trace", "value")

    def __init__(self, shape: Shape, dtype: np.dtype, number: int, trace: Trace) -> None:
        self.shape, self.dtype, self.number, self.trace = shape, dtype, number, trace
        self.value: np.ndarray | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the elements: of a trace that is active, by running all that it has up to here."""
        if self.value is None or self.trace.tick is not None:
            self.trace.read()
            if self.value is None or not self.trace.done():
                raise RuntimeError("the tensor was made by a step that did not end, and has no elements")
        return self.value


class Entry:
    """One entry of a trace, and those that followed it in traces so far.

    op: a row, a pure function, INPUT or NUMBER.  inputs: numbers of values.
    first: the number of its first output.  outputs: their shapes and dtypes.
    programs: of traces that end here, by what they are asked for.
    """

    __slots__ = (
        "attributes",
        "children",
        "first",
        "inputs",
        "key",
        "line",
        "op",
        "outputs",
        "parent",
        "programs",
    )

    def __init__(
        self,
        parent: Entry | None,
        op: Any,
        inputs: tuple[int, ...],
        attributes: dict[str, Any],
        first: int,
        outputs: Sequence[Output],
    ) -> None:
        self.parent, self.op, self.inputs, self.attributes = parent, op, inputs, attributes
        self.first, self.outputs = first, outputs
        self.key: Any = None  # of its parent's children
        self.children: dict[Any, Entry] = {}
        self.programs: dict[Any, Any] = {}
        self.line: str | None = None  # of the user's code, noted where calls are compared

    def path(self) -> list[Entry]:
        """Return the entries from the first to this one."""
        found, at = [], self
        while at.parent is not None:
            found.append(at)
            at = at.parent
        return found[::-1]


class Input:
    """What stands for an op in the entry of an input."""

    def __init__(self, name: str) -> None:
        self.name = name


INPUT, NUMBER = Input("input"), Input("number")


def root() -> Entry:
    """Return an entry to begin traces with."""
    return Entry(None, None, (), {}, 0, ())
