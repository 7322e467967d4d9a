"""Cases that once made steps run op by op, or slower and slower: they are correct, and run as programs."""

import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

from .steps import KEY, Box, X, Y, arrays, eager_fit, fit, follows, programs, same, small

CASES = {}


def case(make):
    """Register a case: make() -> (function of a tensor, change). change(phase) changes what it reads."""
    CASES[make.__name__] = make
    return make


@case
def a_row_of_an_array_that_is_made_inside():
    y = np.array([0, 1, 2, 1, 0])
    return lambda x: x * np.eye(3, dtype="f4")[y], lambda phase: y.__setitem__(0, phase % 3)


@case
def an_array_computed_from_one_outside():
    w = np.ones(3, "f4")
    return lambda x: x * (w * 2), lambda phase: w.__setitem__(slice(None), 1 + phase)


@case
def a_deque():
    last = deque(maxlen=2)
    return lambda x: x * last[0], lambda phase: last.extend([1.0 + phase, 0.0])


@case
def a_path():
    box = Box()

    def change(phase):
        box.path = Path("data", *map(str, range(phase)))

    return lambda x: x * float(len(box.path.parts)), change


@case
def a_range():
    box = Box()
    f = lambda x: sum((x * float(k) for k in box.steps), x)
    return f, lambda phase: setattr(box, "steps", range(phase))


@case
def a_generator_of_numpy():
    rng = np.random.default_rng(0)
    return lambda x: x * rng.normal(), lambda phase: None


@case
def an_array_that_a_generator_of_numpy_draws():
    rng = np.random.default_rng(0)
    return lambda x: x + rng.standard_normal((5, 3), "f4"), lambda phase: None


@case
def a_generator():
    numbers = iter(float(k % 4) for k in range(100))
    return lambda x: x * next(numbers), lambda phase: None


@case
def the_values_of_a_dict():
    weights = {"a": 1.0}
    values = weights.values()
    return lambda x: x * sum(values), lambda phase: weights.update(b=0.5 * phase)


@case
def the_items_of_a_dict():
    weights = {"a": 1.0}
    items = weights.items()
    return lambda x: sum((x * w for _, w in items), x), lambda phase: weights.update(b=0.5 * phase)


@case
def an_object_with_slots():
    class Config:
        __slots__ = ("scale",)

    config = Config()
    return lambda x: x * config.scale, lambda phase: setattr(config, "scale", 1.0 + phase)


@case
def a_long_list():
    numbers = list(range(10_000))
    return lambda x: x * numbers[-1], lambda phase: numbers.__setitem__(-1, 1.0 + phase)


@case
def a_large_array():
    rows = np.zeros((1 << 20, 5), "f4")
    return lambda x: x * rows[0, :3], lambda phase: rows.__setitem__(0, 1.0 + phase)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("surface", ["fit", "predict"])
def test_steps_that_read_from_outside_run_as_programs(surface, name):
    follows(surface, CASES[name])


MANY = 70


def compare(loss, batches, change=lambda k: None, layers=()):
    """Check that `fit` runs as programs with the bits of eager steps. change(k) is called before step k."""

    def attempt(run):
        change(0)
        losses, st = run(*small(*layers), batches, loss, report=lambda step, value, st: change(step))
        return [np.array(losses), *arrays(st)]

    with programs():
        result = attempt(fit)
    same(result, attempt(eager_fit))


@pytest.mark.parametrize("what", ["float", "index", "count", "epoch", "array"])
def test_a_number_that_changes_in_each_of_many_steps(what):
    box = Box(weight=0.0, k=0, n=0, epoch=0, array=np.zeros(3, "f4"))
    table = tp.tensor(np.random.default_rng(0).standard_normal((MANY + 1, 5, 3)), tp.float32)

    def change(k):
        box.weight, box.k, box.epoch, box.array = 1 / (1 + k), k, k // 2, np.full(3, 1 / (1 + k), "f4")
        box.n = 0 if k == 0 else box.n

    def count(out, y):
        box.n += 1
        return tp.loss.mse(out, y) / box.n

    losses = {
        "float": lambda out, y: tp.loss.mse(out, y) * box.weight,
        "index": lambda out, y: tp.loss.mse(out, table[box.k]),
        "count": count,
        "epoch": lambda out, y: tp.loss.mse(out, y) * 0.9**box.epoch,
        "array": lambda out, y: tp.loss.mse(out * box.array, y),
    }
    compare(losses[what], [(X, Y)] * MANY, change)


