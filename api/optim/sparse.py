"""Updates of tables of which a step reads some rows: gradients as sets of rows, and updates of these rows.

A row is touched in a step unless its gradient is zero in every element. That is a property of the gradient:
the same one as a dense array has the same result, at the cost of a pass over the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from treepie.autodiff import Tensor, ops, zeros
from treepie.autodiff.ops.indexing import take_axis
from treepie.autodiff.ops.sparse import nonzero_rows, rows_norm, sum_rows, write_rows
from treepie.autodiff.table import OPS
from treepie.autodiff.tensor import float64, int64
from treepie.autodiff.trace.entry import Entry

from .flat import FlatGroup, FlatLayout

if TYPE_CHECKING:
    from treepie.autodiff.trace.trace import Trace

#: The name of a parameter that is a table with sparse gradients; see `layer.embedding`.
NAME = "sparse_embedding"


class RowGradient:
    """The gradient of a table: a set of its rows, see `autodiff/ops/sparse.py`. Other rows are zeros.

    rows: (room,) int64.  values: (room, dim).
    """

    __slots__ = ("rows", "values")

    def __init__(self, rows: Tensor, values: Tensor) -> None:
        self.rows, self.values = rows, values

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the gradient."""
        return self.values.dtype

    def __mul__(self, factor: Tensor) -> RowGradient:
        """Return the gradient times a number."""
        return RowGradient(self.rows, self.values * factor)

    def norm(self) -> Tensor:
        """Return the L2 norm of the table's gradient, float64."""
        return rows_norm(self.values, float64)


#: The gradient of a group's leaves: flat, or the rows of a table.
Gradient: TypeAlias = "Tensor | RowGradient"


def mapped(f: Callable[[Tensor], Tensor], g: Gradient) -> Gradient:
    """Return an elementwise function of a gradient, of which zeros are zeros."""
    return f(g) if isinstance(g, Tensor) else RowGradient(g.rows, f(g.values))


def is_sparse(path: str) -> bool:
    """Whether the parameter at a path is a table with sparse gradients."""
    return path.replace("[", ".").rpartition(".")[2] == NAME


def check_sparse(name: str, path: str, supported: bool, reason: str = "") -> bool:
    """Return whether a parameter is a table with sparse gradients; ValueError where this is not supported."""
    sparse = is_sparse(path)
    if sparse and not supported:
        raise ValueError(
            f"{name}: the parameter {path!r} is of an embedding with sparse=True, which {reason or name} "
            "does not support, since it would change rows that a step does not read; expected sgd without "
            "momentum, adagrad or adam, without weight decay (partition has another optimizer for other "
            "parameters), or sparse=False"
        )
    return sparse


def row_gradients(layout: FlatLayout, grads: Sequence[Gradient]) -> list[Gradient]:
    """Return the gradients of all groups, with those of tables as sets of rows."""
    if not layout.sparse:
        return list(grads)
    return [
        RowGradient(*nonzero_rows(ops.reshape(g, group.shapes[0])))
        if group.sparse and isinstance(g, Tensor)
        else g
        for group, g in zip(layout.groups, grads, strict=False)
    ]


def tensors_of(grads: Sequence[Gradient]) -> list[Tensor]:
    """Return the tensors of gradients; `arrays_of` is the inverse, for their arrays."""
    return [t for g in grads for t in ((g,) if isinstance(g, Tensor) else (g.rows, g.values))]


