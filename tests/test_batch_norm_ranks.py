"""Batch norm over the rows of all ranks."""

import gc
import pickle
import weakref

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.distributed import Local
from treepie.kernels import threads

from .rank_models import MODELS, Recorder, gradient_step, network, numbers, run_step

ROWS = 23
RANKS = (1, 2, 3, 5)
SHAPES = [(4,), (4, 3), (4, 3, 2)]
#: The first row of each rank: shards of different sizes, some of one row.
CUTS = {1: [0, 23], 2: [0, 9, 23], 3: [0, 15, 16, 23], 5: [0, 4, 5, 7, 20, 23]}
EAGER, JIT = (lambda f: f), tp.jit


def array(tree):
    return tp.ptree.map(lambda t: t.numpy(), tree)


def split(comm, *arrays):
    """Return the rank's rows of arrays; all of them without a communicator."""
    first, last = (0, ROWS) if comm is None else CUTS[comm.size][comm.rank :][:2]
    return [tp.tensor(a[first:last]) for a in arrays]


def layer_vars(layer, dtype="f8"):
    """Return variables with scales and biases of their own."""
    vars = layer.init(tp.rng.key(0), dtype)
    keys = iter(range(5, 100))
    return vars.with_params(tp.ptree.map(lambda t: t + numbers(t.shape, next(keys), dtype), vars.params))


def layer_results(comm, x, v, compiled):
    """Return the output, the state, the loss and the gradients of parameters and input, on own rows."""
    layer = tp.layer.batch_norm(x.shape[1], eps=1e-3, momentum=0.3, comm=comm)
    vars = layer_vars(layer, x.dtype)
    x, v = split(comm, x, v)

    def loss(variables, v):
        y, after = layer.apply(vars.with_params(variables[0]), variables[1], True)
        return (tp.sin(y) * v).sum(), (y, after.state)

    function = compiled(lambda variables, v: tp.value_and_grad_aux(lambda p: loss(p, v))(variables))
    for _ in range(2):
        value, (params, dx), (y, state) = function((vars.params, x), v)
    return array((value, params, dx, y, state))


def assert_equal_to_one_process(results, alone, tol=1e-12):
    value, params, dx, y, state = alone
    np.testing.assert_allclose(sum(r[0] for r in results), value, rtol=tol, atol=tol)
    np.testing.assert_allclose(np.concatenate([r[2] for r in results]), dx, rtol=tol, atol=tol)
    np.testing.assert_allclose(np.concatenate([r[3] for r in results]), y, rtol=tol, atol=tol)
    for name, g in params.items():
        np.testing.assert_allclose(sum(r[1][name] for r in results), g, rtol=tol, atol=tol)
    for r in results:
        for name, s in state.items():
            np.testing.assert_allclose(r[4][name], s, rtol=tol, atol=tol)
            np.testing.assert_array_equal(r[4][name], results[0][4][name])


