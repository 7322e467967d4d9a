"""Checks of the arguments of optimizers and transformations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import ptree
from treepie.autodiff.arguments import described

from .rated import adjusted_rate
from .schedule import Schedule

Tree = Any
Mask = Callable[[Tree], Tree] | Tree | None


def rate_of(name: str, lr: float | Schedule) -> Schedule:
    """Return a learning rate as a schedule, whose values callbacks of `fit` may change (`RatedStep`)."""
    if callable(lr):
        return lambda step: lr(step) if type(step) is int else adjusted_rate(step, lr(step))
    check(name, lr=(lr, 0.0, math.inf))
    value = float(lr)
    return lambda step: value if type(step) is int else adjusted_rate(step, value)


def decay_of(name: str, weight_decay: float | Schedule) -> Schedule:
    """Return a weight decay as a schedule, which raises ValueError for a negative value."""
    if callable(weight_decay):
        return lambda step: _not_negative(name, step, weight_decay(step))
    check(name, weight_decay=(weight_decay, 0.0, math.inf))
    return lambda step: weight_decay


def _not_negative(name: str, step: int, value: float) -> float:
    if value < 0:
        raise ValueError(
            f"{name}: the weight decay of step {step} is {value}, expected at least 0 (see the schedule)"
        )
    return value


def check(name: str, **bounds: tuple[float, float, float]) -> None:
    """Raise for hyperparameters that are no numbers in [low, high): argument=(value, low, high)."""
    for argument, (value, low, high) in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            kinds = "a number or a schedule" if argument in ("lr", "weight_decay") else "a number"
            raise TypeError(f"{name}: {argument} is {described(value)}, expected {kinds}")
        if not low <= value < high:
            limit = f" and below {high:g}" if high < math.inf else ""
            raise ValueError(f"{name}: {argument} is {value}, expected at least {low:g}{limit}")


def checked_numbers(name: str, step: int, numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return the hyperparameters of a step; raise ValueError unless they are finite."""
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{name}: the hyperparameters of step {step} are {numbers}, expected finite numbers (see the "
            "schedule)"
        )
    return numbers


def masked(name: str, mask: Mask, params: Tree, leaves: Sequence[int]) -> list[bool]:
    """Return for some leaves, by their numbers, whether a mask is true; see `adamw`."""
    if mask is None:
        return [True] * len(leaves)
    tree = mask(params) if callable(mask) else mask
    try:
        values = ptree.leaves(ptree.map(lambda _, chosen: bool(chosen), params, tree))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: mask: {error}") from None
    return [values[k] for k in leaves]  # type: ignore[misc]
