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

        def rate(step: int) -> float:
            value = lr(step)
            if type(value) is not float or not 0.0 <= value < math.inf:
                _check_rate(name, lr, step, value)
            return value if type(step) is int else adjusted_rate(step, value)

        return rate
    check(name, lr=(lr, 0.0, math.inf))
    value = float(lr)
    return lambda step: value if type(step) is int else adjusted_rate(step, value)


def decay_of(name: str, weight_decay: float | Schedule) -> Schedule:
    """Return a weight decay as a schedule."""
    if callable(weight_decay):

        def decay(step: int) -> float:
            value = weight_decay(step)
            if type(value) is not float or not 0.0 <= value < math.inf:
                _check_rate(name, weight_decay, step, value)
            return value

        return decay
    check(name, weight_decay=(weight_decay, 0.0, math.inf))
    return lambda step: weight_decay


def _check_rate(name: str, schedule: Schedule, step: int, value: Any) -> None:
    """Raise TypeError or ValueError, with the schedule and the step, for a rate that is none."""
    code = getattr(schedule, "__code__", None)
    what = described(schedule) if code else repr(schedule)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    text = f"{name}: the schedule, {what}{where}, returns {{}} for step {int(step)}, expected {{}}"
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(text.format(described(value), "a number"))
    if not 0.0 <= float(value) < math.inf:
        raise ValueError(text.format(value, "a finite number of at least 0"))


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
