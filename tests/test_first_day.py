"""What people try on the first day: where a result would mislead, it is right, or an error says why."""

import threading
import warnings

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
        for _ in range(3):
            thread = threading.Thread(target=lambda: seen.extend(data))
            thread.start()
            thread.join()
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
    assert binary_accuracy(logits, targets, 0.8, from_logits=True) == 0.5  # the logit of 0.8 is 1.39
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


# ---- NumPy's scalars
SCALARS = [
    np.float64(0.1),
    np.sqrt(8),
    np.float32(0.1),
    np.float16(3),
    np.int64(3),
    np.uint8(3),
    np.bool_(True),
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [tp.float32, tp.float64])
def test_scalars_of_numpy_are_weak(scalar, dtype):
    x = tp.tensor(np.linspace(0.1, 2, 7), dtype)
    number = scalar.item()
    for f in (
        lambda n: x / n,
        lambda n: n / x,
        lambda n: x + n,
        lambda n: n - x,
        lambda n: x**n,
        lambda n: tp.where(x > n, x, n),
        lambda n: tp.maximum(x, n),
    ):
        assert f(scalar).dtype == dtype
        assert f(scalar).numpy().tobytes() == f(number).numpy().tobytes()
        assert tp.jit(lambda n, f=f: f(n))(scalar).numpy().tobytes() == f(scalar).numpy().tobytes()


def test_an_integer_tensor_keeps_its_dtype_beside_an_integer_of_numpy():
    assert (tp.tensor([1, 2]) * np.int64(3)).dtype == tp.int32
    assert (tp.tensor([1, 2]) * np.float32(3)).dtype == (tp.tensor([1, 2]) * 3.0).dtype
    with pytest.raises((TypeError, ValueError), match="int32"):
        tp.tensor([1, 2]) + np.int64(2**40)
    assert tp.add(np.float64(1), 2.0).dtype == tp.float64  # numbers alone are converted as by tensor
    assert (tp.ones(2) * np.array(2.0)).dtype == tp.float64  # an array is not weak


def test_scaled_products_stay_in_float32():
    x, w = tp.ones((2, 8)), tp.ones((8, 3))
    assert ((x / np.sqrt(8)) @ w).dtype == tp.float32


def test_scalars_of_numpy_are_values_of_a_program():
    """One program for all values, with the bits of an eager call."""
    seen = []

    def f(x, n):
        seen.append(None)
        scale = np.float64(3) * n + np.int64(2) - np.float32(0.5)
        return x * scale + tp.exp(n)

    step, x = tp.jit(f), tp.ones(3)
    for n in (np.float64(0.1), np.float64(0.7), np.float64(-2)):
        got = step(x, n)
        calls = len(seen)
        want = f(x, n)
        assert (got.dtype, got.numpy().tobytes()) == (want.dtype, want.numpy().tobytes())
        seen.pop()
        assert len(seen) == calls
    assert len(seen) == 1


@pytest.mark.parametrize("mark", [lambda f: f, tp.pure])
@pytest.mark.parametrize("dtype", [tp.float32, tp.float64])
def test_steps_take_scalars_of_numpy_by_value(mark, dtype):
    """A target or a factor that is a scalar has in a program the bits that it has op by op."""
    results = []
    for number in (np.float64, float):
        t = trainer()
        st = t.init(KEY, dtype)
        loss = mark(lambda out, n: tp.square(out * n - n / 3).mean())
        pairs = [(X, number(0.1 * k)) for k in range(1, 6)]
        losses = []
        st = t.fit(st, tp.Data.of_array(pairs), loss=loss, report=lambda k, v, st, to=losses: to.append(v))
        eager = [trainer_loss(t.init(KEY, dtype), loss, pairs[0])]
        assert losses[:1] == eager
        results.append((losses, [p.numpy().tobytes() for p in leaves(st)]))
    assert results[0] == results[1]


def trainer_loss(st, loss, pair):
    x, n = pair
    out = x.astype(st.vars.dtype) @ st.vars.params["weight"] + st.vars.params["bias"]
    return loss(out, n).item()


