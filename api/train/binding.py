"""Programs of steps bound to the memory that the steps of a `fit` have in common."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from treepie.autodiff import Tensor
from treepie.autodiff.accuracy import current
from treepie.autodiff.program.program import Program
from treepie.autodiff.program.run import Run
from treepie.kernels.threads import get_num_threads

from .inputs import Commit, Part, StepInputs, StepResult

if TYPE_CHECKING:
    from .step import Step

#: Bindings of a `fit`, and runs of a binding: each holds a launch table.
_MOST = 32


class Binding:
    """Programs of steps that differ in memory, numbers and the ops that their Python calls.

    A step that one fits need not find where its trace begins, and its program is bound to all memory but
    that of the example. It holds no reference to the arrays of the parameters, which are written in place
    only where nobody else does.

    root: where the trace begins.  model: the traced model of a `PureModelStep` whose loss is a user's.
    """

    __slots__ = ("_arithmetic", "_buffers", "_first", "_runs", "_sums", "_threads", "model", "root")

    def __init__(self, step: Step) -> None:
        inputs = step.inputs
        self.root, self.model = step.root, step.model
        self._buffers = inputs.at.buffers
        self._sums = None if inputs.part is None else inputs.part.sums
        self._threads, self._arithmetic = get_num_threads(), current()
        self._first = step.first_leaf
        self._runs: dict[Program, Run] = {}

    def fits(self, inputs: StepInputs) -> bool:
        """Whether a step of the same kind has all else in common that a `fit` may change."""
        return (
            inputs.at.buffers is self._buffers
            and (inputs.part is None or inputs.part.sums is self._sums)
            and get_num_threads() == self._threads
            and current() == self._arithmetic
        )

    def again(self, step: Step, program: Program) -> Run | None:
        """Return a run of a program for a step's example and numbers; None where there is none to repeat."""
        run = self._runs.get(program)
        if run is not None:
            addresses = [t.address for t in step.tensors()]
            run.again(self._first, addresses, step.inputs.numbers(), step.trace.numbers)
        return run

    def replay(self, program: Program, leaves: Sequence[Tensor], inputs: StepInputs) -> Run:
        """Return a run that was kept, for another example and other numbers."""
        run = self._runs[program]
        run.again(self._first, [t.address for t in leaves], inputs.numbers())
        return run

    def keep(self, program: Program, run: Run) -> bool:
        """Keep a run that has ended for another step; return whether it is kept."""
        if program not in self._runs:
            if run.memories or len(self._runs) >= _MOST:
                return False
            self._runs[program] = run
        run.release_arena()
        return True

    def has(self, program: Program) -> bool:
        """Whether it keeps a run of a program."""
        return program in self._runs

    def done(self) -> None:
        """Let other steps use the programs' tables."""
        for program, run in self._runs.items():
            program.reuse(run)
        self._runs.clear()


class Bindings:
    """The bindings of a `fit`, by what else determines a step's program."""

    def __init__(self) -> None:
        self._of: dict[Hashable, Binding] = {}
        self._replays: dict[Hashable, tuple[Binding, Program, Any, Any]] = {}

    def find(self, step: Step) -> Binding | None:
        """Return the binding that a step fits, None without one."""
        binding = self._of.get(step.kind)
        if binding is None or binding.fits(step.inputs):
            return binding
        del self._of[step.kind]
        self._replays = {key: row for key, row in self._replays.items() if row[0] is not binding}
        binding.done()
        return None

    def remember(self, key: Hashable, binding: Binding, program: Program, dtype: Any, state: Any) -> None:
        """Remember a program that `replay` may run. dtype: of the loss.  state: the model's new state."""
        self._replays[key] = binding, program, dtype, state

    def replay(self, inputs: StepInputs, commit: Commit) -> StepResult | None:
        """Take a step by the program of one like it, in half of the time of a `PureModelStep`.

        None where there is none, or a launch reported an error: the step is taken again, and raises it.
        """
        key = replay_key(inputs)
        row = self._replays.get(key) if key is not None else None
        if row is None:
            return None
        binding, program, dtype, state = row
        if not binding.fits(inputs):
            return None
        if type(inputs.part) is not Part and not (inputs.out is inputs.at.buffers and inputs.out.exclusive()):
            return None
        run = binding.replay(program, (inputs.x, inputs.target[0]), inputs)
        commit(inputs.out, state)
        failed = run.go()
        run.release_arena()
        return None if failed >= 0 else StepResult(run.scalar(0), run.scalar(1), dtype, state)

    def add(self, step: Step) -> Binding | None:
        """Return a new binding for steps like this one; None where there are many."""
        if len(self._of) >= _MOST:
            return None
        binding = self._of[step.kind] = Binding(step)
        return binding

    def clear(self) -> None:
        """Forget all of them."""
        for binding in self._of.values():
            binding.done()
        self._of.clear()
        self._replays.clear()


def replay_key(inputs: StepInputs) -> Hashable:
    """Return what selects a program on one input and one target; None for other examples.

    inputs: of a step of a pure model, whose state has no tensors, and a pure loss.
    """
    x, part = inputs.x, inputs.part
    if len(inputs.target) != 1 or type(x) is not Tensor or type(inputs.target[0]) is not Tensor:
        return None
    a, b = x._data, inputs.target[0]._data
    return inputs.loss, a.shape, a.dtype, b.shape, b.dtype, None if part is None else part.sums.empty
