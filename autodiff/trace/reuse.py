"""Tensors of a trace that the next one takes over, where it calls the same ops.

A symbolic tensor consists of three objects: the tensor, its data, and a node of the tape. To make them anew
takes a tenth to a fifth of a step whose Python calls few ops. The entry of a call determines its results, so
the next trace returns the same objects. The user's Python can not tell them from new ones: they are handed
over only where reference counts prove that nothing outside of the trace holds one of them.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .active import classes
from .entry import Symbol

if TYPE_CHECKING:
    from ..tape import Node
    from ..tensor import Tensor
    from .entry import Entry
    from .trace import Trace


class Reuse:
    """The results of a trace by their entries, which the next trace of the same object takes over.

    number: of the gradient on the tape that all of them belong to.
    """

    __slots__ = ("_declared", "_end", "_several", "_single", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        # Of each entry with one result: the tensor, its symbol and node, and the call's node and gradient.
        self._single: dict[Entry, tuple[Tensor, Any, Node | None, Node | None, int]] = {}
        # Of others: the tensors, their symbols, and the call's node and gradient.
        self._several: dict[Entry, tuple[list[Tensor], list[Any], Node | None, int]] = {}
        self._declared: tuple[list[Tensor], list[Any]] = [], []
        # Where the last trace ended; its symbols and tensors, and their counts where nothing else holds them;
        # its tensors.
        self._end: tuple[Entry, list[Any], list[int], list[Tensor]] | None = None

    def declare(self, tensors: Sequence[Tensor]) -> None:
        """Note the tensors that a trace begins with."""
        self._declared = list(tensors), [t._data for t in tensors]

    def declared(self, trace: Trace) -> list[Tensor]:
        """Return the tensors that a trace begins with, none where they have not been made."""
        if trace.values:
            return []
        tensors, symbols = self._declared
        trace.values += symbols
        return tensors

    def add(self, entry: Entry, tensors: Sequence[Tensor], node: Node | None, number: int) -> None:
        """Note the results of an entry. number: of the gradient that they belong to, 0 for none."""
        symbols: list[Any] = [t._data for t in tensors]
        if len(symbols) == 1:
            self._single[entry] = tensors[0], symbols[0], tensors[0].node, node, number
        else:
            self._several[entry] = list(tensors), symbols, node, number

    def find(
        self, trace: Trace, entry: Entry, op: Any, inputs: tuple[Tensor, ...], attributes: Any, number: int
    ) -> tuple[Tensor, ...] | None:
        """Return the results that an earlier trace made at an entry, as those of this call; None without any.

        number: of the gradient that the results belong to, 0 for none.
        """
        single = self._single.get(entry)
        if single is None:
            return self._find_several(trace, entry, op, inputs, attributes, number)
        t, symbol, own_node, node, own = single
        if own != number:
            return None
        t.node = own_node
        if node is not None:
            _record(trace, node, op, inputs, attributes)
        trace.values.append(symbol)
        return (t,)

    def _find_several(
        self, trace: Trace, entry: Entry, op: Any, inputs: tuple[Tensor, ...], attributes: Any, number: int
    ) -> tuple[Tensor, ...] | None:
        found = self._several.get(entry)
        if found is None or found[3] != number:
            return None
        tensors, symbols, node, _ = found
        if node is not None:
            _record(trace, node, op, inputs, attributes)
        trace.values += symbols
        for t in tensors:
            t.node = node if t._data.dtype.kind == "f" else None
        return tuple(tensors)  # another one for each call, which the user may keep

    def hand_over(self, trace: Trace) -> bool:
        """Return whether nothing refers to a value of the trace but the trace and its tape.

        Its nodes have no inputs any more.
        """
        if self._end is None or self._end[0] is not trace.entry:
            self._end = None  # it refers to tensors
            self._end = self._ended(trace)
            if self._end is None:
                return False
        _, objects, unused, tensors = self._end
        return list(map(sys.getrefcount, objects)) == unused and not any(
            map(weakref.getweakrefcount, tensors)
        )

    def _ended(self, trace: Trace) -> tuple[Entry, list[Any], list[int], list[Tensor]] | None:
        """Return what `_end` holds for a trace; None where a value of it can not be taken over."""
        pairs: list[tuple[Tensor, Node | None]] = [(t, t.node) for t in self._declared[0]]
        for entry in trace.entry.path():
            if entry in self._single:
                pairs.append((self._single[entry][0], self._single[entry][3]))
            elif entry in self._several:
                tensors, _, node, _ = self._several[entry]
                pairs += [(t, node) for t in tensors]
        tensors = [t for t, _ in pairs]
        symbols = [v for v in trace.values if type(v) is Symbol]
        sources = [t.source for t in tensors if t.source is not None]
        if [t._data for t in tensors] != symbols or not {*map(id, sources)} <= {*map(id, tensors)}:
            return None
        # To a symbol refer the first list here, the table above, the trace, its tensor, and its node; to a
        # tensor two lists here, the table, and its transpose.
        unused = [_ALONE + 3 + (node is not None) for _, node in pairs]
        unused += [_ALONE + 2 + sum([s is t for s in sources]) for t in tensors]
        return trace.entry, [*symbols, *tensors], unused, tensors

    def clear(self) -> None:
        """Forget all of them."""
        self._end = None
        self._single.clear()
        self._several.clear()
        self._declared = [], []


def _record(trace: Trace, node: Node, op: Any, inputs: tuple[Tensor, ...], attributes: Any) -> None:
    """Let a node record another call."""
    node.op, node.inputs, node.attributes, node.number = op, inputs, attributes, classes.next_number()
    trace.nodes.append(node)


def referenced(values: list[Any], count: int) -> tuple[int, ...]:
    """Return which of the first values of a trace are symbols that something else refers to."""
    rows = values if count == len(values) else values[:count]
    most = _REFERENCES if rows is values else _REFERENCES + 1
    return tuple([n for n, v in enumerate(rows) if sys.getrefcount(v) > most and type(v) is Symbol])


def _alone() -> int:
    """Return the reference count of an object that only a list refers to, as `Reuse.hand_over` sees it."""
    (count,) = map(sys.getrefcount, [object()])
    return count


def _references() -> int:
    """Return the same as the loop of `referenced` sees it."""
    values = [object()]
    return max([sys.getrefcount(v) for n, v in enumerate(values)])


_ALONE, _REFERENCES = _alone(), _references()
