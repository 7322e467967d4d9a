"""Random numbers: the published vectors, the documented bits, keys, and distributions."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.ops.random import _threefry
from treepie.kernels.elementwise import elementwise
from treepie.kernels.program import LaunchTable, Operand, Spec
from treepie.kernels.random import threefry

# Random123 1.14, tests/kat_vectors, lines "threefry2x32 20": counter, key, result.
VECTORS = [
    ("00000000 00000000", "00000000 00000000", "6b200159 99ba4efe"),
    ("ffffffff ffffffff", "ffffffff ffffffff", "1cb996fc bb002be7"),
    ("243f6a88 85a308d3", "13198a2e 03707344", "c4923a9c 483df7a0"),
]


def words(text):
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "want"), VECTORS)
def test_published_vectors(counter, key, want):
    """Random123's known answers, from the kernel's formula and from the oracle."""
    assert [int(w) for w in _threefry(words(key), *words(counter))] == words(want)
    arrays = [np.array(w, np.uint32).view(np.int32) for w in (*words(key), *words(counter))]
    outs = [np.empty((), np.int32) for _ in range(2)]
    spec = Spec((), np.dtype("int32"))
    operands = [Operand(k, spec) for k in range(6)]
    program = LaunchTable([elementwise("threefry_block", threefry, operands[:4], operands[4:])])
    assert program.run([a.ctypes.data for a in (*arrays, *outs)]) == -1
    assert [int(o.view(np.uint32)) for o in outs] == words(want)


def test_uniform_and_normal_are_made_of_the_documented_bits():
    key = tp.rng.fold_in(tp.rng.key(7), 3)
    w0, w1 = _threefry(key.numpy(), np.arange(1000), np.zeros(1000, np.int64))
    u = tp.rng.uniform(key, (1000,))
    np.testing.assert_array_equal(u.numpy(), ((w0 >> np.uint64(8)) / 2**24).astype("f4"))
    n = tp.rng.normal(key, (1000,)).numpy()
    want = np.sqrt(-2 * np.log(np.float32(w0 + np.uint64(1)) / 2.0**32)) * np.cos(2 * np.pi * (w1 / 2.0**32))
    np.testing.assert_allclose(n, want, atol=1e-6)


def test_a_normal_number_of_the_word_0_is_finite():
    """The word 0 comes once in 2**32; a search found it here."""
    n = tp.rng.normal(tp.rng.key(152), (2**23,)).numpy()
    w0, w1 = _threefry(tp.rng.key(152).numpy(), np.array([8294676]), np.zeros(1, np.int64))
    assert w0 == 0
    want = np.sqrt(64 * np.log(2)) * np.cos(2 * np.pi * w1 / 2.0**32)
    np.testing.assert_allclose(n[8294676], want, rtol=1e-5)
    assert np.abs(n).max() < 6.67


def test_an_element_depends_on_its_key_and_index_alone():
    key = tp.rng.key(1)
    many = tp.rng.normal(key, (70000,)).numpy()
    np.testing.assert_array_equal(tp.rng.normal(key, (7, 10)).numpy().ravel(), many[:70])


def test_keys_split_and_fold_without_sharing_draws():
    key = tp.rng.key(0)
    keys = [key, *tp.rng.split(key, 3), tp.rng.fold_in(key, 0), tp.rng.fold_in(key, 1)]
    draws = np.stack([tp.rng.uniform(k, (500,), dtype=tp.float64).numpy() for k in keys])
    assert len(np.unique(draws)) == draws.size
    assert np.abs(np.corrcoef(draws) - np.eye(len(keys))).max() < 0.2
    first, second = tp.rng.split(key)
    np.testing.assert_array_equal(first.numpy(), keys[1].numpy())
    np.testing.assert_array_equal(second.numpy(), keys[2].numpy())
    assert tp.rng.key(-1).tolist() == [2**32 - 1, 2**32 - 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments(dtype):
    """Means and variances of 10^6 draws lie within 5 standard errors."""
    n = 10**6
    u = tp.rng.uniform(tp.rng.key(2), (n,), -1.0, 3.0, dtype=dtype).numpy().astype("f8")
    assert u.min() >= -1
    assert u.max() <= 3
    assert abs(u.mean() - 1) < 5 * np.sqrt(16 / 12 / n)
    assert abs(u.var() - 16 / 12) < 5 * np.sqrt(16**2 / 180 / n)
    z = tp.rng.normal(tp.rng.key(3), (n,), dtype=dtype).numpy().astype("f8")
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert abs((np.abs(z) > 3).mean() - 0.0026998) < 5 * np.sqrt(0.0027 / n)


def test_bounds_of_float64_are_not_rounded_to_float32():
    u = tp.rng.uniform(tp.rng.key(1), (10**5,), 0.1, 0.3, dtype=tp.float64).numpy()
    assert u.min() >= 0.1
    assert abs(u.min() - 0.1) < 1e-4
    assert u.max() < 0.3


def test_bernoulli_and_permutation():
    hits = tp.rng.bernoulli(tp.rng.key(4), 0.3, (100_000,))
    assert hits.dtype == tp.bool_
    assert abs(hits.numpy().mean() - 0.3) < 5 * np.sqrt(0.21 / 1e5)
    order = tp.rng.permutation(tp.rng.key(5), 1000).numpy()
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (order != np.arange(1000)).sum() > 900
    assert tp.rng.permutation(tp.rng.key(5), 0).shape == (0,)


@pytest.mark.parametrize(
    ("low", "high"), [(-2, 2), (-1, 3), (0.5, np.inf), (2, 2.5), (-np.inf, -3), (5, np.inf), (-0.1, 0.1)]
)
def test_truncated_normal(low, high):
    """The mean and the median against the distribution's own (Johnson, Kotz & Balakrishnan 1994)."""
    from mpmath import mp, npdf, quad

    mp.dps = 20
    n = 20_000
    x = tp.rng.truncated_normal(tp.rng.key(6), (n,), low, high, dtype=tp.float64).numpy()
    assert low <= x.min()
    assert x.max() <= high
    ends = [max(low, -40.0), min(high, 40.0)]
    if ends[0] < 0 < ends[1]:
        ends.insert(1, 0)
    mass, mean, square = (float(quad(lambda t, k=k: t**k * npdf(t), ends)) for k in (0, 1, 2))
    deviation = np.sqrt(square / mass - (mean / mass) ** 2)
    assert abs(x.mean() - mean / mass) < 5 * deviation / np.sqrt(n)


