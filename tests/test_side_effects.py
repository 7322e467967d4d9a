"""Side effects of a loss or a layer happen once in every step, in program order."""

import contextlib
import functools
from typing import ClassVar

import numpy as np
import pytest

import treepie as tp
from treepie.layer import Layer, Vars

from .steps import KEY, X, Y, arrays, eager_fit, eager_step, fit, programs, same, small

STEPS = 7
LABELS = tp.tensor([0, 1, 2, 1, 0])
BOTH = pytest.mark.parametrize("surface", ["fit", "step"])


def run(surface, eager, trainer, st, batches, loss, report=None):
    """Return the losses and the last state of `fit`, of `Trainer.step`, or op by op."""
    if eager or surface == "fit":
        return (eager_fit if eager else fit)(trainer, st, batches, loss, report=report)
    losses = []
    for k, (x, y) in enumerate(batches):
        value, st = trainer.step(st, x, lambda out, y=y: loss(out, y))
        losses.append(value.item())
        if report is not None:
            report(k + 1, losses[-1], st)
    return losses, st


def compare(surface, attempt, message=False):
    """Check that attempt(run) returns the same as op by op. message: whether a message of that is allowed."""
    with contextlib.nullcontext() if message else programs():
        result = attempt(functools.partial(run, surface, False))
    same(result, attempt(functools.partial(run, surface, True)))


def new_log():
    """Return a class that functions write to."""

    class Log:
        entries: ClassVar = []

    return Log


def batches(n=STEPS):
    """Return batches that all differ."""
    return [(X * (1.0 + k), Y + float(k)) for k in range(n)]


@BOTH
def test_an_output_that_a_loss_stores_is_that_of_the_last_step(surface):
    def attempt(run):
        aux, scores = {}, []

        def loss(out, y):
            aux["out"] = out
            return tp.loss.cross_entropy_sparse(out, y)

        def report(step, value, st):
            scores.append(np.array(tp.metric.accuracy(aux["out"], LABELS)))
            scores.append(np.array(aux["out"]))

        trainer, st = small(optimizer=tp.optim.adam(0.3))
        run(trainer, st, [(x, LABELS) for x, _ in batches()], loss, report=report)
        return scores

    compare(surface, attempt)


def hidden_layer():
    """Return a layer that remembers its last input."""

    class Remembering:
        hidden = None

        def apply(self, params, state, x, **options):
            self.hidden = x
            return tp.tanh(x * params["w"]), state

    layer = Remembering()
    return layer, Layer(lambda rngs, dtype: Vars({"w": tp.ones(3, dtype=dtype)}, {}, dtype), layer.apply)


@BOTH
def test_a_layer_stores_the_input_of_the_last_training_step(surface):
    def attempt(run):
        remembering, layer = hidden_layer()
        trainer, st = small(layer)
        inputs = []
        run(trainer, st, batches(), tp.loss.mse, report=lambda *_: inputs.append(arrays(remembering.hidden)))
        return inputs

    compare(surface, attempt)


def test_a_layer_stores_the_input_of_the_last_prediction():
    remembering, layer = hidden_layer()
    trainer, st = small(layer)
    for x, _ in batches():
        trainer.predict(st, x)
        hidden = remembering.hidden
        trainer.model.apply(st.vars, x)
        same(hidden, remembering.hidden)
        data = tp.Data.of_array([(x, Y)])
        trainer.evaluate(st, data, {"mse": tp.metric.MSE()})
        same(hidden, remembering.hidden)


KEPT = {
    "output": lambda stored, out, y: stored.append(out),
    "intermediate": lambda stored, out, y: stored.append(out * 2.0 - y),
    "unused": lambda stored, out, y: stored.append(tp.sum(out, axis=1)),
    "view": lambda stored, out, y: stored.append(out.reshape(3, 5)[1:]),
    "target": lambda stored, out, y: stored.append(y),
    "gradient": lambda stored, out, y: stored.append(tp.grad(lambda o: (o**3).sum())(out)),
    "tree": lambda stored, out, y: stored.append({"a": [out, -out]}),
}


@pytest.mark.parametrize("what", KEPT)
@BOTH
def test_tensors_that_a_loss_stores_do_not_change(surface, what):
    def attempt(run):
        log = new_log()

        def loss(out, y):
            KEPT[what](log.entries, out, y)
            return tp.loss.mse(out, y)

        _, st = run(*small(), batches(), loss)
        assert len(log.entries) == STEPS
        return [*arrays(log.entries), *arrays(st)]

    compare(surface, attempt)


@BOTH
def test_parameters_and_states_that_a_layer_stores_do_not_change(surface):
    def attempt(run):
        log = new_log()

        def apply(params, state, x, **options):
            log.entries.append([params["w"], state["n"], x])
            return x * params["w"], {"n": state["n"] + 1.0}

        vars = lambda rngs, dtype: Vars({"w": tp.ones(3)}, {"n": tp.zeros(())}, dtype)
        _, st = run(*small(Layer(vars, apply)), batches(), tp.loss.mse)
        assert len(log.entries) == STEPS
        return [*arrays(log.entries), *arrays(st)]

    compare(surface, attempt)


