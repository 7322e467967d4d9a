"""Training: steps against a hand-written one, loops, early ends, prediction, evaluation."""

import numpy as np
import pytest

import treepie as tp
from treepie import Data

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
Y = X @ [[1.0], [-2.0], [0.5]] + 0.1
KEY = tp.rng.key(5)


def trainer(optimizer=None, model=None):
    return tp.Trainer(model or tp.layer.linear(3, 1), optimizer or tp.optim.sgd(0.1))


def batches(size=4):
    return Data.prepare((X, Y), batch_size=size)


def weights(st):
    return np.concatenate([np.ravel(p) for p in tp.ptree.leaves(st.vars.params)])


def test_fit_takes_the_steps_that_numpy_takes():
    t = trainer()
    st = first = t.init(rngs=KEY, dtype=tp.float64)
    w, b = (np.array(st.vars.params[k]) for k in ("weight", "bias"))
    reports = []
    st = t.fit(st, batches(), loss=tp.loss.mse, epochs=2, report=lambda *r: reports.append(r))
    losses = []
    for k in [0, 4, 8] * 2:
        x, y = X[k : k + 4], Y[k : k + 4]
        error = x @ w + b - y
        losses.append((error**2).mean())
        w, b = w - 0.1 * 2 * x.T @ error / 4, b - 0.1 * 2 * error.mean(0)
    np.testing.assert_allclose(st.vars.params["weight"], w, rtol=1e-12)
    np.testing.assert_allclose(st.vars.params["bias"], b, rtol=1e-12)
    assert [(r[0], type(r[1]), r[2].step) for r in reports] == [(k, float, k) for k in range(1, 7)]
    np.testing.assert_allclose([r[1] for r in reports], losses, rtol=1e-12)
    assert (st.step, st.opt_state.count, first.step) == (6, 6, 0)
    np.testing.assert_array_equal(weights(first), weights(t.init(rngs=KEY, dtype=tp.float64)))


def test_loss_functions_in_the_data_and_single_steps_do_the_same():
    t = trainer(tp.optim.adam(0.01))
    st = t.init(KEY)
    a = t.fit(st, batches(), loss=tp.loss.mse)
    b = t.fit(st, batches().map(lambda x, y: (x, lambda out: tp.loss.mse(out, y))))
    c = st
    for x, y in batches():
        loss, c = t.step(c, x, loss=lambda out, y=y: tp.loss.mse(out, y))
    assert loss.shape == ()
    np.testing.assert_array_equal(weights(a), weights(b))
    np.testing.assert_array_equal(weights(a), weights(c))


def test_a_fit_in_two_parts_is_one_fit():
    model = tp.layer.sequential([tp.layer.linear(3, 8), tp.layer.dropout(0.5), tp.layer.linear(8, 1)])
    t = trainer(tp.optim.adam(0.01), model)
    start = t.init(KEY)
    whole = t.fit(start, batches(), rngs=KEY, loss=tp.loss.mse)
    data = batches()
    part = t.fit(start, data.take(2), rngs=KEY, loss=tp.loss.mse)
    rest = iter(data)
    next(rest), next(rest)
    part = t.fit(part, data, rngs=KEY, loss=tp.loss.mse)
    np.testing.assert_array_equal(weights(whole), weights(part))
    assert (weights(whole) != weights(t.fit(start, batches(), tp.rng.key(6), tp.loss.mse))).any()


def test_a_state_that_nobody_has_read_is_not_changed_by_another_fit():
    t = trainer(tp.optim.adam(0.1))
    start = t.init(KEY)
    first, again = (t.fit(start, batches(), loss=tp.loss.mse) for _ in range(2))
    t.fit(first, batches(), loss=tp.loss.mse)
    np.testing.assert_array_equal(weights(first), weights(again))
    assert first.step == 3


