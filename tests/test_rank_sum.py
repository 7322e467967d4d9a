"""Sums over ranks inside of programs: their order, and exceptions."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.autodiff.ops.ranks import EqualRanks

from .op_by_op import run_eagerly
from .rank_models import MODELS, X6, Recorder, gradient_step, numbers, run_step

EAGER, JIT = (lambda f: f), tp.jit


class Broken(Exception):
    pass


def sums_of(compiled, function, *arguments):
    """Return the shapes of the sums of a second call."""
    comm = Recorder()
    run = compiled(lambda *args: function(comm, *args))
    run(*arguments)
    comm.sums.clear()
    run(*arguments)
    return comm.sums


def dead_code(comm, x):
    ops.rank_sum(x.sum(0), comm)
    return x + 1.0


def constants(comm, x):
    return x + ops.rank_sum(tp.ones((x.shape[1],), x.dtype), comm)


def equal_calls(comm, x):
    s = x.sum(0)
    return x + ops.rank_sum(s, comm) + ops.rank_sum(s, comm)


def dead_gradient(comm, x):
    """The gradient of the first sum is computed, and not used."""
    _, pullback = tp.vjp(lambda a, b: ops.rank_sum(a, comm) + b, x[0, :2], x[0, 2:])
    return pullback(x[1, :2])[1]


def late_operand(comm, x):
    """The first sum's operand belongs to a group whose last call comes after the second sum."""
    a = x * 2.0
    first = ops.rank_sum(a, comm)
    second = ops.rank_sum(x[0, :3], comm)
    return first, tp.exp(a) + second.sum()


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (dead_code, [(4,)]),
        (constants, [(4,)]),
        (equal_calls, [(4,), (4,)]),
        (dead_gradient, [(2,), (2,)]),
        (late_operand, [(6, 4), (3,)]),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
@pytest.mark.parametrize("compiled", [EAGER, JIT], ids=["eager", "jit"])
def test_programs_make_the_sums_of_an_eager_call_in_its_order(function, want, compiled):
    x = tp.tensor(numbers((6, 4)))
    assert sums_of(compiled, function, x) == want


class _Square:
    """A loss whose rule is Python, so that the backward pass is traced with it."""

    def __new__(cls):
        square = tp.custom_vjp(lambda y: (y * y).sum())
        square.defvjp(lambda y: ((y * y).sum(), y), lambda y, g: (g * y * 2.0,))
        return square


LOSSES = {"ops": lambda out: (out * out).sum(), "a user's rule": lambda out: _Square()(out)}


def branches(comm):
    """Return a model of two branches, whose layers normalize the same input and some more."""
    first, other = tp.layer.batch_norm(4, comm=comm), tp.layer.batch_norm(4, comm=comm)
    after = tp.layer.batch_norm(4, comm=comm)

    def init(rngs, dtype):
        parts = [layer.init(rngs, dtype) for layer in (first, other, after)]
        return tp.layer.Vars([p.params for p in parts], [p.state for p in parts], dtype)

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        outs, states = [], []
        for k, (layer, source) in enumerate([(first, 0), (other, 0), (after, 1)]):
            operand = x if source == 0 else outs[1] * 2.0
            y, vars = layer.apply(tp.layer.Vars(params[k], state[k], dtype), operand, training)
            outs.append(y)
            states.append(vars.state)
        return outs[0] + tp.tanh(outs[2]), states

    return tp.layer.Layer(init, apply)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("model", [branches, *MODELS.values()], ids=["branches", *MODELS])
def test_steps_make_the_sums_of_an_eager_step_in_its_order(model, loss, monkeypatch):
    x = tp.tensor(numbers((6, 4)))

    def sums():
        comm = Recorder()
        trainer = tp.Trainer(model(comm), tp.optim.sgd(0.1))
        st = trainer.init(rngs=tp.rng.key(0), dtype="f8")
        for _ in range(3):
            comm.sums.clear()
            _, st = trainer.step(st, x, loss=loss)
        return comm.sums, len(trainer.steps.cache.programs)

    program, planned = sums()
    assert planned == 1
    run_eagerly(monkeypatch)
    eager, planned = sums()
    assert planned == 0
    assert program == eager


def run_eager(comm):
    function, params = gradient_step(comm)
    return lambda: function(params)


def run_jit(comm):
    function, params = gradient_step(comm)
    jitted = tp.jit(function)
    return lambda: jitted(params)


def run_vjp(comm):
    def run():
        y, pullback = tp.vjp(lambda x: ops.rank_sum(x, comm), X6)
        return ops.rank_sum(pullback(y)[0], comm)

    return run


RUNS = {
    "eager": run_eager,
    "jit": run_jit,
    "vjp": run_vjp,
    "step": run_step,
    "python step": lambda comm: run_step(comm, MODELS["python"]),
}


def raise_broken():
    raise Broken("rank 1 is gone")


def interrupt():
    signal.raise_signal(signal.SIGINT)


