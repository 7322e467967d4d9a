"""The steps of `Trainer.fit`, each on one element of the data or, with accumulation, on several."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import address_of
from treepie.kernels.compilations import compilations

from ..distributed.communicator import Communicator
from .inputs import Accumulation, StepCounter, StepInputs, StepResult
from .reduction import reduce_gradients, reduce_state
from .state import Snapshot, TrainState, trained_snapshot_of
from .steps import Steps


class StepRunner:
    """Takes steps one after another, in place when the buffers are exclusively owned.

    A program writes the new parameters and increments `_counter` in one native call: whatever interrupts
    Python, `now` is the snapshot before a step or that after it.

    size: elements of a step.
    """

    def __init__(
        self,
        steps: Steps,
        loss: Callable[[Any, Any], Tensor] | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
        comm: Communicator | None = None,
    ) -> None:
        self._steps, self._loss, self._rngs = steps, loss, rngs
        self._clip_norm, self._on_nonfinite, self.size = clip_norm, on_nonfinite, size
        self._comm = comm if comm is not None and comm.size > 1 else None
        self._counter, self._part_counter = StepCounter(), StepCounter()
        self._sums: tuple[list[np.ndarray], list[int]] | None = None  # accumulated gradients, their addresses
        #: The count and the snapshot after the program that is running.
        self._next: tuple[int, Snapshot] | None = None

    def begin(self, st: TrainState) -> None:
        """Start from a state."""
        self._now = trained_snapshot_of("Trainer.fit", self._steps.optimizer, st).shared()
        self._state: TrainState | None = st
        self._last: weakref.ref[TrainState] | None = None

    @property
    def now(self) -> Snapshot:
        """The current snapshot."""
        following = self._next
        if following is not None and self._counter.value() >= following[0]:
            self._now, self._next = following[1], None
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
            if self._comm is not None:
                result = self._reduce(elements, self._comm)
            elif len(elements) == 1:
                at = self.now
                result = self._take(elements[0], at, (at.step,), None, at.state)
            else:
                result = self._accumulate(elements)
            if result.gradients is not None or not math.isfinite(result.loss):
                self._refuse(result)
            return result.loss

    def _take(
        self, element: Any, at: Snapshot, folds: tuple[int, ...], part: Accumulation | None, state: Any
    ) -> StepResult:
        """Take a step from a snapshot, or accumulate the gradients of one element."""
        x, loss, target = _example(element, self._loss)
        updates = part is None or part.last
        counter = self._counter if updates else self._part_counter
        folds = folds if self._rngs is not None else ()
        inputs = self._inputs(at, state, (x, loss, target), self._rngs, folds, counter, part)
        result = self._steps.take(inputs, self._committing(at, inputs) if updates else _ignore)
        if result.buffers is not None:
            self._now, self._next = at.next(result.buffers, result.state), None
        return result

    def _inputs(
        self,
        at: Snapshot,
        state: Any,
        example: tuple[Any, Callable[..., Tensor], tuple[Any, ...]],
        key: Tensor | None,
        folds: tuple[int, ...],
        counter: StepCounter,
        part: Accumulation | None,
    ) -> StepInputs:
        """Return the inputs of a step that writes in place where the buffers are exclusively owned."""
        out = at.buffers if at.buffers.exclusive() else at.buffers.empty_like()
        return StepInputs(at, out, state, *example, key, folds, True, None, counter, self._clip_norm, part)

    def _part(self, at: Snapshot) -> Accumulation:
        """Return the accumulation of a step, before its first element."""
        if self._sums is None:
            layout = at.buffers.layout
            sums = [np.empty(n, g.dtype) for n, g in zip(layout.sizes, layout.groups, strict=True)]
            self._sums = sums, [address_of(a) for a in sums]
        return Accumulation(True, False, 0, 0, 0.0, *self._sums)

    def _reduce(self, elements: Sequence[Any], comm: Communicator) -> StepResult:
        """Take a step on the mean gradient over all ranks, weighted by their numbers of examples."""
        at = self.now
        part, state = self._part(at), at.state
        for k, element in enumerate(elements):
            part.size = length(element[0])
            if part.size == 0:  # a batch of fewer examples than ranks
                continue
            part.first = part.examples == 0
            result = self._take(element, at, (at.step, k) if len(elements) > 1 else (at.step,), part, state)
            state = result.state
            part.addresses = [address_of(a) for a in part.sums]
            part.examples += part.size
            part.total += result.loss * part.size
        reduce_gradients(comm, part)
        state = reduce_state(comm, self._steps.state_leaves(state), state, part)
        inputs = self._inputs(at, state, (None, _no_loss, ()), None, (), self._counter, part)
        return self._steps.update(inputs, self._committing(at, inputs))

    def _committing(self, at: Snapshot, inputs: StepInputs) -> Callable[[Any], None]:
        """Return what is called with the model's new state right before the new parameters are written."""

        def commit(new_state: Any) -> None:
            self._next = self._counter.value() + 1, at.next(inputs.out, new_state)

        return commit

    def _accumulate(self, elements: Sequence[Any]) -> StepResult:
        """Take a step on the mean gradient of elements, weighted by their numbers of examples."""
        at = self.now
        part = self._part(at)
        assert self._sums is not None
        state = at.state
        for k, element in enumerate(elements):
            part.first, part.last = k == 0, k == len(elements) - 1
            part.size = length(element[0])
            part.examples += part.size
            result = self._take(element, at, (at.step, k), part, state)
            if part.sums is not self._sums[0]:
                part.addresses = [address_of(a) for a in part.sums]
            state = result.state
            if not part.last:
                part.total += result.loss * part.size
        return result

    def _refuse(self, result: StepResult) -> None:
        """Raise, or skip the step with a warning: its loss or its gradients are not finite."""
        what = f"the loss is {result.loss}"
        if math.isfinite(result.loss):
            assert result.gradients is not None
            layout = self.now.buffers.layout
            grads = ptree.flatten_with_paths(layout.tree([Tensor(g, None) for g in result.gradients]))
            paths = [path for path, g in grads if not np.isfinite(g.array).all()]
            what = f"the gradient of {', '.join(map(repr, paths)) or 'all'} is not finite"
        step = self.now.step + 1
        if self._on_nonfinite == "raise":
            raise FloatingPointError(
                f"Trainer.fit: {what} in step {step}; the state before it is this error's `state`. Lower the "
                "learning rate, set clip_norm, or skip such steps with on_nonfinite='skip'"
            )
        warnings.warn(f"Trainer.fit: {what} in step {step}, which is skipped", RuntimeWarning, stacklevel=4)
        self._now, self._state = self.now.skipped(), None


