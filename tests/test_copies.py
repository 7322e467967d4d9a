"""Copies of tensors and states that programs have used: independent of what becomes of the originals."""

import copy
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import treepie as tp

from .steps import X, Y, arrays, eager_fit, same, small

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "old_pickle": lambda x: pickle.loads(pickle.dumps(x, protocol=2)),
    "pickle_out_of_band": lambda x: _out_of_band(x),
}
EVERY = pytest.mark.parametrize("way", COPIES)
TWO = pytest.mark.parametrize("way", ["deepcopy", "pickle"])
DTYPES = [tp.float32, tp.float64, tp.int32, tp.int64, tp.bool]


def _out_of_band(x):
    """Return a copy by a pickle whose large parts travel beside it."""
    buffers = []
    data = pickle.dumps(x, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b.raw()) for b in buffers])


def used(numbers):
    """Return a tensor that a program and ops have read."""
    t = tp.tensor(numbers, dtype=tp.float32)
    total = tp.jit(lambda t: (t * 2.0).sum())
    for _ in range(4):
        total(t)
    return t


@EVERY
@pytest.mark.parametrize("reader", ["op", "program"])
def test_a_copy_of_a_used_tensor_outlives_it(way, reader):
    """The original's memory is donated, so that a result is written there."""
    numbers = np.arange(6, dtype="f4").reshape(2, 3)
    f = lambda t: t * 10.0 + 1.0
    read = tp.jit(f) if reader == "program" else f
    overwrite = tp.jit(lambda t: t * 0.0 - 7.0, donate=0)
    for _ in range(4):
        t = used(numbers)
        twin = COPIES[way](t)
        kept = overwrite(t)
        for _ in range(4):
            np.testing.assert_array_equal(read(twin).numpy(), numbers * 10 + 1)
        np.testing.assert_array_equal(twin.numpy(), numbers)
        assert (kept.numpy() == -7).all()


@pytest.mark.parametrize("way", [*COPIES, "copy"])
def test_a_copy_has_the_same_bits_and_dtype(way):
    copied = copy.copy if way == "copy" else COPIES[way]
    for dtype, shape in itertools.product(DTYPES, [(), (0,), (3,), (2, 1, 3)]):
        t = tp.tensor(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2, dtype=dtype)
        for original in (t, *([t[1:], t.T] if t.ndim else [])):
            twin = copied(original)
            assert isinstance(twin, tp.Tensor)
            np.testing.assert_array_equal(twin.numpy(), original.numpy(), strict=True)
            np.testing.assert_array_equal(tp.equal(twin, original).numpy(), np.ones(twin.shape, bool))


@EVERY
def test_a_slice_is_copied_without_the_rest(way):
    large = used(np.arange(1000.0).reshape(100, 10))
    twin = COPIES[way](large[3])
    np.testing.assert_array_equal((twin + 1.0).numpy(), np.arange(31.0, 41.0, dtype="f4"))
    assert len(pickle.dumps(large[3])) < 1000


def donating(trainer):
    """Return a step of training that writes the next state where the last one was."""
    return tp.jit(lambda st: trainer.step(st, X, lambda out: tp.loss.mse(out, Y))[1], donate=0)


@TWO
def test_the_best_state_so_far(way):
    """It stays what it was while training goes on, and predicts what it did."""
    trainer, st = small(tp.layer.batch_norm(3), optimizer=tp.optim.adam(0.1))
    step = donating(trainer)
    for _ in range(5):
        st = step(st)
    trainer.predict(st, X)
    best = COPIES[way](st)
    want, outputs = arrays(st), trainer.model.apply(st.vars, X)[0].numpy().copy()
    for _ in range(5):
        st = step(st)
    for _ in range(4):
        np.testing.assert_array_equal(trainer.predict(best, X).numpy(), outputs)
        np.testing.assert_array_equal(trainer.model.apply(best.vars, X)[0].numpy(), outputs)
    same(best, want)
    assert best.step == best.opt_state.count == 5


@TWO
def test_training_goes_on_from_a_copied_state(way):
    mask = [{"weight": True, "bias": False}, {"scale": True, "bias": False}]
    trainer, st = small(tp.layer.batch_norm(3), optimizer=tp.optim.adamw(0.1, mask=mask))
    step = donating(trainer)
    for _ in range(5):
        st = step(st)
    batches = [(X * (1.0 + 0.1 * k), Y) for k in range(6)]
    want = eager_fit(trainer, st, batches, tp.loss.mse)[1]
    best = COPIES[way](st)
    for _ in range(5):
        st = step(st)
    for _ in range(2):
        made = trainer.fit(best, tp.Data.of_array(batches), loss=tp.loss.mse)
        assert made.step == want.step == 11
        same(made, want)


@TWO
def test_states_that_a_report_copies(way):
    trainer, st = small(optimizer=tp.optim.adam(0.1))
    kept, copies, outputs = [], [], []

    def report(step, loss, st):
        outputs.append(arrays(trainer.predict(st, X)))
        copies.append(arrays(st))
        kept.append(COPIES[way](st))

    trainer.fit(st, tp.Data.repeat(8, (X, Y)), loss=tp.loss.mse, report=report)
    for made, want, out in zip(kept, copies, outputs, strict=True):
        same(made, want)
        same(trainer.predict(made, X), out)


@TWO
def test_variables_keys_and_contexts(way):
    model = tp.layer.sequential([tp.layer.linear(4, 3), tp.layer.batch_norm(3)])
    key = tp.rng.key(7)
    vars = model.init(key)
    mask = tp.Context().set("mask", used([1.0, 0.0]))
    vars_too, key_too, mask_too = COPIES[way]((vars, key, mask))
    same([vars_too.params, vars_too.state], [vars.params, vars.state])
    assert vars_too.dtype == vars.dtype
    same(tp.rng.normal(key_too, (3,)), tp.rng.normal(key, (3,)))
    same(mask_too.get("mask"), mask.get("mask"))


TOTAL = """
import pickle, sys
import treepie as tp
t = pickle.loads(sys.stdin.buffer.read())
print((t * 2.0).sum().item(), tp.jit(lambda t: (t + 1.0).sum())(t).item())
"""


def test_a_pickle_in_another_process():
    data = pickle.dumps(used(np.arange(1000.0)))
    done = subprocess.run([sys.executable, "-c", TOTAL], input=data, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.split() == [b"999000.0", b"500500.0"]


def total(t):
    """Return a sum, in a worker."""
    return (t * 2.0).sum()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_multiprocessing_take_and_return_tensors(method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        made = pool.submit(total, used(np.arange(1000.0))).result()
    assert made.item() == 999000.0
    assert (made + 1.0).item() == 999001.0
