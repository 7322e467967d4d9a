"""Special values through elementwise ops and some reductions: zeros, subnormals, the largest, inf, NaN."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS, Tensor
from treepie.autodiff.elementwise import Elementwise

#: Of up to three operands: the row of four is arithmetic, (x - mean) * scale + shift, and overflows inside.
ROWS = [
    r
    for r in OPS.values()
    if isinstance(r, Elementwise) and "float32" in r.dtypes and len(r.cases[0].shapes) <= 3
]
VALUES = [
    0.0,
    1e-45,
    1e-39,
    1.2e-38,
    1e-10,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    20.0,
    87.5,
    88.0,
    88.8,
    104.0,
    1e10,
    3e38,
]
SPECIAL = np.array([*VALUES, *(-v for v in VALUES), np.inf, -np.inf, np.nan])


def operands(row, dtype):
    """Return all combinations of the special values over a row's operands."""
    count = len(row.cases[0].shapes)
    grids = np.meshgrid(*[SPECIAL] * min(count, 2), indexing="ij")
    arrays = [g.ravel().astype(dtype) for g in grids]
    if count == 3:
        arrays = (
            [np.arange(arrays[0].size) % 3 == 0, *arrays]
            if 0 in row.cases[0].integers
            else [arrays[0], *arrays]
        )
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_special_values(row, dtype):
    """Infinities and NaN where the oracle has them, and the rest within the row's bound."""
    arrays = operands(row, dtype)
    result = row(*[Tensor(a) for a in arrays]).array
    with np.errstate(all="ignore"):
        want = np.asarray(row.oracle(*[a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]))
        if result.dtype.kind == "b":
            np.testing.assert_array_equal(result, want)
            return
        rounded = want.astype(dtype)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(rounded))
    np.testing.assert_array_equal(np.isinf(result) & (result > 0), np.isinf(rounded) & (rounded > 0))
    np.testing.assert_array_equal(np.isinf(result) & (result < 0), np.isinf(rounded) & (rounded < 0))
    finite = np.isfinite(rounded)
    off = np.abs(result[finite].astype(np.float64) - want[finite])
    unit = np.spacing(np.abs(rounded[finite]))
    if row.magnitude is not None:  # terms that cancel
        with np.errstate(all="ignore"):
            size = np.abs(row.magnitude(*arrays))[finite].astype(dtype)
        unit = np.fmax(unit, np.spacing(size))
    bound = max(row.ulp, 0.5) * unit.astype(np.float64)  # half of the least float32 is 0 in float32
    if dtype == "float64":  # where the oracle is no more exact than we are; see test_formulas
        bound = bound + 1e-12 * np.abs(want[finite])
    assert (off <= bound).all()
    zeros = finite & (rounded == 0) & (want == 0)
    np.testing.assert_array_equal(np.signbit(result[zeros]), np.signbit(want[zeros]))


NAN, INF = np.nan, np.inf


def gradient(function, *operands):
    """Return the gradients of the sum of a function's results, as arrays."""
    values = [tp.tensor(np.asarray(x, np.float64)) for x in operands]
    for dtype in ("float32", "float64"):
        grads = tp.grad(lambda xs: function(*xs).sum())([v.astype(dtype) for v in values])
        yield [g.numpy() for g in grads]


def assert_gradients(function, operands, expected):
    """Assert gradients in both dtypes, NaN where NaN is expected."""
    for grads in gradient(function, *operands):
        for g, e in zip(grads, expected, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-6)


@pytest.mark.parametrize("name", ["mish", "gelu_approx", "gelu", "silu"])
def test_gradients_of_activations_far_out(name):
    x = [1e10, 1e30, 1e34, 3e38, INF, -1e10, -1e30, -3e38, -INF, 41.0, 0.0, NAN]
    at_zero = 0.6 if name == "mish" else 0.5
    assert_gradients(getattr(tp.fn, name), [x], [[1.0] * 5 + [0.0] * 4 + [1.0, at_zero, NAN]])


def test_clip_gives_the_gradient_to_the_bound_only_beyond_it():
    x, inside = [-2.0, -1.0, 0.0, 1.0, 2.0, NAN], np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    low, high = np.array([1.0, 0, 0, 0, 0, 0]), np.array([0.0, 0, 0, 0, 1, 0])
    assert_gradients(tp.clip, [x, -1.0, 1.0], [inside, low.sum(), high.sum()])
    assert_gradients(lambda t, bound: tp.clip(t, bound), [x, -1.0], [1 - low, low.sum()])
    assert_gradients(lambda t, bound: tp.clip(t, None, bound), [x, 1.0], [1 - high, high.sum()])


