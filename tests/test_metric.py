"""Metrics against scikit-learn and NumPy, means over batches, errors."""

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
FAR = 1e6 + RNG.normal(size=(97, 2))
NEAR = FAR + 0.3 * RNG.normal(size=(97, 2))
AVERAGES = ["macro", "micro", "weighted"]


def logits_of(classes, count):
    return np.eye(count)[classes]


ABSENT = {  # of 6 classes: predicted, true
    "one in neither": ([0, 1, 2, 2, 4, 5, 5], [0, 1, 1, 2, 4, 4, 5]),
    "one only predicted": ([0, 1, 2, 2, 3, 5], [0, 1, 1, 2, 5, 5]),
    "one only in targets": ([0, 1, 2, 2, 5], [0, 1, 3, 2, 5]),
    "all three": ([0, 0, 1, 2, 2], [0, 3, 3, 2, 0]),
    "none right": ([0, 1, 2], [3, 4, 5]),
    "a single one": ([4, 4], [4, 4]),
}


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


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@pytest.mark.parametrize("case", ABSENT)
def test_classes_that_are_absent(case, name, average):
    """Only classes that occur count, as in scikit-learn, also where no batch has them all."""
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, true = ABSENT[case]
    want = getattr(sklearn, f"{name}_score")(true, predicted, average=average, zero_division=0)
    logits = logits_of(predicted, 6)
    np.testing.assert_allclose(getattr(metric, name)(logits, true, average), want, rtol=1e-12)
    m = getattr(metric, name.capitalize())(average)
    for k in range(len(true)):
        m.update(logits[k : k + 1], true[k : k + 1])
    np.testing.assert_allclose(m.compute(), want, rtol=1e-12)


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
    tied = np.round(LOGITS[:96]).astype(np.int32).reshape(8, 12, 5)  # of equal logits the first count
    best = np.argsort(-tied, -1, kind="stable")[..., :k]
    want = (best == TARGETS[:96].reshape(8, 12, 1)).any(-1).mean()
    assert metric.top_k_accuracy(tied, TARGETS[:96].reshape(8, 12), k) == want


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
    assert metric.binary_accuracy(SCORES[:, None], BITS, 0.9) == np.mean((SCORES > 0.9) == BITS)
    grid, bits = SCORES[:96].reshape(8, 12), BITS[:96].reshape(8, 12)
    assert metric.binary_accuracy(grid, bits) == np.mean((grid > 0.5) == bits)


def test_a_prediction_at_the_threshold_is_on_the_side_of_0():
    assert metric.binary_accuracy([0.5, 0.5, 0.75], [0, 1, 1]) == 2 / 3
    assert metric.binary_accuracy([0.25, 0.5], [0, 1], 0.25) == 1.0
    assert metric.accuracy([0.5, 0.5, 0.75], [0, 1, 1]) == 2 / 3


def test_numbers():
    x, y = RNG.normal(size=(2, 30, 2))
    np.testing.assert_allclose(metric.mse(x, y), np.mean((x - y) ** 2), rtol=1e-13)
    np.testing.assert_allclose(metric.mae(x, y), np.mean(np.abs(x - y)), rtol=1e-13)
    np.testing.assert_allclose(metric.r2(x, y), 1 - np.mean((x - y) ** 2) / y.var(), rtol=1e-13)


def test_r2_where_targets_lie_far_from_0():
    sklearn = pytest.importorskip("sklearn.metrics")
    for offset in (0.0, 1e6, -1e9):
        x, y = NEAR - 1e6 + offset, FAR - 1e6 + offset
        want = sklearn.r2_score(y.ravel(), x.ravel())
        assert metric.r2(x, y) == pytest.approx(want, rel=1e-12, abs=0)
        parts = []
        for k in range(97):
            parts.append(metric.R2())
            parts[-1].update(x[k], y[k])
        while len(parts) > 1:  # as ranks do: in pairs
            for one, two in zip(parts[::2], parts[1::2], strict=False):
                one.merge(two)
            parts = parts[::2]
        assert parts[0].compute() == pytest.approx(want, rel=1e-12, abs=0)
    constant = np.full(10, 0.1)  # its mean is not 0.1 in float64
    with pytest.raises(ValueError, match="target has 10 elements and no variance"):
        metric.r2(constant + 1, constant)


