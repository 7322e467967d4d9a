"""Steps of `fit` as programs: the bits of eager steps for every layer; and steps that run op by op."""

import re

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.program import program
from treepie.train.pure_step import PureModelStep

from .op_by_op import run_eagerly
from .test_layers import LAYERS, example

KEY = tp.rng.key(3)
RNG = np.random.default_rng(0)


def mean_square(out, target):
    """A loss for any tree of outputs, with targets that broadcast."""
    leaves = [y for y in tp.ptree.leaves(out) if y.dtype.kind == "f"]
    return sum(((y - target.astype(y.dtype)) * (y - target.astype(y.dtype))).mean() for y in leaves)


def trained(layer, x, monkeypatch=None, steps=5, dtype=tp.float32, optimizer=None):
    """Parameters and losses after some steps on batches of two sizes; eager with `monkeypatch`."""
    if monkeypatch is not None:
        run_eagerly(monkeypatch)
    trainer = tp.Trainer(layer, optimizer or tp.optim.adam(0.01))
    st = trainer.init(KEY, dtype)
    shorter = tp.ptree.map(lambda a: a[: len(a) - 1 or 1], x)
    elements = [(x if k % 4 < 3 else shorter, np.float32(k)) for k in range(2 * steps)]
    history = tp.History()
    st = trainer.fit(st, tp.Data.of_array(elements), rngs=KEY, loss=mean_square, history=history)
    leaves = [t.numpy() for tree in (st.vars.params, st.vars.state) for t in tp.ptree.leaves(tree)]
    return leaves, history.steps


@pytest.mark.parametrize("name", [k for k, (layer, _) in LAYERS.items() if layer.init(KEY).params])
@pytest.mark.parametrize("dtype", [tp.float32, tp.float64], ids=str)
def test_every_layer_trains_to_the_same_bits_as_eagerly(name, dtype, monkeypatch, capsys):
    layer, x = LAYERS[name]
    x = example(x, RNG)
    result, losses = trained(layer, x, dtype=dtype)
    assert "op by op" not in capsys.readouterr().err
    expected, eager_losses = trained(layer, x, monkeypatch, dtype=dtype)
    assert losses == eager_losses
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "optimizer",
    [
        tp.optim.sgd(0.1),
        tp.optim.rmsprop(0.01, momentum=0.9),
        tp.optim.adamw(0.1, mask=lambda params: [{"weight": 1, "bias": 0}, {}]),
    ],
    ids=["sgd", "rmsprop", "adamw"],
)
def test_every_optimizer_trains_to_the_same_bits_as_eagerly(optimizer, monkeypatch):
    layer = tp.layer.sequential([tp.layer.linear(5, 3), tp.layer.tanh()])
    x = RNG.standard_normal((4, 5))
    result, losses = trained(layer, x, optimizer=optimizer)
    expected, eager_losses = trained(layer, x, monkeypatch, optimizer=optimizer)
    assert losses == eager_losses
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_programs_run_and_share_memory(monkeypatch):
    """No op runs eagerly, and intermediate results that are not live at once share memory."""
    programs = []
    monkeypatch.setattr(program.Program, "__init__", _recording(program.Program.__init__, programs))
    runs = []
    monkeypatch.setattr(PureModelStep, "eagerly", _recording(PureModelStep.eagerly, runs))
    model = tp.layer.sequential([tp.layer.linear(64, 64), tp.layer.relu()] * 6)
    trainer = tp.Trainer(model, tp.optim.sgd(0.01))
    x = RNG.standard_normal((256, 64), "f4")
    trainer.fit(trainer.init(KEY), tp.Data.repeat(10, (x, x)), loss=tp.loss.mse)
    assert len(programs) == 1
    assert not runs
    activations = 6 * x.nbytes  # read by the backward pass
    gradients = 6 * (64 * 64 + 64) * 4  # read by the update, after the check of all
    most = activations + gradients + 2 * x.nbytes
    assert activations + gradients < programs[0].bytes < most < programs[0].unshared


