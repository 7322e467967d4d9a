"""LSTM, GRU and Elman networks, against NumPy in float64, stored results of PyTorch, and PyTorch itself."""

import json
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(5)
STORED = Path(__file__).parent / "recurrence.json"
KINDS = {"lstm": 4, "gru": 3, "rnn": 1}


def weights(kind, features, n, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    wide = KINDS[kind] * n
    shapes = {"weight_ih": (features, wide), "weight_hh": (n, wide), "bias_ih": (wide,), "bias_hh": (wide,)}
    return {k: 0.4 * draw(s) for k, s in shapes.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_loop(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh):
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ weight_ih + bias_ih + h @ weight_hh + bias_hh, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states, 1), (h, c)


def gru_loop(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    states = []
    for t in range(x.shape[1]):
        xr, xz, xn = np.split(x[:, t] @ weight_ih + bias_ih, 3, -1)
        hr, hz, hn = np.split(h @ weight_hh + bias_hh, 3, -1)
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        states.append(h)
    return np.stack(states, 1), h


def rnn_loop(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    states = []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ weight_ih + bias_ih + h @ weight_hh + bias_hh)
        states.append(h)
    return np.stack(states, 1), h


LOOPS = {"lstm": lstm_loop, "gru": gru_loop, "rnn": rnn_loop}
SIZES = [(1, 1, 1, 1), (3, 7, 5, 4), (25, 3, 2, 17), (12, 2, 8, 32), (13, 4, 3, 33)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("batch", "steps", "features", "n"), SIZES)
def test_lstm_equals_its_loop(batch, steps, features, n, dtype):
    draw = np.random.default_rng(1).standard_normal
    x, h, c = draw((batch, steps, features)), draw((batch, n)), draw((batch, n))
    w = weights("lstm", features, n)
    want, (h_n, c_n) = lstm_loop(x, h, c, **w)
    inputs = [a.astype(dtype) for a in (x, h, c)]
    out, (h1, c1) = tp.fn.lstm(*inputs, **{k: a.astype(dtype) for k, a in w.items()})
    for result, expected in ((out, want), (h1, h_n), (c1, c_n)):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["gru", "rnn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("batch", "steps", "features", "n"), SIZES)
def test_gru_and_rnn_equal_their_loops(batch, steps, features, n, dtype, kind):
    draw = np.random.default_rng(1).standard_normal
    x, h = draw((batch, steps, features)), draw((batch, n))
    w = weights(kind, features, n)
    want, h_n = LOOPS[kind](x, h, **w)
    out, h1 = getattr(tp.fn, kind)(
        *(a.astype(dtype) for a in (x, h)), **{k: a.astype(dtype) for k, a in w.items()}
    )
    for result, expected in ((out, want), (h1, h_n)):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients(order):
    draw = np.random.default_rng(1).standard_normal
    x, h, c = draw((3, 2, 2)), draw((3, 3)), draw((3, 3))
    lstm, gru = weights("lstm", 2, 3), weights("gru", 2, 3)
    tp.check_grads(lambda x, h, c, w: tp.fn.lstm(x, h, c, **w), (x, h, c, lstm), order=order)
    tp.check_grads(lambda x, h, w: tp.fn.gru(x, h, **w), (x, h, gru), order=order)
    rnn = weights("rnn", 2, 3)
    tp.check_grads(lambda x, h, w: tp.fn.rnn(x, h, **w), (x, h, rnn), order=order)


def test_gradients_through_the_last_cell_state_alone():
    draw = np.random.default_rng(1).standard_normal
    x, h, c, w = draw((3, 2, 2)), draw((3, 3)), draw((3, 3)), weights("lstm", 2, 3)
    tp.check_grads(lambda x, h, c, w: tp.fn.lstm(x, h, c, **w)[1][1], (x, h, c, w))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_parts_gives_the_same(kind):
    """Hidden states go in and out."""
    x, w = np.random.default_rng(1).standard_normal((30, 6, 4)), weights(kind, 4, 9)
    states = [None, None] if kind == "lstm" else [None]
    run = getattr(tp.fn, kind)
    whole, last = run(x, *states, **w)
    first, between = run(x[:, :2], *states, **w)
    second, end = run(x[:, 2:], *(between if kind == "lstm" else [between]), **w)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-14)
    for a, b in zip(tp.ptree.leaves(last), tp.ptree.leaves(end), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    none, kept = run(x[:, :0], *(between if kind == "lstm" else [between]), **w)
    assert none.shape == (30, 0, 9)
    np.testing.assert_array_equal(tp.ptree.leaves(kept)[0], tp.ptree.leaves(between)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind):
    model = getattr(tp.layer, kind)(4, 9)
    vars = model.init(KEY, dtype=tp.float64)
    wide = 9 * KINDS[kind]
    shapes = {"weight_ih": (4, wide), "weight_hh": (9, wide), "bias_ih": (wide,), "bias_hh": (wide,)}
    assert {k: p.shape for k, p in vars.params.items()} == shapes
    assert all(np.abs(p.numpy()).max() <= 1 / 3 for p in vars.params.values())
    x = np.random.default_rng(1).standard_normal((2, 6, 4))
    y = model.apply(vars, x)[0]
    start = [np.zeros((2, 9))] * (2 if kind == "lstm" else 1)
    want = LOOPS[kind](x, *start, **{k: p.numpy() for k, p in vars.params.items()})[0]
    np.testing.assert_allclose(y, want, atol=1e-13)
    last = getattr(tp.layer, kind)(4, 9, return_sequences=False)
    np.testing.assert_array_equal(last.apply(vars, x)[0], y[:, -1])
    with pytest.raises(ValueError, match=rf"layer.{kind}: x has shape \(2, 4\)"):
        model.apply(vars, x[:, 0])
    with pytest.raises(ValueError, match="hidden_size is 0"):
        getattr(tp.layer, kind)(4, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [("weight_ih", (3, 12)), ("weight_hh", (3, 7)), ("bias_ih", (2,)), ("bias_hh", (1,)), ("x", (2, 4))],
)
def test_what_is_wrong_is_refused(kind, name, shape):
    inputs = {"x": np.ones((2, 3, 4)), **weights(kind, 4, 3), name: np.ones(shape)}
    x = inputs.pop("x")
    with pytest.raises(ValueError, match=rf"{kind}: .*expected"):
        getattr(tp.fn, kind)(x, *([None] * (2 if kind == "lstm" else 1)), **inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_the_wrong_shape_are_refused(kind):
    states = [np.ones((3, 3))] * (2 if kind == "lstm" else 1)
    with pytest.raises(ValueError, match=rf"{kind}: h0 has shape \(3, 3\), expected \(2, 3\)"):
        getattr(tp.fn, kind)(np.ones((2, 5, 4)), *states, **weights(kind, 4, 3))


def gradients(kind, x, w):
    """The states, and the gradients of the sum of their squares: of x and of the weights."""
    states = [None] * (2 if kind == "lstm" else 1)

    def loss(p):
        return (getattr(tp.fn, kind)(p["x"], *states, **p["w"])[0] ** 2).sum()

    out = getattr(tp.fn, kind)(x, *states, **w)[0]
    grads = tp.grad(loss)({"x": tp.tensor(x), "w": {k: tp.tensor(a) for k, a in w.items()}})
    return {"states": out.numpy(), "x": grads["x"].numpy(), **{k: a.numpy() for k, a in grads["w"].items()}}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_what_pytorch_gave(kind):
    """Stored by tests/store_recurrence.py."""
    stored = json.loads(STORED.read_text())[kind]
    result = gradients(kind, np.array(stored["x"]), {k: np.array(a) for k, a in stored["weights"].items()})
    for name, expected in stored["made"].items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_pytorch(kind):
    pytest.importorskip("torch")
    from .store_recurrence import reference

    x, w = np.random.default_rng(1).standard_normal((5, 20, 6)), weights(kind, 6, 10)
    result = gradients(kind, x, w)
    for name, expected in reference(kind, x, w).items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-9, atol=1e-11)