def test_randint():
    x = tp.rng.randint(tp.rng.key(7), (60_000,), -2, 4)
    assert x.dtype == tp.int32
    counts = np.bincount(x.numpy() + 2, minlength=6)
    assert counts.shape == (6,)
    assert (abs(counts - 10_000) < 5 * np.sqrt(60_000 * 5 / 36)).all()
    wide = tp.rng.randint(tp.rng.key(7), (1000,), 2**40, 2**40 + 2**32).numpy()
    assert wide.dtype == np.int64
    assert (wide >= 2**40).all()
    assert (wide < 2**40 + 2**32).all()
    assert abs(wide.mean() - 2**40 - 2**31) < 5 * 2**32 / np.sqrt(12_000)


@pytest.mark.parametrize("axis", [0, 1])
def test_categorical(axis):
    p = np.array([0.1, 0.2, 0.3, 0.4])
    logits = np.broadcast_to(np.log(p), (50_000, 4)) + 3.0
    drawn = tp.rng.categorical(tp.rng.key(8), logits if axis else logits.T, axis).numpy()
    assert drawn.shape == (50_000,)
    got = np.bincount(drawn, minlength=4) / 50_000
    assert (abs(got - p) < 5 * np.sqrt(p * (1 - p) / 50_000)).all()
    never = tp.rng.categorical(tp.rng.key(9), np.array([[0.0, -np.inf]] * 1000))
    assert not never.numpy().any()


ERRORS = [
    (lambda: tp.rng.randint(tp.rng.key(0), (3,), 2, 2), ValueError, "rng.randint: low is 2 and high 2"),
    (
        lambda: tp.rng.truncated_normal(tp.rng.key(0), (3,), 2, 1),
        ValueError,
        "rng.truncated_normal: low is 2 and high 1, expected low < high",
    ),
    (lambda: tp.rng.categorical(tp.rng.key(0), [1.0], 1), ValueError, "rng.categorical: axis is 1"),
    (lambda: tp.rng.uniform(0, (3,)), TypeError, "rng: key is 0, expected one from rng.key"),
    (lambda: tp.rng.key(2**64), ValueError, "expected an integer of 64 bits"),
    (lambda: tp.rng.key(0.5), TypeError, "rng.key: seed is 0.5, expected an int"),
    (lambda: tp.rng.split(tp.rng.key(0), 0), ValueError, "rng.split: n is 0, expected at least 1"),
    (lambda: tp.rng.fold_in(tp.rng.key(0), -1), ValueError, "rng.fold_in: data is -1, expected"),
    (lambda: tp.rng.normal(tp.rng.key(0), (3,), dtype="int32"), TypeError, "expected float32 or"),
    (lambda: tp.rng.normal(tp.rng.key(0), (-3,)), ValueError, "rng.normal: shape is"),
    (lambda: tp.rng.uniform(tp.rng.key(0), (3,), 2, 1), ValueError, "expected low < high"),
    (lambda: tp.rng.bernoulli(tp.rng.key(0), 1.5), ValueError, "rng.bernoulli: p is 1.5, expected"),
    (lambda: tp.rng.permutation(tp.rng.key(0), -1), ValueError, "rng.permutation: n is -1"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_large_permutations_are_ordered_as_small_ones():
    """Above 2**17 by the kernel, below by NumPy."""
    n = 2**17 + 1
    bits = tp.autodiff.ops.random.random_bits(tp.rng.key(1), (n,)).numpy()
    np.testing.assert_array_equal(tp.rng.permutation(tp.rng.key(1), n), np.argsort(bits, kind="stable"))
