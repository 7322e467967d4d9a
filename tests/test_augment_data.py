"""Augmented pipelines: the same examples whatever the batch, order, rank, thread, or place to resume."""

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import threads

from .test_augment import CLASSES, KEY, RNG, A, N, X, Y, beta, cropped, flipped, same, uniforms

RECIPE = (A.flip(), A.crop((6, 7), padding=2), A.cutout(2), A.mixup(0.4), A.cutmix())


def all_examples(data, epoch=0):
    """The examples of a pass, one after the other."""
    data.seek(epoch)
    parts = [[np.asarray(part) for part in element] for element in data.to_list()]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def prepared(batch_size=4, shuffle=None, key=KEY, recipe=RECIPE):
    ids = np.arange(N, dtype="f8")[:, None] * [1, 0] + [0, 1]  # mixed too: the second column stays 1
    return tp.Data.prepare((X, Y, ids), batch_size, shuffle).augment(*recipe, key=key)


def test_a_pass_is_a_function_of_key_pass_and_index():
    """Each stage computed image by image, of the whole data set, from the one before."""
    for epoch in (0, 3):
        x, y = X, Y
        for k, reference in enumerate((flipped, lambda i, u: cropped(i, u, (6, 7), (2, 2)))):
            u = uniforms(KEY, k + 1, epoch, N, 2)
            x = np.stack([reference(*pair) for pair in zip(x, u, strict=True)])
        u = uniforms(KEY, 3, epoch, N, 4)
        partners = (u[:, 0] * N).astype(int)
        share = np.array([beta(row, 0.4) for row in u])
        x = share[:, None, None, None] * x + (1 - share[:, None, None, None]) * x[partners]
        y = share[:, None] * y + (1 - share[:, None]) * y[partners]
        data = prepared(recipe=(A.flip(), A.crop((6, 7), padding=2), A.mixup(0.4)))
        got = all_examples(data, epoch)
        np.testing.assert_allclose(got[0], x, atol=1e-5)
        np.testing.assert_allclose(got[1], y, atol=1e-6)


def test_batch_size_and_order_change_no_example():
    want = {epoch: all_examples(prepared(N), epoch) for epoch in (0, 1, 5)}
    assert not np.array_equal(want[0][0], want[1][0])
    np.testing.assert_allclose(want[0][2][:, 1], 1)
    for batch_size in (1, 4, 22, 100):
        for epoch, parts in want.items():
            for part, result in zip(parts, all_examples(prepared(batch_size), epoch), strict=True):
                same(result, part)
            order = tp.rng.permutation(tp.rng.fold_in(tp.rng.key(9), epoch), N).numpy()
            shuffled = all_examples(prepared(batch_size, tp.rng.key(9)), epoch)
            for part, result in zip(parts, shuffled, strict=True):
                same(result, part[order])


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("first", ["shard", "augment"])
def test_ranks_have_the_rows_that_one_process_has(ranks, first):
    base = lambda: tp.Data.prepare((X, Y), 5, tp.rng.key(9))

    def rows(comm):
        data = base().shard(comm).augment(*RECIPE, key=KEY)
        if first == "augment":
            data = base().augment(*RECIPE, key=KEY).shard(comm)
        data.seek(2)
        return [tuple(part.numpy() for part in element) for element in data.to_list()]

    whole = base().augment(*RECIPE, key=KEY)
    whole.seek(2)
    pieces = tp.distributed.Local(ranks).run(rows)
    for k, element in enumerate(whole.to_list()):
        for part, own in zip(element, zip(*[p[k] for p in pieces], strict=True), strict=True):
            same(np.concatenate(own), part)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    x = RNG.standard_normal((40, 3, 32, 32)).astype("f4")
    recipe, results = (*RECIPE[:1], *RECIPE[2:], A.jitter(), A.shift(3)), []
    try:
        for n in (1, 2, 3, 7):
            threads.set_num_threads(n)
            data = tp.Data.prepare((x, np.ones((40, 2))), 32).augment(*recipe, key=KEY)
            results.append([part.tobytes() for part in all_examples(data)])
    finally:
        threads.set_num_threads("auto")
    assert all(r == results[0] for r in results)


