"""How the leaves of a tree lie in flat buffers: an optimizer reads and writes each buffer in one launch."""

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

from ..pickling import Constructed

Tree = Any


@dataclass(frozen=True)
class FlatGroup:
    """Leaves that a rule changes in one launch, side by side in a flat buffer."""

    leaves: tuple[int, ...]
    dtype: Any
    decayed: bool

    def flat(self, leaves: list[Tensor]) -> Tensor:
        """Return the group's leaves as one tensor, without a copy where they lie side by side in memory."""
        mine = [leaves[k] for k in self.leaves]
        if any(type(t._data) is Symbol for t in mine):
            return ops.concatenate([ops.reshape(t, (-1,)) for t in mine])
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
                first = mine[0].address - address_of(owner)
                return Tensor(np.ndarray((size,), mine[0].dtype, owner, first))
        return ops.concatenate([ops.reshape(t, (-1,)) for t in mine])


class FlatLayout(Constructed):
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
        self.groups = [FlatGroup(tuple(ks), dtype, decayed) for (dtype, decayed), ks in members.items()]
        #: Of each leaf its group, and where it begins there, in elements.
        self.starts: list[tuple[int, int]] = [(0, 0)] * len(leaves)
        #: How many elements each group has.
        self.sizes: list[int] = []
        for g, group in enumerate(self.groups):
            at = 0
            for k in group.leaves:
                self.starts[k] = g, at
                at += math.prod(self.shapes[k])
            self.sizes.append(at)
        self.specs = list(zip(self.shapes, self.dtypes, strict=True))
        self._identify()

    def _identify(self) -> None:
        #: Equal for layouts that are alike, in this process.
        structure = Flattened("", self.numbered).structure
        self.key = _interned((structure, tuple(self.shapes), tuple(self.groups)))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: not what is another in each process, nor functions."""
        return {k: v for k, v in vars(self).items() if k not in ("around", "key")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled."""
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
        where = zip(self.shapes, self.starts, strict=True)
        if any(type(t._data) is Symbol for t in flat):
            return self.around([ops.flat_slice(flat[g], at, shape) for shape, (g, at) in where])
        arrays = [t.array for t in flat]
        return self.around(
            [Tensor(arrays[g][at : at + math.prod(shape)].reshape(shape)) for shape, (g, at) in where]
        )

    @functools.cached_property
    def around(self) -> Callable[[Sequence[Any]], Tree]:
        """The function that returns the tree of some leaves."""
        # The numbers are those of the leaves, in order. A tenth of the time of a walk over the tree, which a
        # step of a model in Python pays each time.
        return functools.partial(builder(Flattened("", self.numbered).structure), ())


register_static(FlatLayout)

_keys: dict[Hashable, int] = {}


def _interned(key: Hashable) -> int:
    return _keys.setdefault(key, len(_keys))
