"""The program of a training step: what follows on the forward pass, traced, and what it gives and takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treepie.autodiff import Tensor, ops, rng, tape
from treepie.autodiff.program.graph import Alias, Slice
from treepie.autodiff.program.program import ProgramFamily
from treepie.autodiff.program.request import Request
from treepie.autodiff.tensor import float64
from treepie.autodiff.trace.number import Numbers
from treepie.autodiff.transform import or_zeros

from . import finish

if TYPE_CHECKING:
    from .step import Step


class Reads(Exception):
    """The library's part of a step reads values."""


@dataclass(frozen=True)
class _Results:
    """What a step's program gives: numbers for Python, tensors that fill externals, values to be looked at.

    late: the number of the first entry of those that change memory.
    """

    scalars: list[Tensor]
    filled: list[tuple[Tensor, int]]
    peeked: list[Tensor]
    late: int


def planned(step: Step, values: int) -> ProgramFamily | None:
    """Trace what follows on a step's forward pass; return the whole as a blueprint, None if it reads values.

    values: how many values there are so far.
    """
    g, trace, part = step.given, step.trace, step.given.accumulation
    tape.clear()
    if trace.user:
        trace.enter_library()
    trace.refuse = Reads
    step.fill()
    step.place_parameters()
    try:
        numbers = Numbers([g.count, *g.folds, *((part.size, part.examples, part.total) if part else ())])
        items = [*_key(step, numbers), *step.forward_entries()]
        step.backward()
        results = _results(step, numbers)
    except Reads:
        trace.user, trace.refuse, step.gradients = True, None, None
        return None
    every = [*items, *trace.entries]
    request = _request(step, numbers, results, len(items) + results.late)
    return ProgramFamily(trace, every, request, step.steps.cache.arenas, values)


def _key(step: Step, numbers: Numbers) -> list[Any]:
    """Return the entries that fold the step's numbers into the key."""
    g, trace = step.given, step.trace
    items: list[Any] = []
    trace.entries = items
    if g.key is None:
        return items
    base = trace.symbol((2,), g.key.dtype)
    step.places[base.number] = Slice(step.first_leaf + len(step.leaves or ()))
    key = Tensor(base)
    for k in range(len(g.folds)):
        key = rng.fold_in(key, numbers.number(1 + k))  # type: ignore[arg-type]
    made = [*items, Alias(((step.key_number, trace.number_of(key)),))]
    trace.entries = []
    return made


def _results(step: Step, numbers: Numbers) -> _Results:
    """Trace what follows on the backward pass."""
    g, part, trace = step.given, step.given.accumulation, step.trace
    assert step.gradients is not None
    assert step.loss is not None
    layout = g.buffers.layout
    grads = [or_zeros(x, v) for x, v in zip(step.gradients, step.variables, strict=True)]
    flat = list(layout.flat(grads))
    loss = ops.astype(step.loss, float64)
    externals = len(g.buffers.arrays)
    if part is not None:
        size, examples, total = _part_numbers(numbers, len(g.folds))
        first = 2 * externals + 1
        sums = [] if part.first else _externals(step, [(t.shape, t.dtype) for t in flat], first)
        late = len(trace.entries)
        flat = finish.summed(flat, sums, part, size, examples)
        if not part.last:
            filled = [*[(t, first + k) for k, t in enumerate(flat)], *_tick(step, 2 * externals)]
            return _Results([loss, loss], filled, [], late)
        loss = (loss * size + total) / examples
    norm = finish.norm_of(flat) if g.checked or g.clip_norm is not None else loss
    checked = finish.check(loss, norm) if g.checked else norm
    late = len(trace.entries)
    updates = flat if g.clip_norm is None else finish.clipped(flat, g.clip_norm, checked)
    held = _externals(step, [(a.shape, a.dtype) for a in g.buffers.arrays], 0)
    new = finish.updated(step.steps.optimizer, layout, numbers.number(0), held, updates)
    filled = [*[(t, externals + k) for k, t in enumerate(new)], *_tick(step, 2 * externals)]
    return _Results([loss, norm], filled, flat if g.checked else [], late)


def _part_numbers(numbers: Numbers, folds: int) -> tuple[Any, Any, Any]:
    """Return the examples of an element, those so far, and the sum of losses so far."""
    size, examples, total = (numbers.number(1 + folds + k) for k in range(3))
    return numbers.compute(float, size), numbers.compute(float, examples), total


def _tick(step: Step, external: int) -> list[tuple[Tensor, int]]:
    (tick,) = _externals(step, [((), np.dtype(np.int64))], external)
    return [(tick + 1, external)]


def _externals(step: Step, specs: Sequence[tuple[Any, Any]], first: int) -> list[Tensor]:
    """Return memory that each run is given as tensors."""
    made = []
    for k, (shape, dtype) in enumerate(specs):
        symbol = step.trace.symbol(shape, dtype)
        step.places[symbol.number] = Slice(first + k)
        made.append(Tensor(symbol))
    return made


def _request(step: Step, numbers: Numbers, results: _Results, late: int) -> Request:
    trace, number_of, g = step.trace, step.trace.number_of, step.given
    first = step.first_leaf + len(step.leaves or ()) + (g.key is not None)
    for k, n in enumerate(trace.inputs):
        step.places[n] = Slice(first + k)
    sizes = [a.nbytes for a in g.buffers.arrays] * 2 + [8]
    if g.accumulation is not None:
        sizes += [a.nbytes for a in g.accumulation.sums]
    sizes += [t.array.nbytes for t in step.tensors()]
    return Request(
        externals=sizes,
        inputs=dict(step.places),
        fresh=[number_of(t) for t in step.fresh()],
        scalars=[number_of(t) for t in results.scalars],
        filled=[(number_of(t), k) for t, k in results.filled],
        peeked=[number_of(t) for t in results.peeked],
        barrier=late,
        numbers=numbers,
        user_numbers=tuple(trace.number_values),
    )