def test_states_that_a_report_keeps_and_reads_later():
    t, states, copies = trainer(tp.optim.adam(0.1)), [], []
    for report in (
        lambda step, loss, st: states.append(st),
        lambda step, loss, st: copies.append(weights(st).copy()),
    ):
        t.fit(t.init(KEY), batches(), loss=tp.loss.mse, epochs=2, report=report)
    assert [st.step for st in states] == [1, 2, 3, 4, 5, 6]
    for st, copy in zip(states, copies, strict=True):
        np.testing.assert_array_equal(weights(st), copy)


def test_clip_norm_bounds_the_step():
    t = trainer(tp.optim.sgd(1.0))
    st = t.init(KEY)
    after = t.fit(st, batches(12), loss=tp.loss.mse, clip_norm=0.01)
    np.testing.assert_allclose(np.linalg.norm(weights(after) - weights(st)), 0.01, rtol=1e-3)


def test_early_stop_and_ctrl_c():
    t = trainer()

    def ending(error):
        def report(step, loss, st):
            if step == 2:
                raise error

        return report

    assert t.fit(t.init(KEY), batches(), loss=tp.loss.mse, report=ending(tp.EarlyStop)).step == 2
    with pytest.raises(KeyboardInterrupt) as caught:
        t.fit(t.init(KEY), batches(), loss=tp.loss.mse, report=ending(KeyboardInterrupt))
    assert caught.value.state.step == 2


def test_progress_is_a_bar_on_stderr_where_wanted(capsys):
    t = trainer()
    st = t.fit(t.init(KEY), batches(), loss=tp.loss.mse, epochs=2, progress=True)
    shown = capsys.readouterr()
    assert "epoch 2/2  batch 3/3" in shown.err
    assert "loss: " in shown.err
    t.fit(st, batches(), loss=tp.loss.mse)
    assert capsys.readouterr() == ("", "")


def test_make_state_and_predict():
    t = trainer(tp.optim.adam(0.1), tp.layer.sequential([tp.layer.linear(3, 1), tp.layer.dropout(0.5)]))
    st = t.fit(t.init(KEY), batches(), rngs=KEY, loss=tp.loss.mse)
    fresh = t.make_state(st.vars)
    assert (fresh.step, fresh.opt_state.count, fresh.vars) == (0, 0, st.vars)
    whole = t.predict(st, X)
    w, b = (st.vars.params[0][k].numpy() for k in ("weight", "bias"))
    # The error of a sum is relative to its terms, which nearly cancel in some rows.
    terms = np.abs(X.astype(float)) @ np.abs(w) + np.abs(b)
    assert (np.abs(whole - (X.astype(float) @ w + b)) < 1e-6 * terms).all()
    parts = t.predict(st, X, batch_size=5)
    assert parts.shape == whole.shape
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_predict_cuts_the_context_along_with_the_input():
    def apply(params, state, x, *, dtype, training, rngs, ctx):
        return {"y": x * ctx.get("row") + ctx.get("all")}, state

    model = tp.layer.Layer(lambda rngs, dtype: tp.layer.Vars({}, {}, dtype), apply)
    t = trainer(model=model)
    ctx = tp.Context().set("row", np.arange(5.0, dtype=np.float32)).set("all", np.float32(1))
    out = t.predict(t.init(KEY), np.ones(5, np.float32), ctx=ctx, batch_size=2)
    assert out["y"].tolist() == [1, 2, 3, 4, 5]


def test_evaluate_scores_the_whole_data_set():
    t = trainer()
    st = t.init(KEY, tp.float64)
    metrics = {"mse": tp.metric.MSE(), "loss": tp.metric.Mean(tp.loss.mse)}
    scores = t.evaluate(st, batches(5), metrics)
    want = np.mean((t.predict(st, X).numpy() - Y) ** 2)
    np.testing.assert_allclose([scores["mse"], scores["loss"]], want, rtol=1e-12)
    assert t.evaluate(st, batches(5), metrics) == scores


def exhausted():
    data = batches()
    data.to_list()
    return data


st = trainer().init(KEY)


