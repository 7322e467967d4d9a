"""The training steps of a model with an optimizer, each as one program."""

from __future__ import annotations

from typing import Any, TypeVar

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.precision import call_in, current
from treepie.autodiff.program.cache import ProgramCache
from treepie.autodiff.program.program import Program
from treepie.autodiff.program.pure import Pure

from ..distributed.communicator import Communicator
from ..layer import Layer
from ..optim.optimizer import Optimizer
from .checks import check_loss_call
from .inputs import Commit, StepInputs, StepResult
from .parts import BatchInParts
from .pure_step import PureModelStep
from .step import Step
from .update_step import UpdateStep

S = TypeVar("S", bound=Step)


class Steps:
    """Takes training steps, and holds their programs.

    models: the traced model by the structure of its inputs, where the loss is a user's.
    """

    def __init__(self, model: Layer, optimizer: Optimizer, precision: str | None = None) -> None:
        """precision: of products, None for that of the block."""
        self.model, self.optimizer, self._precision = model, optimizer, precision
        self.cache = ProgramCache("steps of this model")
        self.models: dict[Any, Pure] = {}
        self._without_tensors: Any = None  # the last such state of the model
        self._in_parts: dict[Any, BatchInParts] = {}

    def take(self, inputs: StepInputs, commit: Commit) -> StepResult:
        """Take a step.

        The library's own models are pure, and so are its losses: their step replays a program. Where a user's
        Python takes part, it runs in every step, on symbolic tensors.

        commit: called right before a program writes the new parameters.
        """
        if self._precision is not None and self._precision != current():
            return call_in(self._precision, self.take, inputs, commit)
        try:
            if self.model.pure:
                step = PureModelStep(self, inputs)
                if step.leaves is not None:
                    return step.take(commit)
            return Step(self, inputs).take(commit)
        except TypeError:
            check_loss_call(inputs.loss, inputs.target)
            raise

    def update(self, inputs: StepInputs, commit: Commit) -> StepResult:
        """Take the end of a step, from accumulated gradients on."""
        return UpdateStep(self, inputs).take(commit)

    def planned(self, inputs: StepInputs) -> tuple[PureModelStep, Program] | None:
        """Return a step and its program, where it has one that replays the whole of it in native code."""
        if not self.model.pure:
            return None
        step = PureModelStep(self, inputs)
        return _native(step, call_in(self._precision, step.planned))

    def planned_update(self, inputs: StepInputs) -> tuple[UpdateStep, Program] | None:
        """Return the end of a step and its program, where it has one in native code."""
        step = UpdateStep(self, inputs)
        return _native(step, step.planned())

    def in_parts(self, comm: Communicator, summed: bool) -> BatchInParts:
        """Return what takes single steps on the ranks of a communicator, with memory that it keeps."""
        parts = self._in_parts.get((comm, summed))
        if parts is None:
            parts = self._in_parts[comm, summed] = BatchInParts(self, comm, None, summed)
        return parts

    def state_leaves(self, state: Any) -> list[Tensor]:
        """Return the tensors of a model's state."""
        if state is self._without_tensors:
            return []
        leaves = [as_tensor(t) for t in ptree.leaves(state)]
        if not leaves:
            self._without_tensors = state
        return leaves


def _native(step: S, program: Program | None) -> tuple[S, Program] | None:
    return None if program is None or not program.native else (step, program)
