"""Threads: how many, in forked children, from several Python threads, on any threading layer."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import config, threads

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
def test_a_forked_child_has_one_thread_until_it_asks_for_more():
    code = """
import os, sys, threading, numpy as np, treepie as tp
x = np.ones((1500, 1500), "f4")
want = tp.matmul(x, x).numpy()
pid = os.fork()
if pid == 0:
    right = tp.get_num_threads() == 1 and (tp.matmul(x, x).numpy() == want).all()
    alone = threading.active_count() == 1
    tp.set_num_threads(3)
    right = right and (tp.matmul(x, x).numpy() == want).all()
    os._exit(0 if right and alone and threading.active_count() == 3 else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (tp.matmul(x, x).numpy() == want).all())
"""
    assert run(code, NUMBA_NUM_THREADS="2").split() == ["0", "True"]


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
    with pytest.raises(ValueError, match="set_num_threads: n is 0, expected 1 to 4096"):
        tp.set_num_threads(0)
    with pytest.raises(TypeError, match=r"set_num_threads: n is 1\.5, expected an int"):
        tp.set_num_threads(1.5)


def test_auto_counts_the_cores_anew(monkeypatch):
    before = tp.get_num_threads()
    try:
        monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
        assert tp.get_num_threads() == before
        tp.set_num_threads("auto")
        assert tp.get_num_threads() == 5
    finally:
        tp.set_num_threads(before)


VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "OMPI_COMM_WORLD_LOCAL_SIZE")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 11),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "40"}, 11),
        ({"OMP_NUM_THREADS": "many"}, 11),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),  # of 16
        ({"MPI_LOCALNRANKS": "99"}, 1),
        ({"NUMBA_NUM_THREADS": "40", "SLURM_CPUS_PER_TASK": "3"}, 40),
    ],
)
def test_cores_are_the_least_of_what_limits_them(monkeypatch, variables, expected):
    for name in (*VARIABLES, "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(config, "quotas", lambda: [11, 13])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert config.cores() == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, [2]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "1000 100000"}, [1]),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, [3]),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, [4, 3]),
        ("0::/docker/of/the/host", {"cpu.max": "100000 100000"}, [1]),
        ("2:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, [3]),
        ("2:cpu:/j", {"cpu/j/cpu.cfs_quota_us": "-1", "cpu/j/cpu.cfs_period_us": "100000"}, []),
        ("5:memory:/\n1:name=systemd:/", {"cpu.max": "100000 100000"}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path, groups, files, expected):
    (tmp_path / "self").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert config.quotas(str(tmp_path / "self"), str(tmp_path / "fs")) == expected
    assert config.quotas(str(tmp_path / "none"), str(tmp_path / "fs")) == []


def test_threads_that_are_not_used_any_more_end():
    code = """
import os, threading, numpy as np, treepie as tp
x = np.ones((700, 700), "f4")
def counts():
    tp.matmul(x, x)
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
tp.set_num_threads(2)
before = counts()
for k in range(60):
    tp.set_num_threads(1 + k % 4)
    counts()
tp.set_num_threads(2)
print(counts() - before)
tp.set_num_threads(1)
print(threading.active_count())
"""
    assert run(code, NUMBA_NUM_THREADS="4").split() == ["0", "1"]


def test_a_daemon_thread_that_computes_at_the_end():
    code = """
import threading, time, numpy as np, treepie as tp
x = np.ones((300, 300), "f4")
def work():
    while True:
        tp.matmul(x, x)
threading.Thread(target=work, daemon=True).start()
time.sleep(DELAY)
"""
    for k in range(8):
        assert run(code.replace("DELAY", str(0.05 * k)), NUMBA_NUM_THREADS="2") == ""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_ops_and_programs_in_a_signal_handler():
    code = """
import signal, numpy as np, treepie as tp
x = np.ones((300, 300), "f4")
step = tp.jit(lambda t: tp.tanh(tp.matmul(t, t)).sum())
f = lambda: (float(tp.matmul(x, x).sum()), float(step(x)))
want, seen = f(), []
def handler(*_):
    seen.append(f())
    signal.setitimer(signal.ITIMER_REAL, 0.0001 * (len(seen) % 30 + 1))
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
own = [f() for _ in range(400)]
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(len(seen) > 20, set(seen + own) == {want})
"""
    assert run(code, NUMBA_NUM_THREADS="2").split() == ["True", "True"]


def test_python_with_free_threading_is_refused():
    code = """
import sys
sys._is_gil_enabled = lambda: False
try:
    import treepie
except ImportError as error:
    print(error)
"""
    assert "free-threaded" in run(code)


def test_a_small_launch_is_serial():
    assert threads.team_size(100, work_ns=1000.0) == 1
