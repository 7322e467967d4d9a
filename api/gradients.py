"""Gradients of training steps as captured programs: what `Trainer.fit` runs once it has seen a step twice."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.capture import record
from treepie.autodiff.captured import Captured, get_num_threads

from . import optim
from .optim import Optimizer, OptState

#: (params, state, input, target, key) -> (loss, gradients, new state)
Gradient = Callable[[Any, Any, Any, Any, Tensor | None], tuple[Tensor, Any, Any]]


@dataclass(frozen=True)
class Slopes:
    """The loss of a step, the norm of its gradients, these in flat buffers, and the model's new state."""

    loss: float
    norm: float
    flat: list[Tensor]
    state: Any

    @staticmethod
    def of(loss: float, flat: list[Tensor], state: Any) -> Slopes:
        """Return them with the norm, from gradients that were taken eagerly."""
        return Slopes(loss, float(optim.global_norm(flat).item()), flat, state)


class _Program:
    """The captured gradient of one structure, and the structure of what it gives."""

    def __init__(self, captured: Captured, flat: list[Tensor], state: Any) -> None:
        self.captured, self.flat, self.state = captured, flat, state
        self.bare = not ptree.leaves(state)

    def __call__(self, givens: list[Tensor]) -> Slopes:
        self.captured.run(givens)
        loss, norm, *state = self.captured.tensors
        kept = self.state
        if not self.bare:
            rest = iter(state)
            # The state is written to again by the next run; it is small, and a caller may keep it.
            kept = ptree.map(lambda _: Tensor(next(rest).array.copy()), self.state)
        return Slopes(float(loss.array), float(norm.array), self.flat, kept)


#: Structures that a `fit` has programs for: of data whose every batch has another shape, few come again.
_MOST = 64


class Gradients:
    """Takes gradients: eagerly when it first sees a structure, recorded; then by its program.

    A structure is the shapes and dtypes of all that a step is given. The second time both run, and where
    their bits differ, or where the recording is void, steps of that structure stay eager; why is said once.
    What the model and the loss close over is what it was at the first step.
    """

    def __init__(self, optimizer: Optimizer, gradient: Gradient) -> None:
        """Take the optimizer, which says how gradients lie in buffers, and the eager function."""
        self._optimizer, self._gradient = optimizer, gradient
        self._programs: dict[Any, _Program | None] = {}
        self._trusted: set[Any] = set()
        self._bare: Any = None  # a state that has no tensors, met before

    def __call__(
        self,
        buffers: list[Tensor],
        opt_state: OptState,
        state: Any,
        x: Any,
        target: Any,
        key: Tensor | None,
    ) -> tuple[Slopes, bool]:
        """Return the gradients of a step, and whether a program made them. buffers: the parameters'."""
        noted = [] if state is self._bare else ptree.leaves(state)
        if not noted:
            self._bare = state
        givens = [*buffers, *_leaves(x), *_leaves(target), *noted, *([] if key is None else [key])]
        if _overlap(givens):
            # A recording knows tensors by their memory: what is one here may be two in a later step.
            x, target, state = (ptree.map(_copy, part) for part in (x, target, state))
            noted = ptree.leaves(state)
            givens = [*buffers, *_leaves(x), *_leaves(target), *noted, *([] if key is None else [key])]
        structure = (
            get_num_threads(),
            *(_paths(part) for part in (x, target)),
            *((t.array.shape, t.array.dtype.char) for t in givens),
        )
        program = self._programs.get(structure)
        if program is not None and structure in self._trusted:
            return program(givens), True
        arguments = (opt_state, self._optimizer.tree(opt_state, buffers), state, x, target, key)
        if structure not in self._programs and len(self._programs) < _MOST:
            self._programs[structure], slopes = self._recorded(givens, len(buffers), *arguments)
            return slopes, False
        slopes = self._eager(*arguments)
        if program is not None:
            difference = _difference(program(givens), slopes)
            if difference is None:
                self._trusted.add(structure)
            else:
                self._refuse(structure, f"{difference} differs when it runs again")
        return slopes, False

    def _eager(self, opt_state: OptState, params: Any, state: Any, x: Any, target: Any, key: Any) -> Slopes:
        loss, grads, new = self._gradient(params, state, x, target, key)
        flat = self._optimizer.flat(opt_state, params, grads)
        return Slopes.of(float(loss.item()), flat, new)

    def _recorded(
        self,
        givens: list[Tensor],
        count: int,
        opt_state: OptState,
        params: Any,
        state: Any,
        x: Any,
        target: Any,
        key: Any,
    ) -> tuple[_Program | None, Slopes]:
        """Return the program of a step, and its gradients. The first `count` givens are buffers."""
        with record(givens) as recorder:
            loss, grads, new = self._gradient(params, state, x, target, key)
            flat = [Tensor(np.empty_like(b.array)) for b in givens[:count]]
            norm = optim.global_norm(flat)
        made = self._optimizer.flat(opt_state, params, grads)
        slopes = Slopes.of(float(loss.item()), made, new)
        if recorder.void is not None:
            _say(recorder.void)
            return None, slopes
        places = ptree.leaves(self._optimizer.tree(opt_state, flat))
        placed = list(zip(ptree.leaves(grads), places, strict=True))
        captured = Captured(recorder, [loss, norm, *ptree.leaves(new)], placed)
        return _Program(captured, flat, new), slopes

    def _refuse(self, structure: Any, why: str) -> None:
        self._programs[structure] = None
        _say(why)


def _overlap(givens: list[Tensor]) -> bool:
    """Whether two tensors share memory."""
    spans = sorted((t.address, t.address + t.array.nbytes) for t in givens)
    return any(end > start for (_, end), (start, _) in itertools.pairwise(spans))


def _copy(t: Tensor) -> Tensor:
    return Tensor(t.array.copy())


def _leaves(part: Any) -> list[Tensor]:
    return [part] if type(part) is Tensor else ptree.leaves(part)


def _paths(part: Any) -> tuple[str, ...]:
    return () if type(part) is Tensor else tuple(path for path, _ in ptree.flatten_with_paths(part))


def _say(why: str) -> None:
    print(f"treepie: steps of this fit run op by op, not as one program: {why}", file=sys.stderr, flush=True)


def _difference(a: Slopes, b: Slopes) -> str | None:
    """Name what is not the same, bit by bit, in two runs of one step."""

    def bits(tensors: Iterable[Tensor]) -> list[bytes]:
        return [t.array.tobytes() for t in tensors]

    if np.float64(a.loss).tobytes() != np.float64(b.loss).tobytes():
        return "the loss"
    if bits(a.flat) != bits(b.flat):
        return "a gradient"
    return None if bits(ptree.leaves(a.state)) == bits(ptree.leaves(b.state)) else "the model's state"
