"""The steps of `Trainer.fit`, one after another, each of one element of the data or of several."""

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

from .inputs import Accumulation, Outcome, StepInputs
from .state import Generation, TrainState, generation_of
from .steps import Steps


class StepRunner:
    """Takes the steps of a `fit`, in place where its buffers are exclusively owned.

    What a program changes it changes all at once, and counts in `_tick`. So whatever interrupts Python, the
    state is that before a step or that after it.
    """

    def __init__(
        self,
        steps: Steps,
        loss: Callable[[Any, Any], Tensor] | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
    ) -> None:
        self._steps, self._loss, self._rngs = steps, loss, rngs
        self._clip_norm, self._on_nonfinite, self.size = clip_norm, on_nonfinite, size
        self._tick, self._part_tick = np.zeros((), np.int64), np.zeros((), np.int64)
        self._ticks = address_of(self._tick), address_of(self._part_tick)
        self._sums: tuple[list[np.ndarray], list[int]] | None = None  # gradients of several elements
        #: The state after a program that is about to run, and what it makes of `_tick`.
        self._next: tuple[int, Generation] | None = None

    def begin(self, st: TrainState) -> None:
        """Start from a state."""
        self._now = generation_of(self._steps.optimizer, st).shared()
        self._seen: TrainState | None = st
        self._kept: weakref.ref[TrainState] | None = None

    @property
    def now(self) -> Generation:
        """Where everything is."""
        following = self._next
        if following is not None and int(self._tick[()]) >= following[0]:
            self._now, self._next = following[1], None
        return self._now

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return self.now.step

    def state(self) -> TrainState:
        """Return the state after the last step; later ones do not change it."""
        made = self._seen
        if made is None:
            before = self._kept() if self._kept is not None else None
            same = before is not None and before.generation is self.now
            made = self._seen = before if same else TrainState.of(self)
        assert made is not None
        return made

    def end(self) -> TrainState:
        """Return the state after the last step, which knows nothing of this runner."""
        made = self.state()
        made.settle()
        return made

    def _part(self) -> None:
        """Let a state that somebody has kept find everything, before it changes."""
        made, self._seen = self._seen, None
        if made is not None and sys.getrefcount(made) > 2:  # this name, and the argument
            made.realize()
            self._kept = weakref.ref(made)

    def step(self, elements: Sequence[Any]) -> float:
        """Take one step on some elements, and return their mean loss."""
        self._part()
        with compilations.watch():
            if len(elements) == 1:
                outcome = self._take(elements[0], (self.now.step,), None)
            else:
                outcome = self._accumulated(elements)
            if outcome.gradients is not None or not math.isfinite(outcome.loss):
                self._refuse(outcome)
            return outcome.loss

    def _take(
        self, element: Any, folds: tuple[int, ...], part: Accumulation | None, state: Any = None
    ) -> Outcome:
        """Take a step, or a part of one, and note what comes of it."""
        at = self.now
        x, loss, target = _example(element, self._loss)
        own, moved = at.buffers.exclusive(), part is None or part.last
        given = StepInputs(
            at.buffers,
            at.buffers if own else at.buffers.like(),
            at.count,
            at.state if state is None else state[0],
            at.dtype,
            x,
            loss,
            target,
            self._rngs,
            folds if self._rngs is not None else (),
            True,
            None,
            self._tick if moved else self._part_tick,
            self._ticks[not moved],
            self._clip_norm,
            part,
        )

        def commit(new: Any) -> None:
            if moved:
                after = Generation(given.out, at.moments, at.count + 1, at.step + 1, new, at.dtype)
                self._next = (int(self._tick[()]) + 1, after)

        outcome = self._steps.take(given, commit)
        if outcome.buffers is not None:
            after = Generation(
                outcome.buffers, at.moments, at.count + 1, at.step + 1, outcome.state, at.dtype
            )
            self._now, self._next = after, None
        return outcome

    def _accumulated(self, elements: Sequence[Any]) -> Outcome:
        """Take a step on elements whose gradients are averaged by their sizes."""
        at = self.now
        if self._sums is None:
            layout = at.buffers.layout
            sums = [np.empty(n, g.dtype) for n, g in zip(layout.sizes, layout.groups, strict=True)]
            self._sums = sums, [address_of(a) for a in sums]
        part = Accumulation(True, False, 0, 0, 0.0, *self._sums)
        state = (at.state,)
        for k, element in enumerate(elements):
            part.first, part.last = k == 0, k == len(elements) - 1
            part.size = _length(element[0])
            part.examples += part.size
            outcome = self._take(element, (at.step, k), part, state)
            if part.sums is not self._sums[0]:
                part.addresses = [address_of(a) for a in part.sums]
            state = (outcome.state,)
            if not part.last:
                part.total += outcome.loss * part.size
        return outcome

    def _refuse(self, outcome: Outcome) -> None:
        """Raise, or leave the step out with a warning: its loss or its gradient is not finite."""
        what = f"the loss is {outcome.loss}"
        if math.isfinite(outcome.loss):
            assert outcome.gradients is not None
            layout = self.now.buffers.layout
            grads = ptree.flatten_with_paths(layout.tree([Tensor(g) for g in outcome.gradients]))
            bad = [path for path, g in grads if not np.isfinite(g.array).all()]
            what = f"the gradient of {', '.join(map(repr, bad)) or 'all'} is not finite"
        at = self.now
        step = at.step + 1
        if self._on_nonfinite == "raise":
            raise FloatingPointError(
                f"Trainer.fit: {what} in step {step}; the state before it is this error's `state`. Lower the "
                "learning rate, set clip_norm, or leave such steps out with on_nonfinite='skip'"
            )
        warnings.warn(f"Trainer.fit: {what} in step {step}, which is skipped", RuntimeWarning, stacklevel=4)
        # Counted, so that the keys go on.
        self._now, self._seen = Generation(at.buffers, at.moments, at.count, step, at.state, at.dtype), None


def two(function: str, element: Any) -> tuple[Any, Any]:
    """Return the two parts of an element, or raise TypeError."""
    if not isinstance(element, tuple) or len(element) != 2:
        given = f"tuple of {len(element)}" if isinstance(element, tuple) else type(element).__name__
        raise TypeError(f"{function}: an element of data is a {given}, expected a tuple of 2")
    return element


def _example(
    element: Any, loss: Callable[[Any, Any], Tensor] | None
) -> tuple[Any, Callable[..., Tensor], tuple[Any, ...]]:
    """Return an input, a loss, and what the loss takes besides the output."""
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


def _length(x: Any) -> int:
    """Return how many examples an input has: the length of its first axis."""
    if type(x) is Tensor and x._data.shape:
        return x._data.shape[0]
    first = arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
