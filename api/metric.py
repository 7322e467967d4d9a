"""Metrics: functions of one batch (from `score.py`), and accumulators with exact scores of a data set.

A mean of batches is not the score of the data set where the last batch is short, and never is for
precision, recall and F1. Accumulators therefore keep counts and sums, in float64.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TensorLike

from . import score
from .data import Data, check_not_empty, unpacking
from .score import (
    accuracy,
    auc_roc,
    binary_accuracy,
    confusion_matrix,
    f1,
    mae,
    mse,
    precision,
    r2,
    recall,
    top_k_accuracy,
)

# fmt: off
__all__ = [
    "AUC", "F1", "MAE", "MSE", "R2", "Accuracy", "BinaryAccuracy", "ConfusionMatrix", "Mean", "Metric",
    "Precision", "Recall", "TopKAccuracy", "Tracker", "accuracy", "auc_roc", "binary_accuracy",
    "confusion_matrix", "eval", "eval_many", "f1", "mae", "mse", "precision", "r2", "recall",
    "top_k_accuracy",
]
# fmt: on


class Metric(abc.ABC):
    """An accumulator: batches go in, the score of all of them comes out."""

    @abc.abstractmethod
    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of predictions and their targets."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """Return the score of all batches so far."""

    @abc.abstractmethod
    def merge(self, other: Any) -> None:
        """Take what another accumulator of the same kind has seen."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    @property
    def _name(self) -> str:
        return f"metric.{type(self).__name__}"

    def _check_alike(self, other: Any, **settings: Any) -> None:
        """Refuse to merge what another kind of metric, or one of other settings, has seen."""
        if type(other) is not type(self):
            raise TypeError(f"{self._name}: merged with a {type(other).__name__}, expected its own kind")
        for name, mine in settings.items():
            theirs = getattr(other, f"_{name}")
            if theirs != mine:
                raise ValueError(f"{self._name}: merged with one of {name} {theirs!r}, expected {mine!r}")


class ConfusionMatrix(Metric):
    """Accumulates `confusion_matrix`."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._counts: score.Array | None = None

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `accuracy`."""
        self._add(score.counts_of(self._name, pred, target))

    def _add(self, counts: score.Array) -> None:
        if self._counts is None:
            self._counts = counts.copy()
        elif counts.shape != self._counts.shape:
            raise ValueError(
                f"{self._name}: given {len(counts)} classes, expected {len(self._counts)} as before"
            )
        else:
            self._counts += counts

    def _seen(self) -> score.Array:
        if self._counts is None:
            raise ValueError(f"{self._name}: no elements were given, expected at least one")
        return self._counts

    def compute(self) -> Any:
        """Return the matrix: rows are true classes, columns predicted ones."""
        return tensor(self._seen())

    def merge(self, other: ConfusionMatrix) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other)
        if other._counts is not None:
            self._add(other._counts)

    def reset(self) -> None:
        """Forget all batches."""
        self._counts = None


class Precision(ConfusionMatrix):
    """Accumulates `precision`."""

    _score = staticmethod(score.precision_of)

    def __init__(self, average: str = "macro") -> None:
        """Take how classes are averaged: "macro", "micro" or "weighted"."""
        super().__init__()
        self._average = score.check_average(self._name, average)

    def merge(self, other: ConfusionMatrix) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other, average=self._average)
        super().merge(other)

    def compute(self) -> float:
        """Return the score of all batches so far."""
        return score.averaged(self._name, self._seen(), self._average, self._score)


class Recall(Precision):
    """Accumulates `recall`."""

    _score = staticmethod(score.recall_of)


class F1(Precision):
    """Accumulates `f1`."""

    _score = staticmethod(score.f1_of)


class _Sums(Metric):
    """A metric that is a sum over elements, divided by their number."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._total, self._count = 0.0, 0

    def compute(self) -> float:
        """Return the score of all batches so far."""
        return score.share(self._name, self._total, self._count)

    def merge(self, other: _Sums) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other)
        self._total, self._count = self._total + other._total, self._count + other._count

    def reset(self) -> None:
        """Forget all batches."""
        self._total, self._count = 0.0, 0

    def _add(self, values: score.Array) -> None:
        self._total, self._count = self._total + float(values.sum()), self._count + values.size


class Accuracy(_Sums):
    """Accumulates `accuracy`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `accuracy`."""
        predicted, true, _ = score.classes_of("metric.Accuracy", pred, target)
        self._add(predicted == true)


class BinaryAccuracy(_Sums):
    """Accumulates `binary_accuracy`."""

    def __init__(self, threshold: float = 0.5) -> None:
        """Take the threshold above which a prediction is 1."""
        super().__init__()
        self._threshold = threshold

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        self._add(score.binary_hits(self._name, pred, target, self._threshold))

    def merge(self, other: _Sums) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other, threshold=self._threshold)
        super().merge(other)


class TopKAccuracy(_Sums):
    """Accumulates `top_k_accuracy`."""

    def __init__(self, k: int = 5) -> None:
        """Take how many of the largest logits count."""
        super().__init__()
        self._k = k

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `top_k_accuracy`."""
        self._add(score.top_k_hits(self._name, pred, target, self._k))

    def merge(self, other: _Sums) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other, k=self._k)
        super().merge(other)


