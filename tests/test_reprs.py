"""Reprs: they say what a person wants to know, and none shows an address."""

import copy
import doctest
import importlib
import inspect
import pkgutil
import types

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)
LAYER, OPTIM, METRIC = tp.layer, tp.optim, tp.metric
MODEL = LAYER.sequential([LAYER.linear(3, 4), LAYER.relu(), LAYER.linear(4, 2, bias=False)])


def double(x):
    return 2 * x


def shown(x):
    """Return a repr, after checking what holds of all of them."""
    text = repr(x)
    assert " at 0x" not in text
    if not isinstance(x, tp.Tensor):  # which is as long as an array of NumPy's
        assert text.count("\n") < 20
        assert len(text) < 2000
    return text


# ---- reprs
CONSTRUCTED = {
    "adam(lr=0.001)": OPTIM.adam(1e-3),
    "adam(lr=0.1, eps=1e-06)": OPTIM.adam(0.1, b1=0.9, eps=1e-6),
    "sgd(lr=cosine_decay(0.1, 10, alpha=0.2), momentum=0.9)": OPTIM.sgd(
        OPTIM.schedule.cosine_decay(0.1, 10, 0.2), momentum=0.9
    ),
    "adamw(lr=0.5, mask=double)": OPTIM.adamw(np.float64(0.5), mask=double),
    "join([constant(0.1), constant(0.2)], [3])": OPTIM.schedule.join(
        [OPTIM.schedule.constant(0.1), OPTIM.schedule.constant(0.2)], [3]
    ),
    "linear(3, 4)": LAYER.linear(3, 4),
    "linear(3, 4, bias=False)": LAYER.linear(3, 4, bias=False),
    "linear(3, 4, weight_init=normal())": LAYER.linear(3, 4, weight_init=tp.init.normal(0.01)),
    "linear(3, 4, weight_init=ones)": LAYER.linear(3, 4, weight_init=tp.init.ones),
    "conv2d(1, 16, kernel_size=(5, 5))": LAYER.conv2d(1, 16, kernel_size=(5, 5)),
    "lambda_(double)": LAYER.lambda_(double),
    "lambda_(<lambda>)": LAYER.lambda_(lambda x: x),
    "sequential([linear(3, 4), relu(), linear(4, 2, bias=False)])": MODEL,
    "residual(linear(2, 2))": LAYER.residual(LAYER.linear(2, 2)),
    "Layer(mine)": LAYER.Layer(MODEL._init, MODEL._apply, "mine"),
    "Trainer(linear(1, 2), adam(lr=0.001))": tp.Trainer(LAYER.linear(1, 2), OPTIM.adam(1e-3)),
    "Vars(params={'weight': (3, 4), 'bias': (4,)}, state={}, dtype=float32)": LAYER.linear(3, 4).init(KEY),
    "Context(mask=int32 (2,), scale=float32 ())": tp.Context().set("mask", [1, 0]).set("scale", 1.0),
    "OptState(optimizer=adam, count=0, moments=2)": OPTIM.adam(0.1).init({"w": tp.ones(3)}),
    "Communicator(size=1, rank=0)": tp.distributed.world(),
    "Local(2)": tp.distributed.Local(2),
    "early_stopping('f1', patience=3); no score yet": tp.callback.early_stopping("f1", 3),
    "best('loss', 'run'); no score yet": tp.callback.best("loss", "run"),
    "reduce_on_plateau('loss', factor=0.1, patience=10); rates times 1": tp.callback.reduce_on_plateau(),
    "ema(0.99)": tp.callback.ema(0.99),
    "csv('scores.csv')": tp.callback.csv("scores.csv"),
    "LearningRates(suggestion=0.1, 2 rates from 0.1 to 1)": tp.callback.LearningRates(
        [0.1, 1.0], [2.0, 1.0], 0.1
    ),
    "custom_vjp(double)": tp.custom_vjp(double),
    "jit(double)": tp.jit(double),
    "Op(exp)": tp.exp.op,
    "History(epochs=0, steps=0)": tp.History(),
    "Tracker()": METRIC.Tracker(),
}


