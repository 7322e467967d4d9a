"""Sums over nodes, by messages between one rank of each."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from treepie.kernels import config, memory
from treepie.kernels.ranks import sum_arrays

from .waiting import Steps

#: Bytes of a piece at most, of which a node has scratch: the same on all nodes, whatever memory they share.
PIECE = 1 << 22

#: Bytes of a node's array, and of all nodes' together, up to which every node sends all to every other one.
_SMALL, _SMALL_TOTAL = 1 << 12, 1 << 18

#: Ranks that a message names at most.
_NAMED = 14


class Nodes:
    """The first ranks of nodes. All methods are called by them alone.

    number: of the current collective; the same on all of them.

    Sums are in the order of nodes, whatever the MPI library: an array is cut into a part for each node, which
    receives that part from all (`Ialltoallv`), adds them up, and sends the sum to all (`Iallgatherv`). That
    is as many bytes as the best algorithms for a reduction send, 2 (n - 1) / n of the array, and all nodes
    have the same bits because each part is added up once. Calls do not block, so that a wait has a limit.
    """

    def __init__(self, comm: Any, ranks: list[int]) -> None:
        """Take the communicator of the first ranks, and their ranks in the job."""
        self._comm, self.size, self._ranks = comm, comm.size, ranks
        self._messages = comm.Dup() if comm.size > 1 else comm
        self.number = 0
        self._scratch = np.empty(0, np.uint8)
        self._reports: dict[int, list[int]] = {}
        self._sent: list[Any] = []

    def sum(self, array: NDArray[Any]) -> Steps:
        """Replace a flat array by its sum over nodes."""
        if array.nbytes <= _SMALL and array.nbytes * self.size <= _SMALL_TOTAL:
            yield from self._sum_small(array)
            return
        step = PIECE // array.itemsize
        for first in range(0, array.size, step):
            yield from self._sum_piece(array[first : first + step])

    def barrier(self, end: bool = False) -> Steps:
        """Wait for all nodes."""
        yield Request(self, self._comm.Ibarrier())

    def _sum_small(self, array: NDArray[Any]) -> Steps:
        rows = self._rows(self.size * array.nbytes)
        yield Request(self, self._comm.Iallgather(array.view(np.uint8), rows), rows.size)
        self._add(array, rows)

    def _sum_piece(self, array: NDArray[Any]) -> Steps:
        # Parts begin at cache lines.
        line = 64 // array.itemsize
        part = -(-array.size // (self.size * line)) * line
        ends = [min(part * k, array.size) * array.itemsize for k in range(self.size + 1)]
        counts = [b - a for a, b in itertools.pairwise(ends)]
        own = self._comm.rank
        mine, data = counts[own], array.view(np.uint8)
        rows = self._rows(self.size * mine)
        layout = [mine] * self.size, [mine * k for k in range(self.size)]
        sent, parts = [data, (counts, ends[:-1]), MPI.BYTE], [rows, layout, MPI.BYTE]
        yield Request(self, self._comm.Ialltoallv(sent, parts), array.nbytes)
        self._add(data[ends[own] : ends[own + 1]].view(array.dtype), rows)
        yield Request(self, self._comm.Iallgatherv(MPI.IN_PLACE, sent), array.nbytes)

    def _add(self, array: NDArray[Any], rows: NDArray[np.uint8]) -> None:
        """Set an array to the sum of rows of its length."""
        start = memory.address_of(rows) if array.size else 0
        sources = [start + k * array.nbytes for k in range(self.size)]
        sum_arrays(array.size, array.dtype, sources, [memory.address_of(array)])

    def _rows(self, size: int) -> NDArray[np.uint8]:
        if self._scratch.size < size:
            self._scratch = memory.aligned((size,), np.dtype(np.uint8))
        return self._scratch[:size]

    def tell(self, missing: Sequence[int]) -> None:
        """Send to all other nodes which ranks of this one have not arrived; none: this node has."""
        text = np.zeros(2 + _NAMED, np.int64)
        named = list(missing)[:_NAMED]
        text[:2] = self.number, len(named)
        text[2 : 2 + len(named)] = named
        self._sent = [
            (self._messages.Isend(text, node), text) for node in range(self.size) if node != self._comm.rank
        ]

    def missing(self) -> list[int]:
        """Return the ranks that have not arrived: those that other nodes name, and of silent nodes the first.

        Nodes that have waited for half of the limit have told for what: so a node that arrives up to half of
        the limit later than this one is not taken for silent.
        """
        status = MPI.Status()
        while self._messages.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            text = np.zeros(2 + _NAMED, np.int64)
            self._messages.Recv(text, status.Get_source(), status.Get_tag())
            self._reports[status.Get_source()] = text.tolist()
        return list(self._named())

    def _named(self) -> Iterator[int]:
        for node, rank in enumerate(self._ranks):
            if node == self._comm.rank:
                continue
            number, count, *named = self._reports.get(node, [-1, 0])
            if number == self.number:
                yield from named[:count]
            else:
                yield rank


class Request:
    """A wait for a call of MPI that does not block, with `size` bytes of a node.

    MPI moves a piece of a message at a look: with sleeps of 50 us between looks, a sum of 4 MB of two ranks
    took 38 ms instead of 1.5.
    """

    def __init__(self, nodes: Nodes, request: Any, size: int = 0) -> None:
        self._nodes, self._request = nodes, request
        self.patience = config.MESSAGE_YIELD_SECONDS + size * config.MESSAGE_BYTE_SECONDS

    def ready(self, ns: float = 0) -> bool:
        """Whether it has completed; MPI makes progress meanwhile."""
        if self._request.Test():
            return True
        until = time.perf_counter_ns() + ns if ns else -math.inf
        while time.perf_counter_ns() < until:
            if self._request.Test():
                return True
        return False

    def tell(self) -> None:
        """Tell other nodes that this one has arrived."""
        self._nodes.tell([])

    def missing(self) -> Sequence[int]:
        """Return the ranks of other nodes that have not arrived."""
        return self._nodes.missing()
