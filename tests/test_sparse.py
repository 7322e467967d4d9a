"""Sparse embeddings: updates of touched rows alone, against dense ones, NumPy, PyTorch and op by op."""

import pickle

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.ops.sparse import nonzero_rows, rows_norm, sum_rows
from treepie.distributed import Local
from treepie.kernels import threads

from .op_by_op import run_eagerly
from .sparse_models import BATCH, DIM, MODELS, RNG, ROWS, STEPS, X, Y, masked, one_lookup, three_lookups

KEY = tp.rng.key(0)
EXACT = {"sgd": lambda: tp.optim.sgd(0.1), "adagrad": lambda: tp.optim.adagrad(0.1)}
LAZY = {"adam": lambda: tp.optim.adam(0.1), "adamw": lambda: tp.optim.adamw(0.1, weight_decay=0.0)}
OPTIMIZERS = EXACT | LAZY
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def data():
    return tp.Data.prepare((X, Y), BATCH)


def fit(model, optimizer, dtype=tp.float64, batches=None, **options):
    trainer = tp.Trainer(model, optimizer)
    st = trainer.init(rngs=KEY, dtype=dtype)
    settings = {"loss": tp.loss.mse, "epochs": 2, "progress": False} | options
    return trainer.fit(st, batches or data().map(lambda x, y: (x, y.astype(dtype))), **settings)


def arrays(st):
    trees = (st.vars.params, *st.opt_state.moments)
    return [t.numpy() for tree in trees for t in tp.ptree.leaves(tree)]


def bits(st):
    return [a.tobytes() for a in arrays(st)]


def close(one, other, tolerance=1e-12):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@every_model
@pytest.mark.parametrize("dtype", [tp.float32, tp.float64], ids=str)
@pytest.mark.parametrize("optimizer", EXACT.values(), ids=EXACT)
def test_sgd_and_adagrad_have_the_bits_of_a_dense_table(model, optimizer, dtype):
    sparse, dense = (fit(model(s), optimizer(), dtype) for s in (True, False))
    assert bits(sparse) == bits(dense)


@pytest.mark.parametrize("optimizer", EXACT.values(), ids=EXACT)
def test_clipping_is_that_of_a_dense_table(optimizer):
    sparse, dense = (fit(three_lookups(s), optimizer(), clip_norm=0.1) for s in (True, False))
    close(sparse, dense)
    assert np.abs(arrays(sparse)[0] - arrays(fit(three_lookups(), optimizer()))[0]).max() > 1e-3


