"""Updates that ranks share: the same bits and the same states as where each rank takes the whole."""

import warnings

import numpy as np
import pytest

import treepie as tp
from treepie.distributed import Local
from treepie.train.shared_update import SharedBuffers

from .jobs import launch, needs_mpi

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(53, 6)).astype("f4"), RNG.normal(size=(53, 3)).astype("f4")
OPTIMIZERS = [
    tp.optim.sgd(0.1),
    tp.optim.sgd(0.1, momentum=0.9),
    tp.optim.adam(1e-2),
    tp.optim.adamw(1e-2, weight_decay=0.1),
    tp.optim.rmsprop(1e-2),
    tp.optim.adagrad(1e-2),
]


def make(optimizer=OPTIMIZERS[2], layers=()):
    model = tp.layer.sequential([tp.layer.linear(6, 9), *layers, tp.layer.tanh(), tp.layer.linear(9, 3)])
    return tp.Trainer(model, optimizer)


def fit(comm, trainer, st, x=X, **options):
    data = tp.Data.prepare((x, Y), batch_size=8, shuffle=tp.rng.key(1))
    data = data if comm is None else data.shard(comm)
    return trainer.fit(st, data, **{"loss": tp.loss.mse, "epochs": 2, "comm": comm} | options)


def bits(st):
    return [t.numpy().tobytes() for t in tp.ptree.leaves((st.vars.params, st.opt_state.buffers))]


@pytest.fixture
def updates(monkeypatch):
    """Count the updates that ranks share."""
    counted = []
    original = tp.train.shared_update.SharedUpdate.update

    def update(self, inputs, *arguments):
        counted.append(inputs.at.step)
        return original(self, inputs, *arguments)

    monkeypatch.setattr(tp.train.shared_update.SharedUpdate, "update", update)
    return counted


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_shared_update_has_the_same_bits(updates, n, optimizer):
    def run(comm, shared):
        trainer = make(optimizer)
        return bits(fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)), shard_optimizer=shared))

    whole = Local(n).run(lambda comm: run(comm, False))
    assert updates == []
    assert Local(n).run(lambda comm: run(comm, True)) == whole
    assert len(updates) == 14 * n


@pytest.mark.parametrize("n", [2, 3])
def test_clipping_is_that_of_the_whole_gradient(updates, n):
    def run(comm=None):
        trainer = make()
        st = fit(comm, trainer, trainer.init(rngs=tp.rng.key(0), dtype=tp.float64), clip_norm=0.05)
        return np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])

    alone = run()
    for mine in Local(n).run(run):
        np.testing.assert_allclose(mine, alone, rtol=1e-11, atol=1e-13)
    assert updates


def test_micro_shards_with_clipping_keep_their_bits(updates):
    def run(comm=None, **options):
        trainer = make()
        return bits(fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)), micro_shards=4, **options))

    alone, clipped = run(), run(clip_norm=0.05)
    assert Local(3).run(run) == [alone] * 3
    assert updates
    updates.clear()
    assert Local(3).run(lambda comm: run(comm, clip_norm=0.05)) == [clipped] * 3
    assert updates == []


def reading_run(comm, shared):
    """Return states that one rank alone reads in `report`, and keeps for later, and the last state."""
    kept, read = [], []

    def report(step, loss, st):
        if comm.rank == 1 and step == 3:
            read.append(bits(st))
        if comm.rank == 1 and step in (5, 6):
            kept.append(st)

    trainer = make()
    st = trainer.init(rngs=tp.rng.key(0))
    st = fit(comm, trainer, st, report=report, shard_optimizer=shared)
    return read, [bits(s) for s in kept], bits(st)


def test_a_state_is_whole_on_the_rank_that_reads_it():
    whole, shared = (Local(3).run(lambda comm, s=s: reading_run(comm, s)) for s in (False, True))
    assert shared == whole
    assert len(whole[1][1]) == 2


def test_training_goes_on_from_the_state():
    def run(comm, shared):
        trainer = make()
        st = trainer.init(rngs=tp.rng.key(0))
        for _ in range(3):
            st = fit(comm, trainer, st, epochs=1, shard_optimizer=shared)
        _, st = trainer.step(st, X[:4], lambda out: tp.loss.mse(out, Y[:4]))
        return bits(st)

    assert Local(3).run(lambda comm: run(comm, True)) == Local(3).run(lambda comm: run(comm, False))


def test_parameters_that_a_model_keeps_do_not_change():
    def run(comm):
        kept, values = [], []

        def apply(params, state, x, *, dtype, training, rngs, ctx):
            kept.append(params["scale"])
            return x * params["scale"], state

        def init(rngs, dtype):
            return tp.layer.Vars({"scale": tp.ones((9,), dtype)}, {}, dtype)

        def report(step, loss, st):
            if comm.rank == 0:
                values.append([t.numpy().copy() for t in kept])

        trainer = make(layers=[tp.layer.Layer(init, apply)])
        fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)), report=report, epochs=1)
        for early in values:
            for a, b in zip(early, [t.numpy() for t in kept], strict=False):
                np.testing.assert_array_equal(a, b)
        return len(values)

    assert Local(2).run(run)[0] == 7