@pytest.mark.parametrize("rows", [12, 10, 9])
def test_accumulated_steps_are_those_of_the_big_batch(rows):
    """Short batches and a short last window included: 10 rows in threes, two batches a step."""
    t = trainer(tp.optim.adam(0.05))
    start = t.init(rngs=KEY, dtype=tp.float64)
    whole, parts = [], []
    big = Data.prepare((X[:rows], Y[:rows]), batch_size=6)
    a = t.fit(start, big, loss=tp.loss.mse, epochs=3, report=lambda *r: whole.append(r[:2]))
    small = Data.prepare((X[:rows], Y[:rows]), batch_size=3)
    b = t.fit(
        start, small, loss=tp.loss.mse, epochs=3, accumulate_steps=2, report=lambda *r: parts.append(r[:2])
    )
    np.testing.assert_allclose(weights(a), weights(b), rtol=1e-12)
    np.testing.assert_allclose(whole, parts, rtol=1e-12)
    assert a.step == b.step == 6
    clipped = [
        t.fit(start, d, loss=tp.loss.mse, accumulate_steps=k, clip_norm=0.01)
        for d, k in ((Data.prepare((X, Y), 6), 1), (Data.prepare((X, Y), 3), 2))
    ]
    np.testing.assert_allclose(weights(clipped[0]), weights(clipped[1]), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_running_statistics_are_those_of_all_elements(size):
    model = tp.layer.sequential([tp.layer.batch_norm(3, momentum=0.3), tp.layer.linear(3, 1)])
    t = trainer(model=model)
    st = t.fit(t.init(KEY, tp.float64), batches(3), loss=tp.loss.mse, accumulate_steps=size)
    mean = np.zeros(3)
    for rows in np.split(X, 4):
        mean = 0.7 * mean + 0.3 * rows.mean(0)
    np.testing.assert_allclose(st.vars.state[0]["running_mean"], mean, rtol=1e-12)


@pytest.mark.parametrize("reads", [False, True], ids=["program", "op by op"])
def test_accumulated_steps_have_the_dropout_of_one_big_batch(reads):
    def loss(out, y):
        assert not reads or out.sum().item() != 0
        return tp.loss.mse(out, y)

    model = tp.layer.sequential([tp.layer.linear(3, 8), tp.layer.dropout(0.5), tp.layer.linear(8, 1)])
    t, key = trainer(model=model), tp.rng.key(1)
    st = t.init(KEY, tp.float64)
    whole = t.fit(st, batches(6), rngs=key, loss=loss)
    parts = t.fit(st, batches(3), rngs=key, loss=loss, accumulate_steps=2)
    np.testing.assert_allclose(weights(parts), weights(whole), rtol=1e-12)


def test_validation_goes_to_the_history(capsys):
    t, history = trainer(), tp.History()
    held_out = (Data.prepare((X, Y), 5), {"mse": tp.metric.MSE(), "mae": tp.metric.MAE()})
    losses = []
    st = t.fit(
        t.init(KEY),
        batches(),
        loss=tp.loss.mse,
        epochs=2,
        validate=held_out,
        history=history,
        progress=True,
        report=lambda step, loss, st: losses.append((step, loss)),
    )
    assert history.steps == losses
    assert [(e["epoch"], e["step"]) for e in history.epochs] == [(1, 3), (2, 6)]
    assert history.epochs[1]["loss"] == pytest.approx(np.mean([loss for _, loss in losses[3:]]))
    want = np.mean((X @ st.vars.params["weight"].numpy() + st.vars.params["bias"].numpy() - Y) ** 2)
    assert history.epochs[1]["mse"] == pytest.approx(want, rel=1e-5)
    assert f"mae: {history.epochs[1]['mae']:.4f}" in capsys.readouterr().err


BAD = np.where(np.arange(12)[:, None] == 5, np.nan, X)


def test_a_loss_that_is_not_finite_raises_before_the_state_is_touched():
    t, reports = trainer(), []
    with pytest.raises(
        FloatingPointError, match=r"Trainer.fit: the loss is nan in step 2; the state bef"
    ) as caught:
        data = Data.prepare((BAD, Y), 4)
        t.fit(t.init(KEY), data, loss=tp.loss.mse, report=lambda *r: reports.append(r))
    assert caught.value.state is reports[-1][2]
    assert np.isfinite(weights(caught.value.state)).all()


def test_steps_that_are_not_finite_can_be_skipped():
    t = trainer()
    start = t.init(KEY)
    with pytest.warns(RuntimeWarning, match="the loss is nan in step 2, which is skipped"):
        st = t.fit(start, Data.prepare((BAD, Y), 4), loss=tp.loss.mse, on_nonfinite="skip")
    kept = Data.of_array([0, 8]).map(lambda k: (X[k : k + 4], Y[k : k + 4]))
    np.testing.assert_array_equal(weights(st), weights(t.fit(start, kept, loss=tp.loss.mse)))
    assert (st.step, st.opt_state.count) == (3, 2)


def test_a_gradient_that_is_not_finite_is_named():
    """sqrt has an infinite slope at 0, where the loss is finite."""
    t = trainer()
    st = t.make_state(tp.layer.Vars({"weight": tp.zeros((3, 1)), "bias": tp.zeros(1)}, {}, tp.float32))
    data = Data.repeat(1, (np.zeros((2, 3), "f4"), lambda out: tp.sqrt(out).mean()))
    with pytest.raises(FloatingPointError, match=r"the gradient of '.*bias' is not finite in step 1"):
        t.fit(st, data)


ERRORS = [
    (
        lambda t: t.fit(st, batches(), loss=tp.loss.mse, accumulate_steps=0),
        ValueError,
        "Trainer.fit: accumulate_steps is 0, expected at least 1",
    ),
    (
        lambda t: t.fit(st, batches(), loss=tp.loss.mse, on_nonfinite="ignore"),
        ValueError,
        "Trainer.fit: on_nonfinite is 'ignore', expected 'raise' or 'skip'",
    ),
    (
        lambda t: t.fit(st, batches(), loss=tp.loss.mse, validate=batches()),
        TypeError,
        r"Trainer.fit: validate is a Data, expected a tuple \(data, metrics\) of a tp.Data and a dict",
    ),
    (lambda t: t.fit(st, exhausted(), loss=tp.loss.mse), ValueError, "Trainer.fit: data is exhausted"),
    (lambda t: t.fit(st, Data.repeat(0, 1)), ValueError, "Trainer.fit: data is empty"),
    (lambda t: t.fit(st, [(X, Y)]), TypeError, "Trainer.fit: data is a list, expected a tp.Data"),
    (lambda t: t.fit(st, batches(), epochs=0), ValueError, "Trainer.fit: epochs is 0, expected at"),
    (lambda t: t.fit(st, batches()), TypeError, r"element of data is \(input, Tensor\), expected"),
    (lambda t: t.fit(st, Data.repeat(1, X)), TypeError, "element of data is a ndarray, expected a tup"),
    (
        lambda t: t.fit(st, Data.repeat(1, (X, lambda out: out)), loss=tp.loss.mse),
        TypeError,
        "holds a function and loss is given, expected one of the two",
    ),
    (
        lambda t: t.fit(st, Data.repeat(1, (X, lambda out: out))),
        ValueError,
        r"Trainer: loss returned a tensor of shape \(12, 1\), expected a scalar",
    ),
    (
        lambda t: t.fit(st, batches(), loss=tp.loss.mse, clip_norm=-1.0),
        ValueError,
        "Trainer.fit: clip_norm is -1.0, expected a positive number",
    ),
    (lambda t: t.predict(st, X, batch_size=0), ValueError, "Trainer.predict: batch_size is 0 and x has"),
    (lambda t: t.evaluate(st, tp.Data.of_array([]), {}), ValueError, "Trainer.evaluate: data is empty"),
    (lambda t: tp.Trainer(t, t.optimizer), TypeError, "Trainer: model is a Trainer, expected a Layer"),
    (
        lambda t: tp.Trainer(t.model, 0.1),
        TypeError,
        "Trainer: optimizer is 0.1, expected an Optimizer, such as tp.optim.adam",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(trainer())
