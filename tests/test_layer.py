"""Layers, their containers, initializers, and functions without parameters."""

import numpy as np
import pytest

import treepie as tp
from treepie.layer import Layer, Vars

KEY = tp.rng.key(7)


def counter() -> Layer:
    """A custom layer: it scales by a parameter, and counts the calls in training."""

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        calls = state["calls"] + (1.0 if training else 0.0)
        return x * params["scale"], {"calls": calls}

    def init(rngs, dtype):
        return Vars({"scale": tp.full((), 3.0, dtype)}, {"calls": tp.zeros((), dtype)}, dtype)

    return Layer(init=init, apply=apply, name="counter")


def test_linear_is_x_at_weight_plus_bias():
    model = tp.layer.linear(3, 2, bias_init=tp.init.normal(1.0))
    vars = model.init(rngs=KEY, dtype=tp.float64)
    assert {k: v.shape for k, v in vars.params.items()} == {"weight": (3, 2), "bias": (2,)}
    x = np.arange(24.0).reshape(2, 4, 3)
    y, after = model.apply(vars, x)
    w, b = (vars.params[k].numpy() for k in ("weight", "bias"))
    np.testing.assert_allclose(y, x @ w + b, rtol=1e-14)
    assert after == vars.with_state({})
    assert list(tp.layer.linear(3, 2, bias=False).init(KEY).params) == ["weight"]


def test_inputs_are_converted_to_the_dtype_of_the_model():
    model = tp.layer.linear(2, 1)
    vars = model.init(KEY)
    y, _ = model.apply(vars, np.ones((1, 2)))
    assert y.dtype == tp.float32
    np.testing.assert_array_equal(y, model.apply(vars, [[1.0, 1.0]])[0])


def test_same_key_same_parameters_other_key_others():
    model = tp.layer.sequential([tp.layer.linear(4, 4), tp.layer.linear(4, 4)])
    a, b, c = (model.init(k).params for k in (KEY, tp.rng.key(7), tp.rng.key(8)))
    np.testing.assert_array_equal(a[0]["weight"], b[0]["weight"])
    assert (a[0]["weight"].numpy() != c[0]["weight"].numpy()).all()
    assert (a[0]["weight"].numpy() != a[1]["weight"].numpy()).all()


@pytest.mark.parametrize(
    ("model", "state"),
    [
        (tp.layer.sequential([counter(), tp.layer.relu(), counter()]), lambda s: (s[0], s[2])),
        (tp.layer.compose(counter(), counter()), lambda s: (s["left"], s["right"])),
        (tp.layer.residual(tp.layer.sequential([counter(), counter()])), tuple),
    ],
)
def test_containers_thread_state_and_keep_it_immutable(model, state):
    before = model.init(KEY)
    y, after = model.apply(before, tp.ones((2,)), training=True)
    np.testing.assert_array_equal(y, [10.0, 10.0] if "residual" in model.name else [9.0, 9.0])
    assert [float(s["calls"]) for s in state(after.state)] == [1, 1]
    assert [float(s["calls"]) for s in state(before.state)] == [0, 0]
    again = model.apply(after, tp.ones((2,)))[1]
    assert [float(s["calls"]) for s in state(again.state)] == [1, 1]


def test_context_and_keys_reach_every_layer():
    seen = []

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        seen.append((ctx.get("mask").tolist(), ctx.get("other"), tuple(rngs.tolist())))
        return x, state

    spy = Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply)
    model = tp.layer.sequential([spy, tp.layer.residual(spy), tp.layer.compose(spy, spy)])
    ctx = tp.Context().set("mask", [1, 0])
    model.apply(model.init(KEY), tp.ones((1,)), rngs=KEY, ctx=ctx)
    assert [s[:2] for s in seen] == [([1, 0], None)] * 4
    assert len({s[2] for s in seen}) == 4


def test_dropout_scales_what_it_keeps():
    drop = tp.layer.dropout(0.25)
    vars, x = drop.init(KEY), tp.ones((100, 100))
    assert drop.apply(vars, x)[0] is x
    y = drop.apply(vars, x, training=True, rngs=KEY)[0].numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.03
    np.testing.assert_array_equal(y, drop.apply(vars, x, training=True, rngs=KEY)[0])


def test_dropout_does_not_turn_infinity_into_nan():
    y = tp.fn.dropout(tp.full((100,), float("inf")), 0.5, KEY).numpy()
    assert not np.isnan(y).any()
    assert (y == 0).any()


def test_flatten_and_lambda():
    x = tp.zeros((2, 3, 4))
    for model, shape in [
        (tp.layer.flatten(), (2, 12)),
        (tp.layer.lambda_(lambda t: t[0]), (3, 4)),
        (tp.layer.flatten(), (2, 12)),
    ]:
        assert model.apply(model.init(KEY), x)[0].shape == shape
    assert tp.layer.flatten().apply(Vars({}, {}, tp.float32), tp.zeros((0, 3, 2)))[0].shape == (0, 6)


def test_summary():
    model = tp.layer.sequential(
        [
            tp.layer.linear(784, 128),
            tp.layer.relu(),
            tp.layer.residual(tp.layer.linear(128, 128, bias=False)),
            counter(),
        ]
    )
    assert tp.layer.summary(model, input_shape=(1, 784)).split("\n") == [
        "layer             output shape  parameters",
        "------------------------------------------",
        "linear(784, 128)  (1, 128)         100,480",
        "relu              (1, 128)               0",
        "linear(128, 128)  (1, 128)          16,384",
        "counter           (1, 128)               1",
        "------------------------------------------",
        "total                              116,865",
    ]


