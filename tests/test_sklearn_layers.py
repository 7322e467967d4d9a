"""The estimators of `tp.sklearn` in pipelines, searches and processes; layers as estimators."""

import pickle
import warnings

import numpy as np
import pytest

import treepie as tp

pytest.importorskip("sklearn", "1.7")

from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

MLPClassifier, TrainerClassifier = tp.sklearn.MLPClassifier, tp.sklearn.TrainerClassifier
TrainerRegressor = tp.sklearn.TrainerRegressor


@pytest.mark.parametrize("backend", ["loky", "threading"])
@pytest.mark.parametrize("kind", [MLPClassifier, TrainerClassifier])
def test_grid_search_in_a_pipeline(kind, backend, monkeypatch):
    """In processes too, which are sent the estimators."""
    joblib = pytest.importorskip("joblib")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    x, y = load_iris(return_X_y=True)
    name = kind.__name__.lower()
    steps = {"epochs": [2, 30]} if kind is TrainerClassifier else {"max_iter": [2, 60]}
    grid = {f"{name}__{k}": v for k, v in steps.items()}
    model = make_pipeline(StandardScaler(), kind(random_state=0))
    with warnings.catch_warnings(), joblib.parallel_backend(backend, n_jobs=2):
        warnings.simplefilter("ignore")
        search = GridSearchCV(model, grid, cv=2).fit(x, y)
    assert list(search.best_params_.values()) == [max(next(iter(steps.values())))]
    assert search.score(x, y) > 0.85


def test_data_frames_with_a_column_transformer():
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    frame = pandas.DataFrame({"size": random.normal(size=200), "kind": random.choice(["a", "b"], 200)})
    y = np.where((frame["kind"] == "a") ^ (frame["size"] > 0), "yes", "no")
    encoded = make_column_transformer((OneHotEncoder(), ["kind"]), remainder=StandardScaler())
    model = make_pipeline(encoded, MLPClassifier(learning_rate_init=0.01, random_state=0, max_iter=60))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert cross_val_score(model, frame, y, cv=2).min() > 0.9
    numbers = frame[["size"]]
    for kind in (MLPClassifier, TrainerClassifier):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = kind(random_state=0).fit(numbers, y)
        assert model.feature_names_in_.tolist() == ["size"]
        with pytest.raises(ValueError, match="feature names should match"):
            model.predict(numbers.rename(columns={"size": "width"}))


# ---- any layer
def test_a_layer_as_a_classifier():
    x, y = load_digits(return_X_y=True, as_frame=False)
    x = (x / 16.0).reshape(-1, 1, 8, 8).astype(np.float32)
    parts = [tp.layer.conv2d(1, 4), tp.layer.relu(), tp.layer.flatten(), tp.layer.linear(256, 10)]
    model = TrainerClassifier(
        tp.layer.sequential(parts), optimizer=tp.optim.adam(3e-3), epochs=4, random_state=0
    )
    model.fit(x, y)
    assert model.score(x, y) > 0.9
    assert model.network_.state.vars.dtype == tp.float32
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(x[:50]), model.predict_proba(x[:50]))
    same = clone(model).fit(x, y)
    np.testing.assert_array_equal(same.predict_proba(x[:50]), model.predict_proba(x[:50]))


def test_a_function_of_the_sizes_and_a_layer_of_tokens():
    x, y = load_iris(return_X_y=True)
    model = TrainerClassifier(tp.layer.linear, optimizer=tp.optim.adam(0.05), random_state=0).fit(x, y)
    assert model.network_.state.vars.params["weight"].shape == (4, 3)
    tokens = np.random.default_rng(0).integers(0, 9, (200, 5))
    parts = [tp.layer.embedding(9, 8), tp.layer.flatten(), tp.layer.linear(40, 2)]
    model = TrainerClassifier(tp.layer.sequential(parts), optimizer=tp.optim.adam(0.01), dtype="int32")
    assert model.fit(tokens, tokens[:, 0] > 4).score(tokens, tokens[:, 0] > 4) > 0.95


def test_a_layer_that_does_not_fit_the_classes_is_an_error():
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"output has shape \(150, 5\), expected \(150, 3\)"):
        TrainerClassifier(tp.layer.linear(4, 5), epochs=1).fit(x, y).predict(x)
    with pytest.raises(ValueError, match="expected those of `classes_`"):
        TrainerClassifier(epochs=1).fit(x[y < 2], y[y < 2]).partial_fit(x, y)


def test_trainer_warm_start_continues():
    x, y = load_iris(return_X_y=True)
    whole = TrainerClassifier(epochs=4, random_state=0).fit(x, y)
    parts = TrainerClassifier(epochs=2, random_state=0, warm_start=True).fit(x, y).fit(x, y)
    assert (whole.n_iter_, parts.n_iter_, len(parts.loss_curve_)) == (4, 2, 4)
    assert parts.network_.state.step == whole.network_.state.step
    assert abs(parts.loss_curve_[-1] - whole.loss_curve_[-1]) < 0.1
    again = TrainerClassifier(epochs=2, random_state=0).fit(x, y)
    for _ in range(2):
        again.partial_fit(x, y)
    np.testing.assert_array_equal(again.loss_curve_[:2], parts.loss_curve_[:2])
    assert again.network_.state.step == whole.network_.state.step


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_trainer_regressor_predicts_in_the_shape_of_y(shape):
    x, y = load_diabetes(return_X_y=True)
    x, y = 20.0 * x, y / 100.0
    y = y if shape == () else np.stack([y] * shape[0], axis=1)
    model = TrainerRegressor(epochs=30, random_state=0)
    if shape == (1,):
        with pytest.warns(UserWarning, match="column-vector"):
            model.fit(x, y)
    else:
        model.fit(x, y)
    assert model.predict(x).shape == (len(y), *shape[: shape != (1,)])
    assert model.score(x, y) > 0.3
