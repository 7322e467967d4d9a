"""`tp.pure`: functions are traced once and replayed; with TREEPIE_CHECK=1 traces are compared."""

import os
import re
import subprocess
import sys

import pytest

import treepie as tp
from treepie.layer import Layer, Vars

from .steps import Box, X, Y, eager_fit, eager_step, fit, programs, same, small

BATCHES = [(X * (1.0 + 0.1 * k), Y) for k in range(6)]


def counted(f):
    """Return a wrapper of f, and the list to which each of its calls appends."""
    calls = []

    def g(*args, **kwargs):
        calls.append(1)
        return f(*args, **kwargs)

    return g, calls


def mean_square(out, y):
    return tp.square(out - y).mean()


def test_a_pure_loss_is_traced_once_by_fit():
    loss, calls = counted(mean_square)
    with programs():
        losses, st = fit(*small(), BATCHES, tp.pure(loss))
    assert len(calls) == 1
    want_losses, want = eager_fit(*small(), BATCHES, mean_square)
    assert losses == want_losses
    same(st, want)


def test_a_pure_loss_is_traced_once_by_single_steps():
    f, calls = counted(lambda out: tp.square(out - 1.0).mean())
    loss = tp.pure(f)
    trainer, st = small()
    want = st
    for x, _ in BATCHES:
        value, st = trainer.step(st, x, loss)
        want_value, want = eager_step(trainer, want, x, lambda out: tp.square(out - 1.0).mean())
        assert value.item() == want_value.item()
    same(st, want)
    assert len(calls) == 1


def test_a_pure_function_is_traced_once_for_each_shape():
    loss, calls = counted(mean_square)
    batches = [(x[:n], y[:n]) for n in (5, 3, 4) for x, y in BATCHES[:2]] * 2
    _, st = fit(*small(), batches, tp.pure(loss))
    assert len(calls) == 3
    same(st, eager_fit(*small(), batches, mean_square)[1])


@pytest.mark.parametrize("kind", ["lambda_", "layer"])
@pytest.mark.parametrize("surface", ["fit", "predict"])
def test_a_pure_layer_is_traced_once(kind, surface):
    calls = []

    def f(x):
        calls.append(1)
        return tp.tanh(x) * 2.0

    def apply(params, state, x, **options):
        return f(x) * params["w"], {"n": state["n"] + 1.0}

    def model(mark):
        if kind == "lambda_":
            return tp.layer.lambda_(mark(f))
        init = lambda rngs, dtype: Vars({"w": tp.ones(3)}, {"n": tp.zeros(())}, dtype)
        return Layer(init, mark(apply))

    trainer, st = small(model(tp.pure))
    plain, _ = small(model(lambda f: f))
    with programs():
        if surface == "fit":
            results = fit(trainer, st, BATCHES, tp.loss.mse)[1]
        else:
            results = [trainer.predict(st, x) for x, _ in BATCHES]
    assert len(calls) == 1
    if surface == "fit":
        same(results, eager_fit(plain, st, BATCHES, tp.loss.mse)[1])
    else:
        same(results, [plain.model.apply(st.vars, x)[0] for x, _ in BATCHES])


def test_reads_of_a_pure_function_from_outside_are_fixed():
    box = Box(scale=1.0)

    def report(step, loss, st):
        box.scale = 1.0 + step

    losses, st = fit(
        *small(), BATCHES, tp.pure(lambda out, y: mean_square(out, y) * box.scale), report=report
    )
    want_losses, want = eager_fit(*small(), BATCHES, mean_square)
    assert losses == want_losses
    same(st, want)


def test_a_pure_function_within_an_impure_one():
    """The inner one is traced once, the outer one runs in each step."""
    results = []
    for run in (fit, eager_fit):
        box = Box(weight=1.0)
        f, calls = counted(mean_square)
        inner = tp.pure(f)
        outer, outer_calls = counted(lambda out, y, inner=inner, box=box: inner(out, y) * box.weight)

        def report(step, loss, st, box=box):
            box.weight = 1.0 / (1.0 + step)

        losses, st = run(*small(), BATCHES, outer, report=report)
        if run is fit:
            assert len(calls) == 1
        assert len(outer_calls) == len(BATCHES)
        results.append((losses, st))
    assert results[0][0] == results[1][0]
    same(results[0][1], results[1][1])


def test_a_direct_call_of_a_pure_function_runs_it():
    @tp.pure
    def double(x):
        """Twice x."""
        return x * 2

    assert double.__name__ == "double"
    assert double.__doc__ == "Twice x."
    same(double(X), X * 2)
    same(tp.grad(lambda x: double(x).sum())(X), tp.full(X.shape, 2.0))
    with pytest.raises(TypeError, match="pure"):
        tp.pure(3)


USER = """
import random
import treepie as tp

x, y = tp.ones((5, 4)), tp.zeros((5, 3))
chance = lambda x: x * random.random()                          # line 6
scales = iter(range(1, 100))
counted = lambda x: x * float(next(scales))                     # line 8
inner = {"jit": tp.jit(chance), "pure": tp.pure(counted)}


def trained(loss, layer=None):
    layers = [tp.layer.linear(4, 3), *([tp.layer.lambda_(layer)] if layer else [])]
    trainer = tp.Trainer(tp.layer.sequential(layers), tp.optim.sgd(0.1))
    return trainer.fit(trainer.init(tp.rng.key(0)), tp.Data.repeat(5, (x, y)), loss=loss)


def attempt(name, run):
    try:
        for _ in range(3):
            run()
        print(name, "| passes")
    except ValueError as error:
        print(name, "| raises", str(error).replace("\\n", " "))


mean = lambda out, y: ((out - y) ** 2).mean()
attempt("jit", lambda: inner["jit"](x))
attempt("pure loss", lambda: trained(tp.pure(lambda out, y: counted(mean(out, y)))))
attempt("pure layer", lambda: trained(tp.loss.mse, inner["pure"]))
attempt("pure function", lambda: trained(tp.pure(mean)))
attempt("impure function", lambda: trained(lambda out, y: chance(mean(out, y))))
attempt("library", lambda: trained(tp.loss.mse))
"""


def test_the_environment_checks_every_program(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(USER)
    verdicts = {}
    for check in ("1", ""):
        env = {**os.environ, "TREEPIE_CHECK": check}
        done = subprocess.run(
            [sys.executable, file], capture_output=True, text=True, env=env, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        verdicts[check] = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert all(verdict == "passes" for verdict in verdicts[""].values())
    names = {"jit": 6, "pure loss": 8, "pure layer": 8}
    for name, verdict in verdicts["1"].items():
        if name in names:
            assert verdict.startswith("raises")
            assert re.search(rf"user\.py\D+{names[name]}\b", verdict), verdict
        else:
            assert verdict == "passes"
    assert len(verdicts["1"]) == 6


def test_a_pure_function_that_reads_values_runs_op_by_op(capsys):
    """Its results are those of an eager call, and one line on stderr says so."""
    loss = tp.pure(lambda out, y: tp.square(out - y).mean() * (2.0 if (out - y).sum() > 0 else 0.5))
    losses, st = fit(*small(), BATCHES, loss)
    want_losses, want = eager_fit(*small(), BATCHES, loss)
    assert losses == want_losses
    same(st, want)
    assert capsys.readouterr().err.count("op by op") == 1
