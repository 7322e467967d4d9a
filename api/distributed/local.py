"""Ranks as threads of this process: for tests of distributed training on one machine, without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

from numpy.typing import NDArray

from treepie.autodiff.arguments import integer


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
