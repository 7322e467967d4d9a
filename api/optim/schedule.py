"""Schedules of the learning rate: functions from a 1-based step to a float.

Each raises ValueError for a number of steps below 1, and for values from which the rate would be negative: a
negative learning rate ascends. A schedule of one's own is not checked before it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from ..pickling import constructor

__all__ = ["constant", "cosine_decay", "exponential_decay", "join", "warmup_cosine", "warmup_linear"]

Schedule = Callable[[int], float]


def _steps(function: str, argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"schedule.{function}: {argument} is {value}, expected at least 1")


def _rates(function: str, **values: float) -> None:
    """Raise ValueError for a negative or NaN value, of which rates are multiples or means."""
    for argument, value in values.items():
        if not value >= 0:
            raise ValueError(
                f"schedule.{function}: {argument} is {value}, expected 0 or more, since a negative learning "
                "rate ascends"
            )


@constructor
def constant(value: float) -> Schedule:
    """Return the schedule of one value, 0 or more.

    >>> import treepie as tp
    >>> tp.optim.schedule.constant(0.1)(7)
    0.1
    """
    _rates("constant", value=value)
    return lambda step: value


@constructor
def cosine_decay(init_value: float, decay_steps: int, alpha: float = 0.0) -> Schedule:
    """Return half a cosine from init_value at step 0 to alpha * init_value at decay_steps.

    init_value, alpha: 0 or more. Loshchilov & Hutter 2017, without restarts.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.cosine_decay(1.0, decay_steps=100, alpha=0.1)
    >>> rate(0), rate(100), rate(200)
    (1.0, 0.1, 0.1)
    """
    _steps("cosine_decay", "decay_steps", decay_steps)
    _rates("cosine_decay", init_value=init_value, alpha=alpha)

    def schedule(step: int) -> float:
        if step >= decay_steps:
            return alpha * init_value
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / decay_steps))
        return init_value * ((1.0 - alpha) * cosine + alpha)

    return schedule


@constructor
def warmup_linear(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """Return a line from init_value at step 0 to peak_value at warmup_steps, then constant.

    init_value, peak_value: 0 or more.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.warmup_linear(0.0, 1.0, warmup_steps=10)
    >>> rate(5), rate(10), rate(20)
    (0.5, 1.0, 1.0)
    """
    return _warmup("warmup_linear", init_value, peak_value, warmup_steps, lambda step: step / warmup_steps)


@constructor
def warmup_cosine(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """Return half a cosine from init_value at step 0 to peak_value at warmup_steps, then constant.

    init_value, peak_value: 0 or more.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.warmup_cosine(0.0, 1.0, warmup_steps=10)
    >>> rate(0), rate(10), rate(20)
    (0.0, 1.0, 1.0)
    """

    def rise(step: int) -> float:
        return 0.5 * (1.0 - math.cos(math.pi * step / warmup_steps))

    return _warmup("warmup_cosine", init_value, peak_value, warmup_steps, rise)


def _warmup(
    function: str, init_value: float, peak_value: float, warmup_steps: int, rise: Callable[[int], float]
) -> Schedule:
    """Return the schedule from init_value to peak_value; rise: step -> fraction of the way."""
    _steps(function, "warmup_steps", warmup_steps)
    _rates(function, init_value=init_value, peak_value=peak_value)

    def schedule(step: int) -> float:
        if step >= warmup_steps:
            return peak_value
        return init_value + (peak_value - init_value) * rise(step)

    return schedule


@constructor
def exponential_decay(init_value: float, decay_rate: float, decay_steps: int) -> Schedule:
    """Return init_value * decay_rate**(step / decay_steps).

    Raises ValueError for a decay_rate that is not positive, and for a negative init_value.

    >>> import treepie as tp
    >>> tp.optim.schedule.exponential_decay(1.0, decay_rate=0.5, decay_steps=10)(20)
    0.25
    """
    _steps("exponential_decay", "decay_steps", decay_steps)
    _rates("exponential_decay", init_value=init_value)
    if not decay_rate > 0:
        raise ValueError(
            f"schedule.exponential_decay: decay_rate is {decay_rate}, expected a positive number"
        )

    def schedule(step: int) -> float:
        try:
            return float(init_value * decay_rate ** (step / decay_steps))
        except OverflowError:
            return math.inf  # which the optimizer refuses, with the step

    return schedule


@constructor
def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Return schedules one after another; each counts its steps from the boundary where it begins.

    boundaries: ascending steps, one fewer than schedules: schedule k + 1 begins at boundaries[k], its step 0.

    Raises ValueError for another number of boundaries, or unless they ascend.

    >>> import treepie as tp
    >>> schedule = tp.optim.schedule
    >>> rate = schedule.join([schedule.warmup_linear(0.0, 1.0, 10), schedule.cosine_decay(1.0, 90)], [10])
    >>> rate(5), rate(10), rate(100)
    (0.5, 1.0, 0.0)
    """
    parts, ends = list(schedules), list(boundaries)
    if not parts or len(ends) != len(parts) - 1:
        raise ValueError(
            f"schedule.join: {len(parts)} schedules and {len(ends)} boundaries given, expected one "
            "schedule more than boundaries"
        )
    if any(b <= a for a, b in itertools.pairwise(ends)):
        raise ValueError(f"schedule.join: boundaries are {ends}, expected ascending steps")

    def schedule(step: int) -> float:
        k = sum(step >= end for end in ends)
        return parts[k](step - ends[k - 1] if k else step)

    return schedule
