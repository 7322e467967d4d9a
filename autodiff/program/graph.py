"""The graph of a program: calls of ops over numbered buffers, on which fusion and memory planning work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treepie.kernels.program import Launch, Spec

from ..table import OPS, Op
from ..tensor import Tensor
from ..trace.entry import Entry


class Values(Protocol):
    """The values of a trace: a shape and a dtype, or a constant."""

    @property
    def values(self) -> Sequence[Spec | Tensor]:
        """The values, by value number."""


@dataclass(frozen=True)
class FusedOp:
    """The op of a call that does the work of several; the fields are those of `table.Op`."""

    name: str
    in_place: bool
    failure: None = None
    effect: bool = False


@dataclass(frozen=True)
class Slice:
    """A slice of a buffer: the bytes from an offset on."""

    buffer: int
    offset: int = 0


@dataclass
class OpCall:
    """A call of an op in a program: kernel launches, and the slices of the program's buffers that they use.

    slices: of the operands that launches number: inputs, then outputs, then scratch.
    inputs: the slices of the inputs, with shapes and dtypes.  outputs: shapes and dtypes of the outputs.
    written: the buffers of outputs and scratch.
    """

    op: Op | FusedOp
    attributes: dict[str, Any]
    launches: tuple[Launch, ...]
    slices: list[Slice]
    inputs: list[tuple[Slice, Spec]]
    outputs: list[Spec]
    written: tuple[int, ...]

    @property
    def title(self) -> str:
        """The name of the op, with the precision of a product that is not computed in float32."""
        precision = self.attributes.get("precision")
        return f"{self.op.name} ({precision})" if precision and isinstance(self.op, Op) else self.op.name


@dataclass(frozen=True)
class Alias:
    """Pairs of value numbers with the same elements: a result of a pure call, and the value inside of it."""

    values: tuple[tuple[int, int], ...]


TraceItem = Entry | Alias


class Graph:
    """The calls of a program, and its buffers.

    sizes: bytes of each buffer. The first buffers are external: each run passes their addresses.
    constants: the tensor that a buffer holds, or None where runs write it.
    slices: value number -> where the value is stored.
    barrier: the index of the first call that waits for those before it; see `Request`.
    """

    def __init__(self, trace: Values, externals: Sequence[int]) -> None:
        self.trace, self.externals = trace, len(externals)
        self.sizes = list(externals)
        self.constants: list[Tensor | None] = [None] * len(self.sizes)
        self.calls: list[OpCall] = []
        self.slices: dict[int, Slice] = {}
        self.barrier = 0

    def bind(self, number: int, location: Slice) -> None:
        """Set where an input's value is stored."""
        self.slices[number] = location

    def buffer(self, size: int, constant: Tensor | None = None) -> int:
        """Add a buffer; return its number."""
        self.sizes.append(size)
        self.constants.append(constant)
        return len(self.sizes) - 1

    def slice_of(self, number: int) -> Slice:
        """Return where a value is stored; a tensor that is not an input becomes a constant buffer."""
        location = self.slices.get(number)
        if location is None:
            value = self.trace.values[number]
            if not isinstance(value, Tensor):
                raise RuntimeError(f"value {number} of a trace has no location")
            location = self.slices[number] = Slice(self.buffer(value.array.nbytes, value))
        return location

    def spec_of(self, number: int) -> Spec:
        """Return the shape and the dtype of a value."""
        value = self.trace.values[number]
        return Spec(value.shape, value.dtype)

    def add(self, items: Sequence[TraceItem]) -> None:
        """Add the calls of a trace's entries, in order."""
        for item in items:
            if isinstance(item, Alias):
                for number, other in item.values:
                    self.slices[number] = self.slice_of(other)
            else:
                self._add_entry(item)

    def _add_entry(self, entry: Entry) -> None:
        op, inputs = entry.op, [self.slice_of(n) for n in entry.inputs]
        assert isinstance(op, Op)
        specs = [self.spec_of(n) for n in entry.inputs]
        if op.view is not None:
            first = op.offset(specs[0], **entry.attributes) * specs[0].dtype.itemsize
            self.slices[entry.first] = Slice(inputs[0].buffer, inputs[0].offset + first)
            return
        if op.joins is not None and op.joins(*specs, **entry.attributes) and _adjacent(inputs, specs):
            self.slices[entry.first] = inputs[0]
            return
        plan = op.planned([(s.shape, s.dtype) for s in specs], entry.attributes)
        outputs = [Spec(*spec) for spec in plan.outputs]
        written = [self.buffer(spec.nbytes) for spec in outputs]
        for k, buffer in enumerate(written):
            self.slices[entry.first + k] = Slice(buffer)
        written += [self.buffer(size) for size in plan.scratch]
        slices = [*inputs, *map(Slice, written)]
        operands = list(zip(inputs, specs, strict=True))
        self.calls.append(
            OpCall(op, entry.attributes, plan.launches, slices, operands, outputs, tuple(written))
        )

    def copy(self, source: Slice, spec: Spec) -> Slice:
        """Add a call that copies a slice into a new buffer; return where the copy is stored.

        The call is inserted right after the last one that writes the source: before any that overwrites
        memory passed to the run, and before a check that may fail.
        """
        op, attributes = OPS["astype"], {"dtype": spec.dtype}
        plan = op.planned([(spec.shape, spec.dtype)], attributes)
        copy = Slice(self.buffer(spec.nbytes))
        slices, inputs = [source, copy], [(source, spec)]
        call = OpCall(op, attributes, plan.launches, slices, inputs, [spec], (copy.buffer,))
        writers = [k for k, c in enumerate(self.calls) if source.buffer in c.written]
        index = writers[-1] + 1 if writers else 0
        self.calls.insert(index, call)
        self.barrier += index <= self.barrier
        return copy


def _adjacent(inputs: Sequence[Slice], specs: Sequence[Spec]) -> bool:
    """Whether inputs are stored contiguously, one after another."""
    expected = inputs[0]
    for location, spec in zip(inputs, specs, strict=True):
        if location != expected:
            return False
        expected = Slice(expected.buffer, expected.offset + spec.nbytes)
    return True
