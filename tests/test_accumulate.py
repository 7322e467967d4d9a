"""Accumulators against the functions and scikit-learn on the whole data set."""

import copy
import pickle

import numpy as np
import pytest

import treepie as tp
from treepie import metric

from .test_metric import AVERAGES, BITS, FAR, LOGITS, NEAR, SCORES, TARGETS

TIED = np.round(SCORES, 1)

# name: (accumulator, function, predictions, targets, scikit-learn's function)
ACCUMULATORS = {
    "Accuracy": (metric.Accuracy, metric.accuracy, LOGITS, TARGETS, "accuracy_score"),
    "Accuracy, two": (metric.Accuracy, metric.accuracy, SCORES, BITS, "accuracy_score"),
    "BinaryAccuracy": (
        metric.BinaryAccuracy,
        metric.binary_accuracy,
        SCORES[:, None],
        BITS,
        "accuracy_score",
    ),
    "TopKAccuracy": (metric.TopKAccuracy, metric.top_k_accuracy, LOGITS, TARGETS, None),
    "ConfusionMatrix": (metric.ConfusionMatrix, metric.confusion_matrix, LOGITS, TARGETS, "confusion_matrix"),
    "AUC": (metric.AUC, metric.auc_roc, SCORES, BITS, "roc_auc_score"),
    "AUC, ties": (metric.AUC, metric.auc_roc, TIED[:, None], BITS, "roc_auc_score"),
    "MSE": (metric.MSE, metric.mse, NEAR, FAR, "mean_squared_error"),
    "MAE": (metric.MAE, metric.mae, NEAR, FAR, "mean_absolute_error"),
    "R2": (metric.R2, metric.r2, NEAR, FAR, "r2_score"),
    "Mean": (lambda: metric.Mean(metric.mse), metric.mse, SCORES, BITS, "mean_squared_error"),
}
PARAMETERS = [
    *((name, {"average": average}) for name in ("Precision", "Recall", "F1") for average in AVERAGES),
    *(("BinaryAccuracy", {"threshold": threshold}) for threshold in (0.0, 0.9)),
    *(("TopKAccuracy", {"k": k}) for k in (1, 2, 3)),
]
FUNCTIONS = {"BinaryAccuracy": "binary_accuracy", "TopKAccuracy": "top_k_accuracy"}


def with_parameters(name, options):
    def whole(x, y):
        return getattr(metric, FUNCTIONS.get(name, name.lower()))(x, y, **options)

    x, y = (SCORES, BITS) if name == "BinaryAccuracy" else (LOGITS, TARGETS)
    sklearn = {"BinaryAccuracy": "accuracy_score", "TopKAccuracy": "top_k_accuracy_score"}
    return lambda: getattr(metric, name)(**options), whole, x, y, sklearn.get(name, f"{name.lower()}_score")


for _name, _options in PARAMETERS:
    ACCUMULATORS[f"{_name}, {next(iter(_options.values()))}"] = with_parameters(_name, _options)


def by_scikit_learn(name, make, function, x, y):
    """Score the whole set with scikit-learn, which takes classes where we take logits."""
    sklearn = pytest.importorskip("sklearn.metrics")
    m, options = make(), {}
    if isinstance(m, metric.Precision):
        options = {"average": name.split(", ")[-1], "zero_division": 0}
    if function == "top_k_accuracy_score":
        options = {"k": int(name[-1]), "labels": range(5)}
    elif isinstance(m, metric.BinaryAccuracy):
        x = x > (float(name.split(", ")[1]) if "," in name else 0.5)
    elif isinstance(m, metric.Accuracy | metric.ConfusionMatrix):
        x = x.argmax(-1) if x.ndim == 2 else x > 0.5
    elif isinstance(m, metric.R2):
        x, y = x.ravel(), y.ravel()
    return getattr(sklearn, function)(y, x, **options)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators_score_the_whole_data_set(name):
    make, whole, x, y, sklearn = ACCUMULATORS[name]
    want = whole(x, y)
    if sklearn:
        np.testing.assert_allclose(want, by_scikit_learn(name, make, sklearn, x, y), rtol=1e-12)
    for ends in ([97], [1, 97], [40, 80, 97], [3, 3, 10, 50, 51, 97], range(7, 104, 7)):
        parts = [make(), make(), make()]
        for k, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            parts[k % 2].update(x[first:last], y[first:last])  # one of these batches is empty
        one, two, unused = parts
        two = pickle.loads(pickle.dumps(two)) if "Mean" not in name else two  # as between processes
        seen = copy.deepcopy(vars(two))
        one.merge(two)
        one.merge(unused)
        unused.merge(one)
        for m in (one, unused):
            np.testing.assert_allclose(m.compute(), want, rtol=1e-12)
        np.testing.assert_equal(vars(two), seen)  # merging leaves the other as it was
    one.reset()
    with pytest.raises(ValueError, match=r"metric\.\w+: no elements were given"):
        one.compute()
    one.update(x[:17], y[:17])
    np.testing.assert_allclose(one.compute(), whole(x[:17], y[:17]), rtol=1e-12)
    np.testing.assert_allclose(unused.compute(), want, rtol=1e-12)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_a_merged_accumulator_does_not_change_with_the_other(name):
    make, _, x, y, _ = ACCUMULATORS[name]
    first, second = make(), make()
    second.update(x[:50], y[:50])
    score = np.array(second.compute())
    first.merge(second)
    first.update(x[50:], y[50:])
    np.testing.assert_array_equal(second.compute(), score)


