"""Losses: scalar means over a batch, from raw logits, differentiable."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.ops.counted import mean_of_terms
from treepie.autodiff.program.pure import library
from treepie.autodiff.tensor import TensorLike

__all__ = ["binary_cross_entropy", "cross_entropy", "cross_entropy_sparse", "huber", "mae", "mse"]


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


@library
def cross_entropy_sparse(logits: TensorLike, indices: TensorLike, ignore_index: int | None = None) -> Tensor:
    """Return the mean cross-entropy of logits against class indices: -log softmax(logits)[index].

    logits: (..., classes) float.  indices: (...) integers in [0, classes).
    ignore_index: targets with this value count neither in the sum nor in the number of terms.

    Raises ValueError for an index outside of [0, classes), for shapes that do not fit, for no elements, and
    if all targets are ignored; TypeError for indices that are not integers.

    >>> import treepie as tp
    >>> tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), tp.tensor([0, 2])).item()
    1.0986...
    """
    x, labels = as_float("cross_entropy_sparse", logits), as_tensor(indices)
    _not_empty("cross_entropy_sparse", "logits", x)
    if ignore_index is None:
        return ops.mean(ops.cross_entropy_rows(x, labels))
    try:
        counted = labels != ignore_index
    except ValueError:
        raise ValueError(
            f"cross_entropy_sparse: ignore_index is {ignore_index}, expected an integer of the dtype of "
            f"indices, {labels.dtype.name}"
        ) from None
    message = f"cross_entropy_sparse: all indices are ignore_index {ignore_index}, expected another one too"
    count = ops.check_range(ops.sum(counted).astype(x.dtype), 1, labels.size, message)
    rows = ops.cross_entropy_rows(x, ops.where(counted, labels, 0))
    return mean_of_terms(ops.sum(ops.where(counted, rows, 0.0)), count)


@library
def cross_entropy(logits: TensorLike, one_hot: TensorLike, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of logits against probabilities: -sum(one_hot * log softmax(logits)).

    logits, one_hot: (..., classes) of one shape; one_hot may hold any probabilities.
    label_smoothing: the fraction of each target, 0 to 1, that is spread over all classes (Szegedy et al.
        2016).

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
    classes = x.shape[-1]
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + label_smoothing / classes
    return ops.mean(ops.weighted_cross_entropy(x, labels))


@library
def binary_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """Return the mean of -(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits))).

    logits, labels: one shape; labels from 0 to 1.

    Raises ValueError for a label out of range, shapes that differ, and no elements.

    >>> import treepie as tp
    >>> tp.loss.binary_cross_entropy(tp.zeros(2), [1.0, 0.0]).item()
    0.6931...
    """
    x, y = _pair("binary_cross_entropy", ("logits", "labels"), logits, labels)
    y = ops.check_range(y, 0, 1, "binary_cross_entropy: a label is {}, expected 0 to 1")
    return ops.mean(y * ops.softplus(-x) + (1.0 - y) * ops.softplus(x))


@library
def mse(pred: TensorLike, target: TensorLike) -> Tensor:
    """Return the mean of (pred - target)**2.

    pred, target: one shape, else ValueError; no elements are a ValueError too.

    >>> import treepie as tp
    >>> tp.loss.mse([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    """
    a, b = _pair("mse", ("pred", "target"), pred, target)
    return ops.mean(ops.square(a - b))


@library
def mae(pred: TensorLike, target: TensorLike) -> Tensor:
    """Return the mean of |pred - target|; arguments and errors as for `mse`.

    >>> import treepie as tp
    >>> tp.loss.mae([1.0, 2.0], [1.0, 4.0]).item()
    1.0
    """
    a, b = _pair("mae", ("pred", "target"), pred, target)
    return ops.mean(abs(a - b))


@library
def huber(pred: TensorLike, target: TensorLike, delta: float = 1.0) -> Tensor:
    """Return the mean of d**2 / 2 up to delta and of delta * (d - delta / 2) above, d = |pred - target|.

    pred, target: one shape.  delta: above 0. ValueError for others, and for no elements. Huber 1964.

    >>> import treepie as tp
    >>> tp.loss.huber([0.5, 3.0], [0.0, 0.0]).item()
    1.3125
    """
    if not delta > 0:
        raise ValueError(f"huber: delta is {delta}, expected a positive number")
    a, b = _pair("huber", ("pred", "target"), pred, target)
    distance = abs(a - b)
    near = ops.minimum(distance, delta)
    return ops.mean(near * near * 0.5 + (distance - near) * delta)
