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
from treepie.train.step import Step

KEY = tp.rng.key(3)


def draw(seed=0):
    return np.random.default_rng(seed)


# ---- layers and their first parameters
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