def test_prefetch_take_map_and_columns_of_a_second_pass():
    want = all_examples(prepared(), 1)
    data = prepared().take(3).prefetch(2)
    data.reset()
    for k, (x, y, _) in enumerate(data):
        same(x, want[0][4 * k : 4 * k + 4])
        same(y, want[1][4 * k : 4 * k + 4])
    assert k == 2
    first = tp.Data.prepare((X, Y), 4).take(1).augment(A.flip(), key=KEY).to_list()
    assert len(first) == 1
    mapped = prepared().map(lambda x, y, ids: x * 2)
    mapped.seek(1)
    same(mapped.to_list()[0], tp.tensor(want[0][:4]) * 2)


def test_calls_and_stages_draw_other_numbers():
    """Two flips with one key do not cancel out; a second call continues to count stages."""
    twice = tp.Data.prepare(X, N).augment(A.flip(), A.flip(), key=KEY).to_list()[0]
    calls = tp.Data.prepare(X, N).augment(A.flip(), key=KEY).augment(A.flip(), key=KEY).to_list()[0]
    same(twice, calls)
    assert not np.array_equal(twice, X)


def test_one_array_and_memory_mapped_images(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    want = tp.Data.prepare(X, 5, KEY).augment(A.shift(1), A.mixup(), key=KEY).to_list()
    got = tp.Data.prepare(mapped, 5, KEY).augment(A.shift(1), A.mixup(), key=KEY).to_list()
    for a, b in zip(want, got, strict=True):
        same(a, b)


def fit(path=None, stop=None, comm=None, epochs=3):
    """Train on mixed, cropped images; interrupted after some steps if asked to."""
    model = tp.layer.sequential([tp.layer.flatten(), tp.layer.linear(126, CLASSES)])
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    data = tp.Data.prepare((X, Y), 6, tp.rng.key(4)).augment(*RECIPE[:4], key=KEY).prefetch(2)
    if comm is not None:
        data = tp.Data.prepare((X, Y), 6, tp.rng.key(4)).augment(*RECIPE[:4], key=KEY).shard(comm)

    def report(step, loss, st):
        if step == stop:
            raise tp.EarlyStop

    extra = {"checkpoint": tp.checkpoint.every(1, path), "resume": True} if path else {}
    st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64)
    loss = tp.loss.cross_entropy
    st = trainer.fit(st, data, loss=loss, epochs=epochs, report=report, comm=comm, progress=False, **extra)
    return [leaf.numpy() for leaf in tp.ptree.leaves(st.vars.params)]


def test_a_run_that_resumes_in_the_middle_of_a_pass_sees_the_same_examples(tmp_path):
    want = fit()
    fit(tmp_path / "run", stop=6)
    for a, b in zip(fit(tmp_path / "run"), want, strict=True):
        same(a, b)


def test_fit_on_ranks_equals_fit_on_one():
    want = fit()
    for params in tp.distributed.Local(2).run(lambda comm: fit(comm=comm)):
        for a, b in zip(params, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_network_learns_from_mixed_digits():
    (x, y), (x_test, y_test) = tp.datasets.digits()
    model = tp.layer.sequential(
        [tp.layer.flatten(), tp.layer.linear(64, 128), tp.layer.relu(), tp.layer.linear(128, 10)]
    )
    trainer = tp.Trainer(model, tp.optim.adam(3e-3))
    train = tp.Data.prepare((x.reshape(-1, 8, 8), tp.one_hot(y, 10)), 64, tp.rng.key(0))
    train = train.augment(A.shift(1), A.mixup(0.2), key=tp.rng.key(1))
    st = trainer.fit(
        trainer.init(tp.rng.key(2)), train, loss=tp.loss.cross_entropy, epochs=60, progress=False
    )
    test = tp.Data.prepare((x_test.reshape(-1, 8, 8), y_test), 360)
    assert trainer.evaluate(st, test, {"accuracy": tp.metric.Accuracy()})["accuracy"] > 0.93
