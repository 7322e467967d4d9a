"""Values that a loss or a layer reads are read in every step: no step computes with stale ones."""

import functools
import random
import time
from typing import NamedTuple

import numpy as np
import pytest

import treepie as tp

from .steps import KEY, Box, X, Y, eager_fit, fit, follows, same, small

SCALE = 1.0
CASES = {}


def case(make):
    """Register a case: make() -> (function of a tensor, change). change(phase) changes what it reads."""
    CASES[make.__name__] = make
    return make


def array(*numbers):
    """Return an array, and the function of a phase that changes its first number in place."""
    w = np.array(numbers)
    return w, lambda phase: w.__setitem__(0, numbers[0] + phase)


# ---- numbers from an array


@case
def an_element_of_an_array():
    w, change = array(2.0, 3.0)
    return lambda x: x * w[0], change


@case
def an_element_of_an_array_as_a_float():
    w, change = array(2.0, 3.0)
    return lambda x: x * float(w[0]), change


@case
def a_sum_of_an_array():
    w, change = array(2.0, 3.0)
    return lambda x: x * w.sum(), change


@case
def a_branch_on_an_array():
    w, change = array(2.0, 3.0)

    def f(x):
        if w.max() > 4:
            return x * 2.0
        return x

    return f, change


@case
def a_tensor_filled_with_an_element_of_an_array():
    w, change = array(2.0, 3.0)
    return lambda x: x * tp.full(3, w[0], dtype=x.dtype), change


@case
def an_index_out_of_an_array():
    i, change = array(0, 0)
    return lambda x: x[int(i[0])], change


@case
def bounds_out_of_an_array():
    w, change = array(0.1, 0.2)
    return lambda x: tp.clip(x, -w[0], w[1]), change


# ---- classes and their attributes


@case
def a_class_attribute():
    class Config:
        scale = 0.0

    return lambda x: x * Config.scale, lambda phase: setattr(Config, "scale", 1.0 + phase)


@case
def an_inherited_class_attribute():
    class Base:
        scale = 0.0

    class Config(Base):
        pass

    return lambda x: x * Config().scale, lambda phase: setattr(Base, "scale", 1.0 + phase)


@case
def an_attribute_of_a_nested_class():
    class Config:
        class Loss:
            scale = 0.0

    return lambda x: x * Config.Loss.scale, lambda phase: setattr(Config.Loss, "scale", 1.0 + phase)


@case
def a_tensor_in_a_class_attribute():
    class Config:
        scale = tp.zeros(3)

    return lambda x: x * Config.scale, lambda phase: setattr(Config, "scale", tp.full(3, 1.0 + phase))


@case
def an_attribute_by_a_computed_name():
    class Config:
        scale = 0.0

    name = "scale"
    return lambda x: x * getattr(Config, name), lambda phase: setattr(Config, name, 1.0 + phase)


@case
def a_global_by_its_name():
    def change(phase):
        globals()["SCALE"] = 1.0 + phase

    return lambda x: x * globals()["SCALE"], change


@case
def an_attribute_of_a_function():
    def f(x):
        return x * f.scale

    return f, lambda phase: setattr(f, "scale", 1.0 + phase)


@case
def an_attribute_of_a_list():
    class Rows(list):
        scale = 0.0

    rows = Rows([1, 2])
    return lambda x: x * rows.scale, lambda phase: setattr(rows, "scale", 1.0 + phase)


@case
def an_attribute_of_a_dict():
    class Options(dict):
        scale = 0.0

    options = Options(a=1)
    return lambda x: x * options.scale, lambda phase: setattr(options, "scale", 1.0 + phase)


@case
def a_property_of_a_named_tuple():
    box = Box()

    class Pair(NamedTuple):
        low: float

        @property
        def high(self):
            return self.low + box.width

    pair = Pair(1.0)
    return lambda x: x * pair.high, lambda phase: setattr(box, "width", 1.0 + phase)


@case
def a_cached_property():
    box = Box()

    class Config:
        @functools.cached_property
        def scale(self):
            return box.scale

    return lambda x: x * Config().scale, lambda phase: setattr(box, "scale", 1.0 + phase)


@case
def a_descriptor():
    box = Box()

    class Scale:
        def __get__(self, owner, kind):
            return box.scale

    class Config:
        scale = Scale()

    config = Config()
    return lambda x: x * config.scale, lambda phase: setattr(box, "scale", 1.0 + phase)


@case
def a_bound_method_of_a_dict():
    config = {}
    get = config.get
    return lambda x: x * get("scale"), lambda phase: config.update(scale=1.0 + phase)


# ---- rare or spontaneous changes


@case
def a_rare_event():
    random.seed(13)  # the first draws below 0.2 are the 5th and the 7th
    return lambda x: x * (10.0 if random.random() < 0.2 else 1.0), lambda phase: None


@case
def stochastic_depth():
    random.seed(13)
    return lambda x: x if random.random() < 0.2 else x + tp.tanh(x), lambda phase: None


@case
def a_counter_in_a_class_attribute():
    class Calls:
        n = 0

    def f(x):
        Calls.n += 1
        return x * (10.0 if Calls.n > 4 else 1.0)

    return f, lambda phase: None


@case
def a_counter_in_an_attribute():
    box = Box(n=0)

    def f(x):
        box.n += 1
        return x * (0.5 * box.n)

    return f, lambda phase: None


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("surface", ["fit", "predict"])
def test_python_reads_the_current_value(surface, name):
    follows(surface, CASES[name])


@pytest.mark.parametrize(
    "name",
    [
        "an_element_of_an_array_as_a_float",
        "a_branch_on_an_array",
        "a_class_attribute",
        "a_descriptor",
        "a_bound_method_of_a_dict",
        "a_rare_event",
        "a_counter_in_a_class_attribute",
    ],
)
@pytest.mark.parametrize("surface", ["step", "evaluate"])
def test_single_steps_and_scores_read_the_current_value(surface, name):
    follows(surface, CASES[name])


@pytest.mark.parametrize("surface", ["fit", "predict"])
def test_a_deadline_passes(surface, monkeypatch):
    def make():
        def change(phase):
            monkeypatch.setattr(time, "time", lambda: phase)

        return lambda x: x * (10.0 if time.time() > 0 else 1.0), change

    follows(surface, make)


def test_steps_with_clipping_and_dropout_read_the_current_value():
    class Config:
        scale = 1.0

    def report(step, loss, st):
        Config.scale = 1.0 + max(0, step - 4)

    def loss(out, y):
        return tp.loss.mse(out * Config.scale, y)

    results = []
    for run in (fit, eager_fit):
        Config.scale = 1.0
        trainer, st = small(tp.layer.dropout(0.3), optimizer=tp.optim.adam(0.1))
        results.append(run(trainer, st, [(X, Y)] * 8, loss, rngs=KEY, report=report, clip_norm=0.5))
    (losses, st), (want_losses, want) = results
    assert losses == want_losses
    same(st, want)


def test_the_eager_steps_of_these_tests_are_those_of_fit():
    batches = [(X, Y)] * 3 + [(X[:3], Y[:3])]
    layers = tp.layer.batch_norm(3), tp.layer.dropout(0.3)
    results = []
    for run in (fit, eager_fit):
        trainer, st = small(*layers, optimizer=tp.optim.adamw(0.1))
        results.append(run(trainer, st, batches, tp.loss.mse, rngs=KEY, clip_norm=0.5))
    (losses, st), (want_losses, want) = results
    assert losses == want_losses
    assert st.step == want.step == st.opt_state.count == 4
    same(st, want)