def exit_now():
    raise SystemExit(3)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("fail", "kind"),
    [(raise_broken, Broken), (interrupt, KeyboardInterrupt), (exit_now, SystemExit)],
    ids=["exception", "interrupt", "exit"],
)
@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_an_exception_of_a_sum_is_raised_unchanged_and_no_sum_follows(make, fail, kind, at, capfd):
    comm = Recorder()
    run = make(comm)
    want = run()
    comm.sums.clear()
    comm.fail_at, comm.error = at, fail
    with pytest.raises(kind):
        run()
    assert len(comm.sums) == at + 1
    assert "ignored" not in capfd.readouterr().err
    comm.fail_at = None
    for a, b in zip(tp.ptree.leaves([want]), tp.ptree.leaves([run()]), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers")
@pytest.mark.parametrize("delay", [0.0005, 0.001, 0.002, 0.004])
def test_a_signal_while_kernels_run_is_raised(delay, capfd):
    """Its handler runs where Python does next: often as the sum after the kernels begins."""
    comm = Recorder()
    x = tp.tensor(numbers((400, 64, 64)))
    function = tp.jit(lambda x: ops.rank_sum(tp.exp(tp.sin(x)).sum((0, 2)), comm))
    function(x)

    def stop(*_):
        raise Broken

    handler = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Broken):
            signal.setitimer(signal.ITIMER_REAL, delay)
            while True:
                function(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert "ignored" not in capfd.readouterr().err


def refuse(y):
    return ops.check_range(y, -1e9, 0.5, "a value is {}").sum()


@pytest.mark.parametrize("make", ["jit", "step", "python step"])
def test_a_failed_check_after_a_sum_does_not_repeat_the_sum(make):
    """Other ranks would not take part in a second one."""
    comm = Recorder()
    if make == "jit":
        jitted = tp.jit(lambda x: refuse(ops.rank_sum(x, comm)))
        run, allowed = (lambda: jitted(X6)), lambda: jitted(-tp.abs(X6))
        allowed()
    else:
        run = run_step(comm, MODELS["python" if make == "python step" else "pure"], refuse)
    comm.sums.clear()
    with pytest.raises(ValueError, match="a value is"):
        run()
    assert comm.sums == ([(6, 4)] if make == "jit" else [(7,), (2, 6), (6,), (2, 5)])


def test_a_failed_check_before_all_sums_may_be_handled():
    comm = Recorder()

    def loss(out):
        try:
            value = refuse(out)
        except ValueError:
            value = out.sum()
        return ops.rank_sum(value, comm)

    trainer = tp.Trainer(tp.layer.linear(4, 3), tp.optim.sgd(0.1))
    st = trainer.init(rngs=tp.rng.key(0), dtype="f8")
    for _ in range(2):
        comm.sums.clear()
        trainer.step(st, X6, loss=loss)
        assert comm.sums == [(), ()]


def test_a_profile_makes_no_sums(capsys):
    comm = Recorder()
    function, params = gradient_step(comm)
    jitted = tp.jit(function)
    jitted(params)
    comm.sums.clear()
    tp.explain(jitted, profile=True)
    assert "rank_sum" in capsys.readouterr().out
    assert comm.sums == []


def test_communicators_are_compared_by_identity():
    """Two that are equal are not the same ranks, and one need not be hashable."""

    class Equal(EqualRanks):
        def __eq__(self, other):
            return True

        __hash__ = None

    jitted = tp.jit(lambda x, y: ops.rank_sum(x, Equal(2)) + ops.rank_sum(y, Equal(3)))
    np.testing.assert_array_equal(jitted(tp.ones(2), tp.ones(2)).numpy(), [5.0, 5.0])
    two, three = Equal(2), Equal(3)
    for _ in range(2):
        assert ops.rank_sum(tp.tensor(1.0), two).item() == 2.0
        assert ops.rank_sum(tp.tensor(1.0), three).item() == 3.0


CHECKED = """
import numpy as np, treepie as tp
def run(comm):
    layer = tp.layer.sequential([tp.layer.linear(4, 3), tp.layer.batch_norm(3, comm=comm)])
    trainer = tp.Trainer(layer, tp.optim.sgd(0.1))
    st = trainer.init(rngs=tp.rng.key(0))
    loss = tp.pure(lambda out, y: tp.square(out - y).mean())
    x = tp.rng.normal(tp.rng.key(1), (6, 4))
    jitted = tp.jit(lambda st, x: trainer.step(st, x, loss=lambda out: loss(out, x[:, :3]))[1])
    for _ in range(3):
        _, st = trainer.step(st, x, loss=lambda out: loss(out, x[:, :3]))
        st = jitted(st, x)
    return st.vars.params[0]["weight"].numpy()
a, b = tp.distributed.Local(2).run(run)
print(np.isfinite(a).all(), (a == b).all())
"""


def test_with_checks_of_purity():
    environment = dict(os.environ, TREEPIE_CHECK="1")
    result = subprocess.run(
        [sys.executable, "-c", CHECKED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "True True\n", result.stderr
