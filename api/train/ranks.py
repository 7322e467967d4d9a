"""What the ranks of a training agree on: their data, arguments and state at the start, and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from treepie.kernels import config

from ..data.pipeline import Data, check_data
from ..distributed.communicator import Communicator, Single, broadcast_object, gather, same_on_all_ranks
from ..metric.accumulators import Metric


class Ranks:
    """The ranks that train together, or a process alone.

    first: whether this is rank 0, which shows progress and writes files.
    """

    def __init__(self, comm: Communicator | None, function: str) -> None:
        self.comm: Communicator = comm if comm is not None else Single()
        self._function = function
        self.first = self.comm.rank == 0
        self.several = self.comm.size > 1

    def check_data(self, data: Data) -> None:
        """Raise ValueError for data that is not sharded to these ranks, or of another length on some."""
        sharded = check_data(self._function, data).comm
        if (sharded.size if sharded is not None else 1) != self.comm.size:
            raise ValueError(
                f"{self._function}: data is sharded to {sharded.size if sharded else 1} ranks and comm has "
                f"{self.comm.size}, expected data.shard(comm) and comm=comm"
            )
        self.check_same(**{"length of data": len(data)})

    def check_same(self, **values: Any) -> None:
        """Raise ValueError where arguments, or versions, differ between ranks."""
        if self.several:
            versions = {"version of treepie": config.__version__, "version of NumPy": np.__version__}
            same_on_all_ranks(self.comm, self._function, versions | values)

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return broadcast_object(self.comm, value) if self.several else value

    def any(self, decision: bool) -> bool:
        """Return whether some rank has decided so."""
        if not self.several:
            return decision
        count = np.array([decision], np.int64)
        self.comm.sum(count)
        return bool(count[0])

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.comm.barrier()

    def merge(self, metrics: Mapping[str, Metric]) -> None:
        """Add to metrics what other ranks have counted, in the order of ranks."""
        if not self.several:
            return
        rows = gather(self.comm, dict(metrics))
        for name, metric in metrics.items():
            metric.reset()
            for row in rows:
                metric.merge(row[name])
