"""The estimators of `tp.sklearn`: scikit-learn's own checks, and its results where they are its models."""

import contextlib
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import treepie as tp
from treepie.kernels.compilations import compilations

pytest.importorskip("sklearn", "1.7")

from sklearn import neural_network
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    make_multilabel_classification,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

MLPClassifier, MLPRegressor = tp.sklearn.MLPClassifier, tp.sklearn.MLPRegressor
TrainerClassifier, TrainerRegressor = tp.sklearn.TrainerClassifier, tp.sklearn.TrainerRegressor
THEIRS = {MLPClassifier: neural_network.MLPClassifier, MLPRegressor: neural_network.MLPRegressor}


@contextlib.contextmanager
def short_fits():
    """Ignore that training ends before it has converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@parametrize_with_checks([MLPClassifier(), MLPRegressor(), TrainerClassifier(), TrainerRegressor()])
def test_checks_of_scikit_learn(estimator, check):
    with short_fits():
        check(estimator)


def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return 20.0 * x, y / 100.0


def fitted(kind, x, y, weight=None, **options):
    with short_fits():
        return kind(random_state=0, **options).fit(x, y, sample_weight=weight)


def assert_equal_to_scikit_learn(kind, x, y, weight=None, **options):
    """Assert that a fit has the results of scikit-learn's, up to rounding."""
    own, theirs = (fitted(k, x, y, weight, **options) for k in (kind, THEIRS[kind]))
    assert own.n_iter_ == theirs.n_iter_
    assert own.t_ == theirs.t_
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    for a, b in zip(own.coefs_ + own.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    for name in ("out_activation_", "n_outputs_", "n_layers_", "best_loss_", "validation_scores_"):
        a, b = getattr(own, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b), name
    if hasattr(own, "predict_proba"):
        np.testing.assert_array_equal(own.predict(x), theirs.predict(x))
        np.testing.assert_allclose(own.predict_proba(x), theirs.predict_proba(x), rtol=1e-7)
    else:
        np.testing.assert_allclose(own.predict(x), theirs.predict(x), rtol=1e-7)
    return own


SHORT = {"hidden_layer_sizes": (16,), "max_iter": 12}


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_classifier_equals_scikit_learn(activation, alpha):
    options = {**SHORT, "hidden_layer_sizes": (12, 7), "activation": activation, "alpha": alpha}
    assert_equal_to_scikit_learn(MLPClassifier, *cancer(), **options)


@pytest.mark.parametrize("rate", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_scikit_learn(rate, nesterov):
    """With a tolerance that stops training, or lowers the rate, several times."""
    options = {"solver": "sgd", "learning_rate": rate, "nesterovs_momentum": nesterov, "max_iter": 40}
    options |= {"learning_rate_init": 0.05, "tol": 1e-2, "n_iter_no_change": 2}
    x, y = cancer()
    own = assert_equal_to_scikit_learn(MLPClassifier, x, y, **{**SHORT, **options})
    if rate == "adaptive":
        assert own._optimizer.learning_rate < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-2, "learning_rate_init": 0.01},
        {"shuffle": False, "batch_size": 50},
        {"solver": "sgd", "momentum": 0.0},
        {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 2, "max_iter": 40},
        {"solver": "lbfgs"},
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_options_equal_scikit_learn(options, weighted):
    x, y = cancer()
    weight = np.random.default_rng(0).integers(1, 4, len(y)) / 2.0 if weighted else None
    if options.get("solver") == "lbfgs":
        own, theirs = (
            fitted(k, x, y, weight, **SHORT, **options) for k in (MLPClassifier, THEIRS[MLPClassifier])
        )
        np.testing.assert_array_equal(own.predict_proba(x), theirs.predict_proba(x))
    else:
        assert_equal_to_scikit_learn(MLPClassifier, x, y, weight, **{**SHORT, **options})


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_regressor_equals_scikit_learn(loss, weighted, outputs):
    x, y = diabetes()
    weight = np.random.default_rng(0).integers(1, 4, len(y)) / 2.0 if weighted else None
    y = y if outputs == 1 else np.stack([y, y**2], axis=1)
    y = np.where(y < 0.5, 0.0, y)  # counts, some of them 0
    assert_equal_to_scikit_learn(MLPRegressor, x, y, weight, loss=loss, alpha=0.1, **SHORT)


def test_multilabel_and_several_classes_equal_scikit_learn():
    x, y = make_multilabel_classification(random_state=0, n_samples=150)
    own = assert_equal_to_scikit_learn(MLPClassifier, x, y, **SHORT)
    assert own.predict(x).shape == y.shape
    x, y = load_iris(return_X_y=True)
    own = assert_equal_to_scikit_learn(MLPClassifier, x, np.array(["a", "b", "c"])[y], **SHORT)
    assert own.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(np.exp(own.predict_log_proba(x)), own.predict_proba(x))


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_warm_start_and_partial_fit_equal_scikit_learn(kind):
    x, y = cancer() if kind is MLPClassifier else diabetes()
    first = {"classes": [0, 1]} if kind is MLPClassifier else {}
    models = [k(random_state=0, warm_start=True, max_iter=3) for k in (kind, THEIRS[kind])]
    with short_fits():
        for model in models:
            for _ in range(2):
                model.fit(x, y)
    own, theirs = models
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert own.t_ == theirs.t_
    models = [k(random_state=0, solver=s) for s in ("adam", "sgd") for k in (kind, THEIRS[kind])]
    for model, part in itertools.product(models, range(4)):
        rows = slice(100 * part, 100 * part + 100)
        model.partial_fit(x[rows], y[rows], **first)
    for own, theirs in (models[:2], models[2:]):
        np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-9)
        np.testing.assert_allclose(own.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-9)