# ---- features that are integers
L = tp.layer
FEATURES = {
    "linear": (L.linear(4, 3), (6, 4)),
    "linear without bias": (L.linear(4, 3, bias=False), (6, 4)),
    "conv1d": (L.conv1d(4, 3), (2, 4, 5)),
    "conv2d": (L.conv2d(4, 3), (2, 4, 5, 5)),
    "layer_norm": (L.layer_norm(4), (6, 4)),
    "rms_norm": (L.rms_norm(4), (6, 4)),
    "batch_norm": (L.batch_norm(4), (6, 4)),
    "group_norm": (L.group_norm(2, 4), (6, 4)),
    "lstm": (L.lstm(4, 3), (2, 5, 4)),
    "gru": (L.gru(4, 3), (2, 5, 4)),
    "attention": (L.multi_head_attention(4, 2), (2, 5, 4)),
    "residual": (L.residual(L.linear(4, 4)), (6, 4)),
    "flatten": (L.sequential([L.flatten(), L.linear(16, 2)]), (3, 4, 4)),
    "max_pool2d": (L.sequential([L.max_pool2d(2), L.flatten(), L.linear(16, 2)]), (3, 4, 4, 4)),
    "relu": (L.sequential([L.relu(), L.dropout(0.5), L.linear(4, 2)]), (6, 4)),
    "pure": (tp.layer.sequential([L.residual(L.linear(4, 4)), L.layer_norm(4)]), (6, 4)),
}


