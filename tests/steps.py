"""For tests of the law that a step is what its Python says: eager steps, and runs in which things change."""

import contextlib
import dataclasses
import io
from types import SimpleNamespace

import numpy as np

import treepie as tp

KEY = tp.rng.key(3)
_RNG = np.random.default_rng(0)
X = tp.tensor(_RNG.standard_normal((5, 4), "f4"))
Y = tp.tensor(_RNG.standard_normal((5, 3), "f4"))

#: The phases of what is outside, one for each step: it changes once steps have settled, or in every step.
SCHEDULES = ((0, 0, 0, 0, 1, 1, 3, 0, 2), (0, 1, 2, 3, 4, 0, 1))


class Box(SimpleNamespace):
    """Something outside of a function."""


@contextlib.contextmanager
def programs():
    """Check that whatever runs inside runs as programs: nothing says that it runs op by op."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        yield
    assert "op by op" not in said.getvalue()


def eager_step(trainer, st, x, loss, rngs=None, clip_norm=None):
    """Return the loss and the next state, as `Trainer.step` does, op by op."""

    def objective(params):
        out, after = trainer.model.apply(st.vars.with_params(params), x, True, rngs)
        return loss(out), after.state

    value, grads, state = tp.value_and_grad_aux(objective)(st.vars.params)
    if clip_norm is not None:
        grads = tp.optim.clip_by_global_norm(clip_norm, grads)
    params, opt_state = trainer.optimizer.update(st.opt_state, st.vars.params, grads)
    variables = st.vars.with_params(params).with_state(state)
    return value, dataclasses.replace(st, vars=variables, opt_state=opt_state, step=st.step + 1)


def eager_fit(trainer, st, batches, loss, rngs=None, report=None, clip_norm=None):
    """Return the losses and the last state of `fit`, op by op."""
    losses = []
    for k, (x, target) in enumerate(batches):
        key = None if rngs is None else tp.rng.fold_in(rngs, k)
        value, st = eager_step(trainer, st, x, lambda out, t=target: loss(out, t), key, clip_norm)
        losses.append(value.item())
        if report is not None:
            report(k + 1, losses[-1], st)
    return losses, st


def fit(trainer, st, batches, loss, rngs=None, report=None, **options):
    """Return the losses and the last state of `fit`."""
    history = tp.History()
    data = tp.Data.of_array(list(batches))
    st = trainer.fit(st, data, rngs=rngs, loss=loss, report=report, history=history, **options)
    return [value for _, value in history.steps], st


def arrays(tree):
    """Return copies of the leaves of a tree, or of all that a state of training holds."""
    if hasattr(tree, "opt_state"):
        tree = [tree.vars.params, tree.vars.state, list(tree.opt_state.moments)]
    return [np.array(leaf) for leaf in tp.ptree.leaves(tree)]


def same(made, want):
    """Compare two trees or states, bit by bit."""
    for a, b in zip(arrays(made), arrays(want), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def small(*more, optimizer=None):
    """Return a trainer of a small model, which ends with the layers that are given, and its first state."""
    model = tp.layer.sequential([tp.layer.linear(4, 3), *more])
    trainer = tp.Trainer(model, optimizer or tp.optim.sgd(0.05, momentum=0.9))
    return trainer, trainer.init(KEY)


def _within(f, in_model):
    """Return a trainer, its state and a loss: with f in the loss, or as the last layer of the model."""
    layer = f if isinstance(f, tp.layer.Layer) else tp.layer.lambda_(f) if in_model else None
    if layer is None:
        return *small(), lambda out, *target: tp.square(f(out)).mean()
    return *small(layer), lambda out, *target: tp.square(out).mean()


def _fit(make, phases, eager):
    f, change = make()
    trainer, st, loss = _within(f, in_model=False)

    def report(step, value, st):
        if step < len(phases):
            change(phases[step])

    change(phases[0])
    run = eager_fit if eager else fit
    losses, st = run(trainer, st, [(X, Y)] * len(phases), loss, report=report)
    return [losses, *(a.tolist() for a in arrays(st))]


def _step(make, phases, eager):
    f, change = make()
    trainer, st, loss = _within(f, in_model=False)
    losses = []
    for phase in phases:
        change(phase)
        value, st = eager_step(trainer, st, X, loss) if eager else trainer.step(st, X, loss)
        losses.append(value.item())
    return [losses, *(a.tolist() for a in arrays(st))]


def _predict(make, phases, eager):
    f, change = make()
    trainer, st, _ = _within(f, in_model=True)
    outputs = []
    for phase in phases:
        change(phase)
        out = trainer.model.apply(st.vars, X)[0] if eager else trainer.predict(st, X)
        outputs.append(out.tolist())
    return outputs


def _evaluate(make, phases, eager):
    f, change = make()
    trainer, st, _ = _within(f, in_model=True)
    scores = []
    for phase in phases:
        change(phase)
        if eager:
            scores.append(tp.metric.mse(trainer.model.apply(st.vars, X)[0], Y))
        else:
            data = tp.Data.of_array([(X, Y)])
            scores.append(trainer.evaluate(st, data, {"mse": tp.metric.MSE()})["mse"])
    return scores


_SURFACES = {"fit": _fit, "step": _step, "predict": _predict, "evaluate": _evaluate}


def follows(surface, make, varies=True):
    """Check that a method of a Trainer gives what eager calls give while what a function reads changes.

    surface: "fit" or "step", with the function in the loss, "predict" or "evaluate", with it in a layer.
    make: () -> (f, change): a function of the model's output, or a layer that ends the model, and a function
        that changes what it reads.
    varies: whether the phases make a difference.
    """
    run = _SURFACES[surface]
    for phases in SCHEDULES:
        with programs():
            made = run(make, phases, eager=False)
        want = run(make, phases, eager=True)
        assert made == want
        if varies and surface in ("predict", "evaluate"):
            assert any(value != want[0] for value in want), "nothing changes in this test"
