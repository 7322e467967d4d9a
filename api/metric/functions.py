"""Scores of one batch, or of a whole data set held in memory; users reach them as `tp.metric.NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TensorLike

Array = NDArray[Any]


# ---- classes
def check_no_nan(function: str, argument: str, x: Array) -> Array:
    """Return an array without NaN, which NumPy orders as the largest number, or raise ValueError."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        count = int(np.isnan(x).sum())
        raise ValueError(f"{function}: {argument} has {count} NaN of {x.size} elements, expected none")
    return x


def classes_of(function: str, logits: TensorLike, targets: TensorLike) -> tuple[Array, Array, int]:
    """Return predicted and true classes, flat, and how many classes there are."""
    x, y = check_no_nan(function, "logits", as_tensor(logits).numpy()), as_tensor(targets).numpy()
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise ValueError(f"{function}: targets are not whole numbers, expected classes")
    if x.ndim == y.ndim + 1 and x.shape[:-1] == y.shape and x.shape[-1] > 1:
        classes, predicted = x.shape[-1], x.argmax(-1)
    elif x.size == y.size and {x.shape, y.shape} <= {(y.size,), (y.size, 1)}:
        classes, predicted = 2, np.asarray(x > 0.5)
    else:
        raise ValueError(
            f"{function}: logits have shape {x.shape} and targets {y.shape}, expected "
            "(b, c) and (b,), or probabilities (b,) or (b, 1) and (b,)"
        )
    wrong = y[(y < 0) | (y >= classes)]
    if wrong.size:
        raise ValueError(f"{function}: a target is {int(wrong[0])}, expected 0 to {classes - 1}")
    return predicted.reshape(-1).astype(np.int64), y.reshape(-1).astype(np.int64), classes


def bits_of(function: str, argument: str, pred: TensorLike, targets: TensorLike) -> tuple[Array, Array]:
    """Return predictions in float64 and whether each target is 1, both flat."""
    x, y = as_tensor(pred).numpy(), as_tensor(targets).numpy()
    if x.shape != y.shape and not {x.shape, y.shape} <= {(y.size,), (y.size, 1)}:
        raise ValueError(
            f"{function}: {argument} has shape {x.shape} and targets {y.shape}, expected one shape, "
            "or (b, 1) and (b,)"
        )
    if not np.isin(y, (0, 1)).all():
        wrong = y[~np.isin(y, (0, 1))][0]
        raise ValueError(f"{function}: a target is {wrong}, expected 0 or 1")
    return check_no_nan(function, argument, x).reshape(-1).astype(np.float64), y.reshape(-1) == 1


def counts_of(function: str, logits: TensorLike, targets: TensorLike) -> Array:
    """Return how often each class (row) was predicted as each class (column)."""
    predicted, true, classes = classes_of(function, logits, targets)
    flat = np.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def share(function: str, part: float, whole: float) -> float:
    """Return part / whole, or raise ValueError where there was nothing."""
    if whole == 0:
        raise ValueError(f"{function}: no elements were given, expected at least one")
    return float(part) / float(whole)


def accuracy(logits: TensorLike, targets: TensorLike) -> float:
    """Return the share of right predictions.

    logits: (..., c), the largest of which is the prediction, or probabilities (b,) or (b, 1), of
        which those above 0.5 predict 1; NaN is a ValueError.  targets: (...), classes.
    """
    predicted, true, _ = classes_of("metric.accuracy", logits, targets)
    return share("metric.accuracy", (predicted == true).sum(), true.size)


def binary_accuracy(pred: TensorLike, targets: TensorLike, threshold: float = 0.5) -> float:
    """Return the share of predictions on the right side of a threshold: above it for targets of 1.

    pred, targets: one shape, or (b, 1) and (b,); NaN, and a target that is neither 0 nor 1, is a
        ValueError.
    """
    name = "metric.binary_accuracy"
    x, y = bits_of(name, "pred", pred, targets)
    return share(name, ((x > check_threshold(name, threshold)) == y).sum(), x.size)


def check_threshold(function: str, threshold: float) -> float:
    """Return a threshold, or raise ValueError for NaN."""
    if np.isnan(threshold):
        raise ValueError(f"{function}: threshold is {threshold}, expected a number")
    return float(threshold)


def confusion_matrix(logits: TensorLike, targets: TensorLike) -> Tensor:
    """Return how often each class (row) was predicted as each class (column), int64 (c, c).

    logits, targets: as for `accuracy`.
    """
    return tensor(counts_of("metric.confusion_matrix", logits, targets))


