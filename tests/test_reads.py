"""Losses and layers that read values in Python: correct in every step, and one message names the line."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import treepie as tp

from .steps import X, Y, arrays, eager_fit, eager_step, fit, same, small

NUMBER = r"\d[\d.e+-]*"
#: A scalar tensor -> a float, all on the line of the lambda.
READS = {
    "format": lambda t: float(f"{t:.4f}"),
    "f_string": lambda t: float(re.findall(NUMBER, f"{t}")[0]),
    "str": lambda t: float(re.findall(NUMBER, str(t))[0]),
    "repr": lambda t: float(re.findall(NUMBER, repr(t))[0]),
    "array": lambda t: float(t.array),
    "item": lambda t: t.item(),
    "float": lambda t: float(t),
    "int": lambda t: int(t * 1000) / 1000,
    "bool": lambda t: 2.0 if t > 0.5 else 1.0,
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: float(t.numpy()),
    "asarray": lambda t: float(np.asarray(tp.stop_gradient(t))),
    "function_of_numpy": lambda t: float(np.sqrt(tp.stop_gradient(t))),
    "math": lambda t: round(float(t), 3),
}
BATCHES = [(X * (1.0 + 0.1 * k), Y) for k in range(7)]


def names_the_line(printed, function):
    """Check that one line was printed, and that it names this file and the line of a function."""
    lines = [line for line in printed.splitlines() if "op by op" in line]
    assert len(lines) == 1
    line = function.__code__.co_firstlineno
    assert re.search(rf"{re.escape(Path(__file__).name)}\D+{line}\b", lines[0]), lines[0]


class Log:
    """The values that functions read."""

    values: ClassVar = []


def log_read(read, t):
    """Read a value, and log it."""
    Log.values.append(read(t))
    return Log.values[-1]


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("surface", ["fit", "step"])
def test_a_loss_reads_current_values(surface, name, capsys):
    read = READS[name]

    def loss(out, y):
        return tp.loss.mse(out, y) * (1.0 + 0.1 * log_read(read, tp.square(out).mean()))

    results = []
    for eager in (False, True):
        Log.values = []
        trainer, st = small()
        if surface == "fit":
            losses, st = (eager_fit if eager else fit)(trainer, st, BATCHES, loss)
        else:
            losses = []
            for x, y in BATCHES:
                one = lambda out, y=y: loss(out, y)
                value, st = eager_step(trainer, st, x, one) if eager else trainer.step(st, x, one)
                losses.append(value.item())
        results.append([np.array(losses), np.array(Log.values), *arrays(st)])
    same(*results)
    assert len(Log.values) == len(BATCHES)
    names_the_line(capsys.readouterr().err, read)


@pytest.mark.parametrize("name", READS)
def test_a_layer_reads_current_values(name, capsys):
    read = READS[name]
    trainer, st = small(tp.layer.lambda_(lambda x: x * log_read(read, tp.square(x).mean())))
    for x, _ in BATCHES:
        Log.values = []
        same(trainer.predict(st, x), trainer.model.apply(st.vars, x)[0])
        assert len(Log.values) == 2
        assert Log.values[0] == Log.values[1]
    names_the_line(capsys.readouterr().err, read)


def test_a_value_that_is_printed(capsys):
    show = lambda t: print("mean", t)

    def loss(out, y):
        show(out.mean())
        return tp.loss.mse(out, y)

    results = []
    for run in (fit, eager_fit):
        losses, st = run(*small(), BATCHES, loss)
        captured = capsys.readouterr()
        results.append([losses, captured.out, [a.tolist() for a in arrays(st)]])
        if run is fit:
            names_the_line(captured.err, show)
    assert results[0] == results[1]
    assert len(set(results[0][1].splitlines())) == len(BATCHES)


def test_a_loop_that_ends_on_a_value():
    def f(x):
        n = 0
        while float(tp.abs(x).max()) > 0.1:
            x, n = x * 0.5, n + 1
        return x * (1.0 + n)

    trainer, st = small(tp.layer.lambda_(f))
    for k in range(8):
        x = X * float(2 ** max(0, k - 3))
        same(trainer.predict(st, x), trainer.model.apply(st.vars, x)[0])
    losses, st = fit(*small(tp.layer.lambda_(f)), BATCHES, tp.loss.mse)
    want_losses, want = eager_fit(*small(tp.layer.lambda_(f)), BATCHES, tp.loss.mse)
    assert losses == want_losses
    same(st, want)


def test_a_single_step_that_reads(capsys):
    """Its side effects happen once, before and after the read."""

    def attempt(run):
        Log.values = []

        def loss(out, y):
            Log.values.append(out)
            if len(Log.values) in (3, 6):
                return tp.loss.mse(out, y * (1.0 + 0.01 * out.sum().item()))
            return tp.loss.mse(out, y)

        losses, st = run(*small(), BATCHES, loss)
        return [np.array(losses), *arrays(Log.values), *arrays(st)]

    result = attempt(fit)
    assert capsys.readouterr().err.count("op by op") == 1
    expected = attempt(eager_fit)
    assert len(Log.values) == len(BATCHES)
    same(result, expected)


def test_shapes_and_constants_are_no_reads(capsys):
    """Shapes, dtypes and tensors that do not depend on the model."""
    w = tp.tensor([2.0, 3.0])

    def loss(out, y):
        assert out.dtype == tp.float32
        return tp.loss.mse(out, y) * (w.numpy()[0].item() / out.shape[0] + len(out) / out.size)

    losses, st = fit(*small(), BATCHES, loss)
    assert "op by op" not in capsys.readouterr().err
    want_losses, want = eager_fit(*small(), BATCHES, loss)
    assert losses == want_losses
    same(st, want)
