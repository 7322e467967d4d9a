"""Keys with rows: a process draws what one process draws for these rows of the global batch, bit for bit."""

import functools

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.ops.random import _threefry
from treepie.autodiff.rng import for_rows
from treepie.kernels import elementwise, threads
from treepie.kernels.compilations import compilations

KEY = tp.rng.fold_in(tp.rng.key(2**40 + 7), 3)
F8 = tp.float64


def dropout(key, shape, dtype=tp.float32):
    """The factors, of which none may be 0 by itself."""
    return tp.fn.dropout(np.ones(shape, dtype), 0.3, key)


#: Draws of (key, shape), each of whose elements depends on its index alone.
DRAWS = {
    "uniform": tp.rng.uniform,
    "uniform float64": functools.partial(tp.rng.uniform, low=-1.0, high=2.5, dtype=F8),
    "normal": tp.rng.normal,
    "normal float64": functools.partial(tp.rng.normal, dtype=F8),
    "randint": lambda key, shape: tp.rng.randint(key, shape, -3, 10**6),
    "randint int64": lambda key, shape: tp.rng.randint(key, shape, -(2**40), -(2**40) + 2**32),
    "bernoulli": lambda key, shape: tp.rng.bernoulli(key, 0.4, shape),
    "truncated_normal": tp.rng.truncated_normal,
    "truncated_normal of a tail": functools.partial(tp.rng.truncated_normal, low=2, high=2.5, dtype=F8),
    "categorical": lambda key, shape: tp.rng.categorical(key, np.zeros((*shape, 5), "f4")),
    "dropout": dropout,
    "dropout float64": functools.partial(dropout, dtype=F8),
}
every_draw = pytest.mark.parametrize("name", DRAWS)


def bits(tensor):
    return tensor.shape, tensor.dtype, tensor.numpy().tobytes()


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


@every_draw
def test_a_draw_of_rows_is_these_rows_of_the_draw_of_all(name):
    draw, rng = DRAWS[name], np.random.default_rng(0)
    for first in (0, 1, 7, *rng.integers(2, 300, 9)):
        n, rest = int(rng.integers(1, 40)), tuple(rng.integers(0, 9, rng.integers(0, 4)))
        key = tp.rng.fold_in(KEY, int(first))
        whole = draw(key, (first + n + 2, *rest)).numpy()
        same(draw(for_rows(key, first, n), (n, *rest)), whole[first : first + n])


@every_draw
def test_empty_and_whole_batches(name):
    draw = DRAWS[name]
    assert draw(for_rows(KEY, 5, 0), (0, 3)).shape == (0, 3)
    assert bits(draw(for_rows(KEY, 0, 6), (6, 3))) == bits(draw(KEY, (6, 3)))


@every_draw
def test_a_draw_of_another_length_is_the_same_for_all_rows(name):
    """Such as noise on weights; a key of 0 rows has no rows, nor has an array without axes."""
    for key in (for_rows(KEY, 9, 4), for_rows(KEY, 2**31 - 1, 1), for_rows(KEY, 7, 0)):
        for shape in ((), (3,), (5, 4), (2, 1, 4), (0, 4)):
            assert bits(DRAWS[name](key, shape)) == bits(DRAWS[name](KEY, shape))


