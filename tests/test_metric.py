"""Metrics against scikit-learn and NumPy; accumulators against the functions on the whole data set."""

import numpy as np
import pytest

import treepie as tp
from treepie import metric

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(97, 5))
LOGITS[:, 4] = -9  # a class that is never predicted
TARGETS = RNG.integers(0, 4, 97)
TARGETS[:40] = LOGITS[:40].argmax(-1)
TARGETS[-1] = 4
SCORES, BITS = RNG.random(97), RNG.integers(0, 2, 97)
AVERAGES = ["macro", "micro", "weighted"]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@pytest.mark.parametrize("classes", ["many", "two", "some absent"])
def test_precision_recall_f1(name, average, classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, targets = {
        "many": (LOGITS, TARGETS),
        "two": (SCORES[:, None], BITS),
        "some absent": (LOGITS[:9], TARGETS[:9]),
    }[classes]
    predicted = SCORES > 0.5 if classes == "two" else logits.argmax(-1)
    want = getattr(sklearn, f"{name}_score")(targets, predicted, average=average, zero_division=0)
    np.testing.assert_allclose(getattr(metric, name)(logits, targets, average), want, rtol=1e-12)


def test_confusion_matrix():
    sklearn = pytest.importorskip("sklearn.metrics")
    got = metric.confusion_matrix(LOGITS, TARGETS)
    assert got.dtype == tp.int64
    np.testing.assert_array_equal(got, sklearn.confusion_matrix(TARGETS, LOGITS.argmax(-1)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k(k):
    best = np.argsort(-LOGITS, -1)[:, :k]
    want = np.mean([t in row for t, row in zip(TARGETS, best, strict=True)])
    assert metric.top_k_accuracy(LOGITS, TARGETS, k) == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_roc(ties):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores = np.round(SCORES, 1) if ties else SCORES
    got = metric.auc_roc(scores, BITS)
    assert got == pytest.approx(sklearn.roc_auc_score(BITS, scores), rel=1e-12)


def test_accuracy():
    right = LOGITS.argmax(-1) == TARGETS
    assert metric.accuracy(LOGITS, TARGETS) == right.mean()
    assert metric.accuracy(LOGITS[:96].reshape(8, 12, 5), TARGETS[:96].reshape(8, 12)) == right[:96].mean()
    binary = np.mean((SCORES > 0.5) == BITS)
    for scores in (SCORES, SCORES[:, None]):
        for targets in (BITS, BITS[:, None], BITS.astype(bool), BITS.astype(float)):
            assert metric.accuracy(scores, targets) == binary
    assert metric.binary_accuracy(SCORES, BITS, 0.9) == np.mean((SCORES > 0.9) == BITS)


def test_numbers():
    x, y = RNG.normal(size=(2, 30, 2))
    np.testing.assert_allclose(metric.mse(x, y), np.mean((x - y) ** 2), rtol=1e-13)
    np.testing.assert_allclose(metric.mae(x, y), np.mean(np.abs(x - y)), rtol=1e-13)
    np.testing.assert_allclose(metric.r2(x, y), 1 - np.mean((x - y) ** 2) / y.var(), rtol=1e-13)


def weighted_recall(logits, targets):
    return metric.recall(logits, targets, "weighted")


ACCUMULATORS = {
    "Accuracy": (metric.Accuracy, metric.accuracy, LOGITS, TARGETS),
    "Accuracy, two": (metric.Accuracy, metric.accuracy, SCORES, BITS),
    "Precision": (metric.Precision, metric.precision, LOGITS, TARGETS),
    "Recall": (lambda: metric.Recall("weighted"), weighted_recall, LOGITS, TARGETS),
    "F1": (lambda: metric.F1("macro"), metric.f1, LOGITS, TARGETS),
    "ConfusionMatrix": (metric.ConfusionMatrix, metric.confusion_matrix, LOGITS, TARGETS),
    "BinaryAccuracy": (metric.BinaryAccuracy, metric.binary_accuracy, SCORES, BITS),
    "BinaryAccuracy, 0.9": (
        lambda: metric.BinaryAccuracy(0.9),
        lambda x, y: metric.binary_accuracy(x, y, 0.9),
        SCORES,
        BITS,
    ),
    "TopKAccuracy": (
        lambda: metric.TopKAccuracy(2),
        lambda x, y: metric.top_k_accuracy(x, y, 2),
        LOGITS,
        TARGETS,
    ),
    "AUC": (metric.AUC, metric.auc_roc, np.round(SCORES, 1), BITS),
    "R2": (metric.R2, metric.r2, SCORES + 1e6, SCORES**2 + 1e6),
    "MSE": (metric.MSE, metric.mse, SCORES, BITS),
    "MAE": (metric.MAE, metric.mae, SCORES, BITS),
    "Mean": (lambda: metric.Mean(metric.mse), metric.mse, SCORES, BITS),
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators_score_the_whole_data_set(name):
    make, whole, x, y = ACCUMULATORS[name]
    parts = [make(), make(), make()]
    for k, first in enumerate(range(0, 97, 10)):
        parts[k % 2].update(x[first : first + 10], y[first : first + 10])
    one, two, unused = parts
    one.merge(two)
    one.merge(unused)
    np.testing.assert_allclose(one.compute(), whole(x, y), rtol=1e-12)
    one.reset()
    with pytest.raises(ValueError, match=r"metric\.\w+: no elements were given"):
        one.compute()
    one.update(x[:7], y[:7])
    np.testing.assert_allclose(one.compute(), whole(x[:7], y[:7]), rtol=1e-12)


def test_r2_and_auc_in_batches_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    x, y = RNG.normal(size=(2, 1000)) * 1e-3 + 1e6
    bits = (x > y).astype(int)
    r2, auc = metric.R2(), metric.AUC()
    for k in range(0, 1000, 33):
        r2.update(x[k : k + 33], y[k : k + 33])
        auc.update(x[k : k + 33, None], bits[k : k + 33])
    assert r2.compute() == pytest.approx(sklearn.r2_score(y, x), rel=1e-9)
    assert auc.compute() == pytest.approx(sklearn.roc_auc_score(bits, x), rel=1e-12)


MERGES = [
    (metric.MSE(), metric.MAE(), TypeError, "metric.MSE: merged with a MAE, expected its own kind"),
    (
        metric.F1(),
        metric.F1("micro"),
        ValueError,
        "metric.F1: merged with one of average 'micro', expected 'm",
    ),
    (metric.TopKAccuracy(2), metric.TopKAccuracy(3), ValueError, "merged with one of k 3, expected 2"),
    (metric.BinaryAccuracy(), metric.BinaryAccuracy(0.9), ValueError, "of threshold 0.9, expected 0.5"),
    (metric.AUC(), metric.R2(), TypeError, "metric.AUC: merged with a R2"),
    (metric.ConfusionMatrix(), metric.F1(), TypeError, "metric.ConfusionMatrix: merged with a F1"),
]


@pytest.mark.parametrize(("one", "other", "error", "match"), MERGES)
def test_unlike_metrics_do_not_merge(one, other, error, match):
    with pytest.raises(error, match=match):
        one.merge(other)


def test_eval():
    data = tp.Data.prepare((SCORES, BITS), batch_size=40)
    means = [np.mean(SCORES[k : k + 40]) for k in (0, 40, 80)]
    assert metric.eval(lambda x, y: x.mean(), data) == pytest.approx(np.mean(means))
    with pytest.raises(ValueError, match=r"metric.eval: data is exhausted after 3 elements"):
        metric.eval(lambda x, y: 0.0, data)
    data.reset()
    got = metric.eval_many(lambda xy: {"b": len(xy[0]), "a": 1}, data)
    assert list(got.items()) == [("a", 1.0), ("b", 97 / 3)]


def test_tracker():
    t = metric.Tracker()
    for value in (0.5, tp.tensor(0.25), 0.75):
        t.observe("loss", value)
    t.observe("accuracy", 0.915)
    assert (t.mean("loss"), t.count("loss"), t.count("other")) == (0.5, 3, 0)
    assert t.to_list() == [("accuracy", 0.915), ("loss", 0.5)]
    assert t.summary() == "accuracy: 0.9150  loss: 0.5000"
    with pytest.raises(KeyError, match="name is 'other', expected one observed: accuracy, loss"):
        t.mean("other")
    t.reset()
    assert t.to_list() == []


NAN = np.full((4, 3), np.nan)
ERRORS = [
    (lambda: metric.accuracy(NAN, [0] * 4), "metric.accuracy: 12 of 12 predictions are NaN, expected numb"),
    (lambda: metric.TopKAccuracy(2).update(NAN, [0] * 4), "metric.TopKAccuracy: 12 of 12 predictions are"),
    (lambda: metric.auc_roc(NAN[0], [0, 1, 0]), "metric.auc_roc: 3 of 3 predictions are NaN"),
    (
        lambda: metric.accuracy(np.zeros((4, 3)), np.zeros((4, 1))),
        r"metric.accuracy: logits have shape \(4, 3\) and targets \(4, 1\), expected \(b, c\) and",
    ),
    (lambda: metric.accuracy(np.zeros((1, 3)), [3]), "metric.accuracy: a target is 3, expected 0 to 2"),
    (lambda: metric.f1(np.zeros((1, 3)), [-1]), "metric.f1: a target is -1, expected 0 to 2"),
    (lambda: metric.accuracy(np.zeros((0, 3)), np.zeros(0)), "metric.accuracy: no elements were giv"),
    (lambda: metric.accuracy([0.1], [0.5]), "metric.accuracy: targets are not whole numbers"),
    (lambda: metric.F1("mean"), "metric.F1: average is 'mean', expected 'macro', 'micro' or"),
    (lambda: metric.R2().compute(), "metric.R2: no elements were given"),
    (lambda: metric.top_k_accuracy(np.zeros((1, 3)), [0], 4), "k is 4, expected 1 to 3"),
    (lambda: metric.mse([1.0], [[1.0]]), r"metric.mse: pred has shape \(1,\) and target \(1, 1\)"),
    (lambda: metric.r2([1.0, 2.0], [1.0, 1.0]), r"metric.r2: target has shape \(2,\) and no variance"),
    (lambda: metric.auc_roc([0.1, 0.2], [1, 1]), "metric.auc_roc: targets are all 1, expected both"),
]


@pytest.mark.parametrize(("call", "match"), ERRORS)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
