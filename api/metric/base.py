"""What a metric is: batches are added, a score is computed."""

from __future__ import annotations

import abc
import copy
from typing import Any

from treepie.autodiff.tensor import TensorLike

from ..display import number_text, value_text
from ..pickling import check_picklable


class Metric(abc.ABC):
    """An accumulator: `update` takes batches, `compute` returns the score of all of them.

    `compute` raises ValueError before any element. `merge` takes an accumulator of the same class (else
    TypeError) and parameters (else ValueError), and leaves it unchanged. A batch that raises is not counted.

    >>> import treepie as tp
    >>> m = tp.metric.MAE()
    >>> m.update([1.0, 2.0], [1.0, 4.0])
    >>> m.update([5.0], [4.0])
    >>> m.compute()
    1.0
    """

    #: The name in error messages; the functions of `functions.py` set their own.
    _name: str

    def __init_subclass__(cls) -> None:
        """Name the class in error messages."""
        cls._name = f"metric.{cls.__name__}"

    @abc.abstractmethod
    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Add a batch of predictions and targets; shapes as for the function of the metric."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """Return the score of all batches."""

    @abc.abstractmethod
    def merge(self, other: Any) -> None:
        """Add the batches of another accumulator."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    def __repr__(self) -> str:
        """Show the parameters, except for options that are off, and the score so far."""
        shown = {k: v for k, v in self._arguments().items() if v is not None and v is not False}
        named = ", ".join(f"{k}={value_text(v)}" for k, v in shown.items())
        return f"{type(self).__name__}{f'({named})' if named else ''}: {self._score_text()}"

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that the repr shows."""
        return self._parameters()

    def _score_text(self) -> str:
        """Return the score so far in a few words."""
        try:
            return number_text(self.compute())
        except Exception:  # a metric of a user's may raise anything before the first batch
            return "no score yet"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return the state, for pickle and copy; PicklingError for a function without an importable name."""
        reduced = super().__reduce_ex__(protocol)
        check_picklable(self._name, reduced)
        return reduced

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters that two accumulators must share to be merged."""
        return {}

    def _check_same(self, other: Any) -> None:
        if type(other) is not type(self):
            kind = other._name if isinstance(other, Metric) else type(other).__name__
            raise TypeError(f"{self._name}.merge: other is a {kind}, expected a {self._name}")
        for name, mine in self._parameters().items():
            theirs = other._parameters()[name]
            if theirs != mine:
                raise ValueError(
                    f"{self._name}.merge: other has {name}={theirs!r}, expected {mine!r} as here"
                )


class Accumulator(Metric):
    """A metric of statistics that can be joined: a subclass says how to measure, join and score them."""

    _statistics: Any = None  # of all batches; None before the first

    @abc.abstractmethod
    def _measure(self, pred: TensorLike, target: TensorLike) -> Any:
        """Return the statistics of a batch."""

    @abc.abstractmethod
    def _join(self, mine: Any, new: Any, function: str) -> Any:
        """Return the statistics of both, in `mine` if it is mutable; errors name the function."""

    @abc.abstractmethod
    def _score(self, statistics: Any) -> Any:
        """Return the score."""

    def _add(self, new: Any, function: str) -> None:
        old = self._statistics
        self._statistics = new if old is None else self._join(old, new, function)

    def _check_any(self, count: float) -> None:
        if count == 0:
            raise ValueError(f"{self._name}: no elements were given, expected at least one")

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Add a batch of predictions and targets; shapes as for the function of the metric."""
        self._add(self._measure(pred, target), self._name)

    def compute(self) -> Any:
        """Return the score of all batches."""
        self._check_any(self._statistics is not None)
        return self._score(self._statistics)

    def merge(self, other: Any) -> None:
        """Add the batches of another accumulator."""
        self._check_same(other)
        if other._statistics is not None:
            self._add(copy.copy(other._statistics), f"{self._name}.merge")

    def reset(self) -> None:
        """Forget all batches."""
        self._statistics = None
