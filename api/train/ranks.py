"""What the ranks of a training agree on: their data, arguments and state at the start, and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import ptree
from treepie.kernels import config

from ..data.check import check_data
from ..data.pipeline import Data
from ..distributed.communicator import Communicator, Single, broadcast_object, gather, same_on_all_ranks
from ..metric.accumulators import Metric
from .state import TrainState

if TYPE_CHECKING:
    from .runner import StepRunner


class Ranks:
    """The ranks that train together, or a process alone.

    first: whether this is rank 0, which shows progress and writes files.
    """

    def __init__(
        self,
        comm: Communicator | None,
        function: str,
        data: Data,
        micro_shards: int | None = None,
        compare_every: int = 1,
    ) -> None:
        """Check that the data is sharded to the ranks of `comm`. function: its name in errors."""
        self.comm: Communicator = comm if comm is not None else Single()
        self._function = function
        self.first = self.comm.rank == 0
        self.several = self.comm.size > 1
        self._compare_every = compare_every
        shards = check_data(function, data).shards
        size = 1 if shards is None else shards.comm.size
        if size != self.comm.size:
            raise ValueError(
                f"{self._function}: data is sharded to {size} ranks and comm has {self.comm.size}, expected "
                "data.shard(comm) and comm=comm"
            )
        if shards is not None:
            shards.count = size if micro_shards is None else micro_shards
        self.check_same(**{"length of data": len(data), "rows of a batch and of all": data.rows})

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

    def compare(self, runner: StepRunner) -> None:
        """Every so many steps, raise RuntimeError where ranks have other parameters than rank 0."""
        if not self.several or runner.steps % self._compare_every:
            return
        buffers = runner.now.buffers
        own = digest(buffers.parameters)
        digests = np.zeros(self.comm.size, np.int64)
        digests[self.comm.rank] = own
        self.comm.sum(digests)
        others = np.flatnonzero(digests != digests[0])
        if len(others):
            raise RuntimeError(
                f"{self._function}: after step {runner.steps} the parameters of rank "
                f"{', '.join(map(str, others))} differ from those of rank 0: a rank has computed something "
                "else, as CPUs of different kinds do, or a user's code with random numbers of its own"
            )

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


def digest(arrays: Sequence[NDArray[Any]]) -> int:
    """Return a digest of 64 bits, as int64, that any change of a bit changes: 0.1 ms for 1 MB."""
    total = 0
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        whole = data.size // 8 * 8
        words = data[:whole].view(np.uint64)
        total = total * 31 + int(np.add.reduce(words)) + int.from_bytes(data[whole:].tobytes(), "little")
    return (total + 2**63) % 2**64 - 2**63
