"""Sums over the shards of a batch, on one rank and over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor

from ..data.rows import Shards
from ..distributed.communicator import Communicator, Single, empty
from ..optim.flat import FlatLayout
from .inputs import Sums

if TYPE_CHECKING:
    from .steps import Steps

#: Elements of the sums of all nodes that ranks exchange at a time.
_EXCHANGED = 1 << 18


@dataclass
class _Node:
    """The sum of the gradients of `span` shards from `first` on, a power of 2 aligned to itself."""

    first: int
    span: int
    sums: Sums

    @property
    def key(self) -> tuple[int, int]:
        """Which shards it is the sum of."""
        return self.first, self.span


class ShardSums:
    """Sums of gradients over shards, added up along a binary tree over their indices.

    Shards 2 i and 2 i + 1 are added, then those sums, and so on, so that the order depends on the number of
    shards alone. A rank's shards are consecutive: it adds up what it can, and the ranks share the rest.
    """

    def __init__(self, comm: Communicator, shards: Shards, ordered: bool) -> None:
        """ordered: whether the order matters, or the communicator's will do."""
        self._comm, self._count = comm, shards.count
        ranks = [_spans(shards.of(rank)) for rank in range(comm.size)]
        #: The nodes of all ranks.
        self._tree = [node for nodes in ranks for node in nodes]
        # Two numbers have one sum, whatever the order.
        self._direct = not ordered or (len(self._tree) <= 2 and max(map(len, ranks)) <= 1)
        self._nodes: list[_Node] = []
        self._free: list[Sums] = []
        self._layout: Any = None  # a `FlatLayout`, once a step has begun

    def begin(self, layout: FlatLayout) -> None:
        """Begin a step. layout: of the gradients."""
        if layout is not self._layout:
            # On all ranks at once, the memory that they share.
            self._layout, self._nodes = layout, []
            self._free = [_buffers(self._comm, layout)]
        self._free += [node.sums for node in reversed(self._nodes)]
        self._nodes.clear()

    def open(self, shard: int, once: bool) -> Sums:
        """Return the sums that a shard's gradients are added to. once: whether they are added in one part."""
        left = self._nodes[-1] if self._nodes else None
        if left is not None and once and shard % 2 and left.first == shard - 1:
            left.span = 2
            return left.sums
        sums = self._free.pop() if self._free else _buffers(Single(), self._layout)
        sums.empty = True
        self._nodes.append(_Node(shard, 1, sums))
        return sums

    def together(self, shards: Sequence[int]) -> Sums | None:
        """Return the sums that the gradients of all of this rank's shards are added to, one after another.

        None where those of some are added up apart.
        """
        first, count = shards[0] if shards else 0, len(shards)
        if not self._direct or not 1 <= count <= 2 or (count == 2 and first % 2):
            return None
        sums = self.open(first, once=True)
        self._nodes[-1].span = count
        return sums

    @property
    def own(self) -> Sums:
        """The sums of this rank's first shards; of all shards once `total` was called."""
        return self._nodes[0].sums

    def close(self, shard: int) -> None:
        """End a shard: add up the sums of neighbours."""
        nodes = self._nodes
        _fill(nodes[-1].sums)
        while len(nodes) > 1 and _siblings(nodes[-2].key, nodes[-1].key):
            right = nodes.pop()
            for a, b in zip(nodes[-1].sums.arrays, right.sums.arrays, strict=True):
                a += b
            nodes[-1].span *= 2
            self._free.append(right.sums)

    def total(self, shared: bool = False) -> tuple[Sums, list[float | None]]:
        """Return the sums over all shards, on every rank; if `shared`, this rank's part of them at least.

        Also the norm of this rank's part of each buffer, None where it is not known.
        """
        own = [node.key for node in self._nodes]
        if not own:  # there are more ranks than shards
            _fill(self.open(0, once=False))
        mine = self._nodes[0].sums
        norms: list[float | None] = [None] * len(mine.arrays)
        for k, array in enumerate(mine.arrays):
            if self._direct and shared:
                norms[k] = self._comm.sum_part(array)  # type: ignore[attr-defined]
            elif self._direct:
                self._comm.sum(array)
            else:
                self._exchange(own, k, array)
        return mine, norms

    def _exchange(self, own: list[tuple[int, int]], group: int, total: NDArray[Any]) -> None:
        """Replace an array by the sum of the nodes of all ranks, in the order of the tree."""
        nodes, root = self._tree, 1 << (self._count - 1).bit_length()
        for start in range(0, total.size, _EXCHANGED):
            part = slice(start, start + _EXCHANGED)
            # A sum with zeros is exact: each rank fills in the rows of its own nodes.
            rows = np.zeros((len(nodes), total[part].size), total.dtype)
            for node, span in zip(self._nodes, own, strict=False):
                rows[nodes.index(span)] = node.sums.arrays[group][part]
            self._comm.sum(rows)
            total[part] = _added(dict(zip(nodes, rows, strict=True)), 0, root, self._count)


