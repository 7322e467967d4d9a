"""A step on a batch in parts: the rows of each rank, micro-shards, elements that are accumulated.

Each part adds its gradients, times the weight of its loss, to sums. The step's end divides them by the sum
of the weights, and updates the parameters by a program of its own, so that the parts equal one big batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor

from ..data.rows import Shards, row_count, rows_of
from ..distributed.communicator import Communicator, shares_updates
from .inputs import Commit, Loss, Part, StepCounter, StepInputs, StepResult, Sums, Total, TotalValues
from .ranks import Ranks
from .reduction import ShardSums, mean_state
from .shared_update import SharedUpdate
from .synchronized import sums_over_ranks
from .whole_step import Done, WholeStep

if TYPE_CHECKING:
    from .steps import Steps

#: The input of a model, a loss function, and the loss function's arguments besides the output.
Example = tuple[Any, Loss, tuple[Any, ...]]


def parts_of(
    steps: Steps, ranks: Ranks, size: int, micro_shards: int | None, summed: bool, shares: bool
) -> BatchInParts | None:
    """Return what takes the steps of a `fit` in parts; None where a process takes each as a whole.

    size: elements of a step.  shares: whether ranks that share memory share the update.
    """
    if size == 1 and micro_shards is None and not ranks.several:
        return None
    shared = shares and ranks.several and shares_updates(ranks.comm)
    update = SharedUpdate(steps, ranks.comm) if shared else None
    return BatchInParts(steps, ranks.comm, micro_shards, summed, update)


@dataclass
class _Rows:
    """Rows of an element: count of them, of which the first has the index `first` in the step's batch."""

    example: Example
    first: int
    count: int


