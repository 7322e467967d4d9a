"""Reading by index and x.at[index] against NumPy: a table of indices, random ones, gradients, errors."""

import numpy as np
import pytest

import treepie as tp

X = np.arange(120.0, dtype="f4").reshape(3, 4, 1, 5, 2) / 8
I = np.array
MASK = np.random.default_rng(0).random((3, 4)) < 0.5
INDICES = [
    (),
    -1,
    (..., None),
    (slice(None, None, -2), 0, ..., slice(3, 0, -1), 1),
    I(1),
    [2, 0, 0],
    I([], "i4"),
    I([[1, 2], [2, -3]]),
    (I([2, 0]), I([1, -1])),
    (I([[2], [0]]), I([1, 1, 3])),
    (I([2, 0, 2]), slice(1, 3), 0, I([4, 4, 0])),
    (slice(None), I([3, 0]), 0, I([[1], [2]])),
    (slice(None), I([3, 0]), 0, I([[1], [2]]), None),
    (slice(None), slice(None), 0, I([1, 1])),
    (slice(None), 2, slice(None), I([1, 1])),
    (0, slice(None), I([0, 0]), slice(2, 4)),
    (I([0, 2]), None, I([1, 2])),
    (None, I([0, 2]), 3, None, 0),
    (..., I([1, 0, 0]), I([1, 0, 1])),
    (I([1, 1]), ..., I([1, 0])),
    (I([1, 1]), slice(3, 1), I([0])),
    (slice(2, 2), I([1, 0])),
    MASK,
    np.zeros((3, 4), bool),
    X > 7,
    (slice(None), I([True, False, True, True])),
    (slice(1, None), I([True, False, True, True]), ..., 0),
    (MASK, 0, I([1])),
    (MASK, slice(None), I([True, False, False, False, False])),
    (..., I([[False, True], [True, False], [True, True], [False, False], [True, True]])),
    (I([0, 1]), slice(None), slice(None), I([True, False, False, False, True])),
]


def expected_add(x, index, v):
    out = x.copy()
    np.add.at(out, index, v)
    return out


def expected_set(x, index, v):
    """One assignment after another, so that the last of equal indices wins."""
    out = x.copy()
    places = np.arange(x.size).reshape(x.shape)[index].ravel()
    for place, value in zip(places, np.broadcast_to(v, x[index].shape).ravel(), strict=True):
        out.flat[place] = value
    return out


def winners(x, index):
    """Whether each element of x[index] is the last that names its place."""
    places = np.arange(x.size).reshape(x.shape)[index]
    last = {place: k for k, place in enumerate(places.ravel())}
    return np.reshape([last[p] == k for k, p in enumerate(places.ravel())], places.shape)


def check(x, index):
    t, selected = tp.tensor(x), x[index]
    result = t[index].numpy()
    assert result.dtype == x.dtype
    np.testing.assert_array_equal(result, selected)
    v = (np.random.default_rng(1).standard_normal(selected.shape) * 4).astype(x.dtype)
    np.testing.assert_array_equal(t.at[index].set(v).numpy(), expected_set(x, index, v))
    np.testing.assert_allclose(t.at[index].add(v).numpy(), expected_add(x, index, v), rtol=1e-6)
    if x.dtype.kind != "f":
        return
    # The squares' gradients are exact: the factors are small multiples of powers of two.
    g = tp.grad(lambda a: (a[index] * a[index]).sum())(t)
    np.testing.assert_allclose(g.numpy(), expected_add(np.zeros_like(x), index, 2 * selected), rtol=1e-6)
    weights = np.random.default_rng(2).integers(1, 9, x.shape).astype(x.dtype)
    gx, gv = tp.grad(lambda p: (p[0].at[index].set(p[1]) * weights).sum())((t, v))
    np.testing.assert_array_equal(gx.numpy(), expected_set(weights, index, 0))
    np.testing.assert_array_equal(gv.numpy(), np.where(winners(x, index), weights[index], 0))
    gx, gv = tp.grad(lambda p: (p[0].at[index].add(p[1]) * weights).sum())((t, v))
    np.testing.assert_array_equal(gx.numpy(), weights)
    np.testing.assert_array_equal(gv.numpy(), weights[index])


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "bool"])
def test_every_kind_of_index_is_numpys(index, dtype):
    check((X * 8 % 7).astype(dtype), index)


