"""Long reductions: digits, infinities, signs of zero, integers, and the positions of equal elements."""

import math

import numpy as np
import pytest

import treepie as tp

INF = math.inf


@pytest.mark.parametrize("inner", [1, 3])
def test_sums_of_many_numbers_are_compensated(inner):
    """One part of each 4096 elements is far larger than the sum of the others."""
    x = np.random.default_rng(0).standard_normal((40 * 4096, inner))
    x[::4096] *= 1e12
    want = [math.fsum(column) for column in x.T]
    unit = np.spacing(np.abs(x).max())
    np.testing.assert_allclose(tp.sum(x, 0), want, rtol=0, atol=20 * unit)
    big = np.zeros(10 * 4096)
    big[::4096] = [1.0, 1e100, 1.0, -1e100, 1.0, 1e100, 1.0, -1e100, 1.0, 1.0]
    assert tp.sum(big).item() == math.fsum(big) == 6.0


@pytest.mark.parametrize("shape", [(5,), (3 * 4096,), (3 * 4096, 2)], ids=str)
def test_sums_of_infinities(shape):
    x = np.ones(shape)
    for first, want in ((INF, INF), (-INF, -INF), (math.nan, math.nan)):
        x[0] = first
        np.testing.assert_array_equal(tp.sum(x, 0), np.full(shape[1:], want))
    x[0], x[-1] = INF, -INF
    assert np.isnan(tp.sum(x, 0).numpy()).all()


@pytest.mark.parametrize("shape", [(1,), (5,), (33,), (3 * 4096,), (3 * 4096, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_sum_of_negative_zeros_is_one(shape, dtype):
    assert np.signbit(tp.sum(np.full(shape, -0.0, dtype), 0).numpy()).all()
    assert not np.signbit(tp.sum(np.zeros(shape, dtype), 0).numpy()).any()


@pytest.mark.parametrize("dtype", ["i4", "i8"])
@pytest.mark.parametrize("shape", [(40,), (3 * 4096,), (40, 3)], ids=str)
def test_extremes_of_integers_of_one_sign(shape, dtype):
    x = np.random.default_rng(0).integers(1, 2**31 - 1, shape).astype(dtype)
    for values in (x, -x):
        np.testing.assert_array_equal(tp.max(values, 0), values.max(0))
        np.testing.assert_array_equal(tp.min(values, 0), values.min(0))


@pytest.mark.parametrize("dtype", ["i4", "i8", "f4"])
@pytest.mark.parametrize("n", [1, 5, 20, 33])
def test_products(n, dtype):
    x = (1 + np.arange(n) % 2).astype(dtype)
    assert tp.prod(x).item() == 2 ** (n // 2)
    np.testing.assert_array_equal(tp.prod(np.stack([x, x], 1), 0), [2 ** (n // 2)] * 2)


@pytest.mark.parametrize("n", [5, 64, 65, 200, 3 * 4096])
@pytest.mark.parametrize("inner", [1, 2])
def test_the_first_of_equal_elements_is_the_extreme(n, inner):
    x = np.random.default_rng(n).integers(0, 3, (2, n, inner)).astype("f4")
    for values in (x, np.zeros_like(x), np.sort(x, 1), -np.sort(-x, 1)):
        np.testing.assert_array_equal(tp.argmax(values, 1), values.argmax(1))
        np.testing.assert_array_equal(tp.argmin(values, 1), values.argmin(1))
    for at in range(0, n, max(1, n // 20)):
        values = np.zeros(n)
        values[at] = 1.0
        assert tp.argmax(values).item() == tp.argmin(-values).item() == at


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_softmax_of_large_numbers(dtype):
    x = np.array([[-1000.0, 1000.0, 999.0], [1e30, 0.0, -1e30], [-1e4, -1e4, -1e4]], dtype)
    want = [[0.0, 1 / (1 + np.exp(-1)), 1 / (1 + np.e)], [1.0, 0.0, 0.0], [1 / 3] * 3]
    np.testing.assert_allclose(tp.softmax(x), want, rtol=1e-6)
