"""Kernels and formulas of one's own: values, gradients, programs, the cache, and what misuse is told."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.examples import own_kernel as examples

THIS = Path(__file__).name
X = np.random.default_rng(0).standard_normal((33, 7)).astype("f4")
W = np.random.default_rng(1).standard_normal(7).astype("f4")


@tp.kernel(out=lambda x, w: tp.spec(x.shape[:1], x.dtype))
def weighted_row_sums(rows, x, w, out):
    for i in rows:
        total = 0.0
        for j in range(x.shape[1]):
            total += x[i, j] * w[j]
        out[i] = total


@weighted_row_sums.defvjp
def weighted_row_sums_rule(g, y, x, w):
    return g[:, None] * w, (g[:, None] * x).sum(axis=0)


silu2 = tp.elementwise(
    lambda x: x * tp.math.sigmoid(x), vjp=lambda g, y, x: g * (y + tp.math.sigmoid(x) * (1 - y)), name="silu2"
)


# ---- values, laws and gradients
def test_a_kernel_has_its_values_and_gradients():
    np.testing.assert_allclose(weighted_row_sums(X, W).numpy(), X @ W, rtol=1e-5)
    tp.check_kernel(weighted_row_sums, tp.zeros((33, 7)), tp.zeros(7))


def test_a_formula_has_its_values_and_gradients():
    np.testing.assert_allclose(silu2(X).numpy(), X / (1 + np.exp(-X)), rtol=1e-6, atol=1e-7)
    tp.check_kernel(silu2, tp.zeros((33, 7)))


def test_a_formula_of_several_operands():
    hypot = tp.elementwise(
        lambda x, y: tp.math.sqrt(x * x + y * y), vjp=lambda g, r, x, y: (g * x / r, g * y / r), name="hypot"
    )
    tp.check_kernel(hypot, tp.zeros((3, 4)), tp.zeros(4))
    np.testing.assert_allclose(hypot(X, W).numpy(), np.hypot(X, W), rtol=1e-6)


def test_formulas_continue_each_other():
    outer = tp.elementwise(lambda x: silu2(x) * 2.0, name="outer")
    np.testing.assert_array_equal(outer(X).numpy(), 2 * silu2(X).numpy())


@pytest.mark.parametrize("name", ["quantile_loss_gradient", "moving_average_gradient"])
def test_the_kernels_of_gradients_obey_the_laws_too(name):
    kernel = getattr(examples, name)
    if name == "quantile_loss_gradient":
        shapes = ((9,), (9,), (9, 3), (9,), (3,))
        tp.check_kernel(kernel, *[tp.zeros(s) for s in shapes])
    else:
        tp.check_kernel(kernel, tp.zeros((3, 6, 5)), decay=0.7)


def test_the_example_has_the_values_of_plain_ops():
    rng = np.random.default_rng(3)
    p, y, q = rng.standard_normal((50, 3)), rng.standard_normal(50), np.array([0.1, 0.5, 0.9])
    error = y[:, None] - p
    want = np.maximum(q * error, (q - 1) * error).sum(1)
    np.testing.assert_allclose(examples.quantile_loss(p, y, q).numpy(), want, rtol=1e-5, atol=1e-6)
    x = rng.standard_normal((3, 5, 6))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), "edge")
    want = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 4 * x
    np.testing.assert_allclose(examples.laplacian(x).numpy(), want, rtol=1e-4, atol=1e-5)
    y = np.zeros((3, 6))
    for t in range(5):
        y = 0.9 * y + 0.1 * x[:, t]
        np.testing.assert_allclose(
            examples.moving_average(x, decay=0.9).numpy()[:, t], y, rtol=1e-5, atol=1e-6
        )


# ---- outputs, scratch, static arguments, errors
def of_rows(x):
    if x.shape[1] == 0:
        raise ValueError("largest_square: there are no columns")
    return tp.spec(x.shape[:1], x.dtype), tp.spec(x.shape[:1], tp.int64)


@tp.kernel(
    out=of_rows,
    scratch=lambda x: tp.spec(x.shape, x.dtype),
)
def largest_square(rows, x, out, where, squares):
    for i in rows:
        best = 0
        for j in range(x.shape[1]):
            squares[i, j] = x[i, j] * x[i, j]
            if not squares[i, j] <= squares[i, best]:
                best = j
        where[i] = best
        out[i] = squares[i, best]


@largest_square.defvjp
def _(g, y, x):
    columns = tp.arange(x.shape[1])
    hit = (columns == y[1][:, None]).astype(x.dtype)
    return 2.0 * g[0][:, None] * hit * x


def test_several_outputs_and_scratch():
    top, where = largest_square(X)
    np.testing.assert_array_equal(where.numpy(), (X * X).argmax(1))
    np.testing.assert_array_equal(top.numpy(), (X * X).max(1))
    tp.check_kernel(largest_square, X[:5, 1:])


@tp.kernel(
    out=lambda x, *, keep: tp.spec((x.shape[0] if keep else 1, x.shape[1]), x.dtype),
    rows=lambda x: x.shape[1],
)
def column_work(rows, x, out, *, mode, keep, scale=1.0, power=1):
    for j in rows:
        if keep:
            for i in range(x.shape[0]):
                if mode == "exp":
                    out[i, j] = tp.math.exp(scale * x[i, j])
                else:
                    out[i, j] = scale * x[i, j] ** float(power)
        else:
            out[0, j] = x[:, j].sum()


def test_static_arguments():
    np.testing.assert_allclose(column_work(X, mode="exp", keep=True).numpy(), np.exp(X), rtol=1e-6)
    found = column_work(X, mode="power", keep=True, scale=np.float64(0.5), power=3).numpy()
    np.testing.assert_allclose(found, 0.5 * X**3, rtol=1e-5)
    np.testing.assert_allclose(
        column_work(X, mode="", keep=False).numpy(), X.sum(0)[None], rtol=1e-4, atol=1e-5
    )
    assert column_work(X, mode="power", keep=True).dtype == tp.float32


def test_other_numbers_compile_nothing():
    from treepie.kernels.compilations import compilations

    column_work(X, mode="power", keep=True, scale=0.5)
    before = compilations.count + compilations.loaded
    for scale in (0.25, 3.5, -1.0):
        found = column_work(X, mode="power", keep=True, scale=scale).numpy()
        np.testing.assert_allclose(found, np.float32(scale) * X)
    assert compilations.count + compilations.loaded == before


@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
def weights(rows, x, out):
    for i in rows:
        out[i] = x[i]
        if x[i] < 0:
            raise ValueError("a weight is negative")
        if x[i] > 10:
            raise AssertionError("a weight is too large")  # pytest rewrites `assert`


@pytest.mark.parametrize(
    ("value", "error", "text", "line"),
    [(-1.0, ValueError, "a weight is negative", 5), (11.0, AssertionError, "a weight is too large", 7)],
)
def test_an_exception_of_a_kernel_is_raised_with_its_line(value, error, text, line):
    x = np.ones(1000, "f4")
    x[700] = value
    run = tp.jit(lambda x: weights(x * 1.0).sum())
    assert run(tp.ones(1000)).item() == 1000
    number = weights.function.__code__.co_firstlineno + line
    for call in (weights, run):
        with pytest.raises(error, match=rf"^weights: {text}.* \({THIS}, line {number}\)$"):
            call(tp.tensor(x))
    assert run(tp.ones(1000)).item() == 1000


def test_an_exception_ends_training_with_the_state_before_it():
    def layer(params, state, x, **_):
        return weights(x) * params["w"], state

    def init(rngs, dtype):
        return tp.layer.Vars({"w": tp.ones((), dtype)}, {}, dtype)

    trainer = tp.Trainer(tp.layer.Layer(init, layer), tp.optim.sgd(0.1))
    x = np.ones((40, 1), "f4")
    x[25] = -1
    weights.defvjp(lambda g, y, x: g)
    with pytest.raises(ValueError, match=r"^weights: a weight is negative") as caught:
        trainer.fit(
            trainer.init(rngs=tp.rng.key(0)),
            tp.Data.prepare((x[:, 0], 2 * x[:, 0]), batch_size=10),
            loss=tp.loss.mse,
            progress=False,
        )
    assert caught.value.state.step == 2


def test_numbers_and_integers_are_arguments():
    @tp.kernel(out=lambda x, k, factor: tp.spec(k.shape, x.dtype))
    def taken(rows, x, k, factor, out):
        for i in rows:
            out[i] = x[k[i]] * factor[0]

    k = np.array([3, 0, 3])
    np.testing.assert_array_equal(taken(X[0], k, 2.0).numpy(), X[0][k] * 2)
    assert taken(X[0].astype("f8"), k, 2.0).dtype == tp.float64
    run = tp.jit(lambda x, factor: taken(x, k, factor))
    for factor in (2.0, 3.0, -1.5):
        np.testing.assert_array_equal(run(X[0], factor).numpy(), X[0][k] * np.float32(factor))
    assert len(run.programs) == 1


@tp.kernel(out=lambda x, labels, w: tp.spec((x.shape[0],), x.dtype))
def picked(rows, x, labels, w, out):
    for i in rows:
        out[i] = x[i, labels[i]] * w[labels[i]]


@tp.kernel(
    out=lambda g, y, x, labels, w: (tp.spec(x.shape, x.dtype), tp.spec(w.shape, w.dtype)), rows=lambda *_: 1
)
def picked_gradients(rows, g, y, x, labels, w, for_x, for_w):
    for _ in rows:
        for j in range(w.size):
            for_w[j] = 0.0
        for i in range(x.shape[0]):
            for j in range(w.size):
                for_x[i, j] = 0.0
            k = labels[i]
            for_x[i, k] = g[i] * w[k]
            for_w[k] += g[i] * x[i, k]


picked.defvjp(picked_gradients)


def test_one_kernel_makes_all_gradients():
    """Those of the float arguments, in their order."""
    labels = tp.tensor(np.arange(33) % 7)
    weights = tp.tensor(np.linspace(-1.0, 2.0, 33))

    def plain(x, w):
        return (tp.take_along_axis(x, labels[:, None], 1)[:, 0] * w[labels] * weights).sum()

    def own(x, w):
        return (picked(x, labels, w) * weights).sum()

    arguments = tp.tensor(X.astype("f8")), tp.tensor(W.astype("f8"))
    for way in (lambda f: f, tp.jit):
        a, b = (way(tp.grad(lambda pair, f=f: f(*pair)))(arguments) for f in (plain, own))
        for want, found in zip(a, b, strict=True):
            np.testing.assert_allclose(found.numpy(), want.numpy(), rtol=1e-12)


# ---- programs
def layer(kernel):
    def init(rngs, dtype):
        return tp.layer.Vars({"w": tp.ones(7, dtype)}, {}, dtype)

    return tp.layer.Layer(init, lambda params, state, x, **_: (kernel(x, params["w"]), state))


def train(model, **options):
    trainer = tp.Trainer(model, tp.optim.sgd(0.01))
    data = tp.Data.prepare((X, X @ W), batch_size=11)
    st = trainer.fit(
        trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.mse, epochs=20, progress=False, **options
    )
    return trainer, st


def test_it_trains_inside_of_a_program(capsys):
    _, own = train(layer(weighted_row_sums))
    trainer, plain = train(layer(lambda x, w: (x * w).sum(axis=-1)))
    np.testing.assert_allclose(own.vars.params["w"].numpy(), plain.vars.params["w"].numpy(), rtol=1e-4)
    trainer, _ = train(layer(weighted_row_sums))
    tp.explain(trainer)
    text = capsys.readouterr().out
    assert "weighted_row_sums" in text
    assert "op by op" not in text


def test_a_program_has_the_bits_of_eager_calls_and_gradients():
    def f(x, w):
        return (weighted_row_sums(silu2(x), w) ** 2.0).sum()

    eager, jitted = tp.value_and_grad(lambda a: f(*a)), tp.jit(tp.value_and_grad(lambda a: f(*a)))
    arguments = (tp.tensor(X), tp.tensor(W))
    for a, b in zip(tp.ptree.leaves(eager(arguments)), tp.ptree.leaves(jitted(arguments)), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_any_number_of_threads_gives_the_same_bits():
    code = """
import numpy as np, treepie as tp, sys
from tests.test_own_kernels import weighted_row_sums
x = np.random.default_rng(0).standard_normal((50000, 40)).astype("f4")
print(weighted_row_sums(x, x[0]).numpy().tobytes().hex()[:20000])
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_NUM_THREADS": str(n)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in (1, 2, 3)
    }
    assert len(found) == 1


def test_pickled_by_name_with_the_trainer():
    for own in (weighted_row_sums, silu2):
        assert pickle.loads(pickle.dumps(own)) is own
    trainer = tp.Trainer(
        tp.layer.sequential([tp.layer.linear(7, 3), tp.layer.lambda_(silu2)]), tp.optim.sgd(0.1)
    )
    again = pickle.loads(pickle.dumps(trainer))
    st = trainer.init(rngs=tp.rng.key(0))
    np.testing.assert_array_equal(trainer.predict(st, X).numpy(), again.predict(st, X).numpy())
