"""Programs of a Trainer: losses in closures, single steps, predictions, memory, the examples."""

import importlib
import re
import sys
import tracemalloc

import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

import treepie as tp
from treepie.examples import mnist
from treepie.train.runner import StepRunner

from .op_by_op import run_eagerly
from .test_layers import LAYERS, example
from .test_steps import KEY, RNG, trained


def closures(batches):
    for x, y in batches:
        yield x, lambda out, y=y: tp.loss.cross_entropy_sparse(out, y)


@pytest.mark.parametrize("kind", ["tensors", "arrays", "pairs"])
def test_losses_in_closures_run_as_programs(kind, monkeypatch, capsys):
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((6, 4), "f4"), rng.integers(0, 3, 6)) for _ in range(8)]
    elements = {
        "tensors": lambda: closures([(tp.tensor(x), tp.tensor(y)) for x, y in batches]),
        "arrays": lambda: closures(batches),
        "pairs": lambda: tp.Data.of_array([tuple(map(tp.tensor, b)) for b in batches]).map(
            lambda xy: (xy[0], lambda out: tp.loss.cross_entropy_sparse(out, xy[1]))
        ),
    }[kind]
    trainer = tp.Trainer(tp.layer.sequential([tp.layer.linear(4, 3), tp.layer.tanh()]), tp.optim.adam(0.1))

    def run():
        history = tp.History()
        data = tp.Data.of_array(list(elements()))
        trainer.fit(trainer.init(KEY), data, rngs=KEY, history=history)
        return history.steps

    steps = run()
    assert trainer.steps.cache.programs
    assert "op by op" not in capsys.readouterr().err
    run_eagerly(monkeypatch)
    assert steps == run()