def test_elements_that_each_have_a_loss():
    """Closures over a number, an array and a tensor, which differ in each of many elements."""

    def loss(k):
        weight, array, target = 1 / (1 + k), np.full(3, 1 / (1 + k), "f4"), Y / (1.0 + k)
        return lambda out: tp.loss.mse(out * array, target) * weight

    trainer, first = small()
    history = tp.History()
    with programs():
        data = tp.Data.of_fn(MANY, lambda k: (X, loss(k)))
        st = trainer.fit(first, data, history=history)
    batches = [(X, loss(k)) for k in range(MANY)]
    losses, want = eager_fit(trainer, first, batches, lambda out, loss: loss(out))
    assert [value for _, value in history.steps] == losses
    same(st, want)


def test_more_than_64_shapes_of_batches():
    rows = np.random.default_rng(0).standard_normal((MANY, 4), "f4")
    batches = [(tp.tensor(rows[:n]), tp.tensor(rows[:n, :3])) for n in range(1, MANY + 1)]
    compare(tp.loss.mse, batches)


@pytest.mark.parametrize("surface", ["predict", "jit"])
def test_more_than_64_shapes_of_inputs(surface):
    trainer, st = small()
    jitted = tp.jit(lambda st, x: trainer.model.apply(st.vars, x)[0], fallback=True)
    run = trainer.predict if surface == "predict" else jitted
    rows = np.random.default_rng(0).standard_normal((MANY, 4), "f4")
    with programs():
        for n in (*range(1, MANY + 1), MANY, 1):
            x = tp.tensor(rows[:n])
            same(run(st, x), trainer.model.apply(st.vars, x)[0])


def test_shapes_that_do_not_repeat_hold_no_memory():
    """Traces without a program yet, each of which once held a copy of the parameters: 550 MB in all."""
    width, n = 800, 24
    trainer = tp.Trainer(tp.layer.linear(width, width), tp.optim.sgd(0.1))
    batches = [(np.ones((k, width), "f4"), np.ones((k, width), "f4")) for k in range(1, n + 1)]
    st = trainer.init(KEY)
    tracemalloc.start()
    try:
        st = trainer.fit(st, tp.Data.of_array(batches), loss=tp.loss.mse)
        memory, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    parameters = 4 * width * (width + 1)
    assert memory < n / 2 * parameters


def test_hundreds_of_functions_composed_into_one():
    f = lambda x: x * 0.5

    def after(f, shift):
        return lambda x: f(x) + shift if shift else f(x)

    for k in range(450):
        f = after(f, k % 50 == 0)
    compare(lambda out, y: tp.loss.mse(f(out), y), [(X, Y)] * 6)


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_batch_of_nan_that_is_skipped_leaves_later_steps_programs(place):
    batches = [(X * (1.0 + 0.1 * k), Y) for k in range(6)]
    bad = [*batches[:place], (X.at[0, 0].set(np.nan), Y), *batches[place:]]
    trainer, first = small(tp.layer.silu())
    with programs():
        with pytest.warns(RuntimeWarning, match=f"step {place + 1}, which is skipped") as caught:
            _, st = fit(trainer, first, bad, tp.loss.mse, on_nonfinite="skip")
        assert [w.filename for w in caught] == [fit.__code__.co_filename]
        again = fit(trainer, st, batches, tp.loss.mse)[1]
    want = eager_fit(trainer, first, batches, tp.loss.mse)[1]
    same(st, want)
    same(again, eager_fit(trainer, want, batches, tp.loss.mse)[1])