@pytest.mark.parametrize("index", [INDICES[k] for k in (3, 8, 10, 11, 16, 22, 26)], ids=str)
def test_second_derivatives(index):
    x = X.astype("f8") / 15
    shape = x[index].shape
    v = np.random.default_rng(0).standard_normal(shape)
    tp.check_grads(lambda a: a[index] ** 3, (x,), order=2)
    tp.check_grads(lambda a, b: a.at[index].set(b) ** 3, (x, v), order=2)
    tp.check_grads(lambda a, b: a.at[index].add(b) ** 3, (x, v), order=2)


def random_index(rng):
    """Return a shape, and an index that NumPy takes."""
    shape = tuple(int(n) for n in rng.integers(0 if rng.random() < 0.1 else 1, 5, rng.integers(1, 5)))
    joined = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3)))
    index, axis = [], 0
    while axis < len(shape) and rng.random() < 0.9:
        n, kind = shape[axis], rng.integers(0, 7)
        axis += 1
        if kind == 0 and n:
            index.append(int(rng.integers(-n, n)))
        elif kind <= 2:
            bounds = [None if rng.random() < 0.4 else int(b) for b in rng.integers(-6, 7, 2)]
            index.append(slice(*bounds, [None, 1, 2, -1, -3][rng.integers(0, 5)]))
        elif kind == 3:
            index.append(None)
            axis -= 1
        elif kind <= 5 and n:
            own = tuple(m if rng.random() < 0.7 else 1 for m in joined)[rng.integers(0, len(joined) + 1) :]
            index.append(rng.integers(-n, n, own).astype(["i4", "i8"][rng.integers(0, 2)]))
        elif not any(isinstance(p, np.ndarray) for p in index):
            covered = int(rng.integers(1, len(shape) - axis + 2))
            mask = rng.random(shape[axis - 1 : axis - 1 + covered]) < 0.5
            joined = (int(mask.sum()),) if mask.any() else ()
            index.append(mask)
            axis += covered - 1
    if rng.random() < 0.3:
        used = sum(
            max(getattr(p, "ndim", 1), 1) if np.asarray(p).dtype.kind == "b" else p is not None for p in index
        )
        at = int(rng.integers(0, len(index) + 1))
        if used <= len(shape):
            tail = [p for p in index[at:] if p is not None]
            if not tail or used == len(shape):
                index.insert(at, Ellipsis)
    return shape, tuple(index)


@pytest.mark.parametrize("block", range(10))
def test_random_indices_are_numpys(block):
    rng = np.random.default_rng(block)
    done = 0
    while done < 30:
        shape, index = random_index(rng)
        x = rng.integers(-8, 9, shape).astype(["f4", "i8"][rng.integers(0, 2)])
        try:
            x[index]
        except IndexError:
            continue
        check(x, index)
        done += 1


