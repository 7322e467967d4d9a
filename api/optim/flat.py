"""The layout of a tree's leaves in flat buffers: an optimizer reads and writes each buffer in one launch."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ptree.structure import Flattened, builder, register_static
from treepie.autodiff.tensor import address_of
from treepie.autodiff.trace.entry import Symbol

from ..display import counted
from ..pickling import Constructed

Tree = Any


@dataclass(frozen=True)
class FlatGroup:
    """Leaves that are contiguous in one flat buffer, which one launch updates."""

    leaves: tuple[int, ...]
    dtype: Any
    decayed: bool

    def flat(self, leaves: list[Tensor]) -> Tensor:
        """Return the group's leaves as one tensor, without a copy if they are contiguous in memory."""
        members = [leaves[k] for k in self.leaves]
        if any(type(t._data) is Symbol for t in members):
            return ops.concatenate([ops.reshape(t, (-1,)) for t in members])
        if len(members) == 1:
            return Tensor(members[0].array.reshape(-1), None)
        owner, size = members[0].array.base, sum(t.size for t in members)
        if isinstance(owner, np.ndarray) and owner.flags.c_contiguous:
            address = members[0].address
            for t in members:
                if t.array.base is not owner or t.address != address:
                    break
                address += t.array.nbytes
            else:
                offset = members[0].address - address_of(owner)
                return Tensor(np.ndarray((size,), members[0].dtype, owner, offset), None)
        return ops.concatenate([ops.reshape(t, (-1,)) for t in members])


class FlatLayout(Constructed):
    """The offset of each leaf in the buffers: a buffer for each dtype, and with a mask for each decay.

    params: the tree.  mask: a tree of bools, which leaves have weight decay; None for all.
    optimizer: the name of the one whose state has the layout; "" in pickles of earlier versions.
    """

    optimizer: str = ""
    #: The optimizer that has checked the layout, so that it does so once.
    accepted: object = None

    def __repr__(self) -> str:
        """Show the number of leaves and the sizes of the buffers."""
        return f"FlatLayout({counted(len(self.shapes), 'tensor')}, sizes={self.sizes})"

    def __init__(self, params: Tree, mask: Tree | None, optimizer: str = "") -> None:
        self.optimizer = optimizer
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
        self.groups = [FlatGroup(tuple(ks), dtype, decayed) for (dtype, decayed), ks in members.items()]
        #: For each leaf its group, and its offset in the group's buffer, in elements.
        self.starts: list[tuple[int, int]] = [(0, 0)] * len(leaves)
        #: The number of elements of each group.
        self.sizes: list[int] = []
        for g, group in enumerate(self.groups):
            offset = 0
            for k in group.leaves:
                self.starts[k] = g, offset
                offset += math.prod(self.shapes[k])
            self.sizes.append(offset)
        self.specs = list(zip(self.shapes, self.dtypes, strict=True))
        self._identify()

    def _identify(self) -> None:
        #: An int that equal layouts of this process share.
        structure = Flattened("", self.numbered).structure
        self.key = _interned((structure, tuple(self.shapes), tuple(self.groups), self.optimizer))

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle: no function, and nothing that holds in this process alone."""
        return {k: v for k, v in vars(self).items() if k not in ("around", "key", "accepted")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore pickled attributes."""
        vars(self).update(state)
        self._identify()

    def zeros(self) -> tuple[Tensor, ...]:
        """Return a buffer of zeros for each group."""
        return tuple(zeros(n, g.dtype) for n, g in zip(self.sizes, self.groups, strict=True))

    def flat(self, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        """Return a buffer for each group."""
        return tuple(group.flat(leaves) for group in self.groups)

    def tree(self, flat: Sequence[Tensor]) -> Tree:
        """Return the tree whose leaves are views of the buffers."""
        slices = zip(self.shapes, self.starts, strict=True)
        if any(type(t._data) is Symbol for t in flat):
            return self.around([ops.flat_slice(flat[g], k, shape) for shape, (g, k) in slices])
        arrays = [t.array for t in flat]
        return self.around(
            [Tensor(arrays[g][k : k + math.prod(shape)].reshape(shape), None) for shape, (g, k) in slices]
        )

    @property
    def decays(self) -> list[bool]:
        """For each leaf, whether it has weight decay."""
        return [self.groups[g].decayed for g, _ in self.starts]

    @functools.cached_property
    def around(self) -> Callable[[Sequence[Any]], Tree]:
        """The function leaves -> tree."""
        # The numbers are the leaves' indices, in order. It takes a tenth of the time of a walk over the tree,
        # and runs in each step of a model in Python.
        return functools.partial(builder(Flattened("", self.numbered).structure), ())


register_static(FlatLayout)

_keys: dict[Hashable, int] = {}


def _interned(key: Hashable) -> int:
    return _keys.setdefault(key, len(_keys))
