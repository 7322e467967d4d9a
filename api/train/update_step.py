"""The end of a step on several ranks, from the sums of gradients on: a program without a forward pass."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.program.program import ProgramFamily
from treepie.autodiff.trace import active
from treepie.autodiff.trace.trace import Trace

from .inputs import Commit, StepResult, Total
from .plan import plan_update
from .step import Step


class UpdateStep(Step):
    """Takes the mean of accumulated gradients, checks and clips it, and updates the parameters."""

    def take(self, commit: Commit) -> StepResult:
        """Take the step by its program."""
        cache = self.steps.cache
        root = cache.root(self.key())
        self.trace = Trace(root, user=False, depth=1)
        self.state = self.inputs.state
        try:
            family = cache.find(root, 0)
            if not isinstance(family, ProgramFamily):
                family = active.call_under(self.trace, plan_update, self)
                cache.add(root, 0, family)
            self._check_out()
            self.dtype = family.result
            return self._run(family.program(), (), commit)
        finally:
            self.trace.end()

    def key(self) -> Hashable:
        """Return everything that determines the program."""
        part = self.inputs.part
        assert isinstance(part, Total)
        return super().key(), part.norm is None, tuple([a.size for a in part.sums.arrays])

    def _store(self, kept: tuple[int, ...], results: Any) -> Any:
        """Return the model's state."""
        return self.state

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the program's inputs: what the trace has found."""
        return [self.trace.values[n] for n in self.trace.inputs]