def test_partial_fit_continues_after_pickle():
    x, y = cancer()
    models = [MLPClassifier((8,), random_state=np.random.RandomState(0)) for _ in range(2)]
    for model in models:
        model.partial_fit(x, y, classes=[0, 1])
    copy = pickle.loads(pickle.dumps(models[0]))
    np.testing.assert_array_equal(copy.predict_proba(x), models[0].predict_proba(x))
    for model in (copy, models[1]):
        model.partial_fit(x, y)
    np.testing.assert_array_equal(copy.coefs_[0], models[1].coefs_[0])
    np.testing.assert_array_equal(copy.coefs_[1], models[1].coefs_[1])


def test_partial_fit_has_no_early_stopping():
    x, y = cancer()
    with pytest.raises(ValueError, match="does not support early_stopping"):
        MLPClassifier(early_stopping=True).partial_fit(x, y, classes=[0, 1])


@pytest.mark.parametrize("kind", [MLPClassifier, TrainerClassifier])
def test_accuracy_is_that_of_scikit_learn(kind):
    """Of five models each, on two data sets."""
    for x, y in (cancer(), load_digits(return_X_y=True)):
        x = x / 4.0
        rows = np.arange(len(y)) % 3 > 0
        scores = {}
        for k in (kind, neural_network.MLPClassifier):
            steps = {"epochs": 30} if k is TrainerClassifier else {"max_iter": 30, "batch_size": 64}
            with short_fits():
                models = [k(random_state=seed, **steps).fit(x[rows], y[rows]) for seed in range(5)]
            scores[k] = np.mean([m.score(x[~rows], y[~rows]) for m in models])
        own, theirs = scores.values()
        assert abs(own - theirs) < 0.015


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor, TrainerClassifier, TrainerRegressor])
def test_weights_of_integers_equal_repeated_rows(kind):
    x, y = load_iris(return_X_y=True)
    weight = np.random.default_rng(0).integers(0, 3, len(y))
    options = {"epochs": 5} if "epochs" in kind().get_params() else {"max_iter": 5, "alpha": 1.0}
    options["batch_size"] = 2 * len(y) if "epochs" in options else "auto"
    x, y, weight = x[::2], y[::2], weight[::2]
    weighted = fitted(kind, x, y, weight, **options)
    repeated = fitted(kind, x.repeat(weight, axis=0), y.repeat(weight), **options)
    predict = "predict_proba" if hasattr(weighted, "predict_proba") else "predict"
    a, b = (getattr(m, predict)(x) for m in (weighted, repeated))
    np.testing.assert_allclose(a, b, rtol=1e-7)


@pytest.mark.parametrize("kind", [MLPClassifier, TrainerClassifier])
def test_class_weight_is_a_weight_of_examples(kind):
    x, y = cancer()
    options = {"epochs": 3} if kind is TrainerClassifier else {"max_iter": 3}
    samples = np.random.default_rng(0).random(len(y))
    by_class = fitted(kind, x, y, samples, class_weight={0: 3.0}, **options)
    by_example = fitted(kind, x, y, np.where(y == 0, 3.0, 1.0) * samples, **options)
    np.testing.assert_allclose(by_class.predict_proba(x), by_example.predict_proba(x), rtol=1e-12)
    balanced = fitted(kind, x, y, class_weight="balanced", **options)
    weights = len(y) / (2 * np.bincount(y))
    np.testing.assert_allclose(
        balanced.predict_proba(x), fitted(kind, x, y, weights[y], **options).predict_proba(x), rtol=1e-12
    )
    with pytest.raises(ValueError, match="'balanced' is not supported for partial_fit"):
        kind(class_weight="balanced").partial_fit(x, y, classes=[0, 1])