def test_gradient_of_a_power_by_its_base_is_0_where_the_exponent_is_0():
    x = [0.0, -0.0, 2.0, -1.0, INF, NAN]
    assert_gradients(lambda t: t**0, [x], [np.zeros(6)])
    assert_gradients(lambda t: t**0.0, [x], [np.zeros(6)])
    exponents = tp.zeros(6, dtype="float64")
    assert_gradients(lambda t: t ** exponents.astype(t.dtype), [x], [np.zeros(6)])
    first = tp.grad(lambda t: (t ** tp.zeros(6, dtype="float64")).sum())
    second = tp.grad(lambda t: first(t).sum())(tp.tensor(np.array(x)))
    np.testing.assert_array_equal(second.numpy(), np.zeros(6))


def test_mixed_derivative_of_a_power_where_the_exponent_is_0():
    """d/db of b * a ** (b - 1) is a ** (b - 1) * (1 + b log(a)), 1 / a at b = 0."""
    a, b = tp.tensor(np.array([2.0, 2.0, -4.0])), tp.tensor(np.array([0.0, 3.0, 0.0]))
    mixed = tp.grad(lambda t: tp.grad(lambda s: (s**t).sum())(a).sum())(b).numpy()
    np.testing.assert_allclose(mixed[:2], [0.5, 4 * (1 + 3 * np.log(2))], rtol=1e-14)


def test_gradient_of_a_power_by_its_exponent():
    """0 at 0 ** y for y >= 0, NaN for a negative base, as in PyTorch."""
    a, b = [0.0, 0.0, 0.0, -2.0, 2.0, 1.0], [0.0, 2.0, -1.0, 2.0, 3.0, 5.0]
    expected = [0.0, 0.0, -INF, NAN, 8 * np.log(2), 0.0]
    for _, g in gradient(tp.pow, a, b):
        np.testing.assert_allclose(g, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["max", "min"])
def test_gradients_of_max_and_min_are_nan_where_the_result_is(name):
    x = [[1.0, NAN, 2.0], [3.0, 3.0, 3.0]]
    third = [1 / 3] * 3
    assert_gradients(lambda t: getattr(tp, name)(t, axis=1), [x], [[[NAN] * 3, third]])
    assert_gradients(getattr(tp, name), [x], [[[NAN] * 3] * 2])
    assert_gradients(lambda t: getattr(tp, name)(t, axis=0), [x], [_by_column(name)])


def _by_column(name):
    """Return the gradients of the columns of the rows above."""
    first = [1.0, NAN, 1.0] if name == "min" else [0.0, NAN, 0.0]
    second = [0.0, NAN, 0.0] if name == "min" else [1.0, NAN, 1.0]
    return np.array([first, second])


@pytest.mark.parametrize(("name", "larger"), [("maximum", 1.0), ("minimum", 0.0)])
def test_gradients_of_maximum_and_minimum_pass_at_nan(name, larger):
    """As in PyTorch: nothing to an operand that is known to be beaten, half at a tie, else all."""
    a, b = [NAN, 1.0, NAN, 1.0, 2.0, 1.0], [1.0, NAN, NAN, 1.0, 1.0, 2.0]
    of_a = [1.0, 1.0, 1.0, 0.5, larger, 1 - larger]
    of_b = [1.0, 1.0, 1.0, 0.5, 1 - larger, larger]
    assert_gradients(getattr(tp, name), [a, b], [of_a, of_b])


def test_gradients_of_relu_and_abs_at_nan():
    assert_gradients(tp.fn.relu, [[NAN, -1.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]])
    assert_gradients(tp.abs, [[NAN, -1.0, 0.0, 1.0]], [[NAN, -1.0, 0.0, 1.0]])
    w, b = tp.tensor(np.eye(2, dtype="f4")), tp.zeros(2)
    layer = tp.grad(lambda t: OPS["linear"](t, w, b, activation="relu").sum())
    np.testing.assert_array_equal(layer(tp.tensor([[NAN, NAN]])).numpy(), [[1.0, 1.0]])


def test_logsumexp_of_infinities():
    rows = np.array([[np.inf, 1.0], [-np.inf, -np.inf], [np.inf, -np.inf], [np.nan, np.inf]])
    np.testing.assert_array_equal(tp.logsumexp(rows, 1), [np.inf, -np.inf, np.inf, np.nan])


@pytest.mark.parametrize("places", [[5000], [5000, 9000], [100, 5000], [4095], [4096], [0, 9999]], ids=str)
@pytest.mark.parametrize("inner", [1, 3])
def test_the_first_nan_of_a_long_row_is_its_extreme(places, inner):
    x = np.random.default_rng(0).standard_normal((2, 10000, inner))
    x[1, places, inner - 1] = np.nan
    for f, oracle in ((tp.argmax, np.argmax), (tp.argmin, np.argmin)):
        np.testing.assert_array_equal(f(x, axis=1), oracle(x, axis=1))
    for f, oracle in ((tp.max, np.max), (tp.min, np.min)):
        np.testing.assert_array_equal(f(x, axis=1), oracle(x, axis=1))