def _recording(function, programs):
    def call(self, *args, **kwargs):
        programs.append(self)
        return function(self, *args, **kwargs)

    return call


@pytest.mark.parametrize("read", ["if", "item", "numpy"])
def test_a_loss_that_reads_values_runs_eagerly_with_a_message(read, monkeypatch, capsys):
    def loss(out, target):
        d = out - target
        large = {
            "if": lambda: bool((d * d).mean() > 1.0),
            "item": lambda: (d * d).mean().item() > 1.0,
            "numpy": lambda: (d.numpy() ** 2).mean() > 1.0,
        }[read]()
        return abs(d).mean() if large else (d * d).mean()

    def run():
        trainer = tp.Trainer(tp.layer.linear(3, 1), tp.optim.sgd(0.2))
        x = np.random.default_rng(0).standard_normal((8, 3), "f4")
        data = tp.Data.repeat(30, (x, x @ np.array([[1.0], [-2.0], [3.0]], "f4")))
        return trainer.fit(trainer.init(KEY), data, loss=loss).vars.params["weight"].numpy()

    result = run()
    printed = capsys.readouterr().err
    assert printed.count("op by op") == 1
    assert re.search(rf"a value is read in {re.escape(__file__)}:\d+", printed)
    run_eagerly(monkeypatch)
    np.testing.assert_array_equal(result, run())


def test_a_label_out_of_range_raises_as_in_eager_steps_and_the_state_is_kept():
    x = RNG.standard_normal((6, 4), "f4")
    good, bad = np.array([0, 1, 2, 0, 1, 2], np.int32), np.array([0, 1, 3, 0, 1, 2], np.int32)
    trainer = tp.Trainer(tp.layer.linear(4, 3), tp.optim.adam(0.1))
    st = trainer.init(KEY)
    data = tp.Data.of_array([(x, good)] * 5 + [(x, bad)])
    with pytest.raises(ValueError, match="label is 3, expected") as caught:
        trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse)
    state = caught.value.state
    assert state.step == 5
    again = trainer.fit(st, tp.Data.of_array([(x, good)] * 5), loss=tp.loss.cross_entropy_sparse)
    for a, b in zip(*(tp.ptree.leaves(s.vars.params) for s in (state, again)), strict=True):
        np.testing.assert_array_equal(a, b)


