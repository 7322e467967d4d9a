"""Functions in fast accuracy: bounds, special values, gradients, programs, and what is not affected."""

import inspect
import pickle

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS, ops
from treepie.autodiff.op_accuracy import largest_error, swept_fast

RNG = np.random.default_rng(0)
ROWS = swept_fast()
NAMES = [row.name for row in ROWS]
CURVED = ("tanh", "sigmoid", "gelu", "silu")

#: The largest errors of derivatives, in units of max(1, |derivative|), where they are not 1e-6.
SLOPES = {"gelu_approx": 2.5e-6, "exp": 4e-6}


def function(name):
    return getattr(tp, name, None) or getattr(tp.fn, name)


def normal(*shape, scale=2.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def fast(f, *arguments):
    with tp.accuracy("fast"):
        return f(*arguments)


def test_the_fast_functions():
    assert sorted(NAMES) == ["erf", "exp", "gelu", "gelu_approx", "sigmoid", "silu", "tanh"]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bounds(row):
    """At the edges and at 200,000 operands over all exponents; and no bound is much larger than the error."""
    error = largest_error(row, 200_000)
    assert error.ulp <= row.ulp, f"{row} of {error.operands} is {error.result}, {error.ulp} ulp off"
    assert error.ulp >= row.ulp - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_block_chooses(name):
    x = tp.tensor(normal(1000))
    high, low = function(name)(x).numpy(), fast(function(name), x).numpy()
    assert (high != low).any()
    np.testing.assert_array_equal(high, function(name)(x).numpy())
    np.testing.assert_array_equal(low, OPS[name].fast(x).numpy())
    with tp.accuracy("fast"), tp.accuracy("high"):
        np.testing.assert_array_equal(high, function(name)(x).numpy())
    np.testing.assert_array_equal(high, tp.accuracy("high")(function(name))(x).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name):
    nan = np.array([0x7F800001, 0x7FC00000, 0xFFC00000, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(fast(function(name), nan).numpy()).all()
    x = np.array([np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0], np.float32)
    result = fast(function(name), x).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        want = OPS[name].oracle(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(result, want, atol=1e-9, rtol=0)
    if name not in ("exp", "sigmoid"):
        assert np.signbit(result[4:]).tolist() == [False, True]
        assert np.signbit(result[1])


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid"])
def test_results_stay_in_range(name):
    x = np.linspace(-30, 30, 2_000_001, dtype=np.float32)
    assert np.abs(fast(function(name), x).numpy()).max() == 1


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name):
    """Against the accurate ones in float64; at infinity too, and outside of the block."""
    x = np.concatenate([normal(20_000), normal(20_000, scale=8), np.float32([-89, 0, 1e30, -1e30, np.inf])])
    x = np.minimum(np.append(x, np.float32(-np.inf)), 20 if name == "exp" else np.inf)
    g = normal(x.size)
    low = tp.grad(lambda t: (fast(function(name), t) * g).sum())(tp.tensor(x)).numpy()
    want = tp.grad(lambda t: (function(name)(t) * tp.tensor(g.astype("f8"))).sum())(tp.tensor(x.astype("f8")))
    unit = np.abs(g) * np.maximum(1, np.abs(want.numpy() / g))
    assert (np.abs(low - want.numpy()) <= SLOPES.get(name, 1e-6) * unit).all()
    nan = tp.grad(lambda t: fast(function(name), t).sum())(tp.tensor(np.float32([np.nan])))
    assert np.isnan(nan.numpy()).all()


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    x = tp.tensor(normal(300, scale=1.0))
    first = lambda f: lambda t: tp.grad(lambda s: f(s).sum())(t).sum()
    high = tp.grad(first(function(name)))(x).numpy()
    low = fast(tp.grad(first(function(name))), x).numpy()
    np.testing.assert_allclose(low, high, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_as_accurate_as_ever(name):
    x = tp.tensor(RNG.standard_normal(100))
    np.testing.assert_array_equal(fast(function(name), x).numpy(), function(name)(x).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_threads_or_position(name):
    x = normal(100_003)
    results, threads = set(), tp.get_num_threads()
    try:
        for n in (1, 2):
            tp.set_num_threads(min(n, threads))
            results.add(fast(function(name), x).numpy().tobytes())
    finally:
        tp.set_num_threads(threads)
    assert len(results) == 1
    few = np.concatenate([fast(function(name), x[k : k + 1]).numpy() for k in range(20)])
    np.testing.assert_array_equal(few, np.frombuffer(results.pop(), np.float32)[:20])


@pytest.mark.parametrize("activation", CURVED)
def test_activations_of_linear_layers(activation):
    x, w, b, g = normal(9, 20, scale=1.0), normal(20, 40, scale=0.3), normal(40), normal(9, 40)

    def y(operands):
        out = ops.linear(*operands, activation=activation)
        return out[0] if isinstance(out, tuple) else out

    operands = tuple(map(tp.tensor, (x, w, b)))
    z = tp.tensor(x) @ tp.tensor(w) + tp.tensor(b)
    np.testing.assert_array_equal(fast(y, operands).numpy(), fast(function(activation), z).numpy())
    assert (fast(y, operands).numpy() != y(operands).numpy()).any()
    low = tp.grad(lambda o: (fast(y, o) * g).sum())(operands)  # the gradient is taken outside of the block
    high = tp.grad(lambda o: (y(o) * g).sum())(operands)
    for a, c in zip(low, high, strict=True):
        np.testing.assert_allclose(a.numpy(), c.numpy(), atol=3e-5, rtol=1e-5)
    assert (low[2].numpy() != high[2].numpy()).any()


def model(activation):
    layer = {"gelu": tp.layer.gelu, "silu": tp.layer.silu, "tanh": tp.layer.tanh, "sigmoid": tp.layer.sigmoid}
    return tp.layer.sequential([tp.layer.linear(64, 32), layer[activation](), tp.layer.linear(32, 10)])


def bits(st):
    return [t.numpy().tobytes() for t in tp.ptree.leaves(st.vars.params)]


@pytest.mark.parametrize(
    "loss",
    [tp.loss.cross_entropy_sparse, lambda out, y: tp.loss.cross_entropy_sparse(out, y)],
    ids=["replayed", "traced"],
)
@pytest.mark.parametrize("activation", CURVED)
def test_programs_have_the_bits_of_a_block(activation, loss):
    (x, y), _ = tp.datasets.digits()
    data = tp.Data.prepare((x[:256], y[:256]), batch_size=64)

    def train(trainer):
        data.reset()
        st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=loss)
        return bits(st), trainer.predict(st, x[:8]).numpy().tobytes()

    net = model(activation)
    exact = train(tp.Trainer(net, tp.optim.adam(1e-2)))
    lower = train(tp.Trainer(net, tp.optim.adam(1e-2), accuracy="fast"))
    trainer = tp.Trainer(net, tp.optim.adam(1e-2))
    with tp.accuracy("fast"):
        assert train(trainer) == lower
        assert train(tp.Trainer(net, tp.optim.adam(1e-2), accuracy="high")) == exact
    with tp.accuracy("high"):
        assert train(trainer) == exact
    assert train(trainer) == exact
    with tp.accuracy("fast"):  # after the same trainer's exact programs and traced models
        assert train(trainer) == lower
    assert exact[0] != lower[0]
    assert exact[1] != lower[1]


def test_jitted_and_pure_functions_follow_the_block():
    x = tp.tensor(normal(8, 8))
    pure = tp.pure(lambda x: tp.fn.gelu(x) * 2.0)
    for step in (tp.jit(lambda x: tp.fn.gelu(x) * 2.0), tp.jit(pure)):
        exact = step(x).numpy()
        lower = fast(step, x).numpy()
        np.testing.assert_array_equal(lower, (fast(tp.fn.gelu, x) * 2.0).numpy())
        np.testing.assert_array_equal(step(x).numpy(), exact)
        assert (lower != exact).any()


def test_explain_names_the_accuracy(capsys):
    trainer = tp.Trainer(model("gelu"), tp.optim.sgd(0.1), accuracy="fast")
    st = trainer.init(rngs=tp.rng.key(0))
    trainer.step(st, tp.ones((4, 64)), lambda out: tp.mean(tp.tanh(out)))
    trainer.predict(st, tp.ones((4, 64)))
    tp.explain(trainer)
    shown = capsys.readouterr().out
    assert "gelu (fast)" in shown or "linear (fast)" in shown
    assert "tanh (fast)" in shown


def test_both_options_are_named(capsys):
    with tp.precision("bfloat16_emulated"), tp.accuracy("fast"):
        program = tp.jit(lambda x, w, b: ops.linear(x, w, b, activation="tanh"))
        program(tp.ones((4, 4)), tp.ones((4, 4)), tp.ones(4))
        program(tp.ones((4, 4)), tp.ones((4, 4)), tp.ones(4))
    tp.explain(program)
    assert "linear (bfloat16_emulated, fast)" in capsys.readouterr().out


def test_a_model_learns_as_well():
    (x, y), (x_test, y_test) = tp.datasets.digits()
    scores = []
    for accuracy in ("high", "fast"):
        trainer = tp.Trainer(model("gelu"), tp.optim.adam(1e-2), accuracy=accuracy)
        data = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(1))
        st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse, epochs=15)
        scores.append((trainer.predict(st, x_test).numpy().argmax(1) == np.asarray(y_test)).mean())
    assert min(scores) > 0.93
    assert abs(scores[0] - scores[1]) < 0.02


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"^Trainer: accuracy is 'low', expected 'high' or 'fast'$"):
        tp.Trainer(model("gelu"), tp.optim.sgd(0.1), accuracy="low")
    with pytest.raises(ValueError, match=r"^accuracy: accuracy is 4"), tp.accuracy(4):
        pass


def test_a_trainer_is_pickled_with_its_accuracy():
    trainer = tp.Trainer(model("gelu"), tp.optim.sgd(0.1), accuracy="fast")
    again = pickle.loads(pickle.dumps(trainer))
    assert repr(again) == repr(trainer)
    assert again.accuracy == "fast"
    assert "accuracy='fast'" in repr(trainer)


def test_errors_leave_the_block():
    def fail(x):
        raise KeyError(x)

    with pytest.raises(KeyError):
        fast(fail, 1)
    x = tp.tensor(normal(100))
    assert inspect.signature(tp.accuracy).parameters.keys() == {"name"}
    np.testing.assert_array_equal(tp.exp(x).numpy(), OPS["exp"](x).numpy())
