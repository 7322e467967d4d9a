"""Check a batch of predictions and targets, and convert it to what the metrics count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TensorLike

Array = NDArray[Any]


def _check_no_nan(function: str, argument: str, x: Array) -> Array:
    """Raise ValueError for NaN, which NumPy orders as the largest number."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        count = int(np.isnan(x).sum())
        raise ValueError(f"{function}: {argument} has {count} NaN of {x.size} elements, expected none")
    return x


def check_probabilities(function: str, x: Array) -> Array:
    """Raise ValueError for values outside of [0, 1], which are logits taken for probabilities."""
    wrong = x[(x < 0) | (x > 1)]
    if wrong.size and x.dtype.kind == "i":
        raise ValueError(
            f"{function}: a prediction is {wrong[0]}, expected logits (b, c) of c classes, or probabilities "
            "(b,); a score of predicted classes is (classes == targets).mean()"
        )
    if wrong.size:
        raise ValueError(
            f"{function}: a prediction is {wrong[0]}, expected a probability from 0 to 1 (for logits, set "
            "from_logits=True)"
        )
    return x


def classes_of(
    function: str, logits: TensorLike, targets: TensorLike, from_logits: bool = False
) -> tuple[Array, Array, int]:
    """Return the predicted and the true class of each element, both 1-D, and the number of classes.

    from_logits: whether predictions of two classes in one column are logits rather than probabilities.
    """
    x, y = _check_no_nan(function, "logits", as_tensor(logits).numpy()), as_tensor(targets).numpy()
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise ValueError(
            f"{function}: targets are not whole numbers, expected classes: (logits, targets), in this order"
        )
    if x.ndim == y.ndim + 1 and x.shape[:-1] == y.shape and x.shape[-1] > 1:
        classes, predicted = x.shape[-1], x.argmax(-1)
    elif x.size == y.size and {x.shape, y.shape} <= {(y.size,), (y.size, 1)}:
        classes = 2
        predicted = np.asarray(x > 0 if from_logits else check_probabilities(function, x) > 0.5)
    else:
        raise ValueError(
            f"{function}: logits have shape {x.shape} and targets {y.shape}, expected "
            f"(b, c) and (b,), or probabilities (b,) or (b, 1) and (b,){_targets_hint(x, y)}"
        )
    wrong = y[(y < 0) | (y >= classes)]
    if wrong.size:
        raise ValueError(f"{function}: a target is {int(wrong[0])}, expected 0 to {classes - 1}")
    return predicted.reshape(-1).astype(np.int64), y.reshape(-1).astype(np.int64), classes


def _targets_hint(x: Array, y: Array) -> str:
    """Return what to do with targets that have an axis too many."""
    if x.ndim > 1 and y.shape == (*x.shape[:-1], 1):
        return "; drop the last axis of the targets: targets[..., 0]"
    if x.ndim > 1 and y.shape == x.shape and ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all():
        return "; of one-hot targets, targets.argmax(-1)"
    return ""


def counts_of(function: str, logits: TensorLike, targets: TensorLike, from_logits: bool) -> Array:
    """Return the confusion matrix: how often each class (row) was predicted as each class (column)."""
    predicted, true, classes = classes_of(function, logits, targets, from_logits)
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def hits_of(function: str, logits: TensorLike, targets: TensorLike, k: int) -> Array:
    """Return whether each target is among the k largest logits, 1-D; of equal logits the first count."""
    x, y = as_tensor(logits).numpy(), as_tensor(targets).numpy()
    if x.ndim != y.ndim + 1 or x.shape[-1] < 2:
        raise ValueError(
            f"{function}: logits have shape {x.shape} and targets {y.shape}, expected (..., c) and (...)"
        )
    _, true, classes = classes_of(function, logits, targets)
    if k > classes:
        raise ValueError(f"{function}: k is {k}, expected 1 to {classes}")
    rows = x.reshape(-1, classes)
    target_logits = np.take_along_axis(rows, true[:, None], -1)
    earlier = np.arange(classes) < true[:, None]
    ahead = (rows > target_logits) | ((rows == target_logits) & earlier)
    return np.asarray(ahead.sum(-1) < k)


def binary_of(function: str, argument: str, pred: TensorLike, targets: TensorLike) -> tuple[Array, Array]:
    """Return predictions in float64, and whether each target is 1, both 1-D."""
    x, y = as_tensor(pred).numpy(), as_tensor(targets).numpy()
    if x.shape != y.shape and not {x.shape, y.shape} <= {(y.size,), (y.size, 1)}:
        raise ValueError(
            f"{function}: {argument} has shape {x.shape} and targets {y.shape}, expected one shape, "
            "or (b, 1) and (b,)"
        )
    if not np.isin(y, (0, 1)).all():
        wrong = y[~np.isin(y, (0, 1))][0]
        raise ValueError(f"{function}: a target is {wrong}, expected 0 or 1")
    return _check_no_nan(function, argument, x).reshape(-1).astype(np.float64), y.reshape(-1) == 1


def scores_of(function: str, scores: TensorLike, targets: TensorLike) -> tuple[Array, Array]:
    """Return `binary_of` of scores in one column."""
    shape = as_tensor(scores).shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        hint = "; of logits of two classes, x[:, 1] - x[:, 0]" if shape[1:] == (2,) else ""
        raise ValueError(f"{function}: scores have shape {shape}, expected (b,) or (b, 1){hint}")
    return binary_of(function, "scores", scores, targets)


def errors_of(function: str, pred: TensorLike, target: TensorLike) -> tuple[Array, Array]:
    """Return pred - target and target, in float64; NaN and infinity pass through."""
    x, y = as_tensor(pred).numpy(), as_tensor(target).numpy()
    if x.shape != y.shape:
        hint = ""
        for name, shape, other in (("pred", x.shape, y.shape), ("target", y.shape, x.shape)):
            if other == (*shape, 1):
                hint = f"; add the last axis to {name}: {name}[..., None]"
        raise ValueError(
            f"{function}: pred has shape {x.shape} and target {y.shape}, expected one shape{hint}"
        )
    x, y = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity - infinity
        return np.asarray(x - y), y
