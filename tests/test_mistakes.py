"""The commonest mistakes of users, and what the last lines of the traceback say: `mistakes.txt`."""

import functools
import inspect
import pickle
import traceback
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie import errors
from treepie.autodiff.program.pure import is_pure

KEY = tp.rng.key(0)


class Column:
    """A column of a table, as pandas' Series."""

    shape = (16,)

    def __init__(self, name, values):
        self.name, self.values = name, values
        self.dtype = self.dtypes = values.dtype

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return self.values


class Table:
    """A table with a column of numbers and one of text, as pandas' DataFrame."""

    def __init__(self):
        self.age = Column("age", np.arange(16))
        self.city = Column("city", np.array(["Rome", "Oslo"] * 8, object))
        self.columns, self.dtypes = ["age", "city"], [self.age.dtype, self.city.dtype]
        self.shape = (16, 2)

    def __len__(self):
        return 16

    def __getitem__(self, name):
        return getattr(self, name)

    def __array__(self, dtype=None, copy=None):
        return np.stack([self.age.values.astype(object), self.city.values], axis=1)


@functools.cache
def names():
    """Return what the code of a row can use."""
    layer = tp.layer
    model = layer.sequential([layer.linear(4, 8), layer.relu(), layer.linear(8, 2)])
    inner = layer.sequential([layer.relu(), layer.linear(7, 8)])
    deep = layer.compose(layer.linear(4, 8), layer.sequential([layer.relu(), layer.residual(inner)]))
    conv = layer.sequential([layer.conv2d(3, 8), layer.relu()])
    cnn = layer.sequential(
        [*[layer.conv2d(3, 8), layer.max_pool2d(2)], layer.flatten(), layer.linear(1568, 10)]
    )
    attention = layer.sequential([layer.multi_head_attention(4, 2)])
    normed = layer.sequential([layer.batch_norm(4)])
    tokens = layer.sequential([layer.embedding(10, 4), layer.linear(4, 2)])
    dropped = layer.sequential([layer.linear(4, 2), layer.dropout(0.5)])
    vars = model.init(KEY)
    trainer = tp.Trainer(model, tp.optim.adam(1e-3))
    st, st_dropped = trainer.init(KEY), tp.Trainer(dropped, tp.optim.adam(1e-3)).init(KEY)
    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32), np.arange(16) % 2
    logits, loss = tp.zeros((16, 2)), tp.loss.cross_entropy_sparse
    names, table, path = np.array(["cat", "dog"] * 8), Table(), "no/such/file"
    return {**locals(), "np": np, "tp": tp, "KEY": KEY}


def raised(call):
    """Return the error that a call raises, and the last lines of its traceback: the error, and its notes."""
    try:
        call()
    except Exception as error:
        return error, "".join(traceback.format_exception_only(type(error), error)).rstrip()
    raise AssertionError("no error")


def said(code):
    """Return the last lines of the traceback of a user's code."""
    data = tp.Data.prepare((names()["x"], names()["y"]), batch_size=8)
    return raised(lambda: exec(code, {**names(), "data": data}))[1]


