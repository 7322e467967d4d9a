"""Fusion groups: calls that become one, a matrix product with an epilogue or one elementwise call."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels.elementwise import elementwise
from treepie.kernels.epilogue import Epilogue
from treepie.kernels.program import Operand, Spec
from treepie.kernels.vector import Formula
from treepie.kernels.write_back import COLUMN, MATRIX, ROW, SCALAR

from ..elementwise import Fusible
from ..table import Op
from .graph import FusedOp, OpCall, Slice

Shape = tuple[int, ...]

#: The most operands of a group that are not scalars, and the most calls that join one: an x86 processor has
#: 16 registers for addresses.
_MOST = 8

#: A product with a larger result in bytes takes only calls of few operations, and none for which it would
#: write a second matrix: it writes tiles, whose rows are far from each other. (2048, 512) float32 with relu
#: takes 0.94 of the time of two launches, with relu and its sum stored too 1.09, with the derivative of gelu
#: 1.03; (1024, 256) with relu and the sum 0.97.
_LARGE, _FEW = 1 << 20, 8


def is_elementwise(call: OpCall) -> bool:
    """Whether a call can join a fusion group."""
    return isinstance(call.op, Fusible) and bool(call.launches)


def _formula_operands(call: OpCall) -> list[tuple[Slice, Spec]]:
    """Return the operands of a call's formula."""
    assert isinstance(call.op, Fusible)
    count = call.op.numbers
    if not count:
        return call.inputs
    *arrays, (numbers, spec) = call.inputs
    scalar, size = Spec((), spec.dtype), spec.dtype.itemsize
    return [*arrays, *((Slice(numbers.buffer, numbers.offset + k * size), scalar) for k in range(count))]


class FusionGroup:
    """Calls that run as one, at the place of the last one.

    It is a matrix product or an elementwise call, with elementwise calls that use its results; or a single
    call of another op.

    sources: the groups that compute operands of its calls.
    """

    def __init__(self, call: OpCall, index: int, sources: set[FusionGroup]) -> None:
        self.calls, self.indices, self.sources = [call], [index], sources
        #: A bit for this group, and the bits of all groups that it depends on, directly or through others.
        self.bit, self.dependencies = 1 << index, dependency_bits(sources)
        #: The shape and dtype of all results; results of an elementwise call may have another dtype.
        self.spec = call.outputs[0]
        #: The matrix product, if there is one, whose epilogue the other calls become.
        self.product = call if isinstance(call.op, Op) and call.op.epilogue and call.launches else None
        #: Operands of the formula besides the product's result, numbered: (slice, spec, form), where the form
        #: is the kind of operand in an epilogue, or the shape in an elementwise call.
        self.operands: dict[tuple[Slice, Spec, Any], int] = {}
        #: The product's result and all results of formulas, numbered: buffer -> (number, dtype).
        self.values: dict[int, tuple[int, np.dtype]] = {}
        #: Formulas with references to their operands: number k of `operands`, or ~k of `values`.
        self.links: list[tuple[Formula, tuple[int, ...]]] = []
        if self.product:
            self._number(call)
        elif is_elementwise(call):
            self._link(call)

    @property
    def reads(self) -> set[int]:
        """The buffers from outside of the group that its calls read."""
        return {p.buffer for call in self.calls for p, _ in call.inputs if p.buffer not in self.values}

    @property
    def last(self) -> int:
        """The index of the last call."""
        return self.indices[-1]

    def join(self, call: OpCall, index: int, sources: set[FusionGroup], users: dict[int, set[int]]) -> bool:
        """Add an elementwise call if it fits and is faster so; return whether it was added.

        sources: the groups that compute its operands.  users: buffer -> the indices of calls that read it.
        """
        if not self.values or len(self.calls) > _MOST or call.outputs[0].size != self.spec.size:
            return False
        if self.product and any(out.dtype != self.spec.dtype for out in call.outputs):
            return False
        if self.product and self.spec.nbytes > _LARGE:
            stored = any(users[b].difference(self.indices, [index]) for b in self.values if b in users)
            if stored or _flops([call]) > _FEW:
                return False
        # A source that depends on this group would make a cycle.
        if any(s.dependencies & self.bit for s in sources) or not self._link(call):
            return False
        self.calls.append(call)
        self.indices.append(index)
        self.sources |= sources - {self}
        return True

    def _link(self, call: OpCall) -> bool:
        """Add a call's formula with references to its operands; return False, unchanged, where it can not."""
        references, operands = [], dict(self.operands)
        unavailable = self.product.written[1:] if self.product else ()
        for p, spec in _formula_operands(call):
            if p.buffer in self.values:
                number, dtype = self.values[p.buffer]
                if p.offset or spec.size != self.spec.size or spec.dtype != dtype:
                    return False  # a part of a result
                references.append(~number)
            else:
                form = self._form(spec.shape, call.outputs[0].shape)
                if form is None or p.buffer in unavailable:
                    return False
                references.append(operands.setdefault((p, spec, form), len(operands)))
        if sum(spec.size > 1 for _, spec, _ in operands) > _MOST:
            return False
        assert isinstance(call.op, Fusible)
        self.operands = operands
        self.links.append((call.op.formula, tuple(references)))
        self._number(call)
        return True

    def _number(self, call: OpCall) -> None:
        """Number the results of a call; of a product the first one alone."""
        count = 1 if call is self.product else len(call.outputs)
        for b, out in zip(call.written[:count], call.outputs, strict=False):
            self.values[b] = len(self.values), out.dtype

    def _form(self, shape: Shape, out: Shape) -> Any:
        """Return an operand's kind in an epilogue, or its shape in an elementwise call; None if none fits."""
        if self.product:
            return _kind(shape, out, self.spec.shape[-1])
        if out == self.spec.shape:
            return shape
        # The call sees the group's results reshaped.
        return {math.prod(out): self.spec.shape, 1: ()}.get(math.prod(shape))

    def fused_call(self, stored: set[int], sizes: list[int]) -> OpCall:
        """Return one call with the effect of all.

        stored: buffers that are read outside of the group; other results are not stored.
        sizes: bytes of all buffers; those of scratch may grow.
        """
        if len(self.calls) == 1:
            return self.calls[0]
        results = [b for b in self.values if b in stored]
        return self._product_call(results, sizes) if self.product else self._elementwise_call(results)

    def _elementwise_call(self, results: list[int]) -> OpCall:
        reads = [Operand(k, Spec(shape, spec.dtype)) for k, (_, spec, shape) in enumerate(self.operands)]
        outputs = [Spec(self.spec.shape, self.values[b][1]) for b in results]
        writes = [Operand(len(reads) + k, spec) for k, spec in enumerate(outputs)]
        formula = _formula(0, tuple(self.links), tuple(self.values[b][0] for b in results))
        launches = (elementwise(self._symbol(), formula, reads, writes, _flops(self.calls)),)
        inputs = [(p, spec) for p, spec, _ in self.operands]
        slices = [*(p for p, _ in inputs), *map(Slice, results)]
        return OpCall(FusedOp(self._title(), True), {}, launches, slices, inputs, outputs, tuple(results))

    def _product_call(self, results: list[int], sizes: list[int]) -> OpCall:
        product = self.product
        assert product is not None
        assert isinstance(product.op, Op)
        assert product.op.plan is not None
        # The epilogue writes its last result to the product's output, and the others to extra outputs.
        *extra, last = results
        count = len(product.outputs)
        outputs = [*product.outputs, *[self.spec] * len(extra)]
        inputs = [*product.inputs, *((p, spec) for p, spec, _ in self.operands)]
        scratch_buffers = product.written[count:]
        written = (last, *product.written[1:count], *extra, *scratch_buffers)
        operands = [Operand(k, s) for k, s in enumerate([*(s for _, s in inputs), *outputs])]
        first_output = len(inputs)
        numbers = iter(range(len(operands), len(operands) + len(scratch_buffers)))

        def scratch(shape: Shape, dtype: Any) -> Operand:
            number, spec = next(numbers), Spec(shape, np.dtype(dtype))
            b = written[number - first_output]
            sizes[b] = max(sizes[b], spec.nbytes)
            return Operand(number, spec)

        epilogue = Epilogue(
            self._symbol(),
            _formula(1, tuple(self.links), tuple(self.values[b][0] for b in (last, *extra))),
            tuple(operands[len(product.inputs) : first_output]),
            tuple(kind for _, _, kind in self.operands),
            tuple(operands[first_output + count :]),
            _flops(self.calls),
        )
        reads, writes = operands[: len(product.inputs)], operands[first_output:][:count]
        launches = product.op.plan(reads, writes, scratch, **product.attributes, epilogue=epilogue)
        slices = [*(p for p, _ in inputs), *map(Slice, written)]
        # Not in place: a product writes partial sums before it reads its operands for the last time.
        op = FusedOp(self._title(), False)
        return OpCall(op, product.attributes, tuple(launches), slices, inputs, outputs, written)

    def _title(self) -> str:
        return " + ".join(call.title for call in self.calls)

    def _symbol(self) -> str:
        """Return a name for the formula's function, short enough for a file name with a digest."""
        return "_".join(call.op.name for call in self.calls if call is not self.product)[:80]


