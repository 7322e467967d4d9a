"""Callbacks of `fit`: when their methods are called, and what those of the library do."""

import csv
import sys

import numpy as np
import pytest

import treepie as tp
from treepie.train import callbacks as module, plan, progress
from treepie.train.runner import RatedRunner, StepRunner

from .callback_runs import KEY, Log, X, Y, bits, fit, trainer

# ---- when methods are called


def test_methods_are_called_in_this_order():
    log, history = Log(), tp.History()
    fit(callbacks=[log], epochs=2, history=history)
    expected = [("begin", False, 0)]
    for epoch in (1, 2):
        last = 3 * epoch
        expected += [
            *[("step", k) for k in range(last - 2, last + 1)],
            ("epoch", epoch, last, ["loss", "mae"]),
        ]
    assert log.calls == [*expected, ("end", 6)]


@pytest.mark.parametrize(("when", "stop", "last"), [("epoch", 2, 6), ("step", 4, 4)])
def test_early_stop_in_a_callback_ends_training_and_others_are_called_all_the_same(when, stop, last):
    first, second = Log(stop, when), Log()
    st = fit(callbacks=[first, second], epochs=5)
    assert st.step == last
    assert first.calls == second.calls
    assert first.calls[-1] == ("end", last)


def test_scores_are_those_of_the_history_before_the_next_step():
    rows = []

    class Rows:
        def on_epoch(self, epoch, scores, st):
            rows.append(scores)

    history = tp.History()
    fit(callbacks=[Rows()], epochs=3, history=history)
    assert rows == [{"loss": e["loss"], "mae": e["mae"]} for e in history.epochs]


def test_what_on_end_returns_is_returned():
    class First:
        def on_epoch(self, epoch, scores, st):
            self.kept = st if epoch == 1 else self.kept

        def on_end(self, st):
            return self.kept

    log = Log()
    assert fit(callbacks=[First(), log], epochs=3).step == 3
    assert log.calls[-1] == ("end", 3)


def test_a_state_that_a_callback_keeps_does_not_change():
    kept = tp.callback.best("loss", mode="max")
    fit(callbacks=[kept], epochs=4)
    assert kept.epoch == 1
    assert bits(kept.best) == bits(fit(epochs=1))


class Nothing:
    pass


