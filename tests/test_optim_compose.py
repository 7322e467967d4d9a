"""Composed optimizers: chain, partition, frozen parts, averages, LAMB, and optimizers of one's own."""

import contextlib
import io
import pickle

import numpy as np
import pytest

import treepie as tp
from treepie.distributed import Local

from .eager import Eager

optim = tp.optim
KEY = tp.rng.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(53, 6)).astype("f4"), RNG.normal(size=(53, 3)).astype("f4")
HEAD = {"": "body", "2": "head"}


def signed_init(p):
    return (tp.zeros_like(p),)


def signed(p, g, state, step):
    v = 0.9 * state[0] + g
    return -0.01 * tp.sign(v) / (1.0 + 0.1 * step), (v,)


def row_init(p):
    return tp.zeros_like(p), tp.zeros(p.shape[:1], p.dtype), tp.ones((), p.dtype)


def by_rows(p, g, state, lr, b):
    """Scale the gradients of each row by the row's own second moment, as Adafactor does."""
    m, v, count = state
    axes = tuple(range(1, p.ndim))
    v = b * v + (1.0 - b) * (g * g).mean(axes) if axes else b * v + (1.0 - b) * g * g
    m = 0.5 * m + g / (tp.sqrt(v).reshape(-1, *[1] * len(axes)) + 1e-3)
    return -lr * m * tp.minimum(1.0, tp.norm(p) + 0.1) / count, (m, v, count + 0.5)


def numbers(step):
    return 0.01 / step, 0.9


def rows_optimizer():
    return optim.Optimizer(row_init, by_rows, numbers=numbers)


OPTIMIZERS = {
    "clipped": lambda: optim.chain(optim.clip_norm(0.05), optim.adamw(1e-2)),
    "clipped values": lambda: optim.chain(optim.clip_value(0.01), optim.sgd(0.1, momentum=0.9)),
    "l2": lambda: optim.chain(optim.add_decayed_weights(0.1, mask=matrices), optim.adamw(1e-2, mask=vectors)),
    "ema": lambda: optim.chain(optim.clip_value(0.1), optim.rmsprop(1e-2, weight_decay=0.1), optim.ema(0.9)),
    "groups": lambda: optim.partition({"body": optim.sgd(1e-2), "head": optim.adam(1e-2)}, HEAD),
    "frozen": lambda: optim.partition({"body": optim.frozen(), "head": optim.adamw(1e-2)}, HEAD),
    "frozen, averaged": lambda: optim.chain(
        optim.clip_norm(0.05),
        optim.partition({"body": optim.frozen(), "head": optim.adagrad(1e-2, weight_decay=0.1)}, HEAD),
        optim.ema(0.9),
    ),
    "chains in parts": lambda: optim.partition(
        {
            "body": optim.chain(optim.clip_norm(0.01), optim.lion(1e-3), optim.ema(0.5)),
            "head": rows_optimizer(),
        },
        HEAD,
    ),
    "lamb": lambda: optim.lamb(1e-2, weight_decay=0.1),
    "lion": lambda: optim.lion(1e-3),
    "nadam": lambda: optim.nadam(1e-2),
    "signed": lambda: optim.Optimizer(signed_init, signed, elementwise=True),
    "rows": rows_optimizer,
}
each = pytest.mark.parametrize("name", OPTIMIZERS)


def matrices(params):
    return tp.ptree.map(lambda p: p.ndim > 1, params)


def vectors(params):
    return tp.ptree.map(lambda p: p.ndim == 1, params)


def model():
    return tp.layer.sequential([tp.layer.linear(6, 9), tp.layer.tanh(), tp.layer.linear(9, 3)])


def start(optimizer):
    trainer = tp.Trainer(model(), optimizer)
    return trainer, trainer.init(rngs=KEY)


def data(comm=None):
    batches = tp.Data.prepare((X, Y), batch_size=8, shuffle=tp.rng.key(1))
    return batches if comm is None else batches.shard(comm)


