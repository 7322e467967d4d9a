"""Updates that ranks share: each updates a part of the parameters, and keeps that part of the moments.

ZeRO, stage 1 (Rajbhandari et al. 2020), among the ranks of a node: each element is updated once, by the same
formula, so results have the same bits. A rank computes 1 / size of the update, and holds as much of the
optimizer's state.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor

from ..distributed.joint import combined
from ..optim.flat import FlatLayout
from ..optim.gradients import global_norm
from .inputs import StepInputs, StepResult, Sums, Total, TotalValues
from .state import FlatBuffers, Snapshot

if TYPE_CHECKING:
    from .steps import Steps


class SharedBuffers(FlatBuffers):
    """Parameters in memory that ranks share, and this rank's part of each moment.

    Ranks write their parts of the parameters in an update alone, when none of them reads any: each has come
    to the sum of gradients before, and to the gathering of parts after it.

    comm: whose `collect` returns the moments of all ranks.
    """

    __slots__ = ("comm",)

    def __init__(
        self, layout: FlatLayout, arrays: list[NDArray[Any]], comm: Any, frozen: Sequence[NDArray[Any]]
    ) -> None:
        super().__init__(layout, arrays, owned=True, frozen=frozen)
        self.comm = comm

    def whole(self) -> FlatBuffers:
        """Return buffers that hold all of the moments.

        Other ranks do not take part: they write moments only in an update, which waits for this rank.
        """
        count = self.layout.trained
        sizes = _moment_sizes(self.layout, len(self.arrays) // count - 1)
        pieces = zip(self.arrays[count:], sizes, strict=True)
        moments = [self.comm.collect(piece, size) for piece, size in pieces]
        return FlatBuffers(self.layout, [*self.arrays[:count], *moments], frozen=self.frozen)

    def empty_like(self) -> FlatBuffers:
        """Return these buffers: a part of a step writes none, and an update takes new ones on all ranks."""
        return self

    def trees(self) -> Any:
        """Return the tree of parameters, as views, and the buffers of each moment."""
        return self.whole().trees()


class SharedUpdate:
    """Takes the ends of steps together with the other ranks of a communicator.

    comm: which has the optional methods for this; see `Communicator`.
    """

    def __init__(self, steps: Steps, comm: Any) -> None:
        self._steps, self._comm = steps, comm
        self._sums: tuple[Sums, Sums] | None = None

    def report(
        self, buffers: FlatBuffers, sums: Sums, norms: Sequence[float | None]
    ) -> tuple[float, bool, int]:
        """Return what the ranks tell each other before an update.

        This is the norm of this rank's part of the gradients, whether it needs new buffers, and the number of
        elements, since each node has all parts. norms: of the parts in each buffer, where they are known.
        """
        in_place = isinstance(buffers, SharedBuffers) and buffers.exclusive()
        parts = [self._comm.part(a) for a in sums.arrays]
        known = [
            global_norm(Tensor(a[rows], None)).item() if norm is None else norm
            for a, rows, norm in zip(sums.arrays, parts, norms, strict=True)
        ]
        return combined(known), not in_place, sum(rows.stop - rows.start for rows in parts)

    def update(self, inputs: StepInputs, total: Total, reports: NDArray[Any]) -> StepResult:
        """Update the parameters. reports: of all ranks."""
        at, sums = inputs.at, total.sums
        layout = at.buffers.layout
        norms, new, elements = zip(*reports.tolist(), strict=True)
        nodes = sum(elements) / max(sum(layout.sizes[: layout.trained]), 1)
        total.values.array[2] = combined(norms) / (total.weight * math.sqrt(nodes or 1.0))
        buffers = self._new_buffers(at) if any(new) else at.buffers
        step = self.inputs(inputs, sums, total.values).but(out=self._own(buffers))
        result = self._steps.update(step, lambda *_: None)
        if result.gradients is not None:
            result.gradients = self.gradients(total)
            return result
        for array in buffers.arrays[: layout.trained]:
            self._comm.gather_parts(array)
        result.buffers = buffers
        return result

    def inputs(self, inputs: StepInputs, sums: Sums, values: TotalValues) -> StepInputs:
        """Return the inputs of this rank's update, in place. inputs: of the step."""
        at, own = inputs.at, self._own(inputs.at.buffers)
        before = Snapshot(own, at.moments, at.count, at.step, at.state, at.dtype)
        part = Total(self._own_sums(sums), values, partial=True)
        # Views of the buffers are new in each step, so that nothing could be bound to them.
        return inputs.but(at=before, out=own, part=part, key=None, folds=(), bindings=None)

    def gradients(self, total: Total) -> list[NDArray[Any]]:
        """Return the gradients, which are not finite, of the sums whose parts ranks have."""
        for array in total.sums.arrays:
            self._comm.gather_parts(array)
        return [a / a.dtype.type(total.weight) for a in total.sums.arrays]

    def _own_sums(self, sums: Sums) -> Sums:
        """Return this rank's part of sums, as views."""
        if self._sums is None or self._sums[0] is not sums:
            self._sums = sums, Sums([a[self._comm.part(a)] for a in sums.arrays])
        return self._sums[1]

    def _own(self, buffers: FlatBuffers) -> FlatBuffers:
        """Return this rank's part of buffers, as views."""
        layout = buffers.layout
        count = layout.trained
        parts = [self._comm.part(a) for a in buffers.arrays[:count]]
        arrays, addresses = [], []
        for k, (a, address) in enumerate(zip(buffers.arrays, buffers.addresses, strict=True)):
            rows = parts[k % count] if a.size else slice(0, 0)  # a moment that the group has not
            if k >= count and isinstance(buffers, SharedBuffers):  # a piece begins with this rank's part
                rows = slice(0, rows.stop - rows.start)
            arrays.append(a[rows])
            addresses.append(address + rows.start * a.itemsize)
        return FlatBuffers(layout, arrays, addresses=addresses, frozen=buffers.frozen)

    def _new_buffers(self, at: Snapshot) -> FlatBuffers:
        """Return uninitialized buffers; all ranks are here."""
        layout, comm = at.buffers.layout, self._comm
        groups = layout.groups[: layout.trained]
        sizes = zip(layout.sizes, groups, strict=False)
        params = [_counted(comm.empty_common((n,), g.dtype)) for n, g in sizes]
        moments = zip(_moment_sizes(layout, at.moments), itertools.cycle(groups), strict=False)
        pieces = [_counted(comm.empty_piece(n, g.dtype)) for n, g in moments]
        return SharedBuffers(layout, [*params, *pieces], comm, at.buffers.frozen)


def _moment_sizes(layout: FlatLayout, moments: int) -> list[int]:
    """Return the number of elements of each buffer of the moments."""
    return [n for k in range(moments) for n in layout.moment(k).sizes[: layout.trained]]


def _counted(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the same memory, whose views hold references to it, as `exclusive` counts them.

    A view of a view of NumPy's holds one to the first array.
    """
    if not array.size:
        return array
    owner = (ctypes.c_char * array.nbytes).from_buffer(array)  # type: ignore[arg-type]
    return np.ndarray(array.shape, array.dtype, owner)  # type: ignore[arg-type]
