"""The processes that train together. So far only one process is supported; several raise an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from treepie.kernels import config

__all__ = ["Communicator", "world"]


@dataclass(frozen=True)
class Communicator:
    """The processes that train together: their number, and the index of this one, from 0.

    >>> import treepie as tp
    >>> tp.distributed.world()
    Communicator(size=1, rank=0)
    """

    size: int
    rank: int


def world() -> Communicator:
    """Return the communicator of all processes that a launcher started together, one outside of a launcher.

    Raises RuntimeError under mpirun or srun with several processes, which are not supported yet: each would
    train alone, on all of the data.

    >>> import treepie as tp
    >>> tp.distributed.world().size
    1
    """
    variable, size = config.processes()
    if size != 1:
        raise RuntimeError(
            f"distributed.world: {variable} is {size}, expected 1: several processes are not supported yet; "
            "start one, which uses all cores of its machine"
        )
    return Communicator(1, 0)


def check_communicator(function: str, comm: Any) -> None:
    """Raise TypeError for other than a communicator, ValueError for one of several processes."""
    if not isinstance(comm, Communicator):
        raise TypeError(
            f"{function}: comm is a {type(comm).__name__}, expected a communicator of tp.distributed.world()"
        )
    if comm.size != 1:
        raise ValueError(f"{function}: comm has {comm.size} processes, expected 1, which is all so far")
