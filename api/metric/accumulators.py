"""Accumulators: exact scores of a data set, batch by batch; users reach them as `tp.metric.NAME`.

A mean of batches is not the score of the data set where the last batch is short, and never is for
precision, recall and F1. Accumulators therefore keep counts, sums or moments, in float64.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.autodiff import tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TensorLike

from ..pickling import check_picklable
from . import functions as score


class Metric(abc.ABC):
    """An accumulator: batches go in, the score of all of them comes out.

    `compute` before any element is a ValueError. `merge` takes an accumulator of the same class
    (else TypeError) and the same parameters (else ValueError), which stays as it was. A batch that is
    refused leaves no trace.
    """

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to make it again, for pickle and copy; PicklingError for a function without a name."""
        reduced = super().__reduce_ex__(protocol)
        check_picklable(self._name, reduced)
        return reduced

    @property
    def _name(self) -> str:
        return f"metric.{type(self).__name__}"

    def _parameters(self) -> dict[str, Any]:
        """Return what two accumulators must have in common to be merged."""
        return {}

    def _check_same(self, other: Any) -> None:
        if type(other) is not type(self):
            given = other._name if isinstance(other, Metric) else type(other).__name__
            raise TypeError(f"{self._name}.merge: other is a {given}, expected a {self._name}")
        for name, mine in self._parameters().items():
            given = other._parameters()[name]
            if given != mine:
                raise ValueError(f"{self._name}.merge: other has {name}={given!r}, expected {mine!r} as here")


class ConfusionMatrix(Metric):
    """Accumulates `confusion_matrix`."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._counts: score.Array | None = None

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `accuracy`."""
        self._add(self._name, score.counts_of(self._name, pred, target))

    def _add(self, function: str, counts: score.Array) -> None:
        if self._counts is None:
            self._counts = counts.copy()
        elif counts.shape != self._counts.shape:
            raise ValueError(
                f"{function}: given {len(counts)} classes, expected {len(self._counts)} as before"
            )
        else:
            self._counts += counts

    def _seen(self) -> score.Array:
        score.share(self._name, 0, 0 if self._counts is None else int(self._counts.sum()))
        return np.asarray(self._counts)

    def compute(self) -> Any:
        """Return the matrix: rows are true classes, columns predicted ones."""
        return tensor(self._seen())

    def merge(self, other: ConfusionMatrix) -> None:
        """Take what another accumulator has seen."""
        self._check_same(other)
        if other._counts is not None:
            self._add(f"{self._name}.merge", other._counts)

    def reset(self) -> None:
        """Forget all batches."""
        self._counts = None


class Precision(ConfusionMatrix):
    """Accumulates `precision`."""

    _score = staticmethod(score.precision_of)

    def __init__(self, average: str = "macro") -> None:
        """Take how classes are averaged: "macro", "micro" or "weighted"."""
        super().__init__()
        self._by = score.check_average(self._name, average)

    def _parameters(self) -> dict[str, Any]:
        return {"average": self._by}

    def compute(self) -> float:
        """Return the score of all batches so far."""
        return score.averaged(self._name, self._seen(), self._by, self._score)


class Recall(Precision):
    """Accumulates `recall`."""

    _score = staticmethod(score.recall_of)


class F1(Precision):
    """Accumulates `f1`."""

    _score = staticmethod(score.f1_of)


class _Sums(Metric):
    """A metric that is a sum over elements, divided by their number or weight."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._total, self._count = 0.0, 0.0

    def compute(self) -> float:
        """Return the score of all batches so far."""
        return score.share(self._name, self._total, self._count)

    def merge(self, other: _Sums) -> None:
        """Take what another accumulator has seen."""
        self._check_same(other)
        self._add(other._total, other._count)

    def reset(self) -> None:
        """Forget all batches."""
        self._total, self._count = 0.0, 0.0

    def _add(self, total: float, count: float) -> None:
        self._total, self._count = self._total + float(total), self._count + count


class Accuracy(_Sums):
    """Accumulates `accuracy`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `accuracy`."""
        predicted, true, _ = score.classes_of(self._name, pred, target)
        self._add((predicted == true).sum(), true.size)


class BinaryAccuracy(_Sums):
    """Accumulates `binary_accuracy`."""

    def __init__(self, threshold: float = 0.5) -> None:
        """Take the threshold above which a prediction is 1."""
        super().__init__()
        self._threshold = score.check_threshold(self._name, threshold)

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold}

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `binary_accuracy`."""
        x, y = score.bits_of(self._name, "pred", pred, target)
        self._add(((x > self._threshold) == y).sum(), x.size)


