"""Scores of one batch, or of a whole data set held in memory; users reach them as `tp.metric.NAME`.

Each is the accumulator of `accumulators.py` after one batch: the formulas are there.
"""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, tensor
from treepie.autodiff.tensor import TensorLike

from . import accumulators, determination
from .accumulators import Average
from .base import Metric
from .inputs import counts_of


def _score(
    function: str, kind: type[Metric], pred: TensorLike, target: TensorLike, *parameters: Any
) -> float:
    """Return the score of an accumulator after one batch; its errors name the function."""
    metric: Any = kind.__new__(kind)
    metric._name = function
    metric.__init__(*parameters)
    metric.update(pred, target)
    return float(metric.compute())


def accuracy(logits: TensorLike, targets: TensorLike, from_logits: bool = False) -> float:
    """Return the fraction of correct predictions.

    logits: (..., c), the largest of which is the prediction; or, for two classes, probabilities (b,) or
        (b, 1), of which those above 0.5 predict 1.  targets: (...), classes.
    from_logits: whether a single column holds logits, of which those above 0 predict 1.

    Raises ValueError for NaN, for a probability outside of [0, 1], for a target that is no class, and for no
    elements.

    >>> import treepie as tp
    >>> tp.metric.accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    0.5
    >>> tp.metric.accuracy([-1.5, 2.0], [0, 1], from_logits=True)
    1.0
    """
    return _score("metric.accuracy", accumulators.Accuracy, logits, targets, from_logits)


def binary_accuracy(
    pred: TensorLike, targets: TensorLike, threshold: float = 0.5, from_logits: bool = False
) -> float:
    """Return the fraction of predictions on the right side of a threshold: above it for targets of 1.

    pred, targets: one shape, or (b, 1) and (b,).
    threshold: of probabilities, between 0 and 1; any other number is one of scores of any range.
    from_logits: whether pred holds the logits of probabilities.

    Raises ValueError for NaN, for a probability outside of [0, 1], for a target other than 0 and 1, for no
    elements, and for a threshold that is no probability with from_logits.

    >>> import treepie as tp
    >>> tp.metric.binary_accuracy([-1.5, 2.0, 3.0, 0.5], [0, 1, 1, 0], from_logits=True)
    0.75
    """
    parameters = threshold, from_logits
    return _score("metric.binary_accuracy", accumulators.BinaryAccuracy, pred, targets, *parameters)


def confusion_matrix(logits: TensorLike, targets: TensorLike, from_logits: bool = False) -> Tensor:
    """Return how often each class (row) was predicted as each class (column), int64 (c, c).

    logits, targets, from_logits, errors: as for `accuracy`, but no elements give zeros.

    >>> import treepie as tp
    >>> tp.metric.confusion_matrix([[0.1, 0.9], [0.8, 0.2]], [1, 1]).tolist()
    [[0, 0], [1, 1]]
    """
    return tensor(counts_of("metric.confusion_matrix", logits, targets, from_logits))


def top_k_accuracy(logits: TensorLike, targets: TensorLike, k: int = 5) -> float:
    """Return the fraction of targets among the k largest logits; of equal logits the first count.

    logits: (..., c).  targets: (...), classes.  k: 1 to c.

    Raises ValueError as `accuracy` does, and for a k out of range; TypeError for a k that is no int.

    >>> import treepie as tp
    >>> tp.metric.top_k_accuracy([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]], [2, 2], k=2)
    0.5
    """
    return _score("metric.top_k_accuracy", accumulators.TopKAccuracy, logits, targets, k)


def precision(
    logits: TensorLike, targets: TensorLike, average: Average = "macro", from_logits: bool = False
) -> float:
    """Return, of the predictions of a class, the fraction that is correct, averaged over classes.

    logits, targets, from_logits, errors: as for `accuracy`.
    average: "macro" weights all classes that occur in predictions or targets equally, "weighted" by
        their number of targets; "micro" pools the counts. A class that is never predicted scores 0.

    >>> import treepie as tp
    >>> tp.metric.precision([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    0.5
    """
    return _score("metric.precision", accumulators.Precision, logits, targets, average, from_logits)


def recall(
    logits: TensorLike, targets: TensorLike, average: Average = "macro", from_logits: bool = False
) -> float:
    """Return, of the targets of a class, the fraction that is predicted, averaged as by `precision`.

    logits, targets, from_logits, errors: as for `accuracy`.

    >>> import treepie as tp
    >>> tp.metric.recall([[0.1, 0.9], [0.8, 0.2], [0.9, 0.1]], [1, 1, 0])
    0.75
    """
    return _score("metric.recall", accumulators.Recall, logits, targets, average, from_logits)


def f1(
    logits: TensorLike, targets: TensorLike, average: Average = "macro", from_logits: bool = False
) -> float:
    """Return the harmonic mean of precision and recall of a class, averaged as by `precision`.

    logits, targets, from_logits, errors: as for `accuracy`.

    >>> import treepie as tp
    >>> tp.metric.f1([[0.1, 0.9], [0.8, 0.2]], [1, 1], average="micro")
    0.5
    """
    return _score("metric.f1", accumulators.F1, logits, targets, average, from_logits)


def auc_roc(scores: TensorLike, targets: TensorLike) -> float:
    """Return the probability that a random target 1 has a larger score than a random target 0.

    scores, targets: (b,) or (b, 1). Only the order of scores counts, so that probabilities and their logits
        have the same result. A tie counts half (Hanley & McNeil 1982).

    Raises ValueError for NaN, for a target other than 0 and 1, and unless both occur.

    >>> import treepie as tp
    >>> tp.metric.auc_roc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    return _score("metric.auc_roc", accumulators.AUC, scores, targets)


def mse(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean squared error.

    pred, target: one shape, else ValueError; NaN gives NaN. Raises ValueError for no elements.

    >>> import treepie as tp
    >>> tp.metric.mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    return _score("metric.mse", accumulators.MSE, pred, target)


def mae(pred: TensorLike, target: TensorLike) -> float:
    """Return the mean absolute error; arguments and errors as for `mse`.

    >>> import treepie as tp
    >>> tp.metric.mae([1.0, 2.0], [1.0, 4.0])
    1.0
    """
    return _score("metric.mae", accumulators.MAE, pred, target)


def r2(pred: TensorLike, target: TensorLike) -> float:
    """Return the fraction of the target's variance that is explained: 1 - squared error / variance.

    pred, target: one shape, else ValueError; columns are pooled. NaN gives NaN. Raises ValueError for no
    elements and for a constant target, which has no variance.

    >>> import treepie as tp
    >>> tp.metric.r2([1.0, 2.0], [1.0, 3.0])
    0.5
    """
    return _score("metric.r2", determination.R2, pred, target)
