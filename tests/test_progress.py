"""What `fit` shows while it runs, and how seldom it reads the clock for that."""

import re
import sys
import types

import numpy as np
import pytest

import treepie as tp
from treepie.train import progress

from .callback_runs import KEY, fit, trainer

# ---- progress


class Terminal:
    def __init__(self, terminal=True):
        self.text, self._terminal = "", terminal

    def isatty(self):
        return self._terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Clock:
    """A clock that each step, by its callback, moves on."""

    def __init__(self, seconds):
        self.now, self.seconds, self.reads = 100.0, seconds, 0

    def monotonic(self):
        self.reads += 1
        return self.now

    def on_step(self, step, loss, st):
        self.now += self.seconds


def shown(monkeypatch, stream, seconds=0.0, **options):
    clock = Clock(seconds)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "compilations", types.SimpleNamespace(seconds=0.0))
    fit(callbacks=[clock], **options)
    return clock, stream.text


def test_a_bar_on_a_terminal(monkeypatch):
    _, text = shown(monkeypatch, Terminal(), 0.2, epochs=3, progress=None)
    last = text.rstrip("\n").split("\r")[-1]
    assert "epoch 3/3 100%|" in last
    assert "9/9 [" in last
    for part in ("loss: ", "mae: ", "50 samples/s", "<00:00"):
        assert part in last
    assert text.count("\n") == 4  # a line for each epoch with scores, and the bar's


@pytest.mark.parametrize("columns", [30, 60, 80, 100, 140])
def test_a_bar_cuts_no_text(monkeypatch, columns):
    """Scores, the rate, then the bar are left out where the terminal has no columns for them."""
    from tqdm import std

    monkeypatch.setattr(std, "_screen_shape_wrapper", lambda: lambda file: (columns, 24))
    _, text = shown(monkeypatch, Terminal(), 0.2, epochs=3, progress=None)
    bars = [part.rstrip() for part in text.split("\r") if "%" in part and "batch" not in part]
    assert all(len(bar) <= columns for bar in bars)
    ends = {30: r"%, loss: \d\.\d{4}", 60: r", loss: \d\.\d{4}\]", 80: r"loss: \d\.\d{4}, \d+ samples/s\]"}
    end = ends.get(columns, r"loss: \d\.\d{4}, mae: \d\.\d{4}, \d+ samples/s\]")
    assert re.search(end + "$", bars[-1])
    assert all(bar.startswith("epoch") for bar in bars)


def test_the_rate_is_that_of_the_epoch_and_of_whole_batches(monkeypatch):
    """The last batch of 2 rows does not count for the others."""
    _, text = shown(monkeypatch, Terminal(False), 2.0, epochs=3, rows=22, progress=None)
    assert [line.split("  ")[-1] for line in text.splitlines()[1:]] == ["5 samples/s"] * 2


def test_compilations_do_not_lower_the_rate(monkeypatch):
    """Of 6 seconds of each epoch 3 are those of a compilation."""
    compiler = types.SimpleNamespace(seconds=0.0)
    on_step = Clock.on_step

    def compiling(self, step, loss, st):
        on_step(self, step, loss, st)
        compiler.seconds += 1.0
        progress.compilations = compiler

    monkeypatch.setattr(Clock, "on_step", compiling)
    _, text = shown(monkeypatch, Terminal(False), 2.0, epochs=3, progress=None)
    assert [line.split("  ")[-1] for line in text.splitlines()[1:]] == ["10 samples/s"] * 2


def test_a_bar_in_jupyter(monkeypatch):
    kind = type("OutStream", (Terminal,), {"__module__": "ipykernel.iostream"})
    _, text = shown(monkeypatch, kind(False), 0.2, epochs=2, progress=None)
    assert "epoch 2/2 100%|" in text


def test_a_line_for_each_epoch_elsewhere(monkeypatch):
    _, text = shown(monkeypatch, Terminal(False), 2.0, epochs=2, progress=None)
    lines = text.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["epoch 1/2", "batch 3/3"],
        ["epoch 2/2", "batch 3/3"],
    ]
    assert all("loss: " in line and "mae: " in line for line in lines)
    # In the first epoch 2 steps in 6 s: the first step, which may compile, is not counted, its callback is.
    assert [line.split("  ")[-1] for line in lines] == ["3 samples/s", "5 samples/s"]
    assert "\r" not in text


def test_a_line_every_30_seconds_in_a_long_epoch(monkeypatch):
    _, text = shown(monkeypatch, Terminal(False), 20.0, epochs=1, rows=30, progress=None)
    lines = text.splitlines()
    assert lines[0].startswith("epoch 1/1  batch 3/3  loss: ")
    assert lines[0].endswith("0:00 left")
    assert len(lines) == 2


def test_lines_of_short_epochs_are_left_out_unless_asked_for(monkeypatch):
    _, text = shown(monkeypatch, Terminal(False), 0.1, epochs=20, progress=None)
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        f"epoch {k}/20" for k in (4, 8, 12, 16, 20)
    ]
    _, text = shown(monkeypatch, Terminal(False), 0.1, epochs=20, progress=True)
    assert len(text.splitlines()) == 20
    _, text = shown(monkeypatch, Terminal(False), 0.01, epochs=20, progress=None)
    assert text == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_silent(monkeypatch, terminal):
    clock, text = shown(monkeypatch, Terminal(terminal), 40.0, epochs=3, progress=False)
    assert text == ""
    assert clock.reads <= 1


def test_steps_do_not_read_the_clock(monkeypatch):
    reads = {}
    for rows in (1000, 4000):
        clock = Clock(1e-5)
        monkeypatch.setattr(progress, "time", clock)
        data = tp.Data.prepare((np.ones((rows, 3), "f4"), np.ones((rows, 1), "f4")), batch_size=1)
        t = trainer()
        t.fit(t.init(KEY), data, loss=tp.loss.mse, progress=True, callbacks=[clock])
        reads[rows] = clock.reads
    assert reads[4000] <= reads[1000] + 2 < 20  # they are twice as far apart each time


def test_the_mean_loss_is_that_of_the_epoch(monkeypatch):
    history, text = tp.History(), Terminal(False)
    shown(monkeypatch, text, 2.0, epochs=2, progress=None, history=history)
    for line, epoch in zip(text.text.splitlines(), history.epochs, strict=True):
        assert f"loss: {epoch['loss']:.4f}" in line
        assert f"mae: {epoch['mae']:.4f}" in line
