"""Optimizers: rules that turn gradients into changes of the parameters.

The formula of a rule, such as Adam's, is in `autodiff/ops/update.py`, under the rule's name: it is fused, and
runs once over parameters, gradients and moments. The constructor here, such as `adam`, checks the arguments
and computes the hyperparameters of each step (schedules, bias corrections), in the order of the formula's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ops import update as rules
from treepie.autodiff.ptree.structure import register_static
from treepie.autodiff.tensor import TensorLike, float64
from treepie.autodiff.trace.number import computed

from ..pickling import Constructed, constructor
from .flat import FlatGroup, FlatLayout
from .opt_state import OptState as OptState, check_layout, check_mask
from .rated import rate_of
from .schedule import Schedule

Tree = Any
Mask = Callable[[Tree], Tree] | Tree | None


@dataclass(frozen=True)
class Optimizer(Constructed):
    """An update rule with its hyperparameters; `sgd`, `adam` and the others construct it.

    rule: one of `autodiff.ops.update`, which has the formula.  moments: the number of its moments.
    numbers: 1-based step -> the hyperparameters that the formula takes.
    mask: which leaves have weight decay, the last hyperparameter: a tree of bools like the parameters, or a
        function that returns one of them; None for all.

    Parameters, gradients and moments of one dtype are one buffer each, and one launch updates them.

    >>> import treepie as tp
    >>> opt = tp.optim.sgd(0.5)
    >>> params = {"w": tp.tensor([1.0, 2.0])}
    >>> params, state = opt.update(opt.init(params), params, {"w": tp.tensor([1.0, -1.0])})
    >>> params["w"].tolist(), state.count
    ([0.5, 2.5], 1)
    """

    name: str
    rule: rules.UpdateRule
    moments: int
    numbers: Callable[[int], tuple[float, ...]]
    mask: Mask = None

    def init(self, params: Tree) -> OptState:
        """Return the state before the first step; TypeError for a parameter that is not floating point."""
        for path, value in ptree.flatten_with_paths(params):
            dtype = as_tensor(value).dtype
            if dtype.kind != "f":
                raise TypeError(
                    f"{self.name}: the parameter {path!r} is {dtype.name}, expected float32 or float64"
                )
        layout = self._layout(params)
        return OptState(0, tuple(layout.zeros() for _ in range(self.moments)), layout)

    def step(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return the updates, to be added to the parameters (`apply_updates`), and the new state.

        grads: a tree like the parameters, of the same shapes and dtypes, else ValueError.
        """
        self.check_state(f"{self.name}.step", state.layout, len(state.buffers), lambda: params)
        return self._run(state, params, self.flat(state, grads), apply=False)

    def update(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return the new parameters and the new state, in one pass over memory."""
        self.check_state(f"{self.name}.update", state.layout, len(state.buffers), lambda: params)
        return self._run(state, params, self.flat(state, grads), apply=True)

    def check_state(
        self, function: str, layout: FlatLayout | None, moments: int, params: Callable[[], Tree]
    ) -> None:
        """Raise ValueError for the layout and the number of moments of another optimizer's state.

        params: returns the parameters, for a function that is the mask.
        """
        if moments != self.moments or (layout is not None and layout.accepted is not self):
            check_layout(function, self.name, self.moments, layout, moments)
            if layout is not None:
                check_mask(function, layout, None if self.mask is None else self._layout(params()))
                layout.accepted = self

    def state_of_trees(self, count: int, trees: list[Tree]) -> OptState:
        """Return the state of a count and trees of moments: the inverse of `OptState.to_trees`."""
        if count < 0 or len(trees) != self.moments:
            raise ValueError(
                f"{self.name}: count is {count} with {len(trees)} trees, expected 0 or more with "
                f"{self.moments}"
            )
        if not trees:
            return OptState(count, (), None)
        layout = self._layout(trees[0])
        rows = [self._leaves(layout, "moment", tree) for tree in trees]
        return OptState(count, tuple(layout.flat(row) for row in rows), layout)

    def _layout(self, params: Tree) -> FlatLayout:
        return FlatLayout(params, self.mask(params) if callable(self.mask) else self.mask, self.name)

    def flat(self, state: OptState, grads: Tree) -> list[Tensor]:
        """Return a tree of gradients as buffers for `advance`."""
        layout = state.layout or self._layout(grads)
        return list(layout.flat(self._leaves(layout, "gradient", grads)))

    def buffers(self, state: OptState, params: Tree) -> tuple[list[Tensor], OptState]:
        """Return parameters as buffers, copied unless they are views of such, and the state with a layout."""
        layout = state.layout or self._layout(params)
        flat = layout.flat(self._leaves(layout, "parameter", params))
        return list(flat), OptState(state.count, state.buffers, layout)

    def tree(self, state: OptState, buffers: Sequence[Tensor]) -> Tree:
        """Return the tree whose leaves are views of buffers."""
        assert state.layout is not None
        return state.layout.tree(buffers)

    def advance(
        self, state: OptState, buffers: Sequence[Tensor], flat: Sequence[Tensor]
    ) -> tuple[list[Tensor], OptState]:
        """Return the new parameters and the new state, as `update` does, from and to buffers."""
        assert state.layout is not None
        return self._step(state, state.layout, buffers, flat, apply=True)

    def _run(self, state: OptState, params: Tree, flat: list[Tensor], apply: bool) -> tuple[Tree, OptState]:
        values, state = self.buffers(state, params)
        assert state.layout is not None
        first, after = self._step(state, state.layout, values, flat, apply)
        return state.layout.tree(first), after

    def _step(
        self,
        state: OptState,
        layout: FlatLayout,
        values: Sequence[Tensor],
        flat: Sequence[Tensor],
        apply: bool,
    ) -> tuple[list[Tensor], OptState]:
        count, results = state.count + 1, []
        for g, group in enumerate(layout.groups):
            old = tuple(moment[g] for moment in state.buffers)
            hyper = computed(self.hyper(group), count, (self.rule.hyper,), group.dtype)
            results.append(self.rule(values[g], flat[g], old, hyper, apply))
        first, *moments = zip(*results, strict=True) if results else [()] * (1 + self.moments)
        return list(first), OptState(count, tuple(moments), layout)

    def hyper(self, group: FlatGroup) -> Callable[[int], tuple[float, ...]]:
        """Return the function 1-based step -> hyperparameters for a group."""
        return self._decayed if group.decayed else self._undecayed

    def _decayed(self, step: int) -> tuple[float, ...]:
        """Return the hyperparameters of a step; raise ValueError unless they are finite."""
        numbers = self.numbers(step)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"{self.name}: the hyperparameters of step {step} are {numbers}, "
                "expected finite numbers (see the schedule)"
            )
        return numbers

    def _undecayed(self, step: int) -> tuple[float, ...]:
        return (*self._decayed(step)[:-1], 0.0)

    def _leaves(self, layout: FlatLayout, what: str, tree: Tree) -> list[Tensor]:
        """Return the leaves of a tree like the parameters, in their order."""
        leaves: list[Tensor] = []

        def take(k: int, x: TensorLike) -> int:
            leaves.append(as_tensor(x))
            return k

        ptree.map(take, layout.numbered, tree)
        self._check_leaves(layout, what, leaves)
        return leaves

    def _check_leaves(self, layout: FlatLayout, what: str, leaves: list[Tensor]) -> None:
        """Raise ValueError, with the path, for a leaf of another shape or dtype than the layout's."""
        for k, t in enumerate(leaves):
            shape, dtype = layout.shapes[k], layout.dtypes[k]
            if t.shape != shape or t.dtype != dtype:
                path = ptree.flatten_with_paths(layout.numbered)[k][0]
                raise ValueError(
                    f"{self.name}: the {what} of {path!r} has shape {t.shape} and dtype "
                    f"{t.dtype.name}, expected {shape} and {dtype.name}"
                )


register_static(Optimizer)


def _rate(name: str, lr: float | Schedule) -> Schedule:
    """Return a learning rate as a schedule."""
    if callable(lr):
        return lambda step: lr(step) if type(step) is int else rate_of(step, lr(step))
    _check(name, lr=(lr, 0.0, math.inf))
    value = float(lr)
    return lambda step: value if type(step) is int else rate_of(step, value)


def _check(name: str, **bounds: tuple[float, float, float]) -> None:
    """Raise ValueError for hyperparameters outside [low, high): argument=(value, low, high)."""
    for argument, (value, low, high) in bounds.items():
        if not low <= value < high:
            limit = f" and below {high:g}" if high < math.inf else ""
            raise ValueError(f"{name}: {argument} is {value}, expected at least {low:g}{limit}")


@constructor
def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Return stochastic gradient descent, with momentum and Nesterov's variant (Sutskever et al. 2013).

        v = momentum * v + g
        p = p - lr * v, with nesterov p - lr * (g + momentum * v)

    lr: a float or a schedule.  momentum: in [0, 1).  nesterov: needs a momentum above 0.

    Raises ValueError for a hyperparameter out of range.

    >>> import treepie as tp
    >>> opt = tp.optim.sgd(0.1, momentum=0.9, nesterov=True)
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

    def numbers(t: int) -> tuple[float, ...]:
        # The arguments of the formula from lr on; the bias corrections m^ = m / (1 - b1**t) and
        # v^ = v / (1 - b2**t) are factors there.
        m_factor, v_factor = 1.0 / (1.0 - b1**t), 1.0 / (1.0 - b2**t)
        return (rate(t), b1, 1.0 - b1, b2, 1.0 - b2, m_factor, v_factor, eps, weight_decay)

    return Optimizer(name, rules.adam, 2, numbers, mask)


@constructor
def adam(lr: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Return Adam (Kingma & Ba 2015, Algorithm 1); its formula is `adam` in `autodiff/ops/update.py`.

        m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g**2
        p = p - lr * m^ / (sqrt(v^) + eps) with m^ = m / (1 - b1**t), v^ = v / (1 - b2**t) in step t

    lr: a float or a schedule.  b1, b2: in [0, 1).  eps: 0 or more. ValueError for others.

    >>> import treepie as tp
    >>> opt = tp.optim.adam(tp.optim.schedule.cosine_decay(1e-3, 1000))
    """
    return _adam("adam", lr, b1, b2, eps, 0.0, None)


@constructor
def adamw(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Mask = None,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2).

        p = p - lr * (m^ / (sqrt(v^) + eps) + weight_decay * p), m^ and v^ as in `adam`

    lr, b1, b2, eps: as for `adam`.  weight_decay: 0 or more, else ValueError.
    mask: which leaves to decay: a tree of bools like the parameters, or a function that returns one of
        them; by default all.

    >>> import treepie as tp
    >>> opt = tp.optim.adamw(1e-3, mask=lambda params: tp.ptree.map(lambda p: p.ndim > 1, params))
    """
    return _adam("adamw", lr, b1, b2, eps, weight_decay, mask)


@constructor
def rmsprop(lr: float | Schedule, decay: float = 0.9, eps: float = 1e-8, momentum: float = 0.0) -> Optimizer:
    """Return RMSprop (Tieleman & Hinton 2012).

        v = decay * v + (1 - decay) * g**2;  u = momentum * u + g / (sqrt(v) + eps)
        p = p - lr * u

    lr: a float or a schedule.  decay, momentum: in [0, 1).  eps: 0 or more. ValueError for others.

    >>> import treepie as tp
    >>> opt = tp.optim.rmsprop(1e-3, momentum=0.9)
    """
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


@constructor
def adagrad(lr: float | Schedule, eps: float = 1e-8) -> Optimizer:
    """Return Adagrad (Duchi et al. 2011).

        s = s + g**2
        p = p - lr * g / (sqrt(s) + eps)

    lr: a float or a schedule.  eps: 0 or more, else ValueError.

    >>> import treepie as tp
    >>> opt = tp.optim.adagrad(0.1)
    """
    rate = _rate("adagrad", lr)
    _check("adagrad", eps=(eps, 0.0, math.inf))
    return Optimizer("adagrad", rules.adagrad, 1, lambda step: (rate(step), eps))


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return params + updates, leaf by leaf; ValueError for trees of different structure.

    >>> import treepie as tp
    >>> tp.optim.apply_updates({"w": tp.ones(2)}, {"w": tp.tensor([0.5, -1.0])})["w"].tolist()
    [1.5, 0.0]
    """
    return ptree.map(lambda p, u: as_tensor(p) + u, params, updates)


def global_norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, a float64 tensor of shape ().

    >>> import treepie as tp
    >>> tp.optim.global_norm({"a": tp.tensor([3.0]), "b": tp.tensor(4.0)}).item()
    5.0
    """
    norms = [ops.vector_norm(as_tensor(x), dtype=float64) for x in ptree.leaves(tree)]
    if not norms:
        return zeros((), float64)
    return norms[0] if len(norms) == 1 else ops.norm(ops.stack(norms))


def clip_by_global_norm(max_norm: float, grads: Tree) -> Tree:
    """Return gradients scaled down so that their global norm is at most `max_norm` (Pascanu et al. 2013).

    Raises FloatingPointError for a norm that is NaN or infinite (scaling would make every gradient NaN or 0),
    ValueError for a `max_norm` that is not positive.

    >>> import treepie as tp
    >>> tp.optim.clip_by_global_norm(1.0, [tp.tensor([3.0]), tp.tensor([4.0])])[0].item()
    0.6000...
    """
    if not 0 < max_norm < math.inf:
        raise ValueError(f"clip_by_global_norm: max_norm is {max_norm}, expected a positive number")
    message = (
        "clip_by_global_norm: the norm of the gradients is {}, expected a finite number (leave such steps "
        "out, or lower the learning rate)"
    )
    # An op checks the norm, so that a program contains the check.
    norm = ops.check_range(global_norm(grads), 0.0, sys.float_info.max, message, finite=True)
    scale = ops.minimum(max_norm / norm, 1.0)
    return ptree.map(lambda g: as_tensor(g) * scale.astype(as_tensor(g).dtype), grads)
