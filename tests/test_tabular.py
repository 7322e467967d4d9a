"""The preprocessing of tables and the layers for them, against NumPy."""

import numpy as np
import pandas as pd
import pytest

import treepie as tp
from treepie.layer import Vars
from treepie.sklearn.table import Categories, RobustScale, Table

KEY = tp.rng.key(3)


def draw(seed=0):
    return np.random.default_rng(seed)


# ---- preprocessing
def test_numbers_are_centered_scaled_and_clipped():
    x = draw().normal(size=(40, 4)) * [1, 100, 1e-3, 1] + [0, 5, 0, 7]
    x[:, 3] = np.where(np.arange(40) < 35, 7.0, x[:, 3])  # equal quartiles
    x[3, 1] = np.nan
    scale = RobustScale(x)
    for k in range(4):
        column = x[~np.isnan(x[:, k]), k]
        low, high = np.percentile(column, [25, 75])
        width = high - low if k < 3 else (column.max() - column.min()) / 2
        z = (column - np.median(column)) / width
        np.testing.assert_allclose(
            scale(x)[~np.isnan(x[:, k]), k], z / np.sqrt(1 + z * z / 9), rtol=1e-6, atol=1e-7
        )
    assert scale(x)[3, 1] == 0
    assert scale(x).dtype == np.float32
    far = scale(np.full((1, 4), 1e9))
    np.testing.assert_allclose(far, 3.0, rtol=1e-6)


def test_a_column_of_one_value_or_of_none_is_0():
    x = np.array([[1.0, np.nan], [1.0, np.nan]])
    np.testing.assert_array_equal(RobustScale(x)([[5.0, 2.0], [np.nan, np.nan]]), np.zeros((2, 2)))


def test_codes_are_those_of_the_training_set():
    categories = Categories(np.array(["b", None, "a", np.nan, "b", pd.NA], object))
    assert len(categories) == 3
    assert categories(np.array(["a", "b", "c", None], object)).tolist() == [2, 1, 0, 0]


def frame():
    return pd.DataFrame(
        {
            "many": pd.Categorical(list("abcdefghijabcdefghij")),
            "number": pd.array([*range(18), None, 7], "Int64"),
            "two": ["x", "y"] * 9 + [None, "x"],
            "flag": [True, False] * 10,
            "three": ["u", "v", "w", "u"] * 5,
            "float": np.linspace(0, 1, 20, dtype=np.float32),
        }
    )


def test_a_table_has_numbers_small_categories_and_codes():
    table = Table(frame())
    assert (table.numbers, table.binary, table.large, table.vocabulary) == (2, 5, ["many"], 11)
    x, codes = table(frame())
    assert x.shape == (20, 7)
    assert codes.ravel().tolist() == [*range(1, 11)] * 2
    number = frame()["number"].to_numpy(float, na_value=np.nan)
    np.testing.assert_array_equal(x[:, 0], RobustScale(number[:, None])(number[:, None])[:, 0])
    two = frame()["two"]
    raw = np.where(two == "x", 1.0, np.where(two == "y", -1.0, 0.0))
    np.testing.assert_array_equal(x[:, 2], RobustScale(raw[:, None])(raw[:, None])[:, 0])
    hot = (frame()["three"].to_numpy()[:, None] == ["u", "v", "w"]).astype(float)
    np.testing.assert_array_equal(x[:, 4:], RobustScale(hot)(hot))


def test_new_categories_have_no_column_and_the_code_0():
    table = Table(frame())
    new = frame()[:3].astype({"many": object}).assign(many=["?", None, "b"], three="?", two="?")
    x, codes = table(new)
    assert codes.ravel().tolist() == [0, 0, 2]
    hot = (frame()["three"].to_numpy()[:, None] == ["u", "v", "w"]).astype(float)
    np.testing.assert_array_equal(x[:, 4:], np.repeat(RobustScale(hot)(np.zeros((1, 3))), 3, axis=0))


def test_two_embedded_columns_share_a_vocabulary():
    columns = {"a": [str(k) for k in range(9)] * 2, "b": [str(k % 9) for k in range(18)]}
    table = Table(pd.DataFrame(columns))
    assert (table.numbers, table.binary, table.vocabulary) == (0, 0, 20)
    x, codes = table(pd.DataFrame(columns)[:2])
    assert x.shape == (2, 0)
    assert codes.tolist() == [[1, 11], [2, 12]]