def _buffers(comm: Communicator, layout: FlatLayout) -> Sums:
    """Return uninitialized sums, in memory that ranks share where they can."""
    groups = layout.groups[: layout.trained]
    return Sums([empty(comm, (n,), g.dtype) for n, g in zip(layout.sizes, groups, strict=False)])


def _spans(shards: range) -> list[tuple[int, int]]:
    """Return (first, span) of the sums that a rank with some shards adds up by itself."""
    nodes: list[tuple[int, int]] = []
    for shard in shards:
        nodes.append((shard, 1))
        while len(nodes) > 1 and _siblings(nodes[-2], nodes[-1]):
            nodes[-2:] = [(nodes[-2][0], 2 * nodes[-2][1])]
    return nodes


def _fill(sums: Sums) -> None:
    """Set sums that nothing was added to, of a shard without examples, to 0."""
    if sums.empty:
        for array in sums.arrays:
            array[...] = 0
        sums.empty = False


def _siblings(left: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether two nodes, each (first, span), have a node of the tree above them in common."""
    return left[1] == right[1] and left[0] % (2 * left[1]) == 0


def _added(nodes: Mapping[tuple[int, int], NDArray[Any]], first: int, span: int, count: int) -> NDArray[Any]:
    """Return the sum of `span` shards from `first` on, of `count` in all."""
    if (first, span) in nodes:
        return nodes[first, span]
    left = _added(nodes, first, span // 2, count)
    middle = first + span // 2
    return left if middle >= count else left + _added(nodes, middle, span // 2, count)


def mean_state(
    comm: Communicator, states: Mapping[int, Any], weights: NDArray[Any], before: Any, steps: Steps
) -> Any:
    """Return a model's state, such as running statistics, as its mean over shards, weighted by examples.

    states: of this rank's shards.  weights: examples of each shard.  before: the state before the step.
    """
    floats = [t for t in steps.state_leaves(before) if t.dtype.kind == "f"]
    if len(weights) == 1 or not floats:
        return next(iter(states.values()), before)
    table = np.zeros((len(weights), sum(t.size for t in floats)))
    for shard, state in states.items():
        leaves = [t.array.ravel() for t in map(as_tensor, ptree.leaves(state)) if t.dtype.kind == "f"]
        table[shard] = np.concatenate(leaves)
    comm.sum(table)
    total = np.add.accumulate(table * weights[:, None])[-1] / weights.sum()
    parts = iter(np.split(total, np.cumsum([t.size for t in floats])[:-1]))

    def mean(leaf: Any) -> Any:
        t = as_tensor(leaf)
        return Tensor(next(parts).reshape(t.shape).astype(t.dtype), None) if t.dtype.kind == "f" else leaf

    return ptree.map(mean, next(iter(states.values()), before))
