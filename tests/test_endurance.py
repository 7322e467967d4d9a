"""Long runs: threads over mixed work, forks at random moments, memory over many steps."""

import os
import subprocess
import sys

import pytest

RUN = """
import os, random, threading, time
import numpy as np
import treepie as tp

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(64, 20)).astype("f4"), rng.integers(0, 4, 64)
A = rng.normal(size=(250, 250)).astype("f4")
model = tp.layer.sequential([tp.layer.linear(20, 300), tp.layer.relu(), tp.layer.linear(300, 4)])
trainer = tp.Trainer(model, tp.optim.adam(1e-3))
loss = lambda logits: tp.loss.cross_entropy_sparse(logits, Y)
START = trainer.init(rngs=tp.rng.key(0))

def train(steps):
    state = START
    for _ in range(steps):
        value, state = trainer.step(state, X, loss)
    return float(value)

jitted = tp.jit(lambda a: tp.softmax(tp.tanh(tp.matmul(a, a))).sum(axis=0))
WORK = [
    lambda: train(20),
    lambda: float(tp.matmul(A, A).sum()),
    lambda: float(jitted(A).sum()),
    lambda: float(tp.grad(lambda a: tp.logsumexp(a @ a))(tp.tensor(A)).sum()),
    lambda: float(tp.fn.conv2d(tp.ones((4, 3, 20, 20)), tp.ones((5, 3, 3, 3)), None).sum()),
    lambda: float(tp.sort(tp.tensor(A), 1)[:, 0].sum() + tp.rng.normal(tp.rng.key(3), (300, 300)).sum()),
]
WANT = [f() for f in WORK]
"""


def run(code, timeout=240, **env):
    done = subprocess.run(
        [sys.executable, "-c", RUN + code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_eight_threads_over_mixed_work():
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    orders = [random.Random(k).choices(range(len(WORK)), k=25) for k in range(8)]
    results = list(pool.map(lambda order: [WORK[k]() == WANT[k] for k in order], orders))
print(sum(map(sum, results)))
"""
    assert run(code, NUMBA_NUM_THREADS="2") == ["200"]
    assert run(code, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER="workqueue") == ["200"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_at_200_random_moments_of_another_thread():
    code = """
import signal, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of every fork beside threads
ended = threading.Event()
def work():
    while not ended.is_set():
        assert all(f() == want for f, want in zip(WORK, WANT))
thread = threading.Thread(target=work)
thread.start()
random.seed(1)
statuses = []
for k in range(200):
    time.sleep(random.random() * 0.02)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        if k % 4 == 0:
            tp.set_num_threads(2)
        os._exit(0 if WORK[k % len(WORK)]() == WANT[k % len(WORK)] else 3)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
ended.set()
thread.join()
print(len(statuses), statuses.count(0))
"""
    assert run(code, NUMBA_NUM_THREADS="2") == ["200", "200"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_is_flat_over_10000_steps():
    code = """
def resident():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])
train(2000)
before = resident()
train(10000)
print(resident() - before < 4096)  # kB
"""
    assert run(code, NUMBA_NUM_THREADS="2") == ["True"]
