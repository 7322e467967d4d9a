"""The training steps of a model with an optimizer, each as one program.

The library's own models and losses are pure: their steps replay a program. Where a user's Python takes part,
it runs in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.cache import ProgramCache
from treepie.autodiff.program.pure import Pure

from ..layer import Layer
from ..optim.optimizers import Optimizer
from .inputs import Outcome, StepInputs
from .pure_step import PureModelStep
from .step import Step


class Steps:
    """Takes training steps of a model with an optimizer."""

    def __init__(self, model: Layer, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.cache = ProgramCache("steps of this model")
        self.outlines: dict[Any, Pure] = {}  # what the model gives, by structure
        self._bare: Any = None  # a state without tensors, met before

    def take(self, given: StepInputs, commit: Callable[[Any], None]) -> Outcome:
        """Take a step.

        commit: called with the model's new state right before a program changes anything.
        """
        if self.model.pure:
            step = PureModelStep(self, given)
            if step.leaves is not None:
                return step.take(commit)
        return Step(self, given).take(commit)

    def state_leaves(self, state: Any) -> list[Tensor]:
        """Return the tensors of a model's state."""
        if state is self._bare:
            return []
        found = [as_tensor(t) for t in ptree.leaves(state)]
        if not found:
            self._bare = state
        return found
