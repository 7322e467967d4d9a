"""A step of a rank as one native call: its parts, the sums over ranks, and its share of the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from treepie.autodiff import Tensor
from treepie.autodiff.accuracy import current
from treepie.autodiff.program.instance import Arena, Arenas
from treepie.autodiff.program.program import Program
from treepie.autodiff.program.run import Run
from treepie.kernels.threads import get_num_threads

from .inputs import Part, StepInputs, StepResult, Sums, Total, TotalValues
from .pure_step import PureModelStep
from .reduction import ShardSums
from .shared_update import SharedBuffers, SharedUpdate
from .step import is_finite_check

if TYPE_CHECKING:
    from .steps import Steps

#: What has been done of a step: all of it, with its result; or its sums, with the ranks' table; or nothing.
Done: TypeAlias = "StepResult | NDArray[Any] | None"


class WholeStep:
    """Takes steps whose programs are planned, and whose parts are added up in memory that ranks share.

    Others are taken call by call, which other ranks do not notice: their collectives are the same.

    shards: of a batch.  summed: whether losses are summed, not averaged.
    """

    def __init__(
        self, steps: Steps, comm: Any, sums: ShardSums, shared: SharedUpdate, shards: int, summed: bool
    ) -> None:
        """comm: which may have the optional method `joint_step`."""
        self._steps, self._sums, self._shared = steps, sums, shared
        self._shards, self._summed = shards, summed
        self._make = getattr(comm, "joint_step", None)
        self._joint: tuple[Any, Any] = (None, None)
        #: The last step that was prepared, and what others must have in common with it.
        self._same: Any = None
        self._prepared: _Prepared | None = None

    def take(
        self,
        inputs: StepInputs,
        parts: Sequence[tuple[int, int]],
        part_of: Callable[[int, Sums], StepInputs],
        values: TotalValues,
    ) -> Done:
        """Take a step of this rank, and say what has been done of it.

        parts: the shard and the number of examples of each.  part_of: (k, sums) -> the inputs of part k.
        """
        buffers = inputs.at.buffers
        if not isinstance(buffers, SharedBuffers) or not buffers.exclusive():
            return None
        if buffers.layout.trained != 1 or self._steps.state_leaves(inputs.state):
            return None
        sums = self._sums.together([shard for shard, _ in parts])
        joint = sums and self._joint_step(sums, buffers, len(parts), values)
        if not joint:
            return None
        assert sums is not None
        examples = [part_of(k, sums) for k in range(len(parts))]
        same, prepared = _everything_but_numbers(inputs, examples, joint), self._prepared
        if prepared is not None and same is not None and same == self._same:
            sums.empty = False
            prepared.again(inputs, examples, self._steps.cache.arenas)
        else:
            if prepared is not None:
                prepared.done()
            prepared = self._prepared = self._prepare(inputs, examples, sums, values)
            if prepared is None:
                return None
            self._same = same
        for k, row in enumerate(parts):
            joint.parts[1 + k, :2] = row
        try:
            return self._run(prepared, joint, sums, values, buffers)
        finally:
            self._steps.cache.arenas.release(prepared.arena)

    def _prepare(
        self, inputs: StepInputs, examples: Sequence[StepInputs], sums: Sums, values: TotalValues
    ) -> _Prepared | None:
        """Plan the programs of a step, and bind them; None where one of them is not planned yet."""
        planned: list[tuple[PureModelStep, Program]] = []
        for example in examples:
            found = self._steps.planned(example)
            if found is None:
                return None
            planned.append(found)
            sums.empty = False  # for those after it
        update = self._steps.planned_update(self._shared.inputs(inputs, sums, values))
        if update is None:
            return None
        end, last = update
        size = max(program.bytes for program in (*[program for _, program in planned], last))
        arena = self._steps.cache.arenas.acquire(size)
        runs = [step.prepare(program, arena) for step, program in planned]
        first, _ = planned[0]
        row = first.first_leaf, first.dtype, first.state
        return _Prepared(runs, end.prepare(last, arena), arena, *row)

    def _joint_step(self, sums: Sums, buffers: SharedBuffers, parts: int, values: TotalValues) -> Any:
        """Return what runs steps with these sums and parameters; None where ranks do not share them."""
        size = sums.arrays[0].size
        key = sums.addresses[0], buffers.addresses[0], size, sums.arrays[0].dtype, parts
        if key != self._joint[0]:
            # It holds no reference to the parameters: they are written in place only where nobody does.
            arrays = sums.arrays[0], buffers.arrays[0]
            options = values.array, self._shards, parts, self._summed
            self._joint = key, self._make and self._make(arrays, *options)
        return self._joint[1]

    def _run(
        self, prepared: _Prepared, joint: Any, sums: Sums, values: TotalValues, buffers: SharedBuffers
    ) -> Done:
        """Run the programs of a step that is prepared."""
        parts, last = prepared.parts, prepared.last
        tables = [run.instance.bound for run in parts]
        ended, row = joint.run(tables, [run.scalar_address(0) for run in parts], last.instance.bound)
        if ended == joint.EXCHANGE:
            return joint.table  # type: ignore[no-any-return]
        if ended == joint.PART:
            return None
        result = StepResult(last.scalar(0), last.scalar(1), prepared.dtype, prepared.state)
        if ended == joint.WHOLE:
            result.buffers = buffers
            return result
        if not is_finite_check(last.program, row):
            raise last.error(row)
        result.gradients = self._shared.gradients(Total(sums, values))
        return result


@dataclass
class _Prepared:
    """The programs of a step, bound to memory.

    It holds no reference to the parameters, which are written in place only where nobody else does.

    parts: of each part.  last: the update.  arena: of all of them.
    first_leaf: the external of a part's first input.  dtype: of the loss.  state: the model's.
    """

    parts: list[Run]
    last: Run
    arena: Arena
    first_leaf: int
    dtype: Any
    state: Any

    def done(self) -> None:
        """Let other steps use the programs' tables."""
        for run in (*self.parts, self.last):
            run.program.done(run)

    def again(self, inputs: StepInputs, examples: Sequence[StepInputs], arenas: Arenas) -> None:
        """Prepare another step, which differs in the memory of the examples and in numbers alone."""
        size = max(run.program.bytes for run in (*self.parts, self.last))
        self.arena = arena = arenas.acquire(size)
        numbers = [inputs.at.count, *inputs.folds]
        for run, example in zip(self.parts, examples, strict=True):
            assert example.part is not None
            leaves = [t.address for t in (example.x, *example.target)]
            run.again(self.first_leaf, leaves, [*numbers, *example.part.numbers], (), arena)
        self.last.again(0, (), [inputs.at.count], (), arena)


def _everything_but_numbers(inputs: StepInputs, examples: Sequence[StepInputs], joint: Any) -> Any:
    """Return what two steps have in common where `_Prepared.again` fits; None where it never does."""
    at, buffers = inputs.at, inputs.at.buffers
    specs: list[Any] = []
    for example in examples:
        tensors = (example.x, *example.target)
        if any(type(t) is not Tensor for t in tensors):
            return None
        assert isinstance(example.part, Part)
        specs += [(t._data.shape, t._data.dtype) for t in tensors]
        specs += [example.loss, example.part.addresses, example.part.counted]
    key = inputs.key
    return (
        joint,
        buffers.addresses,
        buffers.parameter_addresses,
        buffers.layout,
        (at.dtype, at.moments, inputs.state),
        (None if key is None else key.address, len(inputs.folds)),
        (inputs.training, inputs.ctx, inputs.clip_norm, inputs.check, inputs.counter.address),
        (get_num_threads(), *current()),
        specs,
    )