def arrays_of(layout: FlatLayout, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the gradients of all groups as flat arrays, from the arrays of `tensors_of`."""
    remaining, result = iter(arrays), []
    for group in layout.groups[: layout.trained]:
        array = next(remaining)
        if group.sparse:
            values, table = next(remaining), np.zeros(group.shapes[0], group.dtype)
            used = array >= 0
            table[array[used]] = values[used]
            array = table.reshape(-1)
        result.append(array)
    return result


def flat_gradients(
    trace: Trace, before: Sequence[Any], groups: Sequence[FlatGroup], leaves: Sequence[Tensor]
) -> list[Gradient]:
    """Return symbolic gradients by group: of a table that is read by lookups alone, the rows of these.

    The entries that compute the dense gradient of such a table are removed from the trace: to a program, an
    entry that may report an error is never dead code. The lookups have checked the indices.

    before: entries and aliases that precede those of the trace.  leaves: the gradients of all leaves.
    """
    tables = {group: _lookups(trace, before, leaves[group.leaves[0]]) for group in groups if group.sparse}
    found = [entry for entries in tables.values() if entries for entry in entries]
    result: list[Gradient] = []
    for group in groups:
        entries = tables.get(group)
        result.append(_of_lookups(trace, entries, group) if entries else group.flat(leaves))
    for entry in sorted(found, key=lambda entry: -entry.first):
        others = [item for item in (*before, *trace.entries) if item is not entry]
        if not any(entry.first in _operands(item) for item in others):
            trace.entries = [item for item in trace.entries if item is not entry]
    return result


def _operands(item: Any) -> Sequence[int]:
    """Return the numbers of the values that an entry reads, or that an alias stands for."""
    return item.inputs if isinstance(item, Entry) else [other for _, other in item.values]


def _lookups(trace: Trace, before: Sequence[Any], gradient: Tensor) -> list[Entry] | None:
    """Return the entries that compute a table's gradient, where it is a sum over lookups; else None."""
    producers: dict[int, Entry] = {}
    aliases: dict[int, int] = {}
    for item in (*before, *trace.entries):
        if isinstance(item, Entry):
            producers[item.first] = item
        else:
            aliases.update(item.values)

    def collected(number: int) -> list[Entry] | None:
        while number in aliases:
            number = aliases[number]
        entry = producers.get(number)
        if entry is not None and entry.op is OPS["scatter_add"] and entry.attributes["axis"] == 0:
            return [entry]
        if entry is not None and entry.op is OPS["add"]:
            # The tape adds them up one by one. Another order would have other bits.
            sums, last = map(collected, entry.inputs)
            return [*sums, *last, entry] if sums and last and len(last) == 1 else None
        return None

    return collected(trace.number_of(gradient))


def _of_lookups(trace: Trace, entries: Sequence[Entry], group: FlatGroup) -> RowGradient:
    """Return the sum of the gradients of lookups. entries: of `_lookups`."""

    def tensor(number: int) -> Tensor:
        value = trace.values[number]
        return value if isinstance(value, Tensor) else Tensor(value, None)

    ((size, dim),) = group.shapes
    pairs = [[tensor(n) for n in entry.inputs] for entry in entries if entry.op is OPS["scatter_add"]]
    values = [ops.reshape(g, (i.size, dim)) for g, i in pairs]
    indices = [ops.reshape(i, (-1,)) for _, i in pairs]
    ends = tuple(itertools.accumulate(i.size for i in indices))
    if len(pairs) == 1:
        return RowGradient(*sum_rows(values[0], indices[0], size, ends))
    indices = [ops.astype(i, int64) for i in indices]
    return RowGradient(*sum_rows(ops.concatenate(values), ops.concatenate(indices), size, ends))


def update_rows(
    group: FlatGroup,
    p: Tensor,
    g: RowGradient,
    old: tuple[Tensor, ...],
    rule: Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    apply: bool,
) -> tuple[Tensor, ...]:
    """Return a table, or its change unless `apply`, and its moments, flat, after an update of a set's rows.

    rule: (parameters, gradient, moments) -> the parameters or their change, and the moments.
    """
    (shape,) = group.shapes
    tables = [ops.reshape(t, shape) for t in (p, *old)]
    # Unused room has the row number -1: the table's last row is read, and not written.
    at, *moments = [take_axis(t, g.rows, 0) for t in tables]
    after = rule(at, g.values, tuple(moments))
    if not apply:
        tables[0] = zeros(shape, p.dtype)
    return tuple([ops.reshape(write_rows(t, v, g.rows), (-1,)) for t, v in zip(tables, after, strict=True)])
