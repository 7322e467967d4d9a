"""Normalisation, embedding and dropout: against float64 NumPy, and PyTorch where it is installed."""

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(3)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def normal(x, axes, eps, centered=True):
    """The definition, in float64."""
    x = np.asarray(x, np.float64)
    d = x - x.mean(axes, keepdims=True) if centered else x
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + eps)


def per_channel(v, x):
    return np.asarray(v, np.float64).reshape(-1, *(1,) * (x.ndim - 2))


def grouped(x, groups):
    return normal(x.reshape(x.shape[0], groups, -1), 2, 1e-5).reshape(x.shape)


#: Name -> (function of x, weight, bias; its definition; the axis of the channels, shapes of x).
NORMS = {
    "layer_norm": (
        tp.fn.layer_norm,
        lambda x, w, b: normal(x, -1, 1e-5) * w + b,
        *(-1, [(1, 1), (3, 7), (2, 3, 64), (5, 129), (40, 1000), (8,)]),
    ),
    "rms_norm": (
        lambda x, w, b: tp.fn.rms_norm(x, w),
        lambda x, w, b: normal(x, -1, 1e-6, False) * w,
        *(-1, [(1, 1), (3, 7), (2, 3, 64), (5, 129)]),
    ),
    "group_norm": (
        lambda x, w, b: tp.fn.group_norm(x, 3, w, b),
        lambda x, w, b: grouped(x, 3) * per_channel(w, x) + per_channel(b, x),
        *(1, [(2, 3), (2, 6), (3, 6, 5), (2, 9, 4, 7), (1, 3, 33)]),
    ),
    "batch_norm": (
        tp.fn.batch_norm,
        lambda x, w, b: normal(x, (0, *range(2, x.ndim)), 1e-5) * per_channel(w, x) + per_channel(b, x),
        *(1, [(2, 1), (300, 70), (1000, 33), (3, 2, 5), (64, 3, 14, 14), (1, 2, 2), (200, 2, 130)]),
    ),
}
EVERY = [(name, shape) for name, row in NORMS.items() for shape in row[3]]


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_equals_the_definition_far_from_zero_too(name, shape):
    """At a mean of 1000 deviations float32 inputs themselves are off by 6e-5; nothing is lost beyond that."""
    fn, definition, axis, _ = NORMS[name]
    w, b = numbers(shape[axis], seed=1), numbers(shape[axis], seed=2)
    for offset in (0.0, 1000.0):
        x = numbers(*shape) + offset
        np.testing.assert_allclose(fn(x, w, b), definition(x, w, b), rtol=1e-8, atol=1e-8)
        single = [a.astype("f4") for a in (x, w, b)]
        result = fn(*single)
        assert result.dtype == tp.float32
        np.testing.assert_allclose(result, definition(*single), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_gradients_far_from_zero(name, shape):
    """Those of float32 are those of float64 at the same elements, to float32's digits."""
    fn, _, axis, _ = NORMS[name]
    x = numbers(*shape) + (0.0 if name == "rms_norm" else 1000.0)
    arrays = [a.astype("f4") for a in (x, numbers(shape[axis], seed=1), numbers(shape[axis], seed=2))]
    g = numbers(*shape, seed=3).astype("f4")
    gradient = tp.grad(lambda args: (fn(*args[:3]) * args[3]).sum())
    single, double = (gradient([tp.tensor(a.astype(d)) for a in (*arrays, g)])[:3] for d in ("f4", "f8"))
    for a, b in zip(single, double, strict=True):
        want = b.numpy()
        np.testing.assert_allclose(a, want, rtol=1e-5, atol=5e-6 * max(1.0, np.abs(want).max(initial=0.0)))


def test_weights_are_ones_and_zeros_unless_given():
    x = numbers(4, 6)
    np.testing.assert_array_equal(tp.fn.layer_norm(x), tp.fn.layer_norm(x, np.ones(6), np.zeros(6)))
    np.testing.assert_array_equal(tp.fn.group_norm(x, 2), tp.fn.group_norm(x, 2, np.ones(6), np.zeros(6)))
    np.testing.assert_array_equal(tp.fn.batch_norm(x), tp.fn.batch_norm(x, np.ones(6), np.zeros(6)))
    np.testing.assert_array_equal(tp.fn.rms_norm(x), tp.fn.rms_norm(x, np.ones(6)))


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (4, 3, 2, 5)])
def test_batch_norm_keeps_running_statistics(shape):
    """Of the unbiased variance; `momentum` is the weight of the new value; evaluation uses them."""
    layer = tp.layer.batch_norm(3, momentum=0.3)
    vars = layer.init(KEY, tp.float64)
    first = {"running_mean": [0.0] * 3, "running_var": [1.0] * 3}
    assert {k: v.tolist() for k, v in vars.state.items()} == first
    mean, var, axes = np.zeros(3), np.ones(3), (0, *range(2, len(shape)))
    for step in range(3):
        x = numbers(*shape, seed=step) * 2 + 1
        y, vars = layer.apply(vars, x, training=True)
        np.testing.assert_allclose(y, normal(x, axes, 1e-5), rtol=1e-12, atol=1e-12)
        mean = 0.7 * mean + 0.3 * x.mean(axes)
        var = 0.7 * var + 0.3 * x.var(axes, ddof=1)
    np.testing.assert_allclose(vars.state["running_mean"], mean, rtol=1e-13)
    np.testing.assert_allclose(vars.state["running_var"], var, rtol=1e-13)
    y, after = layer.apply(vars, x)
    want = (x - per_channel(mean, x)) / np.sqrt(per_channel(var, x) + 1e-5)
    np.testing.assert_allclose(y, want, rtol=1e-12)
    assert after.state is vars.state


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_equals_pytorch_with_gradients(name, shape):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    theirs = {
        "layer_norm": lambda x, w, b: functional.layer_norm(x, w.shape, w, b),
        "rms_norm": lambda x, w, b: functional.rms_norm(x, w.shape, w, 1e-6) + 0 * b,
        "group_norm": lambda x, w, b: functional.group_norm(x, 3, w, b),
        "batch_norm": lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
    }[name]
    fn, _, axis, _ = NORMS[name]
    arrays = [numbers(*shape), numbers(shape[axis], seed=1), numbers(shape[axis], seed=2)]
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    want, g = theirs(*tensors), numbers(*shape, seed=3)
    y, back = tp.vjp(fn, *map(tp.tensor, arrays))
    np.testing.assert_allclose(y, want.detach(), rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(want, tensors, torch.from_numpy(g))
    for ours, their in zip(back(tp.tensor(g)), gradients, strict=True):
        np.testing.assert_allclose(ours, their, rtol=1e-7, atol=1e-7)


def test_what_is_not_finite_stays_in_its_row_or_channel():
    x = numbers(3, 8)
    x[1, 2] = np.inf
    y = tp.fn.layer_norm(x).numpy()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
    y = tp.fn.batch_norm(x).numpy()
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(np.delete(y, 2, 1)).all()


def test_embedding_is_rows_of_a_table():
    table, ids = numbers(7, 4), np.array([[0, 6, 3], [3, 3, 1]])
    np.testing.assert_array_equal(tp.fn.embedding(ids, table, scale=False), table[ids])
    np.testing.assert_array_equal(tp.fn.embedding(ids, table), table[ids] * 2.0)
    g, want = numbers(2, 3, 4, seed=1), np.zeros((7, 4))
    np.add.at(want, ids, g)
    _, back = tp.vjp(lambda w: tp.fn.embedding(ids, w, scale=False), tp.tensor(table))
    np.testing.assert_allclose(back(tp.tensor(g))[0], want, rtol=1e-15)
    layer = tp.layer.embedding(1000, 64)
    y, _ = layer.apply(layer.init(KEY), np.arange(1000))
    assert y.shape == (1000, 64)
    assert abs(y.numpy().std() - 1) < 0.01


def test_dropout_draws_one_mask_for_values_and_gradients():
    x = tp.ones((50, 41))
    y, back = tp.vjp(lambda t: tp.fn.dropout(t, 0.3, KEY), x)
    np.testing.assert_array_equal(back(x)[0], y)
    wide = tp.fn.dropout(tp.ones((50, 41), tp.float64), 0.3, KEY)
    np.testing.assert_array_equal(wide.numpy() > 0, y.numpy() > 0)
    np.testing.assert_array_equal(y.numpy() > 0, tp.rng.uniform(KEY, (50, 41)).numpy() >= 0.3)
    assert (y.numpy() != tp.fn.dropout(x, 0.3, tp.rng.key(4)).numpy()).any()


def test_conv_weights_have_their_fans():
    """[out, in / groups, kh, kw] has in_axis 1 and out_axis 0."""
    make = tp.init.variance_scaling(2.0, "fan_out", "normal", in_axis=1, out_axis=0)
    assert abs(make(KEY, (64, 16, 3, 3), tp.float64).numpy().std() / np.sqrt(2 / (64 * 9)) - 1) < 0.02


def apply(layer, x):
    return lambda: layer.apply(layer.init(KEY), x, training=True)


ERRORS = [
    (lambda: tp.layer.layer_norm(0), "layer.layer_norm: dim is 0, expected at least 1"),
    (lambda: tp.layer.layer_norm(3, eps=-1.0), "layer.layer_norm: eps is -1.0, expected"),
    (lambda: tp.layer.group_norm(4, 6), "num_groups is 4 and num_channels 6, expected a divisor"),
    (lambda: tp.layer.batch_norm(3, momentum=1.5), "momentum is 1.5, expected 0 to 1"),
    (lambda: tp.layer.embedding(0, 4), "layer.embedding: vocab_size is 0, expected at least 1"),
    (lambda: tp.fn.group_norm(np.ones((2, 6)), 4), r"group_norm: x has shape \(2, 6\) and num_groups is 4"),
    (lambda: tp.fn.layer_norm(np.ones(())), r"layer_norm: x has shape \(\), expected"),
    (
        lambda: tp.fn.layer_norm(np.ones((2, 3)), np.ones(4)),
        r"layer_norm: gamma has shape \(4,\) .*expected \(3,\)",
    ),
    (lambda: tp.fn.batch_norm(np.ones((2, 3)), mean=np.zeros(3)), "one of mean and var is None, expected"),
    (apply(tp.layer.batch_norm(3), tp.ones((2, 4))), r"x has shape \(2, 4\), expected 3 channels on axis 1"),
    (apply(tp.layer.batch_norm(3), tp.ones((1, 3))), r"x has shape \(1, 3\), one value a channel"),
    (apply(tp.layer.batch_norm(3), tp.ones((1, 3, 1, 1))), r"\(1, 3, 1, 1\), one value a channel"),
    (apply(tp.layer.batch_norm(3), tp.ones((0, 3))), r"batch_norm: x has shape \(0, 3\), expected"),
    (apply(tp.layer.layer_norm(3), tp.ones((2, 4))), r"gamma has shape \(3,\).*expected \(4,\)"),
    (
        lambda: tp.fn.embedding(np.ones(2, int), np.ones(3)),
        r"weight has shape \(3,\), dtype float64, expected",
    ),
]


@pytest.mark.parametrize(("call", "match"), ERRORS)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_dtypes_and_indices_that_do_not_fit():
    with pytest.raises(
        TypeError, match=r"layer_norm: gamma has .* dtype float64, expected \(3,\) and float32"
    ):
        tp.fn.layer_norm(tp.ones((2, 3)), np.ones(3))
    with pytest.raises(TypeError, match="embedding: indices have dtype float64, expected int32 or int64"):
        tp.fn.embedding(np.ones(2), np.ones((3, 4)))
    with pytest.raises(IndexError, match="an index is 3, expected -3 to 2"):
        tp.fn.embedding([0, 3], np.ones((3, 4)))


def test_evaluation_of_batch_norm_takes_one_example():
    layer = tp.layer.batch_norm(3)
    y, _ = layer.apply(layer.init(KEY), tp.ones((1, 3)))
    np.testing.assert_allclose(y, np.full((1, 3), 1 / np.sqrt(1 + 1e-5)), rtol=1e-6)
