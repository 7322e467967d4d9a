"""Traces: Python runs on symbolic tensors, and the ops that it calls are recorded.

While a trace is active, an op returns tensors with a shape and a dtype, from the op's shape rule (abstract
evaluation), allocates no memory and launches no kernel. Traces of a user's Python form a tree (a trie) in
which traces with a common prefix share entries: to trace a call sequence again only looks up each next entry,
and the entry where a trace ends holds the programs of all ops on the path.

Tensors and arrays from outside of the trace, and Python numbers where they are operands, are inputs of the
program, passed by value. So the recorded ops are a function of these inputs, whatever Python state decided
which ops were called.

Only pure functions can be repeated without running their Python: their results depend on their arguments
alone. A call of one is a single entry (see `program/pure.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treepie.kernels.frames import user_line

from .active import call_under, classes
from .entry import INPUT, NUMBER, Entry, InputOp, Output, Shape, Symbol, TraceableOp
from .reuse import Reuse, referenced

if TYPE_CHECKING:
    from ..program.call import PureCall
    from ..tape import Node
    from ..tensor import Tensor

#: Integer results with more elements are computed by the program, not folded while tracing.
_MOST_FOLDED = 1 << 16

_NO_ATTRIBUTES: dict[str, Any] = {}


class Restart(BaseException):
    """An op failed while recorded entries were run: the step starts again, eagerly.

    A BaseException, so that `except` clauses in the user's code do not catch it: they are for the eager run.
    """


class Trace:
    """The ops called while it is active, as a path of entries.

    entry: where the path begins.
    user: whether a user's Python runs. Its entries are looked up in the tree. In the library's own Python
        numbers are constants, and new entries are listed in `entries`.
    depth: how many gradients the library itself takes; with more, a pure call is not recorded as one entry.
    refuse: (line of the user's code) -> the error to raise when a value is read; None allows reads.
    lines: whether entries note the line of the user's code.
    """

    refuse: Callable[[str], Exception] | None = None
    #: Sets the elements of the inputs that were declared as symbols, before entries are run eagerly.
    materialize_inputs: Callable[[], None] | None = None
    lines = closed = False
    #: Whether nodes of the tape stay usable afterwards; whether the backward pass runs a user's Python.
    pullbacks = python_backward = False
    #: The line of the first read.
    read_at: str | None = None
    #: Tensors of an earlier trace, which this one takes over; see `reuse.py`.
    reuse: Reuse | None = None
    #: A counter that the program increments, and its count from which on live values have their elements.
    tick: tuple[np.ndarray, int] | None = None

    def __init__(
        self,
        entry: Entry,
        user: bool = True,
        depth: int = 0,
        refuse: Callable[[str], Exception] | None = None,
        lines: bool = False,
    ) -> None:
        self.entry, self.user, self.depth = entry, user, depth
        if refuse is not None:
            self.refuse = refuse
        if lines:
            self.lines = lines
        self._begin()
        if not user:
            self._begin_library()

    def _begin(self) -> None:
        self.values: list[Symbol | Tensor] = []
        self.inputs: list[int] = []  # value numbers of the tensors from outside
        self.numbers: list[float | int | bool] = []  # Python numbers that are inputs
        self.number_values: list[int] = []  # their value numbers
        self.calls: list[PureCall] = []
        self.nodes: list[Node] = []
        self.outside_numbers: dict[int, int] = {}  # id of an array from outside -> its value number

    def again(self, entry: Entry) -> None:
        """Begin anew at an entry, with the tensors that it has made before for `reuse`."""
        self.entry, self.closed = entry, False
        self._begin()

    def _begin_library(self) -> None:
        self.entries: list[Any] = []
        # (value number, function, index of a number): values that Python computes before each run
        self.computed: list[tuple[int, Any, int]] = []

    def enter_library(self) -> None:
        """Trace the library's own Python from here on."""
        self.user = False
        self._begin_library()

    # ---- values
    def symbol(self, shape: Shape, dtype: np.dtype) -> Symbol:
        """Return a new symbolic value."""
        symbol = Symbol(shape, dtype, len(self.values), self)
        self.values.append(symbol)
        return symbol

    def number_of(self, x: Tensor) -> int:
        """Return the value number of a tensor; one from outside becomes an input or a constant."""
        data = x._data
        if type(data) is Symbol and data.trace is self:
            return data.number
        return self.outside(x)

    def outside(self, x: Tensor) -> int:
        """Return the value number of a tensor from outside."""
        data = x._data
        array = data if type(data) is np.ndarray else x.array  # a symbol of another trace is read
        number = self.outside_numbers.get(id(array))
        if number is not None:
            return number
        number = self.outside_numbers[id(array)] = len(self.values)
        if self.user:
            key = (array.shape, array.dtype.char)
            entry = self.entry.children.get(key)
            if entry is None or self.lines:
                self._step(key, INPUT, (), {}, [(array.shape, array.dtype)])
            else:
                self.entry = entry
            self.inputs.append(number)
        self.values.append(x)  # keeps the array alive, whose id is a key
        return number

    def number(self, value: Any, dtype: np.dtype) -> Tensor:
        """Declare a Python number of the user's as an input."""
        char = dtype.char
        entry = self.entry.children.get(char)
        if entry is None or self.lines:
            entry = self._step(char, NUMBER, (), {}, [((), dtype)])
        return self.number_at(entry, value)

    def number_at(self, entry: Entry, value: Any) -> Tensor:
        """Declare a Python number as the input of an entry, which becomes the last one."""
        self.entry, reuse = entry, self.reuse
        self.numbers.append(value)
        self.number_values.append(len(self.values))
        found = None if reuse is None else reuse.find(self, entry, NUMBER, (), _NO_ATTRIBUTES, 0)
        return (found or self.results(entry, NUMBER, (), _NO_ATTRIBUTES, (), 0))[0]

    def numbers_of(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], int]:
        """Return the value numbers of tensors as `number_of` does, and the highest trace of the tape."""
        numbers, deepest = [], 0
        for x in inputs:
            data, node = x._data, x.node
            if type(data) is Symbol and data.trace is self:
                numbers.append(data.number)
            else:
                numbers.append(self.outside(x))
            if node is not None and node.trace > deepest:
                deepest = node.trace
        return tuple(numbers), deepest

    # ---- entries
    def add(
        self,
        op: TraceableOp,
        inputs: tuple[Tensor, ...],
        attributes: dict[str, Any],
        gradients: tuple[int, ...] = (),
    ) -> tuple[Tensor, ...]:
        """Record a call of an op; return its results, with nodes of the tape if gradients are being taken.

        Operands from outside have elements: their ranges are checked here, so that the error is raised where
        the user's code may handle it, and small integer results of them are computed here (constant folding).
        """
        user, failure = self.user, op.failure
        if user and failure is not None and op.fails([x._data for x in inputs], attributes):
            raise op.error(inputs, attributes)
        key: list[Any] = [op]
        if user and Symbol not in [type(x._data) for x in inputs]:
            results = self._fold_integers(op, inputs, attributes)
            if results is not None:
                return results
        numbers, deepest = self.numbers_of(inputs)
        key += numbers
        if attributes:
            key += [repr(v) if type(v) is float else v for v in attributes.values()]
        child_key = tuple(key)
        entry = self.entry.children.get(child_key) if user else None
        if entry is None or self.lines:
            outputs = op.outputs([x._data for x in inputs], attributes) if entry is None else entry.outputs
            entry = self._step(child_key, op, numbers, attributes, outputs)
        else:
            self.entry = entry
        return self.results(entry, op, inputs, attributes, gradients, deepest)

    def results(
        self,
        entry: Entry,
        op: Any,
        inputs: tuple[Tensor, ...],
        attributes: dict[str, Any],
        gradients: tuple[int, ...],
        deepest: int,
    ) -> tuple[Tensor, ...]:
        """Return the results of an op, or of a call of a pure function: new ones, or those of `reuse`.

        deepest: the highest trace of the tape that an input belongs to.
        """
        values, outputs, reuse = self.values, entry.outputs, self.reuse
        number = deepest if gradients and deepest >= gradients[0] else 0
        if reuse is not None:
            found = reuse.find(self, entry, op, inputs, attributes, number)
            if found is not None:
                return found
        first, recorded = len(values), None
        if len(outputs) == 1:  # most ops, in half the time of the general case
            ((shape, dtype),) = outputs
            symbols: tuple[Symbol, ...] = (Symbol(shape, dtype, first, self),)
        else:
            symbols = tuple([Symbol(*output, n, self) for n, output in enumerate(outputs, first)])
        values += symbols
        if number:
            recorded = classes.node(op, inputs, attributes, symbols, number)
            self.nodes.append(recorded)
        # Integers and bools are constants for the tape.
        pairs = [(s, recorded if s.dtype.kind == "f" else None) for s in symbols]
        results = tuple([classes.tensor(s, node, k) for k, (s, node) in enumerate(pairs)])
        if reuse is not None:
            reuse.add(entry, results, recorded, number)
        return results

    def _fold_integers(
        self, op: TraceableOp, inputs: tuple[Tensor, ...], attributes: dict[str, Any]
    ) -> tuple[Tensor, ...] | None:
        """Run an op on arrays from outside if its results are few integers or bools, else return None."""
        outputs = op.outputs([x._data for x in inputs], attributes)
        if any(d.kind == "f" or math.prod(s) > _MOST_FOLDED for s, d in outputs):
            return None
        return call_under(None, op.run, inputs, attributes)

    def _step(
        self,
        key: Any,
        op: Any,
        inputs: tuple[int, ...],
        attributes: dict[str, Any],
        outputs: Sequence[Output],
    ) -> Entry:
        """Move to the child entry of a key, creating it if there is none."""
        entry = self.entry.children.get(key) if self.user else None
        if entry is None:
            entry = Entry(self.entry, op, inputs, attributes, len(self.values), outputs)
            if self.user:
                entry.key = key
                self.entry.children[key] = entry
            else:
                self.entries.append(entry)
                entry.parent = None  # not part of the tree
        if self.lines:
            entry.line = user_line()
        if self.user:
            self.entry = entry
        return entry

    def call(
        self,
        call: PureCall,
        key: Any,
        inputs: tuple[Tensor, ...],
        outputs: Sequence[Output],
        gradients: tuple[int, ...],
        deepest: int,
    ) -> tuple[Tensor, ...]:
        """Record a call of a pure function; return its results. gradients, deepest: as in `results`."""
        entry = self.entry.children.get(key)
        if entry is None or self.lines:
            entry = self._step(key, call.function, call.numbers, {}, outputs)
        else:
            self.entry = entry
        self.calls.append(call)
        call.first = len(self.values)
        return self.results(entry, call, inputs, _NO_ATTRIBUTES, gradients, deepest)

    # ---- the end
    def ready(self) -> bool:
        """Whether live values have their elements: the program has run as far as its counter."""
        if self.tick is not None and int(self.tick[0][()]) >= self.tick[1]:
            self.tick = None
        return self.tick is None

    def read(self) -> None:
        """Handle a read: run the entries, which gives all values elements; later ops run eagerly.

        Raises the error of `refuse` instead where reads are refused.
        """
        if self.closed:
            return
        line = user_line()
        self.read_at = self.read_at or line
        if self.refuse is not None:
            raise self.refuse(line)
        self.materialize()

    def materialize(self) -> None:
        """Close the trace and run its entries op by op; raise Restart where an op fails."""
        self.closed = True
        try:
            self.run()
        except Exception as error:
            raise Restart from error

    def run(self) -> None:
        """Run the entries op by op, eagerly, and give the values their elements."""
        values = self.values
        if self.materialize_inputs is not None:
            self.materialize_inputs()
        for number, value in zip(self.number_values, self.numbers, strict=True):
            symbol = values[number]
            with np.errstate(over="ignore"):
                symbol.value = np.array(value, symbol.dtype)  # type: ignore[union-attr]
        calls = iter(self.calls)
        for entry in self.entry.path():
            if isinstance(entry.op, InputOp):
                continue
            if hasattr(entry.op, "run"):
                operands = tuple([self._operand(n) for n in entry.inputs])
                results = entry.op.run(operands, entry.attributes)
            else:
                results = next(calls).expand()
            for k, out in enumerate(results, entry.first):
                values[k].value = out.array  # type: ignore[union-attr]

    def _operand(self, number: int) -> Tensor:
        value = self.values[number]
        return classes.tensor(value.read(), None) if type(value) is Symbol else value  # type: ignore[return-value]

    def kept_values(self, count: int) -> tuple[int, ...]:
        """Forget the tape; return which of the first values are symbolic and referenced outside of the trace.

        Without any, the values stay for the next trace that `reuse` is for.
        """
        if self.python_backward or self.pullbacks:
            self.drop_reuse()
        if self.reuse is not None:
            self.calls.clear()
            for node in self.nodes:
                node.inputs, node.op = (), None
            if self.reuse.hand_over(self):
                return ()
            self.drop_reuse()
        self.forget_nodes()
        return referenced(self.values, count)

    def drop_reuse(self) -> None:
        """Keep nothing for a later trace."""
        if self.reuse is not None:
            self.reuse.clear()
            self.reuse = None

    def pause(self) -> None:
        """End, but keep the values for `again`; those from outside are released."""
        self.closed, self.materialize_inputs = True, None
        self._begin()

    def end(self) -> None:
        """Drop all references: values refer to the trace, which would be a cycle."""
        self.closed, self.materialize_inputs = True, None
        self.drop_reuse()
        if self.nodes:
            self.forget_nodes()
        self.values, self.calls, self.entries = [], [], []

    def forget_nodes(self) -> None:
        """Clear the nodes of the tape and the pure calls, so that a live tensor keeps no others alive."""
        self.calls.clear()
        if not self.pullbacks:
            for node in self.nodes:
                node.inputs, node.outputs, node.op = (), (), None
        self.nodes.clear()
