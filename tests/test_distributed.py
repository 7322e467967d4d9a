"""Training on several ranks: as threads, and as processes of MPI where mpi4py is installed."""

import threading
import warnings

import numpy as np
import pytest

import treepie as tp
from treepie.distributed import Local, world
from treepie.distributed.communicator import broadcast_object, gather, same_on_all_ranks

RANKS = (1, 2, 3, 5, 7, 11)
X, Y = np.random.default_rng(0).normal(size=(53, 6)), np.random.default_rng(1).normal(size=(53, 2))


def train(comm=None, layers=(), loss=tp.loss.mse, data=None, epochs=3, st=None, **options):
    """Return the parameters and running statistics, the losses, and the scores after each epoch."""
    model = tp.layer.sequential(
        [tp.layer.linear(6, 9), *[make(9) for make in layers], tp.layer.tanh(), tp.layer.linear(9, 2)]
    )
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64) if st is None else st
    data = data or (lambda: tp.Data.prepare((X, Y), batch_size=8, shuffle=tp.rng.key(1)))
    shard = (lambda d: d) if comm is None else lambda d: d.shard(comm)
    history = tp.History()
    validate = shard(tp.Data.prepare((X, Y), batch_size=9)), {"mse": tp.metric.MSE()}
    st = trainer.fit(
        st, shard(data()), loss=loss, epochs=epochs, comm=comm, history=history, validate=validate, **options
    )
    leaves = [t.numpy().ravel() for t in tp.ptree.leaves((st.vars.params, st.vars.state))]
    return np.concatenate(leaves), [row[1] for row in history.steps], [e["mse"] for e in history.epochs]


def assert_equal_to_one_process(n, **options):
    alone = train(**options)
    for ranks in Local(n).run(lambda comm: train(comm, **options)):
        for mine, want in zip(ranks, alone, strict=True):
            np.testing.assert_allclose(mine, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.3}, {"accumulate_steps": 3}, {"clip_norm": 0.3, "accumulate_steps": 2}],
    ids=str,
)
def test_ranks_equal_one_process_on_the_whole_batch(n, options):
    """Batches of 8 and 5 rows: shares differ, and some of 11 ranks have none."""
    assert_equal_to_one_process(n, **options)


def test_a_loss_of_ones_own_and_elements_that_are_computed():
    def data():
        return tp.Data.of_fn(6, lambda k: (X[8 * k : 8 * k + 8], Y[8 * k : 8 * k + 8])).prefetch(2)

    assert_equal_to_one_process(3, data=data, loss=lambda out, y: (abs(out - y) ** 1.5).mean())


def test_ranks_have_the_same_bits():
    first, *others = Local(5).run(train)
    for other in others:
        np.testing.assert_array_equal(other[0], first[0])
        assert other[1:] == first[1:]


def test_running_statistics_are_means_over_ranks():
    """Batch norm normalizes by each rank's own rows; with equal rows on all ranks that is the batch's."""
    x, y = np.repeat(X[:24].reshape(3, 8, 6), 2, 0).reshape(-1, 6), np.repeat(Y[:24].reshape(3, 8, 2), 2, 0)

    def data():
        return tp.Data.prepare((x, y.reshape(-1, 2)), batch_size=16)

    alone = train(layers=[tp.layer.batch_norm], data=data)
    for mine in Local(2).run(lambda comm: train(comm, layers=[tp.layer.batch_norm], data=data)):
        # The unbiased variance of 8 rows is not that of 16.
        np.testing.assert_allclose(mine[1], alone[1], rtol=1e-12)
        np.testing.assert_allclose(mine[0], alone[0], rtol=0.1, atol=1e-8)


def test_the_state_is_that_of_rank_0():
    def run(comm):
        trainer = tp.Trainer(tp.layer.linear(6, 2), tp.optim.adam(1e-2))
        st = trainer.init(rngs=tp.rng.key(comm.rank))
        data = tp.Data.prepare((X.astype("f4"), Y.astype("f4")), batch_size=8).shard(comm)
        return trainer.fit(st, data, loss=tp.loss.mse, comm=comm).vars.params["weight"].numpy()

    first, *others = Local(3).run(run)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_rank_that_stops_early_stops_all():
    def run(comm):
        steps = []

        def report(step, loss, st):
            steps.append(step)
            if comm.rank == 1 and step == 9:
                raise tp.EarlyStop

        params, losses, _ = train(comm, report=report)
        return steps, losses, params

    rows = Local(3).run(run)
    assert [row[0] for row in rows] == [list(range(1, 10))] * 3
    np.testing.assert_array_equal(rows[0][2], rows[2][2])


