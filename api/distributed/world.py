"""The communicator of all processes that a launcher started together."""

from __future__ import annotations

import functools
import sys

from treepie.kernels import config
from treepie.kernels.frames import warn

from .communicator import Communicator, Single


@functools.cache
def world() -> Communicator:
    """Return the communicator of all processes that a launcher started together, else of this one.

    mpirun, mpiexec, srun and `python -m treepie.run` start several, which talk by MPI, through mpi4py. From
    the first call on, an exception that ends one process ends them all, and the traceback names its rank.

    Raises ImportError where a launcher started several processes and mpi4py or an MPI library is missing,
    RuntimeError where MPI knows of one process only: each would train alone, on all of the data.

    >>> import treepie as tp
    >>> tp.distributed.world().size
    1
    """
    variable, size = config.processes()
    if not variable and "mpi4py.MPI" not in sys.modules:
        return Single()
    try:
        from .mpi import MPIWorld
    except (ImportError, RuntimeError) as error:
        if size == 1:
            return Single()
        raise ImportError(
            f"distributed.world: {variable} is {size}, and there is no MPI: {error}. Install one with "
            'pip install "treepie[mpi]", or load the site\'s module and pip install mpi4py'
        ) from None
    comm = MPIWorld()
    if comm.size == 1 != size:
        raise RuntimeError(
            f"distributed.world: {variable} is {size}, but MPI has 1 process: the launcher is of another "
            f"MPI than the library, {comm.library}. Use the launcher of that MPI, or python -m treepie.run; "
            "under srun, choose its interface with --mpi (srun --mpi=list)"
        )
    if comm.size > 1 and comm.rank == 0:
        _check_binding()
    return comm if comm.size > 1 else Single()


def _check_binding() -> None:
    """Warn where the launcher has bound ranks to fewer cores than their share, so that others idle."""
    binding = config.binding()
    if binding is not None:
        bound, share, flags = binding
        warn(
            f"distributed.world: each rank is bound to {bound} of the {share} cores that are its share, "
            f"expected {flags}, or python -m treepie.run"
        )
