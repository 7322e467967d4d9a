"""Losses against NumPy in float64, their gradients, their extremes and their errors."""

import numpy as np
import pytest

import treepie as tp

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 5))
LABELS = RNG.integers(0, 5, (2, 3))
ONE_HOT = np.eye(5)[LABELS]
X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
BITS = RNG.integers(0, 2, (4, 3))


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SMOOTH = ONE_HOT * 0.9 + 0.02
KEPT = LABELS[0, 0] != LABELS
CASES = {  # loss of the first argument, its value, its gradient
    "cross_entropy_sparse": (
        lambda x: tp.loss.cross_entropy_sparse(x, LABELS.astype(np.uint8)),
        LOGITS,
        -(ONE_HOT * log_softmax(LOGITS)).sum() / 6,
        (softmax(LOGITS) - ONE_HOT) / 6,
    ),
    "cross_entropy_sparse ignoring": (
        lambda x: tp.loss.cross_entropy_sparse(x, LABELS, ignore_index=int(LABELS[0, 0])),
        LOGITS,
        -(ONE_HOT * log_softmax(LOGITS))[KEPT].sum() / KEPT.sum(),
        (softmax(LOGITS) - ONE_HOT) * KEPT[..., None] / KEPT.sum(),
    ),
    "cross_entropy": (
        lambda x: tp.loss.cross_entropy(x, ONE_HOT),
        LOGITS,
        -(ONE_HOT * log_softmax(LOGITS)).sum() / 6,
        (softmax(LOGITS) - ONE_HOT) / 6,
    ),
    "cross_entropy smoothed": (
        lambda x: tp.loss.cross_entropy(x, ONE_HOT.astype(int), label_smoothing=0.1),
        LOGITS,
        -(SMOOTH * log_softmax(LOGITS)).sum() / 6,
        (softmax(LOGITS) - SMOOTH) / 6,
    ),
    "binary_cross_entropy": (
        lambda x: tp.loss.binary_cross_entropy(x, BITS),
        X,
        -np.mean(BITS * np.log(sigmoid(X)) + (1 - BITS) * np.log(1 - sigmoid(X))),
        (sigmoid(X) - BITS) / 12,
    ),
    "mse": (lambda x: tp.loss.mse(x, Y), X, np.mean((X - Y) ** 2), 2 * (X - Y) / 12),
    "mae": (lambda x: tp.loss.mae(x, Y), X, np.mean(np.abs(X - Y)), np.sign(X - Y) / 12),
    "huber": (
        lambda x: tp.loss.huber(x, Y, delta=0.7),
        X,
        np.mean(np.where(np.abs(X - Y) <= 0.7, (X - Y) ** 2 / 2, 0.7 * (np.abs(X - Y) - 0.35))),
        np.clip(X - Y, -0.7, 0.7) / 12,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    loss, x, value, gradient = CASES[name]
    got, grads = tp.value_and_grad(loss)(tp.tensor(x))
    assert got.shape == ()
    np.testing.assert_allclose(got, value, rtol=1e-13)
    np.testing.assert_allclose(grads, gradient, rtol=1e-12, atol=1e-15)


def test_extreme_logits():
    far = tp.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert tp.loss.cross_entropy_sparse(far, [0, 0]).item() == 1e4
    assert tp.loss.cross_entropy(far, [[1, 0], [0, 1]]).item() == 0
    assert tp.loss.binary_cross_entropy(far, [[1, 1], [0, 0]]).item() == 5e3
    masked = tp.tensor([[0.0, -np.inf]])
    value, grads = tp.value_and_grad(lambda x: tp.loss.cross_entropy(x, [[1.0, 0.0]]))(masked)
    assert (value.item(), grads.tolist()) == (0, [[0, 0]])


def test_binary_cross_entropy_has_its_gradient_at_zero():
    grads = tp.grad(lambda x: tp.loss.binary_cross_entropy(x, [0.0, 1.0]))(tp.zeros(2))
    assert grads.tolist() == [0.25, -0.25]


ERRORS = [
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), [0, 3]),
        ValueError,
        "cross_entropy_sparse: a label is 3, expected 0 to 2 for 3 classes",
    ),
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), [-1, 0]),
        ValueError,
        "a label is -1, expected 0 to 2",
    ),
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), [[0], [1]]),
        ValueError,
        r"cross_entropy_sparse: logits have shape \(2, 3\) and indices \(2, 1\), expected",
    ),
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), [0.0, 1.0]),
        TypeError,
        "cross_entropy_sparse: indices have dtype float32, expected integers",
    ),
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((0, 3)), np.zeros(0, int)),
        ValueError,
        r"cross_entropy_sparse: logits has shape \(0, 3\), expected at least one element",
    ),
    (
        lambda: tp.loss.cross_entropy_sparse(tp.zeros((2, 3)), [-1, -1], ignore_index=-1),
        ValueError,
        "cross_entropy_sparse: all indices are ignore_index -1",
    ),
    (
        lambda: tp.loss.cross_entropy(tp.zeros((2, 3)), tp.zeros((2, 4))),
        ValueError,
        r"cross_entropy: logits has shape \(2, 3\) and one_hot \(2, 4\), expected one shape",
    ),
    (
        lambda: tp.loss.cross_entropy(tp.zeros((2, 3)), tp.zeros((2, 3)), label_smoothing=1.5),
        ValueError,
        "cross_entropy: label_smoothing is 1.5, expected 0 to 1",
    ),
    (
        lambda: tp.loss.binary_cross_entropy(tp.zeros(2), [0.0, 1.5]),
        ValueError,
        "binary_cross_entropy: a label is 1.5, expected 0 to 1",
    ),
    (
        lambda: tp.loss.mse(tp.zeros((4, 1)), tp.zeros(4)),
        ValueError,
        r"mse: pred has shape \(4, 1\) and target \(4,\), expected one shape",
    ),
    (lambda: tp.loss.mae(tp.zeros(0), tp.zeros(0)), ValueError, r"mae: pred has shape \(0,\)"),
    (lambda: tp.loss.huber(1.0, 2.0, delta=0), ValueError, "huber: delta is 0, expected a positive"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def precise_log_softmax(x):
    """(x - max) - log(sum(exp(x - max))), in long double."""
    shifted = x.astype(np.longdouble) - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 300.0, -1e4, 1e6, -3e7])
