"""Sorting, and indexing along an axis: NumPy's order for every dtype, ties, NaN, and errors."""

import numpy as np
import pytest

import treepie as tp

INF, NAN = np.inf, np.nan
SPECIAL = [0.0, -0.0, NAN, INF, -INF, 1e-45, -1e-45, 3e38, -NAN, -3e38, 0.0, -0.0, 1.5, 1.5, -2.0, NAN]
EDGES = [0, -1, 1, 2**31 - 1, -(2**31), 5, 5, -7]


def values(dtype, n):
    rng = np.random.default_rng(n)
    if dtype == "bool":
        return rng.random(n) < 0.5
    if dtype.startswith("int"):
        drawn = rng.integers(-(2**30), 2**30, n) * (4**16 if dtype == "int64" else 1)
        return np.concatenate([np.array(EDGES), drawn]).astype(dtype)
    return np.concatenate([SPECIAL, rng.standard_normal(n), rng.integers(0, 9, n)]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
@pytest.mark.parametrize("n", [1, 8, 20, 1000])
def test_the_order_is_numpys_stable_one(dtype, n):
    x = values(dtype, n)
    np.testing.assert_array_equal(tp.argsort(x), np.argsort(x, kind="stable"))
    np.testing.assert_array_equal(tp.sort(x), np.sort(x))
    assert tp.sort(x).dtype == dtype
    down = tp.argsort(x, descending=True).numpy()
    np.testing.assert_array_equal(x[down], np.sort(x)[::-1])
    same = (x[down][1:] == x[down][:-1]) | ((x[down][1:] != x[down][1:]) & (x[down][:-1] != x[down][:-1]))
    assert (np.diff(down)[same] > 0).all()  # equal elements keep their order


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_axes(axis):
    x = np.random.default_rng(0).integers(0, 5, (40, 7, 3))
    np.testing.assert_array_equal(tp.argsort(x, axis), np.argsort(x, axis, kind="stable"))
    np.testing.assert_array_equal(tp.tensor(x).sort(axis), np.sort(x, axis))


def test_top_k_is_the_first_of_the_largest():
    x = tp.tensor([[3.0, 5.0, 5.0, -1.0], [0.0, NAN, INF, 2.0]])
    best, places = tp.top_k(x, 2)
    np.testing.assert_array_equal(best, [[5.0, 5.0], [NAN, INF]])
    assert places.tolist() == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match=r"top_k: k is 5, expected 0 to 4 for axis 1 of shape \(2, 4\)"):
        tp.top_k(x, 5)


def test_ties_give_their_gradient_to_the_place_a_stable_sort_puts_them():
    weights = tp.tensor([1.0, 10.0, 100.0, 1000.0])
    g = tp.grad(lambda x: (tp.sort(x) * weights).sum())(tp.tensor([2.0, 1.0, 2.0, 1.0]))
    assert g.tolist() == [100.0, 1.0, 1000.0, 10.0]
    g = tp.grad(lambda x: tp.top_k(x, 1)[0].sum())(tp.tensor([1.0, 2.0, 2.0]))
    assert g.tolist() == [0.0, 1.0, 0.0]


def test_take_along_axis_broadcasts_as_numpys():
    x = np.arange(24.0).reshape(2, 3, 4)
    for shape, axis in [((1, 5, 4), 1), ((2, 5, 1), 1), ((1, 1, 2), -1), ((2, 3, 9), 2)]:
        i = np.random.default_rng(0).integers(-x.shape[axis], x.shape[axis], shape)
        np.testing.assert_array_equal(tp.take_along_axis(x, i, axis), np.take_along_axis(x, i, axis))
    g = tp.grad(lambda t: tp.take_along_axis(t, [[0]], 1).sum())(tp.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert g.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_gather_reads_the_first_rows_as_pytorchs():
    x = tp.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert tp.gather(x, [[2, 0, 0, 1]], axis=1).tolist() == [[3.0, 1.0, 1.0, 2.0]]
    assert tp.gather(x, [[1, 0]], axis=0).tolist() == [[4.0, 2.0]]
    g = tp.grad(lambda t: tp.gather(t, [[2, 2]], axis=1).sum())(x)
    assert g.tolist() == [[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]


def test_take_is_numpys():
    x = np.arange(12).reshape(3, 4)
    for axis in (None, 0, 1, -1):
        np.testing.assert_array_equal(tp.take(x, [[0, -1]], axis), np.take(x, [[0, -1]], axis))
        np.testing.assert_array_equal(tp.tensor(x).take([2], axis), np.take(x, [2], axis))


X = np.zeros((2, 3))
ERRORS = [
    (lambda: tp.take_along_axis(X, [[3]], 1), IndexError, "take_along_axis: an index is 3, expected -3 to 2"),
    (
        lambda: tp.take_along_axis(X, [0], 1),
        ValueError,
        r"take_along_axis: indices have shape \(1,\), expect",
    ),
    (lambda: tp.take_along_axis(X, [[0.5]], 1), TypeError, "take_along_axis: indices have dtype float32"),
    (
        lambda: tp.gather(X, [[0], [0], [0]], 1),
        ValueError,
        r"gather: indices have shape \(3, 1\), expected 2 axes, none but axis 1 longer",
    ),
    (lambda: tp.gather(X, 1, np.zeros((2, 1), int)), TypeError, "(?s)gather: axis is .*, expected an int"),
    (lambda: tp.gather(X, [[-4]], 1), IndexError, "gather: an index is -4, expected -3 to 2"),
    (lambda: tp.sort(X, 2), ValueError, "sort: axis is 2, expected -2 to 1 for 2 axes"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
