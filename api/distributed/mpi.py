"""The processes of MPI, through mpi4py."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from . import failures

#: Elements of one reduction at most: MPI counts in 32 bits.
_MOST = 1 << 28


class MPIWorld:
    """The communicator of all processes of this MPI job."""

    def __init__(self) -> None:
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.library: str = MPI.Get_library_version().partition("\n")[0].strip()
        if self.size > 1:
            failures.install(self.rank)

    def __repr__(self) -> str:
        """Return the class, the number of ranks, and the rank."""
        return f"Communicator(size={self.size}, rank={self.rank})"

    def sum(self, array: NDArray[Any]) -> None:
        """Replace an array by its sum over ranks."""
        for part in _parts(array):
            self._comm.Allreduce(MPI.IN_PLACE, part)

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Replace an array by that of rank `root`."""
        for part in _parts(array):
            self._comm.Bcast(part, root)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._comm.Barrier()

    def abort(self, status: int = 1) -> NoReturn:
        """End all ranks, with an exit status."""
        failures.abort(status)


def _parts(array: NDArray[Any]) -> list[NDArray[Any]]:
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size, "expected a C-contiguous array"
    return [flat[k : k + _MOST] for k in range(0, flat.size, _MOST)]
