"""Steps on batches in parts: ranks, micro-shards and accumulated elements equal one big batch."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

import treepie as tp
from treepie.data.rows import Shards
from treepie.distributed import Local
from treepie.layer.core import parametric
from treepie.train.ranks import digest
from treepie.train.reduction import ShardSums

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(53, 6)), RNG.normal(size=(53, 3))
LABELS = RNG.integers(0, 3, 53)
LABELS[RNG.random(53) < 0.4] = -1
LABELS[8:12] = -1  # a rank's rows of a batch, or all rows of a micro-shard
LABELS[-2:] = 1
IGNORING = functools.partial(tp.loss.cross_entropy_sparse, ignore_index=-1)


def fit(
    comm=None,
    y=LABELS,
    loss=IGNORING,
    layers=(),
    epochs=2,
    batch_size=8,
    dtype=tp.float64,
    st=None,
    **options,
):
    """Return the bytes of a state's parameters, moments and statistics, the parameters, and the losses."""
    model = tp.layer.sequential(
        [tp.layer.linear(6, 9), *[make() for make in layers], tp.layer.tanh(), tp.layer.linear(9, 3)]
    )
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    st = trainer.init(rngs=tp.rng.key(0), dtype=dtype)
    rows = options.pop("rows", 53)
    x, y = X[:rows].astype(dtype), y[:rows].astype(dtype if y.dtype.kind == "f" else y.dtype)
    data = tp.Data.prepare((x, y), batch_size=batch_size, shuffle=options.pop("shuffle", tp.rng.key(1)))
    history = tp.History()
    data = data if comm is None else data.shard(comm)
    st = trainer.fit(st, data, loss=loss, epochs=epochs, comm=comm, history=history, **options)
    leaves = [t.numpy() for t in tp.ptree.leaves((st.vars.params, st.opt_state.buffers, st.vars.state))]
    bits = b"".join(a.tobytes() for a in leaves)
    params = np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])
    return bits, params, [loss for _, loss in history.steps]


def assert_equal_to_one_batch(n, whole, **options):
    _, params, losses = fit(**whole)
    for _, mine, own in Local(n).run(lambda comm: fit(comm, **{**whole, **options})):
        np.testing.assert_allclose(mine, params, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(own, losses, rtol=1e-12)


# ---- the weights of losses
def summed(out, y):
    return ((out - y) ** 2).sum()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shuffle", [None, tp.rng.key(1)], ids=["in order", "shuffled"])
def test_a_loss_that_ignores_targets_is_weighed_by_those_that_count(n, shuffle):
    """In order, the second batch has half of its targets ignored, which are all of one rank."""
    assert_equal_to_one_batch(n, {"shuffle": shuffle})


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: tp.loss.cross_entropy_sparse(out, y, ignore_index=-1),
        tp.pure(lambda out, y: tp.loss.cross_entropy_sparse(out, y, -1)),
    ],
    ids=["lambda", "pure"],
)
def test_it_is_found_in_a_loss_of_ones_own(loss):
    assert_equal_to_one_batch(3, {}, loss=loss)


def test_it_is_found_where_the_loss_reads_a_value():
    def loss(out, y):
        assert out.sum().item() != 0
        return IGNORING(out, y)

    some = np.where(np.arange(53) % 4 == 0, 2, LABELS)
    assert_equal_to_one_batch(2, {"shuffle": None, "batch_size": 16, "y": some}, loss=loss)


def test_accumulated_elements_are_weighed_by_targets_that_count():
    whole = fit(batch_size=16, shuffle=None)
    parts = fit(batch_size=8, shuffle=None, accumulate_steps=2)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(parts[2], whole[2], rtol=1e-12)


@pytest.mark.parametrize("options", [{"accumulate_steps": 2}, {"micro_shards": 2}], ids=str)
def test_a_loss_that_combines_it_with_other_terms_is_an_error(options):
    def loss(out, y):
        return IGNORING(out, y) + 0.1 * (out * out).mean()

    assert np.isfinite(fit(loss=loss)[2]).all()
    with pytest.raises(ValueError, match="combines a mean over the targets that are not ignored with other"):
        fit(loss=loss, **options)