class TopKAccuracy(_Sums):
    """Accumulates `top_k_accuracy`."""

    def __init__(self, k: int = 5) -> None:
        """Take how many of the largest logits count."""
        super().__init__()
        self._k = score.check_k(self._name, k)

    def _parameters(self) -> dict[str, Any]:
        return {"k": self._k}

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `top_k_accuracy`."""
        hits = score.top_k_hits(self._name, pred, target, self._k)
        self._add(hits.sum(), hits.size)


class MSE(_Sums):
    """Accumulates `mse`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        errors = score.differences(self._name, pred, target)
        self._add(np.square(errors).sum(), errors.size)


class MAE(_Sums):
    """Accumulates `mae`."""

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        errors = score.differences(self._name, pred, target)
        self._add(np.abs(errors).sum(), errors.size)


class Mean(_Sums):
    """A running mean: of numbers, or of fn(pred, target), such as a loss, each batch by its size.

    >>> m = Mean()
    >>> m.update(1.0)
    >>> m.update([2.0, 6.0])
    >>> m.compute()
    3.0
    """

    def __init__(self, fn: Callable[[Any, Any], Any] | None = None) -> None:
        """Take a function whose result is the mean over a batch, or none to be given the numbers."""
        super().__init__()
        self._fn = fn

    def _parameters(self) -> dict[str, Any]:
        # Functions are not compared: one that was pickled on another rank is not the same object.
        return {"fn": None if self._fn is None else "a function"}

    def update(
        self, pred: TensorLike, target: TensorLike | None = None, *, weight: float | None = None
    ) -> None:
        """Take a batch: pred and target with fn; without it only pred, a number or an array of them.

        weight: what fn's result, or each number, counts; by default the length of target's first axis
            with fn (of 0 elements fn is not called), and 1 without. NaN gives NaN.
        """
        if (self._fn is None) != (target is None):
            given = "no target" if target is None else "a target"
            has = "fn is None" if self._fn is None else "fn is given"
            raise TypeError(f"{self._name}.update: {given} and {has}, expected a target exactly with fn")
        if weight is not None and not (weight >= 0 and np.isfinite(weight)):
            raise ValueError(f"{self._name}.update: weight is {weight}, expected a number of 0 or more")
        if self._fn is None or target is None:
            numbers = as_tensor(pred).numpy().astype(np.float64)
            each = 1.0 if weight is None else float(weight)
            self._add(numbers.sum() * each, numbers.size * each)
            return
        size = float(len(as_tensor(target)) if weight is None else weight)
        if size:
            self._add(float(self._fn(pred, target)) * size, size)


class AUC(Metric):
    """Accumulates `auc_roc`: keeps every score and target, 9 bytes of each, so that it is exact."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._batches: list[tuple[score.Array, score.Array]] = []

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch; shapes as for `auc_roc`."""
        x, positive = score.ranked_of(self._name, pred, target)
        self._batches.append((x, positive))

    def compute(self) -> float:
        """Return the score of all batches so far; ValueError unless they hold both targets."""
        scores, positive = zip(*self._batches, strict=True) if self._batches else ([[]], [[]])
        return score.auc_of(self._name, np.concatenate(scores), np.concatenate(positive))

    def merge(self, other: AUC) -> None:
        """Take what another accumulator has seen."""
        self._check_same(other)
        self._batches += other._batches

    def reset(self) -> None:
        """Forget all batches."""
        self._batches = []


class R2(Metric):
    """Accumulates `r2`, columns pooled."""

    def __init__(self) -> None:
        """Start without any batch."""
        self._moments = score.Moments()

    def update(self, pred: TensorLike, target: TensorLike) -> None:
        """Take a batch of one shape."""
        self._moments = self._moments.joined(score.moments_of(self._name, pred, target))

    def compute(self) -> float:
        """Return the score of all batches so far; ValueError where all targets are the same."""
        return self._moments.r2(self._name)

    def merge(self, other: R2) -> None:
        """Take what another accumulator has seen."""
        self._check_same(other)
        self._moments = self._moments.joined(other._moments)

    def reset(self) -> None:
        """Forget all batches."""
        self._moments = score.Moments()
