"""Options of a step that its program depends on: one trainer has a program for each."""

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import config

KEY = tp.rng.key(0)
X = np.random.default_rng(0).standard_normal((6, 5)).astype("f4")


def loss(out, target):
    return tp.square(out - target).mean()


@pytest.mark.parametrize("loss", [tp.loss.mse, loss], ids=["pure", "python"])
@pytest.mark.parametrize(
    "model", [tp.layer.linear(5, 3), tp.layer.lambda_(lambda x: x)], ids=["pure", "python"]
)
def test_each_clip_norm_has_its_program(model, loss):
    model = tp.layer.sequential([tp.layer.linear(5, 3), model]) if not model.init(KEY).params else model
    shared, data = tp.Trainer(model, tp.optim.sgd(0.1)), tp.Data.repeat(3, (X, np.ones((6, 3), "f4")))
    st = shared.init(KEY)
    for clip_norm in (None, 1e-3, 1.0, 1e-2, None):
        results = []
        for trainer in (shared, tp.Trainer(model, tp.optim.sgd(0.1))):
            data.reset()
            after = trainer.fit(st, data, loss=loss, clip_norm=clip_norm)
            results.append([t.numpy() for t in tp.ptree.leaves(after.vars.params)])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss", [tp.pure(lambda out: tp.square(out).mean()), lambda out: (out * out).mean()])
def test_each_mode_has_its_program(loss):
    model = tp.layer.sequential([tp.layer.linear(5, 3), tp.layer.batch_norm(3)])
    shared = tp.Trainer(model, tp.optim.sgd(0.1))
    st = shared.init(KEY)
    for training in (True, False, True, False):
        results = []
        for trainer in (shared, tp.Trainer(model, tp.optim.sgd(0.1))):
            value, after = trainer.step(st, tp.tensor(X), loss, training=training)
            results.append([value, *tp.ptree.leaves([after.vars.params, after.vars.state])])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)
        st = after


def test_each_number_of_threads_has_its_program():
    trainer, before = tp.Trainer(tp.layer.linear(5, 3), tp.optim.sgd(0.1)), tp.get_num_threads()
    data, st, counts = tp.Data.repeat(2, (X, np.ones((6, 3), "f4"))), trainer.init(KEY), []
    try:
        for n in (1, 2, 1):
            tp.set_num_threads(n)
            data.reset()
            st = trainer.fit(st, data, loss=tp.loss.mse)
            counts.append(len(trainer.steps.cache.programs))
    finally:
        tp.set_num_threads(before)
    assert counts == [1, 2, 2]


@pytest.mark.parametrize("what", ["axis", "dtype"])
def test_what_a_loss_reads_determines_its_program(what):
    """An attribute of an op, and the dtype of an array from outside."""
    values = {
        "axis": [0, 1, 0, 1],
        "dtype": [np.array([1, 2, 3], d) for d in ("f4", "f8", "i4", "i8", "f4")],
    }[what]

    def value(out, target):
        scaled = tp.sum(out, step.current) if what == "axis" else out * step.current
        return (tp.square(scaled).mean() + 0.0 * target.sum()).astype(tp.float32)

    shared = tp.Trainer(tp.layer.linear(5, 3), tp.optim.sgd(0.1))
    data, st = tp.Data.repeat(1, (X, np.ones((6, 3), "f4"))), shared.init(KEY)
    for step.current in values:
        results = []
        for trainer in (shared, tp.Trainer(tp.layer.linear(5, 3), tp.optim.sgd(0.1))):
            data.reset()
            after = trainer.fit(st, data, loss=value)
            results.append([t.numpy() for t in tp.ptree.leaves(after.vars.params)])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)


def step():
    """Has the value that a loss reads."""


def test_programs_beyond_a_number_of_bytes_are_evicted(monkeypatch):
    """The least recently used first; the newest does not count, as its programs are planned later."""
    f = tp.jit(lambda x: tp.exp(x) * 2)
    f(tp.ones(1))
    monkeypatch.setattr(config, "PROGRAM_BYTES", int(2.5 * f.programs[0].nbytes))
    for n in (2, 3, 4, 2, 5):
        np.testing.assert_allclose(f(tp.ones(n)), np.full(n, 2 * np.e), rtol=1e-6)
        assert len(f.programs) <= 3
    kept = f.programs
    assert len(kept) == 3
    f(tp.ones(2))
    assert set(f.programs) == set(kept)
    f(tp.ones(3))
    assert set(f.programs) != set(kept)