def test_a_batch_without_targets_is_an_error():
    labels = np.where(np.arange(53) < 16, -1, LABELS)
    for options in ({"micro_shards": 4}, {"accumulate_steps": 2}):
        with pytest.raises(ValueError, match="all targets of step 1 are ignored"):
            fit(y=labels, shuffle=None, **options)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_losses_that_are_sums(n):
    assert_equal_to_one_batch(n, {"y": Y, "loss": summed}, loss_reduction="sum")


@pytest.mark.parametrize("options", [{"accumulate_steps": 2, "batch_size": 4}, {"micro_shards": 3}], ids=str)
def test_parts_of_a_sum(options):
    whole = fit(y=Y, loss=summed, shuffle=None)
    parts = fit(y=Y, loss=summed, shuffle=None, loss_reduction="sum", **options)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12, atol=1e-13)


def test_another_loss_reduction_is_refused():
    with pytest.raises(ValueError, match=r"Trainer.fit: loss_reduction is 'max', expected 'mean' or 'sum'"):
        fit(loss_reduction="max")


# ---- micro-shards
@pytest.mark.parametrize("argument", ["micro_shards", "compare_every"])
def test_counts_below_1_are_refused(argument):
    with pytest.raises(ValueError, match=f"Trainer.fit: {argument} is 0, expected at least 1"):
        fit(**{argument: 0})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("loss", ["mse", "ignoring"])
def test_micro_shards_have_the_same_bits_on_any_number_of_ranks(count, loss):
    """With batch norm, clipping and accumulation; batches of 13, 13, 13, 13 and 1 row."""
    options = {"y": Y, "loss": tp.loss.mse} if loss == "mse" else {}
    options |= {"clip_norm": 0.5, "micro_shards": count, "batch_size": 13, "dtype": tp.float32, "epochs": 1}
    alone = fit(**options)
    for n in (2, 3, 4, 5, 9):
        for bits, _, losses in Local(n).run(lambda comm: fit(comm, **options)):
            assert bits == alone[0]
            assert losses == alone[2]


def test_micro_shards_with_accumulation_and_running_statistics():
    options = {"y": Y, "loss": tp.loss.mse, "micro_shards": 3, "batch_size": 12, "accumulate_steps": 2}
    options |= {"layers": [lambda: tp.layer.batch_norm(9)], "epochs": 2, "dtype": tp.float32, "rows": 48}
    alone = fit(**options)
    for n in (2, 3, 5):
        assert {row[0] for row in Local(n).run(lambda comm: fit(comm, **options))} == {alone[0]}


def test_micro_shards_equal_one_batch():
    options = {"y": Y, "loss": tp.loss.mse}
    whole = fit(**options)
    for count in (1, 2, 5, 64):
        np.testing.assert_allclose(fit(micro_shards=count, **options)[1], whole[1], rtol=1e-11, atol=1e-13)


def test_resuming_on_other_numbers_of_ranks_in_an_epoch_has_the_same_bits(tmp_path):
    options = {"y": Y, "loss": tp.loss.mse, "micro_shards": 4, "dtype": tp.float32, "epochs": 3}
    whole = fit(**options)

    def part(n, last):
        def stop(step, loss, st):
            if step == last:
                raise tp.EarlyStop

        plan = tp.checkpoint.every(1000, tmp_path)
        return Local(n).run(lambda comm: fit(comm, checkpoint=plan, resume=True, report=stop, **options))

    part(4, 3)
    part(2, 11)
    for bits, _, losses in part(3, 1000):
        assert bits == whole[0]
        assert losses == whole[2]


def test_elements_without_rows_can_not_be_cut():
    trainer = tp.Trainer(tp.layer.linear(6, 3), tp.optim.sgd(0.1))
    data = tp.Data.of_array([(X[:4], lambda out: out.mean())])
    with pytest.raises(ValueError, match="no rows to share out"):
        trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, micro_shards=2)


