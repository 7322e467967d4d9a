"""Softmax, log-softmax, log-sum-exp and cross-entropy, stable for logits of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import softmax as kernels
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_float, as_tensor, one_axis, same_float_dtype
from ..table import BoundArguments, Case, op, pick
from ..tensor import Axis, Tensor, TensorLike
from ..transform import by_formula
from .arithmetic import mul, neg, sub
from .elementary import exp
from .indexing import equal_to_classes
from .reduction import sum
from .shape import expand_dims, reshape, swapaxes

_ROWS = [Case(((3, 5),)), Case(((2, 3, 4),)), Case(((7, 1),)), Case(((0, 3),)), Case(((4, 40),))]


def _rows(x: Operand) -> Operand:
    return x.reshaped(x.size // x.shape[-1], x.shape[-1])


def _row_planner(kernel: Callable[..., Launch]) -> Callable[..., list[Launch]]:
    def plan(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
        return [kernel(*(_rows(x) for x in inputs), _rows(outputs[0]))]

    return plan


def _bind_rows(name: str, *xs: TensorLike) -> BoundArguments:
    tensors = tuple(as_float(name, x) for x in xs)
    same_float_dtype(name, **{f"operand {k}": t for k, t in enumerate(tensors)})
    if any(t.shape != tensors[0].shape for t in tensors) or tensors[0].ndim == 0 or tensors[0].shape[-1] == 0:
        shapes = " and ".join(str(t.shape) for t in tensors)
        raise ValueError(f"{name}: shape is {shapes}, expected (..., classes) with at least one class")
    return tensors, {}


def _softmax_oracle(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _dot(a: Any, b: Any) -> Tensor:
    return sum(mul(a, b), -1, True)


@op(
    name="softmax_backward",
    signature="(...,c),(...,c)->(...,c)",
    infer=lambda g, y: [Spec(y.shape, y.dtype)],
    plan=_row_planner(kernels.softmax_backward),
    vjp=(
        lambda h, out, g, y: softmax_backward(h, y),
        lambda h, out, g, y: sub(mul(h, sub(g, _dot(g, y))), mul(g, _dot(h, y))),
    ),
    oracle=lambda g, y: y * (g - (g * y).sum(-1, keepdims=True)),
    cases=[Case((c.shapes[0], c.shapes[0])) for c in _ROWS],
    wrong=Case(((3, 5), (3, 4))),
    large=Case(((1000, 1000), (1000, 1000))),
    ulp=16,
)
def softmax_backward(g: TensorLike, y: TensorLike) -> BoundArguments:
    """Return the gradient of softmax over the last axis: y * (g - sum(g * y)), y its result."""
    return _bind_rows("softmax_backward", g, y)


@op(
    name="softmax",
    signature="(...,c)->(...,c)",
    infer=lambda x: [Spec(x.shape, x.dtype)],
    plan=_row_planner(kernels.softmax),
    vjp=lambda g, y, x: softmax_backward(g, y),
    oracle=_softmax_oracle,
    cases=_ROWS,
    wrong=Case(((3, 0),)),
    large=Case(((1000, 1000),)),
    domain=(-10.0, 10.0),
    ulp=32,
)
def _softmax(x: TensorLike) -> BoundArguments:
    """Return the softmax over the last axis."""
    return _bind_rows("softmax", x)


def _over_axis(name: str, rows: Callable[[Tensor], Tensor], x: TensorLike, axis: int) -> Tensor:
    """Apply an op over the last axis to another axis."""
    t = as_float(name, x)
    k = one_axis(name, axis, t.ndim)
    return rows(t) if k == t.ndim - 1 else swapaxes(rows(swapaxes(t, k, -1)), k, -1)


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """Return exp(x) / sum(exp(x)) over an axis.

    x: (..., classes) float of any size, without overflow.

    Raises ValueError for an axis of size 0, or outside of x.

    >>> import treepie as tp
    >>> tp.softmax(tp.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    return _over_axis("softmax", _softmax, x, axis)


@op(
    name="logsumexp",
    signature="(...,c)->(...)",
    infer=lambda x: [Spec(x.shape[:-1], x.dtype)],
    plan=lambda i, o, scratch: [kernels.logsumexp(_rows(i[0]), o[0].reshaped(o[0].size))],
    vjp=lambda g, y, x: mul(expand_dims(g, -1), softmax(x)),
    oracle=lambda x: np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1),
    cases=[Case(((3, 5),)), Case(((2, 3, 4),)), Case(((7, 1),)), Case(((4, 40),))],
    wrong=Case(((3, 0),)),
    large=Case(((1000, 1000),)),
    domain=(-10.0, 10.0),
)
def _logsumexp(x: TensorLike) -> BoundArguments:
    """Return the logarithm of the sum of exponentials over the last axis."""
    return _bind_rows("logsumexp", x)


