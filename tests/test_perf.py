"""The benchmarks of training still run, and write README's tables as they should."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from treepie import ptree

PERF = Path(__file__).parents[1] / "perf"


@pytest.fixture
def perf(monkeypatch):
    """A function that imports a module of perf/, which is no package."""
    monkeypatch.syspath_prepend(str(PERF))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(PERF)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["xor", "gpt"])
def test_the_step_that_is_timed_learns(perf, name):
    run = perf("with_treepie").step(name)
    losses = [run() for _ in range(17)]
    assert losses[16] < losses[8] < losses[0]  # of one batch; there are eight


@pytest.mark.parametrize("case", ["nt 128x10x256", "nn 64x128x10 float64", "relu 128x512x256"])
def test_the_products_that_are_timed_run(perf, case):
    gemm = perf("gemm")
    gemm.make("treepie", case)()  # products are compared with the oracle first


def test_weights_for_the_rivals_are_those_of_a_layer_each(perf):
    shapes = [w.shape for w in perf("with_treepie").weights("gpt")]
    assert shapes[:6] == [(65, 128), (128, 128), (128,), (128,), (128, 384), (128, 128)]
    assert len(shapes) == 2 + 4 * 10 + 4


def test_a_table_keeps_the_rows_that_were_not_measured(perf, tmp_path, monkeypatch):
    report = perf("report")
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- a -->\n<!-- end -->\nbelow\n<!-- b -->\nother\n<!-- end -->\n", "utf-8")
    monkeypatch.setattr(report, "README", readme)
    report.write("a", "first", ["step", "ms"], {"x": ["x", "1"], "y": None})
    report.write("a", "second", ["step", "ms"], {"x": None, "y": ["y", "2"]})
    assert report.rows("a") == (["step", "ms"], {"x": ["x", "1"], "y": ["y", "2"]})
    table = "| step | ms |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n"
    after = "<!-- end -->\nbelow\n<!-- b -->\nother\n<!-- end -->\n"
    assert readme.read_text("utf-8") == f"above\n<!-- a -->\nsecond\n\n{table}{after}"
    with pytest.raises(ValueError, match="measure all models"):
        report.write("a", "third", ["step", "us"], {"x": ["x", "1"], "y": None})


def test_the_plot_is_of_medians_over_ours(perf):
    header, rows = ["step", "treepie, ms", "JAX, ms", "of"], {"`m`: x": ["`m`: x", "1 / 2", "3 / 5", "0.4"]}
    assert perf("plot").ratios(header, rows) == {"m": {"JAX": 2.5}}


def test_the_calls_whose_overhead_is_timed_run(perf, monkeypatch):
    monkeypatch.setattr(perf("arena"), "CALLS", 9)
    overhead = perf("overhead")
    for name in overhead.treepie_cases():
        found = [overhead.make("treepie", name)()]
        if overhead.ROWS[name].has_reference:
            found.append(overhead.make(overhead.REFERENCE, name)())
        trees = [ptree.leaves(x.vars.params) if hasattr(x, "vars") else [x] for x in found]
        assert all(np.isfinite(np.asarray(leaf)).all() for tree in trees for leaf in tree), name
        if name in (
            "layers",
            "operations",
            "counter",
            "eye",
            "eye_target",
        ):  # the same training, written otherwise
            for ours, reference in zip(*trees, strict=True):
                np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("library", "module"), [("PyTorch", "torch"), ("JAX", "optax")])
def test_the_calls_of_rivals_learn(perf, library, module):
    pytest.importorskip(module)
    rivals = perf("overhead_rivals")
    for case in rivals.CASES:
        call = rivals.LIBRARIES[library](case)
        first, last = call(), [call() for _ in range(8)][-1]  # of the same batch
        assert np.shape(last) == (4, 1) if case == "predict" else last < first, case


def test_overheads_are_compared_with_the_reference(perf):
    found = {"treepie": 30.0, "reference": 20.0, "JAX": 40.0}
    cells = perf("overhead").cells
    assert cells("fit", found, ["JAX"])[1:] == ["30", "40", "20", "", "16 us"]
    assert cells("weight", found, ["JAX"])[1:] == ["30", "40", "20", "1.50 times", "1.5 times"]
    assert cells("layers", {"treepie": 320.0, "reference": 20.0}, ["JAX"])[1:] == [
        *("320", "", "20", "10.0 us a layer", "10 us a layer")
    ]


def test_the_table_of_ops_has_every_row_and_its_bound(perf):
    ops = perf("ops")
    _, cells = ops.read()
    assert cells.keys() == ops.OPS.keys()
    for name, row in cells.items():
        assert row[4] == ops.bound(ops.OPS[name]), f"{name}: run python perf/ops.py --accuracy {name}"
    for row in ops.swept():
        assert float(cells[row.name][3]) <= row.ulp


def test_a_sweep_writes_only_the_errors_of_its_rows(perf, monkeypatch, tmp_path):
    ops = perf("ops")
    page = tmp_path / "OPS.md"
    page.write_text(ops.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(ops, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["ops.py", "--accuracy", "tanh", "--points", "2000"])
    before = ops.read()[1]
    ops.main()
    after = ops.read()[1]
    assert {name for name in before if before[name] != after[name]} == {"tanh"}
    assert before["tanh"][:3] + before["tanh"][6:] == after["tanh"][:3] + after["tanh"][6:]
    assert 0.9 < float(after["tanh"][3]) < 1.5
    assert 0.8 < float(after["tanh"][5]) < 1.5


def test_a_sweep_fails_where_an_error_exceeds_the_bound(perf, monkeypatch, tmp_path):
    ops = perf("ops")
    page = tmp_path / "OPS.md"
    page.write_text(ops.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(ops, "PAGE", page)
    monkeypatch.setattr(ops, "swept", lambda: [replace(ops.OPS["tanh"], ulp=0.75, _plans={})])
    monkeypatch.setattr(sys, "argv", ["ops.py", "--accuracy", "--points", "2000"])
    with pytest.raises(SystemExit, match=r"tanh of \S+ is \S+, 1\.\d+ ulp from \S+; its bound is 0\.75"):
        ops.main()