LOSSES = {
    "binary": (tp.loss.binary_cross_entropy, RNG.integers(0, 2, (6, 3)).astype("f4")),
    "huber": (tp.loss.huber, RNG.standard_normal((6, 3), "f4")),
    "one_hot": (tp.loss.cross_entropy, np.eye(3, dtype="f4")[[0, 1, 2, 0, 1, 2]]),
    "ignored": (lambda out, y: tp.loss.cross_entropy_sparse(out, y, ignore_index=1), np.arange(6) % 3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_runs_as_a_program(name, monkeypatch, capsys):
    loss, target = LOSSES[name]
    trainer = tp.Trainer(tp.layer.linear(4, 3), tp.optim.adam(0.1))
    x = RNG.standard_normal((6, 4), "f4")

    def run():
        st = trainer.fit(trainer.init(KEY), tp.Data.repeat(6, (x, target)), loss=loss)
        return st.vars.params["weight"].numpy()

    result = run()
    assert "op by op" not in capsys.readouterr().err
    run_eagerly(monkeypatch)
    np.testing.assert_array_equal(result, run())


def test_inputs_and_targets_that_share_memory_in_some_steps(monkeypatch, capsys):
    """The same tensor twice, overlapping views, and separate tensors have one structure, in any order."""
    rows = RNG.standard_normal((12, 4), "f4")
    tensor, x, y = tp.tensor(rows), tp.tensor(rows[2:8] * 2), tp.tensor(rows[3:9] - 1)
    first, last = (tp.Tensor(tensor.array[k : k + 6]) for k in (0, 2))
    pairs = [(x, x), (first, last), (x, y), (last, first), (y, x), (first, x)]
    trainer = tp.Trainer(tp.layer.sequential([tp.layer.linear(4, 4), tp.layer.tanh()]), tp.optim.sgd(0.1))

    def run():
        history = tp.History()
        trainer.fit(trainer.init(KEY), tp.Data.of_array(pairs * 2), loss=tp.loss.mse, history=history)
        return history.steps

    result = run()
    assert "op by op" not in capsys.readouterr().err
    run_eagerly(monkeypatch)
    assert result == run()


def test_states_that_are_kept_do_not_change():
    x = RNG.standard_normal((6, 5), "f4")
    layer = tp.layer.sequential([tp.layer.linear(5, 300), tp.layer.batch_norm(300)])
    trainer = tp.Trainer(layer, tp.optim.adam(0.1))
    states, copies = [], []

    def report(step, loss, st):
        states.append(st)
        trees = [st.vars.params, st.vars.state, list(st.opt_state.moments)]
        copies.append([t.numpy().copy() for t in tp.ptree.leaves(trees)])

    trainer.fit(
        trainer.init(KEY), tp.Data.repeat(8, (x, np.ones((6, 300), "f4"))), loss=tp.loss.mse, report=report
    )
    for st, copy in zip(states, copies, strict=True):
        trees = [st.vars.params, st.vars.state, list(st.opt_state.moments)]
        for a, b in zip(tp.ptree.leaves(trees), copy, strict=True):
            np.testing.assert_array_equal(a, b)
    assert [st.step for st in states] == list(range(1, 9))


def test_states_of_one_parameter_that_are_kept_do_not_change():
    """Of which only one reference tells that they are kept."""
    x, y = RNG.standard_normal((6, 5), "f4"), RNG.standard_normal((6, 40), "f4")
    trainer = tp.Trainer(tp.layer.linear(5, 40, bias=False), tp.optim.sgd(0.1))
    kept, copies = [], []

    def report(step, loss, st):
        kept.append(st.vars.params["weight"])
        copies.append(kept[-1].numpy().copy())

    trainer.fit(trainer.init(KEY), tp.Data.repeat(8, (x, y)), loss=tp.loss.mse, report=report)
    for weight, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(weight, copy)
    assert len({c.tobytes() for c in copies}) == 8


def test_another_number_of_threads_gives_the_same_bits():
    before = tp.get_num_threads()
    x = RNG.standard_normal((500, 60), "f4")

    def run(counts):
        trainer = tp.Trainer(tp.layer.linear(60, 40), tp.optim.sgd(0.1))
        report = lambda step, loss, st: tp.set_num_threads(counts[step % len(counts)])
        st = trainer.fit(
            trainer.init(KEY), tp.Data.repeat(9, (x, x[:, :40])), loss=tp.loss.mse, report=report
        )
        return st.vars.params["weight"].numpy()

    try:
        np.testing.assert_array_equal(run([1]), run([2, 3]))
    finally:
        tp.set_num_threads(before)


@pytest.mark.parametrize("pure", [False, True], ids=["python", "pure"])
def test_a_step_returns_the_loss_in_its_own_dtype(pure):
    def loss(out):
        return (out.astype(tp.float64) ** 2).mean()

    trainer = tp.Trainer(tp.layer.linear(3, 2), tp.optim.sgd(0.1))
    st = trainer.init(KEY)
    x = tp.tensor(RNG.standard_normal((4, 3)), tp.float32)
    for _ in range(3):
        out, _ = trainer.model.apply(st.vars, x)
        value, st = trainer.step(st, x, loss=tp.pure(loss) if pure else loss)
        assert value.dtype == tp.float64
        np.testing.assert_array_equal(value.numpy(), loss(out).numpy())
