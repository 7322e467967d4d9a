"""A trace as calls over buffers: what fusion and the layout of memory work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treepie.kernels.program import Launch, Spec

from ..table import Op
from ..tensor import Tensor
from ..trace.entry import Entry


class Row(Protocol):
    """What a call needs of its op."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def failure(self) -> Any:
        """Whether its kernel reports errors, see `table.Op`."""

    @property
    def in_place(self) -> bool:
        """Whether an output may lie where an input does, see `table.Op`."""


class Values(Protocol):
    """The values of a trace: a shape and a dtype, or a constant."""

    @property
    def values(self) -> Sequence[Spec | Tensor]:
        """By their numbers."""


@dataclass(frozen=True)
class Slice:
    """Bytes of a buffer, from an offset on."""

    buffer: int
    offset: int = 0


@dataclass
class Call:
    """An op in a program: its launches over buffers that it numbers, and which those are in the program.

    slices: of the buffers that launches number: inputs, outputs, scratch.
    written: buffers that it writes: outputs and scratch.
    """

    op: Row
    attributes: dict[str, Any]
    launches: tuple[Launch, ...]
    slices: list[Slice]
    inputs: list[tuple[Slice, Spec]]
    outputs: list[Spec]
    written: tuple[int, ...]


@dataclass(frozen=True)
class Alias:
    """Values that are others: results of a pure call, and what its expansion made."""

    values: tuple[tuple[int, int], ...]


Item = Entry | Alias


class Graph:
    """The calls of a program, and its buffers.

    sizes: bytes of each buffer; the first `externals` are memory that each run is given.
    constants: what a buffer holds, where that never changes.
    slices: where the values of the trace are.
    """

    def __init__(self, trace: Values, externals: Sequence[int]) -> None:
        self.trace, self.externals = trace, len(externals)
        self.sizes = list(externals)
        self.constants: list[Tensor | None] = [None] * len(self.sizes)
        self.calls: list[Call] = []
        self.slices: dict[int, Slice] = {}
        self.cut = 0  # the number of the first call that waits for those before it, see `Request`

    def place(self, number: int, at: Slice) -> None:
        """Say where an input's value is."""
        self.slices[number] = at

    def buffer(self, size: int, constant: Tensor | None = None) -> int:
        """Return a new buffer."""
        self.sizes.append(size)
        self.constants.append(constant)
        return len(self.sizes) - 1

    def slice_of(self, number: int) -> Slice:
        """Return where a value is; a tensor of the library's that is no input is a constant."""
        found = self.slices.get(number)
        if found is None:
            value = self.trace.values[number]
            if not isinstance(value, Tensor):
                raise RuntimeError(f"value {number} of a trace has no place")
            found = self.slices[number] = Slice(self.buffer(value.array.nbytes, value))
        return found

    def spec_of(self, number: int) -> Spec:
        """Return the shape and the dtype of a value."""
        value = self.trace.values[number]
        return Spec(value.shape, value.dtype)

    def add(self, items: Sequence[Item]) -> None:
        """Take entries in order."""
        for item in items:
            if isinstance(item, Alias):
                for number, other in item.values:
                    self.slices[number] = self.slice_of(other)
            else:
                self._entry(item)

    def _entry(self, entry: Entry) -> None:
        op, inputs = entry.op, [self.slice_of(n) for n in entry.inputs]
        assert isinstance(op, Op)
        specs = [self.spec_of(n) for n in entry.inputs]
        if op.view is not None:
            first = op.offset(specs[0], **entry.attributes) * specs[0].dtype.itemsize
            self.slices[entry.first] = Slice(inputs[0].buffer, inputs[0].offset + first)
            return
        if op.joins is not None and op.joins(*specs, **entry.attributes):
            joined = _adjacent(inputs, specs)
            if joined is not None:
                self.slices[entry.first] = joined
                return
        plan = op.planned([(s.shape, s.dtype) for s in specs], entry.attributes)
        outputs = [Spec(*spec) for spec in plan.outputs]
        written = [self.buffer(spec.nbytes) for spec in outputs]
        for k, buffer in enumerate(written):
            self.slices[entry.first + k] = Slice(buffer)
        written += [self.buffer(size) for size in plan.scratch]
        slices = [*inputs, *map(Slice, written)]
        pairs = list(zip(inputs, specs, strict=True))
        self.calls.append(Call(op, entry.attributes, plan.launches, slices, pairs, outputs, tuple(written)))


def _adjacent(inputs: Sequence[Slice], specs: Sequence[Spec]) -> Slice | None:
    """Return the slice that inputs are together, if they lie side by side."""
    at = inputs[0]
    for place, spec in zip(inputs, specs, strict=True):
        if place != at:
            return None
        at = Slice(at.buffer, at.offset + spec.nbytes)
    return inputs[0]
