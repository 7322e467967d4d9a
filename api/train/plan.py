"""The program of a training step: the forward pass, the backward pass and the update, traced and planned."""

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
from treepie.autodiff.transform import check_dependent, or_zeros

from ..optim.gradients import norm_of
from ..optim.sparse import Gradient, flat_gradients, row_gradients, tensors_of
from . import finish
from .inputs import Part, Total
from .terms import terms_of, unchecked

if TYPE_CHECKING:
    from .step import Step


class ValueRead(Exception):
    """The library's own part of a step reads a value."""


@dataclass(frozen=True)
class _Outputs:
    """The outputs of a step's program.

    scalars: the loss and the norm of the gradients, which Python reads.
    filled: (value, external): values that are written to the caller's memory.
    peeked: values that can be read where a launch reported an error: the gradients.
    late: the number of the first entry of the update, which waits for the finite check.
    """

    scalars: list[Tensor]
    filled: list[tuple[Tensor, int]]
    peeked: list[Tensor]
    late: int


def plan(step: Step, values: int) -> ProgramFamily | None:
    """Trace the backward pass and the update, and return the step's program; None where a value is read.

    values: the number of values in the trace so far.
    """
    inputs, trace, part = step.inputs, step.trace, step.inputs.part
    tape.clear()
    if trace.user:
        trace.enter_library()
    trace.refuse = ValueRead
    step.declare()
    step.place_parameters()
    try:
        numbers = Numbers([inputs.at.count, *inputs.folds, *(part.numbers if part is not None else ())])
        forward = [*_fold_key(step, numbers), *step.forward_entries()]
        forward = forward if part is None else _weigh(step, numbers, forward)
        step.backward()
        outputs = _finish(step, numbers, forward)
    except ValueRead:
        trace.user, trace.refuse, step.gradients = True, None, None
        return None
    request = _request(step, numbers, outputs, len(forward) + outputs.late)
    return ProgramFamily(trace, [*forward, *trace.entries], request, step.steps.cache.arenas, values)


def plan_update(step: Step) -> ProgramFamily:
    """Trace the end of a step on gradients that are there already, and return its program."""
    inputs, trace, part = step.inputs, step.trace, step.inputs.part
    assert isinstance(part, Total)
    numbers = Numbers([inputs.at.count])
    trace.entries = []
    specs, first = [(a.shape, a.dtype) for a in part.sums.arrays], 2 * len(inputs.at.buffers.arrays) + 1
    sums = _externals(step, specs, first)
    weight, total, norm = [_number_at(step, first + len(sums), k) for k in range(3)]
    loss = total / weight
    # With + 0, a sum of zeros is 0: its sign depends on how ranks have added them up.
    outputs = _update(
        step,
        numbers,
        loss,
        [(g + 0.0) / weight.astype(g.dtype) for g in sums],
        norm if part.partial else None,
    )
    request = _request(step, numbers, outputs, outputs.late)
    family = ProgramFamily(trace, trace.entries, request, step.steps.cache.arenas, 0)
    family.result = loss.dtype
    return family


def _fold_key(step: Step, numbers: Numbers) -> list[Any]:
    """Return the entries that fold the step's numbers into the key."""
    inputs, trace = step.inputs, step.trace
    entries: list[Any] = []
    trace.entries = entries
    if inputs.key is None:
        return entries
    base = trace.symbol((2,), inputs.key.dtype)
    step.places[base.number] = Slice(step.first_leaf + len(step.leaves or ()))
    key = Tensor(base, None)
    for k in range(len(inputs.folds)):
        key = rng.fold_in(key, numbers.number(1 + k))  # type: ignore[arg-type]
    if isinstance(inputs.part, Part):
        first = 2 + len(inputs.folds)
        key = rng.for_rows(key, numbers.number(first), numbers.number(first + 1))  # type: ignore[arg-type]
    alias = Alias(((step.key_number, trace.number_of(key)),))
    trace.entries = []
    return [*entries, alias]


def _weigh(step: Step, numbers: Numbers, forward: list[Any]) -> list[Any]:
    """Set what the backward pass of a part starts from; return the entries of the forward pass with it.

    A mean over counted terms weighs their number, which a part may have none of.
    """
    part, trace, loss = step.inputs.part, step.trace, step.loss
    assert isinstance(part, Part)
    assert loss is not None
    trace.entries = []
    weight = numbers.number(1 + len(step.inputs.folds))
    seed = weight.operand(loss.dtype)
    terms = terms_of(loss) if part.counted else None
    step.weight = seed if terms is None else terms
    if terms is not None:
        forward = unchecked(forward, trace.number_of(terms))
    if step.seed is None:
        step.seed = step.weight
        return [*forward, *trace.entries]
    # The backward pass is traced already.
    return [Alias(((trace.number_of(step.seed), trace.number_of(seed)),)), *trace.entries, *forward]