def _ignore(_: Any) -> None:
    """Take no notice of a new state: the element is not the last of its step."""


def _no_loss(*_: Any) -> Tensor:
    """Stand for the loss of a step that has none: the end of a step on several ranks."""
    raise AssertionError


def two(function: str, element: Any) -> tuple[Any, Any]:
    """Return the two parts of an element, or raise TypeError."""
    if not isinstance(element, tuple) or len(element) != 2:
        kind = f"tuple of {len(element)}" if isinstance(element, tuple) else type(element).__name__
        raise TypeError(f"{function}: an element of data is a {kind}, expected a tuple of 2")
    return element


def _example(
    element: Any, loss: Callable[[Any, Any], Tensor] | None
) -> tuple[Any, Callable[..., Tensor], tuple[Any, ...]]:
    """Return an input, a loss function, and the loss function's arguments besides the output."""
    x, second = two("Trainer.fit", element)
    if loss is not None:
        if callable(second):
            raise TypeError(
                "Trainer.fit: an element of data holds a function and loss is given, expected one of the two"
            )
        return x, loss, (second,)
    if not callable(second):
        raise TypeError(
            f"Trainer.fit: an element of data is (input, {type(second).__name__}), expected "
            "(input, loss_fn), or (input, target) with loss="
        )
    return x, second, ()


def arrays(x: Any) -> list[Any]:
    """Return the tensors or arrays of an input."""
    if isinstance(x, tuple | dict):
        return list(ptree.leaves(x))
    return [x if hasattr(x, "shape") else as_tensor(x)]


def length(x: Any) -> int:
    """Return the number of examples of an input: the length of its first axis."""
    if type(x) is Tensor and x._data.shape:
        return x._data.shape[0]
    first = arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