def keras(name):
    return type("Mine", (), {name: lambda self, *arguments: None})()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Log(), "callbacks is a Log, expected a list of callbacks"),
        (
            [Nothing()],
            "callbacks has a Nothing, expected an object with some of the methods on_b",
        ),
        ([Log], "callbacks has the class Log, expected an object"),
        ([keras("on_epoch_end")], r"Mine has a method on_epoch_end, .* did you mean 'on_epoch'\?"),
        ([keras("on_train_batch_end")], r"did you mean 'on_step'\?"),
        ([keras("on_train_begin")], r"did you mean 'on_begin'\?"),
        ([keras("on_epohc")], r"did you mean 'on_epoch'\?"),
        ([keras("on_end"), 3], "callbacks has 3, expected an object"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(TypeError, match=f"Trainer.fit: .*{message}"):
        fit(callbacks=callbacks)


def test_on_end_returns_a_state():
    with pytest.raises(TypeError, match="on_end of a callback returns a int, expected a state of training"):
        fit(callbacks=[type("Mine", (), {"on_end": lambda self, st: 3})()])


def test_unused_callbacks_cost_nothing():
    """In a step no function of the modules of callbacks and progress runs, but for looks at the clock."""
    t, ran = trainer(), []
    fit(t)

    def note(frame, event, arg):
        if event == "call" and frame.f_code.co_filename in (module.__file__, progress.__file__):
            ran.append(frame.f_code.co_name)

    for steps in (30, 60):
        x = np.repeat(X, 10, 0)[: 5 * steps]
        data = tp.Data.prepare((x, np.repeat(Y, 10, 0)[: 5 * steps]), batch_size=5)
        st = t.init(KEY)
        sys.setprofile(note)
        try:
            t.fit(st, data, loss=tp.loss.mse, progress=False)
        finally:
            sys.setprofile(None)
    assert ran[: len(ran) // 2] == ran[len(ran) // 2 :]


def test_the_runner_is_the_plain_one_where_no_callback_has_a_learning_rate(monkeypatch):
    kinds = []
    begin = StepRunner.begin

    def noted(self, *arguments):
        kinds.append(type(self))
        begin(self, *arguments)

    monkeypatch.setattr(StepRunner, "begin", noted)
    fit(callbacks=[Log()])
    fit(callbacks=[tp.callback.reduce_on_plateau()])
    assert kinds == [StepRunner, RatedRunner]


# ---- the library's own


def test_early_stopping_waits_and_restores():
    scores = [5.0, 3.0, 3.0, 4.0, 2.95, float("nan"), 2.85, 3.0, 1.0]
    stop = tp.callback.early_stopping("told", 3, "min", min_delta=0.1)
    t = trainer()
    st = fit(t, callbacks=[Told(scores, stop)], epochs=9)
    # 2.95 is not better than 3 by more than 0.1, so epoch 2 is the best, and the third after it the last.
    assert (stop.epoch, stop.score, st.step) == (2, 3.0, 6)
    assert bits(st) == bits(fit(t, epochs=2))
    stop = tp.callback.early_stopping("told", 3, "min", restore_best=False)
    assert fit(t, callbacks=[Told(scores, stop)], epochs=9).step == 27
    assert (stop.epoch, stop.best) == (9, None)
    stop = tp.callback.early_stopping("told", 2, "max")
    assert fit(t, callbacks=[Told(scores, stop)], epochs=9).step == 3


class Told:
    """Passes other scores to a callback."""

    def __init__(self, scores, callback):
        self.scores, self.callback = scores, callback

    def on_begin(self, resumed, st):
        self.callback.on_begin(resumed, st)

    def on_epoch(self, epoch, scores, st):
        self.callback.on_epoch(epoch, {"told": self.scores[epoch - 1]}, st)

    def on_end(self, st):
        return self.callback.on_end(st) if hasattr(self.callback, "on_end") else None


def test_restore_best_without_a_score_returns_the_last():
    stop = tp.callback.early_stopping("told", 9, "min")
    assert fit(callbacks=[Told([float("nan")] * 2, stop)], epochs=2).step == 6
    assert stop.epoch == 0


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("mae", "min"),
        ("accuracy", "max"),
        ("macro f1", "max"),
        ("top-5", "max"),
    ],
)
def test_names_tell_the_mode(metric, mode):
    assert tp.callback.best(metric)._monitor.mode == mode


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda c: c.early_stopping("score", 3),
            ValueError,
            "early_stopping: expected mode='min'",
        ),
        (lambda c: c.best("loss", mode="low"), ValueError, "best: mode is 'low', expected mode='min'"),
        (
            lambda c: c.early_stopping("loss", 0),
            ValueError,
            "early_stopping: patience is 0, expected at",
        ),
        (lambda c: c.early_stopping(3, 1), TypeError, "early_stopping: metric is a int, expected a name"),
        (lambda c: c.best("loss", min_delta=-1), ValueError, "best: min_delta is -1, expected 0 or more"),
        (lambda c: c.reduce_on_plateau(factor=1), ValueError, "factor is 1, expected above 0 and below 1"),
        (lambda c: c.reduce_on_plateau(min_lr=-1), ValueError, "min_lr is -1, expected 0 or more"),
        (lambda c: c.reduce_on_plateau(cooldown=-1), ValueError, "cooldown is -1, expected at least 0"),
        (lambda c: c.ema(1.0), ValueError, "ema: decay is 1.0, expected at least 0 and below 1"),
        (lambda c: c.tensorboard("x", 0), ValueError, "tensorboard: every is 0, expected at least 1"),
    ],
)
def test_arguments_out_of_range(make, error, message):
    with pytest.raises(error, match=f"callback.*{message}"):
        make(tp.callback)


def test_a_metric_without_a_score_is_named():
    with pytest.raises(ValueError, match=r"metric is 'maee' \(did you mean 'mae'\?\), .*: 'loss', 'mae'"):
        fit(callbacks=[tp.callback.best("maee", mode="min")])
    confusion = {"confusion": tp.metric.ConfusionMatrix(from_logits=True)}
    with pytest.raises(ValueError, match="the score 'confusion' is a Tensor, expected a number"):
        labels = tp.Data.prepare((X[:4], np.array([0, 0, 0, 0])), 4)
        fit(validate=(labels, confusion), callbacks=[tp.callback.best("confusion", mode="min")])


