"""Accidents while a checkpoint is written: there is always one to load, and a good file is never lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie import checkpoint
from treepie.checkpoint import files as storage
from treepie.checkpoint.checkpoint import Store

from .test_checkpoint import KEY, kept, names, same_state, trainer, tree

CALLS = [
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (os, "rename"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "touch"),
    (Path, "chmod"),
    (Path, "open"),
    (shutil, "rmtree"),
    (storage.safetensors.numpy, "save_file"),
    (storage, "safe_open"),
]


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_failure_of_any_call_loses_nothing(tmp_path, monkeypatch, owner, name):
    """The k-th call fails, for every k: the folder has the state from before or the new one."""
    rows, _, run = kept(tmp_path)
    for k in range(100):
        folder = tmp_path / "runs" / str(k)
        shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("runs"))
        calls, real = iter(range(1000)), getattr(owner, name)

        def failing(*args, k=k, calls=calls, real=real, **kwargs):
            if next(calls) == k:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            try:
                Store("test", folder).write(rows[3], {}, {}, keep=2, run=run)
                failed = False
            except (OSError, ValueError):
                failed = True
            reached = next(calls) > k
        found = checkpoint.load_state(folder, rows[0])
        same_state(found, rows[found.step])
        assert found.step >= 2
        assert failed or found.step == 3
        if not reached:
            break
        Store("test", folder).write(rows[3], {}, {}, keep=2, run=run)
        whole = [n for n in names(folder) if n.startswith("step")]
        assert names(folder) == whole
        assert len(whole) == 2
    assert k > 0


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    checkpoint.save(path, {"w": tp.ones(3)})
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(OSError, match="Input/output"):
                checkpoint.save(path, {"w": tp.zeros(3)})
        assert checkpoint.load(path)["w"].tolist() == [1, 1, 1]
        assert names(tmp_path) == ["x"]


FULL = """
import resource, sys
import treepie as tp
path = sys.argv[1]
tp.checkpoint.save(path, {"w": tp.ones(10000)})
for limit in (0, 10, 200, 20000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        tp.checkpoint.save(path, {"w": tp.zeros(10000)})
    except OSError as error:
        print(error)
"""


def test_a_file_that_can_not_grow(tmp_path):
    """The system itself refuses to write beyond a size, as it does where a disk is full."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "x")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("checkpoint.save: ") == run.stdout.count("File too large") == 4, run
    assert checkpoint.load(tmp_path / "x")["w"].numpy().all()
    assert names(tmp_path) == ["x"]


ENDLESS = """
import sys
import treepie as tp
from treepie.checkpoint.checkpoint import Store
st = tp.Trainer(tp.layer.linear(3, 2), tp.optim.adam(0.1)).init(tp.rng.key(3))
import dataclasses
store, run = Store("test", sys.argv[1] + "/run"), None
for step in range(10**6):
    tp.checkpoint.save(sys.argv[1] + "/x", {"step": tp.full((1000,), float(step))})
    run = store.write(dataclasses.replace(st, step=step), {}, {}, 2, run)
    print(step, flush=True)
"""


def test_a_process_that_is_killed_at_any_moment_leaves_whole_files(tmp_path):
    like, rng = trainer().init(KEY), np.random.default_rng(int(time.time()))
    for trial in range(6):
        with subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            last = int((b"0\n" + process.stdout.read()).split()[-1])
        found = checkpoint.load_state(tmp_path / "run", like)
        assert last <= found.step <= last + 1, trial
        row = checkpoint.load(tmp_path / "x")["step"].numpy()
        assert (row == row[0]).all()
        assert last <= row[0] <= last + 1
    checkpoint.save(tmp_path / "x", {})
    checkpoint.save_state(tmp_path / "run", like)
    assert not [n for n in names(tmp_path) + names(tmp_path / "run") if n.startswith(".")]


def test_only_abandoned_work_is_removed(tmp_path):
    mine = f".x.{storage._MACHINE}"
    alive, dead = os.getppid(), 2**22 + 1  # beyond Linux's largest number of a process
    work = [f"{mine}.{alive}.00000000", f"{mine}.{dead}.00000000", ".x.elsewhere.1.00000000", ".x.me"]
    for name in work:
        (tmp_path / f"{name}.treepie-part").mkdir()
    os.utime(tmp_path / ".x.elsewhere.1.00000000.treepie-part", (0, 0))
    (tmp_path / ".x.elsewhere.2.00000000.treepie-part").mkdir()
    checkpoint.save(tmp_path / "x", tree())
    left = [work[0], ".x.elsewhere.2.00000000", ".x.me"]
    assert names(tmp_path) == sorted([f"{n}.treepie-part" for n in left] + ["x"])
    y = tmp_path / "y"
    with storage.temporary_folder("f", y) as one, storage.temporary_folder("f", y) as two:
        assert one != two
        assert one.is_dir()
