"""The guide for users line by line, from the losses to many machines: each runs and does what it says."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy

import treepie as tp

KEY = tp.rng.key(0)


def classifier():
    (x, y), test = tp.datasets.digits()
    model = tp.layer.sequential(
        [tp.layer.linear(64, 32), tp.layer.relu(), tp.layer.dropout(0.1), tp.layer.linear(32, 10)]
    )
    return model, (x, y), test


def test_losses():
    logits, indices = tp.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), np.array([0, 2], np.uint8)
    one_hot = tp.one_hot(indices, 3)
    sparse = tp.loss.cross_entropy_sparse(logits, indices)
    assert sparse.shape == ()
    assert tp.loss.cross_entropy(logits, one_hot, label_smoothing=0.0).item() == pytest.approx(sparse.item())
    smoothed = tp.loss.cross_entropy(logits, one_hot, label_smoothing=0.3)
    even = tp.loss.cross_entropy(logits, np.full((2, 3), 1 / 3, np.float32))
    assert smoothed.item() == pytest.approx(0.7 * sparse.item() + 0.3 * even.item())
    first = tp.loss.cross_entropy_sparse(logits, indices, ignore_index=2)
    assert first.item() == pytest.approx(tp.loss.cross_entropy_sparse(logits[:1], indices[:1]).item())

    far = tp.tensor([1e4, -1e4])
    assert tp.loss.binary_cross_entropy(far, [1.0, 0.0]).item() == 0
    assert tp.loss.binary_cross_entropy(far, [0.0, 1.0]).item() == 1e4
    assert tp.loss.cross_entropy_sparse([[1e4, -1e4]], [1]).item() == 2e4
    assert tp.loss.mse([1.0, 5.0], [0.0, 2.0]).item() == 5
    assert tp.loss.mae([1.0, 5.0], [0.0, 2.0]).item() == 2
    assert tp.loss.huber([1.0, 5.0], [0.0, 2.0], delta=1.0).item() == pytest.approx((0.5 + 2.5) / 2)
    loss, grad = tp.value_and_grad(lambda x: tp.loss.huber(x, [0.0, 2.0]))(tp.tensor([0.5, 5.0]))
    assert (loss.item(), grad.tolist()) == (pytest.approx((0.125 + 2.5) / 2), [0.25, 0.5])
    for label in (-1, 3):
        with pytest.raises(ValueError, match="cross_entropy_sparse"):
            tp.loss.cross_entropy_sparse(logits, [0, label])


OPTIMIZERS = [
    tp.optim.sgd(0.1),
    tp.optim.sgd(0.1, momentum=0.9, nesterov=True),
    tp.optim.adam(0.1, b1=0.9, b2=0.999, eps=1e-8),
    tp.optim.adamw(0.1, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, mask=None),
    tp.optim.rmsprop(0.1, decay=0.9, eps=1e-8, momentum=0.5),
    tp.optim.adagrad(0.1, eps=1e-8),
]


@pytest.mark.parametrize("opt", OPTIMIZERS, ids=lambda opt: opt.name)
def test_optimizers(opt):
    params, grads = {"w": tp.tensor([1.0, -2.0]), "b": tp.zeros(())}, {"w": tp.ones(2), "b": tp.ones(())}
    state = opt.init(params)
    for _ in range(3):
        norm = tp.optim.global_norm(grads)
        assert norm.item() == pytest.approx(math.sqrt(3))
        clipped = tp.optim.clip_by_global_norm(1.0, grads)
        assert tp.optim.global_norm(clipped).item() == pytest.approx(1.0)

        updates, after = opt.step(state, params, clipped)
        added = tp.optim.apply_updates(params, updates)
        count, trees = state.to_trees()
        same, _ = opt.update(opt.state_of_trees(count, trees), params, clipped)
        params, state = opt.update(state, params, clipped)
        assert state.count == after.count == count + 1
        for name in params:
            np.testing.assert_array_equal(same[name], params[name])
            np.testing.assert_allclose(added[name], params[name], rtol=1e-6)
    assert params["w"].numpy()[0] < 1


def test_schedules():
    s = tp.optim.schedule
    rates = {
        s.constant(0.5): {1: 0.5, 100: 0.5},
        s.cosine_decay(1.0, 10, alpha=0.1): {1: 0.9779754, 10: 0.1, 99: 0.1},
        s.cosine_decay(1.0, 10): {5: 0.5, 10: 0.0},
        s.warmup_linear(0.0, 1.0, 4): {1: 0.25, 4: 1.0, 9: 1.0},
        s.warmup_cosine(0.0, 1.0, 4): {2: 0.5, 4: 1.0, 9: 1.0},
        s.exponential_decay(1.0, 0.5, 10): {10: 0.5, 20: 0.25},
        s.join([s.warmup_linear(0.0, 1.0, 4), s.cosine_decay(1.0, 6)], [4]): {2: 0.5, 7: 0.5, 10: 0.0},
    }
    for fn, values in rates.items():
        assert {step: fn(step) for step in values} == pytest.approx(values, abs=1e-7)
    params = [tp.zeros(1)]
    opt = tp.optim.sgd(lambda step: 1.0 / step)
    state = opt.init(params)
    for _ in range(2):
        params, state = opt.update(state, params, [tp.ones(1)])
    assert params[0].item() == -1.5


def test_data():
    assert tp.Data.of_array([3, 1]).to_list() == [3, 1]
    assert [t.tolist() for t in tp.Data.of_tensor(tp.eye(2))] == [[1, 0], [0, 1]]
    assert [(a.item(), b.item()) for a, b in tp.Data.of_tensors((tp.arange(2), tp.ones(2)))] == [
        (0, 1),
        (1, 1),
    ]
    assert tp.Data.repeat(3, "x").to_list() == ["x"] * 3
    d = tp.Data.of_fn(10, lambda i: i * i).map(lambda v: v + 1)
    assert d.batch(4, drop_last=False).to_list()[-1] == [65, 82]
    assert len(d.batch(4, drop_last=True)) == 2
    d = d.map_batch(3, tp.data.stack_batch, drop_last=False).shuffle(KEY).take(3).prefetch(2)
    assert len(d) == 3
    first, seen = [x.tolist() for x in d], []
    assert d.to_list() == []
    with pytest.warns(RuntimeWarning, match=r"reset\(\)"):
        assert list(d) == []
    d.reset()
    d.iteri(lambda k, x: seen.append((k, x.shape)))
    assert [k for k, _ in seen] == [0, 1, 2]
    passes = [first]
    for _ in range(4):
        d.reset()
        passes.append(d.fold(lambda found, x: [*found, x.tolist()], []))
    assert len({str(p) for p in passes}) > 1
    d.seek(0)
    assert [x.tolist() for x in d] == first
    d.reset()
    d.iter(lambda x: seen.append(x))
    assert len(seen) == 6
    unpacked = tp.Data.of_array([(1, 2), (3, 4)])
    assert (
        unpacked.map(lambda x, y: x + y).to_list()
        == unpacked.map(lambda xy: xy[0] + xy[1]).to_list()
        == [3, 7]
    )
    assert next(iter(unpacked)) == (1, 2)


def test_data_on_the_disk_is_read_a_batch_at_a_time(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    train = tp.Data.prepare((x, np.arange(10)), batch_size=4, shuffle=KEY, drop_last=True)
    order = tp.rng.permutation(tp.rng.fold_in(KEY, 0), 10).numpy()
    for k, (rows, numbers) in enumerate(train):
        np.testing.assert_array_equal(numbers, order[4 * k : 4 * k + 4])
        np.testing.assert_array_equal(rows, x[order[4 * k : 4 * k + 4]])
    t = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
    for use in (lambda: t.fit(t.init(KEY), train), lambda: tp.metric.eval(len, train)):
        with pytest.raises(ValueError, match="exhausted"):
            use()


def test_fit_with_every_argument(tmp_path):
    model, (x, y), test = classifier()
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    st = start = trainer.init(rngs=tp.rng.key(42), dtype=tp.float32)
    kept = {path: t.numpy().copy() for path, t in tp.ptree.flatten_with_paths(start.vars.params)}
    comm = tp.distributed.world()
    history, calls = tp.History(), []
    train = tp.Data.prepare((x, y), batch_size=32, shuffle=tp.rng.key(1)).shard(comm).prefetch(2)
    arguments = {
        "rngs": tp.rng.key(2),
        "loss": tp.loss.cross_entropy_sparse,
        "report": lambda step, loss, st: calls.append((step, loss, st.step)),
        "epochs": 3,
        "validate": (tp.Data.prepare(test, batch_size=100), {"accuracy": tp.metric.Accuracy()}),
        "progress": False,
        "clip_norm": 5.0,
        "accumulate_steps": 2,
        "checkpoint": tp.checkpoint.every(10, tmp_path / "run", keep=3),
        "resume": True,
        "history": history,
        "on_nonfinite": "raise",
        "comm": comm,
    }
    st = trainer.fit(st, train, **arguments)
    steps = 3 * 23  # 45 batches, two a step
    assert (st.step, st.opt_state.count, len(history.epochs)) == (steps, steps, 3)
    assert [row[0] for row in calls] == [row[2] for row in calls] == list(range(1, steps + 1))
    assert all(type(loss) is float for _, loss, _ in calls)
    assert [(step, loss) for step, loss, _ in calls] == history.steps
    assert history.epochs[-1]["accuracy"] > 0.9
    for path, t in tp.ptree.flatten_with_paths(start.vars.params):
        np.testing.assert_array_equal(t, kept[path])  # a state that a caller keeps
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [f"step-{k:08d}" for k in (50, 60, steps)]
    again = trainer.fit(start, train, **arguments)  # which has ended
    assert again.step == steps == len(calls)


def test_steps_of_ones_own(tmp_path):
    model, (x, y), _ = classifier()
    trainer = tp.Trainer(model, tp.optim.adam(3e-3))
    st = trainer.init(rngs=KEY)
    objective = lambda out: tp.loss.cross_entropy_sparse(out, y)
    losses = []
    for k in range(30):
        loss, st = trainer.step(st, x, loss=objective, training=True, rngs=tp.rng.fold_in(KEY, k), ctx=None)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(ValueError, match="dropout"):
        trainer.step(st, x, loss=objective)  # and no key
    _, other = trainer.step(st, x, loss=objective, training=False)
    assert other.step == st.step + 1 == 31
    out = trainer.predict(st, x, ctx=None)
    np.testing.assert_allclose(trainer.predict(st, x, batch_size=100), out, rtol=1e-5, atol=1e-6)
    fresh = trainer.make_state(st.vars)
    assert (fresh.step, fresh.opt_state.count) == (0, 0)


def test_early_stop_and_ctrl_c():
    model, data, _ = classifier()
    trainer = tp.Trainer(model, tp.optim.sgd(0.1))

    def fit(error):
        def report(step, loss, st):
            if step == 3:
                raise error

        train = tp.Data.prepare(data, batch_size=100)
        st = trainer.init(rngs=KEY)
        return trainer.fit(st, train, rngs=KEY, loss=tp.loss.cross_entropy_sparse, report=report)

    assert fit(tp.EarlyStop).step == 3
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(KeyboardInterrupt)
    assert caught.value.state.step == 3


def test_a_number_that_is_not_finite():
    data = tp.Data.of_array([1.0, np.inf, 2.0]).map(lambda v: ([[v]], [[1.0]]))
    t = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.01))
    with pytest.raises(FloatingPointError, match="in step 2") as caught:
        t.fit(t.init(KEY), data, loss=tp.loss.mse)
    assert caught.value.state.step == 1
    data.reset()
    with pytest.warns(RuntimeWarning, match="in step 2, which is skipped"):
        st = t.fit(t.init(KEY), data, loss=tp.loss.mse, on_nonfinite="skip")
    assert (st.step, st.opt_state.count) == (3, 2)
    assert np.isfinite(st.vars.params["weight"].item())


def test_metrics():
    m = tp.metric
    logits, y = tp.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, 1.0, 4.0], [5.0, 0.0, 1.0]]), [0, 1, 1, 0]
    assert m.accuracy(logits, y) == 0.75
    assert m.accuracy([0.2, 0.8], [0, 1]) == m.accuracy([[0.2], [0.8]], [[0], [1]]) == 1.0
    assert m.binary_accuracy([0.2, 0.4], [0, 1], threshold=0.3) == 1.0
    assert m.precision(logits, y, average="micro") == m.recall(logits, y, average="micro") == 0.75
    assert m.precision(logits, y, average="weighted") == 1.0
    assert m.f1(logits, y) == m.f1(logits, y, average="macro") == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert m.top_k_accuracy(logits, y, k=2) == 1.0
    assert m.confusion_matrix(logits, y).tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert m.auc_roc([0.1, 0.7, 0.6, 0.9], [0, 0, 1, 1]) == 0.75
    pred, target = [1.0, 2.0, 4.0], [1.0, 3.0, 5.0]
    assert (m.mse(pred, target), m.mae(pred, target)) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert m.r2(pred, target) == pytest.approx(0.75)
    data = tp.Data.of_array([1.0, 3.0])
    assert m.eval(lambda v: v, data) == 2.0
    data.reset()
    assert list(m.eval_many(lambda v: {"b": v, "a": 2 * v}, data).items()) == [("a", 4.0), ("b", 2.0)]

    t = m.Tracker()
    t.observe("loss", 0.4231)
    t.observe("accuracy", 0.915)
    assert t.summary() == "accuracy: 0.9150  loss: 0.4231"
    assert (t.mean("loss"), t.count("loss")) == (0.4231, 1)
    assert t.to_list() == [("accuracy", 0.915), ("loss", 0.4231)]
    t.reset()
    assert t.to_list() == []

    whole, left, right = m.F1("macro"), m.F1("macro"), m.F1("macro")
    whole.update(logits, y)
    left.update(logits[:1], y[:1])
    right.update(logits[1:], y[1:])
    left.merge(right)
    assert left.compute() == whole.compute() == m.f1(logits, y)
    left.reset()
    left.update(logits[:1], y[:1])
    assert left.compute() != whole.compute()


def test_checkpoints_and_pretrained_weights(tmp_path):
    model, data, (x, _) = classifier()
    trainer = tp.Trainer(model, tp.optim.adam(3e-3))
    train = tp.Data.prepare(data, batch_size=100)
    st = trainer.fit(trainer.init(rngs=KEY), train, rngs=KEY, loss=tp.loss.cross_entropy_sparse)
    path = tmp_path / "model.safetensors"
    tp.checkpoint.save(path, st.vars.params)
    vars = model.init(rngs=tp.rng.key(9), dtype=tp.float64)
    params = tp.checkpoint.load(path, like=vars.params)
    assert params[0]["weight"].dtype == tp.float64
    np.testing.assert_allclose(
        model.apply(vars.with_params(params), x)[0], trainer.predict(st, x), rtol=1e-4, atol=1e-5
    )
    tp.checkpoint.save_state(tmp_path / "run", st)
    found = tp.checkpoint.load_state(tmp_path / "run", like=trainer.init(rngs=tp.rng.key(8)))
    np.testing.assert_array_equal(trainer.predict(found, x), trainer.predict(st, x))
    assert (found.step, found.opt_state.count) == (15, 15)

    (tmp_path / "config.json").write_text(json.dumps({"layers": 2}))
    assert tp.hub.load_config(tmp_path) == {"layers": 2}
    weights = tp.hub.load_weights(tmp_path)
    assert sorted(weights) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    np.testing.assert_array_equal(weights["0.weight"], safetensors.numpy.load_file(path)["0.weight"])