def test_reduce_on_plateau_has_the_bits_of_a_schedule_and_plans_nothing_again(monkeypatch):
    scores, plans = [3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], []
    lower = tp.callback.reduce_on_plateau("told", 0.5, 2, "min", cooldown=1, min_lr=0.06)
    # After epochs 3 and 6; the one after 3 does not count.
    rates = [0.2] * 9 + [0.1] * 9 + [0.06] * 3

    class Lower(Told):
        def learning_rate(self, rate):
            return self.callback.learning_rate(rate)

    whole = plan.plan
    monkeypatch.setattr("treepie.train.pure_step.plan", lambda *a: (plans.append(1), whole(*a))[1])
    matrices = lambda params: tp.ptree.map(lambda p: p.ndim > 1, params)
    for optimizer in (tp.optim.sgd, tp.optim.adam, lambda lr: tp.optim.adamw(lr, mask=matrices)):
        plans.clear()
        reduced = fit(trainer(optimizer(0.2)), callbacks=[Lower(scores, lower)], epochs=7)
        assert len(plans) == 1
        assert bits(reduced) == bits(fit(trainer(optimizer(lambda step: rates[step - 1])), epochs=7))
        assert lower.factor == 0.25


def test_ema_is_the_average_from_the_initial_parameters_on():
    average, rows = tp.callback.ema(0.75), []
    t = trainer()
    st = fit(t, callbacks=[average], epochs=2, report=lambda step, loss, st: rows.append(st.vars.params))
    expected = [p.numpy().astype("f8") for p in tp.ptree.leaves(t.init(tp.rng.key(1)).vars.params)]
    for params in rows:
        leaves = [p.numpy() for p in tp.ptree.leaves(params)]
        expected = [0.75 * e + 0.25 * p for e, p in zip(expected, leaves, strict=True)]
    for mean, e in zip(tp.ptree.leaves(st.vars.params), expected, strict=True):
        np.testing.assert_allclose(mean, e, rtol=1e-5, atol=1e-7)
    plain = fit(t, epochs=2)
    assert bits(plain) != bits(st)
    assert [m.numpy().tobytes() for m in tp.ptree.leaves(st.opt_state.to_trees()[1])] == [
        m.numpy().tobytes() for m in tp.ptree.leaves(plain.opt_state.to_trees()[1])
    ]


def test_csv_has_a_row_for_each_epoch(tmp_path):
    file, history = tmp_path / "new" / "scores.csv", tp.History()
    for epochs in (3, 2):  # a second run begins anew
        fit(callbacks=[tp.callback.csv(file)], epochs=epochs, history=history)
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        expected = history.epochs[-epochs:]
        assert [(int(r["epoch"]), int(r["step"])) for r in rows] == [
            (k + 1, 3 * k + 3) for k in range(epochs)
        ]
        assert [float(r["mae"]) for r in rows] == [e["mae"] for e in expected]
        assert [float(r["loss"]) for r in rows] == [e["loss"] for e in expected]


def test_tensorboard_has_losses_and_scores(tmp_path):
    from tensorboardX.proto import event_pb2

    history = tp.History()
    fit(callbacks=[tp.callback.tensorboard(tmp_path, every=2)], epochs=2, history=history)
    (file,) = tmp_path.iterdir()
    data, values = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        values += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    losses = [("loss", step, np.float32(loss)) for step, loss in history.steps if step % 2 == 0]
    scores = [
        (f"epoch_{name}", e["step"], np.float32(e[name])) for e in history.epochs for name in ("loss", "mae")
    ]
    assert sorted(values) == sorted(losses + scores)


def test_what_is_not_installed_is_said_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r'run pip install "treepie\[tensorboard\]"'):
        tp.callback.tensorboard("runs")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'plots are drawn by matplotlib.*: pip install "treepie\[plot\]"'):
        tp.callback.LearningRates([0.1], [1.0], None).plot()


def test_lr_finder_leaves_everything_as_it_was():
    t, data = trainer(), tp.Data.prepare((X, Y), batch_size=10, shuffle=KEY)
    st = t.init(tp.rng.key(1))
    next(iter(data))
    before = bits(st)
    found = tp.callback.lr_finder(t, st, data, tp.loss.mse, low=1e-5, high=100.0, steps=60)
    assert (data.pass_number, data.position) == (0, 1)
    assert bits(st) == before
    assert found.rates[0] == pytest.approx(1e-5)
    assert len(found.rates) == len(found.losses) <= 60
    assert 1e-3 < found.suggestion < 10
    data.seek(0)
    assert bits(t.fit(st, data, loss=tp.loss.mse)) == bits(fit(epochs=1))


