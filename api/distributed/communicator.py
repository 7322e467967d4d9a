"""What a communicator is: the processes that train together, and the few ways in which they talk."""

from __future__ import annotations

import pickle
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import memory


@runtime_checkable
class Communicator(Protocol):
    """The ranks that train together.

    rank: the number of this one, from 0.  size: how many there are.

    Every rank calls the same methods in the same order. Arrays are C-contiguous, with the same shape and
    dtype on all ranks. `tp.distributed.world()` is the communicator of MPI's processes; any object with these
    methods will do, for another engine.

    More methods are optional. `empty(shape, dtype)` returns an uninitialized array whose sums are faster,
    such as one in memory that ranks share; all ranks call it. `begin_sum(array)` begins a sum and returns an
    object with `test()`, which makes progress and returns whether the sum is complete, and `wait()`, which
    completes it; until then nobody reads or writes the array. Sums complete in the order in which they began,
    and the other methods complete all of them first.

    Seven more, of flat arrays, let ranks share an update. `part(array)` is the slice that is this rank's;
    `sum_part(array)` adds up that part alone, of an array of `empty`, and leaves the rest unspecified; it
    returns the Euclidean norm of the part, or None where that would take another pass;
    `gather_parts(array)` replaces each part by that of its rank. An array whose part was summed is written
    again after the next call of any other method. `empty_common(shape, dtype)` returns an array whose memory
    ranks may have in common, so that gathering its parts is to wait for them. `empty_piece(size, dtype)`
    returns an array that begins with this rank's part of `size` elements, and `collect(piece, size)` all
    parts as they are at the moment, without the other ranks. Ranks that share no memory have all of an array
    as part.

    >>> import treepie as tp
    >>> isinstance(tp.distributed.world(), tp.distributed.Communicator)
    True
    """

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def sum(self, array: NDArray[Any]) -> None:
        """Replace an array by its sum over ranks, which has the same bits on all of them."""

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Replace an array by that of rank `root`."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def abort(self, status: int = 1) -> NoReturn:
        """End all ranks, with an exit status."""


#: The optional methods by which ranks share an update.
_SHARED = ("empty", "empty_common", "empty_piece", "part", "sum_part", "gather_parts", "collect")


class Pending(Protocol):
    """A sum that has begun."""

    def test(self) -> bool:
        """Return whether it is complete; makes progress, and does not wait."""

    def wait(self) -> None:
        """Complete it."""


class Completed:
    """A sum that is complete."""

    def test(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""


def empty(comm: Communicator, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an uninitialized array, in the memory in which a communicator adds up fastest."""
    allocate = getattr(comm, "empty", None)
    dtype = np.dtype(dtype)
    return memory.aligned(shape, dtype) if allocate is None else allocate(shape, dtype)


def shares_updates(comm: Communicator) -> bool:
    """Whether a communicator has what lets ranks share an update."""
    return all(hasattr(comm, name) for name in _SHARED)


def begin_sum(comm: Communicator, array: NDArray[Any]) -> Pending:
    """Begin a sum over ranks; a communicator that cannot begin one completes it."""
    begin = getattr(comm, "begin_sum", None)
    if begin is not None:
        return begin(array)  # type: ignore[no-any-return]
    comm.sum(array)
    return Completed()


class Single:
    """The communicator of a process that trains alone."""

    rank, size = 0, 1

    def __repr__(self) -> str:
        """Return the class, the number of ranks, and the rank."""
        return "Communicator(size=1, rank=0)"

    def sum(self, array: NDArray[Any]) -> None:
        """Leave an array as it is."""

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Leave an array as it is."""

    def barrier(self) -> None:
        """Return at once."""

    def abort(self, status: int = 1) -> NoReturn:
        """End this process."""
        raise SystemExit(status)


def check_communicator(function: str, comm: Any) -> Communicator:
    """Return a communicator, or raise TypeError."""
    if not isinstance(comm, Communicator):
        raise TypeError(
            f"{function}: comm is a {type(comm).__name__}, expected a communicator, such as "
            "tp.distributed.world()"
        )
    return comm


def gather(comm: Communicator, value: Any) -> list[Any]:
    """Return the values of all ranks, in their order, on every rank; they are pickled."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.zeros(comm.size, np.int64)
    sizes[comm.rank] = data.size
    comm.sum(sizes)
    ends = np.cumsum(sizes)
    # Bytes as int64, which every engine adds up.
    words = np.zeros(int(ends[-1]), np.int64)
    words[ends[comm.rank] - data.size : ends[comm.rank]] = data
    comm.sum(words)
    parts = np.split(words.astype(np.uint8), ends[:-1])
    return [pickle.loads(part.tobytes()) for part in parts]


def broadcast_object(comm: Communicator, value: Any) -> Any:
    """Return rank 0's value on every rank; it is pickled."""
    data = np.frombuffer(pickle.dumps(value), np.uint8).copy() if comm.rank == 0 else np.zeros(0, np.uint8)
    size = np.array([data.size], np.int64)
    comm.broadcast(size)
    if comm.rank != 0:
        data = np.zeros(int(size[0]), np.uint8)
    comm.broadcast(data)
    return value if comm.rank == 0 else pickle.loads(data.tobytes())


def same_on_all_ranks(comm: Communicator, function: str, what: dict[str, Any]) -> None:
    """Raise ValueError on every rank where ranks differ in a value, naming them.

    what: name of a value -> a value, compared by equality.
    """
    rows = gather(comm, what)
    for name, first in rows[0].items():
        others = [r for r, row in enumerate(rows) if row.get(name) != first]
        if others:
            listed = ", ".join(map(str, others))
            raise ValueError(
                f"{function}: {name} is {rows[others[0]].get(name)!r} on rank {listed} and {first!r} on "
                "rank 0, expected the same on all ranks"
            )
