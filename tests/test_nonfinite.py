"""A step whose gradient is not finite changes nothing, however many buffers the optimizer keeps."""

import numpy as np
import pytest

import treepie as tp
from treepie.layer import Layer, Vars

from .op_by_op import run_eagerly
from .steps import X, arrays, eager_fit, fit, programs, same, small

OPTIMIZERS = {
    "one_buffer": lambda: tp.optim.adam(0.1),
    "two_buffers": lambda: tp.optim.adamw(0.1, mask=[{"weight": True, "bias": False}]),
    "two_buffers_by_a_function": lambda: tp.optim.adamw(
        0.1, mask=lambda params: [{"weight": False, "bias": True}]
    ),
}
STEPS, BAD = 9, 5
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def loss(out, target):
    """Return a loss that is 0 at a target of 0, where its gradient is NaN."""
    return tp.sqrt((target * out * out).mean())


def batches(bad):
    """Return batches, the bad ones with a target of 0."""
    return [(X * (1.0 + 0.1 * k), tp.full((5, 3), 0.0 if k in bad else 1.0)) for k in range(STEPS)]


@EVERY
def test_a_gradient_that_is_not_finite_raises_and_keeps_the_state(name):
    trainer, st = small(optimizer=OPTIMIZERS[name]())
    with pytest.raises(FloatingPointError, match=rf"gradient.* is not finite in step {BAD + 1}") as caught:
        fit(trainer, st, batches([BAD]), loss)
    _, want = eager_fit(trainer, st, batches([BAD])[:BAD], loss)
    assert caught.value.state.step == BAD
    same(caught.value.state, want)


@EVERY
def test_steps_that_are_skipped_change_nothing(name):
    trainer, st = small(optimizer=OPTIMIZERS[name]())
    bad = [1, BAD, BAD + 1]
    with programs(), pytest.warns(RuntimeWarning, match="skipped"):
        _, made = fit(trainer, st, batches(bad), loss, on_nonfinite="skip")
    good = [batch for k, batch in enumerate(batches(bad)) if k not in bad]
    _, want = eager_fit(trainer, st, good, loss)
    assert made.step == STEPS
    assert made.opt_state.count == len(good)
    same(made, want)


@EVERY
def test_gradients_are_clipped_by_the_norm_of_the_step(name):
    results = []
    for run in (fit, eager_fit):
        trainer, st = small(optimizer=OPTIMIZERS[name]())
        losses, st = run(trainer, st, batches([]), loss, clip_norm=0.1)
        results.append([np.array(losses), *arrays(st)])
    same(*results)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@EVERY
def test_a_loss_that_is_not_finite_with_gradients_that_are(name, bad):
    trainer, st = small(optimizer=OPTIMIZERS[name]())
    rows = [(X, tp.full((), bad if k == BAD else 1.0)) for k in range(STEPS)]
    shifted = lambda out, target: (out * out).mean() + target
    with pytest.raises(FloatingPointError, match=f"the loss is .* in step {BAD + 1}") as caught:
        fit(trainer, st, rows, shifted)
    _, want = eager_fit(trainer, st, rows[:BAD], shifted)
    same(caught.value.state, want)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("pure", [False, True])
def test_a_gradient_of_one_elementwise_call_is_checked_before_it_is_applied(pure, states):
    """The update could be fused with it, and the states that are returned unchanged are copied first."""

    def apply(params, state, x, **options):
        return x * params["w"], state

    first = lambda rngs, dtype: Vars(
        {"w": tp.ones(3, dtype)}, {f"s{k}": tp.full(2, float(k)) for k in range(states)}, dtype
    )
    trainer = tp.Trainer(Layer(first, apply, pure=pure), tp.optim.sgd(0.1))
    x = np.array([1.0, 2.0, -3.0], "f4")
    rows = [(x * (1 + k), np.full(3, 0.0 if k == BAD else 1.0, "f4")) for k in range(STEPS)]
    chosen = tp.pure(loss) if pure else loss
    st = trainer.init(tp.rng.key(0))
    with pytest.raises(FloatingPointError, match="gradient") as caught:
        fit(trainer, st, rows, chosen)
    _, want = eager_fit(trainer, st, rows[:BAD], loss)
    same(caught.value.state, want)
    with pytest.warns(RuntimeWarning, match="skipped"):
        _, made = fit(trainer, st, rows, chosen, on_nonfinite="skip")
    _, want = eager_fit(trainer, st, rows[:BAD] + rows[BAD + 1 :], loss)
    same(made, want)


@pytest.mark.parametrize("unused", [0, 16])
def test_a_launch_that_fails_leaves_accumulated_gradients_alone(unused):
    """It reads a value whose calls could be fused with the sum, which is written where the last sum is.

    The index is computed, so that its op fails within the program; the loss catches the error. A parameter
    that the layer keeps is copied, before all other calls.
    """
    names, kept = [f"u{k}" for k in range(unused)], []

    def apply(params, state, x, **options):
        kept[:] = [params[name] for name in names]
        return x * params["w"], state

    def caught(out, target):
        y = tp.exp(out)
        try:
            index = (out * 0.0).astype(tp.int64) + target
            return y.sum() + tp.stop_gradient(tp.take(y, index)).sum()
        except IndexError:
            return y.sum() * 2.0

    def run(target):
        first = {"w": tp.full(3, 0.5), **{name: tp.ones(2) for name in names}}
        mask = {"w": True, **dict.fromkeys(names, False)}  # so that w has its own buffer
        layer = Layer(lambda rngs, dtype: Vars(first, {}, dtype), apply)
        trainer = tp.Trainer(layer, tp.optim.adamw(0.1, mask=mask))
        x = np.array([1.0, 2.0, -3.0], "f4")
        rows = [(x * (1 + 0.1 * k), np.full(3, target if k in (4, 7) else 1)) for k in range(9)]
        return fit(trainer, trainer.init(tp.rng.key(0)), rows, caught, accumulate_steps=3)

    losses, made = run(7)
    with pytest.MonkeyPatch.context() as patch:
        run_eagerly(patch)
        eager, want = run(7)
    assert losses == eager
    same(made, want)
    assert losses != run(1)[0]


def test_parts_of_an_accumulated_step_count_too():
    trainer, st = small(optimizer=OPTIMIZERS["two_buffers"]())
    rows = [*batches([]), *batches([BAD])]
    with pytest.raises(FloatingPointError, match="not finite in step 8") as caught:
        fit(trainer, st, rows, loss, accumulate_steps=2)
    assert caught.value.state.step == 7
    assert all(np.isfinite(a).all() for a in arrays(caught.value.state))
