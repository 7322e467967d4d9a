"""The layout of a tree's leaves in flat buffers: an optimizer reads and writes each buffer in one launch."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ptree.structure import Flattened, builder, register_static
from treepie.autodiff.tensor import address_of
from treepie.autodiff.trace.entry import Symbol

from ..display import counted
from ..pickling import Constructed

Tree = Any
Shape = tuple[int, ...]


class LeafState(NamedTuple):
    """What an optimizer keeps for a leaf.

    label: leaves of one label and dtype are updated together.
    moments: the shape of each moment; None for a leaf that is frozen.
    average: which moment is the moving average of the parameter; None without one.
    sparse: whether the leaf is a table of which an update changes some rows; see `sparse.py`.
    """

    label: Hashable
    moments: tuple[Shape, ...] | None
    average: int | None = None
    sparse: bool = False


class Slices(NamedTuple):
    """The leaves of a tree in flat buffers.

    shapes: of each leaf.  starts: of each leaf its buffer, and its offset there, in elements.
    sizes: the number of elements of each buffer.
    """

    shapes: list[Shape]
    starts: list[tuple[int, int]]
    sizes: list[int]


@dataclass(frozen=True)
class FlatGroup:
    """Leaves that are contiguous in one flat buffer, and updated together; see `LeafState`.

    shapes: of the leaves.  moments: the shapes of each leaf's moments.
    sparse: whether the group is one table of which an update changes some rows; see `sparse.py`.
    """

    leaves: tuple[int, ...]
    dtype: Any
    label: Hashable
    frozen: bool = False
    average: int | None = None
    shapes: tuple[Shape, ...] = ()
    moments: tuple[tuple[Shape, ...], ...] = ()
    sparse: bool = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore pickled attributes; in earlier versions the label was whether the leaves decay."""
        state = dict(state)
        if "decayed" in state:
            state["label"] = state.pop("decayed")
        vars(self).update(state)

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the group's leaves, of all leaves of a tree, as one tensor; see `joined`."""
        return joined([leaves[k] for k in self.leaves])

    def split(self, flat: Tensor, moment: int | None = None) -> list[Tensor]:
        """Return each leaf's slice of a buffer: of the parameters, or of a moment."""
        shapes = self.shapes if moment is None else [row[moment] for row in self.moments]
        slices, offset = [], 0
        for shape in shapes:
            slices.append(ops.flat_slice(flat, offset, shape))
            offset += math.prod(shape)
        return slices


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one of one axis, without a copy if they are contiguous in memory."""
    if any(type(t._data) is Symbol for t in tensors):
        return ops.concatenate([ops.reshape(t, (-1,)) for t in tensors])
    if len(tensors) == 1:
        return Tensor(tensors[0].array.reshape(-1), None)
    owner, size = tensors[0].array.base, sum(t.size for t in tensors)
    if isinstance(owner, np.ndarray) and owner.flags.c_contiguous:
        address = tensors[0].address
        for t in tensors:
            if t.array.base is not owner or t.address != address:
                break
            address += t.array.nbytes
        else:
            offset = tensors[0].address - address_of(owner)
            return Tensor(np.ndarray((size,), tensors[0].dtype, owner, offset), None)
    return ops.concatenate([ops.reshape(t, (-1,)) for t in tensors])


class FlatLayout(Constructed):
    """The offset of each leaf in the buffers: a buffer for each dtype and label, and for each sparse table.

    Frozen leaves are in the last buffers, which have neither gradients nor moments.

    params: the tree.  kept: what the optimizer keeps for each leaf.
    optimizer: the name of the one whose state has the layout; "" in pickles of earlier versions.
    """

    optimizer: str = ""
    #: The optimizer that has checked the layout, so that it does so once.
    accepted: object = None

    def __repr__(self) -> str:
        """Show the number of leaves and the sizes of the buffers."""
        return f"FlatLayout({counted(len(self.shapes), 'tensor')}, sizes={self.sizes})"

    def __init__(self, params: Tree, kept: Sequence[LeafState], optimizer: str = "") -> None:
        self.optimizer = optimizer
        leaves = [as_tensor(x) for x in ptree.leaves(params)]
        numbers = itertools.count()
        self.numbered = ptree.map(lambda _: next(numbers), params)
        self.shapes, self.dtypes = [t.shape for t in leaves], [t.dtype for t in leaves]
        members: dict[tuple[Any, ...], list[int]] = {}
        for k, (t, of) in enumerate(zip(leaves, kept, strict=True)):
            table = k if of.sparse else None
            members.setdefault((of.moments is None, t.dtype, of.label, table), []).append(k)
        self.groups = [
            FlatGroup(
                tuple(ks),
                dtype,
                label,
                frozen,
                kept[ks[0]].average,
                tuple(self.shapes[k] for k in ks),
                tuple(kept[k].moments or () for k in ks),
                table is not None,
            )
            for (frozen, dtype, label, table), ks in sorted(members.items(), key=lambda item: item[0][0])
        ]
        #: For each leaf its group, and its offset in the group's buffer, in elements.
        self.starts: list[tuple[int, int]] = []
        #: The number of elements of each group.
        self.sizes: list[int] = []
        _, self.starts, self.sizes = self._slices(self.shapes)
        self.specs = list(zip(self.shapes, self.dtypes, strict=True))
        self._identify()

    def _slices(self, shapes: list[Shape]) -> Slices:
        """Return where leaves of some shapes are stored."""
        starts, sizes = [(0, 0)] * len(shapes), []
        for g, group in enumerate(self.groups):
            offset = 0
            for k in group.leaves:
                starts[k] = g, offset
                offset += math.prod(shapes[k])
            sizes.append(offset)
        return Slices(shapes, starts, sizes)

    def _identify(self) -> None:
        structure = Flattened("", self.numbered).structure
        #: An int that equal layouts of this process share.
        self.key = _interned((structure, tuple(self.shapes), tuple(self.groups), self.optimizer))
        #: How many groups are trained; the others are frozen.
        self.trained = sum(not group.frozen for group in self.groups)
        #: Whether a group is a table of which an update changes some rows.
        self.sparse = any(group.sparse for group in self.groups)
        #: Whether every moment is a tree of the parameters' shapes.
        self.uniform = self.trained == len(self.groups) and all(
            set(row) <= {shape} and len(row) == len(self.groups[0].moments[0])
            for group in self.groups
            for shape, row in zip(group.shapes, group.moments, strict=False)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle: no function, and nothing that holds in this process alone."""
        derived = ("around", "key", "accepted", "trained", "sparse", "uniform")
        return {k: v for k, v in vars(self).items() if k not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore pickled attributes."""
        vars(self).update(state)
        self._identify()

    @property
    def moments(self) -> int:
        """The number of moments; a leaf may have fewer."""
        return max((len(row) for group in self.groups for row in group.moments), default=0)

    def moment(self, k: int) -> Slices:
        """Return the slices of a moment's buffers; a leaf without the moment has none of its elements."""
        if self.uniform:
            return Slices(self.shapes, self.starts, self.sizes)
        shapes: list[Shape] = [(0,)] * len(self.shapes)
        for group in self.groups:
            for leaf, row in zip(group.leaves, group.moments, strict=True):
                shapes[leaf] = row[k] if k < len(row) else (0,)
        return self._slices(shapes)

    def flat(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a buffer for each group."""
        return tuple(group.flat(leaves) for group in self.groups)

    def flat_trained(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a buffer for each group that is trained: of gradients or moments."""
        return tuple(group.flat(leaves) for group in self.groups[: self.trained])

    def tree(self, flat: Sequence[Tensor]) -> Tree:
        """Return the tree whose leaves are views of the buffers; without buffers, frozen leaves are zeros."""
        frozen = zip(self.groups[len(flat) :], self.sizes[len(flat) :], strict=True)
        flat = [*flat, *[zeros(n, group.dtype) for group, n in frozen]]
        return self.around(_views(flat, self.shapes, self.starts))

    def moment_tree(self, k: int, flat: Sequence[Tensor]) -> Tree:
        """Return the tree of a moment, whose leaves are views of the buffers."""
        if self.uniform:
            return self.tree(flat)
        shapes, starts, _ = self.moment(k)
        frozen = [zeros(0, group.dtype) for group in self.groups[self.trained :]]
        return self.around(_views([*flat, *frozen], shapes, starts))

    @property
    def labels(self) -> list[Hashable]:
        """The label of each leaf."""
        return [self.groups[g].label for g, _ in self.starts]

    @functools.cached_property
    def around(self) -> Callable[[Sequence[Any]], Tree]:
        """The function leaves -> tree."""
        # The numbers are the leaves' indices, in order. It takes a tenth of the time of a walk over the tree,
        # and runs in each step of a model in Python.
        return functools.partial(builder(Flattened("", self.numbered).structure), ())


register_static(FlatLayout)


def _views(flat: Sequence[Tensor], shapes: list[Shape], starts: list[tuple[int, int]]) -> list[Tensor]:
    slices = zip(shapes, starts, strict=True)
    if any(type(t._data) is Symbol for t in flat):
        return [ops.flat_slice(flat[g], k, shape) for shape, (g, k) in slices]
    arrays = [t.array for t in flat]
    return [Tensor(arrays[g][k : k + math.prod(shape)].reshape(shape), None) for shape, (g, k) in slices]


_keys: dict[Hashable, int] = {}


def _interned(key: Hashable) -> int:
    return _keys.setdefault(key, len(_keys))
