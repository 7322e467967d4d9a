"""What people pass on the first day: NumPy's scalars, integers and bytes, tables, NaN in the data."""

import copy

import numpy as np
import pytest

import treepie as tp

from .test_first_day import KEY, X, Y, leaves, trainer

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
    with pytest.raises(TypeError, match=r"Data.prepare: arrays has columns that .*: 'city' \(<U1\); drop"):
        tp.Data.prepare((Frame(age=age, city=np.array(list("abcdefghij"))), Y), batch_size=5)


# ---- single numbers
def test_format_and_round_of_a_single_element():
    assert (f"{tp.tensor(1.2345):.2f}", f"{tp.tensor([3]):d}") == ("1.23", "3")
    assert f"{tp.tensor([1.0, 2.0])}" == "tensor([1., 2.], dtype=float32)"
    assert (round(tp.tensor(1.26, tp.float64), 1), round(tp.tensor([2.6]))) == (1.3, 3)


# ---- pipelines
def test_a_copy_of_a_pipeline_has_a_position_of_its_own():
    data = tp.Data.prepare((X, Y), batch_size=4)
    next(iter(data))
    again = copy.copy(data)
    assert again.position == data.position == 1
    assert len(again.to_list()) == len(data) - 1
    assert data.position == 1
    with pytest.raises(TypeError, match=r"^Data: a pipeline can not be pickled or copied deeply"):
        copy.deepcopy(data)


def test_missing_values_of_a_column_of_integers_are_named():
    pandas = pytest.importorskip("pandas")
    for dtype in ("Int64", "boolean"):
        column = pandas.Series([1, None, 0, 1], dtype=dtype, name="label")
        with pytest.raises(
            ValueError, match=rf"column 'label' is {dtype} with 1 missing value, .* row 1: drop"
        ):
            tp.Data.prepare((np.ones((4, 2)), column), batch_size=2)
        data = tp.Data.prepare((np.ones((4, 2)), column.fillna(column[2])), batch_size=4)
        assert [y.tolist() for _, y in data] == [[1, 0, 0, 1]]


def test_a_pipeline_shows_no_cells_of_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(4.0), "b": np.arange(4.0)})
    shown = repr(tp.Data.prepare((frame, frame["a"]), batch_size=2))
    assert shown == "Data(prepare((DataFrame (4, 2), Series (4,)), batch_size=2); 0 of 2 elements read)"
