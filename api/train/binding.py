"""Programs of steps bound to the memory that the steps of a `fit` have in common."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from treepie.autodiff import Tensor
from treepie.autodiff.program.program import Program
from treepie.autodiff.program.run import Run
from treepie.autodiff.tape import next_number
from treepie.autodiff.trace.active import state
from treepie.autodiff.trace.reuse import Reuse
from treepie.autodiff.trace.trace import Trace
from treepie.kernels.threads import get_num_threads

from .inputs import Part, StepInputs, Total

if TYPE_CHECKING:
    from .step import Step

#: Bindings of a `fit`, and runs of a binding: each holds a launch table.
_MOST = 32

#: Steps in a row whose trace could take over no values, after which none is kept.
_MOST_TRACES = 16


class Binding:
    """Programs of steps that differ in memory, numbers and the ops that their Python calls.

    Such a step need not find where its trace begins, and its program is bound to all memory but that of the
    example.

    root: where the trace begins.  model: the traced model of a `PureModelStep` whose loss is a user's.
    replayed: of one whose loss is pure: its program, the dtype of the loss, and the model's new state.
    """

    __slots__ = ("_first", "_runs", "_trace", "_traces", "model", "replayed", "root")

    def __init__(self, step: Step) -> None:
        self.root, self.model, self._first = step.root, step.model, step.first_leaf
        self.replayed: tuple[Program, Any, Any] | None = None
        self._runs: dict[Program, Run] = {}
        self._trace: Trace | None = None
        self._traces = 0

    def trace(self) -> Trace:
        """Return the trace of a step: that of an earlier one, whose values it takes over, or a new one."""
        trace, self._trace = self._trace, None
        if trace is not None:
            self._traces = 0
            trace.again(self.root)
            return trace
        trace = Trace(self.root, depth=1)
        if self._traces < _MOST_TRACES:
            self._traces += 1
            trace.reuse = Reuse(next_number())
        return trace

    def keep_trace(self, trace: Trace) -> None:
        """Keep a trace that has ended, for the next step."""
        trace.pause()
        self._trace = trace

    def again(
        self, program: Program, leaves: Sequence[Tensor], inputs: StepInputs, user_numbers: Sequence[Any] = ()
    ) -> Run | None:
        """Return a run of a program on other leaves and numbers; None where there is none to repeat."""
        run = self._runs.get(program)
        if run is not None:
            run.again(self._first, [t.address for t in leaves], inputs.numbers(), user_numbers)
        return run

    def keep(self, program: Program, run: Run) -> bool:
        """Keep a run that has ended for another step; return whether it is kept."""
        if program not in self._runs:
            if run.memories or len(self._runs) >= _MOST:
                return False
            self._runs[program] = run
        run.release_arena()
        return True

    def done(self) -> None:
        """Let other steps use the programs' tables."""
        if self._trace is not None:
            self._trace.end()
            self._trace = None
        for program, run in self._runs.items():
            program.reuse(run)
        self._runs.clear()


class Bindings:
    """The bindings of a `fit` by the kind of step, for one setting: parameters, threads, and arithmetic."""

    def __init__(self) -> None:
        self._setting: Any = None
        self._of: dict[Hashable, Binding] = {}

    def find(self, kind: Hashable, inputs: StepInputs) -> Binding | None:
        """Return the binding of a kind of step; None without one in the setting of the inputs."""
        setting = inputs.at.buffers, get_num_threads(), state.precision, state.accuracy
        if setting != self._setting:
            self.clear()
            self._setting = setting
        return self._of.get(kind)

    def add(self, kind: Hashable, step: Step) -> Binding | None:
        """Return a new binding for steps like this one; None where there are many."""
        if len(self._of) >= _MOST:
            return None
        binding = self._of[kind] = Binding(step)
        return binding

    def clear(self) -> None:
        """Forget all of them, and the memory that they are bound to."""
        for binding in self._of.values():
            binding.done()
        self._of.clear()
        self._setting = None


def kind_of(step: type, example: Hashable, part: Part | Total | None) -> Hashable:
    """Return what determines a step's program in one setting, besides the ops that the Python calls.

    step: its class.  example: what the class adds.
    """
    return (step, example) if part is None else (step, example, part.sums, part.sums.empty)
