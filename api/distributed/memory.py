"""Memory that the ranks of a node share."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, cast

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def share(node: Any, size: int, common: bool = False) -> list[Bytes] | None:
    """Return memory of `size` bytes of each rank of a node, in their order; None where one rank has none.

    node: MPI's communicator of the node, whose ranks all call this with the same size.
    common: whether all of them have that of the first.

    On Linux each rank makes a file in memory, that has no name, and the others map it: nothing is left when
    a job is killed, and the size of /dev/shm is no limit, which is 64 MB in many containers. There
    `MPI.Win.Allocate_shared` of MPICH ends the process with SIGBUS when it is full, instead of an error.
    """
    if not hasattr(os, "memfd_create"):
        windows = _window(node, size)
        return windows[:1] * node.size if windows and common else windows
    own, problem = -1, ""
    mine: tuple[int, int, int, int] | None = None
    try:
        if node.rank == 0 or not common:
            own = os.memfd_create("treepie")
            # A page that the system cannot provide is an error here, and not a signal at the first access.
            # It is of this rank's NUMA node.
            os.posix_fallocate(own, 0, size)
            status = os.fstat(own)
            mine = os.getpid(), own, status.st_dev, status.st_ino
    except OSError as error:
        problem = str(error)
    memories: list[Bytes] = []
    files = node.allgather(mine)[: 1 if common else node.size]
    try:
        for other in files:
            if other is None:
                raise OSError(problem or "another rank has no memory")
            memories.append(_mapped(other, size))
    except OSError:
        memories.clear()
    everybody = node.allreduce(len(memories) == len(files), MPI.LAND)
    if own >= 0:
        os.close(own)
    if not everybody:
        return None
    return memories * node.size if common else memories


def _mapped(of: tuple[int, int, int, int], size: int) -> Bytes:
    """Map a file that a process has open; raise OSError where it is another file, as in another container.

    of: the process, the number that the file has there, its device and its inode.
    """
    process, number, *identity = of
    file = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
    try:
        status = os.fstat(file)
        if [status.st_dev, status.st_ino] != identity:
            raise OSError(f"/proc/{process} is another process")
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        memory = cast(Any, mmap.mmap(file, size, flags))
        return np.frombuffer(memory, np.uint8)
    finally:
        os.close(file)


def _window(node: Any, size: int) -> list[Bytes] | None:
    """Return shared memory of MPI's, which is freed with the process."""
    try:
        window = MPI.Win.Allocate_shared(size, 1, MPI.INFO_NULL, node)
    except MPI.Exception:
        return None
    buffers: list[Any] = [window.Shared_query(rank)[0] for rank in range(node.size)]
    return [np.frombuffer(buffer, np.uint8) for buffer in buffers]


class Block:
    """Memory of a node's ranks for one array at a time."""

    def __init__(self, memories: list[Bytes], own: int, common: bool = False) -> None:
        self.common = common
        self.size = memories[own].size
        self._own = memories[own]
        self._others = memories
        self.addresses = [memory.ctypes.data for memory in memories]
        self.first = self.addresses[own]
        #: References to the memory when no array uses it, as `free` counts them.
        self._references = sys.getrefcount(self._own)

    def free(self) -> bool:
        """Whether no array of this rank uses the memory: every view of it holds a reference."""
        return sys.getrefcount(self._own) <= self._references

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return this rank's memory as an array."""
        return np.ndarray(shape, dtype, self._own)

    def peers(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        """Return the arrays at an offset of the memory of each rank."""
        return [np.ndarray(shape, dtype, memory, offset) for memory in self._others]

    def offset(self, array: NDArray[Any], address: int) -> int:
        """Return at which byte of this rank's memory an array starts, or -1 where it is elsewhere."""
        at = address - self.first
        return at if at >= 0 and at + array.nbytes <= self.size else -1
