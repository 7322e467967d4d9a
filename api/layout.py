"""How the leaves of a tree lie in flat buffers: an optimizer reads and writes each buffer in one launch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor

Tree = Any


@dataclass(frozen=True)
class Group:
    """Leaves that a rule changes in one launch, side by side in a flat buffer."""

    leaves: tuple[int, ...]
    dtype: Any
    decayed: bool

    def flat(self, leaves: list[Tensor]) -> Tensor:
        """Return the group's leaves as one tensor, without a copy where they lie side by side in memory."""
        mine = [leaves[k] for k in self.leaves]
        if len(mine) == 1:
            return Tensor(mine[0].array.reshape(-1))
        owner, size = mine[0].array.base, sum(t.size for t in mine)
        if isinstance(owner, np.ndarray) and owner.flags.c_contiguous:
            at = mine[0].address
            for t in mine:
                if t.array.base is not owner or t.address != at:
                    break
                at += t.array.nbytes
            else:
                first = mine[0].address - owner.__array_interface__["data"][0]
                return Tensor(np.ndarray((size,), self.dtype, owner, first))
        return ops.concatenate([ops.reshape(t, (-1,)) for t in mine])


class Layout:
    """Where each leaf of a tree is in the buffers: a group for each dtype, with a mask for each decay too."""

    def __init__(self, params: Tree, mask: Tree | None) -> None:
        leaves = [as_tensor(x) for x in ptree.leaves(params)]
        numbers = itertools.count()
        self.numbered = ptree.map(lambda _: next(numbers), params)
        self.shapes, self.dtypes = [t.shape for t in leaves], [t.dtype for t in leaves]
        decays = [True] * len(leaves)
        if mask is not None:
            decays = ptree.leaves(ptree.map(lambda _, decayed: bool(decayed), params, mask))  # type: ignore[assignment]
        members: dict[tuple[Any, bool], list[int]] = {}
        for k, t in enumerate(leaves):
            members.setdefault((t.dtype, decays[k]), []).append(k)
        self.groups = [Group(tuple(ks), dtype, decayed) for (dtype, decayed), ks in members.items()]

    def zeros(self) -> tuple[Tensor, ...]:
        """Return a buffer of zeros for each group."""
        sizes = [sum(math.prod(self.shapes[k]) for k in g.leaves) for g in self.groups]
        return tuple(zeros(n, g.dtype) for n, g in zip(sizes, self.groups, strict=True))

    def flat(self, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        """Return a buffer for each group."""
        return tuple(group.flat(leaves) for group in self.groups)

    def tree(self, flat: Sequence[Tensor]) -> Tree:
        """Return the tree whose leaves are views of the buffers."""
        leaves: dict[int, Tensor] = {}
        for group, buffer in zip(self.groups, flat, strict=True):
            at = 0
            for k in group.leaves:
                end = at + math.prod(self.shapes[k])
                leaves[k] = Tensor(buffer.array[at:end].reshape(self.shapes[k]))
                at = end
        return ptree.map(lambda k: leaves[k], self.numbered)
