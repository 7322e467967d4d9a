"""The tape: ops recorded during differentiation, and the backward pass over them.

Every gradient computation is a trace with a number, later ones higher. A node belongs to the highest
trace that it depends on, so the backward pass of trace t visits nodes of t or higher, and a tensor left
over from a finished trace is a constant. Gradients nest because the backward pass runs ops on tensors,
which are recorded again while an outer trace is active.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .tensor import Data, Tensor
from .trace.active import classes, state


class Differentiable(Protocol):
    """The op of a node: computes gradients of its inputs from those of its outputs."""

    def pull_back(
        self, node: Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of a node's inputs, where needed."""


_numbers = itertools.count(1)


class Node:
    """One recorded call of an op: its inputs, attributes and output arrays.

    It holds arrays, not tensors, of its outputs: a tensor holds its node, and a reference cycle would keep a
    step's memory until the garbage collector runs. A node without an op is a leaf: its input is the
    tensor outside of the trace, to which an outer gradient passes.
    """

    __slots__ = ("attributes", "inputs", "number", "op", "outputs", "trace")

    def __init__(
        self,
        op: Differentiable | None,
        inputs: tuple[Tensor, ...],
        attributes: dict[str, Any],
        outputs: tuple[Data, ...],
        trace: int,
    ) -> None:
        self.op, self.inputs, self.attributes, self.outputs, self.trace = (
            op,
            inputs,
            attributes,
            outputs,
            trace,
        )
        self.number = next(_numbers)

    @property
    def active(self) -> bool:
        """Whether the trace that it was recorded for is still active."""
        active = state.gradients
        return bool(active) and self.trace >= active[0]

    def results(self) -> tuple[Tensor, ...]:
        """Return the outputs as tensors of this node."""
        return tuple(Tensor(a, self, k) for k, a in enumerate(self.outputs))


classes.tensor, classes.node, classes.next_number = Tensor, Node, functools.partial(next, _numbers)


def recording() -> bool:
    """Whether any gradient trace is active."""
    return bool(state.gradients)


def depth() -> int:
    """Return the number of active gradient traces."""
    return len(state.gradients)


def next_number() -> int:
    """Return the number of a new gradient trace."""
    return next(_numbers)


def begin() -> int:
    """Make a new gradient trace the only active one; return its number."""
    number = next_number()
    state.gradients = (number,)
    state.captures = ()
    return number


def clear() -> None:
    """Deactivate all gradient traces."""
    state.gradients = ()
    state.captures = ()


def record(
    op: Differentiable, inputs: tuple[Tensor, ...], attributes: dict[str, Any], outputs: tuple[Tensor, ...]
) -> None:
    """Attach a node to the outputs of an op if an input depends on an active trace."""
    first = state.gradients[0]
    for collector in state.captures:
        collector.note(inputs, first)
    trace = 0
    for t in inputs:
        node = t.node
        if node is not None and node.trace > trace:
            trace = node.trace
    if trace < first:
        return
    node = Node(op, inputs, attributes, tuple([o._data for o in outputs]), trace)
    active = state.trace
    if active is not None:
        active.nodes.append(node)
    for k, out in enumerate(outputs):
        if out.dtype.kind == "f":  # integers and bools are constants
            out.node, out.output = node, k


@contextmanager
def trace() -> Iterator[int]:
    """Activate a new gradient trace, whose number this yields: ops on its leaves are recorded."""
    number = next(_numbers)
    before = state.gradients
    state.gradients = (*before, number)
    try:
        yield number
    finally:
        state.gradients = before


@contextmanager
def resumed(number: int) -> Iterator[None]:
    """Record ops for a trace again, during its backward pass."""
    before = state.gradients
    state.gradients = (number, *before)
    try:
        yield
    finally:
        state.gradients = before


class _Capture:
    """Collects tensors recorded before a block of code that its ops use, as captured by a closure."""

    def __init__(self) -> None:
        self.before = next(_numbers)
        self.tensors: list[Tensor] = []

    def note(self, inputs: tuple[Tensor, ...], first: int) -> None:
        for t in inputs:
            if t.node is None or t.node.trace < first or t.node.number > self.before:
                continue
            if not any(t.node is x.node and t.output == x.output for x in self.tensors):
                self.tensors.append(t)


@contextmanager
def capture() -> Iterator[list[Tensor]]:
    """Collect the tensors from outside of a block that its ops depend on, where a gradient needs them."""
    collector = _Capture()
    before = state.captures
    state.captures = (*before, collector)
    try:
        yield collector.tensors
    finally:
        state.captures = before


def leaf(x: Tensor, number: int) -> Tensor:
    """Return x as an independent variable of a trace."""
    return Tensor(x._data, Node(None, (x,), {}, (x._data,), number))


def backward(
    number: int, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of sum(outputs * cotangents) with respect to the leaves of a trace.

    The gradient is None for a leaf that the outputs do not depend on.
    """
    pending: dict[Node, list[Tensor | None]] = {}
    for out, g in zip(outputs, cotangents, strict=True):
        if out.node is not None and out.node.trace >= number:
            _accumulate(pending, out, g)
    own = {leaf.node for leaf in leaves if leaf.node is not None}
    results: dict[Node, list[Tensor | None]] = {}
    for node in _latest_first([o.node for o in outputs if o.node is not None], number, own):
        gradients = pending.pop(node, None)
        if gradients is None:
            continue
        if node in own:
            results[node] = gradients
        elif node.op is None:
            # A leaf of an inner trace: the derivative passes on to its tensor outside of that trace.
            if gradients[0] is not None:
                _accumulate(pending, node.inputs[0], gradients[0], number)
        else:
            needs = tuple(_depends(t, number) for t in node.inputs)
            upstream = node.op.pull_back(node, gradients, needs)
            for t, gradient in zip(node.inputs, upstream, strict=True):
                if gradient is not None:
                    _accumulate(pending, t, gradient)
    return [results[x.node][x.output] if x.node in results else None for x in leaves]


def _depends(t: Tensor, number: int) -> bool:
    return t.node is not None and t.node.trace >= number


def _accumulate(pending: dict[Node, list[Tensor | None]], t: Tensor, g: Tensor, number: int = 0) -> None:
    node = t.node
    if node is None or node.trace < number:
        return
    held = pending.setdefault(node, [None] * len(node.outputs))
    before = held[t.output]
    held[t.output] = g if before is None else before + g


def _latest_first(roots: list[Node], number: int, own: set[Node]) -> list[Node]:
    """Return the nodes that the roots depend on, down to `own`, in reverse topological order."""
    visited: set[Node] = set()
    stack = [r for r in roots if r.trace >= number]
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        if node not in own:
            stack += [t.node for t in node.inputs if t.node is not None and t.node.trace >= number]
    return sorted(visited, key=lambda n: -n.number)
