"""Products in bfloat16: rounding, sums, gradients, programs, and CPUs without the instruction."""

import pickle

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.autodiff.precision import _say_float32
from treepie.kernels import bfloat16

RNG = np.random.default_rng(0)
needs_bfloat16 = pytest.mark.skipif(not bfloat16.native(), reason="needs a CPU with AVX512-BF16")
BOTH = [pytest.param("bfloat16", marks=needs_bfloat16), "bfloat16_emulated"]


def rounded(x):
    """Round float32 to bfloat16, to nearest even."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return np.where(np.isnan(x), x, bits.astype(np.uint32).view(np.float32))


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def assert_close(result, a, b):
    """Compare a product with that of the rounded operands, to 16 ulp of the sum of magnitudes."""
    a, b = rounded(a).astype(np.float64), rounded(b).astype(np.float64)
    bound = 16 * np.finfo(np.float32).eps * (np.abs(a) @ np.abs(b))
    assert (np.abs(result - a @ b) <= bound).all()


def test_operands_are_rounded_to_nearest_even():
    x = np.concatenate([
        np.arange(1 << 17, dtype=np.uint32).view(np.float32),  # subnormal numbers
        (np.arange(1 << 17, dtype=np.uint32) + 0x3F7F0000).view(np.float32),
        -(np.arange(1 << 17, dtype=np.uint32) + 0x7F7E0000).view(np.float32),  # up to infinity, and NaN
    ])  # fmt: skip
    with tp.precision("bfloat16_emulated"):
        product = (tp.tensor(x[:, None]) @ tp.ones((1, 1))).numpy()[:, 0]
    np.testing.assert_array_equal(product, rounded(x))


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 1, 1),
        (3, 5, 7),
        (33, 70, 65),
        (13, 801, 3),
        (128, 256, 10),
        (12, 2, 32),
        (100, 33, 1),
        (5, 1300, 100),
        (9, 31, 20),  # the last pair of a vector of pairs has one element
        (20, 63, 9),
    ],
)
def test_products_are_those_of_rounded_operands(precision, m, k, n):
    a, b = normal(m, k), normal(k, n)
    with tp.precision(precision):
        assert_close((tp.tensor(a) @ tp.tensor(b)).numpy(), a, b)
        for left, right in ((False, True), (True, False), (True, True)):
            operands = (a.T.copy() if left else a, b.T.copy() if right else b)
            assert_close(ops.batch_matmul(*operands, left, right).numpy(), a, b)
        stacked = tp.matmul(np.stack([a, -a, 2 * a]), b).numpy()
        assert_close(stacked[1], -a, b)
        bias = normal(n)
        np.testing.assert_array_equal(
            tp.fn.linear(a, b, bias).numpy(), (tp.tensor(a) @ tp.tensor(b)).numpy() + bias
        )


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("k", [1, 31, 63, 127])
def test_rounded_operands_of_an_odd_number_of_terms_end_with_their_row(precision, k):
    """A row's last pair has one element: the next row's first, an infinity, is not multiplied by 0."""
    a, b = normal(9, k), normal(20, k)
    b[5, 0] = a[4, 0] = np.inf
    with tp.precision(precision):
        for left, right in ((False, True), (False, False), (True, True), (True, False)):
            operands = (a.T.copy() if left else a, b.copy() if right else b.T.copy())
            product = ops.batch_matmul(*operands, left, right).numpy()
            finite = np.isfinite(product)
            assert not finite[4].any()
            assert not finite[:, 5].any()
            assert np.delete(np.delete(finite, 4, 0), 5, 1).all()


@pytest.mark.parametrize("precision", BOTH)
def test_batches_of_products(precision):
    a, b = normal(4, 3, 40, 21), normal(3, 21, 33)
    with tp.precision(precision):
        product = tp.matmul(a, b).numpy()
    for i in range(4):
        for j in range(3):
            assert_close(product[i, j], a[i, j], b[j])


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize(("m", "k", "n"), [(200, 300, 150), (500, 1030, 150)])  # the latter in blocks of A
def test_bits_do_not_depend_on_threads(precision, m, k, n):
    a, b = normal(m, k), normal(k, n)
    results, threads = set(), tp.get_num_threads()
    try:
        for n in (1, 2):
            tp.set_num_threads(min(n, threads))
            with tp.precision(precision):
                product = (tp.tensor(a) @ tp.tensor(b)).numpy()
            assert_close(product, a, b)
            results.add(product.tobytes())
    finally:
        tp.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("precision", BOTH)
def test_infinity_and_nan_stay(precision):
    a = np.array([[np.inf, 1.0], [np.nan, 1.0], [3.4e38, 0.0]], np.float32)
    with tp.precision(precision):
        product = (tp.tensor(a) @ tp.ones((2, 1))).numpy()[:, 0]
    assert product[0] == np.inf
    assert np.isnan(product[1])
    assert product[2] == np.inf  # more than the largest of bfloat16


@pytest.mark.parametrize("precision", BOTH)
def test_gradients_are_products_in_the_same_precision(precision):
    x, w, g = normal(30, 20), normal(20, 40), normal(30, 40)

    def f(operands):
        with tp.precision(precision):
            return tp.sum(tp.matmul(*operands) * g)

    dx, dw = tp.grad(f)((tp.tensor(x), tp.tensor(w)))  # outside of the block
    assert_close(dx.numpy(), g, w.T)
    assert_close(dw.numpy(), x.T, g)


@pytest.mark.parametrize("precision", BOTH)
def test_float64_is_as_exact_as_ever(precision):
    a = RNG.standard_normal((5, 6))
    with tp.precision(precision):
        product = tp.matmul(tp.tensor(a), tp.tensor(a.T.copy())).numpy()
    np.testing.assert_allclose(product, a @ a.T, rtol=1e-14)


def perceptron():
    return tp.layer.sequential([tp.layer.linear(64, 32), tp.layer.relu(), tp.layer.linear(32, 10)])


def bits(st):
    return [t.numpy().tobytes() for t in tp.ptree.leaves(st.vars.params)]


@pytest.mark.parametrize("precision", BOTH)
def test_programs_have_the_bits_of_a_block(precision):
    (x, y), _ = tp.datasets.digits()
    data = tp.Data.prepare((x[:256], y[:256]), batch_size=64)

    def train(trainer):
        data.reset()
        st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse)
        return bits(st), trainer.predict(st, x[:8]).numpy().tobytes()

    model = perceptron()
    exact = train(tp.Trainer(model, tp.optim.adam(1e-2)))
    lower = train(tp.Trainer(model, tp.optim.adam(1e-2), precision=precision))
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    with tp.precision(precision):
        assert train(trainer) == lower
        assert train(tp.Trainer(model, tp.optim.adam(1e-2), precision="float32")) == exact
    assert train(trainer) == exact != lower


@pytest.mark.parametrize("precision", BOTH)
def test_jitted_functions_and_pure_ones_follow_the_block(precision):
    x = tp.tensor(normal(8, 8))
    step = tp.jit(lambda x: x @ x)
    exact = step(x).numpy()
    with tp.precision(precision):
        lower = step(x).numpy()
        np.testing.assert_array_equal(lower, (x @ x).numpy())
    assert (step(x).numpy() == exact).all()
    assert (lower != exact).any()


@needs_bfloat16
def test_explain_names_the_precision(capsys):
    trainer = tp.Trainer(perceptron(), tp.optim.sgd(0.1), precision="bfloat16")
    st = trainer.init(rngs=tp.rng.key(0))
    trainer.step(st, tp.ones((4, 64)), lambda out: tp.mean(out))
    trainer.predict(st, tp.ones((4, 64)))
    tp.explain(trainer)
    shown = capsys.readouterr().out
    assert "linear (bfloat16) + relu" in shown
    assert "matmul (bfloat16)" in shown


def test_a_model_learns_as_well():
    (x, y), (x_test, y_test) = tp.datasets.digits()
    scores = []
    for precision in ("float32", "bfloat16_emulated"):
        trainer = tp.Trainer(perceptron(), tp.optim.adam(1e-2), precision=precision)
        data = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(1))
        st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse, epochs=15)
        scores.append((trainer.predict(st, x_test).numpy().argmax(1) == np.asarray(y_test)).mean())
    assert min(scores) > 0.93
    assert abs(scores[0] - scores[1]) < 0.02


def test_a_cpu_without_the_instruction_says_so_once(monkeypatch):
    monkeypatch.setattr(bfloat16, "native", lambda: False)
    _say_float32.cache_clear()
    a = normal(4, 4)
    try:
        with pytest.warns(RuntimeWarning, match="does not multiply in bfloat16") as caught:
            trainer = tp.Trainer(perceptron(), tp.optim.sgd(0.1), precision="bfloat16")
        with tp.precision("bfloat16"):  # without a second warning
            product = (tp.tensor(a) @ tp.tensor(a)).numpy()
    finally:
        _say_float32.cache_clear()
    np.testing.assert_array_equal(product, (tp.tensor(a) @ tp.tensor(a)).numpy())
    assert trainer.precision == "bfloat16"
    assert [w.filename for w in caught] == [__file__]


def test_other_names_are_refused():
    with pytest.raises(
        ValueError, match=r"^Trainer: precision is 'bf16', expected one of 'float32', 'bfloat16'"
    ):
        tp.Trainer(perceptron(), tp.optim.sgd(0.1), precision="bf16")
    with pytest.raises(ValueError, match=r"^precision: precision is 16"), tp.precision(16):
        pass


def test_a_trainer_is_pickled_with_its_precision():
    trainer = tp.Trainer(perceptron(), tp.optim.sgd(0.1), precision="bfloat16_emulated")
    again = pickle.loads(pickle.dumps(trainer))
    assert repr(again) == repr(trainer)
    assert "precision='bfloat16_emulated'" in repr(trainer)


# ---- files
@pytest.mark.parametrize(("dtype", "digits"), [(tp.bfloat16, 8), ("float16", 11)])
def test_models_are_saved_in_half_of_the_bytes(tmp_path, dtype, digits):
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    special[2] = np.uint32(0x7F800001).view(np.float32)  # a NaN whose upper half is infinity
    params = {"w": normal(300, 200), "special": special, "step": np.arange(3)}
    tp.checkpoint.save(tmp_path / "half", tp.ptree.map(tp.tensor, params), dtype=dtype)
    tp.checkpoint.save(tmp_path / "whole", tp.ptree.map(tp.tensor, params))
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.52 * sizes[1]
    loaded = tp.checkpoint.load(tmp_path / "half")
    assert (loaded["step"].numpy() == params["step"]).all()
    np.testing.assert_array_equal(loaded["special"].numpy(), special)
    np.testing.assert_allclose(loaded["w"].numpy(), params["w"], rtol=2.0**-digits, atol=1e-7)
    if dtype == "bfloat16":
        np.testing.assert_array_equal(loaded["w"].numpy(), rounded(params["w"]))
    torch = pytest.importorskip("safetensors.torch") if _has_torch() else None
    if torch:
        assert str(torch.load_file(tmp_path / "half")["w"].dtype) == f"torch.{dtype}"


def _has_torch():
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def test_other_dtypes_of_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^checkpoint.save: dtype is .float8., expected .bfloat16. or"):
        tp.checkpoint.save(tmp_path / "file", {"w": tp.ones(2)}, dtype="float8")