@pytest.mark.parametrize("text", CONSTRUCTED)
def test_repr(text):
    assert shown(CONSTRUCTED[text]) == text


def test_long_values_are_cut():
    deep = LAYER.sequential([LAYER.sequential([LAYER.linear(3, 3)] * 20)] * 20)
    assert len(shown(deep)) <= 200
    assert shown(LAYER.sequential([LAYER.relu()] * 9)) == f"sequential([{'relu(), ' * 6}..., relu()])"
    large = MODEL.init(KEY, tp.float64)
    many = LAYER.Vars({f"layer{k}": large.params for k in range(9)}, {}, large.dtype)
    assert shown(many) == "Vars(params=<27 tensors of 216 elements>, state={}, dtype=float64)"
    assert shown(tp.Data.of_array(list(range(10**6)))).startswith(
        "Data(of_array([0, 1, 2, 3, 4, 5, ..., 999999]);"
    )


X, Y = tp.zeros((10, 3)), np.zeros(10, np.int32)


def pipelines():
    prepared = "prepare((float32 (10, 3), int32 (10,)), batch_size=4"
    return {
        "of_array([1, 2]); 0 of 2 elements read": tp.Data.of_array([1, 2]),
        "of_tensor(float32 (10, 3)).batch(4); 0 of 3 elements read": tp.Data.of_tensor(X).batch(4),
        "of_tensors((float32 (10, 3),)).take(1); 0 of 1 element read": tp.Data.of_tensors((X,)).take(1),
        "of_fn(3, fn=double).map(<lambda>).prefetch(); 0 of 3 elements read": tp.Data.of_fn(3, double)
        .map(lambda x: x)
        .prefetch(),
        "repeat(3, value=0.5).shuffle(int64 (2,)); 0 of 3 elements read": tp.Data.repeat(3, 0.5).shuffle(KEY),
        f"{prepared}, shuffle=int64 (2,)); 0 of 3 elements read": tp.Data.prepare((X, Y), 4, shuffle=KEY),
        f"{prepared}, drop_last=True); 0 of 2 elements read": tp.Data.prepare((X, Y), 4, drop_last=True),
        f"{prepared}).shard(Communicator(size=1, rank=0)); 0 of 3 elements read": tp.Data.prepare(
            (X, Y), 4
        ).shard(tp.distributed.world()),
        "0 of 3 elements read": tp.Data(3, lambda e, k: k),
    }


@pytest.mark.parametrize("text", pipelines())
def test_repr_of_data(text):
    data = pipelines()[text]
    assert shown(data) == f"Data({text})"
    next(iter(data))
    assert "1 of " in shown(data)


def test_repr_of_data_computes_no_element():
    def fail(k):
        raise AssertionError

    assert (
        shown(tp.Data.of_fn(3, fail).map(fail)) == "Data(of_fn(3, fn=fail).map(fail); 0 of 3 elements read)"
    )


def test_repr_of_metrics():
    assert shown(METRIC.Accuracy()) == "Accuracy: no score yet"
    assert shown(METRIC.Mean(double)) == "Mean(fn=double): no score yet"
    assert shown(METRIC.AUC()) == "AUC: no score yet"
    f1, matrix, mean = METRIC.F1("micro"), METRIC.ConfusionMatrix(), METRIC.Mean()
    for metric in (f1, matrix):
        metric.update([[0.1, 0.9], [0.8, 0.2], [0.8, 0.2]], [1, 1, 0])
    mean.update([1.0, 2.0])
    assert shown(f1) == "F1(average='micro'): 0.6667"
    assert shown(matrix) == "ConfusionMatrix: 2 classes, 3 examples"
    assert shown(mean) == "Mean: 1.5"
    tracker = METRIC.Tracker()
    tracker.observe("loss", 0.12345)
    assert shown(tracker) == "Tracker(loss=0.1235)"