def test_values_broadcast_and_take_the_dtype():
    x = tp.zeros((2, 3))
    assert x.at[0].set(2).tolist() == [[2.0] * 3, [0.0] * 3]
    assert x.at[:, 1].set(np.float64(0.5)).dtype == tp.float32
    assert x.at[...].add([[1.0], [2.0]]).tolist() == [[1.0] * 3, [2.0] * 3]
    assert x.at[0].set(np.ones((1, 1, 3))).tolist() == [[1.0] * 3, [0.0] * 3]
    assert x.at[[0, 0, 1]].add(1.0).tolist() == [[2.0] * 3, [1.0] * 3]
    assert x.at[[0, 0], 1].set([1.0, 2.0]).tolist() == [[0.0, 2.0, 0.0], [0.0] * 3]
    assert x.at[x == 0].set(4.0).tolist() == [[4.0] * 3] * 2
    assert tp.tensor([True, False]).at[[1, 1]].add(True).tolist() == [True, True]
    assert x.tolist() == [[0.0] * 3] * 2
    i = tp.tensor(1)
    assert tp.tensor([5, 6, 7])[i].item() == 6
    assert tp.tensor([5, 6, 7])[i:].tolist() == [6, 7]


def test_the_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((50, 40, 70), "f4"), rng.standard_normal((900, 70), "f4")
    index = (rng.integers(-50, 50, 900), rng.integers(0, 40, 900))
    results, before = [], tp.get_num_threads()
    try:
        for n in (1, 3):
            tp.set_num_threads(n)
            t = tp.tensor(x)
            result = (t[index], t.at[index].set(v), t.at[index].add(v))
            results.append([m.numpy().tobytes() for m in result])
    finally:
        tp.set_num_threads(before)
    assert results[0] == results[1]


T = tp.tensor(np.zeros((2, 3), "f4"))
ERRORS = [
    (lambda: T[2], IndexError, r"index: 2 is outside of axis 0 of shape \(2, 3\), expected -2 to 1"),
    (lambda: T[:, -4], IndexError, r"index: -4 is outside of axis 1 of shape \(2, 3\), expected -3 to 2"),
    (lambda: T[0, 0, 0], IndexError, r"index: 3 indices for shape \(2, 3\), expected at most 2"),
    (lambda: T[..., ...], IndexError, "index: two ellipses, expected one at most"),
    (lambda: T[[0, 2]], IndexError, r"index: an index is 2 on axis 0 of shape \(2, 3\), expected -2 to 1"),
    (lambda: T[:, [3]], IndexError, r"index: an index is 3 on axis 1 of shape \(2, 3\), expected -3 to 2"),
    (lambda: T[[0, 1], [0, -4]], IndexError, "index: an index is -4 on axis 1 of shape"),
    (lambda: T[[0, 1], [0, 1, 2]], IndexError, r"arrays have shapes \(2,\) and \(3,\), expected shapes that"),
    (
        lambda: T[[True, False, True]],
        IndexError,
        r"a mask has shape \(3,\) from axis 0 on of .*expected \(2,\)",
    ),
    (lambda: T[True], TypeError, "index: indices have dtype bool, expected int32 or int64"),
    (lambda: T[0.5], TypeError, "index: indices have dtype float32, expected int32 or int64"),
    (lambda: T[0.5:], TypeError, r"index: slice\(0.5, None, None\) is given, expected integers"),
    (
        lambda: T[::0],
        ValueError,
        r"index: slice\(None, None, 0\) is given, expected integers and a step but 0",
    ),
    (lambda: T.at[2].set(0.0), IndexError, "at.set: 2 is outside of axis 0"),
    (lambda: T.at[[0, 2]].add(0.0), IndexError, "at.add: an index is 2 on axis 0"),
    (lambda: T.at[[0], [3]].set(0.0), IndexError, "at.set: an index is 3 on axis 1"),
    (lambda: T.at[0].set([1.0, 2.0]), ValueError, r"at.set: v has shape \(2,\), expected .* to \(3,\)"),
    (
        lambda: T.at[[0]].add(np.ones((2, 3))),
        ValueError,
        r"at.add: v has shape \(2, 3\), expected .* \(1, 3\)",
    ),
    (
        lambda: tp.tensor([1]).at[0].set(0.5),
        TypeError,
        "at.set: v has dtype float32, expected one that int32",
    ),
    (lambda: tp.tensor([True]).at[0].add(2), TypeError, "at.add: v has dtype int32, expected bool"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
