"""The layer, the losses and the optimizers of scikit-learn's perceptrons.

A step takes one tensor of targets, or (targets, weights): all else is in its program, so that a step costs
the least of Python. Learning rates are numbers that a program takes by value: fits that differ in them share
programs.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops, rng, stop_gradient, tensor
from treepie.autodiff.ops import update as rules

from .. import fn, loss as losses
from ..layer import Layer, Vars, linear
from ..optim.optimizer import Optimizer
from ..optim.rated import adjusted_rate
from ..optim.rule import Rule
from ..train.trainer import Trainer

Weights = Sequence[np.ndarray]

_ACTIVATIONS = {"identity": None, "logistic": ops.sigmoid, "tanh": ops.tanh, "relu": fn.relu}
#: Trainers of a thread that are kept, with their programs: the first steps of another fit trace nothing.
_KEPT = 8


def perceptron(units: Sequence[int], activation: str, dropout: float, alpha: float) -> Layer:
    """Return a network of fully connected layers, whose units are features, hidden units and outputs.

    In training its output is (output, penalty): alpha / 2 times the sum of the squared weights.
    """
    layers = [linear(a, b) for a, b in pairwise(units)]
    activate, last = _ACTIVATIONS[activation], len(layers) - 1

    def init(rngs: Tensor, dtype: Any) -> Vars:
        keys = rng.split(rngs, len(layers))
        return Vars([layer.init(keys[k], dtype).params for k, layer in enumerate(layers)], {}, dtype)

    def apply(
        params: Any, state: Any, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Any]:
        squares: list[Tensor] = []
        for k, p in enumerate(params):
            x = fn.linear(x, p["weight"], p["bias"])
            if k < last:
                x = x if activate is None else activate(x)
                if training and dropout:
                    x = fn.dropout(x, dropout, rng.fold_in(rngs, k))
            squares.append(ops.square(ops.vector_norm(p["weight"], dtype=x.dtype)))
        return ((x, functools.reduce(ops.add, squares) * (0.5 * alpha)) if training else x), state

    return Layer(init, apply, f"perceptron({', '.join(map(str, units))})", pure=True)


# ---- losses, of (output, penalty) and targets or (targets, sample_weight); the penalty is shared by the rows
def log_loss(output: Any, target: Any) -> Tensor:
    """Return the cross-entropy of classes, plus the penalty."""
    y, weight = _parts(target)
    return losses.cross_entropy_sparse(output[0], y, sample_weight=weight) + _penalty(output, weight)


def binary_log_loss(output: Any, target: Any) -> Tensor:
    """Return the cross-entropy of labels, summed over the outputs, plus the penalty."""
    y, weight = _parts(target)
    value = losses.binary_cross_entropy(output[0], y, sample_weight=weight)
    return (value if y.shape[1] == 1 else value * float(y.shape[1])) + _penalty(output, weight)


def squared_error(output: Any, target: Any) -> Tensor:
    """Return half of the mean squared error, plus the penalty.

    As in scikit-learn the value is a mean over the outputs, and the gradient that of their sum.
    """
    y, weight = _parts(target)
    value = losses.mse(output[0], y, sample_weight=weight) * 0.5
    if y.shape[1] > 1:
        total = value * float(y.shape[1])
        value = stop_gradient(value - total) + total
    return value + _penalty(output, weight)


def poisson(output: Any, target: Any) -> Tensor:
    """Return half of the Poisson deviance of exp(output), summed over the outputs, plus the penalty."""
    y, weight = _parts(target)
    entropy = ops.where(y > 0, y * ops.log(ops.where(y > 0, y, 1.0)), 0.0)
    terms = ops.sum(entropy - y * output[0] - y + ops.exp(output[0]), axis=1)
    mean = ops.mean(terms) if weight is None else ops.sum(weight * terms) / ops.sum(weight)
    return mean + _penalty(output, weight)


def _parts(target: Any) -> tuple[Tensor, Tensor | None]:
    return target if isinstance(target, tuple) else (target, None)


def _penalty(output: Any, weight: Tensor | None) -> Tensor:
    out, penalty = output
    return penalty / (float(len(out)) if weight is None else ops.sum(weight))  # type: ignore[no-any-return]


LOSSES = {
    "log_loss": log_loss,
    "binary_log_loss": binary_log_loss,
    "squared_error": squared_error,
    "poisson": poisson,
}


# ---- optimizers
class Rate:
    """A learning rate that changes between steps."""

    def __init__(self) -> None:
        self.value = 0.0


def adam(rate: Rate, b1: float, b2: float, epsilon: float) -> Optimizer:
    """Return Adam with scikit-learn's epsilon, which is added to sqrt(v), not to the corrected sqrt(v^)."""

    def numbers(t: int) -> tuple[float, ...]:
        m_factor, v_factor = 1.0 / (1.0 - b1**t), 1.0 / (1.0 - b2**t)
        eps = epsilon * math.sqrt(v_factor)
        return (adjusted_rate(t, rate.value), b1, 1.0 - b1, b2, 1.0 - b2, m_factor, v_factor, eps, 0.0)

    return Rule("adam", rules.adam, 2, numbers)


