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
from .gradients import Gradients, Slopes, Step
from .layer import Vars
from .state import TrainState


class Window:
    """Takes steps of some batches each, whose gradients are averaged by their sizes.

    Parameters are buffers here, as the optimizer has its moments; `state()` is the state that users see, made
    when somebody asks.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        gradients: Gradients,
        loss: Callable[[Any, Any], Tensor] | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
    ) -> None:
        self._optimizer, self._gradients, self._loss, self._rngs = optimizer, gradients, loss, rngs
        self._clip_norm, self._on_nonfinite, self.size = clip_norm, on_nonfinite, size

    def begin(self, st: TrainState) -> None:
        """Start from a state."""
        self._buffers, self._opt_state = self._optimizer.buffers(st.opt_state, st.vars.params)
        self._shared = True  # whether others know the buffers
        self._in_place: optim.InPlace | None = None
        self._state, self._dtype, self.steps = st.vars.state, st.vars.dtype, st.step
        self._seen: TrainState | None = st

    def state(self) -> TrainState:
        """Return the state after the last step; later ones do not change it."""
        if self._seen is None:
            params = self._optimizer.tree(self._opt_state, self._buffers)
            self._seen = TrainState(Vars(params, self._state, self._dtype), self._opt_state, self.steps)
            self._shared = True
        return self._seen

    def step(self, batches: Sequence[Any]) -> float:
        """Take one step on batches, and return their mean loss."""
        with compilations.watch():
            loss, norm, flat, state = self._mean(batches)
            # Only now does anything change. A step that is left out is counted, so that the keys go on.
            if self._finite(loss, norm, flat):
                if self._clip_norm is not None:
                    flat = optim.clip_by_global_norm(self._clip_norm, flat)
                self._advance(flat)
                self._state = state
            self.steps, self._seen = self.steps + 1, None
            return loss

    def _advance(self, flat: list[Tensor]) -> None:
        """Update the parameters, in place where nobody else knows them."""
        if self._shared:
            made = self._optimizer.advance(self._opt_state, self._buffers, flat)
            (self._buffers, self._opt_state), self._shared, self._in_place = made, False, None
            return
        if self._in_place is None or not self._in_place.fits(self._buffers, flat):
            self._in_place = optim.InPlace(self._optimizer, self._opt_state, self._buffers, flat)
        self._opt_state = self._in_place(self._opt_state)

    def _mean(self, batches: Sequence[Any]) -> tuple[float, float, list[Tensor], Any]:
        """Return the loss, the norm of its gradients, these in flat buffers, and the model's new state."""
        key = None if self._rngs is None else rng.fold_in(self._rngs, self.steps)
        if len(batches) == 1:
            slopes = self._slopes(batches[0], key, self._state)
            return float(slopes.loss.array), float(slopes.norm.array), slopes.flat, slopes.state
        total, count, state, flat = 0.0, 0, self._state, None
        for k, element in enumerate(batches):
            slopes = self._slopes(element, rng.fold_in(key, k) if key is not None else None, state)
            size, state = _length(element[0]), slopes.state
            total, count = total + slopes.loss.item() * size, count + size
            scaled = [g * float(size) for g in slopes.flat]
            flat = scaled if flat is None else [a + b for a, b in zip(flat, scaled, strict=True)]
        assert flat is not None
        flat = [g / float(count) for g in flat]
        return total / count, float(optim.global_norm(flat).item()), flat, state

    def _slopes(self, element: Any, key: Tensor | None, state: Any) -> Slopes:
        x, loss, target = _example(element, self._loss)
        step = Step(self._buffers, self._opt_state, state, self._dtype, x, loss, target, key)
        slopes, ran = self._gradients.take(step)
        self._shared |= not ran  # a model that runs in Python may keep its parameters
        return slopes

    def _finite(self, loss: float, norm: float, flat: list[Tensor]) -> bool:
        """Whether a step may be taken; raise or warn where it may not."""
        what = f"the loss is {loss}"
        if math.isfinite(loss):
            if math.isfinite(norm):
                return True
            grads = ptree.flatten_with_paths(self._optimizer.tree(self._opt_state, flat))
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
    first = arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
