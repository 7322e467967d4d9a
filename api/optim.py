"""Optimizers: rules that turn gradients into changes of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ops import update as rules
from treepie.autodiff.tensor import float64

from . import schedule
from .schedule import Schedule

# fmt: off
__all__ = [
    "OptState", "Optimizer", "adagrad", "adam", "adamw", "apply_updates", "clip_by_global_norm",
    "global_norm", "rmsprop", "schedule", "sgd",
]
# fmt: on

Tree = Any
Mask = Callable[[Tree], Tree] | Tree | None


@dataclass(frozen=True)
class OptState:
    """How many steps were taken, and for each moment of the rule a tree like the parameters."""

    count: int
    moments: tuple[Tree, ...]

    def to_trees(self) -> tuple[int, list[Tree]]:
        """Return the count and the trees, to save; `Optimizer.state_of_trees` is the way back."""
        return self.count, list(self.moments)


@dataclass(frozen=True)
class Optimizer:
    """A rule with its hyperparameters; made by `sgd`, `adam` and the others.

    rule: a row of `autodiff.ops.update`.  moments: how many it keeps.
    numbers: 1-based step -> its hyperparameters.
    mask: leaves whose last hyperparameter, the weight decay, is off; None for none.
    """

    name: str
    rule: Callable[..., tuple[Tensor, ...]]
    moments: int
    numbers: Callable[[int], tuple[float, ...]]
    mask: Mask = None

    def init(self, params: Tree) -> OptState:
        """Return the state before the first step."""
        for path, value in ptree.flatten_with_paths(params):
            dtype = as_tensor(value).dtype
            if dtype.kind != "f":
                raise TypeError(
                    f"{self.name}: the parameter {path!r} is {dtype.name}, expected float32 or float64"
                )
        return OptState(0, tuple(ptree.zeros_like(params) for _ in range(self.moments)))

    def step(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return what to add to the parameters, and the new state."""
        return self._run(state, params, grads, apply=False)

    def update(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return the new parameters and the new state, in one pass over memory."""
        return self._run(state, params, grads, apply=True)

    def state_of_trees(self, count: int, trees: list[Tree]) -> OptState:
        """Return the state that `OptState.to_trees` was called on."""
        if count < 0 or len(trees) != self.moments:
            raise ValueError(
                f"{self.name}: count is {count} with {len(trees)} trees, expected 0 or more with "
                f"{self.moments}"
            )
        return OptState(count, tuple(trees))

    def _run(self, state: OptState, params: Tree, grads: Tree, apply: bool) -> tuple[Tree, OptState]:
        numbers = self.numbers(state.count + 1)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"{self.name}: the hyperparameters of step {state.count + 1} are {numbers}, "
                "expected finite numbers (see the schedule)"
            )
        undecayed = (*numbers[:-1], 0.0)
        columns: list[list[Tensor]] = [[] for _ in range(self.moments)]

        def change(*leaves: Any) -> Tensor:
            p, g, *old = before = [as_tensor(x) for x in leaves[: 2 + self.moments]]
            if any(t.shape != p.shape or t.dtype != p.dtype for t in before):
                raise ValueError(self._mismatch(params, grads, state.moments))
            decayed = len(leaves) == len(before) or leaves[-1]
            first, *rest = self.rule(p, g, tuple(old), numbers if decayed else undecayed, apply)
            for column, value in zip(columns, rest, strict=True):
                column.append(value)
            return first

        masks = () if self.mask is None else (self._mask(params),)
        changed = ptree.map(change, params, grads, *state.moments, *masks)
        moments = [_filled(params, column) for column in columns]
        return changed, OptState(state.count + 1, tuple(moments))

    def _mask(self, params: Tree) -> Tree:
        return self.mask(params) if callable(self.mask) else self.mask

    def _mismatch(self, params: Tree, grads: Tree, moments: tuple[Tree, ...]) -> str:
        """Say which leaf of the gradients or the moments does not fit its parameter."""
        for what, tree in [("gradient", grads), *(("moment", m) for m in moments)]:
            pairs = ptree.map(lambda *both: [as_tensor(t) for t in both], params, tree)
            flat = ptree.flatten_with_paths(pairs)
            for (path, p), (_, t) in zip(flat[::2], flat[1::2], strict=True):
                if (p.shape, p.dtype) != (t.shape, t.dtype):
                    return (
                        f"{self.name}: the {what} of {path[:-2]!r} has shape {t.shape} and dtype "
                        f"{t.dtype.name}, expected {p.shape} and {p.dtype.name}"
                    )
        raise AssertionError("no leaf differs")


def _filled(tree: Tree, leaves: list[Tensor]) -> Tree:
    """Return a tree like another with other leaves, in its order."""
    remaining = iter(leaves)
    return ptree.map(lambda _: next(remaining), tree)


def _rate(name: str, lr: float | Schedule) -> Schedule:
    """Return a learning rate as a schedule."""
    if callable(lr):
        return lr
    _check(name, lr=(lr, 0.0, math.inf))
    return schedule.constant(float(lr))


def _check(name: str, **bounds: tuple[float, float, float]) -> None:
    """Refuse hyperparameters outside [low, high): argument=(value, low, high)."""
    for argument, (value, low, high) in bounds.items():
        if not low <= value < high:
            limit = f" and below {high:g}" if high < math.inf else ""
            raise ValueError(f"{name}: {argument} is {value}, expected at least {low:g}{limit}")


def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Return p - lr * v with v = momentum * v + g; with nesterov, p - lr * (g + momentum * v).

    Sutskever et al. 2013.
    """
    rate = _rate("sgd", lr)
    _check("sgd", momentum=(momentum, 0.0, 1.0))
    if momentum == 0:
        if nesterov:
            raise ValueError("sgd: nesterov is True with momentum 0, expected a momentum above 0")
        return Optimizer("sgd", rules.sgd, 0, lambda step: (rate(step),))
    rule = rules.nesterov if nesterov else rules.momentum
    return Optimizer("sgd", rule, 1, lambda step: (rate(step), momentum))


def _adam(
    name: str,
    lr: float | Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mask: Mask,
) -> Optimizer:
    rate = _rate(name, lr)
    _check(name, b1=(b1, 0.0, 1.0), b2=(b2, 0.0, 1.0), eps=(eps, 0.0, math.inf))
    _check(name, weight_decay=(weight_decay, 0.0, math.inf))

    def numbers(step: int) -> tuple[float, ...]:
        unbias1, unbias2 = 1.0 / (1.0 - b1**step), 1.0 / (1.0 - b2**step)
        return (rate(step), b1, 1.0 - b1, b2, 1.0 - b2, unbias1, unbias2, eps, weight_decay)

    return Optimizer(name, rules.adam, 2, numbers, mask)


def adam(lr: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Return Adam: p - lr * m^ / (sqrt(v^) + eps) (Kingma & Ba 2015, Algorithm 1)."""
    return _adam("adam", lr, b1, b2, eps, 0.0, None)


def adamw(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Mask = None,
) -> Optimizer:
    """Return Adam with decoupled weight decay: - lr * weight_decay * p more at each step.

    mask: a tree of bools like the parameters, or a function that makes one of them: which to decay.
    Loshchilov & Hutter 2019, Algorithm 2.
    """
    return _adam("adamw", lr, b1, b2, eps, weight_decay, mask)


def rmsprop(lr: float | Schedule, decay: float = 0.9, eps: float = 1e-8, momentum: float = 0.0) -> Optimizer:
    """Return RMSprop: p - lr * u with u = momentum * u + g / (sqrt(v) + eps).

    Tieleman & Hinton 2012."""
    rate = _rate("rmsprop", lr)
    _check("rmsprop", decay=(decay, 0.0, 1.0), eps=(eps, 0.0, math.inf))
    _check("rmsprop", momentum=(momentum, 0.0, 1.0))
    if momentum == 0:
        return Optimizer("rmsprop", rules.rmsprop, 1, lambda step: (rate(step), decay, 1.0 - decay, eps))
    return Optimizer(
        "rmsprop",
        rules.rmsprop_momentum,
        2,
        lambda step: (rate(step), decay, 1.0 - decay, eps, momentum),
    )


def adagrad(lr: float | Schedule, eps: float = 1e-8) -> Optimizer:
    """Return Adagrad: p - lr * g / (sqrt(s) + eps), s the sum of g**2 (Duchi et al. 2011)."""
    rate = _rate("adagrad", lr)
    _check("adagrad", eps=(eps, 0.0, math.inf))
    return Optimizer("adagrad", rules.adagrad, 1, lambda step: (rate(step), eps))


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return params + updates, leaf by leaf."""
    return ptree.map(lambda p, u: as_tensor(p) + u, params, updates)


def global_norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, a float64 tensor of shape ()."""
    total = zeros((), float64)
    for x in ptree.leaves(tree):
        total = total + ops.sum(ops.square(as_tensor(x).astype(float64)))
    return ops.sqrt(total)


def clip_by_global_norm(max_norm: float, grads: Tree) -> Tree:
    """Return gradients scaled down so that their global norm is at most `max_norm`."""
    if not 0 < max_norm < math.inf:
        raise ValueError(f"clip_by_global_norm: max_norm is {max_norm}, expected a positive number")
    scale = ops.minimum(max_norm / global_norm(grads), 1.0)
    return ptree.map(lambda g: as_tensor(g) * scale.astype(as_tensor(g).dtype), grads)
