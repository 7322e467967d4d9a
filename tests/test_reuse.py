"""Steps take over the symbolic tensors of the step before, and only those that nobody has kept."""

import contextlib
import gc
import itertools
import weakref

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.trace.reuse import Reuse

from .steps import KEY, X, Y, arrays, eager_fit, fit, programs, same, small

STEPS = 12


@pytest.fixture
def steps(monkeypatch):
    """Whether each step handed its tensors over to the next one."""
    handed = []
    hand_over = Reuse.hand_over

    def counted(self, trace):
        handed.append(hand_over(self, trace))
        return handed[-1]

    monkeypatch.setattr(Reuse, "hand_over", counted)
    return handed


def batches(n=STEPS):
    """Return batches that all differ."""
    return [(X * (1.0 + k), Y + float(k)) for k in range(n)]


def agrees(make, *layers, message=False, rngs=None):
    """Compare `fit` with the same steps op by op.

    make: () -> (loss, report, what they store).
    """
    made = []
    for run in (fit, eager_fit):
        loss, report, stored = make()
        trainer, st = small(*layers, optimizer=tp.optim.adam(0.1))
        with contextlib.nullcontext() if message or run is eager_fit else programs():
            losses, st = run(trainer, st, batches(), loss, report=report, rngs=rngs)
        made.append((losses, [a.tobytes() for a in arrays(st)], [np.array(v).tobytes() for v in stored]))
    assert made[0] == made[1]


def square(out, y):
    """A loss of a user's."""
    return (((out - y) * 0.5) ** 2).mean()


def own_layer(apply):
    """Return a layer with a parameter, which a user's function applies."""
    return tp.layer.Layer(lambda rngs, dtype: tp.layer.Vars({"w": tp.ones((3, 3))}, {}, dtype), apply)


def test_steps_with_a_users_loss_hand_their_tensors_over(steps):
    seen = []

    def loss(out, y):
        seen.append(id(out))
        return square(out, y)

    agrees(lambda: (loss, None, ()))
    assert steps == [True] * (STEPS - 2)  # the first two make a program, and what it is bound to
    assert len(set(seen[2:STEPS])) == 1


def test_steps_with_a_users_layer_hand_their_tensors_over(steps):
    layer = own_layer(lambda params, state, x, **_: (tp.tanh(x @ params["w"].T), state))
    agrees(lambda: (square, None, ()), layer)
    assert steps == [True] * (STEPS - 2)


def now_and_then(keep, period=3):
    """Return what makes a loss that stores something in every third step, and the list of what it stores."""

    def make():
        stored, count = [], itertools.count()

        def loss(out, y):
            difference = out - y
            kept = keep(out, difference) if next(count) % period == period - 1 else None
            if kept is not None:
                stored.append(kept)
            return (difference**2).mean()

        return loss, None, stored

    return make


KEEPS = {
    "a result": lambda out, difference: difference,
    "an output of the model": lambda out, difference: out,
    "a result that nothing else needs": lambda out, difference: tp.exp(out),
    "a constant of it": lambda out, difference: tp.stop_gradient(difference),
    "a transposed one": lambda out, difference: difference.T,
    "a part of several": lambda out, difference: tp.split(out, 3, axis=1)[1],
    "its sum with a number": lambda out, difference: out + 2.5,
}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_a_tensor_that_is_kept_now_and_then_stays_that_of_its_step(keep, steps):
    agrees(now_and_then(keep))
    # A step that calls another op gets a program of its own first.
    assert steps.count(False) == (4 if keep in (KEEPS["a result"], KEEPS["an output of the model"]) else 3)
    assert steps.count(True) >= 3


@tp.kernel(out=lambda x: (tp.spec(x.shape, x.dtype), tp.spec(x.shape[:1], x.dtype)))
def halves_and_sums(rows, x, half, sums):
    for i in rows:
        sums[i] = 0.0
        for j in range(x.shape[1]):
            half[i, j] = 0.5 * x[i, j]
            sums[i] += x[i, j]


halves_and_sums.defvjp(lambda g, y, x: 0.5 * g[0] + g[1][:, None])


def test_results_of_which_only_their_tuple_is_kept(steps):
    made = []
    for run in (fit, eager_fit):
        stored, count = [], itertools.count()

        def loss(out, y, stored=stored, count=count):
            pair = halves_and_sums(out)
            if next(count) % 4 == 2:
                stored.append(pair)
            return square(pair[0], y) + pair[1].mean()

        trainer, st = small()
        run(trainer, st, batches(), loss)
        made.append([np.array(part).tobytes() for pair in stored for part in pair])
    assert made[0] == made[1]
    assert len(made[0]) == 6
    assert True in steps


def test_a_tensor_from_outside_that_becomes_an_attribute(steps):
    def make():
        axes = itertools.cycle([0, 1, 1])
        return (lambda out, y: tp.square(tp.sum(out - y, tp.tensor(next(axes)))).mean()), None, ()

    agrees(make)


@pytest.mark.parametrize("reads", [False, True])
def test_products_of_a_transposed_operand(reads, steps):
    def make():
        stored = []

        def loss(out, y):
            out = out @ (out.T @ out) * 0.1
            if reads:
                stored.append(np.asarray(tp.stop_gradient(out)).tolist())
            return square(out, y)

        return loss, None, stored

    agrees(make, message=reads)