def test_infinity_is_the_largest_score_and_no_warning():
    logits = np.array([[0, np.inf], [-np.inf, 0], [-np.inf, 5]])
    assert metric.accuracy(logits, [1, 1, 0]) == pytest.approx(2 / 3)
    assert metric.top_k_accuracy(logits, [1, 1, 0], 1) == pytest.approx(2 / 3)
    assert metric.auc_roc([np.inf, 0.5, -np.inf, np.inf], [1, 0, 0, 0]) == pytest.approx(2.5 / 3)
    assert metric.mse([np.inf, 0.0], [0.0, 0.0]) == np.inf
    for whole in (metric.mse, metric.mae, metric.r2):
        assert np.isnan(whole([np.inf, 0.0], [np.inf, 1.0]))


def test_eval():
    data = tp.Data.prepare((SCORES, BITS), batch_size=40)
    means = [np.mean(SCORES[k : k + 40]) for k in (0, 40, 80)]
    assert metric.eval(lambda x, y: x.mean(), data) == pytest.approx(np.mean(means))
    with pytest.raises(ValueError, match=r"metric.eval: data is exhausted after 3 elements"):
        metric.eval(lambda x, y: 0.0, data)
    data.reset()
    got = metric.eval_many(lambda xy: {"b": len(xy[0]), "a": 1}, data)
    assert list(got.items()) == [("a", 1.0), ("b", 97 / 3)]
    with pytest.raises(ValueError, match=r"metric.eval_many: data is exhausted after 3 elements"):
        metric.eval_many(lambda xy: {}, data)
    data.reset()
    next(iter(data))
    assert metric.eval(lambda x, y: len(x), data) == 57 / 2  # of the batches that are left
    data.reset()
    got = metric.eval_many(lambda x, y: {"short": 2.0} if len(x) < 40 else {"full": tp.tensor(1)}, data)
    assert got == {"full": 1.0, "short": 2.0}
    data.reset()
    with pytest.raises(TypeError, match=r"metric.eval_many: fn returned a float, expected \{name: number\}"):
        metric.eval_many(lambda x, y: 1.0, data)
    with pytest.raises(ValueError, match=r"metric.eval: data is empty, expected at least one element"):
        metric.eval(lambda x: x, tp.Data.of_array([]))
    with pytest.raises(TypeError, match=r"metric.eval: data is a list, expected a tp.Data"):
        metric.eval(lambda x: x, [1.0])


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
    t.observe("loss", np.float32("nan"))
    assert np.isnan(t.mean("loss"))
    t.reset()
    assert (t.to_list(), t.summary(), t.count("loss")) == ([], "", 0)
    with pytest.raises(KeyError, match="name is 'loss', expected one observed: nothing"):
        t.mean("loss")