class BatchInParts:
    """Takes steps, each on a batch in parts.

    comm: the ranks.  micro_shards: into how many parts each batch is cut, whatever the ranks; None cuts it
        into one for each rank.  summed: whether losses are summed, not averaged.
    """

    def __init__(
        self,
        steps: Steps,
        comm: Communicator,
        micro_shards: int | None,
        summed: bool,
        shared: SharedUpdate | None = None,
    ) -> None:
        """shared: takes updates that ranks share; None where each rank takes the whole."""
        self._steps, self._comm, self._summed = steps, comm, summed
        self._micro = micro_shards is not None
        self._shards = Shards(comm, micro_shards)
        self._sums = ShardSums(comm, self._shards, self._micro)
        self._shared = shared
        self._counter = StepCounter()  # of the parts, which write no parameters
        self._values = TotalValues()
        whole = shared and WholeStep(steps, comm, self._sums, shared, self._shards.count, summed)
        self._whole: WholeStep | None = whole or None
        self._synchronizes: bool | None = None  # whether the model sums over ranks

    def take(
        self,
        inputs: StepInputs,
        examples: Sequence[Example],
        commit: Commit,
        lengths: Sequence[int] | None = None,
    ) -> StepResult:
        """Take a step.

        inputs: of the step, without an example.  examples: of each element, this rank's rows.
        lengths: rows of each element on all ranks; None where ranks have to tell each other.
        """
        parts = self._own_parts(examples, inputs.key is not None, lengths)
        if self._micro or any(not length(x) for x, _, _ in examples):
            self._refuse_sums_over_ranks(inputs, examples[0])
        done = self._as_whole(inputs, parts)
        if isinstance(done, StepResult):
            return done
        # On a rank without rows the dtype of the loss is unknown.
        states, dtype, table = {0: inputs.state}, None, done
        if table is None:
            states, dtype, table = self._gradients(inputs, parts)
        return self._end(inputs, states, dtype, table, commit)

    def _as_whole(self, inputs: StepInputs, parts: Sequence[tuple[int, list[_Rows]]]) -> Done:
        """Take the step as one native call, as far as it is one."""
        if self._whole is None or not parts or any(len(rows) != 1 for _, rows in parts):
            return None
        self._sums.begin(inputs.at.buffers.layout)
        rows = [(shard, row) for shard, (row,) in parts]

        def part_of(k: int, sums: Sums) -> StepInputs:
            return self._part(inputs, rows[k][1], inputs.state, sums)

        return self._whole.take(inputs, [(shard, row.count) for shard, row in rows], part_of, self._values)

    def _gradients(
        self, inputs: StepInputs, parts: Sequence[tuple[int, list[_Rows]]]
    ) -> tuple[Any, Any, Any]:
        """Add up the gradients of all ranks; return the states of shards, the loss's dtype, and the table.

        The table has a row for each shard: loss times weight, weight, examples; and one for each rank: see
        `SharedUpdate.report`.
        """
        self._sums.begin(inputs.at.buffers.layout)
        table = np.zeros((self._shards.count + self._comm.size, 3))
        states: dict[int, Any] = {}
        dtype = None
        for shard, rows in parts:
            sums = self._sums.open(shard, len(rows) == 1)
            state, loss, weight, count = inputs.state, 0.0, 0.0, 0
            for part in rows:
                result = self._steps.take(self._part(inputs, part, state, sums), _ignore)
                state, dtype, sums.empty = result.state, result.dtype, False
                loss, weight = loss + result.loss * result.norm, weight + result.norm
                count += part.count
            states[shard], table[shard] = state, (loss, weight, count)
            self._sums.close(shard)
        sums, norms = self._sums.total(self._shared is not None)
        if self._shared:
            report = self._shared.report(inputs.at.buffers, sums, norms)
            table[self._shards.count + self._comm.rank] = report
        self._comm.sum(table)
        return states, dtype, table

    def _end(
        self, inputs: StepInputs, states: dict[int, Any], dtype: Any, table: NDArray[Any], commit: Commit
    ) -> StepResult:
        """Take the end of a step, from the sums of gradients and the ranks' table on."""
        shards = table[: self._shards.count]
        loss = weight = 0.0
        for weighted, own, _ in shards.tolist():  # in order, as `reduction` adds up gradients
            loss, weight = loss + weighted, weight + own
        if weight == 0:
            raise ValueError(
                f"Trainer.fit: all targets of step {inputs.at.step + 1} are ignored or have weight 0, "
                "expected another one too"
            )
        state = mean_state(self._comm, states, shards[:, 2], inputs.state, self._steps)
        self._values.array[:2] = 1.0 if self._summed else weight, loss
        total = Total(self._sums.own, self._values)
        end = inputs.but(state=state, key=None, folds=(), part=total)
        if self._shared:
            result = self._shared.update(end, total, table[len(shards) :])
        else:
            result = self._steps.update(end, commit)
        result.dtype = result.dtype if dtype is None else dtype
        return result

    def _refuse_sums_over_ranks(self, inputs: StepInputs, example: Example) -> None:
        """Raise ValueError where parts that do not run at once would wait for each other."""
        if self._synchronizes is None:
            self._synchronizes = sums_over_ranks(self._steps.model, inputs, example[0])
        if not self._synchronizes:
            return
        if self._micro:
            raise ValueError(
                "Trainer.fit: micro_shards is given and the model sums over ranks (batch_norm with comm), "
                "expected one of the two"
            )
        raise ValueError(
            f"Trainer.fit: rank {self._comm.rank} has no rows of step {inputs.at.step + 1}, and the model "
            "sums over ranks (batch_norm with comm), expected batches of at least as many rows as ranks (see "
            "drop_last)"
        )

    def _part(self, inputs: StepInputs, part: _Rows, state: Any, sums: Sums) -> StepInputs:
        """Return the inputs of a part's step."""
        x, loss, target = part.example
        weight = 1.0 if self._summed else float(part.count)
        own = Part(weight, not self._summed, part.first, part.count, sums)
        example = {"x": x, "loss": loss, "target": target, "state": state}
        return inputs.but(**example, counter=self._counter, part=own, clip_norm=None)

    def _own_parts(
        self, examples: Sequence[Example], indexed: bool, lengths: Sequence[int] | None
    ) -> list[tuple[int, list[_Rows]]]:
        """Return this rank's shards, each with its rows of every element that it has some of.

        indexed: whether the indices of rows are needed.  lengths: see `take`.
        """
        if not (indexed or self._micro) and len(examples) == 1:
            count = length(examples[0][0])
            return [(self._comm.rank, [_Rows(examples[0], 0, count)] if count else [])]
        counts = [length(x) for x, _, _ in examples]
        if lengths is not None:
            starts = [self._shards.own_rows(n).start for n in lengths]
        elif indexed or self._micro:
            starts, lengths = self._told(counts)
        else:
            starts, lengths = [0] * len(counts), counts
        if self._micro:
            for x, loss, target in examples:
                row_count("Trainer.fit, micro_shards", (x, *target) if target else (x, loss))
        parts: list[tuple[int, list[_Rows]]] = []
        for shard in self._shards.own:
            rows, base = [], 0
            for example, start, count, whole in zip(examples, starts, counts, lengths, strict=True):
                own = slice(start, start + count)
                cut = self._shards.rows(shard, whole) if self._micro else own
                if cut.stop > cut.start:
                    part = _cut(example, cut, own) if self._micro else example
                    rows.append(_Rows(part, base + cut.start, cut.stop - cut.start))
                base += whole
            parts.append((shard, rows))
        return parts

    def _told(self, counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return where this rank's rows of each element begin, and the element's rows on all ranks."""
        sizes = np.zeros((self._comm.size, len(counts)), np.int64)
        sizes[self._comm.rank] = counts
        self._comm.sum(sizes)
        return sizes[: self._comm.rank].sum(0).tolist(), sizes.sum(0).tolist()


def _cut(example: Example, rows: slice, own: slice) -> Example:
    """Return some rows of an example, of which this rank has those of `own`."""
    if not own.start <= rows.start <= rows.stop <= own.stop:
        raise ValueError(
            "Trainer.fit: this rank's rows are not those of its micro-shards, expected data.shard(comm) of "
            "the same communicator"
        )
    x, loss, target = example
    x, target = rows_of((x, target), slice(rows.start - own.start, rows.stop - own.start))
    return x, loss, target


def _ignore(*_: Any) -> None:
    """Take no notice of a new state: a part does not end its step."""


def arrays(x: Any) -> list[Any]:
    """Return the tensors or arrays of an input."""
    if isinstance(x, tuple | dict):
        return list(ptree.leaves(x))
    return [x if hasattr(x, "shape") else as_tensor(x)]


def length(x: Any) -> int:
    """Return the number of examples of an input: the length of its first axis."""
    if type(x) is Tensor and x._data.shape:
        return x._data.shape[0]
    first = arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
