"""Threads: how many, in forked children, from several Python threads, on any threading layer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import threads

WORK = """
import numpy as np, hashlib, treepie as tp
x = np.random.default_rng(0).standard_normal((700, 700)).astype("f4")
results = [tp.matmul(x, x), tp.sum(x), tp.sum(x, 0), tp.softmax(x), tp.tanh(x)]
results.append(tp.rng.normal(tp.rng.key(0), (700, 700)))
print(hashlib.sha256(b"".join(m.numpy().tobytes() for m in results)).hexdigest())
"""


def run(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bits_are_the_same_with_more_threads_than_cores_and_on_workqueue():
    want = run(WORK, NUMBA_NUM_THREADS="1")
    assert run(WORK, NUMBA_NUM_THREADS="2") == want
    assert run(WORK, NUMBA_NUM_THREADS="7") == want
    assert run(WORK, NUMBA_NUM_THREADS="3", NUMBA_THREADING_LAYER="workqueue") == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_serially():
    code = """
import os, sys, numpy as np, treepie as tp
x = np.ones((1500, 1500), "f4")
want = tp.matmul(x, x).numpy()
pid = os.fork()
if pid == 0:
    os._exit(0 if (tp.matmul(x, x).numpy() == want).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(code, NUMBA_NUM_THREADS="2").strip() == "0"


def test_several_python_threads_can_launch_at_once():
    """Also on the workqueue layer, which ends the process on concurrent launches by itself."""
    code = """
import numpy as np, treepie as tp
from concurrent.futures import ThreadPoolExecutor
x = np.ones((400, 400), "f4")
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(lambda k: float(tp.matmul(x, x).sum()), range(40)))
print(set(results))
"""
    want = "{64000000.0}"
    assert run(code, NUMBA_NUM_THREADS="2").strip() == want
    assert run(code, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER="workqueue").strip() == want


def test_plans_made_in_several_threads_agree():
    x = np.random.default_rng(0).standard_normal((31, 17)).astype("f4")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda k: tp.expm1(x[: 1 + k % 5]).numpy(), range(40)))
    for k, m in enumerate(results):
        np.testing.assert_array_equal(m, results[k % 5])


def test_set_num_threads():
    before = tp.get_num_threads()
    try:
        tp.set_num_threads(3)
        assert tp.get_num_threads() == 3
    finally:
        tp.set_num_threads(before)
    with pytest.raises(ValueError, match="set_num_threads: n is 0, expected at least 1"):
        tp.set_num_threads(0)
    with pytest.raises(TypeError, match=r"set_num_threads: n is 1\.5, expected an int"):
        tp.set_num_threads(1.5)


def test_a_small_launch_is_serial():
    assert threads.team_size(100, work_ns=1000.0) == 1
