"""Gradients of training steps as programs: what `Trainer` runs once it has seen a step twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.capture import Recorder, blocks
from treepie.autodiff.captured import Captured, Outline
from treepie.autodiff.programs import Programs, get_num_threads

from . import optim
from .closure import Environment
from .layer import Context, Vars
from .layer.core import inputs
from .optim import Optimizer, OptState

Loss = Callable[..., Tensor]
#: (vars, input, loss of the output, training, key, context) -> (loss, gradients, the model's new state)
Gradient = Callable[..., tuple[Tensor, Any, Any]]


@dataclass
class Step:
    """What a gradient is taken of: loss(model(x), *target), at parameters that lie in buffers.

    around: what the loss reads from outside, once it was looked at.
    """

    buffers: list[Tensor]
    opt_state: OptState
    state: Any
    dtype: Any
    x: Any
    loss: Loss
    target: tuple[Any, ...] = ()
    key: Tensor | None = None
    training: bool = True
    ctx: Context | None = None
    around: Environment | None = None


@dataclass(frozen=True)
class Slopes:
    """The loss of a step, its gradients in flat buffers and their norm, and the model's new state.

    All but the state are where the next gradient will be.
    """

    loss: Tensor
    norm: Tensor
    flat: list[Tensor]
    state: Any


class Gradients(Programs[Step, Slopes]):
    """Takes the gradients of steps.

    What the loss, and functions that users have put into the model, read from outside is looked at in every
    step.
    """

    subject = "steps of this model"

    def __init__(
        self, optimizer: Optimizer, gradient: Gradient, calls: tuple[Callable[..., Any], ...] = ()
    ) -> None:
        """Take the optimizer, which says how gradients lie in buffers, and the eager function.

        calls: the users' functions that the model calls.
        """
        super().__init__()
        self._optimizer, self._gradient, self._calls = optimizer, gradient, calls
        self._bare: Any = None  # a state that has no tensors, met before
        self._targets: dict[Any, list[Tensor]] = {}  # where programs write gradients

    def take(self, step: Step) -> tuple[Slopes, bool]:
        """Return the gradients of a step, and whether a program made them."""
        step.around = around = Environment.of(step.loss, self._calls)
        parts = [part for given in (step.x, *step.target) if (part := _part(given)) is not None]
        if around.unknown is not None or len(parts) <= len(step.target):
            self.refused(around.unknown or "what it is given is not a tree of tensors")
            return self.eager(step), False
        (step.x, leaves, paths), *others = parts
        step.target = tuple([tree for tree, _, _ in others])
        noted = [] if step.state is self._bare else ptree.leaves(step.state)
        if not noted:
            self._bare = step.state
        tensors = [*step.buffers, *leaves, *noted, *around.tensors]
        for _, more, own in others:
            tensors += more
            paths += own
        if step.key is not None:
            tensors.append(step.key)
        names: Any = None
        if step.ctx is not None:
            names = tuple(step.ctx.values)
            tensors += step.ctx.values.values()
        givens, places = blocks(tensors)
        structure = (
            get_num_threads(),
            step.training,
            step.key is None,
            names,
            paths,
            places,
            around.key,
            step.opt_state.layout,
            *[(t.array.shape, t.array.dtype.char) for t in tensors],
        )
        return self.call(structure, givens, step)

    def _taken(self, step: Step) -> tuple[Tensor, Any, Any]:
        params = self._optimizer.tree(step.opt_state, step.buffers)
        return self._gradient(
            Vars(params, step.state, step.dtype),
            step.x,
            (lambda out: step.loss(out, *step.target)) if step.target else step.loss,
            step.training,
            step.key,
            step.ctx,
        )

    def eager(self, step: Step) -> Slopes:
        """Take them op by op."""
        loss, grads, state = self._taken(step)
        flat = self._optimizer.flat(step.opt_state, grads)
        return Slopes(loss, optim.global_norm(flat), flat, state)

    def traced(self, recorder: Recorder, step: Step) -> tuple[Slopes, Outline, Any]:
        """Take them op by op, recorded."""
        assert step.around is not None
        recorder.arrays = {id(a): t for a, t in step.around.arrays}
        loss, grads, state = self._taken(step)
        flat = self._room(step.buffers)
        norm = optim.global_norm(flat)
        places = ptree.leaves(self._optimizer.tree(step.opt_state, flat))
        placed = list(zip(ptree.leaves(grads), places, strict=True))
        outline = Outline.of(recorder, [loss, norm, *ptree.leaves(state)], placed)
        made = self._optimizer.flat(step.opt_state, grads)
        return Slopes(loss, optim.global_norm(made), made, state), outline, (flat, state)

    def _room(self, buffers: list[Tensor]) -> list[Tensor]:
        """Return where programs write gradients."""
        shapes = tuple((b.shape, b.dtype) for b in buffers)
        if shapes not in self._targets:
            self._targets[shapes] = [Tensor(np.empty_like(b.array)) for b in buffers]
        return self._targets[shapes]

    def run(
        self, program: Captured, pattern: Any, givens: Sequence[Tensor], step: Step, spare: bool = False
    ) -> Slopes:
        """Run a program."""
        flat, state = pattern
        loss, norm, *rest = program.run(givens)
        if rest:
            new = iter(rest)
            # The state is written to again by the next run; it is small, and a caller may keep it.
            state = ptree.map(lambda _: Tensor(next(new).array.copy()), state)
        return Slopes(loss, norm, flat, state)

    def named(self, result: Slopes) -> list[tuple[str, Tensor]]:
        """Return the tensors of gradients."""
        state = [("the model's state", as_tensor(t)) for t in ptree.leaves(result.state)]
        return [("the loss", result.loss), *(("a gradient", t) for t in result.flat), *state]


#: An input or a target: the tree of tensors, its leaves and their paths.
_Part = tuple[Any, list[Tensor], tuple[str, ...]]


def _part(given: Any) -> _Part | None:
    """Return an input or a target as tensors, None where it is something else."""
    if type(given) is Tensor:
        return given, [given], ()
    try:
        tree = inputs(given)
    except (TypeError, ValueError):
        return None
    found = ptree.flatten_with_paths(tree)
    return tree, [t for _, t in found], tuple(path for path, _ in found)
