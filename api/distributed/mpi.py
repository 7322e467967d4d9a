"""The processes of MPI, through mpi4py."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from treepie.kernels import config

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
            _end_all_with_one(self)
        if config.RUN_FOLDER:
            note_rank(self.rank, Path(config.RUN_FOLDER))

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
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(status)
        os._exit(status)  # where the library returns


def note_rank(rank: int, folder: Path) -> None:
    """Leave a file until this process ends as it should: some MPIs take os._exit(0) for that."""
    file = folder / f"rank {rank}"
    file.touch()
    atexit.register(file.unlink, missing_ok=True)


def _parts(array: NDArray[Any]) -> list[NDArray[Any]]:
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size, "expected a C-contiguous array"
    return [flat[k : k + _MOST] for k in range(0, flat.size, _MOST)]


def _end_all_with_one(comm: MPIWorld) -> None:
    """End all ranks where an exception ends one, and show it once, with its rank."""

    def end(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, where))
        lines = "".join(f"[rank {comm.rank}] {line}\n" for line in text.splitlines())
        sys.stderr.write(lines)
        sys.stderr.flush()
        comm.abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = end
    threading.excepthook = lambda arguments: end(
        arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback
    )
