"""Pipelines: laziness, order, passes, shuffling, batching, and errors."""

import numpy as np
import pytest

import treepie as tp
from treepie import Data

KEY = tp.rng.key(3)


def of(n):
    return Data.of_fn(n, lambda i: i)


PIPELINES = [
    (Data.of_array(["a", "b"]), ["a", "b"]),
    (Data.of_array(np.arange(6).reshape(3, 2)).map(list), [[0, 1], [2, 3], [4, 5]]),
    (Data.repeat(3, "x"), ["x", "x", "x"]),
    (of(3).map(lambda i: i * i), [0, 1, 4]),
    (of(5).batch(2), [[0, 1], [2, 3], [4]]),
    (of(5).batch(2, drop_last=True), [[0, 1], [2, 3]]),
    (of(5).map_batch(2, sum), [1, 5, 4]),
    (of(5).map_batch(2, sum, drop_last=True), [1, 5]),
    (of(5).take(2), [0, 1]),
    (of(2).take(5), [0, 1]),
    (of(0).batch(3), []),
    (of(5).batch(2).map(len).take(2), [2, 2]),
    (of(3).map(lambda i: (i, -i)).map(lambda x, y: x - y), [0, 2, 4]),
    (of(3).map(lambda i: (i, -i)).map(lambda xy: xy[1]), [0, -1, -2]),
    (of(2).map(lambda i: (i, -i)).map(lambda xy, scale=3: xy[0] * scale), [0, 3]),
    (of(2).map(lambda i: (i,)).map(lambda x: x[0]), [0, 1]),
]


@pytest.mark.parametrize(("data", "want"), PIPELINES)
def test_pipelines(data, want):
    assert len(data) == len(want)
    assert data.to_list() == want
    assert data.to_list() == []
    data.reset()
    assert list(data) == want


def test_tensors():
    x, y = tp.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([5, 6])
    assert [row.tolist() for row in Data.of_tensor(x)] == [[1, 2], [3, 4]]
    pairs = Data.of_tensors((x, y)).to_list()
    assert [(a.tolist(), b.item()) for a, b in pairs] == [([1, 2], 5), ([3, 4], 6)]
    assert all(isinstance(t, tp.Tensor) for pair in pairs for t in pair)
    assert tp.data.stack_batch([a for a, _ in pairs]).tolist() == x.tolist()


def test_elements_are_made_one_at_a_time():
    made = []
    data = Data.of_fn(10, lambda i: made.append(i) or i).batch(2)
    assert made == []
    assert next(iter(data)) == [0, 1]
    assert made == [0, 1]
    assert data.position == 1
    assert next(iter(data)) == [2, 3]  # a second loop goes on where the first stopped
    assert data.take(1).to_list() == [[0, 1]]  # and a pipeline made from it starts anew
    data.reset()
    assert next(iter(data)) == [0, 1]


def test_walks():
    seen, pairs = [], of(3).map(lambda i: (i, 10 * i))
    pairs.iter(lambda a, b: seen.append(a + b))
    pairs.reset()
    pairs.iteri(lambda k, a, b: seen.append((k, a, b)))
    assert seen == [0, 11, 22, (0, 0, 0), (1, 1, 10), (2, 2, 20)]
    pairs.reset()
    assert pairs.fold(lambda total, a, b: total + a * b, 1) == 51
    assert of(4).fold(lambda total, x: total + x, 0) == 6


def test_shuffle_orders_each_pass_by_its_number():
    data = of(20).shuffle(KEY)
    passes = []
    for _ in range(3):
        passes.append(data.to_list())
        data.reset()
    for e, order in enumerate(passes):
        assert order == tp.rng.permutation(tp.rng.fold_in(KEY, e), 20).tolist()
    assert len(set(map(tuple, passes))) == 3
    assert of(20).shuffle(KEY).batch(5).to_list()[0] == passes[0][:5]


def test_prepare_takes_dicts_of_arrays():
    """They are the inputs of models with several; rows stay together, on several ranks too."""
    x = {"numbers": np.arange(14.0, dtype="f4").reshape(7, 2), "code": np.arange(7)}
    for batch, y in Data.prepare((x, np.arange(7)), 3, shuffle=KEY):
        assert (batch["numbers"].dtype, batch["code"].dtype) == (tp.float32, tp.int64)
        assert batch["code"].tolist() == y.tolist()
        assert batch["numbers"].tolist() == [[2.0 * k, 2.0 * k + 1] for k in y.tolist()]
    assert [sorted(batch) for batch in Data.prepare(x, 4)] == [["code", "numbers"]] * 2
    shards = tp.distributed.Local(2).run(
        lambda comm: [b["code"].tolist() for b in Data.prepare(x, 4).shard(comm)]
    )
    assert shards == [[[0, 1], [4]], [[2, 3], [5, 6]]]


