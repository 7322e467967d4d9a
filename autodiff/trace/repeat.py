"""Calls of ops that follow the same entries as in an earlier trace, in half of the time of `Trace.add`.

The entries determine the shapes and dtypes of all values, and thereby what an op's `bind`, its checks and its
shape rule find: they need not run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .active import classes, state
from .entry import Symbol

if TYPE_CHECKING:
    from ..table import Op
    from ..tensor import Tensor
    from .entry import Entry
    from .trace import Trace

#: In the key of an entry: what follows are the arguments of a call, without attributes.
_CALL = "call"

#: Integers up to this magnitude are floats exactly.
_EXACT = 1 << 53


def call_by_name(trace: Trace, op: Op, args: tuple[Any, ...]) -> Any:
    """Call an op. The entry of a call of tensors has a name: the op and their value numbers.

    Its attributes come from `bind`, which can not read the elements of symbolic tensors. Where the operands
    are others than the arguments, the call gets no name: `bind` may have made an attribute of a tensor from
    outside, and takes a product's transposed operand for the one before the transpose.
    """
    if trace.closed or op.failure is not None or state.captures or state.precision or state.accuracy:
        return op.apply(*op.bind(*args))  # a setting of the block may be an attribute
    name: list[Any] = [op, _CALL]
    deepest = _add_operands(trace, name, args)
    if deepest < 0:
        return op.apply(*op.bind(*args))
    before, key = trace.entry, tuple(name)
    result = _result(trace, before.children.get(key), args, deepest)
    if result is not None:
        return result
    result = op.apply(*op.bind(*args))
    entry = trace.entry
    if entry.parent is before and entry.op is op and entry.inputs == key[2:]:
        before.children[key] = entry
    return result


def repeated_formula(trace: Trace, op: Op, args: tuple[Any, ...]) -> Tensor | None:
    """Return the result of an elementwise op of tensors, or of a tensor and a number; None for others."""
    if trace.closed or op.failure is not None or state.accuracy is not None or state.captures:
        return None
    if len(args) == 2:
        first, second = args
        if type(second) is float or (type(second) is int and -_EXACT <= second <= _EXACT):
            return _repeated_with_number(trace, op, first, second, 1)
        if type(first) is float or (type(first) is int and -_EXACT <= first <= _EXACT):
            return _repeated_with_number(trace, op, second, first, 0)
    key: list[Any] = [op]
    deepest = _add_operands(trace, key, args)
    return None if deepest < 0 else _result(trace, trace.entry.children.get(tuple(key)), args, deepest)


def _add_operands(trace: Trace, key: list[Any], args: tuple[Any, ...]) -> int:
    """Append the value numbers of operands to a key, and return the highest trace that one belongs to.

    -1 where they are not all tensors, of which one is symbolic; products take a transposed one as it is.
    """
    deepest, symbolic, outside = 0, False, False
    for x in args:
        if type(x) is not classes.tensor:
            return -1
        data, node = x._data, x.node
        if type(data) is Symbol and data.trace is trace:
            symbolic = True
            key.append(data.number)
        elif x.source is not None:
            return -1
        else:
            outside = True
            key.append(-1)
        if node is not None and node.trace > deepest:
            deepest = node.trace
    if not symbolic:
        return -1
    if outside:
        for k, x in enumerate(args, len(key) - len(args)):
            if key[k] == -1:
                key[k] = trace.outside(x)
    return deepest


def _repeated_with_number(trace: Trace, op: Op, x: Any, number: float, at: int) -> Tensor | None:
    """Return the result of an op of a tensor and a number, which is its operand `at`."""
    if type(x) is not classes.tensor:
        return None
    data, n = x._data, len(trace.values)
    if type(data) is not Symbol or data.trace is not trace:
        return None
    first = trace.entry.children.get(data.dtype.char)
    if first is None:
        return None
    entry = first.children.get((op, data.number, n) if at else (op, n, data.number))
    if entry is None or len(entry.outputs) != 1 or trace.lines:
        return None
    t = trace.number_at(first, float(number))
    return _result(trace, entry, (x, t) if at else (t, x), 0 if x.node is None else x.node.trace)


def _result(trace: Trace, entry: Entry | None, inputs: tuple[Any, ...], deepest: int) -> Tensor | None:
    """Return the result of the call of an entry, which becomes the trace's last one."""
    if entry is None or len(entry.outputs) != 1 or trace.lines:
        return None
    trace.entry, op = entry, entry.op
    gradients = state.gradients if op.recorded else ()
    return trace.results(entry, op, inputs, entry.attributes, gradients, deepest)[0]
