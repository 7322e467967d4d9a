"""The training steps of a model with an optimizer, each as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.cache import ProgramCache
from treepie.autodiff.program.pure import Pure

from ..layer import Layer
from ..optim.optimizers import Optimizer
from .inputs import StepInputs, StepResult
from .pure_step import PureModelStep
from .step import Step
from .update_step import UpdateStep


class Steps:
    """Takes training steps, and holds their programs.

    models: the traced model by the structure of its inputs, where the loss is a user's.
    """

    def __init__(self, model: Layer, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.cache = ProgramCache("steps of this model")
        self.models: dict[Any, Pure] = {}
        self._without_tensors: Any = None  # the last such state of the model

    def take(self, inputs: StepInputs, commit: Callable[[Any], None]) -> StepResult:
        """Take a step.

        The library's own models are pure, and so are its losses: their step replays a program. Where a user's
        Python takes part, it runs in every step, on symbolic tensors.

        commit: called with the model's new state right before a program writes the new parameters.
        """
        if self.model.pure:
            step = PureModelStep(self, inputs)
            if step.leaves is not None:
                return step.take(commit)
        return Step(self, inputs).take(commit)

    def update(self, inputs: StepInputs, commit: Callable[[Any], None]) -> StepResult:
        """Take the end of a step, from accumulated gradients on."""
        return UpdateStep(self, inputs).take(commit)

    def state_leaves(self, state: Any) -> list[Tensor]:
        """Return the tensors of a model's state."""
        if state is self._without_tensors:
            return []
        leaves = [as_tensor(t) for t in ptree.leaves(state)]
        if not leaves:
            self._without_tensors = state
        return leaves