def test_prepare(tmp_path):
    x, y = np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(7)
    batches = Data.prepare((x, tp.tensor(y)), batch_size=3).to_list()
    assert [b[1].tolist() for b in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all((a.numpy()[:, 0] == 2 * b.numpy()).all() for a, b in batches)
    assert batches[0][0].dtype == tp.float32
    assert len(Data.prepare((x, y), batch_size=3, drop_last=True)) == 2
    assert [b.tolist() for b in Data.prepare(y, 4)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert all(np.shares_memory(a.array, x) for a, _ in batches)  # views
    wide = Data.prepare(y.astype(np.int16), 3).to_list()
    assert [b.dtype for b in wide] == [tp.int32] * 3

    np.save(tmp_path / "y.npy", y)
    stored = np.load(tmp_path / "y.npy", mmap_mode="r")
    shuffled = Data.prepare((stored,), batch_size=3, shuffle=KEY)
    orders = []
    for e in range(2):
        orders.append([i for (b,) in shuffled for i in b.tolist()])
        assert orders[e] == tp.rng.permutation(tp.rng.fold_in(KEY, e), 7).tolist()
        shuffled.reset()
    assert type(Data.prepare(stored, 3).to_list()[0].array) is np.ndarray


@pytest.mark.parametrize("width", [1, 5000])  # gathered by NumPy, and by a kernel
def test_shuffled_batches_are_gathered_and_never_change(width):
    x = np.random.default_rng(0).random((50, width))
    order = tp.rng.permutation(tp.rng.fold_in(KEY, 0), 50).numpy()
    batches = Data.prepare((x, tp.tensor(x)), 20, shuffle=KEY).to_list()
    for k, (a, b) in enumerate(batches):
        np.testing.assert_array_equal(a, x[order[20 * k : 20 * k + 20]])
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a.array, x)


def test_a_memory_mapped_array_larger_than_memory(tmp_path):
    """256 GB of a sparse file, of which a batch reads 3 rows."""
    try:
        stored = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2**20, 2**16))
        stored[5, 7], stored[2**20 - 1, 0] = 3.0, 4.0
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    stored = np.memmap(tmp_path / "x", np.float32, "r", shape=(2**20, 2**16))
    first = next(iter(Data.prepare(stored, 3)))
    last = next(iter(Data.prepare(stored[::-1], 3)))
    assert (first.array[:, 7].tolist(), first.shape) == ([0.0] * 3, (3, 2**16))
    assert last[0, 0].item() == 4.0
    order = tp.rng.permutation(tp.rng.fold_in(KEY, 0), 2**20).numpy()
    (batch,) = next(iter(Data.prepare((stored,), 3, shuffle=KEY)))
    np.testing.assert_array_equal(batch, stored[order[:3]])


def test_layouts_that_are_not_c_order():
    x = np.asfortranarray(np.arange(12.0).reshape(6, 2))[::-1]
    for key in (None, KEY):
        batch = next(iter(Data.prepare(x, 4, shuffle=key)))
        assert batch.array.flags.c_contiguous
    np.testing.assert_array_equal(next(iter(Data.prepare(x, 4))), x[:4])


def test_arrays_that_are_not_aligned_are_copied():
    x = np.frombuffer(bytes(1) + np.arange(12.0).tobytes(), np.uint8)[1:].view("f8").reshape(6, 2)
    assert not x.flags.aligned
    for key in (None, KEY):
        for batch in Data.prepare(x, 4, shuffle=key):
            assert batch.array.flags.aligned
    np.testing.assert_array_equal(next(iter(Data.prepare(x, 4))), x[:4])


ERRORS = [
    (lambda: of(3).batch(0), ValueError, "Data.batch: batch_size is 0, expected at least 1"),
    (lambda: of(3).batch(1.5), TypeError, "Data.batch: batch_size is 1.5, expected an int"),
    (lambda: Data.of_array(iter([1])), TypeError, "Data.of_array: array is a list_iterator, expected a list"),
    (lambda: of(3).map(3), TypeError, "Data.map: given a int, expected a function"),
    (lambda: Data.of_fn(3, None), TypeError, "Data.of_fn: given a NoneType, expected a function"),
    (lambda: of(3).prefetch(0), ValueError, "Data.prefetch: n is 0, expected at least 1"),
    (lambda: of(-1), ValueError, "Data.of_fn: n is -1, expected at least 0"),
    (lambda: of(3).take(-1), ValueError, "Data.take: n is -1, expected at least 0"),
    (
        lambda: Data.prepare((np.zeros(3), np.zeros((4, 2))), 2),
        ValueError,
        r"Data.prepare: shapes are \(3,\) and \(4, 2\), expected first axes of one length",
    ),
    (
        lambda: Data.prepare(({"a": np.zeros(3), "b": np.zeros(4)}, np.zeros(3)), 2),
        ValueError,
        r"Data.prepare: shapes are \(3,\) and \(4,\) and \(3,\), expected first axes of one length",
    ),
    (lambda: Data.prepare({}, 2), ValueError, "Data.prepare: shapes are no arrays, expected"),
    (lambda: Data.prepare(np.float32(1), 2), ValueError, r"Data.prepare: shapes are \(\), expected"),
    (lambda: Data.prepare([np.zeros(3)] * 2, 2), TypeError, "arrays is a list, expected a tuple"),
    (lambda: Data.prepare((), 2), ValueError, "Data.prepare: shapes are no arrays, expected"),
    (lambda: of(3).shuffle(42), TypeError, "rng.fold_in: key is 42, expected one from rng.key"),
    (
        lambda: tp.data.stack_batch([tp.zeros(2), tp.zeros(3)]),
        ValueError,
        r"data.stack_batch: given \(2,\) and \(3,\), expected tensors of one shape",
    ),
    (lambda: tp.data.stack_batch([]), ValueError, "data.stack_batch: given no tensors"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