MADE = {type(make()).__name__: make for make, *_ in ACCUMULATORS.values()}


@pytest.mark.parametrize("mine", MADE)
def test_another_kind_is_not_merged(mine):
    for other, make in MADE.items():
        if other != mine:
            match = rf"metric.{mine}.merge: other is a metric.{other}, expected a metric.{mine}$"
            with pytest.raises(TypeError, match=match):
                MADE[mine]().merge(make())
    with pytest.raises(TypeError, match=rf"metric.{mine}.merge: other is a float, expected a metric.{mine}$"):
        MADE[mine]().merge(0.5)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (metric.F1("micro"), metric.F1(), "F1.merge: other has average='macro', expected 'micro' as here"),
        (metric.TopKAccuracy(2), metric.TopKAccuracy(), "TopKAccuracy.merge: other has k=5, expected 2 as"),
        (
            metric.BinaryAccuracy(),
            metric.BinaryAccuracy(0.25),
            "BinaryAccuracy.merge: other has threshold=0.25, expected 0.5 as here",
        ),
        (metric.Mean(), metric.Mean(max), "Mean.merge: other has fn='a function', expected None as here"),
    ],
)
def test_other_parameters_are_not_merged(one, two, message):
    with pytest.raises(ValueError, match=f"metric.{message}"):
        one.merge(two)


def test_another_number_of_classes_is_not_taken():
    one, two = metric.Recall(), metric.Recall()
    one.update(LOGITS, TARGETS)
    two.update(LOGITS[:4, :3], [0, 1, 2, 2])
    before = one.compute()
    with pytest.raises(ValueError, match=r"metric.Recall: given 3 classes, expected 5 as before"):
        one.update(LOGITS[:4, :3], [0, 1, 2, 2])
    with pytest.raises(ValueError, match=r"metric.Recall.merge: given 3 classes, expected 5 as before"):
        one.merge(two)
    assert one.compute() == before


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_nan_is_an_error_for_classes_and_gives_nan_for_numbers(name):
    make, whole, x, y, _ = ACCUMULATORS[name]
    bad = x.copy()
    bad[5] = np.nan
    m = make()
    if isinstance(m, metric.MSE | metric.MAE | metric.R2 | metric.Mean):
        m.update(bad, y)
        assert np.isnan(m.compute())
        assert np.isnan(whole(bad, y))
        return
    m.update(x[:17], y[:17])
    before = m.compute()
    match = rf"metric.\w+: (logits|pred|scores) has {5 if bad.shape[1:] == (5,) else 1} NaN of {x.size}"
    with pytest.raises(ValueError, match=match):
        m.update(bad, y)
    with pytest.raises(ValueError, match=match):
        whole(bad, y)
    np.testing.assert_array_equal(m.compute(), before)


def test_mean_of_numbers():
    m = metric.Mean()
    m.update(1.0)
    m.update(tp.tensor([2, 6]))
    assert m.compute() == 3.0
    m.update(8.0, weight=3)
    other = metric.Mean()
    other.update(np.zeros((2, 2)), weight=0.5)
    other.update(100.0, weight=0)
    m.merge(other)
    assert m.compute() == 33 / 8


def test_mean_of_a_function_weighs_batches_by_their_size():
    m = metric.Mean(tp.loss.mse)
    m.update(SCORES[:90], BITS[:90])
    m.update(SCORES[90:], BITS[90:])
    m.update(SCORES[:0], BITS[:0])
    assert m.compute() == pytest.approx(metric.mse(SCORES, BITS), rel=1e-12)
    m.reset()
    m.update(SCORES[:90], BITS[:90], weight=1)
    m.update(SCORES[90:], BITS[90:], weight=1)
    want = (metric.mse(SCORES[:90], BITS[:90]) + metric.mse(SCORES[90:], BITS[90:])) / 2
    assert m.compute() == pytest.approx(want, rel=1e-12)