def lazy_adam(p, grads, lr=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """Return the parameters after updates by gradients, of which rows of zeros change nothing."""
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        rows = np.flatnonzero(g.any(axis=1))
        m[rows] = b1 * m[rows] + (1 - b1) * g[rows]
        v[rows] = b2 * v[rows] + (1 - b2) * g[rows] ** 2
        p[rows] -= lr * m[rows] / (1 - b1**t) / (np.sqrt(v[rows] / (1 - b2**t)) + eps)
    return p, m, v


def test_adam_is_lazy():
    """The model is linear in the table, so that NumPy knows the gradients."""
    weights = RNG.normal(size=(STEPS * BATCH, 3, DIM))
    table = tp.layer.embedding(ROWS, DIM, scale=False, sparse=True)
    trainer = tp.Trainer(table, tp.optim.adam(0.1))
    st = trainer.init(rngs=KEY, dtype=tp.float64)
    before = st.vars.params["sparse_embedding"].numpy().copy()
    batches = tp.Data.prepare((X, weights), BATCH)
    st = trainer.fit(st, batches, loss=lambda rows, w: (rows * w).sum(), progress=False)
    grads = []
    for k in range(STEPS):
        batch = slice(k * BATCH, (k + 1) * BATCH)
        grads.append(np.zeros((ROWS, DIM)))
        np.add.at(grads[-1], X[batch], weights[batch])
    for a, b in zip(arrays(st), lazy_adam(before, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    dense = lazy_adam(before, [g + 1e-300 for g in grads])
    assert np.abs(dense[0] - arrays(st)[0]).max() > 1e-2


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_updates_are_those_of_pytorch(name):
    """With a tiny epsilon for Adam: PyTorch's sparse one does not divide it by the bias correction."""
    torch = pytest.importorskip("torch")
    trainer = tp.Trainer(one_lookup(), tp.optim.adam(0.1, eps=1e-15) if name == "adam" else EXACT[name]())
    st = trainer.init(rngs=KEY, dtype=tp.float64)
    table, head = torch.nn.Embedding(ROWS, DIM, sparse=True).double(), torch.nn.Linear(3 * DIM, 1).double()
    with torch.no_grad():
        table.weight.copy_(torch.tensor(st.vars.params["table"]["sparse_embedding"].numpy()))
        head.weight.copy_(torch.tensor(st.vars.params["head"]["weight"].numpy().T.copy()))
        head.bias.copy_(torch.tensor(st.vars.params["head"]["bias"].numpy()))
    kinds = {
        "sgd": (torch.optim.SGD, torch.optim.SGD, {}),
        "adagrad": (torch.optim.Adagrad, torch.optim.Adagrad, {"eps": 1e-8}),
        "adam": (torch.optim.SparseAdam, torch.optim.Adam, {"eps": 1e-15}),
    }
    sparse, dense, options = kinds[name]
    both = sparse([table.weight], lr=0.1, **options), dense(head.parameters(), lr=0.1, **options)
    for k in range(2 * STEPS):
        batch = slice(k % STEPS * BATCH, (k % STEPS + 1) * BATCH)
        rows = table(torch.tensor(X[batch] % ROWS)).reshape(BATCH, -1) * DIM**0.5
        loss = ((head(rows) - torch.tensor(Y[batch])) ** 2).mean()
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
    st = trainer.fit(st, data(), loss=tp.loss.mse, epochs=2, progress=False)
    ours = st.vars.params["table"]["sparse_embedding"].numpy()
    np.testing.assert_allclose(ours, table.weight.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        st.vars.params["head"]["bias"].numpy(), head.bias.detach().numpy(), rtol=1e-6, atol=1e-6
    )


@every_model
@every_optimizer
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_programs_have_the_bits_of_op_by_op(model, optimizer, clip_norm, monkeypatch):
    planned = bits(fit(model(), optimizer(), tp.float64, clip_norm=clip_norm))
    run_eagerly(monkeypatch)
    assert bits(fit(model(), optimizer(), tp.float64, clip_norm=clip_norm)) == planned


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_do_not_change_bits(count):
    x, y = RNG.integers(0, 3000, (4096, 2)), RNG.normal(size=(4096, 1))
    model = lambda: tp.layer.sequential(
        [tp.layer.embedding(3000, 40, sparse=True), tp.layer.flatten(), tp.layer.linear(80, 1)]
    )
    run = lambda: bits(fit(model(), tp.optim.adam(0.1), batches=tp.Data.prepare((x, y), 2048), clip_norm=0.1))
    want, before = run(), threads.get_num_threads()
    try:
        threads.set_num_threads(count)
        assert run() == want
    finally:
        threads.set_num_threads(before)


def test_a_step_neither_computes_nor_stores_a_dense_gradient():
    rows = 100_000
    trainer = tp.Trainer(tp.layer.embedding(rows, 8, sparse=True), tp.optim.adam(0.1))
    st = trainer.init(rngs=KEY)
    loss = lambda out, y: tp.loss.mse(out.sum((1, 2)).reshape(-1, 1), y)
    batches = tp.Data.prepare((X, Y.astype("f4")), BATCH)
    trainer.fit(st, batches, loss=loss, progress=False)
    (program,) = trainer.steps.cache.programs
    assert program.bytes < 100_000
    names = [call.op.name for call, _ in program.calls]
    assert "scatter_add" not in names
    assert set(names) >= {"sum_rows", "write_rows", "adam_update"}


def test_updates_are_in_place_unless_the_state_is_kept():
    trainer = tp.Trainer(one_lookup(), tp.optim.adam(0.1))
    start = trainer.init(rngs=KEY, dtype=tp.float64)
    kept, want, addresses = [], [], []

    def report(step, loss, st):
        if step == 3:
            kept.append(st.vars.params["table"]["sparse_embedding"])
            want.append(kept[0].numpy().copy())
        elif step > 5:
            addresses.append(trainer_buffers(st))

    end = trainer.fit(start, data(), loss=tp.loss.mse, epochs=2, report=report, progress=False)
    np.testing.assert_array_equal(kept[0].numpy(), want[0])
    assert len(set(addresses)) == 1
    assert bits(end) == bits(fit(one_lookup(), tp.optim.adam(0.1)))


def trainer_buffers(st):
    return tuple(st.snapshot.buffers.addresses)


def test_rows_whose_gradient_is_zero_are_not_touched():
    start = tp.Trainer(masked(), tp.optim.adam(0.1)).init(rngs=KEY, dtype=tp.float64)
    p, m, v = (
        tree["table"]["sparse_embedding"].numpy() for tree in _trees(fit(masked(), tp.optim.adam(0.1)))
    )
    untouched = np.setdiff1d(np.arange(ROWS), np.setdiff1d(X % ROWS, [0]))
    assert 0 in untouched
    assert (X == 0).any()
    before = start.vars.params["table"]["sparse_embedding"].numpy()
    np.testing.assert_array_equal(p[untouched], before[untouched])
    assert not m[untouched].any()
    assert not v[untouched].any()


def _trees(st):
    return [st.vars.params, *st.opt_state.moments]


@every_optimizer
@pytest.mark.parametrize("options", [{"micro_shards": 4}, {"micro_shards": 2, "clip_norm": 0.1}], ids=str)
def test_parts_of_a_batch_equal_the_whole(optimizer, options):
    whole = {k: v for k, v in options.items() if k == "clip_norm"}
    close(fit(three_lookups(), optimizer(), **options), fit(three_lookups(), optimizer(), **whole))


@every_optimizer
def test_accumulated_gradients_equal_a_large_batch(optimizer):
    large = fit(three_lookups(), optimizer(), batches=tp.Data.prepare((X, Y), 2 * BATCH, drop_last=True))
    small = tp.Data.prepare((X[: 6 * BATCH], Y[: 6 * BATCH]), BATCH)
    close(fit(three_lookups(), optimizer(), batches=small, accumulate_steps=2), large)


@every_optimizer
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_equal_one_process(optimizer, n):
    def run(comm):
        return fit(three_lookups(), optimizer(), batches=data().shard(comm), comm=comm)

    states = Local(n).run(run)
    for st in states if isinstance(states, list) else [states]:
        close(st, fit(three_lookups(), optimizer()))


REFUSED = {
    "momentum": (lambda: tp.optim.sgd(0.1, momentum=0.9), "^sgd: .*which sgd does not support"),
    "decay": (lambda: tp.optim.sgd(0.1, weight_decay=0.1), "^sgd: "),
    "adagrad, decay": (lambda: tp.optim.adagrad(0.1, weight_decay=0.1), "^adagrad: "),
    "adamw": (
        lambda: tp.optim.adamw(0.1),
        "^adamw: the parameter 'table.sparse_embedding' is of an",
    ),
    "rmsprop": (lambda: tp.optim.rmsprop(0.1), "^rmsprop: "),
    "nadam": (lambda: tp.optim.nadam(0.1), "^nadam: "),
    "lion": (lambda: tp.optim.lion(0.1), "^lion: "),
    "lamb": (lambda: tp.optim.lamb(0.1), "^lamb: "),
    "own": (lambda: tp.optim.Optimizer(lambda p: (), lambda p, g, s, t: (-g, ()), name="mine"), "^mine: "),
    "ema": (lambda: tp.optim.chain(tp.optim.sgd(0.1), tp.optim.ema(0.9)), r"^chain\(sgd, ema\): .*which ema"),
    "l2": (
        lambda: tp.optim.chain(tp.optim.add_decayed_weights(0.1), tp.optim.sgd(0.1)),
        "add_decayed_weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_optimizers_are_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        tp.Trainer(one_lookup(), make()).init(rngs=KEY)
    tp.Trainer(one_lookup(sparse=False), make()).init(rngs=KEY)


def test_weight_decay_of_other_parameters_is_supported():
    def mask(params):
        return {"table": {"sparse_embedding": False}, "head": {"weight": True, "bias": False}}

    close(
        fit(one_lookup(), tp.optim.sgd(0.1, weight_decay=0.1, mask=mask)),
        fit(one_lookup(False), tp.optim.sgd(0.1, weight_decay=0.1, mask=lambda p: _dense_mask())),
    )
    parts = {"table": tp.optim.adam(0.1), "": tp.optim.adamw(0.1, weight_decay=0.3)}
    one = fit(one_lookup(), tp.optim.partition(parts, {"table": "table", "": ""}))
    close(one, fit(one_lookup(), tp.optim.adamw(0.1, weight_decay=0.3, mask={**mask(None), "head": _both()})))


def _dense_mask():
    return {"table": {"embedding": False}, "head": {"weight": True, "bias": False}}


def _both():
    return {"weight": True, "bias": True}


def test_a_frozen_table_stays():
    parts = {"table": tp.optim.frozen(), "": tp.optim.lion(0.1)}
    st = fit(one_lookup(), tp.optim.partition(parts, {"table": "table", "": ""}))
    start = tp.Trainer(one_lookup(), tp.optim.sgd(0.1)).init(rngs=KEY, dtype=tp.float64)
    table = lambda st: st.vars.params["table"]["sparse_embedding"].numpy()
    np.testing.assert_array_equal(table(st), table(start))


@every_optimizer
def test_transformations_of_gradients(optimizer):
    clipped = tp.optim.chain(tp.optim.clip_norm(0.1), optimizer())
    assert bits(fit(three_lookups(), clipped)) == bits(fit(three_lookups(), optimizer(), clip_norm=0.1))
    by_value = lambda sparse: fit(
        three_lookups(sparse), tp.optim.chain(tp.optim.clip_value(0.001), tp.optim.sgd(1.0))
    )
    assert bits(by_value(True)) == bits(by_value(False))


@every_optimizer
def test_checkpoints_resume_with_the_same_bits(optimizer, tmp_path):
    plan = tp.checkpoint.every(3, tmp_path)
    fit(three_lookups(), optimizer(), epochs=1, checkpoint=plan)
    resumed = fit(three_lookups(), optimizer(), epochs=2, checkpoint=plan, resume=True)
    assert bits(resumed) == bits(fit(three_lookups(), optimizer(), epochs=2))


def _leaves(params, state):
    return tp.ptree.leaves((params, state.moments))


@every_optimizer
def test_steps_by_hand_have_the_bits_of_fit(optimizer):
    """`Trainer.step`, and the optimizer's own functions on dense gradients."""
    model = three_lookups()
    trainer, other = tp.Trainer(model, optimizer()), optimizer()
    st = trainer.init(rngs=KEY, dtype=tp.float64)
    params, state = st.vars.params, pickle.loads(pickle.dumps(st.opt_state))
    for k in range(STEPS):
        x, y = X[k * BATCH : (k + 1) * BATCH], tp.tensor(Y[k * BATCH : (k + 1) * BATCH])

        def loss(out, y=y):
            return tp.loss.mse(out, y)

        def objective(params, x=x, loss=loss, vars=st.vars):
            return loss(model.apply(vars.with_params(params), tp.tensor(x))[0])

        grads = tp.grad(objective)(params)
        changes, after = other.step(state, params, grads)
        summed = tp.optim.apply_updates(params, changes)
        params, state = other.update(state, params, grads)
        for a, b in zip(_leaves(summed, after), _leaves(params, state), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        _, st = trainer.step(st, tp.tensor(x), loss)
    assert bits(st) == bits(fit(model, optimizer(), epochs=1))
    assert [t.numpy().tobytes() for t in tp.ptree.leaves(params)] == bits(st)[: len(tp.ptree.leaves(params))]
    again = other.state_of_trees(*state.to_trees(), params)
    assert other.update(again, params, grads)[1].count == STEPS + 1


@pytest.mark.parametrize("eagerly", [False, True])
def test_gradients_that_are_not_finite_are_named(eagerly, monkeypatch):
    if eagerly:
        run_eagerly(monkeypatch)
    y = Y.copy()
    y[5 * BATCH + 1] = np.inf
    table = tp.layer.embedding(ROWS, DIM, sparse=True)
    model = tp.layer.sequential([table, tp.layer.flatten()])
    loss = lambda out, y: tp.where(tp.isfinite(y), 1.0, np.inf).mean() * 0.0 + (out * y).sum() * 1e-3
    with pytest.raises(FloatingPointError, match="in step 6") as error:
        fit(model, tp.optim.adam(0.1), batches=tp.Data.prepare((X, y), BATCH), loss=loss)
    start = tp.Trainer(model, tp.optim.adam(0.1)).init(rngs=KEY, dtype=tp.float64)
    kept = fit(model, tp.optim.adam(0.1), batches=tp.Data.prepare((X, y), BATCH).take(5), loss=loss, epochs=1)
    assert bits(error.value.state) == bits(kept) != bits(start)


def test_an_index_outside_of_the_table_is_refused():
    x = X.copy()
    x[30] = ROWS
    with pytest.raises(IndexError, match=f"an index is {ROWS}, expected -{ROWS} to {ROWS - 1}"):
        fit(one_lookup(), tp.optim.adam(0.1), batches=tp.Data.prepare((x, Y), BATCH))


def test_the_norm_has_the_same_bits_whatever_the_room():
    g = np.zeros((5000, 40))
    rows = np.sort(RNG.choice(5000, 300, replace=False))
    g[rows] = RNG.normal(size=(300, 40))
    order = RNG.permutation(300)
    dense, lookups = nonzero_rows(g), sum_rows(g[rows[order]], rows[order], 5000, (300,))
    assert dense[1].shape != lookups[1].shape
    assert rows_norm(dense[1], tp.float64).item() == rows_norm(lookups[1], tp.float64).item()


def test_rows_that_cancel_and_rows_with_nan():
    """A sum of zeros is not touched, and NaN is not zero."""
    rows, sums = sum_rows([[1.0], [2.0], [-1.0], [np.nan], [0.0]], [3, 1, 3, -1, 0], 6, (5,))
    assert rows.tolist() == [1, 5, -1, -1, -1]
    np.testing.assert_array_equal(sums.numpy(), np.array([[2.0], [np.nan], [0], [0], [0]], sums.dtype))
