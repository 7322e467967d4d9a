"""`tp.explain`: the table of a step's kernels, and the trace file."""

import itertools
import json

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)


def trained(steps=3):
    model = tp.layer.sequential([tp.layer.linear(20, 16), tp.layer.relu(), tp.layer.linear(16, 3)])
    trainer = tp.Trainer(model, tp.optim.adam(0.1))
    x, y = np.ones((8, 20), "f4"), np.arange(8) % 3
    st = trainer.fit(trainer.init(KEY), tp.Data.repeat(steps, (x, y)), loss=tp.loss.cross_entropy_sparse)
    for _ in range(steps):
        trainer.predict(st, x)
    return trainer


def test_a_trainer_shows_its_steps_and_predictions_in_order(capsys):
    tp.explain(trained())
    shown = capsys.readouterr().out
    step, predict = shown.split("\n\n")[:2]
    assert step.startswith("step: ")
    assert predict.startswith("predict: ")
    names = [line.split()[1] for line in step.splitlines()[2:]]
    assert names[0] == "linear"
    assert (
        names.index("cross_entropy_rows") < names.index("cross_entropy_backward") < names.index("vector_norm")
    )
    assert "8x20 20x16 16 -> 8x16" in step
    calls, launches = int(step.split()[1]), int(step.split()[3])
    assert calls == len(names) <= launches
    assert "us" not in step.splitlines()[1]


def test_a_profile_times_every_kernel_and_the_trace_file_has_the_same_times(capsys, tmp_path):
    f = tp.jit(lambda x, w: tp.tanh(x @ w).sum())
    for _ in range(3):
        f(tp.ones((300, 200)), tp.ones((200, 100)))
    before = f(tp.ones((300, 200)), tp.ones((200, 100))).item()
    tp.explain(f, profile=True, trace=tmp_path / "trace.json")
    head, titles, *rows = capsys.readouterr().out.rstrip().splitlines()
    assert head.startswith("<lambda>: ")
    assert titles.split()[-2:] == ["us", "%"]
    times = [float(row.split()[-2]) for row in rows]
    assert all(t > 0 for t in times)
    assert sum(float(row.split()[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.5)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert events[0]["args"]["name"] == "<lambda>"
    kernels = events[1:]
    assert [e["dur"] for e in kernels] == pytest.approx(times, abs=0.051)
    assert all(a["ts"] + a["dur"] == pytest.approx(b["ts"]) for a, b in itertools.pairwise(kernels))
    assert f(tp.ones((300, 200)), tp.ones((200, 100))).item() == before  # the profile uses other memory


def test_steps_without_a_program_are_refused():
    with pytest.raises(ValueError, match="step has no program, expected one that was called"):
        tp.explain(tp.jit(lambda x: x))
    with pytest.raises(ValueError, match="step has no program"):
        tp.explain(tp.Trainer(tp.layer.linear(2, 3), tp.optim.sgd(0.1)))
    with pytest.raises(TypeError, match=r"step is a function, expected a function that tp\.jit made"):
        tp.explain(lambda x: x)
