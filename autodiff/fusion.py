"""Fusion: recorded calls become fewer ones, which read and write less memory and give the same bits.

What constants alone determine is not computed again, nor the same call twice. An elementwise call joins the
matrix product that made one of its operands, as what becomes of each tile while it is in cache, or else the
elementwise call that did; what only members of such a group read is not stored. A formula's operations are
neither reordered nor contracted, so a chain has the bits of its links.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treepie.kernels.elementwise import elementwise
from treepie.kernels.epilogue import COLUMN, MATRIX, ROW, SCALAR, Epilogue
from treepie.kernels.program import Operand, Spec
from treepie.kernels.vector import Formula

from .capture import Call, Place, Recorder
from .elementwise import Elementwise
from .table import Op

Shape = tuple[int, ...]

#: Members and operands of a group at most: an x86 processor has 16 registers for addresses.
_MOST = 8


@dataclass(frozen=True)
class Fused:
    """What stands for an op where a call does the work of several."""

    name: str
    failure: None = None


def fused(recorder: Recorder, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return calls that compute the wanted buffers of a recording as `calls` do."""
    groups = _grouped(_distinct(recorder, calls, wanted))
    stored = wanted | {b for group in groups for b in group.reads}
    return [group.call(stored, recorder.sizes) for group in _ordered(groups)]