@pytest.mark.parametrize("dtype", [tp.float32, tp.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("kind", ["uint8", "int64", "int32", "bool"])
@pytest.mark.parametrize("name", FEATURES)
def test_layers_cast_integers_to_the_dtype_of_the_model(name, kind, dtype):
    """As floats of the same values, in evaluation and in training, of arrays, lists and programs."""
    layer, shape = FEATURES[name]
    x = np.random.default_rng(0).integers(0, 2 if kind == "bool" else 200, shape).astype(kind)
    vars = layer.init(KEY, dtype)
    for training in (False, True):
        want, after = layer.apply(vars, x.astype("f8"), training=training, rngs=KEY)
        for given in (x, tp.tensor(x), x.tolist()):
            got, state = layer.apply(vars, given, training=training, rngs=KEY)
            assert got.dtype == dtype
            assert got.numpy().tobytes() == want.numpy().tobytes()
            assert [s.dtype for s in tp.ptree.leaves(state.state)] == [
                s.dtype for s in tp.ptree.leaves(after.state)
            ]
    t = tp.Trainer(layer, tp.optim.sgd(0.1))
    results = []
    for given in (x, x.astype("f8")):
        st = t.make_state(vars)
        for k in range(3):
            loss = lambda out: tp.square(out).mean()
            _, st = t.step(st, given, loss=loss, rngs=tp.rng.key(k))
        results.append([p.numpy().tobytes() for p in (*leaves(st), t.predict(st, given))])
    assert results[0] == results[1]


def test_images_of_bytes_and_tables_of_integers_train():
    """Integer indices of an embedding stay integers; bytes are not scaled."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 6, 6), np.uint8)
    model = L.sequential([L.conv2d(1, 2), L.relu(), L.flatten(), L.linear(72, 3)])
    t = tp.Trainer(model, tp.optim.adam(1e-3))
    data = tp.Data.prepare((images, np.arange(12) % 3), batch_size=4)
    st = t.fit(t.init(KEY), data, loss=tp.loss.cross_entropy_sparse, epochs=2)
    assert t.predict(st, images).dtype == tp.float32
    scaled = tp.fn.linear(np.array([[255]], np.uint8), tp.ones((1, 1)))
    assert scaled.tolist() == [[255.0]]
    model = L.sequential([L.embedding(256, 4), L.linear(4, 2)])
    t = tp.Trainer(model, tp.optim.sgd(0.1))
    assert t.predict(t.init(KEY), images[:, 0, 0]).shape == (12, 6, 2)
    with pytest.raises(TypeError, match="indices have dtype float32"):
        t.predict(t.init(KEY), images[:, 0, 0].astype("f4"))


# ---- values that are not finite in the data
class Frame:
    """A data frame as pandas and Polars have them: named columns, each an array."""

    def __init__(self, **columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return np.asarray(self._columns[name])

    def __array__(self, dtype=None, copy=None):
        return np.stack([np.asarray(c) for c in self._columns.values()], 1).astype(dtype or object)


def fit_on(data, **options):
    t = trainer()
    return t.fit(t.init(KEY), data, loss=tp.loss.mse, **options)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_of_the_batch_that_is_not_finite_is_named(value):
    x, y = np.tile(X, (4, 1)), np.tile(Y, (4, 1))
    x[23, 2] = float(value)
    named = rf"x has {value.replace('nan', 'NaN')} at row 3, column 2 \(batch 5\)"
    with pytest.raises(FloatingPointError, match=rf"in step 5; .*\. {named}: remove or") as info:
        fit_on(tp.Data.prepare((x, y), batch_size=5))
    assert info.value.state.step == 4
    assert "learning rate" not in str(info.value)
    data = tp.Data.prepare((x, y), batch_size=5).take(7).prefetch(2)
    with pytest.raises(FloatingPointError, match=rf"in step 2; .*\. {named}: remove or"):
        fit_on(data, accumulate_steps=3)
    with pytest.warns(RuntimeWarning, match=rf"in step 5, which is skipped: {named}$"):
        fit_on(tp.Data.prepare((x, y), batch_size=5), on_nonfinite="skip")


def test_targets_and_parts_of_inputs_are_named():
    y = Y.copy()
    y[[6, 8]] = np.nan
    with pytest.raises(FloatingPointError, match=r"target has NaN at row 1, column 0 and 1 more \(batch 2\)"):
        fit_on(tp.Data.prepare((X, y), batch_size=5))
    images = np.zeros((4, 1, 2, 2))
    images[2, 0, 1, 1] = np.inf
    t = tp.Trainer(L.sequential([L.flatten(), L.linear(4, 1)]), tp.optim.sgd(0.1))
    with pytest.raises(FloatingPointError, match=r"x has inf at row 2, index \(0, 1, 1\) \(batch 1\)"):
        t.fit(t.init(KEY), tp.Data.prepare((images, np.zeros((4, 1))), 4), loss=tp.loss.mse)
    pick = L.sequential([L.lambda_(lambda x: x["a"] + x["b"]), L.linear(4, 1)])
    t = tp.Trainer(pick, tp.optim.sgd(0.1))
    pairs = [({"a": X, "b": np.where(X > 0.9, np.nan, X)}, lambda out: tp.loss.mse(out, Y))]
    with pytest.raises(FloatingPointError, match=r"x.b has NaN at row 9, column 1 and 2 more \(batch 1\)"):
        t.fit(t.init(KEY), tp.Data.of_array(pairs))


def test_the_second_epoch_counts_batches_anew():
    """The 7th of batches of 2 of 10 rows is the 2nd of a pass."""
    count = iter(range(1, 100))
    data = tp.Data.prepare((X, Y), batch_size=2).map(lambda x, y: (x if next(count) < 7 else x / 0.0, y))
    with pytest.raises(FloatingPointError, match=r"step 7; .* \(batch 2\)"):
        fit_on(data, epochs=2)


def test_a_loss_that_diverges_is_not_blamed_on_the_data():
    t = trainer(optimizer=tp.optim.sgd(1e30))
    with pytest.raises(FloatingPointError, match=r"Lower the learning rate"):
        t.fit(t.init(KEY), tp.Data.prepare((X, Y), 2), loss=tp.loss.mse, epochs=20)


def test_columns_of_data_frames_are_named():
    age, height = np.arange(10.0), np.ones(10, np.int64)
    age[7] = np.nan
    frame = Frame(height=height, member=height > 0, age=age, weight=np.ones(10, np.float32))
    data = tp.Data.prepare((frame, Y), batch_size=5)
    for d in (data, data.take(2).prefetch(1), data.shard(tp.distributed.Local(1).run(lambda comm: comm)[0])):
        with pytest.raises(FloatingPointError, match=r"x has NaN at row 2, column 'age' \(batch 2"):
            fit_on(d)
    with pytest.raises(TypeError, match=r"Data.prepare: column 'city' has dtype <U1, expected numbers"):
        tp.Data.prepare((Frame(age=age, city=np.array(list("abcdefghij"))), Y), batch_size=5)