def test_log_softmax_loses_no_digits_to_the_size_of_the_logits(offset, dtype):
    """x - logsumexp(x) is off by 1e-5 at 300, and by 0.06 at 1e6."""
    x = (np.random.default_rng(0).normal(size=(50, 7)) * 3 + offset).astype(dtype)
    want = precise_log_softmax(x)
    off = np.abs(tp.log_softmax(x).numpy() - want)
    # The sum of exponentials is at least 1, so that a result near 0 has the error of a number near 1.
    assert (off <= 2 * np.spacing(np.maximum(np.abs(want), 1).astype(dtype))).all()
    labels = np.arange(50) % 7
    sparse = tp.loss.cross_entropy_sparse(x, labels)
    dense = tp.loss.cross_entropy(x, np.eye(7, dtype=dtype)[labels])
    assert abs(sparse.item() - dense.item()) <= np.spacing(np.dtype(dtype).type(sparse.item()))
    np.testing.assert_allclose(sparse, -want[np.arange(50), labels].mean(), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_at_large_logits(dtype):
    x = tp.tensor([[1e6, 1e6 + 0.5, 1e6 - 3]], dtype=dtype)
    probabilities = np.exp(precise_log_softmax(x.numpy()))
    want = probabilities - [[1.0, 0.0, 0.0]]
    eps = np.finfo(dtype).eps
    for loss in (
        lambda t: tp.loss.cross_entropy(t, [[1.0, 0.0, 0.0]]),
        lambda t: tp.loss.cross_entropy_sparse(t, [0]),
        lambda t: -tp.log_softmax(t)[0, 0],
    ):
        np.testing.assert_allclose(tp.grad(loss)(x), want, rtol=8 * eps, atol=2 * eps)
    np.testing.assert_allclose(tp.grad(lambda t: tp.logsumexp(t))(x), probabilities, rtol=8 * eps)


def test_a_class_of_weight_0_adds_nothing_where_its_logit_is_minus_infinity():
    x = tp.tensor([[0.0, -np.inf, 0.0]])
    loss, grad = tp.value_and_grad(lambda t: tp.loss.cross_entropy(t, [[1.0, 0.0, 0.0]]))(x)
    assert loss.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(grad, [[-0.5, 0.0, 0.5]])


def test_no_rows_have_empty_results():
    assert tp.logsumexp(tp.zeros((0, 5)), axis=1).shape == (0,)
    assert tp.logsumexp(tp.zeros((2, 0, 5)), axis=(0, 2)).shape == (0,)
    assert tp.log_softmax(tp.zeros((0, 5))).shape == (0, 5)
    with pytest.raises(ValueError, match="logsumexp"):
        tp.logsumexp(tp.zeros((3, 0)), axis=1)