def test_arrays_of_objects_have_categories_too():
    table = Table(np.array([[1, "a"], [2.5, "b"], [None, "a"]], object)[:2])
    assert (table.numbers, table.binary) == (1, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: f.drop(columns="two"),
            ValueError,
            "X has the columns many, number, flag, three, float, exp",
        ),
        (lambda f: f.assign(number=np.inf), ValueError, "column 'number' of X has an infinite value"),
    ],
)
def test_errors_of_rows(change, error, message):
    with pytest.raises(error, match=message):
        Table(frame())(change(frame()))


def test_times_are_refused():
    with pytest.raises(TypeError, match=r"has dtype datetime64.*, expected numbers or categories; of times"):
        Table(pd.DataFrame({"when": pd.to_datetime(["2026-01-01", "2026-01-02"])}))


# ---- layers
def test_embeddings_of_numbers():
    layer = tp.layer.periodic_embedding(3, embed_dim=4, frequencies=6, sigma=0.5)
    vars = layer.init(KEY, tp.float64)
    p = {name: value.numpy() for name, value in vars.params.items()}
    x = draw().normal(size=(5, 3))
    want = np.concatenate(
        [
            np.cos(2 * np.pi * x[:, [k]] * p["frequency"][k] + p["phase"][k]) @ p["weight"][k] + p["bias"][k]
            for k in range(3)
        ]
        + [x],
        axis=1,
    )
    np.testing.assert_allclose(layer.apply(vars, x)[0], want, rtol=1e-12, atol=1e-13)


def test_first_parameters_of_embeddings_of_numbers():
    p = tp.layer.periodic_embedding(400, sigma=0.1).init(KEY).params
    assert abs(p["frequency"].numpy().std() - 0.1) < 0.005
    for name, bound in (("phase", np.pi), ("weight", 0.25), ("bias", 0.25)):
        value = p[name].numpy()
        assert 0.97 * bound < np.abs(value).max() <= bound
        assert abs(value.mean()) < 0.05 * bound


@pytest.mark.parametrize("name", ["selu", "mish"])
def test_activations_have_a_strength(name):
    layer = tp.layer.parametric_activation(getattr(tp.layer, name)(), 3)
    x, alpha = draw().normal(size=(4, 3)), np.array([0.0, 1.0, -0.5])
    y = getattr(tp.fn, name)(tp.tensor(x)).numpy()
    out, _ = layer.apply(Vars({"alpha": tp.tensor(alpha)}, {}, tp.float64), x)
    np.testing.assert_allclose(out, (1 - alpha) * x + alpha * y, rtol=1e-12, atol=1e-14)


LAYER_ERRORS = [
    (lambda: tp.layer.scale(0), ValueError, "layer.scale: num_features is 0, expected at least 1"),
    (
        lambda: tp.layer.parametric_activation(tp.fn.relu, 2),
        TypeError,
        "parametric_activation: activation is the function relu, expected a Layer",
    ),
    (
        lambda: tp.layer.parametric_activation(tp.layer.prelu(), 2).init(KEY),
        ValueError,
        r"activation is prelu\(1\), which has parameters, expected a layer without them",
    ),
    (
        lambda: run(tp.layer.parametric_activation(tp.layer.glu(), 4), np.ones((2, 4))),
        ValueError,
        r"glu\(-1\) returned shape \(2, 2\) for x of shape \(2, 4\), expected the same shape",
    ),
    (
        lambda: tp.layer.periodic_embedding(2, 1),
        ValueError,
        "embed_dim is 1 and sigma 0.1, expected at least 2",
    ),
    (
        lambda: tp.layer.periodic_embedding(2, sigma=0.0),
        ValueError,
        "sigma 0.0, expected .* a positive number",
    ),
    (
        lambda: run(tp.layer.periodic_embedding(2), np.ones((3, 4, 2))),
        ValueError,
        r"periodic_embedding: x has shape \(3, 4, 2\), expected \(batch, 2\)",
    ),
    (
        lambda: run(tp.layer.scale(2), np.ones((3, 4))),
        ValueError,
        r"scale: x has shape \(3, 4\), expected \(..., 2\)",
    ),
]


def run(layer, x):
    return layer.apply(layer.init(KEY), x)[0]


@pytest.mark.parametrize(("call", "error", "message"), LAYER_ERRORS)
def test_errors_of_layers(call, error, message):
    with pytest.raises(error, match=message):
        call()