def _distinct(recorder: Recorder, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Leave out calls on constants, whose results the recording holds, and calls that another one equals."""
    kept: list[Call] = []
    first: dict[Any, Call] = {}
    same: dict[int, int] = {}  # buffer -> the equal one that is made earlier
    for old in calls:
        call = _renamed(old, same) if same else old
        free = wanted.isdisjoint(call.made)
        if free and recorder.derived.isdisjoint(call.made):
            continue
        key = (call.op, tuple(call.inputs), tuple(call.meta.items()))
        if free and key in first:
            same.update(zip(call.made, first[key].made, strict=True))
            continue
        first.setdefault(key, call)
        kept.append(call)
    return kept


def _renamed(call: Call, same: dict[int, int]) -> Call:
    def moved(p: Place) -> Place:
        return Place(same[p.buffer], p.offset) if p.buffer in same else p

    inputs = [(moved(p), spec) for p, spec in call.inputs]
    return replace(call, places=[*map(moved, call.places)], inputs=inputs)


def _grouped(calls: Sequence[Call]) -> list[_Group]:
    """Put each call into a group, as early as its operands allow."""
    groups: list[_Group] = []
    makers: dict[int, _Group] = {}
    for at, call in enumerate(calls):
        sources = {makers[p.buffer] for p, _ in call.inputs if p.buffer in makers}
        group = None
        if _is_elementwise(call):
            # A product has its result in cache, an elementwise call only reads memory; of two, the later one.
            hosts = sorted(sources, key=lambda g: (g.root is not None, g.last), reverse=True)
            group = next((g for g in hosts if g.join(call, at, sources)), None)
        if group is None:
            group = _Group(call, at, sources)
            groups.append(group)
        makers.update(dict.fromkeys(call.made, group))
    return groups


def _ordered(groups: Sequence[_Group]) -> list[_Group]:
    """Return groups each after its sources, else in the order of their last members."""
    waits = {group: len(group.sources) for group in groups}
    users: dict[_Group, list[_Group]] = {group: [] for group in groups}
    for group in groups:
        for source in group.sources:
            users[source].append(group)
    ready = [(group.last, group) for group in groups if not group.sources]
    heapq.heapify(ready)
    done = []
    while ready:
        _, group = heapq.heappop(ready)
        done.append(group)
        for user in users[group]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, (user.last, user))
    return done


def _is_elementwise(call: Call) -> bool:
    return isinstance(call.op, Elementwise) and bool(call.launches)


class _Group:
    """Calls that run as one, where the last one stands: a product or an elementwise call, and elementwise
    calls that use their results; or any other call, alone.
    """

    def __init__(self, call: Call, at: int, sources: set[_Group]) -> None:
        self.calls, self.first, self.last, self.sources = [call], at, at, sources
        self.own = call.outputs[0]  # the shape and dtype of all results, but for an elementwise call's dtype
        #: The product whose epilogue the others are.
        self.root = call if isinstance(call.op, Op) and call.op.epilogue and call.launches else None
        #: What the formula takes, besides a product's result: place, spec, and kind in a product or shape.
        self.operands: dict[tuple[Place, Spec, Any], int] = {}
        #: The product's result, if any, and all results of formulas, numbered: buffer -> (number, dtype).
        self.values: dict[int, tuple[int, np.dtype]] = {}
        #: Formulas, and where they find their operands: number k of `operands`, or ~k of `values`.
        self.links: list[tuple[Formula, tuple[int, ...]]] = []
        if self.root:
            self._number(call)
        elif _is_elementwise(call):
            self._link(call)

    @property
    def reads(self) -> set[int]:
        """The buffers of others that its members read."""
        return {p.buffer for call in self.calls for p, _ in call.inputs if p.buffer not in self.values}

    def join(self, call: Call, at: int, sources: set[_Group]) -> bool:
        """Take an elementwise call, whose operands `sources` make, if it fits."""
        if not self.values or len(self.calls) > _MOST or call.outputs[0].size != self.own.size:
            return False
        if self.root and any(out.dtype != self.own.dtype for out in call.outputs):
            return False
        if any(s is not self and s.depends(self) for s in sources) or not self._link(call):
            return False
        self.calls.append(call)
        self.sources |= sources - {self}
        self.last = at
        return True

    def _link(self, call: Call) -> bool:
        """Note how a member finds its operands; False, and nothing changed, if it can not."""
        wires, operands = [], dict(self.operands)
        others = self.root.made[1:] if self.root else ()
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
        if len(operands) > _MOST and self.links:
            return False
        self.operands = operands
        self.links.append((call.op.formula, tuple(wires)))
        self._number(call)
        return True

    def _number(self, call: Call) -> None:
        count = 1 if call is self.root else len(call.outputs)
        for b, out in zip(call.made[:count], call.outputs, strict=False):
            self.values[b] = len(self.values), out.dtype

    def _seen(self, shape: Shape, out: Shape) -> Any:
        """Return an operand's kind in an epilogue, or shape in an elementwise call; None if it has none."""
        if self.root:
            return _kind(shape, out, self.own.shape[-1])
        if out == self.own.shape:
            return shape
        # The member sees the results in another shape.
        return {math.prod(out): self.own.shape, 1: ()}.get(math.prod(shape))

    def depends(self, other: _Group) -> bool:
        """Whether it needs a result of another group, by itself or by others."""
        seen, stack = {self}, [self]
        while stack:
            group = stack.pop()
            if group is other:
                return True
            # What ended before the other began can not need it.
            found = {s for s in group.sources if s.last >= other.first} - seen
            seen |= found
            stack += found
        return False

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
        launches = (elementwise(self._symbol(), formula, read, written, self._flops()),)
        inputs = [(p, spec) for p, spec, _ in self.operands]
        places = [*(p for p, _ in inputs), *map(Place, made)]
        return Call(Fused(self._title()), {}, launches, places, inputs, outputs, tuple(made))

    def _product(self, made: list[int], sizes: list[int]) -> Call:
        root = self.root
        assert root is not None
        assert isinstance(root.op, Op)
        assert root.op.plan is not None
        # The epilogue leaves its last result in the place of the product's, and writes others besides.
        *extra, last = made
        count = len(root.outputs)
        kept, rooms = root.made[1:count], root.made[count:]
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
            self._flops(),
        )
        launches = root.op.plan(read, written, scratch, **root.meta, epilogue=epilogue)
        places = [*(p for p, _ in inputs), *map(Place, buffers)]
        return Call(Fused(self._title()), root.meta, tuple(launches), places, inputs, outputs, buffers)

    def _title(self) -> str:
        return " + ".join(call.op.name for call in self.calls)

    def _symbol(self) -> str:
        """Return a name for the formula's function, whose file has a digest too, and at most 255 letters."""
        return "_".join(call.op.name for call in self.calls if call is not self.root)[:80]

    def _flops(self) -> float:
        return sum(call.op.flops for call in self.calls if isinstance(call.op, Elementwise))


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
    """Return the formula (results, operands) -> the values numbered `made`; see `_Group.links`."""

    def formula(*given: Any) -> tuple[Any, ...]:
        values, operands = list(given[:results]), given[results:]
        for link, wires in links:
            out = link(*(operands[w] if w >= 0 else values[~w] for w in wires))
            values += out if isinstance(out, tuple) else (out,)
        return tuple(values[k] for k in made)

    return formula
