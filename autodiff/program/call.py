"""Calls of pure functions in a trace."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .. import tape
from ..tensor import Tensor
from ..trace import active
from ..trace.active import tracing
from ..trace.entry import INPUT, NUMBER
from ..trace.trace import Trace
from .graph import Alias

#: (arguments' tensors) -> tensors of the results that are neither arguments nor constants.
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class PureCall:
    """A call of a pure function, recorded in a trace as one entry; on the tape, an op with a VJP.

    run: computes the results.  inputs, numbers: the arguments' tensors, and their value numbers.
    taped: whether a gradient is being taken.  first: the value number of the first result.
    results: of `run` once it was called, on `variables`, within the gradient `number`.
    """

    __slots__ = ("first", "function", "inputs", "number", "numbers", "results", "run", "taped", "variables")

    def __init__(
        self, function: Any, run: Run, inputs: tuple[Tensor, ...], numbers: tuple[int, ...], taped: bool
    ) -> None:
        self.function, self.run, self.inputs, self.numbers = function, run, inputs, numbers
        self.first = 0
        self.results: Sequence[Tensor] | None = None
        self.variables: list[Tensor] = []
        self.number = 0
        self.taped = taped

    def expand(self) -> Sequence[Tensor]:
        """Run the function: on symbolic tensors to inline the call, or eagerly where a value is read."""
        if not self.taped:
            self.results = self.run(self.inputs)
            return self.results
        with tape.trace() as self.number:
            # Others get no gradient, which would have to be computed where it is a sum over ranks.
            inputs = [(t, t.dtype.kind == "f" and t.node is not None) for t in self.inputs]
            self.variables = [tape.leaf(t, self.number) if active else t for t, active in inputs]
            self.results = self.run(self.variables)
        return self.results

    def pull_back(
        self, node: tape.Node | None, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of the inputs, None where not needed."""
        trace = tracing()
        if self.results is None and trace is not None and trace.user:
            return self._record_vjp(trace, gradients, needs)
        if self.results is None:
            self.expand()
        assert self.results is not None
        pairs = [(y, g) for y, g in zip(self.results, gradients, strict=True) if g is not None]
        pulled = tape.backward(self.number, [y for y, _ in pairs], [g for _, g in pairs], self.variables)
        return [g if n else None for g, n in zip(pulled, needs, strict=True)]

    def _record_vjp(
        self, trace: Trace, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Record the VJP as one more pure call, where a user's Python takes part in the backward pass."""
        present = tuple(g is not None for g in gradients)
        needed = tuple(n and t.dtype.kind == "f" for n, t in zip(needs, self.inputs, strict=True))
        operands = (*self.inputs, *[g for g in gradients if g is not None])
        count, run, function = len(self.inputs), self.run, self.function

        def vjp(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            call = PureCall(function, run, tuple(tensors[:count]), (), taped=True)
            call.expand()
            cotangents = iter(tensors[count:])
            pulled = call.pull_back(None, [next(cotangents) if p else None for p in present], needed)
            rows = zip(pulled, tensors[:count], needed, strict=True)
            return [Tensor(np.zeros(t.shape, t.dtype), None) if g is None else g for g, t, n in rows if n]

        outputs = [(t.shape, t.dtype) for t, n in zip(self.inputs, needed, strict=True) if n]
        results = iter(record_call(trace, function, ("vjp", present, needed), vjp, operands, outputs))
        return [next(results) if n else None for n in needed]


def record_call(
    trace: Trace,
    function: Any,
    key: Hashable,
    run: Run,
    inputs: tuple[Tensor, ...],
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]],
) -> tuple[Tensor, ...]:
    """Record a call of a pure function in a trace and on the tape; return its results.

    key: identifies the computation, together with the function.  outputs: shapes and dtypes.
    """
    numbers, deepest = trace.numbers_of(inputs)
    call = PureCall(function, run, inputs, numbers, bool(active.state.gradients))
    return record(trace, call, (function, key, numbers), outputs, deepest)


def record(
    trace: Trace,
    call: PureCall,
    key: Hashable,
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]],
    deepest: int,
) -> tuple[Tensor, ...]:
    """Record a call whose key identifies it among all calls; see `record_call`.

    deepest: the highest trace of the tape that an input belongs to.
    """
    now = active.state
    for collector in now.captures if call.taped else ():
        collector.note(call.inputs, now.gradients[0])
    return trace.call(call, key, call.inputs, outputs, now.gradients, deepest)


def inline_calls(trace: Trace) -> list[Any]:
    """Return the entries of a trace of a user's Python, with each pure call replaced by its own entries."""
    items: list[Any] = []
    calls = iter(trace.calls)
    for entry in trace.entry.path():
        if entry.op is INPUT or entry.op is NUMBER:
            continue
        if hasattr(entry.op, "run"):  # an op of the table
            items.append(entry)
            continue
        inlined: list[Any] = []
        trace.entries = inlined
        numbers = [trace.number_of(t) for t in next(calls).expand()]
        items += [*inlined, Alias(tuple((entry.first + k, n) for k, n in enumerate(numbers)))]
    trace.entries = []
    return items