def top_k_accuracy(logits: TensorLike, targets: TensorLike, k: int = 5) -> float:
    """Return the share of targets among the k largest logits; of equal logits the first count.

    logits: (..., c).  targets: (...), classes.
    """
    hits = top_k_hits("metric.top_k_accuracy", logits, targets, k)
    return share("metric.top_k_accuracy", hits.sum(), hits.size)


def top_k_hits(function: str, logits: TensorLike, targets: TensorLike, k: int) -> Array:
    """Return whether each target is among the k largest logits."""
    x, y = as_tensor(logits).numpy(), as_tensor(targets).numpy()
    if x.ndim != y.ndim + 1 or x.shape[-1] < 2:
        raise ValueError(
            f"{function}: logits have shape {x.shape} and targets {y.shape}, expected (..., c) and (...)"
        )
    _, true, classes = classes_of(function, logits, targets)
    if check_k(function, k) > classes:
        raise ValueError(f"{function}: k is {k}, expected 1 to {classes}")
    rows = x.reshape(-1, classes)
    mine = np.take_along_axis(rows, true[:, None], -1)
    earlier = np.arange(classes) < true[:, None]
    ahead = (rows > mine) | ((rows == mine) & earlier)
    return np.asarray(ahead.sum(-1) < k)


def check_k(function: str, k: int) -> int:
    """Return k of at least 1, or raise TypeError or ValueError."""
    if integer(function, "k", k) < 1:
        raise ValueError(f"{function}: k is {k}, expected at least 1")
    return integer(function, "k", k)


def averaged(function: str, counts: Array, average: str, score: Callable[..., Array]) -> float:
    """Return a score of (true positives, predicted, true) of each class, averaged."""
    hits, predicted, true = np.diag(counts), counts.sum(0), counts.sum(1)
    share(function, 0, counts.sum())
    if average == "micro":
        return float(score(hits.sum(), predicted.sum(), true.sum()))
    scores, occurring = score(hits, predicted, true), predicted + true > 0
    if average == "macro":
        return float(scores[occurring].mean())
    return float((scores * true).sum() / true.sum())


def _ratio(a: Any, b: Any) -> Any:
    return np.where(b > 0, a / np.maximum(b, 1), 0.0)


def precision_of(hits: Any, predicted: Any, true: Any) -> Any:
    """Return the precision of each class from its counts."""
    return _ratio(hits, predicted)


def recall_of(hits: Any, predicted: Any, true: Any) -> Any:
    """Return the recall of each class from its counts."""
    return _ratio(hits, true)


def f1_of(hits: Any, predicted: Any, true: Any) -> Any:
    """Return the F1 score of each class from its counts."""
    return _ratio(2 * hits, predicted + true)


def check_average(function: str, average: str) -> str:
    """Return the name of an average, or raise ValueError."""
    if average not in ("macro", "micro", "weighted"):
        raise ValueError(f"{function}: average is {average!r}, expected 'macro', 'micro' or 'weighted'")
    return average


def precision(logits: TensorLike, targets: TensorLike, average: str = "macro") -> float:
    """Return the share of right ones among the predictions of a class, averaged over classes.

    logits, targets: as for `accuracy`.
    average: "macro" weighs alike all classes that occur in predictions or targets, "weighted"
        by their targets, "micro" pools them. A class never predicted scores 0.
    """
    check_average("metric.precision", average)
    counts = counts_of("metric.precision", logits, targets)
    return averaged("metric.precision", counts, average, precision_of)


def recall(logits: TensorLike, targets: TensorLike, average: str = "macro") -> float:
    """Return the share of a class's targets that were found, averaged as for `precision`."""
    check_average("metric.recall", average)
    counts = counts_of("metric.recall", logits, targets)
    return averaged("metric.recall", counts, average, recall_of)


def f1(logits: TensorLike, targets: TensorLike, average: str = "macro") -> float:
    """Return the harmonic mean of precision and recall of a class, averaged as for `precision`."""
    check_average("metric.f1", average)
    counts = counts_of("metric.f1", logits, targets)
    return averaged("metric.f1", counts, average, f1_of)


