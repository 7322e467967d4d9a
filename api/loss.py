"""Losses: scalar means over a batch, from raw logits, differentiable."""

from __future__ import annotations

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_float, as_tensor
from treepie.autodiff.program.pure import library
from treepie.autodiff.tensor import TensorLike

__all__ = ["binary_cross_entropy", "cross_entropy", "cross_entropy_sparse", "huber", "mae", "mse"]


def _not_empty(function: str, argument: str, x: Tensor) -> None:
    if x.size == 0:
        raise ValueError(f"{function}: {argument} has shape {x.shape}, expected at least one element")


def _pair(
    function: str, names: tuple[str, str], first: TensorLike, second: TensorLike
) -> tuple[Tensor, Tensor]:
    """Return two operands of one shape, the second in the first's float dtype.

    Broadcasting is refused: (b, 1) against (b,) would compare every prediction with every target.
    """
    a, b = as_float(function, first), as_tensor(second)
    if a.shape != b.shape:
        raise ValueError(
            f"{function}: {names[0]} has shape {a.shape} and {names[1]} {b.shape}, expected one shape"
        )
    _not_empty(function, names[0], a)
    return a, b.astype(a.dtype)


@library
def cross_entropy_sparse(logits: TensorLike, indices: TensorLike, ignore_index: int | None = None) -> Tensor:
    """Return the mean of -log softmax(logits)[index].

    logits: (..., classes).  indices: (...), integers in [0, classes), else ValueError.
    ignore_index: positions with this index count neither in the sum nor in their number.
    """
    x, labels = as_float("cross_entropy_sparse", logits), as_tensor(indices)
    if x.ndim == 0 or labels.shape != x.shape[:-1]:
        raise ValueError(
            f"cross_entropy_sparse: logits have shape {x.shape} and indices {labels.shape}, "
            "expected (..., classes) and (...)"
        )
    if labels.dtype.kind != "i":
        raise TypeError(f"cross_entropy_sparse: indices have dtype {labels.dtype.name}, expected integers")
    _not_empty("cross_entropy_sparse", "logits", x)
    if ignore_index is None:
        return ops.mean(ops.cross_entropy_rows(x, labels))
    kept = labels != ignore_index
    message = f"cross_entropy_sparse: all indices are ignore_index {ignore_index}, expected another one too"
    count = ops.check_range(ops.sum(kept).astype(x.dtype), 1, labels.size, message)
    rows = ops.cross_entropy_rows(x, ops.where(kept, labels, 0))
    return ops.sum(ops.where(kept, rows, 0.0)) / count


@library
def cross_entropy(logits: TensorLike, one_hot: TensorLike, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean of -sum(one_hot * log softmax(logits)).

    logits, one_hot: (..., classes); one_hot may hold any probabilities.
    label_smoothing: the share of each label that goes to all classes equally (Szegedy et al. 2016).
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 to 1")
    x, labels = _pair("cross_entropy", ("logits", "one_hot"), logits, one_hot)
    if x.ndim == 0:
        raise ValueError("cross_entropy: logits have shape (), expected (..., classes)")
    classes = x.shape[-1]
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + label_smoothing / classes
    # A class with logit -inf and label 0 adds 0, where 0 * inf would be NaN.
    terms = ops.where(labels == 0, 0.0, labels * ops.log_softmax(x))
    return -ops.sum(terms) / float(x.size // classes)


@library
def binary_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """Return the mean of -(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits))).

    logits, labels: one shape; labels from 0 to 1, else ValueError.
    """
    x, y = _pair("binary_cross_entropy", ("logits", "labels"), logits, labels)
    y = ops.check_range(y, 0, 1, "binary_cross_entropy: a label is {}, expected 0 to 1")
    return ops.mean(y * ops.softplus(-x) + (1.0 - y) * ops.softplus(x))


@library
def mse(pred: TensorLike, target: TensorLike) -> Tensor:
    """Return the mean of (pred - target)**2. pred, target: one shape."""
    a, b = _pair("mse", ("pred", "target"), pred, target)
    return ops.mean(ops.square(a - b))


@library
def mae(pred: TensorLike, target: TensorLike) -> Tensor:
    """Return the mean of |pred - target|. pred, target: one shape."""
    a, b = _pair("mae", ("pred", "target"), pred, target)
    return ops.mean(abs(a - b))


@library
def huber(pred: TensorLike, target: TensorLike, delta: float = 1.0) -> Tensor:
    """Return the mean of d**2 / 2 up to delta and of delta * (d - delta / 2) beyond.

    d is |pred - target|.  pred, target: one shape.  Huber 1964.
    """
    if not delta > 0:
        raise ValueError(f"huber: delta is {delta}, expected a positive number")
    a, b = _pair("huber", ("pred", "target"), pred, target)
    distance = abs(a - b)
    near = ops.minimum(distance, delta)
    return ops.mean(near * near * 0.5 + (distance - near) * delta)