def fit(optimizer, comm=None, **options):
    trainer, st = start(optimizer)
    return trainer.fit(st, data(comm), **{"loss": tp.loss.mse, "epochs": 2, "comm": comm} | options)


def bits(st):
    return [t.numpy().tobytes() for t in tp.ptree.leaves((st.vars.params, st.opt_state.moments))]


def params_bits(st):
    return bits(st)[:4]


# ---- laws
@each
def test_programs_have_the_bits_of_eager_steps(name):
    optimizer = OPTIMIZERS[name]()
    eager = Eager(model(), optimizer)
    want = eager.fit(start(optimizer)[1], data(), loss=tp.loss.mse, epochs=2)
    assert bits(fit(optimizer)) == bits(want)
    trainer, st = start(optimizer)
    for k in range(5):
        _, st = trainer.step(
            st, X[8 * k : 8 * k + 8], lambda out, k=k: tp.loss.mse(out, Y[8 * k : 8 * k + 8])
        )
    other = start(optimizer)[1]
    for k in range(5):
        _, other = eager.step(
            other, X[8 * k : 8 * k + 8], lambda out, k=k: tp.loss.mse(out, Y[8 * k : 8 * k + 8])
        )
    assert bits(st) == bits(other)


@each
def test_a_resumed_run_has_the_same_bits(tmp_path, name):
    optimizer = OPTIMIZERS[name]()
    want = fit(optimizer, epochs=3)

    def stop(step, loss, st):
        if step == 9:
            raise KeyboardInterrupt

    every = tp.checkpoint.every(4, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(optimizer, epochs=3, checkpoint=every, report=stop)
    assert bits(fit(pickle.loads(pickle.dumps(optimizer)), epochs=3, checkpoint=every, resume=True)) == bits(
        want
    )
    assert bits(tp.checkpoint.load_state(tmp_path, like=start(optimizer)[1])) == bits(want)


@each
def test_states_and_optimizers_are_pickled(name):
    optimizer = OPTIMIZERS[name]()
    trainer, st = start(optimizer)
    kept = fit(optimizer)
    again, st = pickle.loads(pickle.dumps((trainer, kept)))
    assert bits(st) == bits(kept)
    assert again.optimizer.name == optimizer.name
    runs = [t.fit(s, data(), loss=tp.loss.mse) for t, s in ((again, st), (trainer, kept))]
    assert bits(runs[0]) == bits(runs[1])


@each
def test_step_returns_the_changes_that_update_applies(name):
    optimizer = OPTIMIZERS[name]()
    params = start(optimizer)[1].vars.params
    grads = tp.ptree.map(lambda p: p * 0.1 + 0.01, params)
    state = optimizer.init(params)
    for _ in range(3):
        updates, after = optimizer.step(state, params, grads)
        new, state = optimizer.update(state, params, grads)
        added = optim.apply_updates(params, updates)
        for a, b in zip(
            tp.ptree.leaves((added, after.moments)), tp.ptree.leaves((new, state.moments)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        params = new


@each
def test_moments_as_trees_and_back(name):
    optimizer = OPTIMIZERS[name]()
    st = fit(optimizer)
    count, trees = st.opt_state.to_trees()
    state = optimizer.state_of_trees(count, trees, params=st.vars.params)
    grads = tp.ptree.map(lambda p: p * 0.1, st.vars.params)
    want, got = (optimizer.update(s, st.vars.params, grads) for s in (st.opt_state, state))
    for a, b in zip(tp.ptree.leaves(want[0]), tp.ptree.leaves(got[0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [2, 3])
@each
def test_ranks_train_as_one_process_does(name, n):
    alone, shards = fit(OPTIMIZERS[name]()), fit(OPTIMIZERS[name](), micro_shards=4)

    def run(comm):
        kept = []
        st = fit(OPTIMIZERS[name](), comm, report=lambda *row: kept.append(row[2]))
        state = kept[3].opt_state.count, params_bits(kept[3])
        values = [t.numpy() for t in tp.ptree.leaves((st.vars.params, st.opt_state.moments))]
        return values, bits(st), state, bits(fit(OPTIMIZERS[name](), comm, micro_shards=4))

    results = Local(n).run(run)
    for values, own, state, sharded in results:
        assert (own, state) == results[0][1:3]
        assert sharded == bits(shards)
        wants = [t.numpy() for t in tp.ptree.leaves((alone.vars.params, alone.opt_state.moments))]
        if "lion" not in name and name not in ("signed", "chains in parts"):  # whose signs flip near 0
            for mine, want in zip(values, wants, strict=True):
                np.testing.assert_allclose(mine, want, rtol=2e-3, atol=2e-5)


@each
def test_a_shared_update_has_the_bits_of_a_whole_one(name, monkeypatch):
    counted = []
    original = tp.train.shared_update.SharedUpdate.update
    monkeypatch.setattr(
        tp.train.shared_update.SharedUpdate,
        "update",
        lambda self, *row: counted.append(row) or original(self, *row),
    )

    def run(comm, shared):
        return bits(fit(OPTIMIZERS[name](), comm, shard_optimizer=shared))

    whole = Local(2).run(lambda comm: run(comm, False))
    assert not counted
    assert Local(2).run(lambda comm: run(comm, True)) == whole
    assert bool(counted) == OPTIMIZERS[name]().elementwise


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}, {"micro_shards": 3}])
def test_a_clipping_chain_is_fits_clip_norm(options):
    chained = fit(optim.chain(optim.clip_norm(0.05), optim.adam(1e-2)), **options)
    assert bits(chained) == bits(fit(optim.adam(1e-2), clip_norm=0.05, **options))
    assert bits(chained) != bits(fit(optim.adam(1e-2), **options))


@pytest.mark.parametrize(
    "make", [lambda: optim.adamw(1e-2, mask=matrices), lambda: optim.lamb(1e-2), rows_optimizer]
)
def test_a_partition_of_one_part_is_its_optimizer(make):
    assert bits(fit(optim.partition({"all": make()}, lambda path: "all"))) == bits(fit(make()))


def test_parts_have_their_own_learning_rates():
    parts = {"body": optim.adam(1e-3), "head": optim.adam(1e-1)}
    params = {"a": tp.ones(3), "b": {"c": tp.ones((2, 2)), "d": tp.ones(2)}}
    opt = optim.partition(parts, {"a": "body", "b": "head", "b.d": "body"})
    grads = tp.ptree.map(lambda p: p * 0.5, params)
    new, state = opt.update(opt.init(params), params, grads)
    for path, rate in (("a", 1e-3), ("c", 1e-1), ("d", 1e-3)):
        own = {"w": new["a"] if path == "a" else new["b"][path]}
        alone = optim.adam(rate)
        first = {"w": tp.ones_like(own["w"])}
        want, _ = alone.update(alone.init(first), first, {"w": first["w"] * 0.5})
        np.testing.assert_array_equal(own["w"], want["w"])
    assert state.optimizer == "partition(body=adam, head=adam)"


# ---- frozen parts
@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}, {"clip_norm": 0.1}, {"micro_shards": 2}])
def test_frozen_parameters_keep_their_bits(options):
    trainer, before = start(OPTIMIZERS["frozen"]())
    kept = []
    st = trainer.fit(
        before, data(), loss=tp.loss.mse, epochs=2, report=lambda *row: kept.append(row[2]), **options
    )
    for state in (kept[0], kept[-1], st, pickle.loads(pickle.dumps(st))):
        assert params_bits(state)[:2] == params_bits(before)[:2]
        assert params_bits(state)[2:] != params_bits(before)[2:]
        np.testing.assert_array_equal(trainer.predict(state, X), model().apply(state.vars, X)[0])
    assert [t.size for t in tp.ptree.leaves(st.opt_state.moments)] == [0, 0, 27, 3] * 2


