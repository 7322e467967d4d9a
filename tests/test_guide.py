"""Complete programs as the guide for users has them: XOR, MNIST, a loop of one's own, many metrics."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

REAL = Path(__file__).parents[2] / "shared" / "data" / "mnist"


def perceptron(*sizes):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [tp.layer.linear(a, b), tp.layer.relu()]
    return tp.layer.sequential(layers[:-1])


def test_xor():
    x = tp.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = tp.tensor([[0.0], [1.0], [1.0], [0.0]])
    model = tp.layer.sequential([tp.layer.linear(2, 4), tp.layer.tanh(), tp.layer.linear(4, 1)])
    trainer = tp.Trainer(model, tp.optim.adam(0.05))
    st = trainer.init(rngs=tp.rng.key(42), dtype=tp.float32)
    data = tp.Data.repeat(500, (x, lambda out: tp.loss.binary_cross_entropy(out, y)))
    losses = []
    st = trainer.fit(st, data, report=lambda step, loss, st: losses.append(loss))
    assert losses[-1] < 0.05 < losses[0]
    out = tp.sigmoid(trainer.predict(st, x))
    assert tp.round(out).tolist() == y.tolist()
    assert (st.step, st.opt_state.count) == (500, 500)


def test_an_early_stop_returns_the_state_of_that_step():
    (x, y), _ = tp.datasets.digits()
    trainer = tp.Trainer(perceptron(64, 32, 10), tp.optim.adam(3e-3))

    def report(step, loss, st):
        assert isinstance(loss, float)
        if loss < 0.5:
            raise tp.EarlyStop

    train = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(1), drop_last=True)
    train = train.map(lambda x, y: (x, lambda logits: tp.loss.cross_entropy_sparse(logits, y)))
    st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), train, epochs=50, report=report)
    assert 0 < st.step < 50 * len(train)


def test_a_loop_of_ones_own_with_clipping_and_a_schedule():
    """Warm-up, then a cosine; the norm is reported before clipping."""
    (x, y), (x_test, y_test) = tp.datasets.digits()
    model = perceptron(64, 64, 10)
    vars = model.init(rngs=tp.rng.key(0))
    steps = 300
    schedule = tp.optim.schedule
    warm, total = 20, steps - 20
    rate = schedule.join(
        [schedule.warmup_linear(0.0, 5e-3, warm), schedule.cosine_decay(5e-3, total, alpha=0.01)], [warm]
    )
    assert [rate(0), rate(warm), rate(steps)] == pytest.approx([0.0, 5e-3, 5e-5])
    opt = tp.optim.adamw(rate, weight_decay=1e-3, mask=lambda p: tp.ptree.map(lambda w: w.ndim > 1, p))
    params, state = vars.params, opt.init(vars.params)
    train = tp.Data.prepare((x, y), batch_size=100, shuffle=tp.rng.key(1)).prefetch(2)
    tracker = tp.metric.Tracker()
    while state.count < steps:
        for xs, ys in train:

            def objective(p, xs=xs, ys=ys):
                logits, _ = model.apply(vars.with_params(p), xs, training=True, rngs=tp.rng.key(2))
                return tp.loss.cross_entropy_sparse(logits, ys), logits

            loss, grads, logits = tp.value_and_grad_aux(objective)(params)
            norm = tp.optim.global_norm(grads)
            grads = tp.optim.clip_by_global_norm(1.0, grads)
            assert tp.optim.global_norm(grads).item() <= min(norm.item(), 1.0) * (1 + 1e-6)
            updates, state = opt.step(state, params, grads)
            params = tp.optim.apply_updates(params, updates)
            tracker.observe("loss", loss)
            tracker.observe("accuracy", tp.metric.accuracy(logits, ys))
        train.reset()
    assert tracker.count("loss") == state.count
    assert tracker.summary().startswith("accuracy: 0.")
    logits, _ = model.apply(vars.with_params(params), x_test)
    assert tp.metric.accuracy(logits, y_test) > 0.95

    count, trees = state.to_trees()
    again = opt.state_of_trees(count, trees)
    assert again.count == state.count
    for a, b in zip(tp.ptree.leaves(again.moments), tp.ptree.leaves(state.moments), strict=True):
        np.testing.assert_array_equal(a, b)


def test_many_metrics_and_given_weights():
    """Training goes on from weights of another model; scores are of the whole set, or means of batches."""
    (x, y), (x_test, y_test) = tp.datasets.digits()
    trainer = tp.Trainer(perceptron(64, 32, 10), tp.optim.rmsprop(3e-3))
    first = trainer.fit(
        trainer.init(rngs=tp.rng.key(0)),
        tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(1)),
        loss=tp.loss.cross_entropy_sparse,
        epochs=5,
    )
    st = trainer.make_state(first.vars)
    assert (st.step, st.opt_state.count) == (0, 0)
    kept = st.vars.params[0]["weight"].numpy().copy()
    after = trainer.fit(st, tp.Data.prepare((x, y), 64), loss=tp.loss.cross_entropy_sparse)
    np.testing.assert_array_equal(st.vars.params[0]["weight"], kept)
    assert (after.vars.params[0]["weight"].numpy() != kept).any()

    test = tp.Data.prepare((x_test, y_test), batch_size=100)
    names = ("Accuracy", "Precision", "Recall", "F1", "TopKAccuracy")
    scores = trainer.evaluate(after, test, {n: getattr(tp.metric, n)() for n in names})
    logits = trainer.predict(after, x_test, batch_size=37)
    assert scores["Accuracy"] == tp.metric.accuracy(logits, y_test) > 0.9
    assert scores["F1"] == pytest.approx(tp.metric.f1(logits, y_test, average="macro"))
    assert scores["TopKAccuracy"] == tp.metric.top_k_accuracy(logits, y_test, k=5) > scores["Accuracy"]
    test.reset()
    means = tp.metric.eval_many(
        lambda x, y: {
            "loss": tp.loss.cross_entropy_sparse(trainer.predict(after, x), y),
            "accuracy": tp.metric.accuracy(trainer.predict(after, x), y),
        },
        test,
    )
    assert list(means) == ["accuracy", "loss"]
    test.reset()
    assert tp.metric.eval(
        lambda x, y: tp.metric.accuracy(trainer.predict(after, x), y), test
    ) == pytest.approx(means["accuracy"])
    with pytest.raises(ValueError, match="exhausted"):
        tp.metric.eval(lambda x, y: 0.0, test)


@pytest.mark.skipif(not REAL.is_dir(), reason="MNIST is not here")
def test_three_epochs_of_mnist():
    """784-512-256-10, Adam with a warm-up and a cosine: 97.5 % of the test images are the bar."""
    (x, y), (x_test, y_test) = tp.datasets.mnist(REAL)
    train = tp.Data.prepare((x.reshape(-1, 784), y), batch_size=128, shuffle=tp.rng.key(1), drop_last=True)
    test = tp.Data.prepare((x_test.reshape(-1, 784), y_test), batch_size=1000)
    steps = 3 * len(train)
    schedule = tp.optim.schedule
    rate = schedule.join(
        [schedule.warmup_cosine(0.0, 1e-3, 100), schedule.cosine_decay(1e-3, steps - 100)], [100]
    )
    trainer, history = tp.Trainer(perceptron(784, 512, 256, 10), tp.optim.adam(rate)), tp.History()
    st = trainer.fit(
        trainer.init(rngs=tp.rng.key(0)),
        train,
        loss=tp.loss.cross_entropy_sparse,
        epochs=3,
        validate=(test, {"accuracy": tp.metric.Accuracy()}),
        history=history,
    )
    assert (st.step, len(history.steps), len(history.epochs)) == (steps, steps, 3)
    assert history.epochs[-1]["accuracy"] >= 0.975