def test_steps_that_are_not_finite_are_decided_together():
    bad = X.copy()
    bad[19] = np.nan  # a row of one rank

    def run(comm, action):
        def data():
            return tp.Data.prepare((bad, Y), batch_size=8)

        if action == "raise":
            with pytest.raises(FloatingPointError, match="in step 3"):
                train(comm, data=data)
        return train(comm, data=data, epochs=1, on_nonfinite="skip")[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = Local(3).run(lambda comm: run(comm, "raise"))
        alone = run(None, "skip")
    for row in rows:
        np.testing.assert_allclose(row, alone, rtol=1e-12, atol=1e-13)
    assert sum("in step 3, which is skipped" in str(w.message) for w in caught) == 4


def test_resuming_on_another_number_of_ranks(tmp_path):
    def part(epochs, n, resume):
        plan = tp.checkpoint.every(5, tmp_path)
        return Local(n).run(
            lambda comm: train(comm, epochs=epochs, checkpoint=plan, resume=resume, accumulate_steps=1)
        )[0]

    whole = train(epochs=6)
    part(2, 4, False)
    part(4, 2, True)
    np.testing.assert_allclose(part(6, 3, True)[0], whole[0], rtol=1e-12, atol=1e-13)


def test_evaluate_gives_the_scores_of_all_rows():
    scores = Local(3).run(lambda comm: train(comm)[2])
    assert scores[0] == scores[1] == scores[2]
    np.testing.assert_allclose(scores[0], train()[2], rtol=1e-12)


# ---- errors
def test_data_that_is_not_sharded_is_refused():
    def run(comm):
        trainer = tp.Trainer(tp.layer.linear(6, 2), tp.optim.sgd(0.1))
        data = tp.Data.prepare((X, Y), batch_size=8)
        trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.mse, comm=comm)

    with pytest.raises(ValueError, match=r"data is sharded to 1 ranks and comm has 2, expected data.shard"):
        Local(2).run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, r"epochs is 2 on rank 1 and 1 on rank 0"),
        ({"clip_norm": 2.0}, r"clip_norm is 2.0 on rank 1 and None on rank 0"),
        ({"rows": 40}, r"length of data is 5 on rank 1 and 7 on rank 0"),
        ({"dtype": tp.float64}, r"model is .* on rank 1"),
        ({"optimizer": tp.optim.adam(0.1)}, r"optimizer is 'adam' on rank 1 and 'sgd' on rank 0"),
    ],
    ids=str,
)
def test_ranks_that_differ_are_named(change, message):
    def run(comm):
        own = dict(change) if comm.rank == 1 else {}
        trainer = tp.Trainer(tp.layer.linear(6, 2), own.pop("optimizer", tp.optim.sgd(0.1)))
        st = trainer.init(rngs=tp.rng.key(0), dtype=own.pop("dtype", tp.float32))
        rows = own.pop("rows", 53)
        data = tp.Data.prepare((X[:rows], Y[:rows]), batch_size=8).shard(comm)
        trainer.fit(st, data, loss=tp.loss.mse, comm=comm, **own)

    with pytest.raises(ValueError, match=message):
        Local(2).run(run)


def test_elements_that_have_no_rows_are_refused():
    data = tp.Data.of_array([1.0, 2.0])
    with pytest.raises(ValueError, match=r"Data.shard: an element is not of tensors or arrays"):
        Local(1).run(lambda comm: data.shard(comm).to_list())
    with pytest.raises(ValueError, match="sharded already"):
        Local(1).run(lambda comm: data.shard(comm).map(lambda x: x).shard(comm))


def test_a_rank_that_fails_ends_the_others():
    def run(comm):
        if comm.rank == 1:
            raise KeyError("broken")
        comm.barrier()

    before = threading.active_count()
    with pytest.raises(KeyError, match="broken"):
        Local(4).run(run)
    assert threading.active_count() == before


# ---- communicators
def check_communicator(comm):
    """Check what a communicator promises, on any engine."""
    total = np.arange(5.0) * (comm.rank + 1)
    comm.sum(total)
    np.testing.assert_array_equal(total, np.arange(5.0) * (comm.size * (comm.size + 1) / 2))
    for dtype in ("float32", "float64", "int64"):
        array = np.full((3, 2), comm.rank, dtype)
        comm.broadcast(array, comm.size - 1)
        np.testing.assert_array_equal(array, np.full((3, 2), comm.size - 1, dtype))
        empty = np.zeros((0, 3), dtype)
        comm.sum(empty)
    assert gather(comm, {"rank": comm.rank}) == [{"rank": r} for r in range(comm.size)]
    assert broadcast_object(comm, ["of", comm.rank]) == ["of", 0]
    same_on_all_ranks(comm, "here", {"a": 1})
    comm.barrier()
    return repr(comm)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_local_ranks(n):
    assert Local(n).run(check_communicator) == [f"Communicator(size={n}, rank={r})" for r in range(n)]
    with pytest.raises(ValueError, match=r"distributed.Local: n is 0, expected at least 1"):
        Local(0)


def test_a_process_alone():
    assert check_communicator(world()) == "Communicator(size=1, rank=0)"
    with pytest.raises(SystemExit):
        world().abort(3)