class MSE(_Sums):
    """Accumulates `mse`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        x, y = score.numbers_of("metric.MSE", pred, target)
        self._add(np.square(x - y))


class MAE(_Sums):
    """Accumulates `mae`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        x, y = score.numbers_of("metric.MAE", pred, target)
        self._add(np.abs(x - y))


class Mean(_Sums):
    """Accumulates the mean of fn(pred, target), such as a loss, each batch weighted by its size."""

    def __init__(self, fn: Callable[[Any, Any], Any]) -> None:
        """Take a function whose result is the mean over a batch."""
        super().__init__()
        self._fn = fn

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch, its first axis as long as it has elements."""
        size = len(as_tensor(target))
        self._total += float(self._fn(pred, target)) * size
        self._count += size


class AUC(Metric):
    """Accumulates `auc_roc`. It keeps every score, since no smaller summary gives the exact area."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._batches: list[tuple[score.Array, score.Array]] = []

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of scores and targets 0 or 1, (b,) or (b, 1)."""
        self._batches.append(score.scores_of(self._name, pred, target))

    def compute(self) -> float:
        """Return the area of all batches so far."""
        if not self._batches:
            raise ValueError(f"{self._name}: no elements were given, expected at least one")
        scores, targets = (np.concatenate(column) for column in zip(*self._batches, strict=True))
        return score.area(self._name, scores, targets)

    def merge(self, other: AUC) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other)
        self._batches += other._batches

    def reset(self) -> None:
        """Forget all batches."""
        self._batches = []


class R2(Metric):
    """Accumulates `r2`: squared errors, and the targets' mean and squared distance from it.

    Batches are joined by the formula of Chan, Golub & LeVeque 1979, with means counted from the first
    target, so that nothing cancels where targets are large and close together.
    """

    def __init__(self) -> None:
        """Start without any batch."""
        self._count, self._origin, self._mean, self._spread, self._error = 0, 0.0, 0.0, 0.0, 0.0

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        x, y = score.numbers_of(self._name, pred, target)
        if y.size:
            origin = float(y.flat[0])
            away = y - origin
            mean = float(away.mean())
            spread, error = float(np.square(away - mean).sum()), float(np.square(x - y).sum())
            self._join(y.size, origin, mean, spread, error)

    def _join(self, count: int, origin: float, mean: float, spread: float, error: float) -> None:
        if not self._count:
            self._origin = origin
        total, apart = self._count + count, (origin - self._origin) + (mean - self._mean)
        self._spread += spread + apart * apart * (self._count * count / total)
        self._mean += apart * (count / total)
        self._count, self._error = total, self._error + error

    def compute(self) -> float:
        """Return the score of all batches so far."""
        if self._count == 0:
            raise ValueError(f"{self._name}: no elements were given, expected at least one")
        if self._spread == 0:
            raise ValueError(f"{self._name}: the targets have no variance, expected values that differ")
        return 1.0 - self._error / self._spread

    def merge(self, other: R2) -> None:
        """Take what another accumulator has seen."""
        self._check_alike(other)
        if other._count:
            self._join(other._count, other._origin, other._mean, other._spread, other._error)

    def reset(self) -> None:
        """Forget all batches."""
        self._count, self._origin, self._mean, self._spread, self._error = 0, 0.0, 0.0, 0.0, 0.0


# ---- over data
def eval(fn: Callable[..., Any], data: Data) -> float:
    """Return the mean of fn(batch) over the batches that are left."""
    return eval_many(lambda batch: {"": unpacking(fn)(batch)}, data)[""]


def eval_many(fn: Callable[..., dict[str, Any]], data: Data) -> dict[str, float]:
    """Return the means of fn(batch)'s values over the batches that are left, sorted by name."""
    check_not_empty("metric.eval", data)
    tracker = Tracker()
    call = unpacking(fn)
    for batch in data:
        for name, value in call(batch).items():
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