@pytest.mark.parametrize("training", [True, False])
def test_single_steps_with_contexts_keys_and_both_modes(training, monkeypatch):
    layer = tp.layer.sequential(
        [
            tp.layer.multi_head_attention(8, 2),
            tp.layer.dropout(0.3),
            tp.layer.flatten(),
            tp.layer.linear(40, 2),
        ]
    )
    trainer = tp.Trainer(layer, tp.optim.rmsprop(0.01))
    x = tp.tensor(RNG.standard_normal((3, 5, 8), "f4"))
    masks = [tp.tensor(np.tri(3, 5, k, "i4") + np.eye(3, 5, dtype="i4")) for k in range(7)]

    def run():
        st, states, losses = trainer.init(KEY), [], []
        for k, mask in enumerate(masks):
            ctx = tp.Context().set("attention_mask", mask)
            target = tp.full((3, 2), float(k))
            loss, st = trainer.step(
                st, x, lambda out, t=target: tp.loss.mse(out, t), training, tp.rng.key(k), ctx
            )
            losses.append(loss)
            states.append(st)
        return [
            t.numpy()
            for t in tp.ptree.leaves([losses, [[s.vars.params, *s.opt_state.moments] for s in states]])
        ]

    result = run()
    assert trainer.steps.cache.programs
    run_eagerly(monkeypatch)
    for a, b in zip(result, run(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_predicts_the_same_bits(name, capsys):
    layer, x = LAYERS[name]
    x = tp.ptree.map(lambda a: a.astype("f4") if a.dtype.kind == "f" else a, example(x, RNG))
    first = tp.ptree.map(lambda a: a[:1], x)
    trainer = tp.Trainer(layer, tp.optim.sgd(0.1))
    st = trainer.init(KEY)
    outputs = [trainer.predict(st, x if k != 4 else first) for k in range(6)]
    assert "op by op" not in capsys.readouterr().err
    expected = [layer.apply(st.vars, x if k != 4 else first)[0] for k in range(6)]
    for a, b in zip(tp.ptree.leaves(outputs), tp.ptree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert trainer.predictor.programs


def test_predictions_use_the_running_statistics_of_their_state():
    trainer = tp.Trainer(tp.layer.batch_norm(3), tp.optim.sgd(0.1))
    st, x = trainer.init(KEY), tp.ones((2, 3))
    for k in range(4):
        state = {"running_mean": tp.full(3, float(k)), "running_var": tp.full(3, 1.0 + k)}
        vars = st.vars.with_state(state)
        want = trainer.model.apply(vars, x)[0]
        np.testing.assert_array_equal(trainer.predict(trainer.make_state(vars), x), want)


def test_accumulated_steps_run_as_programs(monkeypatch):
    rows = RNG.standard_normal((40, 4), "f4")
    data = lambda: tp.Data.prepare((rows, rows[:, :2]), batch_size=3)
    trainer = tp.Trainer(
        tp.layer.sequential([tp.layer.linear(4, 2), tp.layer.dropout(0.2)]), tp.optim.adam(0.1)
    )

    def run():
        st = trainer.fit(
            trainer.init(KEY), data(), rngs=KEY, loss=tp.loss.mse, accumulate_steps=3, clip_norm=0.5
        )
        return st.vars.params[0]["weight"].numpy()

    result = run()
    assert trainer.steps.cache.programs
    run_eagerly(monkeypatch)
    np.testing.assert_array_equal(result, run())


def test_a_step_leaks_no_memory():
    """200 steps by tracemalloc: memory left over and the peak; and Numba's count of allocations."""
    trainer = tp.Trainer(tp.layer.sequential([tp.layer.linear(50, 40), tp.layer.relu()]), tp.optim.adam(0.1))
    x = tp.tensor(RNG.standard_normal((64, 50), "f4"))
    y = tp.tensor(RNG.standard_normal((64, 40), "f4"))
    runner = StepRunner(trainer.steps, tp.loss.mse, None, None, "raise", 1)
    runner.begin(trainer.init(KEY))
    for _ in range(5):
        runner.step([(x, y)])
    _nrt_python.memsys_enable_stats()
    arrays = rtsys.get_allocation_stats().alloc
    tracemalloc.start()
    try:
        for _ in range(200):  # fill Python's own caches
            runner.step([(x, y)])
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(200):
            runner.step([(x, y)])
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rtsys.get_allocation_stats().alloc == arrays  # kernels allocate no arrays
    assert after - before < 500
    assert peak - before < 5000  # small Python objects: an output alone is 10 kB


@pytest.mark.parametrize("example", ["xor", "digits", "chars"])
def test_examples_print_the_same_as_op_by_op(example, monkeypatch, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not " * 200)
    monkeypatch.setattr(sys, "argv", [example, *([str(text), "--steps", "20"] if example == "chars" else [])])
    module = importlib.import_module(f"treepie.examples.{example}")

    def run():
        module.main()
        return re.sub(r"[\d.]+ s\b", "", capsys.readouterr().out)

    result = run()
    run_eagerly(monkeypatch)
    assert result == run()


def test_the_network_of_mnist_has_the_bits_of_op_by_op(monkeypatch):
    x = RNG.standard_normal((16, 1, 28, 28)).astype("f4")
    result, losses = trained(mnist.model(), x, steps=3)
    expected, eager_losses = trained(mnist.model(), x, monkeypatch, steps=3)
    assert losses == eager_losses
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_of_users_read_current_values_in_every_step(monkeypatch):
    outside = {"scale": tp.ones(3)}

    class Shift:
        def __init__(self):
            self.by = 0.0

        def __call__(self, x):
            return x * outside["scale"] + self.by

    shift = Shift()
    own = tp.layer.Layer(
        init=lambda rngs, dtype: tp.layer.Vars({"w": tp.ones(3)}, {}, dtype),
        apply=lambda params, state, x, **_: (x * params["w"] + outside["scale"], state),
    )
    model = tp.layer.sequential([tp.layer.linear(4, 3), tp.layer.residual(own), tp.layer.lambda_(shift)])
    trainer = tp.Trainer(model, tp.optim.sgd(0.1))
    x, y = RNG.standard_normal((5, 4), "f4"), RNG.standard_normal((5, 3), "f4")

    def run():
        losses, outputs = [], []

        def report(step, loss, st):
            losses.append(loss)
            outputs.append(trainer.predict(st, x).tolist())
            outside["scale"], shift.by = tp.full(3, 1.0 / step), float(step > 6)

        outside["scale"], shift.by = tp.ones(3), 0.0
        trainer.fit(trainer.init(KEY), tp.Data.repeat(12, (x, y)), loss=tp.loss.mse, report=report)
        return losses, outputs

    result = run()
    assert trainer.steps.cache.programs
    assert trainer.predictor.programs
    run_eagerly(monkeypatch)
    assert result == run()