def kernels(trainer):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        tp.explain(trainer)
    lines = [line.split() for line in out.getvalue().splitlines()]
    return [" ".join(row[1:]) for row in lines if row and row[0].isdigit()]


def test_a_frozen_part_costs_no_gradient_work():
    counts = []
    for name in ("groups", "frozen"):
        trainer, st = start(OPTIMIZERS[name]())
        trainer.fit(st, tp.Data.prepare((X, Y), batch_size=53), loss=tp.loss.mse, epochs=3)
        counts.append(kernels(trainer))
    products = [[k for k in rows if k.startswith("matmul")] for rows in counts]
    # The gradient of the head's weight; in the other also that of the hidden values and of the first weight.
    assert [len(rows) for rows in products] == [3, 1]
    assert not any("6x9" in k and "linear" not in k for k in counts[1])


def test_a_frozen_part_may_be_trained_later():
    st = fit(OPTIMIZERS["frozen"]())
    trainer = tp.Trainer(model(), optim.adam(1e-3))
    with pytest.raises(ValueError, match=r"the state is of partition\(body=frozen, head=adamw\) with 2"):
        trainer.fit(st, data(), loss=tp.loss.mse)
    after = trainer.fit(trainer.make_state(st.vars), data(), loss=tp.loss.mse)
    assert params_bits(after)[0] != params_bits(st)[0]


