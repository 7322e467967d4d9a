"""Losses: scalar means over a batch, from raw logits, differentiable.

With weights they are sum(weight * term) / sum(weight), as scikit-learn's are and Keras's with the reduction
"mean_with_sample_weight": a factor of all weights changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor, integer
from treepie.autodiff.ops.counted import mean_of_terms
from treepie.autodiff.program.pure import library
from treepie.autodiff.tensor import TensorLike

__all__ = ["binary_cross_entropy", "cross_entropy", "cross_entropy_sparse", "huber", "mae", "mse"]

ClassWeight = Mapping[int, float] | Sequence[float] | NDArray[Any] | Tensor


def __dir__() -> list[str]:
    return __all__


def _not_empty(function: str, argument: str, x: Tensor) -> None:
    if x.size == 0:
        raise ValueError(f"{function}: {argument} has shape {x.shape}, expected at least one element")


def _pair(
    function: str, names: tuple[str, str], first: TensorLike, second: TensorLike
) -> tuple[Tensor, Tensor]:
    """Return two operands of one shape, the second cast to the first's float dtype.

    They do not broadcast: (b, 1) against (b,) would compare every prediction with every target.
    """
    a, b = as_float(function, first), as_tensor(second)
    if a.shape != b.shape:
        raise ValueError(
            f"{function}: {names[0]} has shape {a.shape} and {names[1]} {b.shape}, expected one shape"
            + _shape_hint(names, a, b)
        )
    _not_empty(function, names[0], a)
    return a, b.astype(a.dtype)


def _shape_hint(names: tuple[str, str], a: Tensor, b: Tensor) -> str:
    """Return what to do about two shapes that differ by a last axis."""
    if names[1] == "one_hot" and b.dtype.kind != "f" and b.shape == a.shape[:-1]:
        return "; class indices go with tp.loss.cross_entropy_sparse"
    for short, long, name in ((a, b, names[0]), (b, a, names[1])):
        if long.shape == (*short.shape, 1):
            return f"; add the last axis to {name}: {name}[..., None]"
    return ""


def _weighted_mean(function: str, terms: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of terms times weights over the sum of weights.

    A part of a batch weighs as much as its weights (`train/terms.py`).
    """
    info = np.finfo(terms.dtype)
    message = f"{function}: the weights of all targets sum to {{}}, expected more than 0"
    total = ops.check_range(ops.sum(weights), info.tiny, info.max, message)
    return mean_of_terms(ops.sum(terms * weights), total)


def _sample_weights(function: str, terms: Tensor, sample_weight: TensorLike) -> Tensor:
    """Return the weight of each term. sample_weight: of the shape of the terms' first axes."""
    weights = as_tensor(sample_weight)
    leading = weights.shape
    if not leading or leading != terms.shape[: len(leading)]:
        raise ValueError(
            f"{function}: sample_weight has shape {leading}, expected {terms.shape[:1]}, a weight "
            "for each example"
        )
    weights = ops.check_range(
        weights.astype(terms.dtype),
        0.0,
        np.finfo(terms.dtype).max,
        f"{function}: a sample_weight is {{}}, expected 0 or more",
    )
    weights = ops.reshape(weights, leading + (1,) * (terms.ndim - len(leading)))
    return ops.broadcast_to(weights, terms.shape)


def _mean(
    function: str, terms: Tensor, sample_weight: TensorLike | None, classes: Tensor | None = None
) -> Tensor:
    """Return the mean of terms, weighted where there are weights. classes: each term's class weight."""
    if sample_weight is None:
        return ops.mean(terms) if classes is None else _weighted_mean(function, terms, classes)
    weights = _sample_weights(function, terms, sample_weight)
    return _weighted_mean(function, terms, weights if classes is None else weights * classes)


def check_class_weight(function: str, class_weight: ClassWeight) -> Mapping[int, float] | Tensor:
    """Return weights of classes as a dict or a tensor; raise TypeError or ValueError for others."""
    if isinstance(class_weight, str):
        raise TypeError(
            f"{function}: class_weight is {class_weight!r}, expected numbers (sklearn.utils.class_weight."
            "compute_class_weight returns balanced ones)"
        )
    if isinstance(class_weight, Mapping):
        by_class = {
            integer(function, "a class of class_weight", k): float(w) for k, w in class_weight.items()
        }
        _check_not_negative(function, list(by_class.values()))
        return by_class
    if not isinstance(class_weight, Tensor | np.ndarray | list | tuple):
        raise TypeError(f"{function}: class_weight is {class_weight!r}, expected a weight for each class")
    weights = as_tensor(class_weight)
    if weights.ndim != 1:
        raise ValueError(f"{function}: class_weight has shape {weights.shape}, expected (classes,)")
    _check_not_negative(function, weights.tolist())
    return weights


