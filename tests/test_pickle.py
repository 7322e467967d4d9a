"""pickle, copy and multiprocessing give what computes the same bits, or say which function is in the way."""

import copy
import functools
import inspect
import multiprocessing
import operator
import pickle
import subprocess
import sys

import numpy as np
import pytest

import treepie as tp

from . import pickled
from .test_accumulate import ACCUMULATORS
from .test_layers import LAYERS, example
from .test_optim import GRADS, PARAMS, RULES, tensors

KEY = tp.rng.key(5)
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
schedule = tp.optim.schedule


def round_trips(x):
    return [pickle.loads(pickle.dumps(x, protocol)) for protocol in PROTOCOLS]


def bits(tree):
    """The dtype, shape and bytes of each leaf of a tree."""
    return [
        (path, t.dtype, t.shape, np.asarray(t).tobytes()) for path, t in tp.ptree.flatten_with_paths(tree)
    ]


# ---- layers
@tp.custom_vjp
def squared(x):
    return x * x


squared.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))


class Scale:
    """A user's layer whose functions are methods of what holds it."""

    def __init__(self, size):
        self.size, self.layer = size, tp.layer.Layer(self.init, self.apply, "scale")

    def init(self, rngs, dtype):
        return tp.layer.Vars({"w": tp.rng.normal(rngs, (self.size,), dtype)}, {}, dtype)

    def apply(self, params, state, x, **given):
        return x * params["w"], state


class Shifted(tp.layer.Layer):
    def __init__(self, by):
        super().__init__(pickled.init, self.run, "shifted")
        self.by = by

    def run(self, params, state, x, **given):
        return x + self.by, state


