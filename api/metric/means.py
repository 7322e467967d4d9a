"""Means of numbers: over the batches of a pipeline, and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from treepie.autodiff import Tensor

from ..data.pipeline import Data, check_not_empty, unpacking


# ---- over data
def eval(fn: Callable[..., Any], data: Data) -> float:
    """Return the mean of fn(batch) over the batches that are left, a short one counting as any other.

    The score of a data set, whatever its batches, is what `Trainer.evaluate` returns.
    """
    call = unpacking(fn)
    return _means("metric.eval", lambda batch: {"": call(batch)}, data)[""]


def eval_many(fn: Callable[..., dict[str, Any]], data: Data) -> dict[str, float]:
    """Return the means of fn(batch)'s values over the batches that are left, sorted by name.

    A name's mean is over the batches that gave it.
    """
    return _means("metric.eval_many", unpacking(fn), data)


def _means(function: str, call: Callable[[Any], dict[str, Any]], data: Data) -> dict[str, float]:
    check_not_empty(function, data)
    tracker = Tracker()
    for batch in data:
        values = call(batch)
        if not isinstance(values, Mapping):
            raise TypeError(f"{function}: fn returned a {type(values).__name__}, expected {{name: number}}")
        for name, value in values.items():
            tracker.observe(name, value)
    return dict(tracker.to_list())


class Tracker:
    """Running means of named numbers."""

    def __init__(self) -> None:
        """Start without any."""
        self._values: dict[str, tuple[float, int]] = {}

    def observe(self, name: str, value: float | Tensor) -> None:
        """Take one number."""
        total, count = self._values.get(name, (0.0, 0))
        self._values[name] = total + float(value), count + 1

    def _of(self, name: str) -> tuple[float, int]:
        if name not in self._values:
            known = ", ".join(sorted(self._values)) or "nothing"
            raise KeyError(f"Tracker: name is {name!r}, expected one observed: {known}")
        return self._values[name]

    def mean(self, name: str) -> float:
        """Return the mean of a name's numbers."""
        total, count = self._of(name)
        return total / count

    def count(self, name: str) -> int:
        """Return how many numbers a name has; 0 for a name never observed."""
        return self._values.get(name, (0.0, 0))[1]

    def to_list(self) -> list[tuple[str, float]]:
        """Return (name, mean), sorted by name."""
        return [(name, self.mean(name)) for name in sorted(self._values)]

    def reset(self) -> None:
        """Forget all numbers."""
        self._values.clear()

    def summary(self) -> str:
        """Return the means on one line.

        >>> t = Tracker()
        >>> t.observe("loss", 0.4231)
        >>> t.summary()
        'loss: 0.4231'
        """
        return "  ".join(f"{name}: {mean:.4f}" for name, mean in self.to_list())