@pytest.mark.parametrize("surface", ["fit", "step", "predict", "evaluate"])
def test_functions_run_once_a_step(surface):
    log = new_log()

    def f(x):
        log.entries.append(x.shape)
        return x * 2.0

    trainer, st = small(tp.layer.lambda_(f))
    if surface in ("fit", "step"):
        run(surface, False, trainer, st, batches(), tp.loss.mse)
    elif surface == "predict":
        for x, _ in batches():
            trainer.predict(st, x)
    else:
        trainer.evaluate(st, tp.Data.of_array(batches()), {"mse": tp.metric.MSE()})
    assert log.entries == [(5, 3)] * STEPS


@BOTH
def test_an_array_that_a_loss_changes(surface):
    def attempt(run):
        average = np.zeros(3, "f4")

        def loss(out, y):
            average[:] = 0.9 * average + 0.1
            return tp.loss.mse(out * average, y * average[0].item())

        losses, st = run(*small(), batches(), loss)
        return [np.array(losses), average, *arrays(st)]

    compare(surface, attempt)


@BOTH
def test_lines_that_a_loss_prints(surface, capsys):

    def loss(out, y):
        print("a loss of", out.shape)
        return tp.loss.mse(out, y)

    run(surface, False, *small(), batches(), loss)
    assert capsys.readouterr().out == "a loss of (5, 3)\n" * STEPS


@BOTH
def test_an_error_that_a_loss_raises(surface):
    class Stop(Exception):
        pass

    log = new_log()

    def loss(out, y):
        log.entries.append(out.shape)
        if len(log.entries) == 6:
            raise Stop
        return tp.loss.mse(out, y)

    trainer, st = small()
    with pytest.raises(Stop) as caught:
        run(surface, False, trainer, st, batches(), loss)
    if surface == "fit":
        _, want = eager_fit(trainer, st, batches(5), tp.loss.mse)
        assert caught.value.state.step == 5
        same(caught.value.state, want)
    same(fit(trainer, st, batches(), tp.loss.mse)[1], eager_fit(trainer, st, batches(), tp.loss.mse)[1])


@BOTH
def test_a_label_error_that_a_loss_catches(surface):
    """It is caught in every step whose label is wrong, and in no other."""
    labels = [[0, 1, 2, 1, 0]] * 5 + [[0, 1, 3, 1, 0], [2, 2, 0, 1, 1], [0, -1, 0, 1, 1], [0, 1, 2, 1, 0]]

    def attempt(run):
        caught = []

        def loss(out, y):
            try:
                return tp.loss.cross_entropy_sparse(out, y)
            except ValueError as error:
                caught.append(str(error))
                return tp.square(out).mean()

        losses, st = run(*small(), [(X, tp.tensor(y)) for y in labels], loss)
        assert len(caught) == 2
        assert ["label is 3" in caught[0], "label is -1" in caught[1]] == [True, True]
        return [np.array(losses), *arrays(st)]

    compare(surface, attempt, message=True)


@BOTH
def test_a_label_error_of_a_pure_function_that_a_loss_catches(surface):
    pure = tp.pure(lambda out, y: tp.loss.cross_entropy_sparse(out, y) * 2)
    labels = [[0, 1, 2, 1, 0]] * 4 + [[0, 1, 3, 1, 0], [2, 2, 0, 1, 1]]

    def attempt(run):
        caught, log = [], new_log()

        def loss(out, y):
            log.entries.append(out.shape)
            try:
                return pure(out, y)
            except ValueError as error:
                caught.append(str(error))
                return tp.square(out).mean()

        losses, st = run(*small(), [(X, tp.tensor(y)) for y in labels], loss)
        assert (len(caught), len(log.entries)) == (1, len(labels))
        assert "label is 3" in caught[0]
        return [np.array(losses), *arrays(st)]

    compare(surface, attempt, message=True)


def test_single_steps_and_fit_store_the_same():
    """Also where one trainer alternates between them."""
    log = new_log()

    def loss(out, y):
        log.entries.append(out)
        return tp.loss.mse(out, y)

    trainer, first = small()
    st = want = first
    for k, (x, y) in enumerate(batches()):
        if k % 2:
            st = trainer.fit(st, tp.Data.of_array([(x, y)]), loss=loss)
        else:
            st = trainer.step(st, x, lambda out, y=y: loss(out, y))[1]
        result = log.entries.pop()
        want = eager_step(trainer, want, x, lambda out, y=y: loss(out, y))[1]
        same(result, log.entries.pop())
        same(st, want)
    assert not log.entries


def test_a_key_that_a_layer_splits_changes_in_every_step():
    """Random numbers that a user's layer draws from its key, and stores."""

    def attempt(run):
        log = new_log()

        def apply(params, state, x, *, rngs, **options):
            noise = tp.rng.normal(rngs, x.shape)
            log.entries.append(noise)
            return x + 0.1 * noise, state

        layer = Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply)
        losses, st = run(*small(layer), batches(), tp.loss.mse, rngs=KEY)
        return [np.array(losses), *arrays(st), *arrays(log.entries)]

    with programs():
        result = attempt(fit)
    same(result, attempt(eager_fit))
