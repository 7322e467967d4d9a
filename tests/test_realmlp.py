"""RealMLP-TD: each piece against NumPy, and whole fits of arrays and data frames."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest

import treepie as tp
from treepie.layer import Vars
from treepie.sklearn import realmlp, realmlp_network as network
from treepie.sklearn.base import Network
from treepie.sklearn.table import Categories, RobustScale, Table
from treepie.train.step import Step

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


def test_linear_layers_have_the_neural_tangent_parametrization():
    layer = network.ntk_linear(5, 3)
    vars = layer.init(KEY, tp.float64)
    x = draw().normal(size=(4, 5))
    vars = vars.with_params({**vars.params, "bias": tp.tensor([1.0, 2.0, 3.0], tp.float64)})
    want = x @ vars.params["weight"].numpy() / np.sqrt(5) + [1, 2, 3]
    np.testing.assert_allclose(layer.apply(vars, x)[0], want, rtol=1e-12)
    wide = network.ntk_linear(300, 300).init(KEY).params
    assert abs(wide["weight"].numpy().std() - 1) < 0.01
    assert not wide["bias"].numpy().any()


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.4), (50, 0.4), (75, 0.2), (90, 0.2 * (1 + np.cos(0.8 * np.pi))), (100, 0), (120, 0)],
)
def test_the_rate_of_dropout_falls(step, rate):
    layer = network.falling_dropout(0.4, 100)
    vars = Vars({}, {"step": tp.tensor(step, tp.int32)}, tp.float32)
    x = tp.ones((400, 500))
    y, after = layer.apply(vars, x, training=True, rngs=KEY)
    uniform = tp.rng.uniform(KEY, (400, 500)).numpy()
    np.testing.assert_allclose(y, np.where(uniform >= rate, 1 / (1 - rate), 0), rtol=1e-6)
    assert abs((y.numpy() == 0).mean() - rate) < 0.005
    assert after.state["step"].item() == step + 1
    same, kept = layer.apply(vars, x)
    assert (same.numpy() == 1).all()
    assert kept.state["step"].item() == step


def test_dropout_needs_a_key():
    layer = network.falling_dropout(0.4, 100)
    with pytest.raises(ValueError, match="falling_dropout: rngs is None"):
        layer.apply(layer.init(KEY), tp.ones(3), training=True)


def test_linear_layers_are_fitted_to_their_inputs():
    layer, x = network.ntk_linear(6, 50), draw().normal(size=(80, 6)).astype("f4") * 3 + 1
    x[:, 0] = 5.0
    vars = layer.init(KEY)
    p = network.fitted(layer, vars, tp.tensor(x), KEY)
    y = x @ p["weight"].numpy() / np.sqrt(6)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-4)
    ratio = p["weight"].numpy() / vars.params["weight"].numpy()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-6)  # a factor each
    keys = tp.rng.split(KEY)
    rows = tp.rng.randint(keys[0], (5, 50), 0, 80).numpy()
    weights = -np.log(1 - tp.rng.uniform(keys[1], (5, 50)).numpy().astype(float))
    weights /= weights.sum(axis=0)
    want = [-sum(weights[i, k] * y[rows[i, k], k] for i in range(5)) for k in range(50)]
    np.testing.assert_allclose(p["bias"], want, rtol=1e-3, atol=1e-4)


def test_outputs_that_are_constant_keep_their_weights():
    layer = network.ntk_linear(2, 3)
    vars = layer.init(KEY)
    p = network.fitted(layer, vars, tp.zeros((4, 2)), KEY)
    np.testing.assert_array_equal(p["weight"], vars.params["weight"])
    assert not p["bias"].numpy().any()


def parts_and_input(regression=False):
    sizes = network.Sizes(numbers=2, binary=3, embedded=1, vocabulary=5)
    codes = draw(1).integers(0, 5, (60, 1)).astype(np.int32)
    return network.network_parts(sizes, 4, 100, regression), (draw().normal(size=(60, 5)).astype("f4"), codes)


def test_the_network_from_its_input_to_its_output():
    parts, x = parts_and_input()
    vars = network.initialized(parts, x, KEY)
    y, after = tp.layer.sequential(parts).apply(vars, x)
    p = vars.params
    codes = p[0]["codes"]["weight"].numpy()[x[1][:, 0]]
    numbers = tp.layer.periodic_embedding(2).apply(Vars(p[0]["numbers"], {}, tp.float32), x[0][:, :2])[0]
    h = np.concatenate([numbers.numpy(), x[0][:, 2:], codes], axis=1)
    assert h.shape == (60, 19)
    for k in (2, 5, 8):
        h = h @ p[k]["weight"].numpy() / np.sqrt(h.shape[1]) + p[k]["bias"].numpy()
        np.testing.assert_allclose(h.std(axis=0), 1, rtol=1e-3)
        h = tp.fn.selu(tp.tensor(h)).numpy()
    h = h @ p[11]["weight"].numpy() / np.sqrt(256) + p[11]["bias"].numpy()
    np.testing.assert_allclose(y, h, rtol=1e-3, atol=1e-4)
    assert [path for path, _ in tp.ptree.flatten_with_paths(after.state)] == ["4.step", "7.step", "10.step"]


def test_kinds_of_parameters():
    parts, x = parts_and_input()
    paths = [path for path, _ in tp.ptree.flatten_with_paths(network.initialized(parts, x, KEY).params)]
    kinds = {path: network.kind_of(path) for path in paths}
    assert kinds["1.scale"] == "scale"
    assert {k for path, k in kinds.items() if ".numbers." in path or path.endswith("alpha")} == {"slow"}
    assert kinds["0.codes.weight"] == kinds["2.weight"] == kinds["11.weight"] == "weight"
    assert kinds["2.bias"] == kinds["11.bias"] == "bias"


def test_the_optimizer_against_numpy():
    names = {"2.weight": (1, 0.02), "2.bias": (0.1, 0), "1.scale": (6, 0.02), "3.alpha": (0.1, 0.02)}
    params = {name.split(".")[1]: draw(k).normal(size=3) for k, name in enumerate(names)}
    steps, opt = 20, network.optimizer_of(0.5, 20)
    tree = {k: tp.tensor(v) for k, v in params.items()}
    state, m, v = opt.init(tree), dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for t in range(1, steps + 1):
        grads = {k: draw(t).normal(size=3) for k in params}
        tree, state = opt.update(state, tree, {k: tp.tensor(g) for k, g in grads.items()})
        rate = 0.5 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * t / steps))) / 2
        fall = 1.0 if t <= 10 else (1 + np.cos(np.pi * (t - 10) / 10)) / 2
        for name, (factor, decay) in names.items():
            k = name.split(".")[1]
            m[k] = 0.9 * m[k] + 0.1 * grads[k]
            v[k] = 0.95 * v[k] + 0.05 * grads[k] ** 2
            change = m[k] / (1 - 0.9**t) / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8) + decay * fall * params[k]
            params[k] = params[k] - rate * factor * change
            np.testing.assert_allclose(tree[k], params[k], rtol=1e-10)


# ---- loss, targets, validation
def test_smoothed_cross_entropy():
    logits, y, w = draw().normal(size=(6, 4)), np.array([0, 1, 2, 3, 3, 0]), draw().uniform(size=6)
    p = np.full((6, 4), 0.1 / 4)
    p[np.arange(6), y] += 0.9
    rows = -(p * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)
    loss = functools.partial(realmlp.smoothed_cross_entropy, tp.tensor(logits), tp.tensor(y))
    np.testing.assert_allclose(loss(), rows.mean(), rtol=1e-12)
    np.testing.assert_allclose(loss(tp.tensor(w)), (rows * w).sum() / w.sum(), rtol=1e-12)


def test_targets_are_standardized_and_predictions_limited():
    y = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    unscale = realmlp.Unscale(y)
    z = unscale.scaled(y)
    np.testing.assert_allclose(z[:, 0], (y[:, 0] - 4) / y[:, 0].std(), rtol=1e-6)
    assert not z[:, 1].any()
    np.testing.assert_allclose(unscale(z), y, rtol=1e-6)
    np.testing.assert_allclose(unscale(np.array([[9.0, 9.0], [-9.0, -9.0]])), [[8, 5], [1, 5]], rtol=1e-6)


def test_rows_that_are_held_out():
    state = np.random.RandomState(0)
    y = np.repeat([0, 1], [90, 10])
    train, held = realmlp.split_rows(y, 2, 0.2, state)
    assert sorted([*train, *held]) == list(range(100))
    assert (len(held), y[held].sum()) == (20, 2)
    rare = np.array([0] * 9 + [1])
    train, held = realmlp.split_rows(rare, 2, 0.2, state)
    assert (len(train), len(held)) == (8, 2)
    for length, fraction in ((1, 0.2), (10, 0.0)):
        train, held = realmlp.split_rows(np.zeros(length), None, fraction, state)
        assert (len(train), len(held)) == (length, 0)


def test_the_last_of_equal_epochs_is_the_best():
    layer, x = tp.layer.linear(1, 2), np.array([[1.0], [2.0]])
    best = realmlp.LastBest(layer, tp.optim.sgd(0.1), x, np.array([1, 1]), None)
    trainer = tp.Trainer(layer, tp.optim.sgd(0.1))
    best.on_begin(False, None)
    states = []
    for epoch, bias in enumerate([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0]], 1):
        params = {"weight": tp.zeros((1, 2)), "bias": tp.tensor(bias)}
        states.append(trainer.make_state(Vars(params, {}, tp.float32)))
        best.on_epoch(epoch, {}, states[-1])
    assert (best.epoch, best.score) == (3, 0.0)
    assert best.on_end(states[-1]) is states[2]


# ---- fits
def wave(n, seed=0):
    """A target that is a wave of one column."""
    x = draw(seed).uniform(-1, 1, (n, 3))
    return x, np.sin(9 * x[:, 0]) + 0.5 * np.sign(x[:, 1])


def fitted(x, y, classes=None, epochs=256, seed=0, weight=None):
    net = Network(realmlp.plan(x, y, classes, np.random.RandomState(seed), epochs))
    net.train(x, weight, np.random.RandomState(seed))
    return net


def r2(out, y):
    return 1 - np.square(out[:, 0] - y).mean() / y.var()


def test_a_wave_is_learned_better_than_by_a_plain_network():
    (x, y), (x_test, y_test) = wave(400), wave(400, 1)
    preset = tp.sklearn.MLPRegressor(preset="realmlp", random_state=0).fit(x, y)
    plain = tp.sklearn.MLPRegressor(hidden_layer_sizes=(256, 256, 256), random_state=0).fit(x, y)
    assert preset.score(x_test, y_test) > 0.9
    assert preset.score(x_test, y_test) > plain.score(x_test, y_test) + 0.03
    assert len(preset.loss_curve_) == 256


def people(n, seed=0):
    """A data frame with categories and missing values, and the class of each row."""
    r = draw(seed)
    cities = [f"city {k}" for k in range(20)]
    frame = pd.DataFrame(
        {
            "age": pd.array(r.integers(18, 90, n), "Int64"),
            "city": pd.Categorical(r.choice(cities, n), cities),
            "plan": r.choice(["free", "paid", "team"], n),
            "income": r.lognormal(10, 1, n),
            "active": r.random(n) < 0.5,
        }
    )
    odd = frame["city"].cat.codes.to_numpy() % 2 == 1
    y = np.where(odd ^ (frame["plan"] == "paid").to_numpy(), "yes", "no")
    frame.loc[frame.index % 7 == 0, "age"] = pd.NA
    frame.loc[frame.index % 5 == 0, "income"] = np.nan
    frame.loc[frame.index % 97 == 0, "plan"] = None
    return frame, y


def test_a_data_frame_with_categories_and_missing_values():
    (x, y), (x_test, y_test) = people(600), people(300, 1)
    model = tp.sklearn.MLPClassifier(preset="realmlp", random_state=0).fit(x, y)
    assert model.score(x_test, y_test) > 0.95
    assert model.classes_.tolist() == ["no", "yes"]
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x_test), model.predict_proba(x_test))
    new = x_test.astype({"city": object}).assign(city="elsewhere", age=np.nan)
    assert np.isfinite(model.predict_proba(new)).all()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(x_test.drop(columns="age"))


def test_steps_are_one_program_whose_rates_are_values(monkeypatch):
    monkeypatch.setattr(Step, "eagerly", None)
    (x, y), _ = wave(300), None
    net = fitted(x, y, epochs=12)
    assert len(net.trainer.steps.cache.programs) == 1
    (x, y) = people(300)
    net = fitted(x, (y == "yes").astype(int), 2, epochs=12)
    assert len(net.trainer.steps.cache.programs) == 1


def test_seeds():
    x, y = wave(100)
    first, again, other = (fitted(x, y, epochs=5, seed=s).outputs(x) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_weights_of_examples():
    x = draw().normal(size=(200, 2))
    y = (draw(1).random(200) < 0.5).astype(int)
    weight = np.where(y == 1, 50.0, 1.0).astype("f4")
    out = fitted(x, y, 2, epochs=5, weight=weight).outputs(x)
    assert (out.argmax(axis=1) == 1).mean() > 0.9


def test_several_targets_few_rows_and_one_class():
    x = draw().normal(size=(7, 2))
    out = fitted(x, np.stack([x[:, 0], -x[:, 1], np.full(7, 3.0)], axis=1), epochs=3).outputs(x)
    assert out.shape == (7, 3)
    np.testing.assert_allclose(out[:, 2], 3.0)
    assert fitted(x[:1], np.ones(1), epochs=2).outputs(x).tolist() == [[1.0]] * 7
    assert fitted(x, np.zeros(7), 1, epochs=2).outputs(x).shape == (7, 1)


def test_a_pickled_network_has_no_rows_of_the_training_set():
    x, y = wave(2000)
    net = fitted(x, y, epochs=1)
    state = len(pickle.dumps(net.state.vars.params))
    assert len(pickle.dumps(net)) < 4 * state + 20_000