ERRORS = [
    (
        lambda: metric.accuracy(np.zeros((4, 3)), np.zeros((4, 1))),
        r"metric.accuracy: logits have shape \(4, 3\) and targets \(4, 1\), expected \(b, c\) and",
    ),
    (lambda: metric.accuracy(np.zeros((1, 3)), [3]), "metric.accuracy: a target is 3, expected 0 to 2"),
    (lambda: metric.f1(np.zeros((1, 3)), [-1]), "metric.f1: a target is -1, expected 0 to 2"),
    (lambda: metric.accuracy(np.zeros((0, 3)), np.zeros(0)), "metric.accuracy: no elements were giv"),
    (lambda: metric.accuracy([0.1], [0.5]), "metric.accuracy: targets are not whole numbers"),
    (lambda: metric.F1("mean"), "metric.F1: average is 'mean', expected 'macro', 'micro' or"),
    (lambda: metric.top_k_accuracy(np.zeros((1, 3)), [0], 4), "k is 4, expected 1 to 3"),
    (lambda: metric.mse([1.0], [[1.0]]), r"metric.mse: pred has shape \(1,\) and target \(1, 1\)"),
    (lambda: metric.r2([1.0, 2.0], [1.0, 1.0]), "metric.r2: target has 2 elements and no variance"),
    (lambda: metric.r2([], []), "metric.r2: no elements were given, expected at least one"),
    (lambda: metric.auc_roc([0.1, 0.2], [1, 1]), "metric.auc_roc: targets are all 1, expected both"),
    (lambda: metric.auc_roc([], []), "metric.auc_roc: no elements were given, expected at least one"),
    (lambda: metric.auc_roc([0.1, 0.2], [1, 2]), "metric.auc_roc: a target is 2, expected 0 or 1"),
    (lambda: metric.auc_roc([0.1, 0.2], [1]), r"metric.auc_roc: scores has shape \(2,\) and targets \(1,"),
    (
        lambda: metric.auc_roc(np.zeros((2, 2)), np.eye(2)),
        r"metric.auc_roc: scores have shape \(2, 2\), expected \(b,\) or \(b, 1\)",
    ),
    (lambda: metric.AUC().update(np.zeros((2, 2)), [0, 1]), r"metric.AUC: scores have shape \(2, 2\), ex"),
    (lambda: metric.AUC().update([0.5], [np.nan]), "metric.AUC: a target is nan, expected 0 or 1"),
    (
        lambda: metric.accuracy(np.zeros((1, 3)), np.array([1e300])),
        "metric.accuracy: a target is 1000.*, expected 0",
    ),
    (lambda: metric.accuracy(np.zeros((1, 3)), [np.nan]), "metric.accuracy: targets are not whole num"),
    (
        lambda: metric.binary_accuracy([0.5], [0.9]),
        "metric.binary_accuracy: a target is 0.8999.*, expected 0 or",
    ),
    (lambda: metric.binary_accuracy([0.5], [1], np.nan), "metric.binary_accuracy: threshold is nan, expec"),
    (lambda: metric.BinaryAccuracy(np.nan), "metric.BinaryAccuracy: threshold is nan, expected a number"),
    (
        lambda: metric.BinaryAccuracy().update(np.zeros((2, 3)), [0, 1]),
        r"metric.BinaryAccuracy: pred has shape \(2, 3\) and targets \(2,\), expected one shape, or \(b",
    ),
    (lambda: metric.TopKAccuracy(0), "metric.TopKAccuracy: k is 0, expected at least 1"),
    (lambda: metric.TopKAccuracy(4).update(np.zeros((1, 3)), [0]), "TopKAccuracy: k is 4, expected 1 to 3"),
    (
        lambda: metric.top_k_accuracy([0.1, 0.9], [0, 1], 1),
        r"metric.top_k_accuracy: logits have shape \(2,\) and targets \(2,\), expected \(..., c\) and",
    ),
    (lambda: metric.R2().update([1.0], [[1.0]]), r"metric.R2: pred has shape \(1,\) and target \(1, 1\)"),
    (lambda: metric.Mean().update(1.0, weight=-1), "metric.Mean.update: weight is -1, expected a number of"),
    (lambda: metric.Mean().update(1.0, weight=np.nan), "metric.Mean.update: weight is nan, expected a n"),
    (
        lambda: metric.Mean(lambda a, b: tp.square(a - b)).update(tp.ones(3), tp.zeros(3)),
        r"metric.Mean.update: fn returned an array of shape \(3,\), expected a scalar, the mean",
    ),
]


@pytest.mark.parametrize(("call", "match"), ERRORS)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


TYPE_ERRORS = [
    (lambda: metric.TopKAccuracy(2.0), "metric.TopKAccuracy: k is 2.0, expected an int"),
    (lambda: metric.Mean().update([1.0], [1.0]), "metric.Mean.update: a target and fn is None, expected a"),
    (lambda: metric.Mean(max).update([1.0]), "metric.Mean.update: no target and fn is given, expected a"),
]


@pytest.mark.parametrize(("call", "match"), TYPE_ERRORS)
def test_type_errors(call, match):
    with pytest.raises(TypeError, match=match):
        call()