def _check_not_negative(function: str, weights: list[Any]) -> None:
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"{function}: a class_weight is {weight}, expected numbers of 0 or more")


def _class_weights(function: str, class_weight: ClassWeight, classes: int, dtype: Any) -> Tensor:
    """Return the weight of each class."""
    weights = check_class_weight(function, class_weight)
    if isinstance(weights, Tensor):
        if weights.shape != (classes,):
            raise ValueError(f"{function}: class_weight has shape {weights.shape}, expected ({classes},)")
        return weights.astype(dtype)
    array = np.ones(classes, dtype)
    for k, weight in weights.items():
        if not 0 <= k < classes:
            raise ValueError(f"{function}: class_weight has class {k}, expected 0 to {classes - 1}")
        array[k] = weight
    return Tensor(array, None)


@library
def cross_entropy_sparse(
    logits: TensorLike,
    indices: TensorLike,
    ignore_index: int | None = None,
    sample_weight: TensorLike | None = None,
    class_weight: ClassWeight | None = None,
) -> Tensor:
    """Return the mean cross-entropy of logits against class indices: -log softmax(logits)[index].

    logits: (..., classes) float.  indices: (...) integers in [0, classes).
    ignore_index: targets with this value count neither in the sum nor in the number of terms.
    sample_weight: weights of examples, of the shape of indices or of its first axes; by default all are 1.
    class_weight: a weight for each class, or a dict of weights of some classes, where others have 1; an
        example has the weight of its class, times its sample_weight.

    Raises ValueError for an index outside of [0, classes), for shapes that do not fit, for no elements, and
    if all targets are ignored; TypeError for indices that are not integers.

    >>> import treepie as tp
    >>> tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), tp.tensor([0, 2])).item()
    1.0986...
    >>> logits = tp.tensor([[0.0, 0.0], [0.0, 4.0]])
    >>> tp.loss.cross_entropy_sparse(logits, tp.tensor([0, 1]), class_weight={0: 3.0}).item()
    0.5243...
    """
    x, labels = as_float("cross_entropy_sparse", logits), as_tensor(indices)
    _not_empty("cross_entropy_sparse", "logits", x)
    rates = None
    if class_weight is not None:
        rates = _class_weights("cross_entropy_sparse", class_weight, x.shape[-1] if x.ndim else 0, x.dtype)
    if ignore_index is None:
        rows = ops.cross_entropy_rows(x, labels)
        weights = None if rates is None else ops.take(rates, labels, 0)
        return _mean("cross_entropy_sparse", rows, sample_weight, weights)
    try:
        counted = labels != ignore_index
    except ValueError:
        raise ValueError(
            f"cross_entropy_sparse: ignore_index is {ignore_index}, expected an integer of the dtype of "
            f"indices, {labels.dtype.name}"
        ) from None
    valid = ops.where(counted, labels, 0)
    if rates is not None or sample_weight is not None:
        weights = (
            counted.astype(x.dtype) if rates is None else ops.where(counted, ops.take(rates, valid, 0), 0.0)
        )
        return _mean("cross_entropy_sparse", ops.cross_entropy_rows(x, valid), sample_weight, weights)
    message = f"cross_entropy_sparse: all indices are ignore_index {ignore_index}, expected another one too"
    count = ops.check_range(ops.sum(counted).astype(x.dtype), 1, labels.size, message)
    rows = ops.cross_entropy_rows(x, valid)
    return mean_of_terms(ops.sum(ops.where(counted, rows, 0.0)), count)