def test_dropout_and_float32():
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    models = [fitted(MLPClassifier, x, y, max_iter=40, dropout=rate) for rate in (0.0, 0.5)]
    assert models[0].loss_ < 0.8 * models[1].loss_  # of training, in which units are dropped
    assert [m.coefs_[0].dtype for m in models] == [np.float32, np.float32]
    assert models[1].predict_proba(x).dtype == np.float32
    assert models[1].score(x, y) > 0.95
    np.testing.assert_array_equal(models[1].predict_proba(x), models[1].predict_proba(x))
    with pytest.raises(ValueError, match="has no dropout and no callbacks"):
        MLPClassifier(solver="lbfgs", dropout=0.5).fit(x, y)


class Noted:
    """A callback that counts, and ends training after some epochs."""

    def __init__(self, last):
        self.last, self.epochs = last, 0

    def on_epoch(self, epoch, scores, st):
        self.epochs = epoch
        if epoch == self.last:
            raise tp.EarlyStop


@pytest.mark.parametrize("kind", [MLPClassifier, TrainerClassifier])
def test_callbacks_are_called(kind):
    noted = Noted(4)
    model = kind(callbacks=[noted], random_state=0).fit(*cancer())
    assert (noted.epochs, model.n_iter_, len(model.loss_curve_)) == (4, 4, 4)


def test_a_fit_in_a_callback_leaves_the_learning_rate():
    x, y = cancer()

    class Nested:
        def on_epoch(self, epoch, scores, st):
            fitted(MLPClassifier, x, y, **SHORT, learning_rate_init=0.5)

    nested = fitted(MLPClassifier, x, y, **SHORT, callbacks=[Nested()])
    np.testing.assert_array_equal(nested.coefs_[0], fitted(MLPClassifier, x, y, **SHORT).coefs_[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_inputs(weighted):
    sparse = pytest.importorskip("scipy.sparse")
    x, y = load_digits(return_X_y=True)
    weight = 1.0 + y if weighted else None
    dense = fitted(MLPClassifier, x / 16.0, y, weight, **SHORT)
    for kind in (sparse.csr_array, sparse.csc_array):
        model = fitted(MLPClassifier, kind(x / 16.0), y, weight, **SHORT)
        np.testing.assert_array_equal(model.coefs_[0], dense.coefs_[0])


def test_nonfinite_training_is_an_error():
    x, y = diabetes()
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        MLPRegressor(solver="sgd", learning_rate_init=1e3, random_state=0).fit(x, 1e6 * y)


def test_warnings_and_errors_are_those_of_scikit_learn():
    x, y = cancer()
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached") as caught:
        MLPClassifier(max_iter=2).fit(x, y)
    assert caught[0].filename == __file__
    with short_fits(), pytest.warns(UserWarning, match="larger than sample size"):
        MLPClassifier(max_iter=2, batch_size=1000).fit(x, y)
    for wrong in ({"solver": "adagrad"}, {"dropout": 1.0}, {"preset": "best"}, {"callbacks": 3}):
        with pytest.raises(ValueError, match=f"The '{next(iter(wrong))}' parameter of MLPClassifier must be"):
            MLPClassifier(**wrong).fit(x, y)


def test_interrupt_keeps_the_weights():
    x, y = cancer()

    class Interrupt:
        def on_epoch(self, epoch, scores, st):
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted by user"):
        model = MLPClassifier((16,), callbacks=[Interrupt()], random_state=0).fit(x, y)
    assert model.n_iter_ == 3
    np.testing.assert_array_equal(
        model.coefs_[0], fitted(MLPClassifier, x, y, hidden_layer_sizes=(16,), max_iter=3).coefs_[0]
    )


# ---- no compilation, no import
def test_a_second_fit_compiles_nothing():
    x, y = load_digits(return_X_y=True)
    fitted(MLPClassifier, x, y, **SHORT)
    with compilations.watch():
        before = compilations.count
        fitted(MLPClassifier, x, y, **SHORT, alpha=0.5, learning_rate_init=0.1)
        clone(MLPClassifier()).get_params()
        assert compilations.count == before


def test_import_of_treepie_imports_no_scikit_learn():
    code = "import sys, treepie as tp; dir(tp).index('sklearn'); print('sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import treepie as tp; tp.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "treepie[sklearn]"' in run.stderr.splitlines()[-1]