def test_checkpoints_are_whole(tmp_path):
    def run(comm, epochs):
        trainer = make()
        plan = tp.checkpoint.every(3, tmp_path)
        st = trainer.init(rngs=tp.rng.key(0))
        return bits(fit(comm, trainer, st, epochs=epochs, checkpoint=plan, resume=True, micro_shards=6))

    trainer = make()
    alone = bits(fit(None, trainer, trainer.init(rngs=tp.rng.key(0)), epochs=4, micro_shards=6))
    Local(4).run(lambda comm: run(comm, 1))
    Local(2).run(lambda comm: run(comm, 3))
    assert Local(3).run(lambda comm: run(comm, 4)) == [alone] * 3


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_gradients_that_are_not_finite_are_named_and_leave_the_state(action):
    x = X.copy()
    x[17, 2] = np.inf

    def run(comm, shared):
        trainer = make(layers=[tp.layer.relu()])
        st = trainer.init(rngs=tp.rng.key(0))
        options = {"shard_optimizer": shared, "epochs": 1, "on_nonfinite": action}
        if action == "skip":
            return bits(fit(comm, trainer, st, x=x, **options))
        with pytest.raises(FloatingPointError, match="in step") as error:
            fit(comm, trainer, st, x=x, **options)
        return str(error.value), bits(error.value.state)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole, shared = (Local(3).run(lambda comm, s=s: run(comm, s)) for s in (False, True))
    assert whole == shared
    skipped = [w for w in caught if "which is skipped" in str(w.message)]
    assert len(skipped) == (6 if action == "skip" else 0)


def test_a_rank_that_fails_has_a_whole_state():
    def run(comm, shared):
        def report(step, loss, st):
            if step == 4 and comm.rank == 1:
                try:
                    raise KeyError("broken")
                finally:
                    states.append(bits(st))

        trainer = make()
        fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)), report=report, shard_optimizer=shared)

    states = []
    for shared in (True, False):
        with pytest.raises(KeyError) as error:
            Local(3).run(lambda comm, shared=shared: run(comm, shared))
        states.append(bits(error.value.state))
    assert states[0] == states[1] == states[2] == states[3]


def test_a_rank_holds_its_part_of_the_moments():
    def run(comm):
        trainer = make()
        sizes = []

        def report(step, loss, st):
            buffers = st.__dict__["_source"].now.buffers
            assert isinstance(buffers, SharedBuffers)
            sizes.append([a.size for a in buffers.arrays])

        fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)), report=report, epochs=1)
        return sizes[-1]

    assert Local(4).run(run) == [[93, 24, 24]] * 4


def test_updates_are_in_place():
    def run(comm):
        trainer, addresses = make(), set()
        original = trainer.steps.update

        def update(inputs, commit):
            addresses.add(tuple(inputs.out.addresses))
            return original(inputs, commit)

        trainer.steps.update = update
        fit(comm, trainer, trainer.init(rngs=tp.rng.key(0)))
        return len(addresses)

    assert Local(2).run(run) == [1, 1]


# ---- in memory that processes share
@needs_mpi
@pytest.mark.parametrize(("n", "per_node"), [(2, 0), (4, 0), (4, 1), (5, 3)])
def test_parts_are_summed_and_gathered(n, per_node):
    """An update of parts has the bits of one of all."""
    code = """
import numpy as np, treepie as tp
comm = tp.distributed.world()
for dtype in ("float32", "float64"):
    for size in (3, 5001, 300007):
        rows = [np.random.default_rng(r).standard_normal(size).astype(dtype) for r in range(comm.size)]
        grads, total, private = (comm.empty((size,), dtype) for _ in range(3))
        common, piece = comm.empty_common((size,), dtype), comm.empty_piece(size, dtype)
        for step in range(6):
            params = common if step < 3 else private
            if step in (0, 3):
                params[...] = 1
            comm.barrier()
            total[...] = rows[comm.rank]
            grads[...] = total
            comm.sum(total)
            norm = comm.sum_part(grads)
            own = comm.part(params)
            assert norm is None or abs(norm - np.linalg.norm(total[own].astype("f8"))) <= 1e-13 * norm
            assert norm is not None or size == 3 or comm.size > PER_NODE > 0
            assert (grads[own] == total[own]).all()
            before = params.copy()
            comm.barrier()
            params[own] -= 0.1 * grads[own]
            comm.gather_parts(params)
            assert (params == before - 0.1 * total).all()
            piece[: own.stop - own.start] = params[own]
            comm.barrier()
            if comm.rank == comm.size - 1:  # the others take no part
                assert (comm.collect(piece, size) == params).all()
            comm.barrier()
print("equal")
"""
    code = code.replace("PER_NODE", str(per_node))
    status, output, errors = launch(n, code, TREEPIE_RANKS_PER_NODE=str(per_node))
    assert status == 0, errors
    assert output.count("equal") == n