def test_lr_finder_takes_the_rates_and_ends_where_the_loss_diverges():
    x = np.ones((4, 1), "f4")
    t, data = tp.Trainer(tp.layer.linear(1, 1, bias=False), tp.optim.sgd(1.0)), tp.Data.prepare((x, 0 * x), 4)
    st = t.init(KEY)
    found = tp.callback.lr_finder(t, st, data, tp.loss.mse, low=1e-3, high=1e6, steps=50)
    w, losses = st.vars.params["weight"].item(), []
    for rate in found.rates:
        losses.append(w * w)
        w -= rate * 2 * w
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3)
    assert len(found.rates) < 50
    assert found.suggestion < 1.0  # beyond that each step is longer than the one before
    with pytest.raises(ValueError, match="low is 1 and high 1, expected 0 < low < high"):
        tp.callback.lr_finder(t, st, data, tp.loss.mse, low=1, high=1)


def test_lr_finder_suggests_no_rate_after_the_least_loss():
    """There a fall is chance: the steepest one of a trained model may be at a rate that diverges."""
    from treepie.callback.finder import _suggestion

    rates = np.geomspace(1e-6, 1, 50).tolist()
    losses = np.concatenate([np.linspace(1.0, 0.9, 30), np.linspace(1.0, 3.0, 10), np.full(10, 1.5)])
    assert _suggestion(rates, losses.tolist()) < rates[30]
    assert _suggestion(rates, np.linspace(1.0, 2.0, 50).tolist()) is None


def test_lr_finder_draws_the_suggestion_inside_of_the_axes():
    losses = [1.0, 1.4, 1.3, 1.2, 0.5, 0.4, 3.0, 9.0]
    search = tp.callback.LearningRates(np.geomspace(1e-6, 1, 8).tolist(), losses, 1e-6 * 10 ** (18 / 7))
    axes = tp.callback.LearningRates(search.rates, losses, search.rates[2]).plot()
    x, y = (float(v[0]) for v in axes.get_lines()[-1].get_data())
    low, high = axes.get_ylim()
    assert x == search.rates[2]
    assert low < y < high


def test_lr_finder_where_a_loss_is_not_finite_and_its_plot():
    import matplotlib as mpl

    mpl.use("agg")
    t, data = trainer(tp.optim.sgd(0.1)), tp.Data.prepare((X, 1e3 * Y), 30)
    st = t.init(KEY)
    found = tp.callback.lr_finder(
        t, st, data, lambda out, y: tp.exp(tp.loss.mse(out, y) * 1e-5), 1e-5, 1e8, 200
    )
    assert np.isfinite(found.losses).all()
    axes = found.plot()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("learning rate", "loss", "log")
    assert found.plot(ax=axes) is axes
    mpl.pyplot.close("all")


def test_ema_has_the_bits_of_the_optimizers_ema():
    plain, averaging = tp.optim.adam(0.1), tp.optim.chain(tp.optim.adam(0.1), tp.optim.ema(0.75))
    st = fit(trainer(plain), callbacks=[tp.callback.ema(0.75)], epochs=3)
    expected = tp.optim.ema_params(fit(trainer(averaging), epochs=3))
    for a, b in zip(tp.ptree.leaves(st.vars.params), tp.ptree.leaves(expected), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_ema_of_frozen_parameters_is_their_value():
    parts = {"frozen": tp.optim.frozen(), "rest": tp.optim.sgd(0.1)}
    t = trainer(tp.optim.partition(parts, lambda path: "frozen" if "weight" in path else "rest"))
    st = fit(t, callbacks=[tp.callback.ema(0.5)], epochs=2)
    first = t.init(tp.rng.key(1)).vars.params
    pairs = zip(tp.ptree.flatten_with_paths(st.vars.params), tp.ptree.leaves(first), strict=True)
    for (path, average), initial in pairs:
        assert ("weight" in path) == (average.numpy().tobytes() == initial.numpy().tobytes())
