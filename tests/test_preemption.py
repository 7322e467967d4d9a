"""A signal ends `fit` at the end of a step, with a checkpoint from which it continues with the same bits."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import treepie as tp

from . import preempted

EPOCHS = 6


@pytest.fixture(scope="module")
def whole():
    return preempted.run(None, EPOCHS)


def at_step(number, name):
    def report(step, loss, st):
        if step == number:
            signal.raise_signal(getattr(signal, name))

    return report


@pytest.fixture(autouse=True)
def handlers():
    """Fail a test after which a signal has another handler."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(n) for n in numbers]
    yield
    assert [signal.getsignal(n) for n in numbers] == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("step", [1, 3, 6, 7, 18, 36])
def test_at_a_step(tmp_path, whole, name, step):
    """Batches of 7 of 40 rows: 6 ends an epoch, 18 one with a checkpoint that is due, 36 is the last."""
    with pytest.raises(tp.Preempted) as caught:
        preempted.run(tmp_path, EPOCHS, at_step(step, name))
    assert caught.value.code == 85
    assert caught.value.state.step == step
    assert (tmp_path / f"step-{step:08d}").is_dir()
    assert preempted.run(tmp_path, EPOCHS) == whole


def test_again_and_again(tmp_path, whole):
    for step in range(2, 36, 5):
        with pytest.raises(tp.Preempted):
            preempted.run(tmp_path, EPOCHS, at_step(step, "SIGTERM"))
    assert preempted.run(tmp_path, EPOCHS) == whole


def test_while_a_checkpoint_is_written(tmp_path, whole, monkeypatch):
    from treepie.checkpoint import files as storage

    replace, count = storage.replace, []

    def interrupted(source, target):
        count.append(target)
        signal.raise_signal(signal.SIGTERM)
        replace(source, target)
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(storage, "replace", interrupted)
    with pytest.raises(tp.Preempted) as caught:
        preempted.run(tmp_path, EPOCHS)
    assert caught.value.state.step == 3
    assert [path.name for path in count] == ["step-00000003"]  # not written twice
    monkeypatch.undo()
    assert preempted.run(tmp_path, EPOCHS) == whole


def test_at_random_instants(tmp_path, whole):
    """Thirty times, with a checkpoint after each step, so that most signals come while one is written."""
    draw, ended = random.Random(0), 0
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        start = time.perf_counter()
        assert preempted.run(tmp_path / "whole", EPOCHS, steps=1) == whole
        seconds = time.perf_counter() - start
        for trial in range(30):
            delay = draw.uniform(0, seconds)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            try:
                preempted.run(tmp_path / str(trial), EPOCHS, steps=1)
            except tp.Preempted:
                ended += 1
            timer.join()
            assert preempted.run(tmp_path / str(trial), EPOCHS, steps=1) == whole
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended >= 15


def test_at_random_instants_of_real_processes(tmp_path, whole):
    """Ten times: in a step, in a checkpoint, in an epoch's end, or after the last one."""
    draw = random.Random(0)
    command = [sys.executable, preempted.__file__, None, str(EPOCHS)]
    ended = []
    for trial in range(10):
        command[2] = folder = str(tmp_path / str(trial))
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as process:
            for _ in range(2 + draw.randrange(1, 32)):  # after its process, and "ready"
                process.stdout.readline()
            threading.Event().wait(draw.uniform(0, 0.015))
            process.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1]))
            output = process.communicate(timeout=60)[0]
        # A signal that comes after the last step has its default effect.
        assert process.returncode in (85, 0, -signal.SIGTERM, -signal.SIGUSR1)
        ended.append(process.returncode)
        assert all(name.startswith("step-") for name in os.listdir(folder)), output
        assert preempted.run(folder, EPOCHS) == whole
    assert ended.count(85) >= 5


def test_a_handler_of_the_programs_own_is_called_too(tmp_path):
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
    try:
        with pytest.raises(tp.Preempted):
            preempted.run(tmp_path, EPOCHS, at_step(4, "SIGUSR1"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == [signal.SIGUSR1]


def test_what_that_handler_raises_is_raised_after_the_checkpoint(tmp_path, whole):
    def leave(number, frame):
        sys.exit("out of time")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="out of time") as caught:
            preempted.run(tmp_path, EPOCHS, at_step(4, "SIGTERM"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.state.step == 4
    assert (tmp_path / "step-00000004").is_dir()
    assert preempted.run(tmp_path, EPOCHS) == whole


def test_signals_are_chosen_by_name(tmp_path):
    with pytest.raises(tp.Preempted):
        preempted.run(tmp_path, EPOCHS, at_step(4, "SIGUSR2"), on_signals=["SIGUSR2"])
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        preempted.run(tmp_path / "none", EPOCHS, at_step(4, "SIGTERM"), on_signals=())
        preempted.run(None, EPOCHS, at_step(4, "SIGTERM"))
        # In another thread than the main one.
        thread = threading.Thread(target=preempted.run, args=(tmp_path / "thread", EPOCHS))
        thread.start()
        signal.raise_signal(signal.SIGTERM)
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(calls) == 3


def test_a_signal_after_the_last_step_is_the_programs(tmp_path):
    """A program that saves its model after `fit` is ended by SIGTERM as before."""
    code = """
import signal
from treepie.train.preemption import Preemption
with Preemption(("SIGTERM",)):
    signal.raise_signal(signal.SIGTERM)
print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


def test_a_platform_without_the_signal(tmp_path, monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    with pytest.raises(tp.Preempted):
        preempted.run(tmp_path, EPOCHS, at_step(4, "SIGTERM"))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("SIGTERM", TypeError, r"checkpoint.every: on_signals is 'SIGTERM', expected names"),
        ([15], TypeError, r"checkpoint.every: on_signals is \[15\], expected names"),
        (15, TypeError, r"checkpoint.every: on_signals is 15, expected names"),
        (["SIGKILL"], ValueError, r"checkpoint.every: on_signals has 'SIGKILL', expected some of SIGTERM"),
        (["SIGINT"], ValueError, r"checkpoint.every: on_signals has 'SIGINT', expected some of SIGTERM"),
    ],
)
def test_errors(tmp_path, names, error, message):
    with pytest.raises(error, match=message):
        tp.checkpoint.every(1, tmp_path, on_signals=names)


def test_ranks_have_the_same_plan(tmp_path):
    def run(comm):
        preempted.run(tmp_path, EPOCHS, comm=comm, steps=2 + comm.rank)

    with pytest.raises(
        ValueError, match=r"checkpoint is \(3, \(.*\)\) on rank 1 and \(2, \(.*\)\) on rank 0"
    ):
        tp.distributed.Local(2).run(run)