def auc_roc(scores: TensorLike, targets: TensorLike) -> float:
    """Return the chance that a random target 1 has a larger score than a random target 0.

    scores, targets: (b,) or (b, 1); NaN, and a target that is neither 0 nor 1, is a ValueError.
    A tie counts half (Hanley & McNeil 1982).
    """
    return auc_of("metric.auc_roc", *ranked_of("metric.auc_roc", scores, targets))


def ranked_of(function: str, scores: TensorLike, targets: TensorLike) -> tuple[Array, Array]:
    """Return the scores of one column, and whether each target is 1."""
    shape = as_tensor(scores).shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        raise ValueError(f"{function}: scores have shape {shape}, expected (b,) or (b, 1)")
    return bits_of(function, "scores", scores, targets)


def auc_of(function: str, x: Array, positive: Array) -> float:
    """Return the area under the curve from scores and whether each target is 1, both flat."""
    share(function, 0, x.size)
    if positive.all() or not positive.any():
        raise ValueError(f"{function}: targets are all {int(positive[0])}, expected both 0 and 1")
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; ties share the mean of their ranks
    # In float64 even where NumPy's ints are 32 bits: the product overflows those at 100,000 elements.
    ones, zeros = float(positive.sum()), float((~positive).sum())
    return (float(ranks[positive].sum()) - ones * (ones + 1) / 2) / (ones * zeros)


# ---- numbers
def numbers_of(function: str, pred: TensorLike, target: TensorLike) -> tuple[Array, Array]:
    """Return predictions and targets of one shape, in float64."""
    x, y = as_tensor(pred).numpy(), as_tensor(target).numpy()
    if x.shape != y.shape:
        raise ValueError(f"{function}: pred has shape {x.shape} and target {y.shape}, expected one shape")
    return x.astype(np.float64), y.astype(np.float64)


def differences(function: str, pred: TensorLike, target: TensorLike) -> Array:
    """Return pred - target in float64; NaN and infinity pass through."""
    x, y = numbers_of(function, pred, target)
    with np.errstate(invalid="ignore"):  # infinity - infinity
        return np.asarray(x - y)


def mse(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean squared error. pred, target: one shape. NaN gives NaN."""
    errors = differences("metric.mse", pred, target)
    return share("metric.mse", np.square(errors).sum(), errors.size)


def mae(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean absolute error. pred, target: one shape. NaN gives NaN."""
    errors = differences("metric.mae", pred, target)
    return share("metric.mae", np.abs(errors).sum(), errors.size)


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of numbers, and the squared errors of their predictions.

    The mean is pivot + shift. Where numbers lie far from 0, number - pivot is exact and small, so
    that neither the spread nor the combination of two loses digits to the offset.
    """

    count: int = 0
    pivot: float = 0.0
    shift: float = 0.0
    spread: float = 0.0  # sum of squared differences from the mean
    errors: float = 0.0  # sum of squared differences from the predictions

    def joined(self, other: Moments) -> Moments:
        """Combine two sets of numbers (Chan, Golub & LeVeque 1983)."""
        if not (self.count and other.count):
            return other if other.count else self
        count = self.count + other.count
        apart = (other.pivot - self.pivot) + (other.shift - self.shift)
        return Moments(
            count,
            self.pivot,
            self.shift + apart * (other.count / count),
            self.spread + other.spread + apart * apart * (self.count * other.count / count),
            self.errors + other.errors,
        )

    def r2(self, function: str) -> float:
        """Return 1 - errors / spread, or raise ValueError where there is no spread."""
        share(function, 0, self.count)
        if self.spread == 0:
            raise ValueError(
                f"{function}: target has {self.count} elements and no variance, expected values that differ"
            )
        return 1.0 - self.errors / self.spread


def moments_of(function: str, pred: TensorLike, target: TensorLike) -> Moments:
    """Return the moments of a batch, all of its columns pooled."""
    errors, y = differences(function, pred, target), numbers_of(function, pred, target)[1]
    if not y.size:
        return Moments()
    pivot = y.flat[0]
    with np.errstate(invalid="ignore"):
        near = y - pivot
        shift = near.mean()
        spread = np.square(near - shift).sum()
    return Moments(y.size, float(pivot), float(shift), float(spread), float(np.square(errors).sum()))


def r2(pred: TensorLike, target: TensorLike) -> float:
    """Return the share of the target's variance that is explained: 1 - squared error / variance.

    pred, target: one shape; columns are pooled. A target that is constant has no variance:
    ValueError. NaN gives NaN.
    """
    return moments_of("metric.r2", pred, target).r2("metric.r2")