def test_a_metric_of_a_users_own_shows_its_score_or_none():
    class Ratio(METRIC.Metric):
        a = b = 0

        def update(self, pred, target):
            self.a, self.b = self.a + 1, self.b + 2

        def compute(self):
            return self.a / self.b

        def merge(self, other):
            pass

        def reset(self):
            pass

    ratio = Ratio()
    assert shown(ratio) == "Ratio: no score yet"
    ratio.update(0, 0)
    assert shown(ratio) == "Ratio: 0.5"


def fitted():
    """Return a trainer, a state after two steps of which nothing was read, and the history."""
    trainer, history = tp.Trainer(LAYER.linear(3, 4), OPTIM.adam(1e-3)), tp.History()
    data = tp.Data.prepare((X, Y), batch_size=5)
    metrics = {"accuracy": METRIC.Accuracy()}
    scored = tp.Data.prepare((X, Y), batch_size=5), metrics
    st = trainer.init(rngs=KEY)
    st = trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, history=history, validate=scored)
    return trainer, st, history


def test_repr_of_a_state_builds_no_trees():
    trainer, st, _ = fitted()
    text = "TrainState(step=2, parameters=16, optimizer=adam, dtype=float32)"
    assert shown(st) == text
    assert "vars" not in vars(st)
    assert st.step == 2
    assert shown(st) == text == shown(copy.deepcopy(st))
    texts = []
    data = tp.Data.prepare((X, Y), batch_size=5)
    loss = tp.loss.cross_entropy_sparse
    trainer.fit(st, data, loss=loss, report=lambda step, loss, st: texts.append(shown(st)))
    assert texts == [text.replace("step=2", f"step={k}") for k in (3, 4)]


def test_repr_of_a_state_of_a_users_own_and_in_a_program():
    vars = MODEL.init(KEY)
    optimizer = OPTIM.sgd(0.1)
    st = tp.Trainer(MODEL, optimizer).make_state(vars)
    assert shown(st) == "TrainState(step=0, parameters=24, optimizer=sgd, dtype=float32)"
    texts = []

    def step(st, x):
        texts.append((shown(st.vars), shown(st.opt_state)))
        return x * 2.0

    tp.jit(step)(st, X)
    assert texts[0][0].startswith("Vars(params=[{'weight': (3, 4)")
    assert texts[0][1] == "OptState(optimizer=sgd, count=traced, moments=0)"


def test_repr_of_a_history():
    _, _, history = fitted()
    assert shown(history).startswith("History(epochs=1, steps=2, loss=1.385, accuracy=")
    history.epochs[-1]["matrix"] = tp.zeros((3, 3))
    assert "matrix=float32 (3, 3)" in shown(history)


PACKAGES = (
    "checkpoint",
    "data",
    "distributed",
    "init",
    "layer",
    "loss",
    "machine",
    "metric",
    "optim",
    "train",
)
MPI = ("memory", "mpi", "node", "nodes")  # import mpi4py, and have no examples


def modules():
    for info in pkgutil.walk_packages(tp.__path__, "treepie."):
        package, *rest = info.name.split(".")[1:]
        if package in PACKAGES and not (package == "distributed" and rest and rest[0] in MPI):
            yield info.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_objects_of_all_examples_show_no_address(name):
    """Whatever a docstring's example binds to a name: so new objects are looked at, too."""

    class Finder(doctest.DocTestFinder):
        def _from_module(self, module, object):
            return super()._from_module(module, inspect.unwrap(object))

    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in Finder().find(importlib.import_module(name), globs={}):
        runner.run(test, out=lambda text: None, clear_globs=False)
        for name, value in test.globs.items():
            if name != "__builtins__" and not isinstance(
                value, types.FunctionType | types.ModuleType | types.BuiltinFunctionType
            ):
                shown(value)
