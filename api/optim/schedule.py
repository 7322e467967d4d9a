"""Schedules of the learning rate: functions from a 1-based step to a float.

Each raises ValueError for a number of steps below 1, and for values from which the rate would be negative: a
negative learning rate ascends. A schedule of one's own is not checked before it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from ..pickling import constructor

__all__ = [
    *("constant", "cosine_decay", "cosine_restarts", "coslog", "exponential_decay", "join", "one_cycle"),
    *("piecewise_constant", "warmup_cosine", "warmup_cosine_decay", "warmup_linear"),
]


def __dir__() -> list[str]:
    return __all__


Schedule = Callable[[int], float]


def _steps(function: str, argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"schedule.{function}: {argument} is {value}, expected at least 1")


def _boundaries(function: str, what: str, count: int, boundaries: Sequence[int]) -> list[int]:
    """Return ascending boundaries between so many parts, or raise ValueError."""
    ends = list(boundaries)
    if not count or len(ends) != count - 1:
        raise ValueError(
            f"schedule.{function}: {count} {what} and {len(ends)} boundaries, expected one more of {what} "
            "than of boundaries"
        )
    if any(b <= a for a, b in itertools.pairwise(ends)):
        raise ValueError(f"schedule.{function}: boundaries are {ends}, expected ascending steps")
    return ends


def _half_cosine(start: float, end: float, fraction: float) -> float:
    """Return the value at a fraction of half a cosine from start to end."""
    rest = 0.5 * (1.0 + math.cos(math.pi * fraction))
    return rest * start + (1.0 - rest) * end


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

    It never decays: `warmup_cosine_decay` does after a linear warmup.

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
def warmup_cosine_decay(
    init_value: float, peak_value: float, warmup_steps: int, decay_steps: int, end_value: float = 0.0
) -> Schedule:
    """Return a line from init_value to peak_value at warmup_steps, then half a cosine to end_value.

    decay_steps: the step at which it ends at end_value, warmup included, as in Optax; ValueError unless it is
        above warmup_steps.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.warmup_cosine_decay(0.0, 1.0, warmup_steps=10, decay_steps=110)
    >>> rate(5), rate(10), rate(60), rate(110), rate(200)
    (0.5, 1.0, 0.5, 0.0, 0.0)
    """
    _steps("warmup_cosine_decay", "warmup_steps", warmup_steps)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"schedule.warmup_cosine_decay: decay_steps is {decay_steps}, expected more than warmup_steps, "
            f"{warmup_steps}, which they include"
        )

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return init_value + (peak_value - init_value) * step / warmup_steps
        if step >= decay_steps:
            return end_value
        fraction = (step - warmup_steps) / (decay_steps - warmup_steps)
        return _half_cosine(peak_value, end_value, fraction)

    return schedule


@constructor
def cosine_restarts(
    init_value: float, first_steps: int, growth: float = 1.0, decay: float = 1.0, alpha: float = 0.0
) -> Schedule:
    """Return cosines that restart: SGDR (Loshchilov & Hutter 2017).

    first_steps: length of the first cycle, which falls from init_value towards alpha * init_value.
    growth: each cycle is as many times as long as the one before; at least 1.
    decay: each cycle starts at this multiple of the start of the one before, and falls towards the same end;
        above 0, at most 1.

    Raises ValueError for others.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.cosine_restarts(1.0, first_steps=10, growth=2.0)
    >>> rate(0), rate(5), rate(10), rate(20), rate(30)
    (1.0, 0.5, 1.0, 0.5, 1.0)
    """
    _steps("cosine_restarts", "first_steps", first_steps)
    _rates("cosine_restarts", init_value=init_value, alpha=alpha)
    if not (1 <= growth < math.inf and 0 < decay <= 1):
        raise ValueError(
            f"schedule.cosine_restarts: growth is {growth} and decay {decay}, expected at least 1 and a "
            "number above 0 and at most 1"
        )
    log = math.log1p(growth - 1)

    def begin(cycle: int) -> float:
        if not log:
            return first_steps * cycle
        start = first_steps * math.expm1(cycle * log) / (growth - 1)
        # 3**5 by the logarithm is not 243: a cycle of whole steps begins at a whole step.
        return round(start) if abs(start - round(start)) < 1e-9 * start else start

    def schedule(step: int) -> float:
        step = max(step, 0)
        cycle = int(math.log1p(step / first_steps * (growth - 1)) / log) if log else step // first_steps
        # The logarithm is rounded.
        cycle += begin(cycle + 1) <= step
        cycle -= begin(cycle) > step
        start = begin(cycle)
        top, end = init_value * decay**cycle, alpha * init_value
        return _half_cosine(top, end, (step - start) / (begin(cycle + 1) - start))

    return schedule


#: Of `coslog`: the last cycle takes half of the steps, the first one 2^-64 of them.
_MOST_CYCLES = 64


@constructor
def coslog(peak_value: float, total_steps: int, cycles: int = 4) -> Schedule:
    """Return cycles from 0 to peak_value and back to 0, each about twice as long as the one before.

        peak_value / 2 * (1 - cos(2 pi log2(1 + (2**cycles - 1) t))) at the fraction t = step / total_steps

    It is 0 past total_steps. Short first cycles find a good region, the last one converges: the schedule of
    RealMLP (Holzmüller et al. 2024, section 3), which has 4 cycles.

    peak_value: 0 or more.  total_steps: at least 1.  cycles: 1 to 64. ValueError for others.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.coslog(1.0, total_steps=15)
    >>> [round(rate(step), 3) for step in (0, 1, 3, 7, 15)], round(rate(4), 2)
    ([0.0, 0.0, 0.0, 0.0, 0.0], 0.72)
    """
    _steps("coslog", "total_steps", total_steps)
    _steps("coslog", "cycles", cycles)
    if cycles > _MOST_CYCLES:
        raise ValueError(f"schedule.coslog: cycles is {cycles}, expected at most {_MOST_CYCLES}")
    _rates("coslog", peak_value=peak_value)

    def schedule(step: int) -> float:
        fraction = min(max(step, 0), total_steps) / total_steps
        phase = math.log2(1.0 + (2.0**cycles - 1.0) * fraction)
        return peak_value * 0.5 * (1.0 - math.cos(2.0 * math.pi * phase))

    return schedule


@constructor
def one_cycle(
    peak_value: float,
    total_steps: int,
    warmup: float = 0.3,
    start_factor: float = 25.0,
    end_factor: float = 1e4,
) -> Schedule:
    """Return half a cosine up to peak_value and one down: the 1cycle policy (Smith & Topin 2019).

    It starts at peak_value / start_factor, and ends at that / end_factor at total_steps, as in PyTorch.

    total_steps: at least 1.  warmup: the fraction of the steps that rise, in (0, 1).
    start_factor, end_factor: positive.

    Raises ValueError for others.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.one_cycle(1.0, total_steps=100)
    >>> rate(0), rate(30), rate(100)
    (0.04, 1.0, 4e-06)
    """
    _steps("one_cycle", "total_steps", total_steps)
    if not (0 < warmup < 1 and start_factor > 0 and end_factor > 0):
        raise ValueError(
            f"schedule.one_cycle: warmup is {warmup}, start_factor {start_factor} and end_factor "
            f"{end_factor}, expected a fraction between 0 and 1 and positive numbers"
        )
    start, top = peak_value / start_factor, warmup * total_steps

    def schedule(step: int) -> float:
        if step >= total_steps:
            return start / end_factor
        if step < top:
            return _half_cosine(start, peak_value, step / top)
        return _half_cosine(peak_value, start / end_factor, (step - top) / (total_steps - top))

    return schedule


@constructor
def piecewise_constant(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """Return values[0], and values[k + 1] from step boundaries[k] on.

    boundaries: ascending steps, one fewer than values, else ValueError.

    >>> import treepie as tp
    >>> rate = tp.optim.schedule.piecewise_constant([0.1, 0.01], [100])
    >>> rate(99), rate(100)
    (0.1, 0.01)
    """
    levels, ends = list(values), _boundaries("piecewise_constant", "values", len(values), boundaries)
    return lambda step: levels[sum(step >= end for end in ends)]


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
    parts, ends = list(schedules), _boundaries("join", "schedules", len(schedules), boundaries)

    def schedule(step: int) -> float:
        k = sum(step >= end for end in ends)
        return parts[k](step - ends[k - 1] if k else step)

    return schedule
