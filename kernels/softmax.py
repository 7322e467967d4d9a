"""Softmax, log-sum-exp and cross-entropy over the last axis, one row at a time.

Rows are (n, c) with c >= 1. Every kernel subtracts the row's maximum, so that exp can not overflow, and
sums in float64. A row takes two or three passes over c elements that stay in cache.
"""

import math

import numpy as np

from . import config
from .formulas import exp, log
from .intrinsics import scalar
from .kernel import A1, A2, Kernel, Status, kernel
from .program import Launch, Operand
from .rows import row_map, row_reduce
from .vector import Formula, maximum, select

_add: Formula = lambda a, b: a + b
_row_max = row_reduce("row_max", lambda x: x, maximum, -math.inf)
_row_sum = row_reduce("row_sum", lambda x: x.astype("float64"), _add, -0.0)
_row_sum_exp = row_reduce("row_sum_exp", lambda x, top: exp(x - top).astype("float64"), _add, -0.0)
_row_dot = row_reduce("row_dot", lambda x, y: x.astype("float64") * y.astype("float64"), _add, -0.0)
_exp_minus = row_map("row_exp_minus", lambda x, top: exp(x - top))
_times = row_map("row_times", lambda x, factor: (x.astype("float64") * factor).astype(x.dtype))
_softmax_vjp = row_map(
    "row_softmax_vjp",
    lambda g, y, dot: (y.astype("float64") * (g.astype("float64") - dot)).astype(g.dtype),
)
_log_softmax_row = row_map(
    "row_log_softmax",
    lambda x, top, log_sum: (x.astype("float64") - top.astype("float64") - log_sum).astype(x.dtype),
)
_log_softmax_vjp = row_map(
    "row_log_softmax_vjp",
    lambda g, y, total: (g.astype("float64") - exp(y).astype("float64") * total).astype(g.dtype),
)
# A class of weight 0 adds 0, where its logit is -inf too.
_row_weighted = row_reduce(
    "row_weighted",
    lambda x, p, top, log_sum: select(
        p == 0, 0.0, p.astype("float64") * (log_sum + (top.astype("float64") - x.astype("float64")))
    ),
    _add,
    -0.0,
)
_weighted_vjp = row_map(
    "row_weighted_vjp",
    lambda e, p, factor, g: (e.astype("float64") * factor - p.astype("float64") * g).astype(e.dtype),
)
_log = scalar(log)


@kernel
def _softmax(lo: int, hi: int, x: A2, out: A2, group: int) -> None:
    for i in range(lo * group, min(hi * group, x.shape[0])):
        _exp_minus(out[i], x[i], _row_max(x[i]))
        _times(out[i], out[i], 1.0 / _row_sum(out[i]))


@kernel
def _softmax_backward(lo: int, hi: int, g: A2, y: A2, out: A2, group: int) -> None:
    for i in range(lo * group, min(hi * group, y.shape[0])):
        _softmax_vjp(out[i], g[i], y[i], _row_dot(g[i], y[i]))


@kernel
def _logsumexp(lo: int, hi: int, x: A2, out: A1, group: int) -> None:
    for i in range(lo * group, min(hi * group, x.shape[0])):
        top = _row_max(x[i])
        if not abs(top) < math.inf:  # inf - inf would turn a row of -inf, or an inf, into NaN
            top = x.dtype.type(0)
        out[i] = top + _log(_row_sum_exp(x[i], top))


@kernel
def _log_softmax(lo: int, hi: int, x: A2, out: A2, group: int) -> None:
    for i in range(lo * group, min(hi * group, x.shape[0])):
        top = _row_max(x[i])
        _log_softmax_row(out[i], x[i], top, _log(_row_sum_exp(x[i], top)))


@kernel
def _log_softmax_backward(lo: int, hi: int, g: A2, y: A2, out: A2, group: int) -> None:
    for i in range(lo * group, min(hi * group, y.shape[0])):
        _log_softmax_vjp(out[i], g[i], y[i], _row_sum(g[i]))


@kernel
def _weighted_cross_entropy(lo: int, hi: int, x: A2, p: A2, losses: A1, group: int) -> None:
    for i in range(lo * group, min(hi * group, x.shape[0])):
        top = _row_max(x[i])
        losses[i] = _row_weighted(x[i], p[i], top, _log(_row_sum_exp(x[i], top)))


