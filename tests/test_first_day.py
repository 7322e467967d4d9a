"""What people try on the first day: where a result would mislead, it is right, or an error says why."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)
X = np.arange(40, dtype=np.float32).reshape(10, 4) / 40
Y = X[:, :1] + 1


def trainer(out=1, optimizer=None):
    return tp.Trainer(tp.layer.linear(4, out), optimizer or tp.optim.sgd(0.1))


# ---- positions of pipelines
def test_evaluate_scores_the_whole_data_wherever_its_position_is():
    t = trainer()
    st = t.init(KEY)
    metrics = {"mse": tp.metric.MSE()}
    data = tp.Data.prepare((X, Y), batch_size=3, shuffle=KEY)
    whole = t.evaluate(st, data, metrics)
    assert data.position == 0
    next(iter(data))
    assert t.evaluate(st, data, metrics) == whole
    assert data.position == 1
    assert len(data.to_list()) == 3
    assert t.evaluate(st, data, metrics) == whole
    assert (data.pass_number, data.position) == (0, 4)


def test_evaluate_reads_a_pass_that_is_prefetched_from_its_beginning():
    t = trainer()
    st = t.init(KEY)
    data = tp.Data.prepare((X, Y), batch_size=3).prefetch(2)
    elements = iter(data)
    first = next(elements)
    scores = t.evaluate(st, data, {"mse": tp.metric.MSE()})
    assert scores == t.evaluate(st, tp.Data.prepare((X, Y), batch_size=3), {"mse": tp.metric.MSE()})
    rest = list(elements)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in (first, *rest)]), X)


def test_validation_scores_the_whole_data_after_a_peek():
    scores = []
    for peek in (False, True):
        t, history = trainer(), tp.History()
        data = tp.Data.prepare((X, Y), batch_size=3)
        if peek:
            next(iter(data))
        train = tp.Data.prepare((X, Y), batch_size=5)
        validate = (data, {"mse": tp.metric.MSE()})
        t.fit(t.init(KEY), train, loss=tp.loss.mse, epochs=2, validate=validate, history=history)
        scores.append([epoch["mse"] for epoch in history.epochs])
        assert data.position == peek
    assert scores[0] == scores[1]


def test_data_can_be_evaluated_within_a_pass_over_it():
    t = trainer()
    data = tp.Data.prepare((X, Y), batch_size=2)
    seen = []

    def report(step, loss, st):
        seen.append(t.evaluate(st, data, {"mse": tp.metric.MSE()})["mse"])

    t.fit(t.init(KEY), data, loss=tp.loss.mse, report=report)
    assert len(seen) == 5


def test_a_loop_over_an_exhausted_pipeline_warns_once():
    data = tp.Data.of_array([1, 2])
    assert list(data) == [1, 2]
    with pytest.warns(RuntimeWarning, match=r"all 2 elements .* call reset\(\)") as record:
        assert [x for x in data] == []  # noqa: C416
    assert [w.filename for w in record] == [__file__]
    assert list(data) == []  # the warning has been given
    data.reset()
    assert data.to_list() == [1, 2]
    with pytest.warns(RuntimeWarning, match="reset"):
        data.iter(print)
    data.reset()
    data.iter(lambda x: None)
    with pytest.warns(RuntimeWarning, match="reset"):
        data.iteri(print)


def test_loops_that_are_meant_do_not_warn():
    """Also of threads that share a pass, of an empty pipeline, and of the library."""
    t = trainer()
    train = tp.Data.prepare((X, Y), batch_size=5, drop_last=True)
    t.fit(t.init(KEY), train, loss=tp.loss.mse, epochs=3, validate=(train, {"mse": tp.metric.MSE()}))
    assert list(tp.Data.of_array([])) == list(tp.Data.of_array([])) == []
    data, seen = tp.Data.of_array([1, 2, 3]), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(1) as pool:
            for _ in range(3):
                pool.submit(lambda: seen.extend(data)).result()
        assert list(data) == []  # other threads have read it
    assert (seen, caught) == ([1, 2, 3], [])
    data.seek(0, 3)
    assert list(data) == []


# ---- binary metrics
BINARY = ("accuracy", "binary_accuracy", "confusion_matrix", "f1", "precision", "recall")
ACCUMULATORS = ("Accuracy", "BinaryAccuracy", "ConfusionMatrix", "F1", "Precision", "Recall")


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("name", [*BINARY, *ACCUMULATORS])
def test_binary_metrics_refuse_logits_and_name_from_logits(name, column):
    """Of logits in one column, 0.2 predicts 1; of probabilities, 0."""
    logits, targets = np.array([-3.0, 0.2, 1.5, -0.1]), np.array([0, 1, 1, 1])
    pred = logits[:, None] if column else logits

    def score(x, **options):
        if name in BINARY:
            result = getattr(tp.metric, name)(x, targets, **options)
        else:
            m = getattr(tp.metric, name)(**options)
            m.update(x, targets)
            result = m.compute()
        return np.asarray(result).tolist()

    message = rf"metric.{name}: a prediction is -3.0, expected a probability .* from_logits=True"
    with pytest.raises(ValueError, match=message):
        score(pred)
    with pytest.raises(ValueError, match=r"a prediction is inf"):
        score(np.where(pred > 1, np.inf, 0.5))
    assert score(pred, from_logits=True) == score(1 / (1 + np.exp(-pred)))
    assert score(pred, from_logits=True) != score(np.clip(pred, 0, 1))


def test_thresholds_of_probabilities_and_of_scores():
    logits, targets = np.array([-3.0, 0.2, 1.5, -0.1]), np.array([0, 1, 1, 1])
    binary_accuracy = tp.metric.binary_accuracy
    assert binary_accuracy(logits, targets, 0.8, from_logits=True) == 0.5  # the logit of 0.8 is 1.386
    assert binary_accuracy([1.38, 1.39], [0, 1], 0.8, from_logits=True) == 1.0
    assert binary_accuracy(logits, targets, threshold=0.0) == 0.75  # no probability: scores of any range
    assert binary_accuracy(logits, targets, threshold=-0.5) == 1.0
    with pytest.raises(ValueError, match=r"threshold is 0.0 and from_logits is True, expected a probability"):
        binary_accuracy(logits, targets, 0.0, from_logits=True)
    with pytest.raises(ValueError, match=r"other has from_logits=True, expected False as here"):
        tp.metric.F1().merge(tp.metric.F1(from_logits=True))


def test_the_area_under_the_curve_is_that_of_logits():
    logits, targets = np.array([-3.0, 0.2, 1.5, -0.1]), np.array([0, 1, 1, 0])
    assert tp.metric.auc_roc(logits, targets) == tp.metric.auc_roc(1 / (1 + np.exp(-logits)), targets) == 1.0


def test_evaluate_refuses_logits_of_one_column():
    t = trainer()
    data = tp.Data.prepare((10 * X, np.ones(10, np.int32)), batch_size=5)
    with pytest.raises(ValueError, match=r"metric.Accuracy: a prediction is .* from_logits=True"):
        t.evaluate(t.init(KEY), data, {"accuracy": tp.metric.Accuracy()})
    t.evaluate(t.init(KEY), data, {"accuracy": tp.metric.Accuracy(from_logits=True)})


# ---- labels
@pytest.mark.parametrize("dtype", [tp.int32, tp.int64])
@pytest.mark.parametrize("wrong", [10, -1, 2**31 - 1])
def test_one_hot_refuses_labels_out_of_range(wrong, dtype):
    labels = tp.tensor([3, wrong, 0], dtype)
    with pytest.raises(ValueError, match=rf"^one_hot: an index is {wrong}, expected 0 to 9 for size 10$"):
        tp.one_hot(labels, 10)
    step = tp.jit(lambda y: tp.one_hot(y, 10))
    assert step(tp.tensor([3, 9, 0], dtype)).argmax(-1).tolist() == [3, 9, 0]
    for size in (3, 100_000):  # the larger is checked by the kernel
        y = np.zeros(size, dtype)
        y[-1] = wrong
        with pytest.raises(ValueError, match=rf"^one_hot: an index is {wrong}, expected 0 to 9 for size 10$"):
            step(tp.tensor(y))
    with pytest.raises(ValueError, match=r"expected 0 to -1 for size 0"):
        tp.one_hot([0], 0)
    assert tp.one_hot(tp.zeros((0,), tp.int32), 0).shape == (0, 0)


def test_a_step_refuses_a_label_out_of_range():
    t = trainer(3)
    st = t.init(KEY)
    loss = lambda out, y: tp.loss.cross_entropy(out, tp.one_hot(y, 3))
    labels = np.array([0, 1, 2, 1] * 3)
    for step in range(4):
        if step == 3:
            labels[5] = 3
            with pytest.raises(ValueError, match=r"^one_hot: an index is 3, expected 0 to 2 for size 3"):
                t.step(st, np.ones((12, 4)), loss=lambda out: loss(out, tp.tensor(labels)))
        else:
            _, st = t.step(st, np.ones((12, 4)), loss=lambda out: loss(out, tp.tensor(labels)))


# ---- losses that train nothing
def constant(out, y):
    return tp.square(y).mean()


def frozen(out, y):
    return tp.loss.mse(tp.stop_gradient(out), y)


def compared(out, y):
    return (out > y).mean()


def read(out, y):
    return tp.loss.mse(tp.tensor(out.numpy()), y)


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("loss", [constant, frozen, compared, read])
def test_a_loss_that_depends_on_no_parameter_is_an_error(loss, pure):
    """In steps that run op by op and in programs, of fit and of Trainer.step, in parts too."""
    t = trainer()
    st = t.init(KEY)
    fn = tp.pure(loss) if pure else loss
    for options in ({}, {"accumulate_steps": 2}, {"micro_shards": 2}):
        for _ in range(3):
            with pytest.raises(ValueError, match="the loss depends on no parameter") as info:
                t.fit(st, tp.Data.prepare((X, Y), batch_size=5), loss=fn, **options)
            assert info.value.state.step == 0
    for _ in range(3):
        with pytest.raises(ValueError, match="the loss depends on no parameter"):
            t.step(st, X, loss=lambda out: fn(out, Y))


def test_a_loss_of_some_parameters_trains_them():
    cut = tp.layer.sequential(
        [tp.layer.linear(4, 4), tp.layer.lambda_(tp.stop_gradient), tp.layer.linear(4, 1)]
    )
    t = tp.Trainer(cut, tp.optim.sgd(0.1))
    st = t.init(KEY)
    after = t.fit(st, tp.Data.prepare((X, Y), batch_size=5), loss=tp.loss.mse, epochs=2)
    same = [bool((a.numpy() == b.numpy()).all()) for a, b in zip(*map(leaves, (st, after)), strict=True)]
    assert same == [True, True, False, False]


def leaves(st):
    return tp.ptree.leaves(st.vars.params)


# ---- schedules
@pytest.mark.parametrize("value", [-1e-3, -np.inf, np.nan])
def test_schedules_that_would_go_negative_are_refused(value):
    s = tp.optim.schedule
    for name, argument, call in (
        ("constant", "value", lambda: s.constant(value)),
        ("cosine_decay", "init_value", lambda: s.cosine_decay(value, 10)),
        ("cosine_decay", "alpha", lambda: s.cosine_decay(1.0, 10, alpha=value)),
        ("warmup_linear", "init_value", lambda: s.warmup_linear(value, 1.0, 10)),
        ("warmup_cosine", "peak_value", lambda: s.warmup_cosine(0.0, value, 10)),
        ("exponential_decay", "init_value", lambda: s.exponential_decay(value, 0.5, 10)),
    ):
        with pytest.raises(ValueError, match=rf"^schedule.{name}: {argument} is {value}, expected 0 or more"):
            call()
    assert min(s.cosine_decay(1.0, 10, alpha=0.0)(k) for k in range(30)) == 0.0
