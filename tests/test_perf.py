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


def test_the_model_of_sums_is_fitted_to_what_is_measured(perf):
    scaling = perf("scaling")
    alpha, beta = scaling.fit([(size, 3e-6 + size / 5e9) for size in scaling.SIZES])
    np.testing.assert_allclose((alpha, beta), (3e-6, 2e-10), rtol=1e-6)


def test_steps_on_more_nodes_are_predicted(perf, monkeypatch):
    scaling = perf("scaling")
    monkeypatch.setattr(scaling, "NETWORKS", {"net": (1e9, 1e-5, 1e-6)})
    assert scaling.sum_of_nodes(1, 10**6, "net") == 0
    # Two latencies, six messages, and six quarters of the bytes.
    assert scaling.sum_of_nodes(4, 10**6, "net") == pytest.approx(2e-5 + 6e-6 + 1.5e-3)
    cells, lines = scaling.predict("mlp", 1e-3, 10**6)
    assert lines["`mlp`, net"][1] == 1
    assert lines["`mlp`, net"][2] == pytest.approx(1e-3 / (1e-3 + 2.2e-5 + 1e-3))
    assert cells["`mlp`, net"][1:3] == ["1.02", "2.02 ms, 49%"]


def test_steps_on_ranks_are_compared_with_one_process_and_ddp(perf):
    scaling = perf("scaling")
    seconds = {scaling.ONE: 2.0, scaling.TWO: 2.1, "2 ranks, without sums": 2.0, "DDP, 2 ranks": 4.2}
    times = {row: [s * 1e-3] * 3 for row, s in seconds.items()}
    cells, figures = scaling.rows_of("gpt", times, {scaling.TWO: (3, 2000)})
    row = ["2.1 / 2.1", "1.05", "0.50", "0.1 (5%)", "3", "2"]
    assert cells["`gpt`, 2 ranks"][1:] == row
    assert scaling.check("gpt", figures) == []
    assert scaling.check("gpt", figures | {"DDP": 0.9}) == ["gpt, DDP: 0.900, at most 0.8"]


def test_the_ranks_that_are_timed_train_and_sum(perf):
    pytest.importorskip("mpi4py")
    jobs = perf("scaling_jobs")
    job = jobs.Job("treepie", 2, 1)
    try:
        for what in ("steps", "without sums"):
            assert len(job.ask(what, "mlp", 3)) == 3
        calls, size = job.ask("counts", "mlp", 3)
        assert calls < 8
        assert size > 4 * 535_000
        assert min(job.ask("sum", "shared", 4096)) > 0
    finally:
        job.end()


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


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # 200 epochs are few
def test_the_estimators_of_the_table_fit_and_are_held_to_the_bar(perf):
    tabular = perf("tabular")
    for way in ("treepie", "scikit-learn"):
        seconds, score = tabular.fit(way, "wine", 1)
        assert seconds > 0
        assert score > 0.9
    X, y, X_test, _ = tabular.split("diabetes", 0, raw=False)
    assert (X.dtype, X.shape, X_test.shape) == (np.float32, (353, 10), (89, 10))
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-12)
    results = {way: [(0.1, 0.9), (0.3, 0.8), (0.2, 0.7)] for way in tabular.WAYS}
    assert tabular.row("wine", results) == ["`wine`: 3 classes", *["0.800 / 0.2 s"] * 5, "1.0"]
    results["treepie"] = [(0.06, 0.78)]
    assert tabular.below_the_bar("wine", results) == ["wine: scores are 0.7800 and 0.8000 of scikit-learn's"]
    results["treepie"] = [(0.1, 0.795)]
    slow = "wine: 2.00 times as fast as scikit-learn's, at least 3.0"
    assert tabular.below_the_bar("wine", results) == [slow]