def mistakes():
    """Return (code, text) of each row of `mistakes.txt`: what follows ">>> ", and the lines below it."""
    rows = []
    for line in (Path(__file__).parent / "mistakes.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(">>> "):
            rows.append((line.removeprefix(">>> "), []))
        elif line and not line.startswith("#"):
            rows[-1][1].append(line)
    return [(code, "\n".join(lines)) for code, lines in rows]


MISTAKES = mistakes()


@pytest.mark.parametrize(("code", "text"), MISTAKES, ids=[code for code, _ in MISTAKES])
def test_a_mistake_is_answered(code, text):
    assert said(code) == text


def test_the_mistakes_are_many_and_differ():
    assert len({code for code, _ in MISTAKES}) == len(MISTAKES) >= 100


# ---- layers' paths
def raising(error):
    """Return a layer whose function, a user's, raises an error."""

    def function(x):
        raise error

    return tp.layer.sequential([tp.layer.linear(3, 4), tp.layer.lambda_(function)])


def trainer(model):
    return tp.Trainer(model, tp.optim.sgd(0.1))


def first(out, target):
    """Return a loss in a user's Python."""
    return out.mean()


def gradient(model, x):
    vars = model.init(KEY)
    return tp.grad(lambda p: model.apply(vars.with_params(p), x)[0].sum())(vars.params)


USES = {
    "apply": lambda model, x: model.apply(model.init(KEY), x),
    "jit": lambda model, x: tp.jit(lambda v, x: model.apply(v, x)[0])(model.init(KEY), tp.tensor(x)),
    "grad": gradient,
    "summary": lambda model, x: tp.layer.summary(model, x.shape),
    "predict": lambda model, x: trainer(model).predict(trainer(model).init(KEY), x),
    "predict, in parts": lambda model, x: trainer(model).predict(trainer(model).init(KEY), x, batch_size=2),
    "step": lambda model, x: trainer(model).step(trainer(model).init(KEY), x, loss=lambda out: out.mean()),
    "fit": lambda model, x: trainer(model).fit(
        trainer(model).init(KEY), tp.Data.repeat(1, (x, x)), loss=first
    ),
    "fit, a pure loss": lambda model, x: trainer(model).fit(
        trainer(model).init(KEY), tp.Data.repeat(1, (x, x)), loss=tp.loss.mse
    ),
    "fit, in parts": lambda model, x: trainer(model).fit(
        trainer(model).init(KEY), tp.Data.repeat(2, (x, x)), loss=first, accumulate_steps=2
    ),
    "evaluate": lambda model, x: trainer(model).evaluate(
        trainer(model).init(KEY), tp.Data.repeat(1, (x, x)), {"mse": tp.metric.MSE()}
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("python", [False, True])
def test_every_use_of_a_model_names_the_layer(use, python):
    """With a user's Python in the model and without, so that each way to run it is taken."""
    last = [tp.layer.lambda_(lambda x: x)] if python else []
    inner = tp.layer.sequential([tp.layer.relu(), tp.layer.linear(7, 4), *last])
    model = tp.layer.sequential([tp.layer.linear(3, 4), tp.layer.residual(inner)])
    error, _ = raised(lambda: USES[use](model, np.ones((4, 3), np.float32)))
    assert type(error) is ValueError
    assert str(error).split("\n")[0] == (
        "layers.1.layer.layers.1: linear(7, 4): x has 4 features, expected 7 (x has shape "
        f"({2 if 'predict, in' in use else 4}, 4) and weight (7, 4))"
    )


def test_values_out_of_range_name_the_layer_too():
    """A program finds them; its step runs again, op by op."""
    model = tp.layer.sequential([tp.layer.embedding(10, 4), tp.layer.linear(4, 2)])
    t = trainer(model)
    st = t.init(KEY)
    good, bad = np.zeros((2, 3), np.int32), np.full((2, 3), 10, np.int32)
    data = tp.Data.of_array([(good, np.zeros((2, 3)))] * 4 + [(bad, np.zeros((2, 3)))])
    error, text = raised(lambda: t.fit(st, data, loss=first))
    assert str(error).startswith("layers.0: embedding(10, 4): ")
    assert text.endswith("Trainer.fit: epoch 1, batch 5 of 5; steps so far: 4")
    t.predict(st, good)
    assert "layers.0: embedding(10, 4): " in raised(lambda: t.predict(st, bad))[1]


class Own(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no rows"), "ValueError: right.layers.1: function: no rows"),
        (KeyError("name"), "KeyError: 'name'\nin right.layers.1: function"),
        (ValueError(), "ValueError\nin right.layers.1: function"),
        (Own("no rows", 3), "tests.test_mistakes.Own: ('no rows', 3)\nin right.layers.1: function"),
    ],
    ids=repr,
)
def test_errors_of_users_name_the_layer(error, text):
    """In the message where it is a plain one, else in a note, since its arguments are the user's."""
    model = tp.layer.compose(tp.layer.relu(), raising(error))
    caught, lines = raised(lambda: model.apply(model.init(KEY), np.ones((2, 3))))
    assert caught is error
    assert lines == text


def test_errors_of_initial_parameters_name_the_layer():
    def init(key, shape, dtype):
        raise ValueError(f"no {shape}")

    model = tp.layer.sequential([tp.layer.relu(), tp.layer.residual(tp.layer.linear(3, 4, weight_init=init))])
    for call in (lambda: model.init(KEY), lambda: trainer(model).init(KEY)):
        assert raised(call)[1] == "ValueError: layers.1.layer: linear(3, 4): no (3, 4)"


def test_python_without_notes(monkeypatch):
    monkeypatch.setattr(errors, "_NOTES", False)
    error = RuntimeError("no rows")
    errors.add_note(error, "in layers.1: linear(3, 4)")
    assert str(error) == "no rows\nin layers.1: linear(3, 4)"
    error = KeyError("a", 3)
    errors.add_note(error, "in layers.1")
    assert error.args == ("a", 3)


# ---- batches
def test_an_error_of_the_data_or_a_callback_names_the_batch():
    x, y = names()["x"], names()["y"]
    t, st, loss = names()["trainer"], names()["st"], names()["loss"]

    def load(i):
        if i == 2:
            raise OSError("disk")
        return x, y

    def report(step, loss, st):
        if step == 5:
            raise RuntimeError("full")

    data = tp.Data.of_fn(3, load)
    for source in (data, tp.Data.of_fn(3, load).prefetch(2)):
        _, text = raised(lambda source=source: t.fit(st, source, loss=loss))
        assert text == "OSError: disk\nTrainer.fit: epoch 1, batch 3 of 3; steps so far: 2"
    good = tp.Data.repeat(3, (x, y))
    _, text = raised(lambda: t.fit(st, good, loss=loss, epochs=2, report=report))
    assert text == "RuntimeError: full\nTrainer.fit: epoch 2, batch 2 of 3; steps so far: 5"
    metrics = {"accuracy": tp.metric.Accuracy()}
    _, text = raised(lambda: t.fit(st, tp.Data.repeat(1, (x, y)), loss=loss, validate=(data, metrics)))
    assert text.split("\n")[1:] == [
        "Trainer.evaluate: batch 3 of 3",
        "Trainer.fit: epoch 1, batch 1 of 1; steps so far: 1",
    ]


def test_stops_get_no_note():
    x, y = names()["x"], names()["y"]

    def report(step, loss, st):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        names()["trainer"].fit(names()["st"], tp.Data.repeat(1, (x, y)), loss=names()["loss"], report=report)
    assert not getattr(caught.value, "__notes__", [])


# ---- names
def test_missing_names_stay_missing():
    for module in (tp, tp.layer, tp.optim, tp.optim.schedule, tp.ptree, tp.rng, tp.math):
        assert not hasattr(module, "Adam")
        assert not hasattr(module, "__wrapped__")
        assert getattr(module, "nothing_like_it", 3) == 3
    with pytest.raises(ImportError, match="cannot import name 'Linear'"):
        exec("from treepie.layer import Linear")
    exec("from treepie import docs")
    assert "did you mean" not in raised(lambda: tp.qqqqq)[1]
    assert raised(lambda: tp._relu)[1] == "AttributeError: module 'treepie' has no attribute '_relu'"


def test_a_call_that_fails_inside_is_not_explained():
    """Only a call with wrong arguments is; a TypeError of the function's own is raised as it is."""

    def broken(*_):
        raise TypeError("broken() got an unexpected keyword argument 'x'")

    text = "TypeError: broken() got an unexpected keyword argument 'x'"
    assert raised(lambda: tp.layer.linear(2, 2, weight_init=broken).init(KEY))[1] == text
    t, st, data = names()["trainer"], names()["st"], tp.Data.repeat(1, (names()["x"], names()["y"]))
    for fit in (lambda: t.fit(st, data, loss=broken), lambda: t.fit(st, data, loss=first, report=broken)):
        assert raised(fit)[1].startswith(text)
        data.reset()


def public_functions():
    """Return the public functions of the package and its modules, by their names."""
    modules = {"": tp, **{n: getattr(tp, n) for n in tp.__all__ if inspect.ismodule(getattr(tp, n))}}
    pairs = [(f"{m}.{n}", getattr(module, n)) for m, module in modules.items() for n in dir(module)]
    return {n: f for n, f in pairs if inspect.isfunction(f) and f.__module__.startswith("treepie.")}


@pytest.mark.parametrize("name", public_functions())
def test_explained_functions_stay_as_they_are(name):
    """They are pure, and found by pickle, as those that they call; and each explains its calls."""
    function = public_functions()[name]
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return
    assert pickle.loads(pickle.dumps(function)) is function
    if name.startswith((".", "fn.")):
        assert is_pure(function) >= is_pure(inspect.unwrap(function))
    error, text = raised(lambda: function(no_such_argument=1))
    assert type(error) is TypeError
    assert "there is no argument 'no_such_argument', " in text


def test_attributes_of_other_libraries_are_missing():
    x = tp.ones(3)
    for name in ("backward", "cpu", "exp", "requires_grad"):
        assert not hasattr(x, name)
        assert not hasattr(tp.Tensor, name)
        assert name not in dir(x)
    assert {"sum", "shape", "numpy", "at"} <= set(dir(x))
    assert all(hasattr(x, name) for name in dir(x) if name not in tp.Tensor.__slots__)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tp.layer.relu(3), "layer.relu: too many positional arguments, expected relu()"),
        (lambda: tp.layer.gru(3, hidden=4), "layer.gru: there is no argument 'hidden', did you mean"),
        (lambda: tp.layer.gru(), "layer.gru: in_features and hidden_size are missing, expected gru("),
        (lambda: tp.init.normal(std=1), "init.normal: there is no argument 'std', did you mean 'stddev'?"),
    ],
)
def test_wrong_arguments_of_constructors(call, text):
    assert text in raised(call)[1]
