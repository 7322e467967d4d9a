"""Activations: every one of the guide's list, against definitions in NumPy, at their kinks, and PyTorch's."""

import math

import numpy as np
import pytest

import treepie as tp

_ERF = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


#: Name -> (definition in float64, derivative at some points, PyTorch's name where it has it).
ACTIVATIONS = {
    "relu": (lambda x: np.maximum(x, 0), {-1: 0, 0: 0, 1: 1}, "relu"),
    "relu6": (lambda x: np.clip(x, 0, 6), {0: 0, 3: 1, 6: 0, 7: 0}, "relu6"),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), {-2: 0.01, 0: 0.01, 2: 1}, "leaky_relu"),
    "hard_tanh": (lambda x: np.clip(x, -1, 1), {-1: 0, 0: 1, 1: 0}, "hardtanh"),
    "hard_sigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, {-3: 0, 0: 1 / 6, 3: 0}, "hardsigmoid"),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), {0: 1, -1e4: 0, 1e4: 1}, "elu"),
    "selu": (
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        {0: 1.0507009873554805 * 1.6732632423543772, 1: 1.0507009873554805},
        "selu",
    ),
    "celu": (lambda x: np.where(x > 0, x, np.expm1(x)), {0: 1, -1e4: 0, 1e4: 1}, "celu"),
    "gelu": (lambda x: x * (1 + _ERF(x / np.sqrt(2))) / 2, {0: 0.5, 40: 1}, "gelu"),
    "gelu_approx": (
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        {0: 0.5, 40: 1, -40: 0},
        None,
    ),
    "silu": (lambda x: x * sigmoid(x), {0: 0.5, 40: 1}, "silu"),
    "swish": (lambda x: x * sigmoid(x), {0: 0.5, 40: 1}, "silu"),
    "hard_silu": (lambda x: x * np.clip(x + 3, 0, 6) / 6, {-3: 0, 0: 0.5, 3: 1}, "hardswish"),
    "hard_swish": (lambda x: x * np.clip(x + 3, 0, 6) / 6, {-3: 0, 0: 0.5, 3: 1}, "hardswish"),
    "mish": (lambda x: x * np.tanh(np.log1p(np.exp(x))), {0: 0.6, 60: 1, -800: 0}, "mish"),
    "softplus": (lambda x: np.log1p(np.exp(x)), {0: 0.5, 800: 1}, "softplus"),
    "softsign": (lambda x: x / (1 + np.abs(x)), {0: 1, -1: 0.25, 1: 0.25}, "softsign"),
    "squareplus": (lambda x: (x + np.sqrt(x * x + 4)) / 2, {0: 0.5, 1e30: 1, -1e30: 0}, None),
    "log_sigmoid": (lambda x: -np.log1p(np.exp(-x)), {0: 0.5, 800: 0, -800: 1}, "logsigmoid"),
    "sparse_plus": (
        lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
        {-1: 0, 0: 0.5, 1: 1},
        None,
    ),
    "sparse_sigmoid": (lambda x: np.clip((x + 1) / 2, 0, 1), {-1: 0, 0: 0.5, 1: 0}, None),
    "sigmoid": (sigmoid, {0: 0.25}, "sigmoid"),
    "tanh": (np.tanh, {0: 1}, "tanh"),
}
every = pytest.mark.parametrize("name", ACTIVATIONS)


def test_the_guides_list_is_complete():
    assert {*ACTIVATIONS, "glu", "prelu", "softmax", "log_softmax"} <= set(tp.fn.__all__)


@every
def test_equals_its_definition(name):
    x = np.concatenate([np.linspace(-9, 9, 301), [-1, 0, 1, 3, -3, 6]])
    np.testing.assert_allclose(getattr(tp.fn, name)(x), ACTIVATIONS[name][0](x), rtol=1e-12, atol=1e-15)


@every
def test_its_derivative_at_its_kinks_and_far_out(name):
    points = ACTIVATIONS[name][1]
    for dtype, rtol in (("float32", 1e-6), ("float64", 1e-12)):
        x = tp.tensor(np.array(list(points), dtype))
        g = tp.grad(lambda t: getattr(tp.fn, name)(t).sum())(x)
        np.testing.assert_allclose(g, list(points.values()), rtol=rtol, atol=1e-30)


@every
def test_keeps_nan_and_makes_none(name):
    y = getattr(tp.fn, name)(tp.tensor([np.nan, np.inf, -np.inf, 1e30, -1e30])).numpy()
    np.testing.assert_array_equal(np.isnan(y), [True, False, False, False, False])


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if ACTIVATIONS[n][2] or n == "gelu_approx"])
def test_equals_pytorch_between_its_kinks(name):
    torch = pytest.importorskip("torch")
    functional, their = torch.nn.functional, ACTIVATIONS[name][2]
    x = np.random.default_rng(0).uniform(-8, 8, 500)
    t = torch.from_numpy(x).requires_grad_()
    want = getattr(functional, their)(t) if their else functional.gelu(t, approximate="tanh")
    np.testing.assert_allclose(getattr(tp.fn, name)(x), want.detach(), rtol=1e-10, atol=1e-13)
    (g,) = torch.autograd.grad(want.sum(), t)
    ours = tp.grad(lambda a: getattr(tp.fn, name)(a).sum())(tp.tensor(x))
    # PyTorch's 1/6 in the derivative of hard_sigmoid is float32's, 3e-8 off.
    np.testing.assert_allclose(ours, g, rtol=1e-7 if name == "hard_sigmoid" else 1e-10, atol=1e-13)


def test_slopes_and_alphas():
    x = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(tp.fn.leaky_relu(x, 0.2), np.where(x > 0, x, 0.2 * x), rtol=1e-15)
    np.testing.assert_allclose(tp.fn.elu(x, 0.5), np.where(x > 0, x, 0.5 * np.expm1(x)), rtol=1e-14)
    np.testing.assert_allclose(tp.fn.celu(x, 0.5), np.where(x > 0, x, 0.5 * np.expm1(x / 0.5)), rtol=1e-14)


def test_glu_is_one_half_times_the_sigmoid_of_the_other():
    x = np.linspace(-4, 4.1, 24).reshape(4, 6)
    np.testing.assert_allclose(tp.fn.glu(x), x[:, :3] * sigmoid(x[:, 3:]), rtol=1e-13)
    np.testing.assert_allclose(tp.fn.glu(x, axis=0), x[:2] * sigmoid(x[2:]), rtol=1e-13)


def test_prelu_has_a_weight_for_all_or_for_each_channel():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for w, along in ((np.array(0.2), 0.2), (np.array([0.2]), 0.2), (np.arange(3.0), np.arange(3.0)[:, None])):
        np.testing.assert_allclose(tp.fn.prelu(x, w), np.where(x > 0, x, x * along), rtol=1e-15)
        tp.check_grads(tp.fn.prelu, (x, w))
    with pytest.raises(ValueError, match=r"prelu: weight has shape \(4,\) and x \(2, 3, 4\), expected"):
        tp.fn.prelu(x, np.ones(4))
    with pytest.raises(TypeError, match="prelu: x is float64, weight is float32; expected"):
        tp.fn.prelu(x, tp.ones(3))
