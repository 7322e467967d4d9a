"""What the ranks of a training agree on: their data, arguments and state at the start, and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.kernels import config

from ..data.pipeline import Data, check_data
from ..distributed.communicator import Communicator, Single, broadcast_object, gather, same_on_all_ranks
from ..metric.accumulators import Metric
from .state import TrainState


class Ranks:
    """The ranks that train together, or a process alone.

    first: whether this is rank 0, which shows progress and writes files.
    """

    def __init__(
        self, comm: Communicator | None, function: str, data: Data, rngs: Tensor | None = None
    ) -> None:
        """Check that the data is sharded to the ranks of `comm`. function: its name in errors."""
        self.comm: Communicator = comm if comm is not None else Single()
        self._function = function
        self.first = self.comm.rank == 0
        self.several = self.comm.size > 1
        sharded = check_data(function, data).comm
        if (sharded.size if sharded is not None else 1) != self.comm.size:
            raise ValueError(
                f"{self._function}: data is sharded to {sharded.size if sharded else 1} ranks and comm has "
                f"{self.comm.size}, expected data.shard(comm) and comm=comm"
            )
        self.check_same(**{"length of data": len(data)})
        if self.several and rngs is not None:
            raise ValueError(
                f"{self._function}: rngs is given and comm has several ranks, expected one of the two: "
                "dropout would have the same masks on all ranks"
            )

    def check_same(self, **values: Any) -> None:
        """Raise ValueError where arguments, or versions, differ between ranks."""
        if self.several:
            versions = {"version of treepie": config.__version__, "version of NumPy": np.__version__}
            same_on_all_ranks(self.comm, self._function, versions | values)

    def agreed(self, st: TrainState) -> TrainState:
        """Return rank 0's state, after having compared the structure of the model."""
        if not self.several:
            return st
        parameters = ptree.flatten_with_paths(st.vars.params)
        model = [(path, t.shape, t.dtype.name) for path, t in parameters]
        self.check_same(model=model, optimizer=st.opt_state.optimizer)
        return self.from_first(st)  # type: ignore[no-any-return]

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