def test_the_order_of_sums_is_that_of_a_tree():
    """Numbers whose sum depends on the order, in float32."""
    numbers = (RNG.normal(size=(11, 5)) * 10.0 ** RNG.integers(-6, 6, (11, 5))).astype("f4")

    layout = SimpleNamespace(sizes=(5,), groups=(np.zeros(0, "f4"),), trained=1)

    def tree(rows):
        if len(rows) == 1:
            return rows[0]
        half = 1 << (len(rows) - 1).bit_length() - 1
        return tree(rows[:half]) + tree(rows[half:])

    def run(comm):
        shards = Shards(comm, 11)
        sums = ShardSums(comm, shards, True)
        sums.begin(layout)
        for shard in shards.own:
            own = sums.open(shard, True)
            own.arrays[0][...] = numbers[shard] if own.empty else own.arrays[0] + numbers[shard]
            own.empty = False
            sums.close(shard)
        return sums.total()[0].arrays[0]

    for n in range(1, 14):
        for total in Local(n).run(run):
            np.testing.assert_array_equal(total, tree(numbers))


@pytest.mark.parametrize("micro_shards", [None, 2])
def test_a_program_adds_parts_up_as_ops_do(micro_shards):
    x, y = (RNG.normal(size=(240, n)).astype("f4") for n in (40, 3))
    model = tp.layer.sequential([tp.layer.linear(40, 50), tp.layer.tanh(), tp.layer.linear(50, 3)])

    def bits(loss):
        trainer, data = tp.Trainer(model, tp.optim.sgd(0.1)), tp.Data.prepare((x, y), 60)
        st = trainer.init(rngs=tp.rng.key(0))
        st = trainer.fit(st, data, loss=loss, epochs=4, accumulate_steps=2, micro_shards=micro_shards)
        return b"".join(t.numpy().tobytes() for t in tp.ptree.leaves(st.vars.params))

    def read(out, y):
        float(out[0, 0])
        return tp.loss.mse(out, y)

    assert bits(tp.loss.mse) == bits(read)


# ---- random numbers
def noisy(params, state, x, *, dtype, training, rngs, ctx):
    """Add noise by example."""
    return x + tp.rng.normal(tp.rng.fold_in(rngs, 3), x.shape, dtype), state


def noise():
    return tp.layer.Layer(lambda rngs, dtype: tp.layer.Vars({}, {}, dtype), noisy)


NOISY = {"layers": [lambda: tp.layer.dropout(0.3), noise], "rngs": tp.rng.key(5), "y": Y, "loss": tp.loss.mse}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("pure", [True, False], ids=["dropout", "a layer of one's own"])
def test_random_numbers_are_those_of_the_example(n, pure):
    assert_equal_to_one_batch(n, NOISY | ({"layers": NOISY["layers"][:1]} if pure else {}))


@pytest.mark.parametrize(
    "options",
    [{"micro_shards": 3}, {"accumulate_steps": 2}, {"micro_shards": 4, "accumulate_steps": 3}],
    ids=str,
)
def test_parts_of_a_batch_have_its_random_numbers(options):
    size = 16 // options.get("accumulate_steps", 1) if options.get("accumulate_steps") != 3 else 5
    whole = fit(**NOISY, shuffle=None, batch_size=15 if size == 5 else 16)
    parts = fit(**NOISY, shuffle=None, batch_size=size, **options)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12, atol=1e-13)


def test_micro_shards_with_dropout_have_the_same_bits():
    options = NOISY | {"micro_shards": 4, "dtype": tp.float32, "epochs": 1}
    alone = fit(**options)
    for n in (2, 3, 5):
        assert {row[0] for row in Local(n).run(lambda comm: fit(comm, **options))} == {alone[0]}


def test_the_dropout_of_attention_is_that_of_the_example():
    x, y = RNG.normal(size=(10, 5, 8)), RNG.normal(size=(10, 5, 8))

    def run(comm=None):
        trainer = tp.Trainer(tp.layer.multi_head_attention(8, 2, dropout=0.4), tp.optim.sgd(0.1))
        data = tp.Data.prepare((x, y), batch_size=5)
        data = data if comm is None else data.shard(comm)
        st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64)
        st = trainer.fit(st, data, rngs=tp.rng.key(1), loss=tp.loss.mse, epochs=3, comm=comm)
        return np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])

    alone = run()
    for mine in Local(3).run(run):
        np.testing.assert_allclose(mine, alone, rtol=1e-11, atol=1e-13)