SQUARE = tp.layer.linear(5, 5)
MODELS = {name: row for name, row in LAYERS.items() if name != "lambda"} | {
    "lambda_": (tp.layer.lambda_(pickled.double), (4, 5)),
    "lambda_ of an op": (tp.layer.lambda_(tp.tanh), (4, 5)),
    "lambda_ of a rule": (tp.layer.lambda_(squared), (4, 5)),
    "lambda_ of a partial": (tp.layer.lambda_(functools.partial(operator.mul, 3.0)), (4, 5)),
    "initializers": (
        tp.layer.linear(
            5,
            3,
            weight_init=tp.init.variance_scaling(2.0, mode="fan_out", distribution="normal"),
            bias_init=tp.init.constant(0.5),
        ),
        (4, 5),
    ),
    "a user's": (tp.layer.Layer(init=pickled.init, apply=pickled.apply), (4, 6)),
    "a user's methods": (Scale(5).layer, (4, 5)),
    "a user's class": (Shifted(3.0), (4, 5)),
    "an iterator": (tp.layer.sequential(tp.layer.linear(5, 5) for _ in range(3)), (4, 5)),
    "nested": (tp.layer.residual(tp.layer.compose(tp.layer.relu(), SQUARE)), (4, 5)),
    "repeated": (tp.layer.sequential([SQUARE, SQUARE]), (4, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers(name):
    layer, x = MODELS[name]
    x = example(x, np.random.default_rng(1))

    def made(layer):
        vars = layer.init(KEY)
        y, after = layer.apply(vars, x, training=True, rngs=KEY)
        return bits([vars.params, vars.state, y, after.state])

    want = made(layer)
    for again in round_trips(layer):
        assert again is not layer
        assert (type(again), again.name) == (type(layer), layer.name)
        assert made(again) == want
        assert pickle.dumps(again) == pickle.dumps(layer)
    assert copy.copy(layer) is copy.deepcopy(layer) is layer


def test_a_model_keeps_the_layers_that_it_was_given():
    parts = [tp.layer.linear(2, 3), tp.layer.relu()]
    model = tp.layer.sequential(parts)
    parts.append(tp.layer.linear(3, 1))
    vars = pickle.loads(pickle.dumps(model)).init(KEY)
    assert bits(vars.params) == bits(model.init(KEY).params)


@pytest.mark.parametrize("name", [n for n in tp.layer.__all__ if n[0].islower()])
def test_signatures_and_docstrings_are_those_of_the_constructors(name):
    function = getattr(tp.layer, name)
    assert function.__module__.startswith("treepie.layer.")
    assert (function.__name__, bool(function.__doc__)) == (name, True)
    assert "args" not in inspect.signature(function).parameters


# ---- initializers and schedules
INITIALIZERS = {
    "zeros": tp.init.zeros,
    "ones": tp.init.ones,
    "constant": tp.init.constant(0.3),
    "uniform": tp.init.uniform(0.2),
    "normal": tp.init.normal(stddev=0.2),
    "variance_scaling": tp.init.variance_scaling(2.0, "fan_in", "normal", in_axis=0),
    **{
        f"{fan}_{kind}": getattr(tp.init, f"{fan}_{kind}")
        for fan in ("glorot", "he", "lecun")
        for kind in ("uniform", "normal")
    },
}
SCHEDULES = {
    "constant": schedule.constant(0.1),
    "cosine_decay": schedule.cosine_decay(0.1, 10, alpha=0.2),
    "warmup_linear": schedule.warmup_linear(0.0, 0.1, 5),
    "warmup_cosine": schedule.warmup_cosine(0.0, 0.1, 5),
    "warmup_cosine_decay": schedule.warmup_cosine_decay(0.0, 0.1, 5, decay_steps=15),
    "cosine_restarts": schedule.cosine_restarts(0.1, 4, growth=1.5, decay=0.5, alpha=0.1),
    "coslog": schedule.coslog(0.1, 18),
    "one_cycle": schedule.one_cycle(0.1, 18),
    "piecewise_constant": schedule.piecewise_constant([0.1, 0.2, 0.05], [4, 9]),
    "exponential_decay": schedule.exponential_decay(0.1, 0.5, decay_steps=7),
    "join": schedule.join(
        [schedule.warmup_linear(0.0, 0.1, 5), pickled.halved, schedule.constant(0.3)], [5, 9]
    ),
}


def functions_of(module):
    """The public functions that a module defines, and what its constructors returned to it."""
    return {
        name
        for name, x in vars(module).items()
        if not name.startswith("_")
        and ((inspect.isfunction(x) and x.__module__.startswith(module.__name__)) or hasattr(x, "_call"))
    }


def test_the_tables_are_complete():
    assert set(INITIALIZERS) == functions_of(tp.init)
    assert set(SCHEDULES) == functions_of(schedule)
    tools = {"apply_updates", "clip_by_global_norm", "ema_params", "global_norm"}
    # tests/test_optim_compose.py has these, and LAMB.
    tools |= {"add_decayed_weights", "chain", "clip_norm", "clip_value", "ema", "frozen", "lamb", "partition"}
    assert {name.split(",")[0] for name in RULES} - {"momentum", "nesterov"} == functions_of(tp.optim) - tools


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers(name):
    initializer = INITIALIZERS[name]
    for again in round_trips(initializer):
        assert bits([again(KEY, (5, 7), tp.float64)]) == bits([initializer(KEY, (5, 7), tp.float64)])
    assert copy.copy(initializer) is copy.deepcopy(initializer) is initializer


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    rate = SCHEDULES[name]
    for again in round_trips(rate):
        assert [again(step) for step in range(20)] == [rate(step) for step in range(20)]
    assert copy.copy(rate) is copy.deepcopy(rate) is rate
    assert rate.__name__ == name
    assert list(inspect.signature(rate).parameters) == ["step"]


def test_what_constructors_return_shows_the_call():
    assert repr(SCHEDULES["cosine_decay"]) == "cosine_decay(0.1, 10, alpha=0.2)"
    assert repr(tp.init.he_normal) == "variance_scaling(2.0, 'fan_in', 'truncated_normal')"
    assert inspect.signature(tp.init.constant(1.0)).parameters["dtype"].default == tp.float32


# ---- optimizers and the states of training
@pytest.mark.parametrize("name", RULES)
def test_optimizers(name):
    opt, _ = RULES[name]
    params = tensors(PARAMS)

    def run(opt, state):
        values, made = params, []
        for grads in GRADS:
            updates, _ = opt.step(state, values, grads)
            values, state = opt.update(state, values, grads)
            made += [updates, values, list(state.moments)]
        return bits(made), state

    want, after = run(opt, opt.init(params))
    further = run(opt, after)[0]
    for again, state in round_trips((opt, after)):
        assert run(again, again.init(params))[0] == want
        assert (state.count, bits(list(state.moments))) == (after.count, bits(list(after.moments)))
        assert run(again, state)[0] == run(opt, state)[0] == further
    assert copy.copy(opt) is copy.deepcopy(opt) is opt


def batches():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype("f4"), rng.integers(0, 6, 40)
    return tp.Data.prepare((x, y), batch_size=8)


def small():
    """A model with a state, dropout, and all that a trainer may hold."""
    model = tp.layer.sequential(
        [tp.layer.linear(6, 5), tp.layer.batch_norm(5), tp.layer.dropout(0.3), tp.layer.linear(5, 6)]
    )
    return tp.Trainer(model, tp.optim.adam(schedule.cosine_decay(0.1, 20)))


def fitted(trainer, st, report=None, history=None):
    return trainer.fit(
        st, batches(), rngs=KEY, loss=tp.loss.cross_entropy_sparse, report=report, history=history
    )


def content(st):
    return bits([st.vars.params, st.vars.state, list(st.opt_state.moments)]), st.step, st.opt_state.count


TWICE = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("way", TWICE)
def test_trainers_and_their_states(way):
    trainer = small()
    st = fitted(trainer, trainer.init(tp.rng.key(1)))  # has programs by now
    want = content(fitted(trainer, st))
    again, state = TWICE[way](trainer), TWICE[way](st)
    assert type(again) is tp.Trainer
    assert again.steps is not trainer.steps
    assert again.predictor is not trainer.predictor
    assert content(state) == content(st)
    assert content(fitted(again, state)) == want
    assert content(fitted(trainer, state)) == content(fitted(again, st)) == want
    x = np.ones((3, 6), np.float32)
    assert bits([again.predict(state, x)]) == bits([trainer.predict(st, x)])


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_state_that_is_kept_during_training(way):
    """Neither further steps change it, nor steps from it the training."""
    trainer, kept = small(), {}

    def report(step, loss, st):
        if step == 3:
            kept["best"], kept["then"] = TWICE[way](st), content(st)
            for _ in range(3):
                trainer.step(kept["best"], np.ones((8, 6)), lambda out: out.mean(), rngs=KEY)

    st = fitted(trainer, trainer.init(tp.rng.key(1)), report)
    plain = fitted(trainer, trainer.init(tp.rng.key(1)))
    assert content(st) == content(plain) != kept["then"]
    assert content(kept["best"]) == kept["then"]
    after = content(st)
    fitted(trainer, kept["best"])
    kept["best"].vars.params[0]["weight"] = None
    assert content(st) == after


def test_a_copied_state_runs_the_same_programs():
    """Its layout, which programs are told apart by, is the same."""
    st = small().init(KEY)
    assert copy.deepcopy(st).opt_state.layout is st.opt_state.layout


def test_contexts_and_vars():
    ctx = tp.Context().set("attention_mask", [[1, 1, 0]])
    vars = small().model.init(KEY, tp.float64)
    for same, others in round_trips((ctx, vars)):
        assert bits(dict(same.values)) == bits(ctx.values)
        assert bits(others.params) == bits(vars.params)
        assert others.dtype == tp.float64


def test_histories():
    trainer, history = small(), tp.History()
    st = fitted(trainer, trainer.init(KEY), history=history)
    kept = vars(copy.deepcopy(history))
    for again in [copy.deepcopy(history), *round_trips(history)]:
        assert vars(again) == vars(history)
        fitted(trainer, st, history=again)
        assert (len(again.steps), len(again.epochs)) == (10, 2)
        assert vars(history) == kept


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators(name):
    make, _, x, y, _ = ACCUMULATORS[name]
    metric = make()
    metric.update(x[:40], y[:40])
    copies = [copy.deepcopy(metric), *round_trips(metric)]
    metric.update(x[40:], y[40:])
    for again in copies:
        again.update(x[40:], y[40:])
        np.testing.assert_array_equal(again.compute(), metric.compute())


# ---- tensors
@pytest.mark.parametrize("dtype", [tp.float32, tp.float64, tp.int32, tp.int64, tp.bool])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 1, 3), (300, 40)])
def test_tensors(dtype, shape):
    x = tp.tensor(np.random.default_rng(1).normal(0, 5, shape).astype(dtype))
    for again in [*round_trips(x), *round_trips(x.reshape(-1)[: x.size // 2])]:
        part = x if again.shape == x.shape else x.reshape(-1)[: x.size // 2]
        assert bits([again]) == bits([part])
        assert again.array.dtype is np.dtype(dtype.name)  # what ops compare dtypes by first
    assert copy.copy(x) is x
    assert bits([copy.deepcopy(x)]) == bits([x])
    assert x.size == 0 or not np.shares_memory(copy.deepcopy(x).array, x.array)


def test_a_tensor_that_was_used_takes_no_address_along():
    x = tp.arange(1000, dtype=tp.float32)
    want = bits([x * 2])  # an op asks for the address
    data, dead = pickle.dumps(x), x.array
    dead[:] = np.nan
    assert bits([pickle.loads(data) * 2]) == want


def test_memory_that_is_passed_apart_is_not_shared():
    x, parts = tp.arange(5), []
    data = pickle.dumps(x, 5, buffer_callback=parts.append)
    assert all(part.raw().readonly for part in parts)
    memory = [bytearray(part.raw()) for part in parts]
    again = pickle.loads(data, buffers=memory)
    for part in memory:
        part[:] = bytes(len(part))
    assert again.tolist() == [0, 1, 2, 3, 4]


def test_within_a_gradient_a_copy_keeps_it_and_a_pickle_is_a_constant():
    def loss(way):
        return lambda x: (TWICE[way](x) * x).sum()

    x = tp.tensor([1.0, 2.0])
    assert [tp.grad(loss(way))(x).tolist() for way in TWICE] == [[2, 4], [2, 4], [1, 2]]


def test_a_program_does_not_repeat_a_pickle():
    step = tp.jit(lambda x: (pickle.dumps(x), x * 2)[1])
    with pytest.raises(ValueError, match="a value is read"):
        for _ in range(3):
            step(tp.ones(3))


# ---- other processes
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_training_goes_on_in_another_process(method):
    command = [sys.executable, pickled.__file__, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("same bits\n", 0), done.stderr