@kernel
def _weighted_cross_entropy_backward(lo: int, hi: int, g: A1, x: A2, p: A2, out: A2, group: int) -> None:
    for i in range(lo * group, min(hi * group, x.shape[0])):
        _exp_minus(out[i], x[i], _row_max(x[i]))
        factor = np.float64(g[i]) * _row_sum(p[i]) / _row_sum(out[i])
        _weighted_vjp(out[i], out[i], p[i], factor, np.float64(g[i]))


@kernel
def _cross_entropy(lo: int, hi: int, logits: A2, labels: A1, losses: A1, group: int, status: Status) -> None:
    n, c = logits.shape
    for i in range(lo * group, min(hi * group, n)):
        label = labels[i]
        if label < 0 or label >= c:
            status[0] = 1
            return
        top = _row_max(logits[i])
        log_sum = _log(_row_sum_exp(logits[i], top))
        losses[i] = log_sum + (np.float64(top) - np.float64(logits[i, label]))


@kernel
def _cross_entropy_backward(
    lo: int, hi: int, g: A1, logits: A2, labels: A1, out: A2, group: int, status: Status
) -> None:
    n, c = logits.shape
    for i in range(lo * group, min(hi * group, n)):
        label = labels[i]
        if label < 0 or label >= c:
            status[0] = 1
            return
        _exp_minus(out[i], logits[i], _row_max(logits[i]))
        _times(out[i], out[i], float(g[i]) / _row_sum(out[i]))
        out[i, label] -= g[i]


def _rows(kernel: Kernel, shape: tuple[int, ...], exps: int, *operands: Operand) -> Launch:
    """Plan a kernel over rows, grouped so that a chunk has about `ELEMENTWISE_CHUNK` elements."""
    n, c = shape
    group = max(1, config.ELEMENTWISE_CHUNK // max(c, 1))
    work = n * (c * (0.3 + 20 * exps * config.FLOP_NS) + 20)
    return kernel(-(-n // group), work, *operands, group)


def softmax(x: Operand, out: Operand) -> Launch:
    """Plan out = softmax(x) over rows (n, c)."""
    return _rows(_softmax, x.shape, 1, x, out)


def softmax_backward(g: Operand, y: Operand, out: Operand) -> Launch:
    """Plan out = y * (g - sum(g * y)) over rows (n, c): the gradient of softmax, y its result."""
    return _rows(_softmax_backward, y.shape, 0, g, y, out)


def logsumexp(x: Operand, out: Operand) -> Launch:
    """Plan out (n,) = log(sum(exp(x))) over rows (n, c)."""
    return _rows(_logsumexp, x.shape, 1, x, out)


def log_softmax(x: Operand, out: Operand) -> Launch:
    """Plan out = (x - max(x)) - log(sum(exp(x - max(x)))) over rows (n, c)."""
    return _rows(_log_softmax, x.shape, 1, x, out)


def log_softmax_backward(g: Operand, y: Operand, out: Operand) -> Launch:
    """Plan out = g - exp(y) * sum(g) over rows (n, c): the gradient of log_softmax, y its result."""
    return _rows(_log_softmax_backward, y.shape, 1, g, y, out)


def weighted_cross_entropy(logits: Operand, weights: Operand, losses: Operand) -> Launch:
    """Plan losses (n,) = -sum(weights * log softmax(logits)) over rows (n, c)."""
    return _rows(_weighted_cross_entropy, logits.shape, 1, logits, weights, losses)


def weighted_cross_entropy_backward(g: Operand, logits: Operand, weights: Operand, out: Operand) -> Launch:
    """Plan out (n, c) = g (n, 1) * (softmax(logits) * sum(weights) - weights)."""
    return _rows(_weighted_cross_entropy_backward, logits.shape, 1, g, logits, weights, out)


def cross_entropy(logits: Operand, labels: Operand, losses: Operand) -> Launch:
    """Plan losses (n,) = -log softmax(logits)[i, labels[i]] of logits (n, c), labels (n,) integers.

    Reports an error when a label is outside [0, c).
    """
    return _rows(_cross_entropy, logits.shape, 1, logits, labels, losses)


def cross_entropy_backward(g: Operand, logits: Operand, labels: Operand, out: Operand) -> Launch:
    """Plan out (n, c) = g (n, 1) * (softmax(logits) - one_hot(labels)), the gradient of cross_entropy."""
    return _rows(_cross_entropy_backward, logits.shape, 1, g, logits, labels, out)
