"""What threads share, one Trainer or one jitted function, gives each of them what it gives to one alone."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import treepie as tp

from .steps import KEY, arrays, eager_fit, same

THREADS, STEPS = 8, 10
MODEL = tp.layer.sequential([tp.layer.linear(64, 96), tp.layer.tanh(), tp.layer.linear(96, 10)])


@pytest.fixture(autouse=True)
def often():
    """Let threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def batches(k):
    rng = np.random.default_rng(k)
    return [
        (tp.tensor(rng.standard_normal((32, 64), "f4")), tp.tensor(rng.standard_normal((32, 10), "f4")))
        for _ in range(STEPS)
    ]


def by_steps(trainer, st, rows):
    for x, y in rows:
        st = trainer.step(st, x, lambda out, y=y: tp.loss.mse(out, y))[1]
    return st


def by_fit(trainer, st, rows):
    return trainer.fit(st, tp.Data.of_array(rows), loss=tp.loss.mse)


def by_fit_with_a_report(trainer, st, rows):
    kept = []
    st = trainer.fit(
        st, tp.Data.of_array(rows), loss=tp.loss.mse, report=lambda *found: kept.append(found[-1])
    )
    same(kept[-1], st)
    return st


def by_fit_with_a_loss_of_ones_own(trainer, st, rows):
    return trainer.fit(st, tp.Data.of_array(rows), loss=lambda out, y: tp.square(out - y).mean())


def together(work):
    """Return work(0), work(1), ..., done by threads at once."""
    barrier = threading.Barrier(THREADS)

    def start(k):
        barrier.wait()
        return work(k)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


@pytest.mark.parametrize(
    "train",
    [by_steps, by_fit, by_fit_with_a_report, by_fit_with_a_loss_of_ones_own],
    ids=lambda f: f.__name__,
)
def test_threads_that_share_a_trainer(train):
    trainer = tp.Trainer(MODEL, tp.optim.adam(0.01))
    first = [trainer.init(tp.rng.fold_in(KEY, k)) for k in range(THREADS)]
    rows = [batches(k) for k in range(THREADS)]
    want = [eager_fit(trainer, st, row, tp.loss.mse)[1] for st, row in zip(first, rows, strict=True)]
    for _ in range(2):
        made = together(lambda k: train(trainer, first[k], rows[k]))
        for a, b in zip(made, want, strict=True):
            assert a.step == STEPS
            same(a, b)


def test_threads_that_share_a_trainer_to_train_and_to_predict():
    trainer = tp.Trainer(MODEL, tp.optim.adam(0.01))
    st, rows = trainer.init(KEY), batches(0)
    want = eager_fit(trainer, st, rows, tp.loss.mse)[1]
    outputs = arrays([MODEL.apply(st.vars, x)[0] for x, _ in rows])

    def work(k):
        if k % 2:
            return arrays([trainer.predict(st, x) for x, _ in rows])
        return arrays(by_fit(trainer, st, rows))

    for k, made in enumerate(together(work)):
        same(made, outputs if k % 2 else want)


def test_threads_that_share_a_jitted_step():
    optimizer = tp.optim.adam(0.01)

    def step(params, state, x, y):
        loss = lambda params: tp.loss.mse(tp.fn.linear(x, params["weight"], params["bias"]), y)
        return optimizer.update(state, params, tp.grad(loss)(params))

    jitted = tp.jit(step)
    params = tp.layer.linear(64, 10).init(KEY).params

    def trained(step, k):
        p, state = params, optimizer.init(params)
        for x, y in batches(k):
            p, state = step(p, state, x, y)
        assert state.count == STEPS
        return arrays([p, *state.moments])

    want = [trained(step, k) for k in range(THREADS)]
    for a, b in zip(together(lambda k: trained(jitted, k)), want, strict=True):
        same(a, b)


@pytest.mark.parametrize("ahead", [False, True])
def test_threads_that_share_a_pipeline_get_each_element_once(ahead):
    """Eight at once, over three shuffled passes: together what one thread gets."""
    rows = np.arange(400)
    make = lambda: tp.Data.of_array(rows).shuffle(tp.rng.key(3)).map(lambda k: int(k) * 2)
    shared = make().prefetch(3) if ahead else make()
    serial = make()
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: list(shared), range(8)))
        assert sorted(k for mine in found for k in mine) == sorted(serial)
        shared.reset()
        serial.reset()
