"""Groups: calls that become one, as the epilogue of a matrix product, or as one elementwise call."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.kernels.elementwise import elementwise
from treepie.kernels.epilogue import COLUMN, MATRIX, ROW, SCALAR, Epilogue
from treepie.kernels.program import Operand, Spec
from treepie.kernels.vector import Formula

from ..elementwise import Elementwise
from ..table import Op
from .graph import Call, Slice

Shape = tuple[int, ...]

#: Members and operands of a group at most: an x86 processor has 16 registers for addresses.
_MOST = 8

#: A product of more bytes takes calls of few operations alone, and none for which it would write a second
#: matrix: it writes tiles, whose rows are far from each other. (2048, 512) float32 with relu took 0.94 of the
#: time of two launches, with relu and its sum stored too 1.09, with the derivative of gelu 1.03; (1024, 256)
#: with relu and the sum 0.97.
_LARGE, _FEW = 1 << 20, 8


@dataclass(frozen=True)
class Fused:
    """What stands for an op where a call does the work of several."""

    name: str
    in_place: bool
    failure: None = None


def is_elementwise(call: Call) -> bool:
    """Whether a call can join others."""
    return isinstance(call.op, Elementwise) and bool(call.launches)


class Group:
    """Calls that run as one, where the last one stands: a product or an elementwise call, and elementwise
    calls that use their results; or any other call, alone.
    """

    def __init__(self, call: Call, at: int, sources: set[Group]) -> None:
        self.calls, self.numbers, self.sources = [call], [at], sources
        #: The groups that it needs, themselves or by others, as bits: group number k is 1 << k.
        self.bit, self.needs = 1 << at, needed(sources)
        self.own = call.outputs[0]  # the shape and dtype of all results, but for an elementwise call's dtype
        #: The product whose epilogue the others are.
        self.root = call if isinstance(call.op, Op) and call.op.epilogue and call.launches else None
        #: What the formula takes, besides a product's result: place, spec, and kind in a product or shape.
        self.operands: dict[tuple[Slice, Spec, Any], int] = {}
        #: The product's result, if any, and all results of formulas, numbered: buffer -> (number, dtype).
        self.values: dict[int, tuple[int, np.dtype]] = {}
        #: Formulas, and where they find their operands: number k of `operands`, or ~k of `values`.
        self.links: list[tuple[Formula, tuple[int, ...]]] = []
        if self.root:
            self._number(call)
        elif is_elementwise(call):
            self._link(call)

    @property
    def reads(self) -> set[int]:
        """The buffers of others that its members read."""
        return {p.buffer for call in self.calls for p, _ in call.inputs if p.buffer not in self.values}

    @property
    def last(self) -> int:
        """The number of its last call."""
        return self.numbers[-1]

    def join(self, call: Call, at: int, sources: set[Group], users: dict[int, set[int]]) -> bool:
        """Take an elementwise call, whose operands `sources` make, if it fits and pays."""
        if not self.values or len(self.calls) > _MOST or call.outputs[0].size != self.own.size:
            return False
        if self.root and any(out.dtype != self.own.dtype for out in call.outputs):
            return False
        if self.root and self.own.nbytes > _LARGE:
            stored = any(users[b].difference(self.numbers, [at]) for b in self.values if b in users)
            if stored or _flops([call]) > _FEW:
                return False
        if any(s.needs & self.bit for s in sources) or not self._link(call):
            return False
        self.calls.append(call)
        self.numbers.append(at)
        self.sources |= sources - {self}
        return True

    def _link(self, call: Call) -> bool:
        """Note how a member finds its operands; False, and nothing changed, if it can not."""
        wires, operands = [], dict(self.operands)
        others = self.root.written[1:] if self.root else ()
        for place, spec in call.inputs:
            if place.buffer in self.values:
                number, dtype = self.values[place.buffer]
                if place.offset or spec.size != self.own.size or spec.dtype != dtype:
                    return False  # a part of a result
                wires.append(~number)
            else:
                seen = self._seen(spec.shape, call.outputs[0].shape)
                if seen is None or place.buffer in others:
                    return False
                wires.append(operands.setdefault((place, spec, seen), len(operands)))
        if len(operands) > _MOST:
            return False
        assert isinstance(call.op, Elementwise)
        self.operands = operands
        self.links.append((call.op.formula, tuple(wires)))
        self._number(call)
        return True

    def _number(self, call: Call) -> None:
        count = 1 if call is self.root else len(call.outputs)
        for b, out in zip(call.written[:count], call.outputs, strict=False):
            self.values[b] = len(self.values), out.dtype

    def _seen(self, shape: Shape, out: Shape) -> Any:
        """Return an operand's kind in an epilogue, or shape in an elementwise call; None if it has none."""
        if self.root:
            return _kind(shape, out, self.own.shape[-1])
        if out == self.own.shape:
            return shape
        # The member sees the results in another shape.
        return {math.prod(out): self.own.shape, 1: ()}.get(math.prod(shape))

    def call(self, stored: set[int], sizes: list[int]) -> Call:
        """Return the call that does what the members do, and stores those of their results that are named."""
        if len(self.calls) == 1:
            return self.calls[0]
        made = [b for b in self.values if b in stored]
        return self._product(made, sizes) if self.root else self._chain(made)

    def _chain(self, made: list[int]) -> Call:
        read = [Operand(k, Spec(shape, spec.dtype)) for k, (_, spec, shape) in enumerate(self.operands)]
        outputs = [Spec(self.own.shape, self.values[b][1]) for b in made]
        written = [Operand(len(read) + k, spec) for k, spec in enumerate(outputs)]
        formula = _formula(0, tuple(self.links), tuple(self.values[b][0] for b in made))
        launches = (elementwise(self._symbol(), formula, read, written, _flops(self.calls)),)
        inputs = [(p, spec) for p, spec, _ in self.operands]
        places = [*(p for p, _ in inputs), *map(Slice, made)]
        return Call(Fused(self._title(), True), {}, launches, places, inputs, outputs, tuple(made))

    def _product(self, made: list[int], sizes: list[int]) -> Call:
        root = self.root
        assert root is not None
        assert isinstance(root.op, Op)
        assert root.op.plan is not None
        # The epilogue leaves its last result in the place of the product's, and writes others besides.
        *extra, last = made
        count = len(root.outputs)
        kept, rooms = root.written[1:count], root.written[count:]
        outputs = [*root.outputs, *[self.own] * len(extra)]
        inputs = [*root.inputs, *((p, spec) for p, spec, _ in self.operands)]
        buffers = (last, *kept, *extra, *rooms)
        every = [Operand(k, s) for k, s in enumerate([*(s for _, s in inputs), *outputs])]
        read, operands = every[: len(root.inputs)], every[len(root.inputs) : len(inputs)]
        written, results = every[len(inputs) :][:count], every[len(inputs) + count :]
        numbers = iter(range(len(every), len(every) + len(rooms)))

        def scratch(shape: Shape, dtype: Any) -> Operand:
            number, spec = next(numbers), Spec(shape, np.dtype(dtype))
            room = buffers[number - len(inputs)]
            sizes[room] = max(sizes[room], spec.nbytes)
            return Operand(number, spec)

        epilogue = Epilogue(
            self._symbol(),
            _formula(1, tuple(self.links), tuple(self.values[b][0] for b in (last, *extra))),
            tuple(operands),
            tuple(kind for _, _, kind in self.operands),
            tuple(results),
            _flops(self.calls),
        )
        launches = root.op.plan(read, written, scratch, **root.attributes, epilogue=epilogue)
        places = [*(p for p, _ in inputs), *map(Slice, buffers)]
        # Not in place: a product writes partial sums before it reads its operands for the last time.
        return Call(
            Fused(self._title(), False), root.attributes, tuple(launches), places, inputs, outputs, buffers
        )

    def _title(self) -> str:
        return " + ".join(call.op.name for call in self.calls)

    def _symbol(self) -> str:
        """Return a name for the formula's function, whose file has a digest too, and at most 255 letters."""
        return "_".join(call.op.name for call in self.calls if call is not self.root)[:80]


def needed(sources: set[Group]) -> int:
    """Return what something made of groups needs, as bits."""
    return functools.reduce(lambda bits, s: bits | s.bit | s.needs, sources, 0)


def _flops(calls: Sequence[Call]) -> float:
    return sum(call.op.flops for call in calls if isinstance(call.op, Elementwise))


def _kind(shape: Shape, out: Shape, n: int) -> str | None:
    """Return what an operand is to a result seen as a matrix of n columns; None if it has no such form."""
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


# Kept by the rows and the wiring: a model with the same layers many times has one compiled function.
@functools.cache
def _formula(
    results: int, links: tuple[tuple[Formula, tuple[int, ...]], ...], made: tuple[int, ...]
) -> Formula:
    """Return the formula (results, operands) -> the values numbered `made`; see `Group.links`."""

    def formula(*given: Any) -> tuple[Any, ...]:
        values, operands = list(given[:results]), given[results:]
        for link, wires in links:
            out = link(*(operands[w] if w >= 0 else values[~w] for w in wires))
            values += out if isinstance(out, tuple) else (out,)
        return tuple(values[k] for k in made)

    return formula
