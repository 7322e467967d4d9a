"""A step of `Trainer.fit`: the gradients of some batches, checked and clipped, and the optimizer's update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from treepie.autodiff import Tensor, ops, ptree, rng
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.transform import compilations

from . import optim
from .gradients import Gradients, Slopes
from .layer import Vars
from .state import TrainState

Loss = Callable[[Any], Tensor]
#: (vars, input, loss of the output, key) -> (loss, gradients, the model's new state)
Gradient = Callable[[Vars, Any, Loss, Tensor | None], tuple[Tensor, Any, Any]]


class Window:
    """Takes steps of some batches each, whose gradients are averaged by their sizes.

    Parameters are buffers here, as the optimizer has its moments; `state()` is the state that users see, made
    when somebody asks. Where a step is of one batch, (input, target), its gradient is a captured program.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        gradient: Gradient,
        loss: Callable[[Any, Any], Tensor] | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
    ) -> None:
        self._optimizer, self._gradient, self._loss, self._rngs = optimizer, gradient, loss, rngs
        self._clip_norm, self._on_nonfinite, self.size = clip_norm, on_nonfinite, size
        self._captured = Gradients(optimizer, self._of_target)

    def begin(self, st: TrainState) -> None:
        """Start from a state."""
        self._buffers, self._opt_state = self._optimizer.buffers(st.opt_state, st.vars.params)
        self._shared = True  # whether others know the buffers
        self._state, self._dtype, self.steps = st.vars.state, st.vars.dtype, st.step
        self._seen: TrainState | None = st

    def state(self) -> TrainState:
        """Return the state after the last step; later ones do not change it."""
        if self._seen is None:
            vars = Vars(self._params(), self._state, self._dtype)
            self._seen = TrainState(vars, self._opt_state, self.steps)
            self._shared = True
        return self._seen

    def _params(self) -> Any:
        return self._optimizer.tree(self._opt_state, self._buffers)

    def step(self, batches: Sequence[Any]) -> float:
        """Take one step on batches, and return their mean loss."""
        with compilations.watch():
            slopes = self._slopes(batches)
            # Only now does anything change. A step that is left out is counted, so that the keys go on.
            if self._finite(slopes):
                flat = slopes.flat
                if self._clip_norm is not None:
                    flat = optim.clip_by_global_norm(self._clip_norm, flat)
                self._buffers, self._opt_state = self._optimizer.advance(
                    self._opt_state, self._buffers, flat, in_place=not self._shared
                )
                self._shared = False
                self._state = slopes.state
            self.steps, self._seen = self.steps + 1, None
            return slopes.loss

    def _slopes(self, batches: Sequence[Any]) -> Slopes:
        key = None if self._rngs is None else rng.fold_in(self._rngs, self.steps)
        if len(batches) == 1 and self._loss is not None:
            x, target = map(_tensors, two("Trainer.fit", batches[0]))
            if x is not None and target is not None:
                slopes, ran = self._captured(self._buffers, self._opt_state, self._state, x, target, key)
                self._shared |= not ran  # a model that runs in Python may keep its parameters
                return slopes
        self._shared = True
        return self._mean(batches, key)

    def _of_target(
        self, params: Any, state: Any, x: Any, target: Any, key: Tensor | None
    ) -> tuple[Tensor, Any, Any]:
        assert self._loss is not None
        loss = self._loss
        return self._gradient(Vars(params, state, self._dtype), x, lambda out: loss(out, target), key)

    def _mean(self, batches: Sequence[Any], key: Tensor | None) -> Slopes:
        params, total, count, grads, state = self._params(), 0.0, 0, None, self._state
        for k, element in enumerate(batches):
            x, objective = _example(element, self._loss)
            own = rng.fold_in(key, k) if key is not None and len(batches) > 1 else key
            value, slopes, state = self._gradient(Vars(params, state, self._dtype), x, objective, own)
            if len(batches) == 1:
                total, count, grads = float(value.item()), 1, slopes
                break
            size = _length(x)
            total, count = total + value.item() * size, count + size
            slopes = ptree.map(lambda g, n=size: g * float(n), slopes)
            grads = slopes if grads is None else ptree.map(lambda a, b: a + b, grads, slopes)
        if len(batches) > 1:
            total, grads = total / count, ptree.map(lambda g: g / float(count), grads)
        flat = self._optimizer.flat(self._opt_state, params, grads)
        return Slopes.of(total, flat, state)

    def _finite(self, slopes: Slopes) -> bool:
        """Whether a step may be taken; raise or warn where it may not."""
        what = f"the loss is {slopes.loss}"
        if math.isfinite(slopes.loss):
            if math.isfinite(slopes.norm):
                return True
            grads = ptree.flatten_with_paths(self._optimizer.tree(self._opt_state, slopes.flat))
            bad = [path for path, g in grads if not ops.all(ops.isfinite(g)).item()]
            what = f"the gradient of {', '.join(map(repr, bad)) or 'all'} is not finite"
        step = self.steps + 1
        if self._on_nonfinite == "raise":
            raise FloatingPointError(
                f"Trainer.fit: {what} in step {step}; the state before it is this error's `state`. Lower the "
                "learning rate, set clip_norm, or leave such steps out with on_nonfinite='skip'"
            )
        warnings.warn(f"Trainer.fit: {what} in step {step}, which is skipped", RuntimeWarning, stacklevel=4)
        return False


def two(function: str, element: Any) -> tuple[Any, Any]:
    """Return the two parts of an element, or raise TypeError."""
    if not isinstance(element, tuple) or len(element) != 2:
        given = f"tuple of {len(element)}" if isinstance(element, tuple) else type(element).__name__
        raise TypeError(f"{function}: an element of data is a {given}, expected a tuple of 2")
    return element


def _example(element: Any, loss: Callable[[Any, Any], Tensor] | None) -> tuple[Any, Loss]:
    """Return an input and a function of the output."""
    x, second = two("Trainer.fit", element)
    if loss is not None:
        if callable(second):
            raise TypeError(
                "Trainer.fit: an element of data holds a function and loss is given, expected one of the two"
            )
        return x, lambda out: loss(out, second)
    if not callable(second):
        raise TypeError(
            f"Trainer.fit: an element of data is (input, {type(second).__name__}), expected "
            "(input, loss_fn), or (input, target) with loss="
        )
    return x, second


def _tensors(part: Any) -> Any:
    """Return an input or a target as tensors, None where it is something else: its step is not captured."""
    if type(part) is Tensor:
        return part
    try:
        return ptree.map(as_tensor, part) if isinstance(part, tuple | dict) else as_tensor(part)
    except (TypeError, ValueError):
        return None


def arrays(x: Any) -> list[Any]:
    """Return the tensors or arrays of an input."""
    if isinstance(x, tuple | dict):
        return list(ptree.leaves(x))
    return [x if hasattr(x, "shape") else as_tensor(x)]


def _length(x: Any) -> int:
    """Return how many examples an input has: the length of its first axis."""
    first = arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