@pytest.mark.parametrize("compiled", [EAGER, JIT], ids=["eager", "jit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", RANKS)
def test_ranks_equal_one_process_on_the_whole_batch(n, shape, compiled):
    x, v = numbers((ROWS, *shape)) * 3 + 1, numbers((ROWS, *shape), 1)
    results = Local(n).run(lambda comm: layer_results(comm, x, v, compiled))
    assert_equal_to_one_process(results, layer_results(None, x, v, compiled))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_large_mean_loses_no_digits(shape):
    """One process rounds the mean by 6e-11, in outputs too; gradients are compared without the mean."""
    x, v = numbers((ROWS, *shape)) + 1e6, numbers((ROWS, *shape), 1)

    def results(comm, x):
        layer = tp.layer.batch_norm(4, comm=comm)
        vars = layer_vars(layer)
        own, w = split(comm, x, v)
        run = lambda params, x: layer.apply(vars.with_params(params), x, True)
        (y, state), pullback = tp.vjp(lambda *p: (run(*p)[0], run(*p)[1].state), vars.params, own)
        params, dx = pullback((w, tp.ptree.map(tp.zeros_like, state)))
        return array((tp.tensor(0.0), params, dx, y, state))

    alone, centered = results(None, x), results(None, x - 1e6)
    want = (alone[0], *centered[1:3], *alone[3:])
    assert_equal_to_one_process(Local(3).run(lambda comm: results(comm, x)), want)


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_float32_is_as_accurate_as_one_process(mean):
    x, v = numbers((ROWS, 4, 3), dtype="f4") + np.float32(mean), numbers((ROWS, 4, 3), 1, "f4")
    want = layer_results(None, x.astype("f8"), v.astype("f8"), EAGER)
    for tree in (layer_results(None, x, v, EAGER), *Local(1).run(lambda c: layer_results(c, x, v, EAGER))):
        assert np.abs(tree[3] - want[3]).max() < 2e-6
    results = Local(3).run(lambda comm: layer_results(comm, x, v, EAGER))
    assert_equal_to_one_process(results, want, 1e-5)
    assert np.abs(np.concatenate([r[3] for r in results]) - want[3]).max() < 2e-6


def test_ranks_with_far_means():
    """Rank 0 has a mean of 1000, the others -1000."""
    x, v = numbers((ROWS, 4)), numbers((ROWS, 4), 1)
    x += np.where(np.arange(ROWS)[:, None] < CUTS[3][1], 1000.0, -1000.0)
    results = Local(3).run(lambda comm: layer_results(comm, x, v, EAGER))
    assert_equal_to_one_process(results, layer_results(None, x, v, EAGER))


def second(comm, x, v, compiled):
    """Return the derivative of <gradient of a loss, direction>, on own rows."""
    layer = tp.layer.batch_norm(x.shape[1], comm=comm)
    vars = layer_vars(layer)
    x, v, direction = split(comm, x, v, numbers(x.shape, 2))

    def outer(variables):
        def loss(p):
            return (tp.sin(layer.apply(vars.with_params(p[0]), p[1], True)[0]) * v).sum()

        params, dx = tp.grad(loss)(variables)
        return (dx * direction).sum() + (params["scale"] ** 2 * 0 + params["scale"]).sum()

    value, (params, dx) = compiled(tp.value_and_grad(outer))((vars.params, x))
    return array((value, params, dx, x, {}))


@pytest.mark.parametrize("compiled", [EAGER, JIT], ids=["eager", "jit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", [2, 3])
def test_second_derivatives_equal_those_of_one_process(n, shape, compiled):
    x, v = numbers((ROWS, *shape)), numbers((ROWS, *shape), 1)
    results = Local(n).run(lambda comm: second(comm, x, v, compiled))
    assert_equal_to_one_process(results, second(None, x, v, compiled))


def weighted(out, v):
    return (tp.sin(out) * v).sum()


def steps(comm, x, v, model=network, count=3):
    """Return the sums of changes over 3 steps from the same state, and the state after the last one."""
    trainer = tp.Trainer(model(comm), tp.optim.sgd(1.0))
    st = trainer.init(rngs=tp.rng.key(0), dtype="f8")
    (x, v) = split(comm, x, v)
    for _ in range(count):
        loss, after = trainer.step(st, x, loss=lambda out: weighted(out, v))
    names = [path for path, _ in tp.ptree.flatten_with_paths(st.vars.params)]
    pairs = zip(tp.ptree.leaves(st.vars.params), tp.ptree.leaves(after.vars.params), strict=True)
    changes = dict(zip(names, [a.numpy() - b.numpy() for a, b in pairs], strict=True))
    state = {path: t.numpy() for path, t in tp.ptree.flatten_with_paths(after.vars.state)}
    return loss.numpy(), changes, x.numpy(), x.numpy(), state


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("n", RANKS)
def test_training_steps_equal_those_of_one_process(n, model):
    x, v = numbers((ROWS, 4)), numbers((ROWS, 5), 1)
    results = Local(n).run(lambda comm: steps(comm, x, v, model))
    assert_equal_to_one_process(results, steps(None, x, v, model))


def test_a_rank_may_run_op_by_op_while_others_run_a_program():
    """Rank 0 reads the loss in its Python; the sums of all ranks still match."""
    x, v = numbers((ROWS, 4)), numbers((ROWS, 5), 1)

    def run(comm):
        trainer = tp.Trainer(network(comm), tp.optim.sgd(1.0))
        st = trainer.init(rngs=tp.rng.key(0), dtype="f8")
        own, w = split(comm, x, v)

        def loss(out):
            value = weighted(out, w)
            assert comm.rank or value.item() < 1e9
            return value

        for _ in range(3):
            result, after = trainer.step(st, own, loss=loss)
        return result.numpy(), after.vars.state

    results = Local(3).run(run)
    want = steps(None, x, v)
    np.testing.assert_allclose(sum(r[0] for r in results), want[0], rtol=1e-12)
    for path, s in tp.ptree.flatten_with_paths(results[0][1]):
        np.testing.assert_allclose(s.numpy(), want[4][path], rtol=1e-12, atol=1e-13)


def test_threads_do_not_change_the_bits(monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    x, v = numbers((ROWS, 4, 70)), numbers((ROWS, 4, 70), 1)
    results = []
    try:
        for n in (1, 2, 3):
            threads.set_num_threads(n)
            results.append(Local(2).run(lambda comm: layer_results(comm, x, v, tp.jit)))
    finally:
        threads.set_num_threads("auto")
    first, *others = [tp.ptree.leaves(list(map(list, r))) for r in results]
    for other in others:
        for a, b in zip(other, first, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- one process, or no rows
def test_without_other_ranks_the_program_is_that_of_the_local_layer():
    x, v = numbers((ROWS, 4, 3)), numbers((ROWS, 4, 3), 1)
    alone = layer_results(None, x, v, tp.jit)
    (one,) = Local(1).run(lambda comm: layer_results(comm, x, v, tp.jit))
    for a, b in zip(tp.ptree.leaves(list(alone)), tp.ptree.leaves(list(one)), strict=True):
        np.testing.assert_array_equal(a, b)

    def ops_of(comm):
        step = tp.jit(lambda vars, x: tp.layer.batch_norm(4, comm=comm).apply(vars, x, True)[0])
        step(tp.layer.batch_norm(4).init(tp.rng.key(0), "f8"), tp.tensor(x))
        return [call.op.name for call, _ in step.programs[0].calls]

    assert ops_of(None) == ops_of(Recorder(1))
    assert "rank_sum" in ops_of(Recorder(2))
    assert "rank_sum" not in ops_of(Recorder(1))


def test_evaluation_does_not_communicate():
    comm = Recorder()
    layer, local = tp.layer.batch_norm(4, comm=comm), tp.layer.batch_norm(4)
    vars = layer_vars(layer)
    x = tp.tensor(numbers((1, 4)))
    np.testing.assert_array_equal(layer.apply(vars, x)[0].numpy(), local.apply(vars, x)[0].numpy())
    assert comm.sums == []


def test_wrong_arguments_are_refused_before_any_sum():
    comm = Recorder()
    with pytest.raises(TypeError, match=r"layer\.batch_norm: comm is a str, expected a communicator"):
        tp.layer.batch_norm(4, comm="world")
    layer = tp.layer.batch_norm(4, comm=comm)
    vars = layer.init(tp.rng.key(0))
    for shape in [(0, 4), (3, 4, 0), (3, 5), (4,)]:
        with pytest.raises(ValueError, match="batch_norm: x has shape"):
            layer.apply(vars, tp.zeros(shape), True)
    assert comm.sums == []
    with pytest.raises(TypeError, match="rank_sum: comm is 3, expected"):
        ops.rank_sum(tp.ones(2), 3)


def test_one_row_on_each_rank():
    """A rank's own variance would be 0."""
    x = numbers((2, 4))
    ys = Local(2).run(
        lambda c: (
            (layer := tp.layer.batch_norm(4, comm=c))
            .apply(layer.init(tp.rng.key(0), "f8"), x[c.rank : c.rank + 1], True)[0]
            .numpy()
        )
    )
    np.testing.assert_allclose(
        np.concatenate(ys), (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-12, atol=1e-12
    )


# ---- pickling, and memory
class Picklable(Recorder):
    def __reduce__(self):
        return Picklable, (self.size,)


def test_a_layer_pickles_with_its_communicator():
    layer = pickle.loads(pickle.dumps(tp.layer.batch_norm(4, comm=Picklable())))
    x = tp.tensor(numbers((3, 4)))
    vars = layer.init(tp.rng.key(0), "f8")
    mine = tp.layer.batch_norm(4, comm=Picklable()).apply(vars, x, True)[0].numpy()
    np.testing.assert_array_equal(layer.apply(vars, x, True)[0].numpy(), mine)


def test_no_cache_keeps_a_communicator_alive():
    comm = Recorder()
    dead = weakref.ref(comm)
    run_step(comm)()
    for compiled in (EAGER, JIT):
        function, params = gradient_step(comm)
        compiled(function)(params)
    del comm, function, params
    gc.collect()
    assert dead() is None


# ---- in fit
def fit_normalized(comm=None, rows=53, **options):
    """Return the parameters and running statistics after fit, with batch norm over ranks."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(rows, 6)) + 5, rng.normal(size=(rows, 3))
    norms = [tp.layer.batch_norm(9, comm=comm), tp.layer.tanh(), tp.layer.batch_norm(9, comm=comm)]
    model = tp.layer.sequential([tp.layer.linear(6, 9, bias=False), *norms, tp.layer.linear(9, 3)])
    trainer = tp.Trainer(model, tp.optim.adam(1e-2))
    data = tp.Data.prepare((x, y), batch_size=16, shuffle=tp.rng.key(2))
    st = trainer.init(rngs=tp.rng.key(0), dtype=tp.float64)
    options = {"loss": tp.loss.mse, "epochs": 3, "comm": comm} | options
    st = trainer.fit(st, data if comm is None else data.shard(comm), **options)
    return np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves((st.vars.params, st.vars.state))])


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("loss", [tp.loss.mse, lambda out, y: tp.loss.mse(out, y)], ids=["mse", "lambda"])
@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2, "clip_norm": 0.2}], ids=["", "accumulated"])
def test_fit_on_ranks_equals_one_process(n, loss, options):
    """Batches of 16 and 5 rows: shares differ."""
    alone = fit_normalized(loss=loss, **options)
    for mine in Local(n).run(lambda comm: fit_normalized(comm, loss=loss, **options)):
        np.testing.assert_allclose(mine, alone, rtol=1e-12, atol=1e-13)


def test_a_rank_without_rows_is_an_error_instead_of_a_wait():
    with pytest.raises(ValueError, match=r"rank 0 has no rows of step 4, and the model sums over ranks"):
        Local(6).run(fit_normalized)
    assert np.isfinite(Local(6).run(lambda comm: fit_normalized(comm, rows=54))).all()


def test_micro_shards_of_a_model_that_sums_over_ranks_are_an_error():
    with pytest.raises(ValueError, match=r"micro_shards is given and the model sums over ranks"):
        Local(2).run(lambda comm: fit_normalized(comm, micro_shards=4))
