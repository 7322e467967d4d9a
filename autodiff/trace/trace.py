"""Traces: Python runs on symbolic tensors, and what it calls is written down.

While a trace is active, an op gives tensors that have a shape and a dtype, by the table's `infer`, and no
memory, and launches nothing. Traces with a common beginning share its entries: they form a tree, in which
finding the next entry is the only work of a trace that was seen before, and the entry where a trace ends
knows the programs of everything that was called on the way.

What comes from outside is an input of the program, by value: tensors, arrays, and Python's numbers where they
are operands. So a trace says what a function computes of its inputs, whatever its Python read to decide it.

Only one kind of function can be repeated without its Python: a pure one, whose results depend on its
arguments alone. A call of such a function is one entry (see `pure.py`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .active import classes, inside, line
from .entry import INPUT, NUMBER, Entry, Input, Output, Row, Shape, Symbol

if TYPE_CHECKING:
    from ..program.call import PureCall
    from ..tape import Node
    from ..tensor import Tensor

#: Elements of integers from outside that are computed at once.
_MOST_KNOWN = 1 << 16


class Restart(BaseException):
    """An op failed while what it belongs to was run late: the step begins again, eagerly.

    A BaseException, so that it passes through handlers of users' code, which are for the eager run.
    """


class Trace:
    """What ops are called while it is active, from an entry on.

    depth: how many gradients the library itself is taking: pure calls within others are not one entry.
    refuse: (line of the user's code) -> the error of a read, where values can not be read.

    `user` is whether a user's Python runs, whose entries are looked up; in a library's Python numbers are
    constants, and `items` are the entries.
    """

    #: Why a read is refused, and what gives declared values their elements.
    refuse: Callable[[str], Exception] | None = None
    materialize_inputs: Callable[[], None] | None = None
    lines = closed = False
    #: Whether a user may walk back over nodes later; whether a user's Python takes part in the backward pass.
    pullbacks = python_backward = False
    read_at: str | None = None
    #: A count, and what it is once values have elements that somebody holds.
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
        self.values: list[Symbol | Tensor] = []
        self.inputs: list[int] = []  # numbers of the tensors from outside
        self.numbers: list[float | int | bool] = []
        self.number_values: list[int] = []  # which values they are
        self.calls: list[PureCall] = []
        self.nodes: list[Node] = []
        self._known: dict[int, int] = {}
        if not user:
            self._begin_library()

    def _begin_library(self) -> None:
        self.entries: list[Any] = []
        self.computed: list[tuple[int, Any, int]] = []  # values that Python computes before each run

    def end_user(self) -> None:
        """Go on with the library's own Python."""
        self.user = False
        self._begin_library()

    # ---- values
    def symbol(self, shape: Shape, dtype: np.dtype) -> Symbol:
        """Return a new value."""
        made = Symbol(shape, dtype, len(self.values), self)
        self.values.append(made)
        return made

    def number_of(self, x: Tensor) -> int:
        """Return the number of a tensor's value; one from outside becomes an input or a constant."""
        data = x._data
        if type(data) is Symbol and data.trace is self:
            return data.number
        return self._outside(x)

    def _outside(self, x: Tensor) -> int:
        array = x.array  # a symbol of another trace is read
        known = self._known.get(id(array))
        if known is not None:
            return known
        number = self._known[id(array)] = len(self.values)
        if self.user:
            key = (array.shape, array.dtype.char)
            entry = self.entry.children.get(key)
            if entry is None or self.lines:
                self._step(key, INPUT, (), {}, [(array.shape, array.dtype)])
            else:
                self.entry = entry
            self.inputs.append(number)
        self.values.append(x)  # held: an id is another's after a death
        return number

    def number(self, value: Any, dtype: np.dtype) -> Symbol:
        """Return the value of a Python number of the user's, an input."""
        char = dtype.char
        entry = self.entry.children.get(char)
        if entry is None or self.lines:
            self._step(char, NUMBER, (), {}, [((), dtype)])
        else:
            self.entry = entry
        values = self.values
        self.numbers.append(value)
        self.number_values.append(len(values))
        made = Symbol((), dtype, len(values), self)
        values.append(made)
        return made

    # ---- entries
    def add(
        self, op: Row, inputs: tuple[Tensor, ...], attributes: dict[str, Any], gradients: tuple[int, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Write a call down, and return its results, which the tape knows if gradients are being taken.

        What comes from outside is known: integers of it are computed at once, and ranges are checked, so that
        an error is raised where the user's code may handle it.
        """
        user = self.user
        if user:
            if op.failure is not None and op.fails([x._data for x in inputs], attributes):
                raise op.error(inputs, attributes)
            for x in inputs:
                if type(x._data) is Symbol:
                    break
            else:
                known = self._known_integers(op, inputs, attributes)
                if known is not None:
                    return known
        key: list[Any] = [op]
        deepest = 0
        for x in inputs:
            data, before = x._data, x.node
            key.append(data.number if type(data) is Symbol and data.trace is self else self._outside(x))
            if before is not None and before.trace > deepest:
                deepest = before.trace
        if attributes:
            key += [repr(v) if type(v) is float else v for v in attributes.values()]
        whole = tuple(key)
        entry = self.entry.children.get(whole) if user else None
        if entry is None or self.lines:
            numbers = whole[1 : 1 + len(inputs)]
            outputs = op.outputs([x._data for x in inputs], attributes) if entry is None else entry.outputs
            entry = self._step(whole, op, numbers, attributes, outputs)
        else:
            self.entry = entry
        values, outputs = self.values, entry.outputs
        first = len(values)
        symbols = tuple([Symbol(shape, dtype, n, self) for n, (shape, dtype) in enumerate(outputs, first)])
        values += symbols
        if not gradients or deepest < gradients[0]:
            return tuple(map(classes.tensor, symbols))
        own = classes.node(op, inputs, attributes, symbols, deepest)
        self.nodes.append(own)
        # Integers and bools are constants.
        return tuple(
            [classes.tensor(s, own if s.dtype.kind == "f" else None, k) for k, s in enumerate(symbols)]
        )

    def _known_integers(
        self, op: Row, inputs: tuple[Tensor, ...], attributes: dict[str, Any]
    ) -> tuple[Tensor, ...] | None:
        """Return the results of an op on arrays from outside that gives few integers or bools, else None."""
        outputs = op.outputs([x._data for x in inputs], attributes)
        if any(d.kind == "f" or math.prod(s) > _MOST_KNOWN for s, d in outputs):
            return None
        return inside(None, op.run, inputs, attributes)

    def _step(
        self,
        key: Any,
        op: Any,
        inputs: tuple[int, ...],
        attributes: dict[str, Any],
        outputs: Sequence[Output],
    ) -> Entry:
        """Go to the entry of a key, a new one if there is none."""
        entry = self.entry.children.get(key) if self.user else None
        if entry is None:
            entry = Entry(self.entry, op, inputs, attributes, len(self.values), outputs)
            if self.user:
                entry.key = key
                self.entry.children[key] = entry
            else:
                self.entries.append(entry)
                entry.parent = None  # nobody looks for it
        if self.lines:
            entry.line = line()
        if self.user:
            self.entry = entry
        return entry

    def call(self, call: PureCall, key: Any, outputs: Sequence[Output]) -> list[Symbol]:
        """Write down a call of a pure function."""
        entry = self.entry.children.get(key)
        if entry is None or self.lines:
            self._step(key, call.function, call.numbers, {}, outputs)
        else:
            self.entry = entry
        self.calls.append(call)
        values = self.values
        call.first = len(values)
        made = []
        for shape, dtype in outputs:
            out = Symbol(shape, dtype, len(values), self)
            values.append(out)
            made.append(out)
        return made

    # ---- the end
    def done(self) -> bool:
        """Whether values that somebody holds have their elements by now."""
        if self.tick is not None and int(self.tick[0][()]) >= self.tick[1]:
            self.tick = None
        return self.tick is None

    def read(self) -> None:
        """Give every value its elements, since one is read; the trace is closed, and what follows eager."""
        if self.closed:
            return
        where = line()
        self.read_at = self.read_at or where
        if self.refuse is not None:
            raise self.refuse(where)
        self.materialize()

    def materialize(self) -> None:
        """Run op by op what was written down; raise Restart where an op fails."""
        self.closed = True
        try:
            self.run()
        except Exception as error:
            raise Restart from error

    def run(self) -> None:
        """Run op by op what was written down."""
        values = self.values
        if self.materialize_inputs is not None:
            self.materialize_inputs()
        for number, value in zip(self.number_values, self.numbers, strict=True):
            symbol = values[number]
            with np.errstate(over="ignore"):
                symbol.value = np.array(value, symbol.dtype)  # type: ignore[union-attr]
        calls = iter(self.calls)
        for entry in self.entry.path():
            if isinstance(entry.op, Input):
                continue
            if hasattr(entry.op, "run"):
                given = tuple([self._operand(n) for n in entry.inputs])
                made = entry.op.run(given, entry.attributes)
            else:
                made = next(calls).expand()
            for k, out in enumerate(made, entry.first):
                values[k].value = out.array  # type: ignore[union-attr]

    def _operand(self, number: int) -> Tensor:
        value = self.values[number]
        return classes.tensor(value.read()) if type(value) is Symbol else value  # type: ignore[return-value]

    def live_values(self, count: int) -> tuple[int, ...]:
        """Return which of the first values are symbolic, and held by somebody besides this trace."""
        values = self.values if count == len(self.values) else self.values[:count]
        most = _HELD if values is self.values else _HELD + 1
        return tuple([n for n, v in enumerate(values) if sys.getrefcount(v) > most and type(v) is Symbol])

    def end(self) -> None:
        """Let go of everything: values and this refer to each other."""
        self.closed, self.materialize_inputs = True, None
        if self.nodes:
            self.forget_nodes()
        self.values, self.calls, self.entries = [], [], []

    def forget_nodes(self) -> None:
        """Cut what the tape has written, so that a tensor that is kept keeps no others; calls too."""
        self.calls.clear()
        if not self.pullbacks:
            for node in self.nodes:
                node.inputs, node.outputs, node.op = (), (), None
        self.nodes.clear()


def _references() -> int:
    """Return the count of references to a value of `Trace.values` in the loop of `Trace.live_values`."""
    values = [object()]
    return max([sys.getrefcount(v) for n, v in enumerate(values)])


_HELD = _references()