def test_random_numbers_follow_a_map_that_drops_rows():
    """Each rank drops the last of its 4 rows of a batch of 8: the others are rows 0 to 5 of a batch of 6."""
    x, y = RNG.normal(size=(24, 5)), RNG.normal(size=(24, 2))

    def run(data, comm=None):
        trainer = tp.Trainer(
            tp.layer.sequential([tp.layer.dropout(0.4), tp.layer.linear(5, 2)]), tp.optim.sgd(0.1)
        )
        st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64)
        st = trainer.fit(st, data, rngs=tp.rng.key(1), loss=tp.loss.mse, epochs=2, comm=comm)
        return np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])

    def of_rank(comm):
        data = tp.Data.prepare((x, y), batch_size=8).shard(comm)
        return run(data.map(lambda x, y: (x[:-1], y[:-1])), comm)

    kept = [k for k in range(24) if k % 4 < 3]
    alone = run(tp.Data.prepare((x[kept], y[kept]), batch_size=6))
    for mine in Local(2).run(of_rank):
        np.testing.assert_allclose(mine, alone, rtol=1e-11, atol=1e-13)


# ---- single steps, and drift
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_single_steps_on_ranks_equal_one_process(n):
    def run(comm):
        trainer = tp.Trainer(tp.layer.linear(6, 3), tp.optim.adam(1e-2))
        st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64)
        rows = slice(None) if comm is None else slice(5 * comm.rank // n, 5 * (comm.rank + 1) // n)
        losses = []
        for k in range(3):
            x, y = X[5 * k : 5 * k + 5][rows], Y[5 * k : 5 * k + 5][rows]
            loss, st = trainer.step(st, x, lambda out, y=y: tp.loss.mse(out, y), comm=comm)
            losses.append(loss.item())
        return losses, st.vars.params["weight"].numpy()

    losses, weight = run(None)
    for mine, own in Local(n).run(run):
        np.testing.assert_allclose(mine, losses, rtol=1e-12)
        np.testing.assert_allclose(own, weight, rtol=1e-12)


def test_ranks_that_drift_are_named():
    def run(comm):
        rate = (lambda step: 0.1 if step < 3 else 0.2) if comm.rank == 2 else 0.1
        trainer = tp.Trainer(tp.layer.linear(6, 3), tp.optim.sgd(rate))
        data = tp.Data.prepare((X, Y), batch_size=8).shard(comm)
        st = trainer.init(rngs=tp.rng.key(0))
        trainer.fit(st, data, loss=tp.loss.mse, comm=comm, compare_every=2, shard_optimizer=False)

    with pytest.raises(
        RuntimeError, match="after step 4 the parameters of rank 2 differ from those of rank 0"
    ):
        Local(4).run(run)


def test_a_digest_tells_any_change():
    arrays = [RNG.normal(size=1001).astype("f4"), RNG.normal(size=7)]
    before = digest(arrays)
    assert digest([a.copy() for a in arrays]) == before
    for array in arrays:
        for k in (0, 1, array.size - 1):
            bits = array.view(f"u{array.itemsize}")
            bits[k] ^= 1
            assert digest(arrays) != before
            bits[k] ^= 1


def test_the_sign_of_zeros_is_the_same_on_any_number_of_ranks():
    """Gradients that are -0 in each part, of parameters that are -0."""
    x, y = np.zeros((8, 6), "f4"), np.ones((8, 3), "f4")
    negated = parametric(
        "negated", lambda rngs, dtype: {"w": tp.full((6, 3), -0.0, dtype)}, lambda p, x: x @ -p["w"]
    )

    def run(comm=None):
        trainer = tp.Trainer(negated, tp.optim.sgd(0.1))
        data = tp.Data.prepare((x, y), batch_size=8)
        data = data if comm is None else data.shard(comm)
        st = trainer.init(rngs=tp.rng.key(0))
        st = trainer.fit(st, data, loss=lambda out, y: (out * y).mean(), comm=comm, micro_shards=4)
        return st.vars.params["w"].numpy().tobytes()

    alone = run()
    for n in (2, 3, 4):
        assert Local(n).run(run) == [alone] * n