def dependency_bits(sources: set[FusionGroup]) -> int:
    """Return the bits of groups and of all that they depend on."""
    return functools.reduce(lambda bits, s: bits | s.bit | s.dependencies, sources, 0)


def _flops(calls: Sequence[OpCall]) -> float:
    return sum(call.op.flops for call in calls if isinstance(call.op, Fusible))


def _kind(shape: Shape, out: Shape, n: int) -> str | None:
    """Return how an operand broadcasts to a result seen as a matrix of n columns; None if no kind fits."""
    if math.prod(shape) == 1:
        return SCALAR
    if math.prod(shape) == math.prod(out):
        return MATRIX
    padded = (1,) * (len(out) - len(shape)) + shape
    for axis in range(len(out)):
        if math.prod(out[axis:]) == n:
            if padded[axis:] == out[axis:] and math.prod(padded[:axis]) == 1:
                return ROW
            if padded[:axis] == out[:axis] and math.prod(padded[axis:]) == 1:
                return COLUMN
    return None


# Cached by the formulas and their references: equal layers of a model share one compiled function.
@functools.cache
def _formula(
    values: int, links: tuple[tuple[Formula, tuple[int, ...]], ...], results: tuple[int, ...]
) -> Formula:
    """Return the composed formula (initial values, operands) -> results; see `FusionGroup.links`.

    values: the number of initial values: 1 for a product's result, or 0.  results: numbers of values.
    """

    def formula(*arguments: Any) -> tuple[Any, ...]:
        computed, operands = list(arguments[:values]), arguments[values:]
        for link, references in links:
            out = link(*(operands[r] if r >= 0 else computed[~r] for r in references))
            computed += out if isinstance(out, tuple) else (out,)
        return tuple(computed[k] for k in results)

    return formula