def test_products_that_share_a_prefix_with_others(steps):
    def make():
        count = itertools.count()

        def loss(out, y):
            out = tp.einsum("ij,j->ij", out @ (out.T @ out) * 0.1, tp.tensor([1.0, 2.0, 0.5]))
            return square(out, y) if next(count) < 6 else tp.abs(out - y).mean()

        return loss, None, ()

    agrees(make)


def test_a_tensor_that_is_kept_for_a_step_is_the_one_before(steps):
    def make():
        last = {}

        def loss(out, y):
            before = last.get("out")
            last["out"] = out
            return ((out - y) ** 2).mean() + (0.0 if before is None else 0.1 * before.sum())

        return loss, None, ()

    agrees(make)
    assert not any(steps)


def test_a_parameter_that_is_kept_stays_that_of_its_step(steps):
    def attempt(run):
        stored, count = [], itertools.count()

        def apply(params, state, x, **_):
            if next(count) % 4 == 3:
                stored.append(params["w"])
            return x @ params["w"], state

        trainer, st = small(own_layer(apply), optimizer=tp.optim.adam(0.1))
        run(trainer, st, batches(), square)
        return stored

    with programs():
        made = attempt(fit)
    same(made, attempt(eager_fit))
    assert True in steps
    assert steps.count(False) == 3


def test_a_tensor_with_a_weak_reference_is_not_handed_over(steps):
    references = []

    def loss(out, y):
        difference = out - y
        references.append(weakref.ref(difference))
        return (difference**2).mean()

    agrees(lambda: (loss, None, ()))
    assert not any(steps)
    assert all(reference() is None for reference in references)


def test_a_tensor_in_a_frame_of_a_generator_is_kept(steps):
    def make():
        stored, running = [], []

        def pending(out):
            yield out + 0.0
            stored.append(out * 2.0)
            yield None

        def loss(out, y):
            if running and len(running) < 4:
                next(running[-1])
            running.append(pending(out))
            return (((out if len(running) > 8 else next(running[-1])) - y) ** 2).mean()

        return loss, None, stored

    agrees(make)


def test_steps_whose_ops_change_by_turns_take_over_those_of_all(steps):
    def make():
        each = itertools.cycle(
            [square, lambda out, y: tp.abs(out - y).sum(), square, lambda out, y: out.sum()]
        )
        return (lambda out, y: next(each)(out, y)), None, ()

    agrees(make)
    assert steps.count(True) >= 5


def test_a_step_that_reads_a_value_hands_nothing_over():
    def make():
        stored, count = [], itertools.count()

        def loss(out, y):
            value = square(out, y)
            if next(count) in (5, 8):
                stored.append(float(value))
            return value

        return loss, None, stored

    agrees(make, message=True)


def test_an_error_that_a_loss_handles(steps):
    def make():
        stored = []

        def loss(out, y):
            hidden = out * 3.0
            try:
                hidden @ tp.ones((7, 7))
            except ValueError as error:
                stored.append(len(str(error)))
            return ((hidden - y) ** 2).mean()

        return loss, None, stored

    agrees(make)


def test_gradients_within_a_loss(steps):
    def loss(out, y):
        slope = tp.grad(lambda h: (h**3).sum())(out)
        return square(out, y) + 0.01 * (slope * out).mean()

    agrees(lambda: (loss, None, ()))


def test_rules_and_activations_of_ones_own_by_turns_with_library_ops(steps):
    @tp.custom_vjp
    def doubled(x):
        return x * 2.0

    doubled.defvjp(lambda x: (x * 2.0, x), lambda residual, g: (g * 3.0,))
    again = tp.checkpoint_activations(lambda x: tp.tanh(x) * 2.0)
    functions = [lambda x: x * 2.0, doubled, lambda x: tp.tanh(x) * 2.0, again, doubled, lambda x: x * 2.0]

    def make():
        each = itertools.cycle(functions)
        return (lambda out, y: square(next(each)(out) + out, y)), None, ()

    agrees(make)


def test_steps_with_random_numbers(steps):
    layer = own_layer(
        lambda params, state, x, rngs, **_: (x @ params["w"] + tp.rng.normal(rngs, (5, 3)), state)
    )
    agrees(lambda: (square, None, ()), layer, rngs=KEY)
    agrees(lambda: (square, None, ()), layer, tp.layer.dropout(0.5), rngs=KEY)


def test_a_batch_is_released_after_its_step():
    owners = []

    def loss(out, y):
        owners.append(weakref.ref(y))
        return square(out, y)

    trainer, st = small()
    data = tp.Data.of_fn(STEPS, lambda k: (X + float(k), Y + float(k)))
    trainer.fit(st, data, loss=loss, report=lambda step, value, st: None)
    alive = [reference() is not None for reference in owners]
    assert not any(alive)


def test_nothing_of_a_fit_stays_behind():
    gc.collect()
    gc.disable()
    try:
        trainer, st = small()
        fit(trainer, st, batches(), square)
        assert not any(type(o) is Reuse for o in gc.get_objects())
    finally:
        gc.enable()
