"""The training steps of a model with an optimizer, each as one program."""

from __future__ import annotations

from typing import Any, TypeVar

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.accuracy import Arithmetic
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.cache import ProgramCache
from treepie.autodiff.program.program import Program
from treepie.autodiff.program.pure import Pure, is_pure

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

#: States that are known to be without tensors: a program returns one of its own.
_MOST_STATES = 16


class Steps:
    """Takes training steps, and holds their programs.

    models: the traced model by the structure of its inputs, where the loss is a user's.
    """

    def __init__(self, model: Layer, optimizer: Optimizer, arithmetic: Arithmetic) -> None:
        """arithmetic: the precision and the accuracy."""
        self.model, self.optimizer, self._arithmetic = model, optimizer, arithmetic
        self.cache = ProgramCache("steps of this model")
        self.models: dict[Any, Pure] = {}
        self._without_tensors: dict[int, Any] = {}  # such states of the model, by their ids
        self._in_parts: dict[Any, BatchInParts] = {}

    def take(self, inputs: StepInputs, commit: Commit) -> StepResult:
        """Take a step.

        The library's own models are pure, and so are its losses: their step replays a program. Where a user's
        Python takes part, it runs in every step, on symbolic tensors.

        commit: called right before a program writes the new parameters.
        """
        if not self._arithmetic.in_force:
            return self._arithmetic.call(self.take, inputs, commit)
        try:
            if self.model.pure:
                pure_loss = is_pure(inputs.loss)
                if pure_loss and id(inputs.state) in self._without_tensors:
                    result = PureModelStep.again(inputs, commit)
                    if result is not None:
                        return result
                step = PureModelStep(self, inputs, pure_loss)
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
        step = PureModelStep(self, inputs, is_pure(inputs.loss))
        return _native(step, self._arithmetic.call(step.planned))

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
        if id(state) in self._without_tensors:
            return []
        leaves = [as_tensor(t) for t in ptree.leaves(state)]
        if not leaves:
            if len(self._without_tensors) >= _MOST_STATES:
                self._without_tensors.clear()
            self._without_tensors[id(state)] = state
        return leaves


def _native(step: S, program: Program | None) -> tuple[S, Program] | None:
    return None if program is None or not program.native else (step, program)
