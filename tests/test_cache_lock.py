"""Processes that start together on an empty cache compile each kernel once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from treepie.kernels import cache, compilations, native

from .caching import run

pytestmark = pytest.mark.skipif(cache.fcntl is None, reason="needs locks of files")

TRAIN = """
import treepie as tp
from treepie.kernels.compilations import compilations
model = tp.layer.sequential([tp.layer.linear(4, 8), tp.layer.relu(), tp.layer.linear(8, 3)])
trainer = tp.Trainer(model, tp.optim.sgd(0.1))
data = tp.Data.prepare((tp.ones((12, 4)), tp.zeros((12,), tp.int32)), batch_size=4)
trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse)
print(compilations.count, compilations.loaded)
"""


def start(folder, code=TRAIN):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TREEPIE_CACHE_DIR": str(folder), "NUMBA_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return [int(n) for n in output.split()]


def test_sixteen_processes_compile_each_kernel_once(tmp_path):
    alone = end(start(tmp_path / "alone"))
    assert alone[0] > 10
    processes = [start(tmp_path / "together") for _ in range(16)]
    counts = [end(process) for process in processes]
    assert sum(count for count, _ in counts) == alone[0]
    assert {sum(row) for row in counts} == {sum(alone)}


# A process that stays in the middle of a compilation.
HOLDER = """
import time
from treepie.kernels import native
def build():
    print("compiling", flush=True)
    time.sleep(1000)
native.load("kernel", build)
"""

IR = "define i64 @kernel() {{ ret i64 {} }}"


@pytest.fixture
def holder(tmp_path, move_cache):
    move_cache(tmp_path)
    process = start(tmp_path, HOLDER)
    assert process.stdout.readline() == "compiling\n"
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_is_killed_releases_its_kernel(holder):
    start = time.monotonic()
    holder.send_signal(signal.SIGSTOP)
    # The signal arrives while this process waits.
    with subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"]):
        assert native.load("kernel", lambda: IR.format(1))
    assert 0.4 < time.monotonic() - start < 20


def test_a_process_that_is_stopped_is_overtaken(holder, monkeypatch):
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(cache, "_PATIENCE", 0.3)
    start = time.monotonic()
    assert native.load("kernel", lambda: IR.format(1))
    assert 0.3 < time.monotonic() - start < 20


def test_other_kernels_do_not_wait(holder):
    start = time.monotonic()
    assert native.load("other", lambda: IR.format(1).replace("kernel", "other"))
    assert time.monotonic() - start < 5


def test_a_kernel_that_needs_another_one(tmp_path, move_cache):
    """The lock of the outer kernel survives that of the inner one."""
    move_cache(tmp_path)
    held = []

    def outer():
        native.load("inner", lambda: IR.format(1).replace("kernel", "inner"))
        code = "from treepie.kernels import cache; cache._PATIENCE = 0\nwith cache.compiling('outer'): pass"
        code += "\nimport sys; sys.exit(cache._lock(*cache._lock_files.values(), cache._place('outer')))"
        process = start(tmp_path, code)
        held.append(process.wait(timeout=60) == 0)
        process.communicate()
        return IR.format(2).replace("kernel", "outer")

    native.load("outer", outer)
    assert held == [True]


@pytest.mark.parametrize(
    "error", [OSError(37, "No locks available"), OSError(38, "Function not implemented")]
)
def test_a_file_system_without_locks(tmp_path, move_cache, monkeypatch, error):
    def lockf(*_):
        raise error

    move_cache(tmp_path)
    monkeypatch.setattr(cache.fcntl, "lockf", lockf)
    before = compilations.compilations.count
    assert native.load("kernel", lambda: IR.format(1))
    assert compilations.compilations.count == before + 1


def test_a_folder_that_was_removed_meanwhile(tmp_path, move_cache):
    move_cache(tmp_path)
    native.load("kernel", lambda: IR.format(1))
    first = cache._lock_file(cache.folder())
    (cache.folder() / "locks").unlink()
    assert cache._lock_file(cache.folder()) != first
    assert (cache.folder() / "locks").stat().st_mode & 0o777 == 0o600


def test_errors_release_the_kernel(tmp_path, move_cache):
    def fail():
        raise KeyError("broken")

    move_cache(tmp_path)
    with pytest.raises(KeyError, match="broken"):
        native.load("kernel", fail)
    start = time.monotonic()
    code = f"from treepie.kernels import native; native.load('kernel', lambda: {IR.format(1)!r})"
    run(code, tmp_path)
    assert time.monotonic() - start < 20