@pytest.mark.parametrize(("first", "row"), [(2**31 - 5, 2**20 + 3), ((2**32 - 1) // 3, 3), (2**31 - 1, 1)])
def test_counters_are_those_of_the_global_array_beyond_32_bits(first, row):
    """Also where they exceed 32 bits in the middle of a vector."""
    shape, key = (3, row), for_rows(KEY, first, 3)
    some = np.unique(np.random.default_rng(0).integers(0, 3 * row, 1000))
    counters = [first * row + int(i) for i in some]
    assert counters[-1] >= 2**32 or row == 1

    def words(stream=0):
        low = np.array([c % 2**32 for c in counters])
        return _threefry(KEY.numpy(), low, np.array([(c >> 32) + stream for c in counters]))

    def drawn(tensor):
        return tensor.numpy().ravel()[some]

    w0, w1 = words()
    whole = w0 | (w1 << np.uint64(32))
    u = (w0 >> np.uint64(8)) / 2.0**24
    same(drawn(tp.rng.uniform(key, shape)), u.astype("f4"))
    same(drawn(tp.rng.uniform(key, shape, dtype=F8)), (whole >> np.uint64(11)) / 2.0**53)
    same(drawn(tp.fn.dropout(np.ones(shape), 0.5, key)), np.where(u >= 0.5, 2.0, 0.0))
    same(drawn(tp.rng.randint(key, shape, 0, 2**32)), w1.astype("i8"))
    root = np.sqrt(-2 * np.log(np.float32(w0 + np.uint64(1)) / 2.0**32))
    turn = np.cos(2 * np.pi * (w1 / 2.0**32))
    np.testing.assert_allclose(drawn(tp.rng.normal(key, shape)), root * turn, atol=2e-6)
    root = np.sqrt(-2 * np.log(((whole >> np.uint64(11)) + 1.0) / 2.0**53))
    v0, v1 = words(2**30)
    turn = np.cos(2 * np.pi * ((v0 | (v1 << np.uint64(32))) / 2.0**64))
    np.testing.assert_allclose(drawn(tp.rng.normal(key, shape, dtype=F8)), root * turn, atol=1e-14)


@pytest.mark.parametrize("rows", [(1, 2), (2**31 - 1, 2**31 - 1), (5, 0)])
def test_keys_of_a_key_have_its_rows_and_no_other_bits_differ(rows):
    key = for_rows(KEY, *rows)
    high = np.array(rows) << 32
    same(key, KEY.numpy() + high)
    same(for_rows(key, 3, 4), for_rows(KEY, 3, 4))  # the last rows hold
    same(for_rows(key, 0, 0), KEY)
    same(tp.rng.split(key, 2), tp.rng.split(KEY, 2).numpy() + high)
    same(tp.rng.split(key, 7), tp.rng.split(KEY, 7).numpy() + high)
    for data in (0, 1, 2**40 + 5, 2**62 - 1):
        same(tp.rng.fold_in(key, data), tp.rng.fold_in(KEY, data).numpy() + high)
        same(for_rows(tp.rng.fold_in(KEY, data), *rows), tp.rng.fold_in(key, data))


def test_permutations_have_no_rows():
    for n in (1, 7, 2**17 + 1):
        same(tp.rng.permutation(for_rows(KEY, 3, n), n), tp.rng.permutation(KEY, n))
    jitted = tp.jit(lambda key: tp.rng.permutation(key, 7))
    same(jitted(for_rows(KEY, 3, 7)), tp.rng.permutation(KEY, 7))


def test_keys_without_rows_keep_their_bits():
    """Numbers that releases before keys had rows have drawn."""
    for k in (KEY, for_rows(KEY, 0, 0), for_rows(KEY, 7, 0), for_rows(KEY, 7, 3)):
        words = k.numpy() & (2**32 - 1)
        assert words.tolist() == [3980911827, 2181080380]
        assert (tp.rng.split(k).numpy() & (2**32 - 1)).tolist() == [
            [3164812896, 4281112300],
            [3706688723, 3749446344],
        ]
        u = tp.rng.uniform(k, (2, 2)).numpy() * 2**24
        assert u.tolist() == [[1240495, 2596529], [15040136, 3406566]]
        u = tp.rng.uniform(k, (2, 2), dtype=F8).numpy() * 2.0**53
        assert u.tolist() == [[5787950801640885, 7583676821205974], [5101296759386065, 6062437864734556]]
        n = tp.rng.normal(k, (2, 2)).numpy().view("i4")
        assert n.tolist() == [[-1078557026, 1065815157], [-1092951994, -1084983317]]
        n = tp.rng.normal(k, (2, 2), dtype=F8).numpy().view("i8")
        assert n[0].tolist() == [4605904305388530266, 4603424165783109714]
        assert n[1].tolist() == [4607245768109694427, -4622680741133047949]
        assert tp.rng.randint(k, (2, 2), 0, 1000).tolist() == [[642, 841], [566, 673]]
        assert tp.rng.permutation(k, 5).tolist() == [2, 0, 3, 1, 4]
        assert tp.rng.categorical(k, np.zeros((5, 9))).tolist() == [1, 2, 4, 3, 2]
        kept = tp.fn.dropout(np.ones((2, 8)), 0.5, k)
        assert kept.tolist() == [[0, 0, 2, 0, 2, 2, 2, 0], [2, 0, 2, 2, 0, 0, 2, 0]]
    assert tp.rng.key(7).tolist() == [7, 0]


@pytest.mark.parametrize("name", [n for n in DRAWS if "truncated" not in n])  # which read values
def test_a_program_takes_the_rows_by_value(name):
    """Of a key among its arguments, and of numbers that are symbolic in its trace."""
    draw, calls = DRAWS[name], []

    def rows_of(key, epoch, first, count):
        calls.append(1)
        return draw(tp.rng.split(for_rows(tp.rng.fold_in(key, epoch), first, count))[1], (6, 3))

    by_numbers, by_key = tp.jit(rows_of), tp.jit(lambda key: draw(key, (6, 3)))
    for epoch, first, count in ((2, 0, 6), (3, 1, 6), (4, 2**31 - 5, 6), (5, 8, 5), (6, 30, 6), (7, 30, 0)):
        key = for_rows(tp.rng.split(tp.rng.fold_in(KEY, epoch))[1], first, count)
        same(by_numbers(KEY, epoch, first, count), draw(key, (6, 3)))
        same(by_key(key), draw(key, (6, 3)))
    assert len(calls) == 1


def test_other_rows_and_lengths_compile_nothing():
    for key in (KEY, for_rows(KEY, 1, 3)):
        for draw in DRAWS.values():
            draw(key, (3, 4))
    before = compilations.count, compilations.loaded, elementwise._entry.cache_info().misses
    for n in (5, 64, 129):
        for draw in DRAWS.values():
            draw(for_rows(KEY, n, n), (n, 17))
    assert (compilations.count, compilations.loaded, elementwise._entry.cache_info().misses) == before


# ---- dropout in gradients, and attention


def whole_and_rows(function, arrays, first, count, key=KEY):
    """Compare function(*arrays, key) for all rows with the one for rows, whose results are by example."""
    whole = function(*arrays, key)
    result = function(*[a[first : first + count] for a in arrays], for_rows(key, first, count))
    for w, r in zip(whole, result, strict=True):
        same(r, w.numpy()[first : first + count])
    return whole


def gradients(function):
    """Return the function, its gradients, and gradients of those, for a sum over examples."""

    def call(*arguments):
        *xs, key = (tp.tensor(a) for a in arguments)

        def first(*xs):
            return tp.grad(lambda xs: tp.square(function(*xs, key)).sum())(xs)

        second = tp.grad(lambda xs: sum(tp.square(g).sum() for g in first(*xs)))(tuple(xs))
        return (function(*xs, key), *first(*xs), *second)

    return call


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_gradients_of_gradients_of_dropout(dtype):
    x = np.random.default_rng(0).standard_normal((9, 5, 7)).astype(dtype)

    def function(x, key):
        a, b = tp.rng.split(key)
        return tp.fn.dropout(tp.tanh(tp.fn.dropout(x, 0.3, a)), 0.5, b)

    for first, count in ((0, 9), (0, 1), (4, 3), (7, 2)):
        whole_and_rows(gradients(function), [x], first, count)


def attention_arrays(seq_first, dtype="f8", batch=6, queries=50, keys=200):
    rng = np.random.default_rng(0)
    shapes = [(batch, 4, queries, 5), (batch, 2, keys, 5), (batch, 2, keys, 3)]
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    return [np.ascontiguousarray(a.swapaxes(1, 2)) for a in arrays] if seq_first else arrays


def attention(seq_first, is_causal, dropout=0.4):
    attend = functools.partial(
        tp.autodiff.ops.attention, scale=0.4, is_causal=is_causal, dropout=dropout, seq_first=seq_first
    )
    return lambda q, k, v, key: attend(q, k, v, np.zeros((0,), bool), key)[0]


@pytest.mark.parametrize("seq_first", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_of_rows(seq_first, is_causal):
    """The forward and the backward kernel, over several blocks of queries and keys."""
    arrays, function = attention_arrays(seq_first), attention(seq_first, is_causal)

    def with_gradients(q, k, v, key):
        loss = lambda xs: tp.square(function(*xs, key)).sum()
        return (function(q, k, v, key), *tp.grad(loss)(tuple(tp.tensor(a) for a in (q, k, v))))

    for first, count in ((0, 6), (0, 1), (2, 3), (5, 1)):
        out = whole_and_rows(with_gradients, arrays, first, count)[0]
        assert not np.allclose(out.numpy(), function(*arrays, for_rows(KEY, 1, 6)).numpy())
    other = function(*[a[:3] for a in arrays], for_rows(KEY, 2, 4))
    same(other, function(*[a[:3] for a in arrays], KEY))  # of 4 rows: these are no examples


@pytest.mark.parametrize("seq_first", [False, True])
def test_gradients_of_gradients_of_attention(seq_first):
    arrays = attention_arrays(seq_first, queries=6, keys=7)
    for first, count in ((0, 6), (2, 3), (5, 1)):
        whole_and_rows(gradients(attention(seq_first, False)), arrays, first, count)


def test_the_mask_of_attention_is_drawn_over_batch_heads_queries_and_keys():
    """Attention's output for values that are unit vectors is the dropped probabilities."""
    n, first, keys = 2, 2**31 - 5, 50
    q, v = np.zeros((n, 3, 60, 4)), np.broadcast_to(np.eye(keys), (n, 3, keys, keys))
    key = for_rows(KEY, first, n)
    out = attention(False, False)(q, np.zeros((n, 3, keys, 4)), np.ascontiguousarray(v), key)
    same(out.numpy() != 0, tp.rng.bernoulli(key, np.float32(0.6), (n, 3, 60, keys)))


def test_a_layer_drops_what_it_drops_in_the_global_batch():
    L = tp.layer
    model = L.sequential([L.dropout(0.3), L.relu(), L.sequential([L.dropout(0.2), L.tanh()])])
    vars = model.init(tp.rng.key(0))
    x = np.random.default_rng(0).standard_normal((10, 4, 3))

    def function(x, key):
        return (model.apply(vars, tp.tensor(x), training=True, rngs=key)[0],)

    whole_and_rows(function, [x], 3, 5)
    whole_and_rows(tp.jit(function), [x], 3, 5)


def test_the_bits_are_the_same_at_any_number_of_threads(monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    arrays, results = attention_arrays(False), []
    try:
        for n in (1, 2, 3, 7):
            threads.set_num_threads(n)
            drawn = [draw(for_rows(KEY, 5, 300), (300, 70)) for draw in DRAWS.values()]
            drawn.append(attention(False, True)(*arrays, for_rows(KEY, 5, 6)))
            results.append([bits(d) for d in drawn])
    finally:
        threads.set_num_threads("auto")
    assert all(r == results[0] for r in results)


ERRORS = [
    (lambda: for_rows(KEY, -1, 3), ValueError, r"rng.for_rows: first is -1, expected 0 to 2\*\*31 - 1"),
    (lambda: for_rows(KEY, 2**31, 3), ValueError, "rng.for_rows: first is 2147483648, expected 0 to"),
    (lambda: for_rows(KEY, 0, -1), ValueError, "rng.for_rows: count is -1, expected 0 to"),
    (lambda: for_rows(KEY, 0, 2**31), ValueError, "rng.for_rows: count is 2147483648, expected 0 to"),
    (lambda: for_rows(KEY, 0.5, 3), TypeError, "rng.for_rows: first is 0.5, expected an int"),
    (lambda: for_rows(7, 0, 3), TypeError, "rng.for_rows: key is 7, expected one from rng.key"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_rows_out_of_range_are_an_error_in_each_run_of_a_program():
    jitted = tp.jit(lambda key, first: tp.rng.uniform(for_rows(key, first, 3), (3,)))
    jitted(KEY, 1)
    jitted(KEY, 2)
    with pytest.raises(ValueError, match=r"rng\.for_rows: first is -1"):
        jitted(KEY, -1)
    same(jitted(KEY, 3), tp.rng.uniform(KEY, (6,)).numpy()[3:])
