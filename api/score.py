"""Scores of one batch, or of a whole data set held in memory; users reach them as `tp.metric.NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TensorLike

Array = NDArray[Any]


# ---- classes
def classes_of(function: str, logits: TensorLike, targets: TensorLike) -> tuple[Array, Array, int]:
    """Return predicted and true classes, flat, and how many classes there are."""
    x, y = as_tensor(logits).numpy(), as_tensor(targets).numpy()
    _check_not_nan(function, x)
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
    true = y.reshape(-1).astype(np.int64)
    if ((true < 0) | (true >= classes)).any():
        wrong = true[(true < 0) | (true >= classes)][0]
        raise ValueError(f"{function}: a target is {wrong}, expected 0 to {classes - 1}")
    return predicted.reshape(-1).astype(np.int64), true, classes


def _check_not_nan(function: str, x: Array) -> None:
    """Refuse NaN, which would count as a right or wrong prediction by chance."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise ValueError(f"{function}: {np.isnan(x).sum()} of {x.size} predictions are NaN, expected numbers")


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
        which those above 0.5 predict 1.  targets: (...), classes.
    """
    predicted, true, _ = classes_of("metric.accuracy", logits, targets)
    return share("metric.accuracy", (predicted == true).sum(), true.size)


def binary_accuracy(pred: TensorLike, targets: TensorLike, threshold: float = 0.5) -> float:
    """Return the share of predictions on the right side of a threshold. Both have one shape."""
    hits = binary_hits("metric.binary_accuracy", pred, targets, threshold)
    return share("metric.binary_accuracy", hits.sum(), hits.size)


def binary_hits(function: str, pred: TensorLike, targets: TensorLike, threshold: float) -> Array:
    """Return which predictions are on the right side of a threshold."""
    x, y = numbers_of(function, pred, targets)
    _check_not_nan(function, x)
    return np.asarray((x > threshold) == (y > 0.5))


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
    """Return which targets are among the k largest logits."""
    _, true, classes = classes_of(function, logits, targets)
    if not 1 <= k <= classes:
        raise ValueError(f"{function}: k is {k}, expected 1 to {classes}")
    x = as_tensor(logits).numpy()
    if x.shape[-1] != classes:
        raise ValueError(f"{function}: logits have shape {x.shape}, expected (..., c)")
    best = np.argsort(-x.reshape(-1, classes), axis=-1, kind="stable")[:, :k]
    return np.asarray((best == true[:, None]).any(-1))


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

    scores, targets: (b,) or (b, 1).  A tie counts half (Hanley & McNeil 1982).
    """
    return area("metric.auc_roc", *scores_of("metric.auc_roc", scores, targets))


def scores_of(function: str, scores: TensorLike, targets: TensorLike) -> tuple[Array, Array]:
    """Return scores and targets 0 or 1, flat, in float64."""
    flat = [t.reshape(-1) if t.shape == (t.size, 1) else t for t in (as_tensor(scores), as_tensor(targets))]
    x, y = (np.ravel(t) for t in numbers_of(function, *flat))
    _check_not_nan(function, x)
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"{function}: a target is neither 0 nor 1, expected one of them")
    return x, y


def area(function: str, x: Array, y: Array) -> float:
    """Return the area under the ROC curve, from ranks."""
    positive = y == 1
    if positive.all() or not positive.any():
        given = f"all {y[0]:.0f}" if y.size else "none"
        raise ValueError(f"{function}: targets are {given}, expected both 0 and 1")
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    below = (np.cumsum(count) - (count - 1) / 2)[place]  # rank from 1, the mean of the ranks of ties
    wins = below[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


# ---- numbers
def numbers_of(function: str, pred: TensorLike, target: TensorLike) -> tuple[Array, Array]:
    """Return predictions and targets of one shape, in float64."""
    x, y = as_tensor(pred).numpy(), as_tensor(target).numpy()
    if x.shape != y.shape:
        raise ValueError(f"{function}: pred has shape {x.shape} and target {y.shape}, expected one shape")
    return x.astype(np.float64), y.astype(np.float64)


def mse(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean squared error. pred, target: one shape."""
    x, y = numbers_of("metric.mse", pred, target)
    return share("metric.mse", np.square(x - y).sum(), x.size)


def mae(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean absolute error. pred, target: one shape."""
    x, y = numbers_of("metric.mae", pred, target)
    return share("metric.mae", np.abs(x - y).sum(), x.size)


def r2(pred: TensorLike, target: TensorLike) -> float:
    """Return the share of the target's variance that is explained: 1 - squared error / variance.

    pred, target: one shape. A target that is constant has no variance: ValueError.
    """
    x, y = numbers_of("metric.r2", pred, target)
    spread = np.square(y - y.mean()).sum() if y.size else 0.0
    if spread == 0:
        raise ValueError(
            f"metric.r2: target has shape {y.shape} and no variance, expected values that differ"
        )
    return 1.0 - float(np.square(x - y).sum() / spread)
