"""Entries of traces, and the symbolic values that they define."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..shaped import Shaped

if TYPE_CHECKING:
    from ..tape import Node
    from ..tensor import Tensor
    from .trace import Trace

Shape = tuple[int, ...]
Output = tuple[Shape, np.dtype]


class TraceableOp(Protocol):
    """The part of `table.Op` that a trace uses; `table.py` imports this package."""

    @property
    def name(self) -> str:
        """The op's name."""

    @property
    def failure(self) -> Any:
        """The function that makes the error which a kernel of the op reports, or None."""

    def fails(self, inputs: Sequence[Any], attributes: dict[str, Any]) -> bool:
        """Whether an operand that is an array has elements outside of their range."""

    def error(self, inputs: Sequence[Tensor], attributes: dict[str, Any]) -> Exception:
        """Return the error for such elements."""

    def outputs(self, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Output]:
        """Return the shapes and dtypes of the results: the shape rule."""

    def run(self, inputs: tuple[Tensor, ...], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        """Run the op: eagerly where no trace is active."""

    def pull_back(
        self, node: Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of a node's inputs, None where not needed."""


class Symbol(Shaped):
    """The data of a symbolic tensor: a shape and a dtype; elements once the trace was run.

    number: its value number, the position in `Trace.values`.
    """

    __slots__ = ("number", "trace", "value")

    def __init__(self, shape: Shape, dtype: np.dtype, number: int, trace: Trace) -> None:
        self.shape, self.dtype, self.number, self.trace = shape, dtype, number, trace
        self.value: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """Return the elements; while the trace is active, run its entries so far to compute them.

        Raises RuntimeError where the step that the tensor belongs to did not finish.
        """
        if self.value is None or self.trace.tick is not None:
            self.trace.read()
            if self.value is None or not self.trace.ready():
                raise RuntimeError("the tensor belongs to a step that did not finish, and has no elements")
        return self.value


class Entry:
    """A node of the tree of traces: one call of an op, with the entries that followed it as children.

    op: an op of the table, a pure function, INPUT or NUMBER.
    inputs: value numbers of the operands.  first: the value number of the first output.
    outputs: shapes and dtypes of the outputs.
    programs: key -> programs of the traces that end with this entry; see `program/cache.py`.
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
        self.key: Any = None  # in the parent's children
        self.children: dict[Any, Entry] = {}
        self.programs: dict[Any, Any] = {}
        self.line: str | None = None  # of the user's code, noted only where traces are compared

    def path(self) -> list[Entry]:
        """Return the entries from below the root to this one."""
        entries, entry = [], self
        while entry.parent is not None:
            entries.append(entry)
            entry = entry.parent
        return entries[::-1]


class InputOp:
    """A placeholder for the op in an entry that declares an input."""

    def __init__(self, name: str) -> None:
        self.name = name


INPUT, NUMBER = InputOp("input"), InputOp("number")


def root() -> Entry:
    """Return a new root of a tree of traces."""
    return Entry(None, None, (), {}, 0, ())
