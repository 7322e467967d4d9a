"""Optimizers whose formula is an update rule: a kernel that reads and writes each buffer once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from treepie.autodiff import Tensor, ops, zeros
from treepie.autodiff.ops import update as rules
from treepie.autodiff.tensor import float64
from treepie.autodiff.trace.number import computed

from .arguments import Mask, Tree, checked_numbers, masked
from .flat import FlatGroup, LeafState, joined
from .optimizer import Leaf, Moments, Optimizer, size_of
from .sparse import Gradient, RowGradient, check_sparse, update_rows


class Rule(Optimizer):
    """An update rule with its hyperparameters, whose moments begin with zeros.

    rule: one of `autodiff.ops.update`, which has the formula.  moments: the number of its moments.
    numbers: 1-based step -> the hyperparameters that the formula takes; the learning rate is the first.
    mask: which leaves have weight decay, the last hyperparameter: a tree of bools like the parameters, or a
        function that returns one of them; None for all.
    decay: whether there is weight decay.
    lazy: whether rows of a table whose gradient is zero may be left as they are, with their moments.

    Parameters, gradients and moments of one dtype are one buffer each, and one launch updates them.
    """

    moments: int

    def __init__(
        self,
        name: str,
        rule: rules.UpdateRule,
        moments: int,
        numbers: Callable[[int], tuple[float, ...]],
        mask: Mask = None,
        elementwise: bool = True,
        decay: bool = False,
        lazy: bool = False,
    ) -> None:
        self.name, self.rule, self.moments, self.decay, self.lazy = name, rule, moments, decay, lazy
        self.numbers, self.mask, self.elementwise = numbers, mask, elementwise

    def keep(self, params: Tree, leaves: Sequence[Leaf]) -> list[LeafState]:
        """Return the moments of some leaves; the label is whether a leaf has weight decay."""
        decays = masked(self.name, self.mask, params, [k for k, _, _ in leaves])
        kept = []
        for decayed, (_, path, t) in zip(decays, leaves, strict=True):
            sparse = check_sparse(self.name, path, self.lazy and not (decayed and self.decay))
            kept.append(LeafState(decayed, (t.shape,) * self.moments, sparse=sparse))
        return kept

    def start(self, group: FlatGroup, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return zeros."""
        return [zeros(size_of(group), group.dtype) for _ in range(self.moments)]

    def advance_groups(
        self,
        count: Any,
        groups: Sequence[FlatGroup],
        values: Sequence[Tensor],
        grads: Sequence[Gradient],
        moments: Sequence[Moments],
        apply: bool,
    ) -> tuple[list[Tensor], list[Moments]]:
        """Return the rule's results, one launch for each group."""
        results = []
        for group, p, g, old in zip(groups, values, grads, moments, strict=True):
            hyper = computed(self.hyper(group), count, (self.rule.hyper,), group.dtype)
            if isinstance(g, RowGradient):
                results.append(update_rows(group, p, g, old, self._applied(hyper, apply), apply))
            else:
                results.append(self.rule(p, g, old, hyper, apply))
        return [first for first, *_ in results], [row[1:] for row in results]

    def _applied(
        self, hyper: Tensor, apply: bool
    ) -> Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """Return the rule with its hyperparameters: (parameters, gradient, moments) -> its results."""
        return lambda p, g, old: self.rule(p, g, old, hyper, apply)

    def hyper(self, group: FlatGroup) -> Callable[[int], tuple[float, ...]]:
        """Return the function 1-based step -> hyperparameters for a group."""
        return self._decayed if group.label else self._undecayed

    def _decayed(self, step: int) -> tuple[float, ...]:
        """Return the hyperparameters of a step; ValueError unless they are finite, the rate 0 or more."""
        numbers = self.numbers(step)
        # A sum that is finite has only finite terms.
        if numbers[0] < 0 or not (math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))):
            checked_numbers(self.name, step, numbers)
            raise ValueError(
                f"{self.name}: the learning rate of step {step} is {numbers[0]}, expected at least 0 (see "
                "the callback that changes it)"
            )
        return numbers

    def _undecayed(self, step: int) -> tuple[float, ...]:
        return (*self._decayed(step)[:-1], 0.0)


class TrustRatioRule(Rule):
    """A rule whose change of each leaf is scaled by |parameter| / |change|, as in LAMB."""

    def advance_groups(
        self,
        count: Any,
        groups: Sequence[FlatGroup],
        values: Sequence[Tensor],
        grads: Sequence[Gradient],
        moments: Sequence[Moments],
        apply: bool,
    ) -> tuple[list[Tensor], list[Moments]]:
        """Return the rule's changes at a learning rate of 1, scaled leaf by leaf."""
        first, after = [], []
        for group, p, g, old in zip(groups, values, grads, moments, strict=True):
            assert isinstance(g, Tensor)
            numbers = self.hyper(group)
            unit = computed(functools.partial(_at_unit_rate, numbers), count, (self.rule.hyper,), group.dtype)
            rate = computed(functools.partial(_rate, numbers), count, (), group.dtype)
            direction, *new = self.rule(p, g, old, unit, apply=False)
            scaled = [
                change * (rate * trust_ratio(leaf, change))
                for leaf, change in zip(group.split(p), group.split(direction), strict=True)
            ]
            change = joined(scaled)
            first.append(p + change if apply else change)
            after.append(tuple(new))
        return first, after


def _at_unit_rate(numbers: Callable[[int], tuple[float, ...]], step: int) -> tuple[float, ...]:
    return (1.0, *numbers(step)[1:])


def _rate(numbers: Callable[[int], tuple[float, ...]], step: int) -> float:
    return numbers(step)[0]


def trust_ratio(p: Tensor, change: Tensor) -> Tensor:
    """Return |p| / |change|, and 1 where one of them is 0."""
    norm, size = ops.vector_norm(p, dtype=float64), ops.vector_norm(change, dtype=float64)
    defined = ops.logical_and(norm > 0, size > 0)
    return ops.where(defined, norm / ops.where(defined, size, 1.0), 1.0).astype(p.dtype)