INITIALIZERS = {  # mean, standard deviation, largest magnitude, for a (200, 300) matrix
    "uniform": (tp.init.uniform(0.3), 0.15, 0.3 / np.sqrt(12), 0.3),
    "normal": (tp.init.normal(0.3), 0.0, 0.3, np.inf),
    "glorot_uniform": (tp.init.glorot_uniform, 0, np.sqrt(1 / 250), np.sqrt(3 / 250)),
    "glorot_normal": (tp.init.glorot_normal, 0, np.sqrt(1 / 250), 2.2737 * np.sqrt(1 / 250)),
    "he_uniform": (tp.init.he_uniform, 0, np.sqrt(2 / 200), np.sqrt(6 / 200)),
    "he_normal": (tp.init.he_normal, 0, np.sqrt(2 / 200), 2.2737 * np.sqrt(2 / 200)),
    "lecun_uniform": (tp.init.lecun_uniform, 0, np.sqrt(1 / 200), np.sqrt(3 / 200)),
    "lecun_normal": (tp.init.lecun_normal, 0, np.sqrt(1 / 200), 2.2737 * np.sqrt(1 / 200)),
    "fan_out": (tp.init.variance_scaling(1.0, "fan_out", "normal"), 0, np.sqrt(1 / 300), np.inf),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers(name):
    make, mean, std, largest = INITIALIZERS[name]
    x = make(KEY, (200, 300), tp.float32).numpy()
    assert abs(x.mean() - mean) < 0.02 * std + 1e-4
    assert abs(x.std() / std - 1) < 0.01
    assert np.abs(x).max() <= largest * 1.0001
    if np.isfinite(largest):
        assert np.abs(x).max() > 0.99 * largest


def test_initializers_of_constants_and_kernels():
    assert tp.init.zeros(KEY, (2,)).tolist() == [0, 0]
    assert tp.init.ones(KEY, (2,), tp.float64).dtype == tp.float64
    assert tp.init.constant(2.5)(KEY, (2,), tp.float32).tolist() == [2.5, 2.5]
    kernel = tp.init.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)
    largest = np.abs(kernel(KEY, (64, 8, 5, 5), tp.float32).numpy()).max()
    assert 0.99 < largest / np.sqrt(3 / 200) <= 1.0001


two = tp.layer.sequential([tp.layer.linear(3, 2), tp.layer.linear(2, 2)])
ERRORS = [
    (lambda: tp.layer.linear(0, 2), ValueError, "layer.linear: in_features is 0, expected at least 1"),
    (lambda: tp.layer.linear(2, 1.5), TypeError, "layer.linear: out_features is 1.5, expected an int"),
    (
        lambda: two.apply(two.init(KEY), tp.zeros((4, 5))),
        ValueError,
        r"linear: x has shape \(4, 5\) and weight \(3, 2\), expected \(..., 3\)",
    ),
    (
        lambda: tp.fn.linear(tp.zeros((4, 3), tp.float64), tp.zeros((3, 2)), tp.zeros(2)),
        TypeError,
        "linear: x is float64, weight is float32, bias is float32; expected one float dtype",
    ),
    (
        lambda: two.apply(Vars([{}], [{}], tp.float32), tp.zeros((4, 3))),
        ValueError,
        "layer.sequential: params has 1 entries and state 1, expected 2",
    ),
    (lambda: tp.layer.sequential([3]), TypeError, r"layers\[0\] is a int, expected a Layer"),
    (lambda: tp.layer.dropout(1.0), ValueError, "dropout: rate is 1.0, expected 0 <= rate < 1"),
    (
        lambda: tp.layer.dropout(0.5).apply(Vars({}, {}, tp.float32), [1.0], training=True),
        ValueError,
        "layer.dropout: rngs is None, expected a key in training",
    ),
    (
        lambda: tp.layer.residual(two).apply(two.init(KEY), tp.zeros((4, 3))),
        ValueError,
        r"layer.residual: sequential made shape \(4, 2\) of \(4, 3\), expected the same",
    ),
    (lambda: two.init(KEY, tp.int32), TypeError, "Layer.init: dtype is int32, expected float32 or"),
    (
        lambda: Layer(lambda rngs, dtype: {}, lambda: None).init(KEY),
        TypeError,
        "Layer.init: layer returned dict, expected a tp.layer.Vars",
    ),
    (
        lambda: Layer(lambda rngs, dtype: Vars({}, {}, dtype), lambda p, s, x, **given: x).apply(
            Vars({}, {}, tp.float32), [1.0]
        ),
        TypeError,
        r"Layer.apply: layer returned Tensor, expected \(y, state\)",
    ),
    (lambda: tp.layer.lambda_(3), TypeError, "layer.lambda_: fn is 3, expected a function"),
    (lambda: tp.init.normal(-1), ValueError, "init.normal: stddev is -1, expected a positive number"),
    (lambda: tp.init.he_normal(KEY, (3,), tp.float32), ValueError, r"shape is \(3,\) with in_axis -2"),
    (lambda: tp.init.variance_scaling(1.0, "fan", "normal"), ValueError, "mode is 'fan', expected"),
    (lambda: tp.fn.glu(tp.zeros((2, 3))), ValueError, r"glu: x has shape \(2, 3\), expected an even"),
    (
        lambda: tp.fn.linear(tp.zeros((1, 2)), tp.zeros((2, 3)), tp.zeros(2)),
        ValueError,
        r"linear: bias has shape \(2,\), expected \(3,\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
