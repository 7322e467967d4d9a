"""A step of a rank as one native call: its parts, the sums over ranks, and its share of the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from treepie.autodiff.program.program import Program

from .inputs import StepInputs, StepResult, Sums, Total, TotalValues
from .pure_step import PureModelStep
from .reduction import ShardSums
from .shared_update import SharedBuffers, SharedUpdate
from .step import Step, is_finite_check

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
        planned: list[tuple[PureModelStep, Program]] = []
        for k in range(len(parts)):
            step = self._steps.planned(part_of(k, sums))
            if step is None:
                return None
            planned.append(step)
            sums.empty = False  # for those after it
        update = self._steps.planned_update(self._shared.inputs(inputs, sums, values))
        if update is None:
            return None
        for k, row in enumerate(parts):
            joint.parts[1 + k, :2] = row
        return self._run(joint, planned, update, sums, values, buffers)

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
        self,
        joint: Any,
        planned: Sequence[tuple[PureModelStep, Program]],
        update: tuple[Step, Program],
        sums: Sums,
        values: TotalValues,
        buffers: SharedBuffers,
    ) -> Done:
        """Run the programs of a step."""
        programs = [program for _, program in (*planned, update)]
        arena = self._steps.cache.arenas.acquire(max(program.bytes for program in programs))
        runs = [step.prepare(program, arena) for step, program in (*planned, update)]
        *parts, last = runs
        tables = [run.instance.bound for run in parts]
        ended, row = joint.run(tables, [run.scalar_address(0) for run in parts], last.instance.bound)
        result: Done = None
        step, _ = planned[0]
        if ended == joint.EXCHANGE:
            result = joint.table
        elif ended == joint.WHOLE or ended == joint.UPDATE:
            result = StepResult(last.scalar(0), last.scalar(1), step.dtype, step.new_state)
            if ended == joint.UPDATE:
                if not is_finite_check(last.program, row):
                    raise last.error(row)
                result.gradients = self._shared.gradients(Total(sums, values))
            else:
                result.buffers = buffers
        for run in runs:
            run.program.done(run)
        self._steps.cache.arenas.release(arena)
        return result
