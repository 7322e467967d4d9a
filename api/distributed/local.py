"""Ranks as threads of this process: for tests of distributed training on one machine, without MPI."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff.arguments import integer
from treepie.kernels.memory import address_of


class Local:
    """n ranks, each a thread of this process.

    n: at least 1, else ValueError.

    >>> import treepie as tp
    >>> import numpy as np
    >>> def total(comm):
    ...     x = np.array([comm.rank + 1.0])
    ...     comm.sum(x)
    ...     return x.item()
    >>> tp.distributed.Local(3).run(total)
    [6.0, 6.0, 6.0]
    """

    def __init__(self, n: int) -> None:
        self.size = integer("distributed.Local", "n", n)
        if self.size < 1:
            raise ValueError(f"distributed.Local: n is {n}, expected at least 1")
        self._barrier = threading.Barrier(self.size)
        self._arrays: list[NDArray[Any] | None] = [None] * self.size

    def __repr__(self) -> str:
        """Show the number of ranks."""
        return f"Local({self.size})"

    def run(self, function: Callable[[Rank], Any]) -> list[Any]:
        """Return function(communicator) of each rank, all at once.

        An exception on one rank ends the others where they next wait; it is raised here.
        """
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []
        self._barrier.reset()

        def run(rank: int) -> None:
            try:
                results[rank] = function(Rank(self, rank))
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


class Rank:
    """The communicator of one of the threads of `Local`."""

    def __init__(self, ranks: Local, rank: int) -> None:
        self._ranks, self.rank, self.size = ranks, rank, ranks.size
        #: Address of an array of `empty` -> the arrays of all ranks.
        self._peers: dict[int, list[NDArray[Any]]] = {}

    def __repr__(self) -> str:
        """Return the class, the number of ranks, and the rank."""
        return f"Communicator(size={self.size}, rank={self.rank})"

    def _exchange(self, array: NDArray[Any] | None) -> list[Any]:
        """Return the arrays of all ranks; they stay as they are until `barrier`."""
        self._ranks._arrays[self.rank] = array
        self.barrier()
        return list(self._ranks._arrays)

    def sum(self, array: NDArray[Any]) -> None:
        """Replace an array by its sum over ranks, added up in their order."""
        arrays = self._exchange(array)
        total = arrays[0].copy()
        for other in arrays[1:]:
            total += other
        self.barrier()
        array[...] = total

    # ---- the optional methods by which ranks share an update
    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array."""
        array: NDArray[Any] = np.empty(shape, dtype)
        self._peers[address_of(array)] = self._exchange(array)
        self.barrier()
        return array

    def empty_common(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array that all ranks have in common."""
        array: NDArray[Any] = self._exchange(np.empty(shape, dtype))[0]
        self.barrier()
        return array

    def empty_piece(self, size: int, dtype: Any) -> NDArray[Any]:
        """Return an array for this rank's part of one of `size` elements."""
        return self.empty((-(-size // self.size),), dtype)

    def part(self, array: NDArray[Any]) -> slice:
        """Return which elements of a flat array are this rank's part of it."""
        return self._part(array.size, self.rank)

    def _part(self, size: int, rank: int) -> slice:
        length = -(-size // self.size)
        return slice(min(length * rank, size), min(length * (rank + 1), size))

    def sum_part(self, array: NDArray[Any]) -> None:
        """Replace this rank's part of an array by its sum over ranks."""
        arrays, own = self._exchange(array), self.part(array)
        total = functools.reduce(np.add, [a[own] for a in arrays])
        self.barrier()
        array[own] = total

    def gather_parts(self, array: NDArray[Any]) -> None:
        """Replace each part of an array by that of its rank."""
        for rank, other in enumerate(self._exchange(array)):
            rows = self._part(array.size, rank)
            if rank != self.rank and other is not array:
                array[rows] = other[rows]
        self.barrier()

    def collect(self, piece: NDArray[Any], size: int) -> NDArray[Any]:
        """Return the array whose parts are in the ranks' pieces at the moment."""
        if not size:
            return piece.copy()
        rows = [self._part(size, rank) for rank in range(self.size)]
        pieces = self._peers[address_of(piece)]
        return np.concatenate([p[: s.stop - s.start] for p, s in zip(pieces, rows, strict=True)])

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Replace an array by that of rank `root`."""
        source = self._exchange(array)[root]
        if self.rank != root:
            array[...] = source
        self.barrier()

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._ranks._barrier.wait()

    def abort(self, status: int = 1) -> NoReturn:
        """End all ranks where they next wait."""
        self._ranks._barrier.abort()
        raise SystemExit(status)