def test_gradients_that_are_not_finite_are_named():
    trainer, st = start(OPTIMIZERS["frozen"]())
    # The root has the value 0 and an infinite gradient.
    message = r"the gradient of '2\.weight', '2\.bias' is not finite in step 1"
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit(st, data(), loss=lambda out, y: tp.sqrt((out * 0).sum()))


# ---- averages
def test_ema_is_the_average_of_the_parameters():
    seen = []
    optimizer = optim.chain(optim.sgd(0.1), optim.ema(0.8))
    trainer, first = start(optimizer)
    st = trainer.fit(
        first, data(), loss=tp.loss.mse, epochs=2, report=lambda *row: seen.append(row[2].vars.params)
    )
    want = [t.numpy().astype("f8") for t in tp.ptree.leaves(first.vars.params)]
    for params in seen:
        want = [0.8 * a + 0.2 * t.numpy() for a, t in zip(want, tp.ptree.leaves(params), strict=True)]
    averages = optim.ema_params(st)
    for a, b in zip(tp.ptree.leaves(averages), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert params_bits(st) == params_bits(fit(optim.sgd(0.1)))  # which averaging does not change
    again = tp.ptree.leaves(optim.ema_params(first))
    for a, b in zip(again, tp.ptree.leaves(first.vars.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_parameters_are_their_own_averages():
    st = fit(OPTIMIZERS["frozen, averaged"]())
    averages, params = optim.ema_params(st), st.vars.params
    np.testing.assert_array_equal(averages[0]["weight"], params[0]["weight"])
    assert (averages[2]["weight"].numpy() != params[2]["weight"].numpy()).any()
    partly = fit(OPTIMIZERS["chains in parts"]())
    averages, params = optim.ema_params(partly), partly.vars.params
    np.testing.assert_array_equal(averages[2]["weight"], params[2]["weight"])
    assert (averages[0]["weight"].numpy() != params[0]["weight"].numpy()).any()


def test_reprs_are_calls():
    opt = optim.chain(optim.clip_norm(1.0), optim.adamw(1e-3, weight_decay=0.1), optim.ema(0.999))
    assert repr(opt) == "chain(clip_norm(1.0), adamw(lr=0.001, weight_decay=0.1), ema(0.999))"
    assert repr(optim.Optimizer(signed_init, signed)) == "Optimizer(signed)"
