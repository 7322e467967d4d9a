"""Launch tables as built-in functions: the bits, errors and memory of `LaunchTable.run`."""

import gc
import sys
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS
from treepie.kernels import direct as module, program

SIZES = [(), (1,), (16,), (3, 5), (0, 4)]


def plan_of(name, *tensors, **attributes):
    return OPS[name].planned([(t.shape, t.dtype) for t in tensors], attributes)


def test_this_python_supports_them():
    assert module._supported() == (sys.implementation.name == "cpython")


@pytest.mark.parametrize("shape", SIZES)
def test_results_have_the_bits_of_the_launch_table(shape):
    x, y = (tp.tensor(np.random.default_rng(k).standard_normal(shape).astype("f4")) for k in (0, 1))
    plan = plan_of("mul", x, y)
    want = plan.results("mul", False)
    assert not plan.run((x, y), want, "mul")
    assert np.array_equal((x * y).numpy(), want[0].numpy())
    assert plan.direct is None or x.size


def test_ops_with_scratch_and_several_outputs():
    x = tp.tensor(np.random.default_rng(0).standard_normal((7, 300)).astype("f4"))
    plan = plan_of("matmul", x, x, transpose_a=False, transpose_b=True)
    want = plan.results("matmul", False)
    plan.run((x, x), want, "matmul")
    assert np.array_equal((x @ x.T).numpy(), want[0].numpy())


def test_an_error_of_a_kernel_is_raised():
    with pytest.raises(IndexError):
        tp.take(tp.tensor([1.0, 2.0]), tp.tensor([0, 5]), axis=0)
    assert tp.take(tp.tensor([1.0, 2.0]), tp.tensor([0, 1]), axis=0).tolist() == [1.0, 2.0]


def test_later_launches_do_not_run_after_an_error():
    x = tp.tensor(np.arange(4, dtype="f4"))
    plan = plan_of("take", x, tp.tensor([0, 5]), axis=0, function="take")
    first = plan.launches[-1]
    moved = [(word, replace(operand, buffer=operand.buffer + 3)) for word, operand in first.slots]
    launches = (first, replace(first, slots=tuple(moved)))
    function = module.direct(program.LaunchTable(launches), launches)
    wrong, right = np.array([0, 5], "i4"), np.array([3, 2], "i4")
    before, after = np.full(2, 7, "f4"), np.full(2, 7, "f4")
    assert function(x.array, wrong, before, x.array, right, after) is False
    assert after.tolist() == [7.0, 7.0]
    assert function(x.array, right, before, x.array, right, after) is None
    assert before.tolist() == after.tolist() == [3.0, 2.0]


def test_large_and_shared_tables_run_without_the_gil():
    assert plan_of("add", *[tp.ones((16,))] * 2).direct is not None
    assert plan_of("add", *[tp.ones((3_000_000,))] * 2).direct is None
    assert plan_of("matmul", *[tp.ones((512, 512))] * 2, transpose_a=False, transpose_b=False).direct is None
    threads = tp.get_num_threads()
    tp.set_num_threads(1)
    try:
        assert plan_of("add", *[tp.ones((17,))] * 2).direct is not None
        assert plan_of("add", *[tp.ones((3_000_001,))] * 2).direct is None
    finally:
        tp.set_num_threads(threads)


def test_calls_keep_no_references():
    x, y = tp.ones((16,)), tp.ones((16,))
    before = sys.getrefcount(x.array)
    for _ in range(1000):
        z = x + y
    after = sys.getrefcount(x.array)
    assert after == before
    array = weakref.ref(z)
    del z
    gc.collect()
    assert array() is None


def test_none_and_false_keep_their_counts():
    x = tp.ones((16,))
    none = sys.getrefcount(None)
    for _ in range(10_000):
        x + x
    assert abs(sys.getrefcount(None) - none) < 1000


def test_threads_that_use_one_table():
    inputs = [tp.tensor(np.full(64, float(k), "f4")) for k in range(8)]
    wrong = []

    def work(k):
        for _ in range(2000):
            if (inputs[k] + inputs[k]).numpy()[0] != 2.0 * k:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
