"""Means of numbers: over the batches of a pipeline, and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from treepie.autodiff import Tensor

from ..data.check import check_not_empty
from ..data.element import unpacking
from ..data.pipeline import Data
from ..display import cut, number_text


# ---- over data
def eval(fn: Callable[..., Any], data: Data) -> float:
    """Return the mean of fn(batch) over the remaining batches, each with the same weight.

    fn: returns a number; a function of several arguments takes the parts of a tuple.
    `Trainer.evaluate` returns a score of the data set that does not depend on the batches.

    Raises ValueError for data that is empty or exhausted, TypeError for other than a `Data`.

    >>> import treepie as tp
    >>> tp.metric.eval(lambda x: x.mean(), tp.Data.prepare([1.0, 2.0, 6.0], batch_size=2))
    3.75
    """
    call = unpacking(fn)
    return _means("metric.eval", lambda batch: {"": call(batch)}, data)[""]


def eval_many(fn: Callable[..., dict[str, Any]], data: Data) -> dict[str, float]:
    """Return the means of fn(batch)'s values over the remaining batches, sorted by name.

    fn: returns {name: number}. The mean of a name is over the batches whose result has it.

    Raises as `eval` does, and TypeError for another result of fn.

    >>> import treepie as tp
    >>> data = tp.Data.prepare([1.0, 2.0, 6.0], batch_size=2)
    >>> tp.metric.eval_many(lambda x: {"size": len(x), "max": x.max()}, data)
    {'max': 4.0, 'size': 1.5}
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
    """Running means of named numbers.

    >>> import treepie as tp
    >>> t = tp.metric.Tracker()
    >>> t.observe("loss", 0.5)
    >>> t.observe("loss", 0.25)
    >>> t.mean("loss"), t.count("loss")
    (0.375, 2)
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        """Show the means."""
        return cut(f"Tracker({', '.join(f'{name}={number_text(mean)}' for name, mean in self.to_list())})")

    def observe(self, name: str, value: float | Tensor) -> None:
        """Add a number to the mean of a name."""
        total, count = self._values.get(name, (0.0, 0))
        self._values[name] = total + float(value), count + 1

    def _of(self, name: str) -> tuple[float, int]:
        if name not in self._values:
            names = ", ".join(sorted(self._values)) or "nothing"
            raise KeyError(f"Tracker: name is {name!r}, expected one observed: {names}")
        return self._values[name]

    def mean(self, name: str) -> float:
        """Return the mean of a name's numbers; KeyError for a name never observed."""
        total, count = self._of(name)
        return total / count

    def count(self, name: str) -> int:
        """Return the number of a name's numbers; 0 for a name never observed."""
        return self._values.get(name, (0.0, 0))[1]

    def to_list(self) -> list[tuple[str, float]]:
        """Return (name, mean), sorted by name."""
        return [(name, self.mean(name)) for name in sorted(self._values)]

    def reset(self) -> None:
        """Forget all numbers."""
        self._values.clear()

    def summary(self) -> str:
        """Return the means on one line.

        >>> import treepie as tp
        >>> t = tp.metric.Tracker()
        >>> t.observe("loss", 0.4231)
        >>> t.summary()
        'loss: 0.4231'
        """
        return "  ".join(f"{name}: {mean:.4f}" for name, mean in self.to_list())
