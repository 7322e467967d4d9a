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

#: (arguments' tensors) -> tensors of the results, those that are no arguments and no constants.
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class PureCall:
    """A call of a pure function in a trace; a rule of the tape too.

    run: what it does.  inputs: tensors that it is given.  first: the number of its first result.
    """

    __slots__ = ("first", "function", "inputs", "made", "number", "numbers", "run", "taped", "variables")

    def __init__(
        self, function: Any, run: Run, inputs: tuple[Tensor, ...], numbers: tuple[int, ...], taped: bool
    ) -> None:
        self.function, self.run, self.inputs, self.numbers = function, run, inputs, numbers
        self.first = 0
        self.made: Sequence[Tensor] | None = None
        self.variables: list[Tensor] = []
        self.number = 0
        self.taped = taped

    def expand(self) -> Sequence[Tensor]:
        """Run the function: in ops that are traced while a program is made, eagerly where values are read."""
        if not self.taped:
            self.made = self.run(self.inputs)
            return self.made
        with tape.trace() as self.number:
            self.variables = [tape.leaf(t, self.number) if t.dtype.kind == "f" else t for t in self.inputs]
            self.made = self.run(self.variables)
        return self.made

    def pull_back(
        self, node: tape.Node | None, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of its inputs."""
        trace = tracing()
        if self.made is None and trace is not None and trace.user:
            return self._traced(trace, gradients, needs)
        if self.made is None:
            self.expand()
        assert self.made is not None
        pairs = [(y, g) for y, g in zip(self.made, gradients, strict=True) if g is not None]
        found = tape.backward(self.number, [y for y, _ in pairs], [g for _, g in pairs], self.variables)
        return [g if n else None for g, n in zip(found, needs, strict=True)]

    def _traced(
        self, trace: Trace, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Walk back as one more entry: where a user's Python takes part in the backward pass."""
        present = tuple(g is not None for g in gradients)
        wanted = tuple(n and t.dtype.kind == "f" for n, t in zip(needs, self.inputs, strict=True))
        given = (*self.inputs, *[g for g in gradients if g is not None])
        count, run, function = len(self.inputs), self.run, self.function

        def walk(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            inner = PureCall(function, run, tuple(tensors[:count]), (), taped=True)
            inner.expand()
            cotangents = iter(tensors[count:])
            found = inner.pull_back(None, [next(cotangents) if p else None for p in present], wanted)
            pairs = zip(found, tensors[:count], wanted, strict=True)
            return [Tensor(np.zeros(t.shape, t.dtype)) if g is None else g for g, t, w in pairs if w]

        outputs = [(t.shape, t.dtype) for t, w in zip(self.inputs, wanted, strict=True) if w]
        made = iter(entered(trace, function, ("vjp", present, wanted), walk, given, outputs))
        return [next(made) if w else None for w in wanted]


def entered(
    trace: Trace,
    function: Any,
    key: Hashable,
    run: Run,
    given: tuple[Tensor, ...],
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]],
) -> list[Tensor]:
    """Write a call of a pure function into a trace, and return its results."""
    numbers = tuple([trace.number_of(t) for t in given])
    taped = bool(active.state.gradients)
    call = PureCall(function, run, given, numbers, taped)
    made = [Tensor(s) for s in trace.call(call, (function, key, numbers), outputs)]
    if taped:
        tape.record(call, given, {}, tuple(made))
    return made


def inline_calls(trace: Trace) -> list[Any]:
    """Return the entries of a trace of a user's Python, with those of pure calls in their places."""
    made: list[Any] = []
    calls = iter(trace.calls)
    for entry in trace.entry.path():
        if entry.op is INPUT or entry.op is NUMBER:
            continue
        if hasattr(entry.op, "run"):  # a row
            made.append(entry)
            continue
        inner: list[Any] = []
        trace.entries = inner
        numbers = [trace.number_of(t) for t in next(calls).expand()]
        made += [*inner, Alias(tuple((entry.first + k, n) for k, n in enumerate(numbers)))]
    trace.entries = []
    return made
