"""The end of a step on several ranks, from the sums of gradients on: a program without a forward pass."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.cache import EAGER
from treepie.autodiff.program.program import Program, ProgramFamily
from treepie.autodiff.trace import active
from treepie.autodiff.trace.trace import Trace

from .finish import finish
from .inputs import Commit, StepResult, Total
from .plan import ValueRead, plan_update
from .step import Step


class UpdateStep(Step):
    """Takes the mean of accumulated gradients, checks and clips it, and updates the parameters."""

    def take(self, commit: Commit) -> StepResult:
        """Take the step by its program."""
        cache = self.steps.cache
        root = self._root()
        self.trace = Trace(root, user=False, depth=1)
        self.state = self.inputs.state
        try:
            family = cache.find(root, 0)
            if family is EAGER:
                return self.eagerly()
            if not isinstance(family, ProgramFamily):
                self.trace.refuse = ValueRead
                try:
                    family = active.call_under(self.trace, plan_update, self)
                except ValueRead:
                    cache.report_eager("the optimizer reads values")
                    root.programs[0] = EAGER
                    return self.eagerly()
                cache.add(root, 0, family)
            self._check_out()
            self.dtype = family.result
            return self._run(family.program(), (), commit)
        finally:
            self.trace.end()

    def planned(self) -> Program | None:
        """Return the step's program; None where it has none yet."""
        root = self.steps.cache.root(self.key())
        family = self.steps.cache.find(root, 0)
        if not isinstance(family, ProgramFamily):
            return None
        self.trace = Trace(root, user=False, depth=1)
        return family.program()

    def eagerly(self) -> StepResult:
        """Take the step op by op, for an optimizer of a user's that reads values."""
        inputs, part = self.inputs, self.inputs.part
        assert isinstance(part, Total)
        weight = as_tensor(np.float64(part.weight))
        loss = as_tensor(np.float64(part.loss)) / weight
        grads = [(Tensor(a, None) + 0.0) / weight.astype(a.dtype) for a in part.sums.arrays]
        row = inputs, self.steps.optimizer, loss, None, grads, self.state, part.norm
        result: StepResult = active.call_under(None, lambda: finish(*row))
        if part.partial and result.buffers is not None:  # other ranks read `out`
            for target, array in zip(inputs.out.arrays, result.buffers.arrays, strict=True):
                target[...] = array
        return result

    def key(self) -> Hashable:
        """Return everything that determines the program."""
        part = self.inputs.part
        assert isinstance(part, Total)
        return super().key(), part.partial, tuple([a.size for a in part.sums.arrays])

    def _store(self, kept: tuple[int, ...], results: Any) -> Any:
        """Return the model's state."""
        return self.state

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the program's inputs: what the trace has found."""
        return [self.trace.values[n] for n in self.trace.inputs]
