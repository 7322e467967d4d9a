"""Optimizers on whole runs: parabola and Rosenbrock's valley in both dtypes, and 100 steps to rounding."""

import numpy as np
import pytest

import treepie as tp
from treepie.optim import schedule

from .test_optim import adagrad, adam, rmsprop, sgd


def parabola(p):
    return ((p["x"] - 1.0) ** 2 * [1.0, 5.0]).sum()


def rosenbrock(p):
    """Rosenbrock 1960: a curved valley with its least value, 0, at (1, 1)."""
    x, y = p["x"][0], p["x"][1]
    return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2


#: optimizer -> learning rates and steps that take it to the least value of each function.
RUNS = {
    "sgd": (tp.optim.sgd, (0.05, 200), (1.8e-3, 20000)),
    "momentum": (lambda lr: tp.optim.sgd(lr, momentum=0.9), (0.02, 400), (5e-4, 6000)),
    "nesterov": (lambda lr: tp.optim.sgd(lr, momentum=0.9, nesterov=True), (0.02, 400), (5e-4, 6000)),
    "adam": (tp.optim.adam, (0.1, 600), (0.02, 6000)),
    "adamw": (lambda lr: tp.optim.adamw(lr, weight_decay=0.0), (0.1, 600), (0.02, 6000)),
    "rmsprop": (tp.optim.rmsprop, (0.1, 600), (0.02, 6000)),
    "rmsprop, momentum": (lambda lr: tp.optim.rmsprop(lr, momentum=0.5), (0.05, 600), (0.01, 6000)),
    "adagrad": (tp.optim.adagrad, (1.0, 600), (0.2, 15000)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [parabola, rosenbrock])
@pytest.mark.parametrize("name", RUNS)
def test_it_converges_and_keeps_its_dtype(name, function, dtype):
    make, short, long = RUNS[name]
    lr, steps = short if function is parabola else long
    # A rate that falls to 0, since rules that divide by the gradient's size never come to rest.
    opt = make(schedule.cosine_decay(lr, steps))
    params = {"x": tp.tensor([-1.0, 1.5], dtype=dtype)}
    state, gradient = opt.init(params), tp.value_and_grad(function)
    for _ in range(steps):
        value, grads = gradient(params)
        params, state = opt.update(state, params, grads)
    assert params["x"].dtype == value.dtype == dtype
    assert all(x.dtype == dtype for x in tp.ptree.leaves(state.moments))
    tolerance = 1e-3 if function is parabola else 0.05
    np.testing.assert_allclose(params["x"], [1.0, 1.0], atol=tolerance)


ORACLES = {
    "sgd": sgd,
    "momentum": lambda lr: sgd(lr, 0.9),
    "nesterov": lambda lr: sgd(lr, 0.9, True),
    "adam": adam,
    "adamw": lambda lr: adam(lr, decay=lambda p: 0.01),
    "rmsprop": rmsprop,
    "rmsprop, momentum": lambda lr: rmsprop(lr, momentum=0.5),
    "adagrad": adagrad,
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_hundred_steps_in_float32_are_those_of_float64_to_1e_6(name):
    rng = np.random.default_rng(0)
    rate = schedule.warmup_cosine(0.0, 0.003, 20)
    opt = tp.optim.adamw(rate) if name == "adamw" else RUNS[name][0](rate)
    rule, notes = ORACLES[name](rate), {}
    want = rng.uniform(1, 2, 1000)
    params = {"x": tp.tensor(want.astype("f4"))}
    want = params["x"].numpy().astype("f8")
    state = opt.init(params)
    for t in range(1, 101):
        g = rng.normal(size=1000).astype("f4")
        params, state = opt.update(state, params, {"x": tp.tensor(g)})
        want = rule(want, g.astype("f8"), notes, t)
    assert np.abs(params["x"].numpy() - want).max() <= 1e-6 * np.abs(want).max()
