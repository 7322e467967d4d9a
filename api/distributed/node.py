"""Sums over the ranks of a node, in memory that they share."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import config, memory
from treepie.kernels.ranks import Exchange, come, set_word, sum_arrays, ticks_of

from .joint import JointStep
from .memory import Block, share
from .nodes import PIECE, Nodes
from .waiting import Steps, Wait, Waiter

#: Bytes of an array up to which every rank adds up all of it, after one wait instead of two. Larger ones that
#: are not in shared memory pass through such memory in pieces.
SMALL = 1 << 14

#: Words of a rank that others read, two cache lines apart from the next rank's: how many phases of
#: collectives it has come to; its current collective, by parity; whether it waits for other nodes.
_ARRIVED, _COLLECTIVE, _OUTSIDE = 0, 8, 24
_STRIDE = 128

_KINDS = (
    "a barrier",
    "a sum",
    "a sum in shared memory",
    "a sum of parts",
    "a gathering of parts",
    "the end of its program",
)
_END = 5
_DTYPES = tuple(map(np.dtype, ("float32", "float64", "int32", "int64")))


#: The arguments of `come`.
Place = tuple[int, int, int, int, int, int, int]

#: A collective: its kind, the size and dtype of its array, the block of that and the offset there.
Collective = tuple[int, int, np.dtype[Any], int, int]


class Node:
    """The ranks of a node. The first of them talks to the other nodes, by `nodes`.

    ranks: their numbers in the job.

    Every rank counts the phases that it has come to, in a word that the others read. A sum is in the order
    of ranks whatever their number and timing: each rank adds up a slice of the array over all ranks, where
    they are, and stores it in the arrays of all.
    """

    def __init__(self, comm: Any, ranks: list[int], nodes: Nodes | None, memories: list[Any]) -> None:
        """Take MPI's communicator of the node, and memory of `control_bytes` of each rank.

        nodes: on the node's first rank, where there are several nodes.
        """
        self._comm, self._own, self._count = comm, comm.rank, comm.size
        self._ranks, self._nodes = ranks, nodes
        self._several = comm.bcast(nodes is not None)
        words = memories[0][: _STRIDE * self._count].view(np.int64).reshape(self._count, -1)
        self._words = words.ctypes.data
        self._arrived = words[:, _ARRIVED // 8]
        self._collectives = [words[:, _COLLECTIVE // 8 + k] for k in (0, 1)]
        self._outside = words[:, _OUTSIDE // 8]
        self._number = self._phase = self._collective = 0
        starts = [_STRIDE * self._count + k * SMALL for k in range(5)]
        self._slots = [[m.ctypes.data + at for m in memories] for at in starts[:2]]
        self._inputs = [memories[self._own][at : at + SMALL] for at in starts[:2]]
        self._results = [memories[0][at : at + SMALL] for at in starts[2:4]]
        self._blocks = [Block([m[starts[4] :] for m in memories], self._own)]

    def barrier(self, end: bool = False) -> Steps:
        """Wait for all ranks of all nodes. end: whether it is the last one."""
        self._begin(_END if end else 0, 0)
        if self._several and not self._nodes:
            self._phase += 1
            yield self._first()
            return
        yield self._all()
        if self._nodes:
            yield from self._outside_steps(self._nodes.barrier())
            self._leave()

    def sum(self, array: NDArray[Any]) -> Steps:
        """Replace a flat array by its sum over all ranks of all nodes."""
        if array.nbytes <= SMALL:
            yield from self._sum_small(array)
            return
        found = self._find(array)
        if found is not None:
            yield from self._sum_block(*found, array)
            return
        step = PIECE // array.itemsize
        for first in range(0, array.size, step):
            part = array[first : first + step]
            staged = self._blocks[0].array(part.shape, part.dtype)
            staged[...] = part
            yield from self._sum_block(0, 0, staged)
            part[...] = staged

    def part(self, array: NDArray[Any]) -> tuple[int, int]:
        """Return the first element of this rank's part of a flat array, and the one after the last.

        Parts begin at cache lines.
        """
        return self._bounds(array.size, array.dtype, self._own)

    def piece(self, size: int, dtype: np.dtype[Any]) -> int:
        """Return the number of elements of the largest part of `size`."""
        return self._bounds(size, dtype, 0)[1]

    def _bounds(self, size: int, dtype: np.dtype[Any], rank: int) -> tuple[int, int]:
        line = 64 // dtype.itemsize
        length = -(-size // (self._count * line)) * line
        return min(length * rank, size), min(length * (rank + 1), size)

    def collect(self, piece: NDArray[Any], size: int) -> NDArray[Any]:
        """Return the flat array whose parts the ranks have in their pieces at the moment."""
        found = self._find(piece)
        if found is None:
            raise ValueError("Communicator.collect: piece is not one of empty_piece")
        number, offset = found
        pieces = self._blocks[number].peers(offset, piece.shape, piece.dtype)
        bounds = [self._bounds(size, piece.dtype, rank) for rank in range(self._count)]
        return np.concatenate([p[: b - a] for p, (a, b) in zip(pieces, bounds, strict=True)])

    def sum_part(self, array: NDArray[Any]) -> Generator[Wait, None, float | None]:
        """Replace this rank's part of a flat array by the sum; the rest is unspecified. Return its norm.

        On one node that is half of a sum: a rank reads its part of all arrays and writes its own. The norm is
        None where it would take another pass over the array.
        """
        found = self._find(array)
        if found is None or self._several:
            yield from self.sum(array)
            return None
        number, offset = found
        self._begin(3, array.size, array.dtype, number, offset)
        yield self._all()
        return sum_arrays(*self._part_of_sum(array, number, offset), norm=True)

    def _part_of_sum(
        self, array: NDArray[Any], number: int, offset: int
    ) -> tuple[int, np.dtype[Any], list[int], list[int]]:
        """Return the arguments of `sum_arrays` for this rank's part of an array at an offset of a block."""
        first, last = self.part(array)
        at = [a + offset + first * array.itemsize for a in self._blocks[number].addresses]
        own = self._own
        # The first target is where the sum is built up: none of the sources that are still to be added.
        targets = [at[own]] if own < 2 else [at[0], at[own]]
        return last - first, array.dtype, at, targets

    def gather_parts(self, array: NDArray[Any]) -> Steps:
        """Give the other ranks of the node this one's part of a flat array, which is in shared memory."""
        found = self._find(array)
        if found is None:
            raise ValueError("Communicator.gather_parts: array is not one of empty")
        number, offset = found
        self._begin(4, array.size, array.dtype, number, offset)
        yield self._all()  # nobody reads the old values any more
        if self._blocks[number].common:
            return
        first, last = self.part(array)
        at = [a + offset + first * array.itemsize for a in self._blocks[number].addresses]
        own = at.pop(self._own)
        sum_arrays(last - first, array.dtype, [own], at)
        self._phase += 1
        yield self._all()

    def joint_step(
        self,
        waiter: Waiter,
        arrays: tuple[NDArray[Any], NDArray[Any]],
        values: NDArray[np.float64],
        shards: int,
        parts: int,
        summed: bool,
    ) -> JointStep | None:
        """Return what runs a step on this rank as one native call; None where ranks exchange more than that.

        arrays: the flat gradients, and the flat parameters.  For the others see `Exchange`.
        """
        gradients, params = map(self._find, arrays)
        like = arrays[0]
        rows = shards + self._count
        if gradients is None or params is None or self._several or 24 * rows > SMALL:
            return None
        if not self._blocks[params[0]].common:
            return None
        size, dtype, sources, targets = self._part_of_sum(like, *gradients)
        collectives: list[Collective] = [
            (3, like.size, like.dtype, *gradients),
            (1, 3 * rows, np.dtype("float64"), 0, 0),
            (4, arrays[1].size, arrays[1].dtype, *params),
        ]
        exchange = Exchange(
            size=size,
            dtype=dtype,
            sources=sources,
            targets=targets,
            slots=self._slots,
            own=self._own,
            shards=shards,
            parts=parts,
            summed=summed,
            length=like.size,
        )
        return JointStep(self, waiter, collectives, exchange, values)

    def announce(
        self, collectives: Sequence[Collective], places: NDArray[np.int64], spin_ns: float
    ) -> list[Arrival]:
        """Begin collectives that a native call takes part in, and write the arguments of its waits.

        places: (n, 9): the arguments of `meet`, and the parity of the number of the collective.
        """
        arrivals, rows, limit = [], [], ticks_of(spin_ns)
        for collective in collectives:
            self._begin(*collective)
            arrivals.append(self._all())
            rows.append((*arrivals[-1].place, limit, self._number % 2))
        places[...] = rows
        return arrivals

    def withdraw(self, count: int) -> None:
        """Take back the last collectives that were announced, which no other rank has seen."""
        self._number -= count
        self._phase -= count

    def _find(self, array: NDArray[Any]) -> tuple[int, int] | None:
        """Return the number of the block that an array is in, and its offset there."""
        address = memory.address_of(array)
        for number, block in enumerate(self._blocks):
            offset = block.offset(array, address)
            if offset >= 0:
                return number, offset
        return None

    def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], common: bool = False
    ) -> NDArray[Any] | None:
        """Return an array in shared memory, or None where there is none; all ranks are here.

        common: whether all ranks have the same memory.
        """
        size = max(math.prod(shape) * dtype.itemsize, 1)
        size += -size % 4096
        # A block that no rank uses any more, if there is one of this size.
        fits = [b.size == size and b.common == common and b.free() for b in self._blocks[1:]]
        unused = [all(column) for column in zip(*self._comm.allgather(fits), strict=True)]
        if any(unused):
            return self._blocks[1 + unused.index(True)].array(shape, dtype)
        memories = share(self._comm, size, common)
        if memories is None:
            return None
        self._blocks.append(Block(memories, self._own, common))
        return self._blocks[-1].array(shape, dtype)

    def _sum_small(self, array: NDArray[Any]) -> Steps:
        parity = (self._number + 1) % 2
        self._inputs[parity][: array.nbytes] = array.view(np.uint8)
        self._begin(1, array.size, array.dtype)
        if self._several and not self._nodes:
            self._phase += 1
            yield self._first()
            array.view(np.uint8)[...] = self._results[parity][: array.nbytes]
            return
        yield self._all()
        sum_arrays(array.size, array.dtype, self._slots[parity], [memory.address_of(array)])
        if self._nodes:
            yield from self._outside_steps(self._nodes.sum(array))
            self._results[parity][: array.nbytes] = array.view(np.uint8)
            self._leave()

    def _sum_block(self, number: int, offset: int, array: NDArray[Any]) -> Steps:
        """Sum arrays at the same offset of a block."""
        self._begin(2, array.size, array.dtype, number, offset)
        yield self._all()
        first, last = self.part(array)
        addresses = [a + offset for a in self._blocks[number].addresses]
        at = [a + first * array.itemsize for a in addresses]
        sum_arrays(last - first, array.dtype, at, at[:1] if self._several else at)
        self._leave()
        if not self._several:
            yield self._all()
            return
        if self._nodes:
            yield self._all()
            yield from self._outside_steps(self._nodes.sum(array))
        self._leave()
        yield self._first()
        if not self._nodes:
            sum_arrays(array.size, array.dtype, addresses[:1], [addresses[self._own]])
        self._leave()
        if self._nodes:  # its array stays until all have read it
            yield self._all()

    def _begin(
        self, kind: int, size: int, dtype: np.dtype[Any] | None = None, block: int = 0, offset: int = 0
    ) -> None:
        """Begin a collective. The other ranks see which it is when this one waits for them, or goes on."""
        self._number += 1
        self._phase += 1
        kinds = kind * 8 + (_DTYPES.index(dtype) if dtype is not None else 0)
        word = (offset // 64 % 64 * 64 + block % 64) * 64 + kinds
        self._collective = word << 44 | size & (1 << 44) - 1

    def _leave(self) -> None:
        """Tell the ranks that wait for it that this one has come to the next phase."""
        self._phase += 1
        set_word(self._words + _STRIDE * self._own + _ARRIVED, self._phase)

    def _all(self) -> Arrival:
        return Arrival(self, self._place(self._count))

    def _first(self) -> Arrival:
        return Arrival(self, self._place(1))

    def _place(self, count: int) -> Place:
        """Return what `come` takes, to wait for the first ranks to come to this phase of this collective."""
        at = _COLLECTIVE - _ARRIVED + 8 * (self._number % 2)
        return self._words + _ARRIVED, _STRIDE, self._own, count, self._phase, at, self._collective

    def different(self, rank: int) -> RuntimeError:
        """Return the error for a rank in another collective than this one."""
        words = self._collectives[self._number % 2]
        own, other = self._ranks[self._own], self._ranks[rank]
        return RuntimeError(
            f"distributed: rank {own} is at {_described(int(words[self._own]))} and rank {other} at "
            f"{_described(int(words[rank]))}, expected the same calls in the same order on all ranks"
        )

    def _outside_steps(self, steps: Steps) -> Steps:
        """Run steps of the first rank with other nodes; it names who is missing there."""
        self._outside[self._own] = 1
        yield from steps
        self._outside[self._own] = 0

    def missing(self, phase: int, count: int) -> Sequence[int]:
        """Return which of the first ranks have not come to a phase, unless they wait for other nodes."""
        late = [r for r in range(count) if self._arrived[r] < phase and not self._outside[r]]
        return [self._ranks[r] for r in late]

    def tell(self, missing: Sequence[int]) -> None:
        """Tell other nodes which ranks are missing."""
        if self._nodes:
            self._nodes.tell(missing)


class Arrival:
    """A wait for the first ranks of a node to come to a phase."""

    patience = config.RANK_YIELD_SECONDS

    def __init__(self, node: Node, place: Place) -> None:
        self._node, self.place = node, place

    def ready(self, ns: float = 0) -> bool:
        """Whether they have come, as this rank has; RuntimeError where one is in another collective."""
        found = come(*self.place, ns=ns)
        count = self.place[3]
        if 0 <= found < count:
            raise self._node.different(found)
        return found < 0

    def tell(self) -> None:
        """Tell other nodes who is missing."""
        self._node.tell(self.missing())

    def missing(self) -> Sequence[int]:
        """Return the ranks that have not come."""
        _, _, _, count, phase, _, _ = self.place
        return self._node.missing(phase, count)


def control_bytes(count: int) -> int:
    """Return the bytes of memory of each rank that a node of so many ranks needs."""
    size = _STRIDE * count + 4 * SMALL + PIECE
    return size + -size % 4096


def check_dtype(array: NDArray[Any]) -> None:
    """Raise TypeError for an array that ranks do not add up."""
    if array.dtype not in _DTYPES:
        raise TypeError(
            f"Communicator.sum: array is {array.dtype}, expected float32, float64, int32 or int64"
        )


def _described(word: int) -> str:
    kind, dtype = divmod(word >> 44 & 63, 8)
    size = word & (1 << 44) - 1
    name = _KINDS[kind] if kind < len(_KINDS) else "nothing"
    return f"{name} of {size} {_DTYPES[dtype % len(_DTYPES)].name}" if 0 < kind < _END else name
