"""The steps of `Trainer.fit`, each on one element of the data or, with accumulation, on several."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.program.pure import is_pure
from treepie.kernels.compilations import compilations
from treepie.kernels.frames import warn

from ..data.ahead import advance
from ..data.pipeline import Data
from ..data.rows import batch_lengths
from .binding import Bindings
from .checks import check_loss
from .inputs import Loss, StepCounter, StepInputs, StepResult
from .nonfinite import describe_nonfinite
from .parts import BatchInParts
from .sequence import Replay, StepSequence
from .state import FlatBuffers, Snapshot, TrainState, trained_snapshot_of
from .steps import Steps
from .weights import ClassWeight, Losses


class StepRunner:
    """Takes steps one after another, in place when the buffers are exclusively owned.

    A program writes the new parameters and increments `_counter` in one native call: whatever interrupts
    Python, `now` is the snapshot before a step or that after it.

    size: elements of a step.
    """

    def __init__(
        self,
        steps: Steps,
        loss: Loss | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
        parts: BatchInParts | None = None,
        class_weight: ClassWeight | None = None,
    ) -> None:
        """Take the options of `fit`. parts: takes each step in parts; None where a step is one element."""
        if loss is not None:
            check_loss("Trainer.fit", loss)
        self._steps, self._losses, self._rngs = steps, Losses(loss, class_weight), rngs
        self._clip_norm, self._on_nonfinite, self.size = clip_norm, on_nonfinite, size
        self._parts, self._counter, self._bindings = parts, StepCounter(), Bindings()
        #: Before the native call that is running: the count and the snapshot; and what that call writes.
        self._next: tuple[int, Snapshot, FlatBuffers, Any] | None = None
        alone = loss is None or not is_pure(loss) or size > 1 or parts is not None
        alone = alone or type(self) is not StepRunner
        self._sequence = None if alone else StepSequence(steps, self._losses)
        self._replay: Replay | None = None
        self._last_inputs: StepInputs | None = None

    def begin(self, st: TrainState, data: Data | None = None) -> None:
        """Start from a state. data: the pipeline of the elements, for errors that name a batch."""
        self._data = data
        self._now = self._at = trained_snapshot_of("Trainer.fit", self._steps.optimizer, st).shared()
        self._state: TrainState | None = st
        self._last: weakref.ref[TrainState] | None = None

    @property
    def now(self) -> Snapshot:
        """The current snapshot."""
        if self._next is not None:
            before, at, out, state = self._next
            steps = self._counter.value() - before
            if steps > 0:
                self._now, self._next = at.next(out, state, steps), None
        return self._now

    @property
    def steps(self) -> int:
        """How many steps were taken, skipped ones included."""
        return self.now.step

    def state(self) -> TrainState:
        """Return the state after the last step; later steps do not change it."""
        state = self._state
        if state is None:
            last = self._last() if self._last is not None else None
            current = last is not None and last.snapshot is self.now
            state = self._state = last if current else TrainState.of(self)
        assert state is not None
        return state

    def end(self) -> TrainState:
        """Return the state after the last step, which does not refer to this runner."""
        state = self.state()
        state.detach()
        return state

    def release(self) -> None:
        """Release memory that only steps need."""
        if self._sequence is not None:
            self._sequence.clear()
        self._bindings.clear()
        self._steps.cache.release()

    def _release_state(self) -> None:
        """Build the trees of a state that the caller keeps, before a step changes the buffers."""
        state, self._state = self._state, None
        if state is not None and sys.getrefcount(state) > 2:  # this name, and the argument
            state.realize()
            self._last = weakref.ref(state)

    def step(self, elements: Sequence[Any]) -> float:
        """Take one step on some elements, and return their mean loss."""
        self._release_state()
        with compilations.watch():
            at = self._at = self.now
            inputs, commit = self._inputs(at), self._commit
            examples = [self._losses.example(element) for element in elements]
            if self._parts is not None:
                result = self._parts.take(inputs, examples, commit, self._lengths(len(examples)))
            else:
                ((inputs.x, inputs.loss, inputs.target),) = examples
                result = self._steps.take(inputs, commit)
                inputs.x, inputs.target = None, ()  # memory of the data is free for the next element
            if result.buffers is not None:
                self._now, self._next = at.next(result.buffers, result.state), None
            if result.gradients is not None or not math.isfinite(result.loss):
                self._refuse(result, examples)
            return result.loss

    @property
    def takes_several(self) -> bool:
        """Whether `several` is worth a call."""
        return self._sequence is not None

    def several(self, most: float) -> int:
        """Take up to `most` steps in one native call, and return how many examples each has.

        There are none where the next step is one for `step`, which also reports what is wrong with it.
        """
        sequence, data = self._sequence, self._data
        if sequence is None or data is None:
            return 0
        if not sequence.worth_trying():
            sequence.clear()
            self._sequence = None
            return 0
        self._release_state()
        at = self.now
        if not at.buffers.exclusive():
            return 0
        replay = sequence.next(at, self._inputs, data, most)
        if replay is None:
            return 0
        before = self._counter.value()
        self._next = before, at, at.buffers, replay.state
        try:
            self._replay = replay
            replay.go(at, self._rngs is not None)
        finally:
            advance(data, self._counter.value() - before)
        return replay.rows

    def losses(self, count: int) -> list[float]:
        """Return the losses of the first `count` steps of the last call of `several`."""
        return self._replay.losses(count) if self._replay is not None and count else []

    def _lengths(self, count: int) -> list[int] | None:
        """Return the rows of the last elements on all ranks; None where each rank knows its own only."""
        data = self._data
        if data is None or data.rows is None:
            return None
        return batch_lengths(data.rows, data.position - count, count)

    def _inputs(self, at: Snapshot) -> StepInputs:
        """Return the inputs of a step, without its example: the same object for all steps."""
        folds = (at.step,) if self._rngs is not None else ()
        inputs = self._last_inputs
        if inputs is None:
            key, counter = self._rngs, self._counter
            inputs = StepInputs(at, at.buffers, at.state, key, folds, True, None, counter)
            inputs.clip_norm, inputs.bindings = self._clip_norm, self._bindings
            self._last_inputs = inputs
        inputs.at, inputs.out, inputs.state, inputs.folds = at, at.buffers, at.state, folds
        return inputs

    def _commit(self, out: FlatBuffers, state: Any) -> None:
        """Note what the native call writes, right before it; see `Commit`."""
        self._next = self._counter.value(), self._at, out, state

    def _refuse(self, result: StepResult, examples: Sequence[Any]) -> None:
        """Raise, or skip the step with a warning: its loss or its gradients are not finite.

        A value of the batch that is not finite is named, since no learning rate helps against it.
        """
        what = f"the loss is {result.loss}"
        if math.isfinite(result.loss):
            assert result.gradients is not None
            layout = self.now.buffers.layout
            grads = ptree.flatten_with_paths(layout.tree([Tensor(g, None) for g in result.gradients]))
            paths = [path for path, g in grads if not np.isfinite(g.array).all()]
            what = f"the gradient of {', '.join(map(repr, paths)) or 'all'} is not finite"
        step, value = self.now.step + 1, describe_nonfinite(examples, self._data)
        if self._on_nonfinite == "raise":
            advice = "Lower the learning rate, set clip_norm"
            if value is not None:
                advice = f"{value}: remove or replace such values in the data"
            raise FloatingPointError(
                f"Trainer.fit: {what} in step {step}; the state before it is this error's `state`. {advice}, "
                "or skip such steps with on_nonfinite='skip'"
            )
        skipped = (
            f"Trainer.fit: {what} in step {step}, which is skipped{'' if value is None else f': {value}'}"
        )
        warn(skipped)
        self._now, self._state = self.now.skipped(), None


class RatedRunner(StepRunner):
    """Takes steps with other learning rates than those of the optimizer's schedule.

    learning_rate: the rate of the schedule -> that of the next step.
    """

    learning_rate: Callable[[float], float]

    def _inputs(self, at: Snapshot) -> StepInputs:
        return super()._inputs(at.rated(self.learning_rate))


def runner_of(
    st: TrainState, data: Data, learning_rate: Callable[[float], float] | None, *options: Any
) -> StepRunner:
    """Return what takes the steps of a `fit` from a state. learning_rate: None for that of the optimizer."""
    runner: StepRunner
    if learning_rate is None:
        runner = StepRunner(*options)
    else:
        runner = rated = RatedRunner(*options)
        rated.learning_rate = learning_rate
    runner.begin(st, data)
    return runner