def logsumexp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return log(sum(exp(x))) over axes, without overflow.

    x: float.  axis: an axis, several, or None for all.  keepdims: keep reduced axes, of size 1.

    Raises ValueError for axes of size 0, or outside of x.

    >>> import treepie as tp
    >>> tp.logsumexp(tp.tensor([1000.0, 1000.0])).item()
    1000.6931762695312
    """
    from ..arguments import some_axes
    from .shape import transpose

    t = as_float("logsumexp", x)
    axes = some_axes("logsumexp", axis, t.ndim)
    kept = tuple(k for k in range(t.ndim) if k not in axes)
    moved = t if axes == tuple(range(len(kept), t.ndim)) else transpose(t, kept + axes)
    rows, reduced = tuple(t.shape[k] for k in kept), math.prod(t.shape[k] for k in axes)
    out = _logsumexp(reshape(moved, (*rows, reduced)))
    return reshape(out, tuple(1 if k in axes else n for k, n in enumerate(t.shape))) if keepdims else out


@op(
    name="log_softmax_backward",
    signature="(...,c),(...,c)->(...,c)",
    infer=lambda g, y: [Spec(y.shape, y.dtype)],
    plan=_row_planner(kernels.log_softmax_backward),
    vjp=(
        lambda h, out, g, y: sub(h, _dot(h, exp(y))),
        lambda h, out, g, y: neg(mul(mul(h, exp(y)), sum(g, -1, True))),
    ),
    oracle=lambda g, y: g - np.exp(y) * g.sum(-1, keepdims=True),
    cases=[Case((c.shapes[0], c.shapes[0])) for c in _ROWS],
    wrong=Case(((3, 5), (3, 4))),
    large=Case(((1000, 1000), (1000, 1000))),
    magnitude=lambda g, y: np.abs(g) + np.exp(y) * np.abs(g).sum(-1, keepdims=True),
    ulp=8,
)
def log_softmax_backward(g: TensorLike, y: TensorLike) -> BoundArguments:
    """Return the gradient of log_softmax over the last axis: g - exp(y) * sum(g), y its result."""
    return _bind_rows("log_softmax_backward", g, y)


def _log_softmax_oracle(x: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@op(
    name="log_softmax",
    signature="(...,c)->(...,c)",
    infer=lambda x: [Spec(x.shape, x.dtype)],
    plan=_row_planner(kernels.log_softmax),
    vjp=lambda g, y, x: log_softmax_backward(g, y),
    oracle=_log_softmax_oracle,
    cases=_ROWS,
    wrong=Case(((3, 0),)),
    large=Case(((1000, 1000),)),
    domain=(-10.0, 10.0),
    ulp=4,
)
def _log_softmax(x: TensorLike) -> BoundArguments:
    """Return the logarithm of softmax over the last axis."""
    return _bind_rows("log_softmax", x)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """Return x - log(sum(exp(x))) over an axis, the logarithm of softmax.

    x: float of any size. It is computed as (x - max(x)) - log(sum(exp(x - max(x)))), without overflow and
        without a loss of digits for large logits.

    Raises ValueError for an axis of size 0, or outside of x.

    >>> import treepie as tp
    >>> tp.log_softmax(tp.tensor([0.0, 0.0])).tolist()
    [-0.6931471824645996, -0.6931471824645996]
    """
    return _over_axis("log_softmax", _log_softmax, x, axis)


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    """Check shapes and dtypes; the kernel checks that labels are in range."""
    if logits.ndim == 0 or logits.shape[-1] == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy_sparse: logits have shape {logits.shape} and indices {labels.shape}, "
            "expected (..., classes) and (...)"
        )
    if labels.dtype.kind != "i":
        raise TypeError(f"cross_entropy_sparse: indices have dtype {labels.dtype.name}, expected integers")


def _label_error(*operands: Tensor) -> ValueError:
    labels, classes = operands[-1].array, operands[-2].shape[-1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    return ValueError(
        f"cross_entropy_sparse: a label is {wrong.flat[0]}, expected 0 to {classes - 1} for {classes} classes"
    )


def _bind_labels(logits: TensorLike, labels: TensorLike) -> tuple[Tensor, Tensor]:
    x, y = as_float("cross_entropy_sparse", logits), as_tensor(labels)
    _check_labels(x, y)
    return x, y


def _flat(x: Operand) -> Operand:
    return x.reshaped(x.size)


def _losses_oracle(x: Any, labels: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, labels[..., None], -1)[..., 0]
    return np.log(np.exp(shifted).sum(-1)) - chosen


def _backward_oracle(g: Any, x: Any, labels: Any) -> Any:
    return g[..., None] * (_softmax_oracle(x) - np.eye(x.shape[-1])[labels])


_LABELLED = [
    Case(((3, 5), (3,)), integers={1: 5}),
    Case(((2, 3, 4), (2, 3)), integers={1: 4}),
    Case(((7, 2), (7,)), integers={1: 2}),
    Case(((6, 40), (6,)), integers={1: 40}),
]


@op(
    signature="(...),(...,c),(...)->(...,c)",
    infer=lambda g, x, labels: [Spec(x.shape, x.dtype)],
    plan=lambda i, o, scratch: [
        kernels.cross_entropy_backward(_flat(i[0]), _rows(i[1]), _flat(i[2]), _rows(o[0]))
    ],
    vjp=(
        lambda h, out, g, x, labels: sum(
            mul(h, sub(_softmax(x), equal_to_classes(labels, x.shape[-1], x.dtype))), -1
        ),
        lambda h, out, g, x, labels: softmax_backward(mul(h, expand_dims(g, -1)), _softmax(x)),
        None,
    ),
    oracle=_backward_oracle,
    cases=[Case((c.shapes[1], *c.shapes), integers={2: c.integers[1]}) for c in _LABELLED],
    failure=_label_error,
    checked=lambda *specs: [(len(specs) - 1, 0, specs[-2].shape[-1] - 1)],
    wrong=Case(((3,), (3, 5), (4,)), integers={2: 5}),
    large=Case(((1000,), (1000, 1000), (1000,)), integers={2: 1000}),
    domain=(-5.0, 5.0),
    ulp=32,
)
def cross_entropy_backward(g: TensorLike, logits: TensorLike, labels: TensorLike) -> BoundArguments:
    """Return the gradient of cross_entropy_rows: g * (softmax(logits) - one_hot(labels))."""
    x, y = _bind_labels(logits, labels)
    upstream = as_float("cross_entropy", g)
    same_float_dtype("cross_entropy", g=upstream, logits=x)
    return (upstream, x, y), {}


@op(
    signature="(...,c),(...)->(...)",
    infer=lambda x, labels: [Spec(labels.shape, x.dtype)],
    plan=lambda i, o, scratch: [kernels.cross_entropy(_rows(i[0]), _flat(i[1]), _flat(o[0]))],
    vjp=(lambda g, y, x, labels: cross_entropy_backward(g, x, labels), None),
    oracle=_losses_oracle,
    cases=[*_LABELLED, Case(((0, 3), (0,)), integers={1: 3})],
    failure=_label_error,
    checked=lambda *specs: [(len(specs) - 1, 0, specs[-2].shape[-1] - 1)],
    wrong=Case(((3, 5), (4,)), integers={1: 5}),
    large=Case(((1000, 1000), (1000,)), integers={1: 1000}),
    domain=(-10.0, 10.0),
    ulp=8,
)
def cross_entropy_rows(logits: TensorLike, labels: TensorLike) -> BoundArguments:
    """Return the loss of each row, -log softmax(logits)[label]; ValueError for a label out of range."""
    return _bind_labels(logits, labels), {}


def _bind_weighted(name: str, x: TensorLike, weights: TensorLike, *others: TensorLike) -> BoundArguments:
    bound, attributes = _bind_rows(name, x, weights)
    return (*(as_tensor(t) for t in others), *bound), attributes


def _weighted_formula(g: Tensor, x: Tensor, weights: Tensor) -> tuple[Tensor]:
    return (mul(expand_dims(g, -1), sub(mul(softmax(x), sum(weights, -1, True)), weights)),)


@op(
    signature="(...),(...,c),(...,c)->(...,c)",
    infer=lambda g, x, weights: [Spec(x.shape, x.dtype)],
    plan=lambda i, o, scratch: [
        kernels.weighted_cross_entropy_backward(_flat(i[0]), _rows(i[1]), _rows(i[2]), _rows(o[0]))
    ],
    shared=lambda h, out, *inputs: by_formula(_weighted_formula)((h,), out, *inputs),
    vjp=(pick(0), pick(1), pick(2)),
    oracle=lambda g, x, w: g[..., None] * (_softmax_oracle(x) * w.sum(-1, keepdims=True) - w),
    cases=[Case((s[:-1], s, s)) for s in ((3, 5), (2, 3, 4), (7, 1), (6, 40))],
    wrong=Case(((3,), (3, 5), (3, 4))),
    large=Case(((1000,), (1000, 1000), (1000, 1000))),
    magnitude=lambda g, x, w: (
        np.abs(g)[..., None] * (_softmax_oracle(x) * np.abs(w).sum(-1, keepdims=True) + np.abs(w))
    ),
    ulp=16,
)
def weighted_cross_entropy_backward(g: TensorLike, x: TensorLike, weights: TensorLike) -> BoundArguments:
    """Return the gradient of `weighted_cross_entropy` for logits x."""
    return _bind_weighted("weighted_cross_entropy_backward", x, weights, g)


@op(
    signature="(...,c),(...,c)->(...)",
    infer=lambda x, weights: [Spec(x.shape[:-1], x.dtype)],
    plan=lambda i, o, scratch: [kernels.weighted_cross_entropy(_rows(i[0]), _rows(i[1]), _flat(o[0]))],
    vjp=(
        lambda g, y, x, weights: weighted_cross_entropy_backward(g, x, weights),
        lambda g, y, x, weights: neg(mul(expand_dims(g, -1), log_softmax(x))),
    ),
    oracle=lambda x, w: -(w * _log_softmax_oracle(x)).sum(-1),
    cases=[Case((s, s)) for s in ((3, 5), (2, 3, 4), (7, 1), (6, 40))],
    wrong=Case(((3, 5), (3, 4))),
    large=Case(((1000, 1000), (1000, 1000))),
    magnitude=lambda x, w: np.abs(w * _log_softmax_oracle(x)).sum(-1),
    ulp=8,
)
def weighted_cross_entropy(x: TensorLike, weights: TensorLike) -> BoundArguments:
    """Return -sum(weights * log softmax(x)) over the last axis; classes of weight 0 add nothing."""
    return _bind_weighted("weighted_cross_entropy", x, weights)
