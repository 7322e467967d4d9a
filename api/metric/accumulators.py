"""Accumulators: exact scores of a data set, batch by batch; users reach them as `tp.metric.NAME`.

The mean of the batches' scores is not the data set's score if the last batch is short, and never is for
precision, recall and F1. Accumulators therefore keep counts, sums or moments, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from treepie.autodiff import Tensor, tensor
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TensorLike

from ..display import counted
from ..plot import plot_confusion
from .base import Accumulator, Metric as Metric
from .inputs import (
    Array,
    binary_of,
    check_probabilities,
    classes_of,
    counts_of,
    errors_of,
    hits_of,
    scores_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Average = Literal["macro", "micro", "weighted"]


# ---- means over elements
class _Mean(Accumulator):
    """Statistics: the sum of the elements, and their number or weight."""

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        """Return what is averaged."""
        raise NotImplementedError

    def _measure(self, pred: TensorLike, target: TensorLike) -> tuple[float, float]:
        values = self._values(pred, target)
        return float(values.sum()), float(values.size)

    def _join(self, mine: tuple[float, float], new: tuple[float, float], function: str) -> Any:
        return mine[0] + new[0], mine[1] + new[1]

    def _score(self, statistics: tuple[float, float]) -> float:
        total, count = statistics
        self._check_any(count)
        return total / count


class Accuracy(_Mean):
    """Accumulates `accuracy`, with the same from_logits.

    >>> import treepie as tp
    >>> m = tp.metric.Accuracy()
    >>> m.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    >>> m.compute()
    0.5
    """

    def __init__(self, from_logits: bool = False) -> None:
        self._from_logits = bool(from_logits)

    def _parameters(self) -> dict[str, Any]:
        return {"from_logits": self._from_logits}

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        predicted, true, _ = classes_of(self._name, pred, target, self._from_logits)
        return np.asarray(predicted == true)


class BinaryAccuracy(_Mean):
    """Accumulates `binary_accuracy`, with the same threshold and from_logits.

    >>> import treepie as tp
    >>> m = tp.metric.BinaryAccuracy(from_logits=True)
    >>> m.update([-1.5, 2.0, 3.0, 0.5], [0, 1, 1, 0])
    >>> m.compute()
    0.75
    """

    def __init__(self, threshold: float = 0.5, from_logits: bool = False) -> None:
        self._threshold, self._from_logits = float(threshold), bool(from_logits)
        if math.isnan(self._threshold):
            raise ValueError(f"{self._name}: threshold is {threshold}, expected a number")
        if from_logits and not 0 < self._threshold < 1:
            raise ValueError(
                f"{self._name}: threshold is {threshold} and from_logits is True, expected a probability "
                "between 0 and 1 (0.5 is a logit of 0)"
            )

    def _parameters(self) -> dict[str, Any]:
        return {"threshold": self._threshold, "from_logits": self._from_logits}

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        x, positive = binary_of(self._name, "pred", pred, target)
        threshold = self._threshold
        if self._from_logits:
            threshold = math.log(threshold / (1 - threshold))
        elif 0 < threshold < 1:
            check_probabilities(self._name, x)
        return np.asarray((x > threshold) == positive)


class TopKAccuracy(_Mean):
    """Accumulates `top_k_accuracy`, of the same k.

    >>> import treepie as tp
    >>> m = tp.metric.TopKAccuracy(k=2)
    >>> m.update([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]], [2, 2])
    >>> m.compute()
    0.5
    """

    def __init__(self, k: int = 5) -> None:
        self._k = integer(self._name, "k", k)
        if self._k < 1:
            raise ValueError(f"{self._name}: k is {k}, expected at least 1")

    def _parameters(self) -> dict[str, Any]:
        return {"k": self._k}

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        return hits_of(self._name, pred, target, self._k)


class MSE(_Mean):
    """Accumulates `mse`.

    >>> import treepie as tp
    >>> m = tp.metric.MSE()
    >>> m.update([1.0, 2.0], [1.0, 4.0])
    >>> m.compute()
    2.0
    """

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        return np.square(errors_of(self._name, pred, target)[0])


class MAE(_Mean):
    """Accumulates `mae`.

    >>> import treepie as tp
    >>> m = tp.metric.MAE()
    >>> m.update([1.0, 2.0], [1.0, 4.0])
    >>> m.compute()
    1.0
    """

    def _values(self, pred: TensorLike, target: TensorLike) -> Array:
        return np.abs(errors_of(self._name, pred, target)[0])


class Mean(_Mean):
    """A running mean: of numbers, or of fn(pred, target), such as a loss, each batch weighted by its size.

    fn: returns the mean over a batch; None: `update` takes the numbers themselves.

    >>> import treepie as tp
    >>> m = tp.metric.Mean()
    >>> m.update(1.0)
    >>> m.update([2.0, 6.0])
    >>> m.compute()
    3.0
    """

    def __init__(self, fn: Callable[[Any, Any], Any] | None = None) -> None:
        self._fn = fn

    def _parameters(self) -> dict[str, Any]:
        # Functions are not compared: one that was pickled on another rank is not the same object.
        return {"fn": None if self._fn is None else "a function"}

    def _arguments(self) -> dict[str, Any]:
        return {"fn": self._fn}

    def update(
        self, pred: TensorLike, target: TensorLike | None = None, *, weight: float | None = None
    ) -> None:
        """Add a batch: pred and target with fn; without fn only pred, a number or an array of numbers.

        weight: of fn's result, by default the length of target's first axis (fn is not called for weight 0),
            or of each number, by default 1. A NaN gives NaN.

        Raises TypeError for a target without fn or fn without a target, ValueError for a weight that is
        negative or not finite, and for fn's result if it is not a scalar.
        """
        if (self._fn is None) != (target is None):
            passed = "no target" if target is None else "a target"
            has = "fn is None" if self._fn is None else "fn is given"
            raise TypeError(f"{self._name}.update: {passed} and {has}, expected a target exactly with fn")
        if weight is not None and not (weight >= 0 and np.isfinite(weight)):
            raise ValueError(f"{self._name}.update: weight is {weight}, expected a number of 0 or more")
        if self._fn is None or target is None:
            numbers = as_tensor(pred).numpy().astype(np.float64)
            each = 1.0 if weight is None else float(weight)
            self._add((float(numbers.sum() * each), numbers.size * each), self._name)
            return
        size = float(len(as_tensor(target)) if weight is None else weight)
        if size:
            mean = self._fn(pred, target)
            if np.size(mean) != 1:
                raise ValueError(
                    f"{self._name}.update: fn returned an array of shape {np.shape(mean)}, expected a "
                    "scalar, the mean over the batch"
                )
            self._add((float(mean) * size, size), self._name)


# ---- counts of classes
class ConfusionMatrix(Accumulator):
    """Accumulates `confusion_matrix`, with the same from_logits.

    `update` raises ValueError for a batch with another number of classes than before.

    >>> import treepie as tp
    >>> m = tp.metric.ConfusionMatrix()
    >>> m.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    >>> m.compute().tolist()
    [[0, 0], [1, 1]]
    """

    def __init__(self, from_logits: bool = False) -> None:
        self._from_logits = bool(from_logits)

    def _parameters(self) -> dict[str, Any]:
        return {"from_logits": self._from_logits}

    def _measure(self, pred: TensorLike, target: TensorLike) -> Array:
        return counts_of(self._name, pred, target, self._from_logits)

    def _join(self, mine: Array, new: Array, function: str) -> Array:
        if new.shape != mine.shape:
            raise ValueError(f"{function}: given {len(new)} classes, expected {len(mine)} as before")
        mine += new
        return mine

    def _score(self, statistics: Array) -> Tensor | float:
        self._check_any(int(statistics.sum()))
        return tensor(statistics)

    def _score_text(self) -> str:
        if type(self) is not ConfusionMatrix or self._statistics is None:
            return super()._score_text()
        counts = self._statistics
        return f"{counted(len(counts), 'class', 'classes')}, {counted(int(counts.sum()), 'example')}"

    def plot(self, labels: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
        """Draw the counts, coloured by their share of the true class; return the axes of matplotlib.

        labels: a name for each class; None for their numbers.  ax: axes to draw on; None for a new figure.
        `ax.figure.savefig("confusion.png")` writes it, `matplotlib.pyplot.show()` opens a window.

        Raises ImportError without matplotlib, ValueError before any element, and for another number of labels
        than classes.

        >>> import treepie as tp
        >>> m = tp.metric.ConfusionMatrix()
        >>> m.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
        >>> ax = m.plot(labels=["cat", "dog"])  # doctest: +SKIP
        """
        self._check_any(self._statistics is not None)
        return plot_confusion(self._statistics, labels, ax)


def _ratio(a: Any, b: Any) -> Any:
    return np.where(b > 0, a / np.maximum(b, 1), 0.0)


class Precision(ConfusionMatrix):
    """Accumulates `precision`, with the same average and from_logits.

    >>> import treepie as tp
    >>> m = tp.metric.Precision("micro")
    >>> m.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    >>> m.compute()
    0.5
    """

    def __init__(self, average: Average = "macro", from_logits: bool = False) -> None:
        super().__init__(from_logits)
        if average not in ("macro", "micro", "weighted"):
            expected = "'macro', 'micro' or 'weighted'"
            raise ValueError(f"{self._name}: average is {average!r}, expected {expected}")
        self._average = average

    def _parameters(self) -> dict[str, Any]:
        return {"average": self._average, **super()._parameters()}

    def _rate(self, hits: Any, predicted: Any, true: Any) -> Any:
        """Return the score of each class from how often it was predicted correctly, predicted, and true."""
        return _ratio(hits, predicted)

    def _score(self, statistics: Array) -> float:
        self._check_any(int(statistics.sum()))
        hits, predicted, true = np.diag(statistics), statistics.sum(0), statistics.sum(1)
        if self._average == "micro":
            return float(self._rate(hits.sum(), predicted.sum(), true.sum()))
        scores = self._rate(hits, predicted, true)
        if self._average == "macro":
            return float(scores[predicted + true > 0].mean())
        return float((scores * true).sum() / true.sum())


class Recall(Precision):
    """Accumulates `recall`, with the same average and from_logits.

    >>> import treepie as tp
    >>> m = tp.metric.Recall()
    >>> m.update([[0.1, 0.9], [0.8, 0.2], [0.9, 0.1]], [1, 1, 0])
    >>> m.compute()
    0.75
    """

    def _rate(self, hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(hits, true)


class F1(Precision):
    """Accumulates `f1`, with the same average and from_logits.

    >>> import treepie as tp
    >>> m = tp.metric.F1("micro")
    >>> m.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    >>> m.compute()
    0.5
    """

    def _rate(self, hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(2 * hits, predicted + true)


# ---- others
class AUC(Accumulator):
    """Accumulates `auc_roc`; exact, because it keeps every score and target, 9 bytes for each pair.

    >>> import treepie as tp
    >>> m = tp.metric.AUC()
    >>> m.update([0.1, 0.4, 0.35], [0, 0, 1])
    >>> m.update([0.8], [1])
    >>> m.compute()
    0.75
    """

    def _measure(self, pred: TensorLike, target: TensorLike) -> list[tuple[Array, Array]]:
        return [scores_of(self._name, pred, target)]

    def _join(self, mine: list[Any], new: list[Any], function: str) -> list[Any]:
        mine += new
        return mine

    def _score(self, statistics: list[tuple[Array, Array]]) -> float:
        scores, positive = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
        self._check_any(scores.size)
        if positive.all() or not positive.any():
            raise ValueError(f"{self._name}: targets are all {int(positive[0])}, expected both 0 and 1")
        _, index, count = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(count) - (count - 1) / 2)[index]  # from 1; ties share the mean of their ranks
        # In float64 even where NumPy's ints are 32 bits: the product overflows those at 100,000 elements.
        ones, zeros = float(positive.sum()), float((~positive).sum())
        return (float(ranks[positive].sum()) - ones * (ones + 1) / 2) / (ones * zeros)