def _finish(step: Step, numbers: Numbers, forward: list[Any]) -> _Outputs:
    """Trace the end of the step, from the gradients on. forward: the entries of the forward pass."""
    inputs, part, trace = step.inputs, step.inputs.part, step.trace
    assert step.gradients is not None
    assert step.loss is not None
    check_dependent(step.gradients)
    buffers = inputs.at.buffers
    grads = [or_zeros(x, v) for x, v in zip(step.gradients, step.variables, strict=True)]
    grads = step.weighted(grads)
    loss = ops.astype(step.loss, float64)
    if part is None:
        groups = buffers.layout.groups[: buffers.layout.trained]
        return _update(step, numbers, loss, flat_gradients(trace, forward, groups, grads))
    flat = list(buffers.layout.flat_trained(grads))
    assert step.weight is not None
    count = len(buffers.arrays)
    first, late = 2 * count + 1, len(trace.entries)
    if not part.sums.empty:
        sums = _externals(step, [(t.shape, t.dtype) for t in flat], first)
        flat = [a + b for a, b in zip(sums, flat, strict=True)]
    filled = [*[(t, first + k) for k, t in enumerate(flat)], _increment(step, 2 * count)]
    return _Outputs([loss, ops.astype(step.weight, float64)], filled, [], late)


def _update(
    step: Step, numbers: Numbers, loss: Tensor, flat: Sequence[Gradient], norm: Tensor | None = None
) -> _Outputs:
    """Trace the update by gradients in flat buffers, where they and the loss are finite.

    norm: of all gradients, where `flat` is a part of them.
    """
    inputs, trace, buffers = step.inputs, step.trace, step.inputs.at.buffers
    count = len(buffers.arrays)
    flat = row_gradients(buffers.layout, flat)
    if norm is None:
        norm = norm_of(flat) if inputs.check or inputs.clip_norm is not None else loss
    checked = finish.check_finite(loss, norm) if inputs.check else norm
    late = len(trace.entries)
    grads = flat if inputs.clip_norm is None else finish.clip(flat, inputs.clip_norm, checked)
    old = _externals(step, [(a.shape, a.dtype) for a in buffers.arrays], 0)
    new = finish.update(step.steps.optimizer, buffers.layout, numbers.number(0), old, grads)
    filled = [*[(t, count + k) for k, t in enumerate(new)], _increment(step, 2 * count)]
    return _Outputs([loss, norm], filled, tensors_of(flat) if inputs.check else [], late)


def _increment(step: Step, external: int) -> tuple[Tensor, int]:
    """Return the step counter plus 1, and the external that it is written to."""
    (count,) = _externals(step, [((), np.dtype(np.int64))], external)
    return count + 1, external


def _externals(step: Step, specs: Sequence[tuple[Any, Any]], first: int) -> list[Tensor]:
    """Return symbolic tensors of the caller's buffers, from external `first` on."""
    tensors = []
    for k, (shape, dtype) in enumerate(specs):
        symbol = step.trace.symbol(shape, dtype)
        step.places[symbol.number] = Slice(first + k)
        tensors.append(Tensor(symbol, None))
    return tensors


def _number_at(step: Step, external: int, k: int) -> Tensor:
    """Return a symbolic tensor of the k-th float64 of an external."""
    symbol = step.trace.symbol((), float64)
    step.places[symbol.number] = Slice(external, 8 * k)
    return Tensor(symbol, None)


def _request(step: Step, numbers: Numbers, outputs: _Outputs, late: int) -> Request:
    trace, number_of, inputs = step.trace, step.trace.number_of, step.inputs
    first = step.first_leaf + len(step.leaves or ()) + (inputs.key is not None)
    for k, n in enumerate(trace.inputs):
        step.places[n] = Slice(first + k)
    sizes = [a.nbytes for a in inputs.at.buffers.arrays] * 2 + [inputs.counter.array.nbytes]
    if inputs.part is not None:
        sizes += [a.nbytes for a in inputs.part.arrays]
    sizes += [a.nbytes for a in inputs.at.buffers.frozen]
    sizes += [t.array.nbytes for t in step.tensors()]
    return Request(
        externals=sizes,
        inputs=dict(step.places),
        fresh=[number_of(t) for t in step.fresh()],
        scalars=[number_of(t) for t in outputs.scalars],
        filled=[(number_of(t), k) for t, k in outputs.filled],
        peeked=[number_of(t) for t in outputs.peeked],
        barrier=late,
        numbers=numbers,
        user_numbers=tuple(trace.number_values),
    )