class Velocity(Optimizer):
    """Gradient descent with scikit-learn's momentum: v = momentum * v - rate * g, p = p + v.

    A velocity has the rates of its steps in it, which matters where the rate changes.
    """

    def __init__(self, rate: Rate, momentum: float, nesterov: bool) -> None:
        self._rate, self._momentum = rate, momentum
        super().__init__(_zeros, _nesterov if nesterov else _velocity, self._numbers_of, True, "sgd")

    def _numbers_of(self, step: int) -> tuple[float, ...]:
        return adjusted_rate(step, self._rate.value), self._momentum

    def _finite_numbers(self, step: int) -> tuple[float, ...]:
        return self._numbers_of(step)


def _zeros(p: Tensor) -> tuple[Tensor, ...]:
    return (p * 0.0,)


def _velocity(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], rate: Tensor, momentum: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    v = momentum * state[0] - rate * g
    return v, (v,)


def _nesterov(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], rate: Tensor, momentum: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    v = momentum * state[0] - rate * g
    return momentum * v - rate * g, (v,)


# ---- trainers
class Solver:
    """A trainer, and the learning rate of its optimizer.

    units, activation, dropout, alpha: of `perceptron`.  solver: "adam" or "sgd".  options: of the optimizer.
    """

    def __init__(
        self,
        units: tuple[int, ...],
        activation: str,
        dropout: float,
        alpha: float,
        solver: str,
        options: tuple[Any, ...],
    ) -> None:
        self.rate = Rate()
        optimizer = adam(self.rate, *options) if solver == "adam" else Velocity(self.rate, *options)
        self.trainer = Trainer(perceptron(units, activation, dropout, alpha), optimizer)


class _Kept(threading.local):
    """The solvers that a thread has used last: a program is run by one thread at a time."""

    def __init__(self) -> None:
        self.solvers: OrderedDict[Hashable, Solver] = OrderedDict()


_kept = _Kept()


def solver_of(*arguments: Any) -> Solver:
    """Return this thread's solver for some arguments."""
    solvers = _kept.solvers
    solver = solvers.pop(arguments, None) or Solver(*arguments)
    solvers[arguments] = solver
    if len(solvers) > _KEPT:
        solvers.popitem(last=False)
    return solver


def variables(coefs: Weights, intercepts: Weights) -> Vars:
    """Return weights of scikit-learn as variables of `perceptron`."""
    pairs = zip(coefs, intercepts, strict=True)
    return Vars([{"weight": tensor(w), "bias": tensor(b)} for w, b in pairs], {}, coefs[0].dtype)


def weights(params: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return parameters of `perceptron` as scikit-learn's `coefs_` and `intercepts_`."""
    coefs, intercepts = ([np.array(p[name].numpy()) for p in params] for name in ("weight", "bias"))
    return coefs, intercepts