@library
def cross_entropy(
    logits: TensorLike,
    one_hot: TensorLike,
    label_smoothing: float = 0.0,
    sample_weight: TensorLike | None = None,
    class_weight: ClassWeight | None = None,
) -> Tensor:
    """Return the mean cross-entropy of logits against probabilities: -sum(one_hot * log softmax(logits)).

    logits, one_hot: (..., classes) of one shape; one_hot may hold any probabilities.
    label_smoothing: the fraction of each target, 0 to 1, that is spread over all classes (Szegedy et al.
        2016).
    sample_weight: weights of examples, of the shape of one_hot's first axes; by default all are 1.
    class_weight: as for `cross_entropy_sparse`; of probabilities, the mean of the classes' weights.

    Raises ValueError for shapes that differ, no elements, and a label_smoothing out of range.

    >>> import treepie as tp
    >>> tp.loss.cross_entropy(tp.zeros((1, 2)), [[1.0, 0.0]]).item()
    0.6931...
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 to 1")
    x, labels = _pair("cross_entropy", ("logits", "one_hot"), logits, one_hot)
    if x.ndim == 0:
        raise ValueError("cross_entropy: logits have shape (), expected (..., classes)")
    classes, weights = x.shape[-1], None
    if class_weight is not None:
        weights = ops.sum(labels * _class_weights("cross_entropy", class_weight, classes, x.dtype), -1)
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + label_smoothing / classes
    return _mean("cross_entropy", ops.weighted_cross_entropy(x, labels), sample_weight, weights)


@library
def binary_cross_entropy(
    logits: TensorLike,
    labels: TensorLike,
    sample_weight: TensorLike | None = None,
    class_weight: ClassWeight | None = None,
) -> Tensor:
    """Return the mean of -(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits))).

    logits, labels: one shape; labels from 0 to 1.
    sample_weight: weights of examples, of the shape of labels or of its first axes; by default all are 1.
    class_weight: the weights of the classes 0 and 1, as for `cross_entropy_sparse`.

    Raises ValueError for a label out of range, shapes that differ, and no elements.

    >>> import treepie as tp
    >>> tp.loss.binary_cross_entropy(tp.zeros(2), [1.0, 0.0]).item()
    0.6931...
    """
    x, y = _pair("binary_cross_entropy", ("logits", "labels"), logits, labels)
    y = ops.check_range(y, 0, 1, "binary_cross_entropy: a label is {}, expected 0 to 1")
    terms = y * ops.softplus(-x) + (1.0 - y) * ops.softplus(x)
    weights = None
    if class_weight is not None:
        first, second = _class_weights("binary_cross_entropy", class_weight, 2, x.dtype)
        weights = first * (1.0 - y) + second * y
    return _mean("binary_cross_entropy", terms, sample_weight, weights)


@library
def mse(pred: TensorLike, target: TensorLike, sample_weight: TensorLike | None = None) -> Tensor:
    """Return the mean of (pred - target)**2.

    pred, target: one shape, else ValueError; no elements are a ValueError too.
    sample_weight: weights of examples, of the shape of pred or of its first axes; by default all are 1.

    >>> import treepie as tp
    >>> tp.loss.mse([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    >>> tp.loss.mse([1.0, 2.0], [1.0, 4.0], sample_weight=[3.0, 1.0]).item()
    1.0
    """
    a, b = _pair("mse", ("pred", "target"), pred, target)
    return _mean("mse", ops.square(a - b), sample_weight)


@library
def mae(pred: TensorLike, target: TensorLike, sample_weight: TensorLike | None = None) -> Tensor:
    """Return the mean of |pred - target|; arguments and errors as for `mse`.

    >>> import treepie as tp
    >>> tp.loss.mae([1.0, 2.0], [1.0, 4.0]).item()
    1.0
    """
    a, b = _pair("mae", ("pred", "target"), pred, target)
    return _mean("mae", abs(a - b), sample_weight)


@library
def huber(
    pred: TensorLike, target: TensorLike, delta: float = 1.0, sample_weight: TensorLike | None = None
) -> Tensor:
    """Return the mean of d**2 / 2 up to delta and of delta * (d - delta / 2) above, d = |pred - target|.

    pred, target: one shape.  delta: above 0. ValueError for others, and for no elements. Huber 1964.
    sample_weight: weights of examples, of the shape of pred or of its first axes; by default all are 1.

    >>> import treepie as tp
    >>> tp.loss.huber([0.5, 3.0], [0.0, 0.0]).item()
    1.3125
    """
    if not delta > 0:
        raise ValueError(f"huber: delta is {delta}, expected a positive number")
    a, b = _pair("huber", ("pred", "target"), pred, target)
    distance = abs(a - b)
    near = ops.minimum(distance, delta)
    return _mean("huber", near * near * 0.5 + (distance - near) * delta, sample_weight)
